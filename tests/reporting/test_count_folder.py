"""Tests of the background job that adds count deltas to the counts."""

from __future__ import annotations

import itertools
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from sqlalchemy import Connection, func, select, text
from structlog.testing import capture_logs

from shortener.ids import first_id_at
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import CountDelta
from shortener.reporting import count_folder, counts
from shortener.reporting.count_folder import CountFolder, limits
from shortener.reporting.delta_rows import read_events
from shortener.reporting.queues import read_queue_state
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.conftest import NOON

ENGINES: tuple[Literal["sqlite"], Literal["postgresql"]] = ("sqlite", "postgresql")
#: Each row has this number of origins, like a commit of clicks on messages of different campaigns.
ORIGINS = 10


def write_deltas(connection: Connection, rows: int, age: timedelta) -> None:
    """Write rows of count deltas with different origins that are `age` old at NOON."""
    first = first_id_at(to_ms(NOON - age))
    for row in range(first, first + rows):
        delta = CountDelta()
        for number in range(ORIGINS):
            delta.add_slots(1, 1, "clicks", (row - first) * ORIGINS + number, 0)
        count_deltas.append(connection, row, delta)


def rows_left(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(schema.count_deltas)) or 0


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the job's pauses in seconds. The pauses do not wait, and each transaction seems to take one second."""
    found: list[float] = []
    monkeypatch.setattr(count_folder, "time", SimpleNamespace(monotonic=itertools.count().__next__))

    async def pause(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr("shortener.reporting.count_folder.asyncio.sleep", pause)
    return found


async def test_the_job_adds_a_small_batch_of_recent_count_deltas_and_pauses_three_times_as_long(
    database: Database, pauses: list[float]
) -> None:
    await database.write(write_deltas, 5, timedelta(seconds=1))
    folder = CountFolder(database, lambda: NOON)
    left = []
    for _ in range(3):
        await folder.step()
        left.append(await database.read(rows_left))
    assert left == [3, 1, 0], "a batch has 20 origins; the three rows that are left after the first batch are merged"
    assert pauses == [3.0, 3.0, 3.0], "it pauses after two full batches and a merge, and not after the third batch"
    assert await folder.step() == 0


async def test_a_backlog_of_count_deltas_is_added_with_short_pauses_and_in_larger_batches_on_postgresql(
    database: Database, pauses: list[float]
) -> None:
    await database.write(write_deltas, 62, timedelta(milliseconds=10 * count_folder.MAX_AGE_MS))
    folder = CountFolder(database, lambda: NOON)
    left = []
    while await folder.step():
        left.append(await database.read(rows_left))
    if database.dialect == "postgresql":
        assert left == [60, 2, 2], "the first batch has 20 origins; the 60 rows become two, and the next batches have 200 origins"
    else:
        assert left == [60, *[2] * 24, *[1] * 5], "clicks wait for SQLite's writer, so each batch has 20 origins"
    assert pauses == [3.0] + [0.3] * len(left), "the age is known after the first batch; one pause follows the merge"
    assert await database.read(rows_left) == 0
    assert (await database.read(lambda connection: connection.execute(select(schema.counts.c.amount)).all())) == [(62 * ORIGINS,)]
    await database.write(write_deltas, 5, timedelta(seconds=1))
    await folder.step()
    assert await database.read(rows_left) == 3, "after the backlog the batches are small again"


def test_the_limits_of_a_batch_of_count_deltas_grow_with_the_age_of_the_oldest_row_up_to_a_maximum() -> None:
    rows, origins = counts.MAX_FOLD_ROWS, counts.MAX_FOLD_ORIGINS
    assert {limits(age, engine) for age in (-5, 0, 1000) for engine in ENGINES} == {(rows, origins, 3.0)}
    assert [limits(3000, engine) for engine in ENGINES] == [(3 * rows, origins, 1.0), (3 * rows, 3 * origins, 1.0)]
    assert [limits(10**9, engine) for engine in ENGINES] == [(10 * rows, origins, 0.3), (10 * rows, 10 * origins, 0.3)]


async def test_a_batch_of_count_deltas_that_fails_changes_nothing_and_is_added_by_the_next_run(
    database: Database, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.write(write_deltas, 3, timedelta(seconds=1))
    folder = CountFolder(database, lambda: NOON)

    def fail(*arguments: object) -> None:
        raise ValueError("the batch fails")

    with monkeypatch.context() as patch:
        patch.setattr("shortener.reporting.delta_rows.remove", fail)
        with pytest.raises(ValueError, match="fails"):
            await folder.step()
    assert await database.read(rows_left) == 3
    while await folder.step():
        pass
    assert (await database.read(lambda connection: connection.execute(select(schema.counts.c.amount)).all())) == [(3 * ORIGINS,)]


#: The content of the columns `data` and `origins` of rows that cannot be added to the counts.
DAMAGED = {
    "no JSON": ("[[1,1,", "[[1,0]]"),
    "an amount that is not a number": ('[[1,1,"clicks","x"]]', "[[1,0]]"),
    "origins of fewer entries": ('[[1,1,"clicks","1"]]', "[]"),
    "a metric that the database rejects": ('[[1,1,null,"1"]]', "[[1,0]]"),
    "a time slot that is too large for a column of PostgreSQL": (f'[[1,{2**63},"clicks","1"]]', "[[1,0]]"),
}


@pytest.mark.parametrize("damage", DAMAGED)
async def test_a_row_of_count_deltas_that_cannot_be_added_is_quarantined_and_the_rows_around_it_are_added(
    database: Database, pauses: list[float], damage: str
) -> None:
    if "PostgreSQL" in damage and database.dialect == "sqlite":
        pytest.skip("columns of SQLite have no such limit")

    def write_damaged_row(connection: Connection, row_id: int) -> None:
        statement = text("INSERT INTO tallies (id, data, origins) VALUES (:id, :data, :origins)")
        connection.execute(statement, dict(zip(("id", "data", "origins"), (row_id, *DAMAGED[damage]), strict=True)))

    def amounts(connection: Connection) -> list[int]:
        return [int(amount) for amount in connection.scalars(select(schema.counts.c.amount))]

    bad = first_id_at(to_ms(NOON - timedelta(seconds=2)))
    await database.write(write_deltas, 1, timedelta(seconds=3))
    await database.write(write_damaged_row, bad)
    await database.write(write_deltas, 30, timedelta(seconds=1))
    folder = CountFolder(database, lambda: NOON)
    with capture_logs() as logs:
        failures = await run_until_all_are_added(folder)
    assert failures <= 1, "only the run that adds the row together with others fails"
    assert [(line["event"], line["row"], line["log_level"]) for line in logs if "row" in line] == [
        ("count_deltas_quarantined", bad, "error")
    ]
    assert await database.read(amounts) == [31 * ORIGINS]
    assert (await database.read(ids_left)) == [-bad], "the row is kept"
    assert await run_until_all_are_added(folder) == 0
    assert (await database.read(read_queue_state, Settings(), NOON)).count_deltas_quarantined == 1

    with capture_logs() as logs:
        await run_until_all_are_added(CountFolder(database, lambda: NOON))
    assert [line["row"] for line in logs if "row" in line] == [bad], "a process that starts tries the row again"
    assert (await database.read(ids_left)) == [-bad]
    await database.write(
        lambda connection: connection.execute(text("UPDATE tallies SET data = '[[1,1,\"clicks\",\"7\"]]', origins = '[[1,0]]'"))
    )
    assert await run_until_all_are_added(CountFolder(database, lambda: NOON)) == 0
    assert await database.read(amounts) == [31 * ORIGINS + 7], "a row that was corrected is added"
    assert (await database.read(ids_left)) == []


async def run_until_all_are_added(folder: CountFolder) -> int:
    """Run the job until it finds no more rows. Return how many runs failed."""
    failures = 0
    while True:
        try:
            if not await folder.step():
                return failures
        except Exception:
            failures += 1
            assert failures < 5


def ids_left(connection: Connection) -> list[int]:
    return list(connection.scalars(select(schema.count_deltas.c.id)))


async def test_a_damaged_row_of_count_deltas_that_is_reached_by_a_merge_blocks_no_row_and_no_report(
    database: Database, pauses: list[float]
) -> None:
    await database.write(write_deltas, 30, timedelta(seconds=3))
    bad = first_id_at(to_ms(NOON - timedelta(seconds=2)))
    await database.write(lambda c: c.execute(text("INSERT INTO tallies VALUES (:id, '[[1,', '[]')"), {"id": bad}))
    assert len((await database.read(read_events, 100))[0]) == 31, "a report does not fail before the row is quarantined"
    folder = CountFolder(database, lambda: NOON)
    with capture_logs() as logs:
        assert await run_until_all_are_added(folder) <= 1
    events = [line["event"] for line in logs]
    assert events.count("count_deltas_not_merged") == 1
    assert events.count("count_deltas_quarantined") == 1
    assert await database.read(ids_left) == [-bad]


async def test_an_older_damaged_row_that_another_process_releases_meanwhile_does_not_quarantine_a_healthy_row(
    database: Database, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.write(write_deltas, 3, timedelta(seconds=1))
    healthy = await database.read(ids_left)
    folder = CountFolder(database, lambda: NOON)
    with monkeypatch.context() as patch:
        patch.setattr("shortener.reporting.delta_rows.remove", None)
        with pytest.raises(TypeError):
            await folder.step()
    bad = first_id_at(to_ms(NOON - timedelta(seconds=2)))
    write, is_released = database.write, False

    async def release_first(transact: Any, *arguments: Any) -> Any:
        nonlocal is_released
        if not is_released:
            is_released = True
            await write(lambda c: c.execute(text("INSERT INTO tallies VALUES (:id, '[[1,', '[]')"), {"id": bad}))
        return await write(transact, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(database, "write_later", release_first)
        await folder.step()
    assert sorted(await database.read(ids_left)) == [bad, *healthy[1:]]
    await run_until_all_are_added(folder)
    assert await database.read(ids_left) == [-bad]
