"""The feed of the live page: the new hits, conversions and delivery attempts of this installation. While a live page is open, one
task per process reads the database once a second, so the feed contains the rows that all processes store.

A row id contains the time at which it was created, which is before the commit. Hits from the spool are stored even later. A row
can therefore appear in the database after rows with higher ids. Each read covers the last OVERLAP again and leaves out the rows
that were already sent.
"""
# Tested by tests/portal/test_live.py

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import Column, ColumnElement, Connection, Table, func, select

from shortener.clicks.hit_metrics import hit_metric
from shortener.errors import StoreUnavailable
from shortener.ids import DELIVERY_IDS, first_id_at
from shortener.model import record
from shortener.portal.formats import money_with_currency
from shortener.storage.schema import attempts, cohorts, conversions, deliveries, hits, links, messages, trackers
from shortener.storage.types import to_ms

if TYPE_CHECKING:
    from shortener.storage.database import Database

log = structlog.get_logger(__name__)

INTERVAL = 1.0  # Seconds between two reads of the database.
OVERLAP = timedelta(seconds=15)
MAX_ROWS = 200  # The maximum number of rows that one read returns for each kind and application.
# The maximum number of rows of all applications that one read examines for each kind, newest first. If more rows are stored
# between two reads, some of them can be missing in the feed.
MAX_EXAMINED_ROWS = 2000
# The maximum number of rows that a subscriber gets from one read. For the rows beyond it, the subscriber gets only their number.
SHOWN_PER_READING = 20
MAX_WAITING = 50  # The maximum number of batches that wait for a slow subscriber. If there are more, the oldest batch is dropped.


@record
class LiveRow:
    """A row of the live feed. `kind` is hit, conversion or delivery. `name` is a short description of the row, and `detail` is
    further text. A row of the kind delivery is one attempt. Its `name` is the name of the tracker (None: the tracker was
    deleted), and `status` and `error` are the outcome. If `tracker_id` is None, the delivery is for a callback URL."""

    kind: str
    id: int
    at: datetime
    application_id: int
    name: str | None
    detail: str
    message_id: str | None = None
    tracker_id: int | None = None
    delivery_id: str | None = None
    status: int | None = None
    error: str | None = None


@record
class LiveBatch:
    """The new rows that one read found, newest first. `more` is the number of new rows that were left out."""

    rows: Sequence[LiveRow]
    more: int


@dataclass(eq=False)
class LiveSubscriber:
    applications: frozenset[int]
    batches: asyncio.Queue[LiveBatch] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING))

    def put(self, rows: Sequence[LiveRow]) -> None:
        own = [row for row in rows if row.application_id in self.applications]
        if not own:
            return
        if self.batches.full():
            self.batches.get_nowait()
        self.batches.put_nowait(LiveBatch(own[:SHOWN_PER_READING], max(len(own) - SHOWN_PER_READING, 0)))


class LiveFeed:
    """A feed of new rows. It reads the database only while it has subscribers."""

    def __init__(self, database: Database, clock: Callable[[], datetime], interval: float = INTERVAL) -> None:
        self._database = database
        self._clock = clock
        self._interval = interval
        self._subscribers: set[LiveSubscriber] = set()
        self._task: asyncio.Task[None] | None = None
        self._seen: dict[tuple[str, int], datetime] = {}

    @contextlib.asynccontextmanager
    async def subscribe(self, applications: Collection[int]) -> AsyncIterator[asyncio.Queue[LiveBatch]]:
        """Subscribe to new rows of these applications. Rows that are stored already are not sent."""
        subscriber = LiveSubscriber(frozenset(applications))
        if new := subscriber.applications - self._applications():
            now = self._clock()
            # Mark the rows of the last seconds as seen, so that they are not sent as new rows. If the database is unavailable
            # now, they are not marked, and the feed sends them later.
            with contextlib.suppress(StoreUnavailable):
                self._remember(await self._database.read(read_rows, now - OVERLAP, new), now)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._subscribers.add(subscriber)
        try:
            yield subscriber.batches
        finally:
            self._subscribers.discard(subscriber)
            if not self._subscribers and self._task is not None:
                self._task.cancel()
                self._task = None
                self._seen.clear()

    def _applications(self) -> frozenset[int]:
        """Return the ids of all applications to which somebody subscribes."""
        return frozenset().union(*(subscriber.applications for subscriber in self._subscribers))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            now = self._clock()
            try:
                rows = await self._database.read(read_rows, now - OVERLAP, self._applications())
            except StoreUnavailable:
                # The next read also covers the time of this failed read, if the database is available again within OVERLAP.
                continue
            except Exception:
                log.exception("live_feed_failed")
                continue
            new = self._remember(rows, now)
            if new:
                for subscriber in tuple(self._subscribers):
                    subscriber.put(new)

    def _remember(self, rows: Sequence[LiveRow], now: datetime) -> list[LiveRow]:
        """Mark these rows as seen. Return those that were not marked before, newest first."""
        new = [row for row in rows if (row.kind, row.id) not in self._seen]
        self._seen |= {(row.kind, row.id): now for row in new}
        self._seen = {key: at for key, at in self._seen.items() if at >= now - 4 * OVERLAP}
        return sorted(new, key=lambda row: row.at, reverse=True)


