from __future__ import annotations

from typing import Any

import pytest

from shortener.messages.message_warnings import MAX_UNTRACKED, find_warnings, many_segments, more_segments
from shortener.messages.spans import Span, TrackMode, find_spans
from tests.one_test import in_one_test

LINK = "https://x.example/"


def warnings(before: str, after: str, host: str = "x.example", sender: str = "") -> list[str]:
    body = before + LINK + after
    return list(find_warnings(body, [(Span(len(before), len(before) + len(LINK), LINK), host)], sender))


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("see ", " now"), ("(", ")."), ("\n", ", x"), ("«", "»"), ("→", "!"), ("。", "。"), ("*", "* x")],
)
def test_a_link_between_spaces_or_harmless_punctuation_causes_no_warning(before: str, after: str) -> None:
    assert warnings(before, after) == []


@in_one_test
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x", ""),
        ("é", " "),
        (" ", "1"),
        (" ", "へ"),
        (" ", "/a"),
        (" ", "?"),
        (" ", "-"),
        (" ", "🔥"),
        (" ", "。次"),
        (" ", ".x"),
        (" ", "|x"),
        (" ", "–x"),
        ("は", ""),
    ],
)
def test_text_directly_next_to_a_link_causes_a_warning_with_its_position(before: str, after: str) -> None:
    (warning,) = warnings(before, after)
    assert warning == f"position {len(before)}: text is attached to the short link; phones may treat it as part of the link"


def test_a_destination_host_that_mixes_scripts_causes_a_warning() -> None:
    (warning,) = warnings("", "", host="www.xn--pypal-4ve.example")
    assert warning == "position 0: the host www.xn--pypal-4ve.example mixes Cyrillic and Latin letters, as look-alikes do"


def test_an_unusual_sender_id_causes_a_warning() -> None:
    (warning,) = warnings("", "", sender="2Fast")
    assert warning.startswith("from '2Fast' is neither a number")
    assert warnings("", "", sender="InfoSMS") == []


def all_warnings(body: str, track: TrackMode = "all_urls", **more: Any) -> list[str]:
    spans = find_spans(body, track)
    return list(find_warnings(body, [(span, "x.example") for span in spans], "", track=track, **more))


def test_a_url_that_is_not_tracked_causes_a_warning_with_position_and_reason() -> None:
    assert all_warnings("see https://user:pw@x.example/ and https://x.example/") == [
        "position 4: https://user:pw@x.example/ is not tracked: it must not contain a user name or password before its host"
    ]
    long_url = "https://x.example/" + "a" * 2100
    (warning, _) = all_warnings(f"see {long_url}")
    assert warning == f"position 4: {long_url[:80]}... is not tracked: it is longer than 2048 characters"
    assert len(all_warnings("ftp://x.example " * 99)) == MAX_UNTRACKED + 1


def test_a_text_without_a_link_causes_a_warning_if_the_track_mode_is_first_url_or_all_urls() -> None:
    assert all_warnings("no link", "first_url") == [
        "the text has no link: `track` is first_url, but it contains no URL that can be tracked"
    ]
    assert all_warnings("no link", "all_urls")[0].startswith("the text has no link: `track` is all_urls")
    assert all_warnings("no link", "directives") == []


def test_a_plain_url_in_a_text_without_directives_causes_a_warning() -> None:
    warning = "position 4: https://x.example/ is not tracked: `track` is `directives`, and the text contains no #track directive"
    assert all_warnings("see https://x.example/ and https://y.example/", "directives") == [warning]
    assert all_warnings('#track("https://y.example/") or https://x.example/', "directives") == []


def test_urls_after_the_first_url_cause_a_warning_in_the_track_mode_first_url() -> None:
    reason = "is not tracked: `track` is first_url and"
    assert all_warnings("x.com y.com", "first_url") == [f"position 6: y.com {reason} only the first URL is"]
    (warning,) = all_warnings('#track("https://y.example/") or x.com', "first_url")
    assert warning == f"position 32: x.com {reason} the text has a directive"


AMP = "contains &amp;, which is sent unchanged; write &"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://x.example/?a=1&amp;b=2", AMP),
        ("https://x.example/?a=1&AMP;b=2", AMP.replace("amp", "AMP")),
        ("https://x.example/?a=1&#038;b=2", AMP.replace("&amp;", "&#038;")),
        ("https://x.example/?a=1&#38;b=2", AMP.replace("&amp;", "&#38;")),
        ("https://x.example/?a=1&#x26;b=2", AMP.replace("&amp;", "&#x26;")),
        ("https://x.example/?a=1&#X0026;b=2", AMP.replace("&amp;", "&#X0026;")),
        ("https://x.example/?a=&quot;1", "contains &quot;, which is sent unchanged; write %22"),
        ("https://x.example/?a=it&#39;s", "contains &#39;, which is sent unchanged; write %27"),
        ("https://x.example/men’s", "contains the apostrophe ’; web addresses usually have '"),
        ("https://x.example/?m={{message_id}}", "contains {{message_id}}, which is not a placeholder; write {message_id}"),
        ("https://x.example/?m=[clickid]", "contains [clickid], which is not a placeholder; write {click_id}"),
    ],
)
def test_a_destination_with_html_entities_or_unknown_macros_causes_a_warning(url: str, problem: str) -> None:
    assert all_warnings(f'see #track("{url}")', "directives") == [f"position 4: the destination {problem}"]
    if url.endswith(";b=2"):
        assert all_warnings(f"see {url}") == [f"position 4: the destination {problem}"]


@pytest.mark.parametrize("url", ["https://x.example/?a=1&b=#38;", "https://x.example/?a=1&amp=2", "https://x.example/a#&#x1;"])
def test_a_destination_with_an_ampersand_that_is_no_html_entity_causes_no_warning(url: str) -> None:
    assert all_warnings(f'see #track("{url}")', "directives") == []


def test_a_fallback_url_with_html_entities_or_an_unknown_macro_causes_a_warning() -> None:
    assert all_warnings("x.com", fallback_url="https://x.example/{Code}/{code}") == [
        "fallback_url contains {Code}, which is not a placeholder; write {code}"
    ]
    assert all_warnings("x.com", fallback_url="https://x.example/?a=1&amp;b=2") == [f"fallback_url {AMP}"]
    assert all_warnings("x.com", callback_url="https://x.example/?a=1&amp;b=2") == [f"lt_callbackurl {AMP}"]


def test_a_text_of_more_segments_than_carriers_usually_accept_causes_a_warning() -> None:
    assert many_segments(10) == ()
    assert many_segments(11) == ("the text needs 11 segments; many carriers reject or cut a text of more than 10",)


def test_a_text_that_needs_more_segments_with_short_links_causes_a_warning() -> None:
    assert more_segments(2, 1) == ("the text needs 2 segments with short links, but 1 with the long URLs",)
    assert more_segments(1, 1) == more_segments(1, 2) == ()
