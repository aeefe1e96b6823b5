from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from sqlalchemy import Connection

from shortener.conversions import queries
from shortener.conversions.queries import ConversionTarget, StoredConversion, StoredRevision
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.conftest import NOON
from tests.rows import Rows


async def test_the_message_and_link_of_a_conversion_are_found_by_the_hit(database: Database) -> None:
    def build(connection: Connection) -> tuple[int, int, int]:
        rows = Rows(connection)
        message = rows.message(NOON, message_id="m-1", application_id=3, cohort_id=9)
        link = rows.link(message)
        return message, link, rows.hit(link)

    message, link, hit = await database.write(build)
    found = await database.read(queries.find_targets_by_hit, [hit, 12345])
    assert found == {hit: ConversionTarget(3, message, "m-1", 9, link, hit)}


async def test_the_message_of_a_conversion_is_found_by_application_and_message_id(database: Database) -> None:
    def build(connection: Connection) -> int:
        rows = Rows(connection)
        rows.message(NOON, message_id="m-1", application_id=2)
        return rows.message(NOON, message_id="m-1", cohort_id=9)

    message = await database.write(build)
    found = await database.write(queries.find_targets_by_message_id, [(1, "m-1"), (1, "unknown"), (3, "m-1")])
    assert found == {(1, "m-1"): ConversionTarget(1, message, "m-1", 9)}


async def test_conversions_are_found_by_message_action_and_transaction_id(database: Database) -> None:
    def build(connection: Connection) -> tuple[int, int]:
        rows = Rows(connection)
        message = rows.message(NOON)
        found = rows.conversion(message, action="sale", transaction_id="t-1", value=Decimal("12.50"), currency="EUR")
        rows.conversion(message, action="sale", transaction_id="t-2")
        return message, found

    message, conversion = await database.write(build)
    key = (message, "sale", "t-1")
    found = await database.write(queries.lock_conversions, [key, (message, "refund", "t-1")])
    latest = StoredRevision(1, None, None, Decimal("12.50"), "EUR", NOON, NOON)
    assert found == {key: StoredConversion(conversion, None, NOON, None, latest)}


async def test_the_insert_statement_skips_stored_conversions_and_returns_the_number_of_new_rows(database: Database) -> None:
    def build(connection: Connection) -> int:
        rows = Rows(connection)
        message = rows.message(NOON)
        rows.conversion(message, action="sale", transaction_id="t-1", value=Decimal("1"))
        return message

    message = await database.write(build)
    at = to_ms(NOON + timedelta(hours=1))
    new = [
        # The values have the order of the columns of the table.
        (number, 1, message, None, "sale", f"t-{number}", None, None, "2", "EUR", at, at, None, None, None, None, None)
        for number in (1, 2)
    ]
    assert await database.write(queries.insert_new_conversions, new) == 1
    found = await database.write(queries.lock_conversions, [(message, "sale", "t-1"), (message, "sale", "t-2")])
    assert [stored.latest.value for _, stored in sorted(found.items())] == [Decimal("1"), Decimal("2")]
