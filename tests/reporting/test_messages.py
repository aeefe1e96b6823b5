"""Tests of lists of messages: their order, pages and filters, and the indexes that they read."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select, text

from shortener.model import State
from shortener.reporting import messages
from shortener.reporting.messages import MessageFilter, MessagePage, list_messages, serialize_message
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.database import Database
from shortener.storage.open import open_database
from shortener.storage.types import to_ms
from tests.conftest import new_postgresql_database
from tests.reporting.plans import plans, scanned
from tests.rows import Rows

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def cohort(
    connection: Connection, number: int, campaign: str = "", source: str = "api", country: str = "US", owner: int = 1
) -> None:
    values = {"id": number, "application_id": owner, "campaign": campaign, "source": source, "country": country}
    connection.execute(insert(schema.cohorts).values(values))


def fill(connection: Connection) -> None:
    """Write ten messages, m0 to m9, one per minute. Every second message has the campaign "spring". Every third message is
    delivered."""
    cohort(connection, 1)
    cohort(connection, 2, "spring", "campaign", "US")
    cohort(connection, 3, "spring", "campaign", "DE")
    cohort(connection, 4, owner=2)
    rows = Rows(connection)
    for number in range(10):
        state = State.DELIVERED if number % 3 == 0 else State.SENT
        cohort_id = 1 if number % 2 else 2 + (number % 4 == 0)
        to = "+491701234567" if cohort_id == 3 else "+14085550100"
        rows.message(NOON + number * MINUTE, message_id=f"m{number}", cohort_id=cohort_id, state=int(state), to_address=to)
    rows.message(NOON, message_id="of another application", application_id=2, cohort_id=4)


def names(found: MessagePage) -> list[str]:
    return [row.message_id for row in found.rows]


async def listed(database: Database, limit: int = 100, below: int | None = None, **filters: Any) -> list[str]:
    return names(await database.read(list_messages, MessageFilter(1, **filters), limit, below))


@pytest.fixture
async def filled(database: Database) -> Database:
    await database.write(fill)
    return database


async def test_a_list_of_messages_is_newest_first_and_contains_only_messages_of_the_application(filled: Database) -> None:
    assert await listed(filled) == [f"m{number}" for number in range(9, -1, -1)]
    assert names(await filled.read(list_messages, MessageFilter(2), 100)) == ["of another application"]
    assert names(await filled.read(list_messages, MessageFilter(3), 100)) == []


async def collect(database: Database, limit: int, **filters: Any) -> list[list[str]]:
    """Return the message ids of a list from all its pages."""
    pages: list[list[str]] = []
    below = None
    while True:
        found = await database.read(list_messages, MessageFilter(1, **filters), limit, below)
        pages.append(names(found))
        below = found.next
        if below is None:
            return pages


async def test_the_pages_of_a_list_contain_each_message_once(filled: Database) -> None:
    for filters in ({}, {"campaign": "spring"}, {"state": State.SENT}, {"to": "+14085550100"}):
        whole = await listed(filled, **filters)
        assert whole
        for limit in (1, 2, 3, 100):
            pages = await collect(filled, limit, **filters)
            assert [name for each in pages for name in each] == whole
            assert all(len(each) == limit for each in pages[:-1])


async def test_a_message_created_between_two_page_requests_does_not_shift_the_next_page(filled: Database) -> None:
    first = await filled.read(list_messages, MessageFilter(1), 4)
    await filled.write(lambda connection: Rows(connection).message(NOON + timedelta(hours=1), message_id="new"))
    assert await listed(filled, below=first.next) == ["m5", "m4", "m3", "m2", "m1", "m0"]


async def test_a_clicked_message_is_listed_with_the_state_clickthru_instead_of_its_reported_state(filled: Database) -> None:
    def click(connection: Connection) -> None:
        ids = {row.message_id: row.id for row in connection.execute(select(schema.messages.c.message_id, schema.messages.c.id))}
        rows = Rows(connection)
        rows.clicked(ids["m6"], NOON + timedelta(hours=1), hit_id=1)
        rows.clicked(ids["m7"], NOON + timedelta(hours=2), hit_id=2)
        # Message m9 was clicked, but its first click was retracted.
        connection.execute(insert(schema.first_clicks).values(id=ids["m9"], links=1))

    await filled.write(click)
    assert await listed(filled, state=State.CLICKTHRU) == ["m7", "m6"]
    assert await listed(filled, state=State.DELIVERED) == ["m9", "m3", "m0"]
    assert await listed(filled, state=State.SENT) == ["m8", "m5", "m4", "m2", "m1"]
    messages_shown = [serialize_message(row, reveal=True) for row in (await filled.read(list_messages, MessageFilter(1), 4)).rows]
    assert [(one["message_id"], one["state"], one["clicked_at"]) for one in messages_shown] == [
        ("m9", "DELIVERED", None),
        ("m8", "SENT", None),
        ("m7", "CLICKTHRU", "2026-11-20T14:00:00Z"),
        ("m6", "CLICKTHRU", "2026-11-20T13:00:00Z"),
    ]


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"state": State.DELIVERED}, "9 6 3 0"),
    ({"to": "+491701234567"}, "8 4 0"),
    ({"campaign": "spring"}, "8 6 4 2 0"),
    ({"campaign": ""}, "9 7 5 3 1"),
    ({"campaign": "autumn"}, ""),
    ({"source": "api"}, "9 7 5 3 1"),
    ({"source": "campaign"}, "8 6 4 2 0"),
    ({"campaign": "spring", "source": "api"}, ""),
    ({"campaign": "spring", "state": State.DELIVERED}, "6 0"),
    ({"campaign": "spring", "to": "+14085550100"}, "6 2"),
    ({"since": NOON + 7 * MINUTE}, "9 8 7"),
    ({"until": NOON + 2 * MINUTE}, "1 0"),
    ({"since": NOON + 2 * MINUTE, "until": NOON + 6 * MINUTE, "campaign": "spring"}, "4 2"),
]


async def test_each_filter_of_a_message_list_selects_the_matching_messages(filled: Database) -> None:
    for filters, expected in FILTERS:
        assert await listed(filled, **filters) == [f"m{number}" for number in expected.split()], filters


async def test_a_list_filter_without_an_index_finds_all_matching_messages_over_several_pages(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_SCANNED_ROWS", 2)
    for filters, expected in FILTERS:
        pages = await collect(filled, 100, **filters)
        assert [name for each in pages for name in each] == [f"m{number}" for number in expected.split()], filters
        if "state" in filters:
            assert len(pages) > 1


async def test_all_messages_of_a_campaign_are_listed_even_if_the_campaign_has_too_many_cohorts_for_index_ranges(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_COHORTS_PER_PAGE", 1)
    assert await listed(filled, campaign="spring") == ["m8", "m6", "m4", "m2", "m0"]


async def test_messages_of_a_campaign_with_hundreds_of_cohorts_are_listed_with_one_statement(filled: Database) -> None:
    def more(connection: Connection) -> None:
        for number in range(messages.MAX_COHORTS_PER_PAGE - 2):
            cohort(connection, 100 + number, "spring", country=f"X{number}")

    def explain(connection: Connection) -> list[str]:
        return plans(connection, lambda: list_messages(connection, MessageFilter(1, campaign="spring"), 2))

    await filled.write(more)
    assert await listed(filled, limit=2, campaign="spring") == ["m8", "m6"]
    found = await filled.read(explain)
    assert len(found) == 2, "the first statement finds the cohorts"
    assert filled.dialect == "postgresql" or "messages_by_cohort" in found[1]


async def test_a_message_is_serialized_with_the_field_names_and_formats_of_the_api(database: Database) -> None:
    def put(connection: Connection) -> None:
        cohort(connection, 1, country="")
        sent_at = NOON + timedelta(milliseconds=1500)
        Rows(connection).message(NOON, mt_price=Decimal("0.00950"), sent_at=sent_at, from_address="Gladiator")

    await database.write(put)
    shown = serialize_message((await database.read(list_messages, MessageFilter(1), 1)).rows[0], reveal=True)
    assert (shown["to"], shown["from"], shown["state"], shown["country"]) == ("+14085550100", "Gladiator", "CREATED", None)
    assert (shown["created_at"], shown["sent_at"]) == ("2026-11-20T12:00:00Z", "2026-11-20T12:00:01.500Z")
    assert shown["mt_price"] == "0.00950"


INDEXES: list[tuple[dict[str, Any], str]] = [
    ({}, "messages_by_application"),
    ({"state": State.SENT}, "messages_by_application"),
    ({"source": "api"}, "messages_by_application"),
    ({"to": "+14085550100"}, "messages_by_recipient"),
    ({"to": "+14085550100", "campaign": "spring", "state": State.SENT}, "messages_by_recipient"),
    ({"campaign": "spring"}, "messages_by_cohort"),
    ({"campaign": "spring", "state": State.SENT}, "messages_by_cohort"),
    ({"since": NOON, "until": NOON + MINUTE}, "messages_by_application"),
]


async def test_each_filter_of_a_message_list_reads_its_own_index(sqlite: Database) -> None:
    await sqlite.write(fill)

    def explain(connection: Connection, filters: dict[str, Any], below: int | None) -> list[str]:
        return plans(connection, lambda: list_messages(connection, MessageFilter(1, **filters), 10, below))

    for filters, index in INDEXES:
        for below in (None, 1 << 62):
            found = await sqlite.read(explain, filters, below)
            # The plan searches both columns of the index. Therefore a query starts at the first message of its page, and not at
            # the newest message.
            assert any(re.search(rf"INDEX {index} \(\w+=\? AND id>\? AND id<\?\)", plan) for plan in found), filters
            assert all(scanned(plan) == [] for plan in found), filters
            if not filters.keys() - {"to", "since", "until"}:
                assert len(found) == 1, filters


async def test_postgresql_uses_the_index_by_cohort_to_list_messages_of_an_old_campaign(
    postgresql: str, postgresql_template: str
) -> None:
    """PostgreSQL must compare both index columns at once. With separate conditions, it would read all newer messages first."""
    database = await open_database(await new_postgresql_database(postgresql, postgresql_template), owner=True)
    columns = ("id", "application_id", "cohort_id", "message_id", "request_id", "content_hash", "to_address", "state", "created_at")
    put = BulkInsert(schema.messages, *columns, "encoding", "segments")

    def fill(connection: Connection) -> None:
        for number in range(1, 4):
            cohort(connection, number, "autumn" if number == 1 else "spring", country=f"X{number}")
        at = to_ms(NOON)
        rows = [(i + 1, 1, 1 + (i >= 1000) + (i >= 2000), f"m{i}", "", "", "+14085550100", 0, at, "GSM-7", 1) for i in range(3000)]
        put(connection, rows)
        connection.execute(text("ANALYZE"))

    def explain(connection: Connection) -> str:
        statements: list[tuple[str, Any]] = []
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append((args[2], args[3])))
        assert len(list_messages(connection, MessageFilter(1, campaign="autumn"), 100).rows) == 100
        statement, parameters = statements[-1]
        return "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))

    try:
        await database.write(fill)
        plan = await database.read(explain)
    finally:
        await database.close()
    assert "messages_by_cohort" in plan
    assert "Backward using messages_pkey" not in plan
    assert "Seq Scan on messages" not in plan
