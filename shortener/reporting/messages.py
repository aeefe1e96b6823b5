"""This module lists messages, newest first, in keyset pages.

A page takes the same time everywhere in the list. It starts below a row id and reads one index: `messages_by_recipient` for a
phone number, `messages_by_cohort` for a campaign, and otherwise `messages_by_application`. Times become limits of the id, because
ids grow with time.

There is no index for a filter by state, and none for a filter by source without a campaign. With such a filter, at most
MAX_SCANNED_ROWS messages are examined for a page. The page may then contain fewer messages than requested, or none, although
there is a next page.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
    type_coerce,
    union_all,
)

from shortener.conversions.first_conversions import CONVERTED_MESSAGES
from shortener.logs import mask, mask_recipient
from shortener.model import State, record
from shortener.reporting.counts import slot_edges
from shortener.reporting.link_set_names import find_link_sets
from shortener.reporting.queries import id_range
from shortener.reporting.rollups import Basis
from shortener.storage.schema import cohorts, current_state, first_clicks, first_conversions, is_clicked, messages
from shortener.storage.types import AnyRow, Instant, Money, to_iso

MAX_SCANNED_ROWS = 10_000  # The maximum number of messages that are read to fill one page if a condition has no index.
MAX_COHORTS_PER_PAGE = 200  # One statement reads at most this number of index ranges. SQLite would permit 500.


#: The figures of the statistics whose messages can be listed.
MessageMetric = Literal["messages", "sent", "delivered", "read", "failed", "clicked_messages", "converted_messages"]
MESSAGE_METRICS: tuple[MessageMetric, ...] = get_args(MessageMetric)


@record
class MessageFilter:
    """The conditions of a list of messages. `since` is inclusive, `until` is exclusive. `campaign` "" selects messages without a
    campaign. `states` selects messages in one of these states, `request_ids` selects messages of these rewrite requests, and
    `sender` selects messages of this sender. `country` is the ISO 3166 code of the recipient's country, or "" for an unknown
    country. `destination` (host and path) and `label` must belong to the same link of the message.

    With a `metric`, the list contains exactly the messages that this figure of the statistics counts. The period is then extended
    to complete time slots, and `basis` says which time must be in the period: the time of the event or of the message."""

    application_id: int
    state: State | None = None
    to: str | None = None
    campaign: str | None = None
    source: str | None = None
    country: str | None = None
    destination: str | None = None
    label: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    metric: MessageMetric | None = None
    basis: Basis = Basis.EVENT
    states: frozenset[State] | None = None
    request_ids: tuple[str, ...] | None = None
    sender: str | None = None


@record
class MessagePage:
    """A page of messages with the columns MESSAGE_COLUMNS. The ids of the next page are smaller than `next`. On the last page,
    `next` is None."""

    rows: Sequence[AnyRow]
    next: int | None


#: The columns of a message in message lists and in the status of a message.
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


#: The same columns for lists, but with times as milliseconds since 1970 and amounts as text. Reading rows in this form takes a
#: fraction of the time.
STORED_MESSAGE_COLUMNS = tuple(
    type_coerce(column, Text if isinstance(column.type, Money) else BigInteger).label(column.name)
    if isinstance(column.type, Instant | Money)
    else column
    for column in MESSAGE_COLUMNS
)


def list_messages(
    connection: Connection,
    filters: MessageFilter,
    limit: int,
    below: int | None = None,
    columns: Sequence[ColumnElement[Any]] = MESSAGE_COLUMNS,
) -> MessagePage:
    """Return the newest `limit` messages that match the filter. If `below` is not None, return only messages whose ids are
    smaller than `below`. The first of the `columns` must be the row id."""
    index_ranges, unindexed = choose_indexes(connection, filters)
    if not index_ranges:
        return MessagePage([], None)
    low, high = id_limits(filters, below)
    floor = _lowest_scanned_id(connection, index_ranges, low, high) if unindexed else None
    conditions = [*unindexed, *_exact_conditions(filters)]
    rows = connection.execute(_newest(connection, index_ranges, floor or low, high, conditions, limit + 1, columns)).all()
    if len(rows) > limit:
        return MessagePage(rows[:limit], rows[limit - 1].id)
    return MessagePage(rows, floor)


def find_messages(connection: Connection, application_id: int, message_ids: Sequence[str]) -> Sequence[AnyRow]:
    """Return the messages of the application with these ids, newest first. Ids without a message are left out."""
    shown = select(*MESSAGE_COLUMNS).join_from(messages, cohorts, cohorts.c.id == messages.c.cohort_id)
    shown = shown.outerjoin(first_clicks, first_clicks.c.id == messages.c.id)
    shown = shown.where(messages.c.application_id == application_id, messages.c.message_id.in_(message_ids))
    return connection.execute(shown.order_by(messages.c.id.desc())).all()


def find_by_row_ids(connection: Connection, row_ids: Sequence[int]) -> dict[int, AnyRow]:
    """Return messages by their row ids, of which there are at most 1,000. The keys of the result are the row ids."""
    shown = select(*MESSAGE_COLUMNS).join_from(messages, cohorts, cohorts.c.id == messages.c.cohort_id)
    shown = shown.outerjoin(first_clicks, first_clicks.c.id == messages.c.id)
    return {row.id: row for row in connection.execute(shown.where(messages.c.id.in_(row_ids)))}


def shown_number(number: str, *, reveal: bool) -> str:
    """Return a phone number as a response shows it: complete if `reveal` is true, otherwise masked. The result for an erased
    number is an empty text."""
    return number if reveal or not number else mask(number)


def shown_reason(reason: str | None, number: str, *, reveal: bool) -> str | None:
    """Return the text in which a carrier states the reason of a failure, as a user may see it. Unless `reveal` is true, the
    recipient's `number` and all international numbers in the text are masked."""
    return reason if reveal or not reason else mask_recipient(reason, number)


