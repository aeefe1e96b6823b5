"""This module decides when Python runs a full garbage collection.

A full collection examines objects of every age, except excluded objects, and stops all threads. While a large request has a
million live objects, a full collection takes 100 ms and more, and frees nothing, because almost none of these objects is garbage.
`serve` therefore switches automatic full collections off (shortener/cli/serve.py), and a background job starts them at a time
without large requests. Collections of young objects stay automatic.

Most objects that survive a full collection live as long as the process: modules, templates, connections. In the process of `serve`,
the job therefore excludes them from the following full collections (`gc.freeze`). With the exclusion, a full collection takes a few
milliseconds. Without it, a collection takes 40 ms in a process that has loaded the portal. Modules that the process imports later
are excluded directly after their import (`lean_imports.exclude_imported_objects`). Excluded objects can become garbage later. To
free them, the job includes all objects in a full collection every THOROUGH_SECONDS, or later if many people click at that time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

INTERVAL_SECONDS = 20.0  # The pause between two full collections.
# After this time without a full collection, the job starts one even while a large request is in progress.
MAX_DELAY_SECONDS = 300.0
THOROUGH_SECONDS = 3600.0  # The pause between two collections of all objects.
# After this time without a collection of all objects, the job starts one even while many people click.
MAX_THOROUGH_DELAY_SECONDS = 6 * 3600.0


class FullCollections:
    """The background job that starts full garbage collections. `is_busy` returns whether a large request is in progress.
    `has_hits` returns whether many people click."""

    def __init__(
        self, is_busy: Callable[[], bool], has_hits: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_busy = is_busy
        self._has_hits = has_hits
        self._clock = clock
        self._collected_at = self._all_collected_at = clock()
        self._excludes = False  # True in the process of `serve`, which has called `gc.freeze` at its start.

    async def step(self) -> int:
        """Start a full collection. While a large request is in progress, do nothing until the last collection is
        MAX_DELAY_SECONDS old. Once in THOROUGH_SECONDS, include the excluded objects; while many people click, this may be
        delayed to MAX_THOROUGH_DELAY_SECONDS. Return 0, because the job always pauses after a run."""
        now = self._clock()
        if self._is_busy() and now - self._collected_at < MAX_DELAY_SECONDS:
            return 0
        self._collected_at = now
        # Counting takes milliseconds. After the first positive count, the process does not count again.
        self._excludes = self._excludes or gc.get_freeze_count() > 0
        since_all = now - self._all_collected_at
        if since_all >= THOROUGH_SECONDS and (not self._has_hits() or since_all >= MAX_THOROUGH_DELAY_SECONDS):
            self._all_collected_at = now
            gc.unfreeze()
        gc.collect()
        if self._excludes:
            gc.freeze()
        return 0
