"""The guard against a clock that moved far ahead, for example because somebody set a wrong date. Without it, such a clock would
make all stored data look too old: messages that wait for a gateway would fail, deliveries would become dead, links would expire,
and the purge would delete everything.

The rule: the clock has made a step if it moved ahead by more than the time that has passed. While a machine runs, the time that
has passed is known (`CLOCK_BOOTTIME` on Linux), and a difference of MAX_KNOWN_STEP or less is no step. After a reboot, or if
another machine stored the latest reading, the time that has passed is unknown. Then only a difference of more than
MAX_UNKNOWN_STEP is a step.

After a step, nothing expires because of it, and the purge deletes nothing, for WAIT_AFTER_STEP. Within this time, an
administrator can correct the clock. When the clock is set back to the time before the step, everything continues at once. If the
clock is still ahead after WAIT_AFTER_STEP, it is right: the machine was stopped, or it started with a wrong date. `shortener
purge` confirms the clock before that, because a person has decided to run it; at a terminal, the command asks for confirmation.
The first run of an installation trusts its clock. New data gets the time of the clock also during the wait.

A step of seconds is enough to end the leases of attempts in flight, and a message would be sent again. Therefore no lease counts as
ended for LEASE_WAIT after a step of more than MAX_LEASE_STEP (`leases_wait`). Only work that had a lease waits. With PostgreSQL, a
process knows the clock of the database from its latest measurement, up to 10 seconds ago (storage/clock.py). Therefore it compares
its time with the clock of the database in the transaction that examines leases, and the process that finds a step stores the time.
A new process does not know whether the clock made a step shortly before its start. If so, a process that was already running finds
and stores the step within START_WAIT. Until the new process has read the stored value (`knows_steps`), no lease counts as ended for
it, the purge deletes nothing, and no message or delivery expires.

Each process watches its clock (`ClockGuard`). Each run of the purge stores the latest reading, so that a step is noticed although
the process is restarted. With PostgreSQL, a process also stores a step when it finds it, because a process that starts on another
host cannot find it. The processes of an installation share the stored value. Their clocks differ a little, and the times of runs
may be stored in another order than the runs began. Therefore a reading that is only a little before the time at which the step was
found does not end the wait.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, literal_column, select

from shortener.model import record
from shortener.plurals import counted
from shortener.storage import installation
from shortener.storage.database import Database
from shortener.storage.schema import installation as installation_table
from shortener.storage.types import from_ms, to_iso, to_ms

log = structlog.get_logger(__name__)

#: The name of the stored value: the fields of ClockReading, separated by spaces. Older versions stored only the first three.
PURGE_CLOCK = "purge_clock"
#: The name of the stored time (milliseconds) at which a process found the latest step that could end leases. Only with PostgreSQL.
_MOVED_CLOCK = "moved_clock"
#: While the time that has passed is known, a clock that is ahead by more than this has made a step.
MAX_KNOWN_STEP = timedelta(hours=1)
#: The same limit if the time that has passed is unknown. A wrong clock is usually wrong by many years, such as the 1,024 weeks of
#: GPS, and an installation is very rarely stopped for longer than this limit.
MAX_UNKNOWN_STEP = timedelta(days=730)
WAIT_AFTER_STEP = timedelta(hours=24)
#: A smaller step ends no lease of a running attempt, because a lease ends later than its attempt (delivery/claims.py).
MAX_LEASE_STEP = timedelta(seconds=5)
#: For this time after a step, no lease counts as ended. It is longer than the longest lease (130 s) plus the time after which all
#: processes have noticed the step (storage/clock.py), because a process writes leases with its own clock until then.
LEASE_WAIT = timedelta(minutes=3)
#: A step of the clock before the start of a process with PostgreSQL is stored by other processes after this time. It is longer than
#: the time between two measurements of the clock.
START_WAIT = timedelta(seconds=12)
_MILLISECOND = timedelta(milliseconds=1)
_MAX_KNOWN_MS, _MAX_UNKNOWN_MS = MAX_KNOWN_STEP // _MILLISECOND, MAX_UNKNOWN_STEP // _MILLISECOND
_WAIT_MS, _LEASE_WAIT_MS = WAIT_AFTER_STEP // _MILLISECOND, LEASE_WAIT // _MILLISECOND
_MAX_LEASE_STEP_MS, _START_WAIT_MS = MAX_LEASE_STEP // _MILLISECOND, START_WAIT // _MILLISECOND
_UNKNOWN_STEP = timedelta(days=3650)  # A process that does not know whether there was a step assumes this one.
#: A function that returns whether no lease counts as ended at present. Its argument is the connection of the transaction that
#: examines leases.
LeasesWait = Callable[[Connection], bool]


class Uptime(NamedTuple):
    """The milliseconds that have passed since the start of a machine. `boot` identifies the start; it is empty if it is unknown."""

    boot: str
    passed_ms: int


UNKNOWN_UPTIME = Uptime("", 0)


def unknown_uptime() -> Uptime:
    """Return the uptime of a machine whose uptime is unknown."""
    return UNKNOWN_UPTIME


class ClockReading(NamedTuple):
    """A reading of the clock at the time `at`. All times are milliseconds.

    `found_at` is the time at which a step was found, 0 if there is none. `ahead` is the size of the step: the time by which the
    clock is ahead of the trusted time."""

    at: int
    found_at: int = 0
    ahead: int = 0
    boot: str = ""
    passed_ms: int = 0

    @property
    def step(self) -> ClockStep | None:
        """The step of the clock after which the purge waits, or None."""
        return ClockStep(timedelta(milliseconds=self.ahead), from_ms(self.found_at) + WAIT_AFTER_STEP) if self.found_at else None


@record
class ClockStep:
    """A step of the clock after which nothing expires. `size` is the time by which the clock moved ahead. The wait ends at the time
    `until`."""

    size: timedelta
    until: datetime

    @property
    def text(self) -> str:
        """The size of the step for people, such as "3 days" or "5 hours"."""
        return counted(self.size.days, "day") if self.size.days > 2 else counted(self.hours, "hour")

    @property
    def hours(self) -> int:
        return self.size // timedelta(hours=1)


def read_uptime() -> Uptime:
    """Return the uptime of this machine. A change of the system clock does not change the result. On Linux, the result includes the
    time for which the machine was suspended. On other systems it is unknown, because their monotonic clock may stop then."""
    if sys.platform == "linux" and (boot := _boot_id()):
        return Uptime(boot, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)
    return UNKNOWN_UPTIME


class ClockGuard:
    """The guard of one process. `clock_ms` returns the time in milliseconds since 1970. `uptime` returns the uptime of the machine;
    by default it is unknown, so that only a step of more than MAX_UNKNOWN_STEP is found.

    `follows_database` is true if the clock follows the clock of a database that other processes also use. `is_command` is true in a
    command, which does not wait for START_WAIT.

    `knows_steps` is false after the start of a process with PostgreSQL, until `store_new_step` has read what others have stored."""

    def __init__(
        self,
        clock_ms: Callable[[], int],
        uptime: Callable[[], Uptime] = unknown_uptime,
        stored: str | None = None,
        *,
        follows_database: bool = False,
        is_command: bool = False,
    ) -> None:
        self._clock_ms = clock_ms
        self._uptime = uptime
        self._latest = None if stored is None else _parse(stored)
        self._stored_step = self._latest.found_at if self._latest is not None else 0
        self._moved_at: Uptime | None = None  # the uptime at the latest step of more than MAX_LEASE_STEP
        self._move_to_store: int | None = None  # the time of that step, if it is not stored yet
        self._follows_database = follows_database
        self._started = uptime()
        self.knows_steps = is_command or not (follows_database and self._started.boot)

    def check(self) -> ClockReading:
        """Read the clock. Log a step that is found."""
        before, uptime = self._latest, self._uptime()
        reading = self._latest = _advance(before, self._clock_ms(), uptime)
        if before is not None and _is_known(before, uptime):
            passed_ms = uptime.passed_ms - before.passed_ms
            if reading.at - before.at - passed_ms > _MAX_LEASE_STEP_MS:
                self._moved_at, self._move_to_store = uptime, reading.at
        if reading.found_at and (before is None or not before.found_at):
            _log_step(reading)
        return reading

    def trusted_ms(self, at: int) -> int:
        """Return the time `at` of the clock without the step. What expires later than the result must not expire yet. Return `at`
        unchanged if there is no step, or if `at` is a time before the step."""
        reading = self.check()
        return at - reading.ahead if reading.found_at and at > reading.found_at - _MAX_KNOWN_MS else at

    def ahead(self) -> timedelta:
        """Return the size of the present step of the clock; zero if there is none, and ten years if it is unknown. The caller adds
        this size to each lifetime, so that nothing expires because of the step."""
        return timedelta(milliseconds=self.check().ahead) if self.knows_steps else _UNKNOWN_STEP

    def trusted_time(self, at: datetime) -> datetime:
        """Do the same as `trusted_ms` for a datetime."""
        return from_ms(self.trusted_ms(to_ms(at)))

    def leases_wait(self, connection: Connection) -> bool:
        """Return whether no lease counts as ended at present, because the clock moved ahead by more than MAX_LEASE_STEP within
        LEASE_WAIT. A lease that was stored before the step seems to have ended, although its attempt may be in flight.

        With PostgreSQL, also return True if the time of this process differs from the clock of the database, or if this process
        cannot know yet whether the clock has moved. Call this after reading the time with which leases are compared."""
        reading = self.check()
        if self._moved_at is not None and 0 <= reading.passed_ms - self._moved_at.passed_ms < _LEASE_WAIT_MS:
            return True
        if reading.found_at and 0 <= reading.at - reading.found_at < _LEASE_WAIT_MS:
            return True
        return self._follows_database and self._may_have_moved(connection, reading)

    def _may_have_moved(self, connection: Connection, reading: ClockReading) -> bool:
        """Return whether the clock of the database may have made a step that this process has not noticed."""
        if not self.knows_steps:
            return True
        database_ms, moved_at = connection.execute(_DATABASE_CLOCK).one()
        if abs(reading.at - database_ms) > _MAX_LEASE_STEP_MS:
            return True
        return moved_at is not None and 0 <= database_ms - int(moved_at) < _LEASE_WAIT_MS

    async def store_new_step(self, database: Database) -> None:
        """Store a step as soon as it is found, so that a process that starts on another host knows it. After START_WAIT, read what
        other processes have stored. Raise StoreUnavailable."""
        reading = self.check()
        if not self.knows_steps and reading.passed_ms - self._started.passed_ms >= _START_WAIT_MS:
            await database.write_later(note_run, from_ms(reading.at), self)
            self.knows_steps = True
        found_at = self.check().found_at
        if (moved_at := self._move_to_store) is not None:
            await database.write(installation.set_value, _MOVED_CLOCK, str(moved_at))
            if self._move_to_store == moved_at:
                self._move_to_store = None
        if found_at and found_at != self._stored_step:
            await database.write_later(note_run, from_ms(found_at), self)
            self._stored_step = found_at

    def store(self, connection: Connection, stored: ClockReading | None) -> ClockReading:
        """Combine the reading with the stored one, store it and return it. End the wait if somebody confirmed the clock."""
        own = self.check()
        found = _advance(stored, own.at, self._uptime())
        if own.found_at and stored is not None and not stored.found_at and stored.at >= own.found_at:
            own = found  # `shortener purge` has confirmed the clock after this process found the step
        elif found.found_at and not own.found_at:
            own = found  # another process, or this process before a restart, found the step
            if stored is None or not stored.found_at:
                _log_step(own)
        self._latest = own
        _write(connection, own)
        return own


def note_run(connection: Connection, now: datetime, guard: ClockGuard | None = None, *, trusted: bool = False) -> ClockStep | None:
    """Store the time of a run of the purge. Return the step after which the purge must wait, or None if it may delete.

    `guard` is the guard of this process; None if the time that has passed is unknown. `trusted` is true if a person has checked the
    clock. The purge then never waits."""
    if trusted:
        uptime = read_uptime()
        _write(connection, ClockReading(to_ms(now), boot=uptime.boot, passed_ms=uptime.passed_ms))
        return None
    return (guard or ClockGuard(lambda: to_ms(now))).store(connection, _read(connection)).step


def read_guard(connection: Connection, clock_ms: Callable[[], int]) -> ClockGuard:
    """Return the guard of a command on an installation, which knows the latest stored reading."""
    stored, is_shared = installation.get(connection, PURGE_CLOCK), connection.dialect.name == "postgresql"
    return ClockGuard(clock_ms, read_uptime, stored, follows_database=is_shared, is_command=True)


def read_trusted_time(connection: Connection, now: datetime) -> datetime:
    """Return the time `now` of a command without a step of the clock, as `ClockGuard.trusted_time` does."""
    return read_guard(connection, lambda: to_ms(now)).trusted_time(now)


def find_step(connection: Connection, now: datetime, uptime: Uptime = UNKNOWN_UPTIME) -> ClockStep | None:
    """Return the step after which the purge waits at present, or None."""
    return _advance(_read(connection), to_ms(now), uptime).step


#: The clock of the database in milliseconds since 1970, and the stored time of the latest step. PostgreSQL only.
_DATABASE_CLOCK = select(
    literal_column("(extract(epoch FROM clock_timestamp()) * 1000)::bigint"),
    select(installation_table.c.value).where(installation_table.c.name == _MOVED_CLOCK).scalar_subquery(),
)


def _advance(before: ClockReading | None, at: int, uptime: Uptime) -> ClockReading:
    """Return the reading of the clock at the time `at`, after the reading `before`."""
    trusted = ClockReading(at, 0, 0, *uptime)
    if before is None:
        return trusted
    is_known = _is_known(before, uptime)
    limit = _MAX_KNOWN_MS if is_known else _MAX_UNKNOWN_MS
    expected = before.at - before.ahead
    if is_known:
        expected += uptime.passed_ms - before.passed_ms
    elif before.found_at and 0 <= at - before.at <= limit:
        expected += at - before.at
    ahead = at - expected  # It is negative if the clock was set back.
    if ahead <= (_MAX_KNOWN_MS if before.found_at and before.at - _MAX_KNOWN_MS <= at else limit):
        return trusted
    if not before.found_at or ahead - before.ahead > limit or at < before.found_at - _MAX_KNOWN_MS:
        return ClockReading(at, at, ahead, *uptime)
    return ClockReading(at, before.found_at, ahead, *uptime) if at - before.found_at < _WAIT_MS else trusted


def _is_known(before: ClockReading, uptime: Uptime) -> bool:
    """Return whether the time that has passed since the reading `before` is known."""
    return bool(uptime.boot) and uptime.boot == before.boot and uptime.passed_ms >= before.passed_ms


@cache
def _boot_id() -> str:
    """Return a text that identifies the start of this machine; an empty text if the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _log_step(reading: ClockReading) -> None:
    step = reading.step
    assert step is not None
    log.error("clock_moved_ahead", hours=step.hours, until=to_iso(step.until))


def _parse(stored: str) -> ClockReading:
    at, found_at, ahead, *uptime = stored.split(" ")
    boot, passed_ms = uptime or ("", "0")
    return ClockReading(int(at), int(found_at), int(ahead), boot, int(passed_ms))


def _read(connection: Connection) -> ClockReading | None:
    stored = installation.get(connection, PURGE_CLOCK)
    return None if stored is None else _parse(stored)


def _write(connection: Connection, reading: ClockReading) -> None:
    installation.set_value(connection, PURGE_CLOCK, " ".join(map(str, reading)))
