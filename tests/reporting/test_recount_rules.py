"""Tests that two checks count the same rows: the check of the counts, and the check of the rolled-up counts."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from shortener.container import Service
from shortener.model import Verdict
from shortener.reporting.count_check import by_time_slot
from shortener.reporting.counts import time_slots
from shortener.reporting.recount_rules import OF_PENDING_CLICKS, CountRule, id_ranges, recount_rules
from shortener.reporting.rollup_check import _grouped
from shortener.storage import schema
from shortener.storage.database import Database
from tests.clicks.helpers import create_codes, make_hit
from tests.conftest import NOON
from tests.reporting.history import write_history

DAY = timedelta(days=1)
EVER = time_slots(NOON - 100 * DAY, NOON + 100 * DAY)


def sums(connection: Connection, statement: Any) -> Counter[tuple[int, int, str]]:
    """Return the sums of the amounts by cohort, time slot and metric."""
    found: Counter[tuple[int, int, str]] = Counter()
    for cohort, slot, metric, *_, amount in connection.execute(statement):
        found[cohort, slot, metric] += amount
    return found


def compare(connection: Connection) -> set[str]:
    """Apply each rule with both checks, and assert that they count the same. Return the metrics that have an amount."""
    rules = [rule for _, of_table in recount_rules(connection) for rule in of_table]
    counted: set[str] = set()
    for rule in (*rules, OF_PENDING_CLICKS):
        one, other = sums(connection, by_time_slot(rule, EVER)), sums(connection, _grouped(rule, EVER))
        assert one == other, rule.metric
        counted |= {metric for _, _, metric in one}
    return counted


async def test_both_checks_count_the_same_rows_by_each_rule(database: Database) -> None:
    await database.write(write_history)
    counted = await database.read(compare)
    assert counted >= {"messages", "sent", "failed", "clicked_messages", "clicks", "converted_messages", "conversions", "value:EUR"}


async def test_both_checks_count_the_same_rewrites_and_clicks(service: Service) -> None:
    clicked, other = [(await create_codes(service))[0] for _ in range(2)]
    for code, verdict in ((clicked, Verdict.HUMAN), (clicked, Verdict.HUMAN), (other, Verdict.SUSPECTED)):
        await service.recorder.record(make_hit(service, code, verdict))
    assert await service.database.read(compare) == {
        *("messages", "segments", "links", "clicks", "clicked_links", "clicked_messages", "suspected_hits", "ttc")
    }


async def test_each_rule_belongs_to_the_table_that_is_read_in_ranges(database: Database) -> None:
    def check(connection: Connection) -> list[CountRule]:
        found = recount_rules(connection)
        assert len({table.name for table, _ in found}) == len(found)
        return [rule for table, rules in found for rule in rules if rule.table is not table]

    assert await database.read(check) == []


@pytest.mark.parametrize("rows", [1, 2, 3])
async def test_ranges_of_ids_contain_each_row_once(database: Database, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("shortener.reporting.recount_rules.MAX_RECOUNT_ROWS", rows)
    await database.write(write_history)

    def count(connection: Connection) -> tuple[list[int | None], int | None]:
        number = select(func.count()).select_from(schema.hits)
        parts = [connection.scalar(number.where(part)) for part in id_ranges(connection, schema.hits)]
        return parts, connection.scalar(number)

    parts, total = await database.read(count)
    assert total is not None
    assert total > 2
    # If the number of rows is a multiple of `rows`, the last range is empty.
    assert parts == [rows] * (total // rows) + [total % rows]
