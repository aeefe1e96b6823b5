import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.messages import near_directives
from shortener.messages.directives import (
    MAX_CHECKED_DIRECTIVES,
    MAX_DIRECTIVES,
    MAX_LABEL_CHARACTERS,
    Directive,
    DirectiveError,
    find_directives,
    parse_directives,
)
from tests.one_test import in_one_test

URL = "https://shop.example/a?b=1"


def only(body: str) -> Directive:
    (directive,) = find_directives(body)
    return directive


def rejection(body: str) -> DirectiveError:
    with pytest.raises(DirectiveError) as caught:
        find_directives(body)
    return caught.value


def test_a_track_directive_is_parsed_with_its_url_and_position() -> None:
    body = f'Hello Kola, visit us at #track("{URL}") for more'
    directive = only(body)
    assert directive == Directive(24, 24 + len(f'#track("{URL}")'), URL, None, "track")
    assert body[directive.start : directive.end] == f'#track("{URL}")'


def test_a_trackurl_directive_is_parsed_with_its_label() -> None:
    assert only(f'#trackurl("{URL}","spring sale")') == Directive(0, 53, URL, "spring sale", "trackurl")


@in_one_test
@pytest.mark.parametrize(
    ("opening", "closing"),
    [*['""', "''", "“”", "””", "„“", "‘’", "’’", "«»", "»«", "‹›"], ("&quot;", "&quot;"), ("&#34;", "&#34;"), ("&#39;", "&#39;")],
)
def test_the_quotes_of_a_directive_may_be_straight_single_curly_angled_or_html_entities(opening: str, closing: str) -> None:
    assert only(f"#track({opening}{URL}{closing})").url == URL
    assert only(f"#trackurl({opening}{URL}{closing},{opening}x{closing})").label == "x"


def test_the_two_arguments_of_trackurl_may_use_different_quotes() -> None:
    assert only(f'#trackurl("{URL}",\'say "hi"\')').label == 'say "hi"'
    assert only(f'#trackurl(“{URL}”,"don’t")').label == "don’t"


@pytest.mark.parametrize("body", [rf"#track(\"{URL}\")", rf"#track(\\\"{URL}\\\")", rf'#track(\"{URL}")', rf"#track(\'{URL}\')"])
def test_quotes_that_are_escaped_as_in_json_are_accepted_around_the_url_of_a_directive(body: str) -> None:
    assert only(body) == Directive(0, len(body), URL, None, "track")


def test_a_directive_that_is_escaped_as_in_json_may_contain_a_label_and_escaped_slashes() -> None:
    directive = only(r"#trackurl(\"https:\/\/shop.example\/a\", \"sale\")")
    assert (directive.url, directive.label) == ("https://shop.example/a", "sale")


def test_white_space_between_the_parentheses_quotes_and_comma_of_a_directive_is_ignored() -> None:
    assert only(f'#trackurl(\t"{URL}" ,\r\n "x"\u00a0)').label == "x"


