"""This module contains the class of responses whose body is an async generator."""

# Tested by tests/web/test_streams.py

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class ClosingResponse(StreamingResponse):
    """A streaming response that closes the generator of its body when the response ends, even if the client disconnects.

    If an exception ends the response, the exception and the generator refer to each other. Without this class, the `finally`
    block of the generator would run only when a garbage collection finds this reference cycle. This can take hours
    (container/full_collections.py)."""

    def __init__(self, content: AsyncGenerator[Any, None], *, headers: dict[str, str], media_type: str) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._generator = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._generator.aclose()
