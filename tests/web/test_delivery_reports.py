"""The send pipeline passes delivery reports on over HTTP."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from shortener.accounts.administration import create_application
from shortener.accounts.credentials import create_key
from shortener.container import Service
from shortener.storage import schema
from tests.conftest import NOON, Clock, client_of
from tests.factory import Message, add_message, rows

PATH = "/api/v1/sms/status"


@pytest.fixture(autouse=True)
async def message(service: Service) -> Message:
    return await service.database.write(add_message, service.ids)


async def test_one_report_with_every_field(service: Service, client: httpx.AsyncClient) -> None:
    report = {
        "message_id": "m-1",
        "state": "DELIVERED",
        "status": "DELIVRD",
        "reason_code": "000",
        "reason_description": "ok",
        "mt_price": "0.0095",
        "fragments_count": 2,
        "telecom_message_id": "tm-1",
        "timestamp": "2026-11-20T12:00:05Z",
    }
    response = await client.post(PATH, json=report)
    assert response.status_code == 200
    assert response.json() == {"status": True, "reports": [{"message_id": "m-1", "state": "DELIVERED", "changed": True}]}
    (row,) = await rows(service.database, schema.messages)
    assert (row.delivered_at, row.mt_price, row.fragments_count) == (NOON + timedelta(seconds=5), Decimal("0.0095"), 2)
    assert (row.report_status, row.reason_code, row.telecom_message_id) == ("DELIVRD", "000", "tm-1")
    assert (await client.post(PATH, json=report)).json()["reports"][0]["changed"] is False
    assert len(await rows(service.database, schema.events)) == 1


async def test_a_list_of_reports_gets_one_result_per_report(service: Service, client: httpx.AsyncClient, clock: Clock) -> None:
    await service.database.write(add_message, service.ids, "m-2")
    clock.forward(seconds=9)
    reports = [
        {"message_id": "m-1", "state": "READ"},
        {"message_id": "m-2", "state": "FAILED", "reason_code": 505, "status": ""},
        {"message_id": "m-1", "state": "SENT", "timestamp": 1795176001},
    ]
    response = await client.post(PATH, json=reports)
    assert [(one["message_id"], one["state"]) for one in response.json()["reports"]] == [
        ("m-1", "READ"),
        ("m-2", "FAILED"),
        ("m-1", "READ"),
    ]
    first, second = await rows(service.database, schema.messages)
    assert (first.read_at, first.sent_at) == (clock(), NOON + timedelta(seconds=1))
    assert (second.failed_at, second.reason_code, second.report_status) == (clock(), "505", None)


REFUSALS: list[tuple[Any, list[str]]] = [
    ({}, ["message_id", "state"]),
    ([], [""]),
    ({"message_id": "m-1", "state": "CLICKTHRU"}, ["state"]),
    ({"message_id": "m-1", "state": "SENT", "colour": "red"}, ["colour"]),
    ({"message_id": "m-1", "state": "SENT", "timestamp": "soon"}, ["timestamp"]),
    ({"message_id": "m\x00", "state": "SENT"}, ["message_id"]),
    ({"message_id": "m-1", "state": "SENT", "mt_price": "free", "fragments_count": 0}, ["mt_price", "fragments_count"]),
    ([{"message_id": "m-1", "state": "SENT"}, {"message_id": "m-1", "state": "LOST"}], ["1.state"]),
    ([{"message_id": "m-1", "state": "SENT"}, {"message_id": "m-1", "state": "SENT", "timestamp": "1"}], ["1.timestamp"]),
    (7, [""]),
]


async def test_an_invalid_request_is_rejected_with_the_names_of_its_fields(service: Service, client: httpx.AsyncClient) -> None:
    for body, fields in REFUSALS:
        response = await client.post(PATH, json=body)
        assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_REQUEST")
        assert [detail["field"] for detail in response.json()["details"]] == fields
    assert await rows(service.database, schema.events) == []


async def test_reports_on_unknown_messages_are_rejected_by_name_and_nothing_is_stored(
    service: Service, client: httpx.AsyncClient
) -> None:
    reports = [{"message_id": name, "state": "SENT"} for name in ("m-1", "x", "y")]
    response = await client.post(PATH, json=reports)
    assert (response.status_code, response.json()["error_code"]) == (404, "MESSAGE_NOT_FOUND")
    assert [detail["field"] for detail in response.json()["details"]] == ["1.message_id", "2.message_id"]
    assert await rows(service.database, schema.events) == []
    single = await client.post(PATH, json=reports[1])
    assert [detail["field"] for detail in single.json()["details"]] == ["message_id"]


async def test_a_batch_has_a_maximum_size(service: Service, client: httpx.AsyncClient) -> None:
    limit = service.settings.batch_limit
    report = {"message_id": "m-1", "state": "SENT"}
    assert (await client.post(PATH, json=[report] * limit)).status_code == 200
    response = await client.post(PATH, json=[report] * (limit + 1))
    assert (response.status_code, response.json()["error_code"]) == (400, "BATCH_TOO_LARGE")


async def test_delivery_reports_require_sms_send(service: Service, client: httpx.AsyncClient) -> None:
    reader = await service.database.write(create_key, 1, "reader", ["sms.read"], NOON)
    await service.directory.refresh()
    report = {"message_id": "m-1", "state": "SENT"}
    for headers, status in (({"X-API-Key": reader}, 403), ({"X-API-Key": "sk_wrong"}, 401), ({}, 401)):
        async with client_of(service, headers) as other:
            assert (await other.post(PATH, json=report)).status_code == status
    assert await rows(service.database, schema.events) == []


async def test_another_applications_messages_are_unknown(service: Service) -> None:
    other = await service.database.write(create_application, "other", NOON)
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": other.api_key}) as client:
        assert (await client.post(PATH, json={"message_id": "m-1", "state": "SENT"})).status_code == 404
