"""Conversion processes (Infobip): how many messages began one, and how many of them were said to have ended it.

Made from the counts, like all statistics: messages and conversions are never read. A start is counted when the message was
rewritten, an end when it was reported; so of a short interval there may be more ends than starts.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Literal

from sqlalchemy import BigInteger, Connection, Text, cast, func, select, type_coerce

from shortener.reporting.counts import read_unfolded, time_slots
from shortener.reporting.queries import fetch_packed
from shortener.reporting.statistics import MAX_PENDING_ROWS
from shortener.storage.schema import cohorts, counts, messages, processes

MAX_INTERVALS = 750  # each costs a statement; a month has 744 hours
_STARTS, _ENDS = "messages", "ends"

Granulation = Literal["MINUTE", "HOUR", "DAY", "WEEK", "MONTH"]


@dataclass(slots=True)
class ProcessCounts:
    starts: int = 0
    ends: int = 0

    @classmethod
    def total(cls, rates: Iterable[ProcessCounts]) -> ProcessCounts:
        every = list(rates)
        return cls(sum(rate.starts for rate in every), sum(rate.ends for rate in every))

    def add(self, metric: str, amount: int) -> None:
        if metric == _STARTS:
            self.starts += amount
        else:
            self.ends += amount

    @property
    def conversion_rate(self) -> float:
        """Ends for each start; 0 when nothing began."""
        return round(self.ends / self.starts, 6) if self.starts else 0.0


def find_process_key(connection: Connection, application_id: int, message_id: str) -> str | None:
    """The key of the process that the message belongs to; None when the application has no such message."""
    statement = (
        select(processes.c.process_key)
        .join_from(messages, cohorts, cohorts.c.id == messages.c.cohort_id)
        .join(processes, processes.c.id == cohorts.c.process_id)
        .where(messages.c.application_id == application_id, messages.c.message_id == message_id)
    )
    key: str | None = connection.scalar(statement)
    return key


def find_process(connection: Connection, application_id: int, process_key: str) -> int | None:
    """The number of the process; None when the application has none with this key."""
    mine = processes.c.application_id == application_id
    number: int | None = connection.scalar(select(processes.c.id).where(processes.c.process_key == process_key, mine))
    return number


def split_interval(since: datetime, until: datetime, granulation: Granulation | None) -> list[tuple[datetime, range]]:
    """The intervals between the two times (UTC): when each begins, and its quarters of an hour. They begin with the hour, the day,
    Monday or the month, save the first; MINUTE cuts quarters of an hour, the finest that is counted.

    Raises ValueError when there are more than MOST_INTERVALS."""
    intervals: list[tuple[datetime, range]] = []
    while since < until:
        if len(intervals) == MAX_INTERVALS:
            raise ValueError(f"cuts the time into more than {MAX_INTERVALS} intervals")
        end = until if granulation is None else min(_next(since, granulation), until)
        intervals.append((since, time_slots(since, end)))
        since = end
    return intervals


def _next(at: datetime, granulation: Granulation) -> datetime:
    """When the next interval begins."""
    match granulation:
        case "MINUTE":
            return at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0) + timedelta(minutes=15)
        case "HOUR":
            return at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    midnight = datetime.combine(at.date(), time(), at.tzinfo)
    match granulation:
        case "DAY":
            return midnight + timedelta(days=1)
        case "WEEK":
            return midnight + timedelta(days=7 - at.weekday())
        case "MONTH":
            return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)


def conversion_rates(connection: Connection, process_id: int, intervals: Sequence[range]) -> list[dict[str, ProcessCounts]]:
    """For each interval the rates by country ("" when unknown), where anything happened. `intervals` are ranges of quarters of an
    hour, none overlapping, the oldest first. What happened a moment ago is in them, as far as folding is not behind."""
    amount = func.sum(cast(type_coerce(counts.c.amount, Text), BigInteger))
    rates: list[dict[str, ProcessCounts]] = []
    for within in intervals:
        statement = (
            select(cohorts.c.country, counts.c.metric, amount)
            .join_from(cohorts, counts, counts.c.cohort_id == cohorts.c.id)
            .where(cohorts.c.process_id == process_id, counts.c.metric.in_((_STARTS, _ENDS)))
            .where(counts.c.quarter >= within.start, counts.c.quarter < within.stop)
            .group_by(cohorts.c.country, counts.c.metric)
        )
        of_interval: dict[str, ProcessCounts] = {}
        for country, metric, counted in fetch_packed(connection, statement):
            of_interval.setdefault(country, ProcessCounts()).add(metric, int(counted))
        rates.append(of_interval)
    _add_pending(connection, process_id, intervals, rates)
    return rates


def _add_pending(
    connection: Connection, process_id: int, intervals: Sequence[range], rates: list[dict[str, ProcessCounts]]
) -> None:
    """What is not yet folded into the counts."""
    _, sums = read_unfolded(connection, MAX_PENDING_ROWS)
    if not sums:
        return
    mine = select(cohorts.c.id, cohorts.c.country).where(cohorts.c.process_id == process_id)
    countries = {row.id: row.country for row in connection.execute(mine)}
    begins = [within.start for within in intervals]
    for (cohort, quarter, metric), counted in sums.items():
        place = bisect.bisect(begins, quarter) - 1
        if cohort in countries and metric in (_STARTS, _ENDS) and place >= 0 and quarter in intervals[place]:
            rates[place].setdefault(countries[cohort], ProcessCounts()).add(metric, int(counted))
