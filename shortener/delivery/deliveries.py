"""This module lists, shows and replays deliveries for the API and the command line, and counts the backlog of a tracker.

A list is read page by page. A page contains deliveries whose ids are below a given id, newest first. If no index of the database
supports the filter, one page examines at most `MAX_WALK_ROWS` deliveries. The page can then contain fewer deliveries than
requested, or none, although a next page exists. The counts of a backlog stop at `MAX_COUNT`.

A replay makes a dead or delivered delivery pending again, with the full number of attempts. The event id stays the same, and the
attempt number continues. The API and the command line replay the dead deliveries of a tracker in one call
(`Deliveries.replay_dead`). The portal uses a background job (replays.py). Both use `replay_batch`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select, update

from shortener.accounts.audit import AuditWriter
from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES
from shortener.delivery.health import MAX_FAILURES
from shortener.delivery.queue_names import tracker_queue
from shortener.delivery.replay_audit import add_replay, add_replay_of_dead, add_replay_of_list
from shortener.errors import ApiError, ErrorCode
from shortener.ids import first_id_at
from shortener.model import DeliveryStatus, Topic, record
from shortener.outbox.events import encode_event_id
from shortener.storage.database import Database
from shortener.storage.delivery_conditions import IS_DEAD, IS_PENDING
from shortener.storage.schema import applications, attempts, deliveries, events, messages, trackers
from shortener.storage.types import to_ms

MAX_WALK_ROWS = 10_000
MAX_COUNT = 10_000
MAX_REPLAYED_PER_TRANSACTION, MAX_REPLAYED_PER_CALL = 500, 10_000
#: One transaction replays at most this many deliveries that a caller selected by their ids: each needs several SQL statements.
MAX_LISTED_PER_TRANSACTION = 100
#: The details of a delivery contain at most this many attempts.
MAX_ATTEMPTS = 500

StatusName = Literal["pending", "parked", "delivered", "dead"]
assert set(get_args(StatusName)) == {status.api_name for status in DeliveryStatus}


@record
class Delivery:
    """A delivery: one event that is sent to one receiver.

    `tracker_id` is None if the delivery is the callback of a message. `message_id` is the id of the message in the API; None if
    the event is not about a message."""

    id: int
    application_id: int
    tracker_id: int | None
    callback_url: str | None
    event_id: str
    topic: Topic
    message_id: str | None
    status: DeliveryStatus
    attempt: int
    next_at: datetime | None  # the time of the next attempt; None if the delivery is not pending
    created_at: datetime
    finished_at: datetime | None
    last_status: int | None
    last_error: str | None


@record
class DeliveryAttempt:
    """One attempt to send a delivery. `answer` is the first KiB of the response body."""

    attempt: int
    at: datetime
    milliseconds: int
    status: int | None
    error: str | None
    detail: str | None
    answer: str | None


@record
class DeliveryFilter:
    """The conditions of a list of deliveries. `since` (inclusive) and `until` (exclusive) limit the time at which a delivery was
    created. `replay_id` selects the deliveries whose latest replay was made by this background replay."""

    application_id: int | None = None
    tracker_id: int | None = None
    status: DeliveryStatus | None = None
    since: datetime | None = None
    until: datetime | None = None
    replay_id: int | None = None


@record
class DeliveryPage:
    """A page of deliveries, newest first. `next` is the id below which the next page starts; it is None on the last page."""

    deliveries: list[Delivery]
    next: int | None


@record
class DeliveryBacklog:
    """The numbers of pending and dead deliveries of a tracker, each at most MAX_COUNT.

    `waiting_since` is the time at which the oldest overdue delivery was due; it is None if no delivery is overdue."""

    pending: int
    dead: int
    waiting_since: datetime | None


class Deliveries:
    """The functions that list, read and replay the deliveries in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, criteria: DeliveryFilter, limit: int, below: int | None = None) -> DeliveryPage:
        """Return a page of up to `limit` deliveries that match the filter and whose ids are below `below`."""
        return await self._database.read(_page, criteria, limit, below)

    async def get(self, delivery_id: int, application_id: int | None = None) -> tuple[Delivery, list[DeliveryAttempt]]:
        """Return a delivery and its attempts, oldest first. Raise ApiError NOT_FOUND if it does not exist.

        If `application_id` is not None, the delivery must belong to this application."""
        return await self._database.read(_get, delivery_id, application_id)

    async def replay(self, audit: AuditWriter, delivery_id: int, now: datetime, application_id: int | None = None) -> Delivery:
        """Replay one delivery that has ended. See `replay_one`."""
        return await self._database.write(replay_one, audit, delivery_id, now, application_id)

    async def replay_listed(
        self, audit: AuditWriter, ids: Sequence[int], now: datetime, application_id: int
    ) -> dict[int, ApiError | None]:
        """Replay the deliveries with these ids. Return the error of each delivery by its id; None if the delivery was replayed.

        Each transaction adds one audit row with the ids of its replayed deliveries."""
        results: dict[int, ApiError | None] = {}
        for start in range(0, len(ids), MAX_LISTED_PER_TRANSACTION):
            part = ids[start : start + MAX_LISTED_PER_TRANSACTION]
            results |= await self._database.write(_replay_listed, audit, part, application_id, now)
        return results

    async def replay_dead(
        self, audit: AuditWriter, criteria: DeliveryFilter, now: datetime, after: int = 0
    ) -> tuple[int, int | None]:
        """Replay at most MAX_REPLAYED_PER_CALL dead deliveries of a tracker, oldest first, with ids above `after`.

        Return the number of replayed deliveries and the id after which the next call continues. The id is None if no dead delivery
        is left. The first transaction of the first call (`after` 0) adds an audit row with the number of dead deliveries.
        """
        assert criteria.tracker_id is not None
        # The deliveries are counted before the transaction begins, because a long count inside the transaction would delay clicks.
        total = await self.count_dead(criteria) if not after else 0
        count = 0
        while count < MAX_REPLAYED_PER_CALL:
            batch = await self._database.write_later(_replay_dead_batch, audit, criteria, after, now, total)
            count += batch.replayed
            if batch.is_last:
                return count, None
            after = batch.last_id
        return count, after

    async def count_dead(self, criteria: DeliveryFilter) -> int:
        """Return the exact number of dead deliveries of a tracker that match the filter."""
        return await self._database.read(count_dead, criteria)

    async def backlog(self, tracker_id: int, now: datetime) -> DeliveryBacklog:
        """Return the numbers of pending and dead deliveries of a tracker, and the time at which the oldest overdue delivery was
        due."""
        return await self._database.read(_backlog, tracker_id, now)


