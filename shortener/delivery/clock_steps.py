"""This module repairs the stored times of deliveries and trackers after the system clock was set back.

Times that were stored before the clock was set back are too far in the future: a retry that was planned in two seconds would wait
for hours. `repair` gives each retry, lease, circuit breaker and rate its planned delay again, counted from the current time.
`repair` replaces a stored time in two cases: the moment at which the time was stored is now in the future, or the stored time is
later than the longest possible delay allows. `repair` does not change a retry that was planned before the time to which the clock
was set back, because neither case applies. Such a retry waits too long, by at most the size of the clock step.

If the clock is set forward, retries are due earlier, and no stored time needs repair. Leases seem to end earlier, so for some
minutes the service treats no lease as ended (storage/clock_guard.py).

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
from shortener.delivery.health import EndpointHealth, pause
from shortener.delivery.pace import EndpointPace
from shortener.storage import schema
from shortener.storage.delivery_conditions import IS_PENDING
from shortener.storage.types import from_ms

#: The clocks of two processes may differ by this time. A larger difference means that a clock was set back.
TOLERANCE_MS = 5000
#: The longest possible lease: the highest time limit of an attempt (60 s) plus the margin of every lease.
MAX_LEASE_MS = 60_000 + LEASE_MARGIN_MS


def repair(connection: Connection, now: int, lease_ms: int) -> int:
    """Repair all stored times that are too far in the future, as a part of the caller's transaction.

    A delivery whose lease ends too far in the future becomes due `lease_ms` milliseconds after `now`. It does not become due at
    once, because its attempt may still be in flight. Return the number of changed rows."""
    return _repair_deliveries(connection, now, lease_ms) + _repair_trackers(connection, now)


def _repair_deliveries(connection: Connection, now: int, lease_ms: int) -> int:
    table = schema.deliveries
    columns = table.c
    is_idle = columns.lease_until.is_(None)

    def change(values: dict[str, Any], *conditions: Any) -> int:
        return connection.execute(update(table).where(IS_PENDING, *conditions).values(values)).rowcount

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


def repaired_health(health: EndpointHealth, now: int) -> EndpointHealth:
    """Return the health of a tracker after the clock was set back. Each time that is too far in the future is replaced by the
    latest time that the circuit breaker could set now."""
    open_until = health.open_until
    if open_until is not None:
        open_until = min(open_until, now + max(pause(health.failures_in_row), MAX_LEASE_MS))
    return dataclasses.replace(
        health,
        open_until=open_until,
        opened_at=_not_ahead(health.opened_at, now),
        recovering_at=_not_ahead(health.recovering_at, now),
    )


def repaired_pace(pace: EndpointPace, now: int) -> EndpointPace:
    """Return the state of a tracker's rate limit after the clock was set back. No delivery waits longer than planned. A wait that
    the tracker requested with `Retry-After` starts again at the time `now`."""
    paced_until = pace.paced_until
    if paced_until is not None and pace.lowered_at is not None and pace.lowered_at > now:
        paced_until = now + max(paced_until - pace.lowered_at, 0)
    elif paced_until is not None and pace.lowered_at is None:
        paced_until = min(paced_until, now)
    return dataclasses.replace(pace, paced_until=paced_until, lowered_at=_not_ahead(pace.lowered_at, now))


def _not_ahead(at: int | None, now: int) -> int | None:
    return None if at is None else min(at, now)
