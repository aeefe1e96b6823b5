"""The clock that all processes of an installation share: the clock of the database.

The clocks of machines differ. A process whose clock is minutes ahead would claim deliveries that another process is still
attempting, expire links too early and record hits in the wrong order. Each process therefore regularly measures the difference
between its clock and the clock of the database, and adds the difference to the time of its clock. It ignores differences up to
MAX_IGNORED_OFFSET, because delays of the network can cause them.

Between two measurements, the process does not read the clock of its machine, because somebody may set that clock. It adds the
time that has passed since the last measurement (`SteadyClock`).

While the database is not available, the last measured difference stays in use. With SQLite there is only one process, and
therefore only one clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Connection, text

from shortener.metrics import Metrics
from shortener.model import Clock, utcnow
from shortener.storage.database import Database
from shortener.storage.types import to_ms

log = structlog.get_logger(__name__)

_MILLISECOND = timedelta(milliseconds=1)
MAX_IGNORED_OFFSET = timedelta(milliseconds=50)


class SteadyClock:
    """A clock that reads the system clock once, at the beginning. After that, it is not affected if somebody sets the system
    clock."""

    def __init__(self) -> None:
        self._began_ns = time.time_ns() - _passed_ns()

    def __call__(self) -> datetime:
        return datetime.fromtimestamp((self._began_ns + _passed_ns()) / 1e9, UTC)

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return (self._began_ns + _passed_ns()) // 1_000_000


class SharedClock:
    """A clock that returns the time of the database. It adds the measured difference to `own`, the clock of this process."""

    def __init__(self, database: Database, own: Clock | None = None) -> None:
        self._database = database
        self._steady = SteadyClock() if own is None else None
        self._own: Clock = own or self._steady or utcnow
        self.offset = timedelta()  # How far the clock of the database is ahead of the clock of this machine.

    def __call__(self) -> datetime:
        return self._own() + self.offset

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        own = self._steady.now_ms() if self._steady is not None else to_ms(self._own())
        return own + self.offset // _MILLISECOND

    def register_metrics(self, metrics: Metrics) -> None:
        metrics.gauge(
            "shortener_clock_offset_seconds",
            "Seconds that the clock of the database is ahead of the clock of this machine; 0 if they agree.",
            lambda: self.offset.total_seconds(),
        )

    async def step(self) -> int:
        """Measure the difference to the clock of the database. Always return 0, the number of processed items, so that the
        job waits for its interval. Raise StoreUnavailable if the database is unavailable."""
        own, began = self._own(), time.monotonic()
        database_ms = await self._database.read(_read_clock)
        # The database has read its clock at some time between the request and the response. Assume that it was the middle.
        half = timedelta(seconds=time.monotonic() - began) / 2
        measured = timedelta(milliseconds=database_ms - to_ms(own)) - half
        if abs(measured - self.offset) > MAX_IGNORED_OFFSET + half:
            log.warning("clock_corrected", seconds=measured.total_seconds(), before=self.offset.total_seconds())
            self.offset = measured
        return 0


async def open_clock(database: Database) -> Clock:
    """Return the clock that the processes of this database share. Raise StoreUnavailable if the database is unavailable."""
    if database.dialect == "sqlite":
        return utcnow
    clock = SharedClock(database)
    await clock.step()
    return clock


def ms_clock(clock: Clock) -> Callable[[], int]:
    """Return a function that returns the time of `clock` in milliseconds since 1970.

    Each request calls the returned function several times, so it must be fast. It does not create a datetime, unless `clock` is
    the clock of a test."""
    if clock is utcnow:
        return _system_ms
    if isinstance(clock, SharedClock):
        return clock.now_ms
    return lambda: to_ms(clock())


def _passed_ns() -> int:
    """Return the nanoseconds that have passed since a fixed time. A change of the system clock does not change the result. On
    Linux, the result includes the time for which the machine was suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic_ns()


def _system_ms() -> int:
    return time.time_ns() // 1_000_000


def _read_clock(connection: Connection) -> int:
    """Return the current time of the database in milliseconds since 1970. It is not the time at which the transaction began."""
    now: int = connection.execute(text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")).scalar_one()
    return now
