"""End of deliveries that waited too long or that have no tracker any more. They become dead and can be replayed.

Each function is part of the dispatcher's transaction and ends at most `MAX_EXPIRED_ROWS` deliveries at once.
Times are milliseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, Connection, literal_column, or_, select, update

from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES, DeliveryQueue
from shortener.model import DeliveryStatus
from shortener.storage import schema
from shortener.storage.types import from_ms

#: How long an open breaker, or failures of this host, may delay a delivery.
MAX_HOLD = timedelta(days=5)
MAX_EXPIRED_ROWS = 500

#: A literal in the statement: with a parameter, the partial index could not be used.
_IS_PENDING = schema.deliveries.c.status == literal_column("0")


def expire_overdue(connection: Connection, queue: DeliveryQueue, error: str, now: int, max_hold: timedelta, held_since: int) -> int:
    """End the deliveries of a queue that are held back for more than `max_hold`, with `error`. Return their number.

    `held_since`: when the hold of the queue started. The hold of a delivery starts when it is due, and not before this time."""
    before = now - max_hold // timedelta(milliseconds=1)
    if held_since >= before:
        return 0
    columns = schema.deliveries.c
    return sum(
        expire_queue(connection, queue.name, error, now, columns.queue == part, columns.next_at < from_ms(before))
        for part, due in ((FIRST_ATTEMPTS, queue.first_due), (RETRIES, queue.retry_due))
        if due is not None and due < before
    )


def expire_queue(connection: Connection, queue: str, error: str, now: int, *conditions: ColumnElement[bool]) -> int:
    """End the deliveries of a queue that match the conditions and have no attempt in flight. Return their number."""
    table = schema.deliveries
    columns = table.c
    idle = or_(columns.lease_until.is_(None), columns.lease_until <= from_ms(now))
    some = select(columns.id).where(columns.lane == queue, _IS_PENDING, idle, *conditions).limit(MAX_EXPIRED_ROWS)
    values = {
        "status": DeliveryStatus.DEAD.value,
        "finished_at": from_ms(now),
        "lease_until": None,
        "last_error": error,
    }
    # The conditions are repeated: on PostgreSQL another process may have claimed a delivery since the subquery ran.
    return connection.execute(update(table).where(columns.id.in_(some), _IS_PENDING, idle).values(values)).rowcount
