"""This module lists the messages that gateways send, newest first, in keyset pages, and counts them for each gateway.

The index `messages_by_application` finds the messages of a period. There is no index for a filter by gateway or by state.
Therefore at most MAX_SCANNED_ROWS messages are examined for a page of the list. The page may then contain fewer messages than
requested, or none, although there is a next page. Held messages, and messages that wait for a gateway, have their own indexes.

A count examines at most MAX_COUNTED messages. If there are more, the numbers are lower limits (`is_complete` is false).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Select, and_, case, exists, func, or_, select

from shortener.delivery.health import EndpointHealth
from shortener.errors import ApiError, ErrorCode
from shortener.gateways.decisions import DISCARDED
from shortener.gateways.sends import send_fields
from shortener.ids import MAX_ROW_ID
from shortener.model import SendStatus, mutable_record, record
from shortener.reporting.messages import MAX_SCANNED_ROWS, select_ids, shown_number
from shortener.reporting.queries import id_range
from shortener.retention.scrub import ERASED
from shortener.storage.schema import gateways, messages, sends
from shortener.storage.send_conditions import IS_HELD, IS_PENDING, IS_UNFINISHED
from shortener.storage.types import AnyRow

MAX_COUNTED = 50_000  # The maximum number of messages that a count examines.
#: `uses_gateways` examines only this number of the newest messages of an application.
_SEARCHED = 200

#: The values of the filter by state: the states of model.SendStatus, and "doubtful", which selects doubtful messages in all
#: states.
SendState = Literal["pending", "held", "sent", "failed", "doubtful"]

# The condition IS_UNFINISHED is not necessary for the result. With it, the databases can use the index of unfinished messages,
# which has the order of the list.
_IS_PENDING = and_(IS_UNFINISHED, IS_PENDING)


@record
class SendFilter:
    """The conditions of a list of messages that gateways send. The message must be created between `since` (inclusive) and
    `until` (exclusive). `state` "doubtful" selects doubtful messages in all states."""

    application_id: int
    gateway_id: int | None = None
    state: SendState | None = None
    since: datetime | None = None
    until: datetime | None = None


@record
class SendListPage:
    """A page of messages: the columns of `sends`, the message id, the phone number and the name of the gateway. The ids of the
    next page are smaller than `next`. On the last page, `next` is None."""

    rows: Sequence[AnyRow]
    next: int | None


@mutable_record
class SendCounts:
    """The numbers of messages of one application and one gateway.

    `pending` and `held` are the numbers of messages that wait now. `oldest_pending` is the time at which the oldest pending
    message was created. `sent`, `failed` and `doubtful` count messages that were created in the period. `doubtful` counts
    messages in all states, so it overlaps with the other numbers.

    `last_error` is the error code of the newest message that has one: the code of its last failed attempt. Discarded and erased
    messages are ignored."""

    pending: int = 0
    oldest_pending: datetime | None = None
    held: int = 0
    sent: int = 0
    failed: int = 0
    doubtful: int = 0
    last_error: str | None = None


@record
class GatewayCounts:
    """The numbers of messages of one application by gateway id.

    If `is_complete` is false, `sent`, `failed` and `doubtful` are lower limits. If `is_waiting_complete` is false, `pending` and
    `held` are lower limits."""

    by_gateway: Mapping[int, SendCounts]
    is_complete: bool = True
    is_waiting_complete: bool = True


@record
class GatewaySummary:
    """A gateway without its settings. `application_id` is ALL_APPLICATIONS if all applications may use the gateway."""

    id: int
    application_id: int
    name: str
    kind: str
    enabled: bool
    disabled_reason: str | None
    is_removed: bool
    health: EndpointHealth = field(default_factory=EndpointHealth)


def list_gateway_sends(connection: Connection, filters: SendFilter, limit: int, below: int | None = None) -> SendListPage:
    """Return the newest `limit` messages that match the filter. If `below` is not None, return only messages whose ids are
    smaller than `below`."""
    low, high = id_range(filters.since, filters.until)
    high = high if below is None else min(below, high)
    floor = connection.scalar(_examined(connection, filters, low, high).offset(MAX_SCANNED_ROWS).limit(1))
    newest = _matching(connection, filters, low if floor is None else floor, high).limit(limit + 1)
    shown = _shown().where(sends.c.id.in_(select(newest.subquery().c.id))).order_by(sends.c.id.desc())
    rows = connection.execute(shown).all()
    if len(rows) > limit:
        return SendListPage(rows[:limit], rows[limit - 1].id)
    return SendListPage(rows, floor)


def find_gateway_send(connection: Connection, application_id: int, message_id: str) -> AnyRow:
    """Return a message of an application that a gateway sends. Raise ApiError MESSAGE_NOT_FOUND if there is none."""
    own = messages.c.application_id == application_id, messages.c.message_id == message_id
    row = connection.execute(_shown().where(*own)).first()
    if row is None:
        raise ApiError(ErrorCode.MESSAGE_NOT_FOUND, "No gateway sends a message with this id.")
    return row


def _shown() -> Select[Any]:
    return (
        select(sends, messages.c.message_id, messages.c.to_address, gateways.c.name.label("gateway"))
        .join_from(sends, messages, messages.c.id == sends.c.id)
        .join(gateways, gateways.c.id == sends.c.gateway_id)
    )


def count_sends(
    connection: Connection, application_id: int, since: datetime, until: datetime, waiting_since: datetime
) -> GatewayCounts:
    """Return the numbers of messages of an application for each gateway. `since` (inclusive) and `until` (exclusive) are the
    period. Pending and held messages are counted if they were created at `waiting_since` or later."""
    counts: dict[int, SendCounts] = {}
    is_waiting_complete = _count_waiting(connection, application_id, waiting_since, counts)
    filters = SendFilter(application_id, since=since, until=until)
    low, high = id_range(filters.since, filters.until)
    floor = connection.scalar(_examined(connection, filters, low, high).offset(MAX_COUNTED).limit(1))
    walked = _examined(connection, filters, low if floor is None else floor + 1, high).order_by(None).subquery()
    # DISCARDED and ERASED are decisions about a message, and not errors of its gateway.
    # For a message without an error, the column is NULL, which does not match.
    is_error = sends.c.last_error.not_in((DISCARDED, ERASED))
    statement = (
        select(
            sends.c.gateway_id,
            func.count().filter(sends.c.status == SendStatus.SENT).label("sent"),
            func.count().filter(sends.c.status == SendStatus.FAILED).label("failed"),
            func.count().filter(sends.c.doubtful).label("doubtful"),
            func.max(case((is_error, sends.c.id))).label("newest_error"),
        )
        .join_from(walked, sends, sends.c.id == walked.c.id)
        .where(*_exact_conditions(filters))
        .group_by(sends.c.gateway_id)
    )
    newest_errors = {}
    for row in connection.execute(statement):
        found = counts.setdefault(row.gateway_id, SendCounts())
        found.sent, found.failed, found.doubtful = row.sent, row.failed, row.doubtful
        if row.newest_error is not None:
            newest_errors[row.newest_error] = found
    if newest_errors:
        errors = select(sends.c.id, sends.c.last_error).where(sends.c.id.in_(list(newest_errors)))
        for row in connection.execute(errors):
            newest_errors[row.id].last_error = row.last_error
    return GatewayCounts(counts, floor is None, is_waiting_complete)


def count_held(connection: Connection, application_id: int) -> int:
    """Return the number of held messages of an application, counted up to MAX_COUNTED."""
    held = select(sends.c.id).where(sends.c.application_id == application_id, IS_HELD).limit(MAX_COUNTED).subquery()
    return connection.execute(select(func.count()).select_from(held)).scalar_one()


def read_gateway_summaries(connection: Connection, gateway_ids: Sequence[int], application_id: int) -> list[GatewaySummary]:
    """Return the gateways with these ids, and also all gateways of the application that are not removed. The oldest gateway is
    first."""
    g = gateways.c
    is_own = and_(g.application_id == application_id, g.removed_at.is_(None))
    statement = select(gateways).where(or_(g.id.in_(list(gateway_ids)), is_own)).order_by(g.id)
    return [
        GatewaySummary(
            id=row.id,
            application_id=row.application_id,
            name=row.name,
            kind=row.kind,
            enabled=row.enabled,
            disabled_reason=row.disabled_reason,
            is_removed=row.removed_at is not None,
            health=EndpointHealth.from_row(row),
        )
        for row in connection.execute(statement)
    ]


def own_gateway_names(connection: Connection, application_ids: Sequence[int]) -> dict[int, str]:
    """Return the names of the gateways of some applications, by gateway id. The name of a removed gateway ends with "(removed)"."""
    g = gateways.c
    found = select(g.id, g.name, g.removed_at).where(g.application_id.in_(list(application_ids))).order_by(g.id)
    return {row.id: row.name + (" (removed)" if row.removed_at else "") for row in connection.execute(found)}


def uses_gateways(connection: Connection, application_id: int) -> bool:
    """Return whether an application has or had a gateway. Also return True if a gateway sends one of its newest messages."""
    own = select(gateways.c.id).where(gateways.c.application_id == application_id).limit(1)
    if connection.scalar(own) is not None:
        return True
    newest = select_ids(connection, (messages.c.application_id, application_id), 0, MAX_ROW_ID).limit(_SEARCHED).subquery()
    is_sent = exists().where(sends.c.id == newest.c.id)
    return connection.scalar(select(newest.c.id).where(is_sent).limit(1)) is not None


def _count_waiting(connection: Connection, application_id: int, since: datetime, counts: dict[int, SendCounts]) -> bool:
    """Add the numbers of held and pending messages to `counts`. Return False if the limit has ended a count."""
    s = sends.c
    is_recent = s.id >= id_range(since, None)[0]
    held = select(s.gateway_id).where(s.application_id == application_id, IS_HELD, is_recent, s.created_at >= since)
    limited = held.limit(MAX_COUNTED).subquery()
    for row in connection.execute(select(limited.c.gateway_id, func.count().label("number")).group_by(limited.c.gateway_id)):
        counts.setdefault(row.gateway_id, SendCounts()).held = row.number
    # The index contains the unfinished messages of all applications. They are read oldest first: if a limit ends the count,
    # `oldest_pending` is exact nevertheless.
    columns = s.gateway_id, s.application_id, s.status, s.created_at
    walked = select(*columns).where(IS_UNFINISHED, is_recent).order_by(s.id).limit(MAX_COUNTED).subquery()
    waiting = (
        select(walked.c.gateway_id, func.count().label("number"), func.min(walked.c.created_at).label("oldest"))
        .where(walked.c.application_id == application_id, walked.c.status == SendStatus.PENDING, walked.c.created_at >= since)
        .group_by(walked.c.gateway_id)
    )
    for row in connection.execute(waiting):
        found = counts.setdefault(row.gateway_id, SendCounts())
        found.pending, found.oldest_pending = row.number, row.oldest
    # All held and pending messages are unfinished. If there are at most MAX_COUNTED unfinished messages, no limit has ended a
    # count.
    return connection.scalar(select(s.id).where(IS_UNFINISHED, is_recent).order_by(s.id).offset(MAX_COUNTED).limit(1)) is None


def _examined(connection: Connection, filters: SendFilter, low: int, high: int) -> Select[int]:
    """Return a statement that selects the ids of the messages to examine, newest first."""
    s = sends.c
    if filters.state == "held":
        found = select(s.id).where(s.application_id == filters.application_id, IS_HELD)
    elif filters.state == "pending":
        found = select(s.id).where(_IS_PENDING)
    else:
        return select_ids(connection, (messages.c.application_id, filters.application_id), low, high)
    return found.where(s.id >= low, s.id < high).order_by(s.id.desc())


def _matching(connection: Connection, filters: SendFilter, low: int, high: int) -> Select[int]:
    """Return a statement that selects the ids of the messages that match the filter, newest first."""
    examined, conditions = _examined(connection, filters, low, high), _exact_conditions(filters)
    if filters.state in ("held", "pending"):
        return examined.where(sends.c.application_id == filters.application_id, *conditions)
    return examined.where(exists().where(sends.c.id == messages.c.id, *conditions))


def _exact_conditions(filters: SendFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if filters.since is not None:
        conditions.append(sends.c.created_at >= filters.since)
    if filters.until is not None:
        conditions.append(sends.c.created_at < filters.until)
    if filters.gateway_id is not None:
        # The "+ 0" prevents the databases from using an index on the gateway. That index has another order than the list.
        conditions.append(sends.c.gateway_id + 0 == filters.gateway_id)
    if filters.state == "doubtful":
        conditions.append(sends.c.doubtful)
    elif filters.state in ("sent", "failed"):
        conditions.append(sends.c.status == int(SendStatus[filters.state.upper()]))
    return conditions


def serialize_gateway_send(row: AnyRow, *, reveal: bool) -> dict[str, Any]:
    """Return a row of `list_gateway_sends` in the format of the API. The phone number is masked unless `reveal` is true."""
    return {**send_fields(row), "to": shown_number(row.to_address, reveal=reveal)}
