"""Tests of the period that the query of a portal page selects, in several time zones."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from shortener.errors import ApiError
from shortener.portal.periods import PERIODS, PeriodChoice, local_hours, parse_period
from shortener.reporting.rollups import Basis

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
BERLIN = "Europe/Berlin"


def choose(now: datetime = NOW, zone: str = BERLIN, **query: str) -> PeriodChoice:
    return parse_period(now, zone_name=zone, **query)


def test_a_portal_period_of_days_begins_at_midnight_of_the_time_zone_and_ends_now() -> None:
    chosen = choose(period="7d")
    assert (chosen.since, chosen.until) == (datetime(2026, 11, 13, 23, tzinfo=UTC), NOW)
    assert choose(period="today").since == datetime(2026, 11, 19, 23, tzinfo=UTC)
    assert choose(period="24h").since == NOW - timedelta(hours=24)
    assert choose(period="yesterday").until == datetime(2026, 11, 19, 23, tzinfo=UTC)
    assert choose().name == "28d"


@pytest.mark.parametrize("name", PERIODS)
def test_the_comparison_period_begins_and_ends_at_the_same_local_time_even_if_the_clocks_change(name: str) -> None:
    now = datetime(2026, 10, 26, 12, 0, tzinfo=UTC)  # the day after the end of daylight saving time
    chosen = choose(now, period=name)
    since, until = chosen.previous
    assert since.astimezone(chosen.zone).time() == chosen.since.astimezone(chosen.zone).time()
    assert until.astimezone(chosen.zone).time() == chosen.until.astimezone(chosen.zone).time()
    assert until <= chosen.until


def test_a_custom_portal_period_uses_the_time_zone_and_includes_its_last_day() -> None:
    chosen = choose(since="2026-11-01", until="2026-11-03")
    assert chosen.until - chosen.since == timedelta(days=3)
    assert chosen.is_whole_days
    assert chosen.label == "1 Nov to 3 Nov 2026"
    assert chosen.query()["since"] == "2026-11-01T00:00+01:00"
    query = chosen.query()
    assert choose(since=query["since"], until=query["until"]).since == chosen.since


def test_a_portal_page_uses_the_time_basis_in_its_query_and_rejects_unknown_values_of_query_parameters() -> None:
    assert choose(basis="sent").basis is Basis.SENT
    for query in ({"basis": "x"}, {"period": "x"}, {"since": "x"}, {"zone": "Nowhere"}, {"since": "1900-01-01"}):
        with pytest.raises(ApiError):
            choose(**query)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0, 0.001, 30, 59.999])
def test_a_part_of_a_period_keeps_the_time_slot_that_has_just_begun_in_its_query_and_in_the_form(seconds: float) -> None:
    now = NOW + timedelta(minutes=15, seconds=seconds)
    expected = "13:15" if seconds == 0 else "13:16"
    chosen = choose(now, since="2026-11-20T10:00:00Z")
    assert chosen.query()["until"] == f"2026-11-20T{expected}+01:00"
    assert choose(now, period="24h").query(now - timedelta(hours=1), now)["until"] == f"2026-11-20T{expected}+01:00"
    assert chosen.local_ends == ("2026-11-20T11:00", f"2026-11-20T{expected}")


@pytest.mark.parametrize("name", PERIODS)
def test_the_periods_before_and_after_a_portal_period_have_its_length_and_touch_it(name: str) -> None:
    now = datetime(2026, 10, 26, 12, 0, tzinfo=UTC)  # the day after the end of daylight saving time
    chosen = choose(now, period=name)
    assert chosen.later(now) == ((chosen.until, now) if name == "yesterday" else None)
    since, until = chosen.earlier
    before = choose(now, since=since.isoformat(), until=until.isoformat())
    assert (before.since, before.until) == (since, chosen.since)
    if name != "month":
        # The days on which the clocks change have 23 or 25 hours.
        assert abs((before.earlier[1] - before.earlier[0]) - (until - since)) <= timedelta(hours=1)
    later = before.later(now)
    assert later is not None
    assert later[0] == chosen.since
    assert later[1] <= now


def test_the_months_before_a_portal_period_are_complete_months() -> None:
    chosen = choose(period="month")
    assert [at.astimezone(chosen.zone).day for at in chosen.earlier] == [1, 1]
    assert chosen.earlier[0] == datetime(2026, 9, 30, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Africa/Cairo", "2026-04-24"),  # The day begins at 01:00.
        ("Asia/Beirut", "2026-03-29"),
        ("America/Sao_Paulo", "2017-10-15"),
        ("America/Sao_Paulo", "2018-02-17"),  # The day has 25 hours, and its last hour occurs twice.
        ("America/Havana", "2026-11-01"),  # 00:00 occurs twice.
        ("Europe/Berlin", "2026-10-25"),
        ("America/New_York", "2026-03-08"),
        ("Australia/Lord_Howe", "2026-10-04"),
    ],
)
def test_a_day_on_which_the_clocks_change_is_a_whole_day(zone: str, day: str) -> None:
    chosen = choose(zone=zone, since=day, until=day)
    assert chosen.is_whole_days
    local = date.fromisoformat(day)
    assert chosen.label == f"{local:%-d %b %Y}"
    later = chosen.later(NOW + timedelta(days=999))
    assert later is not None
    for (since, until), number in ((chosen.previous, -1), (later, 1)):
        other = str(local + timedelta(days=number))
        expected = choose(zone=zone, since=other, until=other)
        assert (since, until) == (expected.since, expected.until)
    now = datetime(local.year, local.month, local.day, 12, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    for name, days in (("today", 1), ("7d", 7)):
        relative = choose(now, zone, period=name)
        first = str(local - timedelta(days=2 * days - 1))
        assert relative.previous[0] == choose(zone=zone, since=first, until=first).since, name


def test_the_hours_of_a_period_begin_with_minute_0_and_at_a_clock_change_of_half_an_hour() -> None:
    zone = ZoneInfo("Australia/Lord_Howe")
    for since, expected in (
        ("2026-10-03T13:30", ["00:00", "01:00", "02:30", "03:00", "04:00"]),  # 02:00 becomes 02:30
        ("2026-04-04T13:00", ["00:00", "01:00", "01:30", "02:00", "03:00"]),  # 02:00 becomes 01:30
    ):
        start = datetime.fromisoformat(since).replace(tzinfo=UTC)
        hours = local_hours(start, start + timedelta(hours=4), zone)
        assert [f"{begin.astimezone(zone):%H:%M}" for begin, _ in hours] == expected
        assert all(end == begin for (_, end), (begin, _) in pairwise(hours))


def test_the_label_of_a_period_names_its_dates() -> None:
    for query, expected in (
        ({"period": "today"}, "Today (20 Nov 2026)"),
        ({"period": "yesterday"}, "Yesterday (19 Nov 2026)"),
        ({"period": "7d"}, "Last 7 days (14 Nov to 20 Nov 2026)"),
        ({"period": "365d"}, "Last 365 days (21 Nov 2025 to 20 Nov 2026)"),
        ({"period": "24h"}, "Last 24 hours (19 Nov 2026 13:00 to 20 Nov 2026 13:00)"),
        ({"since": "2026-11-01", "until": "2026-11-02"}, "1 Nov to 2 Nov 2026"),
        ({"since": "2026-11-01T10:00", "until": "2026-11-01T12:00"}, "1 Nov 2026 10:00 to 1 Nov 2026 12:00"),
    ):
        assert choose(NOW, BERLIN, **query).label_with_dates == expected
