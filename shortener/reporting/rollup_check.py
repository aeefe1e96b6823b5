"""This module verifies the rolled-up counts by counting all rows again. rollup_repair.py repairs them.

count_check.py verifies the counts themselves with the same rules (recount_rules.py). A rolled-up count is compared only if its
period lies completely within the verified time.

Three kinds of metrics are compared only as sums, which also takes less time and memory: the buckets of the time from sending to
click, because a report after the click may have changed the time of sending; and the devices and the browsers, because the user
agent of a click may have been erased.

A migration introduced the counts with Basis.SENT. Messages from before the migration have no such counts, so these counts are
compared only for later messages.
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
    literal,
    or_,
    select,
    text,
    type_coerce,
)

from shortener.clicks.device_counts import clicks_by_agent, device_metrics, last_counted_hit
from shortener.clicks.hit_metrics import CLICKED_MESSAGES, IS_CLICK
from shortener.ids import first_id_at
from shortener.model import record
from shortener.outbox.count_deltas import TIME_SLOT_MS, sent_slot_of, time_to_click
from shortener.reporting import rollup_data
from shortener.reporting.counts import MAX_FOLD_ROWS, time_slots
from shortener.reporting.delta_rows import read_events
from shortener.reporting.recount_rules import (
    HITS_AND_LINKS,
    OF_FIRST_CLICKS,
    OF_PENDING_CLICKS,
    CountRule,
    LinkColumns,
    id_ranges,
    is_in_slots,
    recount_rules,
    time_slot_of,
)
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
    count_groups,
    hits,
    links,
    messages,
)
from shortener.storage.types import from_ms

#: The key of an entry in the table `installation`. The entry is the first time slot whose messages have counts with Basis.SENT.
#: Without the entry, all messages have such counts.
COUNTED_SINCE = "sent counts since"
_MERGED = ("ttc", "device", "browser")
_COLUMNS = ("cohort", "quarter", "metric", "sent", "link_set")
_MAX_GROUPS = 50  # One statement reads the rolled-up counts of at most this number of groups.
_SERIES = tuple(series(basis, level) for basis in Basis for level in Level)


@record
class RollupDifference:
    """A rolled-up count that differs from the rows of the database. `kept` is the stored amount, and `counted` is the result of
    counting the rows again. `at` is the start of the period."""

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
    """Count all rows again. Return each difference from the stored rolled-up counts, oldest first. Call this function in one read
    transaction.

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
    """Return the first time slot whose messages have counts with Basis.SENT, or 0 if all messages have them."""
    return int(get(connection, COUNTED_SINCE) or 0)


class Recount(NamedTuple):
    """The stored rolled-up counts (`kept`), the results of counting all rows again (`counted`), and the names of the groups in
    both."""

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
    """Return the amounts with the metrics that `merge_metric` merges."""
    merged: dict[str, int | Decimal] = {}
    for metric, amount in amounts.items():
        add_amount(merged, merge_metric(metric), amount)
    return merged


@lru_cache(maxsize=4096)
def merge_metric(metric: str) -> str:
    """Return the name under which the amounts of a metric are compared. Metrics that can be compared only as a sum have the same
    name; for any other metric, return the metric itself."""
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
    """Read the stored rolled-up counts, and count all rows again. If `is_merged` is true, merge the metrics that can be compared
    only as a sum."""
    counted = SlotSums()
    for steps, amounts in enumerate(_count_rows(connection, within, is_merged=is_merged), 1):
        counted.add(amounts)
        progress(steps)
    pending = SlotSums()
    missing, _ = read_not_rolled_up(connection, within, 1 << 60)
    for amounts in (missing.items(), _read_deltas(connection), _count_pending_clicks(connection, within)):
        pending.add(_merge_events(amounts) if is_merged else amounts)

    compared = []  # The compared periods of each series. A series has one basis and one length of period.
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
        names |= expansion.names  # `expand` has filled `expansion.names` with the groups that it found.
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
    """Count all rows again. Yield each amount whose event or whose message lies in the time slots `within`. If `is_merged` is
    true, the metrics that can be compared only as a sum are yielded as this sum."""

    def rows(statement: Select[Any]) -> _Amounts:
        for cohort, slot, metric, sent, link_set, amount in connection.execute(statement):
            yield (cohort, slot, metric, sent, link_set), amount

    last = last_counted_hit(connection)
    for table, rules in recount_rules(connection):
        for id_range in id_ranges(connection, table):
            for rule in rules:
                each = _grouped(rule, within).where(id_range)
                if rule is not OF_FIRST_CLICKS:
                    yield rows(each)
                elif is_merged:
                    yield _with_metrics(connection, each, CLICKED_MESSAGES, "ttc")
                else:
                    yield rows(each)
                    yield _times_to_click(connection, _one_by_one(rule, within).where(id_range), rule.at)
            if table is not hits:
                continue
            if is_merged:
                of_country = literal("click_country:") + hits.c.country  # If the country is unknown, the result is NULL.
                clicks = CountRule(hits, HITS_AND_LINKS, LinkColumns, hits.c.at, of_country, func.count(), (IS_CLICK,))
                each = _grouped(clicks, within).where(id_range, hits.c.id <= last)
                yield _with_metrics(connection, each, None, "device", "browser")
            else:
                of_agents = clicks_by_agent().where(id_range, hits.c.id <= last, _is_within(hits.c.at, links.c.message_id, within))
                yield _devices(connection, of_agents)


