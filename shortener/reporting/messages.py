"""Lists of messages, newest first, in keyset pages.

The cost of a page does not depend on its position in the list. A page begins below a row id and reads one index:
`messages_by_recipient`, `messages_by_cohort` for a campaign, or else `messages_by_application`. Times become limits of the id,
because ids grow with time. No index contains the state, or the source without a campaign. For these filters, a page examines at
most MAX_SCANNED_ROWS messages. Such a page may contain fewer messages than requested, or none, and still have a next page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Select, func, literal, select, tuple_, union_all

from shortener.ids import first_id_at
from shortener.model import State
from shortener.reporting.queries import AnyRow
from shortener.storage.schema import cohorts, current_state, first_clicks, is_clicked, messages
from shortener.storage.types import to_iso, to_ms

MAX_SCANNED_ROWS = 10_000  # messages among which a page looks for those that no index finds
MAX_COHORTS_PER_PAGE = 200  # indexes walked side by side; SQLite takes 500
_NO_ID = (1 << 63) - 1  # above every id
_SLACK = timedelta(hours=1)  # between a message's time and that of its id: two clocks of one request


@dataclass(frozen=True, slots=True)
class MessageFilter:
    """Which messages: `since` is included, `until` is not; "" as campaign means those without one."""

    application_id: int
    state: State | None = None
    to: str | None = None
    campaign: str | None = None
    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Rows of COLUMNS; `next`: the id that the next page begins below, None when this is the last."""

    rows: Sequence[AnyRow]
    next: int | None


#: What lists and the status tell of a message.
MESSAGE_COLUMNS = (
    messages.c.id,
    messages.c.message_id,
    messages.c.request_id,
    messages.c.external_request_id,
    messages.c.to_address,
    messages.c.from_address,
    messages.c.sender_id_id,
    messages.c.sender_id_alias,
    cohorts.c.campaign,
    cohorts.c.source,
    cohorts.c.country,
    current_state.label("state"),
    messages.c.report_status,
    messages.c.reason_code,
    messages.c.reason_description,
    messages.c.telecom_message_id,
    messages.c.created_at,
    messages.c.sent_at,
    messages.c.delivered_at,
    messages.c.read_at,
    messages.c.failed_at,
    first_clicks.c.at.label("clicked_at"),
    messages.c.encoding,
    messages.c.segments,
    messages.c.fragments_count,
    messages.c.mt_price,
)


def list_messages(connection: Connection, wanted: MessageFilter, limit: int, below: int | None = None) -> MessagePage:
    """The newest `limit` messages, or those with an id below `below`."""
    ways, looked_for = _ways(connection, wanted)
    if not ways:
        return MessagePage([], None)
    low, high = _bounds(wanted, below)
    floor = _floor(connection, ways, low, high) if looked_for else None
    conditions = [*looked_for, *_exactly(wanted)]
    rows = connection.execute(_newest(connection, ways, floor or low, high, conditions, limit + 1)).all()
    if len(rows) > limit:
        return MessagePage(rows[:limit], rows[limit - 1].id)
    return MessagePage(rows, floor)


def serialize_message(row: AnyRow) -> dict[str, Any]:
    """A row of COLUMNS as the API tells it: times in ISO 8601, the price as a decimal string."""
    return {
        "message_id": row.message_id,
        "message_request_id": row.request_id,
        "external_message_request_id": row.external_request_id,
        "to": row.to_address,
        "from": row.from_address,
        "sender_id_id": row.sender_id_id,
        "sender_id_alias": row.sender_id_alias,
        "campaign": row.campaign,
        "source": row.source,
        "country": row.country or None,
        "state": State(row.state).name,
        "report_status": row.report_status,
        "reason_code": row.reason_code,
        "reason_description": row.reason_description,
        "telecom_message_id": row.telecom_message_id,
        "created_at": to_iso(row.created_at),
        "sent_at": to_iso(row.sent_at),
        "delivered_at": to_iso(row.delivered_at),
        "read_at": to_iso(row.read_at),
        "failed_at": to_iso(row.failed_at),
        "clicked_at": to_iso(row.clicked_at),
        "encoding": row.encoding,
        "segments": row.segments,
        "fragments_count": row.fragments_count,
        "mt_price": serialize_decimal(row.mt_price),
    }


def serialize_decimal(amount: Decimal | None) -> str | None:
    """Money as the API tells it: never in floating point, never with an exponent."""
    return None if amount is None else format(amount, "f")


