"""Lists of messages: order, pages, filters, and that none of them reads more than it shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from shortener.model import State
from shortener.report import messages
from shortener.report.messages import Page, Wanted, fields, page
from shortener.store import schema
from shortener.store.database import Database
from tests.report.plans import plans, scanned
from tests.rows import Rows

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def cohort(connection: Connection, number: int, campaign: str = "", source: str = "api", country: str = "US", owner: int = 1) -> None:
    values = {"id": number, "application_id": owner, "campaign": campaign, "source": source, "country": country}
    connection.execute(insert(schema.cohorts).values(values))


def fill(connection: Connection) -> None:
    """Ten messages a minute apart, m0 to m9; the even ones are of the campaign "spring", every third was delivered."""
    cohort(connection, 1)
    cohort(connection, 2, "spring", "campaign", "US")
    cohort(connection, 3, "spring", "campaign", "DE")
    cohort(connection, 4, owner=2)
    rows = Rows(connection)
    for number in range(10):
        state = State.DELIVERED if number % 3 == 0 else State.SENT
        kept = 1 if number % 2 else 2 + (number % 4 == 0)
        to = "+491701234567" if kept == 3 else "+14085550100"
        rows.message(NOON + number * MINUTE, message_id=f"m{number}", cohort_id=kept, state=int(state), to_address=to)
    rows.message(NOON, message_id="of another application", application_id=2, cohort_id=4)


def names(found: Page) -> list[str]:
    return [row.message_id for row in found.rows]


async def listed(database: Database, limit: int = 100, below: int | None = None, **wanted: Any) -> list[str]:
    return names(await database.read(page, Wanted(1, **wanted), limit, below))


@pytest.fixture
async def filled(database: Database) -> Database:
    await database.write(fill)
    return database


async def test_the_newest_message_comes_first_and_those_of_others_never(filled: Database) -> None:
    assert await listed(filled) == [f"m{number}" for number in range(9, -1, -1)]
    assert names(await filled.read(page, Wanted(2), 100)) == ["of another application"]
    assert names(await filled.read(page, Wanted(3), 100)) == []


@pytest.mark.parametrize("wanted", [{}, {"campaign": "spring"}, {"state": State.SENT}, {"to": "+14085550100"}])
async def test_pages_put_together_are_the_whole_list(filled: Database, wanted: dict[str, Any]) -> None:
    whole = await listed(filled, **wanted)
    for limit in (1, 2, 3, 100):
        pages: list[str] = []
        below = None
        while True:
            found = await filled.read(page, Wanted(1, **wanted), limit, below)
            pages += names(found)
            below = found.next
            if below is None:
                break
            assert len(found.rows) == limit
        assert pages == whole


async def test_a_message_that_arrives_between_two_pages_moves_nothing(filled: Database) -> None:
    first = await filled.read(page, Wanted(1), 4)
    await filled.write(lambda connection: Rows(connection).message(NOON + timedelta(hours=1), message_id="new"))
    assert await listed(filled, below=first.next) == ["m5", "m4", "m3", "m2", "m1", "m0"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
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
    ],
)
async def test_filters_choose(filled: Database, wanted: dict[str, Any], expected: str) -> None:
    assert await listed(filled, **wanted) == [f"m{number}" for number in expected.split()]


@pytest.mark.parametrize("wanted", [{}, {"campaign": "spring"}, {"source": "campaign"}, {"to": "+14085550100"}])
async def test_a_rare_state_is_looked_for_piece_by_piece_and_nothing_is_missed(
    filled: Database, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await listed(filled, state=State.DELIVERED, **wanted)
    monkeypatch.setattr(messages, "WALK", 2)
    pages: list[str] = []
    below, asked = None, 0
    while True:
        found = await filled.read(page, Wanted(1, state=State.DELIVERED, **wanted), 100, below)
        pages += names(found)
        below, asked = found.next, asked + 1
        if below is None:
            break
    assert pages == whole
    assert asked > 1


async def test_a_campaign_of_more_cohorts_than_can_be_walked_side_by_side_is_found_all_the_same(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MOST_COHORTS", 1)
    assert await listed(filled, campaign="spring") == ["m8", "m6", "m4", "m2", "m0"]


async def test_a_campaign_in_hundreds_of_cohorts_is_one_statement(filled: Database) -> None:
    def more(connection: Connection) -> None:
        for number in range(messages.MOST_COHORTS - 2):
            cohort(connection, 100 + number, "spring", country=f"X{number}")

    await filled.write(more)
    assert await listed(filled, limit=2, campaign="spring") == ["m8", "m6"]


async def test_a_row_is_told_in_the_words_of_the_api(database: Database) -> None:
    def put(connection: Connection) -> None:
        cohort(connection, 1, country="")
        more = {"mt_price": "0.00950", "sent_at": NOON + timedelta(milliseconds=1500), "from_address": "Gladiator"}
        Rows(connection).message(NOON, message_id="m", **{**more, "mt_price": messages.Decimal("0.00950")})

    await database.write(put)
    told = fields((await database.read(page, Wanted(1), 1)).rows[0])
    assert (told["to"], told["from"], told["state"], told["country"]) == ("+14085550100", "Gladiator", "CREATED", None)
    assert (told["created_at"], told["sent_at"]) == ("2026-11-20T12:00:00Z", "2026-11-20T12:00:01.500Z")
    assert told["mt_price"] == "0.00950"


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({}, "messages_by_application"),
        ({"state": State.SENT}, "messages_by_application"),
        ({"source": "api"}, "messages_by_application"),
        ({"to": "+14085550100"}, "messages_by_recipient"),
        ({"to": "+14085550100", "campaign": "spring", "state": State.SENT}, "messages_by_recipient"),
        ({"campaign": "spring"}, "messages_by_cohort"),
        ({"campaign": "spring", "state": State.SENT}, "messages_by_cohort"),
        ({"since": NOON, "until": NOON + MINUTE}, "messages_by_application"),
    ],
)
@pytest.mark.parametrize("below", [None, 1 << 62])
async def test_every_list_walks_an_index(sqlite: Database, wanted: dict[str, Any], index: str, below: int | None) -> None:
    await sqlite.write(fill)

    def look(connection: Connection) -> list[str]:
        return plans(connection, lambda: page(connection, Wanted(1, **wanted), 10, below))

    found = await sqlite.read(look)
    assert any(f"SEARCH messages USING COVERING INDEX {index}" in plan or f"USING INDEX {index}" in plan for plan in found)
    for plan in found:
        assert scanned(plan, "messages", "cohorts") == []
        walked = plan.split("LIST SUBQUERY")[-1] if "LIST SUBQUERY" in plan else plan
        assert "SCAN messages" not in walked
    if not wanted:
        assert len(found) == 1
