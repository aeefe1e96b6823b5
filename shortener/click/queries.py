"""The statements of a batch of hits, one set per engine: they run thousands of times a second.

Set-based on both (`json_each`, `unnest`): a batch costs the same handful of statements whatever its size. On SQLite each
statement, and each row fetched, hands the interpreter lock to the event loop and back, so a result comes as one JSON row.
`find` also reads the message, whose page the first click is about to write anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson
from sqlalchemy import Connection

from shortener.store import schema
from shortener.store.bulk import BulkInsert


class Target(NamedTuple):
    """What a code leads to, with what is known of its message. Times are ms since 1970."""

    code: str
    link_id: int
    message: int  # row id
    application_id: int
    cohort_id: int
    domain_id: int
    flags: int
    url: str
    location: str | None
    fallback_url: str | None
    expires_at: int
    clicked_at: int | None
    disabled_at: int | None
    state: int
    created_at: int
    sent_at: int | None
    delivered_at: int | None
    message_clicked_at: int | None


#: id, link_id, at, verdict, rule, flags, address, user_agent
HitRow = tuple[int, int, int, int, str, int, str, str]
#: id, application_id, topics, at, message_id, link_id, hit_id, data (JSON text or None), fanned_out
EventRow = tuple[int, int, int, int, int, int, int, str | None, bool]

_COLUMNS = (
    "l.code, l.id, l.message_id, l.application_id, l.cohort_id, l.domain_id, l.flags, l.url, l.location, l.fallback_url, "
    "l.expires_at, l.clicked_at, l.disabled_at, m.state, m.created_at, m.sent_at, m.delivered_at, m.clicked_at"
)

_FIND = {
    # CROSS JOIN: the order of the loops is ours, the few codes outside, the index inside.
    "sqlite": f"SELECT json_group_array(json_array({_COLUMNS})) FROM json_each(?) AS j "
    "CROSS JOIN links AS l ON l.code = j.value CROSS JOIN messages AS m ON m.id = l.message_id",
    "postgresql": f"SELECT {_COLUMNS} FROM links AS l JOIN messages AS m ON m.id = l.message_id WHERE l.code = ANY($1::text[])",
}

_CLAIM_LINKS = {
    "sqlite": "UPDATE links SET clicked_at = j.value ->> 1 FROM json_each(?) AS j "
    "WHERE links.id = j.value ->> 0 AND links.clicked_at IS NULL",
    # Rows are locked in the order of their ids, so that two nodes with overlapping batches cannot deadlock.
    "postgresql": "WITH won AS (SELECT id FROM links WHERE id = ANY($1::bigint[]) AND clicked_at IS NULL ORDER BY id FOR UPDATE) "
    "UPDATE links SET clicked_at = b.at FROM won JOIN unnest($1::bigint[], $2::bigint[]) AS b(id, at) ON b.id = won.id "
    "WHERE links.id = won.id RETURNING links.id",
}

_CLAIM_MESSAGES = {
    "sqlite": "UPDATE messages SET clicked_at = j.value ->> 1, previous_state = state, state = 50 FROM json_each(?) AS j "
    "WHERE messages.id = j.value ->> 0 AND messages.clicked_at IS NULL",
    "postgresql": "WITH won AS "
    "(SELECT id FROM messages WHERE id = ANY($1::bigint[]) AND clicked_at IS NULL ORDER BY id FOR UPDATE) "
    "UPDATE messages SET clicked_at = b.at, previous_state = state, state = 50 "
    "FROM won JOIN unnest($1::bigint[], $2::bigint[]) AS b(id, at) ON b.id = won.id "
    "WHERE messages.id = won.id RETURNING messages.id, messages.previous_state",
}

#: Rows of HitRow and EventRow.
insert_hits = BulkInsert(schema.hits, "id", "link_id", "at", "verdict", "rule", "flags", "address", "user_agent")
insert_events = BulkInsert(
    schema.events, "id", "application_id", "topics", "at", "message_id", "link_id", "hit_id", "data", "fanned_out"
)

_KNOWN = {
    "sqlite": "SELECT json_group_array(h.id) FROM json_each(?) AS j JOIN hits AS h ON h.id = j.value",
    "postgresql": "SELECT id FROM hits WHERE id = ANY($1::bigint[])",
}


def find(connection: Connection, codes: Iterable[str]) -> dict[str, Target]:
    """What each known code leads to."""
    engine = connection.dialect.name
    wanted = list(codes)
    if engine == "sqlite":
        packed = connection.exec_driver_sql(_FIND[engine], (_dumps(wanted),)).scalar_one()
        return {row[0]: Target._make(row) for row in orjson.loads(packed)}
    return {row[0]: Target._make(row) for row in connection.exec_driver_sql(_FIND[engine], (wanted,))}


def claim_links(connection: Connection, first: dict[int, int]) -> set[int]:
    """Set `clicked_at` (ms) of each link that has none yet; returns the links that this transaction was first on."""
    engine = connection.dialect.name
    if engine == "sqlite":
        # One writer, and `find` ran in this transaction: what it saw as unclicked still is.
        done = connection.exec_driver_sql(_CLAIM_LINKS[engine], (_dumps(list(first.items())),)).rowcount
        assert done == len(first), "a link was clicked between find and claim"
        return set(first)
    rows = connection.exec_driver_sql(_CLAIM_LINKS[engine], (list(first.keys()), list(first.values())))
    return {row[0] for row in rows}


def claim_messages(connection: Connection, first: dict[int, tuple[int, int]]) -> dict[int, int]:
    """Move each message that nobody clicked to CLICKTHRU. `first`: message -> (ms, state that `find` saw).

    Returns, for the messages that this transaction was first on, the state before."""
    engine = connection.dialect.name
    if engine == "sqlite":
        pairs = [(message, at) for message, (at, _) in first.items()]
        done = connection.exec_driver_sql(_CLAIM_MESSAGES[engine], (_dumps(pairs),)).rowcount
        assert done == len(first), "a message was clicked between find and claim"
        return {message: state for message, (_, state) in first.items()}
    arguments = (list(first.keys()), [at for at, _ in first.values()])
    return {row[0]: row[1] for row in connection.exec_driver_sql(_CLAIM_MESSAGES[engine], arguments)}


def known_hits(connection: Connection, ids: Sequence[int]) -> set[int]:
    """Which of these hits are stored already: asked only for a batch whose first commit may or may not have arrived."""
    engine = connection.dialect.name
    if engine == "sqlite":
        return set(orjson.loads(connection.exec_driver_sql(_KNOWN[engine], (_dumps(list(ids)),)).scalar_one()))
    return {row[0] for row in connection.exec_driver_sql(_KNOWN[engine], (list(ids),))}


def _dumps(value: object) -> str:
    return orjson.dumps(value).decode()
