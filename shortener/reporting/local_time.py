"""This module converts time slots and periods to the local time of a time zone. Counts are stored in UTC. If the UTC offset of
the zone changes within a range of time slots, the range is split at the change.
"""

# Tested by tests/reporting/test_statistics.py

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, tzinfo

from shortener.outbox.count_deltas import TIME_SLOT_MS
from shortener.reporting.counts import time_slots
from shortener.storage.types import from_ms

FIRST_DAY = date(1970, 1, 1)  # This day has the number 0. Later days have the numbers 1, 2 and so on.
SLOT_SECONDS = TIME_SLOT_MS // 1000


def local(slot: int, zone: tzinfo) -> datetime:
    """Return the start of a time slot in local time."""
    return from_ms(slot * TIME_SLOT_MS).astimezone(zone)


def days(since: datetime, within: range, zone: tzinfo) -> list[tuple[date, range]]:
    """Return each local day of a period with its time slots. `within` contains the time slots of the whole period. `since` is a
    time on the first day."""
    day = since.astimezone(zone).date()
    found = []
    start = within.start
    while start < within.stop:
        after = day + timedelta(days=1)
        midnight = datetime(after.year, after.month, after.day, tzinfo=zone)
        stop = min(time_slots(midnight, midnight).start, within.stop)
        found.append((day, range(start, stop)))
        day, start = after, stop
    return found


def constant_offsets(within: range, zone: tzinfo) -> Iterator[tuple[range, int]]:
    """Split `within` into ranges of time slots that have the same UTC offset. Yield each range and its offset in seconds."""
    start = within.start
    while start < within.stop:
        offset = _offset(start, zone)
        # A UTC offset changes at most a few times a year. Therefore, if a week begins and ends with the same offset, no time in
        # it has another offset. `same` is the last time slot that is known to have the offset of `start`.
        same, stop = start, within.stop
        while same < within.stop - 1:
            later = min(same + 7 * 96, within.stop - 1)
            if _offset(later, zone) != offset:
                stop = _first_change(same, later, offset, zone)
                break
            same = later
        yield range(start, stop), offset
        start = stop


def constant_minutes(within: range, zone: tzinfo) -> list[tuple[range, int]]:
    """Split `within` into ranges of time slots in which the local hours begin at the same minute in UTC. Return each range with
    the UTC offset modulo one hour, in seconds.

    There are several ranges only if the UTC offset changes by a part of an hour, as on Lord Howe Island."""
    found: list[tuple[range, int]] = []
    for part, offset in constant_offsets(within, zone):
        if found and found[-1][1] == offset % 3600:
            found[-1] = (range(found[-1][0].start, part.stop), offset % 3600)
        else:
            found.append((part, offset % 3600))
    return found


def hour_starts(within: range, zone: tzinfo) -> Callable[[int], datetime]:
    """Return a function that returns, for a time slot, the start of its local hour as a UTC time. `within` contains all time
    slots for which the returned function may be called.

    An hour begins with minute 0 in local time. If the UTC offset changes by a part of an hour, an hour also begins at the change.
    The first hour can begin before the first time slot."""
    parts = constant_minutes(within, zone)

    def start_of_hour(slot: int) -> datetime:
        part, minutes = next((one for one in reversed(parts) if slot >= one[0].start), parts[0])
        seconds = (slot * SLOT_SECONDS + minutes) // 3600 * 3600 - minutes
        if part is not parts[0][0]:
            seconds = max(seconds, part.start * SLOT_SECONDS)
        return from_ms(seconds * 1000)

    return start_of_hour


def _first_change(same: int, different: int, offset: int, zone: tzinfo) -> int:
    while different - same > 1:
        middle = (same + different) // 2
        if _offset(middle, zone) == offset:
            same = middle
        else:
            different = middle
    return different


def _offset(slot: int, zone: tzinfo) -> int:
    offset = local(slot, zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def local_time(length: int, offset: int, seconds: int, modulo: int | None) -> Callable[[int, int], int]:
    """Return a function that converts a rolled-up period to local time. Its arguments are a group, which it ignores, and the
    number of a period of `length` seconds. `offset` is the UTC offset in seconds.

    The function returns the number of the local day if `seconds` is 86,400, and the number of the local hour if it is 3,600. If
    `modulo` is not None, it returns this number modulo `modulo`."""

    def convert(group: int, period: int) -> int:
        number = (period * length + offset) // seconds
        return number if modulo is None else number % modulo

    return convert
