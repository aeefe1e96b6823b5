"""This module reads the state of the queues: how much work waits, how old it is, and how large the database is.

`read_queue_state` needs only a few index look-ups, independent of the size of the tables. The background job `QueueMonitor` reads
the state every INTERVAL_SECONDS, so that a request for /metrics reads no table. `shortener doctor` reads the same state. All
processes of an installation report the same values. A Prometheus query must therefore use the maximum over all processes, and not
the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, func, select, text

from shortener.delivery.dispatch_queries import pending_queues
from shortener.delivery.queue_names import END_OF_NAMES, tracker_queue
from shortener.metrics import Metrics
from shortener.model import Clock, record
from shortener.reporting.gateway_queues import GatewayQueue, read_gateway_queues, register_gateway_metrics
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.delivery_conditions import IS_PENDING
from shortener.storage.open import sqlite_path
from shortener.storage.types import from_ms

INTERVAL_SECONDS = 15.0  # The seconds between two reads of the state of the queues.
# Waiting rows are counted only up to this number, so that a read stays fast. If there are more rows, this number is reported.
MAX_COUNTED = 50_000
MAX_QUEUES = 1000  # At most this many queues of trackers and callbacks are examined.


@record
class QueueState:
    """The state of the queues at one time. Ages are in seconds. An age of 0 means that nothing waits."""

    events_pending: int = 0  # The number of events whose deliveries were not created yet.
    oldest_event_seconds: float = 0.0
    deliveries_pending: int = 0  # The number of pending deliveries, both due and not due yet.
    deliveries_due: int = 0
    oldest_due_seconds: float = 0.0
    hits_dead_letter: int = 0
    count_deltas_quarantined: int = 0
    trackers_disabled: int = 0  # The number of trackers that the service has disabled, without those that a user has disabled.
    purge_lag_seconds: float = 0.0
    database_bytes: int = 0


def read_queue_state(connection: Connection, settings: Settings, now: datetime) -> QueueState:
    """Return the state of the queues at the time `now`."""
    events, deliveries, trackers = schema.events.c, schema.deliveries.c, schema.trackers.c
    pending = select(events.id).where(events.fanned_out.is_(False)).limit(MAX_COUNTED)
    oldest_event = connection.execute(select(events.at).where(events.fanned_out.is_(False)).order_by(events.id).limit(1)).scalar()
    waiting = select(deliveries.next_at).where(IS_PENDING).limit(MAX_COUNTED).subquery()
    counted = select(func.count(), func.count().filter(waiting.c.next_at <= now)).select_from(waiting)
    deliveries_pending, deliveries_due = connection.execute(counted).one()
    letters = select(schema.hits_dead_letter.c.id).limit(MAX_COUNTED).subquery()
    quarantined = select(schema.count_deltas.c.id).where(schema.count_deltas.c.id < 0).limit(MAX_COUNTED).subquery()
    disabled = select(func.count()).where(trackers.enabled.is_(False), trackers.disabled_reason.is_not(None))
    return QueueState(
        events_pending=connection.execute(select(func.count()).select_from(pending.subquery())).scalar_one(),
        oldest_event_seconds=_age(oldest_event, now),
        deliveries_pending=deliveries_pending,
        deliveries_due=deliveries_due,
        oldest_due_seconds=_age(_oldest_due(connection), now) if deliveries_due else 0.0,
        hits_dead_letter=connection.execute(select(func.count()).select_from(letters)).scalar_one(),
        count_deltas_quarantined=connection.execute(select(func.count()).select_from(quarantined)).scalar_one(),
        trackers_disabled=connection.execute(disabled).scalar_one(),
        purge_lag_seconds=_purge_lag(connection, settings, now),
        database_bytes=_size(connection, settings),
    )


def _oldest_due(connection: Connection) -> datetime | None:
    """Return the earliest due time of the pending deliveries of all enabled trackers. It may be in the future."""
    off = select(schema.trackers.c.id).where(schema.trackers.c.enabled.is_(False))
    parked = {tracker_queue(tracker) for tracker in connection.scalars(off)}
    times = [
        due
        for queue in pending_queues(connection, "", END_OF_NAMES, MAX_QUEUES)
        if queue.name not in parked  # The deliveries of disabled trackers wait on purpose, so they are left out.
        for due in (queue.first_due, queue.retry_due)
        if due is not None
    ]
    return from_ms(min(times)) if times else None


def _purge_lag(connection: Connection, settings: Settings, now: datetime) -> float:
    """Return how many seconds ago the oldest row should have been deleted. The retention time of a message is at least the
    lifetime of its links."""
    messages = max(settings.message_retention_days, settings.link_ttl_days)
    lags = []
    for table, at, days in (
        (schema.messages, schema.messages.c.created_at, messages),
        (schema.events, schema.events.c.at, settings.event_retention_days),
    ):
        oldest = connection.execute(select(at).order_by(table.c.id).limit(1)).scalar()
        if oldest is not None:
            lags.append((now - oldest - timedelta(days=days)).total_seconds())
    return float(max([0.0, *lags]))


def _size(connection: Connection, settings: Settings) -> int:
    """Return the size of the database in bytes. On SQLite, the WAL is not included."""
    file: Path | None = sqlite_path(settings.store_url)
    if file is None:
        return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _age(at: datetime | None, now: datetime) -> float:
    return 0.0 if at is None else max((now - at).total_seconds(), 0.0)


class QueueMonitor:
    """The background job that reads the state of the queues for /metrics."""

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self.state = QueueState()
        self.gateways: Sequence[GatewayQueue] = ()

    async def step(self) -> int:
        """Read the state of the queues. Always return 0, which means that no work is left. Raise StoreUnavailable if the database
        is unavailable."""
        self.state = await self._database.read(read_queue_state, self._settings, self._clock())
        self.gateways = await self._database.read(read_gateway_queues, self._clock())
        return 0

    def register_metrics(self, metrics: Metrics) -> None:
        for name, field, help in (
            ("events_pending", "events_pending", f"Events whose deliveries are not created yet (counted up to {MAX_COUNTED})."),
            ("events_oldest_seconds", "oldest_event_seconds", "Age of the oldest event whose deliveries are not created yet."),
            ("deliveries_pending", "deliveries_pending", f"Deliveries that are due now or later (counted up to {MAX_COUNTED})."),
            ("deliveries_due", "deliveries_due", f"Deliveries that are due now (counted up to {MAX_COUNTED})."),
            (
                "deliveries_oldest_due_seconds",
                "oldest_due_seconds",
                "Time since the oldest waiting delivery became due, without disabled trackers.",
            ),
            ("hits_dead_letters", "hits_dead_letter", "Hits in the table hits_dead_letter, which the database rejected."),
            (
                "count_deltas_quarantined",
                "count_deltas_quarantined",
                "Rows of count deltas that could not be added to the counts. Statistics do not include them.",
            ),
            ("trackers_off", "trackers_disabled", "Trackers that the service has disabled, for example after a 410."),
            ("purge_lag_seconds", "purge_lag_seconds", "Time since the oldest stored row should have been deleted."),
            ("database_bytes", "database_bytes", "Size of the database, on SQLite without the WAL."),
        ):
            metrics.gauge(f"shortener_{name}", help, partial(self._read, field))
        register_gateway_metrics(metrics, lambda: self.gateways)

    def _read(self, field: str) -> float:
        return float(getattr(self.state, field))
