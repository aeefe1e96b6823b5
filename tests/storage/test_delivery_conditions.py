"""Tests of the conditions on the status of deliveries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.sql import ColumnElement

from shortener.storage.database import Database
from shortener.storage.delivery_conditions import IS_DEAD, IS_PENDING
from shortener.storage.schema import deliveries

PACKAGE = Path(__file__).parents[2] / "shortener"


@pytest.mark.parametrize(("condition", "index"), [(IS_PENDING, "deliveries_due"), (IS_DEAD, "deliveries_dead")])
async def test_a_query_of_the_pending_or_dead_deliveries_uses_the_partial_index(
    database: Database, condition: ColumnElement[bool], index: str
) -> None:
    def plan(connection: Connection) -> str:
        statement = select(deliveries.c.id).where(condition).compile(connection)
        if connection.dialect.name == "sqlite":
            return str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all())
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        return str(connection.execute(text(f"EXPLAIN {statement}")).all())

    assert index in await database.write(plan)


def test_the_condition_of_pending_deliveries_is_defined_in_one_place() -> None:
    definition = re.compile(r'status == (literal_column\((str\(DeliveryStatus|"0"\)|"2"\))|0\b|2\b)')
    sources = {file: file.read_text() for file in PACKAGE.rglob("*.py")}
    found = [str(file.relative_to(PACKAGE)) for file, source in sources.items() if definition.search(source)]
    assert found == ["storage/delivery_conditions.py"], "use IS_PENDING and IS_DEAD"
