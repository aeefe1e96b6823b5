"""The first conversions of messages. The figure `converted_messages` counts each message with a conversion once, at the time of its
first conversion. Later conversions of the message and later revisions do not change this figure.

`claim` stores the first conversion of a message in the transaction that stores the conversion. The primary key of the table
`first_conversions` decides which of several concurrent transactions counts the message, even if the transactions run in different
processes.

A process of a release before 0.3 stores conversions without a row in `first_conversions`. The background job `FirstConversions`
finds these conversions and counts their messages. After an upgrade, it finds the conversions from before the upgrade. If some nodes
are not upgraded yet, it finds their conversions two minutes after they arrive. The job reads conversions in the order of their ids.
Its position is a row of the table `installation`, and the transaction that counts a page changes it. So a crash neither loses a
message nor counts it twice. If several processes read the same page, only one of them counts it. Reports are incomplete while the
job is more than ten minutes late.
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

LAG_MS = 120_000  # The job reads only conversions that are at least this old, so that none with a lower id is stored later.
PAGE_ROWS = 500  # The maximum number of conversions that one step of the job reads. SQLite writes their messages in about 10 ms.
#: Reports are incomplete while the job has not read conversions that arrived this long before.
MAX_DELAY_MS = 600_000
#: The job counts no message while count deltas of this age wait to be added to the counts, because reports include only a limited
#: number of waiting deltas. Usually a delta is added within a second.
MAX_DELTA_AGE_MS = 5000

#: The name of the value in the table `installation` that contains the position of the job. Migration 0023 sets it.
_NAME = "first conversions"
_BEHIND = "behind"

# The time of the conversion with the lowest id. With "+ 0", the database does not search for it along the primary key.
_FIRST_AT = "SELECT c.at FROM conversions AS c WHERE c.message_id = m.id ORDER BY c.id + 0 LIMIT 1"
_CLAIM = {
    # SQLite has one writer, so no other transaction stores these messages before `_insert`.
    "sqlite": f"SELECT json_group_array(json_array(m.id, ({_FIRST_AT}))) FROM (SELECT value AS id FROM json_each(?)) AS m "
    "WHERE NOT EXISTS (SELECT 1 FROM first_conversions AS f WHERE f.id = m.id)",
    # With LIMIT, PostgreSQL looks up each message in the index, even if it made the query plan when the table was small. With
    # OFFSET 0, it searches for conversions only of the messages that have no row.
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


#: Numbers of messages that are counted although their row in `first_conversions` is missing, by cohort and time slot.
CountedSlots = Counter[tuple[int, int]]


def count_converted(
    connection: Connection, delta: CountDelta, converted: Iterable[ConvertedMessage], counted: CountedSlots | None = None
) -> None:
    """Store the first conversions of the messages, and add each message that was not counted yet to `delta`.

    A message whose row was lost was counted before. `counted` has the numbers of such messages. A message with a cohort and time
    slot of `counted` is not added to `delta`; instead, the number in `counted` is reduced by one.

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
    """Store the first conversion of each message that has a conversion. `ids` are row ids of messages in order. Return the row id
    of each message that had no stored first conversion, and the time of the conversion in milliseconds."""
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
    """Return the SQL condition for the first conversions of messages that the job should have counted and did not count."""
    earlier = conversions.alias("earlier")
    return and_(
        conversions.c.id <= position.last,
        ~exists().where(first_conversions.c.id == conversions.c.message_id),
        ~exists().where(earlier.c.message_id == conversions.c.message_id, earlier.c.id < conversions.c.id),
    )


class _ConversionPage(NamedTuple):
    """One page of conversions: the position before and after it, whether more conversions follow, and the messages of which no
    first conversion is stored."""

    before: CountProgress
    after: CountProgress
    is_full: bool
    missing: Collection[ConvertedMessage]


class FirstConversions:
    """The background job that counts converted messages whose conversions a process of a release before 0.3 has stored."""

    def __init__(self, database: Database, ids: IdGenerator, clock: Clock) -> None:
        self._database = database
        self._ids = ids
        self._clock = clock

    async def step(self) -> int:
        """Count the messages of one page of conversions. Return 0 if the job must wait for its interval: no more conversions wait,
        another process has counted the page, or old count deltas wait. Otherwise return the number of counted messages, but at
        least 1.

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
        """Read all conversions from the beginning, store the missing rows and count their messages. Return the number of rows. The
        transaction that stores rows calls `audit` with their number. Raise StoreUnavailable if the database is unavailable.

        `counted` has the numbers of those messages that are counted already, because only their row was lost."""
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
        """Store the rows of the messages. Return the number of messages, and what is left of `counted`, which does not change,
        because the transaction may run again."""
        left = counted.copy()
        self._add(connection, missing, left)
        audit(connection, len(missing))
        return len(missing), left

    def _add(self, connection: Connection, missing: Collection[ConvertedMessage], counted: CountedSlots | None = None) -> None:
        delta = CountDelta()
        count_converted(connection, delta, missing, counted)
        count_deltas.append_in_parts(connection, self._ids, delta)


def _has_deltas_before(connection: Connection, row_id: int) -> bool:
    """Return whether count deltas with lower ids than `row_id` were not added to the counts yet. Quarantined deltas do not matter;
    their ids are negative."""
    oldest = select(func.min(schema.count_deltas.c.id)).where(schema.count_deltas.c.id > 0)
    return (connection.scalar(oldest) or row_id) < row_id


def read_page(connection: Connection, end: int, position: CountProgress | None = None) -> _ConversionPage:
    """Read the next page of conversions: those after `position` whose ids are below `end`. If `position` is None, the position of
    the job is used."""
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
