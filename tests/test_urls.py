from urllib.parse import quote, unquote, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.redirect_locations import append_param, fill_placeholders
from shortener.urls import (
    DESTINATION_PLACEHOLDERS,
    MAX_URL_CHARACTERS,
    NumericHostError,
    UrlError,
    parse_authority,
    parse_destination,
    parse_host,
)
from tests.one_test import in_one_test


def reason(url: str) -> str:
    with pytest.raises(UrlError) as caught:
        parse_destination(url)
    assert 0 <= caught.value.position <= len(url)
    return caught.value.reason


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/a?b=1&c=%2F+%zz#d?e#f",
        "http://shop.example",
        "http://shop.example?x=it's,(a)|^`~[]",
        "https://shop.example:8443/{unknown}/{{x}}/{Code}/{}",
        "http://127.0.0.1:9000/landing",
        "http://localhost:1/",
        "http://[2001:db8::1]:80/x",
        "https://my_shop.r3---sn-x.example/@user:pw",
        "https://shop.example//evil.example/https://a@b",
        "https://shop.example/" + "a" * (MAX_URL_CHARACTERS - 21),
    ],
)
def test_an_ascii_destination_url_stays_unchanged(url: str) -> None:
    destination = parse_destination(url)
    assert destination.url == url
    assert destination.location == url.encode()
    assert destination.placeholders == frozenset()


@pytest.mark.parametrize(
    ("url", "stored", "location", "host"),
    [
        ("HTTP://WWW.Shop.Example/A?B", "http://www.shop.example/A?B", b"http://www.shop.example/A?B", "www.shop.example"),
        (
            "https://bücher.example/ä?ö#ü",
            "https://xn--bcher-kva.example/ä?ö#ü",
            b"https://xn--bcher-kva.example/%C3%A4?%C3%B6#%C3%BC",
            None,
        ),
        ("https://faß.example/👍", "https://xn--fa-hia.example/👍", b"https://xn--fa-hia.example/%F0%9F%91%8D", None),
        ("https://пример.рф:81/%D0", "https://xn--e1afmkfd.xn--p1ai:81/%D0", b"https://xn--e1afmkfd.xn--p1ai:81/%D0", None),
        ("https://shop。example/", "https://shop.example/", b"https://shop.example/", "shop.example"),
        ("https://XN--BCHER-KVA.example/", "https://xn--bcher-kva.example/", b"https://xn--bcher-kva.example/", None),
        ("http://[2001:DB8::1]/", "http://[2001:db8::1]/", b"http://[2001:db8::1]/", "2001:db8::1"),
        ("http://[2001:db8:0:0::1]/", "http://[2001:db8::1]/", b"http://[2001:db8::1]/", "2001:db8::1"),
        ("http://[::0:1]:80/", "http://[::1]:80/", b"http://[::1]:80/", "::1"),
        ("http://[::FFFF:192.0.2.1]/", "http://[::ffff:c000:201]/", b"http://[::ffff:c000:201]/", "::ffff:c000:201"),
        (
            "https://shop.example/می\u200cشود",
            "https://shop.example/می\u200cشود",
            "https://shop.example/" + quote("می\u200cشود"),
            None,
        ),
    ],
)
def test_scheme_and_host_of_a_destination_are_normalized_and_the_rest_stays_unchanged(
    url: str, stored: str, location: bytes | str, host: str | None
) -> None:
    destination = parse_destination(url)
    assert destination.url == stored
    assert destination.location == (location.encode() if isinstance(location, str) else location)
    assert destination.host == (host or urlsplit(stored).hostname)


@pytest.mark.parametrize(
    ("host", "ascii_host"),
    [
        ("💩.example", "xn--ls8h.example"),
        ("i❤️.ws", "xn--i-7iq.ws"),  # the host contains a variation selector, which makes the heart coloured
        ("1️⃣.example", "xn--1-2sn.example"),
        # UTS 46 keeps the final sigma ς, and converts capital letters to σ.
        ("ΚΑΦΕΣ-ΟΝΛΑΙΝ.gr", "xn----ylbbowbkpdp6b8a.gr"),
        ("ΕΛΛΑΣ24.gr", "ελλασ24.gr".encode("idna").decode()),
        ("βόλος.com", "xn--nxasmm1c.com"),
    ],
)
def test_a_host_with_symbols_or_greek_letters_becomes_the_punycode_that_browsers_use(host: str, ascii_host: str) -> None:
    destination = parse_destination(f"https://{host}/a")
    assert (destination.host, destination.location) == (ascii_host, f"https://{ascii_host}/a".encode())