def read_rows(connection: Connection, since: datetime, applications: Collection[int]) -> list[LiveRow]:
    """Return the newest hits, conversions and delivery attempts of these applications that were created at `since` or later. The
    row ids contain the time of creation."""
    low = first_id_at(to_ms(since))
    reads = _read_hits, _read_conversions, _read_attempts
    return [row for read in reads for row in read(connection, low, applications)]


def _is_newest(reference: Column[int], parent: Table, low: int, applications: Collection[int]) -> ColumnElement[bool]:
    """Return the SQL condition that selects the newest MAX_ROWS rows of each application, with ids from `low` on. A row has no
    application id itself. Its column `reference` contains the id of a row in the table `parent`, and that row has the application
    id.

    Only the newest MAX_EXAMINED_ROWS rows of all applications are examined. The limit is in a separate subquery, and so is the
    look-up in `parent`. Without these subqueries, PostgreSQL could expect many rows and read the table `parent` completely."""
    table = reference.table
    newest = select(table.c.id, reference.label("parent")).where(table.c.id >= low).order_by(table.c.id.desc())
    examined = newest.limit(MAX_EXAMINED_ROWS).subquery("examined").c
    application_id = select(parent.c.application_id).where(parent.c.id == examined.parent).scalar_subquery()
    owned = select(examined.id, application_id.label("application_id")).subquery("owned").c
    rank = func.row_number().over(partition_by=owned.application_id, order_by=owned.id.desc()).label("rank")
    ranked = select(owned.id, rank).where(owned.application_id.in_(sorted(applications))).subquery("ranked").c
    return table.c.id.in_(select(ranked.id).where(ranked.rank <= MAX_ROWS))


def _read_hits(connection: Connection, low: int, applications: Collection[int]) -> list[LiveRow]:
    h = hits.c
    statement = (
        select(h.id, h.at, h.verdict, h.flags, links.c.application_id, messages.c.message_id, cohorts.c.campaign)
        .join(links, links.c.id == h.link_id)
        .join(messages, messages.c.id == links.c.message_id)
        .join(cohorts, cohorts.c.id == links.c.cohort_id)
        .where(_is_newest(h.link_id, links, low, applications))
    )
    return [
        LiveRow("hit", row.id, row.at, row.application_id, hit_metric(row.verdict, row.flags), row.campaign, row.message_id)
        for row in connection.execute(statement)
    ]


def _read_conversions(connection: Connection, low: int, applications: Collection[int]) -> list[LiveRow]:
    c = conversions.c
    columns = c.id, c.received_at, c.at, c.action, c.value, c.currency, c.status, c.application_id, messages.c.message_id
    statement = (
        select(*columns).join(messages, messages.c.id == c.message_id).where(_is_newest(c.message_id, messages, low, applications))
    )
    return [
        LiveRow("conversion", row.id, row.received_at or row.at, row.application_id, row.action, _worth(row), row.message_id)
        for row in connection.execute(statement)
    ]


def _worth(row: Any) -> str:
    value = "" if row.value is None else money_with_currency(row.value, row.currency)
    return ", ".join(part for part in (value, row.status) if part)


def _read_attempts(connection: Connection, low: int, applications: Collection[int]) -> list[LiveRow]:
    a, d = attempts.c, deliveries.c
    statement = (
        select(a.id, a.at, a.status, a.error, a.delivery_id, d.application_id, d.tracker_id, trackers.c.name)
        .join(deliveries, d.id == a.delivery_id)
        .outerjoin(trackers, trackers.c.id == d.tracker_id)
        .where(_is_newest(a.delivery_id, deliveries, low, applications))
    )
    return [
        LiveRow(
            "delivery",
            row.id,
            row.at,
            row.application_id,
            row.name,
            "",
            tracker_id=row.tracker_id,
            delivery_id=DELIVERY_IDS.encode(row.delivery_id),
            status=row.status,
            error=row.error,
        )
        for row in connection.execute(statement)
    ]
