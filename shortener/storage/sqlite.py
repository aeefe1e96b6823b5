"""This module implements `Database` for SQLite. One writer thread has the only connection that writes. Readers use read-only
connections of aiosqlite.

With the writer thread, a whole transaction needs one thread switch. With aiosqlite, each statement would need one
(docs/decisions/0002). Every transaction begins with BEGIN IMMEDIATE, because a deferred transaction that reads before it writes
can fail with SQLITE_BUSY at once, without the timeout. With WAL and synchronous=FULL, a committed transaction survives a power
failure.

Only the process that serves makes checkpoints (checkpoint.py). It holds a lock on a file next to the database, so a second server
does not start. If the database file is deleted or replaced while it is open, every write raises StoreUnavailable.

The WAL cannot restart while a reader uses an old snapshot, so it grows with every commit. Therefore, in the process that serves,
a read that takes longer than MAX_READ_SECONDS is interrupted and raises StoreUnavailable. Readers of other processes, such as a
backup, cannot be interrupted. If the WAL grows because of them, the checkpoint thread logs `wal_is_long`.
"""

# Tested by tests/storage/test_database.py

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import fcntl
import math
import os
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Concatenate, Literal, ParamSpec, TypeVar

import structlog
from sqlalchemy import URL, Connection, Engine, Row, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, StaticPool
from sqlalchemy.sql import Executable

from shortener.errors import DatabaseInUse, StoreUnavailable
from shortener.ids import MAX_NODES
from shortener.metrics import Metrics
from shortener.storage import raw_sql
from shortener.storage.checkpoint import Checkpointer
from shortener.storage.database import store_errors
from shortener.storage.sqlite_reader import ReaderConnection, connect_reader
from shortener.storage.write_lock import COMMAND_WAIT_SECONDS, begin_write, is_busy

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_MS = 1000
#: The longest duration of one read in the process that serves.
MAX_READ_SECONDS = 60.0
_WRITER_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    # The page cache has only 8 MiB, because SQLite searches the whole cache at the end of each transaction that moved pages of an
    # index. About every second transaction moves such pages (docs/decisions/0006). The operating system caches the other pages.
    "PRAGMA cache_size=-8192",
    "PRAGMA temp_store=MEMORY",
    # Overwrite deleted content with zeros. Only some builds of SQLite, such as that of Debian, do this by default.
    "PRAGMA secure_delete=ON",
    "PRAGMA wal_autocheckpoint=0",  # Turn off SQLite's automatic checkpoints, because `Checkpointer` makes all checkpoints.
)
_READER_PRAGMAS = "PRAGMA query_only=ON; PRAGMA cache_size=-4096"


