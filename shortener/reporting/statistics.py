"""Statistics: totals, by day and by country, made from the counts; messages and hits are never read.

A metric is counted at the time of the thing itself: a message when it was made, a click when it was clicked. So the clicks of a
day may belong to messages of the day before, and a rate of a short time may be above 1.

What happened a moment ago is in the figures too: what is not yet folded is added to the counts, from the same snapshot. Only
when folding is far behind (`MAX_PENDING_ROWS`) are the newest happenings left out, and the answer says so (`complete`).
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

MAX_PENDING_ROWS = 1000  # tallies that one question adds to the counts
MAX_DAYS = 366  # days that can be told one by one

_TTC = "ttc:"
_VALUE = "value:"
_DEVICE = "device:"
_BROWSER = "browser:"


@dataclass(frozen=True, slots=True)
class StatisticsFilter:
    """What is asked for. The quarters of an hour that `since` and `until` lie in are counted as a whole."""

    application_id: int
    since: datetime
    until: datetime
    campaign: str | None = None
    source: str | None = None

    @property
    def within(self) -> range:
        return time_slots(self.since, self.until)

    def includes(self) -> list[ColumnElement[bool]]:
        """Conditions on cohorts."""
        wanted = [cohorts.c.application_id == self.application_id]
        if self.campaign is not None:
            wanted.append(cohorts.c.campaign == self.campaign)
        if self.source is not None:
            wanted.append(cohorts.c.source == self.source)
        return wanted


@dataclass(slots=True)
class Figures:
    """The counts of one group; what was never counted is 0.

    `value` is by currency ("" for amounts without one). Rates are None when there is nothing to divide by, times when nobody
    clicked.
    """

    counted: dict[str, int] = field(default_factory=dict)
    value: dict[str, Decimal] = field(default_factory=dict)
    times_to_click: dict[int, int] = field(default_factory=dict)  # by bucket
    # Clicks; those of the last minutes are not among them yet.
    devices: dict[str, int] = field(default_factory=dict)
    browsers: dict[str, int] = field(default_factory=dict)

    def add(self, metric: str, amount: Decimal) -> None:
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
        """Delivered messages of all messages."""
        return self._share("delivered", "messages")

    @property
    def click_rate(self) -> float | None:
        """Messages that a person clicked, of all messages: of all, because not every carrier reports delivery."""
        return self._share("clicked_messages", "messages")

    @property
    def conversion_rate(self) -> float | None:
        """Conversions per message (Infobip: endCount / startCount)."""
        return self._share("conversions", "messages")

    def _share(self, part: str, whole: str) -> float | None:
        return round(self[part] / self[whole], 6) if self[whole] else None

    def clicked_within(self, seconds: Sequence[int]) -> list[int]:
        """How many of the clicked messages were clicked within each of these times, but not within the one before it; and, as the
        last, how many later. A time may be up to 5 % longer than that which it is counted within."""
        bounds = [time_to_click_bucket(bound) for bound in seconds]
        within = [0] * (len(seconds) + 1)
        for bucket, amount in self.times_to_click.items():
            within[bisect.bisect_left(bounds, bucket)] += amount
        return within

    def seconds_to_click(self, percent: int) -> float | None:
        """The time from sending (or, if that is not known, from rewriting) within which `percent` of the clicked messages were
        clicked; right within 2.5 %, or half a second."""
        total = sum(self.times_to_click.values())
        if total <= 0:
            return None
        reached = 0
        for bucket, amount in sorted(self.times_to_click.items()):
            reached += amount
            if reached * 100 >= percent * total:
                return round(time_to_click_seconds(bucket), 1)
        return None


Group = TypeVar("Group", bound=Hashable)


@dataclass(frozen=True, slots=True)
class StatisticsReport(Generic[Group]):
    """`complete`: everything that happened is in it."""

    groups: Mapping[Group, Figures]
    complete: bool


def totals(connection: Connection, scope: StatisticsFilter) -> StatisticsReport[None]:
    """One group, None. Like all three, to be run as one read, so that counts and tallies are of the same moment."""
    figures = Figures()
    for metric, value, amount in fetch_packed(connection, _sums(scope, scope.within)):
        figures.add(metric, _amount(value, amount))
    return _with_pending(connection, scope, {None: figures}, lambda country, quarter: None)


def by_country(connection: Connection, scope: StatisticsFilter) -> StatisticsReport[str]:
    """By ISO 3166 code of the recipient's number, "" when it is not known; countries where nothing happened are left out."""
    groups: dict[str, Figures] = {}
    for country, metric, value, amount in fetch_packed(connection, _sums(scope, scope.within, cohorts.c.country)):
        groups.setdefault(country, Figures()).add(metric, _amount(value, amount))
    return _with_pending(connection, scope, groups, lambda country, quarter: country)


def daily(connection: Connection, scope: StatisticsFilter, zone: tzinfo) -> StatisticsReport[date]:
    """By day as `zone` has them, every day between the two times, in order; the first and the last may be parts of days."""
    days = _days(scope, zone)
    groups: dict[date, Figures] = {}
    for day, within in days:
        # Day by day: one statement grouped by day reads the same rows, and takes four times as long to sort them.
        groups[day] = figures = Figures()
        for metric, value, amount in fetch_packed(connection, _sums(scope, within)):
            figures.add(metric, _amount(value, amount))
    edges = [within.start for _, within in days]
    return _with_pending(connection, scope, groups, lambda country, quarter: days[bisect.bisect(edges, quarter) - 1][0])


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
    """Rows of (group, metric, NULL, sum); for amounts of money (group, metric, amount, how often), to be added exactly."""
    value = case((_is_value, type_coerce(counts.c.amount, Text)))
    amount = case((_is_value, 1), else_=cast(type_coerce(counts.c.amount, Text), BigInteger))
    by = [*group, counts.c.metric, value]
    return (
        select(*by, func.sum(amount))
        .join_from(counts, cohorts, cohorts.c.id == counts.c.cohort_id)
        .where(*scope.includes(), counts.c.quarter >= within.start, counts.c.quarter < within.stop)
        .group_by(*by)
    )


def _amount(value: str | None, amount: int) -> Decimal:
    return Decimal(amount) if value is None else EXACT.multiply(Decimal(value), Decimal(amount))


def _with_pending(
    connection: Connection, scope: StatisticsFilter, groups: dict[Group, Figures], group_of: Callable[[str, int], Group]
) -> StatisticsReport[Group]:
    """Add what is not yet folded."""
    ids, sums = read_unfolded(connection, MAX_PENDING_ROWS + 1)
    within = scope.within
    pending = {key: amount for key, amount in sums.items() if key[1] in within}
    chosen = values_table(connection, {(cohort,) for cohort, _, _ in pending}, id=Integer)
    mine = select(cohorts.c.id, cohorts.c.country).where(*scope.includes(), cohorts.c.id.in_(select(chosen.c.id)))
    countries = {row.id: row.country for row in connection.execute(mine)} if pending else {}
    for (cohort, quarter, metric), amount in pending.items():
        if cohort in countries:
            groups.setdefault(group_of(countries[cohort], quarter), Figures()).add(metric, amount)
    return StatisticsReport(groups, complete=len(ids) <= MAX_PENDING_ROWS)
