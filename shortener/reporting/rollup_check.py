"""This module verifies and repairs the rolled-up counts by counting all rows again.

`verify` in `reporting/counts.py` verifies the counts themselves in the same way. The roll-ups are compared in each period that lies
completely within the verified time. Some metrics are compared only as a sum: all buckets of the time from sending to click, because
a report after the click may have changed the time of sending; and all devices and all browsers, because the user agent of a click
may be erased. A migration introduced the counts by the time of sending, so older messages have none. `repair_rollups` corrects
missing and wrong counts. It therefore creates the counts by the time of sending for older messages whose rows still exist.
"""

# Tested by tests/reporting/test_rollups.py

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
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
from shortener.clicks.hit_metrics import CLICKED_LINKS, HIT_METRIC, IS_CLICK, IS_FIRST_CLICK
from shortener.conversions.parsing import END_ACTION
from shortener.ids import first_id_at
from shortener.outbox.count_deltas import COST, TIME_SLOT_MS, sent_slot_of, time_to_click
from shortener.reporting import rollups
from shortener.reporting.counts import HAS_COST, IS_REVENUE, MAX_FOLD_ROWS, OF_MESSAGES, id_ranges, lock, time_slots
from shortener.reporting.delta_rows import read_events
from shortener.reporting.rollup_data import EXACT
from shortener.reporting.rollups import (
    Basis,
    CountedEvent,
    Expansion,
    GroupName,
    Level,
    RollupKey,
    RollupSums,
    expand,
    flatten,
    read_not_rolled_up,
    read_rollups,
)
from shortener.storage.database import upsert
from shortener.storage.schema import (
    conversions,
    count_groups,
    events,
    first_clicks,
    hits,
    installation,
    is_pending_click,
    links,
    messages,
    sends,
)
from shortener.storage.types import from_ms

#: The name of the value in the table `installation` that contains the first time slot whose messages have counts by time of
#: sending. If there is no value, all messages have them.
COUNTED_SINCE = "sent counts since"
_ZERO = Decimal()
_MERGED = ("ttc", "device", "browser")
_MAX_GROUPS = 500  # The maximum number of groups whose rolled-up counts one statement reads.


