"""This module contains the SQL statements of the fan-out, which creates the deliveries of events.

The statements are written separately for SQLite and PostgreSQL, because they run for every event. Each statement processes a
whole batch. On SQLite, the result of a query is one row that contains JSON (see storage/raw_sql.py). Times are milliseconds since
1970-01-01 UTC.
"""
# Tested by tests/delivery/test_fanout.py

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple

import orjson
from sqlalchemy import Connection, false, select, update

from shortener.delivery.conversion_filter import CLICK_ACTION, PermittedConversions, make_filter
from shortener.delivery.outcomes import GONE
from shortener.model import Topic
from shortener.storage import raw_sql, schema
from shortener.storage.bulk import BulkInsert

# A plain integer, because operations on enum flags are slow: each takes a microsecond.
_CONVERSION = Topic.CONVERSION.value


def _for_each_engine(statements: dict[str, str], condition: str) -> dict[str, str]:
    """Return the complete SQL statement for each database engine, by name of the engine.

    `condition` is inserted at `{condition}` in each statement. `{}` in `condition` becomes the parameter placeholder of the
    engine."""
    return {
        engine: text.format(condition=condition.format("?" if engine == "sqlite" else "$1")) for engine, text in statements.items()
    }


# The callback of a message is created once, even if its first click is retracted and a later click becomes the first click. The
# plus sign before a column prevents SQLite from using an index in which far too many rows match.
_CALLBACK = (
    "CASE WHEN m.callback_url IS NOT NULL AND NOT EXISTS (SELECT 1 FROM events AS o "
    "JOIN deliveries AS d ON d.event_id IN (o.id, o.hit_id) "
    "WHERE o.message_id = e.message_id AND coalesce(o.hit_id, 0) <> o.id AND +d.tracker_id IS NULL) THEN m.callback_url END"
)
# The cohort of the message if the event is a first click that is not counted yet (`schema.is_pending_click`); otherwise NULL.
_COHORT = "CASE WHEN e.hit_id = e.id AND e.data IS NULL THEN m.cohort_id END"
_PENDING_COLUMNS = (
    f"e.id, e.application_id, e.topics, h.flags, {_CALLBACK}, {_COHORT}, e.at, m.state, m.created_at, m.sent_at, m.id, "
    "(SELECT coalesce(s.link_set_id, 0) FROM links AS s WHERE s.id = e.link_id)"
)
_PENDING_FROM = "LEFT JOIN hits AS h ON h.id = e.hit_id LEFT JOIN messages AS m ON m.id = e.message_id"
_PENDING_EVENTS = {
    "sqlite": f"SELECT json_group_array(json_array({_PENDING_COLUMNS})) "
    f"FROM (SELECT * FROM events WHERE fanned_out = 0 {{condition}}) AS e {_PENDING_FROM}",
    "postgresql": f"SELECT {_PENDING_COLUMNS} FROM "
    "(SELECT * FROM events WHERE NOT fanned_out {condition} FOR UPDATE SKIP LOCKED) AS e "
    f"{_PENDING_FROM} ORDER BY e.id",
}
_PENDING = _for_each_engine(_PENDING_EVENTS, "ORDER BY id LIMIT {}")
_PENDING_OF_OTHERS = {
    "sqlite": _PENDING_EVENTS["sqlite"].format(
        condition="AND application_id NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?"
    ),
    "postgresql": _PENDING_EVENTS["postgresql"].format(condition="AND application_id <> ALL($1::int[]) ORDER BY id LIMIT $2"),
}
_PENDING_ONE = _for_each_engine(_PENDING_EVENTS, "AND id = {}")


class PendingEvent(NamedTuple):
    """An event whose deliveries have not been created yet.

    `flags` are the flags of the hit that caused the event. `callback_url` is None if the message has no callback URL, or if the
    callback was already created. `cohort_id`, `state`, `created_at` and `sent_at` are values of the message. Only the event of the
    first click of a message has a `cohort_id`; for other events it is None.
    """

    id: int
    application_id: int
    topics: int
    flags: int | None
    callback_url: str | None
    cohort_id: int | None
    at: int
    state: int
    created_at: int
    sent_at: int | None
    message: int | None  # row id of the message
    link_set: int | None


def pending_events(
    connection: Connection, limit: int, only: int | None = None, without: Collection[int] = ()
) -> list[PendingEvent]:
    """Return the oldest events whose deliveries have not been created yet, or only the event with the id `only`, sorted by id.

    The events of the applications in `without` are left out. On PostgreSQL the function locks the events and skips events that
    another process has locked.
    """
    if only is not None:
        rows = raw_sql.rows(connection, _PENDING_ONE, only)
    elif without:
        rows = raw_sql.rows(connection, _PENDING_OF_OTHERS, sorted(without), limit)
    else:
        rows = raw_sql.rows(connection, _PENDING, limit)
    return sorted(PendingEvent._make(row) for row in rows)


