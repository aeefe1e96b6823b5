"""The counts: folding what happened into them, and recounting them from the raw rows.

Every transaction that changes what is counted adds one row to `tallies` (`outbox/count_deltas.py`). `fold` adds the oldest rows
to `counts` and deletes them in the same transaction: a crash neither loses nor doubles a count. Amounts are exact decimals,
added in Python, because SQLite would add them as floating point.

`verify` does not trust any of it: it counts messages, hits and conversions again by the rules of those who wrote them, and tells
every difference from what the counts and the tallies not yet folded say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Context, Decimal
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Table,
    and_,
    func,
    join,
    literal,
    literal_column,
    select,
    text,
    type_coerce,
)

from shortener.clicks.device_counts import clicks_by_agent, device_metrics, last_counted_hit
from shortener.clicks.hit_metrics import HIT_METRIC
from shortener.conversions.parsing import END_ACTION
from shortener.outbox.count_deltas import TIME_SLOT_MS
from shortener.storage import raw_sql
from shortener.storage.locks import AdvisoryLock
from shortener.storage.schema import cohorts, conversions, counts, events, first_clicks, hits, is_pending_click, links, messages
from shortener.storage.types import from_ms, to_ms
from shortener.storage.values_table import values_table

#: Tally rows of one fold: under load a row holds some hundred amounts, and a fold holds the one writer of SQLite.
MAX_FOLD_ROWS = 100

#: Far more digits than any sum has, so that none is ever rounded.
EXACT = Context(prec=100)
_ZERO = Decimal()

#: What a count is kept under: cohort, quarter of an hour since 1970, metric.
Key = tuple[int, int, str]
Sums = dict[Key, Decimal]


def fold(connection: Connection, limit: int = MAX_FOLD_ROWS) -> int:
    """Add the `limit` oldest tallies into the counts and delete them; returns how many.

    0 also when another process is folding: two at once would wait for each other's rows of `counts` and then be no faster than
    one, so a second one does not wait but leaves the work to the first (pg_try_advisory_xact_lock; on SQLite one process writes).
    """
    if connection.dialect.name == "postgresql" and not connection.scalar(
        select(func.pg_try_advisory_xact_lock(int(AdvisoryLock.FOLD_COUNTS)))
    ):
        return 0
    ids, sums = read_unfolded(connection, limit)
    if not ids:
        return 0
    add(sums, raw_sql.rows(connection, _STANDING, *raw_sql.bulk_parameters(connection, list(sums))))
    raw_sql.execute_bulk(connection, _SET, [(*key, format(amount, "f")) for key, amount in sums.items()])
    raw_sql.execute_bulk(connection, _FORGET, [(row_id,) for row_id in ids])
    return len(ids)


# By hand: SQLAlchemy takes longer to make these statements than they take to run, and the one writer of SQLite would wait for
# both. Each takes `direct.bulk_parameters`, but for the first.

_OLDEST = {
    "sqlite": "SELECT json_group_array(json_array(id, data)) FROM (SELECT id, data FROM tallies WHERE id > ? ORDER BY id LIMIT ?)",
    "postgresql": "SELECT id, data FROM tallies WHERE id > $1 ORDER BY id LIMIT $2",
}
_STANDING = {
    "sqlite": "SELECT json_group_array(json_array(c.cohort_id, c.quarter, c.metric, c.amount)) FROM json_each(?) AS j "
    "CROSS JOIN counts AS c ON c.cohort_id = j.value ->> 0 AND c.quarter = j.value ->> 1 AND c.metric = j.value ->> 2",
    "postgresql": "SELECT c.cohort_id, c.quarter, c.metric, c.amount FROM counts AS c "
    "JOIN unnest($1::int[], $2::int[], $3::text[]) AS k(cohort_id, quarter, metric) USING (cohort_id, quarter, metric)",
}
_SET = {
    # WHERE true: without it SQLite reads ON CONFLICT as a join condition.
    "sqlite": "INSERT INTO counts (cohort_id, quarter, metric, amount) "
    "SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?) WHERE true "
    "ON CONFLICT DO UPDATE SET amount = excluded.amount",
    "postgresql": "INSERT INTO counts (cohort_id, quarter, metric, amount) "
    "SELECT * FROM unnest($1::int[], $2::int[], $3::text[], $4::text[]) "
    "ON CONFLICT (cohort_id, quarter, metric) DO UPDATE SET amount = excluded.amount",
}
_FORGET = {
    "sqlite": "DELETE FROM tallies WHERE id IN (SELECT value ->> 0 FROM json_each(?))",
    "postgresql": "DELETE FROM tallies WHERE id = ANY($1::bigint[])",
}


def read_unfolded(connection: Connection, limit: int, after: int = -1) -> tuple[list[int], Sums]:
    """The `limit` oldest tallies with an id above `after`: their ids, and what they add up to."""
    rows = raw_sql.rows(connection, _OLDEST, after, limit)
    whole: dict[Key, int] = {}
    others: list[Sequence[Any]] = []
    for _, data in rows:
        for entry in orjson.loads(data):
            cohort, quarter, metric, amount = entry
            if amount.isdecimal():  # as nearly all are, in the thousands
                key = (cohort, quarter, metric)
                whole[key] = whole.get(key, 0) + int(amount)
            else:
                others.append(entry)
    sums = {key: Decimal(amount) for key, amount in whole.items()}
    add(sums, others)
    return [row_id for row_id, _ in rows], sums


def add(sums: Sums, rows: Iterable[Any]) -> None:
    """Add rows of (cohort, quarter, metric, amount)."""
    for cohort, quarter, metric, amount in rows:
        key = (cohort, quarter, metric)
        sums[key] = EXACT.add(sums.get(key, _ZERO), Decimal(amount))


# Counting again.

MAX_RECOUNT_ROWS = 100_000  # raw rows of one statement, so that none runs into a time limit
MAX_RECOUNT_COHORTS = 100  # cohorts whose counts one statement reads


@dataclass(frozen=True, slots=True)
class CountDifference:
    """A count that is not what the raw rows say. `at`: when its quarter of an hour begins."""

    application_id: int
    campaign: str
    source: str
    country: str
    at: datetime
    metric: str
    kept: Decimal
    counted: Decimal


def verifiable_since(now: datetime, *, kept: timedelta, link_ttl: timedelta) -> datetime:
    """From when on everything that counts still has its raw rows: `kept` is how long messages and hits are, and a message may
    be clicked as long as its links live."""
    return now - max(kept - link_ttl, timedelta())


def verify(connection: Connection, since: datetime, until: datetime) -> list[CountDifference]:
    """Count messages, hits and conversions again for the quarters from `since` to `until`; returns each difference, oldest first.

    Run it as one read, so that all of it sees the same moment. It reads every message, hit and conversion once; what it keeps in
    memory grows with the quarters, cohorts and metrics between the two times. What it cannot check: which bucket a time to click
    fell into (a report that came after the click may have changed `sent_at`), only that every clicked message is in one; and which
    device and browser the clicks of a quarter were made with if one of them is erased, only how many there were.
    """
    within = time_slots(since, until)
    counted: Sums = {}
    for statement in _recounts(connection, within):
        add(counted, connection.execute(statement).all())
    erased = _recount_devices(connection, within, counted)
    kept = _kept(connection, within)
    for statement in _untold(connection, within):
        add(kept, connection.execute(statement).all())
    if erased:
        kept, counted = (_blur(sums, erased) for sums in (kept, counted))
    wrong = [key for key in kept.keys() | counted.keys() if kept.get(key, _ZERO) != counted.get(key, _ZERO)]
    names = _names(connection, {cohort for cohort, _, _ in wrong})
    return [
        CountDifference(
            *names[cohort],
            at=from_ms(quarter * TIME_SLOT_MS),
            metric=metric,
            kept=kept.get((cohort, quarter, metric), _ZERO),
            counted=counted.get((cohort, quarter, metric), _ZERO),
        )
        for cohort, quarter, metric in sorted(wrong, key=lambda key: (key[1], key[0], key[2]))
    ]


def time_slots(since: datetime, until: datetime) -> range:
    """The quarters of an hour from the one that `since` lies in, up to `until`; a quarter that has begun before `until` counts."""
    return range(to_ms(since) // TIME_SLOT_MS, -(-to_ms(until) // TIME_SLOT_MS))


def _kept(connection: Connection, within: range) -> Sums:
    """The counts and what is not yet folded into them; all buckets of the time to click as one metric, `ttc`."""
    kept: Sums = {}
    last = connection.scalar(select(func.max(counts.c.cohort_id))) or 0
    for start in range(0, last + 1, MAX_RECOUNT_COHORTS):
        some = counts.c.cohort_id.between(start, start + MAX_RECOUNT_COHORTS - 1)
        rows = connection.execute(select(counts).where(some, counts.c.quarter >= within.start, counts.c.quarter < within.stop))
        add(kept, ((cohort, quarter, _without_bucket(metric), amount) for cohort, quarter, metric, amount in rows))
    after = -1
    while True:
        ids, sums = read_unfolded(connection, MAX_FOLD_ROWS, after)
        if not ids:
            return kept
        after = max(ids)
        pending = ((cohort, quarter, metric, amount) for (cohort, quarter, metric), amount in sums.items() if quarter in within)
        add(kept, ((cohort, quarter, _without_bucket(metric), amount) for cohort, quarter, metric, amount in pending))


def _untold(connection: Connection, within: range) -> Iterator[Select[Any]]:
    """What the fan-out will count."""
    joined = join(events, messages, messages.c.id == events.c.message_id)
    for piece in _pieces(connection, events):
        each = _per_quarter(messages.c.cohort_id, events.c.at, literal("ttc"), within, func.count())
        yield each.select_from(joined).where(piece, is_pending_click())


def _without_bucket(metric: str) -> str:
    return "ttc" if metric.startswith("ttc:") else metric


#: The metrics of a message, the time that each is counted at, and how much.
_OF_MESSAGES: tuple[tuple[str, Column[Any], ColumnElement[int]], ...] = (
    ("messages", messages.c.created_at, func.count()),
    ("segments", messages.c.created_at, func.sum(messages.c.segments)),
    ("sent", messages.c.sent_at, func.count()),
    ("delivered", messages.c.delivered_at, func.count()),
    ("read", messages.c.read_at, func.count()),
    ("failed", messages.c.failed_at, func.count()),
)


def _recounts(connection: Connection, within: range) -> Iterator[Select[Any]]:
    """Statements that give (cohort, quarter, metric, amount), by the rules of rewrite, delivery reports, recorder and intake."""
    for piece in _pieces(connection, messages):
        for metric, at, amount in _OF_MESSAGES:
            yield _per_quarter(messages.c.cohort_id, at, literal(metric), within, amount).where(piece)
    clicked = join(first_clicks, messages, messages.c.id == first_clicks.c.id)
    for piece in _pieces(connection, first_clicks):
        for metric in ("clicked_messages", "ttc"):
            each = _per_quarter(messages.c.cohort_id, first_clicks.c.at, literal(metric), within, func.count())
            yield each.select_from(clicked).where(piece)
    for piece in _pieces(connection, hits):
        of_hits = _per_quarter(links.c.cohort_id, hits.c.at, HIT_METRIC, within, func.count())
        yield of_hits.join_from(hits, links, links.c.id == hits.c.link_id).where(piece, HIT_METRIC.is_not(None))
    joined = join(conversions, messages, messages.c.id == conversions.c.message_id)
    for piece in _pieces(connection, conversions):
        cohort, at = messages.c.cohort_id, conversions.c.at
        yield _per_quarter(cohort, at, literal("conversions"), within, func.count()).select_from(joined).where(piece)
        ends = _per_quarter(cohort, at, literal("ends"), within, func.count()).select_from(joined)
        yield ends.where(piece, conversions.c.action == END_ACTION, conversions.c.transaction_id == "")
        # Amounts are read one by one: SQLite would add them in floating point.
        of_value = literal("value:") + func.coalesce(conversions.c.currency, "")
        each = _per_quarter(cohort, at, of_value, within).add_columns(conversions.c.value)
        yield each.select_from(joined).where(piece, conversions.c.value.is_not(None))


def _recount_devices(connection: Connection, within: range, counted: Sums) -> set[tuple[int, int]]:
    """Add clicks by device and browser, as far as click.devices has come; returns the cohorts and quarters with erased ones."""
    last = last_counted_hit(connection)
    begins, ends = (from_ms(edge * TIME_SLOT_MS) for edge in (within.start, within.stop))
    erased: set[tuple[int, int]] = set()
    of_clicks = clicks_by_agent().where(hits.c.id <= last, hits.c.at >= begins, hits.c.at < ends)
    for piece in _pieces(connection, hits):
        for cohort, quarter, user_agent, amount in connection.execute(of_clicks.where(piece)):
            add(counted, ((cohort, quarter, metric, amount) for metric in device_metrics(user_agent)))
            if not user_agent:
                erased.add((cohort, quarter))
    return erased


def _blur(sums: Sums, erased: set[tuple[int, int]]) -> Sums:
    """All devices as one metric, and all browsers, where an agent was erased that the counts knew."""
    blurred: Sums = {}
    for (cohort, quarter, metric), amount in sums.items():
        kind, colon, _ = metric.partition(":")
        apart = (cohort, quarter) not in erased or not colon or kind not in ("device", "browser")
        add(blurred, [(cohort, quarter, metric if apart else kind, amount)])
    return blurred


def _per_quarter(
    cohort: Column[int], at: Column[Any], metric: ColumnElement[str], within: range, *amount: ColumnElement[Any]
) -> Select[Any]:
    """(cohort, quarter, metric) of the rows whose time lies within these quarters, added up when an `amount` says how."""
    quarter = type_coerce(at, BigInteger) // literal_column(str(TIME_SLOT_MS), BigInteger)
    begins, ends = (from_ms(edge * TIME_SLOT_MS) for edge in (within.start, within.stop))
    chosen = select(cohort, quarter.label("quarter"), metric.label("metric"), *amount).where(at >= begins, at < ends)
    return chosen.group_by(cohort, text("quarter"), text("metric")) if amount else chosen


def _pieces(connection: Connection, table: Table) -> Iterator[ColumnElement[bool]]:
    """Conditions that cut the table into ranges of its primary key."""
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


def _names(connection: Connection, wanted: set[int]) -> dict[int, tuple[int, str, str, str]]:
    """application, campaign, source and country of these cohorts; zero and nothing for one that has no row."""
    chosen = values_table(connection, [(cohort,) for cohort in wanted], id=Integer)
    rows = connection.execute(select(cohorts).where(cohorts.c.id.in_(select(chosen.c.id))))
    known = {row.id: (row.application_id, row.campaign, row.source, row.country) for row in rows}
    return {cohort: known.get(cohort, (0, "", "", "")) for cohort in wanted}
