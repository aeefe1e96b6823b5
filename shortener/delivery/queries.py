"""The statements of fan-out and dispatcher, by hand for each engine: they run for every delivery.

Set-based, and on SQLite every result comes as one row of JSON (see clicks/queries.py). What is due is found by walking the index
`deliveries_due` from lane to lane, so that a lane costs three seeks however many rows wait in it. Times are ms since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson
from sqlalchemy import Connection, false, select, update

from shortener.delivery.health import TrackerHealth
from shortener.storage import raw_sql, schema
from shortener.storage.bulk import BulkInsert

FIRSTS, RETRIES = 0, 1  # deliveries.queue


def _dumps(value: object) -> str:
    return orjson.dumps(value).decode()


def _for_each(statements: dict[str, str], which: str) -> dict[str, str]:
    """The statements with a condition on one value in the place of {which}."""
    return {engine: text.format(which=which.format("?" if engine == "sqlite" else "$1")) for engine, text in statements.items()}


# Fan-out.

# A message's callback is made once, even if its first click was taken back and another one became the first. The plus signs here
# and below keep SQLite from an index that finds far too many rows.
_CALLBACK = (
    "CASE WHEN m.callback_url IS NOT NULL AND NOT EXISTS (SELECT 1 FROM events AS o "
    "JOIN deliveries AS d ON d.event_id IN (o.id, o.hit_id) "
    "WHERE o.message_id = e.message_id AND coalesce(o.hit_id, 0) <> o.id AND +d.tracker_id IS NULL) THEN m.callback_url END"
)
# The cohort of what `schema.is_pending_click` holds for.
_COHORT = "CASE WHEN e.hit_id = e.id AND e.data IS NULL THEN m.cohort_id END"
_PENDING_COLUMNS = f"e.id, e.application_id, e.topics, h.flags, {_CALLBACK}, {_COHORT}, e.at, m.state, m.created_at, m.sent_at"
_PENDING_FROM = "LEFT JOIN hits AS h ON h.id = e.hit_id LEFT JOIN messages AS m ON m.id = e.message_id"
_PENDING_EVENTS = {
    "sqlite": f"SELECT json_group_array(json_array({_PENDING_COLUMNS})) "
    f"FROM (SELECT * FROM events WHERE fanned_out = 0 {{which}}) AS e {_PENDING_FROM}",
    "postgresql": f"SELECT {_PENDING_COLUMNS} FROM "
    "(SELECT * FROM events WHERE NOT fanned_out {which} FOR UPDATE SKIP LOCKED) AS e "
    f"{_PENDING_FROM} ORDER BY e.id",
}
_PENDING = _for_each(_PENDING_EVENTS, "ORDER BY id LIMIT {}")
_PENDING_ONE = _for_each(_PENDING_EVENTS, "AND id = {}")


class PendingEvent(NamedTuple):
    """An event that nobody was told of yet. `flags`: of its hit. `callback_url`: of its message, if it was not called yet.
    `cohort_id`, and what follows: of the message that it is the first click of, else `cohort_id` is None."""

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


def pending_events(connection: Connection, limit: int, only: int | None = None) -> list[PendingEvent]:
    """The oldest events that are not fanned out, or one of them; on PostgreSQL locked, and without those that another process has
    locked."""
    rows = raw_sql.rows(connection, _PENDING, limit) if only is None else raw_sql.rows(connection, _PENDING_ONE, only)
    return sorted(PendingEvent._make(row) for row in rows)


def pending_ids(connection: Connection, limit: int) -> list[int]:
    """The same, without looking at anything that could be unreadable."""
    columns = schema.events.c
    return list(connection.scalars(select(columns.id).where(columns.fanned_out == false()).order_by(columns.id).limit(limit)))


def quarantine(connection: Connection, event: int) -> None:
    """Pass over an event that cannot be fanned out; `requeue` makes it pending again."""
    table = schema.events
    statement = update(table).where(table.c.id == event, table.c.fanned_out == false())
    connection.execute(statement.values(fanned_out=True, facts=schema.QUARANTINED))


def quarantined_events(connection: Connection) -> list[int]:
    """Reads the whole log."""
    columns = schema.events.c
    return list(connection.scalars(select(columns.id).where(columns.facts == schema.QUARANTINED).order_by(columns.id)))


def requeue(connection: Connection, events: Sequence[int]) -> int:
    """Make events that were set aside pending again; returns how many."""
    table = schema.events
    statement = update(table).where(table.c.id.in_(events), table.c.facts == schema.QUARANTINED)
    return connection.execute(statement.values(fanned_out=False, facts=None)).rowcount


_SUBSCRIPTIONS = {
    "sqlite": "SELECT json_group_array(json_array(t.id, t.application_id, t.topics, t.with_suspected)) "
    "FROM json_each(?) AS j JOIN trackers AS t ON t.application_id = j.value",
    "postgresql": "SELECT id, application_id, topics, with_suspected FROM trackers WHERE application_id = ANY($1::int[])",
}


class Subscription(NamedTuple):
    """What a tracker wants. `topics`: bits of Topic; `with_suspected`: clicks also of those who are suspected to be no persons."""

    tracker: int
    topics: int
    with_suspected: bool


def subscriptions(connection: Connection, applications: Iterable[int]) -> dict[int, list[Subscription]]:
    """By application: what its trackers subscribed to. Disabled ones too: theirs is parked."""
    found: dict[int, list[Subscription]] = {}
    for tracker_id, application_id, *wanted in sorted(map(tuple, raw_sql.rows(connection, _SUBSCRIPTIONS, sorted(applications)))):
        found.setdefault(application_id, []).append(Subscription(tracker_id, *wanted))
    return found


class Sources(NamedTuple):
    """Everything that the facts of an event are made from; the columns of `_SOURCES`, in their order.

    What a row that is not there would say is None, whatever its type here: look at `message_id` before the message's columns, at
    `code` before the link's, at `click_hit` before the hit's."""

    event: int
    application_id: int
    topics: int
    at: int
    data: str | None
    conversion_id: int | None
    hit_id: int | None  # of the event itself
    company_id: int | None
    message_id: str | None
    request_id: str | None
    external_request_id: str | None
    to_address: str
    from_address: str | None
    sender_id_id: str | None
    sender_id_alias: str | None
    state: int  # as it is without a click
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
    base_url: str | None  # None: the installation's
    click_hit: int | None  # the event's hit, or the click that its conversion followed
    hit_at: int
    verdict: int
    rule: str | None
    flags: int
    user_agent: str | None
    action: str | None
    conversion_status: str | None
    disposition: str | None
    value: str | None
    currency: str | None
    transaction_id: str | None
    conversion_metadata: str | None


# No join: PostgreSQL would read the whole table for it as long as it takes it for a small one.
_CLICKED_AT = "(SELECT f.at FROM first_clicks AS f WHERE f.id = e.message_id)"
_SOURCE_COLUMNS = (
    "e.id, e.application_id, e.topics, e.at, e.data, e.conversion_id, e.hit_id, a.company_id, "
    "m.message_id, m.request_id, m.external_request_id, m.to_address, m.from_address, m.sender_id_id, m.sender_id_alias, "
    "m.state, m.segments, m.fragments_count, m.mt_price, m.report_status, m.reason_code, m.reason_description, "
    f"m.telecom_message_id, m.metadata, m.created_at, m.sent_at, m.delivered_at, {_CLICKED_AT}, c.campaign, c.source, c.country, "
    "p.process_key, l.id, l.code, l.url, l.label, d.base_url, h.id, h.at, h.verdict, h.rule, h.flags, h.user_agent, "
    "v.action, v.status, v.disposition, v.value, v.currency, v.transaction_id, v.metadata"
)
# Of an event without a link, such as a delivery report, the message's first link is told (Xoxzo's link_tracking).
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
    return [Sources._make(row) for row in raw_sql.rows(connection, _SOURCES, events)]


COUNTED_CLICKS = 10_000  # a click's number is told up to here: counting further would hold up everything else

# The click that was the first of its message is in no index of the link.
_CLICKS = (
    "(SELECT count(*) FROM (SELECT 1 FROM hits WHERE link_id = {link} AND " + schema.OTHER_HITS + " AND +id < {hit} "
    f"AND verdict = 0 AND flags & 20 = 0 LIMIT {COUNTED_CLICKS}) AS other) + "
    "(SELECT count(*) FROM links AS l JOIN first_clicks AS f ON f.id = l.message_id JOIN hits AS h ON h.id = f.hit_id "
    "WHERE l.id = {link} AND h.link_id = l.id AND h.id < {hit})"
)
_CLICKS_BEFORE = {
    "sqlite": f"SELECT json_array(json_array({_CLICKS.format(link='?1', hit='?2')}))",
    "postgresql": f"SELECT {_CLICKS.format(link='$1', hit='$2')}",
}


def clicks_before(connection: Connection, link: int, hit: int) -> int:
    """People's hits on a live link before this hit, as far as COUNTED_CLICKS."""
    count: int = raw_sql.rows(connection, _CLICKS_BEFORE, link, hit)[0][0]
    return count


