"""Tests that commands work on a SQLite database while another process writes to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from shortener.errors import StoreUnavailable
from shortener.storage import sqlite
from shortener.storage.migrate import current_version, migrate, prepare
from shortener.storage.migrations import HEAD
from shortener.storage.open import open_database
from shortener.storage.write_lock import PAUSE_SECONDS, begin_write
from tests.cli.shell import InProcessShell, create_installation


@pytest.fixture
def file(tmp_path: Path, sqlite_template: Path) -> Path:
    file = tmp_path / "shortener.db"
    file.write_bytes(sqlite_template.read_bytes())
    return file


@contextlib.contextmanager
def write_locked(file: Path) -> Iterator[sqlite3.Connection]:
    """Hold the write lock of a SQLite file with a separate connection, as another process does. The test may end this transaction
    inside the context."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def busy(code: int = sqlite3.SQLITE_BUSY) -> DBAPIError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = code
    return OperationalError("BEGIN IMMEDIATE", None, error)


def fails_first(times: int, error: DBAPIError) -> Callable[[], object]:
    errors = iter([error] * times)

    def begin() -> None:
        if (one := next(errors, None)) is not None:
            raise one

    return begin


def test_a_locked_database_is_tried_again_after_short_pauses_until_the_lock_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    begin_write(fails_first(20, busy()), 10)
    assert pauses == [PAUSE_SECONDS] * 20
    begin_write(fails_first(2, busy(sqlite3.SQLITE_BUSY_RECOVERY)), 10)


def test_the_wait_for_the_lock_ends_after_its_time_limit_and_other_errors_are_raised_at_once() -> None:
    with pytest.raises(OperationalError):
        begin_write(fails_first(1, busy()), 0)
    with pytest.raises(OperationalError):
        begin_write(fails_first(1, busy(sqlite3.SQLITE_FULL)), 10)


async def test_the_schema_version_is_read_while_another_process_writes(file: Path) -> None:
    with write_locked(file):
        assert await current_version(f"sqlite:///{file}") == HEAD
        await prepare(f"sqlite:///{file}")
        assert await migrate(f"sqlite:///{file}") == (HEAD, HEAD)


@pytest.mark.parametrize("owner", [False, True])
async def test_a_command_waits_longer_for_the_lock_than_a_server(file: Path, monkeypatch: pytest.MonkeyPatch, owner: bool) -> None:
    """If `owner` is true, the process owns the file, as the command `shortener secret adopt` does."""
    monkeypatch.setattr("shortener.storage.sqlite.BUSY_TIMEOUT_MS", 1)
    with write_locked(file) as other:
        server = await open_database(f"sqlite:///{file}", owner=owner, is_command=False)
        with pytest.raises(StoreUnavailable):
            await server.write(lambda connection: None)
        await server.close()
        command = await open_database(f"sqlite:///{file}", owner=owner, is_command=True)
        timer = threading.Timer(0.1, other.rollback)
        timer.start()
        await command.write(lambda connection: None)
        await command.close()
        timer.join()


def test_commands_that_only_read_work_while_another_process_writes(tmp_path: Path, sqlite_template: Path) -> None:
    create_installation(tmp_path, sqlite_template)
    shell = InProcessShell(tmp_path)
    shell("applications", "create", "first")
    with write_locked(tmp_path / "shortener.db"):
        assert [one["name"] for one in shell.json("applications", "list")] == ["first"]


def test_a_command_that_changes_an_installation_waits_for_the_lock(tmp_path: Path, sqlite_template: Path) -> None:
    create_installation(tmp_path, sqlite_template)
    shell = InProcessShell(tmp_path)
    shell("applications", "create", "first")
    with write_locked(tmp_path / "shortener.db") as other:
        timer = threading.Timer(0.3, other.rollback)
        timer.start()
        assert shell.json("tokens", "rotate", "1")["tracker_token"]
        timer.join()


async def test_all_transactions_that_wait_while_another_process_has_the_write_lock_fail_after_the_same_time(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transactions run one after the other. The time limit of each begins when it is requested, so the time in the queue
    counts."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 400)
    database = sqlite.SqliteDatabase(file, owner=True)
    try:
        with write_locked(file) as other:
            began = time.monotonic()
            writes = [database.write(read_busy_timeout) for _ in range(10)] + [
                database.write_later(read_busy_timeout) for _ in range(10)
            ]
            errors = await asyncio.gather(*writes, return_exceptions=True)
            assert time.monotonic() - began < 10 * 0.4, "one after the other, they would wait for 8 seconds"
            assert {type(error) for error in errors} == {StoreUnavailable}
            with pytest.raises(StoreUnavailable):
                await database.write(read_busy_timeout)
            other.execute("COMMIT")
        await database.write(lambda connection: None)
        assert await database.write(read_busy_timeout) == 400
    finally:
        await database.close()


async def test_another_error_while_the_database_is_locked_does_not_shorten_later_waits(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 400)
    database = sqlite.SqliteDatabase(file, owner=True)
    calls = itertools.count()

    def fail_second(begin: Callable[[], object], wait: float) -> None:
        if next(calls) == 1:
            raise OperationalError("BEGIN IMMEDIATE", None, sqlite3.OperationalError("disk I/O error"))
        begin_write(begin, wait)

    monkeypatch.setattr(sqlite, "begin_write", fail_second)
    try:
        with write_locked(file):
            errors = await asyncio.gather(*(database.write(read_busy_timeout) for _ in range(2)), return_exceptions=True)
        assert {type(error) for error in errors} == {StoreUnavailable}
        await database.write(lambda connection: None)
        assert await database.write(read_busy_timeout) == 400
    finally:
        await database.close()


def read_busy_timeout(connection: Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one())
