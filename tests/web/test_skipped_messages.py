"""`on_invalid: skip` leaves out messages that do not match the model, such as a message without `to`."""

from typing import Any

import httpx
import orjson
import pytest

from shortener.container import Service
from tests.conftest import client_of
from tests.web.calls import TO
from tests.web.calls import count_messages_and_links as stored
from tests.web.turns import WRONG_TYPES, rewrite_in_short_steps

OTHER = "+14085550101"
GOOD: dict[str, Any] = {"to": TO, "body": 'see #track("https://x.example/")'}


def _entries(answer: httpx.Response) -> list[tuple[Any, ...]]:
    """Return `to`, `message_id`, `error_code` and `field` of each entry of a response. None replaces a generated id."""
    assert answer.status_code == 200, answer.text
    return [
        (entry["to"], entry["message_id"], entry["error_code"], entry["field"]) if "error_code" in entry else (entry["to"],)
        for entry in answer.json()["messages"]
    ]


async def test_on_invalid_skip_leaves_out_messages_of_a_batch_that_do_not_match_the_model(
    client: httpx.AsyncClient, service: Service
) -> None:
    messages: list[Any] = [
        {"to": TO, "body": 5, "message_id": "m-1"},
        GOOD,
        {"body": "no recipient", "message_id": 7},
        {"to": [TO, 5, OTHER], "body": "x", "message_id": ["a", "b", "c"]},
        {"to": [TO, OTHER], "body": "x", "message_id": ["d", None]},
        {"to": [TO, OTHER, None], "body": "x", "unknown": 1, "message_id": ["", "e"]},
        {"to": [TO, 5], "body": 5},
        {"to": 14085550100, "body": "x", "message_id": {}},
        "text",
        {"to": "0408", "body": "x"},
        {"to": OTHER, "body": "last", "message_id": "last"},
    ]
    answer = await client.post("/api/v1/rewrite", json={"messages": messages, "on_invalid": "skip"})
    code = "INVALID_REQUEST"
    assert _entries(answer) == [
        (TO, "m-1", code, "messages.0.body"),
        (TO,),
        ("", "7", code, "messages.2.to"),
        (TO,),
        ("", "b", code, "messages.3.to.1"),
        (OTHER,),
        (TO,),
        (OTHER, None, code, "messages.4.message_id.1"),
        (TO, None, code, "messages.5.message_id.0"),
        (OTHER, "e", code, "messages.5.unknown"),
        ("", None, code, "messages.5.unknown"),
        (TO, None, code, "messages.6.body"),
        ("", None, code, "messages.6.to.1"),
        ("", None, code, "messages.7.to"),
        ("", None, code, "messages.8"),
        ("0408", None, "INVALID_RECIPIENT", "messages.9.to"),
        (OTHER,),
    ]
    entries = answer.json()["messages"]
    assert (entries[0]["reason"], entries[0]["position"]) == ("must be a string", None)
    assert [entries[place]["message_id"] for place in (3, 5, 6, 16)] == ["a", "c", "d", "last"]
    assert await stored(service) == (5, 1)


@pytest.mark.parametrize("path", ["/api/v1/rewrite", "/api/v1/rewrite/preview"])
async def test_a_message_without_a_recipient_has_one_entry_with_its_error(client: httpx.AsyncClient, path: str) -> None:
    empty = {"to": [], "body": "x", "message_id": []}
    named = {"to": [], "body": '#track("x")', "message_id": "m-1"}
    answer = await client.post(path, json={"messages": [empty, GOOD, named], "on_invalid": "skip"})
    code = "INVALID_RECIPIENT"
    assert _entries(answer) == [("", None, code, "messages.0.to"), (TO,), ("", "m-1", code, "messages.2.to")]
    alone = await client.post(path, json={**empty, "on_invalid": "skip"})
    assert _entries(alone) == [("", None, code, "to")]
    assert alone.json()["messages"][0]["reason"] == "must contain at least one recipient"