#: id, event_id, topic, application_id, tracker_id, callback_url, lane, status, attempt, next_at, created_at
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
    """Events with their facts (JSON), if anybody wanted them."""
    raw_sql.execute_bulk(connection, _MARK, list(facts.items()))


# Dispatcher.


class DeliveryQueue(NamedTuple):
    """A lane that has something pending: when the first of each queue is due, None for an empty one."""

    name: str
    first_due: int | None
    retry_due: int | None


_NEXT_LANE = "(SELECT d.lane FROM deliveries AS d WHERE d.status = 0 AND d.lane > {after} ORDER BY d.lane LIMIT 1)"
_DUE = (
    "(SELECT d.next_at FROM deliveries AS d "
    "WHERE d.status = 0 AND d.lane = l.lane AND d.queue = {queue} ORDER BY d.next_at LIMIT 1)"
)
_LANE_COLUMNS = f"l.lane, {_DUE.format(queue=FIRSTS)}, {_DUE.format(queue=RETRIES)}"


def _lanes(after: str, limit: str, columns: str) -> str:
    return (
        f"WITH RECURSIVE l(lane, n) AS (SELECT {_NEXT_LANE.format(after=after)}, 1 UNION ALL "
        f"SELECT {_NEXT_LANE.format(after='l.lane')}, l.n + 1 FROM l WHERE l.lane IS NOT NULL AND l.n < {limit}) "
        f"SELECT {columns} FROM l WHERE l.lane IS NOT NULL"
    )


