"""What a transaction adds to the counts: one small row, folded into `counts` behind the hot path.

A count is kept per cohort (application, campaign, source, country, conversion process), quarter of an hour and metric. Quarters,
because every time zone in use starts its day on one. Folding reads rows, adds them up and deletes them in one transaction, so
that a crash neither loses nor doubles a count (`reporting/counts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

import orjson
from sqlalchemy import Connection

from shortener.model import State
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.key_table import KeyTable
from shortener.storage.types import to_ms

TIME_SLOT_MS = 15 * 60 * 1000

#: Buckets of time to click grow by 5 %, so a percentile read from them is right within 2.5 %.
_GROWTH = math.log(1.05)

#: A cohort's key: application_id, campaign ("" for none), source, country ("" for unknown), process_id.
CohortKey = tuple[int, str, str, str, int]


class CountDelta:
    """Amounts to add, by (cohort, quarter, metric)."""

    __slots__ = ("_amounts",)

    def __init__(self) -> None:
        self._amounts: dict[tuple[int, int, str], int | Decimal] = {}

    def add(self, cohort: int, at_ms: int, metric: str, amount: int | Decimal = 1) -> None:
        key = (cohort, at_ms // TIME_SLOT_MS, metric)
        self._amounts[key] = self._amounts.get(key, 0) + amount

    def merge(self, data: Sequence[tuple[int, int, str, str]]) -> None:
        """Add what `data()` of another tally holds."""
        for cohort, quarter, metric, amount in data:
            key = (cohort, quarter, metric)
            self._amounts[key] = self._amounts.get(key, 0) + Decimal(amount)

    def data(self) -> list[tuple[int, int, str, str]]:
        return [(cohort, quarter, metric, str(amount)) for (cohort, quarter, metric), amount in self._amounts.items()]

    def dumps(self) -> str:
        return orjson.dumps(self.data()).decode()

    def __bool__(self) -> bool:
        return bool(self._amounts)

    def items(self) -> list[tuple[tuple[int, int, str], int | Decimal]]:
        return list(self._amounts.items())


#: Takes what `rows` gives.
insert = BulkInsert(schema.count_deltas, "id", "data")


def rows(row_id: int, tally: CountDelta) -> list[tuple[int, str]]:
    """The tally's row; write it in the transaction that makes it true."""
    return [(row_id, tally.dumps())] if tally else []


def append(connection: Connection, row_id: int, tally: CountDelta) -> None:
    """Write the tally's row; call it in the transaction that makes it true."""
    insert(connection, rows(row_id, tally))


def time_to_click(clicked_at: int, sent_at: int | None, created_at: int, before: int) -> str:
    """The metric that counts how soon the first click of a message came. Times are ms since 1970; `before`: the state that the
    message was in. When nothing had been reported it was not known when it was sent, and it counts from when it was made."""
    since = sent_at if sent_at is not None and before != State.CREATED else created_at
    return f"ttc:{time_to_click_bucket((clicked_at - since) / 1000)}"


def time_to_click_bucket(seconds: float) -> int:
    """The bucket of a time to click: 0 up to one second, then one more for every 5 %."""
    return 0 if seconds <= 1 else 1 + int(math.log(seconds) / _GROWTH)


def time_to_click_seconds(bucket: int) -> float:
    """The middle of a bucket, in seconds."""
    return 0.5 if bucket == 0 else math.exp((bucket - 0.5) * _GROWTH)


def time_slot_of(at: datetime) -> int:
    return to_ms(at) // TIME_SLOT_MS


class Cohorts(KeyTable):
    """Numbers of cohorts."""

    def __init__(self) -> None:
        super().__init__(schema.cohorts, ("application_id", "campaign", "source", "country", "process_id"))
