"""Tests of large JSON responses, which are serialized and sent in pieces."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from shortener.web.large_responses import MAX_ENTRIES_AT_ONCE, PIECE_ENTRIES, PiecesResponse, is_large, serialize_in_pieces


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
