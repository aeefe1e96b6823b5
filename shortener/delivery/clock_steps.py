"""Repair of stored times after the clock was set back.

Times that were written before the step are too far ahead: a retry planned in two seconds would wait for hours. `repair` gives each
retry, lease, breaker and rate its planned delay again, counted from now. It recognises them by the time at which they were written,
or because no plan reaches so far ahead. A retry that was planned before the step went back to (a delay of hours) can wait longer,
by at most the step.

After a step forward, everything that was planned in between is due at once. Nothing needs repair.

Times are milliseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import Connection, literal_column, or_, select, update

from shortener.delivery import dispatch_queries
from shortener.delivery.attempt import LOCAL_FAILURE_PAUSE_MS
from shortener.delivery.claims import LEASE_MARGIN_MS
from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES
from shortener.delivery.health import TrackerHealth, pause
from shortener.delivery.pace import TrackerPace
from shortener.storage import schema
from shortener.storage.types import from_ms

#: Differences between the clocks of processes that are no step.
TOLERANCE_MS = 5000
#: The longest lease: the highest time limit of an attempt, and the margin.
MAX_LEASE_MS = 60_000 + LEASE_MARGIN_MS


def repair(connection: Connection, now: int, lease_ms: int) -> int:
    """Repair all times that are too far ahead, as a part of the caller's transaction. Return the number of changed rows.

    `lease_ms`: after this time, attempts whose lease is too long are repeated. They may still be in flight."""
    return _repair_deliveries(connection, now, lease_ms) + _repair_trackers(connection, now)


def _repair_deliveries(connection: Connection, now: int, lease_ms: int) -> int:
    table = schema.deliveries
    columns = table.c
    is_pending = columns.status == literal_column("0")
    is_idle = columns.lease_until.is_(None)

    def change(values: dict[str, Any], *conditions: Any) -> int:
        return connection.execute(update(table).where(is_pending, *conditions).values(values)).rowcount

    return (
        change(
            {"next_at": from_ms(now + lease_ms)},
            columns.lease_until > from_ms(now + MAX_LEASE_MS + TOLERANCE_MS),
            columns.next_at > from_ms(now + MAX_LEASE_MS + TOLERANCE_MS),
        )
        + change(
            {"next_at": from_ms(now)},
            is_idle,
            columns.queue == FIRST_ATTEMPTS,
            columns.next_at > from_ms(now + LOCAL_FAILURE_PAUSE_MS + TOLERANCE_MS),
        )
        + change(
            {"next_at": literal_column(f"{now} + next_at - scheduled_at"), "scheduled_at": from_ms(now)},
            is_idle,
            columns.queue == RETRIES,
            columns.scheduled_at > from_ms(now + TOLERANCE_MS),
        )
    )


def _repair_trackers(connection: Connection, now: int) -> int:
    columns = schema.trackers.c
    ahead = from_ms(now + TOLERANCE_MS)
    times = (columns.open_until, columns.opened_at, columns.recovering_at, columns.rate_lowered_at, columns.paced_until)
    found = connection.scalars(select(columns.id).where(or_(*(column > ahead for column in times)))).all()
    states = dispatch_queries.locked_states(connection, found)
    for tracker, state in states.items():
        health, pace = repaired_health(state.health, now), repaired_pace(state.pace, now)
        values = dispatch_queries.health_columns(health) | dispatch_queries.pace_columns(pace)
        dispatch_queries.update_tracker(connection, tracker, values)
    return len(states)


def repaired_health(health: TrackerHealth, now: int) -> TrackerHealth:
    """Return the health with no time further ahead than the breaker can make it."""
    open_until = health.open_until
    if open_until is not None:
        open_until = min(open_until, now + max(pause(health.failures_in_row), MAX_LEASE_MS))
    return dataclasses.replace(
        health,
        open_until=open_until,
        opened_at=_not_ahead(health.opened_at, now),
        recovering_at=_not_ahead(health.recovering_at, now),
    )


def repaired_pace(pace: TrackerPace, now: int) -> TrackerPace:
    """Return the pace with no time further ahead than planned. A time of `Retry-After` counts from the 429."""
    paced_until = pace.paced_until
    if paced_until is not None and pace.lowered_at is not None and pace.lowered_at > now:
        paced_until = now + max(paced_until - pace.lowered_at, 0)
    elif paced_until is not None and pace.lowered_at is None:
        paced_until = min(paced_until, now)
    return dataclasses.replace(pace, paced_until=paced_until, lowered_at=_not_ahead(pace.lowered_at, now))


def _not_ahead(at: int | None, now: int) -> int | None:
    return None if at is None else min(at, now)
