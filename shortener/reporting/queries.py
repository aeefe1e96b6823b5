"""Functions that lists and reports share. They return the ids of a period, and the rows of an SQL statement."""
# Tested by tests/reporting/test_statistics.py

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Connection, Select, func, select

from shortener.ids import MAX_ROW_ID, first_id_at
from shortener.storage.types import to_ms

#: The maximum difference between the time of a row and the time in its id. The two times may come from different clocks.
CLOCK_TOLERANCE = timedelta(hours=1)


def id_range(since: datetime | None, until: datetime | None, tolerance: timedelta = CLOCK_TOLERANCE) -> tuple[int, int]:
    """Return the limits of the ids that the rows of a period can have: the lowest id (included) and the highest id (excluded). If
    `since` or `until` is None, the period has no limit on this side.

    `tolerance` is the maximum difference between the time of a row and the time in its id."""
    low = 0 if since is None else first_id_at(to_ms(since - tolerance))
    high = MAX_ROW_ID if until is None else first_id_at(to_ms(until + tolerance))
    return low, high


def fetch_packed(connection: Connection, statement: Select[Any]) -> Sequence[Sequence[Any]]:
    """Return the rows of a statement whose columns are numbers and texts, without times.

    On SQLite, all rows are fetched as one JSON text. If they were fetched one by one, the interpreter lock would pass to the
    event loop and back for each row."""
    if connection.dialect.name == "sqlite":
        rows = statement.subquery()
        found: list[list[Any]] = orjson.loads(
            connection.execute(select(func.json_group_array(func.json_array(*rows.c)))).scalar_one()
        )
        return found
    return connection.execute(statement).all()
