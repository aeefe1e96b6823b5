"""Tests of SQLite: the order of transactions, and reads that take too long. The service interrupts such reads, so that the WAL
can restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection
from structlog.testing import capture_logs

from shortener.errors import StoreUnavailable
from shortener.storage import checkpoint
from shortener.storage import sqlite as module
from shortener.storage.sqlite import SqliteDatabase
from tests.servers import PATIENCE
from tests.storage.sqlite_load import add, commit_until, count_rows, serving


def count_for_ever(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT count(*) FROM t").fetchall()  # From this query on, the transaction uses a snapshot.
    connection.exec_driver_sql(
        "WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c) SELECT sum(n) FROM c",
    ).fetchall()


async def test_a_read_that_lasts_too_long_raises_store_unavailable_and_its_connection_stays_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_READ_SECONDS", 0.2)
    async with serving(tmp_path / "shortener.db") as database:
        for _ in range(5):  # the pool has fewer connections, so a read uses an interrupted one
            with pytest.raises(StoreUnavailable, match="interrupted"):
                await database.read(count_for_ever)
        assert await database.read(count_rows) == 0


async def test_a_sqlite_database_that_is_opened_read_and_closed_starts_three_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, start = [], threading.Thread.start

    def remember(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", remember)
    async with serving(tmp_path / "shortener.db") as database:
        assert await database.read(count_rows) == 0
    assert len(started) == 3  # they are the writer, the checkpoint thread and the thread of one reader
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_close_ends_although_the_writer_thread_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: checkpoint.Checkpointer) -> None:
        stop(self)
        raise OSError("the last step of the thread failed")

    stop = checkpoint.Checkpointer.stop
    monkeypatch.setattr(checkpoint.Checkpointer, "stop", fail)
    async with asyncio.timeout(PATIENCE), serving(tmp_path / "shortener.db") as database:
        assert await database.read(count_rows) == 0


async def test_a_long_database_read_of_a_command_has_no_time_limit(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db"):
        command = SqliteDatabase(tmp_path / "shortener.db", owner=False)
        assert command._max_read_seconds is None
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
                return file.read(24)[16:]  # SQLite changes the salt when it restarts the WAL.

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


@pytest.mark.parametrize("first", ["CLICK", "rewrite"])
async def test_at_most_one_transaction_of_bulk_work_runs_while_other_transactions_wait(tmp_path: Path, first: str) -> None:
    order: list[str] = []
    has_begun, may_end = threading.Event(), threading.Event()

    def block(connection: Connection) -> None:
        has_begun.set()
        may_end.wait(PATIENCE)

    async with serving(tmp_path / "shortener.db") as database:

        def write(name: str, transact: Callable[[Connection], None]) -> asyncio.Task[None]:
            """Begin a transaction. A name in lower case means a transaction of bulk work."""
            return asyncio.create_task((database.write if name.isupper() else database.write_later)(transact))

        tasks = [write(first, block)]
        await asyncio.to_thread(has_begun.wait, PATIENCE)
        for name in ["purge", "fold", "CLICK", "CLAIM", "fan-out", "REPORT"]:
            tasks.append(write(name, lambda _, name=name: order.append(name)))  # type: ignore[misc]
            await asyncio.sleep(0)
        may_end.set()
        await asyncio.gather(*tasks)
    others, bulk = ["CLICK", "CLAIM", "REPORT"], ["purge", "fold", "fan-out"]
    assert order == (others + bulk if first == "rewrite" else ["purge", *others, "fold", "fan-out"])


async def test_bulk_work_advances_while_other_transactions_always_wait(tmp_path: Path) -> None:
    order: list[str] = []

    async with serving(tmp_path / "shortener.db") as database:

        async def click() -> None:
            while "second purge" not in order and len(order) < 2000:
                await database.write(lambda _: order.append("click"))

        async def purge() -> None:
            await database.write_later(lambda _: order.append("purge"))
            await database.write_later(lambda _: order.append("second purge"))

        await asyncio.gather(click(), click(), click(), purge())
    assert "second purge" in order


async def test_sqlite_overwrites_deleted_content(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        assert await database.write(lambda connection: connection.exec_driver_sql("PRAGMA secure_delete").scalar()) == 1
