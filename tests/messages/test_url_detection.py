import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.messages.url_detection import DetectedUrl, detect_urls, find_urls
from shortener.urls import parse_destination
from tests.messages.marketing_texts import MARKETING_TEXTS
from tests.one_test import in_one_test


def detect(body: str) -> list[str]:
    """Detect the URLs of a text. Return them as they are written in the text."""
    urls = find_urls(body)
    for url in urls:
        assert url.url in (body[url.start : url.end], "http://" + body[url.start : url.end])
    return [body[url.start : url.end] for url in urls]


def test_a_url_is_detected_with_its_position() -> None:
    assert find_urls("See https://shop.example/a?b=1, or www.x.co.uk.") == [
        DetectedUrl(4, 30, "https://shop.example/a?b=1"),
        DetectedUrl(35, 46, "http://www.x.co.uk"),
    ]


@in_one_test
@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example",
        "https://shop.example/",
        "hTTps://Shop.Example/A",
        "https://shop.example:8443/a?b=c&d#e",
        "https://shop.example?b",
        "https://shop.example#b",
        "https://shop.example/a,b;c:d!e'f(g)h",
        "https://shop.example/a_(b)",
        "https://shop.example/?m={message_id}",
        "https://shop.example/?u=https://other.example/x",
        "https://shop.example/ä/Москва",
        "https://例え.example/",
        "http://127.0.0.1:8000/a",
        "http://[::1]:8000/a",
        "http://localhost:8000",
        "www.x.co.uk",
        "WWW.SHOP.COM",
        "www.gov.uk",
        "www.party.us",
        "www.bücher.de/ä",
        "x.com",
        "x.com/y?z",
        "x.com:8080",
        "x.com:80/y",
        "x.com?id=QJKGIG",
        "my-tone.com/enjoy",
        "club4mobiles.com",
        "PocketBabe.co.uk",
        "SHOUT2SMS.COM",
        "o2.co.uk/games",
        "Yahoo.Com",
        "magic.blogspot.com",
        "80488.biz",
        "acme.com.au",
        "amazon.de",
        "Telekom.de/x",
        "bücher.fr",
        "пример.рф",
        "bit.ly/3xYz",
        "t.me/shop",
        "ACME.IO/A",
        "gov.uk/tax",
        "staff.uni.edu.sg/~me",
    ],
)
def test_a_url_is_detected_inside_any_sentence(url: str) -> None:
    around = ("{}", "go to {} now", "({})", "“{}”", "'{}'", '"{}"', "<{}>", "see {}.", "{}, or", "{}!?", "*{}*", "info:{}...")
    sentences = [text.format(url) for text in (*around, "👍{}\n")]
    assert [sentence for sentence in sentences if detect(sentence) != [url]] == []


@in_one_test
@pytest.mark.parametrize(
    "body",
    [
        "",
        "no link at all",
        "hi.how are you",
        "Ok.so what",
        "lar.i know",
        "r u going or u.no",
        "love it.it was fun",
        "Thanks.me too.in a min.at home.be good.is it.to go.my dear.us all",
        "come home.info follows.now.live.shop.today.club.help",
        "Lost.Net was torn",
        "fuera.De nada",
        "Si.como no. bien.es verdad, ok.eu vou",
        "CALL NOW.UK RESIDENTS ONLY",
        "Yes.No/maybe",
        "B.Com/M.Com, B.Sc/M.Sc",
        "ok..come",
        "me@x.com",
        "first.last@shop.co.uk, info.de@x.com",
        "me@www.shop.com/a",
        "me@ shop.edu",
        "@x.com #x.com $x.com",
        "£1.50, $9.99, 1.50p/msg, 10.99/month",
        "7.30pm, 10.am/11.am, 20.11.2026",
        "v1.2.3, 10.0.0.1, 1.2.3.4/a",
        "readme.md index.html photo.zip song.mov main.rs node.js run.sh",
        "e.g. this, i.e. that, a.m./p.m., U.S.A., Ph.D.",
        "co.uk",
        "www.com www. www.x www.shop.invalid",
        "http://wap. rest",
        "http://intranet/a",
        "https://",
        "http//www.x.com",
        "a_b.com",
        "x.com_ x.com-based x.com=1 x.com+1",
        "x.com?yes",
        "www.shop.com1win150age16",
        "http://user:pw@x.com/",
        "http://x.com:99999/",
        "http://x.com\\@evil.example",
        "http://x.com./a",
        "http://127.1/",
        "http://a..b/",
        "привет.как дела",
    ],
)
def test_text_that_is_not_a_url_is_not_detected(body: str) -> None:
    assert detect(body) == []


