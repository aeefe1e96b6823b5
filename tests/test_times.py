"""Times as trackers and carriers write them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.times import AHEAD, EARLIEST, parse_time

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


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
def test_one_moment_in_many_spellings(text: str) -> None:
    assert parse_time(text, NOW) == datetime(2026, 11, 20, 11, 0, tzinfo=UTC)


def test_a_date_alone_is_its_midnight_in_utc() -> None:
    assert parse_time("2026-11-20", NOW) == datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize("text", ["1795172400.1239", "1795172400123", "2026-11-20T11:00:00.123999Z"])
def test_times_are_cut_to_milliseconds(text: str) -> None:
    assert parse_time(text, NOW).microsecond == 123_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0", "before the year 2000"),
        ("20261120", "before the year 2000"),
        ("1999-12-31T23:59:59Z", "before the year 2000"),
        ("2026-11-21T12:00:00.001Z", "24 hours"),
        ("20261120110000", "24 hours"),
        ("1795172400000000", "wants ISO 8601"),
        ("yesterday", "wants ISO 8601"),
        ("20/11/2026", "wants ISO 8601"),
        ("-5", "wants ISO 8601"),
        ("1e9", "wants ISO 8601"),
        ("0001-01-01T00:00:00+14:00", "wants ISO 8601"),
        ("9999-12-31T23:59:59-14:00", "wants ISO 8601"),
        ("", "wants ISO 8601"),
    ],
)
def test_what_cannot_be_the_time_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_time(text, NOW)


def test_a_day_ahead_is_forgiven() -> None:
    assert parse_time("2026-11-21T12:00:00Z", NOW) == NOW + AHEAD


@given(
    st.datetimes(EARLIEST.replace(tzinfo=None) + timedelta(days=1), NOW.replace(tzinfo=None), timezones=st.just(UTC)),
    st.integers(-14 * 60, 14 * 60),
)
def test_every_spelling_of_a_time_is_read_as_that_time(at: datetime, offset: int) -> None:
    cut = at.replace(microsecond=at.microsecond // 1000 * 1000)
    local = at.astimezone(timezone(timedelta(minutes=offset))).isoformat()
    ms = (cut - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    spellings = [local, local.replace("+", " "), at.replace(tzinfo=None).isoformat(), f"{ms // 1000}.{ms % 1000:03d}"]
    assert {parse_time(text, NOW) for text in spellings} == {cut}


@given(st.text(max_size=40) | st.from_regex(r"[0-9TZ:+. -]{1,30}", fullmatch=True))
def test_any_text_is_a_time_within_bounds_or_a_value_error(text: str) -> None:
    try:
        at = parse_time(text, NOW)
    except ValueError:
        return
    assert EARLIEST <= at <= NOW + AHEAD
