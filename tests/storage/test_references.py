"""Tests of references between tables. The database enforces some of them, and a report lists the rows that violate any of
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Connection, Table, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError

from shortener.container import Service
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.references import ENFORCED, VERIFIED, Orphan, find_orphans
from tests.conftest import NOON
from tests.one_service import on_one_service
from tests.rows import Rows

#: For each table that refers to an application: the values of one row, without the column `application_id`.
ROWS: dict[str, dict[str, Any]] = {
    "domains": {"host": "go.example", "base_url": "https://go.example", "created_at": NOON},
    "api_keys": {"name": "k", "hash": "h", "hint": "sk", "permissions": [], "created_at": NOON},
    "tracker_tokens": {"hash": "h", "created_at": NOON},
    "postback_keys": {"name": "k", "hash": "h", "hint": "pk", "created_at": NOON},
    "trackers": {
        "name": "t",
        "enabled": True,
        "url": "https://t.example/",
        "topics": 1,
        "method": "POST",
        "format": "json",
        "success": {},
        "created_at": NOON,
        "updated_at": NOON,
    },
    "link_updates": {
        "id": 1,
        "state": "done",
        "actor": "test",
        "filter": {},
        "changes": {},
        "last_message_id": 0,
        "created_at": NOON,
    },
    "replays": {"id": 1, "tracker_id": 1, "state": "done", "started_by": "test", "total": 1, "created_at": NOON},
}


def add(connection: Connection, table: Table, application_id: int, more: Mapping[str, Any]) -> None:
    connection.execute(insert(table).values(application_id=application_id, **{**ROWS[table.name], **more}))


@on_one_service
@pytest.mark.parametrize("table", [reference.column.table for reference in ENFORCED], ids=lambda table: table.name)
async def test_the_database_rejects_a_row_of_an_unknown_application(service: Service, table: Table) -> None:
    with pytest.raises(IntegrityError):
        await service.database.write(add, table, 999, {})
    await service.database.write(add, table, 1, {})


@on_one_service
@pytest.mark.parametrize("column", ["max_attempts", "concurrency", "max_per_second"])
async def test_the_database_rejects_a_tracker_with_a_limit_that_is_not_positive(service: Service, column: str) -> None:
    with pytest.raises(IntegrityError):
        await service.database.write(add, schema.trackers, 1, {column: 0})
    await service.database.write(add, schema.trackers, 1, {column: 1})

    def change(connection: Connection) -> None:
        connection.execute(update(schema.trackers).values({column: -1}))

    with pytest.raises(IntegrityError):
        await service.database.write(change)


async def test_the_database_rejects_an_api_key_with_a_rate_limit_that_is_not_positive(service: Service) -> None:
    with pytest.raises(IntegrityError):
        await service.database.write(add, schema.api_keys, 1, {"rate_limit": 0})


async def test_the_database_enforces_exactly_the_references_in_the_list_of_enforced_references(database: Database) -> None:
    def enforced(connection: Connection) -> set[tuple[str, str]]:
        if connection.dialect.name == "sqlite":
            names = connection.scalars(text("SELECT tbl_name FROM sqlite_master WHERE type = 'trigger' AND name LIKE '%fkey'"))
            return {(name, "application_id") for name in names}
        found = inspect(connection)
        return {
            (table, column)
            for table in found.get_table_names()
            for key in found.get_foreign_keys(table)
            for column in key["constrained_columns"]
        }

    expected = {(reference.column.table.name, reference.column.name) for reference in ENFORCED}
    assert await database.read(enforced) == expected


async def test_the_verification_reports_rows_that_refer_to_missing_rows(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortener.storage.references.MAX_RANGE_ROWS", 2)

    def fill(connection: Connection) -> tuple[int, list[int]]:
        rows = Rows(connection)
        connection.execute(insert(schema.cohorts).values(id=1, application_id=1, campaign="", source="api", country=""))
        messages = [rows.message(NOON) for _ in range(5)]
        links = [rows.link(message) for message in messages]
        event = rows.event(messages[0], link_id=links[0])
        rows.attempt(rows.delivery(event))
        for link in links:
            rows.hit(link)
        return messages[3], [rows.hit(404), rows.hit(404)]

    _, hits = await service.database.write(fill)
    assert await find_orphans(service.database) == [Orphan("hits.link_id -> links.id", hit) for hit in sorted(hits)]

    def delete_message(connection: Connection) -> int:
        message = connection.scalars(select(schema.messages.c.id).order_by(schema.messages.c.id)).all()[3]
        link: int = connection.scalars(select(schema.links.c.id).where(schema.links.c.message_id == message)).one()
        connection.execute(schema.messages.delete().where(schema.messages.c.id == message))
        return link

    link = await service.database.write(delete_message)
    assert Orphan("links.message_id -> messages.id", link) in await find_orphans(service.database)


def test_no_reference_is_listed_twice_among_the_enforced_and_verified_references() -> None:
    columns = [reference.column for reference in (*ENFORCED, *VERIFIED)]
    assert len(columns) == len(set(columns))
