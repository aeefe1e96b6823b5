"""This module finds the newest row id in the database. A process that starts must generate larger ids.

Ids contain the time, and the clock may have been set back while no process ran. Without this module, new ids could then be equal
to existing ids, and new rows would not come last in the order of ids.
"""

# Tested by tests/storage/test_newest_id.py

from __future__ import annotations

from sqlalchemy import Connection, select

from shortener.ids import IdGenerator, ms_of
from shortener.storage import schema
from shortener.storage.database import Database

#: If the time in the newest id is further in the future than this, the id is ignored. It was created while a clock was wrong by
#: days. New ids that are larger than it would all contain a wrong time.
MAX_AHEAD_MS = 26 * 3_600_000

_TABLES = (
    schema.hits,
    schema.events,
    schema.messages,
    schema.links,
    schema.deliveries,
    schema.attempts,
    schema.conversions,
    schema.count_deltas,
)


async def continue_ids(database: Database, ids: IdGenerator, now_ms: int) -> None:
    """Let `ids` generate only ids that are larger than the ids of all existing rows. Raise StoreUnavailable if the database is
    unavailable."""
    newest = await database.read(_find_newest)
    if newest and ms_of(newest) - now_ms <= MAX_AHEAD_MS:
        ids.continue_after(newest)


#: Select the largest id of each table. PostgreSQL plans this query twice as fast as a query with `max(id)`.
_LARGEST = select(*(select(table.c.id).order_by(table.c.id.desc()).limit(1).scalar_subquery() for table in _TABLES))


def _find_newest(connection: Connection) -> int:
    """Return the largest row id in the primary keys of the tables, or 0 if there are no rows."""
    return max(row_id or 0 for row_id in connection.execute(_LARGEST).one())
