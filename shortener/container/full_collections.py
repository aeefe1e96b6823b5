"""This module decides when Python's garbage collector examines all objects of the process.

Such a full collection stops all threads, for 100 ms and more while a large request has a million live objects. Almost no object of
a large request is garbage, so a collection at that time frees nothing. `serve` therefore switches automatic full collections off
(shortener/cli/serve.py). A background job starts them at a time without large requests. Collections of young objects stay
automatic.

The objects that survive a full collection are excluded from the next ones (`gc.freeze`), because most of them live as long as the
process: modules, templates, connections. So a full collection takes a few milliseconds; with the objects of the portal's pages it
took 40. A collection of all objects finds what has become garbage among the excluded ones. It takes place every THOROUGH_SECONDS,
or later if many people click at that time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

INTERVAL_SECONDS = 20.0  # The pause between two full collections.
# After this time without a full collection, the job starts one even while a large request is in progress.
MAX_DELAY_SECONDS = 300.0
THOROUGH_SECONDS = 3600.0  # The pause between two collections of all objects.
MAX_THOROUGH_DELAY_SECONDS = 6 * 3600.0  # After this time, the job examines all objects even while many people click.


class FullCollections:
    """The background job that starts full garbage collections. `is_busy` returns whether a large request is in progress, `has_hits`
    whether many people click."""

    def __init__(
        self, is_busy: Callable[[], bool], has_hits: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_busy = is_busy
        self._has_hits = has_hits
        self._clock = clock
        self._collected_at = self._all_collected_at = clock()
        self._excludes = False  # True in the process of `serve`, which excludes the objects of the start.

    async def step(self) -> int:
        """Start a full collection, unless a large request is in progress and the last collection was less than MAX_DELAY_SECONDS
        ago. Return 0, because the job always pauses after a run."""
        now = self._clock()
        if self._is_busy() and now - self._collected_at < MAX_DELAY_SECONDS:
            return 0
        self._collected_at = now
        self._excludes = self._excludes or gc.get_freeze_count() > 0  # counting the excluded objects takes milliseconds
        since_all = now - self._all_collected_at
        if since_all >= THOROUGH_SECONDS and (not self._has_hits() or since_all >= MAX_THOROUGH_DELAY_SECONDS):
            self._all_collected_at = now
            gc.unfreeze()
        gc.collect()
        if self._excludes:
            gc.freeze()
        return 0
