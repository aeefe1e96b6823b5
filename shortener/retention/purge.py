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
first, never by a scan; after it the purge rests, nine times as long as the batch took. A purge that is cut off has deleted whole
batches, what belongs to a message before the message, and the next one goes on from there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Integer,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    false,
    func,
    or_,
    select,
    update,
)

from shortener.ids import first_id_at
from shortener.metrics import Metrics
from shortener.model import DeliveryStatus, HitFlag
from shortener.settings import Settings
from shortener.storage.database import Database
from shortener.storage.locks import AdvisoryLock
from shortener.storage.schema import (
    attempts,
    conversions,
    deliveries,
    events,
    events_of,
    first_clicks,
    hits,
    idempotency,
    is_event_of_message,
    links,
    messages,
    other_hits,
    trackers,
)
from shortener.storage.types import Instant, to_ms

#: A batch is followed by a rest so many times as long, in which clicks have the store to themselves.
PAUSE_FACTOR = 9
IDEMPOTENCY_RETENTION = timedelta(hours=24)
#: A pass of the job starts where the last one ended; as often as this it looks again at what could not go then.
RESTART_INTERVAL = timedelta(days=1)
#: How many rows go with one of these, roughly: so many fewer are looked at in one batch.
_ROWS_PER_MESSAGE, _ROWS_PER_EVENT = 8, 4


@dataclass(slots=True)
class PurgeResult:
    """Rows deleted, by kind. `emptied_hits`: first clicks that stay, and lost their address and agent."""

    messages: int = 0
    links: int = 0
    first_clicks: int = 0
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

    def add(self, other: PurgeResult) -> None:
        for name, rows in dataclasses.asdict(other).items():
            setattr(self, name, getattr(self, name) + rows)


