"""Tests of the status of one message, in the format of this service and in the format of Xoxzo."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, insert, select

from shortener.ids import CONVERSION_IDS
from shortener.model import HitFlag, State, Verdict
from shortener.reporting import status
from shortener.reporting.status import MessageStatusReader, find_status
from shortener.storage import schema
from shortener.storage.database import Database
from tests.reporting.plans import plans, scanned
from tests.rows import Rows

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
CLICKED = NOON + timedelta(minutes=5, milliseconds=250)
READER = MessageStatusReader(lambda domain: f"https://d{domain}.example", lambda hit: f"click-{hit}")


def fill(connection: Connection) -> None:
    values = {"id": 1, "application_id": 1, "campaign": "spring", "source": "campaign", "country": "US"}
    connection.execute(insert(schema.cohorts).values(values))
    rows = Rows(connection)
    message = rows.message(
        NOON,
        message_id="m",
        from_address="Gladiator",
        state=int(State.DELIVERED),
        sent_at=NOON + timedelta(seconds=1),
        mt_price=Decimal("0.0095"),
        metadata={"order": 7},
    )
    rows.link(message, position=1, code="BBB", url="https://shop.example/2", domain_id=5, label="second")
    first = rows.link(message, position=0, code="AAA", url="https://shop.example/1")
    hit = rows.first_click(message, first, CLICKED)
    rows.hit(first, CLICKED + timedelta(minutes=1))
    rows.conversion(message, action="sale", value=Decimal("12.50"), currency="EUR", hit_id=hit, at=CLICKED, transaction_id="t1")
    rows.conversion(message, action="reply", disposition="positive", at=CLICKED)
    rows.message(NOON, message_id="plain")


@pytest.fixture
async def filled(database: Database) -> Database:
    await database.write(fill)
    return database


async def read_status(database: Database, message_id: str = "m") -> dict[str, Any]:
    found = await database.read(find_status, 1, message_id)
    assert found is not None
    return READER.serialize(found, reveal=True)


async def test_the_status_of_a_message_contains_its_state_its_times_and_its_price(filled: Database) -> None:
    message = await read_status(filled)
    assert message["message_id"] == "m"
    assert (message["state"], message["previous_state"]) == ("CLICKTHRU", "DELIVERED")
    assert (message["sent_at"], message["delivered_at"]) == ("2026-11-20T12:00:01Z", None)
    assert message["clicked_at"] == "2026-11-20T12:05:00.250Z"
    assert (message["mt_price"], message["segments"], message["encoding"]) == ("0.0095", 1, "GSM-7")
    assert (message["campaign"], message["source"], message["country"]) == ("spring", "campaign", "US")
    assert message["metadata"] == {"order": 7}


async def test_the_status_lists_links_in_text_order_and_the_field_link_tracking_contains_the_first_link(filled: Database) -> None:
    message = await read_status(filled)
    first = {
        "code": "AAA",
        "short_url": "https://d0.example/AAA",
        "url": "https://shop.example/1",
        "label": None,
        "expires_at": "2027-02-18T12:00:00Z",
        "accessed": True,
        "accessed_on": "2026-11-20T12:05:00.250Z",
        "clicks": 2,
    }
    assert message["links"][0] == first
    assert [link["short_url"] for link in message["links"]] == ["https://d0.example/AAA", "https://d5.example/BBB"]
    assert (message["links"][1]["label"], message["links"][1]["accessed"], message["links"][1]["accessed_on"]) == (
        "second",
        False,
        None,
    )
    assert message["link_tracking"] == {
        "link": "https://shop.example/1",
        "shortlink": "https://d0.example/AAA",
        "accessed": True,
        "accessed_on": "2026-11-20 12:05:00",
    }


async def test_the_status_of_a_message_contains_the_time_of_the_first_click_of_each_link(filled: Database) -> None:
    later = CLICKED + timedelta(hours=1)

    def click(connection: Connection) -> None:
        link = connection.execute(select(schema.links.c.id).where(schema.links.c.code == "BBB")).scalar_one()
        rows = Rows(connection)
        rows.hit(link, CLICKED, verdict=int(Verdict.SUSPECTED))
        rows.hit(link, later, flags=int(HitFlag.FIRST_FOR_LINK))
        rows.hit(link, later + timedelta(hours=1))

    await filled.write(click)
    links = (await read_status(filled))["links"]
    assert [link["accessed_on"] for link in links] == ["2026-11-20T12:05:00.250Z", "2026-11-20T13:05:00.250Z"]


async def test_the_status_of_a_message_contains_the_exact_decimal_values_of_its_conversions(filled: Database) -> None:
    sale, reply = (await read_status(filled))["conversions"]
    assert sale["conversion_id"].startswith(CONVERSION_IDS.encode(1)[:4])
    assert sale["click_id"].startswith("click-")
    assert (sale["action"], sale["transaction_id"], sale["value"], sale["currency"]) == ("sale", "t1", "12.50", "EUR")
    assert sale["timestamp"] == "2026-11-20T12:05:00.250Z"
    assert (reply["action"], reply["disposition"], reply["value"], reply["click_id"]) == ("reply", "positive", None, None)
    assert reply["transaction_id"] is None


async def test_the_status_of_a_message_contains_only_a_limited_number_of_its_oldest_conversions(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "MAX_CONVERSIONS", 1)
    assert [conversion["action"] for conversion in (await read_status(filled))["conversions"]] == ["sale"]


async def test_the_status_of_a_message_without_links_has_no_link_tracking(filled: Database) -> None:
    message = await read_status(filled, "plain")
    assert (message["link_tracking"], message["links"], message["conversions"]) == (None, [], [])


async def test_the_status_in_xoxzo_format_equals_the_example_in_the_documentation_of_xoxzo(filled: Database) -> None:
    found = await filled.read(find_status, 1, "m")
    assert found is not None
    serialized = READER.serialize_xoxzo(found, "https://go.example/sms/messages/m/", reveal=True)
    assert orjson.loads(orjson.dumps(serialized)) == {
        "msgid": "m",
        "status": "DELIVERED",
        "sender": "Gladiator",
        "recipient": "+14085550100",
        "url": "https://go.example/sms/messages/m/",
        "sent_time": "2026-11-20 12:00:01",
        "cost": 0.0095,
        "parts": 1,
        "tags": ["spring"],
        "link_tracking": {
            "link": "https://shop.example/1",
            "shortlink": "https://d0.example/AAA",
            "accessed": True,
            "accessed_on": "2026-11-20 12:05:00",
        },
    }


async def test_the_status_of_an_unknown_message_or_of_another_application_is_not_found(filled: Database) -> None:
    assert await filled.read(find_status, 1, "none") is None
    assert await filled.read(find_status, 2, "m") is None


async def test_the_status_of_a_message_is_read_with_five_statements_that_use_indexes(sqlite: Database) -> None:
    await sqlite.write(fill)
    found = await sqlite.read(lambda connection: plans(connection, lambda: find_status(connection, 1, "m")))
    assert len(found) == 5
    for plan in found:
        assert scanned(plan) == []
    assert "(application_id=? AND message_id=?)" in found[0]
