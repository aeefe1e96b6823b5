"""This module reads and removes rows of count deltas (table `tallies`, `outbox/count_deltas.py`).

A row that cannot be added to the counts is quarantined: it gets its id with a minus sign. All queries of this module read only the
rows with positive ids, so a quarantined row is kept and blocks nothing.
"""

# Tested by tests/reporting/test_counts.py

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, func, select

from shortener.outbox.count_deltas import origin_order
from shortener.reporting.rollup_data import EXACT
from shortener.reporting.rollups import CountedEvent
from shortener.storage import raw_sql
from shortener.storage.schema import count_deltas

#: The number of rows of count deltas that a batch reads first.
FIRST_ROWS = 4
#: One run of `merge` reads rows until they have this number of amounts. This usually occupies SQLite's writer for about 10 ms of
#: processor time; the longest measured time is 30 ms.
MAX_MERGED_AMOUNTS = 3000
PART_ROWS = 16  # The number of rows that `merge` reads at once.
MAX_ROW_AMOUNTS = 500  # The maximum number of amounts in a merged row, because each batch writes the rest of its last row again.

_ZERO = Decimal()

# The parameters of the statements are those of `raw_sql.bulk_parameters`, except for the first statement.
_READ_DELTAS = {
    "sqlite": "SELECT json_group_array(json_array(id, data, origins)) FROM "
    "(SELECT id, data, origins FROM tallies WHERE id > ? ORDER BY id LIMIT ?)",
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


_OLDEST = {
    "sqlite": "SELECT json_array(json_array(min(id))) FROM tallies WHERE id > 0",
    "postgresql": "SELECT min(id) FROM tallies WHERE id > 0",
}
_QUARANTINE = {
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


#: An entry of a row of count deltas: (cohort, time slot, metric, amount), and the time slot and the link set of the message.
_Entry = tuple[tuple[int, int, str, str], tuple[int | None, int]]


def _entries(data: str, packed_origins: str | None) -> list[_Entry]:
    """Return the entries of a row of count deltas."""
    entries = orjson.loads(data)
    # An older release stored no message time slots and link sets.
    origins = orjson.loads(packed_origins) if packed_origins is not None else ((None, 0),) * len(entries)
    return list(zip(entries, origins, strict=True))


def _event(entry: _Entry) -> tuple[CountedEvent, int | Decimal]:
    """Return the counted event and the amount of an entry."""
    (cohort, slot, metric, amount), (sent, link_set) = entry
    return CountedEvent(cohort, slot, metric, sent, link_set), int(amount) if amount.isdecimal() else Decimal(amount)


def _order(entry: _Entry) -> tuple[int, int, int, int]:
    """Return the key that sorts entries by origin."""
    (cohort, slot, _, _), (sent, link_set) = entry
    return origin_order(cohort, slot, sent, link_set)


class DeltaBatch(NamedTuple):
    """Count deltas that `counts.fold_batch` adds in one run: the ids of the rows that it deletes, the sums of the amounts, the row
    (id, data, origins) that replaces the last row if amounts of it are left, and whether a limit ended the batch."""

    ids: list[int]
    amounts: dict[CountedEvent, Decimal]
    rest: tuple[int, str, str | None] | None
    is_full: bool


def read_batch(connection: Connection, limit: int, max_origins: int, after: int = -1) -> DeltaBatch:
    """Return the oldest count deltas, from at most `limit` rows with ids above `after`, with at most `max_origins` origins."""
    sums, ids, seen = _EventSums(), list[int](), set[tuple[int, int, int | None, int]]()
    for row_id, data, packed_origins in _oldest_rows(connection, limit, after):
        entries = sorted(_entries(data, packed_origins), key=_order)
        for number, (key, amount) in enumerate(map(_event, entries)):
            origin = (key.cohort, key.slot, key.sent, key.link_set)
            if origin not in seen and len(seen) >= max_origins:
                rest = _pack(row_id, entries[number:], has_origins=packed_origins is not None) if number else None
                return DeltaBatch(ids, sums.amounts(), rest, is_full=True)
            seen.add(origin)
            sums.add(key, amount)
        ids.append(row_id)
    return DeltaBatch(ids, sums.amounts(), None, is_full=len(ids) >= limit)


def merge(connection: Connection) -> int:
    """Replace the oldest rows of count deltas by fewer rows with the same sums, sorted by origin.

    Rows that would not become fewer are not changed. Return the id of the last row that the merge wrote or did not have to change;
    0 if there is no row. After a merge, a batch with few origins contains all their amounts, and their messages were sent at
    similar times, so it changes fewer rolled-up counts. The caller must hold the lock of `counts.fold_batch`."""
    sums, ids = _EventSums(), list[int]()
    for row_id, entries in _rows_to_merge(connection):
        ids.append(row_id)
        for key, amount in map(_event, entries):
            sums.add(key, amount)
    merged: list[_Entry] = [
        ((cohort, slot, metric, format(amount, "f")), (sent, link_set))
        for (cohort, slot, metric, sent, link_set), amount in sums.amounts().items()
    ]
    merged.sort(key=_order)
    parts = [merged[start : start + MAX_ROW_AMOUNTS] for start in range(0, len(merged), MAX_ROW_AMOUNTS)]
    if len(parts) >= len(ids):
        return ids[-1] if ids else 0
    new = [_pack(row_id, part, has_origins=True) for row_id, part in zip(ids, parts, strict=False)]
    raw_sql.execute_bulk(connection, _REPLACE_DELTA, new)
    raw_sql.execute_bulk(connection, _DELETE_DELTAS, [(row_id,) for row_id in ids[len(new) :]])
    return ids[len(new) - 1]


def _rows_to_merge(connection: Connection) -> Iterator[tuple[int, list[_Entry]]]:
    """Yield the ids and the entries of the oldest rows, up to MAX_MERGED_AMOUNTS entries. A row of an older release, which has no
    origins, ends the list."""
    after, amounts = -1, 0
    while amounts < MAX_MERGED_AMOUNTS and (rows := raw_sql.rows(connection, _READ_DELTAS, after, PART_ROWS)):
        for after, data, packed_origins in rows:
            if packed_origins is None or amounts >= MAX_MERGED_AMOUNTS:
                return
            entries = _entries(data, packed_origins)
            amounts += len(entries)
            yield after, entries


def _oldest_rows(connection: Connection, limit: int, after: int) -> Iterator[Sequence[Any]]:
    """Yield the `limit` oldest rows of count deltas with ids above `after`. Few rows are read at first, because under load a row
    has some hundred amounts and the caller needs only the first rows."""
    size = FIRST_ROWS
    while limit > 0 and (rows := raw_sql.rows(connection, _READ_DELTAS, after, min(size, limit))):
        yield from rows
        after, limit, size = rows[-1][0], limit - len(rows), size * 8


def _pack(row_id: int, entries: Sequence[_Entry], *, has_origins: bool) -> tuple[int, str, str | None]:
    """Return a row (id, data, origins) with these entries."""
    data, origins = ([entry[part] for entry in entries] for part in (0, 1))
    return row_id, orjson.dumps(data).decode(), orjson.dumps(origins).decode() if has_origins else None


def read_events(connection: Connection, limit: int, after: int = -1) -> tuple[list[int], dict[CountedEvent, Decimal]]:
    """Return the ids of the `limit` oldest rows of count deltas with an id above `after`, and the sums of their amounts. The sums
    do not include a damaged row, which the job of the counts quarantines when it reaches the row."""
    rows = raw_sql.rows(connection, _READ_DELTAS, after, limit)
    sums = _EventSums()
    for _, data, packed_origins in rows:
        try:
            events = [_event(entry) for entry in _entries(data, packed_origins)]
        except (ValueError, TypeError, AttributeError, ArithmeticError):
            continue
        for key, amount in events:
            sums.add(key, amount)
    return [row_id for row_id, *_ in rows], sums.amounts()


def remove(connection: Connection, batch: DeltaBatch) -> None:
    """Delete the rows of a batch, and replace the row of which amounts are left."""
    if batch.ids:
        raw_sql.execute_bulk(connection, _DELETE_DELTAS, [(row_id,) for row_id in batch.ids])
    if batch.rest is not None:
        raw_sql.execute_bulk(connection, _REPLACE_DELTA, [batch.rest])


def read_oldest(connection: Connection) -> int | None:
    """Return the id of the oldest row of count deltas that is not quarantined; None if there is no row."""
    oldest: int | None = raw_sql.rows(connection, _OLDEST)[0][0]
    return oldest


def quarantine(connection: Connection, row_id: int) -> bool:
    """Quarantine a row. Return False if it does not exist. The caller must hold the lock of `counts.fold_batch`."""
    return raw_sql.execute_bulk(connection, _QUARANTINE, [(row_id,)]) > 0


def count_quarantined(connection: Connection) -> int:
    """Return the number of quarantined rows."""
    return connection.scalar(select(func.count()).where(count_deltas.c.id < 0)) or 0


def release(connection: Connection) -> None:
    """End the quarantine of all rows. The caller must hold the lock of `counts.fold_batch`."""
    quarantined = list(connection.scalars(select(count_deltas.c.id).where(count_deltas.c.id < 0)))
    raw_sql.execute_bulk(connection, _QUARANTINE, [(row_id,) for row_id in quarantined])
