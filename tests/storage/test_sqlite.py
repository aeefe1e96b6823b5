"""Tests of SQLite reads: how many run at once, and how the service ends a read that lasts too long or that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from sqlalchemy import Connection
from structlog.testing import capture_logs

from shortener.errors import StoreUnavailable
from shortener.storage import checkpoint, sqlite_readers
from shortener.storage import sqlite as module
from shortener.storage.sqlite import SqliteDatabase
from shortener.storage.sqlite_readers import MAX_READERS
from tests.storage.sqlite_load import add, commit_until, serving


def count_for_ever(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT count(*) FROM t").fetchall()  # From this query on, the transaction reads a snapshot.
    connection.exec_driver_sql(
        "WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c) SELECT sum(n) FROM c",
    ).fetchall()


def count_rows(connection: Connection) -> int:
    number: int = connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one()
    return number


async def test_a_read_that_lasts_too_long_raises_store_unavailable_and_its_connection_stays_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_READ_SECONDS", 0.2)
    async with serving(tmp_path / "shortener.db") as database:
        for _ in range(5):  # more reads than the pool has connections
            with pytest.raises(StoreUnavailable, match="interrupted"):
                await database.read(count_for_ever)
        assert await database.read(count_rows) == 0


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` is true."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_reads_one_after_the_other_use_one_thread_and_reads_at_once_use_several(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        for _ in range(20):
            await database.read(count_rows)
        assert len(database._readers._threads) == 1
        meeting = threading.Barrier(MAX_READERS)

        def meet(connection: Connection) -> int:
            meeting.wait(20)
            return count_rows(connection)

        assert await asyncio.gather(*(database.read(meet) for _ in range(MAX_READERS))) == [0] * MAX_READERS
        assert await asyncio.gather(*(database.read(count_rows) for _ in range(100))) == [0] * 100
        assert len(database._readers._threads) == MAX_READERS


async def test_a_read_that_waits_too_long_for_a_thread_raises_store_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_readers, "MAX_WAIT_SECONDS", 0.2)
    async with serving(tmp_path / "shortener.db") as database:
        end = threading.Event()

        def wait(connection: Connection) -> int:
            end.wait(20)
            return count_rows(connection)

        running = [asyncio.create_task(database.read(wait)) for _ in range(MAX_READERS)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="8 reads of the database have been running"):
            await database.read(count_rows)
        end.set()
        assert await asyncio.gather(*running) == [0] * MAX_READERS
        assert await database.read(count_rows) == 0


async def test_a_read_whose_caller_is_cancelled_ends_and_leaves_its_thread_for_other_reads(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        readers = database._readers
        reads = [asyncio.create_task(database.read(count_for_ever)) for _ in range(MAX_READERS + 2)]
        await until(lambda: len(readers._limits) == MAX_READERS)
        for read in reads:
            read.cancel()
        assert all(isinstance(result, asyncio.CancelledError) for result in await asyncio.gather(*reads, return_exceptions=True))
        await until(lambda: readers._unfinished == 0)
        assert await database.read(count_rows) == 0


async def test_closing_the_database_ends_the_reads_that_run(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        reads = [asyncio.create_task(database.read(count_for_ever)) for _ in range(MAX_READERS + 2)]
        await until(lambda: len(database._readers._limits) == MAX_READERS)
        await database.close()
        for result in await asyncio.gather(*reads, return_exceptions=True):
            assert isinstance(result, StoreUnavailable)
        with pytest.raises(StoreUnavailable, match="closed"):
            await database.read(count_rows)


async def test_a_read_that_fails_leaves_a_connection_that_reads_the_newest_rows(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        for statement in ("SELECT n FROM other", "DELETE FROM t"):
            with pytest.raises(Exception, match=r"no such table|readonly"):
                await database.read(lambda connection, sql: connection.exec_driver_sql(sql), statement)
            await database.write(add, 1)
        assert await database.read(count_rows) == 2
        assert len(database._readers._threads) == 1


async def test_a_read_runs_in_the_context_of_its_caller_so_that_log_lines_contain_the_request_id(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        with structlog.contextvars.bound_contextvars(request_id="caller-7"):
            found = await database.read(lambda connection: structlog.contextvars.get_contextvars())
    assert found == {"request_id": "caller-7"}


async def test_a_long_database_read_of_a_command_has_no_time_limit(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db"):
        command = SqliteDatabase(tmp_path / "shortener.db", owner=False)
        assert command._readers._max_seconds is None
        assert await command.read(count_rows) == 0
        await command.close()


async def test_sqlite_starts_the_wal_file_at_its_beginning_again_after_a_too_long_read_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_READ_SECONDS", 0.5)
    monkeypatch.setattr(checkpoint, "LONG_WAL_FRAMES", 100)
    monkeypatch.setattr(checkpoint, "DEFAULT_ROWS", 100)
    wal = tmp_path / "shortener.db-wal"
    async with serving(tmp_path / "shortener.db") as database:

        def salt() -> bytes:
            with wal.open("rb") as file:
                return file.read(24)[16:]  # The salt changes when SQLite starts the WAL file again.

        await commit_until(database, lambda: wal.stat().st_size > 0)
        reading = asyncio.create_task(database.read(count_for_ever))
        await commit_until(database, reading.done, rows=20)
        with pytest.raises(StoreUnavailable):
            await reading
        at_end = salt()
        await commit_until(database, lambda: salt() != at_end, rows=20)


async def test_a_wal_file_that_grows_because_of_a_reader_in_another_process_is_logged_once_per_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "DEFAULT_ROWS", 100)
    monkeypatch.setattr(checkpoint, "REPORTED_WAL_FRAMES", 300)
    file = tmp_path / "shortener.db"
    async with serving(file) as database:
        await database.write(add, 10)
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as reader, capture_logs() as logs:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchall()
            size = file.with_name(file.name + "-wal")

            def is_long() -> bool:
                return size.stat().st_size > 2_000_000

            await commit_until(database, is_long, rows=50)
            await commit_until(database, lambda: any(line["event"] == "wal_is_long" for line in logs), rows=50)
    (line,) = [line for line in logs if line["event"] == "wal_is_long"]
    assert line["bytes"] > 1_000_000
    assert line["copied"] < line["frames"]
