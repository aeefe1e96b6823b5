"""This module executes hand-written SQL statements that run for every batch of hits, conversions or deliveries.

On SQLite, these statements bypass SQLAlchemy, because SQLAlchemy takes more time for a statement than SQLite itself. They still
run in the transaction of the connection. They raise the same exceptions as SQLAlchemy, so callers and `store_errors` handle all
errors in the same way.
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
    # The connection of a reader belongs to a thread of aiosqlite, so SQLAlchemy must run its query.
    if connection.dialect.is_async:
        return connection.exec_driver_sql(statement, parameters).scalar_one()
    cursor = execute(connection, statement, *parameters)
    found = cursor.fetchone()[0]
    cursor.close()  # Close the cursor. A statement that stays open would keep its snapshot of the database.
    return found


def rows(connection: Connection, statements: Mapping[str, str], *values: object) -> Sequence[Sequence[Any]]:
    """Run a query and return its rows. `statements` contains one statement for each engine.

    The SQLite statement must return one JSON array of rows. If Python fetched the rows one by one, it would release the
    interpreter lock for each row, which takes time. A list in `values` is passed as one JSON text on SQLite, and as an array on
    PostgreSQL."""
    if connection.dialect.name == "sqlite":
        packed = [orjson.dumps(one).decode() if isinstance(one, list) else one for one in values]
        found: list[list[Any]] = orjson.loads(value(connection, statements["sqlite"], *packed))
        return found
    return connection.exec_driver_sql(statements["postgresql"], values).all()


def bulk_parameters(connection: Connection, rows: Sequence[Sequence[object]]) -> tuple[object, ...]:
    """Return one or more rows as SQL parameters: on SQLite one JSON text of all rows, on PostgreSQL one array for each column."""
    if connection.dialect.name == "sqlite":
        return (orjson.dumps([tuple(row) for row in rows]).decode(),)
    return tuple(list(column) for column in zip(*rows, strict=True))


def execute_bulk(connection: Connection, statements: Mapping[str, str], rows: Sequence[Sequence[object]]) -> int:
    """Run a statement once for all these rows, which become its `bulk_parameters`. Return how many rows it changed.

    `statements` contains one statement for each engine. If there are no rows, run no statement."""
    if not rows:
        return 0
    values = bulk_parameters(connection, rows)
    if connection.dialect.name == "sqlite":
        return execute(connection, statements["sqlite"], *values).rowcount
    return connection.exec_driver_sql(statements["postgresql"], values).rowcount


def execute_returning_ids(connection: Connection, statements: Mapping[str, str], rows: Sequence[Sequence[object]]) -> set[int]:
    """Run a statement like `execute_bulk`. Return the ids in the first column of the rows that it returns."""
    if not rows:
        return set()
    values = bulk_parameters(connection, rows)
    if connection.dialect.name == "sqlite":
        return {row[0] for row in execute(connection, statements["sqlite"], *values).fetchall()}
    return {row[0] for row in connection.exec_driver_sql(statements["postgresql"], values)}
