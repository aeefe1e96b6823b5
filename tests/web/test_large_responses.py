"""Tests of large JSON responses, which are serialized and sent in pieces."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.web.large_responses import (
    MAX_ENTRIES_AT_ONCE,
    PIECE_ENTRIES,
    PiecesResponse,
    convert_in_pieces,
    is_large,
    serialize_in_pieces,
)
from tests.web.calls import PHONE, convert
from tests.web.turns import calls_per_turn


@pytest.mark.parametrize("entries", [0, 1, PIECE_ENTRIES, PIECE_ENTRIES + 1, 3 * PIECE_ENTRIES])
@pytest.mark.parametrize("neighbours", [{}, {"a": [1], "é": {"x": None}}])
async def test_the_joined_pieces_of_a_large_response_equal_the_complete_serialization(
    entries: int, neighbours: dict[str, Any]
) -> None:
    content = {"status": True, "messages": [{"number": number} for number in range(entries)], **neighbours}
    assert b"".join(await serialize_in_pieces(content)) == orjson.dumps(content)
    assert b"".join(await serialize_in_pieces(neighbours)) == orjson.dumps(neighbours)


async def test_other_tasks_run_while_a_large_response_is_serialized_and_sent() -> None:
    runs = 0

    async def count() -> None:
        nonlocal runs
        while True:
            runs += 1
            await asyncio.sleep(0)  # the pause between two checks

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    counter = asyncio.create_task(count())
    content = {"messages": [{"number": number} for number in range(10 * PIECE_ENTRIES)]}
    pieces = await serialize_in_pieces(content)
    assert runs >= 9
    runs = 0
    await PiecesResponse(pieces, 200)({"type": "http"}, None, send)  # type: ignore[arg-type]
    counter.cancel()
    assert runs >= 9
    assert b"".join(message.get("body", b"") for message in sent) == orjson.dumps(content)


@pytest.mark.parametrize("entries", [0, 1, PIECE_ENTRIES, PIECE_ENTRIES + 1, 3 * PIECE_ENTRIES])
async def test_items_are_converted_in_pieces_in_their_order(entries: int) -> None:
    assert await convert_in_pieces(str, range(entries)) == [str(number) for number in range(entries)]


@pytest.mark.parametrize(
    ("path", "function"),
    [
        ("/api/v1/sms/messages/unified", "shortener.web.messages.serialize_message"),
        ("/api/v1/links", "shortener.web.links.serialize_link"),
        ("/api/v1/clicks", "shortener.web.lists.serialize_hit"),
        ("/api/v1/events", "shortener.web.lists.serialize_event"),
        ("/api/v1/conversions", "shortener.web.conversion_lists.serialize_listed"),
    ],
)
async def test_other_tasks_run_while_the_rows_of_a_long_list_are_converted(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, monkeypatch: pytest.MonkeyPatch, path: str, function: str
) -> None:
    count = PIECE_ENTRIES + 1
    messages = [{"to": "+14085550100", "body": '#track("https://shop.example/")', "message_id": f"m-{n}"} for n in range(count)]
    rewritten = (await client.post("/api/v1/rewrite", json={"messages": messages})).json()["messages"]
    await service.recorder.flush()
    for number, message in enumerate(rewritten):
        await client.get(f"/{message['links'][0]['code']}", headers=PHONE)
        await convert(service, credentials, message_id=message["message_id"], transaction_id=str(number))
    await service.recorder.flush()
    async with calls_per_turn(monkeypatch, function) as calls:
        response = await client.get(path, params={"limit": 1000})
    assert response.status_code == 200
    assert calls.total() >= count
    assert max(calls.values()) <= PIECE_ENTRIES


async def test_the_response_to_a_rewrite_of_many_messages_has_a_content_length_header_with_the_length_of_its_body(
    client: httpx.AsyncClient,
) -> None:
    messages = [{"to": "+14085550100", "body": "hello"}] * (MAX_ENTRIES_AT_ONCE + 1)
    response = await client.post("/api/v1/rewrite", json={"messages": messages})
    assert response.status_code == 200
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.headers["content-type"] == "application/json"
    assert [entry["body"] for entry in response.json()["messages"]] == ["hello"] * len(messages)
    assert is_large(response.json())
