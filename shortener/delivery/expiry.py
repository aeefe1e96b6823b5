"""This module makes deliveries dead if they waited too long, or if their tracker was deleted. Dead deliveries can be replayed.

Each function runs in the dispatcher's transaction and changes at most `MAX_EXPIRED_ROWS` deliveries of each kind (first attempts
and retries). For these deliveries, the function appends an operations event `delivery_dead`. Times are milliseconds since
1970-01-01 UTC.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, Connection, or_, select, update

from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES, DeliveryQueue
from shortener.ids import DELIVERY_IDS, IdGenerator
from shortener.model import DeliveryStatus, Topic
from shortener.outbox import operations
from shortener.storage import schema
from shortener.storage.delivery_conditions import IS_PENDING
from shortener.storage.types import from_ms

#: A delivery becomes dead if it is delayed for longer than this by an open circuit breaker or by failures of this host.
MAX_HOLD = timedelta(days=5)
MAX_EXPIRED_ROWS = 500


def expire_overdue(
    connection: Connection, ids: IdGenerator, queue: DeliveryQueue, error: str, now: int, max_hold: timedelta, held_since: int
) -> int:
    """Make deliveries of a queue dead if they have waited for longer than `max_hold`. Return their number.

    `held_since` is the time at which the queue was blocked, for example because its tracker was disabled. The waiting time of a
    delivery starts when the delivery is due, but not before `held_since`. `error` becomes the last error of the deliveries."""
    before = now - max_hold // timedelta(milliseconds=1)
    if held_since >= before:
        return 0
    columns = schema.deliveries.c
    return sum(
        expire_queue(connection, ids, queue.name, error, now, columns.queue == part, columns.next_at < from_ms(before))
        for part, due in ((FIRST_ATTEMPTS, queue.first_due), (RETRIES, queue.retry_due))
        if due is not None and due < before
    )


def expire_queue(
    connection: Connection, ids: IdGenerator, queue: str, error: str, now: int, *conditions: ColumnElement[bool]
) -> int:
    """Make deliveries of a queue dead if they match the conditions and have no attempt in flight. Return their number.

    `error` becomes the last error of the deliveries."""
    table = schema.deliveries
    columns = table.c
    idle = or_(columns.lease_until.is_(None), columns.lease_until <= from_ms(now))
    some = select(columns.id).where(columns.lane == queue, IS_PENDING, idle, *conditions).limit(MAX_EXPIRED_ROWS)
    values = {
        "status": DeliveryStatus.DEAD.value,
        "finished_at": from_ms(now),
        "lease_until": None,
        "last_error": error,
    }
    # On PostgreSQL, another process may claim a delivery after the subquery ran. The UPDATE therefore repeats the conditions.
    returned = (columns.id, columns.topic, columns.application_id, columns.tracker_id)
    statement = update(table).where(columns.id.in_(some), IS_PENDING, idle).values(values).returning(*returned)
    expired = connection.execute(statement).all()
    reported = [row for row in expired if row.tracker_id is not None and row.topic != Topic.OPERATIONS]
    if reported:
        last = max(reported, key=lambda row: row.id)
        fields = {
            "tracker_id": last.tracker_id,
            "delivery_id": DELIVERY_IDS.encode(last.id),
            "delivery_event": Topic(last.topic).api_name,
            "count": len(reported),
            "reason": error,
        }
        operations.append(connection, ids, from_ms(now), [(last.application_id, operations.DELIVERY_DEAD, fields)])
    return len(expired)