def serialize_message(row: AnyRow, *, reveal: bool) -> dict[str, Any]:
    """Return a row of MESSAGE_COLUMNS in the format of the API: times in ISO 8601, the price as a decimal string.

    Phone numbers are masked unless `reveal` is true."""
    return {
        "message_id": row.message_id,
        "message_request_id": row.request_id,
        "external_message_request_id": row.external_request_id,
        "to": shown_number(row.to_address, reveal=reveal),
        "from": row.from_address,
        "sender_id_id": row.sender_id_id,
        "sender_id_alias": row.sender_id_alias,
        "campaign": row.campaign,
        "source": row.source,
        "country": row.country or None,
        "state": State(row.state).name,
        "report_status": row.report_status,
        "reason_code": row.reason_code,
        "reason_description": shown_reason(row.reason_description, row.to_address, reveal=reveal),
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
    """Return an amount of money in the format of the API: a decimal string without an exponent."""
    return None if amount is None else format(amount, "f")


#: A range of an index: the first column of the index, and the value that it has in this range. The second column is the row id.
IndexRange = tuple[Column[Any], int | str]
Conditions = list[ColumnElement[bool]]


def choose_indexes(connection: Connection, filters: MessageFilter) -> tuple[list[IndexRange], Conditions]:
    """Return the index ranges that a page of messages reads. Also return the conditions that these indexes cannot check."""
    unindexed: Conditions = []
    if filters.state is State.CLICKTHRU:
        unindexed.append(is_clicked())
    elif filters.state is not None:
        unindexed += [messages.c.state == int(filters.state), ~is_clicked()]
    if filters.states is not None:
        reported = and_(messages.c.state.in_([int(state) for state in filters.states]), ~is_clicked())
        unindexed.append(or_(is_clicked(), reported) if State.CLICKTHRU in filters.states else reported)
    if filters.request_ids is not None:
        unindexed.append(messages.c.request_id.in_(filters.request_ids))
    if filters.sender is not None:
        unindexed.append(messages.c.from_address == filters.sender)
    if filters.metric not in (None, "messages"):
        unindexed.append(_has_metric(filters))
    if filters.destination is not None or filters.label is not None:
        unindexed.append(messages.c.link_set_id.in_(find_link_sets(connection, filters)))
    of_cohort = [cohorts.c.application_id == filters.application_id]
    if filters.campaign is not None:
        of_cohort.append(cohorts.c.campaign == filters.campaign)
    if filters.source is not None:
        of_cohort.append(cohorts.c.source == filters.source)
    if filters.country is not None:
        of_cohort.append(cohorts.c.country == filters.country)
    if filters.campaign is not None and filters.to is None:
        numbers = connection.scalars(select(cohorts.c.id).where(*of_cohort).limit(MAX_COHORTS_PER_PAGE + 1)).all()
        if len(numbers) <= MAX_COHORTS_PER_PAGE:
            return [(messages.c.cohort_id, number) for number in numbers], unindexed
    if len(of_cohort) > 1:
        # The "+ 0" prevents SQLite from using the index on cohorts. That index has another order than the list.
        unindexed.append((messages.c.cohort_id + 0).in_(select(cohorts.c.id).where(*of_cohort)))
    if filters.to is not None:
        return [(messages.c.to_address, filters.to)], unindexed
    return [(messages.c.application_id, filters.application_id)], unindexed


def id_limits(filters: MessageFilter, below: int | None) -> tuple[int, int]:
    """Return the limits of the ids of a page of messages: the lowest id (included) and the highest id (excluded)."""
    since, until = _period(filters)
    if filters.metric is not None and filters.basis is Basis.SENT:
        low, high = id_range(since, until, tolerance=timedelta())
    else:
        # Delivery reports and clicks can be much later than their message. For a figure that counts them, the period limits the
        # time of the event. It gives only an upper limit for the row id of the message.
        is_later = filters.metric not in (None, "messages")
        low, high = id_range(None if is_later else since, until)
    return low, high if below is None else min(below, high)


def _period(filters: MessageFilter) -> tuple[datetime | None, datetime | None]:
    return (filters.since, filters.until) if filters.metric is None else slot_edges(filters.since, filters.until)


def _has_metric(filters: MessageFilter) -> ColumnElement[bool]:
    """Return the SQL condition that selects the messages that a figure of the statistics counts within the period."""
    since, until = _period(filters) if filters.basis is Basis.EVENT else (None, None)
    if filters.metric == "clicked_messages":
        at: Column[Any] = first_clicks.c.at
        return exists().where(first_clicks.c.id == messages.c.id, at.is_not(None), *_between(at, since, until))
    if filters.metric == CONVERTED_MESSAGES:
        at = first_conversions.c.at
        return exists().where(first_conversions.c.id == messages.c.id, *_between(at, since, until))
    at = messages.c[f"{filters.metric}_at"]
    return and_(at.is_not(None), *_between(at, since, until))


def _between(at: Column[Any], since: datetime | None, until: datetime | None) -> Conditions:
    return [*(() if since is None else (at >= since,)), *(() if until is None else (at < until,))]


def _exact_conditions(filters: MessageFilter) -> Conditions:
    """Return the SQL conditions that limit the times exactly. The index ranges limit them only approximately."""
    conditions: Conditions = []
    if filters.metric is None or (filters.metric == "messages" and filters.basis is Basis.EVENT):
        conditions += _between(messages.c.created_at, *_period(filters))
    if filters.to is not None:
        conditions.append(messages.c.application_id + 0 == filters.application_id)
    return conditions


def select_ids(connection: Connection, index_range: IndexRange, low: int, high: int) -> Select[int]:
    """Return a statement that selects the ids of an index range, newest first.

    PostgreSQL compares both columns at once. With separate conditions, it may read all messages backwards until enough of them
    match. SQLite gets separate conditions. If SQLite compared both columns at once, it would use only the first column, and start
    each page at the newest message."""
    column, value = index_range
    if connection.dialect.name == "sqlite":
        within_id = messages.c.id >= low, messages.c.id < high
        return select(messages.c.id).where(column == value, *within_id).order_by(messages.c.id.desc())
    both = tuple_(column, messages.c.id)
    within = both >= tuple_(literal(value, column.type), low), both < tuple_(literal(value, column.type), high)
    return select(messages.c.id).where(*within).order_by(column.desc(), messages.c.id.desc())


def _lowest_scanned_id(connection: Connection, index_ranges: list[IndexRange], low: int, high: int) -> int | None:
    """Return the lowest id down to which the page is complete, or None if the page can examine all ids.

    Each index range is examined down to its own lowest id. The result is the highest of them, because below it at least one range
    is not examined."""
    ends = union_all(
        *(
            select(select_ids(connection, index_range, low, high).offset(MAX_SCANNED_ROWS).limit(1).subquery().c.id)
            for index_range in index_ranges
        )
    ).subquery()
    floor: int | None = connection.scalar(select(func.max(ends.c.id)))
    return floor


def _newest(
    connection: Connection,
    index_ranges: list[IndexRange],
    low: int,
    high: int,
    conditions: Conditions,
    limit: int,
    columns: Sequence[ColumnElement[Any]],
) -> Select[Any]:
    id_lists = (
        select_ids(connection, index_range, low, high).where(*conditions).limit(limit).subquery() for index_range in index_ranges
    )
    found = union_all(*(select(ids.c.id) for ids in id_lists)).subquery()
    newest = select(found.c.id).order_by(found.c.id.desc()).limit(limit)
    shown = select(*columns).join_from(messages, cohorts, cohorts.c.id == messages.c.cohort_id)
    shown = shown.outerjoin(first_clicks, first_clicks.c.id == messages.c.id)
    return shown.where(messages.c.id.in_(newest)).order_by(messages.c.id.desc())
