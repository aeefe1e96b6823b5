"""This module parses and validates the content of a row of count deltas (table `tallies`, outbox/count_deltas.py).

All readers use `parse`: the job of the counts, the reports and `shortener verify`. Therefore they agree on which rows are
unreadable. Only the content of a row makes it unreadable, never an error of the database or of this program. If `parse` accepts a
row, its amounts can be added to the counts and to a report without an error.
"""

# Tested by tests/reporting/test_delta_content.py

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

import orjson

from shortener.outbox.count_deltas import TIME_SLOT_MS, origin_order
from shortener.plurals import counted
from shortener.reporting.rollup_data import HISTOGRAM, TIME_TO_CLICK, VALUE
from shortener.reporting.rollups import CountedEvent
from shortener.storage.types import to_ms

MAX_ID = 2**31 - 1  # The largest id of a cohort or a link set. It is the largest value of the column on PostgreSQL.
#: The first and the last permitted time slot. A report can convert every time slot between them to local time in every time zone.
MIN_SLOT = to_ms(datetime(2, 1, 1, tzinfo=UTC)) // TIME_SLOT_MS
MAX_SLOT = to_ms(datetime(9999, 1, 1, tzinfo=UTC)) // TIME_SLOT_MS
#: The maximum length of the name of a metric. An index of `counts` contains the name, and PostgreSQL can store at most 2,700
#: bytes in an index row.
MAX_METRIC_BYTES = 2000
MAX_BUCKET = 1000  # The highest bucket of the time to click. It means a time of more than 10**13 years.
#: The largest amount in a row, except for money. Reports add the amounts of many rows as integers of 64 bits, so one amount must
#: be much smaller.
MAX_COUNT = 10**15
#: The largest amount of money in a row, and its maximum number of decimal places. They are sufficient, because the value of one
#: conversion has at most 18 digits before the decimal point and 6 after it.
MAX_VALUE, MAX_VALUE_PLACES = Decimal(10**30), 30
_MAX_AMOUNT_CHARACTERS = 100
#: The metrics whose amounts are never negative. Other metrics can have negative amounts, for example after the correction of a
#: verdict.
NEVER_NEGATIVE = frozenset(
    {
        "messages",
        "segments",
        "links",
        "sent",
        "delivered",
        "read",
        "failed",
        "converted_messages",
        "conversions",
        "ends",
        "ignored_hits",
    }
)

#: An entry of a row has two parts: (cohort, time slot, metric, amount), and the origin, which is (time slot of the message, link
#: set).
Entry = tuple[tuple[int, int, str, str], tuple[int | None, int]]

_INTEGER = re.compile(r"-?[0-9]+")
_BUCKET = re.compile(r"0|[1-9][0-9]{0,3}")


class UnreadableDelta(Exception):
    """Raised if the content of a row of count deltas is damaged. The text of the error is the reason."""


def parse(data: str | bytes | None, origins: str | bytes | None) -> list[Entry]:
    """Return the entries of a row of count deltas. Raise UnreadableDelta if any part of the row is not valid.

    `data` and `origins` are the columns of the row, as text or as UTF-8. `data` is None if the column does not contain text.
    `origins` is None if an older release has written the row, because such a release stored no origins."""
    entries = _load("data", data)
    pairs = _load("origins", origins) if origins is not None else [[None, 0]] * len(entries)
    if len(pairs) != len(entries):
        raise UnreadableDelta(f"data has {counted(len(entries), 'entry', 'entries')}, and origins has {len(pairs)}")
    if not entries:
        return []
    # All entries are checked in one call. A report reads a few hundred thousand entries, and one call for each entry would be
    # slower.
    cohorts, slots, metrics, amounts = _columns(entries, 4)
    sent_slots, link_sets = _columns(pairs, 2)
    _check_numbers("cohort", cohorts, 0, MAX_ID)
    _check_numbers("time slot", slots, MIN_SLOT, MAX_SLOT)
    _check_numbers("time slot of a message", [sent for sent in sent_slots if sent is not None], MIN_SLOT, MAX_SLOT)
    _check_numbers("link set", link_sets, 0, MAX_ID)
    if {*map(type, metrics), *map(type, amounts)} != {str}:
        raise UnreadableDelta("metrics and amounts must be texts")
    for metric, amount in set(zip(metrics, amounts, strict=True)):
        _check_amount(metric, amount)
    return list(zip(entries, pairs, strict=True))


