"""The background job that adds count deltas to the counts.

Clicks need the same database, and with SQLite they wait for its only writer. Therefore a batch is small, and the job pauses after a
full batch. If count deltas arrive faster than the job adds them, the pauses become shorter in proportion to the age of the oldest
row. With PostgreSQL the batches also grow, because clicks do not wait for them, and because a large batch needs less work for each
origin. As a result, the counts are late by seconds, and the delay does not grow.

A row whose content is unreadable is quarantined (`delta_rows.py`): it stays in its table, `count_deltas_quarantined` is logged with
its id, and the job adds the rows after it. `shortener verify` reports the missing amounts. A process that starts tries the
quarantined rows again, because it may have a newer release.

Only unreadable content is a reason to quarantine a row (`delta_content.py`). Any other exception, for example of the database or
because of a bug, rolls the batch back, and no row changes. The job fails (`job_failed`), and tries again after its interval.

If a batch ends early because its rows have too many origins, the job merges the oldest rows before the next batch. After that, all
amounts of an origin are in the same batch.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal, NamedTuple

import structlog
from sqlalchemy import Connection

from shortener.ids import ms_of
from shortener.model import Clock
from shortener.reporting import counts
from shortener.reporting.counts import Folded
from shortener.storage.database import Database
from shortener.storage.types import to_ms

log = structlog.get_logger(__name__)

#: After a full batch, the pause is this many times as long as the batch took.
PAUSE_FACTOR = 3.0
#: Rows of count deltas that are older than this are a backlog. The job usually adds them within its interval, a second. A report
#: includes only a limited number of rows that were not added yet (`statistics.MAX_PENDING_ROWS`).
MAX_AGE_MS = 1000
#: With a backlog, pauses become at most this many times shorter than usual, and batches at most this many times larger.
MAX_URGENCY = 10.0


class Limits(NamedTuple):
    """The limits of a batch, and the pause after it as a multiple of its duration."""

    rows: int
    origins: int
    pause_factor: float


def limits(age_ms: int, engine: Literal["sqlite", "postgresql"]) -> Limits:
    """Return the limits of a batch whose oldest row has this age."""
    urgency = min(max(age_ms / MAX_AGE_MS, 1.0), MAX_URGENCY)
    size = 1.0 if engine == "sqlite" else urgency
    return Limits(int(counts.MAX_FOLD_ROWS * urgency), int(counts.MAX_FOLD_ORIGINS * size), PAUSE_FACTOR / urgency)


class CountFolder:
    """The background job that adds count deltas to the counts."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._limits = limits(0, database.dialect)
        self._merged_id = 0
        self._needs_merge = False
        self._has_released = False  # Whether this process has released the quarantined rows, so that they are tried again.

    async def step(self) -> int:
        """Add a batch of count deltas to the counts, and pause if it was full. Return the number of rows. If the batch was not
        full, return 0: the job then waits for its interval, and later adds all deltas of this time together. Raise
        StoreUnavailable, or the exception of a batch or a merge that failed."""
        if not self._has_released:
            self._has_released = await self._database.write(counts.release)
        if self._needs_merge:
            self._needs_merge = False  # If the merge fails, the next run adds a batch without it.
            started, self._merged_id = await self._database.write_later(_merge)
            await self._pause(started)
        started, folded = await self._database.write_later(_fold, self._limits)
        for row in folded.quarantined:
            log.error("count_deltas_quarantined", row=row.id, reason=row.reason)
        if not folded.is_full:
            self._limits = limits(0, self._database.dialect)
            return 0
        await self._pause(started)
        self._needs_merge = folded.rows < self._limits.rows and folded.last_id >= self._merged_id
        self._limits = limits(to_ms(self._clock()) - ms_of(folded.first_id), self._database.dialect)
        return folded.rows

    async def _pause(self, started: float) -> None:
        """Pause after a transaction. `started` is the time at which it began, as `time.monotonic` returns it."""
        await asyncio.sleep(self._limits.pause_factor * (time.monotonic() - started))


def _merge(connection: Connection) -> tuple[float, int]:
    """Merge the oldest rows. Return the time at which the transaction began, and the result of `counts.merge`."""
    started = time.monotonic()
    return started, counts.merge(connection)


def _fold(connection: Connection, batch: Limits) -> tuple[float, Folded]:
    """Add a batch. Return the time at which the transaction began, and the result of the batch. The time is measured here, because
    the pause must not depend on how long the transaction waited for others."""
    started = time.monotonic()
    return started, counts.fold_batch(connection, batch.rows, batch.origins)
