"""This module reads from a SQLite file in threads. Each thread has its own connection, which cannot write.

A read is a plain function of a SQLAlchemy connection. It runs in one thread from its first statement to its last, so it costs one
change of thread, and it reads one snapshot of the database. Threads start when reads need them, at most MAX_READERS. While all of
them are busy, further reads wait, at most MAX_WAIT_SECONDS, and then raise StoreUnavailable.

A read ends with StoreUnavailable after its time limit. A read whose caller is cancelled ends too.
"""

# Tested by tests/storage/test_sqlite.py

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Row, create_engine, event
from sqlalchemy.pool import NullPool
from sqlalchemy.sql import Executable

from shortener.errors import StoreUnavailable
from shortener.storage import raw_sql
from shortener.storage.database import store_errors

P = ParamSpec("P")
T = TypeVar("T")

MAX_READERS = 8
#: The longest time that a read waits for a thread while all threads are busy.
MAX_WAIT_SECONDS = 30.0
#: SQLite compares the duration of a read with its limit after this number of steps of its virtual machine, about 10 ms.
STEPS_PER_CHECK = 1_000_000


class _TimeLimit:
    """The end of the time of one read. SQLite calls `is_over` while it runs a statement."""

    def __init__(self) -> None:
        self._ends_at = math.inf  # on the monotonic clock

    def begin(self, seconds: float | None) -> None:
        """Limit the read to a number of seconds from now, unless the read was ended before. None does not limit it."""
        if seconds is not None:
            self._ends_at = min(self._ends_at, time.monotonic() + seconds)

    def end_now(self) -> None:
        self._ends_at = -math.inf

    def is_over(self) -> bool:
        """Return whether SQLite must interrupt the statement. The next statements of the same read are interrupted too."""
        return time.monotonic() > self._ends_at


class SqliteReaders:
    """The threads that read from the SQLite file at `path`. `pragmas` are the SQL statements that prepare a connection.

    `max_seconds` is the longest duration of one read; None if it is not limited."""

    def __init__(self, path: Path, pragmas: Sequence[str], *, max_seconds: float | None) -> None:
        self._max_seconds = max_seconds
        self._engine = create_engine(
            # With mode=ro, a connection cannot write.
            URL.create("sqlite", database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"}),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",  # `_read` runs BEGIN itself.
            connect_args={"isolation_level": None, "check_same_thread": False, "cached_statements": 1024},
            hide_parameters=True,
        )

        @event.listens_for(self._engine, "connect")
        def _connect(driver: Any, record: object) -> None:
            for pragma in pragmas:
                driver.execute(pragma).close()

        self._work: queue.SimpleQueue[Callable[[Connection | None], Connection | None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # protects the next two attributes
        self._unfinished = 0  # The number of reads that run or wait.
        self._limits: set[_TimeLimit] = set()  # The limits of the reads that run.
        self._closed = False

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `query` in a thread on one snapshot, and return its result. Raise StoreUnavailable if the database is unavailable."""
        if self._closed:
            raise StoreUnavailable("the database is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        limit = _TimeLimit()
        # The context variables contain the id of the request, which the log lines of a query need.
        context = contextvars.copy_context()

        def call(connection: Connection) -> T:
            return query(connection, *args, **kwargs)

        def job(connection: Connection | None) -> Connection | None:
            outcome: Callable[[Any], None]
            value: Any
            try:
                if not future.done():  # The caller may have been cancelled while the read waited.
                    connection = connection or self._engine.connect()
                    value = context.run(self._read, connection, limit, call)
                    outcome = future.set_result
                else:
                    outcome, value = future.set_result, None
            except BaseException as error:
                outcome, value = future.set_exception, error
            with self._lock:
                self._unfinished -= 1
            with contextlib.suppress(RuntimeError):  # The event loop may be closed if the caller was cancelled.
                loop.call_soon_threadsafe(_settle, future, outcome, value)
            return connection

        with self._lock:
            self._unfinished += 1
            unfinished = self._unfinished
        timeout = None
        if unfinished > len(self._threads):
            if unfinished <= MAX_READERS:
                self._start_thread()
            else:
                busy = StoreUnavailable(f"{MAX_READERS} reads of the database have been running for {MAX_WAIT_SECONDS:g} s")
                timeout = loop.call_later(MAX_WAIT_SECONDS, self._give_up, future, limit, busy)
        self._work.put(job)
        try:
            with store_errors():
                return await future
        except asyncio.CancelledError:
            limit.end_now()
            raise
        finally:
            if timeout is not None:
                timeout.cancel()

    async def stream(self, statement: Executable, *, size: int) -> AsyncIterator[Sequence[Row[Any]]]:
        """Yield the rows of a statement in lists of `size` rows. The statement has a connection of its own."""
        with store_errors():
            connection = await asyncio.to_thread(self._engine.connect)
            try:
                limit = _TimeLimit()
                limit.begin(self._max_seconds)
                driver: Any = connection.connection.driver_connection
                driver.set_progress_handler(limit.is_over, STEPS_PER_CHECK)
                result = await asyncio.to_thread(connection.execute, statement)
                parts: Iterator[Sequence[Row[Any]]] = result.partitions(size)
                while rows := await asyncio.to_thread(next, parts, None):
                    yield rows
            finally:
                connection.close()

    def close(self) -> None:
        """End the reads that run, wait for the threads and close their connections. This blocks."""
        with self._lock:
            self._closed = True
            for limit in self._limits:
                limit.end_now()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._engine.dispose()

    def _give_up(self, future: asyncio.Future[Any], limit: _TimeLimit, error: StoreUnavailable) -> None:
        """Raise `error` in a read that still waits for a thread."""
        with self._lock:
            is_waiting = limit not in self._limits
        if is_waiting and not future.done():
            future.set_exception(error)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name=f"sqlite-reader-{len(self._threads) + 1}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        """Run reads on one connection, which the first read opens."""
        connection: Connection | None = None
        while (job := self._work.get()) is not None:
            connection = job(connection)
            job = None  # The job contains the result of the read, which may be large.
        if connection is not None:
            connection.close()

    def _read(self, connection: Connection, limit: _TimeLimit, query: Callable[[Connection], T]) -> T:
        driver: Any = connection.connection.driver_connection
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the database is closed")
            self._limits.add(limit)
        limit.begin(self._max_seconds)
        driver.set_progress_handler(limit.is_over, STEPS_PER_CHECK)
        try:
            raw_sql.execute(connection, "BEGIN")
            return query(connection)
        finally:
            driver.set_progress_handler(None, STEPS_PER_CHECK)
            with self._lock:
                self._limits.discard(limit)
            if driver.in_transaction:
                driver.rollback()
            # SQLAlchemy created a transaction object at the first statement, so this object must be closed too.
            if connection.in_transaction():
                connection.rollback()


def _settle(future: asyncio.Future[Any], outcome: Callable[[Any], None], value: Any) -> None:
    if not future.done():  # The caller may have been cancelled.
        outcome(value)
