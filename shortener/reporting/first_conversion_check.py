"""This module finds messages with conversions whose row in `first_conversions` is missing.

The next conversion of such a message would count it again, and lists of converted messages do not contain it. If the row was lost,
the figure `converted_messages` still includes the message. If a process of a release before 0.3 stored the conversion too late for
the background job, the figure does not include it. The counts show which is true: `find_counted_without_row` returns how many
messages without a row they include.
"""
# Tested by tests/conversions/test_first_conversions.py and tests/cli/test_stats.py

from __future__ import annotations

from collections import Counter
from datetime import datetime

from sqlalchemy import Connection, func, join, select

from shortener.conversions.first_conversions import CONVERTED_MESSAGES, CountedSlots, is_missed, read_progress
from shortener.reporting.count_check import by_time_slot, read_counts
from shortener.reporting.counts import time_slots
from shortener.reporting.recount_rules import OF_FIRST_CONVERSIONS, id_ranges
from shortener.reporting.rollup_repair import require_no_quarantine
from shortener.storage.schema import conversions, messages


def count_missing(connection: Connection) -> int:
    """Return the number of messages whose row in `first_conversions` is missing. Messages that the background job has not read yet
    are not included."""
    missed = is_missed(read_progress(connection))
    joined = join(conversions, messages, messages.c.id == conversions.c.message_id)
    number = select(func.count()).select_from(joined)
    return sum(connection.scalar(number.where(ids, missed)) or 0 for ids in id_ranges(connection, conversions))


def find_counted_without_row(connection: Connection, since: datetime, until: datetime) -> CountedSlots:
    """Return the numbers of messages that the figure `converted_messages` counts although their row in `first_conversions` is
    missing, for the time slots from `since` to `until`.

    Raise RowsQuarantined if count deltas are quarantined, because the counts are then incomplete."""
    require_no_quarantine(connection)
    within = time_slots(since, until)
    found: CountedSlots = Counter()
    for (cohort, slot, metric), amount in read_counts(connection, within).items():
        if metric == CONVERTED_MESSAGES:
            found[cohort, slot] += int(amount)
    rule = OF_FIRST_CONVERSIONS
    each = by_time_slot(rule, within)
    for ids in id_ranges(connection, rule.table):
        for cohort, slot, _, amount in connection.execute(each.where(ids)):
            found[cohort, slot] -= amount
    return +found
