"""The purge deletes old data in small batches, so that clicks are not delayed. It deletes:

- Messages with their links, hits, conversions, events, deliveries, sends and attempts: `message_retention_days` after the
  creation of the message, but not while one of its links is active.
- Links: together with their message. An expired link returns 410 until it is deleted, and its code returns 404 afterwards. The
  table `purged_codes` keeps the code, so that no new link gets it.
- Hits: after `hit_retention_days`. A hit that is the first click of a message or link is an exception: after this time, it only
  loses its IP address and user agent, and it is deleted with its message. Therefore the status of a message (which link was
  accessed, and when) does not depend on the retention of hits. The hit keeps the kind of device and the browser, so that the list
  of hits agrees with the statistics by device.
- Events, with their deliveries and attempts: `event_retention_days` after the event and after the end of its last delivery. If a
  tracker is disabled, its waiting delivery counts as ended at the time at which it was due. Such a delivery does not delay the
  deletion of its message.
- Dead letters of hits (clicks/dead_letters.py): after `hit_retention_days`.
- Refused reports of conversions: after 30 days.
- Rows of the audit log: after 400 days. Sessions of operators: one day after they have expired.
- Stored responses to an Idempotency-Key: after 24 hours.

Statistics are never deleted: counts are separate rows. Pending work is never deleted either: an event that is not fanned out, or
that has a pending delivery to an enabled tracker, stays, and so does its message.

Each batch is a transaction that deletes at most `purge_batch` rows, oldest first. It finds them by ranges of a primary key (ids
grow with time) or by an index, never by a table scan. After each batch, the purge pauses nine times as long as the batch took.
While no clicks and no messages arrive (`traffic.py`), a purge by command does not pause, and its batches have up to 2,000 rows.
An interrupted purge can be continued by the next one: only complete batches are deleted, and the rows of a message are deleted
before the message itself.

If the clock moved far ahead, a run deletes nothing and waits (`storage/clock_guard.py`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import (
    Column,
    Connection,
    CursorResult,
    Select,
    Table,
    delete,
    false,
    func,
    select,
)

from shortener.clicks.user_agents import device_class, has_expressions, load_expressions
from shortener.ids import first_id_at
from shortener.metrics import Metrics
from shortener.model import mutable_record
from shortener.retention.purge_statements import (
    AUDIT_DELETION,
    EMPTY_HITS,
    EVENT_DELETIONS,
    EVENT_PAGE,
    FIRST_CONVERSION_DELETION,
    HIT_DELETIONS,
    HIT_PAGE,
    KEEP_DEVICES,
    LOCK_DELIVERIES,
    MESSAGE_DELETIONS,
    MESSAGE_PAGE,
    REFUSED_DELETION,
    USER_AGENTS,
    Deletion,
)
from shortener.retention.traffic import Traffic
from shortener.settings import Settings
from shortener.storage.clock_guard import ClockGuard, note_run
from shortener.storage.database import Database
from shortener.storage.locks import AdvisoryLock
from shortener.storage.schema import (
    events,
    hits_dead_letter,
    idempotency,
    operator_sessions,
    stored_responses,
)
from shortener.storage.types import to_iso, to_ms

log = structlog.get_logger(__name__)

#: The pause after a batch takes this many times as long as the batch. During the pause, the purge does not delay clicks.
PAUSE_FACTOR = 9
#: A purge by command uses batches of this many rows while no clicks and no messages arrive, unless `purge_batch` is larger.
QUIET_BATCH_ROWS = 2000
IDEMPOTENCY_RETENTION = timedelta(hours=24)
AUDIT_RETENTION = timedelta(days=400)  # Rows of the audit log are deleted after this time.
SESSION_RETENTION = timedelta(days=1)  # Sessions of operators are deleted this long after they have expired.
REFUSED_RETENTION = timedelta(days=30)  # Refused reports of conversions are deleted after this time.
#: A run continues after the last row that the previous run checked. After this interval, a run begins again with the oldest row:
#: rows that had to be kept before may be deleted now.
RESTART_INTERVAL = timedelta(days=1)
#: The typical number of rows that are deleted with one message, and with one event. The maximum number of rows in a batch, divided
#: by this number, is the maximum number of messages or events in a batch.
_TYPICAL_ROWS_PER_MESSAGE, _TYPICAL_ROWS_PER_EVENT = 8, 4


@mutable_record
class PurgeResult:
    """The number of deleted rows of each kind. `emptied_hits` counts first clicks that stay, but have lost their IP address and
    user agent."""

    messages: int = 0
    links: int = 0
    link_changes: int = 0
    first_clicks: int = 0
    hits: int = 0
    emptied_hits: int = 0
    conversions: int = 0
    conversion_revisions: int = 0
    first_conversions: int = 0
    refused_conversions: int = 0
    events: int = 0
    deliveries: int = 0
    attempts: int = 0
    idempotency: int = 0
    stored_responses: int = 0
    hits_dead_letter: int = 0
    early_hits: int = 0
    sends: int = 0
    send_attempts: int = 0
    audit_log: int = 0
    operator_sessions: int = 0

    @property
    def rows(self) -> int:
        """The number of deleted rows of all kinds."""
        return sum(dataclasses.astuple(self))

    def add(self, other: PurgeResult) -> None:
        """Add the numbers of another purge result."""
        for name, rows in dataclasses.asdict(other).items():
            setattr(self, name, getattr(self, name) + rows)


async def purge(
    database: Database,
    settings: Settings,
    now: datetime,
    progress: Callable[[PurgeResult], None] = lambda so_far: None,
) -> PurgeResult:
    """Delete all data whose retention time has ended at `now`. Call `progress` with the total after each batch.

    The purge pauses between batches only while clicks or messages arrive. It does not check the clock (see
    storage/clock_guard.py). Raise StoreUnavailable if the database is unavailable."""
    await database.write_later(note_run, now, trusted=True)
    total = PurgeResult()
    async for batch in Purge(database, settings).batches(now, Traffic(database)):
        total.add(batch)
        progress(total)
    return total


class Purge:
    """The purge as a background job. `total` counts what it has deleted since the process started. `clock_guard` is the clock
    guard of this process. Without it, the purge only compares the clock with the stored reading of the clock."""

    def __init__(self, database: Database, settings: Settings, clock_guard: ClockGuard | None = None) -> None:
        self._database = database
        self._clock_guard = clock_guard
        self._settings = settings
        self._reached: dict[str, int] = {}  # By kind of row: the id of the last row that the purge has checked.
        self._started_at: datetime | None = None
        self.total = PurgeResult()

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metric that counts deleted rows."""
        metrics.counter(
            "shortener_purged_rows",
            "Rows that were deleted because their retention time had ended, by kind. Rows of emptied_hits were kept without IP "
            "address and user agent.",
            lambda: {(kind,): rows for kind, rows in dataclasses.asdict(self.total).items()},
            "kind",
        )

    async def step(self, now: datetime) -> int:
        """Delete the rows whose retention time has ended since the last run. Return the number of deleted rows. While it is
        unknown whether the clock was moved, delete nothing."""
        if self._clock_guard is not None and not self._clock_guard.knows_steps:
            return 0
        clock_step = await self._database.write_later(note_run, now, self._clock_guard)
        if clock_step is not None:
            log.error("purge_waits", hours=clock_step.hours, until=to_iso(clock_step.until))
            return 0
        if self._started_at is None or now - self._started_at >= RESTART_INTERVAL:
            self._started_at = now
            self._reached.clear()
        before = self.total.rows
        async for batch in self.batches(now):
            self.total.add(batch)
        return self.total.rows - before

    async def batches(self, now: datetime, traffic: Traffic | None = None) -> AsyncIterator[PurgeResult]:
        """Run one transaction after the other and yield the result of each. End when no row is left whose retention time has
        ended.

        Pause after each batch. If `traffic` is given, pause only while clicks or messages arrive, and use larger batches while
        none arrive."""
        settings = self._settings
        large = settings.model_copy(update={"purge_batch": max(settings.purge_batch, QUIET_BATCH_ROWS)})
        is_busy = traffic is None or await traffic.is_present()
        for name, kind in _KINDS.items():
            more = True
            while more:
                # time.monotonic is precise; the clock of the event loop may only count whole milliseconds
                started = time.monotonic()
                try:
                    purged, self._reached[name], more = await self._database.write_later(
                        _delete_batch, kind, settings if is_busy else large, now, self._reached.get(name, 0)
                    )
                except _ExpressionsMissing:
                    await load_expressions()
                    continue
                duration = time.monotonic() - started
                yield purged
                is_busy = traffic is None or await traffic.is_present()
                await asyncio.sleep(PAUSE_FACTOR * duration if is_busy else 0)


