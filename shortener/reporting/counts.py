"""This module maintains the counts from which statistics are computed. `fold` adds count deltas to the counts.

Each transaction that changes a count writes one row of count deltas (table `tallies`, outbox/count_deltas.py). In one
transaction, `fold` adds the oldest amounts to the table `counts` and removes them from the count deltas. Therefore a crash
neither loses an amount nor adds it twice. Amounts are exact decimals. They are added in Python, because SQLite would add them as
floating point numbers. count_check.py verifies the counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from shortener.outbox.count_deltas import TIME_SLOT_MS
from shortener.reporting import delta_rows, rollups
from shortener.reporting.delta_rows import UnreadableRow, read_events
from shortener.reporting.rollup_data import EXACT
from shortener.reporting.rollups import CountedEvent
from shortener.storage import raw_sql
from shortener.storage.locks import AdvisoryLock
from shortener.storage.types import from_ms, to_ms

#: One run of `fold` adds at most this number of rows of count deltas.
MAX_FOLD_ROWS = 100
#: One run of `fold` adds amounts of at most this number of origins (outbox/count_deltas.py). The limit is low for two reasons:
#: the amounts of one origin change about 20 rolled-up counts, and clicks wait while `fold` occupies SQLite's only writer.
MAX_FOLD_ORIGINS = 20

_ZERO = Decimal()

#: The key of a count: the cohort id, the time slot (the number of quarters of an hour since 1970) and the metric.
Key = tuple[int, int, str]
Sums = dict[Key, Decimal]


def fold(connection: Connection, limit: int = MAX_FOLD_ROWS) -> int:
    """Add the oldest count deltas to the counts and the rolled-up counts, as `fold_batch` does. Return the number of rows of
    count deltas in the batch. Return 0 if there is no row, or if another process runs `fold`."""
    return fold_batch(connection, limit).rows


class Folded(NamedTuple):
    """The result of `fold_batch`.

    `rows` is the number of rows of count deltas in the batch. Each of them was added, completely or in part, or was quarantined.
    `is_full` is true if more rows may be left. `first_id` is the id of the oldest row of the batch, or 0 if the batch is empty.
    `last_id` is the id of the newest row that was deleted, or 0 if no row was deleted. `quarantined` lists the rows whose content
    is unreadable."""

    rows: int
    is_full: bool
    first_id: int
    last_id: int
    quarantined: Sequence[UnreadableRow] = ()


def fold_batch(connection: Connection, limit: int = MAX_FOLD_ROWS, max_origins: int = MAX_FOLD_ORIGINS) -> Folded:
    """Add the `limit` oldest rows of count deltas to the counts and the rolled-up counts, and delete these rows. Quarantine the
    rows whose content is unreadable.

    If these rows have more than `max_origins` origins, add only the amounts of the first `max_origins` origins. The other amounts
    stay in their rows.

    If another process runs `fold_batch`, return 0 rows at once, and do not wait for the rows of `counts` that it has locked. With
    PostgreSQL, an advisory lock shows that another process runs it. With SQLite, only one process writes.
    """
    if not lock(connection):
        return Folded(0, is_full=False, first_id=0, last_id=0)
    batch = delta_rows.read_batch(connection, limit, max_origins)
    row_ids = [*batch.ids, *(row.id for row in batch.unreadable)]
    if batch.rest is not None:
        row_ids.append(batch.rest[0])
    if not row_ids:
        return Folded(0, is_full=False, first_id=0, last_id=0)
    sums = sum_by_key(batch.amounts)
    if sums:
        _add_to_counts(connection, sums)
        rollups.add(connection, batch.amounts)
    delta_rows.remove(connection, batch)
    return Folded(len(row_ids), batch.is_full, min(row_ids), batch.ids[-1] if batch.ids else 0, batch.unreadable)


def _add_to_counts(connection: Connection, sums: Sums) -> None:
    stored = raw_sql.rows(connection, _READ_COUNTS, *raw_sql.bulk_parameters(connection, list(sums)))
    rolled_up = dict(sums)
    for cohort, slot, metric, amount, part in stored:
        key = (cohort, slot, metric)
        sums[key] = EXACT.add(sums[key], Decimal(amount))
        rolled_up[key] = EXACT.add(rolled_up[key], Decimal(part or 0))
    rows = [(*key, format(amount, "f"), format(rolled_up[key], "f")) for key, amount in sums.items()]
    raw_sql.execute_bulk(connection, _UPSERT_COUNTS, rows)


def merge(connection: Connection) -> int:
    """Merge the oldest rows of count deltas, as `delta_rows.merge` does. Return 0 at once if another process runs `fold_batch`."""
    return delta_rows.merge(connection) if lock(connection) else 0


def release(connection: Connection) -> bool:
    """End the quarantine of all rows, so that the next batches contain them again. Return False if another process runs
    `fold_batch`."""
    if not lock(connection):
        return False
    delta_rows.release(connection)
    return True


def heal(connection: Connection) -> int:
    """Add to the rolled-up counts what an older release has written only to the table `counts`. Return the number of added
    counts, or 0 if another process runs `fold`."""
    return rollups.heal(connection) if lock(connection) else 0


def lock(connection: Connection) -> bool:
    """Lock the counts until the transaction ends. Return False if another process holds the lock."""
    if connection.dialect.name == "sqlite":
        return True
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(int(AdvisoryLock.FOLD_COUNTS)))))


# These statements are written as text, because SQLAlchemy would take longer to build a statement than the database takes to run
# it. SQLite's only writer would be occupied for both times. All statements except the first have the parameters of
# `raw_sql.bulk_parameters`.

_READ_COUNTS = {
    "sqlite": "SELECT json_group_array(json_array(c.cohort_id, c.quarter, c.metric, c.amount, c.rolled_up)) FROM json_each(?) AS j "
    "CROSS JOIN counts AS c ON c.cohort_id = j.value ->> 0 AND c.quarter = j.value ->> 1 AND c.metric = j.value ->> 2",
    "postgresql": "SELECT c.cohort_id, c.quarter, c.metric, c.amount, c.rolled_up FROM counts AS c "
    "JOIN unnest($1::int[], $2::int[], $3::text[]) AS k(cohort_id, quarter, metric) USING (cohort_id, quarter, metric)",
}
_UPSERT_COUNTS = {
    # "WHERE true" is necessary: without it, SQLite parses ON CONFLICT as a join condition.
    "sqlite": "INSERT INTO counts (cohort_id, quarter, metric, amount, rolled_up) "
    "SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?) WHERE true "
    "ON CONFLICT DO UPDATE SET amount = excluded.amount, rolled_up = excluded.rolled_up",
    "postgresql": "INSERT INTO counts (cohort_id, quarter, metric, amount, rolled_up) "
    "SELECT * FROM unnest($1::int[], $2::int[], $3::text[], $4::text[], $5::text[]) "
    "ON CONFLICT (cohort_id, quarter, metric) DO UPDATE SET amount = excluded.amount, rolled_up = excluded.rolled_up",
}


def read_unfolded(connection: Connection, limit: int, after: int = -1) -> tuple[list[int], Sums]:
    """Read count deltas with `read_events`. Return the ids of their rows, and the sums of their amounts by cohort, time slot and
    metric."""
    pending = read_events(connection, limit, after)
    return pending.ids, sum_by_key(pending.amounts)


def sum_by_key(amounts: Mapping[CountedEvent, Decimal]) -> Sums:
    """Return the sums of amounts by cohort, time slot and metric."""
    sums: Sums = {}
    for (cohort, slot, metric, _, _), amount in amounts.items():
        key = (cohort, slot, metric)
        sums[key] = EXACT.add(sums.get(key, _ZERO), amount)
    return sums


def time_slots(since: datetime, until: datetime) -> range:
    """Return the time slots from the slot that contains `since` to the last slot that starts before `until`."""
    return range(to_ms(since) // TIME_SLOT_MS, -(-to_ms(until) // TIME_SLOT_MS))


def slot_edges(since: datetime | None, until: datetime | None) -> tuple[datetime | None, datetime | None]:
    """Return the start of the time slot that contains `since`, and the end of the last time slot that starts before `until`."""
    begin = None if since is None else from_ms(time_slots(since, since).start * TIME_SLOT_MS)
    end = None if until is None else from_ms(time_slots(until, until).stop * TIME_SLOT_MS)
    return begin, end
