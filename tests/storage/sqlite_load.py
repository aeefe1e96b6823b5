"""Helpers for tests of a SQLite database under load: they create a database with one table and write to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from sqlalchemy import Connection

from shortener.storage.sqlite import SqliteDatabase
from tests.servers import PATIENCE


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[SqliteDatabase]:
    """Yield a new SQLite database with one table. It is opened as a server opens it."""
    database = SqliteDatabase(path, owner=True)
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY, v TEXT)"))
    try:
        yield database
    finally:
        await database.close()


def count_rows(connection: Connection) -> int:
    number: int = connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one()
    return number


def add(connection: Connection, rows: int) -> None:
    """Insert rows of at least 100 bytes."""
    connection.exec_driver_sql(
        "WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c WHERE n < ?) "
        "INSERT INTO t (v) SELECT hex(randomblob(50)) FROM c",
        (rows,),
    )


async def commit_until(database: SqliteDatabase, is_done: Callable[[], bool], rows: int = 1) -> None:
    """Commit transactions without a pause until `is_done` returns True."""
    async with asyncio.timeout(PATIENCE):
        while not is_done():
            await database.write(add, rows)