_SELECT = (
    select(
        deliveries,
        messages.c.message_id.label("message_name"),
        trackers.c.enabled.label("tracker_enabled"),
        applications.c.disabled_at.label("application_disabled_at"),
    )
    .outerjoin(events, events.c.id == deliveries.c.event_id)
    .outerjoin(messages, messages.c.id == events.c.message_id)
    .outerjoin(trackers, trackers.c.id == deliveries.c.tracker_id)
    .outerjoin(applications, applications.c.id == deliveries.c.application_id)
)


def _delivery_from_row(row: Row[Any]) -> Delivery:
    status = DeliveryStatus(row.status)
    if status is DeliveryStatus.PENDING and (row.tracker_enabled is False or row.application_disabled_at is not None):
        status = DeliveryStatus.PARKED
    topic = Topic(row.topic)
    return Delivery(
        id=row.id,
        application_id=row.application_id,
        tracker_id=row.tracker_id,
        callback_url=row.callback_url,
        event_id=encode_event_id(row.event_id, topic),
        topic=topic,
        message_id=row.message_name,
        status=status,
        attempt=row.attempt,
        next_at=row.next_at if status is DeliveryStatus.PENDING else None,
        created_at=row.created_at,
        finished_at=row.finished_at,
        last_status=row.last_status,
        last_error=row.last_error,
    )


