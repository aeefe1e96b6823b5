"""The background job that adds count deltas to the counts.

Clicks need the same database, and with SQLite they wait for its only writer. So a batch is small, and the job pauses after a full
batch. If count deltas arrive faster than that, the pauses become shorter in proportion to the age of the oldest row. With
PostgreSQL the batches also grow, because clicks do not wait for them and a large batch needs less work for each origin. So the
counts are late by seconds, and the delay does not grow.

A batch that fails is rolled back. The next runs add its rows one by one. A row that also fails alone, for example because it is
damaged, is quarantined (`delta_rows.py`): it stays in its table, `count_deltas_quarantined` is logged with its id, and the rows
behind it are added. `shortener verify` reports the amounts that are missing. A process that starts tries the quarantined rows
again, because it may have a newer release.

If a batch ends early because its rows have too many origins, the job merges the oldest rows before the next batch. The batches that
follow then contain all amounts of their origins.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal, NamedTuple

import structlog
from sqlalchemy import Connection

from shortener.errors import StoreUnavailable
from shortener.ids import ms_of
from shortener.model import Clock
from shortener.reporting import counts, delta_rows
from shortener.reporting.counts import Folded
from shortener.storage.database import Database
from shortener.storage.types import to_ms

log = structlog.get_logger(__name__)

#: After a full batch, the pause is this many times as long as the batch took.
PAUSE_FACTOR = 3.0
#: Rows of count deltas that are older than this are a backlog. The job usually adds them within its interval, a second. A report
#: includes only a limited number of rows that were not added yet (`statistics.MAX_PENDING_ROWS`).
MAX_AGE_MS = 1000
#: With a backlog, the pauses are at most this many times as short as usual, and the batches as large.
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
        self._merged_id = 0  # The id of the last merged row.
        self._needs_merge = False
        self._can_merge = True  # False if a merge has failed, until all rows are added.
        self._has_released = False  # Whether this process has released the quarantined rows.
        self._single_rows = 0  # The number of the next batches that consist of a single row, because a batch has failed.

    async def step(self) -> int:
        """Add a batch of count deltas to the counts, and pause if it was full. Return the number of rows, but 0 if the batch was
        not full: the job then waits for its interval, and adds all deltas of this time together. Raise StoreUnavailable, or the
        exception of a batch that failed."""
        if not self._has_released:
            self._has_released = await self._database.write(counts.release)
        if self._single_rows:
            return await self._add_single_row()
        if self._needs_merge:
            self._needs_merge = False
            await self._merge()
        try:
            started, folded = await self._database.write_later(_fold, self._limits)
        except StoreUnavailable:
            raise
        except Exception:
            self._single_rows = self._limits.rows
            raise
        if not folded.is_full:
            self._limits = limits(0, self._database.dialect)
            self._can_merge = True
            return 0
        await self._pause(started)
        self._needs_merge = self._can_merge and folded.rows < self._limits.rows and folded.last_id >= self._merged_id
        self._limits = limits(to_ms(self._clock()) - ms_of(folded.first_id), self._database.dialect)
        return folded.rows

    async def _add_single_row(self) -> int:
        """Add the oldest row. If this fails, quarantine the row. Return 0 if there is no row, or if another process adds rows."""
        self._single_rows -= 1
        row_id = await self._database.read(delta_rows.read_oldest)
        try:
            # Add no older row that appears now, because the exception would be that of the wrong row.
            after = -1 if row_id is None else row_id - 1
            started, folded = await self._database.write_later(_fold, self._limits._replace(rows=1), after)
        except StoreUnavailable:
            raise
        except Exception:
            if row_id is not None and await self._database.write(counts.quarantine, row_id):
                self._single_rows = 0
                log.exception("count_deltas_quarantined", row=row_id)
            return 1
        await self._pause(started)
        return folded.rows

    async def _merge(self) -> None:
        """Merge the oldest rows, and pause. If this fails, for example because a row is damaged, add the rows without merges: the
        batch that reaches the row handles it."""
        try:
            started, self._merged_id = await self._database.write_later(_merge)
        except StoreUnavailable:
            raise
        except Exception:
            self._can_merge = False
            log.warning("count_deltas_not_merged", exc_info=True)
        else:
            await self._pause(started)

    async def _pause(self, started: float) -> None:
        """Pause after a transaction that began at this time of `time.monotonic`."""
        await asyncio.sleep(self._limits.pause_factor * (time.monotonic() - started))


def _merge(connection: Connection) -> tuple[float, int]:
    """Merge the oldest rows. Also return the time at which the transaction began."""
    started = time.monotonic()
    return started, counts.merge(connection)


def _fold(connection: Connection, batch: Limits, after: int = -1) -> tuple[float, Folded]:
    """Add a batch. Also return the time at which the transaction began, because the pause does not depend on how long the
    transaction waited for others."""
    started = time.monotonic()
    return started, counts.fold_batch(connection, batch.rows, batch.origins, after)
