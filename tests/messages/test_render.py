from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shortener.errors import ApiError, ErrorCode
from shortener.messages import render, spans
from shortener.messages.plan import PlannedMessage
from shortener.messages.queries import StoredLink
from shortener.messages.render import render_new, render_repeat
from shortener.messages.segments import count_segments
from shortener.messages.url_detection import DetectedUrl
from shortener.storage.types import to_ms
from tests.conftest import NOON
from tests.messages.rewriting import BASE_URL, LINK, Hosts, application, item, plan

BODY = 'Hi #track("https://x.example/a") and #trackurl("https://y.example/","sale")!'
LINKS = [
    StoredLink("codeA", "https://x.example/a", None, to_ms(NOON), 0),
    StoredLink("codeB", "https://y.example/", "sale", to_ms(NOON), 0),
]


def planned(body: str = BODY, **more: Any) -> PlannedMessage:
    return plan(item(body, message_ids=("m-1",), **more)).messages[0]


def test_the_response_contains_a_new_message_with_its_links() -> None:
    message = planned()
    assert render_new(message, LINKS, BASE_URL).serialize() == {
        "message_id": "m-1",
        "message_request_id": message.request_id,
        "to": "+14085550100",
        "body": "Hi https://go.example/codeA and https://go.example/codeB!",
        "links": [
            {
                "code": "codeA",
                "short_url": "https://go.example/codeA",
                "url": "https://x.example/a",
                "label": None,
                "expires_at": "2026-11-20T12:00:00Z",
            },
            {
                "code": "codeB",
                "short_url": "https://go.example/codeB",
                "url": "https://y.example/",
                "label": "sale",
                "expires_at": "2026-11-20T12:00:00Z",
            },
        ],
        "encoding": "GSM-7",
        "segments": 1,
        "segments_without_rewriting": 1,
        "warnings": [],
    }


def test_a_message_of_very_many_segments_has_a_warning_in_the_first_and_in_a_repeated_response() -> None:
    message = planned(BODY + "x" * 2000)
    first = render_new(message, LINKS, BASE_URL)
    assert [warning for warning in first.warnings if "many carriers reject" in warning]
    assert render_repeat(message, message.request_id, LINKS, BASE_URL) == first


def test_a_repeated_message_is_returned_as_in_the_first_response() -> None:
    body = f"{BODY} \U0001f600 https://аpple.example/{'y' * 100}"
    message = planned(body, track="all_urls", from_address="2Fast")
    links = [StoredLink(f"code{index}", one.destination.url, one.span.label, 0, 0) for index, one in enumerate(message.plan.links)]
    assert len(links) == 3
    first = render_new(message, links, BASE_URL)
    assert len(first.warnings) == 2
    assert first.segments < first.segments_without_rewriting
    assert render_repeat(message, message.request_id, links, BASE_URL) == first


def test_a_repeated_message_is_returned_although_its_plan_would_be_rejected_now() -> None:
    hosts = Hosts(blocked={"x.example"})
    message = plan(item(BODY, message_ids=("m-1",), expires_at=NOON), hosts=hosts).messages[0]
    assert message.plan.problems
    rendered = render_repeat(message, "request", LINKS, BASE_URL)
    assert rendered.body == "Hi https://go.example/codeA and https://go.example/codeB!"
    assert rendered.request_id == "request"


def test_a_repeated_message_keeps_its_links_although_url_detection_finds_other_urls_now(monkeypatch: pytest.MonkeyPatch) -> None:
    message = planned("Ok.so see shop.com", track="first_url")
    link = StoredLink("codeA", "http://shop.com", None, 0, 0)
    monkeypatch.setattr(spans, "find_urls", lambda _: [DetectedUrl(0, 5, "http://Ok.so")])
    assert render_repeat(message, "request", [link], BASE_URL).body == "Ok.so see https://go.example/codeA"


def test_a_repeated_message_whose_links_are_not_found_in_the_body_is_rejected() -> None:
    with pytest.raises(ApiError, match="rules of detection have changed") as raised:
        render_repeat(planned(), "request", [replace_url(LINKS[0])], BASE_URL)
    assert raised.value.code is ErrorCode.MESSAGE_ID_CONFLICT
    broken = planned()
    with pytest.raises(ApiError):
        render_repeat(replace(broken, item=replace(broken.item, body="#track(")), "request", LINKS, BASE_URL)


def replace_url(link: StoredLink) -> StoredLink:
    return link._replace(url="https://elsewhere.example/")


def test_a_repeated_message_keeps_its_links_after_the_default_track_mode_of_the_application_changed() -> None:
    body = 'https://x.example/a #track("https://x.example/a")'
    links = [LINKS[0]]
    for track in ("all_urls", "directives"):  # only the track mode `directives` creates exactly one link for this body
        message = plan(item(body, message_ids=("m-1",)), application=application(track=track)).messages[0]
        assert render_repeat(message, "r", links, BASE_URL).body == "https://x.example/a https://go.example/codeA"
    body = "see https://x.example/a now"
    message = plan(item(body, message_ids=("m-1",)), application=application(track="directives")).messages[0]
    assert render_repeat(message, "r", links, BASE_URL).body == "see https://go.example/codeA now"


@pytest.mark.parametrize(
    "text",
    [
        "a short text",
        f"{LINK} and {LINK}",
        f"{'x' * 140} {LINK}",
        f"{'{' * 76}{LINK}{'}' * 90}",  # an extension character that does not fit into the first segment
        f"{'ж' * 40}{LINK}\U0001f600",
    ],
)
def test_a_new_message_has_the_size_of_its_text_without_counting_it_in_the_transaction(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = planned(text)
    code = "Zz9Zz9Zz9"
    links = [StoredLink(code, link.destination.url, None, to_ms(NOON), 0) for link in message.plan.links]
    monkeypatch.setattr(render, "count_segments", forbid_counting)
    rewritten = render_new(message, links, BASE_URL)
    counted = count_segments(rewritten.body)
    assert (rewritten.encoding, rewritten.segments) == (counted.encoding, counted.segments)


def forbid_counting(text: str) -> None:
    raise AssertionError("the thread that writes to the database must not count segments")