class _ExpressionsMissing(Exception):
    """Raised to roll back a batch that must parse user agents before `load_expressions` was called. The caller then loads the
    expressions and repeats the batch. They are not loaded at the start, because they take 12 MB of memory, and most processes
    never remove a user agent from a hit."""


class _PurgeBatch:
    """One transaction of the purge, and the number of rows that it may still delete (`remaining`)."""

    def __init__(self, connection: Connection, settings: Settings, now: datetime) -> None:
        self.connection = connection
        self.settings = settings
        self.now = now
        self.remaining = settings.purge_batch
        self.purged = PurgeResult()

    def page(
        self, page: Select[int, bool], after: int, days: int, rows_each: int = 1, **parameters: datetime
    ) -> list[tuple[int, bool]]:
        """Return (row id, whether the row must be kept) for the oldest rows that are more than `days` days old. `page` is a
        statement of `_page_of`, and `after` is the id of the last row that was checked.

        `rows_each` is the typical number of rows that are deleted with each of these rows."""
        values = {"after": after, "end": _first_id(self.now, days), "max_rows": max(self.remaining // rows_each, 1), **parameters}
        return [(row[0], row[1]) for row in self.connection.execute(page, values)]

    def delete(self, ids: list[int], deletions: Sequence[Deletion]) -> bool:
        """Run the deletions, but stop when the batch is full. Return True if the batch did not become full: then all deletions
        are complete."""
        for deletion in deletions:
            if self.remaining:
                values = {"ids": ids, "max_rows": self.remaining}
                if deletion.copy is not None:
                    self.connection.execute(deletion.copy, values)
                self.count(deletion.table, self.connection.execute(deletion.statement, values))
        return self.remaining > 0

    def delete_oldest(self, table: Table, at: Column[datetime], before: datetime) -> bool:
        """Delete the oldest rows of a table whose rows have no ids. `at` is the column that contains the time of a row and has an
        index. Rows with equal times are deleted in the same batch.

        Return whether rows that are older than `before` may be left."""
        older = at < before
        last = self.connection.execute(select(at).where(older).order_by(at).limit(1).offset(self.remaining - 1)).scalar()
        self.count(table, self.connection.execute(delete(table).where(older if last is None else at <= last)))
        return last is not None

    def delete_before(self, deletion: Deletion, retention: timedelta) -> bool:
        """Delete rows that are older than `retention`. Their age is known from their ids, which contain the time. Return whether
        such rows may be left."""
        end = first_id_at(to_ms(self.now - retention))
        result = self.connection.execute(deletion.statement, {"end": end, "max_rows": self.remaining})
        self.count(deletion.table, result)
        return result.rowcount > 0

    def empty_hits(self, ids: list[int]) -> None:
        """Remove the IP address and the user agent from these hits, and store the device class in place of each user agent.

        Raise _ExpressionsMissing if the expressions that parse user agents are not loaded."""
        agents = self.connection.execute(USER_AGENTS, {"ids": ids}).all()
        if agents and not has_expressions():
            raise _ExpressionsMissing
        if agents:
            kept = [{"row": row.id, "kept": device_class(row.user_agent)} for row in agents]
            self.connection.execute(KEEP_DEVICES, kept)
        rows = self.connection.execute(EMPTY_HITS, {"ids": ids}).rowcount
        self.purged.emptied_hits += rows
        self.remaining -= rows

    def count(self, table: Table, result: CursorResult[Any]) -> None:
        """Add the number of rows that were deleted from a table to the purge result, and subtract it from `remaining`."""
        setattr(self.purged, table.name, getattr(self.purged, table.name) + result.rowcount)
        self.remaining -= result.rowcount


#: A function that deletes one batch of one kind of rows. Its second argument is the id of the last row that an earlier call has
#: checked. It returns the id of the last row that it has checked, and whether more rows follow.
_Kind = Callable[[_PurgeBatch, int], tuple[int, bool]]


def _delete_batch(
    connection: Connection, kind: _Kind, settings: Settings, now: datetime, after: int
) -> tuple[PurgeResult, int, bool]:
    if connection.dialect.name == "postgresql":
        # Several processes would select the same rows and delete them at the same time. With this lock, they run one after the
        # other.
        connection.execute(select(func.pg_advisory_xact_lock(int(AdvisoryLock.PURGE))))
    batch = _PurgeBatch(connection, settings, now)
    reached, more = kind(batch, after)
    return batch.purged, reached, more


def _delete_responses(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    return after, batch.delete_oldest(idempotency, idempotency.c.created_at, batch.now - IDEMPOTENCY_RETENTION)


def _delete_stored_responses(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    before = batch.now - IDEMPOTENCY_RETENTION
    return after, batch.delete_oldest(stored_responses, stored_responses.c.created_at, before)


def _delete_dead_letters(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    before = batch.now - timedelta(days=batch.settings.hit_retention_days)
    return after, batch.delete_oldest(hits_dead_letter, hits_dead_letter.c.at, before)


def _delete_refused(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    return after, batch.delete_before(REFUSED_DELETION, REFUSED_RETENTION)


def _delete_first_conversions(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    result = batch.connection.execute(FIRST_CONVERSION_DELETION.statement, {"max_rows": batch.remaining})
    batch.count(FIRST_CONVERSION_DELETION.table, result)
    return after, result.rowcount > 0


def _delete_audit(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    return after, batch.delete_before(AUDIT_DELETION, AUDIT_RETENTION)


def _delete_sessions(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    return after, batch.delete_oldest(operator_sessions, operator_sessions.c.expires_at, batch.now - SESSION_RETENTION)


def _delete_hits(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    days = batch.settings.hit_retention_days
    pending: int | None = batch.connection.execute(select(func.min(events.c.id)).where(events.c.fanned_out == false())).scalar()
    if pending is not None and pending < _first_id(batch.now, days):
        return after, False  # These hits must stay, because the fan-out has not processed their events yet.
    rows = batch.page(HIT_PAGE, after, days)
    if not rows:
        return after, False
    if deletable := [row for row, is_first in rows if not is_first]:
        batch.delete(deletable, HIT_DELETIONS)
    if first_hits := [row for row, is_first in rows if is_first]:
        batch.empty_hits(first_hits)
    return rows[-1][0], True


def _delete_events(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    days = batch.settings.event_retention_days
    since = batch.now - timedelta(days=days)
    page = batch.page(EVENT_PAGE, after, days, _TYPICAL_ROWS_PER_EVENT, since=since)
    deletable = [row for row, is_kept in page if not is_kept]
    if deletable and batch.connection.dialect.name == "postgresql":
        # A replay may have committed since the page was read. Therefore the deliveries are locked and the page is read again, and
        # the events of replayed deliveries are kept. Later replays wait for the lock.
        batch.connection.execute(LOCK_DELIVERIES, {"ids": deletable})
        again = dict(batch.page(EVENT_PAGE, after, days, _TYPICAL_ROWS_PER_EVENT, since=since))
        page = [(row, is_kept or again.get(row, True)) for row, is_kept in page]
    return _delete_page(batch, page, after, EVENT_DELETIONS)


def _delete_messages(batch: _PurgeBatch, after: int) -> tuple[int, bool]:
    page = batch.page(MESSAGE_PAGE, after, batch.settings.message_retention_days, _TYPICAL_ROWS_PER_MESSAGE, now=batch.now)
    return _delete_page(batch, page, after, MESSAGE_DELETIONS)


def _delete_page(batch: _PurgeBatch, page: list[tuple[int, bool]], after: int, deletions: Sequence[Deletion]) -> tuple[int, bool]:
    if not page:
        return after, False
    ids = [row for row, is_kept in page if not is_kept]
    is_complete = not ids or batch.delete(ids, deletions)
    return (page[-1][0] if is_complete else after), True


_KINDS: dict[str, _Kind] = {
    "idempotency": _delete_responses,
    "stored_responses": _delete_stored_responses,
    "dead_letters": _delete_dead_letters,
    "refused_conversions": _delete_refused,
    "audit_log": _delete_audit,
    "operator_sessions": _delete_sessions,
    "events": _delete_events,
    "messages": _delete_messages,
    "first_conversions": _delete_first_conversions,
    # "hits" is last. If the message of a hit is deleted first, the hit is deleted with it, and its user agent does not have to be
    # replaced before.
    "hits": _delete_hits,
}


def _first_id(now: datetime, days: int) -> int:
    return first_id_at(to_ms(now - timedelta(days=days)))
