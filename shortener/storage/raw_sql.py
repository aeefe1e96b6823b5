"""This module executes hand-written SQL statements that run for every batch of hits, conversions or deliveries.

On SQLite, these statements bypass SQLAlchemy, because SQLAlchemy needs more time for a statement than SQLite itself. The statements
are part of the transaction of the connection. Errors are the same exceptions as those of SQLAlchemy, so callers and `store_errors`
handle them in the same way.
"""

# Tested by tests/storage/test_bulk.py

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


def execute(connection: Connection, statement: str, *parameters: object) -> sqlite3.Cursor:
    """Run a SQLite statement on the writer's connection. Raise the exceptions of SQLAlchemy."""
    driver: Any = connection.connection.driver_connection
    try:
        cursor: sqlite3.Cursor = driver.execute(statement, parameters)
    except sqlite3.Error as error:
        raise DBAPIError.instance(
            statement, None, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect
        ) from error
    return cursor


def value(connection: Connection, statement: str, *parameters: object) -> Any:
    """Run a SQLite query and return its single value. This works on connections of the writer and of readers."""
    if connection.dialect.is_async:  # A reader's connection belongs to a thread of aiosqlite, so only SQLAlchemy can use it.
        return connection.exec_driver_sql(statement, parameters).scalar_one()
    cursor = execute(connection, statement, *parameters)
    found = cursor.fetchone()[0]
    cursor.close()  # Close the cursor, because an open statement would keep its snapshot of the database.
    return found


def rows(connection: Connection, statements: Mapping[str, str], *values: object) -> Sequence[Sequence[Any]]:
    """Return the rows of a query that has one statement for each engine.

    The SQLite statement must return one JSON array of rows. If Python fetched rows one by one, it would release the interpreter
    lock for each row, which takes time. A list in `values` becomes one JSON text on SQLite and an array on PostgreSQL."""
    if connection.dialect.name == "sqlite":
        packed = [orjson.dumps(one).decode() if isinstance(one, list) else one for one in values]
        found: list[list[Any]] = orjson.loads(value(connection, statements["sqlite"], *packed))
        return found
    return connection.exec_driver_sql(statements["postgresql"], values).all()


def bulk_parameters(connection: Connection, rows: Sequence[Sequence[object]]) -> tuple[object, ...]:
    """Return one or more rows as SQL parameters: one JSON text of all rows on SQLite, one array for each column on PostgreSQL."""
    if connection.dialect.name == "sqlite":
        return (orjson.dumps([tuple(row) for row in rows]).decode(),)
    return tuple(list(column) for column in zip(*rows, strict=True))


def execute_bulk(connection: Connection, statements: Mapping[str, str], rows: Sequence[Sequence[object]]) -> int:
    """Run a statement with `bulk_parameters` for these rows. Return how many rows it changed.

    `statements` has one statement for each engine. If there are no rows, run no statement."""
    if not rows:
        return 0
    values = bulk_parameters(connection, rows)
    if connection.dialect.name == "sqlite":
        return execute(connection, statements["sqlite"], *values).rowcount
    return connection.exec_driver_sql(statements["postgresql"], values).rowcount
