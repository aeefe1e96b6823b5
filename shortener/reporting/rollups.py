"""This module maintains the rolled-up counts: sums of counts by application, campaign, country, destination and label, by quarter
of an hour, hour and day. A report reads a few of their rows, and not all counts of all cohorts. When `counts.fold` adds to the
counts, it adds to the rolled-up counts in the same transaction.

A basis is the time at which an event counts. There are two bases:

- EVENT: each event counts at its own time. These rolled-up counts are sums of rows of `counts`.
- SENT: each event counts at the time when its message was created (before it was sent). Only rolled-up counts have this basis.

The column `counts.rolled_up` is the part of a count that is already in the rolled-up counts. A release without rolled-up counts
changes only `counts.amount`. `heal` finds such counts with an index, and adds the difference of the two columns to the rolled-up
counts. In the same way, it rolls up the counts that existed when the tables were created.

The id of a group is a hash of its name. A transaction can therefore add an amount without reading the id of the group first.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Integer, select

from shortener.reporting import rollup_data
from shortener.reporting.rollup_data import EXACT, VALUE, Amounts, PeriodSums
from shortener.storage import raw_sql
from shortener.storage.schema import NOT_ROLLED_UP, cohorts, link_sets
from shortener.storage.values_table import values_table

#: One transaction of `heal` adds at most this number of counts to the rolled-up counts.
MAX_HEALED_ROWS = 1000


class Basis(enum.IntEnum):
    """The time at which an event is counted: its own time, or the time at which its message was created."""

    EVENT = 0
    SENT = 1


class Level(enum.IntEnum):
    """The length of the period of a rolled-up count: a quarter of an hour, an hour or a day."""

    QUARTER = 0
    HOUR = 1
    DAY = 2

    @property
    def slots(self) -> int:
        """The number of time slots (15 minutes) of a period."""
        return _SLOTS[self]


_SLOTS = (1, 4, 96)


class Kind(enum.StrEnum):
    """The kind of a group of rolled-up counts. Each kind names the fields that define a group, in addition to the application and
    the source."""

    APPLICATION = "application"
    CAMPAIGN = "campaign"
    COUNTRY = "country"
    # Groups by campaign and country. They exist only with Basis.SENT, because the table `counts` already contains these figures
    # for Basis.EVENT.
    COHORT = "cohort"
    DESTINATION = "destination"  # Groups by campaign and destination.
    LABEL = "label"  # Groups by campaign and label.


def series(basis: Basis, level: Level) -> int:
    """Return the number of a series, which stands for a basis and a length of period. The column `rollups.series` contains it."""
    return basis * 3 + level


class CountedEvent(NamedTuple):
    """What an amount belongs to: the cohort, the time slot of the event, and the metric.

    `sent` is the time slot of the message, or None if it is unknown. `link_set` is the link set of the message, or 0 if there is
    none."""

    cohort: int
    slot: int
    metric: str
    sent: int | None = None
    link_set: int = 0


class CohortName(NamedTuple):
    """The fields of a cohort that reports use: application, campaign, source and country."""

    application_id: int
    campaign: str
    source: str
    country: str


class GroupName(NamedTuple):
    """The name of a group: all columns of its row in the table `count_groups`, except the id."""

    application_id: int
    kind: str
    source: str
    campaign: str = ""
    country: str = ""
    name: str = ""

    @property
    def id(self) -> int:
        """The id of the group: a hash of all fields, with 63 bits."""
        return int.from_bytes(hashlib.blake2b(orjson.dumps(tuple(self)), digest_size=8).digest()) >> 1


#: The key of a rolled-up count: the group id, the number of the series, and the number of the period.
PeriodKey = tuple[int, int, int]
#: Amounts by period and metric. Amounts of money are decimals, and all others are integers.
PeriodAmounts = dict[PeriodKey, dict[str, int | Decimal]]
#: Amounts by cohort, time slot, link set and metric.
_SlotAmounts = dict[tuple[int, int, int], dict[str, int | Decimal]]
#: The fields of a CountedEvent, and its amount.
EventAmount = tuple[tuple[int, int, str, int | None, int], int | Decimal]


def read_cohorts(connection: Connection, ids: Collection[int]) -> dict[int, CohortName]:
    """Return the fields of these cohorts, by cohort id. A cohort without a row is missing in the result."""
    chosen = values_table(connection, [(cohort,) for cohort in ids], id=Integer)
    rows = connection.execute(select(cohorts).where(cohorts.c.id.in_(select(chosen.c.id))))
    return {row.id: CohortName(row.application_id, row.campaign, row.source, row.country) for row in rows}


def read_link_sets(connection: Connection, ids: Collection[int]) -> dict[int, list[tuple[str, str | None]]]:
    """Return the links of each of these link sets, by link set id. Each link is its destination and its label."""
    wanted = [(link_set,) for link_set in ids if link_set]
    if not wanted:
        return {}
    chosen = values_table(connection, wanted, id=Integer)
    rows = connection.execute(select(link_sets.c.id, link_sets.c.links).where(link_sets.c.id.in_(select(chosen.c.id))))
    return {row.id: [(destination, label) for destination, label in row.links] for row in rows}


class SlotSums:
    """Sums of amounts by cohort, time slot, link set and metric, for each basis. With Basis.EVENT, the time slot is the time slot
    of the event. With Basis.SENT, it is the time slot of the message; amounts whose message has an unknown time slot are left
    out.

    `expand` needs much fewer steps for these sums than for single events: many events have the same cohort, time slot and link
    set, and all their metrics belong to the same groups."""

    def __init__(self, amounts: Iterable[EventAmount] = ()) -> None:
        self.by_basis: tuple[_SlotAmounts, _SlotAmounts] = ({}, {})
        self.add(amounts)

    def add(self, amounts: Iterable[EventAmount]) -> None:
        """Add the amounts of events."""
        for (cohort, slot, metric, sent, link_set), amount in amounts:
            # Nearly all amounts are integers, and Python adds integers faster than decimals.
            number = amount if metric.startswith(VALUE) else int(amount)
            for slots_of_basis, at in zip(self.by_basis, (slot, sent), strict=True):
                if at is not None:
                    add_amount(slots_of_basis.setdefault((cohort, at, link_set), {}), metric, number)

    def pairs(self) -> set[tuple[int, int]]:
        """Return each pair of a cohort and a link set for which there is an amount."""
        return {(cohort, link_set) for cohort, _, link_set in self.by_basis[Basis.EVENT]}


class Expansion:
    """Finds the groups of rolled-up counts to which an amount belongs.

    The method `groups` accepts only the pairs of a cohort id and a link set id that are in `pairs`. `names` contains the name of
    each group that this method has returned, by group id."""

    def __init__(self, connection: Connection, pairs: Collection[tuple[int, int]]) -> None:
        self._cohorts = read_cohorts(connection, {cohort for cohort, _ in pairs})
        self._link_sets = read_link_sets(connection, {link_set for _, link_set in pairs})
        self._groups: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.names: dict[int, GroupName] = {}

    def groups(self, cohort: int, link_set: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids of the groups in which the events of a cohort and a link set count: the groups with Basis.EVENT, and the
        groups with Basis.SENT."""
        pair = (cohort, link_set)
        if (found := self._groups.get(pair)) is None:
            found = self._groups[pair] = self._find(*pair)
        return found

    def _find(self, cohort: int, link_set: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        name = self._cohorts.get(cohort)
        if name is None:
            return (), ()
        application_id, campaign, source, country = name
        event = [
            GroupName(application_id, Kind.APPLICATION, source),
            GroupName(application_id, Kind.CAMPAIGN, source, campaign),
            GroupName(application_id, Kind.COUNTRY, source, country=country),
        ]
        links = self._link_sets.get(link_set, ())
        for kind, members in (
            (Kind.DESTINATION, {destination for destination, _ in links}),
            (Kind.LABEL, {label for _, label in links if label is not None}),
        ):
            event += [GroupName(application_id, kind, source, campaign, name=member) for member in sorted(members)]
        sent = [*event, GroupName(application_id, Kind.COHORT, source, campaign, country)]
        self.names |= {group.id: group for group in sent}
        return tuple(group.id for group in event), tuple(group.id for group in sent)


def expand(sums: SlotSums, expansion: Expansion) -> PeriodAmounts:
    """Return the amounts to add to each rolled-up count, for all groups and all lengths of period."""
    changes: PeriodAmounts = {}
    for basis, slots_of_basis in enumerate(sums.by_basis):
        for (cohort, slot, link_set), of_slot in slots_of_basis.items():
            groups = expansion.groups(cohort, link_set)[basis]
            for level, slots in enumerate(_SLOTS):
                for group in groups:
                    key = (group, basis * 3 + level, slot // slots)
                    if (of_period := changes.get(key)) is None:
                        changes[key] = dict(of_slot)
                        continue
                    for metric, number in of_slot.items():
                        add_amount(of_period, metric, number)
    return changes


def add_amount(sums: dict[str, int | Decimal], metric: str, amount: int | Decimal) -> None:
    """Add the amount of a metric to the sum of this metric. Both are integers, or both are amounts of money."""
    if (stored := sums.get(metric)) is None:
        sums[metric] = amount
    elif isinstance(amount, int):
        sums[metric] = stored + amount
    else:
        sums[metric] = EXACT.add(Decimal(stored), amount)


def add(connection: Connection, amounts: Mapping[CountedEvent, Decimal]) -> None:
    """Add amounts to the rolled-up counts of all groups to which they belong. The caller must hold the lock of `counts.fold`."""
    if not amounts:
        return
    sums = SlotSums(amounts.items())
    expansion = Expansion(connection, sums.pairs())
    add_changes(connection, expand(sums, expansion), expansion.names)


def add_changes(connection: Connection, changes: PeriodAmounts, names: Mapping[int, GroupName]) -> None:
    """Add amounts to the rolled-up counts.

    `names` contains the name of each group in `changes`, by group id. The caller must hold the lock of `counts.fold`."""
    if not changes:
        return
    rows: dict[PeriodKey, Amounts] = {key: rollup_data.amounts_of(amounts) for key, amounts in changes.items()}
    for group, number, period, data in raw_sql.rows(connection, _READ, *raw_sql.bulk_parameters(connection, list(rows))):
        key = (group, number, period)
        rows[key] = rollup_data.add_amounts(rollup_data.loads(data), rows[key])
    groups = sorted({key[0] for key in rows})
    raw_sql.execute_bulk(connection, _ADD_GROUPS, [(group, *names[group]) for group in groups])
    raw_sql.execute_bulk(connection, UPSERT, [(*key, rollup_data.dumps(data)) for key, data in rows.items()])


def sum_periods(
    connection: Connection,
    sums: dict[int, PeriodSums],
    groups: Sequence[int],
    number: int,
    start: int,
    stop: int,
    key_of: Callable[[int, int], int],
) -> None:
    """Add up the amounts of each group over the periods from `start` (inclusive) to `stop` (exclusive). Store the results in
    `sums`.

    `number` is the number of a series (a basis and a length of period). `key_of` returns the key in `sums` for a group and a
    period.

    The table has one row for each group and period, with the amounts of all metrics. With one row for each metric, the database
    itself could add up the amounts. But reading and sorting so many rows would take five times as long as the addition in
    Python."""
    for group, period, data in read_periods(connection, groups, number, start, stop):
        key = key_of(group, period)
        if (of_key := sums.get(key)) is None:
            of_key = sums[key] = PeriodSums()
        of_key.add(rollup_data.loads(data))


def read_periods(connection: Connection, groups: Sequence[int], number: int, start: int, stop: int) -> Sequence[Sequence[Any]]:
    """Return the rows of the periods from `start` (inclusive) to `stop` (exclusive). Each row is the group, the period and the
    data for `rollup_data.loads`. `number` is the number of a series (a basis and a length of period)."""
    return raw_sql.rows(connection, _READ_PERIODS, list(groups), number, start, stop)


def heal(connection: Connection, limit: int = MAX_HEALED_ROWS) -> int:
    """Add to the rolled-up counts what an older release has written only to the table `counts`. Return the number of added
    counts. The caller must hold the lock of `counts.fold`."""
    rows = raw_sql.rows(connection, _READ_NOT_ROLLED_UP, limit)
    amounts: dict[CountedEvent, Decimal] = {}
    for cohort, slot, metric, amount, rolled_up in rows:
        amounts[CountedEvent(cohort, slot, metric)] = EXACT.subtract(Decimal(amount), Decimal(rolled_up or 0))
    add(connection, amounts)
    raw_sql.execute_bulk(connection, _MARK_ROLLED_UP, [tuple(row[:3]) for row in rows])
    return len(rows)


def read_not_rolled_up(connection: Connection, within: range, limit: int) -> tuple[dict[CountedEvent, Decimal], bool]:
    """Return at most `limit` amounts that are in `counts` and not yet in the rolled-up counts. Also return whether these are all
    such amounts."""
    rows = raw_sql.rows(connection, _READ_MISSING, within.start, within.stop, limit + 1)
    amounts = {
        CountedEvent(cohort, slot, metric): EXACT.subtract(Decimal(amount), Decimal(rolled_up or 0))
        for cohort, slot, metric, amount, rolled_up in rows[:limit]
    }
    return amounts, len(rows) <= limit


class Piece(NamedTuple):
    """A sequence of rolled-up periods of the same length, from `start` (inclusive) to `stop` (exclusive)."""

    level: Level
    start: int
    stop: int


def split(within: range, longest: Level = Level.DAY) -> Iterator[Piece]:
    """Split a range of time slots into rolled-up periods that are as long as possible: quarters of an hour and hours at both
    ends, and days between them."""
    if within.start >= within.stop:
        return
    if longest is Level.QUARTER:
        yield Piece(Level.QUARTER, within.start, within.stop)
        return
    slots = longest.slots
    first, last = -(-within.start // slots), within.stop // slots
    shorter = Level(longest - 1)
    if first >= last:
        yield from split(within, shorter)
        return
    yield from split(range(within.start, first * slots), shorter)
    yield Piece(longest, first, last)
    yield from split(range(last * slots, within.stop), shorter)


# Each row of these results is a JSON array. Its last element is the JSON object of the column `data`.
_ROW = "'[' || r.group_id || ',' || r.series || ',' || r.period || ',' || r.data || ']'"
_READ = {
    "sqlite": f"SELECT '[' || coalesce(group_concat({_ROW}), '') || ']' FROM json_each(?) AS j "
    "CROSS JOIN rollups AS r ON r.group_id = j.value ->> 0 AND r.series = j.value ->> 1 AND r.period = j.value ->> 2",
    "postgresql": "SELECT r.group_id, r.series, r.period, r.data FROM rollups AS r "
    "JOIN unnest($1::bigint[], $2::smallint[], $3::int[]) AS k(group_id, series, period) USING (group_id, series, period)",
}
_READ_PERIODS = {
    "sqlite": "SELECT '[' || coalesce(group_concat('[' || r.group_id || ',' || r.period || ',' || r.data || ']'), '') || ']' "
    "FROM json_each(?) AS j "
    "CROSS JOIN rollups AS r ON r.group_id = j.value AND r.series = ? AND r.period >= ? AND r.period < ?",
    "postgresql": "SELECT group_id, period, data FROM rollups "
    "WHERE group_id = ANY($1::bigint[]) AND series = $2::smallint AND period >= $3::int AND period < $4::int",
}
UPSERT = {
    # "WHERE true" is necessary: without it, SQLite parses ON CONFLICT as a join condition.
    "sqlite": "INSERT INTO rollups (group_id, series, period, data) "
    "SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?) WHERE true "
    "ON CONFLICT DO UPDATE SET data = excluded.data",
    "postgresql": "INSERT INTO rollups (group_id, series, period, data) "
    "SELECT * FROM unnest($1::bigint[], $2::smallint[], $3::int[], $4::text[]) "
    "ON CONFLICT (group_id, series, period) DO UPDATE SET data = excluded.data",
}
_ADD_GROUPS = {
    "sqlite": "INSERT INTO count_groups (id, application_id, kind, source, campaign, country, name) "
    "SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6 "
    "FROM json_each(?) WHERE true ON CONFLICT DO NOTHING",
    "postgresql": "INSERT INTO count_groups (id, application_id, kind, source, campaign, country, name) SELECT * FROM "
    "unnest($1::bigint[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[]) ON CONFLICT DO NOTHING",
}
_MISSING = f"FROM counts WHERE ({NOT_ROLLED_UP})"
_MISSING_SQLITE = f"FROM counts INDEXED BY counts_not_rolled_up WHERE ({NOT_ROLLED_UP})"
_COUNT_COLUMNS = "cohort_id, quarter, metric, amount, rolled_up"
_READ_NOT_ROLLED_UP = {
    "sqlite": f"SELECT json_group_array(json_array({_COUNT_COLUMNS})) FROM (SELECT {_COUNT_COLUMNS} {_MISSING_SQLITE} LIMIT ?)",
    "postgresql": f"SELECT {_COUNT_COLUMNS} {_MISSING} ORDER BY quarter, cohort_id LIMIT $1",
}
_READ_MISSING = {
    "sqlite": f"SELECT json_group_array(json_array({_COUNT_COLUMNS})) FROM "
    f"(SELECT {_COUNT_COLUMNS} {_MISSING_SQLITE} AND quarter >= ? AND quarter < ? LIMIT ?)",
    # With the ORDER BY, PostgreSQL uses the partial index. Without it, PostgreSQL would read the whole table, because it does not
    # know how few rows are in the index.
    "postgresql": f"SELECT {_COUNT_COLUMNS} {_MISSING} AND quarter >= $1 AND quarter < $2 ORDER BY quarter, cohort_id LIMIT $3",
}
_MARK_ROLLED_UP = {
    "sqlite": "UPDATE counts SET rolled_up = amount FROM json_each(?) AS j "
    "WHERE cohort_id = j.value ->> 0 AND quarter = j.value ->> 1 AND metric = j.value ->> 2",
    "postgresql": "UPDATE counts AS c SET rolled_up = c.amount "
    "FROM unnest($1::int[], $2::int[], $3::text[]) AS k(cohort_id, quarter, metric) "
    "WHERE c.cohort_id = k.cohort_id AND c.quarter = k.quarter AND c.metric = k.metric",
}
