"""Retention: what is old enough is deleted, in small batches that let clicks through.

- Links. After its time a link answers 410, from its row, until its message goes. Then its code is unknown, 404. A code is never
  given out again on purpose; the random number behind it could be drawn once more, with a probability of 2^-48 for each new link.
- Messages, with their links, hits, conversions, events, deliveries and attempts: `message_retention_days` after the message was
  made, but not while one of its links is alive.
- Hits: after `hit_retention_days`. The first click of a message or link stays, without address and agent, until its message goes:
  what is told of a message (that a link was accessed, and when) does not depend on how long hits are kept.
- Events, with their deliveries and attempts: `event_retention_days` after the event and the end of its last delivery. A delivery
  that is parked because its tracker is disabled does not hold them longer.
- Answers kept for an Idempotency-Key: after 24 hours.
- Statistics stay: counts are rows of their own.

Nothing pending is deleted: an event that is not yet fanned out, or has a delivery to be attempted, keeps itself and its message.

Each batch is a transaction of at most `purge_batch` rows, found by ranges of a primary key (ids grow with time) or an index, oldest
first, never by a scan; after it the purge rests, three times as long as the batch took. A purge that is cut off has deleted whole
batches, what belongs to a message before the message, and the next one goes on from there.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Column, ColumnElement, Connection, Delete, Table, and_, delete, exists, false, func, or_, select, update

from shortener.ids import first_id_at
from shortener.metrics import Metrics
from shortener.model import DeliveryStatus, HitFlag
from shortener.settings import Settings
from shortener.store.database import Database
from shortener.store.schema import (
    attempts,
    conversions,
    deliveries,
    events,
    events_of,
    hits,
    idempotency,
    is_event_of_message,
    links,
    messages,
    other_hits,
    trackers,
)
from shortener.store.types import to_ms

#: A batch is followed by a rest so many times as long, in which clicks have the store to themselves.
REST = 3
IDEMPOTENCY_KEPT = timedelta(hours=24)
#: A pass of the job starts where the last one ended; as often as this it looks again at what could not go then.
FROM_THE_START_EVERY = timedelta(days=1)
#: How many rows go with one of these, roughly: so many fewer are looked at in one batch.
_ROWS_PER_MESSAGE, _ROWS_PER_EVENT = 8, 4
_ADVISORY_LOCK = 7_305_469_221  # any number that nothing else locks


@dataclass(slots=True)
class Purged:
    """Rows deleted, by kind. `emptied_hits`: first clicks that stay, and lost their address and agent."""

    messages: int = 0
    links: int = 0
    hits: int = 0
    emptied_hits: int = 0
    conversions: int = 0
    events: int = 0
    deliveries: int = 0
    attempts: int = 0
    idempotency: int = 0

    @property
    def rows(self) -> int:
        return sum(dataclasses.astuple(self))

    def add(self, other: Purged) -> None:
        for name, rows in dataclasses.asdict(other).items():
            setattr(self, name, getattr(self, name) + rows)


async def purge(
    database: Database, settings: Settings, now: datetime, progress: Callable[[Purged], None] = lambda so_far: None
) -> Purged:
    """Delete everything that is due at `now`; `progress` is told the totals after each batch. Raises StoreUnavailable."""
    total = Purged()
    async for batch in Purge(database, settings).batches(now):
        total.add(batch)
        progress(total)
    return total


class Purge:
    """The purge as a job. `total`: what it deleted since the process began."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._reached: dict[str, int] = {}  # id of the last row looked at, by kind
        self._started_at: datetime | None = None
        self.total = Purged()

    def offer(self, metrics: Metrics) -> None:
        """Show the total on /metrics."""
        metrics.counter(
            "shortener_purged_rows",
            "Rows deleted because their retention was over, by kind; emptied_hits lost their address and agent only.",
            lambda: {(kind,): rows for kind, rows in dataclasses.asdict(self.total).items()},
            "kind",
        )

    async def step(self, now: datetime) -> int:
        """One pass over what came of age since the last one; returns the number of rows deleted."""
        if self._started_at is None or now - self._started_at >= FROM_THE_START_EVERY:
            self._started_at = now
            self._reached.clear()
        before = self.total.rows
        async for batch in self.batches(now):
            self.total.add(batch)
        return self.total.rows - before

    async def batches(self, now: datetime) -> AsyncIterator[Purged]:
        """What each transaction deleted, until nothing more is due."""
        loop = asyncio.get_running_loop()
        for name, kind in _KINDS.items():
            more = True
            while more:
                began = loop.time()
                purged, self._reached[name], more = await self._database.write(
                    _delete_batch, kind, self._settings, now, self._reached.get(name, 0)
                )
                took = loop.time() - began
                yield purged
                await asyncio.sleep(REST * took)


