"""This module reads three things from the query of a page's URL: the period, the time zone and the date basis (send date or event
time).

`period` is the name of a relative period, or `custom` with `since` and `until` (a date, or a time in ISO 8601, in the time zone
`tz`). A relative period of days begins at midnight in the time zone and includes today. No period ends in the future, so that a
chart has no empty bars for the future. "today" begins at midnight, and "24h" begins 24 hours ago.

The statistics and the lists extend a period to complete time slots of 15 minutes.
"""

from __future__ import annotations

import calendar
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import record
from shortener.reporting.counts import time_slots
from shortener.reporting.local_time import SLOT_SECONDS, hour_starts
from shortener.reporting.rollups import Basis
from shortener.times import end_of, parse_iso, start_of, time_zone

DEFAULT_PERIOD = "28d"
MAX_DAYS = 3660  # The maximum length of a period.
SLOTS_PER_HOUR = 3600 // SLOT_SECONDS

#: The names of the relative periods, and their labels.
PERIODS = {
    "today": "Today",
    "yesterday": "Yesterday",
    "24h": "Last 24 hours",
    "7d": "Last 7 days",
    "28d": "Last 28 days",
    "90d": "Last 90 days",
    "month": "This month",
    "365d": "Last 365 days",
}
CUSTOM = "custom"
BASES = {"event": Basis.EVENT, "sent": Basis.SENT}


@record
class PeriodChoice:
    """A period with its time zone and date basis. It includes the time `since` and excludes the time `until`; both are UTC."""

    name: str
    since: datetime
    until: datetime
    zone: tzinfo
    zone_name: str
    basis: Basis

    @property
    def label(self) -> str:
        """The text that describes the period on the page."""
        return PERIODS.get(self.name, self.dates)

    @property
    def label_with_dates(self) -> str:
        """The label. For a relative period, the dates follow in parentheses. Printed pages need the dates, because "last 7 days"
        is not true later."""
        return f"{self.label} ({self.dates})" if self.name in PERIODS else self.label

    @property
    def dates(self) -> str:
        """The first and the last day of the period. If the period does not consist of complete days, its start and its end with
        their times."""
        begin, end = self.since.astimezone(self.zone), self.until.astimezone(self.zone)
        if not (self.is_whole_days or (self.name in PERIODS and self.name != "24h")):
            return f"{begin:%-d %b %Y %H:%M} to {end:%-d %b %Y %H:%M}"
        last = (self.until - timedelta(microseconds=1)).astimezone(self.zone)
        if begin.date() == last.date():
            return f"{begin:%-d %b %Y}"
        return f"{begin:%-d %b} to {last:%-d %b %Y}" if begin.year == last.year else f"{begin:%-d %b %Y} to {last:%-d %b %Y}"

    @property
    def is_whole_days(self) -> bool:
        """Whether the period consists of complete days of its time zone."""
        return all(_starts_day(end, self.zone) for end in (self.since, self.until))

    @property
    def previous(self) -> tuple[datetime, datetime]:
        """The previous period: the time of the same length before this period. If the period consists of complete days, so does
        the previous period, even if daylight saving time begins or ends in one of them."""
        days = _days_of(self)
        if days is None:
            length = self.until - self.since
            return self.since - length, self.since
        return _shift(self.since, -days, self.zone), _shift(self.until, -days, self.zone)

    @property
    def earlier(self) -> tuple[datetime, datetime]:
        """The period of the same length that ends where this period begins."""
        return self.previous[0], self.since

    def later(self, now: datetime) -> tuple[datetime, datetime] | None:
        """Return the period of the same length that begins where this period ends. It ends at `now` at the latest. Return None if
        this period ends now."""
        if self.until >= now:
            return None
        days = _days_of(self)
        end = self.until + (self.until - self.since) if days is None else _shift(self.until, days, self.zone)
        return self.until, min(end, now)

    def query(self, since: datetime | None = None, until: datetime | None = None) -> dict[str, str]:
        """Return the query parameters that select this period in the URL of a page. If `since` or `until` is passed, the
        parameters select only this part of the period.

        Times are written without seconds. The end is rounded up, so that the selected period includes the current time slot."""
        fields = {"period": self.name, "tz": self.zone_name, "basis": self.basis.name.lower()}
        if since is not None or until is not None or self.name == CUSTOM:
            end = _next_minute(until or self.until)
            fields |= {"period": CUSTOM, "since": self.format(since or self.since), "until": self.format(end)}
        return fields

    def format(self, at: datetime) -> str:
        """Return a time in the format of the query: without seconds, in the time zone of the period, with a UTC offset."""
        return at.astimezone(self.zone).isoformat(timespec="minutes")

    @property
    def local_ends(self) -> tuple[str, str]:
        """The start and the end in the format of the form fields: local times without seconds. The end is rounded up."""
        ends = (self.since, _next_minute(self.until))
        since, until = (f"{at.astimezone(self.zone):%Y-%m-%dT%H:%M}" for at in ends)
        return since, until


