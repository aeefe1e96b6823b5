"""A helper for tests of work that is done in pieces, so that other tasks run in between."""

from __future__ import annotations

import asyncio
import contextlib
import pkgutil
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest


@contextlib.asynccontextmanager
async def calls_per_turn(monkeypatch: pytest.MonkeyPatch, function: str) -> AsyncIterator[Counter[int]]:
    """Count the calls of a function, which is given by its dotted name, in each turn of the event loop until the block ends."""
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
