from __future__ import annotations

import pytest
from sqlalchemy import Connection

from shortener.messages import queries
from shortener.messages.queries import StoredLink, StoredMessage, StoredResponse
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.conftest import NOON
from tests.rows import Rows


async def test_stored_messages_are_found_by_application_and_message_id(database: Database) -> None:
    def build(connection: Connection) -> int:
        rows = Rows(connection)
        row = rows.message(NOON, message_id="m-1", request_id="r-1", content_hash="hash")
        rows.message(NOON, message_id="m-1", application_id=2)
        rows.message(NOON, message_id="m-2")
        return row

    row = await database.write(build)
    found = await database.read(queries.find_messages, [(1, "m-1"), (1, "unknown"), (3, "m-1")])
    assert found == {(1, "m-1"): StoredMessage(row, "r-1", "hash")}


async def test_the_links_of_a_message_are_found_in_the_order_of_their_positions(database: Database) -> None:
    def build(connection: Connection) -> tuple[int, int]:
        rows = Rows(connection)
        message, without_links = rows.message(NOON), rows.message(NOON)
        rows.link(message, position=1, code="second", label="sale", domain_id=7, expires_at=NOON)
        rows.link(message, position=0, code="first", url="https://x.example/", expires_at=NOON)
        rows.link(rows.message(NOON))
        return message, without_links

    message, without_links = await database.write(build)
    assert await database.read(queries.find_links, [message, without_links]) == {
        message: [
            StoredLink("first", "https://x.example/", None, to_ms(NOON), 0),
            StoredLink("second", "https://shop.example/", "sale", to_ms(NOON), 7),
        ]
    }


async def test_stored_responses_are_found_by_application_and_idempotency_key(database: Database) -> None:
    def build(connection: Connection) -> None:
        rows = Rows(connection)
        rows.idempotent_response(NOON, "key", content_hash="hash", answer=[{"message_id": "m-1"}])
        rows.idempotent_response(NOON, "key", application_id=2)

    await database.write(build)
    found = await database.read(queries.find_responses, [(1, "key"), (1, "unknown")])
    assert found == {(1, "key"): StoredResponse("hash", [{"message_id": "m-1"}])}


async def test_a_lookup_of_more_keys_than_one_sql_statement_permits_uses_several_statements(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_KEYS_PER_QUERY", 2)

    def build(connection: Connection) -> list[int]:
        rows = Rows(connection)
        messages = [rows.message(NOON, message_id=f"m-{number}") for number in range(5)]
        for number, message in enumerate(messages):
            rows.link(message)
            rows.idempotent_response(NOON, f"key-{number}")
        return messages

    messages = await database.write(build)
    assert len(await database.read(queries.find_messages, [(1, f"m-{number}") for number in range(5)])) == 5
    assert len(await database.read(queries.find_links, messages)) == 5
    assert len(await database.read(queries.find_responses, [(1, f"key-{number}") for number in range(5)])) == 5