@pytest.mark.parametrize("blank", [" ", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2060", "\u200e", "\u00ad"])
def test_white_space_and_invisible_characters_around_the_url_of_a_directive_are_removed(blank: str) -> None:
    assert only(f'#track("{blank}{URL}{blank}")').url == URL
    assert only(f'#track({blank}"{URL}"{blank})').url == URL
    assert only('#track("a b")').url == "a b"


@pytest.mark.parametrize(
    "body",
    [
        f'#track("{URL}”)',
        f'#track(“{URL}")',
        f"#track(‘{URL}')",
        f"#track('{URL}’ )",
        f'#track(«{URL}")',
        f'#track("{URL}&quot;)',
        f'#track(&quot;{URL}")',
    ],
)
def test_a_typographic_quotation_mark_also_closes_the_url_of_a_directive(body: str) -> None:
    assert only(f'{body} and "quoted"').url == URL
    assert only(f'{body[:6]}url{body[6:-1]},"x") and "quoted"').url == URL


def test_curly_quotes_inside_straight_quotes_are_part_of_the_argument_of_a_directive() -> None:
    assert only('#track("https://a.example/?q=“x”")').url == "https://a.example/?q=“x”"
    assert only('#trackurl("u","the “best”, really")').label == "the “best”, really"


def test_a_directive_argument_between_html_entities_of_quotes_is_decoded() -> None:
    assert only("#track(&quot;https://a.example/?x=1&amp;y=2&quot;)").url == "https://a.example/?x=1&y=2"
    assert only('#track("https://a.example/?x=1&amp;y=2")').url == "https://a.example/?x=1&amp;y=2"


@pytest.mark.parametrize("url", ["u)", "u,v", "it's", "u#track(", "u%22", "u(", '#track("', "{message_id}"])
def test_parentheses_commas_and_number_signs_inside_the_quotes_of_a_directive_are_part_of_the_url(url: str) -> None:
    quote = "'" if '"' in url else '"'
    body = f"#track({quote}{url}{quote}) and #track('v')"
    assert [directive.url for directive in find_directives(body)] == [url, "v"]


def test_a_backslash_inside_a_directive_argument_escapes_only_quotes_slashes_and_backslashes() -> None:
    assert only(r'#track("a\"b\'c\\d\/e\nf")').url == "a\"b'c\\d/e\\nf"


@pytest.mark.parametrize("name", ["#Track", "#TRACK", "#tRaCk"])
def test_directive_names_are_case_insensitive(name: str) -> None:
    assert only(f'{name}("{URL}")').kind == "track"
    assert only(f'{name}URL("{URL}","x")').kind == "trackurl"


@in_one_test
@pytest.mark.parametrize("before", ["", " ", "(", ":", "é", "は", "👍", "\u202e", "\r\n", "\0", ".", "x", "5", "_"])
def test_a_directive_may_follow_any_character(before: str) -> None:
    assert only(f'{before}#track("{URL}")glued').start == len(before)


@in_one_test
@pytest.mark.parametrize(
    "body",
    [
        "no directive",
        "#track",
        "#track me",
        "#tracker",
        '#tracker("x")',
        '#tracking("x")',
        '#trackurls("x","y")',
        "#track (see below)",
        "#track: https://parcel.example/1",
        '#soldout ("really")',
        "#1 (best) #trackday",
        'Order #12345("x")',
        'track("x")',
        '#track: "Blue" by A',
        '#track="Blue"',
        '(the song #track="Blue")',
        "#track: (see below)",
        '#track! ("really")',
        "#track</b> (see https://parcel.example/1)",
        "#track%20it",
        "#track&fees; (10%)",
        "https://a.example/#track%28x%29",
        "https://a.example/?q=%23track%28x%29",
        "#track \\o/ (x)",
        '#1 track ("https://music.example/1")',
        '#track & field ("https://sport.example/")',
        "",
    ],
)
def test_hashtags_and_words_that_are_similar_to_a_directive_are_plain_text(body: str) -> None:
    assert find_directives(body) == []


NEAR = [
    '#track（"https://a.example/"）',
    "#track（“https://a.example/”)",
    '＃track("https://a.example/")',
    '﹟track("https://a.example/")',
    '#ｔｒａｃｋ("https://a.example/")',
    '#tr\u200back("https://a.example/")',
    '#track\u200b("https://a.example/")',
    '#\ufefftrack("https://a.example/")',
    '#track\u00ad("https://a.example/")',
    '##track("https://a.example/")',
    "##track(",
    '##trackurl("https://a.example/","x")',
    '# track("https://a.example/")',
    '#track\n("https://a.example/")',
    '#track\u00a0("https://a.example/")',
    '#track url("https://a.example/","x")',
    '#track_url("https://a.example/","x")',
    '#track["https://a.example/"]',
    '#track{"https://a.example/"}',
    '#track "https://a.example/"',
    "#track「https://a.example/」",
    '#tr\u0430ck("https://a.example/")',
    '#trac\u212a("https://a.example/")',
    "&#35;track(&quot;https://a.example/&quot;)",
    '%23track("https://a.example/")',
    '#trak("https://a.example/")',
    '#trackrul("https://a.example/","x")',
    '#tracks("https://a.example/")',
    '#track&#40;"https://a.example/"&#41;',
    '#track&#x28;"https://a.example/"&#x29;',
    "#track&amp;#40;&amp;quot;https://a.example/&amp;quot;&amp;#41;",
    '#track&lpar;"https://a.example/"&rpar;',
    '#track%28"https://a.example/"%29',
    "#track%28%22https://a.example/%22%29",
    "#track%28%22https%3A%2F%2Fa.example%2F%22%29",
    '#track\\("https://a.example/"\\)',
    '#track❨"https://a.example/"❩',
    '#track⟨"https://a.example/"⟩',
    '#track⦅"https://a.example/"⦆',
    '#track:("https://a.example/")',
    '#track: "https://a.example/"',
    '#track="https://a.example/"',
    '#track = ("https://a.example/")',
    '#trackurl:("https://a.example/","x")',
    '&amp;#35;track("https://a.example/")',
    "&amp;#35;track&amp;lpar;&amp;quot;https://a.example/&amp;quot;&amp;rpar;",
    '%2523track("https://a.example/")',
    '#trak&#40;"https://a.example/"&#41;',
    '#track&#40;"myapp://open/5"&#41;',
    '#track.("https://a.example/")',
    '#track<("https://a.example/")',
    '#track</b>("https://a.example/")',
    '#track**("https://a.example/")',
    '#trackurl</strong> ("https://a.example/","x")',
    "#track_*(“https://a.example/”)",
    '#tr\u2800ack("https://a.example/")',
    '#track\u0008("https://a.example/")',
    '#tr\x7fack("https://a.example/")',
    '#tr\u00a0ack("https://a.example/")',
    '#trac\nk("https://a.example/")',
    '#\\track("https://a.example/")',
    '#tr&zwj;ackurl("https://a.example/","x")',
    '#track%20url&nbsp;("https://a.example/","x")',
]


@in_one_test
@pytest.mark.parametrize("near", NEAR)
def test_a_mistyped_directive_is_rejected_with_its_position(near: str) -> None:
    position = 6 + next(index for index, character in enumerate(near) if character in "#＃﹟&%")
    for before, after in [("", ""), ("", ' #track("u")'), ('#track("u") ', "")]:
        error = rejection(f"{before}Shop: {near} now{after}")
        assert error.position == len(before) + position
        assert "resembles a directive" in error.reason


def test_all_malformed_directives_of_a_text_are_returned_with_their_positions() -> None:
    directives, errors = parse_directives('#track() #track("u") ＃track("v") #trackurl("w")')
    assert [directive.url for directive in directives] == ["u"]
    assert [error.position for error in errors] == [7, 21, 46]


def test_a_blank_before_the_parenthesis_of_a_directive_is_accepted_if_a_quote_follows() -> None:
    assert only(f'#track ("{URL}")').url == URL
    assert only(rf"#track ( \"{URL}\")").url == URL


@in_one_test
@pytest.mark.parametrize(
    ("body", "position", "reason"),
    [
        ('x #track("u)', 9, 'the quote " is never closed'),
        ('x #track("u\\")', 9, 'the quote " is never closed'),
        ('#track("u"', 0, "the parenthesis is never closed"),
        ('#trackurl("u","l"  ', 0, "the parenthesis is never closed"),
        ('#track("u" x)', 11, "expected \")\", found 'x'"),
        ("#track(u)", 7, "expected a URL in quotes, found 'u'"),
        ("#track()", 7, "expected a URL in quotes, found ')'"),
        ("#track(", 7, "expected a URL in quotes, found the end of the text"),
        ('#track("")', 0, "the URL is empty"),
        (r"#track(\"\")", 0, "the URL is empty"),
        ('#track("u","l")', 10, "#track takes only a URL; use #trackurl for a URL with a label"),
        ('#trackurl("u")', 13, '#trackurl requires a label after the URL: #trackurl("url","label")'),
        ('#trackurl("u",)', 14, "expected a label in quotes, found ')'"),
        ('#trackurl("u" "l")', 14, 'expected "," and a label, found \'"\''),
        ('#trackurl("u","")', 14, "the label is empty"),
        ('#trackurl("u"," ")', 14, "the label is empty"),
        ('#trackurl("u","a\0b")', 14, "the label contains a control character"),
        ('#trackurl("u","a\ud800b")', 14, "the label contains a control character"),
        (f'#trackurl("u","{"x" * (MAX_LABEL_CHARACTERS + 1)}")', 14, f"the label is longer than {MAX_LABEL_CHARACTERS} characters"),
        ('#trackurl("u","l","m")', 17, "expected \")\", found ','"),
        ('👍 #track("fine") #track(', 24, "expected a URL in quotes, found the end of the text"),
    ],
)
def test_a_malformed_directive_is_rejected_with_its_position_and_the_reason(body: str, position: int, reason: str) -> None:
    error = rejection(body)
    assert (error.position, error.reason) == (position, reason)


def test_several_directives_are_returned_in_text_order() -> None:
    body = '👍 #track("a") b #trackurl("a","x")\r\n#track("c")'
    directives = find_directives(body)
    assert [directive.url for directive in directives] == ["a", "a", "c"]
    assert [body[d.start : d.end][:6] for d in directives] == ["#track"] * 3


def test_a_text_with_too_many_directives_is_rejected() -> None:
    body = '#track("u") ' * MAX_DIRECTIVES
    assert len(find_directives(body)) == MAX_DIRECTIVES
    error = rejection(body + '#track("u")')
    assert (error.position, error.reason) == (len(body), f"there are more than {MAX_DIRECTIVES} directives in one message")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ('#track("u",', "#track takes only a URL; use #trackurl for a URL with a label"),
        ('##track("u")', 'this text resembles a directive; write #track("url") or #trackurl("url","label")'),
        ("#track(u)", "expected a URL in quotes, found 'u'"),
    ],
)
def test_all_directives_of_a_text_with_too_many_are_checked(wrong: str, reason: str) -> None:
    first = '#track("u") ' * (MAX_DIRECTIVES + 1)
    body = f'{first}#track("v") {wrong} #track("w")'
    directives, errors = parse_directives(body)
    assert [directive.url for directive in directives] == ["u"] * (MAX_DIRECTIVES + 1) + ["v", "w"]
    assert [error.reason for error in errors] == [f"there are more than {MAX_DIRECTIVES} directives in one message", reason]
    assert errors[0].position == len('#track("u") ') * MAX_DIRECTIVES
    assert len(first) < errors[1].position < body.index('#track("w")')