def pending_ids(connection: Connection, limit: int) -> list[int]:
    """Return the ids of the oldest events whose deliveries have not been created yet.

    The function reads only the ids, so it also works if another column of an event contains an invalid value."""
    columns = schema.events.c
    return list(connection.scalars(select(columns.id).where(columns.fanned_out == false()).order_by(columns.id).limit(limit)))


def quarantine(connection: Connection, event: int) -> None:
    """Mark an event whose deliveries cannot be created, so that the fan-out skips it. `requeue` makes it pending again."""
    table = schema.events
    statement = update(table).where(table.c.id == event, table.c.fanned_out == false())
    connection.execute(statement.values(fanned_out=True, facts=schema.QUARANTINED))


def quarantined_events(connection: Connection) -> list[int]:
    """Return the ids of all quarantined events. This reads the whole event log."""
    columns = schema.events.c
    return list(connection.scalars(select(columns.id).where(columns.facts == schema.QUARANTINED).order_by(columns.id)))


def requeue(connection: Connection, events: Sequence[int]) -> int:
    """Make the given quarantined events pending again, so that the fan-out processes them. Return the number of changed events."""
    table = schema.events
    statement = update(table).where(table.c.id.in_(events), table.c.facts == schema.QUARANTINED)
    return connection.execute(statement.values(fanned_out=False, facts=None)).rowcount


# Deliveries are still created for a tracker that the service disabled after a 410 response: its owner did not decide to miss
# events.
_GETS_DELIVERIES = f"(t.enabled OR t.disabled_reason = '{GONE}')"
_SUBSCRIPTIONS = {
    "sqlite": "SELECT json_group_array(json_array(t.id, t.application_id, t.topics, t.with_suspected, t.format, "
    "a.settings ->> '$.click_conversion', t.conversion_actions, t.conversion_dispositions)) "
    "FROM json_each(?) AS j JOIN trackers AS t ON t.application_id = j.value "
    f"JOIN applications AS a ON a.id = t.application_id WHERE {_GETS_DELIVERIES}",
    "postgresql": "SELECT t.id, t.application_id, t.topics, t.with_suspected, t.format, "
    "a.settings::json ->> 'click_conversion', t.conversion_actions, t.conversion_dispositions "
    f"FROM trackers AS t JOIN applications AS a ON a.id = t.application_id "
    f"WHERE t.application_id = ANY($1::int[]) AND {_GETS_DELIVERIES}",
}


class Subscription(NamedTuple):
    """The events to which a tracker subscribes.

    `topics` is a combination of `Topic` bits. If `with_suspected` is true, the tracker also receives suspected hits, which probably
    come from programs. `click_conversion` is the setting of the application; None means the default. `conversions` is the filter
    for conversions; None means that the tracker has none."""

    tracker: int
    topics: int
    with_suspected: bool
    format: str
    click_conversion: str | None
    conversions: PermittedConversions | None

    @property
    def has_click_conversions(self) -> bool:
        """Return whether the tracker also receives the first click of a message as a conversion."""
        chosen = self.click_conversion or "scg"
        is_sent = chosen == "all" or (chosen == "scg" and self.format == "scg")
        return is_sent and bool(self.topics & _CONVERSION) and self.permits(CLICK_ACTION, None)

    @property
    def filters_conversions(self) -> bool:
        """Return whether the tracker receives only some conversions."""
        return self.conversions is not None and bool(self.topics & _CONVERSION)

    def permits(self, action: str | None, disposition: str | None) -> bool:
        """Return whether the filter of the tracker permits a conversion event with this action and disposition."""
        return self.conversions is None or self.conversions.permits(action, disposition)


def subscriptions(connection: Connection, applications: Iterable[int]) -> dict[int, list[Subscription]]:
    """Return the subscriptions of the trackers of the applications, by application id.

    A tracker that a user disabled gets no deliveries. If the service disabled a tracker because of a 410 response, deliveries are
    created for it and wait."""
    found: dict[int, list[Subscription]] = {}
    for tracker_id, application_id, *columns, actions, dispositions in sorted(
        map(tuple, raw_sql.rows(connection, _SUBSCRIPTIONS, sorted(applications))), key=itemgetter(0)
    ):
        conversions = make_filter(*(names and orjson.loads(names) for names in (actions, dispositions)))
        found.setdefault(application_id, []).append(Subscription._make((tracker_id, *columns, conversions)))
    return found


