"""A count delta contains the amounts by which a transaction changes the counts. A background job adds these amounts to the table
`counts` later.

There is a count for each cohort (application, campaign, source, country, conversion process), time slot of 15 minutes and metric.
With 15 minutes, midnight is the start of a time slot in every time zone. The job (`reporting/counts.py`) adds count deltas to the
counts and deletes them in the same transaction, so that a crash neither loses an amount nor adds it twice.
"""

# Tested by tests/reporting/test_counts.py

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal

import orjson
from sqlalchemy import BigInteger, ColumnElement, Connection, Integer, literal_column

from shortener.ids import IdGenerator, id_span, ms_of
from shortener.model import State
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.key_table import KeyTable

TIME_SLOT_MS = 15 * 60 * 1000
MAX_ENTRIES_PER_ROW = 500  # maximum number of amounts in one row that `append_in_parts` inserts

#: The metric that sums the cost of messages. If a metric is an amount of money, its name begins with "value:".
COST = "value:cost"

#: Times from sending to click are counted in buckets. The upper limit of each bucket is 5 % higher than that of the previous
#: bucket. A percentile therefore has an error of at most 2.5 %.
_BUCKET_GROWTH = math.log(1.05)

#: The key of a cohort: (application_id, campaign, source, country, process_id). Without a campaign, or with an unknown country,
#: the text is "".
CohortKey = tuple[int, str, str, str, int]


class CountDelta:
    """Amounts to add to the counts, by (cohort, time slot, metric, origin). A time slot is a number of quarters of an hour since
    1970.

    The origin of an amount is the time slot in which the message was created, and the id of the message's link set (0: none).
    Statistics by the time of sending, by destination and by label need the origin."""

    __slots__ = ("_amounts",)

    def __init__(self) -> None:
        self._amounts: dict[tuple[int, int, str, int, int], int | Decimal] = {}

    def add(
        self, cohort: int, at_ms: int, metric: str, amount: int | Decimal = 1, *, message: int | None = None, link_set: int = 0
    ) -> None:
        """Add an amount to a metric, in the time slot of an event. `message` is the row id of the event's message. For an event
        without a message, the time of the event counts as the time of sending."""
        slot = at_ms // TIME_SLOT_MS
        key = (cohort, slot, metric, slot if message is None else sent_slot(message), link_set)
        self._amounts[key] = self._amounts.get(key, 0) + amount

    def add_slots(self, cohort: int, slot: int, metric: str, sent: int, link_set: int, amount: int | Decimal = 1) -> None:
        """Add an amount to a metric, as `add` does. `slot` is the time slot of the event. `sent` is the time slot in which the
        message of the event was created."""
        key = (cohort, slot, metric, sent, link_set)
        self._amounts[key] = self._amounts.get(key, 0) + amount

    def merge(self, data: Sequence[tuple[int, int, str, str]]) -> None:
        """Add the amounts of another count delta. `data` is the result of the other delta's method `data`, which contains no
        origins. The origin of each entry becomes the entry's own time slot, without a link set."""
        for cohort, time_slot, metric, amount in data:
            key = (cohort, time_slot, metric, time_slot, 0)
            self._amounts[key] = self._amounts.get(key, 0) + Decimal(amount)

    def data(self) -> list[tuple[int, int, str, str]]:
        """Return a tuple of cohort, time slot, metric and amount for each entry, with the amount as text."""
        return [(cohort, time_slot, metric, str(amount)) for (cohort, time_slot, metric, _, _), amount in self._amounts.items()]

    def origins(self) -> list[tuple[int, int]]:
        """Return the origin of each entry, in the order of `data`: (time slot in which its message was created, link set)."""
        return [(sent, link_set) for _, _, _, sent, link_set in self._amounts]

    def split(self, max_entries: int) -> Iterator[CountDelta]:
        """Yield count deltas with at most `max_entries` entries each. Their sum is this count delta."""

        def order(entry: tuple[tuple[int, int, str, int, int], int | Decimal]) -> tuple[int, int, int, int]:
            (cohort, slot, _, sent, link_set), _ = entry
            return origin_order(cohort, slot, sent, link_set)

        entries = sorted(self._amounts.items(), key=order)
        for first in range(0, len(entries), max_entries):
            part = CountDelta()
            part._amounts = dict(entries[first : first + max_entries])
            yield part

    def dumps(self) -> str:
        return orjson.dumps(self.data()).decode()

    def __bool__(self) -> bool:
        return bool(self._amounts)

    def items(self) -> list[tuple[tuple[int, int, str], int | Decimal]]:
        """Return the sums over all origins, as pairs of (cohort, time slot, metric) and amount."""
        sums: dict[tuple[int, int, str], int | Decimal] = {}
        for (cohort, time_slot, metric, _, _), amount in self._amounts.items():
            key = (cohort, time_slot, metric)
            sums[key] = sums.get(key, 0) + amount
        return list(sums.items())