def _with_metrics(connection: Connection, statement: Select[Any], *metrics: str | None) -> _Amounts:
    """Run a statement, and yield the amount of each row once for each of `metrics`. None in `metrics` stands for the metric in
    the row; if the row contains no metric, None is ignored."""
    for cohort, slot, own, sent, link_set, amount in connection.execute(statement):
        for metric in metrics:
            if (name := metric or own) is not None:
                yield (cohort, slot, name, sent, link_set), amount


def _devices(connection: Connection, statement: Select[Any]) -> _Amounts:
    for cohort, slot, user_agent, country, sent, link_set, amount in connection.execute(statement):
        for metric in device_metrics(user_agent, country):
            yield (cohort, slot, metric, sent, link_set), amount


def _times_to_click(connection: Connection, statement: Select[Any], clicked_at: ColumnElement[Any]) -> _Amounts:
    times = [type_coerce(column, BigInteger) for column in (clicked_at, messages.c.sent_at, messages.c.created_at)]
    for cohort, slot, _, sent, link_set, *row in connection.execute(statement.add_columns(*times, messages.c.state)):
        yield (cohort, slot, time_to_click(*row), sent, link_set), 1


def _count_pending_clicks(connection: Connection, within: range) -> _Amounts:
    """Yield the times to click that the fan-out has not counted yet."""
    rule = OF_PENDING_CLICKS
    each = _one_by_one(rule, within)
    for id_range in id_ranges(connection, rule.table):
        yield from _times_to_click(connection, each.where(id_range), rule.at)


def _grouped(rule: CountRule, within: range) -> Select[Any]:
    """Return a statement that counts rows according to a rule. Its columns are (cohort, time slot, metric, time slot of the
    message, link set, amount). The caller adds the condition that limits the statement to a range of ids."""
    chosen = _one_by_one(rule, within).add_columns(rule.amount)
    return chosen.group_by(*map(text, _COLUMNS)) if rule.is_sum else chosen


def _one_by_one(rule: CountRule, within: range) -> Select[Any]:
    """Return a statement that selects each row that a rule counts. It has the columns of `_grouped` without the amount."""
    owner = rule.owner
    link_set = func.coalesce(owner.link_set_id, 0) if rule.link_set is None else rule.link_set
    values = owner.cohort_id, time_slot_of(rule.at), rule.metric, sent_slot_of(owner.id), link_set
    columns = (value.label(name) for name, value in zip(_COLUMNS, values, strict=True))
    source = rule.source if rule.link_source is None else rule.link_source
    is_within = rule.at.is_not(None), _is_within(rule.at, owner.id, within)
    return select(*columns).select_from(source).where(*is_within, *rule.conditions)


def _is_within(at: ColumnElement[Any], message: ColumnElement[int], within: range) -> ColumnElement[bool]:
    first, last = (first_id_at(edge * TIME_SLOT_MS) for edge in (within.start, within.stop))
    return or_(is_in_slots(at, within), and_(message >= first, message < last))
