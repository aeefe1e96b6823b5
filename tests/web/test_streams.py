"""Tests of responses whose body is an async generator."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from shortener.web.streams import ClosingResponse

SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}}


@pytest.mark.parametrize("ending", ["complete", "disconnected while a message is sent", "failed"])
async def test_a_response_closes_its_generator_without_a_garbage_collection(ending: str) -> None:
    closed: list[bool] = []
    blocked = asyncio.Event()

    async def parts() -> AsyncGenerator[bytes, None]:
        try:
            yield b"first"
            yield b"second"
        finally:
            closed.append(True)

    async def send(message: Any) -> None:
        if message.get("body") == b"first" and ending != "complete":
            if ending == "failed":
                raise RuntimeError("not sent")
            blocked.set()
            await asyncio.Event().wait()

    async def receive() -> Any:
        await blocked.wait()
        return {"type": "http.disconnect"}

    gc.disable()
    try:
        with contextlib.suppress(RuntimeError):
            await ClosingResponse(parts(), headers={}, media_type="text/csv")(SCOPE, receive, send)
        assert closed
    finally:
        gc.enable()