def _conditions(criteria: DeliveryFilter) -> list[ColumnElement[bool]]:
    """Return the SQL conditions for all parts of a filter except the status.

    Conditions on times become conditions on the id, because ids increase with time."""
    columns = deliveries.c
    found: list[ColumnElement[bool]] = []
    if criteria.tracker_id is not None:
        found.append(columns.tracker_id == criteria.tracker_id)
    if criteria.application_id is not None:
        found.append(columns.application_id == criteria.application_id)
    if criteria.since is not None:
        found.append(columns.id >= first_id_at(to_ms(criteria.since)))
    if criteria.until is not None:
        found.append(columns.id < first_id_at(to_ms(criteria.until)))
    if criteria.replay_id is not None:
        found.append(columns.replay_id == criteria.replay_id)
    return found


def _page(connection: Connection, criteria: DeliveryFilter, limit: int, below: int | None) -> DeliveryPage:
    conditions = _conditions(criteria)
    if below is not None:
        conditions.append(deliveries.c.id < below)
    newest = deliveries.c.id.desc()
    floor: int | None = None
    match criteria.status:
        case None:
            pass
        case DeliveryStatus.DEAD if criteria.tracker_id is not None:
            conditions.append(IS_DEAD)
        case status if criteria.replay_id is not None:
            conditions.append(_has(status))
        case status:
            walked = select(deliveries.c.id).where(*conditions).order_by(newest).limit(1).offset(MAX_WALK_ROWS - 1)
            floor = connection.execute(walked).scalar()
            if floor is not None:
                conditions.append(deliveries.c.id >= floor)
            conditions.append(_has(status))
    rows = connection.execute(_SELECT.where(*conditions).order_by(newest).limit(limit + 1)).all()
    if len(rows) > limit:
        return DeliveryPage([_delivery_from_row(row) for row in rows[:limit]], rows[limit - 1].id)
    return DeliveryPage([_delivery_from_row(row) for row in rows], floor)


def _has(status: DeliveryStatus) -> ColumnElement[bool]:
    if status is DeliveryStatus.PARKED:
        return and_(IS_PENDING, or_(trackers.c.enabled.is_(False), applications.c.disabled_at.is_not(None)))
    if status is DeliveryStatus.PENDING:
        return and_(IS_PENDING, trackers.c.enabled.is_not(False), applications.c.disabled_at.is_(None))
    return deliveries.c.status == status.value


def _find(connection: Connection, delivery_id: int, application_id: int | None) -> Row[Any]:
    statement = _SELECT.where(deliveries.c.id == delivery_id)
    if application_id is not None:
        statement = statement.where(deliveries.c.application_id == application_id)
    row = connection.execute(statement).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no such delivery.")
    return row


def _get(connection: Connection, delivery_id: int, application_id: int | None) -> tuple[Delivery, list[DeliveryAttempt]]:
    delivery = _delivery_from_row(_find(connection, delivery_id, application_id))
    columns = attempts.c
    names = (columns.attempt, columns.at, columns.milliseconds, columns.status, columns.error, columns.detail, columns.answer)
    newest = select(*names).where(columns.delivery_id == delivery_id).order_by(columns.id.desc()).limit(MAX_ATTEMPTS)
    return delivery, [DeliveryAttempt(*row) for row in reversed(connection.execute(newest).all())]


_ENDED = (DeliveryStatus.DELIVERED.value, DeliveryStatus.DEAD.value)


def replay_one(connection: Connection, audit: AuditWriter, delivery_id: int, now: datetime, application_id: int | None) -> Delivery:
    """Make an ended delivery pending again, with the full number of attempts, and add the audit row.

    Raise ApiError NOT_FOUND if the delivery does not exist. Raise ApiError CONFLICT if the delivery is pending, its tracker is
    deleted, or the message of the callback is erased."""
    delivery = _replay(connection, delivery_id, application_id, now)
    add_replay(connection, audit, now, delivery_id, delivery.application_id)
    return delivery


