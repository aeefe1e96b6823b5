"""Tests of statistics: groups, days in any time zone, rates, times to click, and amounts of money."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert

from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import CountDelta, time_to_click_bucket
from shortener.reporting import statistics
from shortener.reporting.counts import fold
from shortener.reporting.figures import Figures
from shortener.reporting.local_time import constant_offsets, local
from shortener.reporting.rollups import Basis
from shortener.reporting.statistics import (
    StatisticsFilter,
    by_country,
    by_destination,
    by_hour,
    by_label,
    campaign_page,
    daily,
    hourly,
    totals,
)
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.reporting.plans import plans, scanned

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WEEK = StatisticsFilter(1, NOON - 7 * DAY, NOON + DAY)


def fill(connection: Connection) -> None:
    """Write counts of three cohorts of application 1 and of one cohort of application 2."""
    names = ("id", "application_id", "campaign", "source", "country")
    cohorts = [
        (1, 1, "spring", "campaign", "US"),
        (2, 1, "spring", "campaign", "DE"),
        (3, 1, "", "api", ""),
        (4, 2, "", "api", "US"),
    ]
    connection.execute(insert(schema.cohorts), [dict(zip(names, cohort, strict=True)) for cohort in cohorts])
    delta = CountDelta()
    for cohort, messages in ((1, 40), (2, 20), (3, 10), (4, 1000)):
        delta.add(cohort, to_ms(NOON), "messages", messages)
        delta.add(cohort, to_ms(NOON), "delivered", messages // 2)
    for cohort, clicks in ((1, 10), (2, 5)):
        delta.add(cohort, to_ms(NOON + HOUR), "clicks", clicks + 3)
        delta.add(cohort, to_ms(NOON + HOUR), "clicked_messages", clicks)
        delta.add(cohort, to_ms(NOON + HOUR), "ttc:0", clicks)
    delta.add(1, to_ms(NOON - DAY), "suspected_hits", 4)
    delta.add(1, to_ms(NOON), "converted_messages", 2)
    delta.add(1, to_ms(NOON), "conversions", 3)
    delta.add(1, to_ms(NOON), "value:EUR", Decimal("0.10"))
    delta.add(2, to_ms(NOON), "value:EUR", Decimal("0.20"))
    delta.add(2, to_ms(NOON + HOUR), "value:EUR", Decimal("0.20"))
    delta.add(2, to_ms(NOON), "value:JPY", Decimal("-5"))
    delta.add(3, to_ms(NOON), "value:", Decimal("1.5"))
    count_deltas.append(connection, 1, delta)


@pytest.fixture
async def filled(database: Database) -> Database:
    await database.write(fill)
    return database


async def read_totals(database: Database, scope: StatisticsFilter = WEEK) -> Figures:
    report = await database.read(totals, scope)
    assert report.complete
    return report.groups[None]


async def test_statistics_are_the_same_before_and_after_count_deltas_are_folded(filled: Database) -> None:
    for _ in range(2):
        figures = await read_totals(filled)
        assert {
            metric: figures[metric] for metric in ("messages", "delivered", "clicks", "clicked_messages", "suspected_hits")
        } == {
            "messages": 70,
            "delivered": 35,
            "clicks": 21,
            "clicked_messages": 15,
            "suspected_hits": 4,
        }
        assert figures.value == {"EUR": Decimal("0.50"), "JPY": Decimal("-5"), "": Decimal("1.5")}
        assert figures["late_hits"] == 0
        assert (figures.delivery_rate, figures.click_rate, figures.conversion_rate) == (0.5, 0.214286, 0.028571)
        await filled.write(fold)


async def test_statistics_include_count_deltas_that_are_not_folded(filled: Database) -> None:
    await filled.write(fold)

    def more(connection: Connection) -> None:
        delta = CountDelta()
        delta.add(1, to_ms(NOON), "messages", 2)
        delta.add(1, to_ms(NOON), "value:EUR", Decimal("0.01"))
        count_deltas.append(connection, 2, delta)

    await filled.write(more)
    figures = await read_totals(filled)
    assert figures["messages"] == 72
    assert figures.value["EUR"] == Decimal("0.51")
    assert (await filled.read(by_country, WEEK)).groups["US"]["messages"] == 42
    assert (await filled.read(daily, WEEK, UTC)).groups[date(2026, 11, 20)]["messages"] == 72


async def test_statistics_are_marked_incomplete_if_too_many_count_deltas_are_not_folded(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MAX_PENDING_ROWS", 0)
    assert not (await filled.read(totals, WEEK)).complete
    await filled.write(fold)
    assert (await filled.read(totals, WEEK)).complete


async def test_statistics_leave_an_unreadable_row_of_count_deltas_out_and_are_marked_incomplete_until_it_is_removed(
    filled: Database,
) -> None:
    before = await filled.read(totals, WEEK)
    damaged = {"id": 2**62, "data": [[1, 1, "value:EUR", "NaN"]], "origins": [[1, 0]]}
    await filled.write(lambda connection: connection.execute(schema.count_deltas.insert().values(damaged)))
    assert await filled.read(totals, WEEK) == replace(before, complete=False)
    while await filled.write(fold):
        pass
    report = await filled.read(totals, WEEK)
    assert not report.complete, "the row is quarantined"
    await filled.write(lambda connection: connection.execute(schema.count_deltas.delete().where(schema.count_deltas.c.id < 0)))
    assert (await filled.read(totals, WEEK)) == replace(report, complete=True)


async def test_filters_of_statistics_select_the_matching_messages_and_events(filled: Database) -> None:
    expected = {
        (None, None): 70,
        ("spring", None): 60,
        ("", None): 10,
        (None, "api"): 10,
        (None, "campaign"): 60,
        ("spring", "api"): 0,
    }
    for _ in range(2):
        for (campaign, source), messages in expected.items():
            figures = await read_totals(filled, StatisticsFilter(1, WEEK.since, WEEK.until, campaign, source))
            assert figures["messages"] == messages, (campaign, source)
        assert (await read_totals(filled, StatisticsFilter(2, WEEK.since, WEEK.until)))["messages"] == 1000
        assert (await read_totals(filled, StatisticsFilter(3, WEEK.since, WEEK.until))).counted == {}
        await filled.write(fold)


async def test_statistics_count_only_events_within_the_requested_period(filled: Database) -> None:
    for _ in range(2):
        assert (await read_totals(filled, StatisticsFilter(1, NOON + HOUR, NOON + 2 * HOUR)))["messages"] == 0
        assert (await read_totals(filled, StatisticsFilter(1, NOON + HOUR, NOON + 2 * HOUR)))["clicks"] == 21
        # The time slots that contain the start and the end of the period are counted completely.
        middle = NOON + timedelta(minutes=7)
        assert (await read_totals(filled, StatisticsFilter(1, middle, middle + timedelta(minutes=1))))["messages"] == 70
        assert (await read_totals(filled, StatisticsFilter(1, NOON - DAY, NOON)))["messages"] == 0
        await filled.write(fold)


async def test_statistics_by_country_contain_one_group_for_each_country(filled: Database) -> None:
    for _ in range(2):
        groups = (await filled.read(by_country, WEEK)).groups
        assert {country: figures["messages"] for country, figures in groups.items()} == {"US": 40, "DE": 20, "": 10}
        assert groups["DE"].value == {"EUR": Decimal("0.40"), "JPY": Decimal("-5")}
        await filled.write(fold)


async def test_daily_statistics_use_the_days_of_the_requested_time_zone(database: Database) -> None:
    """Clicks at 23:30 and 00:30 in Kathmandu (UTC+05:45) belong to two days there and to one day in London."""
    late = datetime(2026, 11, 20, 17, 45, tzinfo=UTC)

    def put(connection: Connection) -> None:
        connection.execute(insert(schema.cohorts).values(id=1, application_id=1, campaign="", source="api", country="NP"))
        delta = CountDelta()
        delta.add(1, to_ms(late), "clicks", 1)
        delta.add(1, to_ms(late + HOUR), "clicks", 2)
        count_deltas.append(connection, 1, delta)

    await database.write(put)
    kathmandu = ZoneInfo("Asia/Kathmandu")
    scope = StatisticsFilter(1, datetime(2026, 11, 20, tzinfo=kathmandu), datetime(2026, 11, 23, tzinfo=kathmandu))
    for _ in range(2):
        groups = (await database.read(daily, scope, kathmandu)).groups
        assert [(day.day, figures["clicks"]) for day, figures in groups.items()] == [(20, 1), (21, 2), (22, 0)]
        groups = (await database.read(daily, StatisticsFilter(1, late - DAY, late + DAY), ZoneInfo("Europe/London"))).groups
        assert [(day.day, figures["clicks"]) for day, figures in groups.items()] == [(19, 0), (20, 3), (21, 0)]
        await database.write(fold)


@pytest.mark.parametrize(
    ("zone", "first"),
    [  # `first` is the day before a change of the clocks.
        ("Europe/Berlin", date(2026, 10, 24)),  # The next day has 25 hours in Berlin.
        ("America/New_York", date(2026, 3, 7)),  # The next day has 23 hours in New York.
        ("America/Santiago", date(2026, 9, 5)),  # The next day has no midnight in Santiago.
        ("America/Havana", date(2026, 10, 31)),  # The next day has two midnights in Havana.
        ("Australia/Lord_Howe", date(2026, 10, 3)),  # The next day has 23.5 hours on Lord Howe Island.
    ],
)
async def test_daily_statistics_count_each_time_slot_once_on_days_with_a_clock_change(
    sqlite: Database, zone: str, first: date
) -> None:
    place = ZoneInfo(zone)
    since = datetime(first.year, first.month, first.day, tzinfo=place).astimezone(UTC)
    expected: dict[date, int] = {}

    def put(connection: Connection) -> None:
        connection.execute(insert(schema.cohorts).values(id=1, application_id=1, campaign="", source="api", country=""))
        delta = CountDelta()
        for slot in range(3 * 96):
            at = since + slot * timedelta(minutes=15)
            delta.add(1, to_ms(at), "clicks")
            day = at.astimezone(place).date()
            expected[day] = expected.get(day, 0) + 1
        count_deltas.append(connection, 1, delta)

    await sqlite.write(put)
    scope = StatisticsFilter(1, since, since + 3 * DAY)
    for _ in range(2):
        groups = (await sqlite.read(daily, scope, place)).groups
        assert {day: figures["clicks"] for day, figures in groups.items()} == expected
        while await sqlite.write(fold):
            pass


@pytest.mark.parametrize(
    ("zone", "first", "minutes"),
    # `minutes` contains the local start of each hour that does not begin with minute 0, because the UTC offset has changed by
    # half an hour.
    [
        ("Australia/Lord_Howe", datetime(2026, 10, 3, 13, 30, tzinfo=UTC), ["02:30"]),
        ("Australia/Lord_Howe", datetime(2026, 4, 4, 13, 0, tzinfo=UTC), ["01:30"]),
        ("Europe/Berlin", datetime(2026, 10, 24, 22, 0, tzinfo=UTC), []),
        ("Asia/Kathmandu", datetime(2026, 10, 24, 18, 15, tzinfo=UTC), []),
    ],
)
async def test_hourly_statistics_begin_with_minute_0_in_local_time_also_after_a_clock_change_of_half_an_hour(
    sqlite: Database, zone: str, first: datetime, minutes: list[str]
) -> None:
    place = ZoneInfo(zone)

    def put(connection: Connection) -> None:
        connection.execute(insert(schema.cohorts).values(id=1, application_id=1, campaign="", source="api", country=""))
        delta = CountDelta()
        for slot in range(96):
            delta.add(1, to_ms(first + slot * timedelta(minutes=15)), "clicks")
        count_deltas.append(connection, 1, delta)

    await sqlite.write(put)
    scope = StatisticsFilter(1, first, first + DAY)
    for _ in range(2):
        groups = (await sqlite.read(hourly, scope, place)).groups
        hours = [*groups, first + DAY]
        lengths = {begin: (end - begin) // timedelta(minutes=15) for begin, end in pairwise(hours)}
        assert {begin: figures["clicks"] for begin, figures in groups.items()} == lengths
        odd = [f"{begin.astimezone(place):%H:%M}" for begin in groups if begin.astimezone(place).minute]
        assert odd == minutes
        while await sqlite.write(fold):
            pass


async def test_statistics_by_hour_and_by_day_of_a_long_period_use_the_new_utc_offset_from_the_first_minute_after_each_clock_change(
    database: Database,
) -> None:
    """`local_time.constant_offsets` compares the UTC offset in steps of a week. Therefore the test uses zones whose clock changes
    are exactly 30 weeks (Europe) or 22 weeks (Chile) apart."""
    europe = datetime(2026, 10, 25, 1, tzinfo=UTC)  # 02:00 in Berlin for the second time on this day: summer time has just ended
    chile = datetime(2026, 4, 5, 3, tzinfo=UTC)  # 23:00 on Saturday in Santiago for the second time

    def fill(connection: Connection) -> None:
        connection.execute(insert(schema.cohorts), [{"id": 1, "application_id": 1, "campaign": "", "source": "api", "country": ""}])
        delta = CountDelta()
        for at in (europe, chile):
            delta.add(1, to_ms(at), "clicks", 1)
        count_deltas.append(connection, 1, delta)
        while fold(connection):
            pass

    await database.write(fill)

    def year(name: str, first: datetime) -> tuple[StatisticsFilter, ZoneInfo]:
        return StatisticsFilter(1, first, datetime(2026, 12, 1, tzinfo=UTC)), ZoneInfo(name)

    for name, first, hours in (
        ("Europe/Berlin", datetime(2026, 3, 1, tzinfo=UTC), {5: 1, 2: 1}),
        ("America/Santiago", chile - timedelta(weeks=12), {23: 1, 22: 1}),
    ):
        by_hours = (await database.read(by_hour, *year(name, first))).groups
        assert {hour: figures["clicks"] for hour, figures in by_hours.items() if figures["clicks"]} == hours, name
    by_days = (await database.read(daily, *year("America/Santiago", chile - timedelta(weeks=12)))).groups
    assert {day: figures["clicks"] for day, figures in by_days.items() if figures["clicks"]} == {
        date(2026, 4, 4): 1,
        date(2026, 10, 24): 1,
    }


@given(
    st.sampled_from(["Europe/Berlin", "America/Santiago", "America/Havana", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    st.integers(0, 52 * 7 * 96),
    st.integers(1, 60 * 7 * 96),
    st.booleans(),
)
def test_each_time_slot_of_a_range_with_a_constant_utc_offset_has_this_offset(
    name: str, first: int, length: int, begins_at_a_change: bool
) -> None:
    zone = ZoneInfo(name)
    start = to_ms(datetime(2026, 1, 1, tzinfo=UTC)) // count_deltas.TIME_SLOT_MS + first
    if begins_at_a_change:
        start = next(
            (part.start for part, _ in constant_offsets(range(start, start + 400 * 96), zone) if part.start > start), start
        )
    ranges = list(constant_offsets(range(start, start + length), zone))
    edges = [edge for part, _ in ranges for edge in (part.start, part.stop)]
    assert edges == [start, *(edge for _, after in pairwise(ranges) for edge in (after[0].start, after[0].start)), start + length]
    for part, offset in ranges:
        for slot in {part.start, part.stop - 1, *part[:: 96 * 7]}:
            assert local(slot, zone).utcoffset() == timedelta(seconds=offset)


def test_rates_and_times_to_click_are_none_without_messages_and_clicks() -> None:
    figures = Figures()
    assert (figures.delivery_rate, figures.click_rate, figures.conversion_rate) == (None, None, None)
    assert figures.seconds_to_click(50) is None
    figures.add("ttc:9", Decimal(1))
    figures.add("ttc:9", Decimal(-1))  # This negative amount takes the click back.
    assert figures.seconds_to_click(50) is None


@given(st.lists(st.floats(1, 90 * 86400), min_size=1, max_size=200), st.sampled_from([50, 90]))
def test_a_percentile_of_the_time_to_click_differs_from_the_exact_value_by_at_most_the_width_of_a_bucket(
    seconds: list[float], percent: int
) -> None:
    figures = Figures()
    for each in seconds:
        figures.add(f"ttc:{time_to_click_bucket(each)}", Decimal(1))
    exact = sorted(seconds)[math.ceil(len(seconds) * percent / 100) - 1]
    seconds_to_click = figures.seconds_to_click(percent)
    assert seconds_to_click is not None
    assert abs(seconds_to_click - exact) <= max(0.026 * exact, 0.5)


async def test_statistics_read_counts_from_an_index_and_read_no_messages_or_hits(sqlite: Database) -> None:
    await sqlite.write(fill)
    await sqlite.write(fold)

    def explain(connection: Connection) -> list[str]:
        def run() -> None:
            totals(connection, WEEK)
            by_country(connection, WEEK)
            daily(connection, WEEK, UTC)
            for scope in (WEEK, replace(WEEK, basis=Basis.SENT), replace(WEEK, campaign="spring")):
                by_hour(connection, scope, ZoneInfo("Asia/Kolkata"))
                by_destination(connection, scope)
                by_label(connection, scope)
                by_country(connection, scope)
                campaign_page(connection, scope, 10)

        return plans(connection, run)

    found = await sqlite.read(explain)
    assert sum("SEARCH r " in plan for plan in found) > 20, "the statements read rolled-up counts"
    for plan in found:
        assert scanned(plan) == []
        assert not any(table in plan for table in ("messages", "links", "hits", "conversions"))
        assert "SEARCH r " not in plan or "(group_id=? AND series=? AND period>? AND period<?)" in plan
        assert "SEARCH counts" not in plan or "counts_not_rolled_up" in plan or "(cohort_id=? AND quarter>? AND quarter<?)" in plan