#: An index to walk, by its first column and the value there; the second is the id.
Way = tuple[Column[Any], int | str]
Conditions = list[ColumnElement[bool]]


def _ways(connection: Connection, wanted: MessageFilter) -> tuple[list[Way], Conditions]:
    """The indexes to walk, side by side if there are several, and what they do not know and must be looked for."""
    looked_for: Conditions = []
    if wanted.state is State.CLICKTHRU:
        looked_for.append(is_clicked())
    elif wanted.state is not None:
        looked_for += [messages.c.state == int(wanted.state), ~is_clicked()]
    own = [cohorts.c.application_id == wanted.application_id]
    if wanted.campaign is not None:
        own.append(cohorts.c.campaign == wanted.campaign)
    if wanted.source is not None:
        own.append(cohorts.c.source == wanted.source)
    if wanted.campaign is not None and wanted.to is None:
        numbers = connection.scalars(select(cohorts.c.id).where(*own).limit(MAX_COHORTS_PER_PAGE + 1)).all()
        if len(numbers) <= MAX_COHORTS_PER_PAGE:
            return [(messages.c.cohort_id, number) for number in numbers], looked_for
    if len(own) > 1:
        # + 0: not to be looked up in an index of its own, whose order is another.
        looked_for.append((messages.c.cohort_id + 0).in_(select(cohorts.c.id).where(*own)))
    if wanted.to is not None:
        return [(messages.c.to_address, wanted.to)], looked_for
    return [(messages.c.application_id, wanted.application_id)], looked_for


def _bounds(wanted: MessageFilter, below: int | None) -> tuple[int, int]:
    """The ids lie from the first of these to below the second."""
    low = 0 if wanted.since is None else first_id_at(to_ms(wanted.since - _SLACK))
    high = _NO_ID if wanted.until is None else first_id_at(to_ms(wanted.until + _SLACK))
    return low, high if below is None else min(below, high)


def _exactly(wanted: MessageFilter) -> Conditions:
    """What the range of an index leaves a little open: few rows fall away here."""
    conditions: Conditions = [] if wanted.since is None else [messages.c.created_at >= wanted.since]
    if wanted.until is not None:
        conditions.append(messages.c.created_at < wanted.until)
    if wanted.to is not None:
        conditions.append(messages.c.application_id + 0 == wanted.application_id)
    return conditions


def _walk(connection: Connection, way: Way, low: int, high: int) -> Select[int]:
    """Ids, newest first, from where the page begins. PostgreSQL is asked for a range of both columns, which leaves it no other
    index to walk: told of the value and the order apart, it would rather go through all messages backwards until it met enough that
    fit. SQLite takes such a range for one of the first column alone, and would walk from the newest message at every page."""
    column, value = way
    if connection.dialect.name == "sqlite":
        within_id = messages.c.id >= low, messages.c.id < high
        return select(messages.c.id).where(column == value, *within_id).order_by(messages.c.id.desc())
    both = tuple_(column, messages.c.id)
    within = both >= tuple_(literal(value, column.type), low), both < tuple_(literal(value, column.type), high)
    return select(messages.c.id).where(*within).order_by(column.desc(), messages.c.id.desc())


def _floor(connection: Connection, ways: list[Way], low: int, high: int) -> int | None:
    """The id down to which this page looks; None when that is the end. The highest one, where several indexes are walked: below
    it, what one of them was not asked for would be missing."""
    ends = union_all(
        *(select(_walk(connection, way, low, high).offset(MAX_SCANNED_ROWS).limit(1).subquery().c.id) for way in ways)
    ).subquery()
    floor: int | None = connection.scalar(select(func.max(ends.c.id)))
    return floor


def _newest(connection: Connection, ways: list[Way], low: int, high: int, conditions: Conditions, limit: int) -> Select[Any]:
    walks = (_walk(connection, way, low, high).where(*conditions).limit(limit).subquery() for way in ways)
    found = union_all(*(select(walk.c.id) for walk in walks)).subquery()
    newest = select(found.c.id).order_by(found.c.id.desc()).limit(limit)
    shown = select(*MESSAGE_COLUMNS).join_from(messages, cohorts, cohorts.c.id == messages.c.cohort_id)
    shown = shown.outerjoin(first_clicks, first_clicks.c.id == messages.c.id)
    return shown.where(messages.c.id.in_(newest)).order_by(messages.c.id.desc())
