from __future__ import annotations

import pytest

from shortener.messages import spans
from shortener.messages.spans import Span, TrackMode, find_spans, locate_spans, replace_spans
from shortener.messages.url_detection import DetectedUrl

URL = "https://x.example/"
DIRECTIVE = f'#track("{URL}")'


def texts(body: str, found: list[Span] | None) -> list[str]:
    assert found is not None
    return [body[span.start : span.end] for span in found]


@pytest.mark.parametrize(
    ("track", "expected"),
    [("directives", [DIRECTIVE]), ("first_url", [DIRECTIVE]), ("all_urls", ["www.a.com", DIRECTIVE, "b.com/x"])],
)
def test_the_track_mode_determines_which_plain_urls_become_links_in_addition_to_directives(
    track: TrackMode, expected: list[str]
) -> None:
    body = f"www.a.com {DIRECTIVE} b.com/x"
    assert texts(body, find_spans(body, track)) == expected


def test_the_track_mode_first_url_finds_one_url_in_a_body_without_directives() -> None:
    assert find_spans("a.com and b.com", "first_url") == [Span(0, 5, "http://a.com")]


def test_a_url_inside_a_track_directive_is_not_detected_a_second_time_as_a_plain_url() -> None:
    assert len(find_spans(f"x {DIRECTIVE}", "all_urls")) == 1


def test_text_that_replaces_a_url_is_not_searched_for_further_urls() -> None:
    body = 'a #track("https://u.example") b #track("https://v.example")c'
    assert replace_spans(body, find_spans(body, "directives"), ['#track("w")', "2"]) == 'a #track("w") b 2c'
    assert replace_spans("x\r\n\0", [], []) == "x\r\n\0"


def test_replace_spans_rejects_a_number_of_replacements_that_differs_from_the_number_of_spans() -> None:
    with pytest.raises(ValueError, match="shorter"):
        replace_spans(DIRECTIVE, find_spans(DIRECTIVE, "directives"), [])


# These tests check the search for the positions of stored links in a text.


def test_stored_links_are_located_at_the_positions_of_the_urls_that_they_replaced() -> None:
    body = f'{URL} #track("{URL}") #trackurl("{URL}","sale") #track("https://ü.example/")'
    links = [(URL, None), (URL, "sale"), ("https://xn--tda.example/", None)]
    assert locate_spans(body, "directives", links) == find_spans(body, "directives")
    assert locate_spans(body, "all_urls", [(URL, None), *links]) == find_spans(body, "all_urls")


def test_a_stored_link_is_located_although_url_detection_finds_more_urls_now(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "Ok.so see shop.com"
    monkeypatch.setattr(spans, "find_urls", lambda _: [DetectedUrl(0, 5, "http://Ok.so"), DetectedUrl(10, 18, "http://shop.com")])
    for track in ("first_url", "all_urls"):
        assert texts(body, locate_spans(body, track, [("http://shop.com", None)])) == ["shop.com"]


def test_a_stored_link_is_located_by_the_text_of_its_url_although_url_detection_does_not_find_this_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = f"{DIRECTIVE} Shop.Com/A, https://x.example/"
    monkeypatch.setattr(spans, "find_urls", lambda _: [])
    links = [(URL, None), ("http://shop.com/A", None), (URL, None)]
    assert texts(body, locate_spans(body, "all_urls", links)) == [DIRECTIVE, "Shop.Com/A", "https://x.example/"]


def test_a_stored_link_whose_url_is_not_in_the_body_is_not_located() -> None:
    assert locate_spans(f"x {DIRECTIVE}", "directives", [("https://other.example/", None)]) is None
    assert locate_spans("a.com", "all_urls", [("http://a.com", None), ("http://a.com", None)]) is None


def test_a_url_inside_a_directive_is_never_located_as_a_plain_url() -> None:
    body = f'#trackurl("{URL}","sale")'
    assert locate_spans(body, "all_urls", [(URL, None)]) is None
    assert locate_spans(body, "directives", [(URL, None)]) is None