def event_of(entry: Entry) -> tuple[CountedEvent, int | Decimal]:
    """Convert an entry that `parse` returned to a counted event and its amount."""
    (cohort, slot, metric, amount), (sent, link_set) = entry
    return CountedEvent(cohort, slot, metric, sent, link_set), int(amount) if amount.isdecimal() else Decimal(amount)


def entry_of(key: CountedEvent, amount: Decimal) -> Entry:
    """Convert a counted event and its amount to an entry. This is the reverse of `event_of`."""
    return (key.cohort, key.slot, key.metric, format(amount, "f")), (key.sent, key.link_set)


def pack(row_id: int, entries: Sequence[Entry], *, has_origins: bool) -> tuple[int, str, str | None]:
    """Return the row (id, data, origins) that stores these entries."""
    data, origins = ([entry[part] for entry in entries] for part in (0, 1))
    return row_id, orjson.dumps(data).decode(), orjson.dumps(origins).decode() if has_origins else None


def entry_order(entry: Entry) -> tuple[int, int, int, int]:
    """Return the key that sorts entries by origin."""
    (cohort, slot, _, _), (sent, link_set) = entry
    return origin_order(cohort, slot, sent, link_set)


def _load(column: str, content: str | bytes | None) -> list[Any]:
    """Parse a column, which must contain a JSON list."""
    if content is None:
        raise UnreadableDelta(f"{column} must be text")
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UnreadableDelta(f"{column} must be JSON in UTF-8: {error}") from error
    if type(found) is not list:
        raise UnreadableDelta(f"{column} must be a list")
    return found


def _columns(rows: list[Any], width: int) -> list[tuple[Any, ...]]:
    """Transpose a list of lists: return the list of all first elements, of all second elements, and so on."""
    if set(map(type, rows)) != {list} or set(map(len, rows)) != {width}:
        raise UnreadableDelta(f"each entry must be a list of {width} values")
    return list(zip(*rows, strict=True))


def _check_numbers(name: str, numbers: Sequence[Any], lowest: int, highest: int) -> None:
    if numbers and (set(map(type, numbers)) != {int} or min(numbers) < lowest or max(numbers) > highest):
        raise UnreadableDelta(f"each {name} must be an integer from {lowest} to {highest}")


def _check_amount(metric: str, text: str) -> None:
    """Check the amount of a metric: an amount of money may have decimal places, and every other amount must be an integer."""
    if not _is_metric(metric):
        raise UnreadableDelta(f"the metric {_shown(metric)} is not valid")
    what = f"the amount {_shown(text)} of {metric!r}"
    if len(text) > _MAX_AMOUNT_CHARACTERS:
        raise UnreadableDelta(f"{what} is too long")
    if metric.startswith(VALUE):
        _check_value(what, text)
    elif not _INTEGER.fullmatch(text):
        raise UnreadableDelta(f"{what} must be an integer")
    elif abs(int(text)) > MAX_COUNT or (int(text) < 0 and metric in NEVER_NEGATIVE):
        raise UnreadableDelta(f"{what} is out of range")


@lru_cache(maxsize=4096)
def _is_metric(metric: str) -> bool:
    """Return whether a report can show a metric and the databases can store it. A metric with an unknown name is accepted,
    because a newer release may have written it."""
    if not metric or metric == HISTOGRAM or "\0" in metric or len(metric.encode()) > MAX_METRIC_BYTES:
        return False
    if metric.startswith(TIME_TO_CLICK):
        bucket = metric.removeprefix(TIME_TO_CLICK)
        return bool(_BUCKET.fullmatch(bucket)) and int(bucket) <= MAX_BUCKET
    # A metric of money is "value:CURRENCY" or "value:CURRENCY:CATEGORY:ACTION". With exactly two colons, it is damaged.
    return not metric.startswith(VALUE) or metric.count(":") != 2


def _check_value(what: str, text: str) -> None:
    try:
        value = Decimal(text)
    except ArithmeticError as error:
        raise UnreadableDelta(f"{what} must be a number") from error
    exponent = value.as_tuple().exponent  # The exponent is a letter if the number is infinite or NaN.
    if isinstance(exponent, str) or exponent < -MAX_VALUE_PLACES or value.copy_abs() > MAX_VALUE:
        raise UnreadableDelta(f"{what} is out of range")


def _shown(value: object) -> str:
    """Return the beginning of a value as text for an error message."""
    return repr(value)[:200]
