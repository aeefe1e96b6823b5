"""This module repairs the link cache after Redis was unavailable.

A change of a link succeeds even if Redis does not respond. The process that made the change removes the old cache entry of the
link as soon as Redis responds again. If this process ends before that, the old entry stays in the cache until the link expires.
During the next outage of the database, clicks would then be redirected to the old destination. Therefore each process stores the
recently changed links in the cache again: after its start, and whenever Redis responds again after an outage.
"""
# Tested by tests/clicks/test_cache_repair.py

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Connection, select

from shortener.clicks.link_changes import refresh_cache
from shortener.ids import first_id_at
from shortener.redis.link_cache import RedisLinkCache
from shortener.storage.database import Database
from shortener.storage.schema import link_changes, links

INTERVAL_SECONDS = 1.0  # The pause in seconds between two checks of Redis.
#: The pause in seconds between two batches.
MIN_INTERVAL_SECONDS = 0.05
BATCH_CHANGES = 500
#: A repair covers only changes that are younger than this. An old entry of a link stays in the cache if the process that changed
#: the link ended before it removed the entry, and no process repaired the cache within MAX_AGE.
MAX_AGE = timedelta(days=7)
#: A repair covers at most this number of changes, the newest ones. The limit exists because one link update may change millions of
#: links.
MAX_CHANGES = 100_000


class CacheRepair:
    """The job that stores recently changed links in the link cache again. `step` processes one batch."""

    def __init__(self, database: Database, cache: RedisLinkCache, now_ms: Callable[[], int]) -> None:
        self._database = database
        self._cache = cache
        self._now_ms = now_ms
        self._is_needed = True  # True at the start: the previous process may have ended before it removed old entries.
        # The row id of the oldest change that the current repair has processed. The next batch contains older changes.
        self._before: int | None = None
        self._done = 0  # The number of changes that the current repair has processed.

    async def step(self) -> int:
        """Store the links of one batch of changes in the cache again. Return the number of changes; 0 if Redis is down or no
        changes are left."""
        if not self._cache.is_up:
            self._is_needed, self._before, self._done = True, None, 0
            return 0
        if not self._is_needed:
            return 0
        found = await self._database.read(self._find_changes)
        failures = self._cache.failures
        await refresh_cache(self._database, self._cache, list({code for _, code in found}))
        if self._cache.failures != failures:
            return 0  # Redis failed during this batch, so the next step repeats it
        self._done += len(found)
        if len(found) < BATCH_CHANGES or self._done >= MAX_CHANGES:
            self._is_needed, self._before, self._done = False, None, 0
        else:
            self._before = found[-1][0]
        return len(found)

    def _find_changes(self, connection: Connection) -> list[tuple[int, str]]:
        """Return (row id, code) of each change in the next batch, newest first. The batch follows the changes that this repair
        has already processed."""
        c = link_changes.c
        oldest = first_id_at(self._now_ms() - int(MAX_AGE.total_seconds() * 1000))
        statement = select(c.id, links.c.code).join_from(link_changes, links, links.c.id == c.link_id).where(c.id >= oldest)
        if self._before is not None:
            statement = statement.where(c.id < self._before)
        return [(row.id, row.code) for row in connection.execute(statement.order_by(c.id.desc()).limit(BATCH_CHANGES))]
