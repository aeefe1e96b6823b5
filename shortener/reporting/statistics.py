"""Statistics: totals, by day and by country. They come from the counts; messages and hits are not read.

Each event is counted at its own time: a message when it was created, a click when it was clicked. Therefore the clicks of a day may
belong to messages of the day before, and a rate of a short time may exceed 1.

Recent events are included: deltas that are not folded yet are added to the counts, in the same transaction. If more than
MAX_PENDING_ROWS rows of deltas wait, the newest are left out, and `complete` is false in the response.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Text,
    case,
    cast,
    func,
    select,
    type_coerce,
)

from shortener.outbox.count_deltas import time_to_click_bucket, time_to_click_seconds
from shortener.reporting.counts import EXACT, read_unfolded, time_slots
from shortener.reporting.queries import fetch_packed
from shortener.storage.schema import cohorts, counts
from shortener.storage.values_table import values_table

MAX_PENDING_ROWS = 1000  # rows of count deltas that one report adds to the counts
MAX_DAYS = 366  # of a daily report

_TTC = "ttc:"
_VALUE = "value:"
_DEVICE = "device:"
_BROWSER = "browser:"


@dataclass(frozen=True, slots=True)
class StatisticsFilter:
    """Conditions of a report. The time slots (15 minutes) that contain `since` and `until` are counted completely."""

    application_id: int
    since: datetime
    until: datetime
    campaign: str | None = None
    source: str | None = None

    @property
    def within(self) -> range:
        """The time slots of the report."""
        return time_slots(self.since, self.until)

    def cohort_conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions on cohorts."""
        conditions = [cohorts.c.application_id == self.application_id]
        if self.campaign is not None:
            conditions.append(cohorts.c.campaign == self.campaign)
        if self.source is not None:
            conditions.append(cohorts.c.source == self.source)
        return conditions


@dataclass(slots=True)
class Figures:
    """The counts of one group, 0 for a metric without counts.

    `value`: the sum of conversion values by currency ("" without a currency). `times_to_click`: the number of first clicks by
    bucket. `devices` and `browsers`: clicks; those of the last minutes are not included yet. Rates are None if the divisor is
    0.
    """

    counted: dict[str, int] = field(default_factory=dict)
    value: dict[str, Decimal] = field(default_factory=dict)
    times_to_click: dict[int, int] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    browsers: dict[str, int] = field(default_factory=dict)

    def add(self, metric: str, amount: Decimal) -> None:
        """Add an amount to the count of a metric."""
        if metric.startswith(_VALUE):
            currency = metric.removeprefix(_VALUE)
            self.value[currency] = EXACT.add(self.value.get(currency, Decimal()), amount)
        elif metric.startswith(_TTC):
            bucket = int(metric.removeprefix(_TTC))
            self.times_to_click[bucket] = self.times_to_click.get(bucket, 0) + int(amount)
        elif metric.startswith(_DEVICE):
            kind = metric.removeprefix(_DEVICE)
            self.devices[kind] = self.devices.get(kind, 0) + int(amount)
        elif metric.startswith(_BROWSER):
            name = metric.removeprefix(_BROWSER)
            self.browsers[name] = self.browsers.get(name, 0) + int(amount)
        else:
            self.counted[metric] = self.counted.get(metric, 0) + int(amount)

    def __getitem__(self, metric: str) -> int:
        return self.counted.get(metric, 0)

    @property
    def delivery_rate(self) -> float | None:
        """Delivered messages divided by all messages."""
        return self._rate("delivered", "messages")

    @property
    def click_rate(self) -> float | None:
        """Messages that a person clicked, divided by all messages. Not only delivered ones: not every carrier reports delivery."""
        return self._rate("clicked_messages", "messages")

    @property
    def conversion_rate(self) -> float | None:
        """Conversions divided by messages (Infobip: endCount / startCount)."""
        return self._rate("conversions", "messages")

    def _rate(self, part: str, whole: str) -> float | None:
        return round(self[part] / self[whole], 6) if self[whole] else None

    def clicked_within(self, seconds: Sequence[int]) -> list[int]:
        """Return the number of clicked messages whose time to click is at most each limit but above the limit before it.

        The last number counts the times above all limits. A time that is up to 5 % above a limit may count as within it."""
        bounds = [time_to_click_bucket(bound) for bound in seconds]
        within = [0] * (len(seconds) + 1)
        for bucket, amount in self.times_to_click.items():
            within[bisect.bisect_left(bounds, bucket)] += amount
        return within

    def seconds_to_click(self, percent: int) -> float | None:
        """Return the time in seconds within which `percent` of the clicked messages were clicked; None without clicks.

        The time starts at sending, or at the rewrite if the time of sending is unknown. It is exact to 2.5 % or half a second."""
        total = sum(self.times_to_click.values())
        if total <= 0:
            return None
        cumulated = 0
        for bucket, amount in sorted(self.times_to_click.items()):
            cumulated += amount
            if cumulated * 100 >= percent * total:
                return round(time_to_click_seconds(bucket), 1)
        return None