@in_one_test
@pytest.mark.parametrize(
    ("body", "urls"),
    [
        (
            "http://a.example,http://b.example;https://c.example/x,y",
            ["http://a.example", "http://b.example", "https://c.example/x,y"],
        ),
        ("x.com,y.com", ["x.com", "y.com"]),
        ("Visit us.http://x.com", ["http://x.com"]),
        ("experiencehttp://www.x.com/a.asp", ["http://www.x.com/a.asp"]),
        ("詳細はhttps://xoxzo.comへ", ["https://xoxzo.com"]),
        ("詳細はwww.xoxzo.jpへ", ["www.xoxzo.jp"]),
        ("詳細は xoxzo.com へ", ["xoxzo.com"]),
        ("请点击https://t.cn/abc。谢谢", ["https://t.cn/abc"]),
        ("https://x.com/a\u200b b", ["https://x.com/a"]),
        ("\u200fx.com/a\u200f", ["x.com/a"]),
        ("https://x.com/a|b", ["https://x.com/a"]),
        ("[(https://x.com/a_(b)c)].", ["https://x.com/a_(b)c"]),
        ("(x.com/(a)", ["x.com/(a)"]),
        ("https://x.com/{code}}", ["https://x.com/{code}"]),
        (r"{\"text\":\"https://x.com/a\"}", ["https://x.com/a"]),
        ("x.com?", ["x.com"]),
        ("x.com- ok", ["x.com"]),
        ("x.com:30 days", ["x.com"]),
        ("a.com a.com", ["a.com", "a.com"]),
    ],
)
def test_punctuation_and_words_of_the_sentence_after_a_url_are_not_part_of_the_detected_url(body: str, urls: list[str]) -> None:
    assert detect(body) == urls


@pytest.mark.parametrize(
    "body",
    [
        "a." * 9999,
        "a-" * 9999,
        "http://a" * 9999,
        "www." * 9999,
        "x.com/" + "(!)" * 9999,
        "https://" + "a" * 9999 + "@",
        "a.b?" * 9999,
        "https://user:" + "x.com,a" * 9999 + "@",
        # Without the text a.b, the search would end at once.
        "a-" * 9999 + " a.b",
        "xn--" * 4999 + " a.b",
    ],
)
def test_a_hostile_text_is_searched_for_urls_in_linear_time(body: str) -> None:
    began = time.process_time()
    assert detect(body) == []
    assert time.process_time() - began < 1  # a quadratic search needs several seconds


@pytest.mark.parametrize(
    "end", ["!" * 9999 + "a1", "...a1" * 4999, "?a=" + "b;" * 9999, "?" + "a=1,b" * 4999, "-a" * 9999, "('a" * 9999, ";a" * 9999]
)
def test_the_end_of_a_long_url_is_found_in_linear_time(end: str) -> None:
    began = time.process_time()
    detect(f"https://shop.example/{end} now")
    detect(f"https://shop.example,{end}:x@y.example now")
    assert time.process_time() - began < 1  # a quadratic search needs several seconds


SPECIAL = list("./?#@:-_() ,!'\"\\%üへ👍\u200b\ud800\0İ")
PIECES = st.sampled_from(
    ["http://", "https://", "www.", "x", "shop", ".com", ".de", ".so", "a=b", "80", "{code}", "xn--", *SPECIAL]
)


@given(st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=30))
def test_every_detected_url_is_a_valid_destination(body: str) -> None:
    end = 0
    for url in find_urls(body):
        assert end <= url.start < url.end <= len(body)
        assert url.url in (body[url.start : url.end], "http://" + body[url.start : url.end])
        parse_destination(url.url)
        end = url.end


def mark(text: str) -> str:
    """Return a text with brackets around each detected URL, in the form of MARKETING_TEXTS."""
    for url in reversed(find_urls(text)):
        text = f"{text[: url.start]}⟦{text[url.start : url.end]}⟧{text[url.end :]}"
    return text


def test_urls_in_marketing_texts_are_detected_as_a_person_would_mark_them() -> None:
    assert [mark(expected.replace("⟦", "").replace("⟧", "")) for expected in MARKETING_TEXTS] == [*MARKETING_TEXTS]


@in_one_test
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("https://user:pw@x.com/www.shop.com", "must not contain a user name or password"),
        ("https://https://www.shop.com/x", "has two schemes"),
        ("https:www.shop.com/x", "does not begin with http:// or https://"),
        ("https:// shop.com/x", "has a space after its scheme"),
        ("http://x.com:99999/www.shop.com", "has the port '99999'"),
        ("http://x.com./www.shop.com", "ends with a dot"),
        ("http://intranet/www.shop.com", "has a host without a dot"),
        ("http://127.1/www.shop.com", "neither a name nor an IPv4 address"),
        ("https://x.com\\www.shop.com", "contains a backslash"),
        ("https://xn--a.com/www.shop.com", "invalid international host name"),
        ("https://shop.example/" + "a" * 2100, "is longer than 2048 characters"),
        ("ftp://www.shop.com/x", "does not begin with http:// or https://"),
        ("myapp://open?u=https://shop.com", "does not begin with http:// or https://"),
        ("mailto:me@shop.com?body=https://shop.com", "does not begin with http:// or https://"),
        ("sale.shop now", "is a bare domain; write https:// before it"),
    ],
)
def test_text_that_is_similar_to_a_url_is_reported_as_not_tracked_and_no_part_of_this_text_is_detected_as_a_url(
    text: str, reason: str
) -> None:
    urls, untrackable = detect_urls(f"Big {text} then x.com")
    assert [url.url for url in urls] == ["http://x.com"]
    assert [one.start for one in untrackable] == [4]
    assert reason in untrackable[0].reason


