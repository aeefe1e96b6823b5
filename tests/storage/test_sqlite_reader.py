"""Tests of the connections of SQLite readers: the number of thread switches, results of any size, errors and cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from shortener.errors import StoreUnavailable
from shortener.storage.sqlite_reader import FIRST_ROWS, connect_reader
from tests.servers import PATIENCE
from tests.storage.sqlite_load import count_rows, serving

#: A query that never ends, unless it is interrupted.
ENDLESS = "WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c) SELECT sum(n) FROM c"
#: A query that returns as many rows as its parameter says.
NUMBERS = "WITH RECURSIVE c(n) AS (SELECT 1 WHERE :rows > 0 UNION ALL SELECT n + 1 FROM c WHERE n < :rows) SELECT n FROM c"
SIZES = (0, 1, FIRST_ROWS - 1, FIRST_ROWS, FIRST_ROWS + 1, 3 * FIRST_ROWS)


async def test_each_statement_of_a_read_needs_one_thread_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def query(connection: Connection) -> list[Any]:
        return [connection.execute(text("SELECT :n + 1"), {"n": n}).scalar_one() for n in (6, 7)]

    async with serving(tmp_path / "shortener.db") as database:
        assert await database.read(query) == [7, 8]
        loop = asyncio.get_running_loop()
        returns, schedule = [], loop.call_soon_threadsafe

        def count(*arguments: Any, **options: Any) -> asyncio.Handle:
            returns.append(arguments)
            return schedule(*arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        assert await database.read(query) == [7, 8]
        assert len(returns) == 2  # one switch back from the thread for each of two statements, and none for BEGIN and ROLLBACK


@pytest.mark.parametrize("rows", SIZES)
async def test_a_read_returns_all_rows_of_a_result_of_any_size(tmp_path: Path, rows: int) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        found = await database.read(lambda connection: connection.execute(text(NUMBERS), {"rows": rows}).scalars().all())
        assert found == list(range(1, rows + 1))
        streamed = [part async for part in database.stream(text(NUMBERS).bindparams(rows=rows), size=700)]
        assert [row.n for part in streamed for row in part] == found
        assert all(len(part) == 700 for part in streamed[:-1])


async def test_a_cursor_of_a_reader_fetches_one_row_or_some_rows_or_all_rows(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db"):
        connection = await connect_reader(tmp_path / "shortener.db")
        async with connection.cursor() as cursor:
            await cursor.execute(NUMBERS, {"rows": 2 * FIRST_ROWS})
            assert await cursor.fetchone() == (1,)
            assert [n for (n,) in await cursor.fetchmany(3)] == [2, 3, 4]
            assert [n for (n,) in await cursor.fetchall()] == list(range(5, 2 * FIRST_ROWS + 1))
            assert (await cursor.fetchone(), await cursor.fetchmany(3), await cursor.fetchall()) == (None, [], [])
        await connection.close()


async def test_the_read_after_a_stream_that_ended_early_sees_the_newest_data(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        for number in range(3):
            assert await database.read(count_rows) == number
            numbers = text(NUMBERS.replace("SELECT n FROM c", "SELECT n, (SELECT count(*) FROM t) FROM c"))
            stream: Any = database.stream(numbers.bindparams(rows=5 * FIRST_ROWS), size=10)
            await anext(stream)
            await stream.aclose()
            await database.write(lambda connection: connection.execute(text("INSERT INTO t (v) VALUES ('x')")).close())
            assert await database.read(count_rows) == number + 1


async def test_a_reader_that_stops_before_the_end_of_a_result_holds_no_snapshot(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        # The statement reads a table: without this, it would have no snapshot.
        numbers = text(NUMBERS.replace("SELECT n FROM c", "SELECT n, (SELECT count(*) FROM t) FROM c"))
        stream: Any = database.stream(numbers.bindparams(rows=5 * FIRST_ROWS), size=10)
        assert len(await anext(stream)) == 10
        await stream.aclose()
        with contextlib.closing(sqlite3.connect(tmp_path / "shortener.db", isolation_level=None)) as other:
            other.execute("INSERT INTO t (v) VALUES ('x')")
            (is_busy, _, _) = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not is_busy


async def test_the_statements_of_one_read_see_the_same_snapshot(tmp_path: Path) -> None:
    def query(connection: Connection) -> tuple[int, int]:
        before = count_rows(connection)
        with contextlib.closing(sqlite3.connect(tmp_path / "shortener.db", isolation_level=None)) as other:
            other.execute("INSERT INTO t (v) VALUES ('x')")
        return before, count_rows(connection)

    async with serving(tmp_path / "shortener.db") as database:
        assert await database.read(query) == (0, 0)
        assert await database.read(count_rows) == 1


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        with pytest.raises(StoreUnavailable, match="readonly"):
            await database.read(lambda connection: connection.exec_driver_sql("INSERT INTO t (v) VALUES ('x')"))
        assert await database.read(count_rows) == 0


async def test_a_failed_statement_raises_store_unavailable_and_its_connection_stays_usable(tmp_path: Path) -> None:
    def query(connection: Connection) -> None:
        for _ in range(2):
            with pytest.raises(OperationalError, match="no such table: missing") as raised:
                connection.execute(text("SELECT * FROM missing WHERE a = :a"), {"a": "+48600100200"})
            assert "+48600100200" not in str(raised.value)
        connection.exec_driver_sql("SELECT * FROM missing")

    async with serving(tmp_path / "shortener.db") as database:
        with pytest.raises(StoreUnavailable, match="no such table: missing"):
            await database.read(query)
        assert await database.read(count_rows) == 0


async def test_a_statement_on_a_connection_that_was_closed_raises_store_unavailable(tmp_path: Path) -> None:
    def query(connection: Connection) -> None:
        adapted: Any = connection.connection.dbapi_connection
        adapted.run_async(lambda driver: driver.close())
        count_rows(connection)

    async with serving(tmp_path / "shortener.db") as database:
        with pytest.raises(StoreUnavailable, match=r"(?i)connection"):
            await database.read(query)
        assert await database.read(count_rows) == 0


async def test_a_cancelled_read_interrupts_its_statement_and_its_connection_is_not_used_again(tmp_path: Path) -> None:
    began, connections = asyncio.Event(), []

    def query(connection: Connection) -> None:
        connections.append(connection.connection.driver_connection)
        began.set()
        connection.exec_driver_sql(ENDLESS)

    async with serving(tmp_path / "shortener.db") as database:
        reading = asyncio.create_task(database.read(query))
        await began.wait()
        await asyncio.sleep(0.05)
        reading.cancel()
        _, running = await asyncio.wait({reading}, timeout=PATIENCE)
        assert not running
        assert reading.cancelled()
        await database.read(lambda connection: connections.append(connection.connection.driver_connection))
        assert connections[0] is not connections[1]


@pytest.mark.parametrize("cancellations", [1, 2])
async def test_a_statement_that_waits_for_the_thread_never_runs_after_its_read_is_cancelled(
    tmp_path: Path, cancellations: int
) -> None:
    began, go_on, connections = asyncio.Event(), threading.Event(), []

    def query(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        connections.append(driver)
        driver._tx.put_nowait((None, lambda: go_on.wait(PATIENCE)))  # Occupy the thread, as on a machine under load.
        began.set()
        connection.exec_driver_sql(ENDLESS)

    async with serving(tmp_path / "shortener.db") as database:
        tasks = asyncio.all_tasks()
        reading = asyncio.create_task(database.read(query))
        await began.wait()
        for _ in range(cancellations):
            reading.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
        go_on.set()
        left = asyncio.all_tasks() - tasks  # these are the task that reads, and the task that closes its connection
        _, running = await asyncio.wait(left, timeout=PATIENCE)
        assert not running
        await asyncio.to_thread(connections[0]._thread.join, PATIENCE)
        assert not connections[0]._thread.is_alive()
