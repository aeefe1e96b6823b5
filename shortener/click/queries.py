"""The statements of a batch of hits, one set per engine: they run thousands of times a second.

Set-based on both (`json_each`, `unnest`): a batch costs the same handful of statements whatever its size. On SQLite each
statement, and each row fetched, hands the interpreter lock to the event loop and back, so a result comes as one JSON row.
A click reads and writes no row of `messages`: what it needs of one its links know too, or `first_clicks`, whose rows are few and
small. What a message was before its click is told by the fan-out, which reads it anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import orjson
from sqlalchemy import BigInteger, Connection, func, select, type_coerce

from shortener.store import direct, schema
from shortener.store.bulk import BulkInsert
from shortener.store.given import given


class Target(NamedTuple):
    """What a code leads to, with what is known of its message. Times are ms since 1970."""

    code: str
    link_id: int
    message: int  # row id
    application_id: int
    cohort_id: int
    domain_id: int
    position: int
    flags: int
    url: str
    location: str | None
    fallback_url: str | None
    expires_at: int
    disabled_at: int | None
    clicked_links: int
    is_clicked: int  # the message: 0 or 1


#: A first click that a message may be waiting for: message, at, hit_id, bits. `bits`: the links clicked; the rest: the earliest.
Claim = tuple[int, int, int, int]

#: id, link_id, at, verdict, rule, flags, address, user_agent
HitRow = tuple[int, int, int, int, str, int, str, str]
#: id, application_id, topics, at, message_id, link_id, hit_id, fanned_out
EventRow = tuple[int, int, int, int, int, int, int, bool]

_COLUMNS = (
    "l.code, l.id, l.message_id, l.application_id, l.cohort_id, l.domain_id, l.position, l.flags, l.url, l.location, "
    "l.fallback_url, l.expires_at, l.disabled_at, coalesce(c.links, 0), c.at IS NOT NULL"
)
_CLICKS = "LEFT JOIN first_clicks AS c ON c.id = l.message_id"

_FIND = {
    # CROSS JOIN: the order of the loops is ours, the few codes outside, the index inside.
    "sqlite": f"SELECT json_group_array(json_array({_COLUMNS})) FROM json_each(?) AS j "
    f"CROSS JOIN links AS l ON l.code = j.value {_CLICKS}",
    "postgresql": f"SELECT {_COLUMNS} FROM links AS l {_CLICKS} WHERE l.code = ANY($1::text[])",
}

#: Rows of Claim: the links are added; the first to come is the first click of the message.
_click = BulkInsert(
    schema.first_clicks,
    *("id", "at", "hit_id", "links"),
    on_conflict="(id) DO UPDATE SET links = first_clicks.links | excluded.links, at = coalesce(first_clicks.at, excluded.at), "
    "hit_id = coalesce(first_clicks.hit_id, excluded.hit_id)",
)
#: Whoever writes a row of `first_clicks`, or a state, has locked the message; in the order of their ids, so that two nodes with
#: overlapping batches cannot deadlock. What stands there is read when the lock is held, by a statement of its own: one that waited
#: would still see what was there when it began.
_LOCK = "SELECT id FROM messages WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE"
_CLAIM = (
    "WITH before AS (SELECT id, links, at FROM first_clicks WHERE id = ANY($1::bigint[])), "
    f"claimed AS ({_click.from_arrays(range(1, 5))}) "
    "SELECT id, links, at IS NOT NULL FROM before"
)

#: Rows of HitRow and EventRow.
insert_hits = BulkInsert(schema.hits, "id", "link_id", "at", "verdict", "rule", "flags", "address", "user_agent")
insert_events = BulkInsert(schema.events, "id", "application_id", "topics", "at", "message_id", "link_id", "hit_id", "fanned_out")

_KNOWN = {
    "sqlite": "SELECT json_group_array(h.id) FROM json_each(?) AS j JOIN hits AS h ON h.id = j.value",
    "postgresql": "SELECT id FROM hits WHERE id = ANY($1::bigint[])",
}


def find(connection: Connection, codes: Iterable[str]) -> dict[str, Target]:
    """What each known code leads to."""
    engine = connection.dialect.name
    wanted = list(codes)
    if engine == "sqlite":
        packed = direct.value(connection, _FIND[engine], _dumps(wanted))
        make = tuple.__new__  # less than half of what Target._make takes
        return {row[0]: make(Target, row) for row in orjson.loads(packed)}
    return {row[0]: Target._make(row) for row in connection.exec_driver_sql(_FIND[engine], (wanted,))}


def claim(connection: Connection, claims: Sequence[Claim], seen: Mapping[int, Target]) -> dict[int, tuple[int, bool]]:
    """Take the first clicks that nobody took. `seen`: what `find` told of each message (any of its links).

    Returns for each message that is still there: the bits of the links that this transaction was first on, and whether it was first
    on the message too."""
    claims = sorted(claims)  # neighbours in the tree follow each other
    if connection.dialect.name == "sqlite":
        # One writer, and `find` ran in this transaction: what it saw as unclicked still is.
        _click(connection, claims)
        return {message: (bits, not seen[message].is_clicked) for message, _at, _hit, bits in claims}
    there = {row[0] for row in connection.exec_driver_sql(_LOCK, ([claim[0] for claim in claims],))}
    claims = [claim for claim in claims if claim[0] in there]  # the purge may have come between
    columns = tuple([claim[place] for claim in claims] for place in range(4))
    before = {row[0]: (row[1], row[2]) for row in connection.exec_driver_sql(_CLAIM, columns)}
    won: dict[int, tuple[int, bool]] = {}
    for message, _at, _hit, bits in claims:
        links, is_clicked = before.get(message, (0, False))
        won[message] = (bits & ~links, not is_clicked)
    return won


def known_hits(connection: Connection, ids: Sequence[int]) -> set[int]:
    """Which of these hits are stored already: asked only for a batch whose first commit may or may not have arrived."""
    engine = connection.dialect.name
    if engine == "sqlite":
        return set(orjson.loads(direct.value(connection, _KNOWN[engine], _dumps(list(ids)))))
    return {row[0] for row in connection.exec_driver_sql(_KNOWN[engine], (list(ids),))}


def count_links(connection: Connection, messages: Iterable[int]) -> dict[int, int]:
    """How many links each message has: asked only for applications that judge by it."""
    wanted = given(connection, [(message,) for message in messages], id=BigInteger)
    links = schema.links
    counted = select(links.c.message_id, func.count()).join_from(wanted, links, links.c.message_id == wanted.c.id)
    return {row[0]: row[1] for row in connection.execute(counted.group_by(links.c.message_id))}


def reports_of(connection: Connection, messages: Iterable[int]) -> dict[int, tuple[int | None, int | None]]:
    """When each message was sent and delivered, in ms since 1970: asked only for applications that judge by it."""
    wanted = given(connection, [(message,) for message in messages], id=BigInteger)
    times = [type_coerce(schema.messages.c[name], BigInteger) for name in ("sent_at", "delivered_at")]
    found = select(schema.messages.c.id, *times).join_from(wanted, schema.messages, schema.messages.c.id == wanted.c.id)
    return {row[0]: (row[1], row[2]) for row in connection.execute(found)}


def _dumps(value: object) -> str:
    return orjson.dumps(value).decode()
