"""The clock that all processes of an installation share: the clock of the database.

The clocks of machines differ. A process whose clock is minutes ahead would claim deliveries that another process is still
attempting, expire links too early and record hits in the wrong order. Each process therefore regularly measures the difference
between its clock and the clock of the database, and adds the difference to the time of its clock. It ignores differences up to
MAX_IGNORED_OFFSET, because the network can cause them.

While the database is not available, the last correction stays in use. With SQLite there is only one process, and therefore only one
clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection, text

from shortener.metrics import Metrics
from shortener.model import Clock, utcnow
from shortener.storage.database import Database
from shortener.storage.types import to_ms

log = structlog.get_logger(__name__)

_MILLISECOND = timedelta(milliseconds=1)
MAX_IGNORED_OFFSET = timedelta(milliseconds=50)


class SharedClock:
    """A clock that returns the time of the database. `own` is the clock of this machine, to which the offset of the database clock
    is added."""

    def __init__(self, database: Database, own: Clock = utcnow) -> None:
        self._database = database
        self._own = own
        self.offset = timedelta()  # The time by which the clock of the database is ahead of the clock of this machine.

    def __call__(self) -> datetime:
        return self._own() + self.offset

    @property
    def follows_system(self) -> bool:
        """Whether `own` is the system clock, and not the clock of a test."""
        return self._own is utcnow

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970, calculated from the system clock."""
        return _system_ms() + self.offset // _MILLISECOND

    def register_metrics(self, metrics: Metrics) -> None:
        metrics.gauge(
            "shortener_clock_offset_seconds",
            "Seconds that the clock of the database is ahead of the clock of this machine; 0 if they agree.",
            lambda: self.offset.total_seconds(),
        )

    async def step(self) -> int:
        """Measure the offset of the database clock. Return 0: the job pauses until its next run. Raise StoreUnavailable if the
        database is unavailable."""
        own, began = self._own(), time.monotonic()
        database_ms = await self._database.read(_read_clock)
        # The database has read its clock at an unknown time between the request and the response, so assume the middle.
        half = timedelta(seconds=time.monotonic() - began) / 2
        measured = timedelta(milliseconds=database_ms - to_ms(own)) - half
        if abs(measured - self.offset) > MAX_IGNORED_OFFSET + half:
            log.warning("clock_corrected", seconds=measured.total_seconds(), before=self.offset.total_seconds())
            self.offset = measured
        return 0


async def open_clock(database: Database) -> Clock:
    """Return the clock of the installation that has this database. Raise StoreUnavailable if the database is unavailable."""
    if database.dialect == "sqlite":
        return utcnow
    clock = SharedClock(database)
    await clock.step()
    return clock


def ms_clock(clock: Clock) -> Callable[[], int]:
    """Return a function that returns the time of `clock` in milliseconds since 1970.

    Each request calls the returned function several times, so this function must be fast. It creates no datetime if `clock` follows
    the system clock."""
    if clock is utcnow:
        return _system_ms
    if isinstance(clock, SharedClock) and clock.follows_system:
        return clock.now_ms
    return lambda: to_ms(clock())


def _system_ms() -> int:
    return time.time_ns() // 1_000_000


def _read_clock(connection: Connection) -> int:
    """Return the current time of the database in milliseconds since 1970, not the time when the transaction began."""
    now: int = connection.execute(text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")).scalar_one()
    return now
