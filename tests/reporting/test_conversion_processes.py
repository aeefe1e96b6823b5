"""Tests of the conversion rates of conversion processes, from stored counts and from count deltas that are not yet added to
them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert

from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import CountDelta
from shortener.reporting.conversion_processes import MAX_INTERVALS, Granulation, ProcessCounts, conversion_rates, split_interval
from shortener.reporting.counts import fold, time_slots
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.reporting.plans import plans, scanned

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
PROCESS, OTHER = 7, 8


def put_counts(connection: Connection) -> None:
    """Write the counts of a conversion process with two countries and two campaigns. Also write counts of another conversion
    process."""
    names = ("id", "application_id", "campaign", "source", "country", "process_id")
    cohorts = [
        (1, 1, "", "api", "US", PROCESS),
        (2, 1, "spring", "api", "US", PROCESS),
        (3, 1, "", "api", "", PROCESS),
        (4, 1, "", "api", "US", OTHER),
    ]
    connection.execute(insert(schema.cohorts), [dict(zip(names, cohort, strict=True)) for cohort in cohorts])
    delta = CountDelta()
    for cohort, at, metric, amount in (
        (1, NOON, "messages", 10),
        (1, NOON, "segments", 20),
        (1, NOON + timedelta(minutes=14, seconds=59), "ends", 4),
        (1, NOON + HOUR, "ends", 1),
        (2, NOON + HOUR, "messages", 2),
        (3, NOON + HOUR, "messages", 3),
        (3, NOON + HOUR, "conversions", 3),
        (4, NOON, "messages", 100),
        (4, NOON, "ends", 100),
    ):
        delta.add(cohort, to_ms(at), metric, amount)
    count_deltas.append(connection, 1, delta)


HOURS = [time_slots(NOON + number * HOUR, NOON + (number + 1) * HOUR) for number in range(-1, 2)]
EXPECTED = [{}, {"US": ProcessCounts(10, 4)}, {"US": ProcessCounts(2, 1), "": ProcessCounts(3, 0)}]


async def test_conversion_rates_by_interval_and_country_are_the_same_before_and_after_count_deltas_are_folded(
    database: Database,
) -> None:
    await database.write(put_counts)
    assert await database.read(conversion_rates, PROCESS, HOURS) == EXPECTED
    assert await database.write(fold) == 1
    assert await database.read(conversion_rates, PROCESS, HOURS) == EXPECTED
    assert await database.read(conversion_rates, PROCESS, [time_slots(NOON, NOON + 2 * HOUR)]) == [
        {"US": ProcessCounts(12, 5), "": ProcessCounts(3, 0)}
    ]
    assert await database.read(conversion_rates, PROCESS, []) == []
    assert await database.read(conversion_rates, 9, HOURS) == [{}, {}, {}]


async def test_conversion_rates_are_read_from_indexes_without_reading_messages(sqlite: Database) -> None:
    await sqlite.write(put_counts)

    def explain(connection: Connection) -> list[str]:
        return plans(connection, lambda: conversion_rates(connection, PROCESS, HOURS[:1]))

    found = await sqlite.read(explain)
    assert len(found) == 3
    for plan in found:
        assert scanned(plan) == []
        assert not any(table in plan for table in ("messages", "conversions"))
    assert "SEARCH counts USING" in found[0]
    assert "(cohort_id=? AND quarter>? AND quarter<?)" in found[0]


def test_the_conversion_rate_of_a_process_without_messages_is_zero() -> None:
    assert ProcessCounts().conversion_rate == 0
    assert ProcessCounts(3, 1).conversion_rate == 0.333333
    assert ProcessCounts.total([ProcessCounts(3, 1), ProcessCounts(2, 2)]) == ProcessCounts(5, 3)


def starts(since: datetime, until: datetime, granulation: Granulation | None) -> list[str]:
    return [f"{at:%m-%d %H:%M}" for at, _ in split_interval(since, until, granulation)]


def test_intervals_of_conversion_rates_start_at_a_full_hour_day_week_or_month() -> None:
    friday = NOON + timedelta(minutes=20)
    assert starts(friday, friday + 2 * HOUR, None) == ["11-20 12:20"]
    assert starts(friday, NOON + HOUR, "MINUTE") == ["11-20 12:20", "11-20 12:30", "11-20 12:45"]
    assert starts(friday, friday + 2 * HOUR, "HOUR") == ["11-20 12:20", "11-20 13:00", "11-20 14:00"]
    assert starts(friday, friday + timedelta(days=2), "DAY") == ["11-20 12:20", "11-21 00:00", "11-22 00:00"]
    assert starts(friday, friday + timedelta(days=14), "WEEK") == ["11-20 12:20", "11-23 00:00", "11-30 00:00"]
    assert starts(friday, friday + timedelta(days=60), "MONTH") == ["11-20 12:20", "12-01 00:00", "01-01 00:00"]
    assert split_interval(friday, friday, "HOUR") == split_interval(friday, NOON, None) == []


def test_too_many_intervals_of_conversion_rates_raise_an_error() -> None:
    assert len(split_interval(NOON, NOON + MAX_INTERVALS * HOUR, "HOUR")) == MAX_INTERVALS
    with pytest.raises(ValueError, match="more than 750"):
        split_interval(NOON, NOON + (MAX_INTERVALS + 1) * HOUR, "HOUR")


@given(
    st.timedeltas(timedelta(days=-2000), timedelta(days=2000)).map(lambda away: NOON + away),
    st.timedeltas(timedelta(), timedelta(days=7)),
    st.sampled_from(["MINUTE", "HOUR", "DAY", "WEEK", "MONTH"]),
)
def test_intervals_of_conversion_rates_contain_each_time_slot_exactly_once(
    since: datetime, length: timedelta, granulation: Granulation
) -> None:
    intervals = split_interval(since, since + length, granulation)
    within = [slot for _, part in intervals for slot in part]
    assert within == list(time_slots(since, since + length)) if length else not within
    assert all(before < after for (before, _), (after, _) in pairwise(intervals))
