"""This module reads and removes rows of count deltas (table `tallies`, `outbox/count_deltas.py`).

A row whose content is unreadable (`delta_content.py`) is quarantined: its id becomes negative. Batches, merges and reports read
only rows with positive ids. A quarantined row therefore stays stored and does not block other rows.
"""

# Tested by tests/reporting/test_counts.py

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from shortener.reporting import delta_content
from shortener.reporting.delta_content import Entry, UnreadableDelta
from shortener.reporting.rollup_data import EXACT
from shortener.reporting.rollups import CountedEvent
from shortener.storage import raw_sql
from shortener.storage.schema import count_deltas

#: A batch first reads only this number of rows of count deltas. Under load, these rows are sufficient for a full batch.
FIRST_ROWS = 4
#: One run of `merge` reads rows until they contain this number of amounts. The run usually occupies SQLite's writer for about 10
#: ms of processor time. The longest measured time is 30 ms.
MAX_MERGED_AMOUNTS = 3000
PART_ROWS = 16  # The number of rows that `merge` reads at once.
#: The maximum number of amounts in a merged row. Long rows would be inefficient: if a batch adds only some amounts of a row, it
#: must write the other amounts of the row again.
MAX_ROW_AMOUNTS = 500

_ZERO = Decimal()

# All statements except the first one take the parameters that `raw_sql.bulk_parameters` returns.
_READ_DELTAS = {
    # A column of SQLite may contain a BLOB or invalid UTF-8. The driver and SQLite's JSON functions reject such a value.
    # Therefore the texts are read as hexadecimal digits. A value that is not a text becomes NULL in `data`, and an empty text in
    # `origins`.
    "sqlite": "SELECT '[' || coalesce(group_concat('[' || id || ',' "
    """|| CASE typeof(data) WHEN 'text' THEN '"' || hex(data) || '"' ELSE 'null' END || ',' """
    """|| CASE typeof(origins) WHEN 'text' THEN '"' || hex(origins) || '"' WHEN 'null' THEN 'null' ELSE '""' END """
    "|| ']'), '') || ']' FROM (SELECT id, data, origins FROM tallies WHERE id > ? ORDER BY id LIMIT ?)",
    "postgresql": "SELECT id, data, origins FROM tallies WHERE id > $1 ORDER BY id LIMIT $2",
}
_DELETE_DELTAS = {
    "sqlite": "DELETE FROM tallies WHERE id IN (SELECT value ->> 0 FROM json_each(?))",
    "postgresql": "DELETE FROM tallies WHERE id = ANY($1::bigint[])",
}
_REPLACE_DELTA = {
    "sqlite": "UPDATE tallies SET data = j.value ->> 1, origins = j.value ->> 2 FROM json_each(?) AS j "
    "WHERE tallies.id = j.value ->> 0",
    "postgresql": "UPDATE tallies AS t SET data = k.data, origins = k.origins "
    "FROM unnest($1::bigint[], $2::text[], $3::text[]) AS k(id, data, origins) WHERE t.id = k.id",
}
_NEGATE_IDS = {
    "sqlite": "UPDATE tallies SET id = -id WHERE id IN (SELECT value ->> 0 FROM json_each(?))",
    "postgresql": "UPDATE tallies SET id = -id WHERE id = ANY($1::bigint[])",
}


class _EventSums:
    """The sums of the amounts of count deltas, by counted event."""

    def __init__(self) -> None:
        self._integers: dict[CountedEvent, int] = {}
        self._others: dict[CountedEvent, Decimal] = {}

    def add(self, key: CountedEvent, amount: int | Decimal) -> None:
        if isinstance(amount, int):  # Nearly all amounts are integers, and Python adds integers faster than decimals.
            self._integers[key] = self._integers.get(key, 0) + amount
        else:
            self._others[key] = EXACT.add(self._others.get(key, _ZERO), amount)

    def amounts(self) -> dict[CountedEvent, Decimal]:
        amounts = {key: Decimal(amount) for key, amount in self._integers.items()}
        for key, value in self._others.items():
            amounts[key] = EXACT.add(amounts.get(key, _ZERO), value)
        return amounts


class UnreadableRow(NamedTuple):
    """A row of count deltas whose content is unreadable: its id and the reason."""

    id: int
    reason: str


class _Row(NamedTuple):
    """A row of count deltas. If it is unreadable, `entries` is empty and `reason` is not None."""

    id: int
    entries: list[Entry]
    has_origins: bool
    reason: str | None = None


def _parse(connection: Connection, row_id: int, data: str | None, origins: str | None) -> _Row:
    columns: tuple[str | bytes | None, ...] = (data, origins)
    if connection.dialect.name == "sqlite":
        columns = tuple(None if one is None else bytes.fromhex(one) for one in (data, origins))
    try:
        return _Row(row_id, delta_content.parse(*columns), origins is not None)
    except UnreadableDelta as error:
        return _Row(row_id, [], origins is not None, str(error))


class DeltaBatch(NamedTuple):
    """The count deltas that one run of `counts.fold_batch` adds.

    `amounts` are the sums to add. After that, the rows `ids` are deleted, and the rows `unreadable` are quarantined. If only a
    part of the amounts of the last row is in the batch, `rest` is the row (id, data, origins) that replaces the last row.
    `is_full` is true if a limit ended the batch."""

    ids: list[int]
    amounts: dict[CountedEvent, Decimal]
    rest: tuple[int, str, str | None] | None
    unreadable: list[UnreadableRow]
    is_full: bool