def _replay(connection: Connection, delivery_id: int, application_id: int | None, now: datetime) -> Delivery:
    row = _find(connection, delivery_id, application_id)
    if row.tracker_id is not None and row.tracker_enabled is None:
        raise ApiError(ErrorCode.CONFLICT, "The tracker of this delivery is deleted.")
    if row.tracker_id is None and row.callback_url is None:
        raise ApiError(ErrorCode.CONFLICT, "The message of this callback is erased.")
    if not _restart_attempts(connection, [deliveries.c.id == delivery_id, deliveries.c.status.in_(_ENDED)], now):
        raise ApiError(ErrorCode.CONFLICT, "This delivery has not ended yet.")
    _permit_probe(connection, row.tracker_id, now)
    return _delivery_from_row(_find(connection, delivery_id, application_id))


def _replay_listed(
    connection: Connection, audit: AuditWriter, ids: Sequence[int], application_id: int, now: datetime
) -> dict[int, ApiError | None]:
    results: dict[int, ApiError | None] = {}
    chosen = set()
    for delivery_id in ids:
        try:
            chosen.add(_replay(connection, delivery_id, application_id, now).tracker_id)
            results[delivery_id] = None
        except ApiError as error:
            results[delivery_id] = error
    _recover(connection, chosen - {None}, now)
    replayed = [delivery_id for delivery_id, error in results.items() if error is None]
    add_replay_of_list(connection, audit, now, replayed, application_id)
    return results


def _replay_dead_batch(
    connection: Connection, audit: AuditWriter, criteria: DeliveryFilter, after: int, now: datetime, total: int
) -> ReplayedBatch:
    batch = replay_batch(connection, criteria, after, now)
    if batch.replayed and not after:
        assert criteria.tracker_id is not None
        add_replay_of_dead(connection, audit, now, criteria.tracker_id, total, criteria.since, criteria.until)
    return batch


def _recover(connection: Connection, tracker_ids: Collection[int | None], now: datetime) -> None:
    """Limit the trackers of replayed deliveries to the recovery rate, in the same way as after the pause of a circuit breaker."""
    if tracker_ids:
        plain = (trackers.c.recovering_at.is_(None), trackers.c.open_until.is_(None))
        connection.execute(update(trackers).where(trackers.c.id.in_(tracker_ids), *plain).values(recovering_at=now))


def _permit_probe(connection: Connection, tracker_id: int | None, now: datetime) -> None:
    """End the pause of a circuit breaker that failures opened: the next delivery of the tracker is sent as a probe.

    A user who replays a delivery expects that the receiver works again, and must not wait for up to five minutes. There are two
    exceptions. A pause that the receiver requested with `Retry-After` continues if the tracker had fewer than MAX_FAILURES failures
    in a row. The pause also continues while a probe is in flight. Otherwise another process could send a second probe to a tracker
    that may be down."""
    if tracker_id is not None:
        columns = trackers.c
        is_waiting = (columns.id == tracker_id, columns.open_until > now, columns.failures_in_row >= MAX_FAILURES)
        # While a probe is in flight, `open_until` equals the end of the lease of the probe (`claim_writer.py`). These conditions
        # find the probe.
        ends_then = (deliveries.c.next_at == columns.open_until, deliveries.c.lease_until == columns.open_until)
        is_probe = and_(deliveries.c.lane == tracker_queue(tracker_id), IS_PENDING, deliveries.c.queue == RETRIES, *ends_then)
        has_probe = select(deliveries.c.id).where(is_probe).exists()
        connection.execute(update(trackers).where(*is_waiting, ~has_probe).values(open_until=now))


@record
class ReplayedBatch:
    """The result of one transaction of a replay: the number of replayed deliveries, and the id after which the next transaction
    continues."""

    replayed: int
    last_id: int
    is_last: bool