class SqliteDatabase:
    """A SQLite database file. `Database` describes its methods."""

    dialect: Literal["sqlite"] = "sqlite"

    def __init__(self, path: Path, *, owner: bool, is_command: bool | None = None) -> None:
        """Open the SQLite file. Create the file and its folder if they do not exist.

        `owner` is true if this process serves from the file. Only one process can do so. Raise StoreUnavailable if another
        process already does. `is_command` is true if the process is a command, which waits longer for locks than a server
        (write_lock.py). By default, each process that does not serve is a command."""
        is_command = not owner if is_command is None else is_command
        # A server waits for the lock inside SQLite (busy_timeout), and not in `begin_write`.
        self._lock_wait = COMMAND_WAIT_SECONDS if is_command else 0.0
        timeout_ms = round(COMMAND_WAIT_SECONDS * 1000) if is_command else BUSY_TIMEOUT_MS
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._lock = _take_ownership(path) if owner else None
        self.node = 0 if owner else 1 + secrets.randbelow(MAX_NODES - 1)
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)),
            poolclass=StaticPool,
            isolation_level="AUTOCOMMIT",  # `_transact` runs BEGIN and COMMIT itself.
            connect_args={"isolation_level": None, "check_same_thread": False, "cached_statements": 1024},
            # Hide parameters, because errors are logged and parameters contain phone numbers and IP addresses.
            hide_parameters=True,
        )
        _prepare_writer(self._engine, timeout_ms)
        with store_errors():
            self._writer = self._engine.connect()
            if is_command:
                raw_sql.execute(self._writer, "PRAGMA busy_timeout=0").close()  # `begin_write` waits instead
            # The connection of the writer thread, as an object of the module sqlite3.
            self._driver: Any = self._writer.connection.driver_connection
            self._file = _identity(path)
        self.has_failed_writes = False
        self._busy_timeout_ms = timeout_ms
        self._is_locked = False  # whether the last transaction failed, because another process kept the write lock for too long
        self._readers: AsyncEngine = create_async_engine(
            "sqlite+aiosqlite://",
            async_creator=partial(connect_reader, path, f"PRAGMA busy_timeout={timeout_ms}; {_READER_PRAGMAS}"),
            poolclass=AsyncAdaptedQueuePool,
            pool_size=4,
            hide_parameters=True,
        )
        _prepare_readers(self._readers.sync_engine)
        self._max_read_seconds = MAX_READ_SECONDS if owner else None
        self._jobs: deque[Callable[[], None]] = deque()
        self._bulk_jobs: deque[Callable[[], None]] = deque()
        # This queue contains one True for each waiting job. False ends the thread.
        self._work: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._on_end: Callable[[], object] = lambda: None  # The writer thread calls this when it ends.
        self._checkpointer = Checkpointer(path, self._request_commit) if owner else None
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()
        self._closed = False

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metric of the size of the WAL."""
        wal = self._path.with_name(self._path.name + "-wal")

        def size() -> float:
            try:
                return float(os.stat(wal).st_size)
            except OSError:
                return 0.0

        metrics.gauge(
            "shortener_database_wal_bytes",
            "Size of the WAL of the SQLite database. It grows under load and restarts when a checkpoint reaches its end.",
            size,
        )

    def truncate_wal(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.truncate()

    def _request_commit(self) -> None:
        """Queue a job for the writer thread. The job commits a change in the database file, but changes no row."""

        def job() -> None:
            try:
                with store_errors():
                    self._transact(_change_user_version)
            except StoreUnavailable:
                return  # The commit failed, so the checkpoint thread waits for a later commit.
            if self._checkpointer is not None:
                self._checkpointer.committed(self._driver, is_requested=True)

        self._jobs.append(job)
        self._work.put(True)

    def writes_succeed(self) -> None:
        self.has_failed_writes = False

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._write(self._jobs, lambda connection: transact(connection, *args, **kwargs))

    async def write_later(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._write(self._bulk_jobs, lambda connection: transact(connection, *args, **kwargs))

    async def _write(self, jobs: deque[Callable[[], None]], transact: Callable[[Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailable("the database is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        began = time.monotonic()

        def job() -> None:
            try:
                with store_errors():
                    result = self._transact(transact, began)
            except BaseException as error:
                self.has_failed_writes = self.has_failed_writes or isinstance(error, StoreUnavailable)
                outcome, value = future.set_exception, error
                loop.call_soon_threadsafe(_settle, future, outcome, value)
            else:
                loop.call_soon_threadsafe(_settle, future, future.set_result, result)
                if self._checkpointer is not None:
                    self._checkpointer.committed(self._driver)

        # Run the job with the context variables of the caller. They contain the id of the request, which log lines of the job
        # need.
        jobs.append(partial(contextvars.copy_context().run, job))
        self._work.put(True)
        return await future

    def _transact(self, transact: Callable[[Connection], T], began: float | None = None) -> T:
        """Run BEGIN, the transaction function and COMMIT. `began` is the time at which the transaction was requested, on the
        clock `time.monotonic`. None means now.

        BEGIN and COMMIT bypass SQLAlchemy, whose own work takes longer than a short transaction."""
        if _identity(self._path) != self._file:
            # The database file was deleted or replaced. After the next start, a commit to the old file would be lost.
            raise StoreUnavailable(f"the database file {self._path} was deleted or replaced while the service ran")
        self._begin(began)
        try:
            result = transact(self._writer)
            raw_sql.execute(self._writer, "COMMIT")
        except BaseException:
            if self._driver.in_transaction:
                self._driver.rollback()
            raise
        finally:
            # At the first statement, SQLAlchemy has created a transaction object. Close this object, too.
            if self._writer.in_transaction():
                self._writer.rollback()
        return result

    def _begin(self, began: float | None) -> None:
        """Run BEGIN IMMEDIATE. While another process has the write lock, it waits, but at most for the busy_timeout.

        If the other process keeps the lock for longer, many transactions wait in the queue of this process. From then on, the
        busy_timeout of each transaction begins when it was requested, so that it waits only for the rest of this time. If each
        transaction waited for a full busy_timeout after the previous one, requests would get their error after many seconds."""
        if self._is_locked:
            waited_ms = 0 if began is None else round((time.monotonic() - began) * 1000)
            raw_sql.execute(self._writer, f"PRAGMA busy_timeout={max(self._busy_timeout_ms - waited_ms, 0)}").close()
        try:
            begin_write(lambda: raw_sql.execute(self._writer, "BEGIN IMMEDIATE"), self._lock_wait)
        except DBAPIError as error:
            # Another error does not clear the flag, so the next successful BEGIN still restores the busy_timeout.
            self._is_locked = self._is_locked or (is_busy(error) and not self._lock_wait)
            raise
        if self._is_locked:
            self._is_locked = False
            raw_sql.execute(self._writer, f"PRAGMA busy_timeout={self._busy_timeout_ms}").close()

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with store_errors():
            async with self._readers.connect() as connection:
                self._begin_read(connection)
                return await connection.run_sync(query, *args, **kwargs)

    async def stream(self, statement: Executable, *, size: int = 1000) -> AsyncIterator[Sequence[Row[Any]]]:
        with store_errors():
            async with self._readers.connect() as connection:
                self._begin_read(connection)
                result = await connection.stream(statement)
                async for rows in result.partitions(size):
                    yield rows

    def _begin_read(self, connection: AsyncConnection) -> None:
        assert connection.sync_connection is not None
        limit = _reader(connection.sync_connection).limit
        limit.ends_at = math.inf if self._max_read_seconds is None else time.monotonic() + self._max_read_seconds

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._readers.dispose()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        self._on_end = lambda: loop.call_soon_threadsafe(_settle, ended, ended.set_result, None)
        self._work.put(False)
        await ended
        self._thread.join()
        self._writer.close()
        self._engine.dispose()
        if self._checkpointer is not None:
            self._checkpointer.close()
        if self._lock:
            self._lock.close()

    def _run(self) -> None:
        try:
            self._run_jobs()
            if self._checkpointer is not None:
                self._checkpointer.stop()
        finally:
            with contextlib.suppress(RuntimeError):  # The event loop was closed, so nothing waits for the end of this thread.
                self._on_end()

    def _run_jobs(self) -> None:
        # How many other jobs must run before the next job of bulk work: those that were waiting when the last job of bulk work
        # ended.
        ahead = 0
        while self._work.get():
            is_bulk = bool(self._bulk_jobs) and not ahead
            job = (self._bulk_jobs if is_bulk else self._jobs).popleft()
            try:
                job()
            # The writer thread must continue after any exception. Without the thread, every later transaction would wait for
            # ever.
            except Exception:
                log.exception("writer_job_failed")
            ahead = len(self._jobs) if is_bulk else max(ahead - 1, 0)


def _change_user_version(connection: Connection) -> None:
    """Increase the user_version in the header of the database file. Neither SQLite nor any other code of this service uses this
    number."""
    version = raw_sql.value(connection, "PRAGMA user_version")
    raw_sql.execute(connection, f"PRAGMA user_version={(version + 1) % 2**31}").close()


def _settle(future: asyncio.Future[Any], outcome: Callable[[Any], None], value: Any) -> None:
    if not future.done():  # If the caller was cancelled, its future is done. The transaction is committed nevertheless.
        outcome(value)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode of the database file, which identify the file. Return None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _prepare_writer(engine: Engine, busy_timeout_ms: int) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, record: object) -> None:
        for pragma in (f"PRAGMA busy_timeout={busy_timeout_ms}", *_WRITER_PRAGMAS):
            connection.execute(pragma).close()


def _prepare_readers(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        _reader(connection).begin()


def _reader(connection: Connection) -> ReaderConnection:
    driver: Any = connection.connection.driver_connection
    assert isinstance(driver, ReaderConnection)
    return driver


@contextlib.contextmanager
def hold_ownership(path: Path) -> Iterator[None]:
    """Prevent other processes from serving from the SQLite file `path`, which need not exist. Raise DatabaseInUse if another
    process already serves from it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _take_ownership(path):
        yield


def _take_ownership(path: Path) -> IO[str]:
    lock = open(path.with_name(path.name + ".lock"), "w")  # noqa: SIM115 - stays open until close()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise DatabaseInUse(
            f"another process serves from {path}, and only one process can use a SQLite database to serve. Stop the other "
            "process first (`shortener serve` or a unit of systemd), or use PostgreSQL, which several processes can use"
        ) from None
    return lock
