"""This module reads, writes and adds up the amounts in rows of rolled-up counts. The amounts of a row are one JSON object with
all metrics.

Amounts are integers, and decimal strings for amounts of money. A row can have a few hundred buckets of the time to click
(`ttc:45`). If there are MIN_PACKED_BUCKETS or more, they are stored as one text, the histogram. A report converts each histogram
to one large integer, so that one addition adds all buckets. Separate additions for each bucket of each row would take most of the
time of a report over many groups and days.

A histogram is `WIDTH.FIRST.BASE64`: the number of bytes of each count, the number of the first bucket, and the counts of this and
all later buckets, little-endian. If there are few buckets, or if a count is negative or too large, each bucket is stored as a
separate entry. A row may contain both forms.
"""

from __future__ import annotations

import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from decimal import Context, Decimal

import orjson

#: Decimal arithmetic with so many digits that no sum is rounded.
EXACT = Context(prec=100)
VALUE = "value:"  # The prefix of metrics that are amounts of money.
TIME_TO_CLICK = "ttc:"  # The prefix of the buckets of the time to click.
HISTOGRAM = "ttc"  # The key of the histogram in a row.

#: A row with fewer buckets stores one entry for each bucket. These entries are then shorter than a histogram, and adding them
#: takes no more time.
MIN_PACKED_BUCKETS = 24
#: For each number of bytes of a count, the format character of the module `struct`.
_FORMATS = {1: "B", 2: "H", 4: "I"}
#: The number of bytes for one bucket in a sum of histograms. Even the sum of 10**12 clicks in one bucket fits into them.
_SUM_BYTES = 5

#: The amounts of a row by metric.
Amounts = dict[str, int | str]


def loads(data: str | Amounts) -> Amounts:
    """Return the amounts of a row from its column `data`. A histogram keeps its stored form.

    On SQLite, the column is already parsed, because all rows are read as one JSON text."""
    amounts: Amounts = orjson.loads(data) if isinstance(data, str) else data
    return amounts


def dumps(amounts: Amounts) -> str:
    """Return the JSON text of the amounts of a row. If there are many buckets of the time to click, they become one histogram."""
    if HISTOGRAM not in amounts and len(amounts) >= MIN_PACKED_BUCKETS:
        buckets = {
            int(metric[len(TIME_TO_CLICK) :]): int(amounts[metric]) for metric in amounts if metric.startswith(TIME_TO_CLICK)
        }
        packed = _pack(buckets)
        if packed is not None:
            amounts = {metric: amount for metric, amount in amounts.items() if not metric.startswith(TIME_TO_CLICK)}
            amounts[HISTOGRAM] = packed
    return orjson.dumps(amounts).decode()


def amounts_of(amounts: Mapping[str, int | Decimal]) -> Amounts:
    """Convert amounts by metric to the form in which a row contains them: integers, and decimal strings for money."""
    return {metric: amount if isinstance(amount, int) else format(amount, "f") for metric, amount in amounts.items()}


def add_amounts(stored: Amounts, more: Mapping[str, int | str]) -> Amounts:
    """Add amounts to the amounts of a row, and return the result. The function may change `stored`."""
    buckets: dict[int, int] = {}
    for metric, amount in more.items():
        if metric.startswith(VALUE):
            stored[metric] = format(EXACT.add(Decimal(stored.get(metric, 0)), Decimal(amount)), "f")
        elif metric.startswith(TIME_TO_CLICK) and HISTOGRAM in stored:
            buckets[int(metric[len(TIME_TO_CLICK) :])] = int(amount)
        else:
            stored[metric] = int(stored.get(metric, 0)) + int(amount)
    if not buckets:
        return stored
    if (packed := _add_to_histogram(str(stored[HISTOGRAM]), buckets)) is not None:
        stored[HISTOGRAM] = packed
        return stored
    single = unpack(stored)
    for bucket, amount in buckets.items():
        metric = f"{TIME_TO_CLICK}{bucket}"
        single[metric] = int(single.get(metric, 0)) + amount
    return single