_LANES = {
    "sqlite": _lanes("?", "?", f"json_group_array(json_array({_LANE_COLUMNS}))"),
    "postgresql": _lanes("$1::text", "$2::int", _LANE_COLUMNS),
}


def lanes(connection: Connection, after: str, limit: int) -> list[DeliveryQueue]:
    """The first `limit` lanes behind `after`, in order of their names."""
    return [DeliveryQueue._make(row) for row in raw_sql.rows(connection, _LANES, after, limit)]


class ClaimRequest(NamedTuple):
    """How many of a queue of a lane to claim at most, and until when their lease shall run."""

    lane: str
    queue: int
    most: int
    lease_until: int


class ClaimedDelivery(NamedTuple):
    """A delivery that is ours until `lease_until`; `attempt` is the one that is about to be made."""

    id: int
    event: int
    topic: int
    tracker_id: int | None
    callback_url: str | None
    lane: str
    attempt: int
    base_attempt: int
    created_at: int
    lease_until: int
    facts: str | None  # JSON


_PICK = (
    "SELECT json_group_array(id) FROM (SELECT id FROM deliveries "
    "WHERE status = 0 AND lane = ? AND queue = ? AND next_at <= ? ORDER BY next_at LIMIT ?)"
)
_CLAIM_SQLITE = (
    "UPDATE deliveries SET attempt = attempt + 1, queue = 1, lease_until = j.value ->> 1, next_at = j.value ->> 1 "
    "FROM json_each(?) AS j WHERE deliveries.id = j.value ->> 0"
)
# Rows that another process is claiming just now are passed over.
_CLAIM_POSTGRESQL = (
    "WITH picked AS MATERIALIZED (SELECT d.id, w.lease_until "
    "FROM unnest($1::text[], $2::smallint[], $3::int[], $4::bigint[]) AS w(lane, queue, most, lease_until) "
    "CROSS JOIN LATERAL (SELECT id FROM deliveries WHERE status = 0 AND lane = w.lane AND queue = w.queue AND next_at <= $5 "
    "ORDER BY next_at LIMIT w.most FOR UPDATE SKIP LOCKED) AS d) "
    "UPDATE deliveries SET attempt = attempt + 1, queue = 1, lease_until = picked.lease_until, next_at = picked.lease_until "
    "FROM picked WHERE deliveries.id = picked.id RETURNING deliveries.id"
)
_CLAIMED_COLUMNS = (
    "d.id, d.event_id, d.topic, d.tracker_id, d.callback_url, d.lane, d.attempt, d.base_attempt, d.created_at, d.lease_until, "
    "e.facts"
)
_CLAIMED = {
    "sqlite": f"SELECT json_group_array(json_array({_CLAIMED_COLUMNS})) "
    "FROM json_each(?) AS j CROSS JOIN deliveries AS d ON d.id = j.value LEFT JOIN events AS e ON e.id = d.event_id",
    "postgresql": f"SELECT {_CLAIMED_COLUMNS} "
    "FROM deliveries AS d LEFT JOIN events AS e ON e.id = d.event_id WHERE d.id = ANY($1::bigint[])",
}


