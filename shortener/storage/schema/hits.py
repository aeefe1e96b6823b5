"""The tables of hits and of dead letters."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, SmallInteger, Table, Text, TextClause, text

from shortener.storage.schema.base import RowId, metadata, partial_index
from shortener.storage.types import Instant

#: The condition of the index `hits_by_link`: hits that are not the first click of their message. First clicks are found by the
#: column `first_clicks.hit_id`. An entry in the index would make every first click write another page.
OTHER_HITS = "flags & 2 = 0"


def other_hits(name: str = "hits") -> TextClause:
    """Return the SQL condition of the index `hits_by_link` for a table name. SQLite uses the index only for this exact text."""
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
    # The verdict of the hit when it was recorded. NULL: the verdict is unchanged (clicks/verdicts/reclassify.py).
    Column("first_verdict", SmallInteger),
    Column("first_rule", Text),
    # The ISO 3166 code of the country of the client's IP address; NULL if it is unknown, or if no network list was configured.
    Column("country", Text),
    # The device and the browser of a hit whose user agent an erasure or the purge has removed, in the form of
    # `clicks.user_agents.device_class`. NULL for other hits.
    Column("device_class", Text),
    partial_index("hits_by_link", "link_id", where=OTHER_HITS),
)

#: Dead letters: hits that can never be stored (clicks/dead_letters.py).
hits_dead_letter = Table(
    "hits_dead_letter",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hit", Text, nullable=False),  # The hit as JSON, or the text of a spool entry that is not a hit.
    Column("code", Text, index=True),  # The code of the link; NULL if the spool entry is not a hit.
    Column("reason", Text, nullable=False),
    Column("at", Instant, nullable=False, index=True),  # The time when the hit became a dead letter.
)