def test_the_error_says_where_the_check_of_a_text_with_very_many_directives_ended() -> None:
    one = '#track("u") '
    directives, errors = parse_directives(one * (MAX_CHECKED_DIRECTIVES + 5))
    assert len(directives) == MAX_CHECKED_DIRECTIVES
    assert [error.position for error in errors] == [len(one) * MAX_DIRECTIVES, len(one) * MAX_CHECKED_DIRECTIVES]
    assert errors[1].reason.startswith("the rest of the text was not checked")


@pytest.mark.parametrize(
    "body",
    [
        '#track("' + "\\" * 50_000,
        r"#track(\"" + "\\" * 50_000,
        "#track (" * 10_000,
        "#track" + " " * 50_000,
        "#track(&quot;" * 5_000,
        "#track(„" * 8_000,
        '#track("u' + " " * 50_000 + 'u"',
        '#track("u' + "\u200b" * 50_000 + 'u"',
    ],
)
def test_the_directives_of_a_hostile_text_are_parsed_in_linear_time(body: str) -> None:
    began = time.process_time()
    with contextlib.suppress(DirectiveError):
        assert find_directives(body) == []
    assert time.process_time() - began < 1  # a quadratic search needs several seconds


@given(st.text(st.sampled_from("#t track(\"'/:&%\\;40x28аｔ\u200b＃（"), max_size=64))
def test_the_fast_path_of_the_search_for_mistyped_directives_returns_the_same_text(window: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_directives, "_PLAIN", re.compile(r"(?!)"))
        expected = near_directives._normalise(window)
    assert near_directives._normalise(window) == expected


