"""The statements of a batch of hits, one set per engine: they run thousands of times a second.

Set-based on both (`json_each`, `unnest`): a batch costs the same handful of statements whatever its size. On SQLite each
statement, and each row fetched, hands the interpreter lock to the event loop and back, so a result comes as one JSON row.
`find` also reads the message, whose page the first click is about to write anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import orjson
from sqlalchemy import BigInteger, Connection, func, select

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
    state: int
    created_at: int
    sent_at: int | None
    delivered_at: int | None
    clicked_links: int


#: A first click that a message may be waiting for: message, at, hit_id, bits. `bits`: the links clicked; the rest: the earliest.
Claim = tuple[int, int, int, int]

#: id, link_id, at, verdict, rule, flags, address, user_agent
HitRow = tuple[int, int, int, int, str, int, str, str]
#: id, application_id, topics, at, message_id, link_id, hit_id, data (JSON text or None), fanned_out
EventRow = tuple[int, int, int, int, int, int, int, str | None, bool]

_COLUMNS = (
    "l.code, l.id, l.message_id, l.application_id, l.cohort_id, l.domain_id, l.position, l.flags, l.url, l.location, "
    "l.fallback_url, l.expires_at, l.disabled_at, m.state, m.created_at, m.sent_at, m.delivered_at, m.clicked_links"
)

_FIND = {
    # CROSS JOIN: the order of the loops is ours, the few codes outside, the index inside.
    "sqlite": f"SELECT json_group_array(json_array({_COLUMNS})) FROM json_each(?) AS j "
    "CROSS JOIN links AS l ON l.code = j.value CROSS JOIN messages AS m ON m.id = l.message_id",
    "postgresql": f"SELECT {_COLUMNS} FROM links AS l JOIN messages AS m ON m.id = l.message_id WHERE l.code = ANY($1::text[])",
}

#: Sets the bits of the links; and, when it is the first click of the message, moves it to CLICKTHRU.
_CLICK = (
    "clicked_links = messages.clicked_links | {bits}, clicked_at = coalesce(messages.clicked_at, {at}), "
    "click_hit_id = coalesce(messages.click_hit_id, {hit}), "
    "previous_state = CASE WHEN messages.clicked_at IS NULL THEN messages.state ELSE messages.previous_state END, state = 50, "
    "room = NULL"
)

_CLAIM = {
    "sqlite": f"UPDATE messages SET {_CLICK.format(bits='j.value ->> 3', at='j.value ->> 1', hit='j.value ->> 2')} "
    "FROM json_each(?) AS j WHERE messages.id = j.value ->> 0 AND (messages.clicked_links & (j.value ->> 3)) = 0",
    # Rows are locked in the order of their ids, so that two nodes with overlapping batches cannot deadlock, and read again once
    # they are locked: `won` holds what each message was just before.
    "postgresql": "WITH batch AS "
    "(SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::int[]) AS b(id, at, hit, bits)), "
    "won AS (SELECT id, clicked_links, clicked_at, state FROM messages WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE) "
    f"UPDATE messages SET {_CLICK.format(bits='batch.bits', at='batch.at', hit='batch.hit')} "
    "FROM won JOIN batch USING (id) WHERE messages.id = won.id AND (won.clicked_links & batch.bits) <> batch.bits "
    "RETURNING messages.id, won.clicked_links, CASE WHEN won.clicked_at IS NULL THEN won.state END",
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
        packed = direct.value(connection, _FIND[engine], _dumps(wanted))
        make = tuple.__new__  # less than half of what Target._make takes
        return {row[0]: make(Target, row) for row in orjson.loads(packed)}
    return {row[0]: Target._make(row) for row in connection.exec_driver_sql(_FIND[engine], (wanted,))}


def claim(connection: Connection, claims: Sequence[Claim], seen: Mapping[int, Target]) -> dict[int, tuple[int, int | None]]:
    """Take the first clicks that nobody took. `seen`: what `find` told of each message (any of its links).

    Returns for each message: the bits of the links that this transaction was first on, and, if it was first on the message too,
    the state before; else None."""
    engine = connection.dialect.name
    if engine == "sqlite":
        # One writer, and `find` ran in this transaction: what it saw as unclicked still is.
        done = direct.execute(connection, _CLAIM[engine], _dumps(claims)).rowcount
        assert done == len(claims), "a message was clicked between find and claim"
        return {
            message: (bits, None if seen[message].clicked_links else seen[message].state) for message, _at, _hit, bits in claims
        }
    columns = tuple(list(column) for column in zip(*claims, strict=True))
    wanted = {message: bits for message, _at, _hit, bits in claims}
    rows = connection.exec_driver_sql(_CLAIM[engine], columns)
    return {message: (wanted[message] & ~before, state) for message, before, state in rows}


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


def _dumps(value: object) -> str:
    return orjson.dumps(value).decode()
