"""Tests of the lists of conversions and of refused conversion reports over HTTP."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from shortener.accounts.administration import create_application
from shortener.accounts.credentials import Credentials, create_key
from shortener.container import Service
from shortener.reporting import conversions as report
from tests.conftest import NOON, Clock, client_of
from tests.factory import add_message


@pytest.fixture(autouse=True)
async def messages(service: Service) -> None:
    await service.database.write(add_message, service.ids, "m-1", campaign="autumn")
    await service.database.write(add_message, service.ids, "m-2")


@pytest.fixture
async def tracker(service: Service, credentials: Credentials) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service, {"X-Api-Token": credentials.tracker_token}) as client:
        yield client


async def send(tracker: httpx.AsyncClient, **parameters: Any) -> dict[str, Any]:
    body: dict[str, Any] = (await tracker.get("/api/v1/track", params=parameters)).json()
    return body


async def listed(client: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    response = await client.get("/api/v1/conversions", params=query)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["conversions"]
    return found


async def lines(client: httpx.AsyncClient, path: str, **query: Any) -> list[dict[str, str]]:
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(response.content.decode("utf-8-sig" if query.get("bom") else "utf-8"))))


async def test_a_conversion_is_listed_with_its_revisions_and_in_the_status_of_its_message(
    client: httpx.AsyncClient, tracker: httpx.AsyncClient, clock: Clock
) -> None:
    first = await send(tracker, message_id="m-1", action="Sale", transaction_id="T1", status="lead", sub="1", currency="USDT")
    clock.forward(minutes=5)
    await send(tracker, message_id="m-1", action="sale", transaction_id="t1", status="approved", value="30")
    (found,) = await listed(client)
    assert found == {
        "conversion_id": first["conversion_id"],
        "message_id": "m-1",
        "campaign": "autumn",
        "click_id": None,
        "action": "Sale",
        "transaction_id": "T1",
        "status": "approved",
        "disposition": "positive",
        "pending": False,
        "value": "30",
        "currency": "USDT",
        "timestamp": "2026-11-20T12:00:00Z",
        "received_at": "2026-11-20T12:00:00Z",
        "updated_at": "2026-11-20T12:05:00Z",
        "metadata": {"sub": "1"},
        "warnings": [],
        "revision": 2,
        "revisions": [
            {
                "revision": 1,
                "status": "lead",
                "disposition": None,
                "value": None,
                "currency": "USDT",
                "timestamp": "2026-11-20T12:00:00Z",
                "received_at": "2026-11-20T12:00:00Z",
            },
            {
                "revision": 2,
                "status": "approved",
                "disposition": "positive",
                "value": "30",
                "currency": "USDT",
                "timestamp": "2026-11-20T12:05:00Z",
                "received_at": "2026-11-20T12:05:00Z",
            },
        ],
    }
    status = (await client.get("/api/v1/sms/status/m-1")).json()
    assert status["conversions"] == [{name: value for name, value in found.items() if name not in ("message_id", "campaign")}]


async def test_each_filter_of_the_conversion_list_selects_the_matching_conversions(
    client: httpx.AsyncClient, tracker: httpx.AsyncClient, clock: Clock
) -> None:
    await send(tracker, message_id="m-1", action="Sale", transaction_id="A", status="approved")
    await send(tracker, message_id="m-1", action="lead", status="on_hold")
    await send(tracker, message_id="m-2", action="sale", status="Rejected", value="many")
    await send(tracker, message_id="m-2", action="visit", timestamp=(NOON - timedelta(days=3)).isoformat())
    for query, count in [
        ({}, 4),
        ({"campaign": "autumn"}, 2),
        ({"campaign": ""}, 2),
        ({"action": "SALE"}, 2),
        ({"status": "rejected"}, 1),
        ({"disposition": "positive"}, 1),
        ({"disposition": "negative"}, 1),
        ({"disposition": "pending"}, 1),
        ({"disposition": "none"}, 2),
        ({"message_id": "m-2"}, 2),
        ({"message_id": "unknown"}, 0),
        ({"transaction_id": "a"}, 1),
        ({"warnings": "true"}, 1),
        ({"since": "2026-11-20"}, 3),
        ({"until": "2026-11-19"}, 1),
    ]:
        assert len(await listed(client, **query)) == count, query
        assert len(await lines(client, "/api/v1/conversions.csv", **query)) == count, query


async def test_the_pages_of_the_conversion_list_contain_each_conversion_once_even_if_a_page_examines_few_rows(
    client: httpx.AsyncClient, tracker: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        await send(tracker, message_id="m-1", action="even" if number % 2 else "odd", transaction_id=number)
    monkeypatch.setattr(report, "MAX_SCANNED_ROWS", 2)
    for query, expected in ((dict[str, str](), "6543210"), ({"action": "odd"}, "6420")):
        found: list[str] = []
        page: dict[str, Any] = {"limit": 3, **query}
        for _ in range(20):
            response = (await client.get("/api/v1/conversions", params=page)).json()
            found += [one["transaction_id"] for one in response["conversions"]]
            page["cursor"] = response["next_cursor"]
            if page["cursor"] is None:
                break
        assert "".join(found) == expected
    assert len(await lines(client, "/api/v1/conversions.csv")) == 7


async def test_the_csv_of_conversions_has_a_byte_order_mark_on_request_and_escapes_formulas(
    client: httpx.AsyncClient, tracker: httpx.AsyncClient
) -> None:
    await send(tracker, message_id="m-1", action="=1+1", transaction_id="ü", value="-5")
    response = await client.get("/api/v1/conversions.csv", params={"bom": "true"})
    assert response.content.startswith(b"\xef\xbb\xbfconversion_id,")
    (line,) = await lines(client, "/api/v1/conversions.csv", bom="true")
    assert (line["action"], line["transaction_id"], line["value"]) == ("'=1+1", "ü", "-5")
    assert '"revision":1' in line["revisions"]


async def test_a_refused_conversion_report_is_listed_with_its_reason_and_without_secrets(
    client: httpx.AsyncClient, tracker: httpx.AsyncClient, credentials: Credentials, service: Service
) -> None:
    await send(tracker, message_id="m-1", transaction_id="#tid#", value="1", token=credentials.tracker_token)
    await tracker.post("/action", json={"click_id": "unknown", "x": credentials.tracker_token})
    response = await client.get("/api/v1/conversions/refused")
    newest, oldest = response.json()["refused"]
    assert credentials.tracker_token not in response.text
    assert (newest["reason"], newest["click_id"], newest["endpoint"]) == ("MESSAGE_NOT_FOUND", "unknown", "POST /action")
    assert (oldest["reason"], oldest["message_id"], oldest["transaction_id"]) == ("UNEXPANDED_PLACEHOLDER", "m-1", "#tid#")
    assert oldest["details"][0]["field"] == "transaction_id"
    assert oldest["received_at"] == "2026-11-20T12:00:00Z"
    only = (await client.get("/api/v1/conversions/refused", params={"reason": "MESSAGE_NOT_FOUND"})).json()["refused"]
    assert only == [newest]
    first = (await client.get("/api/v1/conversions/refused", params={"limit": 1})).json()
    rest = (await client.get("/api/v1/conversions/refused", params={"cursor": first["next_cursor"]})).json()
    assert (first["refused"], rest["refused"], rest["next_cursor"]) == ([newest], [oldest], None)
    table = await lines(client, "/api/v1/conversions/refused.csv", bom="true")
    assert [line["refused_id"] for line in table] == [newest["refused_id"], oldest["refused_id"]]
    text = service.metrics.text("")[0].decode()
    assert 'shortener_conversions_refused_total{reason="UNEXPANDED_PLACEHOLDER"} 1.0' in text


async def test_phone_numbers_in_conversion_reports_are_masked_for_a_key_without_the_permission_privacy_reveal(
    service: Service, client: httpx.AsyncClient, tracker: httpx.AsyncClient
) -> None:
    numbers = {"phone": "+14085550100", "msisdn": "14085550100", "note": "call +1 408 5550100", "order": "1234567890"}
    await send(tracker, message_id="m-1", **numbers, value="+1 408 5550100 EUR")
    await send(tracker, message_id="unknown", **numbers)
    masked = {"phone": "+14…00", "msisdn": "140…00", "note": "call +1 …00", "order": "1234567890"}
    key = await service.database.write(create_key, 1, "reader", ["sms.read"], NOON)
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": key}) as reader:
        for caller, shown in ((client, numbers), (reader, masked)):
            (conversion,) = await listed(caller)
            (refused,) = (await caller.get("/api/v1/conversions/refused")).json()["refused"]
            (line,) = await lines(caller, "/api/v1/conversions.csv")
            (refused_line,) = await lines(caller, "/api/v1/conversions/refused.csv")
            (of_message,) = (await caller.get("/api/v1/sms/status/m-1")).json()["conversions"]
            value = "+1 408 5550100 EUR" if caller is client else "+1 …00 EUR"
            assert conversion["metadata"] == of_message["metadata"] == json.loads(line["metadata"]) == {**shown, "value": value}
            for warnings in (conversion["warnings"], of_message["warnings"], json.loads(line["warnings"])):
                assert [value in warning for warning in warnings] == [True]
            assert refused["parameters"] == json.loads(refused_line["parameters"]) == {"message_id": "unknown", **shown}


async def test_a_conversion_report_that_was_accepted_but_not_applied_is_listed_with_the_reason(
    client: httpx.AsyncClient, tracker: httpx.AsyncClient, service: Service
) -> None:
    for status in ("pending", "approved"):
        await send(tracker, message_id="m-1", transaction_id="T1", status=status)
    late = await send(tracker, message_id="m-1", transaction_id="T1", status="pending")
    assert late["duplicate"]
    (refused,) = (await client.get("/api/v1/conversions/refused")).json()["refused"]
    assert (refused["reason"], refused["transaction_id"], refused["parameters"]["status"]) == ("NOT_APPLIED", "T1", "pending")
    assert [refused["description"]] == late["warnings"]
    assert service.refused_conversions.counted["NOT_APPLIED"] == 1
    assert len(await lines(client, "/api/v1/conversions/refused.csv", reason="NOT_APPLIED")) == 1


async def test_another_application_cannot_list_conversions_or_refused_reports(service: Service, tracker: httpx.AsyncClient) -> None:
    await send(tracker, message_id="m-1")
    await send(tracker, message_id="unknown")
    other = await service.database.write(create_application, "other", NOON)
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": other.api_key}) as client:
        assert await listed(client) == []
        assert (await client.get("/api/v1/conversions/refused")).json()["refused"] == []


async def test_statistics_show_conversions_by_disposition_and_by_action(
    client: httpx.AsyncClient, tracker: httpx.AsyncClient
) -> None:
    await send(tracker, message_id="m-1", action="sale", transaction_id="1", status="approved", value="10", currency="EUR")
    await send(tracker, message_id="m-1", action="sale", transaction_id="2", status="rejected", value="5", currency="EUR")
    await send(tracker, message_id="m-1", action="sale", transaction_id="3", status="pending", value="3", currency="EUR")
    await send(tracker, message_id="m-2", action="visit", value="0.5", currency="EUR")
    for _ in range(2):  # first, the statistics read counts that are not folded yet; then they read the folded counts
        totals = (await client.get("/api/v1/sms/stats")).json()
        assert (totals["conversions"], totals["value"]) == (4, {"EUR": "10.5"})
        assert totals["conversions_by_disposition"] == {"positive": 1, "negative": 1, "pending": 1, "other": 1}
        assert totals["value_by_disposition"] == {
            "positive": {"EUR": "10"},
            "negative": {"EUR": "5"},
            "pending": {"EUR": "3"},
            "other": {"EUR": "0.5"},
        }
        actions = (await client.get("/api/v1/sms/stats/by-action")).json()["actions"]
        assert [(one["action"], one["conversions"], one["value"]) for one in actions] == [
            ("sale", 3, {"EUR": "10"}),
            ("visit", 1, {"EUR": "0.5"}),
        ]
        assert actions[0]["conversions_by_disposition"] == {"positive": 1, "negative": 1, "pending": 1, "other": 0}
        await send(tracker, message_id="m-1", action="sale", transaction_id="1")  # a repeated report changes nothing
