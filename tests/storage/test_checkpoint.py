"""Tests of SQLite checkpoints: a thread copies the WAL into the database file, and a long WAL restarts from the beginning."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection
from structlog.testing import capture_logs

from shortener.storage import checkpoint
from tests.servers import PATIENCE
from tests.storage.sqlite_load import add, commit_until, count_rows, serving

MIN_ROW_BYTES = 100


async def test_checkpoints_copy_committed_rows_into_the_sqlite_file_while_commits_continue(tmp_path: Path) -> None:
    file = tmp_path / "shortener.db"
    async with serving(file) as database:
        await database.write(add, checkpoint.DEFAULT_ROWS)
        await commit_until(database, lambda: file.stat().st_size >= checkpoint.DEFAULT_ROWS * MIN_ROW_BYTES)
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as reader:
            assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_the_checkpoint_thread_calls_fdatasync_after_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(checkpoint, "MAX_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    async with serving(tmp_path / "shortener.db") as database:
        await commit_until(database, lambda: len(synced) >= 2)


async def test_a_sqlite_checkpoint_copies_even_few_changes_after_the_maximum_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "MAX_INTERVAL_SECONDS", 0.1)
    file = tmp_path / "shortener.db"
    async with serving(file) as database:
        await database.write(add, 100)
        await commit_until(database, lambda: file.stat().st_size >= 100 * MIN_ROW_BYTES)


async def test_under_load_sqlite_starts_a_long_wal_file_at_its_beginning_again_and_no_row_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LONG_WAL_FRAMES", 500)
    monkeypatch.setattr(checkpoint, "DEFAULT_ROWS", 500)
    file = tmp_path / "shortener.db"
    seen: set[bytes] = set()

    def restarted_five_times() -> bool:
        with open(tmp_path / "shortener.db-wal", "rb") as wal:
            seen.add(wal.read(24)[16:])  # The header of the WAL contains salts. SQLite changes them when it restarts the WAL.
        return len(seen) > 5

    async with serving(file) as database:
        await commit_until(database, restarted_five_times, rows=20)
        rows = await database.read(lambda connection: connection.exec_driver_sql("SELECT count(*), max(n) FROM t").one())
        assert rows[0] == rows[1]
        assert await database.read(lambda connection: connection.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"


async def test_on_a_slow_disk_sqlite_starts_a_long_wal_file_at_its_beginning_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fdatasync = os.fdatasync
    seen: set[bytes] = set()

    def slow_fdatasync(file: int) -> None:
        fdatasync(file)
        time.sleep(2 * checkpoint.SHORT_SECONDS)

    def restarted() -> bool:
        with open(tmp_path / "shortener.db-wal", "rb") as wal:
            seen.add(wal.read(24)[16:])
        return len(seen) > 2

    monkeypatch.setattr(checkpoint, "LONG_WAL_FRAMES", 100)
    monkeypatch.setattr(checkpoint, "DEFAULT_ROWS", 100)
    monkeypatch.setattr(os, "fdatasync", slow_fdatasync)
    async with serving(tmp_path / "shortener.db") as database:
        await commit_until(database, restarted, rows=20)


async def test_sqlite_writes_wait_for_a_long_checkpoint_if_the_wal_file_exceeds_its_size_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LONG_WAL_FRAMES", 100)
    monkeypatch.setattr(checkpoint, "MAX_WAL_FRAMES", 200)
    monkeypatch.setattr(checkpoint, "SHORT_SECONDS", 0.0)  # with this limit, no checkpoint is short
    monkeypatch.setattr(checkpoint, "DEFAULT_ROWS", 100)
    finished: list[int] = []
    async with serving(tmp_path / "shortener.db") as database:
        assert database._checkpointer is not None
        let_writer_finish = database._checkpointer._let_writer_finish

        def count_and_finish(truncates: bool) -> None:
            finished.append(1)
            let_writer_finish(truncates)

        monkeypatch.setattr(database._checkpointer, "_let_writer_finish", count_and_finish)
        await commit_until(database, lambda: len(finished) >= 2, rows=20)


#: A program that tries to get an exclusive lock of the file. It fails while any SQLite connection is open, because each
#: connection holds a shared lock.
_TAKE_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
"""


async def test_locks_of_sqlite_connections_remain_after_the_checkpoint_thread_stops(tmp_path: Path) -> None:
    file = tmp_path / "shortener.db"

    def lock_error_of_another_process() -> str:
        return subprocess.run([sys.executable, "-c", _TAKE_LOCK, str(file)], capture_output=True, text=True).stderr

    async with serving(file) as database:
        assert database._checkpointer is not None
        await asyncio.to_thread(database._checkpointer.stop)
        assert "BlockingIOError" in lock_error_of_another_process()
    assert lock_error_of_another_process() == ""


