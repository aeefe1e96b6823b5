"""Tests of four parts of the HTTP API: replies, the opt-out list, the balance, and the prices."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
import pytest

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.messages.balances import change_balance
from shortener.messages.prices import set_price
from shortener.model import Topic
from shortener.reporting import count_check, counts, rollup_check
from shortener.storage import schema
from tests.conftest import NOON, client_of
from tests.factory import rows
from tests.one_service import on_one_service
from tests.web.calls import TO, rewrite

INBOUND = "/api/v1/sms/inbound"


async def reply(client: httpx.AsyncClient, text: str, **fields: Any) -> dict[str, Any]:
    response = await client.post(INBOUND, json={"from": TO, "to": "18775550100", "text": text, **fields})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_a_stop_reply_prevents_further_messages_and_counts_as_a_negative_conversion(
    service: Service, client: httpx.AsyncClient
) -> None:
    await rewrite(client, "m-1")
    await rewrite(client, "m-2")
    found = await reply(client, "Stop.", inbound_id="mo-1")
    assert (found["keyword"], found["opted_out"], found["message_id"], found["duplicate"]) == ("stop", True, "m-2", False)
    refused = await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", "gateway": "simulator"})
    assert (refused.status_code, refused.json()["error_code"]) == (409, "OPTED_OUT")
    [conversion] = await rows(service.database, schema.conversions)
    assert (conversion.action, conversion.disposition, conversion.transaction_id) == ("reply", "negative", "mo-1")
    assert [event.topics for event in await rows(service.database, schema.events)] == [Topic.CONVERSION]
    assert (await reply(client, "STOP", inbound_id="mo-1"))["duplicate"] is True
    assert [(await reply(client, "STOP", inbound_id=inbound_id))["duplicate"] for inbound_id in (7, "7")] == [False, True]

    assert (await reply(client, "START", inbound_id="mo-2"))["opted_out"] is False
    accepted = await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", "gateway": "simulator"})
    assert accepted.json()["messages"][0]["sent"] is True


async def test_a_reply_without_a_keyword_is_stored_as_a_conversion_without_a_disposition(
    service: Service, client: httpx.AsyncClient
) -> None:
    await rewrite(client, "m-1")
    found = await reply(client, "yes please")
    assert (found["keyword"], found["opted_out"], found["message_id"]) == (None, False, "m-1")
    [conversion] = await rows(service.database, schema.conversions)
    assert conversion.disposition is None
    assert "yes please" not in str(conversion)


async def test_a_start_reply_does_not_remove_an_opt_out_that_an_administrator_added(client: httpx.AsyncClient) -> None:
    added = await client.post("/api/v1/opt-outs", json={"phone": TO})
    assert added.status_code == 201
    assert (await reply(client, "START"))["opted_out"] is True
    assert (await client.delete(f"/api/v1/opt-outs/{TO}")).status_code == 200
    await reply(client, "STOP")
    assert (await client.post("/api/v1/opt-outs", json={"phone": TO})).json()["source"] == "api"
    assert (await reply(client, "STOP"))["opted_out"] is True
    assert (await reply(client, "START"))["opted_out"] is True, "the administrator has confirmed the entry of the reply"


async def test_a_stop_reply_of_a_number_without_messages_is_recorded(client: httpx.AsyncClient) -> None:
    found = await reply(client, "STOP")
    assert (found["opted_out"], found["message_id"], found["conversion_id"]) == (True, None, None)


async def test_a_stop_reply_applies_to_one_application_only(service: Service, client: httpx.AsyncClient) -> None:
    other = await service.database.write(create_application, "other", NOON)
    await service.directory.refresh()
    await reply(client, "STOP")
    async with client_of(service, {"X-API-Key": other.api_key}) as stranger:
        sent = await stranger.post("/api/v1/rewrite", json={"to": TO, "body": "x", "gateway": "simulator"})
        assert sent.status_code == 200
        assert (await stranger.get("/api/v1/opt-outs")).json()["opt_outs"] == []


async def test_a_reply_form_with_the_field_names_of_other_systems_is_accepted(client: httpx.AsyncClient) -> None:
    response = await client.post(INBOUND, data={"from": TO, "body": "stop", "id": "x", "shortcode": "12345"})
    assert response.json()["keyword"] == "stop"


@on_one_service
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"text": "STOP"}, "INVALID_REQUEST"),
        ({"from": "12", "text": "STOP"}, "INVALID_RECIPIENT"),
        ({"from": TO}, "INVALID_REQUEST"),
        ({"from": TO, "text": "x", "timestamp": "soon"}, "INVALID_REQUEST"),
    ],
)
async def test_invalid_replies_are_rejected(service: Service, client: httpx.AsyncClient, body: dict[str, Any], code: str) -> None:
    response = await client.post(INBOUND, json=body)
    assert (response.status_code, response.json()["error_code"]) == (400, code)
    assert await rows(service.database, schema.opt_outs) == []


async def test_entries_of_the_opt_out_list_can_be_added_listed_and_removed_over_http(client: httpx.AsyncClient) -> None:
    created = await client.post("/api/v1/opt-outs", json={"phone": TO})
    assert (created.status_code, created.json()["source"]) == (201, "api")
    assert (await client.post("/api/v1/opt-outs", json={"phone": TO})).status_code == 201
    page = (await client.get("/api/v1/opt-outs")).json()
    assert ([one["phone"] for one in page["opt_outs"]], page["next_cursor"]) == ([TO], None)
    await client.post("/api/v1/opt-outs", json={"phone": "+447911123456"})
    first = (await client.get("/api/v1/opt-outs", params={"limit": "1"})).json()
    query = {"limit": "1", "cursor": first["next_cursor"]}
    second = (await client.get("/api/v1/opt-outs", params=query)).json()
    assert [page["opt_outs"][0]["phone"] for page in (first, second)] == [TO, "+447911123456"]
    assert second["next_cursor"] is None
    assert (await client.delete(f"/api/v1/opt-outs/{TO.replace('+', '%2B')}")).json() == {"status": True}
    assert (await client.delete(f"/api/v1/opt-outs/{TO.replace('+', '%2B')}")).status_code == 404


async def test_the_api_returns_the_balance_and_the_prices_of_an_application(service: Service, client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/prices")).json() == {"status": True, "currency": None, "prices": []}
    unpaid = (await client.get("/api/v1/balance")).json()
    assert (unpaid["prepaid"], unpaid["balance"]) == (False, None)
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal("12.50"), currency="EUR")
    balance = (await client.get("/api/v1/balance")).json()
    assert (balance["prepaid"], balance["balance"], balance["currency"]) == (True, "12.50", "EUR")
    await service.database.write(set_price, 0, "44", Decimal("0.04"))
    await service.database.write(set_price, 0, "1", Decimal("0.01"))
    await service.database.write(set_price, 1, "44", Decimal("0.03"))
    assert (await client.get("/api/v1/prices")).json()["currency"] == "EUR"
    assert (await client.get("/api/v1/prices")).json()["prices"] == [
        {"prefix": "1", "price": "0.01"},
        {"prefix": "44", "price": "0.03"},
    ]


async def test_the_statistics_contain_the_cost_of_messages_and_the_recount_finds_the_same_cost(
    service: Service, client: httpx.AsyncClient
) -> None:
    await service.database.write(set_price, 0, "", Decimal("0.025"))
    for to in (TO, "+447911123456"):
        body = {"to": to, "body": "x", "gateway": "simulator", "campaign": "c"}
        assert (await client.post("/api/v1/rewrite", json=body)).status_code == 200
    await service.database.write(counts.fold)
    until = "2026-11-21T00:00:00Z"
    stats = (await client.get("/api/v1/sms/stats", params={"since": "2026-11-20", "until": until})).json()
    assert stats["cost"] == "0.050"
    by_country = (await client.get("/api/v1/sms/stats/by-country", params={"since": "2026-11-20", "until": until})).json()
    assert {row["country"]: row["cost"] for row in by_country["countries"]} == {"US": "0.025", "GG": "0.025"}
    day = NOON.replace(hour=0), NOON.replace(day=21, hour=0)
    assert await service.database.read(count_check.verify, *day) == []
    assert await service.database.read(rollup_check.verify_rollups, *day) == []


@pytest.mark.parametrize(
    ("timestamp", "stored"),
    [
        ("2000-01-01T00:00:00Z", "2000-01-01T00:00:00Z"),
        ("2026-11-21T12:00:00Z", "2026-11-21T12:00:00Z"),
        ("0001-01-01T00:00:00Z", "2026-11-20T12:00:00Z"),
        ("1999-12-31T23:59:59Z", "2026-11-20T12:00:00Z"),
        ("2026-11-21T12:00:01Z", "2026-11-20T12:00:00Z"),
        ("9999-12-31T23:59:59Z", "2026-11-20T12:00:00Z"),
    ],
)
async def test_a_reply_with_an_impossible_time_is_recorded_with_the_present_time(
    client: httpx.AsyncClient, timestamp: str, stored: str
) -> None:
    await rewrite(client, "m-1")
    assert (await reply(client, "STOP", timestamp=timestamp))["opted_out"] is True
    [conversion] = (await client.get("/api/v1/conversions")).json()["conversions"]
    assert conversion["timestamp"] == stored
