"""This module repairs the rolled-up counts of a period: it adds missing counts and corrects wrong counts.

A migration introduced the counts with Basis.SENT. A repair also creates these counts for messages from before the migration, if
the rows of the messages still exist.
"""

# Tested by tests/reporting/test_rollups.py

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import Enum, auto

from sqlalchemy import Connection

from shortener.model import record
from shortener.plurals import counted
from shortener.reporting import counts, rollup_data, rollups
from shortener.reporting.counts import lock, time_slots
from shortener.reporting.delta_rows import count_quarantined
from shortener.reporting.rollup_check import (
    COUNTED_SINCE,
    counted_since,
    different_metrics,
    merge_metric,
    merge_metrics,
    recount,
)
from shortener.reporting.rollup_data import EXACT
from shortener.reporting.rollups import GroupName, PeriodAmounts
from shortener.storage.database import Database
from shortener.storage.installation import get, set_value

#: The key of an entry in the table `installation`. The entry is the number of transactions in which repairs have corrected
#: counts.
REPAIRS = "repairs of counts"
MAX_CHANGED_PERIODS = 500  # The maximum number of rows of rolled-up counts that one transaction of a repair changes.


class RowsQuarantined(Exception):
    """Raised if rows of count deltas are quarantined, because a repair could then count their amounts twice: the repair would add
    the amounts to the rolled-up counts, and a process that starts may add the quarantined rows again."""


@record
class _Corrections:
    """The amounts to add to the rolled-up counts from the time slot `since` on. `repairs` is the value of REPAIRS when the rows
    were counted."""

    changes: PeriodAmounts
    names: dict[int, GroupName]
    since: int
    repairs: int

    @property
    def count(self) -> int:
        """The number of rolled-up counts to change."""
        return sum(len(metrics) for metrics in self.changes.values())


async def repair_rollups(
    database: Database,
    since: datetime,
    until: datetime,
    begun: Callable[[Connection, int], None] = lambda connection, corrected: None,
) -> int:
    """Correct the rolled-up counts of a period. Also create the counts with Basis.SENT for messages from before the migration
    that introduced them.

    Return the number of changed rolled-up counts. If another process runs `counts.fold`, return 0, although earlier transactions
    of the repair may have changed counts. Each time the rows have been counted, `begun` is called with the number of counts to
    change, in the first write transaction. The time to click is computed from the stored time of sending, which a late report may
    have changed. Raise RowsQuarantined if rows of count deltas are quarantined.

    The rows are counted in a read transaction, because a long write transaction would block the server's writes to SQLite. Short
    write transactions then add the differences. A difference stays the same while the server runs, because the server adds each
    new amount to the rows and to the counts. Only another repair changes a difference. In this case, the rows are counted
    again."""
    while await database.write_later(counts.heal):
        pass
    while True:
        corrections = await database.read(_find_corrections, since, until)
        keys = sorted(corrections.changes)
        for start in range(0, max(len(keys), 1), MAX_CHANGED_PERIODS):
            changes = {key: corrections.changes[key] for key in keys[start : start + MAX_CHANGED_PERIODS]}
            result = await database.write_later(_correct, corrections, changes, start // MAX_CHANGED_PERIODS, begun)
            if result is not _Outcome.CORRECTED:
                break
        if result is not _Outcome.OUTDATED:
            return corrections.count if result is _Outcome.CORRECTED else 0


class _Outcome(Enum):
    """The outcome of a write transaction of a repair. LOCKED: another process runs `counts.fold`. OUTDATED: another repair has
    changed the rolled-up counts since the rows were counted."""

    CORRECTED = auto()
    LOCKED = auto()
    OUTDATED = auto()


def require_no_quarantine(connection: Connection) -> None:
    """Raise RowsQuarantined if rows of count deltas are quarantined."""
    if number := count_quarantined(connection):
        raise RowsQuarantined(
            f"nothing was corrected: {counted(number, 'row of count deltas is', 'rows of count deltas are')} quarantined (table "
            "tallies, id < 0). Correct them and restart the service, or delete them"
        )


def _find_corrections(connection: Connection, since: datetime, until: datetime) -> _Corrections:
    require_no_quarantine(connection)
    within = time_slots(since, until)
    check = recount(connection, within, min(counted_since(connection), within.start), is_merged=False)
    changes: PeriodAmounts = {}
    for key in check.kept.keys() | check.counted.keys():
        kept, counted = check.kept.get(key, {}), check.counted.get(key, {})
        wrong = set(different_metrics(merge_metrics(kept), merge_metrics(counted)))
        for metric in kept.keys() | counted.keys():
            if merge_metric(metric) in wrong and (change := EXACT.subtract(counted.get(metric, 0), kept.get(metric, 0))):
                changes.setdefault(key, {})[metric] = change if metric.startswith(rollup_data.VALUE) else int(change)
    return _Corrections(changes, check.names, within.start, _count_repairs(connection))


def _correct(
    connection: Connection,
    corrections: _Corrections,
    changes: PeriodAmounts,
    number: int,
    begun: Callable[[Connection, int], None],
) -> _Outcome:
    """Add one part of the corrections, `changes`. `number` is the number of parts that were added before this part."""
    if not lock(connection):
        return _Outcome.LOCKED
    if _count_repairs(connection) != corrections.repairs + number:
        return _Outcome.OUTDATED
    if number == 0:
        require_no_quarantine(connection)
        begun(connection, corrections.count)
        if counted_since(connection) > corrections.since:
            set_value(connection, COUNTED_SINCE, str(corrections.since))
    rollups.add_changes(connection, changes, corrections.names)
    set_value(connection, REPAIRS, str(corrections.repairs + number + 1))
    return _Outcome.CORRECTED


def _count_repairs(connection: Connection) -> int:
    return int(get(connection, REPAIRS) or 0)