def parse_period(
    now: datetime,
    *,
    period: str | None = None,
    since: str | None = None,
    until: str | None = None,
    zone_name: str = "UTC",
    basis: str = "event",
    default: str = DEFAULT_PERIOD,
) -> PeriodChoice:
    """Return the period that a query selects. Raise ApiError INVALID_REQUEST if the query is not valid."""
    try:
        zone = time_zone(zone_name)
    except ValueError as error:
        raise _invalid("tz", str(error)) from None
    if basis not in BASES:
        raise _invalid("basis", "must be event or sent")
    name = period or (CUSTOM if since or until else default)
    if name == CUSTOM:
        begin, end = _custom(since, until, now, zone)
    elif name in PERIODS:
        begin, end = _relative(name, now, zone)
    else:
        raise _invalid("period", f"must be one of {', '.join(PERIODS)}, {CUSTOM}")
    return PeriodChoice(name, begin, end, zone, zone_name, BASES[basis])


def _custom(since: str | None, until: str | None, now: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    try:
        begin = start_of(parse_iso(since), zone) if since else None
    except ValueError as error:
        raise _invalid("since", str(error)) from None
    try:
        end = end_of(parse_iso(until), zone) if until else now
    except ValueError as error:
        raise _invalid("until", str(error)) from None
    if begin is None:
        begin = _shift(end, -28, zone)
    if begin >= end:
        raise _invalid("until", "must be later than From")
    if end - begin > timedelta(days=MAX_DAYS):
        raise _invalid("since", f"must be at most {MAX_DAYS} days before Until")
    return begin, end


def _relative(name: str, now: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    today = now.astimezone(zone).date()
    if name == "24h":
        return now - timedelta(hours=24), now
    if name == "yesterday":
        return start_of(today - timedelta(days=1), zone), start_of(today, zone)
    if name == "month":
        return start_of(today.replace(day=1), zone), now
    days = 1 if name == "today" else int(name.removesuffix("d"))
    return start_of(today - timedelta(days=days - 1), zone), now


def _days_of(choice: PeriodChoice) -> int | None:
    """Return the number of days between the start of this period and the start of the previous period. Return None if this is not
    a number of complete days."""
    if choice.name in ("today", "yesterday", "24h"):
        return 1
    if choice.name == "month":
        first = choice.since.astimezone(choice.zone).date()
        before = first - timedelta(days=1)
        return calendar.monthrange(before.year, before.month)[1]
    if choice.name in PERIODS:
        return int(choice.name.removesuffix("d"))
    if choice.is_whole_days:
        return (choice.until.astimezone(choice.zone).date() - choice.since.astimezone(choice.zone).date()).days
    return None


def _shift(at: datetime, days: int, zone: tzinfo) -> datetime:
    """Return the time `days` days later in a time zone, at the same time of day. If `at` is the start of a day, the result is the
    start of a day too; this can be 01:00 on a day on which daylight saving time begins."""
    local = at.astimezone(zone)
    if at == start_of(local.date(), zone):
        return start_of(local.date() + timedelta(days=days), zone)
    return (local.replace(tzinfo=None) + timedelta(days=days)).replace(tzinfo=zone).astimezone(UTC)


def _starts_day(at: datetime, zone: tzinfo) -> bool:
    """Return whether `at` is in the first minute of a day in a time zone."""
    return at.replace(second=0, microsecond=0) == start_of(at.astimezone(zone).date(), zone)


def local_days(since: datetime, until: datetime, zone: tzinfo) -> list[date]:
    """Return the dates of all days of which at least a part is in the period, in the time zone `zone`."""
    first, last = since.astimezone(zone).date(), (until - timedelta(microseconds=1)).astimezone(zone).date()
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def local_hours(since: datetime, until: datetime, zone: tzinfo) -> list[tuple[datetime, datetime]]:
    """Return the start and the end, in UTC, of every local hour of a period. The first hour can begin before the period, and the
    last hour can end after the period. In time zones whose UTC offset changes by half an hour, the hour of the change is shorter
    or longer than an hour, or becomes two hours."""
    within = time_slots(since, until)
    start_of_hour = hour_starts(range(within.start, within.stop + SLOTS_PER_HOUR), zone)
    starts = [start_of_hour(slot) for slot in range(within.start, within.stop + SLOTS_PER_HOUR)]
    return [(begin, end) for begin, end in pairwise(sorted(set(starts))) if begin < until]


def _next_minute(at: datetime) -> datetime:
    """Return the time rounded up to a whole minute."""
    whole = at.replace(second=0, microsecond=0)
    return whole if whole == at else whole + timedelta(minutes=1)


def _invalid(field: str, reason: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(field, reason)])
