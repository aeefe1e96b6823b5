"""Tests of the guard of the purge against a clock that is far ahead, on both databases."""

from __future__ import annotations

from datetime import datetime, timedelta

from shortener.retention.clock_guard import MAX_STEP, WAIT_AFTER_STEP, ClockStep, find_step, note_run
from shortener.storage.database import Database
from tests.conftest import NOON

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


async def step_at(database: Database, now: datetime) -> ClockStep | None:
    """Begin a run of the purge. Return the step of the clock that it finds. Check that `find_step` returns the same step."""
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
    second = NOON + 800 * DAY + MAX_STEP + HOUR
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