@in_one_test
@pytest.mark.parametrize(
    "url",
    [
        "",
        "shop.example",
        "//shop.example/",
        "/a",
        "https:shop.example",
        "https:/shop.example",
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "tel:+14155550100",
        "intent://shop.example#Intent;scheme=https;end",
        "ftp://shop.example/",
        "httpss://shop.example/",
        "{code}://shop.example/",
        " https://shop.example/",
    ],
)
def test_only_absolute_http_and_https_urls_are_destinations(url: str) -> None:
    assert reason(url)


@in_one_test
@pytest.mark.parametrize(
    "url",
    [
        "https://a@shop.example/",
        "https://a:b@shop.example/",
        "https://@shop.example/",
        "https://good.example\\@evil.example/",
        "https://good.example\\.evil.example/",
        "https:///shop.example",
        "https://",
        "https://?x",
        "https://:80/",
        "https://shop.example:99999/",
        "https://shop.example:65536/",
        "https://shop.example:0/",
        "https://shop.example:/",
        "https://shop.example:http/",
        "https://shop.example:8０/",
        "https://shop.example:-1/",
        "https://shop.example:80:80/",
        "https://shop..example/",
        "https://.example/",
        "https://shop.example./",
        "https://shop.ex%61mple/",
        "https://shop.example;a/",
        "https://shop.example,b/",
        "https://shop!.example/",
        "https://👨\u200d👩\u200d👧.example/",
        "https://0à.א/",  # in a host with Hebrew letters, browsers reject a label that begins with a digit
        "https://a\u0301\u0301\u0338b。..example/",
        "https://shop.example／evil/",
        "https://℀.example/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f.0.0.1/",
        "https://0x7f000001/",
        "https://1.2.3.4.5/",
        "https://1.2.3.256/",
        "https://010.0.0.1/",
        "https://a.0x/",
        "http://[::1/",
        "http://::1/",
        "http://[::1]x/",
        "http://[::1%25eth0]/",
        "http://[v1.a]/",
        "http://[1.2.3.4]/",
        "http://[]/",
        "http://x[::1]/",
        f"https://{'a' * 64}.example/",
        f"https://{'a.' * 130}example/",
        f"https://{'ä' * 1000}.example/",
    ],
)
def test_a_destination_whose_host_url_parsers_read_differently_is_rejected(url: str) -> None:
    assert reason(url)


@in_one_test
@pytest.mark.parametrize(
    "character", [*map(chr, range(0x21)), *'\x7f\x85\xa0"<>\\\xad\u1680\u200b\u200e\u202e\u2028\u2066\u3000\ufeff\ud800']
)
def test_a_character_that_is_not_allowed_in_urls_is_rejected_at_any_position(character: str) -> None:
    url = "https://shop.example/path?q=1#f"
    for position in (0, 3, 7, 10, 21, len(url)):
        with pytest.raises(UrlError) as caught:
            parse_destination(url[:position] + character + url[position:])
        assert caught.value.position == position


def test_the_length_of_a_destination_is_limited_before_and_after_percent_encoding() -> None:
    assert reason("https://shop.example/" + "a" * (MAX_URL_CHARACTERS - 20)) == "is longer than 2048 characters"
    assert reason("https://shop.example/" + "ä" * 400) == "is longer than 2048 characters when percent-encoded"


def test_the_reason_of_a_url_error_is_a_clause_that_can_follow_the_url() -> None:
    assert reason("https://{code}.example/") == "has a brace in its host; placeholders are allowed after the host only"
    assert reason("https://shop.example:{code}/") == "has the port '{code}'; a port must be a number from 1 to 65535"
    assert reason("https://shop.example/a b") == "contains white space (U+0020) at position 22"
    assert reason('https://shop.example/"') == 'contains " at position 21; write %22 instead'
    assert reason("https://a@b.example/") == "must not contain a user name or password before its host"


def test_a_destination_may_contain_placeholders_after_its_host() -> None:
    url = "https://shop.example/{code}?m={message_id}&x={nope}&y={click_id}{click_id}#{campaign}"
    destination = parse_destination(url)
    assert destination.placeholders == {"code", "message_id", "click_id", "campaign"}
    assert destination.location == url.encode()


