"""The background job that adds count deltas to the counts.

Clicks need the same database. With SQLite, they wait while this job uses the only writer. Therefore a batch is small, and the job
pauses after a full batch.

If count deltas arrive faster than the job adds them, the age of the oldest row grows. The job then makes the pauses shorter in
proportion to this age. With PostgreSQL, it also makes the batches larger: clicks do not wait for them, and a large batch needs
less work for each origin. As a result, the counts are late by seconds, and the delay does not grow.

A row whose content is unreadable is quarantined (delta_rows.py): it stays in its table, `count_deltas_quarantined` is logged with
its id, and the job continues with the rows after it. `shortener verify` reports the missing amounts. After its start, each
process tries the quarantined rows again, because it may have a newer release.

Only unreadable content is a reason to quarantine a row (delta_content.py). Any other exception, for example of the database or
because of a bug, rolls the batch back, and no row changes. The job fails (`job_failed`), and tries again after its interval.

If a batch ends early because its rows have too many origins, the job merges the oldest rows before the next batch. After that,
the amounts of one origin are together, and one batch adds all of them.
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

#: After a full batch, the job pauses for the duration of the batch multiplied by this number.
PAUSE_FACTOR = 3.0
#: The job usually adds a row within its interval of one second. If rows are older than this, there is a backlog. A backlog must
#: be reduced, because a report includes only a limited number of rows that were not added yet (`statistics.MAX_PENDING_ROWS`).
MAX_AGE_MS = 1000
#: With a backlog, pauses become shorter and batches become larger. Both change at most by this factor.
MAX_URGENCY = 10.0


class Limits(NamedTuple):
    """The maximum numbers of rows and of origins in a batch, and the pause after the batch as a multiple of its duration."""

    rows: int
    origins: int
    pause_factor: float


def limits(age_ms: int, engine: Literal["sqlite", "postgresql"]) -> Limits:
    """Return the limits of the next batch. `age_ms` is the age of the oldest row in milliseconds."""
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
        # Whether this process has ended the quarantine of all rows. It ends it once, after its start, to try these rows again.
        self._has_released = False

    async def step(self) -> int:
        """Add a batch of count deltas to the counts. If the batch was full, pause and return the number of its rows. Otherwise
        return 0, so that the job waits for its interval, and deltas that arrive in this time are added together.

        Raise StoreUnavailable, or the exception of a batch or a merge that failed."""
        if not self._has_released:
            self._has_released = await self._database.write(counts.release)
        if self._needs_merge:
            self._needs_merge = False  # If the merge fails, the next run adds a batch without another merge.
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
        """Pause after a transaction. `started` is the time at which the transaction began, on the clock `time.monotonic`."""
        await asyncio.sleep(self._limits.pause_factor * (time.monotonic() - started))


def _merge(connection: Connection) -> tuple[float, int]:
    """Merge the oldest rows of count deltas. Return the time at which the transaction began, and the result of `counts.merge`."""
    started = time.monotonic()
    return started, counts.merge(connection)


def _fold(connection: Connection, batch: Limits) -> tuple[float, Folded]:
    """Add a batch. Return the time at which the transaction began, and the result of `counts.fold_batch`.

    The time is measured here, when the transaction runs. The time for which the transaction waited for others must not make the
    pause longer."""
    started = time.monotonic()
    return started, counts.fold_batch(connection, batch.rows, batch.origins)
