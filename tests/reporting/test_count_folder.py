"""Tests of the background job that adds count deltas to the counts."""

from __future__ import annotations

import asyncio
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
from shortener.reporting import count_folder, counts, delta_rows
from shortener.reporting.count_folder import CountFolder, limits
from shortener.reporting.delta_rows import read_events
from shortener.reporting.queues import read_queue_state
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.conftest import NOON, MakeService
from tests.servers import PATIENCE

ENGINES: tuple[Literal["sqlite"], Literal["postgresql"]] = ("sqlite", "postgresql")
#: The number of origins of each row. In the service, a row also has several origins if one commit contains clicks on messages of
#: different campaigns.
ORIGINS = 10


def write_deltas(connection: Connection, rows: int, age: timedelta) -> None:
    """Write rows of count deltas with different origins. At NOON, the rows have the age `age`."""
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
    """The pauses of the job in seconds. The job does not really pause, and each transaction seems to take one second."""
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


async def test_count_deltas_are_merged_and_added_as_bulk_work_for_which_clicks_do_not_wait(
    database: Database, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.write(write_deltas, 5, timedelta(seconds=1))
    folder = CountFolder(database, lambda: NOON)
    # the first step of a process ends the quarantine of rows, and clicks wait for this transaction; the next steps are examined
    # below
    await folder.step()

    async def refuse(*arguments: object) -> None:
        raise AssertionError("a click would wait for this transaction")

    with monkeypatch.context() as patch:
        patch.setattr(database, "write", refuse)
        await folder.step()
        await folder.step()
    assert await database.read(rows_left) == 0


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


#: The columns `data` and `origins` of unreadable rows, as SQL.
DAMAGED = {
    "no JSON": "'[[1,1,', '[[1,0]]'",
    "an amount that is not a number": """'[[1,1,"clicks","x"]]', '[[1,0]]'""",
    "an infinite amount": """'[[1,1,"value:EUR","Infinity"]]', '[[1,0]]'""",
    "a metric that the database rejects": """'[[1,1,null,"1"]]', '[[1,0]]'""",
    "a time slot that is too large for a column of PostgreSQL": f"""'[[1,{2**63},"clicks","1"]]', '[[1,0]]'""",
}
#: More unreadable values of the columns `data` and `origins`. Only SQLite can store them.
DAMAGED_SQLITE = {
    "data with invalid UTF-8": "CAST(x'5b5b312c312c22ff222c2231225d5d' AS TEXT), '[[1,0]]'",
    "origins with invalid UTF-8": """'[[1,1,"clicks","1"]]', CAST(x'ff' AS TEXT)""",
    "data that is a BLOB": "x'ff00', '[[1,0]]'",
    "origins that are a BLOB": """'[[1,1,"clicks","1"]]', x'00'""",
    "data that is a number": "7.5, '[[1,0]]'",
}


@pytest.mark.parametrize("damage", DAMAGED | DAMAGED_SQLITE)
async def test_an_unreadable_row_of_count_deltas_is_quarantined_and_the_rows_around_it_are_added(
    database: Database, pauses: list[float], damage: str
) -> None:
    if damage in DAMAGED_SQLITE and database.dialect != "sqlite":
        pytest.skip("the columns of PostgreSQL contain only text in UTF-8")

    def amounts(connection: Connection) -> list[int]:
        return [int(amount) for amount in connection.scalars(select(schema.counts.c.amount))]

    bad = first_id_at(to_ms(NOON - timedelta(seconds=2)))
    await database.write(write_deltas, 1, timedelta(seconds=3))
    await database.write(write_row, bad, (DAMAGED | DAMAGED_SQLITE)[damage])
    await database.write(write_deltas, 30, timedelta(seconds=1))
    pending = await database.read(read_events, 100)
    assert (len(pending.ids), pending.is_readable) == (32, False), "a report does not fail before the row is quarantined"
    assert sum(pending.amounts.values()) == 31 * ORIGINS
    folder = CountFolder(database, lambda: NOON)
    with capture_logs() as logs:
        await run_until_all_are_added(folder)
    assert [(line["event"], line["row"], line["log_level"]) for line in logs] == [("count_deltas_quarantined", bad, "error")]
    assert logs[0]["reason"]
    assert await database.read(amounts) == [31 * ORIGINS]
    assert (await database.read(ids_left)) == [-bad], "the row is kept"
    await run_until_all_are_added(folder)
    assert (await database.read(read_queue_state, Settings(), NOON)).count_deltas_quarantined == 1

    with capture_logs() as logs:
        await run_until_all_are_added(CountFolder(database, lambda: NOON))
    assert [line["row"] for line in logs] == [bad], "a process that starts tries the row again"
    assert (await database.read(ids_left)) == [-bad]
    await database.write(
        lambda connection: connection.execute(text("UPDATE tallies SET data = '[[1,1,\"clicks\",\"7\"]]', origins = '[[1,0]]'"))
    )
    await run_until_all_are_added(CountFolder(database, lambda: NOON))
    assert await database.read(amounts) == [31 * ORIGINS + 7], "a row that was corrected is added"
    assert (await database.read(ids_left)) == []


def write_row(connection: Connection, row_id: int, columns: str) -> None:
    """Write a row of count deltas. `columns` contains the values of its columns `data` and `origins` as SQL."""
    connection.exec_driver_sql(f"INSERT INTO tallies (id, data, origins) VALUES ({row_id}, {columns})")


async def run_until_all_are_added(folder: CountFolder) -> None:
    """Run the job until it finds no more rows."""
    while await folder.step():
        pass


def ids_left(connection: Connection) -> list[int]:
    return list(connection.scalars(select(schema.count_deltas.c.id)))


async def test_an_unreadable_row_of_count_deltas_does_not_prevent_a_merge_of_the_rows_around_it(
    database: Database, pauses: list[float]
) -> None:
    await database.write(write_deltas, 30, timedelta(seconds=3))
    bad = first_id_at(to_ms(NOON - timedelta(seconds=2)))
    await database.write(write_row, bad, "'[[1,', '[]'")
    await database.write(write_deltas, 2, timedelta(seconds=1))
    await database.write(counts.merge)
    assert await database.read(rows_left) == 2, "the other rows became one"
    await run_until_all_are_added(CountFolder(database, lambda: NOON))
    assert await database.read(ids_left) == [-bad]


@pytest.mark.parametrize("error", [MemoryError, ValueError, ZeroDivisionError])
async def test_an_error_that_is_not_in_the_content_of_a_row_quarantines_no_row_however_often_it_occurs(
    database: Database, pauses: list[float], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    await database.write(write_deltas, 3, timedelta(seconds=1))
    healthy = await database.read(ids_left)
    folder = CountFolder(database, lambda: NOON)

    def fail(*arguments: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("shortener.reporting.rollups.add", fail)
        for _ in range(5):
            with pytest.raises(error):
                await folder.step()
    assert await database.read(ids_left) == healthy
    await run_until_all_are_added(folder)
    assert await database.read(rows_left) == 0


async def test_the_job_fails_and_is_repeated_after_its_interval_while_a_bug_prevents_the_addition_of_count_deltas(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await make_service()
    await service.database.write(write_deltas, 1, timedelta(seconds=1))
    is_mended = asyncio.Event()
    job, remove = service.jobs.table["counts"], delta_rows.remove

    def fail(*arguments: Any) -> None:
        if not is_mended.is_set():
            raise ZeroDivisionError
        remove(*arguments)

    monkeypatch.setattr(delta_rows, "remove", fail)
    monkeypatch.setattr(job, "interval", 0.001)
    with capture_logs() as logs:
        service.jobs.start()
        async with asyncio.timeout(PATIENCE):
            while job.failures < 3:
                await asyncio.sleep(0.001)
            is_mended.set()
            while await service.database.read(rows_left):
                await asyncio.sleep(0.001)
    assert [line["job"] for line in logs if line["event"] == "job_failed"][:3] == ["counts"] * 3
    assert not [line for line in logs if line["event"] == "count_deltas_quarantined"]
    assert (await service.database.read(lambda connection: connection.scalar(select(schema.counts.c.amount)))) == ORIGINS
