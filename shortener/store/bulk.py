"""Many rows into one table with one statement, whatever their number: `json_each` on SQLite, `unnest` on PostgreSQL.

Values are given as they are stored (milliseconds, JSON text, numbers of enums), in the order of the columns: these statements
run thousands of times a second, and `executemany` on SQLite hands the interpreter lock over for every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import BigInteger, Boolean, Connection, Integer, SmallInteger, Table, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

# SmallInteger and BigInteger are Integers too: the narrow ones come first.
_ARRAYS: tuple[tuple[type[TypeEngine[Any]], str], ...] = (
    (SmallInteger, "smallint[]"),
    (BigInteger, "bigint[]"),
    (Integer, "int[]"),
    (Boolean, "bool[]"),
    (Text, "text[]"),
)


class BulkInsert:
    """INSERT of rows with these columns; `ignore_clashes` leaves rows out that a unique index refuses."""

    def __init__(self, table: Table, *columns: str, ignore_clashes: bool = False) -> None:
        into = f"INSERT INTO {table.name} ({', '.join(columns)}) "
        clash = " ON CONFLICT DO NOTHING" if ignore_clashes else ""
        values = ", ".join(f"value ->> {index}" for index in range(len(columns)))
        # WHERE true: without it SQLite reads ON CONFLICT as a join condition.
        self._sqlite = f"{into}SELECT {values} FROM json_each(?) WHERE true{clash}"
        arrays = ", ".join(f"${index + 1}::{_array_of(table, name)}" for index, name in enumerate(columns))
        self._postgresql = f"{into}SELECT * FROM unnest({arrays}){clash}"

    def __call__(self, connection: Connection, rows: Sequence[tuple[object, ...]]) -> None:
        if not rows:
            return
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(self._sqlite, (orjson.dumps(rows).decode(),))
        else:
            connection.exec_driver_sql(self._postgresql, tuple(list(column) for column in zip(*rows, strict=True)))


def _array_of(table: Table, column: str) -> str:
    kind = table.c[column].type
    if isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    return next(array for python, array in _ARRAYS if isinstance(kind, python))
