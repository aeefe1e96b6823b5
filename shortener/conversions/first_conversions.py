"""The first conversions of messages. The figure `converted_messages` counts each message with a conversion once, at the time of
its first conversion. Later conversions of the message and later revisions do not change this figure.

`claim` stores the first conversion of a message in the transaction that stores the conversion. If several transactions do this at
the same time, even in different processes, the primary key of the table `first_conversions` decides which of them counts the
message.

A process of a release before 0.3 stores conversions without a row in `first_conversions`. The background job `FirstConversions`
finds these conversions and counts their messages. After an upgrade, it finds the conversions from before the upgrade. While some
nodes are not upgraded yet, it finds their conversions two minutes after they arrive.

The job reads conversions in the order of their ids. Its position is a row of the table `installation`. The transaction that
counts a page also changes this row, so a crash neither loses a message nor counts it twice. If several processes read the same
page, only one of them counts it. Reports are incomplete while the job is more than ten minutes late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select, update

from shortener.ids import IdGenerator, first_id_at, id_span
from shortener.model import Clock
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import TIME_SLOT_MS, CountDelta, sent_slot
from shortener.storage import raw_sql, schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.database import Database
from shortener.storage.installation import get, get_or_set
from shortener.storage.schema import conversions, first_conversions, installation, messages
from shortener.storage.types import to_ms

CONVERTED_MESSAGES = "converted_messages"  # The name of the metric that counts messages with a conversion.

# The job reads only conversions that are at least this many milliseconds old. By then, all conversions with lower ids are stored.
LAG_MS = 120_000
# The maximum number of conversions that one step of the job reads. For this many, SQLite writes the rows of the messages in about
# 10 ms.
PAGE_ROWS = 500
#: Reports count as incomplete if the job has not read conversions that arrived this long ago.
MAX_DELAY_MS = 600_000
#: The job writes count deltas. Reports include only a limited number of deltas that wait to be added to the counts. Therefore the
#: job writes none while a delta of this age still waits. Usually a delta waits for less than a second.
MAX_DELTA_AGE_MS = 5000

#: The row of the table `installation` with this name contains the position of the job. Migration 0023 creates it.
_NAME = "first conversions"
_BEHIND = "behind"

# The time of the conversion with the lowest id. Because of "+ 0", the database does not search along the primary key, which would
# be slow.
_FIRST_AT = "SELECT c.at FROM conversions AS c WHERE c.message_id = m.id ORDER BY c.id + 0 LIMIT 1"
_CLAIM = {
    # SQLite has one writer, so no other transaction can store these messages before `_insert` does.
    "sqlite": f"SELECT json_group_array(json_array(m.id, ({_FIRST_AT}))) FROM (SELECT value AS id FROM json_each(?)) AS m "
    "WHERE NOT EXISTS (SELECT 1 FROM first_conversions AS f WHERE f.id = m.id)",
    # LIMIT makes PostgreSQL look up each message in the index, even if it made the query plan when the table was small. OFFSET 0
    # makes it first remove the messages that already have a row in `first_conversions`, and search the conversions of the others
    # only.
    "postgresql": "INSERT INTO first_conversions (id, at) SELECT m.id, c.at FROM (SELECT i.id FROM unnest($1::bigint[]) AS i(id) "
    "LEFT JOIN LATERAL (SELECT id FROM first_conversions WHERE id = i.id LIMIT 1) AS f ON true WHERE f.id IS NULL OFFSET 0) AS m "
    f"CROSS JOIN LATERAL ({_FIRST_AT}) AS c ORDER BY m.id ON CONFLICT DO NOTHING RETURNING id, at",
}
_insert = BulkInsert(first_conversions, "id", "at")


class ConvertedMessage(NamedTuple):
    """A message with a conversion: its row id, its cohort, and its link set (0: none)."""

    id: int
    cohort: int
    link_set: int


#: Numbers of messages that are already counted although their row in `first_conversions` is missing, by (cohort, time slot).
CountedSlots = Counter[tuple[int, int]]


def count_converted(
    connection: Connection, delta: CountDelta, converted: Iterable[ConvertedMessage], counted: CountedSlots | None = None
) -> None:
    """Store the first conversions of the messages. Add each message that was not counted yet to `delta`.

    If the row of a message was lost, the message is already counted. `counted` contains the numbers of such messages by (cohort,
    time slot). While the number for the cohort and time slot of a message is above 0, it is reduced by one, and the message is
    not added to `delta`.

    All transactions store the messages in the order of their ids, because two transactions could otherwise deadlock on
    PostgreSQL."""
    by_id = {message.id: message for message in converted}
    if not by_id:
        return
    for row_id, at in claim(connection, sorted(by_id)):
        message = by_id[row_id]
        if counted and counted[message.cohort, at // TIME_SLOT_MS] > 0:
            counted[message.cohort, at // TIME_SLOT_MS] -= 1
            continue
        delta.add_slots(message.cohort, at // TIME_SLOT_MS, CONVERTED_MESSAGES, sent_slot(row_id), message.link_set)


def claim(connection: Connection, ids: Sequence[int]) -> Sequence[Sequence[int]]:
    """Store the first conversion of each message that has a conversion. `ids` are sorted row ids of messages. Return (row id,
    time in milliseconds) of each first conversion that was not stored before; the row id is that of the message."""
    new = [row for row in raw_sql.rows(connection, _CLAIM, list(ids)) if row[1] is not None]
    if connection.dialect.name == "sqlite":
        _insert(connection, [tuple(row) for row in new])
    return new


class CountProgress(NamedTuple):
    """The progress of the job: the id of the last conversion that it has read, and whether it is more than MAX_DELAY_MS late."""

    last: int = 0
    is_behind: bool = False

    @property
    def text(self) -> str:
        return f"{self.last} {_BEHIND}" if self.is_behind else str(self.last)


def read_progress(connection: Connection) -> CountProgress:
    """Return the progress of the job."""
    return _parse(get(connection, _NAME))


def _parse(text: str | None) -> CountProgress:
    last, _, state = (text or "0").partition(" ")
    return CountProgress(int(last), state == _BEHIND)


def is_missed(position: CountProgress) -> ColumnElement[bool]:
    """Return an SQL condition on `conversions`. It selects the first conversions that the job has passed although their messages
    are not counted."""
    earlier = conversions.alias("earlier")
    return and_(
        conversions.c.id <= position.last,
        ~exists().where(first_conversions.c.id == conversions.c.message_id),
        ~exists().where(earlier.c.message_id == conversions.c.message_id, earlier.c.id < conversions.c.id),
    )


class _ConversionPage(NamedTuple):
    """One page of conversions: the position before and after it, whether more conversions follow, and the messages whose first
    conversion is not stored."""

    before: CountProgress
    after: CountProgress
    is_full: bool
    missing: Collection[ConvertedMessage]


class FirstConversions:
    """The background job that counts the messages of conversions which a process of a release before 0.3 has stored."""

    def __init__(self, database: Database, ids: IdGenerator, clock: Clock) -> None:
        self._database = database
        self._ids = ids
        self._clock = clock

    async def step(self) -> int:
        """Count the messages of one page of conversions. Return the number of counted messages, but at least 1. Return 0 if the
        caller must wait for the interval of the job: no more conversions wait, another process has counted the page, or old count
        deltas wait.

        Raise StoreUnavailable if the database is unavailable."""
        page = await self._read_page()
        oldest = first_id_at(to_ms(self._clock()) - MAX_DELTA_AGE_MS)
        is_late = bool(page.missing) and await self._database.read(_has_deltas_before, oldest)
        if is_late:
            return 0
        return max(len(page.missing), 1) if await self._count(page) and page.is_full else 0

    async def count_all(
        self,
        audit: Callable[[Connection, int], None] = lambda connection, stored: None,
        counted: CountedSlots | None = None,
    ) -> int:
        """Read all conversions from the beginning, store the missing rows and count their messages. Return the number of stored
        rows. The transaction that stores rows calls `audit` with their number. Raise StoreUnavailable if the database is
        unavailable.

        `counted` contains the numbers of messages that are already counted and only lost their row."""
        stored, position = 0, CountProgress()
        left = Counter() if counted is None else counted
        while True:
            page = await self._read_page(position)
            if page.missing:
                number, left = await self._database.write_later(self._store_missing, page.missing, audit, left)
                stored += number
            if not page.is_full:
                return stored
            position = page.after

    async def _read_page(self, position: CountProgress | None = None) -> _ConversionPage:
        return await self._database.read(read_page, first_id_at(to_ms(self._clock()) - LAG_MS), position)

    async def _count(self, page: _ConversionPage) -> bool:
        """Count a page. Return False if another process has counted it."""
        return page.after == page.before or await self._database.write_later(self._store, page)

    def _store(self, connection: Connection, page: _ConversionPage) -> bool:
        get_or_set(connection, _NAME, CountProgress().text)
        row = installation.c
        moved = update(installation).where(row.name == _NAME, row.value == page.before.text).values(value=page.after.text)
        if connection.execute(moved).rowcount == 0:
            return False
        self._add(connection, page.missing)
        return True

    def _store_missing(
        self,
        connection: Connection,
        missing: Collection[ConvertedMessage],
        audit: Callable[[Connection, int], None],
        counted: CountedSlots,
    ) -> tuple[int, CountedSlots]:
        """Store the rows of the messages. Return their number, and a copy of `counted` in which the numbers of these messages are
        subtracted. `counted` itself does not change, because the transaction may run again."""
        left = counted.copy()
        self._add(connection, missing, left)
        audit(connection, len(missing))
        return len(missing), left

    def _add(self, connection: Connection, missing: Collection[ConvertedMessage], counted: CountedSlots | None = None) -> None:
        delta = CountDelta()
        count_converted(connection, delta, missing, counted)
        count_deltas.append_in_parts(connection, self._ids, delta)


def _has_deltas_before(connection: Connection, row_id: int) -> bool:
    """Return whether count deltas with lower ids than `row_id` wait to be added to the counts. Quarantined deltas are ignored,
    because they are not added to the counts. Their ids are negative."""
    oldest = select(func.min(schema.count_deltas.c.id)).where(schema.count_deltas.c.id > 0)
    return (connection.scalar(oldest) or row_id) < row_id


def read_page(connection: Connection, end: int, position: CountProgress | None = None) -> _ConversionPage:
    """Read the next page of conversions: those after `position` whose ids are below `end`. If `position` is None, the stored
    position of the job is used."""
    before = position or read_progress(connection)
    c = conversions.c
    ids = select(c.id).where(c.id > before.last, c.id < end).order_by(c.id).limit(PAGE_ROWS).subquery("page")
    number, last = connection.execute(select(func.count(), func.max(ids.c.id))).one()
    is_full = number == PAGE_ROWS
    after = CountProgress(last or before.last, is_full and last < end - id_span(MAX_DELAY_MS))
    missing = (
        select(messages.c.id, messages.c.cohort_id, func.coalesce(messages.c.link_set_id, 0))
        .distinct()
        .join_from(conversions, messages, messages.c.id == c.message_id)
        .where(c.id > before.last, c.id <= after.last, ~exists().where(first_conversions.c.id == c.message_id))
    )
    found = [ConvertedMessage(*row) for row in connection.execute(missing)] if number else []
    return _ConversionPage(before, after, is_full, found)