async def purge(
    database: Database, settings: Settings, now: datetime, progress: Callable[[PurgeResult], None] = lambda so_far: None
) -> PurgeResult:
    """Delete everything that is due at `now`; `progress` is told the totals after each batch. Raises StoreUnavailable."""
    total = PurgeResult()
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
        self.total = PurgeResult()

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the total on /metrics."""
        metrics.counter(
            "shortener_purged_rows",
            "Rows deleted because their retention was over, by kind; emptied_hits lost their address and agent only.",
            lambda: {(kind,): rows for kind, rows in dataclasses.asdict(self.total).items()},
            "kind",
        )

    async def step(self, now: datetime) -> int:
        """One pass over what came of age since the last one; returns the number of rows deleted."""
        if self._started_at is None or now - self._started_at >= RESTART_INTERVAL:
            self._started_at = now
            self._reached.clear()
        before = self.total.rows
        async for batch in self.batches(now):
            self.total.add(batch)
        return self.total.rows - before

    async def batches(self, now: datetime) -> AsyncIterator[PurgeResult]:
        """What each transaction deleted, until nothing more is due."""
        for name, kind in _KINDS.items():
            more = True
            while more:
                began = time.monotonic()  # the loop's own clock counts whole milliseconds
                purged, self._reached[name], more = await self._database.write(
                    _delete_batch, kind, self._settings, now, self._reached.get(name, 0)
                )
                took = time.monotonic() - began
                yield purged
                await asyncio.sleep(PAUSE_FACTOR * took)  # clicks have the store meanwhile


# The statements, made once: making one takes longer than running it, and the writer of SQLite would wait for that too.

#: The rows that a statement is about, and how many of them may go.
_IDS, _MANY = bindparam("ids", expanding=True, type_=BigInteger), bindparam("many", type_=Integer)


class _Deletion:
    """DELETE of the rows of a table that a condition about `ids` holds for, `many` of them at most."""

    def __init__(self, table: Table, which: ColumnElement[bool]) -> None:
        self.table = table
        self.statement = delete(table).where(table.c.id.in_(select(table.c.id).where(which).limit(_MANY)))


def _with_events(which: ColumnElement[bool]) -> tuple[_Deletion, ...]:
    """Of events and what hangs on them, from the leaves."""
    theirs = deliveries.c.event_id.in_(select(events.c.id).where(which))
    return (
        _Deletion(attempts, attempts.c.delivery_id.in_(select(deliveries.c.id).where(theirs))),
        _Deletion(deliveries, theirs),
        _Deletion(events, which),
    )


def _to_be_attempted() -> ColumnElement[bool]:
    """A delivery that is pending, and not parked because its tracker is disabled."""
    parked = exists().where(trackers.c.id == deliveries.c.tracker_id, trackers.c.enabled == false())
    return and_(deliveries.c.status == DeliveryStatus.PENDING.value, ~parked)


def _page_of(table: Table, held: ColumnElement[bool]) -> Select[int, bool]:
    """The oldest rows between two ids, each with whether something holds it. Bounded, however many are held."""
    # The page comes first and by itself: PostgreSQL would look into all that may hold any row of the whole range.
    within = table.c.id > bindparam("after", type_=BigInteger), table.c.id < bindparam("end", type_=BigInteger)
    ids = select(table.c.id).where(*within).order_by(table.c.id).limit(_MANY).subquery("page")
    return select(table.c.id, held).join_from(ids, table, table.c.id == ids.c.id).order_by(table.c.id)


_their_links = links.c.message_id.in_(_IDS)
_OF_MESSAGES = (
    *_with_events(events_of(_IDS)),
    _Deletion(conversions, conversions.c.message_id.in_(_IDS)),
    _Deletion(hits, hits.c.id.in_(select(first_clicks.c.hit_id).where(first_clicks.c.id.in_(_IDS)))),
    _Deletion(hits, and_(other_hits(), hits.c.link_id.in_(select(links.c.id).where(_their_links)))),
    _Deletion(links, _their_links),
    _Deletion(first_clicks, first_clicks.c.id.in_(_IDS)),
    _Deletion(messages, messages.c.id.in_(_IDS)),
)
_OF_EVENTS = _with_events(events.c.id.in_(_IDS))
_OF_HITS = (_Deletion(hits, hits.c.id.in_(_IDS)),)

_theirs = is_event_of_message()
_MESSAGES = _page_of(
    messages,
    or_(
        exists().where(
            links.c.message_id == messages.c.id, links.c.expires_at > bindparam("now", type_=Instant), links.c.disabled_at.is_(None)
        ),
        *(exists().where(one, events.c.fanned_out == false()) for one in _theirs),
        *(exists().where(one, deliveries.c.event_id == events.c.id, _to_be_attempted()) for one in _theirs),
    ),
)
_unfinished = or_(_to_be_attempted(), deliveries.c.finished_at >= bindparam("since", type_=Instant))
_EVENTS = _page_of(events, or_(events.c.fanned_out == false(), exists().where(deliveries.c.event_id == events.c.id, _unfinished)))
_is_first = hits.c.flags.bitwise_and(int(HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE)) != 0
_HITS = _page_of(hits, _is_first)
_EMPTY_HITS = (
    update(hits).where(hits.c.id.in_(_IDS), or_(hits.c.address != "", hits.c.user_agent != "")).values(address="", user_agent="")
)


class _PurgeBatch:
    """One transaction, and how many rows it may still delete."""

    def __init__(self, connection: Connection, settings: Settings, now: datetime) -> None:
        self.connection = connection
        self.settings = settings
        self.now = now
        self.left = settings.purge_batch
        self.purged = PurgeResult()

    def page(self, page: Select[int, bool], after: int, days: int, rows_each: int = 1, **more: datetime) -> list[tuple[int, bool]]:
        """Rows of `_page_of` that are older than `days`, of which each takes so many others with it."""
        values = {"after": after, "end": _first_id(self.now, days), "many": max(self.left // rows_each, 1), **more}
        return [(row[0], row[1]) for row in self.connection.execute(page, values)]

    def delete(self, ids: list[int], deletions: Sequence[_Deletion]) -> bool:
        """Delete what the batch may; True when none of it is left."""
        for deletion in deletions:
            if self.left:
                self._count(deletion.table, self.connection.execute(deletion.statement, {"ids": ids, "many": self.left}))
        return self.left > 0

    def delete_oldest(self, table: Table, at: Column[datetime], before: datetime) -> bool:
        """The same by an indexed time, for rows without an id; those of the last millisecond go together."""
        older = at < before
        last = self.connection.execute(select(at).where(older).order_by(at).limit(1).offset(self.left - 1)).scalar()
        self._count(table, self.connection.execute(delete(table).where(older if last is None else at <= last)))
        return last is None

    def empty_hits(self, ids: list[int]) -> None:
        """Take address and agent from these hits."""
        rows = self.connection.execute(_EMPTY_HITS, {"ids": ids}).rowcount
        self.purged.emptied_hits += rows
        self.left -= rows

    def _count(self, table: Table, result: CursorResult[Any]) -> None:
        setattr(self.purged, table.name, getattr(self.purged, table.name) + result.rowcount)
        self.left -= result.rowcount


#: Deletes one batch of a kind, beginning behind the row `after`; returns the last row that is done with, and whether to go on.
_Kind = Callable[[_PurgeBatch, int], tuple[int, bool]]


def _delete_batch(
    connection: Connection, kind: _Kind, settings: Settings, now: datetime, after: int
) -> tuple[PurgeResult, int, bool]:
    if connection.dialect.name == "postgresql":
        # Several processes would go for the same rows: they take turns instead of waiting for each other's row locks.
        connection.execute(select(func.pg_advisory_xact_lock(int(AdvisoryLock.PURGE))))
    batch = _PurgeBatch(connection, settings, now)
    reached, more = kind(batch, after)
    return batch.purged, reached, more


def _delete_answers(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    return after, not batch.delete_oldest(idempotency, idempotency.c.created_at, batch.now - IDEMPOTENCY_RETENTION)


def _delete_hits(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    days = batch.settings.hit_retention_days
    pending: int | None = batch.connection.execute(select(func.min(events.c.id)).where(events.c.fanned_out == false())).scalar()
    if pending is not None and pending < _first_id(batch.now, days):
        return after, False  # fan-out, which reads the hits of its events, is that far behind
    rows = batch.page(_HITS, after, days)
    if not rows:
        return after, False
    if others := [row for row, first in rows if not first]:
        batch.delete(others, _OF_HITS)
    if firsts := [row for row, first in rows if first]:
        batch.empty_hits(firsts)
    return rows[-1][0], True


def _delete_events(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    days = batch.settings.event_retention_days
    page = batch.page(_EVENTS, after, days, _ROWS_PER_EVENT, since=batch.now - timedelta(days=days))
    return _delete_page(batch, page, after, _OF_EVENTS)


def _delete_messages(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    page = batch.page(_MESSAGES, after, batch.settings.message_retention_days, _ROWS_PER_MESSAGE, now=batch.now)
    return _delete_page(batch, page, after, _OF_MESSAGES)


def _delete_page(batch: _PurgeBatch, page: list[tuple[int, bool]], after: int, deletions: Sequence[_Deletion]) -> tuple[int, bool]:
    if not page:
        return after, False
    ids = [row for row, held in page if not held]
    done = not ids or batch.delete(ids, deletions)
    return (page[-1][0] if done else after), True


_KINDS: dict[str, _Kind] = {
    "idempotency": _delete_answers,
    "events": _delete_events,
    "messages": _delete_messages,
    "hits": _delete_hits,  # last: those that go with their message need not be emptied first
}


def _first_id(now: datetime, days: int) -> int:
    return first_id_at(to_ms(now - timedelta(days=days)))
