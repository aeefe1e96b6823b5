"""Rows that the caller has in hand, as a table to join: one statement text and few parameters, whatever the number of rows.

Instead of `IN (...)`, whose text changes with every length (and is prepared anew each time) and whose parameters are limited.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson
from sqlalchemy import (
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
from sqlalchemy.dialects.postgresql import ARRAY

Kind = type[BigInteger] | type[Integer] | type[Text]


def values_table(connection: Connection, rows: Iterable[tuple[int | str, ...]], **columns: Kind) -> FromClause:
    """A table `values_table` of these rows, with the columns named, in their order."""
    kept = list(rows)
    if connection.dialect.name == "sqlite":
        packed = bindparam(None, orjson.dumps(kept).decode(), Text)
        value = func.json_each(packed).table_valued("value", name="given_json").c.value
        fields = [
            type_coerce(value.op("->>")(literal_column(str(index))), kind).label(name)
            for index, (name, kind) in enumerate(columns.items())
        ]
        return select(*fields).subquery("given")
    arrays = [
        bindparam(None, [row[index] for row in kept], ARRAY(kind), unique=True) for index, kind in enumerate(columns.values())
    ]
    typed = [column(name, kind) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*typed).render_derived(name="given")