@dataclass(frozen=True, slots=True)
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
    check = _read(connection, time_slots(since, until), counted_since(connection), progress)
    return [
        RollupDifference(
            check.names[group], Basis(number // 3), level, from_ms(period * level.slots * TIME_SLOT_MS), metric, kept, counted
        )
        for (group, number, period, metric), kept, counted in check.differences()
        for level in (Level(number % 3),)
    ]


def repair_rollups(connection: Connection, since: datetime, until: datetime) -> int:
    """Correct the rolled-up counts of a period, also for messages from before the migration that introduced these counts.

    Return the number of changed roll-ups, or 0 if another process runs `counts.fold`. The time to click is computed from the stored
    time of sending, which a late report may have changed."""
    if not lock(connection):
        return 0
    while rollups.heal(connection):
        pass
    within = time_slots(since, until)
    check = _read(connection, within, min(counted_since(connection), within.start))
    wrong = {key for key, _, _ in check.differences()}
    changes: RollupSums = {}
    for key in check.kept.keys() | check.counted.keys():
        if _merge(key) in wrong and (change := EXACT.subtract(check.counted.get(key, _ZERO), check.kept.get(key, _ZERO))):
            changes[key] = change
    rollups.add_sums(connection, changes, check.names)
    statement = upsert(connection, installation).values(name=COUNTED_SINCE, value=str(within.start))
    if counted_since(connection) > within.start:
        connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": str(within.start)}))
    return len(changes)


def counted_since(connection: Connection) -> int:
    """Return the first time slot whose messages have counts by the time of sending."""
    value = connection.scalar(select(installation.c.value).where(installation.c.name == COUNTED_SINCE))
    return 0 if value is None else int(value)


class _Check(NamedTuple):
    """The stored rolled-up counts, the results of counting all rows again, and the names of their groups."""

    kept: RollupSums
    counted: RollupSums
    names: dict[int, GroupName]

    def differences(self) -> Iterator[tuple[RollupKey, Decimal, Decimal]]:
        """Yield the key, the stored amount and the counted amount of each difference, oldest first. The metrics that cannot be
        verified one by one are merged."""
        kept, counted = _merge_metrics(self.kept), _merge_metrics(self.counted)
        different = [key for key in kept.keys() | counted.keys() if kept.get(key, _ZERO) != counted.get(key, _ZERO)]
        for key in sorted(different, key=self._order):
            yield key, kept.get(key, _ZERO), counted.get(key, _ZERO)

    def _order(self, key: RollupKey) -> tuple[int, int, GroupName, str]:
        group, number, period, metric = key
        return period * Level(number % 3).slots, number, self.names[group], metric


def _merge_metrics(sums: RollupSums) -> RollupSums:
    merged: RollupSums = {}
    for key, amount in sums.items():
        one = _merge(key)
        merged[one] = EXACT.add(merged.get(one, _ZERO), amount)
    return merged


def _merge(key: RollupKey) -> RollupKey:
    """Return the key under which a rolled-up count is compared, with its metric replaced by the merged metric."""
    group, number, period, metric = key
    name = metric.partition(":")[0]
    return group, number, period, name if name in _MERGED else metric


def _read(connection: Connection, within: range, sent_since: int, progress: Callable[[int], None] = lambda steps: None) -> _Check:
    counted: dict[CountedEvent, Decimal] = {}
    for steps, amounts in enumerate(_count_rows(connection, within), 1):
        progress(steps)
        for key, amount in amounts:
            counted[key] = EXACT.add(counted.get(key, _ZERO), amount)
    missing, _ = read_not_rolled_up(connection, within, 1 << 60)
    pending: dict[CountedEvent, Decimal] = dict(missing)
    after = -1
    while True:
        ids, unfolded = read_events(connection, MAX_FOLD_ROWS, after)
        if not ids:
            break
        after = max(ids)
        for key, amount in unfolded.items():
            pending[key] = EXACT.add(pending.get(key, _ZERO), amount)
    for key, amount in _count_pending_clicks(connection, within):
        pending[key] = EXACT.add(pending.get(key, _ZERO), amount)

    names: dict[int, GroupName] = {}

    def chosen(sums: Mapping[RollupKey, Decimal]) -> Iterator[tuple[RollupKey, Decimal]]:
        for (group, number, period, metric), amount in sums.items():
            slots = Level(number % 3).slots
            first = within.start if number < 3 else max(within.start, sent_since)
            if period * slots >= first and (period + 1) * slots <= within.stop:
                yield (group, number, period, metric), amount

    def merge(sums: RollupSums, more: Mapping[RollupKey, Decimal]) -> None:
        for key, amount in chosen(more):
            sums[key] = EXACT.add(sums.get(key, _ZERO), amount)

    kept: RollupSums = {}
    expected: RollupSums = {}
    for target, events_of_target in ((expected, counted), (kept, pending)):
        expansion = Expansion(connection, events_of_target)
        merge(target, flatten(expand(events_of_target, expansion)))
        names |= expansion.names
    columns = count_groups.c
    for row in connection.execute(select(count_groups)):
        names[row.id] = GroupName(row.application_id, row.kind, row.source, row.campaign, row.country, row.name)
    groups = list(connection.scalars(select(columns.id)))
    for start in range(0, len(groups), _MAX_GROUPS):
        merge(kept, read_rollups(connection, groups[start : start + _MAX_GROUPS]))
    return _Check(kept, expected, names)


_Amounts = Iterator[tuple[CountedEvent, Decimal]]


def _count_rows(connection: Connection, within: range) -> Iterator[_Amounts]:
    """Count all rows again. Yield the amounts that belong to the time slots `within`, by the time of the event or of its
    message."""

    def rows(statement: Select[Any]) -> _Amounts:
        for cohort, slot, metric, sent, link_set, amount in connection.execute(statement):
            yield CountedEvent(cohort, slot, metric, sent, link_set), Decimal(amount)

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
        each = _grouped(messages.c, first_clicks.c.at, literal("clicked_messages"), within, func.count(), of_hit)
        yield rows(each.select_from(clicked).where(id_range))
        each = _grouped(messages.c, first_clicks.c.at, literal("ttc"), within, None, of_hit)
        yield _times_to_click(connection, each.select_from(clicked).where(id_range), first_clicks.c.at)
    of_links = join(hits, links, links.c.id == hits.c.link_id)
    last = last_counted_hit(connection)
    for id_range in id_ranges(connection, hits):
        of_hits = _grouped(_LinkColumns, hits.c.at, HIT_METRIC, within, func.count(), of_hit)
        yield rows(of_hits.select_from(of_links).where(id_range, HIT_METRIC.is_not(None)))
        firsts = _grouped(_LinkColumns, hits.c.at, literal(CLICKED_LINKS), within, func.count(), of_hit)
        yield rows(firsts.select_from(of_links).where(id_range, IS_FIRST_CLICK, IS_CLICK, links.c.link_set_id.is_not(None)))
        of_agents = clicks_by_agent().where(id_range, hits.c.id <= last, _is_within(hits.c.at, links.c.message_id, within))
        yield _devices(connection, of_agents)
    joined = join(conversions, messages, messages.c.id == conversions.c.message_id)
    for id_range in id_ranges(connection, conversions):
        at = conversions.c.at
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


class _LinkColumns:
    """The columns of a link that a query uses instead of the columns of its message."""

    id = links.c.message_id
    cohort_id = links.c.cohort_id
    link_set_id = links.c.link_set_id


def _devices(connection: Connection, statement: Select[Any]) -> _Amounts:
    for cohort, slot, user_agent, country, sent, link_set, amount in connection.execute(statement):
        for metric in device_metrics(user_agent, country):
            yield CountedEvent(cohort, slot, metric, sent, link_set), Decimal(amount)


def _times_to_click(connection: Connection, statement: Select[Any], clicked_at: ColumnElement[Any]) -> _Amounts:
    times = [type_coerce(column, BigInteger) for column in (clicked_at, messages.c.sent_at, messages.c.created_at)]
    for cohort, slot, _, sent, link_set, *row in connection.execute(statement.add_columns(*times, messages.c.state)):
        yield CountedEvent(cohort, slot, time_to_click(*row), sent, link_set), Decimal(1)


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
