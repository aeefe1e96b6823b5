"""Tests of the conditions on the status of messages for gateways."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.sql import ColumnElement

from shortener.storage.database import Database
from shortener.storage.schema import sends
from shortener.storage.send_conditions import IS_HELD, IS_PENDING, IS_UNFINISHED


@pytest.mark.parametrize(
    ("condition", "index"), [(IS_PENDING, "sends_due"), (IS_HELD, "sends_held"), (IS_UNFINISHED, "sends_unfinished")]
)
async def test_a_query_of_the_pending_held_or_unfinished_messages_uses_the_partial_index(
    database: Database, condition: ColumnElement[bool], index: str
) -> None:
    def plan(connection: Connection) -> str:
        statement = select(sends.c.id).where(condition).compile(connection)
        if connection.dialect.name == "sqlite":
            return str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all())
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        return str(connection.execute(text(f"EXPLAIN {statement}")).all())

    assert index in await database.write(plan)