def origin_order(cohort: int, slot: int, sent: int | None, link_set: int) -> tuple[int, int, int, int]:
    """Return a sort key for an entry of a count delta. It places entries with similar origins near each other.

    The origin is the time slot `sent` in which the message was created, and the link set of the message. `slot` is the time slot
    of the event. `sent` is None for an entry of an older release, which did not store this time slot."""
    return cohort, link_set, -1 if sent is None else sent, slot


def sent_slot(message: int) -> int:
    """Return the time slot in which a message was created. It is computed from the row id, which contains the time."""
    return ms_of(message) // TIME_SLOT_MS


def sent_slot_of(message: ColumnElement[int]) -> ColumnElement[int]:
    """Return an SQL expression that computes `sent_slot`. `message` is a column with row ids of messages."""
    ms = message.bitwise_rshift(literal_column(str(id_span(1).bit_length() - 1), Integer)) + literal_column(
        str(ms_of(0)), BigInteger
    )
    return ms // literal_column(str(TIME_SLOT_MS), BigInteger)


#: The INSERT statement for rows of count deltas.
insert = BulkInsert(schema.count_deltas, "id", "data", "origins")


def rows(row_id: int, delta: CountDelta) -> list[tuple[int, str, str]]:
    """Return a list with one row for a count delta, or an empty list if the delta is empty. The caller inserts the row in the
    transaction of the change that is counted."""
    return [(row_id, delta.dumps(), orjson.dumps(delta.origins()).decode())] if delta else []


def append(connection: Connection, row_id: int, delta: CountDelta) -> None:
    """Insert the row of a count delta. Call this in the transaction of the change that is counted."""
    insert(connection, rows(row_id, delta))


def append_in_parts(connection: Connection, ids: IdGenerator, delta: CountDelta) -> None:
    """Insert a count delta with any number of entries, as rows with at most MAX_ENTRIES_PER_ROW entries. Call this in the
    transaction of the change that is counted.

    A single large row would be slow: `reporting.counts` adds it in many transactions, and each of them writes the rest of the row
    again."""
    for part in delta.split(MAX_ENTRIES_PER_ROW):
        append(connection, ids(), part)


def time_to_click(clicked_at: int, sent_at: int | None, created_at: int, before: int) -> str:
    """Return the metric for the time from sending to the first click of a message.

    Times are milliseconds since 1970. `before` is the state of the message before the click. If the message was not reported as
    sent, the time begins with the creation of the message."""
    since = sent_at if sent_at is not None and before != State.CREATED else created_at
    return f"ttc:{time_to_click_bucket((clicked_at - since) / 1000)}"


def time_to_click_bucket(seconds: float) -> int:
    """Return the number of the bucket for a time from sending to click. Bucket 0 ends at one second. The limit of each further
    bucket is 5 % higher than that of the bucket before it."""
    return 0 if seconds <= 1 else 1 + int(math.log(seconds) / _BUCKET_GROWTH)


def time_to_click_seconds(bucket: int) -> float:
    """Return the time in the middle of a bucket, in seconds. Statistics use it for all clicks in the bucket."""
    return 0.5 if bucket == 0 else math.exp((bucket - 0.5) * _BUCKET_GROWTH)


class Cohorts(KeyTable):
    """Finds the ids of cohorts, and inserts new cohorts. The ids are cached."""

    def __init__(self) -> None:
        super().__init__(schema.cohorts, ("application_id", "campaign", "source", "country", "process_id"))
