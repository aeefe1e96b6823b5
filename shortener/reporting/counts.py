"""This module maintains the counts from which statistics are computed. `fold` adds count deltas to the counts. `verify` counts all
rows again and compares the results with the counts.

Each transaction that changes a count writes one row of count deltas (table `tallies`, `outbox/count_deltas.py`). `fold` adds the
oldest amounts to the table `counts`, and deletes them in the same transaction. So a crash neither loses an amount nor adds it
twice. Amounts are exact decimals, added in Python, because SQLite would add them as floating point numbers.

`verify` counts messages, hits and conversions again. It compares the results with the sum of the counts and of the deltas that
`fold` has not added yet, and returns each difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Table,
    and_,
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
from shortener.conversions.parsing import END_ACTION
from shortener.outbox.count_deltas import COST, TIME_SLOT_MS
from shortener.reporting import delta_rows, rollups
from shortener.reporting.delta_rows import read_events
from shortener.reporting.rollup_data import EXACT
from shortener.reporting.rollups import CountedEvent
from shortener.storage import raw_sql
from shortener.storage.locks import AdvisoryLock
from shortener.storage.schema import (
    cohorts,
    conversions,
    counts,
    events,
    first_clicks,
    hits,
    is_pending_click,
    links,
    messages,
    sends,
)
from shortener.storage.types import from_ms, to_ms
from shortener.storage.values_table import values_table

#: One run of `fold` adds at most this number of rows of count deltas.
MAX_FOLD_ROWS = 100
#: One run of `fold` adds amounts of at most this number of origins (`outbox/count_deltas.py`; different cohorts or time slots have
#: different origins). Each origin changes about 20 rolled-up counts. `fold` occupies SQLite's only writer, for which clicks wait.
MAX_FOLD_ORIGINS = 20

_ZERO = Decimal()

#: The key of a count: the cohort id, the time slot (the number of quarters of an hour since 1970) and the metric.
Key = tuple[int, int, str]
Sums = dict[Key, Decimal]


def fold(connection: Connection, limit: int = MAX_FOLD_ROWS) -> int:
    """Add the oldest count deltas to the counts and the roll-ups, as `fold_batch` does. Return the number of rows from which
    amounts were added: 0 if no row is left, or if another process runs `fold`."""
    return fold_batch(connection, limit).rows


class Folded(NamedTuple):
    """The number of rows of count deltas from which `fold_batch` added amounts, and whether more may be left."""

    rows: int
    is_full: bool


def fold_batch(connection: Connection, limit: int = MAX_FOLD_ROWS, max_origins: int = MAX_FOLD_ORIGINS) -> Folded:
    """Add the `limit` oldest rows of count deltas to the counts and the roll-ups, and delete these rows. If they have more than
    `max_origins` origins, add only the amounts of the first ones, and leave the others in their rows.

    If another process runs `fold_batch`, return 0 rows at once instead of waiting for rows of `counts` that it has locked. On
    PostgreSQL, an advisory lock shows this; with SQLite, only one process writes.
    """
    if not lock(connection):
        return Folded(0, is_full=False)
    batch = delta_rows.read_batch(connection, limit, max_origins)
    if not batch.amounts and not batch.ids:
        return Folded(0, is_full=False)
    sums = sum_by_key(batch.amounts)
    stored = raw_sql.rows(connection, _READ_COUNTS, *raw_sql.bulk_parameters(connection, list(sums)))
    rolled_up = dict(sums)
    for cohort, slot, metric, amount, part in stored:
        key = (cohort, slot, metric)
        sums[key] = EXACT.add(sums[key], Decimal(amount))
        rolled_up[key] = EXACT.add(rolled_up[key], Decimal(part or 0))
    rows = [(*key, format(amount, "f"), format(rolled_up[key], "f")) for key, amount in sums.items()]
    raw_sql.execute_bulk(connection, _UPSERT_COUNTS, rows)
    rollups.add(connection, batch.amounts)
    delta_rows.remove(connection, batch)
    return Folded(len(batch.ids) + (batch.rest is not None), batch.is_full)


def heal(connection: Connection) -> int:
    """Add to the roll-ups the counts that a release without roll-ups wrote. Return the number of these counts, or 0 if another
    process runs `fold`."""
    return rollups.heal(connection) if lock(connection) else 0


def lock(connection: Connection) -> bool:
    """Lock the counts until the transaction ends. Return False if another process holds the lock."""
    if connection.dialect.name == "sqlite":
        return True
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(int(AdvisoryLock.FOLD_COUNTS)))))


# These statements are written as text. SQLAlchemy would take longer to build a statement than the database takes to run it, and
# SQLite's only writer would be occupied for both times. All statements except the first have the parameters of
# `raw_sql.bulk_parameters`.

_READ_COUNTS = {
    "sqlite": "SELECT json_group_array(json_array(c.cohort_id, c.quarter, c.metric, c.amount, c.rolled_up)) FROM json_each(?) AS j "
    "CROSS JOIN counts AS c ON c.cohort_id = j.value ->> 0 AND c.quarter = j.value ->> 1 AND c.metric = j.value ->> 2",
    "postgresql": "SELECT c.cohort_id, c.quarter, c.metric, c.amount, c.rolled_up FROM counts AS c "
    "JOIN unnest($1::int[], $2::int[], $3::text[]) AS k(cohort_id, quarter, metric) USING (cohort_id, quarter, metric)",
}
_UPSERT_COUNTS = {
    # Without WHERE true, SQLite parses ON CONFLICT as a join condition.
    "sqlite": "INSERT INTO counts (cohort_id, quarter, metric, amount, rolled_up) "
    "SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?) WHERE true "
    "ON CONFLICT DO UPDATE SET amount = excluded.amount, rolled_up = excluded.rolled_up",
    "postgresql": "INSERT INTO counts (cohort_id, quarter, metric, amount, rolled_up) "
    "SELECT * FROM unnest($1::int[], $2::int[], $3::text[], $4::text[], $5::text[]) "
    "ON CONFLICT (cohort_id, quarter, metric) DO UPDATE SET amount = excluded.amount, rolled_up = excluded.rolled_up",
}


def read_unfolded(connection: Connection, limit: int, after: int = -1) -> tuple[list[int], Sums]:
    """Return the ids of count deltas like `read_events`, and the sums of their amounts by cohort, time slot and metric."""
    ids, amounts = read_events(connection, limit, after)
    return ids, sum_by_key(amounts)


def sum_by_key(amounts: Mapping[CountedEvent, Decimal]) -> Sums:
    """Return the sums of amounts by cohort, time slot and metric."""
    sums: Sums = {}
    add(sums, ((cohort, slot, metric, amount) for (cohort, slot, metric, _, _), amount in amounts.items()))
    return sums


def add(sums: Sums, rows: Iterable[Any]) -> None:
    """Add the amounts in rows of (cohort, time slot, metric, amount) to the sums, by cohort, time slot and metric."""
    for cohort, slot, metric, amount in rows:
        key = (cohort, slot, metric)
        sums[key] = EXACT.add(sums.get(key, _ZERO), Decimal(amount))


# The following functions verify the counts.

MAX_RECOUNT_ROWS = 100_000  # One statement counts at most this number of rows, so that it does not exceed its time limit.
MAX_RECOUNT_COHORTS = 100  # The maximum number of cohorts whose counts one statement reads.


@dataclass(frozen=True, slots=True)
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
    """Return the earliest time from which on no counted row was deleted.

    `kept` is the retention time of messages and hits. A message can be clicked during the lifetime of its links, `link_ttl`."""
    return now - max(kept - link_ttl, timedelta())


def verify(
    connection: Connection, since: datetime, until: datetime, progress: Callable[[int], None] = lambda steps: None
) -> list[CountDifference]:
    """Count messages, hits and conversions again in the time slots from `since` to `until`. Return each difference, oldest first.

    The caller must run this function in one read transaction, so that all statements see the same data. Every message, hit and
    conversion is read once. The required memory grows with the number of time slots, cohorts and metrics. Two things cannot be
    verified in detail. For times to click, only their number is verified, because a report after the click may have changed
    `sent_at`. For devices and browsers of a time slot that contains an erased click, only the total is verified.

    `progress` is called with the number of finished steps. A step reads one range of rows.
    """
    within = time_slots(since, until)
    counted: Sums = {}
    for steps, statement in enumerate(_recounts(connection, within), 1):
        add(counted, connection.execute(statement).all())
        progress(steps)
    erased = _recount_devices(connection, within, counted)
    stored = _read_counts(connection, within)
    for statement in _count_pending_clicks(connection, within):
        add(stored, connection.execute(statement).all())
    if erased:
        stored, counted = (_merge_devices(sums, erased) for sums in (stored, counted))
    different = [key for key in stored.keys() | counted.keys() if stored.get(key, _ZERO) != counted.get(key, _ZERO)]
    names = _read_cohorts(connection, {cohort for cohort, _, _ in different})
    return [
        CountDifference(
            *names[cohort],
            at=from_ms(slot * TIME_SLOT_MS),
            metric=metric,
            kept=stored.get((cohort, slot, metric), _ZERO),
            counted=counted.get((cohort, slot, metric), _ZERO),
        )
        for cohort, slot, metric in sorted(different, key=lambda key: (key[1], key[0], key[2]))
    ]


def time_slots(since: datetime, until: datetime) -> range:
    """Return the time slots from the slot that contains `since` to the last slot that starts before `until`."""
    return range(to_ms(since) // TIME_SLOT_MS, -(-to_ms(until) // TIME_SLOT_MS))


def slot_edges(since: datetime | None, until: datetime | None) -> tuple[datetime | None, datetime | None]:
    """Return the start of the time slot that contains `since`, and the end of the last time slot that starts before `until`."""
    begin = None if since is None else from_ms(time_slots(since, since).start * TIME_SLOT_MS)
    end = None if until is None else from_ms(time_slots(until, until).stop * TIME_SLOT_MS)
    return begin, end


def _read_counts(connection: Connection, within: range) -> Sums:
    """Return the counts plus the count deltas that `fold` has not added yet. All buckets of the time from sending to click are
    summed up as one metric, `ttc`."""
    stored: Sums = {}
    last = connection.scalar(select(func.max(counts.c.cohort_id))) or 0
    for start in range(0, last + 1, MAX_RECOUNT_COHORTS):
        some = counts.c.cohort_id.between(start, start + MAX_RECOUNT_COHORTS - 1)
        columns = counts.c.cohort_id, counts.c.quarter, counts.c.metric, counts.c.amount
        rows = connection.execute(select(*columns).where(some, counts.c.quarter >= within.start, counts.c.quarter < within.stop))
        add(stored, ((cohort, slot, _without_bucket(metric), amount) for cohort, slot, metric, amount in rows))
    after = -1
    while True:
        ids, sums = read_unfolded(connection, MAX_FOLD_ROWS, after)
        if not ids:
            return stored
        after = max(ids)
        pending = ((cohort, slot, metric, amount) for (cohort, slot, metric), amount in sums.items() if slot in within)
        add(stored, ((cohort, slot, _without_bucket(metric), amount) for cohort, slot, metric, amount in pending))


def _count_pending_clicks(connection: Connection, within: range) -> Iterator[Select[Any]]:
    """Yield statements that count the first clicks whose time from sending to click the fan-out has not counted yet."""
    joined = join(events, messages, messages.c.id == events.c.message_id)
    for id_range in id_ranges(connection, events):
        each = _by_time_slot(messages.c.cohort_id, events.c.at, literal("ttc"), within, func.count())
        yield each.select_from(joined).where(id_range, is_pending_click())


def _without_bucket(metric: str) -> str:
    return "ttc" if metric.startswith("ttc:") else metric


#: The SQL condition for conversions whose value counts in `value:{currency}`: they are neither negative nor pending.
IS_REVENUE = or_(
    conversions.c.counted_as.is_(None),
    and_(conversions.c.counted_as.not_like("negative:%"), conversions.c.counted_as.not_like("pending:%")),
)

#: The SQL condition for messages whose cost is part of the figure `cost`: the cost was not refunded.
HAS_COST = and_(sends.c.cost.is_not(None), sends.c.refunded == false())

#: The metrics of a message, each with the column of the time at which it is counted, and with its amount.
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
            yield _by_time_slot(messages.c.cohort_id, at, literal(metric), within, amount).where(id_range)
    sent = join(sends, messages, messages.c.id == sends.c.id)
    for id_range in id_ranges(connection, sends):
        # Amounts of money are read one by one, because SQLite would add them as floating point numbers.
        costs = _by_time_slot(messages.c.cohort_id, messages.c.created_at, literal(COST), within).add_columns(sends.c.cost)
        yield costs.select_from(sent).where(id_range, HAS_COST)
    clicked = join(first_clicks, messages, messages.c.id == first_clicks.c.id)
    for id_range in id_ranges(connection, first_clicks):
        for metric in ("clicked_messages", "ttc"):
            each = _by_time_slot(messages.c.cohort_id, first_clicks.c.at, literal(metric), within, func.count())
            yield each.select_from(clicked).where(id_range)
    for id_range in id_ranges(connection, hits):
        of_hits = _by_time_slot(links.c.cohort_id, hits.c.at, HIT_METRIC, within, func.count())
        yield of_hits.join_from(hits, links, links.c.id == hits.c.link_id).where(id_range, HIT_METRIC.is_not(None))
        firsts = _by_time_slot(links.c.cohort_id, hits.c.at, literal(CLICKED_LINKS), within, func.count())
        firsts = firsts.join_from(hits, links, links.c.id == hits.c.link_id)
        yield firsts.where(id_range, IS_FIRST_CLICK, IS_CLICK, links.c.link_set_id.is_not(None))
    for id_range in id_ranges(connection, links):
        # An older version created links without a link set. Such links are not counted.
        created = _by_time_slot(links.c.cohort_id, messages.c.created_at, literal("links"), within, func.count())
        created = created.join_from(links, messages, messages.c.id == links.c.message_id)
        yield created.where(id_range, links.c.link_set_id.is_not(None))
    joined = join(conversions, messages, messages.c.id == conversions.c.message_id)
    for id_range in id_ranges(connection, conversions):
        cohort, at = messages.c.cohort_id, conversions.c.at
        yield _by_time_slot(cohort, at, literal("conversions"), within, func.count()).select_from(joined).where(id_range)
        ends = _by_time_slot(cohort, at, literal("ends"), within, func.count()).select_from(joined)
        yield ends.where(id_range, conversions.c.action == END_ACTION, conversions.c.transaction_id == "")
        counted_as = conversions.c.counted_as
        kinds = _by_time_slot(cohort, at, literal("conversions:") + counted_as, within, func.count()).select_from(joined)
        yield kinds.where(id_range, counted_as.is_not(None))
        # Amounts of money are read one by one, because SQLite would add them as floating point numbers.
        of_value = literal("value:") + func.coalesce(conversions.c.currency, "")
        each = _by_time_slot(cohort, at, of_value, within).add_columns(conversions.c.value)
        yield each.select_from(joined).where(id_range, conversions.c.value.is_not(None), IS_REVENUE)
        each = _by_time_slot(cohort, at, of_value + ":" + counted_as, within).add_columns(conversions.c.value)
        yield each.select_from(joined).where(id_range, conversions.c.value.is_not(None), counted_as.is_not(None))


def _recount_devices(connection: Connection, within: range, counted: Sums) -> set[tuple[int, int]]:
    """Add the clicks by device, browser and country to `counted`, up to the last hit that the device counter has processed.

    Return (cohort, time slot) of the clicks whose user agent was erased."""
    last = last_counted_hit(connection)
    begins, ends = (from_ms(edge * TIME_SLOT_MS) for edge in (within.start, within.stop))
    erased: set[tuple[int, int]] = set()
    of_clicks = clicks_by_agent().where(hits.c.id <= last, hits.c.at >= begins, hits.c.at < ends)
    for id_range in id_ranges(connection, hits):
        for cohort, slot, user_agent, country, _, _, amount in connection.execute(of_clicks.where(id_range)):
            add(counted, ((cohort, slot, metric, amount) for metric in device_metrics(user_agent, country)))
            if not user_agent:
                erased.add((cohort, slot))
    return erased


def _merge_devices(sums: Sums, erased: set[tuple[int, int]]) -> Sums:
    """Return the sums. In time slots with a click whose user agent was erased, merge the metrics of all devices into one, and those
    of all browsers into one."""
    merged: Sums = {}
    for (cohort, slot, metric), amount in sums.items():
        kind, colon, _ = metric.partition(":")
        is_kept_apart = (cohort, slot) not in erased or not colon or kind not in ("device", "browser")
        add(merged, [(cohort, slot, metric if is_kept_apart else kind, amount)])
    return merged


def _by_time_slot(
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