LABELS = st.text("abcXYZ019-_", min_size=1, max_size=6)
HOSTS = st.one_of(
    st.lists(LABELS, min_size=1, max_size=4).map(".".join),
    st.lists(st.text("aZä日пß1。-", min_size=1, max_size=5), min_size=1, max_size=3).map(".".join),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map("[{}]".format),
    st.text("0123456789xaf.[]:%@", max_size=12),
    st.text(max_size=8),
)
PORTS = st.one_of(st.just(""), st.integers(1, 65535).map(":{}".format), st.text(":0a9ß", max_size=3))
RESTS = st.one_of(
    st.text("ab/:@%{}ä&=+?#[];", max_size=12).map("/{}".format),
    st.text("?#ab@ä", max_size=6),
    st.text("/@:\\\t ", max_size=3),
)
URLS = st.builds("{}{}{}{}".format, st.sampled_from(["http://", "https://", "HTTP://", "https:///", "//"]), HOSTS, PORTS, RESTS)


@given(URLS)
def test_other_url_parsers_find_the_same_scheme_host_and_port_in_a_destination(url: str) -> None:
    try:
        destination = parse_destination(url)
    except UrlError:
        return
    for text in (destination.url, destination.location.decode("ascii")):
        split, other = urlsplit(text), httpx.URL(text)
        default = {"http": 80, "https": 443}[split.scheme]
        assert other.scheme == split.scheme
        assert other.raw_host.decode() == split.hostname == destination.host
        assert (other.port or default) == (split.port or default)
        assert not split.username
        assert not other.userinfo
    assert all(0x20 < byte < 0x7F for byte in destination.location)


@given(URLS)
def test_parsing_the_stored_form_of_a_destination_returns_it_unchanged(url: str) -> None:
    try:
        destination = parse_destination(url)
    except UrlError:
        return
    assert parse_destination(destination.url) == destination
    assert parse_destination(destination.location.decode()).location == destination.location


def test_placeholder_values_are_percent_encoded_and_the_rest_stays_unchanged() -> None:
    location = b"https://shop.example/{message_id}?c={campaign}&k={code}&x={nope}&e=%7Bcode%7D#{message_id}"
    filled = fill_placeholders(location, {"message_id": "a/b c", "campaign": "50% & +ä~-._", "code": "xyz"})
    assert filled == b"https://shop.example/a%2Fb%20c?c=50%25%20%26%20%2B%C3%A4~-._&k=xyz&x={nope}&e=%7Bcode%7D#a%2Fb%20c"


def test_a_value_that_looks_like_a_placeholder_is_not_replaced() -> None:
    assert fill_placeholders(b"https://a.example/{campaign}{code}", {"campaign": "{code}", "code": "{campaign}"}) == (
        b"https://a.example/%7Bcode%7D%7Bcampaign%7D"
    )


def test_a_placeholder_without_a_value_stays_in_the_url_and_can_be_filled_later() -> None:
    first = fill_placeholders(b"https://a.example/{code}?c={click_id}", {"code": "{click_id}"})
    assert first == b"https://a.example/%7Bclick_id%7D?c={click_id}"
    assert fill_placeholders(first, {"click_id": ""}) == b"https://a.example/%7Bclick_id%7D?c="


@given(st.fixed_dictionaries({name: st.text(st.characters(codec="utf-8")) for name in DESTINATION_PLACEHOLDERS}))
def test_placeholder_values_can_be_decoded_from_the_query_of_the_filled_url(values: dict[str, str]) -> None:
    template = b"https://a.example/?" + b"&".join(b"%b={%b}" % (name.encode(), name.encode()) for name in DESTINATION_PLACEHOLDERS)
    filled = fill_placeholders(template, values).decode("ascii")
    parts = [part.split("=") for part in filled.partition("?")[2].split("&")]
    assert {name: unquote(value) for name, value in parts} == values


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"https://a.example", b"https://a.example?cid=1%2B2"),
        (b"https://a.example/x?", b"https://a.example/x?cid=1%2B2"),
        (b"https://a.example/x?a=%20+b", b"https://a.example/x?a=%20+b&cid=1%2B2"),
        (b"https://a.example/x?a&", b"https://a.example/x?a&cid=1%2B2"),
        (b"https://a.example/x?a=?&b#f?g#h", b"https://a.example/x?a=?&b&cid=1%2B2#f?g#h"),
        (b"https://a.example/#cid=3", b"https://a.example/?cid=1%2B2#cid=3"),
        (b"https://a.example/?xcid=3&a=cid", b"https://a.example/?xcid=3&a=cid&cid=1%2B2"),
        (b"https://a.example/?cid=3#f", b"https://a.example/?cid=3#f"),
        (b"https://a.example/?a=1&cid", b"https://a.example/?a=1&cid"),
        (b"https://a.example/?c%69d=3", b"https://a.example/?c%69d=3"),
        (b"https://a.example/?cid={click_id}", b"https://a.example/?cid={click_id}"),
    ],
)
def test_a_query_parameter_is_added_before_the_fragment_of_a_url_and_replaces_nothing(location: bytes, expected: bytes) -> None:
    assert append_param(location, "cid", "1+2") == expected


