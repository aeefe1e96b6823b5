"""This module finds messages that have conversions but no row in `first_conversions`.

Without this row, lists of converted messages do not contain the message, and its next conversion would count it again in the
figure `converted_messages`.

There are two possible causes. If the row was lost, the figure already counts the message. If a process of a release before 0.3
stored the conversion after the background job (conversions/first_conversions.py) had read past its id, the figure does not count
the message. To distinguish them, `find_counted_without_row` returns how many messages without a row the figure counts.
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
    """Return the number of messages that have conversions but no row in `first_conversions`. Ignore conversions that the
    background job `FirstConversions` has not read yet."""
    missed = is_missed(read_progress(connection))
    joined = join(conversions, messages, messages.c.id == conversions.c.message_id)
    number = select(func.count()).select_from(joined)
    return sum(connection.scalar(number.where(ids, missed)) or 0 for ids in id_ranges(connection, conversions))


def find_counted_without_row(connection: Connection, since: datetime, until: datetime) -> CountedSlots:
    """Return how many messages the figure `converted_messages` counts although they have no row in `first_conversions`. The keys
    of the result are the cohort and the time slot, from `since` to `until`.

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
