"""Deliveries as people look at them: lists, one with its attempts, replays, and how a tracker is doing.

A page costs what it shows: it begins below a row id and walks an index; what no index knows is looked for among the next `WALK`
deliveries only, so a page may hold fewer than asked for, or none, and still have a next one. Counts go up to `COUNTED`.

A replay gives a delivery that ended, dead or delivered, all its attempts anew; its event id stays, `attempt` counts on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Row, and_, func, literal_column, select, update

from shortener.delivery.dispatch_queries import RETRIES
from shortener.errors import ApiError, ErrorCode
from shortener.ids import first_id_at
from shortener.model import DeliveryStatus, Topic
from shortener.outbox.events import encode_event_id
from shortener.storage.database import Database
from shortener.storage.schema import attempts, deliveries, events, messages, trackers
from shortener.storage.types import to_ms

WALK = 10_000
COUNTED = 10_000
REPLAYED_AT_ONCE, REPLAYED_AT_MOST = 500, 10_000  # in one transaction, by one call
MOST_ATTEMPTS = 500  # of one delivery that are told

StatusName = Literal["pending", "parked", "delivered", "dead"]
assert set(get_args(StatusName)) == {status.api_name for status in DeliveryStatus}

# Written into the statement: with a parameter, a partial index cannot be used.
_IS_PENDING = deliveries.c.status == literal_column(str(DeliveryStatus.PENDING.value))
_IS_DEAD = deliveries.c.status == literal_column(str(DeliveryStatus.DEAD.value))


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one place. `tracker_id` None: a message's own callback. `message_id`: the pipeline's."""

    id: int
    application_id: int
    tracker_id: int | None
    callback_url: str | None
    event_id: str
    topic: Topic
    message_id: str | None
    status: DeliveryStatus
    attempt: int
    next_at: datetime | None  # while it is pending
    created_at: datetime
    finished_at: datetime | None
    last_status: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One request that was made. `answer`: the first KiB of what came back."""

    attempt: int
    at: datetime
    milliseconds: int
    status: int | None
    error: str | None
    detail: str | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries. `since` is included, `until` is not; both are about when the delivery was made."""

    application_id: int | None = None
    tracker_id: int | None = None
    status: DeliveryStatus | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Newest first. `next`: the id that the next page begins below, None when this is the last."""

    deliveries: list[Delivery]
    next: int | None


@dataclass(frozen=True, slots=True)
class DeliveryBacklog:
    """`pending` and `dead` are counted up to COUNTED. `waiting_since`: when the one that waits longest was due."""

    pending: int
    dead: int
    waiting_since: datetime | None


class Deliveries:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, wanted: DeliveryFilter, limit: int, below: int | None = None) -> DeliveryPage:
        return await self._database.read(_page, wanted, limit, below)

    async def get(self, delivery_id: int, application_id: int | None = None) -> tuple[Delivery, list[DeliveryAttempt]]:
        """With its attempts, oldest first. `application_id` None: whosever it is. Raises ApiError NOT_FOUND."""
        return await self._database.read(_get, delivery_id, application_id)

    async def replay(self, delivery_id: int, now: datetime, application_id: int | None = None) -> Delivery:
        """Raises ApiError NOT_FOUND, CONFLICT: it has not ended, or its tracker is deleted."""
        return await self._database.write(_replay, delivery_id, application_id, now)

    async def replay_dead(self, wanted: DeliveryFilter, now: datetime, after: int = 0) -> tuple[int, int | None]:
        """Replay the dead deliveries of a tracker, oldest first, behind the id `after`, up to REPLAYED_AT_MOST.

        Returns how many, and the id to go on behind; None when these were all."""
        assert wanted.tracker_id is not None
        count = 0
        while count < REPLAYED_AT_MOST:
            ids = await self._database.write(_replay_some, wanted, after, now)
            count += len(ids)
            if len(ids) < REPLAYED_AT_ONCE:
                return count, None
            after = ids[-1]
        return count, after

    async def backlog(self, tracker_id: int, now: datetime) -> DeliveryBacklog:
        return await self._database.read(_backlog, tracker_id, now)


_SELECT = (
    select(
        deliveries,
        messages.c.message_id.label("message_name"),
        trackers.c.enabled.label("tracker_enabled"),
    )
    .outerjoin(events, events.c.id == deliveries.c.event_id)
    .outerjoin(messages, messages.c.id == events.c.message_id)
    .outerjoin(trackers, trackers.c.id == deliveries.c.tracker_id)
)


def _told(row: Row[Any]) -> Delivery:
    status = DeliveryStatus(row.status)
    if status is DeliveryStatus.PENDING and row.tracker_enabled is False:
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


def _conditions(wanted: DeliveryFilter) -> list[ColumnElement[bool]]:
    """Those that an index knows; times are ranges of the id, which grows with time."""
    columns = deliveries.c
    found: list[ColumnElement[bool]] = []
    if wanted.tracker_id is not None:
        found.append(columns.tracker_id == wanted.tracker_id)
    if wanted.application_id is not None:
        found.append(columns.application_id == wanted.application_id)
    if wanted.since is not None:
        found.append(columns.id >= first_id_at(to_ms(wanted.since)))
    if wanted.until is not None:
        found.append(columns.id < first_id_at(to_ms(wanted.until)))
    return found


def _page(connection: Connection, wanted: DeliveryFilter, limit: int, below: int | None) -> DeliveryPage:
    conditions = _conditions(wanted)
    if below is not None:
        conditions.append(deliveries.c.id < below)
    newest = deliveries.c.id.desc()
    floor: int | None = None
    match wanted.status:
        case None:
            pass
        case DeliveryStatus.DEAD if wanted.tracker_id is not None:
            conditions.append(_IS_DEAD)
        case status:
            walked = select(deliveries.c.id).where(*conditions).order_by(newest).limit(1).offset(WALK - 1)
            floor = connection.execute(walked).scalar()
            if floor is not None:
                conditions.append(deliveries.c.id >= floor)
            conditions.append(_has(status))
    rows = connection.execute(_SELECT.where(*conditions).order_by(newest).limit(limit + 1)).all()
    if len(rows) > limit:
        return DeliveryPage([_told(row) for row in rows[:limit]], rows[limit - 1].id)
    return DeliveryPage([_told(row) for row in rows], floor)


def _has(status: DeliveryStatus) -> ColumnElement[bool]:
    if status is DeliveryStatus.PARKED:
        return and_(_IS_PENDING, trackers.c.enabled.is_(False))
    if status is DeliveryStatus.PENDING:
        return and_(_IS_PENDING, trackers.c.enabled.is_not(False))
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
    delivery = _told(_find(connection, delivery_id, application_id))
    columns = attempts.c
    names = (columns.attempt, columns.at, columns.milliseconds, columns.status, columns.error, columns.detail, columns.answer)
    newest = select(*names).where(columns.delivery_id == delivery_id).order_by(columns.id.desc()).limit(MOST_ATTEMPTS)
    return delivery, [DeliveryAttempt(*row) for row in reversed(connection.execute(newest).all())]


_ENDED = (DeliveryStatus.DELIVERED.value, DeliveryStatus.DEAD.value)


def _replay(connection: Connection, delivery_id: int, application_id: int | None, now: datetime) -> Delivery:
    row = _find(connection, delivery_id, application_id)
    if row.tracker_id is not None and row.tracker_enabled is None:
        raise ApiError(ErrorCode.CONFLICT, "The tracker of this delivery is deleted.")
    if row.tracker_id is None and row.callback_url is None:
        raise ApiError(ErrorCode.CONFLICT, "The message whose callback this was is erased.")
    columns = deliveries.c
    if not _renew(connection, [columns.id == delivery_id, columns.status.in_(_ENDED)], now):
        raise ApiError(ErrorCode.CONFLICT, "This delivery has not ended: its attempts go on.")
    return _told(_find(connection, delivery_id, application_id))


def _replay_some(connection: Connection, wanted: DeliveryFilter, after: int, now: datetime) -> Sequence[int]:
    columns = deliveries.c
    which = select(columns.id).where(*_conditions(wanted), _IS_DEAD, columns.id > after).order_by(columns.id)
    ids = connection.execute(which.limit(REPLAYED_AT_ONCE)).scalars().all()
    if ids:
        _renew(connection, [columns.id.in_(ids), _IS_DEAD], now)
        # Many at once are a backlog, and are released like one.
        plain = (trackers.c.recovering_at.is_(None), trackers.c.open_until.is_(None))
        connection.execute(update(trackers).where(trackers.c.id == wanted.tracker_id, *plain).values(recovering_at=now))
    return ids


def _renew(connection: Connection, conditions: list[ColumnElement[bool]], now: datetime) -> int:
    values: dict[Any, Any] = {
        "status": DeliveryStatus.PENDING.value,
        "base_attempt": deliveries.c.attempt,
        "queue": RETRIES,
        "next_at": now,
        "lease_until": None,
        "finished_at": None,
    }
    return connection.execute(update(deliveries).where(*conditions).values(values)).rowcount


def _backlog(connection: Connection, tracker_id: int, now: datetime) -> DeliveryBacklog:
    columns = deliveries.c
    in_lane = (columns.lane == f"t{tracker_id}", _IS_PENDING)

    def count(*conditions: ColumnElement[bool]) -> int:
        some = select(columns.id).where(*conditions).limit(COUNTED).subquery()
        return connection.execute(select(func.count()).select_from(some)).scalar_one()

    first_due = [
        connection.execute(
            select(columns.next_at).where(*in_lane, columns.queue == queue).order_by(columns.next_at).limit(1)
        ).scalar()
        for queue in (0, RETRIES)
    ]
    return DeliveryBacklog(
        pending=count(*in_lane),
        dead=count(columns.tracker_id == tracker_id, _IS_DEAD),
        waiting_since=min((at for at in first_due if at is not None and at <= now), default=None),
    )
