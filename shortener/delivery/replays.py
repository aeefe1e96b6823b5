"""Background replays: a job replays the dead deliveries of a tracker. People can watch a replay and stop it.

A replay is a row in the database. It is created with the exact number of its deliveries (`total`). Any process performs it in
batches. One transaction locks the row, replays a batch, and stores the position of the replay. If a process ends in the middle of a
batch, the transaction is rolled back, and another process repeats the batch. Therefore a replay replays each delivery once. A
delivery that becomes dead after the replay was created is not part of this replay.

A batch begins only when fewer than MAX_UNATTEMPTED replayed deliveries wait for their first attempt after the replay. At most
MAX_UNATTEMPTED deliveries plus one batch therefore wait for this attempt. The other deliveries stay dead until their batch begins.
If an operator stops the replay, no further delivery is replayed. The deliveries that were already replayed are still sent.

A tracker has at most one running replay. The job stops a replay if its tracker is deleted or disabled, or if its application is
disabled. No delivery would be sent in these cases.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, literal_column, or_, select, update
from sqlalchemy.exc import IntegrityError

from shortener.accounts.audit import BACKGROUND_JOB, AuditWriter
from shortener.delivery.deliveries import DeliveryFilter, count_dead, replay_batch
from shortener.delivery.tracker_queries import require_tracker
from shortener.errors import ApiError, ErrorCode, StoreUnavailable
from shortener.ids import REPLAY_IDS, IdGenerator
from shortener.jobs import WakeUp
from shortener.model import Clock, DeliveryStatus, record
from shortener.plurals import counted
from shortener.storage.database import Database, is_unique_violation
from shortener.storage.delivery_conditions import IS_PENDING
from shortener.storage.schema import applications, deliveries, replays, trackers

#: The job begins the next batch of a replay only when fewer than this number of the replayed deliveries wait for their next
#: attempt.
MAX_UNATTEMPTED = 1000
RUNNING, DONE, STOPPED = "running", "done", "stopped"

# A literal, because the database would not use the partial index if the state were a parameter of the SQL statement.
_IS_RUNNING = replays.c.state == literal_column(f"'{RUNNING}'")


#: A function with the arguments of `create_replay`. It calls `create_replay`, or raises an exception.
CreateReplay = Callable[[Connection, AuditWriter, dict[str, Any]], "Replay"]


class StopReason(enum.StrEnum):
    """Why a replay was stopped. The values of this enum are stored in the database, so do not change them."""

    OPERATOR = "operator"
    TRACKER_DELETED = "tracker_deleted"
    TRACKER_DISABLED = "tracker_disabled"
    APPLICATION_DISABLED = "application_disabled"

    @property
    def text(self) -> str:
        """The reason as a part of a sentence."""
        return _REASONS[self]


_REASONS = {
    StopReason.OPERATOR: "an operator stopped it",
    StopReason.TRACKER_DELETED: "the tracker is deleted",
    StopReason.TRACKER_DISABLED: "the tracker is disabled",
    StopReason.APPLICATION_DISABLED: "the application is disabled",
}


@record
class Replay:
    """A background replay. `since` and `until` limit the time at which its deliveries were created.

    `replayed` of its `total` deliveries have been replayed. `stop_reason` is set if the replay was stopped."""

    id: int
    application_id: int
    tracker_id: int
    since: datetime | None
    until: datetime | None
    state: str
    stop_reason: StopReason | None
    started_by: str
    stopped_by: str | None
    total: int
    replayed: int
    created_at: datetime
    finished_at: datetime | None

    @property
    def public_id(self) -> str:
        """The id of the replay in URLs and in the audit log."""
        return REPLAY_IDS.encode(self.id)

    @property
    def is_running(self) -> bool:
        """Whether further deliveries will be replayed."""
        return self.state == RUNNING

    @property
    def left(self) -> int:
        """The number of deliveries that have not been replayed."""
        return self.total - self.replayed


@record
class ReplayOutcomes:
    """The numbers of the replayed deliveries of a replay, by their current state. `waiting` counts pending deliveries. `moved`
    counts deliveries that a later replay has replayed again, and deliveries that the purge has deleted."""

    waiting: int
    delivered: int
    dead: int
    moved: int


async def start_replay(
    database: Database,
    audit: AuditWriter,
    application_id: int,
    tracker_id: int,
    since: datetime | None,
    until: datetime | None,
    now: datetime,
    create: CreateReplay | None = None,
) -> Replay:
    """Create a replay of the dead deliveries of a tracker, add it to the audit log, and return it. `create` is called in the
    transaction. It calls `create_replay`, or raises an exception, for example if the request is a repeat.

    Raise ApiError NOT_FOUND if the tracker does not exist. Raise ApiError CONFLICT if the tracker has a running replay, if
    nothing would be sent to the tracker, or if no delivery is dead."""
    # The deliveries are counted before the transaction begins, because a long count inside the transaction would delay clicks.
    total = await database.read(count_dead, DeliveryFilter(tracker_id=tracker_id, since=since, until=until), now)
    values = {
        "application_id": application_id,
        "tracker_id": tracker_id,
        "since": since,
        "until": until,
        "state": RUNNING,
        "started_by": audit.actor.name,
        "total": total,
        "created_at": now,
    }
    try:
        return await database.write(create or create_replay, audit, values)
    except IntegrityError as error:  # Another process has created a replay of this tracker at the same time.
        if not is_unique_violation(error):
            raise
        running = await database.read(find_running, tracker_id)
        if running is None:  # The other replay has already ended.
            raise ApiError(ErrorCode.CONFLICT, "Another replay of this tracker was started at the same time.") from None
        raise _is_running_already(running) from None


def create_replay(connection: Connection, audit: AuditWriter, values: dict[str, Any]) -> Replay:
    """Create a replay with the values of its columns, and add the audit row. Raise the ApiErrors of `start_replay`."""
    tracker_id, since, until = values["tracker_id"], values["since"], values["until"]
    require_tracker(connection, tracker_id, values["application_id"])
    running = find_running(connection, tracker_id)
    if running is not None:
        raise _is_running_already(running)
    reason = find_obstacle(connection, tracker_id)
    if reason is not None:
        raise ApiError(ErrorCode.CONFLICT, f"Nothing would be sent, because {reason.text}. Enable it first.")
    if not values["total"]:
        raise ApiError(ErrorCode.CONFLICT, "No delivery of this tracker and this period is dead.")
    row = connection.execute(insert(replays).values(id=audit.ids(), **values).returning(replays)).one()
    replay = _replay_from_row(row)
    limits = {"since": since, "until": until}
    after = {"total": replay.total} | {name: at.isoformat() for name, at in limits.items() if at is not None}
    _record(connection, audit, replay.created_at, "replay_started", replay, after)
    return replay


def _is_running_already(replay: Replay) -> ApiError:
    total = counted(replay.total, "delivery", "deliveries")
    text = f"A replay of this tracker is running: {replay.replayed:,} of {total}. Wait for its end, or stop it."
    return ApiError(ErrorCode.CONFLICT, text, fields={"replay_id": replay.public_id})


def find_replay(connection: Connection, public_id: str, application_id: int) -> Replay:
    """Return a replay of an application. Raise ApiError NOT_FOUND if it does not exist."""
    statement = select(replays).where(replays.c.id == (REPLAY_IDS.decode(public_id) or 0))
    row = connection.execute(statement.where(replays.c.application_id == application_id)).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no replay with this id.")
    return _replay_from_row(row)


def find_running(connection: Connection, tracker_id: int) -> Replay | None:
    """Return the running replay of a tracker, or None."""
    row = connection.execute(select(replays).where(replays.c.tracker_id == tracker_id, _IS_RUNNING)).first()
    return None if row is None else _replay_from_row(row)


def find_newest(connection: Connection, tracker_id: int) -> Replay | None:
    """Return the replay of a tracker that was started last, or None."""
    statement = select(replays).where(replays.c.tracker_id == tracker_id).order_by(replays.c.id.desc()).limit(1)
    row = connection.execute(statement).first()
    return None if row is None else _replay_from_row(row)


def list_replays(connection: Connection, application_id: int, ended_after: datetime, limit: int) -> list[Replay]:
    """Return the replays of an application that are running, or that ended after the time `ended_after`, newest first."""
    is_recent = or_(_IS_RUNNING, replays.c.finished_at > ended_after)
    statement = select(replays).where(replays.c.application_id == application_id, is_recent)
    return [_replay_from_row(row) for row in connection.execute(statement.order_by(replays.c.id.desc()).limit(limit))]


def find_obstacle(connection: Connection, tracker_id: int) -> StopReason | None:
    """Return the reason why nothing would be sent to a tracker; None if deliveries are sent."""
    statement = select(trackers.c.enabled, applications.c.disabled_at)
    joined = statement.join(applications, applications.c.id == trackers.c.application_id)
    row = connection.execute(joined.where(trackers.c.id == tracker_id)).first()
    if row is None:
        return StopReason.TRACKER_DELETED
    if row.disabled_at is not None:
        return StopReason.APPLICATION_DISABLED
    return None if row.enabled else StopReason.TRACKER_DISABLED


def count_outcomes(connection: Connection, replay: Replay) -> ReplayOutcomes:
    """Return how many of the deliveries of a replay are waiting, delivered and dead now. The query reads only an index."""
    statement = select(deliveries.c.status, func.count()).where(deliveries.c.replay_id == replay.id).group_by(deliveries.c.status)
    numbers: dict[int, int] = {row[0]: row[1] for row in connection.execute(statement)}
    waiting, delivered, dead = (
        numbers.get(status.value, 0) for status in (DeliveryStatus.PENDING, DeliveryStatus.DELIVERED, DeliveryStatus.DEAD)
    )
    return ReplayOutcomes(waiting, delivered, dead, replay.replayed - waiting - delivered - dead)


def stop_replay(connection: Connection, audit: AuditWriter, replay: Replay, reason: StopReason, now: datetime) -> bool:
    """Stop a replay and add this to the audit log. Deliveries that were replayed are still sent. If the replay has ended, change
    nothing. Return whether the replay was running."""
    values = {"state": STOPPED, "stop_reason": reason.value, "stopped_by": audit.actor.name, "finished_at": now}
    stopped = connection.execute(
        update(replays).where(replays.c.id == replay.id, _IS_RUNNING).values(values).returning(replays)
    ).first()
    if stopped is None:
        return False
    after = {"reason": reason.value, "replayed": stopped.replayed, "total": stopped.total}
    _record(connection, audit, now, "replay_stopped", replay, after)
    return True


def _record(connection: Connection, audit: AuditWriter, now: datetime, action: str, replay: Replay, after: dict[str, Any]) -> None:
    """Add a row about a replay to the audit log."""
    subject = f"tracker {replay.tracker_id}, replay {replay.public_id}"
    audit.add(connection, now, action, subject, application_id=replay.application_id, after=after)


def _replay_from_row(row: Row[Any]) -> Replay:
    names = [name for name in Replay.__dataclass_fields__ if name != "stop_reason"]
    reason = None if row.stop_reason is None else StopReason(row.stop_reason)
    return Replay(stop_reason=reason, **{name: getattr(row, name) for name in names})


class Replays:
    """The job that performs the replays. It calls `on_deliveries` after each run that replayed deliveries."""

    def __init__(
        self, database: Database, ids: IdGenerator, clock: Clock, on_deliveries: Callable[[], None] = lambda: None
    ) -> None:
        self._database = database
        self._audit = AuditWriter(BACKGROUND_JOB, ids)
        self._clock = clock
        self._on_deliveries = on_deliveries
        self.wake_up = WakeUp()

    async def step(self) -> int:
        """Perform one batch of each running replay. Return the number of replayed deliveries.

        If a batch fails, perform the batches of the other replays and then raise the error. StoreUnavailable is raised at once."""
        replayed = 0
        failure: Exception | None = None
        for replay_id in await self._database.read(_running_ids):
            try:
                replayed += await self._database.write_later(self._perform_batch, replay_id)
            except StoreUnavailable:
                raise
            except Exception as error:
                failure = error
        if replayed:
            self._on_deliveries()
        if failure is not None:
            raise failure
        return replayed

    def _perform_batch(self, connection: Connection, replay_id: int) -> int:
        """Replay the next deliveries of a replay. Return their number; 0 if another process performs a batch of this replay."""
        # SQLite executes one transaction at a time and needs no lock.
        claimed = select(replays).where(replays.c.id == replay_id, _IS_RUNNING).with_for_update(skip_locked=True)
        row = connection.execute(claimed).first()
        if row is None:
            return 0
        now = self._clock()
        reason = find_obstacle(connection, row.tracker_id)
        if reason is not None:
            stop_replay(connection, self._audit, _replay_from_row(row), reason, now)
            return 0
        if _count_unattempted(connection, replay_id) >= MAX_UNATTEMPTED:
            return 0
        criteria = DeliveryFilter(tracker_id=row.tracker_id, since=row.since, until=row.until)
        batch = replay_batch(connection, criteria, row.cursor, now, dead_at=row.created_at, replay_id=replay_id)
        replayed = row.replayed + batch.replayed
        # `total`, the number of failed deliveries when the replay was created, can be too small. It does not contain a delivery
        # whose last attempt had failed then, but whose failure was recorded later.
        values: dict[str, Any] = {"replayed": replayed, "cursor": batch.last_id, "total": max(row.total, replayed)}
        if batch.is_last:
            values |= {"state": DONE, "finished_at": now}
        connection.execute(update(replays).where(replays.c.id == replay_id).values(values))
        return batch.replayed


def _running_ids(connection: Connection) -> list[int]:
    return list(connection.scalars(select(replays.c.id).where(_IS_RUNNING).order_by(replays.c.id)))


def _count_unattempted(connection: Connection, replay_id: int) -> int:
    """Return how many deliveries of a replay wait for their first attempt after the replay, at most MAX_UNATTEMPTED.

    The deliveries with the highest ids were replayed last and are sent last, so only those are examined."""
    columns = deliveries.c
    newest = (
        select(columns.attempt, columns.base_attempt)
        .where(columns.replay_id == replay_id, IS_PENDING)
        .order_by(columns.id.desc())
        .limit(MAX_UNATTEMPTED)
        .subquery()
    )
    statement = select(func.count()).select_from(newest).where(newest.c.attempt == newest.c.base_attempt)
    return connection.execute(statement).scalar_one()
