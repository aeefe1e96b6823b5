"""This module implements the connections of readers of a SQLite database: connections of aiosqlite with fewer thread switches.

aiosqlite runs each call in the thread of its connection. For one statement, SQLAlchemy makes four calls: it creates a cursor,
executes the statement, fetches the rows and closes the cursor. A switch to another thread and back takes longer than most
statements.

This module needs one switch instead of four, if the statement returns fewer than FIRST_ROWS rows. It creates the cursor without
the thread. The call that executes the statement also fetches the first rows. If there are no more rows, the cursor is not closed
in the thread. BEGIN and ROLLBACK of a read need no switch: they read no page of the database, so the caller's thread runs them
while the thread of the connection is idle.

A cancelled read closes its connection. This interrupts the running statement and the waiting statements, so it does not wait for
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite
from aiosqlite.context import contextmanager

#: The call that executes a statement in the thread also fetches up to this number of rows.
FIRST_ROWS = 1000


#: After this number of steps of its virtual machine (about 10 ms), SQLite checks whether a read has reached its time limit.
STEPS_PER_CHECK = 1_000_000


async def connect_reader(path: Path, pragmas: str = "") -> ReaderConnection:
    """Open a SQLite file for reading, and execute `pragmas`. Statements run without a transaction until BEGIN."""
    limit = ReadLimit()

    def connect() -> sqlite3.Connection:
        uri = f"file:{quote(str(path))}?mode=ro"
        # Turn off SQLite's thread check: objects are created in the thread of the event loop, and used in the thread of the
        # connection.
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        try:
            connection.executescript(pragmas)
        except BaseException:
            connection.close()
            raise
        connection.set_progress_handler(limit, STEPS_PER_CHECK)
        return connection

    connection = ReaderConnection(connect, limit)
    await connection
    return connection


class ReaderConnection(aiosqlite.Connection):
    """A connection whose thread does not delay the end of the process, and whose cursors are `ReaderCursor`."""

    def __init__(self, connector: Callable[[], sqlite3.Connection], limit: ReadLimit) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._thread.daemon = True
        self.limit = limit
        self._is_idle = True  # whether the thread has ended each call that it got
        self.unfinished: set[sqlite3.Cursor] = set()  # The cursors whose statements may have more rows.

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        self._is_idle = False
        try:
            result = await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]  # aiosqlite has no types here
        except Exception:  # After any other exception, such as CancelledError, the thread may still run the call.
            self._is_idle = True
            raise
        self._is_idle = True
        return result

    def begin(self) -> None:
        """Begin a read. Its first statement chooses the snapshot of the database that the read uses."""
        assert self._is_idle, "the thread of the connection still runs a statement"
        self._conn.execute("BEGIN").close()

    async def rollback(self) -> None:
        """End a read, and release its snapshot. After a cancelled statement, wait until the thread has ended it."""
        if self._is_idle:
            self._end_read()
        else:
            await self._execute(self._end_read)

    def _end_read(self) -> None:
        # A statement that has more rows would keep its snapshot after ROLLBACK. The next read would then see old data, and the WAL
        # could not restart.
        while self.unfinished:
            self.unfinished.pop().close()
        self._conn.rollback()

    async def create_function(self, name: str, num_params: int, func: Callable[..., Any], deterministic: bool = False) -> None:
        """Add a function to SQL. SQLAlchemy does this for each new connection."""
        self._conn.create_function(name, num_params, func, deterministic=deterministic)

    @contextmanager
    async def cursor(self) -> aiosqlite.Cursor:
        return ReaderCursor(self, self._conn.cursor())

    async def close(self) -> None:
        """Close the connection. Interrupt the running statement, and the statements of a cancelled read that still wait."""
        self._interrupt_statements()
        await super().close()

    def stop(self) -> asyncio.Future[Any] | None:
        """Close the connection and end the thread. Return a future that is done when the thread has ended. Return None if this
        was already requested."""
        # If `close` was cancelled, aiosqlite calls this method again. The ended thread would not process a second request, so the
        # future of that request would never be done.
        if not self._running:
            return None
        self._interrupt_statements()
        return super().stop()

    def _interrupt_statements(self) -> None:
        """Interrupt the running statement, and each statement that the thread begins later."""
        self.limit.ends_at = -math.inf
        if self._connection is not None:
            with contextlib.suppress(sqlite3.ProgrammingError):  # The thread has already closed the connection.
                self._connection.interrupt()


class ReadLimit:
    """The time limit of the present read on a connection. SQLite regularly calls this object while it runs a statement."""

    def __init__(self) -> None:
        self.ends_at = math.inf

    def __call__(self) -> bool:
        """Return whether SQLite must interrupt the statement. After the time limit, this also applies to the next statements of
        the same read."""
        return time.monotonic() > self.ends_at


class ReaderCursor(aiosqlite.Cursor):
    """A cursor that executes a statement and fetches its first rows with one thread switch."""

    def __init__(self, connection: ReaderConnection, cursor: sqlite3.Cursor) -> None:
        super().__init__(connection, cursor)
        self._unfinished = connection.unfinished
        self._rows: list[Any] = []
        self._has_more = False  # whether the statement may have more rows than those in `_rows`

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> ReaderCursor:
        self._unfinished.add(self._cursor)
        self._rows = await self._execute(self._execute_and_fetch, sql, parameters or ())  # type: ignore[no-untyped-call]
        self._has_more = len(self._rows) == FIRST_ROWS
        if not self._has_more:
            self._unfinished.discard(self._cursor)
        return self

    def _execute_and_fetch(self, sql: str, parameters: Any) -> list[Any]:
        return self._cursor.execute(sql, parameters).fetchmany(FIRST_ROWS)

    async def fetchone(self) -> Any:
        return next(iter(await self.fetchmany(1)), None)

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        size = size or self.arraysize
        if self._has_more and len(self._rows) < size:
            fetched = list(await super().fetchmany(max(size, FIRST_ROWS)))
            self._has_more = bool(fetched)
            self._rows += fetched
        rows, self._rows = self._rows[:size], self._rows[size:]
        return rows

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        if self._has_more:
            rows += await super().fetchall()
            self._has_more = False
        return rows

    async def close(self) -> None:
        self._rows = []
        if self._has_more:
            self._has_more = False
            await super().close()
