"""This module inserts many rows with one statement: with VALUES on SQLite, and with `unnest` on PostgreSQL.

On PostgreSQL, `insert_all` inserts the rows of several tables with one statement. A transaction then waits for one response of
the server, and not for one response per table.

Callers pass the values in their stored form (milliseconds, JSON text, numbers of enums) and in the order of the columns.
Conversions would cost too much, because these statements run thousands of times a second. Two other methods are slower on SQLite:
`executemany` releases the interpreter lock for every row, and rows in one JSON text cost three times as much as bound parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, count
from typing import Any

import orjson
from sqlalchemy import BigInteger, Boolean, Column, Connection, Float, Integer, SmallInteger, Table, Text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.types import TypeDecorator, TypeEngine

from shortener.storage import raw_sql

# SmallInteger and BigInteger must come before Integer in this list, because they are subclasses of Integer.
_ARRAYS: tuple[tuple[type[TypeEngine[Any]], str], ...] = (
    (SmallInteger, "smallint[]"),
    (BigInteger, "bigint[]"),
    (Integer, "int[]"),
    (Boolean, "bool[]"),
    (Float, "float8[]"),
    (Text, "text[]"),
)


#: The maximum number of rows of one SQLite statement. For each number of rows, SQLite prepares and caches another statement.
MAX_ROWS_PER_STATEMENT = 128


class BulkInsert:
    """An INSERT statement for many rows of a table. `columns` are the columns whose values the rows contain.

    `on_conflict` is the SQL after ON CONFLICT, such as DO NOTHING. If it is empty, a row that violates a unique index causes an
    error."""

    def __init__(self, table: Table, *columns: str, on_conflict: str = "") -> None:
        self._into = f"INSERT INTO {table.name} ({', '.join(columns)}) "
        self._conflict = f" ON CONFLICT {on_conflict}" if on_conflict else ""
        self._row = f"({', '.join('?' * len(columns))})"
        self._sqlite: dict[int, str] = {}  # The SQLite statements. The key is the number of rows.
        self._arrays = [_array_of(table, name) for name in columns]
        self._postgresql = self.from_arrays(count(1))

    def __call__(self, connection: Connection, rows: Sequence[tuple[object, ...]]) -> int:
        """Insert the rows. Return the number of inserted rows."""
        if not rows:
            return 0
        if connection.dialect.name == "postgresql":
            return connection.exec_driver_sql(self._postgresql, _columns(rows)).rowcount
        written = 0
        for start in range(0, len(rows), MAX_ROWS_PER_STATEMENT):
            piece = rows[start : start + MAX_ROWS_PER_STATEMENT]
            written += raw_sql.execute(connection, self._values(len(piece)), *chain.from_iterable(piece)).rowcount
        return written

    def from_arrays(self, numbers: Iterable[int]) -> str:
        """Return the PostgreSQL INSERT statement whose parameters are arrays, one for the values of each column. `numbers` yields
        the numbers of the parameters."""
        arrays = ", ".join(f"${number}::{array}" for array, number in zip(self._arrays, numbers, strict=False))
        return f"{self._into}SELECT * FROM unnest({arrays}){self._conflict}"

    def _values(self, rows: int) -> str:
        if (statement := self._sqlite.get(rows)) is None:
            statement = self._sqlite[rows] = f"{self._into}VALUES {', '.join([self._row] * rows)}{self._conflict}"
        return statement


class ForbiddenTexts:
    """Texts that the new rows of a table must not contain, such as the codes of purged links. They are stored in `column`, the
    primary key of another table."""

    def __init__(self, column: Column[str]) -> None:
        name, table = column.name, column.table.name
        self._queries = {
            "sqlite": f"SELECT EXISTS (SELECT 1 FROM json_each(?) JOIN {table} ON {table}.{name} = json_each.value)",
            "postgresql": f"SELECT EXISTS (SELECT 1 FROM {table} WHERE {name} = ANY($1::text[]))",
        }

    def find_any(self, connection: Connection, texts: Sequence[str]) -> bool:
        """Return whether one of the texts is forbidden."""
        if connection.dialect.name == "sqlite":
            return bool(raw_sql.value(connection, self._queries["sqlite"], orjson.dumps(texts).decode()))
        return bool(connection.exec_driver_sql(self._queries["postgresql"], (list(texts),)).scalar_one())


def insert_all(
    connection: Connection,
    *inserts: tuple[BulkInsert, Sequence[tuple[object, ...]]],
    unless: tuple[ForbiddenTexts, Sequence[str]] | None = None,
) -> None:
    """Insert the rows of each BulkInsert. If this needs several statements, they run in the given order.

    `unless` contains forbidden texts, and the texts of the new rows that must not be among them. If one of them is forbidden,
    raise IntegrityError. The caller must then roll back the transaction."""
    present = [(insert, rows) for insert, rows in inserts if rows]
    if connection.dialect.name == "postgresql" and len(present) > 1:
        parameters = tuple(chain.from_iterable(_columns(rows) for _, rows in present))
        connection.exec_driver_sql(_together(tuple(insert for insert, _ in present)), parameters)
    else:
        for insert, rows in present:
            insert(connection, rows)
    # Check the texts in a statement after the insert. The insert may have waited for another transaction that deletes a text from
    # a unique index and makes it a forbidden text. On PostgreSQL, only a statement that begins after that transaction sees the
    # forbidden text.
    if unless is not None and unless[1] and unless[0].find_any(connection, unless[1]):
        raise IntegrityError("a row has a forbidden text", None, Exception("forbidden text"))


@lru_cache(maxsize=64)
def _together(inserts: tuple[BulkInsert, ...]) -> str:
    numbers = count(1)
    *first, last = (insert.from_arrays(numbers) for insert in inserts)
    named = ", ".join(f"part{index} AS ({part})" for index, part in enumerate(first))
    return f"WITH {named} {last}"


def _columns(rows: Sequence[tuple[object, ...]]) -> tuple[list[object], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def _array_of(table: Table, column: str) -> str:
    kind = table.c[column].type
    if isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    return next(array for python, array in _ARRAYS if isinstance(kind, python))
