"""This module computes the statistics of Infobip's conversion processes: the number of messages that started a process, and the
number of conversions that ended it.

Both numbers are sums of counts. The rows of messages and conversions are not read. A start is counted at the time of the rewrite.
An end is counted at the time of the conversion. Therefore a short interval may have more ends than starts.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from datetime import datetime, time, timedelta
from typing import Literal

from sqlalchemy import BigInteger, Connection, Text, cast, func, select, type_coerce

from shortener.model import mutable_record
from shortener.reporting.counts import read_unfolded, time_slots
from shortener.reporting.queries import fetch_packed
from shortener.reporting.statistics import MAX_PENDING_ROWS
from shortener.storage.schema import cohorts, counts, messages, processes

#: The maximum number of intervals in one report. Each interval needs one SQL statement. A month of 31 days has 744 hours.
MAX_INTERVALS = 750
_STARTS, _ENDS = "messages", "ends"

Granulation = Literal["MINUTE", "HOUR", "DAY", "WEEK", "MONTH"]


@mutable_record
class ProcessCounts:
    """The number of starts and the number of ends of a conversion process."""

    starts: int = 0
    ends: int = 0

    @classmethod
    def total(cls, rates: Iterable[ProcessCounts]) -> ProcessCounts:
        parts = list(rates)
        return cls(sum(rate.starts for rate in parts), sum(rate.ends for rate in parts))

    def add(self, metric: str, amount: int) -> None:
        if metric == _STARTS:
            self.starts += amount
        else:
            self.ends += amount

    @property
    def conversion_rate(self) -> float:
        """The number of ends divided by the number of starts, rounded to six digits. It is 0 if there are no starts."""
        return round(self.ends / self.starts, 6) if self.starts else 0.0


def find_process_key(connection: Connection, application_id: int, message_id: str) -> str | None:
    """Return the key of a message's conversion process. Return None if the message does not exist or has no process."""
    statement = (
        select(processes.c.process_key)
        .join_from(messages, cohorts, cohorts.c.id == messages.c.cohort_id)
        .join(processes, processes.c.id == cohorts.c.process_id)
        .where(messages.c.application_id == application_id, messages.c.message_id == message_id)
    )
    key: str | None = connection.scalar(statement)
    return key


def find_process(connection: Connection, application_id: int, process_key: str) -> int | None:
    """Return the id of the conversion process with this key. Return None if the application has no such process."""
    is_own = processes.c.application_id == application_id
    number: int | None = connection.scalar(select(processes.c.id).where(processes.c.process_key == process_key, is_own))
    return number


def split_interval(since: datetime, until: datetime, granulation: Granulation | None) -> list[tuple[datetime, range]]:
    """Split the time from `since` to `until` (UTC) into intervals. Return the start and the time slots of each interval.

    The first interval starts at `since`. Each later interval starts at a full hour, at midnight, on Monday or on the first of a
    month, depending on the granulation. With the granulation MINUTE, an interval has 15 minutes, because counts are stored for
    time slots of 15 minutes. With the granulation None, there is one interval.

    Raise ValueError if there are more than MAX_INTERVALS."""
    intervals: list[tuple[datetime, range]] = []
    while since < until:
        if len(intervals) == MAX_INTERVALS:
            raise ValueError(f"gives more than {MAX_INTERVALS} intervals")
        end = until if granulation is None else min(_next(since, granulation), until)
        intervals.append((since, time_slots(since, end)))
        since = end
    return intervals


def _next(at: datetime, granulation: Granulation) -> datetime:
    """Return the end of the interval that contains the time `at`. This end is also the start of the next interval."""
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
    """Return the counts of each interval by country ("" if unknown). Countries without messages and conversions are left out.

    `intervals` are ranges of time slots that do not overlap, oldest first. The result also includes count deltas that are not yet
    part of the stored counts, but reads at most MAX_PENDING_ROWS of their rows."""
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
    """Add the starts and ends of count deltas that are not yet part of the stored counts."""
    _, sums = read_unfolded(connection, MAX_PENDING_ROWS)
    if not sums:
        return
    own_cohorts = select(cohorts.c.id, cohorts.c.country).where(cohorts.c.process_id == process_id)
    countries = {row.id: row.country for row in connection.execute(own_cohorts)}
    starts = [within.start for within in intervals]
    for (cohort, slot, metric), counted in sums.items():
        index = bisect.bisect(starts, slot) - 1
        if cohort in countries and metric in (_STARTS, _ENDS) and index >= 0 and slot in intervals[index]:
            rates[index].setdefault(countries[cohort], ProcessCounts()).add(metric, int(counted))