_OUTCOME_COLUMNS = "e.id, coalesce(v.action_text, v.action), v.disposition, e.data"
_OUTCOMES = {
    "sqlite": f"SELECT json_group_array(json_array({_OUTCOME_COLUMNS})) FROM json_each(?) AS j "
    "CROSS JOIN events AS e ON e.id = j.value LEFT JOIN conversions AS v ON v.id = e.conversion_id",
    "postgresql": f"SELECT {_OUTCOME_COLUMNS} FROM events AS e LEFT JOIN conversions AS v ON v.id = e.conversion_id "
    "WHERE e.id = ANY($1::bigint[])",
}


def conversion_outcomes(connection: Connection, events: Sequence[int]) -> dict[int, tuple[str | None, str | None]]:
    """Return the action and the disposition of conversion events, by event id. Each event is about one revision of a conversion.
    The disposition is None if this revision has none."""
    found = {}
    for event, action, disposition, data in raw_sql.rows(connection, _OUTCOMES, list(events)):
        # Releases before 0.3 wrote events without the disposition. For such an event, the present disposition of the conversion is
        # used.
        found[event] = (action, orjson.loads(data).get("disposition", disposition) if data else disposition)
    return found


class Sources(NamedTuple):
    """All database values from which the facts of an event are built. The fields are the columns of `_SOURCES` in their order.

    If a joined row does not exist, all its fields are None, even the fields whose type here does not permit None. Check
    `message_id` before using fields of the message, `code` before fields of the link, and `click_hit` before fields of the hit.
    """

    event: int
    application_id: int
    topics: int
    at: int
    data: str | None
    conversion_id: int | None
    hit_id: int | None  # the hit that caused the event
    company_id: int | None
    message_id: str | None
    request_id: str | None
    external_request_id: str | None
    to_address: str
    from_address: str | None
    sender_id_id: str | None
    sender_id_alias: str | None
    state: int  # the reported state of the message, which its first click does not change
    segments: int | None
    fragments_count: int | None
    mt_price: str | None
    report_status: str | None
    reason_code: str | None
    reason_description: str | None
    telecom_message_id: str | None
    metadata: str | None
    created_at: int
    sent_at: int | None
    delivered_at: int | None
    clicked_at: int | None
    campaign: str | None
    source: str | None
    country: str | None
    process_key: str | None
    link_id: int
    code: str | None
    url: str | None
    label: str | None
    path: str | None  # the path of the short URL before the code
    base_url: str | None  # None: the short URL uses the base URL of the installation
    click_hit: int | None  # the hit that caused the event, or the click that a conversion belongs to
    hit_at: int
    verdict: int
    rule: str | None
    flags: int
    user_agent: str | None
    click_country: str | None
    action: str | None
    conversion_status: str | None
    disposition: str | None
    value: str | None
    currency: str | None
    transaction_id: str | None
    conversion_metadata: str | None


# This is a subquery and not a join. With a join, PostgreSQL would read the whole table if its statistics were made when the table
# was small.
_CLICKED_AT = "(SELECT f.at FROM first_clicks AS f WHERE f.id = e.message_id)"
_SOURCE_COLUMNS = (
    "e.id, e.application_id, e.topics, e.at, e.data, e.conversion_id, e.hit_id, a.company_id, "
    "m.message_id, m.request_id, m.external_request_id, m.to_address, m.from_address, m.sender_id_id, m.sender_id_alias, "
    "m.state, m.segments, m.fragments_count, m.mt_price, m.report_status, m.reason_code, m.reason_description, "
    f"m.telecom_message_id, m.metadata, m.created_at, m.sent_at, m.delivered_at, {_CLICKED_AT}, c.campaign, c.source, c.country, "
    "p.process_key, l.id, l.code, l.url, l.label, l.path, d.base_url, h.id, h.at, h.verdict, h.rule, h.flags, h.user_agent, "
    "h.country, coalesce(v.action_text, v.action), v.status, v.disposition, v.value, v.currency, "
    "coalesce(v.transaction_text, v.transaction_id), v.metadata"
)
# An event without a link, such as a delivery report, gets the first link of its message, because Xoxzo's format always contains a
# link.
_SOURCE_JOINS = (
    "LEFT JOIN applications AS a ON a.id = e.application_id LEFT JOIN messages AS m ON m.id = e.message_id "
    "LEFT JOIN cohorts AS c ON c.id = m.cohort_id LEFT JOIN processes AS p ON p.id = c.process_id "
    "LEFT JOIN conversions AS v ON v.id = e.conversion_id LEFT JOIN hits AS h ON h.id = COALESCE(e.hit_id, v.hit_id) "
    "LEFT JOIN links AS l ON l.id = COALESCE(e.link_id, h.link_id, CASE WHEN e.conversion_id IS NULL "
    "THEN (SELECT f.id FROM links AS f WHERE f.message_id = e.message_id ORDER BY f.position LIMIT 1) END) "
    "LEFT JOIN domains AS d ON d.id = l.domain_id"
)
_SOURCES = {
    "sqlite": f"SELECT json_group_array(json_array({_SOURCE_COLUMNS})) "
    f"FROM json_each(?) AS j CROSS JOIN events AS e ON e.id = j.value {_SOURCE_JOINS}",
    "postgresql": f"SELECT {_SOURCE_COLUMNS} FROM events AS e {_SOURCE_JOINS} WHERE e.id = ANY($1::bigint[])",
}


