"""This module contains the SQL statements of the dispatcher.

The statements are written separately for SQLite and PostgreSQL, because they run for every delivery. Each statement processes a
whole batch. On SQLite, the result of a query is one row that contains JSON (see storage/raw_sql.py).

A queue (column `lane`) contains the deliveries of one tracker, or the callbacks of one application to one host. It has two parts
(column `queue`): first attempts and retries. The dispatcher finds due deliveries with the index `deliveries_due`. Each queue needs
three index lookups. This number does not depend on the number of deliveries in the queue. Times are milliseconds since 1970-01-01
UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

import orjson
from sqlalchemy import Connection, func, select, update

from shortener.delivery.health import HEALTH_COLUMNS, EndpointHealth
from shortener.delivery.pace import PACE_COLUMNS, EndpointPace
from shortener.storage import raw_sql, schema
from shortener.storage.attempt_numbers import START_ATTEMPT
from shortener.storage.bulk import BulkInsert
from shortener.storage.types import from_ms

#: The column `deliveries.queue` has one of these values: first attempts or retries.
FIRST_ATTEMPTS, RETRIES = 0, 1


def _dumps(value: object) -> str:
    return orjson.dumps(value).decode()


class DeliveryQueue(NamedTuple):
    """A queue with pending deliveries.

    `first_due` is the earliest time at which a first attempt is due, `retry_due` the earliest time at which a retry is due. A time
    is None if the queue contains no pending delivery of this kind."""

    name: str
    first_due: int | None
    retry_due: int | None

    def is_due(self, now: int) -> bool:
        """Return whether the queue contains a delivery that is due."""
        return any(at is not None and at <= now for at in (self.first_due, self.retry_due))


_NEXT_QUEUE = (
    "(SELECT d.lane FROM deliveries AS d WHERE d.status = 0 AND d.lane > {after} AND d.lane < {before} ORDER BY d.lane LIMIT 1)"
)
_DUE = (
    "(SELECT d.next_at FROM deliveries AS d WHERE d.status = 0 AND d.lane = l.lane AND d.queue = {part} ORDER BY d.next_at LIMIT 1)"
)
_QUEUE_COLUMNS = f"l.lane, {_DUE.format(part=FIRST_ATTEMPTS)}, {_DUE.format(part=RETRIES)}"


def _walk(after: str, before: str, same_before: str, limit: str, columns: str) -> str:
    """Return an SQL statement that selects up to `limit` queues with names between `after` and `before` by index lookups.

    The arguments are the placeholders of parameters. `before` and `same_before` are the placeholders of two parameters with the
    same value."""
    return (
        f"WITH RECURSIVE l(lane, n) AS (SELECT {_NEXT_QUEUE.format(after=after, before=before)}, 1 UNION ALL "
        f"SELECT {_NEXT_QUEUE.format(after='l.lane', before=same_before)}, l.n + 1 FROM l "
        f"WHERE l.lane IS NOT NULL AND l.n < {limit}) "
        f"SELECT {columns} FROM l WHERE l.lane IS NOT NULL"
    )


_QUEUES = {
    "sqlite": _walk("?", "?", "?", "?", f"json_group_array(json_array({_QUEUE_COLUMNS}))"),
    "postgresql": _walk("$1::text", "$2::text", "$3::text", "$4::int", _QUEUE_COLUMNS),
}


def pending_queues(connection: Connection, after: str, before: str, limit: int) -> list[DeliveryQueue]:
    """Return up to `limit` queues with pending deliveries whose names are between `after` and `before`, sorted by name."""
    return [DeliveryQueue._make(row) for row in raw_sql.rows(connection, _QUEUES, after, before, before, limit)]


_NAMED_QUEUES = {
    "sqlite": f"SELECT json_group_array(json_array({_QUEUE_COLUMNS})) FROM (SELECT value AS lane FROM json_each(?)) AS l",
    "postgresql": f"SELECT {_QUEUE_COLUMNS} FROM unnest($1::text[]) AS l(lane)",
}


def due_queues(connection: Connection, names: Sequence[str], now: int) -> set[str]:
    """Return the queues that contain at least one delivery that is due and not claimed."""
    found = map(DeliveryQueue._make, raw_sql.rows(connection, _NAMED_QUEUES, list(names))) if names else ()
    return {queue.name for queue in found if queue.is_due(now)}


class ClaimRequest(NamedTuple):
    """A request to claim up to `limit` due first attempts or retries (`part`) of a queue, with a lease until `lease_until`."""

    queue: str
    part: int
    limit: int
    lease_until: int


class ClaimedDelivery(NamedTuple):
    """A delivery that only this process may attempt until `lease_until`. `attempt` is the number of the attempt, from 1. `message`
    is the row id of the message that the event is about; None if there is none. `transaction` is the id of the PostgreSQL
    transaction that claimed the delivery; 0 on SQLite."""

    id: int
    event: int
    topic: int
    tracker_id: int | None
    callback_url: str | None
    queue: str
    attempt: int
    base_attempt: int
    created_at: int
    lease_until: int
    restarted_at: int | None
    held_since: int | None
    message: int | None
    facts: str | None  # the facts of the event as JSON text
    transaction: int = 0


_PICK = (
    "SELECT json_group_array(id) FROM (SELECT id FROM deliveries "
    "WHERE status = 0 AND lane = ? AND queue = ? AND next_at <= ? ORDER BY next_at LIMIT ?)"
)
_CLAIM_SQLITE = (
    f"UPDATE deliveries SET {START_ATTEMPT}, queue = 1, lease_until = j.value ->> 1, next_at = j.value ->> 1 "
    "FROM json_each(?) AS j WHERE deliveries.id = j.value ->> 0"
)
# SKIP LOCKED skips the deliveries that another process is claiming at the same time.
_CLAIM_POSTGRESQL = (
    "WITH picked AS MATERIALIZED (SELECT d.id, w.lease_until "
    "FROM unnest($1::text[], $2::smallint[], $3::int[], $4::bigint[]) AS w(lane, queue, max_rows, lease_until) "
    "CROSS JOIN LATERAL (SELECT id FROM deliveries WHERE status = 0 AND lane = w.lane AND queue = w.queue AND next_at <= $5 "
    "ORDER BY next_at LIMIT w.max_rows FOR UPDATE SKIP LOCKED) AS d) "
    f"UPDATE deliveries SET {START_ATTEMPT}, queue = 1, lease_until = picked.lease_until, next_at = picked.lease_until "
    "FROM picked WHERE deliveries.id = picked.id RETURNING deliveries.id"
)
# These statements claim only deliveries without a lease. They are used after the clock has jumped ahead, because a lease may then
# only seem to have ended.
_PICK_IDLE, _CLAIM_IDLE_POSTGRESQL = (
    statement.replace("ORDER BY next_at", "AND deliveries.lease_until IS NULL ORDER BY next_at")
    for statement in (_PICK, _CLAIM_POSTGRESQL)
)
_CLAIMED_COLUMNS = (
    "d.id, d.event_id, d.topic, d.tracker_id, d.callback_url, d.lane, d.attempt, d.base_attempt, d.created_at, d.lease_until, "
    "d.restarted_at, d.held_since, e.message_id, e.facts"
)
_CLAIMED = {
    "sqlite": f"SELECT json_group_array(json_array({_CLAIMED_COLUMNS}, 0)) "
    "FROM json_each(?) AS j CROSS JOIN deliveries AS d ON d.id = j.value LEFT JOIN events AS e ON e.id = d.event_id",
    "postgresql": f"SELECT {_CLAIMED_COLUMNS}, d.xmin::text::bigint "
    "FROM deliveries AS d LEFT JOIN events AS e ON e.id = d.event_id WHERE d.id = ANY($1::bigint[]) ORDER BY d.id",
}


def claim(connection: Connection, requests: Sequence[ClaimRequest], now: int, *, takes_lost: bool = True) -> list[ClaimedDelivery]:
    """Claim due deliveries, increment the attempt number of each, and return them. Deliveries of one queue that became due at the
    same time are in the order of their events. Deliveries whose lease has ended are claimed only if `takes_lost` is true.

    The claims are valid after the caller has committed the transaction."""
    if not requests:
        return []
    if connection.dialect.name == "sqlite":
        leases: list[tuple[int, int]] = []
        for queue, part, limit, lease_until in requests:
            picked = orjson.loads(raw_sql.value(connection, _PICK if takes_lost else _PICK_IDLE, queue, part, now, limit))
            leases += [(row, lease_until) for row in picked]
        ids = [row for row, _ in leases]
        if ids:
            raw_sql.execute(connection, _CLAIM_SQLITE, _dumps(leases))
    else:
        columns = tuple(list(column) for column in zip(*requests, strict=True))
        statement = _CLAIM_POSTGRESQL if takes_lost else _CLAIM_IDLE_POSTGRESQL
        ids = [row[0] for row in connection.exec_driver_sql(statement, (*columns, now))]
    return [ClaimedDelivery._make(row) for row in raw_sql.rows(connection, _CLAIMED, ids)] if ids else []


class _Claim(Protocol):
    @property
    def id(self) -> int: ...

    @property
    def transaction(self) -> int: ...


C = TypeVar("C", bound=_Claim)


def find_stored(connection: Connection, table: str, claims: Sequence[C]) -> list[C]:
    """Return the claims that are stored. Call this if it is unknown whether the transaction that made the claims was committed.

    `table` is the table of the claimed rows. On PostgreSQL, the function compares the id of the transaction that wrote each row.
    The lease and the attempt number would not be sufficient, because another process can have claimed the row in the same
    millisecond. On SQLite, only one process claims rows. The function then returns all claims, and `finish` ignores those that are
    not stored."""
    if connection.dialect.name == "sqlite" or not claims:
        return list(claims)
    versions = f"SELECT id, xmin::text::bigint FROM {table} WHERE id = ANY($1::bigint[])"
    stored = {tuple(row) for row in connection.exec_driver_sql(versions, ([claim.id for claim in claims],))}
    return [claim for claim in claims if (claim.id, claim.transaction) in stored]


class FinishedDelivery(NamedTuple):
    """The new column values of a delivery after an attempt.

    The values are written only if no other process has claimed the delivery in the meantime: the row must still contain the
    attempt number `claimed_attempt` and the end of the lease `claimed_lease`."""

    id: int
    claimed_attempt: int
    claimed_lease: int
    status: int
    attempt: int
    part: int
    next_at: int
    finished_at: int | None
    last_status: int | None
    last_error: str | None
    base_attempt: int
    scheduled_at: int
    held_since: int | None


_FINISH = {
    "sqlite": (
        "UPDATE deliveries SET lease_until = NULL, status = j.value ->> 3, attempt = j.value ->> 4, queue = j.value ->> 5, "
        "next_at = j.value ->> 6, finished_at = j.value ->> 7, last_status = j.value ->> 8, last_error = j.value ->> 9, "
        "base_attempt = j.value ->> 10, scheduled_at = j.value ->> 11, held_since = j.value ->> 12 "
        "FROM json_each(?) AS j WHERE deliveries.id = j.value ->> 0 "
        "AND deliveries.attempt = j.value ->> 1 AND deliveries.lease_until = j.value ->> 2 RETURNING deliveries.id"
    ),
    "postgresql": (
        "UPDATE deliveries SET lease_until = NULL, status = b.status, attempt = b.attempt, queue = b.queue, "
        "next_at = b.next_at, finished_at = b.finished_at, last_status = b.last_status, last_error = b.last_error, "
        "base_attempt = b.base_attempt, scheduled_at = b.scheduled_at, held_since = b.held_since "
        "FROM unnest($1::bigint[], $2::smallint[], $3::bigint[], $4::smallint[], $5::smallint[], $6::smallint[], $7::bigint[], "
        "$8::bigint[], $9::smallint[], $10::text[], $11::smallint[], $12::bigint[], $13::bigint[]) "
        "AS b(id, claimed_attempt, claimed_lease, status, attempt, queue, next_at, finished_at, last_status, last_error, "
        "base_attempt, scheduled_at, held_since) "
        "WHERE deliveries.id = b.id AND deliveries.attempt = b.claimed_attempt AND deliveries.lease_until = b.claimed_lease "
        "RETURNING deliveries.id"
    ),
}


def finish(connection: Connection, rows: Sequence[FinishedDelivery]) -> set[int]:
    """Write the outcomes of attempts. Return the ids of the written deliveries.

    An outcome is not written if the lease of its delivery has ended and another process has then claimed the delivery."""
    return raw_sql.execute_returning_ids(connection, _FINISH, rows)


#: Inserts rows into the table `attempts`. A row is a tuple of the values of the columns below, in this order.
insert_attempts = BulkInsert(
    schema.attempts, "id", "delivery_id", "attempt", "at", "milliseconds", "status", "error", "detail", "answer"
)


class TrackerState(NamedTuple):
    """The columns of a tracker that the dispatcher reads in each dispatch cycle.

    If `revision` differs from the revision of the cached copy of the tracker, the cached copy is outdated."""

    id: int
    application_id: int
    revision: int
    enabled: bool
    updated_at: int
    health: EndpointHealth
    pace: EndpointPace


_STATE_COLUMNS = "t.id, t.application_id, t.revision, t.enabled, t.updated_at, " + ", ".join(
    f"t.{name}" for name in (*HEALTH_COLUMNS, *PACE_COLUMNS)
)
_STATES = {
    "sqlite": f"SELECT json_group_array(json_array({_STATE_COLUMNS})) "
    "FROM json_each(?) AS j CROSS JOIN trackers AS t ON t.id = j.value",
    "postgresql": f"SELECT {_STATE_COLUMNS} FROM trackers AS t WHERE t.id = ANY($1::int[])",
}
_LOCKED_STATES = _STATES | {"postgresql": _STATES["postgresql"] + " ORDER BY t.id FOR UPDATE"}
_UNLOCKED_STATES = _STATES | {"postgresql": _STATES["postgresql"] + " FOR UPDATE SKIP LOCKED"}


def tracker_states(connection: Connection, trackers: Iterable[int]) -> dict[int, TrackerState]:
    """Return the states of the given trackers, by tracker id. Deleted trackers are missing from the result."""
    return _states(connection, _STATES, trackers)


def locked_states(connection: Connection, trackers: Iterable[int]) -> dict[int, TrackerState]:
    """Lock the rows of the trackers, in the order of their ids, and return their states by tracker id."""
    return _states(connection, _LOCKED_STATES, trackers)


def lock_unlocked_states(connection: Connection, trackers: Iterable[int]) -> dict[int, TrackerState]:
    """Lock the rows of the trackers that no other process has locked, and return their states by tracker id.

    The function does not wait for locks. The transaction may hold locks that another process waits for, so waiting could cause a
    deadlock."""
    return _states(connection, _UNLOCKED_STATES, trackers)


def _states(connection: Connection, statements: dict[str, str], trackers: Iterable[int]) -> dict[int, TrackerState]:
    ids = sorted(trackers)
    if not ids:
        return {}
    return {
        row[0]: TrackerState(row[0], row[1], row[2], bool(row[3]), row[4], EndpointHealth(*row[5:11]), EndpointPace(*row[11:]))
        for row in raw_sql.rows(connection, statements, ids)
    }


def update_tracker(connection: Connection, tracker_id: int, values: dict[str, Any]) -> None:
    """Write new column values of one tracker."""
    connection.execute(update(schema.trackers).where(schema.trackers.c.id == tracker_id).values(values))


def health_columns(health: EndpointHealth) -> dict[str, Any]:
    """Return the values of the columns of the table `trackers` that store the health of a tracker, by column name."""
    times = ("open_until", "recovering_at", "last_success_at", "last_failure_at", "opened_at")
    return {name: _instant(getattr(health, name)) for name in times} | {"failures_in_row": health.failures_in_row}


def pace_columns(pace: EndpointPace) -> dict[str, Any]:
    """Return the values of the columns of the table `trackers` that store the learned rate of a tracker, by column name.

    The result does not contain `max_per_second`, which only the customer changes."""
    return {
        "rate": pace.rate,
        "rate_ceiling": pace.ceiling,
        "rate_lowered_at": _instant(pace.lowered_at),
        "paced_until": _instant(pace.paced_until),
    }


def _instant(ms: int | None) -> datetime | None:
    return None if ms is None else from_ms(ms)


_DISABLED_APPLICATIONS = {
    "sqlite": "SELECT json_group_array(json_array(id, disabled_at)) FROM applications WHERE disabled_at IS NOT NULL",
    "postgresql": "SELECT id, disabled_at FROM applications WHERE disabled_at IS NOT NULL",
}


def disabled_applications(connection: Connection) -> dict[int, int]:
    """Return the time at which each disabled application was disabled, by application id, in milliseconds since 1970."""
    return dict(map(tuple, raw_sql.rows(connection, _DISABLED_APPLICATIONS)))


def count_attempts(connection: Connection, delivery: int, after: int) -> int:
    """Return the number of recorded attempts of a delivery that have an attempt number above `after`."""
    attempts = schema.attempts
    counted = select(func.count()).where(attempts.c.delivery_id == delivery, attempts.c.attempt > after)
    return connection.execute(counted).scalar_one()
