"""The SQL statements that write a batch of hits, one set for SQLite and one for PostgreSQL. They run thousands of times per
second.

The statements work on sets (`json_each`, `unnest`), so the number of statements does not depend on the size of the batch. On
SQLite, each statement and each fetched row passes the interpreter lock to the event loop and back, which takes time. Therefore a
query on SQLite returns all its rows as one row of JSON.

The transaction of a click neither reads nor writes a row of `messages`. The data that it needs is in `links` and in
`first_clicks`, a table with few and small rows. The transaction also does not need the state that the message had before the
click. The fan-out determines this state, because it reads the message anyway.
"""
# Tested by tests/clicks/test_batch.py

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import orjson
from sqlalchemy import BigInteger, Connection, func, select, type_coerce

from shortener.clicks.resolver import Hit
from shortener.outbox import first_clicks
from shortener.storage import raw_sql, schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.values_table import values_table


class LinkRow(NamedTuple):
    """The columns of a link that was found by its code, and of the first click on its message. Times are milliseconds since
    1970."""

    code: str
    link_id: int
    message: int  # the row id of the message
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
    is_clicked: int  # 1 if the message already has a first click, otherwise 0
    link_set: int = 0  # the id of the link set in schema.link_sets; 0 for a link that was created before link sets existed


class ReportTimes(NamedTuple):
    """The times of the delivery reports of a message, in milliseconds since 1970; None for a state that was not reported."""

    sent_at: int | None = None
    delivered_at: int | None = None
    read_at: int | None = None


#: The clicks of a batch on one message: (row id of the message, at, hit_id, bits). `bits` has one bit for each clicked link; `at`
#: and `hit_id` belong to the earliest click.
Claim = tuple[int, int, int, int]

#: The columns of a row of `hits`: id, link_id, at, verdict, rule, flags, address, user_agent, country.
HitRow = tuple[int, int, int, int, str, int, str, str, str | None]
#: The columns of a row of `events`: id, application_id, topics, at, message_id, link_id, hit_id, fanned_out.
EventRow = tuple[int, int, int, int, int, int, int, bool]

_COLUMNS = (
    "l.code, l.id, l.message_id, l.application_id, l.cohort_id, l.domain_id, l.position, l.flags, l.url, l.location, "
    "l.fallback_url, l.expires_at, l.disabled_at, coalesce(c.links, 0), c.at IS NOT NULL, coalesce(l.link_set_id, 0)"
)

_FIND = {
    # CROSS JOIN makes SQLite loop over the few codes and look up each one in the index.
    "sqlite": f"SELECT json_group_array(json_array({_COLUMNS})) FROM json_each(?) AS j "
    "CROSS JOIN links AS l ON l.code = j.value LEFT JOIN first_clicks AS c ON c.id = l.message_id",
    # LIMIT makes PostgreSQL look up each link in an index. Without LIMIT, PostgreSQL could keep a query plan that it made when
    # the table was small, and scan the whole table.
    "postgresql": f"SELECT {_COLUMNS} FROM links AS l "
    "LEFT JOIN LATERAL (SELECT links, at FROM first_clicks WHERE id = l.message_id LIMIT 1) AS c ON true "
    "WHERE l.code = ANY($1::text[])",
}

_CLAIM = ("id", "at", "hit_id", "links")  # the names of the columns of the type Claim
#: The statement that stores first clicks on SQLite. It adds the clicked links to the row of the message in `first_clicks`. If the
#: row already contains a first click, this first click stays. SQLite has one writer, so nothing has changed since `find_links`
#: read the rows.
_upsert_click = BulkInsert(
    schema.first_clicks,
    *_CLAIM,
    on_conflict="(id) DO UPDATE SET links = first_clicks.links | excluded.links, at = coalesce(first_clicks.at, excluded.at), "
    "hit_id = coalesce(first_clicks.hit_id, excluded.hit_id)",
)
#: The statement that stores first clicks on PostgreSQL. It inserts a row for each message without a row in `first_clicks`, which is
#: nearly every message. `_claim_more` locks and reads the rows of the other messages.
_CLICK_NEW = f"{BulkInsert(schema.first_clicks, *_CLAIM, on_conflict='DO NOTHING').from_arrays(count(1))} RETURNING id"
_CLICK_MORE = (
    "UPDATE first_clicks AS c SET links = c.links | b.links, at = coalesce(c.at, b.at), hit_id = coalesce(c.hit_id, b.hit_id) "
    "FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::int[]) AS b(id, at, hit_id, links) WHERE c.id = b.id"
)

#: The statements that insert rows of the types HitRow and EventRow.
insert_hits = BulkInsert(schema.hits, "id", "link_id", "at", "verdict", "rule", "flags", "address", "user_agent", "country")
insert_events = BulkInsert(schema.events, "id", "application_id", "topics", "at", "message_id", "link_id", "hit_id", "fanned_out")

