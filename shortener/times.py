"""This module parses all times that callers send: ISO 8601, and seconds or milliseconds since 1970. Delivery reports of carriers
and gateways may use more formats. The results are aware datetimes in UTC, except those of `parse_iso`.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
#: A reported time may be this far in the future: clocks differ, and some systems send local time (up to 14 hours ahead of UTC)
#: without its zone.
MAX_AHEAD = timedelta(hours=24)

# The maximum number of characters of a time. A longer text is rejected first, because the regular expression is slow for very
# long texts.
MAX_ISO_LENGTH = 100

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"[0-9]{1,17}(?:\.[0-9]{1,9})?")
# Numbers from this size are milliseconds, and smaller numbers are seconds. In seconds, this number is a time in the year 5138; in
# milliseconds, it is a time in 1973.
_FIRST_MILLISECONDS = 10**11
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# A + that a client did not percent-encode in a query arrives as a space. Therefore a space is also accepted before the offset
# from UTC.
_LOST_PLUS = re.compile(r"(.+T.+[0-9]) ([0-9]{2}:?[0-9]{2})")
# The limits of the start and the end of a requested period. A time outside of these limits is replaced by the nearer limit.
_FIRST, _LAST = datetime(1970, 1, 2, tzinfo=UTC), datetime(2999, 12, 31, tzinfo=UTC)


def parse_iso(text: str) -> date:
    """Return a `date` for YYYY-MM-DD and a `datetime` for any other ISO 8601 text.

    The datetime has a UTC offset if the text has one.

    Raise ValueError with a reason for the caller."""
    text = text.strip()[:MAX_ISO_LENGTH]
    if lost := _LOST_PLUS.fullmatch(text):
        text = f"{lost[1]}+{lost[2]}"
    try:
        return date.fromisoformat(text) if _DATE.fullmatch(text) else datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a date such as 2026-11-20, or ISO 8601 such as 2026-11-20T12:00:00Z") from None


def to_utc(moment: date) -> datetime:
    """Return the time in UTC. A date becomes the midnight at its start. A datetime without a zone is taken as UTC. Raise
    OverflowError if the result is outside of the years 1 to 9999."""
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time())
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)


def is_reported_time(at: datetime, now: datetime) -> bool:
    """Return whether a caller may report this time: it must be between the year 2000 and 24 hours after `now`."""
    return EARLIEST <= at <= now + MAX_AHEAD


def parse_time(text: str, now: datetime) -> datetime:
    """Parse a reported time. Return it in UTC, rounded down to milliseconds. A time without a zone is taken as UTC.

    Raise ValueError with a reason for the caller if `text` is not a time, or if the time is not between the year 2000 and 24
    hours after `now`. These limits also reject numbers that do not mean seconds or milliseconds: 0, the date 20261120, and a time
    in microseconds."""
    try:
        at = _from_number(text) if _NUMBER.fullmatch(text) else _from_iso(text)
    except (ValueError, OverflowError):
        raise ValueError("must be ISO 8601 such as 2026-11-20T12:00:00Z, or seconds or milliseconds since 1970") from None
    if at < EARLIEST:
        raise ValueError(f"must not be before the year {EARLIEST.year}")
    if at > now + MAX_AHEAD:
        raise ValueError("must not be more than 24 hours in the future")
    return at


#: Times without separators, as SMPP and gateways write them: YYMMDDhhmm and YYMMDDhhmmss, also with a year of four digits.
_COMPACT = {10: "%y%m%d%H%M", 12: "%y%m%d%H%M%S", 14: "%Y%m%d%H%M%S"}
#: SMPP's absolute time: YYMMDDhhmmss, tenths of a second, and the offset from UTC in quarters of an hour.
_SMPP = re.compile(r"([0-9]{12})[0-9]([0-9]{2})([+-])")
_SLASHES = re.compile(r"([0-9]{4})[/.]([0-9]{2})[/.]([0-9]{2})(.*)")
_MIDNIGHT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]24(:00(?::00(?:\.0+)?)?)(.*)")
_SPACE_BEFORE_ZONE = re.compile(r"\s+(?=[+-][0-9]{2}:?[0-9]{2}$|Z$)")


def parse_report_time(text: str, now: datetime) -> datetime:
    """Parse the time of a delivery report. Return it in UTC, rounded down to milliseconds. A time without a zone is taken as UTC.

    Accept the formats of `parse_time`, RFC 2822 (`Fri, 27 Nov 2026 10:00:00 +0000`), `2026/11/27 10:00:00`, hour 24 of ISO 8601,
    and SMPP's formats without separators. A number of ten digits means seconds since 1970, unless that time is in the future;
    then the number means YYMMDDhhmm. Raise ValueError with a reason for the caller, as `parse_time` does."""
    text = text.strip()[:MAX_ISO_LENGTH]
    try:
        return parse_time(text, now)
    except ValueError as error:
        reason = error
    for read in (_from_compact, _from_rfc2822, _from_other_iso):
        try:
            at = read(text)
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
        if at is not None and is_reported_time(at, now):
            return at
    raise reason


def _from_compact(text: str) -> datetime | None:
    if absolute := _SMPP.fullmatch(text):
        distance = timedelta(minutes=15 * int(absolute[2])) * (1 if absolute[3] == "+" else -1)
        return datetime.strptime(absolute[1], _COMPACT[12]).replace(tzinfo=timezone(distance)).astimezone(UTC)
    if text.isdecimal() and text.isascii() and len(text) in _COMPACT:
        return datetime.strptime(text, _COMPACT[len(text)]).replace(tzinfo=UTC)
    return None


def _from_rfc2822(text: str) -> datetime | None:
    return to_utc(parsedate_to_datetime(text)) if text[:1].isalpha() or " " in text else None


def _from_other_iso(text: str) -> datetime:
    text = text.removesuffix(" UTC").removesuffix(" GMT")
    if slashes := _SLASHES.fullmatch(text):
        text = f"{slashes[1]}-{slashes[2]}-{slashes[3]}{slashes[4]}"
    text = _SPACE_BEFORE_ZONE.sub("", text)
    days = 0
    if midnight := _MIDNIGHT.fullmatch(text):
        text, days = f"{midnight[1]}T00{midnight[2]}{midnight[3]}", 1
    return _from_iso(text) + timedelta(days=days)


def start_of(moment: date, zone: tzinfo = UTC) -> datetime:
    """Return the start of a requested period in UTC. If the start is a date, it means midnight at the start of this day in
    `zone`."""
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time(), zone)
    elif moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return min(max(moment, _FIRST), _LAST).astimezone(UTC)


def end_of(moment: date, zone: tzinfo = UTC) -> datetime:
    """Return the excluded end of a requested period in UTC. If the end is a date, the period includes this whole day."""
    if not isinstance(moment, datetime) and moment < _LAST.date():
        moment += timedelta(days=1)
    return start_of(moment, zone)


def time_zone(name: str) -> tzinfo:
    """Return a time zone. Raise ValueError for an unknown name."""
    if name == "UTC":  # UTC works even if no time zone data is installed
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("must be a time zone such as Europe/Berlin") from None


def _from_number(text: str) -> datetime:
    whole, _, fraction = text.partition(".")
    if int(whole) >= _FIRST_MILLISECONDS:
        return _EPOCH + timedelta(milliseconds=int(whole))
    return _EPOCH + timedelta(seconds=int(whole), milliseconds=int(fraction[:3].ljust(3, "0")))


def _from_iso(text: str) -> datetime:
    at = to_utc(parse_iso(text))
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
