"""This module serializes and sends large JSON responses in pieces. The process handles other requests between two pieces.

The response to a rewrite of a thousand texts has up to 10 MB. To serialize and write it in one step would block the event loop
for a tenth of a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Item = TypeVar("Item")
Result = TypeVar("Result")

PIECE_ENTRIES = 50  # The number of list entries in a piece. They are converted or serialized without a pause.
#: A response is large if it contains a list with more entries than this. A usual request of a send pipeline has at most a hundred
#: messages, so its response is not large.
MAX_ENTRIES_AT_ONCE = 200


class PiecesResponse(Response):
    """A response whose JSON body consists of pieces. Its length is known, so it is not sent in the chunked encoding."""

    media_type = "application/json"

    def __init__(self, pieces: list[bytes], status: int) -> None:
        super().__init__(b"", status, {"content-length": str(sum(map(len, pieces)))})
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces. Other tasks run between two pieces."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # other tasks run
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def convert_in_pieces(convert: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return `convert(item)` for each item. Other tasks can run after each PIECE_ENTRIES items."""
    converted = [convert(item) for item in items[:PIECE_ENTRIES]]
    while len(converted) < len(items):
        await asyncio.sleep(0)  # other tasks run
        converted += [convert(item) for item in items[len(converted) : len(converted) + PIECE_ENTRIES]]
    return converted


def is_large(content: Mapping[str, Any]) -> bool:
    """Return whether one of the values is a list with more than MAX_ENTRIES_AT_ONCE entries."""
    return any(value.__class__ is list and len(value) > MAX_ENTRIES_AT_ONCE for value in content.values())


async def serialize_in_pieces(content: Mapping[str, Any]) -> list[bytes]:
    """Return the JSON of `content` in pieces. The joined pieces equal the result of `orjson.dumps`. Other tasks run between two
    pieces."""
    pieces: list[bytes] = []
    separator = b"{"
    for name, value in content.items():
        begin = separator + orjson.dumps(name) + b":"
        separator = b","
        if value.__class__ is not list or len(value) <= PIECE_ENTRIES:
            pieces.append(begin + orjson.dumps(value))
            continue
        begin += b"["
        for first in range(0, len(value), PIECE_ENTRIES):
            pieces.append(begin + orjson.dumps(value[first : first + PIECE_ENTRIES])[1:-1])
            begin = b","
            await asyncio.sleep(0)  # other tasks run
        pieces.append(b"]")
    pieces.append(b"}" if separator == b"," else b"{}")
    return pieces
