"""This module decides when Python's garbage collector examines all objects of the process.

Such a full collection stops all threads, for 100 ms and more while a large request has a million live objects. Almost no object of
a large request is garbage, so a collection at that time frees nothing. `serve` therefore switches automatic full collections off
(shortener/cli/serve.py). A background job starts them at a time without large requests, when they take a few milliseconds.
Collections of young objects stay automatic.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

INTERVAL_SECONDS = 20.0  # The pause between two full collections.
# After this time without a full collection, the job starts one even while a large request is in progress.
MAX_DELAY_SECONDS = 300.0


class FullCollections:
    """The background job that starts full garbage collections. `is_busy` returns whether a large request is in progress."""

    def __init__(self, is_busy: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._is_busy = is_busy
        self._clock = clock
        self._collected_at = clock()

    async def step(self) -> int:
        """Start a full collection, unless a large request is in progress and the last collection was less than MAX_DELAY_SECONDS
        ago. Return 0, because the job always pauses after a run."""
        now = self._clock()
        if self._is_busy() and now - self._collected_at < MAX_DELAY_SECONDS:
            return 0
        self._collected_at = now
        gc.collect()
        return 0
