"""Helpers for tests of long work that is done in pieces or in a thread, so that other tasks can run between the pieces."""

from __future__ import annotations

import asyncio
import contextlib
import pkgutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

#: The fields of a message that has about 80 errors.
WRONG_TYPES: dict[str, Any] = {"to": [1] * 50, "message_id": [None] * 5, "opt_out": [1] * 10, "metadata": {"a": []}}
WRONG_TYPES |= {name: [] for name in ("from", "message_request_id", "campaign", "domain", "mt_price")}
WRONG_TYPES |= {"body": 5} | dict.fromkeys(("on_invalid", "track", "source", "expires_in"), "x")
#: The longest processor time of one step of the event loop, in seconds. Clicks wait for the end of a step. If the event loop did
#: all of the work in one step, the slowest of these requests would need more than a second.
MAX_STEP_SECONDS = 0.1


@contextlib.asynccontextmanager
async def calls_per_turn(monkeypatch: pytest.MonkeyPatch, function: str) -> AsyncIterator[Counter[int]]:
    """Until the block ends, count how often a function is called in each turn of the event loop. `function` is the dotted name of
    the function."""
    turn = 0
    calls: Counter[int] = Counter()

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    original = pkgutil.resolve_name(function)

    def counted(*args: Any, **options: Any) -> Any:
        calls[turn] += 1
        return original(*args, **options)

    monkeypatch.setattr(function, counted)
    counter = asyncio.create_task(count_turns())
    try:
        yield calls
    finally:
        counter.cancel()


async def rewrite_in_short_steps(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, content: bytes) -> httpx.Response:
    """Send a rewrite request, and return its response. Fail if a step of the event loop takes longer than MAX_STEP_SECONDS."""
    longest = 0.0
    run = asyncio.Handle._run

    def measure(handle: asyncio.Handle) -> None:
        nonlocal longest
        began = time.thread_time()
        run(handle)
        longest = max(longest, time.thread_time() - began)

    monkeypatch.setattr(asyncio.Handle, "_run", measure)
    request = client.post("/api/v1/rewrite", content=content, headers={"Content-Type": "application/json"})
    answer = await asyncio.create_task(request)  # the first step of a new task is measured, too
    monkeypatch.undo()
    assert longest < MAX_STEP_SECONDS
    return answer
