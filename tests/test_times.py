"""Tests of the formats of times in requests and delivery reports."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.times import EARLIEST, MAX_AHEAD, end_of, parse_iso, parse_report_time, parse_time, start_of
from tests.one_test import in_one_test

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
_times_of_70_years = st.datetimes(EARLIEST.replace(year=1990, tzinfo=None), EARLIEST.replace(year=2060, tzinfo=None))


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-20T11:00:00Z",
        "2026-11-20T11:00:00",
        "2026-11-20 11:00:00",
        "2026-11-20T12:00:00+01:00",
        "2026-11-20T12:00:00 01:00",
        "2026-11-20T12:00:00.000 0100",
        "2026-11-20T05:30:00-05:30",
        "20261120T110000Z",
        "1795172400",
        "1795172400.0",
        "1795172400000",
    ],
)
def test_reported_times_in_different_formats_are_parsed_to_the_same_time(text: str) -> None:
    assert parse_time(text, NOW) == datetime(2026, 11, 20, 11, 0, tzinfo=UTC)


def test_a_reported_date_without_a_time_is_parsed_as_midnight_utc() -> None:
    assert parse_time("2026-11-20", NOW) == datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize("text", ["1795172400.1239", "1795172400123", "2026-11-20T11:00:00.123999Z"])
def test_reported_times_are_cut_to_milliseconds(text: str) -> None:
    assert parse_time(text, NOW).microsecond == 123_000


@in_one_test
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0", "not be before the year 2000"),
        ("20261120", "not be before the year 2000"),
        ("1999-12-31T23:59:59Z", "not be before the year 2000"),
        ("2026-11-21T12:00:00.001Z", "24 hours"),
        ("20261120110000", "24 hours"),
        ("1795172400000000", "must be ISO 8601"),
        ("yesterday", "must be ISO 8601"),
        ("20/11/2026", "must be ISO 8601"),
        ("-5", "must be ISO 8601"),
        ("1e9", "must be ISO 8601"),
        ("0001-01-01T00:00:00+14:00", "must be ISO 8601"),
        ("9999-12-31T23:59:59-14:00", "must be ISO 8601"),
        ("", "must be ISO 8601"),
    ],
)
def test_a_text_that_is_not_a_plausible_time_is_rejected_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_time(text, NOW)


def test_a_reported_time_24_hours_in_the_future_is_accepted() -> None:
    assert parse_time("2026-11-21T12:00:00Z", NOW) == NOW + MAX_AHEAD


@given(
    st.datetimes(EARLIEST.replace(tzinfo=None) + timedelta(days=1), NOW.replace(tzinfo=None), timezones=st.just(UTC)),
    st.integers(-14 * 60, 14 * 60),
)
def test_every_format_of_a_time_is_parsed_to_the_same_time(at: datetime, offset: int) -> None:
    cut = at.replace(microsecond=at.microsecond // 1000 * 1000)
    local = at.astimezone(timezone(timedelta(minutes=offset))).isoformat()
    ms = (cut - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    texts = [local, local.replace("+", " "), at.replace(tzinfo=None).isoformat(), f"{ms // 1000}.{ms % 1000:03d}"]
    assert {parse_time(text, NOW) for text in texts} == {cut}


@given(
    _times_of_70_years.map(str)
    | st.integers(0, 10**14).map(str)
    | st.text(max_size=40)
    | st.from_regex(r"[0-9TZ:+. -]{1,30}", fullmatch=True)
)
def test_parsing_any_text_as_a_reported_time_returns_a_time_within_limits_or_raises_value_error(text: str) -> None:
    try:
        at = parse_time(text, NOW)
    except ValueError:
        return
    assert EARLIEST <= at <= NOW + MAX_AHEAD


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-20", date(2026, 11, 20)),
        (" 2026-11-20T12:00:00 ", datetime(2026, 11, 20, 12)),  # noqa: DTZ001 - the text has no zone
        ("2026-11-20T12:00:00Z", datetime(2026, 11, 20, 12, tzinfo=UTC)),
        ("2026-11-20T12:00:00 01:00", datetime(2026, 11, 20, 11, tzinfo=UTC)),
    ],
)
def test_parse_iso_returns_a_date_or_a_datetime(text: str, expected: date) -> None:
    parsed = parse_iso(text)
    assert type(parsed) is type(expected)
    assert parsed == expected


@pytest.mark.parametrize("text", ["", "yesterday", "20/11/2026", "1795172400"])
def test_text_that_is_not_iso_8601_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="must be a date"):
        parse_iso(text)


def test_a_requested_period_includes_the_whole_day_of_its_last_date() -> None:
    zone = timezone(timedelta(hours=2))
    assert start_of(date(2026, 11, 20), zone) == datetime(2026, 11, 19, 22, tzinfo=UTC)
    assert end_of(date(2026, 11, 20), zone) == datetime(2026, 11, 20, 22, tzinfo=UTC)
    assert end_of(NOW) == NOW


def test_a_requested_period_is_limited_to_the_years_1970_to_2999() -> None:
    assert start_of(date(1, 1, 1)) == datetime(1970, 1, 2, tzinfo=UTC)
    assert end_of(date(9999, 12, 31)) == datetime(2999, 12, 31, tzinfo=UTC)


@in_one_test
@pytest.mark.parametrize(
    "text",
    [
        "Fri, 20 Nov 2026 11:00:00 +0000",
        "Fri, 20 Nov 2026 12:00:00 +0100",
        "20 Nov 2026 11:00:00 GMT",
        "2026/11/20 11:00:00",
        "2026/11/20T11:00",
        "2026.11.20 11:00:00",
        "2026-11-20 11:00:00 +0000",
        "2026-11-20 13:00:00 +02:00",
        "2026-11-20T11:00:00.000+0000",
        "2026-11-20 11:00:00 UTC",
        "2611201100",
        "261120110000",
        "261120120000004+",
        "261120100000004-",
        "20261120110000",
        "1795172400",
        "1795172400000",
        " 2026-11-20T11:00:00Z ",
    ],
)
def test_every_documented_time_format_of_delivery_reports_is_parsed(text: str) -> None:
    assert parse_report_time(text, NOW) == datetime(2026, 11, 20, 11, 0, tzinfo=UTC)


@pytest.mark.parametrize("text", ["2026-11-19T24:00:00Z", "2026-11-19 24:00", "2026/11/19 24:00:00"])
def test_hour_24_of_a_report_time_is_midnight_of_the_next_day(text: str) -> None:
    assert parse_report_time(text, NOW) == datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["soon", "", "20/11/2026", "2699999999", "2026-11-19T24:30:00Z", "9" * 14, "٢٦١١٢٠١١٠٠", "Fri, 20"]
)
def test_text_that_is_not_a_time_of_a_delivery_report_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_report_time(text, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "2712312359",
        "271231235900",
        "20271231235900",
        "19991231235900",
        "271231235900000+",
        "Fri, 31 Dec 2027 23:59:00 +0000",
        "Fri, 31 Dec 1999 23:59:00 +0000",
        "2027/12/31 23:59:00",
        "2027-12-31 24:00",
    ],
)
def test_a_report_time_before_the_year_2000_or_more_than_24_hours_in_the_future_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_report_time(text, NOW)


_REPORT_FORMATS = (
    *("%y%m%d%H%M", "%y%m%d%H%M%S", "%Y%m%d%H%M%S", "%y%m%d%H%M%S000+", "%y%m%d%H%M%S056-"),
    *("%Y/%m/%d %H:%M:%S", "%a, %d %b %Y %H:%M:%S +0000"),
)
_report_times = st.builds(lambda at, form: at.strftime(form), _times_of_70_years, st.sampled_from(_REPORT_FORMATS))


@given(_report_times | st.text(max_size=30) | st.from_regex(r"[0-9]{8,16}[+-]?", fullmatch=True))
def test_parsing_any_text_as_a_report_time_returns_a_time_within_limits_or_raises_value_error(text: str) -> None:
    try:
        at = parse_report_time(text, NOW)
    except ValueError:
        return
    assert EARLIEST <= at <= NOW + MAX_AHEAD