@pytest.mark.parametrize("before", ["ب", "é\u0301", "привет", "＠", "क", "x@", "\u00ad"])
def test_a_domain_without_a_scheme_is_not_detected_inside_a_word_or_an_address(before: str) -> None:
    assert detect(f"{before}shop.com") == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("e.g.shop.com", "is a bare domain directly after another word"),
        ("z.B.shop.de", "is a bare domain directly after another word"),
        ("STOP2END.u.shop.com", "is a bare domain directly after another word"),
        ("SALE.shop.com", "is a bare domain directly after another word"),
    ],
)
def test_a_domain_without_a_scheme_directly_after_an_abbreviation_or_a_word_in_capitals_is_reported_as_not_tracked(
    text: str, reason: str
) -> None:
    urls, untrackable = detect_urls(f"Big {text} then x.com")
    assert [url.url for url in urls] == ["http://x.com"]
    assert [(one.start, one.end - one.start) for one in untrackable] == [(4, len(text))]
    assert reason in untrackable[0].reason


@pytest.mark.parametrize(
    "text", ["see shop.example/sale now", "visit shop.example today", "Shop at www.shop.example.", "New: go.brand.example"]
)
def test_a_bare_domain_that_ends_in_example_is_detected_because_documents_and_tests_use_this_suffix(text: str) -> None:
    assert len(find_urls(text)) == 1
    assert detect("for.example we reply") == []


@pytest.mark.parametrize("host", ["NEWS.BBC.CO.UK", "BBC.co.uk", "WWW.shop.com", "m.shop.com", "x.com", "Mail.shop.com"])
def test_a_domain_in_capitals_or_with_a_short_first_label_is_detected(host: str) -> None:
    assert detect(f"go to {host} now") == [host]


@in_one_test
@pytest.mark.parametrize(
    ("url", "after"),
    [
        ("https://shop.example/a", ",jetzt zugreifen"),
        ("https://shop.example/a", ",è gratis"),
        ("https://shop.example/a", "!heute noch"),
        ("https://shop.example/a?id=12", ",jetzt"),
        ("https://shop.example/a?ref=ab", ";bedankt"),
        ("https://shop.example/a?d=24/12", ".Posti limitati"),
        ("https://shop.example/ci/AB123", ".Have a nice trip"),
        ("https://shop.example/a", ".Danke!"),
        ("https://shop.example/a", "'da"),
        ("https://shop.example/a", "’i tıklayın"),
        ("https://shop.example/a", "'s sale"),
        ("https://shop.example/a", ":sta"),
        ("https://shop.example/a", "...it's here"),
        ("https://shop.example/a", "(2)https://shop.example/b"),
        ("https://shop.example/a", "+https://shop.example/b"),
        ("https://shop.example/a", "&@shop"),
        ("https://shop.example", ",info@shop.example"),
        ("https://www.shop.example", ")[mail](mailto:info@shop.example)"),
        ("https://1️⃣.example/a", "1️⃣"),
    ],
)
def test_text_attached_to_a_url_is_not_a_part_of_the_detected_url(url: str, after: str) -> None:
    assert detect(f"Go to {url}{after}")[0] == url


@in_one_test
@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/a,b",
        "https://shop.example/Berlin,Germany",
        "https://shop.example/news,sport,politics",
        "https://shop.example/?q=red,blue",
        "https://shop.example/?a=1;b=2",
        "https://shop.example/?a=1&amp;flag",
        "https://shop.example/?a=1&#038;b=2",
        "https://shop.example/?a=1&#x26;b=2",
        "https://shop.example/@52.5,13.4,15z",
        "https://shop.example/St.Paul",
        "https://shop.example/report.PDF",
        "https://shop.example/order-AB-12",
        "https://shop.example/promo-SUMMER",
        "https://shop.example/AB-XYZ9",
        "https://shop.example/wiki/Talk:Main",
        "https://shop.example/men's-shoes",
        "https://shop.example/compare/v1...v2/x",
        "https://shop.example/?u=https://other.example/x,now",
        "https://shop.example/പോലൊരാള്‍.html",
    ],
)
def test_a_url_that_resembles_a_url_with_attached_text_is_detected_completely(url: str) -> None:
    assert detect(f"Go to {url} now") == [url]


def test_a_url_directly_after_a_number_is_detected() -> None:
    assert detect("Sale 11.11https://shop.example/") == ["https://shop.example/"]


@pytest.mark.parametrize("before", ["は", "看", "ดู", "보기", "👉", "ב-", "(", "：", "“"])
def test_a_domain_without_a_scheme_is_detected_after_punctuation_and_after_scripts_without_spaces(before: str) -> None:
    assert detect(f"{before}shop.com") == ["shop.com"]
