"""The WAL is copied into the file beside the writer, and begins anew when it is long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from shortener.storage import checkpoint
from shortener.storage.sqlite import SqliteDatabase

ROW = 100  # bytes, at the least


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[SqliteDatabase]:
    """One table in a file of its own, served from."""
    database = SqliteDatabase(path, owner=True)
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY, v TEXT)"))
    try:
        yield database
    finally:
        await database.close()


def add(connection: Connection, rows: int) -> None:
    connection.exec_driver_sql(
        "WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c WHERE n < ?) "
        "INSERT INTO t (v) SELECT hex(randomblob(50)) FROM c",
        (rows,),
    )


async def commit_until(database: SqliteDatabase, is_done: Callable[[], bool], rows: int = 1) -> None:
    """Commits follow each other, as they do under load."""
    async with asyncio.timeout(20):
        while not is_done():
            await database.write(add, rows)


async def test_what_is_committed_comes_into_the_file_while_commits_go_on(tmp_path: Path) -> None:
    file = tmp_path / "shortener.db"
    async with serving(file) as database:
        await database.write(add, checkpoint.FIRST)
        await commit_until(database, lambda: file.stat().st_size >= checkpoint.FIRST * ROW)
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as beside:
            assert beside.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_the_disk_writes_what_is_copied_and_is_then_asked_to_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    keep, write = os.fdatasync, checkpoint._sync_file_range

    def fdatasync(file: int) -> None:
        done.append("keep")
        keep(file)

    def sync_file_range(*arguments: int) -> int:
        answer: int = write(*arguments)
        done.append(f"write {answer}")
        return answer

    monkeypatch.setattr(checkpoint, "_sync_file_range", sync_file_range)
    monkeypatch.setattr(checkpoint, "LONGEST", 0.05)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    async with serving(tmp_path / "shortener.db") as database:
        await commit_until(database, lambda: len(done) >= 4)
    assert done[:4] == ["write 0", "keep"] * 2


@pytest.mark.parametrize("sync_file_range", [None, lambda *_: -1], ids=["missing", "failing"])
async def test_it_is_asked_to_keep_it_where_it_cannot_write_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync_file_range: Any
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(checkpoint, "_sync_file_range", sync_file_range)
    monkeypatch.setattr(checkpoint, "LONGEST", 0.05)
    monkeypatch.setattr(os, "fdatasync", kept.append)
    async with serving(tmp_path / "shortener.db") as database:
        await commit_until(database, lambda: bool(kept))


async def test_few_changes_are_copied_after_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LONGEST", 0.1)
    file = tmp_path / "shortener.db"
    async with serving(file) as database:
        await database.write(add, 100)
        await commit_until(database, lambda: file.stat().st_size >= 100 * ROW)


async def test_a_long_wal_begins_anew_under_load_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LONG", 500)
    monkeypatch.setattr(checkpoint, "FIRST", 500)
    file = tmp_path / "shortener.db"
    seen: set[bytes] = set()

    def began_anew_five_times() -> bool:
        with open(tmp_path / "shortener.db-wal", "rb") as wal:
            seen.add(wal.read(24)[16:])  # its salts, which change each time
        return len(seen) > 5

    async with serving(file) as database:
        await commit_until(database, began_anew_five_times, rows=20)
        rows = await database.read(lambda connection: connection.exec_driver_sql("SELECT count(*), max(n) FROM t").one())
        assert rows[0] == rows[1]
        assert await database.read(lambda connection: connection.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"


async def test_a_wal_begins_anew_though_the_disk_hardly_keeps_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = os.fdatasync
    seen: set[bytes] = set()

    def slowly(file: int) -> None:
        keep(file)
        time.sleep(2 * checkpoint.LITTLE)  # longer than is little

    def began_anew() -> bool:
        with open(tmp_path / "shortener.db-wal", "rb") as wal:
            seen.add(wal.read(24)[16:])
        return len(seen) > 2

    monkeypatch.setattr(checkpoint, "LONG", 100)
    monkeypatch.setattr(checkpoint, "FIRST", 100)
    monkeypatch.setattr(os, "fdatasync", slowly)
    async with serving(tmp_path / "shortener.db") as database:
        await commit_until(database, began_anew, rows=20)


#: Takes the lock that a connection of SQLite's holds shared while it is open.
_TAKE_THE_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
"""


async def test_the_locks_of_the_process_outlive_the_checkpointer(tmp_path: Path) -> None:
    file = tmp_path / "shortener.db"

    def another_process_takes_it() -> str:
        return subprocess.run([sys.executable, "-c", _TAKE_THE_LOCK, str(file)], capture_output=True, text=True).stderr

    async with serving(file) as database:
        assert database._checkpointer is not None
        await asyncio.to_thread(database._checkpointer.stop)
        assert "BlockingIOError" in another_process_takes_it()
    assert another_process_takes_it() == ""
