"""This module passes rows from memory to an SQL statement as a table that it can join.

The text of the statement and the number of parameters do not depend on the number of rows. With `IN (...)`, each number of rows
would need another prepared statement, and the number of parameters is limited.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson
from sqlalchemy import (
    ARRAY,
    BigInteger,
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
        packed = bindparam(None, orjson.dumps(values).decode(), Text)
        value = func.json_each(packed).table_valued("value", name="input_json").c.value
        fields = [
            type_coerce(value.op("->>")(literal_column(str(index))), kind).label(name)
            for index, (name, kind) in enumerate(columns.items())
        ]
        return select(*fields).subquery("input_rows")
    arrays = [
        bindparam(None, [row[index] for row in values], ARRAY(kind), unique=True) for index, kind in enumerate(columns.values())
    ]
    typed = [column(name, kind) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*typed).render_derived(name="input_rows")
