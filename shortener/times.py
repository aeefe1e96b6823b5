"""Times as trackers and carriers write them: ISO 8601, or seconds or milliseconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
#: Clocks that run ahead, and local times sent without their zone (up to 14 hours ahead), are forgiven.
AHEAD = timedelta(hours=24)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"[0-9]{1,17}(?:\.[0-9]{1,9})?")
_MILLISECONDS_FROM = 10**11  # as seconds, the year 5138; as milliseconds, 1973
# The + of a zone that was sent in a query without being encoded arrives as a space.
_LOST_PLUS = re.compile(r"(.+T.+) ([0-9]{2}:?[0-9]{2})")


def parse_time(text: str, now: datetime) -> datetime:
    """The time in UTC, cut to milliseconds; one without a zone is UTC.

    Raises ValueError, with a reason for a person, when it is no time, or not between the year 2000 and a day after `now`: a zero,
    a compact date read as seconds and microseconds read as milliseconds all end up outside."""
    try:
        at = _from_number(text) if _NUMBER.fullmatch(text) else _from_iso(text)
    except (ValueError, OverflowError):
        raise ValueError("wants ISO 8601 such as 2026-11-20T12:00:00Z, or seconds or milliseconds since 1970") from None
    if at < EARLIEST:
        raise ValueError(f"is before the year {EARLIEST.year}")
    if at > now + AHEAD:
        raise ValueError("is more than 24 hours in the future")
    return at


def _from_number(text: str) -> datetime:
    whole, _, fraction = text.partition(".")
    if int(whole) >= _MILLISECONDS_FROM:
        return _EPOCH + timedelta(milliseconds=int(whole))
    return _EPOCH + timedelta(seconds=int(whole), milliseconds=int(fraction[:3].ljust(3, "0")))


def _from_iso(text: str) -> datetime:
    if lost := _LOST_PLUS.fullmatch(text):
        text = f"{lost[1]}+{lost[2]}"
    at = datetime.fromisoformat(text)
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
