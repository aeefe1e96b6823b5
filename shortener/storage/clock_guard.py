"""The guard against a clock that moved far ahead, for example because somebody set a wrong date. Without the guard, all stored
data would look too old: messages that wait for a gateway would fail, deliveries would become dead, links would expire, and the
purge would delete everything.

A step of the clock is a move ahead by more than the time that has passed. While a machine runs, the time that has passed is known
(`CLOCK_BOOTTIME` on Linux), and a difference of up to MAX_KNOWN_STEP is not a step. After a reboot, or if another machine stored
the latest reading, the time that has passed is unknown. Then only a difference of more than MAX_UNKNOWN_STEP is a step.

After a step, the guard waits for WAIT_AFTER_STEP. During the wait, nothing expires because of the step, and the purge deletes
nothing, so that an administrator can correct the clock. New data gets the time of the clock as usual. The wait ends in one of
three ways: somebody sets the clock back to the time before the step; WAIT_AFTER_STEP has passed, which means that the clock is
right (the machine was stopped, or it started with a wrong date); or a person runs `shortener purge`, which asks for confirmation
at a terminal. The first run of an installation trusts its clock.

A step of seconds is enough to end the leases of attempts in flight, and their messages would be sent again. Therefore, after a
step of more than MAX_LEASE_STEP, no lease counts as ended for LEASE_WAIT (`leases_wait`). Work without a lease does not wait.

With PostgreSQL, a process knows the clock of the database only from its latest measurement, up to 10 seconds ago (clock.py).
Therefore, in the transaction that examines leases, it compares its time with the clock of the database. The process that finds a
step stores its time, because a process that starts later cannot find it. A step shortly before the start of a process is found
and stored by the other processes within START_WAIT. Until the new process has read the stored time (`knows_steps`), no lease
counts as ended for it, the purge deletes nothing, and no message or delivery expires.

Each process watches its clock (`ClockGuard`). Each run of the purge stores the latest reading, so that a step is noticed even if
the process is restarted. The processes of an installation share the stored reading. Their clocks differ a little, and an earlier
reading may be stored after a later one. Therefore a reading that is only a little before the time of the step does not end the
wait.
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

#: The name under which the latest reading is stored. The value contains the fields of ClockReading, separated by spaces. Older
#: versions stored only the first three fields.
PURGE_CLOCK = "purge_clock"
#: The name under which processes with PostgreSQL store the time (milliseconds) at which they found the latest step that could end
#: leases.
_MOVED_CLOCK = "moved_clock"
#: If the time that has passed is known, a clock that is ahead by more than this has made a step.
MAX_KNOWN_STEP = timedelta(hours=1)
#: The same limit if the time that has passed is unknown. It can be so large, because a wrong clock is usually wrong by many
#: years, such as the 1,024 weeks of GPS. An installation is very rarely stopped for longer than this.
MAX_UNKNOWN_STEP = timedelta(days=730)
WAIT_AFTER_STEP = timedelta(hours=24)
#: A smaller step cannot end the lease of a running attempt, because a lease ends later than its attempt (delivery/claims.py).
MAX_LEASE_STEP = timedelta(seconds=5)
#: For this time after a step, no lease counts as ended. It is the longest lease (130 s) and some time more: until a process has
#: noticed the step (clock.py), it still writes leases with the time of its own clock.
LEASE_WAIT = timedelta(minutes=3)
#: A process that has just started with PostgreSQL waits for this time. If the clock made a step before its start, the other
#: processes have then stored the step. The time is longer than the time between two measurements of the clock.
START_WAIT = timedelta(seconds=12)
_MILLISECOND = timedelta(milliseconds=1)
_MAX_KNOWN_MS, _MAX_UNKNOWN_MS = MAX_KNOWN_STEP // _MILLISECOND, MAX_UNKNOWN_STEP // _MILLISECOND
_WAIT_MS, _LEASE_WAIT_MS = WAIT_AFTER_STEP // _MILLISECOND, LEASE_WAIT // _MILLISECOND
_MAX_LEASE_STEP_MS, _START_WAIT_MS = MAX_LEASE_STEP // _MILLISECOND, START_WAIT // _MILLISECOND
#: As long as a process does not know whether there was a step, it assumes a step of this size.
_UNKNOWN_STEP = timedelta(days=3650)
#: A function that returns whether no lease counts as ended at present, even if its time has passed. Its argument is the
#: connection with which the transaction examines leases.
LeasesWait = Callable[[Connection], bool]


class Uptime(NamedTuple):
    """The milliseconds since the start of a machine. `boot` is a text that identifies this start, or "" if the milliseconds are
    unknown."""

    boot: str
    passed_ms: int


UNKNOWN_UPTIME = Uptime("", 0)


def unknown_uptime() -> Uptime:
    """Return the value that means an unknown uptime."""
    return UNKNOWN_UPTIME


class ClockReading(NamedTuple):
    """A reading of the clock. `at` is the time that was read. All times are milliseconds.

    `found_at` is the time at which a step was found, or 0 if there is none. `ahead` is the size of the step: how far the clock is
    ahead of the trusted time."""

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
    """A step of the clock. `size` is the time by which the clock moved ahead. Until the time `until`, nothing expires because of
    the step."""

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
    """Return the time since the start of this machine. If somebody sets the system clock, this does not change the result.

    On Linux, the result includes the time for which the machine was suspended. On other systems, the monotonic clock may stop
    during that time, so the result is unknown."""
    if sys.platform == "linux" and (boot := _boot_id()):
        return Uptime(boot, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)
    return UNKNOWN_UPTIME


class ClockGuard:
    """The guard of one process. `clock_ms` returns the time in milliseconds since 1970. `uptime` returns the uptime of the
    machine. By default it is unknown, so that only a step of more than MAX_UNKNOWN_STEP is found.

    `follows_database` is true if the clock follows the clock of a database that other processes also use. `is_command` is true in
    a command, which does not wait for START_WAIT.

    `knows_steps` says whether the process knows the steps that others have found. With PostgreSQL, it is false after the start,
    until `store_new_step` has read what others have stored."""

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
        self._move_to_store: int | None = None  # the time of that step, until it is stored
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
        """Return the time `at` minus the size of the present step of the clock. What expires later than the result must not
        expire yet. If there is no step, or if `at` is a time before the step, return `at` unchanged."""
        reading = self.check()
        return at - reading.ahead if reading.found_at and at > reading.found_at - _MAX_KNOWN_MS else at

    def ahead(self) -> timedelta:
        """Return the size of the present step of the clock: zero if there is none, and ten years if this process does not know it
        yet. The caller adds this size to each lifetime, so that nothing expires because of the step."""
        return timedelta(milliseconds=self.check().ahead) if self.knows_steps else _UNKNOWN_STEP

    def trusted_time(self, at: datetime) -> datetime:
        """Return the time `at` minus the size of the present step of the clock, as `trusted_ms` does."""
        return from_ms(self.trusted_ms(to_ms(at)))

    def leases_wait(self, connection: Connection) -> bool:
        """Return whether no lease counts as ended at present. This is so for LEASE_WAIT after the clock moved ahead by more than
        MAX_LEASE_STEP: a lease that was stored before the step seems to have ended, although its attempt may be in flight.

        With PostgreSQL, also return True if the time of this process differs from the clock of the database, or if this process
        cannot know yet whether the clock has moved. Before this call, the caller must read the time with which it compares
        leases."""
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
        """If this process has found a step, store it, so that a process that starts on another host knows it. After START_WAIT,
        read what other processes have stored. Raise StoreUnavailable if the database is unavailable."""
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
        """Read the clock, and combine the reading with `stored`, the reading of the latest run of the purge. Store and return the
        result. If a person has confirmed the clock, the wait ends."""
        own = self.check()
        found = _advance(stored, own.at, self._uptime())
        if own.found_at and stored is not None and not stored.found_at and stored.at >= own.found_at:
            own = found  # after this process had found the step, `shortener purge` has confirmed the clock
        elif found.found_at and not own.found_at:
            own = found  # another process has found the step, or this process before a restart
            if stored is None or not stored.found_at:
                _log_step(own)
        self._latest = own
        _write(connection, own)
        return own


def note_run(connection: Connection, now: datetime, guard: ClockGuard | None = None, *, trusted: bool = False) -> ClockStep | None:
    """Store the time of a run of the purge. If the purge must wait, return the step of the clock. Return None if it may delete.

    `guard` is the guard of this process, or None if the time that has passed is unknown. If `trusted` is true, a person has
    checked the clock, and the purge does not wait."""
    if trusted:
        uptime = read_uptime()
        _write(connection, ClockReading(to_ms(now), boot=uptime.boot, passed_ms=uptime.passed_ms))
        return None
    return (guard or ClockGuard(lambda: to_ms(now))).store(connection, _read(connection)).step


def read_guard(connection: Connection, clock_ms: Callable[[], int]) -> ClockGuard:
    """Return a guard for a command. It knows the reading that was stored last."""
    stored, is_shared = installation.get(connection, PURGE_CLOCK), connection.dialect.name == "postgresql"
    return ClockGuard(clock_ms, read_uptime, stored, follows_database=is_shared, is_command=True)


def read_trusted_time(connection: Connection, now: datetime) -> datetime:
    """Return the time `now` minus the size of the present step of the clock, as `ClockGuard.trusted_time` does. Commands use this
    function."""
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
    """Return a reading of the clock with the time `at`. Compare it with the earlier reading `before`, to find a step."""
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
    ahead = at - expected  # `ahead` is negative if the clock was set back.
    if ahead <= (_MAX_KNOWN_MS if before.found_at and before.at - _MAX_KNOWN_MS <= at else limit):
        return trusted
    if not before.found_at or ahead - before.ahead > limit or at < before.found_at - _MAX_KNOWN_MS:
        return ClockReading(at, at, ahead, *uptime)
    return ClockReading(at, before.found_at, ahead, *uptime) if at - before.found_at < _WAIT_MS else trusted


def _is_known(before: ClockReading, uptime: Uptime) -> bool:
    """Return whether it is known how much time has passed since the reading `before`."""
    return bool(uptime.boot) and uptime.boot == before.boot and uptime.passed_ms >= before.passed_ms


@cache
def _boot_id() -> str:
    """Return a text that identifies the start of this machine, or "" if the system has no such text."""
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