Group = TypeVar("Group", bound=Hashable)


@dataclass(frozen=True, slots=True)
class StatisticsReport(Generic[Group]):
    """The figures by group. `complete`: no recent events are missing."""

    groups: Mapping[Group, Figures]
    complete: bool


def totals(connection: Connection, scope: StatisticsFilter) -> StatisticsReport[None]:
    """Return one group, None. Run each report in one read transaction, so that counts and deltas match."""
    figures = Figures()
    for metric, value, amount in fetch_packed(connection, _sums(scope, scope.within)):
        figures.add(metric, _amount(value, amount))
    return _with_pending(connection, scope, {None: figures}, lambda country, slot: None)


def by_country(connection: Connection, scope: StatisticsFilter) -> StatisticsReport[str]:
    """Return groups by ISO 3166 code of the recipient's country, "" if unknown. Countries without counts are left out."""
    groups: dict[str, Figures] = {}
    for country, metric, value, amount in fetch_packed(connection, _sums(scope, scope.within, cohorts.c.country)):
        groups.setdefault(country, Figures()).add(metric, _amount(value, amount))
    return _with_pending(connection, scope, groups, lambda country, slot: country)


def daily(connection: Connection, scope: StatisticsFilter, zone: tzinfo) -> StatisticsReport[date]:
    """Return one group for each day in `zone`, in order. The first and the last day may be incomplete."""
    days = _days(scope, zone)
    groups: dict[date, Figures] = {}
    for day, within in days:
        # One statement per day: a single statement grouped by day reads the same rows but takes four times as long to sort them.
        groups[day] = figures = Figures()
        for metric, value, amount in fetch_packed(connection, _sums(scope, within)):
            figures.add(metric, _amount(value, amount))
    starts = [within.start for _, within in days]
    return _with_pending(connection, scope, groups, lambda country, slot: days[bisect.bisect(starts, slot) - 1][0])


def _days(scope: StatisticsFilter, zone: tzinfo) -> list[tuple[date, range]]:
    within = scope.within
    day = scope.since.astimezone(zone).date()
    days = []
    start = within.start
    while start < within.stop:
        after = day + timedelta(days=1)
        midnight = datetime(after.year, after.month, after.day, tzinfo=zone)
        stop = min(time_slots(midnight, midnight).start, within.stop)
        days.append((day, range(start, stop)))
        day, start = after, stop
    return days


_is_value = counts.c.metric.startswith(_VALUE)


def _sums(scope: StatisticsFilter, within: range, *group: ColumnElement[Any]) -> Select[Any]:
    """Return a statement with rows of (group, metric, NULL, sum).

    Amounts of money give rows of (group, metric, amount, number), so that the caller can add them exactly."""
    value = case((_is_value, type_coerce(counts.c.amount, Text)))
    amount = case((_is_value, 1), else_=cast(type_coerce(counts.c.amount, Text), BigInteger))
    by = [*group, counts.c.metric, value]
    return (
        select(*by, func.sum(amount))
        .join_from(counts, cohorts, cohorts.c.id == counts.c.cohort_id)
        .where(*scope.cohort_conditions(), counts.c.quarter >= within.start, counts.c.quarter < within.stop)
        .group_by(*by)
    )


def _amount(value: str | None, amount: int) -> Decimal:
    return Decimal(amount) if value is None else EXACT.multiply(Decimal(value), Decimal(amount))


def _with_pending(
    connection: Connection, scope: StatisticsFilter, groups: dict[Group, Figures], group_of: Callable[[str, int], Group]
) -> StatisticsReport[Group]:
    """Add the count deltas that are not folded yet, and return the report."""
    ids, sums = read_unfolded(connection, MAX_PENDING_ROWS + 1)
    within = scope.within
    pending = {key: amount for key, amount in sums.items() if key[1] in within}
    chosen = values_table(connection, {(cohort,) for cohort, _, _ in pending}, id=Integer)
    own_cohorts = select(cohorts.c.id, cohorts.c.country).where(*scope.cohort_conditions(), cohorts.c.id.in_(select(chosen.c.id)))
    countries = {row.id: row.country for row in connection.execute(own_cohorts)} if pending else {}
    for (cohort, slot, metric), amount in pending.items():
        if cohort in countries:
            groups.setdefault(group_of(countries[cohort], slot), Figures()).add(metric, amount)
    return StatisticsReport(groups, complete=len(ids) <= MAX_PENDING_ROWS)
