"""This module passes rows from memory to an SQL statement, as a table that the statement can join.

The text of the statement and the number of its parameters do not depend on the number of rows. With `IN (...)`, each number of
rows would need another prepared statement, and the number of rows would be limited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    Connection,
    FromClause,
    Integer,
    Text,
    bindparam,
    column,
    func,
    literal_column,
    select,
    type_coerce,
)

ColumnType = type[BigInteger] | type[Integer] | type[Text]


def values_table(connection: Connection, rows: Iterable[tuple[int | str, ...]], **columns: ColumnType) -> FromClause:
    """Return an SQL table expression with these rows.

    `columns` are the names and types of its columns, in the order of the values in a row."""
    values = list(rows)
    if connection.dialect.name == "sqlite":
        return _json_table(bindparam(None, orjson.dumps(values).decode(), Text), columns)
    arrays = [
        bindparam(None, [row[index] for row in values], ARRAY(kind), unique=True) for index, kind in enumerate(columns.values())
    ]
    return _array_table(arrays, columns)


def parameter_table(dialect: str, name: str, /, **columns: ColumnType) -> FromClause:
    """Return an SQL table expression whose rows are parameters. `table_parameters` with the same `name` returns these parameters.

    A statement with this expression can be built once and executed with different rows. `dialect` is the name of the engine."""
    if dialect == "sqlite":
        return _json_table(bindparam(name, type_=Text), columns)
    return _array_table([bindparam(f"{name}_{index}", type_=ARRAY(kind)) for index, kind in enumerate(columns.values())], columns)


def table_parameters(dialect: str, name: str, rows: Sequence[tuple[int | str, ...]]) -> dict[str, object]:
    """Return one or more rows as the parameters of a statement that contains a `parameter_table`."""
    if dialect == "sqlite":
        return {name: orjson.dumps(rows).decode()}
    return {f"{name}_{index}": list(values) for index, values in enumerate(zip(*rows, strict=True))}


def _json_table(packed: BindParameter[Any], columns: Mapping[str, ColumnType]) -> FromClause:
    """Return a table expression for SQLite, whose rows come from a JSON text."""
    value = func.json_each(packed).table_valued("value", name="input_json").c.value
    fields = [
        type_coerce(value.op("->>")(literal_column(str(index))), kind).label(name)
        for index, (name, kind) in enumerate(columns.items())
    ]
    return select(*fields).subquery("input_rows")


def _array_table(arrays: Iterable[BindParameter[Any]], columns: Mapping[str, ColumnType]) -> FromClause:
    """Return a table expression for PostgreSQL, whose rows come from arrays, one array for each column."""
    typed = [column(name, kind) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*typed).render_derived(name="input_rows")
