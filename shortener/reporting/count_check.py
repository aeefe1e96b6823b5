"""This module verifies the stored counts from which statistics are computed. It counts all rows again.

`verify` counts messages, hits and conversions. It adds the count deltas that `counts.fold` has not added yet to the stored
counts, and compares the sums with the results. `verify` returns each difference. The rules of counting are in recount_rules.py.
rollup_check.py verifies the rolled-up counts in the same way.
"""

# Tested by tests/reporting/test_counts.py

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Text,
    cast,
    func,
    literal,
    select,
    text,
    type_coerce,
)

from shortener.clicks.device_counts import clicks_by_agent, device_metrics, last_counted_hit
from shortener.model import record
from shortener.outbox.count_deltas import TIME_SLOT_MS
from shortener.reporting.counts import MAX_FOLD_ROWS, Key, read_unfolded, time_slots
from shortener.reporting.recount_rules import (
    OF_FIRST_CLICKS,
    OF_PENDING_CLICKS,
    CountRule,
    id_ranges,
    is_in_slots,
    recount_rules,
    time_slot_of,
)
from shortener.reporting.rollup_data import EXACT
from shortener.storage.schema import (
    cohorts,
    counts,
    events,
    hits,
)
from shortener.storage.types import from_ms
from shortener.storage.values_table import values_table

MAX_RECOUNT_COHORTS = 100  # One statement reads the counts of at most this number of cohorts.


@record
class CountDifference:
    """A count that differs from the rows of the database. `kept` is the stored amount, and `counted` is the result of counting
    the rows again. `at` is the start of the time slot."""

    application_id: int
    campaign: str
    source: str
    country: str
    at: datetime
    metric: str
    kept: Decimal
    counted: Decimal


def verifiable_since(now: datetime, *, kept: timedelta, link_ttl: timedelta) -> datetime:
    """Return the earliest time from which counts can be verified: all rows that were counted at this time or later still exist.

    `kept` is the retention time of messages and hits. A message can be clicked during the lifetime of its links, `link_ttl`."""
    return now - max(kept - link_ttl, timedelta())


def verify(
    connection: Connection, since: datetime, until: datetime, progress: Callable[[int], None] = lambda steps: None
) -> list[CountDifference]:
    """Count messages, hits and conversions again in the time slots from `since` to `until`. Return each difference, oldest first.

    The caller must run this function in one read transaction, so that all statements see the same data. Every message, hit and
    conversion is read once. The required memory grows with the number of time slots, cohorts and metrics.

    Two things can be verified only in total. The first is the number of times to click, because a report after the click may have
    changed `sent_at`, and so the time to click. The second is the number of devices and browsers in a time slot that contains an
    erased click.

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


#: Sums of amounts by cohort, time slot and metric. Amounts of money are decimals, and all others are integers.
_ExactSums = dict[Key, int | Decimal]


def _add_exactly(sums: _ExactSums, rows: Iterable[Any]) -> None:
    """Add the amounts of some rows to the sums. A row is (cohort, time slot, metric, amount). An amount is an integer or a
    decimal."""
    with localcontext(EXACT):
        for cohort, slot, metric, amount in rows:
            key = (cohort, slot, metric)
            sums[key] = sums.get(key, 0) + amount


def read_counts(connection: Connection, within: range) -> _ExactSums:
    """Return the stored counts, including the count deltas that `fold` has not added yet. All buckets of the time from sending to
    click become one metric, `ttc`."""
    stored: _ExactSums = {}
    last = connection.scalar(select(func.max(counts.c.cohort_id))) or 0
    is_bucket = counts.c.metric.startswith("ttc:")
    amount = type_coerce(counts.c.amount, Text)
    for start in range(0, last + 1, MAX_RECOUNT_COHORTS):
        some = counts.c.cohort_id.between(start, start + MAX_RECOUNT_COHORTS - 1)
        chosen = select(counts.c.cohort_id, counts.c.quarter).where(
            some, counts.c.quarter >= within.start, counts.c.quarter < within.stop
        )
        # Let the database add the buckets: a time slot may have a hundred of them, and the database adds integers faster than
        # Python.
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


def _without_bucket(metric: str) -> str:
    return "ttc" if metric.startswith("ttc:") else metric


def _recounts(connection: Connection, within: range) -> Iterator[Select[Any]]:
    """Yield statements that count all rows again. Their columns are (cohort, time slot, metric, amount)."""
    for table, rules in recount_rules(connection):
        for id_range in id_ranges(connection, table):
            for rule in rules:
                yield by_time_slot(rule, within).where(id_range)
                if rule is OF_FIRST_CLICKS:
                    yield by_time_slot(rule, within, literal("ttc")).where(id_range)


def _count_pending_clicks(connection: Connection, within: range) -> Iterator[Select[Any]]:
    """Yield statements that count first clicks whose time from sending to click the fan-out has not counted yet."""
    each = by_time_slot(OF_PENDING_CLICKS, within)
    return (each.where(id_range) for id_range in id_ranges(connection, events))


def by_time_slot(rule: CountRule, within: range, metric: ColumnElement[str] | None = None) -> Select[Any]:
    """Return a statement that counts rows in these time slots according to a rule. Its columns are (cohort, time slot, metric,
    amount). `metric` replaces the metric of the rule. The caller adds the condition that limits the statement to a range of
    ids."""
    of = rule.metric if metric is None else metric
    cohort, slot = rule.owner.cohort_id, time_slot_of(rule.at).label("quarter")
    chosen = select(cohort, slot, of.label("metric"), rule.amount).select_from(rule.source)
    chosen = chosen.where(is_in_slots(rule.at, within), *rule.conditions)
    return chosen.group_by(cohort, text("quarter"), text("metric")) if rule.is_sum else chosen


def _recount_devices(connection: Connection, within: range, counted: _ExactSums) -> set[tuple[int, int]]:
    """Count the clicks by device, browser and country, up to the last hit that the device counter has processed. Add them to
    `counted`.

    Return the cohort and the time slot of each click whose user agent was erased."""
    last = last_counted_hit(connection)
    erased: set[tuple[int, int]] = set()
    of_clicks = clicks_by_agent().where(hits.c.id <= last, is_in_slots(hits.c.at, within))

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
    """Return the sums with fewer metrics in the cohorts and time slots of `erased`, which contain a click with an erased user
    agent. There, all devices become one metric, and all browsers become one metric."""

    def merged_rows() -> Iterator[tuple[int, int, str, int | Decimal]]:
        for (cohort, slot, metric), amount in sums.items():
            kind, colon, _ = metric.partition(":")
            is_kept_apart = (cohort, slot) not in erased or not colon or kind not in ("device", "browser")
            yield cohort, slot, metric if is_kept_apart else kind, amount

    merged: _ExactSums = {}
    _add_exactly(merged, merged_rows())
    return merged


def _read_cohorts(connection: Connection, ids: set[int]) -> dict[int, tuple[int, str, str, str]]:
    """Return (application, campaign, source, country) of each cohort, by cohort id. A cohort without a row has (0, "", "",
    "")."""
    chosen = values_table(connection, [(cohort,) for cohort in ids], id=Integer)
    rows = connection.execute(select(cohorts).where(cohorts.c.id.in_(select(chosen.c.id))))
    known = {row.id: (row.application_id, row.campaign, row.source, row.country) for row in rows}
    return {cohort: known.get(cohort, (0, "", "", "")) for cohort in ids}