async def test_a_message_with_on_invalid_skip_is_left_out_alone_or_in_a_batch(client: httpx.AsyncClient, service: Service) -> None:
    alone = await client.post("/api/v1/rewrite", json={"to": [TO, OTHER], "body": 5, "on_invalid": "skip"})
    assert _entries(alone) == [(TO, None, "INVALID_REQUEST", "body"), (OTHER, None, "INVALID_REQUEST", "body")]
    batch = [{"to": TO, "campaign": [], "body": "x", "on_invalid": "skip"}, GOOD]
    assert _entries(await client.post("/api/v1/rewrite", json={"messages": batch})) == [
        (TO, None, "INVALID_REQUEST", "messages.0.campaign"),
        (TO,),
    ]
    assert await stored(service) == (1, 1)
    preview = await client.post("/api/v1/rewrite/preview", json={"messages": batch})
    assert _entries(preview) == [(TO, None, "INVALID_REQUEST", "messages.0.campaign"), (TO,)]
    assert await stored(service) == (1, 1)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (
            {"on_invalid": "skip", "messages": [{"to": TO}, {**GOOD, "to": 5, "on_invalid": "fail"}]},
            {"messages.0.body", "messages.1.to"},
        ),
        ({"on_invalid": "skip", "messages": [{"to": "0408", "body": "x", "on_invalid": "fail"}, {"to": TO}]}, None),
        ({"on_invalid": "skip", "messages": [GOOD, {"to": TO, "body": "x", "on_invalid": "leave"}]}, {"messages.1.on_invalid"}),
        ({"on_invalid": "skip", "unknown": 1, "messages": [GOOD, {"to": TO}]}, {"unknown", "messages.1.body"}),
        ({"on_invalid": "leave", "messages": [GOOD, {"to": TO, "on_invalid": "skip"}]}, {"on_invalid", "messages.1.body"}),
        ({"messages": [{**GOOD, "on_invalid": "skip"}, {"to": TO}]}, {"messages.1.body"}),
        ({"on_invalid": "skip", "messages": []}, {"messages"}),
        ({"on_invalid": "skip", "messages": 5}, {"messages"}),
        ({"to": TO, "on_invalid": "fail"}, {"body"}),
    ],
)
async def test_a_request_is_rejected_completely_if_an_error_is_not_in_a_message_that_may_be_left_out(
    client: httpx.AsyncClient, service: Service, body: dict[str, Any], fields: set[str] | None
) -> None:
    answer = await client.post("/api/v1/rewrite", json=body)
    assert answer.status_code == 400, answer.text
    if fields is not None:
        assert {detail["field"] for detail in answer.json()["details"]} == fields
    assert await stored(service) == (0, 0)


async def test_a_repeat_of_a_request_in_which_messages_were_left_out_gets_the_first_response(make_service: Any) -> None:
    messages: list[Any] = [GOOD, {"to": "a\x00b", "body": 5, "mt_price": 0.12345678901234567}, {"to": TO, "body": "x"}]
    first_service = await make_service()
    headers = {"X-API-Key": first_service.first_credentials.api_key, "Idempotency-Key": "k-1"}
    async with client_of(first_service, headers) as client:
        body = {"messages": messages, "on_invalid": "skip"}
        first = await client.post("/api/v1/rewrite", json=body)
        assert [entry[0] for entry in _entries(first)] == [TO, "a\x00b", TO]
        repeat = await client.post("/api/v1/rewrite", json={"on_invalid": "skip", "messages": messages})
        assert (repeat.status_code, repeat.json()) == (200, first.json())
        for other in ([*messages[:1], {**messages[1], "body": 6}, *messages[2:]], [messages[0], messages[2]]):
            answer = await client.post("/api/v1/rewrite", json={"messages": other, "on_invalid": "skip"})
            assert (answer.status_code, answer.json()["error_code"]) == (409, "IDEMPOTENCY_CONFLICT")
        assert await stored(first_service) == (2, 1)
    await first_service.close()
    service = await make_service(batch_limit=2)  # with a lower limit, a repeat of the larger batch is still accepted
    async with client_of(service, headers) as client:
        repeat = await client.post("/api/v1/rewrite", json=body)
        assert (repeat.status_code, repeat.json()) == (200, first.json())
        answer = await client.post("/api/v1/rewrite", json=body, headers={"Idempotency-Key": "k-2"})
        assert (answer.status_code, answer.json()["error_code"]) == (400, "BATCH_TOO_LARGE")
        assert await stored(service) == (2, 1)


async def test_a_stored_message_is_repeated_beside_a_message_that_is_left_out(client: httpx.AsyncClient, service: Service) -> None:
    first = await client.post("/api/v1/rewrite", json={**GOOD, "message_id": "m-1"})
    messages = [{**GOOD, "message_id": "m-1"}, {"to": TO, "body": 5, "message_id": "m-1"}]
    answer = await client.post("/api/v1/rewrite", json={"messages": messages, "on_invalid": "skip"})
    assert _entries(answer) == [(TO,), (TO, "m-1", "INVALID_REQUEST", "messages.1.body")]
    assert answer.json()["messages"][0] == first.json()["messages"][0]
    assert await stored(service) == (1, 1)


WRONG_MESSAGES = WRONG_TYPES | {"to": [1], "message_id": [None] * 95, "on_invalid": "skip"}
LONG_NAMES = {"to": TO, "body": "x", "n" * 7000: 1}


@pytest.mark.parametrize("message", [WRONG_MESSAGES, LONG_NAMES], ids=["wrong types", "long names"])
async def test_a_thousand_messages_that_are_left_out_do_not_block_the_event_loop(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch, message: dict[str, Any]
) -> None:
    content = orjson.dumps({"messages": [GOOD, *[message] * 999], "on_invalid": "skip"})
    answer = await rewrite_in_short_steps(client, monkeypatch, content)
    assert answer.status_code == 200, answer.text
    assert [entry.get("error_code") for entry in answer.json()["messages"]] == [None] + ["INVALID_REQUEST"] * 999
    assert len(answer.content) < 1_000_000
    assert await stored(service) == (1, 1)
