"""This module verifies the counts from which statistics are computed, by counting all rows again.

`verify` counts messages, hits and conversions. It compares the results with the sum of the counts and of the deltas that
`counts.fold` has not added yet, and returns each difference. `rollup_check.py` verifies the rolled-up counts in the same way.
"""

# Tested by tests/reporting/test_counts.py

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Table,
    Text,
    and_,
    cast,
    false,
    func,
    join,
    literal,
    literal_column,
    or_,
    select,
    text,
    type_coerce,
)

from shortener.clicks.device_counts import clicks_by_agent, device_metrics, last_counted_hit
from shortener.clicks.hit_metrics import CLICKED_LINKS, HIT_METRIC, IS_CLICK, IS_FIRST_CLICK
from shortener.conversions.first_conversions import CONVERTED_MESSAGES, is_missed, read_progress
from shortener.conversions.parsing import END_ACTION
from shortener.model import record
from shortener.outbox.count_deltas import COST, TIME_SLOT_MS
from shortener.reporting.counts import MAX_FOLD_ROWS, Key, read_unfolded, time_slots
from shortener.reporting.rollup_data import EXACT
from shortener.storage.schema import (
    cohorts,
    conversions,
    counts,
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
from shortener.storage.values_table import values_table

MAX_RECOUNT_ROWS = 100_000  # One statement counts at most this number of rows, so that it does not exceed its time limit.
MAX_RECOUNT_COHORTS = 100  # The maximum number of cohorts whose counts one statement reads.


@record
class CountDifference:
    """A count whose stored amount `kept` differs from `counted`, the result of counting the rows again. `at` is the start of its
    time slot."""

    application_id: int
    campaign: str
    source: str
    country: str
    at: datetime
    metric: str
    kept: Decimal
    counted: Decimal


def verifiable_since(now: datetime, *, kept: timedelta, link_ttl: timedelta) -> datetime:
    """Return the earliest time since which no counted row was deleted.

    `kept` is the retention time of messages and hits. A message can be clicked during the lifetime of its links, `link_ttl`."""
    return now - max(kept - link_ttl, timedelta())


def verify(
    connection: Connection, since: datetime, until: datetime, progress: Callable[[int], None] = lambda steps: None
) -> list[CountDifference]:
    """Count messages, hits and conversions again in the time slots from `since` to `until`. Return each difference, oldest first.

    The caller must run this function in one read transaction, so that all statements see the same data. Every message, hit and
    conversion is read once. The required memory grows with the number of time slots, cohorts and metrics. Two things cannot be
    verified in detail. The distribution of times to click cannot be verified, only their number, because a report after the click
    may have changed `sent_at`. If a time slot contains an erased click, only the total of its devices and browsers can be verified.

    `progress` is called with the number of finished steps. A step reads one range of rows.
    """
    within = time_slots(since, until)
    counted: _ExactSums = {}
    for steps, statement in enumerate(_recounts(connection, within), 1):
        _add_exactly(counted, connection.execute(statement))
        progress(steps)
    erased = _recount_devices(connection, within, counted)
    stored = read_counts(connection, within)
    for statement in _count_pending_clicks(connection, within):
        _add_exactly(stored, connection.execute(statement))
    if erased:
        stored, counted = (_merge_devices(sums, erased) for sums in (stored, counted))
    different = {key for key, amount in stored.items() if counted.get(key, 0) != amount}
    different |= {key for key, amount in counted.items() if stored.get(key, 0) != amount}
    names = _read_cohorts(connection, {cohort for cohort, _, _ in different})
    return [
        CountDifference(
            *names[cohort],
            at=from_ms(slot * TIME_SLOT_MS),
            metric=metric,
            kept=Decimal(stored.get((cohort, slot, metric), 0)),
            counted=Decimal(counted.get((cohort, slot, metric), 0)),
        )
        for cohort, slot, metric in sorted(different, key=lambda key: (key[1], key[0], key[2]))
    ]


#: Sums of amounts. All amounts are integers, except amounts of money.
_ExactSums = dict[Key, int | Decimal]


def _add_exactly(sums: _ExactSums, rows: Iterable[Any]) -> None:
    """Add the amounts in rows of (cohort, time slot, metric, amount), which are integers or decimals, to the sums."""
    with localcontext(EXACT):
        for cohort, slot, metric, amount in rows:
            key = (cohort, slot, metric)
            sums[key] = sums.get(key, 0) + amount


def read_counts(connection: Connection, within: range) -> _ExactSums:
    """Return the counts plus the count deltas that `fold` has not added yet. All buckets of the time from sending to click are
    summed up as one metric, `ttc`."""
    stored: _ExactSums = {}
    last = connection.scalar(select(func.max(counts.c.cohort_id))) or 0
    is_bucket = counts.c.metric.startswith("ttc:")
    amount = type_coerce(counts.c.amount, Text)
    for start in range(0, last + 1, MAX_RECOUNT_COHORTS):
        some = counts.c.cohort_id.between(start, start + MAX_RECOUNT_COHORTS - 1)
        chosen = select(counts.c.cohort_id, counts.c.quarter).where(
            some, counts.c.quarter >= within.start, counts.c.quarter < within.stop
        )
        # A time slot may have a hundred buckets, and the database adds integers faster than Python.
        buckets = chosen.add_columns(literal("ttc"), func.sum(cast(amount, BigInteger))).where(is_bucket)
        _add_exactly(stored, connection.execute(buckets.group_by(counts.c.cohort_id, counts.c.quarter)))
        others = connection.execute(chosen.add_columns(counts.c.metric, amount).where(~is_bucket))
        _add_exactly(
            stored, ((*key, int(stored_text) if stored_text.isdecimal() else Decimal(stored_text)) for *key, stored_text in others)
        )
    after = -1
    while True:
        ids, sums = read_unfolded(connection, MAX_FOLD_ROWS, after)
        if not ids:
            return stored
        after = max(ids)
        pending = ((cohort, slot, metric, amount) for (cohort, slot, metric), amount in sums.items() if slot in within)
        _add_exactly(stored, ((cohort, slot, _without_bucket(metric), amount) for cohort, slot, metric, amount in pending))


def _count_pending_clicks(connection: Connection, within: range) -> Iterator[Select[Any]]:
    """Yield statements that count the first clicks whose time from sending to click the fan-out has not counted yet."""
    joined = join(events, messages, messages.c.id == events.c.message_id)
    for id_range in id_ranges(connection, events):
        each = by_time_slot(messages.c.cohort_id, events.c.at, literal("ttc"), within, func.count())
        yield each.select_from(joined).where(id_range, is_pending_click())


def _without_bucket(metric: str) -> str:
    return "ttc" if metric.startswith("ttc:") else metric


#: The SQL condition for conversions whose value is added to the count `value:{currency}`: conversions that do not count as negative
#: or pending (`status_words.is_revenue`).
IS_REVENUE = or_(
    conversions.c.counted_as.is_(None),
    and_(conversions.c.counted_as.not_like("negative:%"), conversions.c.counted_as.not_like("pending:%")),
)

#: The SQL condition for messages whose cost is part of the figure `cost`: the cost was not refunded.
HAS_COST = and_(sends.c.cost.is_not(None), sends.c.refunded == false())

#: The counts that messages cause: (metric, column with the time at which the message counts, amount).
OF_MESSAGES: tuple[tuple[str, Column[Any], ColumnElement[int]], ...] = (
    ("messages", messages.c.created_at, func.count()),
    ("segments", messages.c.created_at, func.sum(messages.c.segments)),
    ("sent", messages.c.sent_at, func.count()),
    ("delivered", messages.c.delivered_at, func.count()),
    ("read", messages.c.read_at, func.count()),
    ("failed", messages.c.failed_at, func.count()),
)


def _recounts(connection: Connection, within: range) -> Iterator[Select[Any]]:
    """Yield statements that count all rows again, as (cohort, time slot, metric, amount). The statements follow the same rules as
    count deltas."""
    for id_range in id_ranges(connection, messages):
        for metric, at, amount in OF_MESSAGES:
            yield by_time_slot(messages.c.cohort_id, at, literal(metric), within, amount).where(id_range)
    sent = join(sends, messages, messages.c.id == sends.c.id)
    for id_range in id_ranges(connection, sends):
        # Amounts of money are read one by one, because SQLite would add them as floating point numbers.
        costs = by_time_slot(messages.c.cohort_id, messages.c.created_at, literal(COST), within).add_columns(sends.c.cost)
        yield costs.select_from(sent).where(id_range, HAS_COST)
    clicked = join(first_clicks, messages, messages.c.id == first_clicks.c.id)
    for id_range in id_ranges(connection, first_clicks):
        for metric in ("clicked_messages", "ttc"):
            each = by_time_slot(messages.c.cohort_id, first_clicks.c.at, literal(metric), within, func.count())
            yield each.select_from(clicked).where(id_range)
    for id_range in id_ranges(connection, hits):
        of_hits = by_time_slot(links.c.cohort_id, hits.c.at, HIT_METRIC, within, func.count())
        yield of_hits.join_from(hits, links, links.c.id == hits.c.link_id).where(id_range, HIT_METRIC.is_not(None))
        firsts = by_time_slot(links.c.cohort_id, hits.c.at, literal(CLICKED_LINKS), within, func.count())
        firsts = firsts.join_from(hits, links, links.c.id == hits.c.link_id)
        yield firsts.where(id_range, IS_FIRST_CLICK, IS_CLICK, links.c.link_set_id.is_not(None))
    for id_range in id_ranges(connection, links):
        # Links that a release without link sets created are not counted, so they are left out here too.
        created = by_time_slot(links.c.cohort_id, messages.c.created_at, literal("links"), within, func.count())
        created = created.join_from(links, messages, messages.c.id == links.c.message_id)
        yield created.where(id_range, links.c.link_set_id.is_not(None))
    converted = join(first_conversions, messages, messages.c.id == first_conversions.c.id)
    for id_range in id_ranges(connection, first_conversions):
        each = by_time_slot(messages.c.cohort_id, first_conversions.c.at, literal(CONVERTED_MESSAGES), within, func.count())
        yield each.select_from(converted).where(id_range)
    joined = join(conversions, messages, messages.c.id == conversions.c.message_id)
    missed = is_missed(read_progress(connection))
    for id_range in id_ranges(connection, conversions):
        each = by_time_slot(messages.c.cohort_id, conversions.c.at, literal(CONVERTED_MESSAGES), within, func.count())
        yield each.select_from(joined).where(id_range, missed)
        cohort, at = messages.c.cohort_id, conversions.c.at
        yield by_time_slot(cohort, at, literal("conversions"), within, func.count()).select_from(joined).where(id_range)
        ends = by_time_slot(cohort, at, literal("ends"), within, func.count()).select_from(joined)
        yield ends.where(id_range, conversions.c.action == END_ACTION, conversions.c.transaction_id == "")
        counted_as = conversions.c.counted_as
        kinds = by_time_slot(cohort, at, literal("conversions:") + counted_as, within, func.count()).select_from(joined)
        yield kinds.where(id_range, counted_as.is_not(None))
        # Amounts of money are read one by one, because SQLite would add them as floating point numbers.
        of_value = literal("value:") + func.coalesce(conversions.c.currency, "")
        each = by_time_slot(cohort, at, of_value, within).add_columns(conversions.c.value)
        yield each.select_from(joined).where(id_range, conversions.c.value.is_not(None), IS_REVENUE)
        each = by_time_slot(cohort, at, of_value + ":" + counted_as, within).add_columns(conversions.c.value)
        yield each.select_from(joined).where(id_range, conversions.c.value.is_not(None), counted_as.is_not(None))


def _recount_devices(connection: Connection, within: range, counted: _ExactSums) -> set[tuple[int, int]]:
    """Add the clicks by device, browser and country to `counted`, up to the last hit that the device counter has processed.

    Return (cohort, time slot) of the clicks whose user agent was erased."""
    last = last_counted_hit(connection)
    begins, ends = (from_ms(edge * TIME_SLOT_MS) for edge in (within.start, within.stop))
    erased: set[tuple[int, int]] = set()
    of_clicks = clicks_by_agent().where(hits.c.id <= last, hits.c.at >= begins, hits.c.at < ends)

    def by_device() -> Iterator[tuple[int, int, str, int]]:
        for id_range in id_ranges(connection, hits):
            for cohort, slot, user_agent, country, _, _, amount in connection.execute(of_clicks.where(id_range)):
                for metric in device_metrics(user_agent, country):
                    yield cohort, slot, metric, amount
                if not user_agent:
                    erased.add((cohort, slot))

    _add_exactly(counted, by_device())
    return erased


def _merge_devices(sums: _ExactSums, erased: set[tuple[int, int]]) -> _ExactSums:
    """Return the sums. In time slots with a click whose user agent was erased, merge the metrics of all devices into one, and those
    of all browsers into one."""

    def merged_rows() -> Iterator[tuple[int, int, str, int | Decimal]]:
        for (cohort, slot, metric), amount in sums.items():
            kind, colon, _ = metric.partition(":")
            is_kept_apart = (cohort, slot) not in erased or not colon or kind not in ("device", "browser")
            yield cohort, slot, metric if is_kept_apart else kind, amount

    merged: _ExactSums = {}
    _add_exactly(merged, merged_rows())
    return merged


def by_time_slot(
    cohort: Column[int], at: Column[Any], metric: ColumnElement[str], within: range, *amount: ColumnElement[Any]
) -> Select[Any]:
    """Return a statement that selects (cohort, time slot, metric, amount) of the rows within these time slots, grouped if `amount`
    is an aggregate."""
    slot = type_coerce(at, BigInteger) // literal_column(str(TIME_SLOT_MS), BigInteger)
    begins, ends = (from_ms(edge * TIME_SLOT_MS) for edge in (within.start, within.stop))
    chosen = select(cohort, slot.label("quarter"), metric.label("metric"), *amount).where(at >= begins, at < ends)
    return chosen.group_by(cohort, text("quarter"), text("metric")) if amount else chosen


def id_ranges(connection: Connection, table: Table) -> Iterator[ColumnElement[bool]]:
    """Yield conditions that split the table into ranges of its ids with at most MAX_RECOUNT_ROWS rows each."""
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


def _read_cohorts(connection: Connection, ids: set[int]) -> dict[int, tuple[int, str, str, str]]:
    """Return (application, campaign, source, country) by cohort; (0, "", "", "") for a cohort without a row."""
    chosen = values_table(connection, [(cohort,) for cohort in ids], id=Integer)
    rows = connection.execute(select(cohorts).where(cohorts.c.id.in_(select(chosen.c.id))))
    known = {row.id: (row.application_id, row.campaign, row.source, row.country) for row in rows}
    return {cohort: known.get(cohort, (0, "", "", "")) for cohort in ids}
