"""The rules by which a recount counts rows: which rows count, at which time, under which metric, and with which amount.

They must agree with the rules of the count deltas (outbox/count_deltas.py). count_check.py applies them to verify the counts, and
rollup_check.py applies them to verify the rolled-up counts. Some counts depend on more than one row: the devices and browsers of
clicks (clicks/device_counts.py), and the times from sending to click. The two modules compute these counts themselves.
"""
# Tested by tests/reporting/test_recount_rules.py, test_counts.py and test_rollups.py

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Table,
    and_,
    false,
    func,
    join,
    literal,
    literal_column,
    or_,
    select,
    type_coerce,
)

from shortener.clicks.hit_metrics import CLICKED_LINKS, CLICKED_MESSAGES, HIT_METRIC, IS_CLICK, IS_FIRST_CLICK
from shortener.conversions.first_conversions import CONVERTED_MESSAGES, is_missed, read_progress
from shortener.conversions.parsing import END_ACTION
from shortener.model import record
from shortener.outbox.count_deltas import COST, TIME_SLOT_MS
from shortener.storage.schema import (
    conversions,
    events,
    first_clicks,
    first_conversions,
    hits,
    is_pending_click,
    links,
    messages,
    sends,
)
from shortener.storage.types import from_ms

MAX_RECOUNT_ROWS = 100_000  # One statement counts at most this number of rows, so that it does not exceed its time limit.

#: The SQL condition for conversions whose value is added to the count `value:{currency}`. Negative and pending conversions are
#: left out (`status_words.is_revenue`).
IS_REVENUE = or_(
    conversions.c.counted_as.is_(None),
    and_(conversions.c.counted_as.not_like("negative:%"), conversions.c.counted_as.not_like("pending:%")),
)

#: The SQL condition for messages whose cost is part of the figure `cost`. It leaves out refunded costs.
HAS_COST = and_(sends.c.cost.is_not(None), sends.c.refunded == false())


class LinkColumns:
    """Columns of the table `links`, under the names of the columns of `messages` that have the same meaning. A `CountRule.owner`
    is either this class or the columns of `messages`."""

    id = links.c.message_id
    cohort_id = links.c.cohort_id
    link_set_id = links.c.link_set_id


@record
class CountRule:
    """A rule for rows that count under one metric.

    `table` contains these rows. A recount reads it in ranges of ids. `source` joins `table` to the message or the link. `owner`
    contains three columns of this message or link: the id of the message, the cohort and the link set. A row counts at the time
    `at` if all `conditions` are true.

    If `is_sum` is true, `amount` is an aggregate. Otherwise `amount` is the amount of one row, and the caller adds the amounts.
    A rule for money must have `is_sum` false, because SQLite would add amounts of money as floating point numbers.

    In a rule for clicks, `link_set` is the link set for which the clicks count. `link_source` joins `source` to the tables that
    `link_set` needs. Only the check of the rolled-up counts uses these two fields. If `link_set` is None, the rows count for the
    link set of `owner`."""

    table: Table
    source: FromClause
    owner: Any
    at: ColumnElement[Any]
    metric: ColumnElement[Any]
    amount: ColumnElement[Any]
    conditions: tuple[ColumnElement[bool], ...] = ()
    is_sum: bool = True
    link_set: ColumnElement[int] | None = None
    link_source: FromClause | None = None


def _of_messages() -> Iterator[CountRule]:
    m = messages.c
    for metric, at, amount in (
        ("messages", m.created_at, func.count()),
        ("segments", m.created_at, func.sum(m.segments)),
        ("sent", m.sent_at, func.count()),
        ("delivered", m.delivered_at, func.count()),
        ("read", m.read_at, func.count()),
        ("failed", m.failed_at, func.count()),
    ):
        yield CountRule(messages, messages, m, at, literal(metric), amount)


#: The rules for the counts of messages.
OF_MESSAGES = tuple(_of_messages())

_LINK_SET_OF_HIT = func.coalesce(links.c.link_set_id, 0)
_CLICKED = join(first_clicks, messages, messages.c.id == first_clicks.c.id)

#: The rule for first clicks on messages. Each first click also has a time from sending to click, with the metric `ttc`.
OF_FIRST_CLICKS = CountRule(
    first_clicks,
    _CLICKED,
    messages.c,
    first_clicks.c.at,
    literal(CLICKED_MESSAGES),
    func.count(),
    link_set=_LINK_SET_OF_HIT,
    link_source=_CLICKED.outerjoin(hits, hits.c.id == first_clicks.c.hit_id).outerjoin(links, links.c.id == hits.c.link_id),
)

_PENDING = join(events, messages, messages.c.id == events.c.message_id)

