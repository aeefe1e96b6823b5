"""This module verifies the rolled-up counts by counting all rows again. `rollup_repair.py` repairs them.

`count_check.py` verifies the counts themselves in the same way. The rolled-up counts are compared in each period that lies
completely within the verified time. Some metrics are compared only as a sum, which also takes less time and memory. These are the
buckets of the time from sending to click, because a report after the click may have changed the time of sending; and the devices
and the browsers, because the user agent of a click may have been erased. Messages from before the migration that introduced the
counts by the time of sending have no such counts, so they are left out of this comparison.
"""

# Tested by tests/reporting/test_rollups.py

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    and_,
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
from shortener.clicks.hit_metrics import CLICKED_LINKS, CLICKED_MESSAGES, HIT_METRIC, IS_CLICK, IS_FIRST_CLICK
from shortener.conversions.first_conversions import CONVERTED_MESSAGES, is_missed, read_progress
from shortener.conversions.parsing import END_ACTION
from shortener.ids import first_id_at
from shortener.model import record
from shortener.outbox.count_deltas import COST, TIME_SLOT_MS, sent_slot_of, time_to_click
from shortener.reporting import rollup_data
from shortener.reporting.count_check import HAS_COST, IS_REVENUE, OF_MESSAGES, id_ranges
from shortener.reporting.counts import MAX_FOLD_ROWS, time_slots
from shortener.reporting.delta_rows import read_events
from shortener.reporting.rollups import (
    Basis,
    EventAmount,
    Expansion,
    GroupName,
    Level,
    PeriodAmounts,
    PeriodKey,
    SlotSums,
    add_amount,
    expand,
    read_not_rolled_up,
    read_periods,
    series,
)
from shortener.storage.installation import get
from shortener.storage.schema import (
    conversions,
    count_groups,
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

#: The name of the value in the table `installation` that contains the first time slot whose messages have counts by time of
#: sending. If there is no value, all messages have such counts.
COUNTED_SINCE = "sent counts since"
_MERGED = ("ttc", "device", "browser")
_MAX_GROUPS = 50  # The maximum number of groups whose rolled-up counts one statement reads.
_SERIES = tuple(series(basis, level) for basis in Basis for level in Level)


@record
class RollupDifference:
    """A rolled-up count whose stored amount `kept` differs from `counted`, the result of counting the rows again. `at` is the start
    of its period."""

    group: GroupName
    basis: Basis
    level: Level
    at: datetime
    metric: str
    kept: Decimal
    counted: Decimal


def verify_rollups(
    connection: Connection, since: datetime, until: datetime, progress: Callable[[int], None] = lambda steps: None
) -> list[RollupDifference]:
    """Count all rows again, and return each difference from the rolled-up counts, oldest first. Call this in one read transaction.

    `progress` is called with the number of finished steps. A step reads one range of rows."""
    check = recount(connection, time_slots(since, until), counted_since(connection), progress, is_merged=True)
    kept, counted = check.kept, check.counted

    def order(found: tuple[PeriodKey, str]) -> tuple[int, int, GroupName, str]:
        (group, number, period), metric = found
        return period * Level(number % 3).slots, number, check.names[group], metric

    return [
        RollupDifference(
            check.names[group],
            Basis(number // 3),
            level,
            from_ms(period * level.slots * TIME_SLOT_MS),
            metric,
            Decimal(kept.get(key, {}).get(metric, 0)),
            Decimal(counted.get(key, {}).get(metric, 0)),
        )
        for key, metric in sorted(_differences(kept, counted), key=order)
        for group, number, period in (key,)
        for level in (Level(number % 3),)
    ]


def counted_since(connection: Connection) -> int:
    """Return the first time slot whose messages have counts by the time of sending."""
    return int(get(connection, COUNTED_SINCE) or 0)


class Recount(NamedTuple):
    """The stored rolled-up counts, the results of counting all rows again, and the names of their groups."""

    kept: PeriodAmounts
    counted: PeriodAmounts
    names: dict[int, GroupName]


def _differences(kept: PeriodAmounts, counted: PeriodAmounts) -> Iterator[tuple[PeriodKey, str]]:
    """Yield the period and the metric of each amount that differs."""
    for key in kept.keys() | counted.keys():
        one, other = kept.get(key, {}), counted.get(key, {})
        if one != other:
            for metric in different_metrics(one, other):
                yield key, metric


def different_metrics(kept: Mapping[str, int | Decimal], counted: Mapping[str, int | Decimal]) -> Iterator[str]:
    """Return the metrics whose amounts differ. A missing amount is 0."""
    return (metric for metric in kept.keys() | counted.keys() if kept.get(metric, 0) != counted.get(metric, 0))


def merge_metrics(amounts: Mapping[str, int | Decimal]) -> dict[str, int | Decimal]:
    """Merge the metrics that cannot be verified one by one."""
    merged: dict[str, int | Decimal] = {}
    for metric, amount in amounts.items():
        add_amount(merged, merge_metric(metric), amount)
    return merged


@lru_cache(maxsize=4096)
def merge_metric(metric: str) -> str:
    """Return the name of the sum to which a metric belongs in the comparison, or the metric itself if it is compared alone."""
    name = metric.partition(":")[0]
    return name if name in _MERGED else metric


def recount(
    connection: Connection,
    within: range,
    sent_since: int,
    progress: Callable[[int], None] = lambda steps: None,
    *,
    is_merged: bool,
) -> Recount:
    """Read the stored rolled-up counts, and count all rows again. If `is_merged` is true, merge the metrics that cannot be verified
    one by one."""
    counted = SlotSums()
    for steps, amounts in enumerate(_count_rows(connection, within, is_merged=is_merged), 1):
        counted.add(amounts)
        progress(steps)
    pending = SlotSums()
    missing, _ = read_not_rolled_up(connection, within, 1 << 60)
    for amounts in (missing.items(), _read_deltas(connection), _count_pending_clicks(connection, within)):
        pending.add(_merge_events(amounts) if is_merged else amounts)

    compared = []  # The periods that are compared, for each series (a basis and a length of period).
    for number in _SERIES:
        slots = Level(number % 3).slots
        first = within.start if number < 3 else max(within.start, sent_since)
        compared.append(range(-(-first // slots), within.stop // slots))

    kept: PeriodAmounts = {}
    expected: PeriodAmounts = {}
    names: dict[int, GroupName] = {}
    for target, sums in ((expected, counted), (kept, pending)):
        expansion = Expansion(connection, sums.pairs())
        for key, of_period in expand(sums, expansion).items():
            _, number, period = key
            if period in compared[number]:
                target[key] = of_period
        names |= expansion.names  # `expand` has added the names of the groups that it found.
    for row in connection.execute(select(count_groups)):
        names[row.id] = GroupName(row.application_id, row.kind, row.source, row.campaign, row.country, row.name)
    groups = list(names)
    for start in range(0, len(groups), _MAX_GROUPS):
        some = groups[start : start + _MAX_GROUPS]
        for number, periods in zip(_SERIES, compared, strict=True):
            for group, period, data in read_periods(connection, some, number, periods.start, periods.stop):
                of_period = kept.setdefault((group, number, period), {})
                for metric, amount in rollup_data.unpack(rollup_data.loads(data)).items():
                    name = merge_metric(metric) if is_merged else metric
                    add_amount(of_period, name, amount if isinstance(amount, int) else Decimal(amount))
    return Recount(kept, expected, names)


_Amounts = Iterable[EventAmount]


def _merge_events(amounts: _Amounts) -> _Amounts:
    for (cohort, slot, metric, sent, link_set), amount in amounts:
        yield (cohort, slot, merge_metric(metric), sent, link_set), amount


def _read_deltas(connection: Connection) -> _Amounts:
    """Yield the amounts that `counts.fold` has not added yet."""
    after = -1
    while True:
        pending = read_events(connection, MAX_FOLD_ROWS, after)
        if not pending.ids:
            return
        after = max(pending.ids)
        yield from pending.amounts.items()


def _count_rows(connection: Connection, within: range, *, is_merged: bool) -> Iterator[_Amounts]:
    """Count all rows again. Yield the amounts that belong to the time slots `within`, by the time of the event or of its
    message. If `is_merged` is true, count the metrics that cannot be verified one by one as a sum."""

    def rows(statement: Select[Any]) -> _Amounts:
        for cohort, slot, metric, sent, link_set, amount in connection.execute(statement):
            yield (cohort, slot, metric, sent, link_set), amount

    for id_range in id_ranges(connection, messages):
        for metric, at, amount in OF_MESSAGES:
            yield rows(_grouped(messages.c, at, literal(metric), within, amount).where(id_range))
    for id_range in id_ranges(connection, links):
        each = _grouped(messages.c, messages.c.created_at, literal("links"), within, func.count(), links.c.link_set_id)
        joined = join(links, messages, messages.c.id == links.c.message_id)
        yield rows(each.select_from(joined).where(id_range, links.c.link_set_id.is_not(None)))
    sent = join(sends, messages, messages.c.id == sends.c.id)
    for id_range in id_ranges(connection, sends):
        costs = _grouped(messages.c, messages.c.created_at, literal(COST), within).add_columns(sends.c.cost)
        yield rows(costs.select_from(sent).where(id_range, HAS_COST))
    of_hit = func.coalesce(links.c.link_set_id, 0)
    clicked = (
        join(first_clicks, messages, messages.c.id == first_clicks.c.id)
        .outerjoin(hits, hits.c.id == first_clicks.c.hit_id)
        .outerjoin(links, links.c.id == hits.c.link_id)
    )
    for id_range in id_ranges(connection, first_clicks):
        each = _grouped(messages.c, first_clicks.c.at, literal(CLICKED_MESSAGES), within, func.count(), of_hit)
        each = each.select_from(clicked).where(id_range)
        if is_merged:
            yield _with_metrics(connection, each, CLICKED_MESSAGES, "ttc")
        else:
            yield rows(each)
            each = _grouped(messages.c, first_clicks.c.at, literal("ttc"), within, None, of_hit)
            yield _times_to_click(connection, each.select_from(clicked).where(id_range), first_clicks.c.at)
    of_links = join(hits, links, links.c.id == hits.c.link_id)
    last = last_counted_hit(connection)
    for id_range in id_ranges(connection, hits):
        of_hits = _grouped(_LinkColumns, hits.c.at, HIT_METRIC, within, func.count(), of_hit)
        yield rows(of_hits.select_from(of_links).where(id_range, HIT_METRIC.is_not(None)))
        firsts = _grouped(_LinkColumns, hits.c.at, literal(CLICKED_LINKS), within, func.count(), of_hit)
        yield rows(firsts.select_from(of_links).where(id_range, IS_FIRST_CLICK, IS_CLICK, links.c.link_set_id.is_not(None)))
        if is_merged:
            of_country = literal("click_country:") + hits.c.country  # The result is NULL if the country is unknown.
            each = _grouped(_LinkColumns, hits.c.at, of_country, within, func.count(), of_hit).select_from(of_links)
            yield _with_metrics(connection, each.where(id_range, hits.c.id <= last, IS_CLICK), None, "device", "browser")
        else:
            of_agents = clicks_by_agent().where(id_range, hits.c.id <= last, _is_within(hits.c.at, links.c.message_id, within))
            yield _devices(connection, of_agents)
    converted = join(first_conversions, messages, messages.c.id == first_conversions.c.id)
    for id_range in id_ranges(connection, first_conversions):
        each = _grouped(messages.c, first_conversions.c.at, literal(CONVERTED_MESSAGES), within, func.count())
        yield rows(each.select_from(converted).where(id_range))
    joined = join(conversions, messages, messages.c.id == conversions.c.message_id)
    missed = is_missed(read_progress(connection))
    for id_range in id_ranges(connection, conversions):
        at = conversions.c.at
        each = _grouped(messages.c, at, literal(CONVERTED_MESSAGES), within, func.count())
        yield rows(each.select_from(joined).where(id_range, missed))
        yield rows(_grouped(messages.c, at, literal("conversions"), within, func.count()).select_from(joined).where(id_range))
        ends = _grouped(messages.c, at, literal("ends"), within, func.count()).select_from(joined)
        yield rows(ends.where(id_range, conversions.c.action == END_ACTION, conversions.c.transaction_id == ""))
        of_value = literal("value:") + func.coalesce(conversions.c.currency, "")
        each = _grouped(messages.c, at, of_value, within).add_columns(conversions.c.value)
        has_value = conversions.c.value.is_not(None)
        yield rows(each.select_from(joined).where(id_range, has_value, IS_REVENUE))
        counted_as = conversions.c.counted_as
        kinds = _grouped(messages.c, at, literal("conversions:") + counted_as, within, func.count()).select_from(joined)
        yield rows(kinds.where(id_range, counted_as.is_not(None)))
        each = _grouped(messages.c, at, of_value + ":" + counted_as, within).add_columns(conversions.c.value)
        yield rows(each.select_from(joined).where(id_range, has_value, counted_as.is_not(None)))


def _with_metrics(connection: Connection, statement: Select[Any], *metrics: str | None) -> _Amounts:
    """Yield the amount of each row once for each of `metrics`. The metric None stands for the metric in the row. If the row
    contains no metric, its amount is left out for None."""
    for cohort, slot, own, sent, link_set, amount in connection.execute(statement):
        for metric in metrics:
            if (name := metric or own) is not None:
                yield (cohort, slot, name, sent, link_set), amount


class _LinkColumns:
    """The columns of a link that a query uses instead of the columns of its message."""

    id = links.c.message_id
    cohort_id = links.c.cohort_id
    link_set_id = links.c.link_set_id


def _devices(connection: Connection, statement: Select[Any]) -> _Amounts:
    for cohort, slot, user_agent, country, sent, link_set, amount in connection.execute(statement):
        for metric in device_metrics(user_agent, country):
            yield (cohort, slot, metric, sent, link_set), amount


def _times_to_click(connection: Connection, statement: Select[Any], clicked_at: ColumnElement[Any]) -> _Amounts:
    times = [type_coerce(column, BigInteger) for column in (clicked_at, messages.c.sent_at, messages.c.created_at)]
    for cohort, slot, _, sent, link_set, *row in connection.execute(statement.add_columns(*times, messages.c.state)):
        yield (cohort, slot, time_to_click(*row), sent, link_set), 1


def _count_pending_clicks(connection: Connection, within: range) -> _Amounts:
    """Yield the first clicks whose time from sending to click the fan-out has not counted yet."""
    joined = join(events, messages, messages.c.id == events.c.message_id).outerjoin(links, links.c.id == events.c.link_id)
    for id_range in id_ranges(connection, events):
        each = _grouped(messages.c, events.c.at, literal("ttc"), within, None, func.coalesce(links.c.link_set_id, 0))
        yield from _times_to_click(connection, each.select_from(joined).where(id_range, is_pending_click()), events.c.at)


def _grouped(
    owner: Any, at: ColumnElement[Any], metric: ColumnElement[str], within: range, amount: Any = None, link_set: Any = None
) -> Select[Any]:
    """Return a statement that selects (cohort, time slot, metric, time slot of the message, link set, amount)."""
    slot = type_coerce(at, BigInteger) // literal_column(str(TIME_SLOT_MS), BigInteger)
    of = func.coalesce(owner.link_set_id, 0) if link_set is None else link_set
    columns = [
        owner.cohort_id.label("cohort"),
        slot.label("quarter"),
        metric.label("metric"),
        sent_slot_of(owner.id).label("sent"),
        of.label("link_set"),
    ]
    chosen = select(*columns, *(() if amount is None else (amount,))).where(at.is_not(None), _is_within(at, owner.id, within))
    return chosen if amount is None else chosen.group_by(*(text(str(column.name)) for column in columns))


def _is_within(at: ColumnElement[Any], message: ColumnElement[int], within: range) -> ColumnElement[bool]:
    begins, ends = (from_ms(edge * TIME_SLOT_MS) for edge in (within.start, within.stop))
    first, last = (first_id_at(edge * TIME_SLOT_MS) for edge in (within.start, within.stop))
    return or_(and_(at >= begins, at < ends), and_(message >= first, message < last))
