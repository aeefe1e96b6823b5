"""This module writes two messages with their hits and conversions, and the count deltas that belong to these rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from sqlalchemy import Connection, insert

from shortener.model import HitFlag, Verdict
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import CountDelta
from shortener.storage import schema
from shortener.storage.types import to_ms
from tests.rows import Rows

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SLOT = timedelta(minutes=15)
DAY = timedelta(days=1)


def append_delta(connection: Connection, row: int, *amounts: tuple[int, datetime, str, int | Decimal]) -> None:
    """Append one row of count deltas."""
    delta = CountDelta()
    for cohort, at, metric, amount in amounts:
        delta.add(cohort, to_ms(at), metric, amount)
    count_deltas.append(connection, row, delta)


def write_history(connection: Connection) -> None:
    """Write two messages. They have hits with each verdict, and conversions. Also write the count deltas that belong to these
    rows."""
    cohorts = [
        {"id": 1, "application_id": 1, "campaign": "spring", "source": "api", "country": "US"},
        {"id": 2, "application_id": 1, "campaign": "", "source": "api", "country": "DE"},
    ]
    connection.execute(insert(schema.cohorts), cohorts)
    application = {"id": 1, "name": "default", "settings": {}, "created_at": NOON}
    connection.execute(insert(schema.applications).values(application))
    rows = Rows(connection)
    first = rows.message(
        NOON,
        segments=2,
        sent_at=NOON + timedelta(minutes=1),
        delivered_at=NOON + timedelta(minutes=20),
        read_at=NOON + timedelta(minutes=40),
    )
    link = rows.link(first, expires_at=NOON + 2 * DAY)
    off = rows.link(first, position=1, disabled_at=NOON + timedelta(minutes=50))
    clicked = NOON + timedelta(minutes=41)
    rows.first_click(first, link, clicked)
    rows.hit(link, clicked + timedelta(minutes=1))
    rows.hit(link, clicked, verdict=int(Verdict.SUSPECTED))
    rows.hit(link, clicked, verdict=int(Verdict.IGNORED))
    rows.hit(link, NOON + 3 * DAY, flags=int(HitFlag.LATE))
    rows.hit(link, NOON + 3 * DAY, flags=int(HitFlag.LATE), verdict=int(Verdict.SUSPECTED))
    rows.hit(off, NOON + timedelta(minutes=45))
    rows.hit(off, NOON + timedelta(minutes=55), flags=int(HitFlag.DISABLED))
    rows.conversion(first, value=Decimal("12.50"), currency="EUR", at=clicked)
    rows.conversion(first, value=Decimal("-2.5"), currency="EUR", at=clicked, action="refund")
    rows.conversion(first, value=Decimal("1"), at=clicked, action="points")
    rows.conversion(first, at=clicked, action="reply")
    rows.converted(first, clicked)
    rows.message(NOON, cohort_id=2, failed_at=NOON + timedelta(minutes=5))
    append_delta(
        connection,
        1,
        (1, NOON, "messages", 1),
        (1, NOON, "segments", 2),
        (1, NOON, "sent", 1),
        (1, NOON + SLOT, "delivered", 1),
        (1, NOON + 2 * SLOT, "read", 1),
        (2, NOON, "messages", 1),
        (2, NOON, "segments", 1),
        (2, NOON, "failed", 1),
    )
    append_delta(
        connection,
        2,
        (1, clicked, "clicks", 2),
        (1, clicked, "clicked_messages", 1),
        (1, clicked, "ttc:160", 1),
        (1, clicked, "suspected_hits", 1),
        (1, clicked, "ignored_hits", 1),
        (1, NOON + 3 * DAY, "late_hits", 2),
        (1, NOON + timedelta(minutes=45), "clicks", 1),
        (1, clicked, "converted_messages", 1),
        (1, clicked, "conversions", 4),
        (1, clicked, "value:EUR", Decimal("10.00")),
        (1, clicked, "value:", Decimal(1)),
    )
