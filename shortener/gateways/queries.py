"""The SQL statements of the dispatcher that hands messages on to gateways.

A queue contains the messages of one gateway. It has two parts (column `queue`): first attempts and retries. The index `sends_due`
finds due messages. The statements that run for every message are written separately for SQLite and PostgreSQL and process a whole
batch. Times are milliseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, literal_column, or_, select, update

from shortener.delivery.claims import LEASE_MARGIN_MS
from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES, ClaimRequest, DeliveryQueue
from shortener.delivery.health import HEALTH_COLUMNS, EndpointHealth
from shortener.delivery.pace import PACE_COLUMNS, EndpointPace
from shortener.storage import raw_sql, schema
from shortener.storage.attempt_numbers import START_ATTEMPT
from shortener.storage.bulk import BulkInsert
from shortener.storage.schema import gateways, sends
from shortener.storage.send_conditions import IS_PENDING
from shortener.storage.types import Instant, from_ms, to_ms


class GatewayState(NamedTuple):
    """The columns of a gateway that the dispatcher reads in each cycle, and its queue.

    `in_flight` is the number of running attempts, of all processes together."""

    id: int
    application_id: int
    revision: int
    enabled: bool
    is_removed: bool
    holds_doubtful: bool
    timeout: float | None
    concurrency: int | None
    health: EndpointHealth
    pace: EndpointPace
    queue: DeliveryQueue
    in_flight: int

    def is_due(self, now: int) -> bool:
        """Return whether a message of the gateway is due."""
        return self.queue.is_due(now)


#: The longest possible lease: the highest time limit of an attempt (120 s) plus the margin of every lease.
MAX_LEASE_MS = 120_000 + LEASE_MARGIN_MS
#: To find messages of disabled applications, one transaction examines at most this many of the oldest due messages of a gateway.
MAX_EXAMINED = 1000


def _due(part: int) -> Any:
    chosen = select(sends.c.next_at).where(
        sends.c.gateway_id == gateways.c.id, IS_PENDING, sends.c.queue == literal_column(str(part))
    )
    return chosen.order_by(sends.c.next_at).limit(1).correlate(gateways).scalar_subquery()


def _states() -> Select[Any]:
    g = gateways.c
    # A message whose lease has ended is not counted as in flight: its process died, and the message must be claimed again.
    now = bindparam("now", type_=Instant)
    in_flight = select(func.count()).where(sends.c.gateway_id == g.id, sends.c.lease_until > now, sends.c.next_at > now)
    columns = [
        g[name] for name in ("id", "application_id", "revision", "enabled", "removed_at", "on_doubt", "timeout", "concurrency")
    ]
    return select(
        *columns,
        *(g[name] for name in (*HEALTH_COLUMNS, *PACE_COLUMNS)),
        _due(FIRST_ATTEMPTS).label("first_due"),
        _due(RETRIES).label("retry_due"),
        in_flight.correlate(gateways).scalar_subquery().label("in_flight"),
    ).order_by(g.id)


_STATES = _states()


def queue_name(gateway_id: int) -> str:
    """Return the name of the queue of a gateway. claims.py counts the slots in use by queue name."""
    return f"g{gateway_id}"


def _gateway_of(queue: str) -> int:
    """Return the id of the gateway whose messages a queue contains."""
    return int(queue[1:])


def lease_has_ended(now: int) -> ColumnElement[bool]:
    """Return the condition that a pending message was leased and its lease has ended.

    `next_at` and `lease_until` are both the end of the lease. After the clock was set back, `next_at` can be earlier, because
    clock_steps.py corrects `next_at` and not `lease_until`."""
    c = sends.c
    return c.lease_until.is_not(None) & or_(c.lease_until <= from_ms(now), c.next_at <= from_ms(now))


def find_waiting(connection: Connection) -> list[int]:
    """Return the ids of the gateways that have pending messages."""
    g = gateways.c
    return list(
        connection.scalars(select(g.id).where(or_(_due(FIRST_ATTEMPTS).is_not(None), _due(RETRIES).is_not(None))).order_by(g.id))
    )


def lock_states(connection: Connection, now: int, only: int | None = None, *, leases_wait: bool = False) -> list[GatewayState]:
    """Lock all gateways that no other process has locked, or only one gateway. Return the locked gateways that have pending
    messages. If `leases_wait` is true, treat no lease as ended, so that every leased message counts as in flight."""
    g = gateways.c
    # If one statement locked the rows and read the states, PostgreSQL would compute its subqueries before it has the locks. Then it
    # would not see the claims that another process commits before it releases the locks. Therefore locking is a separate statement.
    lock = select(g.id).order_by(g.id).with_for_update(skip_locked=True)
    locked = list(connection.scalars(lock if only is None else lock.where(g.id == only)))
    found = []
    for row in connection.execute(_STATES.where(g.id.in_(locked)), {"now": from_ms(0 if leases_wait else now)}) if locked else ():
        if row.first_due is None and row.retry_due is None:
            continue
        times = [None if at is None else to_ms(at) for at in (row.first_due, row.retry_due)]
        found.append(
            GatewayState(
                id=row.id,
                application_id=row.application_id,
                revision=row.revision,
                enabled=row.enabled,
                is_removed=row.removed_at is not None,
                holds_doubtful=row.on_doubt == "hold",
                timeout=row.timeout,
                concurrency=row.concurrency,
                health=EndpointHealth.from_row(row),
                pace=EndpointPace.from_row(row),
                queue=DeliveryQueue(queue_name(row.id), times[0], times[1]),
                in_flight=row.in_flight,
            )
        )
    return found


def has_due(connection: Connection, gateway_id: int, now: int) -> bool:
    """Return whether a gateway has messages that are due and not claimed."""
    due = select(_due(FIRST_ATTEMPTS), _due(RETRIES)).select_from(gateways).where(gateways.c.id == gateway_id)
    return any(at is not None and to_ms(at) <= now for at in connection.execute(due).one())


class LockedGateway(NamedTuple):
    """The revision, the health and the rate of a gateway whose row this transaction has locked."""

    revision: int
    health: EndpointHealth
    pace: EndpointPace


def lock_health(connection: Connection, ids: Collection[int], *, waits: bool = True) -> dict[int, LockedGateway]:
    """Lock gateways, in the order of their ids, and return the revision, the health and the rate of each gateway, by gateway id. If
    `waits` is false, leave out the gateways that another transaction has locked."""
    if not ids:
        return {}
    g = gateways.c
    columns = (g[name] for name in ("id", "revision", *HEALTH_COLUMNS, *PACE_COLUMNS))
    statement = select(*columns).where(g.id.in_(list(ids))).order_by(g.id).with_for_update(skip_locked=not waits)
    return {
        row.id: LockedGateway(row.revision, EndpointHealth.from_row(row), EndpointPace.from_row(row))
        for row in connection.execute(statement)
    }


def update_gateway(connection: Connection, gateway_id: int, values: dict[str, Any]) -> None:
    """Write new column values of one gateway."""
    connection.execute(update(gateways).where(gateways.c.id == gateway_id).values(values))


class ClaimedSend(NamedTuple):
    """A message that only this process may hand on until `lease_until`. `attempt` is the number of the attempt, from 1.

    `state` is the reported state of the message. `cost` is a decimal text. `transaction` is the id of the PostgreSQL transaction
    that claimed the message; 0 on SQLite, and for a message that was read without a claim."""

    id: int
    application_id: int
    gateway_id: int
    text: str | None
    attempt: int
    base_attempt: int
    lease_until: int
    doubtful: bool
    cost: str | None
    created_at: int
    message_id: str
    to_address: str
    from_address: str
    sender_id_alias: str
    encoding: str
    segments: int
    state: int
    transaction: int = 0


_PICK = (
    "SELECT json_group_array(id) FROM (SELECT id FROM sends "
    "WHERE status = 0 AND gateway_id = ? AND queue = ? AND next_at <= ? AND (? OR lease_until IS NULL) ORDER BY next_at LIMIT ?)"
)
# A lease that has ended belongs to a process that died during the attempt, so the gateway may have accepted the message.
_CLAIM_SQLITE = (
    f"UPDATE sends SET {START_ATTEMPT}, queue = 1, doubtful = doubtful OR lease_until IS NOT NULL, "
    "lease_until = j.value ->> 1, next_at = j.value ->> 1 FROM json_each(?) AS j WHERE sends.id = j.value ->> 0"
)
_CLAIM_POSTGRESQL = (
    "WITH picked AS MATERIALIZED (SELECT s.id, w.lease_until "
    "FROM unnest($1::int[], $2::smallint[], $3::int[], $4::bigint[], $5::bool[]) "
    "AS w(gateway_id, queue, max_rows, lease_until, takes_lost) "
    "CROSS JOIN LATERAL (SELECT id FROM sends WHERE status = 0 AND gateway_id = w.gateway_id AND queue = w.queue AND next_at <= $6 "
    "AND (w.takes_lost OR sends.lease_until IS NULL) ORDER BY next_at LIMIT w.max_rows FOR UPDATE SKIP LOCKED) AS s) "
    f"UPDATE sends SET {START_ATTEMPT}, queue = 1, doubtful = doubtful OR sends.lease_until IS NOT NULL, "
    "lease_until = picked.lease_until, next_at = picked.lease_until FROM picked WHERE sends.id = picked.id RETURNING sends.id"
)
_CLAIMED_COLUMNS = (
    "s.id, s.application_id, s.gateway_id, s.text, s.attempt, s.base_attempt, s.lease_until, s.doubtful, s.cost, s.created_at, "
    "m.message_id, m.to_address, m.from_address, m.sender_id_alias, m.encoding, m.segments, m.state"
)
_CLAIMED = {
    "sqlite": f"SELECT json_group_array(json_array({_CLAIMED_COLUMNS}, 0)) "
    "FROM json_each(?) AS j CROSS JOIN sends AS s ON s.id = j.value CROSS JOIN messages AS m ON m.id = s.id",
    "postgresql": f"SELECT {_CLAIMED_COLUMNS}, s.xmin::text::bigint "
    "FROM sends AS s JOIN messages AS m ON m.id = s.id WHERE s.id = ANY($1::bigint[])",
}


def claim(connection: Connection, requests: Sequence[ClaimRequest], now: int, holding: Collection[int]) -> list[ClaimedSend]:
    """Claim due messages, increment the attempt number of each, and return them, oldest first.

    A message whose lease has ended is not claimed if its gateway is in `holding`, the ids of the gateways with the policy `hold`.
    The claims are valid after the caller has committed the transaction."""
    if not requests:
        return []
    rows = [
        (gateway_id, request.part, request.limit, request.lease_until, gateway_id not in holding)
        for request in requests
        for gateway_id in [_gateway_of(request.queue)]
    ]
    if connection.dialect.name == "sqlite":
        leases: list[tuple[int, int]] = []
        for gateway_id, part, limit, lease_until, takes_lost in rows:
            picked = orjson.loads(raw_sql.value(connection, _PICK, gateway_id, part, now, takes_lost, limit))
            leases += [(row, lease_until) for row in picked]
        ids = [row for row, _ in leases]
        if ids:
            raw_sql.execute(connection, _CLAIM_SQLITE, orjson.dumps(leases).decode())
    else:
        columns = tuple(list(column) for column in zip(*rows, strict=True))
        ids = [row[0] for row in connection.exec_driver_sql(_CLAIM_POSTGRESQL, (*columns, now))]
    found = [ClaimedSend._make(row) for row in raw_sql.rows(connection, _CLAIMED, ids)] if ids else []
    return sorted(found)


def postpone_unclaimed(connection: Connection, gateway_id: int, applications: Collection[int], now: int, until: int) -> int:
    """Postpone due messages of these applications to the time `until`, without a claim. Only the MAX_EXAMINED oldest due first
    attempts and the MAX_EXAMINED oldest due retries of a gateway are examined. Return the number of postponed messages."""
    count = 0
    for part in (FIRST_ATTEMPTS, RETRIES):
        is_due = IS_PENDING, sends.c.next_at <= from_ms(now)
        oldest = (
            select(sends.c.id, sends.c.application_id)
            .where(sends.c.gateway_id == gateway_id, sends.c.queue == literal_column(str(part)), *is_due)
            .order_by(sends.c.next_at)
            .limit(MAX_EXAMINED)
            .subquery()
        )
        found = list(connection.scalars(select(oldest.c.id).where(oldest.c.application_id.in_(list(applications)))))
        if found:
            statement = update(sends).where(sends.c.id.in_(found), *is_due).values(next_at=from_ms(until))
            count += connection.execute(statement).rowcount
    return count


class FinishedSend(NamedTuple):
    """The new column values of a row of `sends` after an attempt, or after its message was given up.

    The values are written only if the row has not changed since it was claimed or read. The number of the row's attempt must be
    `claimed_attempt`, and the end of its lease must be `claimed_lease`. A `claimed_lease` of 0 means that no process had claimed
    the row. If a report has made the row doubtful during the attempt (reports.py), it stays doubtful."""

    id: int
    claimed_attempt: int
    claimed_lease: int
    status: int
    attempt: int
    base_attempt: int
    part: int
    next_at: int
    doubtful: bool
    finished_at: int | None
    gateway_message_id: str | None
    last_status: int | None
    last_error: str | None
    refunded: bool = False


# The text of a message is deleted when the message is SENT or FAILED. The text of a held message stays, because an operator can
# send the message again.
_FINISH = {
    "sqlite": (
        "UPDATE sends SET lease_until = NULL, status = j.value ->> 3, attempt = j.value ->> 4, base_attempt = j.value ->> 5, "
        "queue = j.value ->> 6, next_at = j.value ->> 7, doubtful = sends.doubtful OR j.value ->> 8, finished_at = j.value ->> 9, "
        "gateway_message_id = coalesce(j.value ->> 10, sends.gateway_message_id), "
        "last_status = j.value ->> 11, last_error = j.value ->> 12, refunded = j.value ->> 13, "
        "text = CASE WHEN j.value ->> 3 IN (1, 2) THEN NULL ELSE text END "
        "FROM json_each(?) AS j WHERE sends.id = j.value ->> 0 AND sends.attempt = j.value ->> 1 "
        "AND coalesce(sends.lease_until, 0) = j.value ->> 2 RETURNING sends.id"
    ),
    "postgresql": (
        "UPDATE sends SET lease_until = NULL, status = b.status, attempt = b.attempt, base_attempt = b.base_attempt, "
        "queue = b.queue, next_at = b.next_at, doubtful = sends.doubtful OR b.doubtful, finished_at = b.finished_at, "
        "gateway_message_id = coalesce(b.gateway_message_id, sends.gateway_message_id), "
        "last_status = b.last_status, last_error = b.last_error, refunded = b.refunded, "
        "text = CASE WHEN b.status IN (1, 2) THEN NULL ELSE sends.text END "
        "FROM unnest($1::bigint[], $2::smallint[], $3::bigint[], $4::smallint[], $5::smallint[], $6::smallint[], $7::smallint[], "
        "$8::bigint[], $9::bool[], $10::bigint[], $11::text[], $12::int[], $13::text[], $14::bool[]) "
        "AS b(id, claimed_attempt, claimed_lease, status, attempt, base_attempt, queue, next_at, doubtful, finished_at, "
        "gateway_message_id, last_status, last_error, refunded) "
        "WHERE sends.id = b.id AND sends.attempt = b.claimed_attempt AND coalesce(sends.lease_until, 0) = b.claimed_lease "
        "RETURNING sends.id"
    ),
}


def finish(connection: Connection, rows: Sequence[FinishedSend]) -> set[int]:
    """Write new values of messages. Return the ids of the written rows.

    A row is not written if its lease has ended and another process has then claimed it."""
    return raw_sql.execute_returning_ids(connection, _FINISH, rows)


#: Inserts rows into the table `send_attempts`, with these columns in this order.
insert_attempts = BulkInsert(schema.send_attempts, "id", "send_id", "attempt", "at", "milliseconds", "outcome", "status", "detail")
