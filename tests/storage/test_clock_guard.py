"""Tests of the guard against a clock that moved far ahead, on both databases."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shortener.model import utcnow
from shortener.retention.purge import Purge
from shortener.settings import Settings
from shortener.storage.clock_guard import (
    LEASE_WAIT,
    MAX_UNKNOWN_STEP,
    PURGE_CLOCK,
    START_WAIT,
    WAIT_AFTER_STEP,
    ClockGuard,
    ClockStep,
    Uptime,
    find_step,
    note_run,
    read_guard,
)
from shortener.storage.database import Database
from shortener.storage.installation import get
from shortener.storage.types import to_iso, to_ms
from tests.conftest import NOON, Clock
from tests.machine import Machine

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


async def step_at(database: Database, now: datetime) -> ClockStep | None:
    """Store a run of the purge. Return the step of the clock that it finds, and check that `find_step` finds the same step."""
    step = await database.write(note_run, now)
    assert await database.read(find_step, now) == step
    return step


async def test_the_purge_never_waits_while_it_runs_at_least_once_in_two_years(database: Database) -> None:
    for day in (0, 1, 1, 3, 31, 400, 1130):
        assert await step_at(database, NOON + day * DAY) is None, day


async def test_the_purge_waits_a_day_after_the_clock_moved_far_ahead(database: Database) -> None:
    await step_at(database, NOON)
    ahead = NOON + 2000 * DAY
    assert await database.read(find_step, ahead) == ClockStep(2000 * DAY, ahead + WAIT_AFTER_STEP), (
        "the purge waits before the next run"
    )
    for hour in range(24):
        assert await step_at(database, ahead + hour * HOUR) == ClockStep(2000 * DAY, ahead + WAIT_AFTER_STEP), hour
    assert await step_at(database, ahead + WAIT_AFTER_STEP) is None
    assert await step_at(database, ahead + WAIT_AFTER_STEP + HOUR) is None


async def test_the_purge_continues_after_a_purge_by_command_has_trusted_the_clock(database: Database) -> None:
    ahead = NOON + 2000 * DAY
    for now in (NOON, ahead):
        await step_at(database, now)
    assert await database.write(note_run, ahead + HOUR, trusted=True) is None
    assert await step_at(database, ahead + 2 * HOUR) is None


async def test_the_purge_continues_at_once_after_the_clock_was_set_back(database: Database) -> None:
    for now in (NOON, NOON + 2000 * DAY):
        await step_at(database, now)
    assert await step_at(database, NOON + HOUR) is None
    assert await step_at(database, NOON + 2 * HOUR) is None
    assert await step_at(database, NOON + 2000 * DAY) is not None, "and it waits again after the next step"


async def test_an_installation_that_did_not_run_for_three_years_purges_a_day_later(database: Database) -> None:
    await step_at(database, NOON)
    assert await step_at(database, NOON + 1095 * DAY) is not None
    assert await step_at(database, NOON + 1096 * DAY) is None


async def test_a_second_step_of_the_clock_starts_the_wait_again(database: Database) -> None:
    for now in (NOON, NOON + 800 * DAY):
        await step_at(database, now)
    second = NOON + 800 * DAY + MAX_UNKNOWN_STEP + HOUR
    assert await step_at(database, second) == ClockStep(second - NOON, second + WAIT_AFTER_STEP)


async def test_the_purge_still_waits_if_the_clock_was_set_back_but_not_far_enough(database: Database) -> None:
    for now in (NOON, NOON + 2000 * DAY):
        await step_at(database, now)
    second = NOON + 800 * DAY
    assert await step_at(database, second) == ClockStep(800 * DAY, second + WAIT_AFTER_STEP)
    assert await step_at(database, second + DAY) is None


async def test_the_wait_does_not_end_with_the_run_of_another_process_whose_clock_is_a_little_behind(database: Database) -> None:
    await step_at(database, NOON)
    ahead = NOON + 800 * DAY
    for seconds in (0, -2, 0, -2, 3600, 3598):
        assert await step_at(database, ahead + timedelta(seconds=seconds)) is not None, seconds
    assert await step_at(database, ahead + WAIT_AFTER_STEP) is None


async def test_a_process_with_a_right_clock_purges_and_another_one_with_a_wrong_clock_waits(database: Database) -> None:
    await step_at(database, NOON)
    for hour in range(48):
        assert await step_at(database, NOON + hour * HOUR) is None
        assert await step_at(database, NOON + 800 * DAY + hour * HOUR) is not None


@pytest.fixture
def machine(clock: Clock) -> Machine:
    return Machine(clock)


@pytest.fixture
def guard(machine: Machine) -> ClockGuard:
    guard = machine.guard()
    assert guard.ahead() == timedelta()
    return guard


def test_no_time_that_passes_is_a_step(machine: Machine, guard: ClockGuard) -> None:
    for time in (HOUR, 30 * DAY, 3000 * DAY):
        machine.run(time)
        assert guard.ahead() == timedelta()
        assert guard.trusted_ms(to_ms(machine.clock())) == to_ms(machine.clock())


def test_a_clock_that_moves_ahead_of_the_time_that_passed_is_trusted_a_day_later(machine: Machine, guard: ClockGuard) -> None:
    machine.run(DAY)
    before = machine.clock()
    machine.clock.now += 30 * HOUR
    with capture_logs() as logged:
        assert guard.ahead() == 30 * HOUR
    until = to_iso(machine.clock() + WAIT_AFTER_STEP)
    assert logged == [{"event": "clock_moved_ahead", "log_level": "error", "hours": 30, "until": until}]
    assert guard.trusted_ms(to_ms(machine.clock())) == to_ms(before)
    assert guard.trusted_ms(to_ms(before)) == to_ms(before), "a time before the step is right"
    machine.run(23 * HOUR)
    assert guard.ahead() == 30 * HOUR
    machine.run(HOUR)
    assert guard.ahead() == timedelta()


def test_a_correction_of_less_than_an_hour_is_no_step(machine: Machine, guard: ClockGuard) -> None:
    for _ in range(3):
        machine.clock.now += timedelta(minutes=59)
        assert guard.ahead() == timedelta()


def test_the_wait_ends_when_the_clock_is_set_back(machine: Machine, guard: ClockGuard) -> None:
    machine.clock.now += 30 * HOUR
    assert guard.ahead() == 30 * HOUR
    machine.run(HOUR)
    machine.clock.now -= 20 * HOUR
    assert guard.ahead() == 10 * HOUR, "not far enough"
    machine.clock.now -= 10 * HOUR
    assert guard.ahead() == timedelta()
    machine.clock.now -= 1000 * DAY
    assert guard.ahead() == timedelta()


async def test_a_process_that_was_restarted_notices_a_step(database: Database, machine: Machine, guard: ClockGuard) -> None:
    await database.write(note_run, machine.clock(), guard)
    machine.run(100 * DAY)  # no process runs
    assert machine.guard(await stored(database)).ahead() == timedelta()
    machine.clock.now += 30 * DAY
    assert machine.guard(await stored(database)).ahead() == 30 * DAY
    assert await database.read(find_step, machine.clock(), machine.uptime()) is not None


async def test_a_process_that_was_restarted_continues_the_wait(database: Database, machine: Machine, guard: ClockGuard) -> None:
    machine.clock.now += 30 * DAY
    assert await database.write(note_run, machine.clock(), guard) is not None
    machine.run(12 * HOUR)
    restarted = machine.guard(await stored(database))
    assert restarted.ahead() == 30 * DAY
    machine.reboot()
    machine.clock.now += 6 * HOUR
    restarted = machine.guard(await stored(database))
    assert restarted.ahead() == 30 * DAY
    machine.run(6 * HOUR)
    assert restarted.ahead() == timedelta()


async def test_a_reboot_is_no_step(database: Database, machine: Machine, guard: ClockGuard) -> None:
    await database.write(note_run, machine.clock(), guard)
    machine.reboot()
    machine.clock.now += 30 * DAY
    assert machine.guard(await stored(database)).ahead() == timedelta()


async def test_the_wait_ends_when_a_person_confirms_the_clock(database: Database, machine: Machine, guard: ClockGuard) -> None:
    await database.write(note_run, machine.clock(), guard)
    machine.clock.now += 30 * DAY
    assert await database.write(note_run, machine.clock(), guard) is not None
    machine.run(HOUR)
    assert await database.write(note_run, machine.clock(), trusted=True) is None
    machine.run(timedelta(seconds=60))
    assert await database.write(note_run, machine.clock(), guard) is None
    assert guard.ahead() == timedelta()


async def test_all_processes_wait_if_one_has_found_a_step(database: Database, machine: Machine, guard: ClockGuard) -> None:
    other = ClockGuard(lambda: to_ms(machine.clock()), lambda: Uptime("other", 5))
    machine.clock.now += 30 * DAY
    assert await database.write(note_run, machine.clock(), guard) is not None
    assert await database.write(note_run, machine.clock(), other) is not None
    assert other.ahead() == 30 * DAY
    assert guard.ahead() == 30 * DAY


async def test_a_process_that_starts_on_another_host_soon_after_a_step_waits_too(
    database: Database, machine: Machine, guard: ClockGuard
) -> None:
    await database.write(note_run, machine.clock(), guard)
    machine.clock.now += 30 * DAY
    await guard.store_new_step(database)
    machine.run(timedelta(seconds=5))
    other = ClockGuard(lambda: to_ms(machine.clock()), lambda: Uptime("other", 5), await stored(database))
    assert other.ahead() == 30 * DAY
    assert await database.read(other.leases_wait)
    for one in (other, guard):
        assert await database.write(note_run, machine.clock(), one) is not None


async def test_a_step_is_stored_once(database: Database, machine: Machine, guard: ClockGuard) -> None:
    await guard.store_new_step(database)
    assert await stored(database) is None
    machine.clock.now += 30 * DAY
    await guard.store_new_step(database)
    first = await stored(database)
    machine.run(HOUR)
    await guard.store_new_step(database)
    assert await stored(database) == first
    machine.clock.now += 2 * HOUR
    await guard.store_new_step(database)
    assert await stored(database) != first


async def test_the_confirmation_of_a_clock_is_not_overwritten(database: Database, machine: Machine, guard: ClockGuard) -> None:
    machine.clock.now += 30 * DAY
    assert guard.ahead() == 30 * DAY
    machine.run(timedelta(seconds=5))
    await database.write(note_run, machine.clock(), trusted=True)
    await guard.store_new_step(database)
    assert guard.ahead() == timedelta()


@pytest.mark.parametrize("step", [timedelta(seconds=6), 30 * HOUR])
async def test_no_lease_ends_for_minutes_after_a_step(
    database: Database, machine: Machine, guard: ClockGuard, step: timedelta
) -> None:
    assert not await database.read(guard.leases_wait)
    machine.clock.now += step
    machine.run(timedelta(seconds=1))
    assert await database.read(guard.leases_wait)
    machine.clock.now -= step / 2
    assert await database.read(guard.leases_wait)
    machine.run(LEASE_WAIT - timedelta(seconds=1))
    assert await database.read(guard.leases_wait)
    machine.run(timedelta(seconds=1))
    assert not await database.read(guard.leases_wait)


async def test_leases_end_normally_after_a_step_of_seconds_or_a_step_back(
    database: Database, machine: Machine, guard: ClockGuard
) -> None:
    for step in (timedelta(seconds=4), -30 * HOUR):
        machine.clock.now += step
        assert not await database.read(guard.leases_wait)
        machine.run(HOUR)
        assert not await database.read(guard.leases_wait)


async def test_a_process_that_was_restarted_after_a_step_of_minutes_ends_no_lease(
    database: Database, machine: Machine, guard: ClockGuard
) -> None:
    await database.write(note_run, machine.clock(), guard)
    machine.run(HOUR)
    machine.clock.now += timedelta(minutes=5)
    assert await database.read(machine.guard(await stored(database)).leases_wait)


class SharedMachine(Machine):
    """A machine with a process that shares a PostgreSQL database. The clock of the process is behind the clock of the database by
    `behind`."""

    behind = timedelta()

    def guard(self, stored: str | None = None) -> ClockGuard:
        return ClockGuard(lambda: to_ms(utcnow() - self.behind), self.uptime, stored, follows_database=True)


@pytest.fixture
def shared(database: Database, clock: Clock) -> SharedMachine:
    if database.dialect == "sqlite":
        pytest.skip("one process uses a SQLite database")
    return SharedMachine(clock)


@pytest.mark.parametrize("minutes", [-5, 5])
async def test_no_lease_ends_until_a_process_follows_a_step_of_the_clock_of_the_database(
    database: Database, shared: SharedMachine, minutes: int
) -> None:
    """If the clock of the database was set back, new leases seem to have ended in a process that does not follow the clock
    yet."""
    behind = timedelta(minutes=minutes)
    guard = ClockGuard(lambda: to_ms(utcnow() - behind), follows_database=True)
    assert await database.read(guard.leases_wait)
    behind = timedelta()
    assert not await database.read(guard.leases_wait)


async def test_no_lease_ends_shortly_after_the_start_of_a_process(database: Database, shared: SharedMachine) -> None:
    """The clock may have made a step shortly before the start, and the other processes may not have noticed it yet."""
    guard = shared.guard()
    assert await database.read(guard.leases_wait)
    shared.passed += START_WAIT - timedelta(seconds=1)
    await guard.store_new_step(database)
    assert await database.read(guard.leases_wait)
    shared.passed += timedelta(seconds=1)
    assert await database.read(guard.leases_wait)
    await guard.store_new_step(database)
    assert not await database.read(guard.leases_wait)
    command = await database.read(read_guard, lambda: to_ms(utcnow()))
    assert not await database.read(command.leases_wait), "a command waits for nothing"


async def test_no_lease_ends_after_another_process_has_found_a_step_of_seconds(
    database: Database, clock: Clock, shared: SharedMachine
) -> None:
    found, started_later = shared.guard(), SharedMachine(clock)
    other, command = started_later.guard(), await database.read(read_guard, lambda: to_ms(utcnow()))
    started_later.passed += START_WAIT
    await other.store_new_step(database)
    shared.behind = timedelta(seconds=30)
    found.check()
    await found.store_new_step(database)
    assert not await database.read(other.leases_wait)
    shared.behind = timedelta()
    await found.store_new_step(database)
    for one in (other, command):
        assert await database.read(one.leases_wait)


async def test_a_process_that_starts_after_a_step_that_nobody_has_found_yet_waits_until_another_process_finds_it(
    database: Database, clock: Clock, shared: SharedMachine
) -> None:
    """The other process runs on another host. Before the step, the clock of the database was behind by 30 hours."""
    shared.behind = 30 * HOUR
    running = shared.guard()
    running.check()
    started_later = SharedMachine(clock)
    started_later.boots = 7
    started = started_later.guard()
    purge = Purge(database, Settings(data_dir=Path("/nowhere")), started)
    assert await purge.step(utcnow()) == 0
    assert await stored(database) is None, "the reading of a process that trusts a wrong clock would mislead the others"
    assert started.ahead() > 30 * HOUR
    shared.behind = timedelta()
    await running.store_new_step(database)
    started_later.passed += START_WAIT
    await started.store_new_step(database)
    assert abs(started.ahead() - 30 * HOUR) < timedelta(minutes=1)
    with capture_logs() as logs:
        assert await purge.step(utcnow()) == 0
    assert "purge_waits" in [line["event"] for line in logs]


async def stored(database: Database) -> str | None:
    return await database.read(get, PURGE_CLOCK)
