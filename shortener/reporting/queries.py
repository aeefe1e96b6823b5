"""This module fetches the rows of SQL statements for reports."""
# Tested by tests/reporting/test_statistics.py

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, Select, func, select


def fetch_packed(connection: Connection, statement: Select[Any]) -> Sequence[Sequence[Any]]:
    """Return the rows of a statement whose columns are numbers and texts, without times.

    On SQLite, the rows are fetched as one row of JSON, because each fetched row passes the interpreter lock to the event loop and
    back."""
    if connection.dialect.name == "sqlite":
        rows = statement.subquery()
        found: list[list[Any]] = orjson.loads(
            connection.execute(select(func.json_group_array(func.json_array(*rows.c)))).scalar_one()
        )
        return found
    return connection.execute(statement).all()