class _Batch:
    """One transaction, and how many rows it may still delete."""

    def __init__(self, connection: Connection, settings: Settings, now: datetime) -> None:
        self.connection = connection
        self.settings = settings
        self.now = now
        self.left = settings.purge_batch
        self.purged = Purged()

    def delete(self, table: Table, which: ColumnElement[bool]) -> bool:
        """Delete of these rows what the batch may; True when none of them is left."""
        if self.left:
            doomed = select(table.c.id).where(which).limit(self.left)
            self._execute(table, delete(table).where(table.c.id.in_(doomed)))
        return self.left > 0

    def delete_oldest(self, table: Table, at: Column[datetime], before: datetime) -> bool:
        """The same by an indexed time, for rows without an id; those of the last millisecond go together."""
        older = at < before
        last = self.connection.execute(select(at).where(older).order_by(at).limit(1).offset(self.left - 1)).scalar()
        self._execute(table, delete(table).where(older if last is None else at <= last))
        return last is None

    def empty_hits(self, ids: list[int]) -> None:
        """Take address and agent from these hits."""
        kept = and_(hits.c.id.in_(ids), or_(hits.c.address != "", hits.c.user_agent != ""))
        rows = self.connection.execute(update(hits).where(kept).values(address="", user_agent="")).rowcount
        self.purged.emptied_hits += rows
        self.left -= rows

    def _execute(self, table: Table, statement: Delete) -> None:
        rows = self.connection.execute(statement).rowcount
        setattr(self.purged, table.name, getattr(self.purged, table.name) + rows)
        self.left -= rows

    def delete_events(self, which: ColumnElement[bool]) -> bool:
        """Events with what hangs on them, from the leaves."""
        their_deliveries = deliveries.c.event_id.in_(select(events.c.id).where(which))
        return (
            self.delete(attempts, attempts.c.delivery_id.in_(select(deliveries.c.id).where(their_deliveries)))
            and self.delete(deliveries, their_deliveries)
            and self.delete(events, which)
        )


#: Deletes one batch of a kind, beginning behind the row `after`; returns the last row that is done with, and whether to go on.
_Kind = Callable[[_Batch, int], tuple[int, bool]]


def _delete_batch(connection: Connection, kind: _Kind, settings: Settings, now: datetime, after: int) -> tuple[Purged, int, bool]:
    if connection.dialect.name == "postgresql":
        # Several processes would go for the same rows: they take turns instead of waiting for each other's row locks.
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    batch = _Batch(connection, settings, now)
    reached, more = kind(batch, after)
    return batch.purged, reached, more


def _delete_answers(batch: _Batch, after: int) -> tuple[int, bool]:
    return after, not batch.delete_oldest(idempotency, idempotency.c.created_at, batch.now - IDEMPOTENCY_KEPT)