PIECES = st.sampled_from(
    ['#track("', '")', "#trackurl(", '"', "'", "“", "”", ",", "(", ")", "\\", '\\"', " ", "u", "#Track", "é", "👍", "\0"]
)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_the_directives_of_any_text_are_parsed_or_rejected_with_a_position_inside_the_text(body: str) -> None:
    try:
        directives = find_directives(body)
    except DirectiveError:
        assert 0 <= rejection(body).position <= len(body)
        return
    ends = [0]
    for directive in directives:
        assert ends[-1] <= directive.start < directive.end <= len(body)
        assert body[directive.start] == "#"
        assert body[directive.end - 1] == ")"
        assert directive.url
        assert (directive.label is None) == (directive.kind == "track")
        ends.append(directive.end)


@given(
    before=st.text(st.characters(exclude_characters="#＃﹟♯&%")),
    # No spaces, because the service trims the URL of a directive; no typographic quotes, because they may end the URL.
    url=st.text(
        st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Zs", "Zl", "Zp"), exclude_characters="“”„«»&"), min_size=1
    ),
    label=st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=MAX_LABEL_CHARACTERS).filter(
        str.strip
    ),
)
def test_a_url_and_a_label_that_are_escaped_in_a_directive_are_parsed_back_unchanged(before: str, url: str, label: str) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    directive = only(f"{before} #trackurl({quoted(url)},{quoted(label)}){before}")
    assert (directive.url, directive.label, directive.start) == (url, label, len(before) + 1)