def unpack(amounts: Amounts) -> Amounts:
    """Return the amounts of a row without a histogram: each bucket of the time to click has its own entry."""
    if HISTOGRAM not in amounts:
        return amounts
    single = {metric: amount for metric, amount in amounts.items() if metric != HISTOGRAM}
    for bucket, count in _buckets(_widen(str(amounts[HISTOGRAM]))).items():
        metric = f"{TIME_TO_CLICK}{bucket}"
        single[metric] = int(single.get(metric, 0)) + count
    return single


class PeriodSums:
    """The sums over many rows. `counts` and `money` contain the sum of each metric. `histogram` returns the sums of the
    histograms."""

    __slots__ = ("_histogram", "counts", "money")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.money: dict[str, Decimal] = {}
        self._histogram = 0

    def add(self, data: Amounts) -> None:
        """Add the amounts of a row to the sums."""
        counts = self.counts
        get = counts.get
        for metric, amount in data.items():
            if isinstance(amount, int):
                counts[metric] = get(metric, 0) + amount
            elif metric == HISTOGRAM:
                self._histogram += _widen(amount)
            else:
                self.money[metric] = EXACT.add(self.money.get(metric, Decimal()), Decimal(amount))

    def histogram(self) -> dict[int, int]:
        """Return the sum of the histograms: the count of each bucket. Buckets that were stored as separate entries are in
        `counts` instead."""
        return _buckets(self._histogram)


def _pack(counts: Mapping[int, int]) -> str | None:
    """Return a histogram of the counts, whose keys are buckets. Return None if there are only a few counts, or if one is too
    large."""
    if len(counts) < MIN_PACKED_BUCKETS:
        return None
    first = min(counts)
    return _encode(first, [counts.get(bucket, 0) for bucket in range(first, max(counts) + 1)])


def _add_to_histogram(histogram: str, more: Mapping[int, int]) -> str | None:
    """Add counts, whose keys are buckets, to a histogram. Return the new histogram, or None if a sum is too large."""
    width, first_text, packed = histogram.split(".")
    first, content = int(first_text), a2b_base64(packed)
    counts = list(struct.unpack(f"<{len(content) // int(width)}{_FORMATS[int(width)]}", content))
    if (before := first - min(more)) > 0:
        counts, first = [0] * before + counts, min(more)
    counts += [0] * (max(more) - first + 1 - len(counts))
    for bucket, count in more.items():
        counts[bucket - first] += count
    return _encode(first, counts)


def _encode(first: int, counts: Sequence[int]) -> str | None:
    """Return a histogram of these counts. The first count belongs to the bucket `first`. Return None if a count is negative or
    too large."""
    largest = max(counts)
    if min(counts) < 0 or largest >= 1 << 32:
        return None
    width = 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4
    packed = struct.pack(f"<{len(counts)}{_FORMATS[width]}", *counts)
    return f"{width}.{first}.{b2a_base64(packed, newline=False).decode()}"


def _widen(histogram: str) -> int:
    """Return a histogram as one integer that has _SUM_BYTES for each bucket. With so many bytes, a sum of such integers does not
    overflow from one bucket into the next."""
    width, first, packed = histogram.split(".")
    counts = a2b_base64(packed)
    if width == "1":
        wide = bytearray(_SUM_BYTES * len(counts))
        wide[::_SUM_BYTES] = counts
    else:
        size = int(width)
        wide = bytearray(_SUM_BYTES * (len(counts) // size))
        for offset in range(size):
            wide[offset::_SUM_BYTES] = counts[offset::size]
    return int.from_bytes(wide, "little") << 8 * _SUM_BYTES * int(first)


def _buckets(total: int) -> dict[int, int]:
    """Return the counts in a sum of integers that `_widen` returned. The keys are buckets. Counts of 0 are left out."""
    if not total:
        return {}
    number = -(-total.bit_length() // (8 * _SUM_BYTES))
    sums = total.to_bytes(_SUM_BYTES * number, "little")
    eights = bytearray(8 * number)
    for offset in range(_SUM_BYTES):
        eights[offset::8] = sums[offset::_SUM_BYTES]
    return {bucket: count for bucket, count in enumerate(struct.unpack(f"<{number}Q", eights)) if count}
