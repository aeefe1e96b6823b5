"""Statements of SQLite past SQLAlchemy, whose own work on each of them is more than SQLite's.

For the few that run for every batch of hits, conversions or deliveries. They belong to the transaction of the connection, and
errors are SQLAlchemy's, so callers and `store_errors` see no difference.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


def execute(connection: Connection, statement: str, *parameters: object) -> sqlite3.Cursor:
    """Run a statement of SQLite's own words on the writer's connection. Raises what SQLAlchemy would."""
    driver: Any = connection.connection.driver_connection
    try:
        cursor: sqlite3.Cursor = driver.execute(statement, parameters)
    except sqlite3.Error as error:
        raise DBAPIError.instance(
            statement, None, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect
        ) from error
    return cursor


def value(connection: Connection, statement: str, *parameters: object) -> Any:
    """The one value of the one row of a query, on any connection."""
    if connection.dialect.is_async:  # a reader's, which lives in a thread of aiosqlite
        return connection.exec_driver_sql(statement, parameters).scalar_one()
    cursor = execute(connection, statement, *parameters)
    found = cursor.fetchone()[0]
    cursor.close()  # or the statement would hold its snapshot
    return found


def rows(connection: Connection, statements: Mapping[str, str], *values: object) -> Sequence[Sequence[Any]]:
    """Rows of a statement that is written for each engine. SQLite's answers with one JSON array, since each row that is fetched
    hands the interpreter lock over. Lists among the values become one JSON text on SQLite and arrays on PostgreSQL."""
    if connection.dialect.name == "sqlite":
        packed = [orjson.dumps(one).decode() if isinstance(one, list) else one for one in values]
        found: list[list[Any]] = orjson.loads(value(connection, statements["sqlite"], *packed))
        return found
    return connection.exec_driver_sql(statements["postgresql"], values).all()


def bulk_parameters(connection: Connection, of_rows: Sequence[Sequence[object]]) -> tuple[object, ...]:
    """Rows that the caller has in hand, some at least, as parameters: one JSON text of them all on SQLite, an array for each of
    their columns on PostgreSQL."""
    if connection.dialect.name == "sqlite":
        return (orjson.dumps([tuple(row) for row in of_rows]).decode(),)
    return tuple(list(column) for column in zip(*of_rows, strict=True))


def execute_bulk(connection: Connection, statements: Mapping[str, str], of_rows: Sequence[Sequence[object]]) -> int:
    """Run a statement that is written for each engine and takes `bulk_parameters`; returns how many rows it changed."""
    if not of_rows:
        return 0
    values = bulk_parameters(connection, of_rows)
    if connection.dialect.name == "sqlite":
        return execute(connection, statements["sqlite"], *values).rowcount
    return connection.exec_driver_sql(statements["postgresql"], values).rowcount
