"""The tables of hits and of dead letters."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, SmallInteger, Table, Text, TextClause, text

from shortener.storage.schema.base import RowId, metadata, partial_index
from shortener.storage.types import Instant

#: The condition of the index `hits_by_link`. It leaves out hits that are the first click of their message; they are found by the
#: column `first_clicks.hit_id`. With these hits in the index, every first click would write one more page.
OTHER_HITS = "flags & 2 = 0"


def other_hits(name: str = "hits") -> TextClause:
    """Return the condition of the index `hits_by_link` as SQL. `name` is the name or alias of the table in the query. SQLite uses
    the index only if a query contains exactly this condition."""
    return text(f"{name}.{OTHER_HITS}")


hits = Table(
    "hits",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("link_id", BigInteger, nullable=False),
    Column("at", Instant, nullable=False),
    Column("verdict", SmallInteger, nullable=False),
    Column("rule", Text, nullable=False),
    Column("flags", SmallInteger, nullable=False),  # The bits of model.HitFlag.
    Column("address", Text, nullable=False),
    Column("user_agent", Text, nullable=False),
    # The first verdict of a hit that was classified again (clicks/verdicts/reclassify.py). NULL: the verdict did not change.
    Column("first_verdict", SmallInteger),
    Column("first_rule", Text),
    # The ISO 3166 code of the country of the client's IP address. NULL: the country is unknown, or no network list was
    # configured.
    Column("country", Text),
    # If an erasure or the purge has removed the user agent of the hit: the device and the browser in the form of
    # `clicks.user_agents.device_class`. NULL for other hits.
    Column("device_class", Text),
    partial_index("hits_by_link", "link_id", where=OTHER_HITS),
)

#: Dead letters: hits that can never be stored (clicks/dead_letters.py).
hits_dead_letter = Table(
    "hits_dead_letter",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hit", Text, nullable=False),  # The hit as JSON. If a spool entry was not a hit: the text of the entry.
    Column("code", Text, index=True),  # The code of the link. NULL: the spool entry was not a hit.
    Column("reason", Text, nullable=False),
    Column("at", Instant, nullable=False, index=True),  # The time when the hit became a dead letter.
)