def test_the_name_of_an_added_query_parameter_is_percent_encoded() -> None:
    assert append_param(b"https://a.example/", "a b", "{code}") == b"https://a.example/?a%20b=%7Bcode%7D"
    assert append_param(b"https://a.example/?a%20b=1", "a b", "2") == b"https://a.example/?a%20b=1"


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        ("Shop.Example", ("shop.example", None)),
        ("bücher.example:8443", ("xn--bcher-kva.example", 8443)),
        ("[2001:DB8::1]:80", ("2001:db8::1", 80)),
        ("shop.example.:1", ("shop.example.", 1)),
    ],
)
def test_the_authority_of_a_url_is_split_into_host_and_port(authority: str, expected: tuple[str, int | None]) -> None:
    assert parse_authority(authority) == expected


@pytest.mark.parametrize("authority", ["", ".", "a@b", "a:0", "a:", "127.0.0.1.", "shop.example..", "[::1", "[::1].", "[::1].:80"])
def test_an_invalid_authority_of_a_url_is_rejected(authority: str) -> None:
    with pytest.raises(UrlError):
        parse_authority(authority)


def test_the_error_for_a_numeric_host_contains_the_host_in_ascii() -> None:
    with pytest.raises(NumericHostError) as caught:
        parse_authority("１２７.1")
    assert caught.value.host == "127.1"


@pytest.mark.parametrize(
    ("text", "host"), [("Evil.Example", "evil.example"), ("[2001:DB8::1]", "2001:db8::1"), ("2001:DB8::1", "2001:db8::1")]
)
def test_parse_host_normalizes_a_host(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize("text", ["", "evil.example:80", "https://evil.example", "evil.example/x", "u@evil.example", "a b"])
def test_parse_host_rejects_text_with_a_scheme_port_or_path(text: str) -> None:
    with pytest.raises(UrlError):
        parse_host(text)


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("myapp://open/5", "myapp://open/5"),
        ("MyApp://open/é?c={code}", "myapp://open/%C3%A9?c={code}"),
        ("tel:+14155550100", "tel:+14155550100"),
        ("intent://scan/#Intent;scheme=zxing;end", "intent://scan/#Intent;scheme=zxing;end"),
    ],
)
def test_a_link_into_an_app_is_a_destination_if_its_scheme_is_permitted(url: str, location: str) -> None:
    destination = parse_destination(url, {"myapp", "tel", "intent"})
    assert (destination.location.decode(), destination.host) == (location, "")
    assert "http://" in reason(url)


@pytest.mark.parametrize("url", ["myapp://user:pw@open/5", "myapp://user@open", "MYAPP://@open?q=1"])
def test_a_link_into_an_app_with_user_information_is_rejected(url: str) -> None:
    with pytest.raises(UrlError, match="user name") as caught:
        parse_destination(url, {"myapp"})
    assert caught.value.position == len("myapp://")
    for allowed in ("myapp://open/a@b", "myapp://open?q=a@b", "myapp://open#a@b", "myapp:a@b.example"):
        assert parse_destination(allowed, {"myapp"}).url == allowed


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "DATA:text/html,x",
        "vbscript:x",
        "file:///etc/passwd",
        "blob:x",
        "about:blank",
        "https:x",
        "tel:",
        "tel:1 2",
    ],
)
def test_a_scheme_that_runs_code_or_opens_local_data_is_never_permitted(url: str) -> None:
    with pytest.raises(UrlError):
        parse_destination(url, {"javascript", "data", "vbscript", "file", "blob", "about", "https", "tel"})
