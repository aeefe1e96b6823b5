"""This module implements the connections of readers of a SQLite database: connections of aiosqlite with fewer changes of thread.

aiosqlite runs each call in the thread of its connection, and SQLAlchemy makes four calls for a statement: it creates a cursor,
executes, fetches the rows and closes the cursor. A change to another thread and back takes longer than most statements. So here a
cursor is created without the thread, the call that executes also fetches the first rows, and a cursor without further rows needs no
close. A statement that returns at most FIRST_ROWS rows changes to the thread once.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite
from aiosqlite.context import contextmanager

#: The number of rows that the call that executes a statement also fetches.
FIRST_ROWS = 1000


async def connect_reader(path: Path) -> aiosqlite.Connection:
    """Open a SQLite file for reading. Statements run without a transaction until BEGIN."""

    def connect() -> sqlite3.Connection:
        uri = f"file:{quote(str(path))}?mode=ro"
        # Objects are created in the event loop's thread, and SQLite is called in the connection's thread.
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    return await ReaderConnection(connect, iter_chunk_size=64)


class ReaderConnection(aiosqlite.Connection):
    """A connection whose thread does not delay the end of the process, and whose cursors are `ReaderCursor`."""

    def __init__(self, connector: Any, iter_chunk_size: int) -> None:
        super().__init__(connector, iter_chunk_size)
        self._thread.daemon = True

    @contextmanager
    async def cursor(self) -> aiosqlite.Cursor:
        return ReaderCursor(self, self._conn.cursor())

    async def close(self) -> None:
        """Close the connection. A statement that still runs, because its caller was cancelled, is interrupted."""
        with contextlib.suppress(ValueError):  # The connection is already closed.
            await self.interrupt()
        await super().close()


class ReaderCursor(aiosqlite.Cursor):
    """A cursor that executes a statement and fetches its first rows with one change of thread."""

    def __init__(self, connection: aiosqlite.Connection, cursor: sqlite3.Cursor) -> None:
        super().__init__(connection, cursor)
        self._rows: list[Any] = []
        self._has_more = False  # whether SQLite may have more rows than those in `_rows`

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> ReaderCursor:
        self._rows = await self._execute(self._execute_and_fetch, sql, parameters or ())  # type: ignore[no-untyped-call]
        self._has_more = len(self._rows) == FIRST_ROWS
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