def read_batch(connection: Connection, limit: int, max_origins: int) -> DeltaBatch:
    """Return a batch of the oldest count deltas. It comes from at most `limit` rows and has at most `max_origins` origins."""
    sums, ids, seen = _EventSums(), list[int](), set[tuple[int, int, int | None, int]]()
    unreadable: list[UnreadableRow] = []
    for row in _oldest_rows(connection, limit):
        if row.reason is not None:
            unreadable.append(UnreadableRow(row.id, row.reason))
            continue
        entries = sorted(row.entries, key=delta_content.entry_order)
        for number, (key, amount) in enumerate(map(delta_content.event_of, entries)):
            origin = (key.cohort, key.slot, key.sent, key.link_set)
            if origin not in seen and len(seen) >= max_origins:
                rest = delta_content.pack(row.id, entries[number:], has_origins=row.has_origins) if number else None
                return DeltaBatch(ids, sums.amounts(), rest, unreadable, is_full=True)
            seen.add(origin)
            sums.add(key, amount)
        ids.append(row.id)
    return DeltaBatch(ids, sums.amounts(), None, unreadable, is_full=len(ids) + len(unreadable) >= limit)


def merge(connection: Connection) -> int:
    """Replace the oldest rows of count deltas by fewer rows with the same sums, sorted by origin. All amounts of an origin are
    then in neighbouring rows, and a batch changes fewer rolled-up counts.

    If a merge would not reduce the number of rows, it changes no rows. It never changes unreadable rows. Return the id of the
    last row that the merge has written or has left unchanged. Return 0 if there is no row. The caller must hold the lock of
    `counts.fold_batch`."""
    sums, ids = _EventSums(), list[int]()
    for row in _rows_to_merge(connection):
        ids.append(row.id)
        for key, amount in map(delta_content.event_of, row.entries):
            sums.add(key, amount)
    merged = sorted((delta_content.entry_of(key, amount) for key, amount in sums.amounts().items()), key=delta_content.entry_order)
    parts = [merged[start : start + MAX_ROW_AMOUNTS] for start in range(0, len(merged), MAX_ROW_AMOUNTS)]
    if len(parts) >= len(ids):
        return ids[-1] if ids else 0
    new = [delta_content.pack(row_id, part, has_origins=True) for row_id, part in zip(ids, parts, strict=False)]
    raw_sql.execute_bulk(connection, _REPLACE_DELTA, new)
    raw_sql.execute_bulk(connection, _DELETE_DELTAS, [(row_id,) for row_id in ids[len(new) :]])
    return ids[len(new) - 1]


def _rows_to_merge(connection: Connection) -> Iterator[_Row]:
    """Yield the oldest readable rows, up to MAX_MERGED_AMOUNTS entries. Stop at a row of an older release, because it has no
    origins."""
    after, amounts = -1, 0
    while amounts < MAX_MERGED_AMOUNTS and (rows := raw_sql.rows(connection, _READ_DELTAS, after, PART_ROWS)):
        after = rows[-1][0]
        for row in (_parse(connection, *stored) for stored in rows):
            if row.reason is not None:
                continue
            if not row.has_origins or amounts >= MAX_MERGED_AMOUNTS:
                return
            amounts += len(row.entries)
            yield row


def _oldest_rows(connection: Connection, limit: int) -> Iterator[_Row]:
    """Yield the `limit` oldest rows of count deltas. Read only a few rows at first. Under load, a row has a few hundred amounts,
    and the caller then needs no more rows."""
    size, after = FIRST_ROWS, -1
    while limit > 0 and (rows := raw_sql.rows(connection, _READ_DELTAS, after, min(size, limit))):
        for stored in rows:
            yield _parse(connection, *stored)
        after, limit, size = rows[-1][0], limit - len(rows), size * 8


class PendingDeltas(NamedTuple):
    """The count deltas that were not added to the counts yet: the ids of their rows, the sums of their amounts, and whether all
    rows were readable."""

    ids: list[int]
    amounts: dict[CountedEvent, Decimal]
    is_readable: bool


def read_events(connection: Connection, limit: int, after: int = -1) -> PendingDeltas:
    """Return the `limit` oldest rows of count deltas whose ids are larger than `after`. The sums leave out unreadable rows, which
    the background job of the counts will quarantine."""
    ids, sums, is_readable = list[int](), _EventSums(), True
    for stored in raw_sql.rows(connection, _READ_DELTAS, after, limit):
        row = _parse(connection, *stored)
        ids.append(row.id)
        is_readable = is_readable and row.reason is None
        for key, amount in map(delta_content.event_of, row.entries):
            sums.add(key, amount)
    return PendingDeltas(ids, sums.amounts(), is_readable)


def remove(connection: Connection, batch: DeltaBatch) -> None:
    """Delete the rows of a batch and quarantine its unreadable rows. If a part of the last row was not added, this part replaces
    the row."""
    if batch.ids:
        raw_sql.execute_bulk(connection, _DELETE_DELTAS, [(row_id,) for row_id in batch.ids])
    if batch.rest is not None:
        raw_sql.execute_bulk(connection, _REPLACE_DELTA, [batch.rest])
    raw_sql.execute_bulk(connection, _NEGATE_IDS, [(row.id,) for row in batch.unreadable])


def count_quarantined(connection: Connection) -> int:
    """Return the number of quarantined rows."""
    return connection.scalar(select(func.count()).where(count_deltas.c.id < 0)) or 0


def release(connection: Connection) -> None:
    """End the quarantine of all rows. The caller must hold the lock of `counts.fold_batch`."""
    quarantined = list(connection.scalars(select(count_deltas.c.id).where(count_deltas.c.id < 0)))
    raw_sql.execute_bulk(connection, _NEGATE_IDS, [(row_id,) for row_id in quarantined])
