"""The statements of a batch of hits, one set per engine: they run thousands of times a second.

Set-based on both (`json_each`, `unnest`): a batch costs the same handful of statements whatever its size. On SQLite each
statement, and each row fetched, hands the interpreter lock to the event loop and back, so a result comes as one JSON row.
A click reads and writes no row of `messages`: what it needs of one its links know too, or `first_clicks`, whose rows are few and
small. What a message was before its click is told by the fan-out, which reads it anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import NamedTuple

import orjson
from sqlalchemy import BigInteger, Connection, func, select, type_coerce

from shortener.outbox import first_clicks
from shortener.storage import raw_sql, schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.values_table import values_table


class LinkRow(NamedTuple):
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

_FIND = {
    # CROSS JOIN: the order of the loops is ours, the few codes outside, the index inside.
    "sqlite": f"SELECT json_group_array(json_array({_COLUMNS})) FROM json_each(?) AS j "
    "CROSS JOIN links AS l ON l.code = j.value LEFT JOIN first_clicks AS c ON c.id = l.message_id",
    # LIMIT: so that there is one look-up for each link, also in a plan that was made when the table was small or not yet analyzed;
    # otherwise the whole table would be read for the few.
    "postgresql": f"SELECT {_COLUMNS} FROM links AS l "
    "LEFT JOIN LATERAL (SELECT links, at FROM first_clicks WHERE id = l.message_id LIMIT 1) AS c ON true "
    "WHERE l.code = ANY($1::text[])",
}

_CLAIM = ("id", "at", "hit_id", "links")  # the columns of Claim
#: On SQLite what `find_links` saw is still so; the links are added, and the first click stays the first one.
_click = BulkInsert(
    schema.first_clicks,
    *_CLAIM,
    on_conflict="(id) DO UPDATE SET links = first_clicks.links | excluded.links, at = coalesce(first_clicks.at, excluded.at), "
    "hit_id = coalesce(first_clicks.hit_id, excluded.hit_id)",
)
#: On PostgreSQL those messages are told that had nothing clicked before, as nearly all; the others are locked and looked at.
_CLICK_NEW = f"{BulkInsert(schema.first_clicks, *_CLAIM, on_conflict='DO NOTHING').from_arrays(count(1))} RETURNING id"
_CLICK_MORE = (
    "UPDATE first_clicks AS c SET links = c.links | b.links, at = coalesce(c.at, b.at), hit_id = coalesce(c.hit_id, b.hit_id) "
    "FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::int[]) AS b(id, at, hit_id, links) WHERE c.id = b.id"
)

#: Rows of HitRow and EventRow.
insert_hits = BulkInsert(schema.hits, "id", "link_id", "at", "verdict", "rule", "flags", "address", "user_agent")
insert_events = BulkInsert(schema.events, "id", "application_id", "topics", "at", "message_id", "link_id", "hit_id", "fanned_out")

_STORED = {
    "sqlite": "SELECT json_group_array(json_array(h.id, h.flags)) FROM json_each(?) AS j JOIN hits AS h ON h.id = j.value",
    "postgresql": "SELECT id, flags FROM hits WHERE id = ANY($1::bigint[])",
}


def find_links(connection: Connection, codes: Iterable[str]) -> dict[str, LinkRow]:
    """What each known code leads to."""
    engine = connection.dialect.name
    wanted = list(codes)
    if engine == "sqlite":
        packed = raw_sql.value(connection, _FIND[engine], _dumps(wanted))
        make = tuple.__new__  # less than half of what Target._make takes
        return {row[0]: make(LinkRow, row) for row in orjson.loads(packed)}
    return {row[0]: LinkRow._make(row) for row in connection.exec_driver_sql(_FIND[engine], (wanted,))}


def claim_first_clicks(connection: Connection, claims: Sequence[Claim], seen: Mapping[int, LinkRow]) -> dict[int, tuple[int, bool]]:
    """Take the first clicks that nobody took. `seen`: what `find_links` told of each message (any of its links).

    Returns for each message: the bits of the links that this transaction was first on, and whether it was first on the message
    too."""
    # Neighbours in the tree follow each other; and nodes wait for each other in one order (outbox/first_clicks.py).
    claims = sorted(claims)
    if connection.dialect.name == "sqlite":
        # One writer, and `find_links` ran in this transaction: what it saw as unclicked still is.
        _click(connection, claims)
        return {message: (bits, not seen[message].is_clicked) for message, _at, _hit, bits in claims}
    won: dict[int, tuple[int, bool]] = {}
    while claims:
        new = {row[0] for row in connection.exec_driver_sql(_CLICK_NEW, raw_sql.bulk_parameters(connection, claims))}
        won |= {message: (bits, True) for message, _at, _hit, bits in claims if message in new}
        claims = _claim_more(connection, [claim for claim in claims if claim[0] not in new], won)
    return won


def _claim_more(connection: Connection, claims: Sequence[Claim], won: dict[int, tuple[int, bool]]) -> list[Claim]:
    """Take first clicks of messages that something was clicked of; returns those of which nothing is any more."""
    stands = first_clicks.read(connection, [message for message, *_ in claims]) if claims else {}
    more: list[tuple[int, int | None, int | None, int]] = []
    for message, at, hit, bits in claims:
        if (before := stands.get(message)) is None:
            continue
        # A message without a first click, of which a link was clicked meanwhile: a correction is at it, and tells the first one.
        is_first = before.at is None and not before.links & bits
        won[message] = (bits & ~before.links, is_first)
        more.append((message, at, hit, bits) if is_first else (message, None, None, bits))
    if more:
        connection.exec_driver_sql(_CLICK_MORE, raw_sql.bulk_parameters(connection, more))
    return [claim for claim in claims if claim[0] not in stands]


def find_stored_hits(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """Return the flags of those of the hits that are stored, by id. Needed only if an earlier attempt may have been committed."""
    engine = connection.dialect.name
    if engine == "sqlite":
        return dict(orjson.loads(raw_sql.value(connection, _STORED[engine], _dumps(list(ids)))))
    return {row[0]: row[1] for row in connection.exec_driver_sql(_STORED[engine], (list(ids),))}


def count_links(connection: Connection, messages: Iterable[int]) -> dict[int, int]:
    """How many links each message has: asked only for applications that judge by it."""
    wanted = values_table(connection, [(message,) for message in messages], id=BigInteger)
    links = schema.links
    counted = select(links.c.message_id, func.count()).join_from(wanted, links, links.c.message_id == wanted.c.id)
    return {row[0]: row[1] for row in connection.execute(counted.group_by(links.c.message_id))}


def find_report_times(connection: Connection, messages: Iterable[int]) -> dict[int, tuple[int | None, int | None]]:
    """When each message was sent and delivered, in ms since 1970: asked only for applications that judge by it."""
    wanted = values_table(connection, [(message,) for message in messages], id=BigInteger)
    times = [type_coerce(schema.messages.c[name], BigInteger) for name in ("sent_at", "delivered_at")]
    found = select(schema.messages.c.id, *times).join_from(wanted, schema.messages, schema.messages.c.id == wanted.c.id)
    return {row[0]: (row[1], row[2]) for row in connection.execute(found)}


def _dumps(value: object) -> str:
    return orjson.dumps(value).decode()
