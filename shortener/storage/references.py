"""This module lists the references between tables, and finds rows that violate them.

`ENFORCED` contains references of tables that change rarely. The database enforces them: PostgreSQL with foreign keys, SQLite with
triggers (docs/decisions/0023). `VERIFIED` contains all other references, such as those of messages and clicks. The database does
not enforce them, because a check of each new row would slow down clicks. `shortener verify` reports rows that violate a reference
of either list.
"""

# Tested by tests/storage/test_references.py

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, and_, select

from shortener.storage import schema
from shortener.storage.database import Database

MAX_RANGE_ROWS = 50_000  # One query examines at most this number of rows, so that no transaction of `verify` is open for long.
MAX_ORPHANS = 20  # The maximum number of rows that are reported for each reference.


class Reference(NamedTuple):
    """A reference: a column that contains the `id` of a row of the table `parent`. NULL means no row."""

    column: Column[Any]
    parent: Any

    def __str__(self) -> str:
        return f"{self.column.table.name}.{self.column.name} -> {self.parent.name}.id"


class Orphan(NamedTuple):
    """A row that refers to a row that does not exist."""

    reference: str
    id: int


ENFORCED = (
    Reference(schema.domains.c.application_id, schema.applications),
    Reference(schema.api_keys.c.application_id, schema.applications),
    Reference(schema.tracker_tokens.c.application_id, schema.applications),
    Reference(schema.postback_keys.c.application_id, schema.applications),
    Reference(schema.trackers.c.application_id, schema.applications),
    Reference(schema.link_updates.c.application_id, schema.applications),
    Reference(schema.replays.c.application_id, schema.applications),
)

VERIFIED = (
    Reference(schema.processes.c.application_id, schema.applications),
    Reference(schema.cohorts.c.application_id, schema.applications),
    Reference(schema.messages.c.cohort_id, schema.cohorts),
    Reference(schema.links.c.message_id, schema.messages),
    Reference(schema.link_changes.c.link_id, schema.links),
    Reference(schema.first_clicks.c.id, schema.messages),
    Reference(schema.hits.c.link_id, schema.links),
    Reference(schema.conversions.c.message_id, schema.messages),
    Reference(schema.first_conversions.c.id, schema.messages),
    Reference(schema.conversion_revisions.c.conversion_id, schema.conversions),
    Reference(schema.deliveries.c.event_id, schema.events),
    Reference(schema.deliveries.c.replay_id, schema.replays),
    Reference(schema.attempts.c.delivery_id, schema.deliveries),
    Reference(schema.applications.c.gateway_id, schema.gateways),
    Reference(schema.sends.c.id, schema.messages),
    Reference(schema.sends.c.gateway_id, schema.gateways),
    Reference(schema.send_attempts.c.send_id, schema.sends),
)


async def find_orphans(database: Database) -> list[Orphan]:
    """Return the rows that violate a reference, at most MAX_ORPHANS for each reference. Raise StoreUnavailable if the database is
    unavailable."""
    orphans: list[Orphan] = []
    for reference in (*ENFORCED, *VERIFIED):
        after: int | None = -1
        found: list[Orphan] = []
        while after is not None and len(found) < MAX_ORPHANS:
            ids, after = await database.read(_find_in_range, reference, after)
            found += [Orphan(str(reference), row) for row in ids]
        orphans += found[:MAX_ORPHANS]
    return orphans


def _find_in_range(connection: Connection, reference: Reference, after: int) -> tuple[list[int], int | None]:
    """Examine the next rows of a table. Return the ids of the rows that violate the reference, and the id of the last examined
    row. This id is None if no row is left."""
    table, parent = reference.column.table, reference.parent
    end = connection.scalar(select(table.c.id).where(table.c.id > after).order_by(table.c.id).offset(MAX_RANGE_ROWS - 1).limit(1))
    in_range = table.c.id > after if end is None else and_(table.c.id > after, table.c.id <= end)
    named = parent.alias("referenced")
    missing = (
        select(table.c.id)
        .outerjoin_from(table, named, named.c.id == reference.column)
        .where(in_range, reference.column.is_not(None), named.c.id.is_(None))
        .order_by(table.c.id)
        .limit(MAX_ORPHANS)
    )
    return list(connection.scalars(missing)), end
