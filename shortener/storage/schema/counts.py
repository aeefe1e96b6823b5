"""The tables of the counts that the statistics read."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, SmallInteger, Table, Text

from shortener.storage.schema.base import RowId, metadata, partial_index
from shortener.storage.types import Json, Money

#: Count deltas that were not yet added to `counts`. Each transaction that changes counts adds one row.
count_deltas = Table(
    "tallies",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("data", Json, nullable=False),  # The result of outbox.count_deltas.CountDelta.data.
    Column("origins", Json),  # The result of outbox.count_deltas.CountDelta.origins. NULL: an older version wrote the row.
)

#: The condition of the index `counts_not_rolled_up`. It is true for counts that a process of an older version wrote, because such
#: a process does not roll them up.
NOT_ROLLED_UP = "rolled_up IS NULL OR rolled_up <> amount"

#: Counts for each cohort, metric and time slot of 15 minutes. In every time zone, a day consists of whole time slots.
counts = Table(
    "counts",
    metadata,
    Column("cohort_id", Integer, primary_key=True, autoincrement=False),
    # The time slot: the number of quarters of an hour since 1970.
    Column("quarter", Integer, primary_key=True, autoincrement=False),
    Column("metric", Text, primary_key=True),
    Column("amount", Money, nullable=False),
    Column("rolled_up", Money),  # The part of the amount that is already in the table `rollups`.
    partial_index(
        "counts_not_rolled_up",
        "quarter",
        "cohort_id",
        where=NOT_ROLLED_UP,
    ),
)

#: Link sets: the destination (host and path) and the label of each link of a message. Messages with the same links share one link
#: set. A campaign has at most 200 destinations and 200 labels; any further ones are stored as "other".
link_sets = Table(
    "link_sets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False),
    Column("campaign", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),  # A hash of the application, the campaign and the links.
    Column("links", Json, nullable=False),  # The links of the set as JSON: [[destination, label or null], ...].
    Index("link_sets_by_campaign", "application_id", "campaign"),
)

#: The groups of the rolled-up counts. reporting/rollups.py describes the values of `kind`. A column that a kind does not use is
#: "".
count_groups = Table(
    "count_groups",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # The id is a hash of the other columns.
    Column("application_id", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("campaign", Text, nullable=False),
    Column("country", Text, nullable=False),
    Column("name", Text, nullable=False),  # The destination or the label of the group.
    Index("count_groups_by_kind", "application_id", "kind", "campaign"),
)

#: Rolled-up counts. `series` stands for the length of a period and for the basis: an event counts either at its own time or at
#: the time of its message (reporting/rollups.py). `period` is the number of periods of this length since 1970.
rollups = Table(
    "rollups",
    metadata,
    Column("group_id", BigInteger, primary_key=True, autoincrement=False),
    Column("series", SmallInteger, primary_key=True, autoincrement=False),
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("data", Json, nullable=False),  # The amounts by metric: integers, and decimal strings for amounts of money.
    sqlite_with_rowid=False,
)