_STORED = {
    "sqlite": "SELECT json_group_array(json_array(h.id, h.flags, h.at, l.code)) FROM json_each(?) AS j "
    "JOIN hits AS h ON h.id = j.value JOIN links AS l ON l.id = h.link_id",
    "postgresql": "SELECT h.id, h.flags, h.at, l.code FROM hits AS h JOIN links AS l ON l.id = h.link_id "
    "WHERE h.id = ANY($1::bigint[])",
}


def find_links(connection: Connection, codes: Iterable[str]) -> dict[str, LinkRow]:
    """Return the links with these codes, by code. Unknown codes are missing in the result."""
    engine = connection.dialect.name
    codes = list(codes)
    if engine == "sqlite":
        packed = raw_sql.value(connection, _FIND[engine], _dumps(codes))
        make = tuple.__new__  # twice as fast as LinkRow._make
        return {row[0]: make(LinkRow, row) for row in orjson.loads(packed)}
    return {row[0]: LinkRow._make(row) for row in connection.exec_driver_sql(_FIND[engine], (codes,))}


def claim_first_clicks(connection: Connection, claims: Sequence[Claim], seen: Mapping[int, LinkRow]) -> dict[int, tuple[int, bool]]:
    """Store the first clicks of this batch, except those that another transaction has stored before.

    `seen` contains one row of `find_links` for each message. Return (bits, is_first) by message. `bits` has one bit for each link
    whose first click is in this batch. `is_first` states whether the first click on the message is in this batch."""
    # Sort the claims by message id: all nodes then lock rows in the same order (outbox/first_clicks.py), and neighbouring rows
    # are close in the index.
    claims = sorted(claims)
    if connection.dialect.name == "sqlite":
        # `find_links` ran in this transaction, and SQLite has one writer, so the rows of `seen` are still current.
        _upsert_click(connection, claims)
        return {message: (bits, not seen[message].is_clicked) for message, _at, _hit, bits in claims}
    won: dict[int, tuple[int, bool]] = {}
    while claims:
        new = {row[0] for row in connection.exec_driver_sql(_CLICK_NEW, raw_sql.bulk_parameters(connection, claims))}
        won |= {message: (bits, True) for message, _at, _hit, bits in claims if message in new}
        claims = _claim_more(connection, [claim for claim in claims if claim[0] not in new], won)
    return won


def _claim_more(connection: Connection, claims: Sequence[Claim], won: dict[int, tuple[int, bool]]) -> list[Claim]:
    """Store the clicks on messages that already have a row in `first_clicks`. Return the claims that could not be stored, because
    another transaction has deleted the row."""
    stored = first_clicks.read(connection, [message for message, *_ in claims]) if claims else {}
    more: list[tuple[int, int | None, int | None, int]] = []
    for message, at, hit, bits in claims:
        if (before := stored.get(message)) is None:
            continue
        # If the row contains this link but no first click, a correction of the message is running, and the correction will assign
        # the first click.
        is_first = before.at is None and not before.links & bits
        won[message] = (bits & ~before.links, is_first)
        more.append((message, at, hit, bits) if is_first else (message, None, None, bits))
    if more:
        connection.exec_driver_sql(_CLICK_MORE, raw_sql.bulk_parameters(connection, more))
    return [claim for claim in claims if claim[0] not in stored]


def find_stored_hits(connection: Connection, hits: Sequence[Hit]) -> dict[int, int]:
    """Return the flags of those hits that are already stored, by hit id. Call this only if an earlier attempt may have been
    committed.

    A stored hit with the same id and another code or time belongs to another process, and is not returned."""
    engine, ids = connection.dialect.name, [hit.id for hit in hits]
    rows: Iterable[Sequence[Any]]
    if engine == "sqlite":
        rows = orjson.loads(raw_sql.value(connection, _STORED[engine], _dumps(ids)))
    else:
        rows = connection.exec_driver_sql(_STORED[engine], (ids,)).all()
    wanted = {(hit.id, hit.at, hit.code) for hit in hits}
    return {row[0]: row[1] for row in rows if (row[0], row[2], row[3]) in wanted}


def count_links(connection: Connection, messages: Iterable[int]) -> dict[int, int]:
    """Return the number of links of each message. Only applications with the setting `all_links_within_second` need this query."""
    ids = values_table(connection, [(message,) for message in messages], id=BigInteger)
    links = schema.links
    counted = select(links.c.message_id, func.count()).join_from(ids, links, links.c.message_id == ids.c.id)
    return {row[0]: row[1] for row in connection.execute(counted.group_by(links.c.message_id))}


def find_report_times(connection: Connection, messages: Iterable[int]) -> dict[int, ReportTimes]:
    """Return the times of the delivery reports of each message. Only applications with a rule that uses report times need this
    query."""
    ids = values_table(connection, [(message,) for message in messages], id=BigInteger)
    times = [type_coerce(schema.messages.c[name], BigInteger) for name in ReportTimes._fields]
    found = select(schema.messages.c.id, *times).join_from(ids, schema.messages, schema.messages.c.id == ids.c.id)
    return {row[0]: ReportTimes(*row[1:]) for row in connection.execute(found)}


def _dumps(value: object) -> str:
    return orjson.dumps(value).decode()