SECRET = "+14085550123"


def put(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO t (n, v) VALUES (900000, ?)", (SECRET,))


def remove(connection: Connection) -> None:
    connection.exec_driver_sql("UPDATE t SET v = '' WHERE n = 900000")


def files_with_secret(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if SECRET.encode() in file.read_bytes())


async def wait_until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not is_done():
            await asyncio.sleep(0.01)


@pytest.fixture
def quick_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(checkpoint, "MIN_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(checkpoint, "TRUNCATION_INTERVAL_SECONDS", 0.05)


@pytest.mark.usefixtures("quick_truncation")
async def test_a_truncated_wal_and_the_sqlite_file_do_not_contain_deleted_data_even_if_no_commit_follows(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        await database.write(add, 1000)
        await database.write(put)
        await database.write(remove)
        wal = tmp_path / "shortener.db-wal"
        assert wal.name in files_with_secret(tmp_path)
        size = wal.stat().st_size
        database.truncate_wal()
        await wait_until(lambda: not files_with_secret(tmp_path))
        assert wal.stat().st_size < size / 2, "at most the commits that truncate_wal itself requests were written after it"
        assert await database.read(count_rows) == 1001


@pytest.mark.usefixtures("quick_truncation")
async def test_the_wal_is_truncated_while_the_checkpoint_thread_waits_for_two_commits_of_a_quiet_installation(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        await database.write(put)
        assert database._checkpointer is not None
        checkpointer = database._checkpointer
        await database.write(add, 1)
        await database.write(add, 1)
        await wait_until(lambda: checkpointer._first_safe_commit == checkpointer._commits + 2)
        with contextlib.closing(sqlite3.connect(tmp_path / "shortener.db", isolation_level=None)) as command:
            command.execute("PRAGMA wal_autocheckpoint=0")
            command.execute("PRAGMA secure_delete=ON")
            command.execute("UPDATE t SET v = '' WHERE n = 900000")
            database.truncate_wal()
            await wait_until(lambda: not files_with_secret(tmp_path))


@pytest.mark.usefixtures("quick_truncation")
async def test_the_truncation_of_the_wal_waits_for_a_reader_and_commits_continue(tmp_path: Path) -> None:
    file = tmp_path / "shortener.db"
    async with serving(file) as database:
        await database.write(put)
        with capture_logs() as logs, contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchone()
            await database.write(remove)
            database.truncate_wal()
            assert database._checkpointer is not None
            checkpointer = database._checkpointer
            await commit_until(database, lambda: checkpointer._retry_seconds > 0.2)
            assert files_with_secret(tmp_path) != []
            checkpointer._retry_seconds = checkpoint.MAX_RETRY_SECONDS / 2
            await commit_until(database, lambda: any(line["event"] == "wal_not_truncated" for line in logs))
        checkpointer._next_truncation_at = 0.0
        await wait_until(lambda: not files_with_secret(tmp_path))


@pytest.mark.usefixtures("quick_truncation")
async def test_the_wal_can_be_truncated_again_and_again_under_load_and_no_row_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "shortener.db"
    sizes = [0]
    async with serving(file) as database:

        def truncated_ten_times() -> bool:
            database.truncate_wal()
            sizes.append((tmp_path / "shortener.db-wal").stat().st_size)
            return sum(after < before for before, after in itertools.pairwise(sizes)) >= 10

        await commit_until(database, truncated_ten_times, rows=20)
        rows = await database.read(lambda connection: connection.exec_driver_sql("SELECT count(*), max(n) FROM t").one())
        assert rows[0] == rows[1]
        assert await database.read(lambda connection: connection.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"


async def test_transactions_that_change_nothing_do_not_begin_a_checkpoint(tmp_path: Path) -> None:
    async with serving(tmp_path / "shortener.db") as database:
        assert database._checkpointer is not None
        await database.write(add, 1)
        await database.write(count_rows)
        before = database._checkpointer._commits
        for _ in range(5):
            await database.write(count_rows)
            await database.write(lambda connection: connection.exec_driver_sql("UPDATE t SET v = '' WHERE n < 0").rowcount)
        assert database._checkpointer._commits == before
        await database.write(add, 1)
        await database.write(add, 1)
        await wait_until(lambda: database._checkpointer is not None and database._checkpointer._commits == before + 2)