def _delete_hits(batch: _Batch, after: int) -> tuple[int, bool]:
    end = _first_id(batch.now, batch.settings.hit_retention_days)
    pending: int | None = batch.connection.execute(select(func.min(events.c.id)).where(events.c.fanned_out == false())).scalar()
    if pending is not None and pending < end:
        return after, False  # fan-out, which reads the hits of its events, is that far behind
    is_first = hits.c.flags.bitwise_and(int(HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE)) != 0
    page = select(hits.c.id, is_first).where(hits.c.id > after, hits.c.id < end).order_by(hits.c.id).limit(batch.left)
    rows = batch.connection.execute(page).all()
    if not rows:
        return after, False
    if others := [row for row, first in rows if not first]:
        batch.delete(hits, hits.c.id.in_(others))
    if firsts := [row for row, first in rows if first]:
        batch.empty_hits(firsts)
    return rows[-1][0], True


def _delete_events(batch: _Batch, after: int) -> tuple[int, bool]:
    days = batch.settings.event_retention_days
    unfinished = or_(_to_be_attempted(), deliveries.c.finished_at >= batch.now - timedelta(days=days))
    held = or_(events.c.fanned_out == false(), exists().where(deliveries.c.event_id == events.c.id, unfinished))
    page = _page(batch, events, held, after, _first_id(batch.now, days), _ROWS_PER_EVENT)
    return _delete_page(page, after, lambda ids: batch.delete_events(events.c.id.in_(ids)))


def _delete_messages(batch: _Batch, after: int) -> tuple[int, bool]:
    theirs = is_event_of_message()
    held = or_(
        exists().where(links.c.message_id == messages.c.id, links.c.expires_at > batch.now, links.c.disabled_at.is_(None)),
        *(exists().where(one, events.c.fanned_out == false()) for one in theirs),
        *(exists().where(one, deliveries.c.event_id == events.c.id, _to_be_attempted()) for one in theirs),
    )

    def delete_these(ids: list[int]) -> bool:
        their_links = links.c.message_id.in_(ids)
        return (
            batch.delete_events(events_of(ids))
            and batch.delete(conversions, conversions.c.message_id.in_(ids))
            and batch.delete(hits, hits.c.id.in_(select(messages.c.click_hit_id).where(messages.c.id.in_(ids))))
            and batch.delete(hits, and_(other_hits(), hits.c.link_id.in_(select(links.c.id).where(their_links))))
            and batch.delete(links, their_links)
            and batch.delete(messages, messages.c.id.in_(ids))
        )

    page = _page(batch, messages, held, after, _first_id(batch.now, batch.settings.message_retention_days), _ROWS_PER_MESSAGE)
    return _delete_page(page, after, delete_these)


def _to_be_attempted() -> ColumnElement[bool]:
    """A delivery that is pending, and not parked because its tracker is disabled."""
    parked = exists().where(trackers.c.id == deliveries.c.tracker_id, trackers.c.enabled == false())
    return and_(deliveries.c.status == DeliveryStatus.PENDING.value, ~parked)


_KINDS: dict[str, _Kind] = {
    "idempotency": _delete_answers,
    "events": _delete_events,
    "messages": _delete_messages,
    "hits": _delete_hits,  # last: those that go with their message need not be emptied first
}


def _page(batch: _Batch, table: Table, held: ColumnElement[bool], after: int, end: int, rows_each: int) -> list[tuple[int, bool]]:
    """The oldest rows between two ids, each with whether something holds it. Bounded, however many are held."""
    # The page comes first and by itself: PostgreSQL would look into all that may hold any row of the whole range.
    page = select(table.c.id).where(table.c.id > after, table.c.id < end).order_by(table.c.id)
    ids = page.limit(max(batch.left // rows_each, 1)).subquery("page")
    statement = select(table.c.id, held).join_from(ids, table, table.c.id == ids.c.id).order_by(table.c.id)
    return [(row[0], row[1]) for row in batch.connection.execute(statement)]


def _delete_page(page: list[tuple[int, bool]], after: int, delete_these: Callable[[list[int]], bool]) -> tuple[int, bool]:
    if not page:
        return after, False
    ids = [row for row, held in page if not held]
    done = not ids or delete_these(ids)
    return (page[-1][0] if done else after), True


def _first_id(now: datetime, days: int) -> int:
    return first_id_at(to_ms(now - timedelta(days=days)))