def _is_dead(criteria: DeliveryFilter, dead_at: datetime | None, now: datetime | None) -> list[ColumnElement[bool]]:
    """Return the SQL conditions of the dead deliveries that match a filter. If `dead_at` is not None, leave out deliveries that
    became dead between `dead_at` and the current time `now`. If `now` is None, the current time is `dead_at`.

    Deliveries that became dead after `now`, according to their stored time, are included: the clock was set back since then."""
    conditions = [*_conditions(criteria), IS_DEAD]
    if dead_at is not None:
        at = deliveries.c.finished_at
        conditions.append(or_(at.is_(None), at <= dead_at, at > (now or dead_at)))
    return conditions


def count_dead(connection: Connection, criteria: DeliveryFilter, dead_at: datetime | None = None) -> int:
    """Return the exact number of dead deliveries of a tracker that match the filter. `replay_batch` would replay these deliveries.

    The query reads an index that contains only dead deliveries. Counting a million takes about a quarter of a second."""
    assert criteria.tracker_id is not None
    statement = select(func.count()).select_from(deliveries).where(*_is_dead(criteria, dead_at, now=None))
    return connection.execute(statement).scalar_one()


def replay_batch(
    connection: Connection,
    criteria: DeliveryFilter,
    after: int,
    now: datetime,
    *,
    dead_at: datetime | None = None,
    replay_id: int | None = None,
) -> ReplayedBatch:
    """Replay the next dead deliveries of a tracker with ids above `after`, oldest first, at most MAX_REPLAYED_PER_TRANSACTION.

    If `dead_at` is not None, leave out deliveries that became dead after this time. If `replay_id` is not None, the deliveries
    become part of this background replay."""
    columns = deliveries.c
    conditions = (*_is_dead(criteria, dead_at, now), columns.id > after)
    which = select(columns.id).where(*conditions).order_by(columns.id).limit(MAX_REPLAYED_PER_TRANSACTION)
    ids = connection.execute(which).scalars().all()
    is_last = len(ids) < MAX_REPLAYED_PER_TRANSACTION
    if not ids:
        return ReplayedBatch(0, after, is_last)
    replayed = _restart_attempts(connection, [columns.id.in_(ids), IS_DEAD], now, replay_id)
    _recover(connection, {criteria.tracker_id}, now)
    if not after:  # Only the first batch permits a probe. Otherwise a large replay would send one probe for each batch.
        _permit_probe(connection, criteria.tracker_id, now)
    return ReplayedBatch(replayed, ids[-1], is_last)


def _restart_attempts(
    connection: Connection, conditions: list[ColumnElement[bool]], now: datetime, replay_id: int | None = None
) -> int:
    values: dict[Any, Any] = {
        "status": DeliveryStatus.PENDING.value,
        "base_attempt": deliveries.c.attempt,
        "queue": RETRIES,
        "next_at": now,
        "lease_until": None,
        "finished_at": None,
        "scheduled_at": now,
        "restarted_at": now,
        "held_since": None,
        "replay_id": replay_id,
    }
    return connection.execute(update(deliveries).where(*conditions).values(values)).rowcount


def _backlog(connection: Connection, tracker_id: int, now: datetime) -> DeliveryBacklog:
    columns = deliveries.c
    in_queue = (columns.lane == tracker_queue(tracker_id), IS_PENDING)

    def count(*conditions: ColumnElement[bool]) -> int:
        some = select(columns.id).where(*conditions).limit(MAX_COUNT).subquery()
        return connection.execute(select(func.count()).select_from(some)).scalar_one()

    due = select(columns.next_at).where(*in_queue).order_by(columns.next_at).limit(1)
    first_due = [connection.execute(due.where(columns.queue == queue)).scalar() for queue in (FIRST_ATTEMPTS, RETRIES)]
    return DeliveryBacklog(
        pending=count(*in_queue),
        dead=count(columns.tracker_id == tracker_id, IS_DEAD),
        waiting_since=min((at for at in first_due if at is not None and at <= now), default=None),
    )