def claim(connection: Connection, wants: Sequence[ClaimRequest], now: int) -> list[ClaimedDelivery]:
    """Begin an attempt of what is due, as far as it is wanted; the attempt is spent when this is committed."""
    if not wants:
        return []
    if connection.dialect.name == "sqlite":
        leases: list[tuple[int, int]] = []
        for lane, queue, most, lease_until in wants:
            picked = orjson.loads(raw_sql.value(connection, _PICK, lane, queue, now, most))
            leases += [(row, lease_until) for row in picked]
        ids = [row for row, _ in leases]
        if ids:
            raw_sql.execute(connection, _CLAIM_SQLITE, _dumps(leases))
    else:
        columns = tuple(list(column) for column in zip(*wants, strict=True))
        ids = [row[0] for row in connection.exec_driver_sql(_CLAIM_POSTGRESQL, (*columns, now))]
    return [ClaimedDelivery._make(row) for row in raw_sql.rows(connection, _CLAIMED, ids)] if ids else []


class FinishedDelivery(NamedTuple):
    """What became of an attempt. The first three say whose attempt it was: nothing is written if the lease was lost meanwhile."""

    id: int
    of_attempt: int
    of_lease: int
    status: int
    attempt: int
    queue: int
    next_at: int
    finished_at: int | None
    last_status: int | None
    last_error: str | None


_FINISH = {
    "sqlite": "UPDATE deliveries SET lease_until = NULL, status = j.value ->> 3, attempt = j.value ->> 4, queue = j.value ->> 5, "
    "next_at = j.value ->> 6, finished_at = j.value ->> 7, last_status = j.value ->> 8, last_error = j.value ->> 9 "
    "FROM json_each(?) AS j WHERE deliveries.id = j.value ->> 0 "
    "AND deliveries.attempt = j.value ->> 1 AND deliveries.lease_until = j.value ->> 2",
    "postgresql": "UPDATE deliveries SET lease_until = NULL, status = b.status, attempt = b.attempt, queue = b.queue, "
    "next_at = b.next_at, finished_at = b.finished_at, last_status = b.last_status, last_error = b.last_error "
    "FROM unnest($1::bigint[], $2::smallint[], $3::bigint[], $4::smallint[], $5::smallint[], $6::smallint[], $7::bigint[], "
    "$8::bigint[], $9::smallint[], $10::text[]) AS b(id, of_attempt, of_lease, status, attempt, queue, next_at, finished_at, "
    "last_status, last_error) "
    "WHERE deliveries.id = b.id AND deliveries.attempt = b.of_attempt AND deliveries.lease_until = b.of_lease",
}


def finish(connection: Connection, rows: Sequence[FinishedDelivery]) -> int:
    """Write outcomes; returns how many deliveries were still ours."""
    return raw_sql.execute_bulk(connection, _FINISH, rows)


#: id, delivery_id, attempt, at, milliseconds, status, error, detail, answer
insert_attempts = BulkInsert(
    schema.attempts, "id", "delivery_id", "attempt", "at", "milliseconds", "status", "error", "detail", "answer"
)


class TrackerState(NamedTuple):
    """What the dispatcher looks at each time: is its copy of the tracker the present one, and may it be called."""

    id: int
    revision: int
    enabled: bool
    health: TrackerHealth


_STATE_COLUMNS = (
    "t.id, t.revision, t.enabled, t.failures_in_row, t.open_until, t.recovering_at, t.last_success_at, t.last_failure_at"
)
_STATES = {
    "sqlite": f"SELECT json_group_array(json_array({_STATE_COLUMNS})) "
    "FROM json_each(?) AS j CROSS JOIN trackers AS t ON t.id = j.value",
    "postgresql": f"SELECT {_STATE_COLUMNS} FROM trackers AS t WHERE t.id = ANY($1::int[])",
}
_LOCKED_STATES = _STATES | {"postgresql": _STATES["postgresql"] + " ORDER BY t.id FOR UPDATE"}
_FREE_STATES = _STATES | {"postgresql": _STATES["postgresql"] + " FOR UPDATE SKIP LOCKED"}


def tracker_states(connection: Connection, trackers: Iterable[int]) -> dict[int, TrackerState]:
    return _states(connection, _STATES, trackers)


def locked_states(connection: Connection, trackers: Iterable[int]) -> dict[int, TrackerState]:
    """The same, locked against other processes, in the order of the ids."""
    return _states(connection, _LOCKED_STATES, trackers)


def free_states(connection: Connection, trackers: Iterable[int]) -> dict[int, TrackerState]:
    """The same, without those that another process has locked: this transaction may hold locks already, and must not wait."""
    return _states(connection, _FREE_STATES, trackers)


def _states(connection: Connection, statements: dict[str, str], trackers: Iterable[int]) -> dict[int, TrackerState]:
    ids = sorted(trackers)
    if not ids:
        return {}
    return {
        row[0]: TrackerState(row[0], row[1], bool(row[2]), TrackerHealth(*row[3:]))
        for row in raw_sql.rows(connection, statements, ids)
    }
