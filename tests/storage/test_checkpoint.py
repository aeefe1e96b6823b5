"""Tests of SQLite checkpoints: a thread copies the WAL into the database file, and a long WAL starts at its beginning again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shortener.storage import checkpoint
from tests.storage.sqlite_load import add, commit_until, serving

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
            seen.add(wal.read(24)[16:])  # The salts in the WAL header change when SQLite starts the file again.
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
    monkeypatch.setattr(checkpoint, "SHORT_SECONDS", 0.0)  # with this limit, every checkpoint counts as long
    monkeypatch.setattr(checkpoint, "DEFAULT_ROWS", 100)
    finished: list[int] = []
    async with serving(tmp_path / "shortener.db") as database:
        assert database._checkpointer is not None
        let_writer_finish = database._checkpointer._let_writer_finish

        def count_and_finish() -> None:
            finished.append(1)
            let_writer_finish()

        monkeypatch.setattr(database._checkpointer, "_let_writer_finish", count_and_finish)
        await commit_until(database, lambda: len(finished) >= 2, rows=20)


#: A program that tries to lock the file exclusively. Every open SQLite connection holds a shared lock that prevents this.
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
