"""The clock that the processes of an installation share: that of the database.

Machines' clocks differ, and a process that is minutes ahead would take deliveries whose leases others still hold, let links expire
early and win first clicks that were not first. So a process reads its own clock, corrected by how far the database's is away, and
looks every now and then. Clocks that agree within `TOLERATED` are left alone: no time jumps for what is only the network's delay.

While the database is away the last correction stands. SQLite belongs to one process, and so to one clock.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection, text

from shortener.metrics import Metrics
from shortener.model import Clock, utcnow
from shortener.storage.database import Database
from shortener.storage.types import to_ms

log = structlog.get_logger(__name__)

TOLERATED = timedelta(milliseconds=50)


class SharedClock:
    """`own`: this process's clock. Call it for the time; `step` looks at the database's clock."""

    def __init__(self, database: Database, own: Clock = utcnow) -> None:
        self._database = database
        self._own = own
        self.offset = timedelta()  # what the database's clock is ahead

    def __call__(self) -> datetime:
        return self._own() + self.offset

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the correction on /metrics."""
        metrics.gauge(
            "shortener_clock_offset_seconds",
            "What the database's clock is ahead of this machine's; 0 when they agree.",
            lambda: self.offset.total_seconds(),
        )

    async def step(self) -> int:
        """As a job; never finds anything to do at once. Raises StoreUnavailable."""
        own, began = self._own(), time.monotonic()
        theirs = await self._database.read(_ask)
        half = timedelta(seconds=time.monotonic() - began) / 2  # the answer was made somewhere in the time between
        found = timedelta(milliseconds=theirs - to_ms(own)) - half
        if abs(found - self.offset) > TOLERATED + half:
            log.warning("clock_corrected", seconds=found.total_seconds(), before=self.offset.total_seconds())
            self.offset = found
        return 0


def _ask(connection: Connection) -> int:
    """Milliseconds since 1970, now and not at the beginning of the transaction."""
    now: int = connection.execute(text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")).scalar_one()
    return now
