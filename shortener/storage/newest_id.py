"""This module finds the newest row id in the database. A process that starts must generate larger ids.

Ids contain the time. If the clock was set back while no process ran, new ids could be equal to existing ones, and new rows would
not be sorted as the newest.
"""

# Tested by tests/storage/test_newest_id.py

from __future__ import annotations

from sqlalchemy import Connection, func, select

from shortener.ids import IdGenerator, ms_of
from shortener.storage import schema
from shortener.storage.database import Database

#: The newest id is ignored if its time is further in the future than this. Such an id was created while a clock was wrong by days.
#: If new ids continued after it, all of them would contain the wrong time.
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
    """Make `ids` generate only ids that are larger than those of existing rows. Raise StoreUnavailable if the database is
    unavailable."""
    newest = await database.read(_find_newest)
    if newest and ms_of(newest) - now_ms <= MAX_AHEAD_MS:
        ids.continue_after(newest)


def _find_newest(connection: Connection) -> int:
    """Return the largest row id in the primary keys of the tables; 0 if there are no rows."""
    largest = (select(func.max(table.c.id)).scalar_subquery() for table in _TABLES)
    return max(row_id or 0 for row_id in connection.execute(select(*largest)).one())
