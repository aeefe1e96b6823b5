"""This module repairs the stored times of messages and gateways after the system clock was set back.

Times that were stored before the clock was set back are too far in the future: a message that waits five seconds for its next
attempt would wait for hours. `repair` gives each message, lease, circuit breaker and rate its planned delay again, counted from the
current time. A process also calls `repair` when it starts, because the clock may have been set back while no process ran. If the
clock was not set back, `repair` changes nothing.

`delivery/clock_steps.py` does the same for deliveries and trackers. Times are milliseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, bindparam, literal_column, select, update

from shortener.delivery.clock_steps import TOLERANCE_MS, repaired_health, repaired_pace
from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES, health_columns, pace_columns
from shortener.delivery.outcomes import next_delay
from shortener.gateways.expiry import PAUSE_MS
from shortener.gateways.queries import MAX_LEASE_MS, LockedGateway, lock_health, update_gateway
from shortener.storage.schema import gateways, send_attempts, sends
from shortener.storage.send_conditions import IS_PENDING
from shortener.storage.types import from_ms

#: The values of the column `queue`. They are literals, because the database would not use the partial index if they were parameters
#: of the SQL statement.
_FIRST_ATTEMPTS: ColumnElement[int] = literal_column(str(FIRST_ATTEMPTS))
_RETRIES: ColumnElement[int] = literal_column(str(RETRIES))


class RepairResult(NamedTuple):
    """The number of rows that a repair changed. `is_complete` is false if the repair has left out a gateway, because another
    process had locked it."""

    rows: int
    is_complete: bool


def repair(connection: Connection, now: int, schedule: Sequence[float], rng: random.Random) -> RepairResult:
    """Repair all times of gateways and their messages that are too far in the future, as a part of the caller's transaction.

    `schedule` is used for gateways that have no schedule of their own. A gateway that another process has locked is left out,
    because waiting for it could cause a deadlock."""
    g = gateways.c
    schedules = {row.id: row.schedule for row in connection.execute(select(g.id, g.schedule))}
    locked = lock_health(connection, schedules, waits=False)
    rows = sum(
        _repair_gateway(connection, gateway_id, state, now)
        + _repair_first_attempts(connection, gateway_id, now)
        + _repair_leases(connection, gateway_id, now)
        + _repair_retries(connection, gateway_id, now, schedules[gateway_id] or schedule, rng)
        for gateway_id, state in locked.items()
    )
    return RepairResult(rows, len(locked) == len(schedules))


def _repair_gateway(connection: Connection, gateway_id: int, state: LockedGateway, now: int) -> int:
    health, pace = state.health, state.pace
    times = (health.open_until, health.opened_at, health.recovering_at, pace.lowered_at, pace.paced_until)
    if not any(at is not None and at > now + TOLERANCE_MS for at in times):
        return 0
    health, pace = repaired_health(health, now), repaired_pace(pace, now)
    if (health, pace) == (state.health, state.pace):
        return 0
    update_gateway(connection, gateway_id, health_columns(health) | pace_columns(pace))
    return 1


def _repair_first_attempts(connection: Connection, gateway_id: int, now: int) -> int:
    """Make a message due if its first attempt is planned too far in the future. Such an attempt is postponed only while the
    application of the message is disabled, and only by PAUSE_MS at a time."""
    c = sends.c
    is_wrong = c.gateway_id == gateway_id, c.queue == _FIRST_ATTEMPTS, c.next_at > from_ms(now + PAUSE_MS + TOLERANCE_MS)
    return connection.execute(update(sends).where(IS_PENDING, *is_wrong).values(next_at=from_ms(now))).rowcount


def _repair_leases(connection: Connection, gateway_id: int, now: int) -> int:
    """If a lease ends too far in the future, make its message due after the longest possible lease, because the attempt may still
    be in flight. `lease_until` stays unchanged, because the process that makes the attempt compares it when it records the
    outcome (`queries.lease_has_ended`)."""
    c, longest = sends.c, from_ms(now + MAX_LEASE_MS + TOLERANCE_MS)
    is_wrong = c.gateway_id == gateway_id, c.lease_until > longest, c.next_at > longest
    return connection.execute(update(sends).where(IS_PENDING, *is_wrong).values(next_at=from_ms(now + MAX_LEASE_MS))).rowcount


def _repair_retries(connection: Connection, gateway_id: int, now: int, schedule: Sequence[float], rng: random.Random) -> int:
    """If the latest attempt of a message has a time in the future, plan the next attempt again."""
    c = sends.c
    ahead = from_ms(now + TOLERANCE_MS)
    found = connection.execute(
        select(c.id, c.attempt, c.base_attempt)
        .where(IS_PENDING, c.gateway_id == gateway_id, c.queue == _RETRIES, c.next_at > ahead, c.lease_until.is_(None))
        .where(select(send_attempts.c.id).where(send_attempts.c.send_id == c.id, send_attempts.c.at > ahead).exists())
    ).all()
    if found:
        statement = update(sends).where(c.id == bindparam("row")).values(next_at=bindparam("at"))
        delays = (next_delay(max(row.attempt - row.base_attempt, 1), schedule, rng) for row in found)
        changes = [{"row": row.id, "at": from_ms(now + round(delay * 1000))} for row, delay in zip(found, delays, strict=True)]
        connection.execute(statement, changes)
    return len(found)