#: The rule for first clicks whose time from sending to click the fan-out has not counted yet.
OF_PENDING_CLICKS = CountRule(
    events,
    _PENDING,
    messages.c,
    events.c.at,
    literal("ttc"),
    func.count(),
    (is_pending_click(),),
    link_set=_LINK_SET_OF_HIT,
    link_source=_PENDING.outerjoin(links, links.c.id == events.c.link_id),
)

#: Messages with a conversion.
OF_FIRST_CONVERSIONS = CountRule(
    first_conversions,
    join(first_conversions, messages, messages.c.id == first_conversions.c.id),
    messages.c,
    first_conversions.c.at,
    literal(CONVERTED_MESSAGES),
    func.count(),
)

#: The join of hits and their links.
HITS_AND_LINKS = join(hits, links, links.c.id == hits.c.link_id)


def recount_rules(connection: Connection) -> list[tuple[Table, list[CountRule]]]:
    """Return all rules, grouped by the table that contains the rows. A recount reads each table once, in ranges of ids."""
    count = func.count()
    of_hits = [
        CountRule(hits, HITS_AND_LINKS, LinkColumns, hits.c.at, HIT_METRIC, count, (HIT_METRIC.is_not(None),)),
        CountRule(
            hits,
            HITS_AND_LINKS,
            LinkColumns,
            hits.c.at,
            literal(CLICKED_LINKS),
            count,
            (IS_FIRST_CLICK, IS_CLICK, links.c.link_set_id.is_not(None)),
        ),
    ]
    # A release without link sets did not count the links that it created, so they are left out here too.
    created = CountRule(
        links,
        join(links, messages, messages.c.id == links.c.message_id),
        LinkColumns,
        messages.c.created_at,
        literal("links"),
        count,
        (links.c.link_set_id.is_not(None),),
    )
    sent = join(sends, messages, messages.c.id == sends.c.id)
    costs = CountRule(sends, sent, messages.c, messages.c.created_at, literal(COST), sends.c.cost, (HAS_COST,), is_sum=False)
    return [
        (messages, list(OF_MESSAGES)),
        (sends, [costs]),
        (first_clicks, [OF_FIRST_CLICKS]),
        (hits, of_hits),
        (links, [created]),
        (first_conversions, [OF_FIRST_CONVERSIONS]),
        (conversions, list(_of_conversions(is_missed(read_progress(connection))))),
    ]


def _of_conversions(missed: ColumnElement[bool]) -> Iterator[CountRule]:
    """Yield the rules for conversions. `missed` selects conversions of messages that have no row in `first_conversions` yet."""
    c = conversions.c
    joined = join(conversions, messages, messages.c.id == c.message_id)

    def rule(metric: ColumnElement[Any], *conditions: ColumnElement[bool], amount: ColumnElement[Any] | None = None) -> CountRule:
        of = func.count() if amount is None else amount
        return CountRule(conversions, joined, messages.c, c.at, metric, of, conditions, is_sum=amount is None)

    yield rule(literal(CONVERTED_MESSAGES), missed)
    yield rule(literal("conversions"))
    yield rule(literal("ends"), c.action == END_ACTION, c.transaction_id == "")
    yield rule(literal("conversions:") + c.counted_as, c.counted_as.is_not(None))
    of_value = literal("value:") + func.coalesce(c.currency, "")
    yield rule(of_value, c.value.is_not(None), IS_REVENUE, amount=c.value)
    yield rule(of_value + ":" + c.counted_as, c.value.is_not(None), c.counted_as.is_not(None), amount=c.value)


def time_slot_of(at: ColumnElement[Any]) -> ColumnElement[int]:
    """Return the SQL expression for the time slot of a time."""
    return type_coerce(at, BigInteger) // literal_column(str(TIME_SLOT_MS), BigInteger)


def is_in_slots(at: ColumnElement[Any], within: range) -> ColumnElement[bool]:
    """Return the SQL condition that a time lies within these time slots."""
    begins, ends = (from_ms(edge * TIME_SLOT_MS) for edge in (within.start, within.stop))
    return and_(at >= begins, at < ends)


def id_ranges(connection: Connection, table: Table) -> Iterator[ColumnElement[bool]]:
    """Split the ids of a table into ranges that contain at most MAX_RECOUNT_ROWS rows each. Yield the SQL condition of each
    range."""
    after = -1
    while True:
        end = connection.scalar(
            select(table.c.id).where(table.c.id > after).order_by(table.c.id).offset(MAX_RECOUNT_ROWS - 1).limit(1)
        )
        if end is None:
            yield table.c.id > after
            return
        yield and_(table.c.id > after, table.c.id <= end)
        after = end