def sources(connection: Connection, events: list[int]) -> list[Sources]:
    """Read the database values from which the facts of the given events are built."""
    return [Sources._make(row) for row in raw_sql.rows(connection, _SOURCES, events)]


#: The highest click number that an event can contain. Further clicks of a link get no number, because counting them takes long.
MAX_CLICK_NUMBER = 10_000

# The indexes of `hits` on the link id do not contain the first click of a message, so a second subquery counts it.
_CLICKS = (
    "(SELECT count(*) FROM (SELECT 1 FROM hits WHERE link_id = {link} AND " + schema.OTHER_HITS + " AND +id < {hit} "
    f"AND verdict = 0 AND flags & 20 = 0 LIMIT {MAX_CLICK_NUMBER}) AS other) + "
    "(SELECT count(*) FROM links AS l JOIN first_clicks AS f ON f.id = l.message_id JOIN hits AS h ON h.id = f.hit_id "
    "WHERE l.id = {link} AND h.link_id = l.id AND h.id < {hit})"
)
_CLICKS_BEFORE = {
    "sqlite": f"SELECT json_array(json_array({_CLICKS.format(link='?1', hit='?2')}))",
    "postgresql": f"SELECT {_CLICKS.format(link='$1', hit='$2')}",
}


def clicks_before(connection: Connection, link: int, hit: int) -> int:
    """Return how many clicks of people a link had before the given hit, at most MAX_CLICK_NUMBER.

    Clicks while the link was expired or disabled do not count."""
    count: int = raw_sql.rows(connection, _CLICKS_BEFORE, link, hit)[0][0]
    return count


_RESERVE = {
    "sqlite": "UPDATE links SET clicks_numbered = max(coalesce(clicks_numbered, ?2), 1) + ?3 WHERE id = ?1 "
    "RETURNING clicks_numbered",
    "postgresql": "UPDATE links SET clicks_numbered = greatest(coalesce(clicks_numbered, $2::int), 1) + $3::int WHERE id = $1 "
    "RETURNING clicks_numbered",
}


def reserve_click_numbers(connection: Connection, link: int, hit: int, count: int) -> int:
    """Reserve `count` consecutive click numbers of a link and return the lowest. The first click of a link has number 1.

    `hit` is the id of the earliest of the clicks. The row of the link stores the highest reserved number. Therefore no number is
    used twice, in whatever order the transactions end."""
    columns = schema.links.c
    known = connection.scalar(select(columns.clicks_numbered).where(columns.id == link))
    before = clicks_before(connection, link, hit) if known is None else known
    if connection.dialect.name == "sqlite":
        row = raw_sql.execute(connection, _RESERVE["sqlite"], link, before, count).fetchone()
    else:
        row = connection.exec_driver_sql(_RESERVE["postgresql"], (link, before, count)).first()
    return before + 1 if row is None else row[0] - count + 1


#: Inserts rows into the table `deliveries`. A row is a tuple of the values of the columns below, in this order.
insert_deliveries = BulkInsert(
    schema.deliveries,
    "id",
    "event_id",
    "topic",
    "application_id",
    "tracker_id",
    "callback_url",
    "lane",
    "status",
    "attempt",
    "next_at",
    "created_at",
)

_MARK = {
    "sqlite": "UPDATE events SET fanned_out = 1, facts = j.value ->> 1 FROM json_each(?) AS j WHERE events.id = j.value ->> 0",
    "postgresql": "UPDATE events SET fanned_out = true, facts = b.facts FROM unnest($1::bigint[], $2::text[]) AS b(id, facts) "
    "WHERE events.id = b.id",
}


def mark_fanned_out(connection: Connection, facts: dict[int, str | None]) -> None:
    """Mark events as fanned out and store their facts, by event id.

    Facts are JSON text. They are None if no tracker subscribes to the event."""
    raw_sql.execute_bulk(connection, _MARK, list(facts.items()))
