"""Tests of delivery reports that the send pipeline forwards over HTTP."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from shortener.accounts.administration import create_application
from shortener.accounts.credentials import create_key
from shortener.container import Service
from shortener.storage import schema
from shortener.web.large_responses import PIECE_ENTRIES
from tests.conftest import NOON, Clock, client_of
from tests.factory import Message, add_message, rows
from tests.one_service import on_one_service
from tests.web.turns import calls_per_turn

PATH = "/api/v1/sms/status"


@pytest.fixture(autouse=True)
async def message(service: Service) -> Message:
    return await service.database.write(add_message, service.ids)


async def test_a_delivery_report_with_every_field_is_stored(service: Service, client: httpx.AsyncClient) -> None:
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
    result = {"message_id": "m-1", "accepted": True, "error_code": None, "reason": None, "state": "DELIVERED", "changed": True}
    assert response.json() == {"status": True, "accepted": 1, "refused": 0, "results": [result | {"warnings": []}]}
    (row,) = await rows(service.database, schema.messages)
    assert (row.delivered_at, row.mt_price, row.fragments_count) == (NOON + timedelta(seconds=5), Decimal("0.0095"), 2)
    assert (row.report_status, row.reason_code, row.telecom_message_id) == ("DELIVRD", "000", "tm-1")
    assert (await client.post(PATH, json=report)).json()["results"][0]["changed"] is False
    assert len(await rows(service.database, schema.events)) == 1


async def test_other_tasks_run_while_the_service_reads_a_long_list_of_delivery_reports(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = [{"message_id": "m-1", "state": "SENT"}, *[{"message_id": "m-1", "state": "no state"}] * 300]
    async with calls_per_turn(monkeypatch, "shortener.web.delivery_reports.read_report") as calls:
        response = await client.post(PATH, json=reports)
    assert (response.json()["accepted"], response.json()["refused"]) == (1, 300)
    assert calls.total() == len(reports)
    assert max(calls.values()) <= PIECE_ENTRIES


async def test_a_list_of_delivery_reports_gets_one_result_per_report(
    service: Service, client: httpx.AsyncClient, clock: Clock
) -> None:
    await service.database.write(add_message, service.ids, "m-2")
    clock.forward(seconds=9)
    reports = [
        {"message_id": "m-1", "state": "READ"},
        {"message_id": "m-2", "state": "FAILED", "reason_code": 505, "status": ""},
        {"message_id": "m-1", "state": "SENT", "timestamp": 1795176001},
    ]
    response = await client.post(PATH, json=reports)
    assert [(one["message_id"], one["state"]) for one in response.json()["results"]] == [
        ("m-1", "READ"),
        ("m-2", "FAILED"),
        ("m-1", "READ"),
    ]
    first, second = await rows(service.database, schema.messages)
    assert (first.read_at, first.sent_at) == (clock(), NOON + timedelta(seconds=1))
    assert (second.failed_at, second.reason_code, second.report_status) == (clock(), "505", None)


REFUSALS: list[tuple[Any, list[str]]] = [
    ({}, ["message_id"]),
    ([], [""]),
    ({"message_id": "m-1"}, ["state"]),
    ({"message_id": "m-1", "state": "CLICKTHRU"}, ["state"]),
    ({"message_id": "m-1", "state": 2}, ["state"]),
    ({"message_id": "m" * 256, "state": "SENT"}, ["message_id"]),
    ([{"message_id": "m-1", "state": "LOST"}, {"state": "SENT"}, None, {"message_id": "x", "state": "SENT"}],
     ["0.state", "1.message_id", "2", "3.message_id"]),
    (7, [""]),
]  # fmt: skip


async def test_a_list_of_delivery_reports_returns_an_error_only_if_no_report_was_accepted(
    service: Service, client: httpx.AsyncClient
) -> None:
    for body, fields in REFUSALS:
        response = await client.post(PATH, json=body)
        assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_REQUEST")
        assert [detail["field"] for detail in response.json()["details"]] == fields
    assert await rows(service.database, schema.events) == []


async def test_an_unknown_message_id_in_a_list_of_delivery_reports_rejects_only_its_own_report(
    service: Service, client: httpx.AsyncClient
) -> None:
    reports: list[Any] = [{"message_id": "m-1", "state": "DELIVERED"}] * 998
    reports[500:500] = [{"message_id": "from-another-system", "state": "DELIVERED"}, {"message_id": "m-1", "state": "LOST"}]
    response = await client.post(PATH, json=reports)
    body = response.json()
    assert (response.status_code, body["accepted"], body["refused"]) == (200, 998, 2)
    refused = [(one["message_id"], one["error_code"]) for one in body["results"] if not one["accepted"]]
    assert refused == [("from-another-system", "MESSAGE_NOT_FOUND"), ("m-1", "INVALID_REQUEST")]
    (row,) = await rows(service.database, schema.messages)
    assert row.delivered_at == NOON


async def test_a_delivery_report_is_stored_without_its_invalid_values_and_causes_a_warning_for_each_of_them(
    service: Service, client: httpx.AsyncClient
) -> None:
    report = {
        "message_id": "m-1",
        "state": "DELIVERED",
        "smsc": "east",
        "reason_description": "r" * 256,
        "reason_code": ["7"],
        "telecom_message_id": "a\x00b",
        "mt_price": "0.0299900000000000000000001",
        "fragments_count": 0,
        "timestamp": "soon",
    }
    (result,) = (await client.post(PATH, json=report)).json()["results"]
    assert [warning.split()[0] for warning in result["warnings"]] == [
        *("reason_code", "reason_description", "smsc", "timestamp", "mt_price", "fragments_count")
    ]
    (row,) = await rows(service.database, schema.messages)
    assert (row.delivered_at, row.reason_description, row.reason_code) == (NOON, "r" * 255, None)
    assert (row.mt_price, row.fragments_count, row.telecom_message_id) == (Decimal("0.02999"), None, "a\ufffdb")


async def test_a_price_with_an_exponent_in_a_text_is_not_stored(service: Service, client: httpx.AsyncClient) -> None:
    report = {"message_id": "m-1", "state": "DELIVERED", "mt_price": "1e5"}
    (result,) = (await client.post(PATH, json=report)).json()["results"]
    assert result["warnings"] == ["mt_price must be a decimal such as 0.0095, without exponent; it is not stored"]
    (row,) = await rows(service.database, schema.messages)
    assert (row.delivered_at, row.mt_price) == (NOON, None)


LATIN_1 = "reason_description is not UTF-8; its invalid characters were replaced"


@pytest.mark.parametrize(
    ("sent", "content_type", "description", "warnings"),
    [
        (b"nicht verf\xfcgbar", "application/json", "nicht verfügbar", [LATIN_1]),
        (b"nicht verf\xfcgbar", "application/json; charset=iso-8859-1", "nicht verfügbar", [LATIN_1]),
        (b"\xc3\xbc \x80 \xff", "application/json", "ü € ÿ", [LATIN_1]),
        (b"busy \\ud83d", "application/json", "busy \ufffd", [LATIN_1]),
        (b"line 1\nline 2", "application/json", "line 1\nline 2", []),
    ],
)
@pytest.mark.parametrize("padding", [0, 70_000], ids=["small", "parsed in the thread"])
async def test_a_text_that_is_not_utf_8_changes_no_other_delivery_report_of_the_list(
    service: Service,
    client: httpx.AsyncClient,
    sent: bytes,
    content_type: str,
    description: str,
    warnings: list[str],
    padding: int,
) -> None:
    await service.database.write(add_message, service.ids, "m-2")
    content = (
        b'[{"message_id": "m-1", "state": "FAILED", "reason_description": "%s"},'
        b'{"message_id": "m-2", "state": "DELIVERED", "reason_description": "zugestellt \xc3\xbc"}]' % sent
    ) + b" " * padding
    headers = {"Content-Type": content_type, "Idempotency-Key": "k-1"}
    for _ in range(2):  # the repeat gets the stored response to the first request
        response = await client.post(PATH, content=content, headers=headers)
        assert response.status_code == 200, response.text
        assert [(one["state"], one["warnings"]) for one in response.json()["results"]] == [("FAILED", warnings), ("DELIVERED", [])]
    first, second = await rows(service.database, schema.messages)
    assert (first.reason_description, second.reason_description) == (description, "zugestellt ü")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_delivery_reports_may_begin_with_a_byte_order_mark(client: httpx.AsyncClient, encoding: str) -> None:
    content = '[{"message_id": "m-1", "state": "DELIVERED"}]'.encode(encoding)
    response = await client.post(PATH, content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["accepted"]) == (200, 1)
    assert response.json()["results"][0]["warnings"] == []


async def test_a_message_id_with_the_character_nul_rejects_only_its_own_delivery_report(client: httpx.AsyncClient) -> None:
    await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "x", "message_id": "m-nul"})
    reports = [{"message_id": message_id, "state": "SENT"} for message_id in ("m-nul\x00", "m-nul")]
    answer = await client.post("/api/v1/sms/status", json=reports)
    assert [result["error_code"] for result in answer.json()["results"]] == ["MESSAGE_NOT_FOUND", None]
    alone = await client.post("/api/v1/sms/status", json=reports[0])
    assert (alone.status_code, alone.json()["error_code"]) == (404, "MESSAGE_NOT_FOUND")


async def test_a_message_id_that_is_not_utf_8_rejects_only_its_own_delivery_report(client: httpx.AsyncClient) -> None:
    content = b'[{"message_id": "m\xfc\\udc00", "state": "SENT", "\xff": 1}, {"message_id": "m-1", "state": "SENT"}]'
    response = await client.post(PATH, content=content, headers={"Content-Type": "application/json"})
    assert [(one["message_id"], one["accepted"]) for one in response.json()["results"]] == [("mü\ufffd", False), ("m-1", True)]


@on_one_service
@pytest.mark.parametrize("content", [b"[{", b"\xff", b"\xef\xbb\xbf", b"[" * 100_000, b'{"message_id": "m-1\xfc"'])
async def test_delivery_reports_that_are_not_json_are_rejected(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post(PATH, content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["status"]) == (400, False)


async def test_status_words_of_carriers_in_delivery_reports_are_mapped_to_states(
    service: Service, client: httpx.AsyncClient
) -> None:
    states = []
    for word in ("accepted", "ENROUTE", "sent", "UNDELIV", "DELIVRD", "read"):
        response = await client.post(PATH, json={"message_id": "m-1", "state": word})
        states.append(response.json()["results"][0]["state"])
    assert states == ["CREATED", "CREATED", "SENT", "FAILED", "DELIVERED", "READ"]
    (row,) = await rows(service.database, schema.messages)
    assert row.report_status == "DELIVRD"
    only_status = await client.post(PATH, json={"message_id": "m-1", "status": "DELIVRD"})
    assert only_status.status_code == 200


async def test_the_error_for_delivery_reports_of_unknown_messages_contains_their_message_ids(
    service: Service, client: httpx.AsyncClient
) -> None:
    reports = [{"message_id": name, "state": "SENT"} for name in ("x", "y")]
    response = await client.post(PATH, json=reports)
    assert (response.status_code, response.json()["error_code"]) == (404, "MESSAGE_NOT_FOUND")
    assert [detail["field"] for detail in response.json()["details"]] == ["0.message_id", "1.message_id"]
    assert await rows(service.database, schema.events) == []
    single = await client.post(PATH, json=reports[1])
    assert [detail["field"] for detail in single.json()["details"]] == ["message_id"]


async def test_a_list_of_delivery_reports_has_a_maximum_size(service: Service, client: httpx.AsyncClient) -> None:
    limit = service.settings.batch_limit
    report = {"message_id": "m-1", "state": "SENT"}
    assert (await client.post(PATH, json=[report] * limit)).status_code == 200
    response = await client.post(PATH, json=[report] * (limit + 1))
    assert (response.status_code, response.json()["error_code"]) == (400, "BATCH_TOO_LARGE")


async def test_delivery_reports_require_the_permission_sms_send(service: Service, client: httpx.AsyncClient) -> None:
    reader = await service.database.write(create_key, 1, "reader", ["sms.read"], NOON)
    await service.directory.refresh()
    report = {"message_id": "m-1", "state": "SENT"}
    for headers, status in (({"X-API-Key": reader}, 403), ({"X-API-Key": "sk_wrong"}, 401), ({}, 401)):
        async with client_of(service, headers) as other:
            assert (await other.post(PATH, json=report)).status_code == status
    assert await rows(service.database, schema.events) == []


async def test_delivery_reports_for_messages_of_another_application_are_rejected(service: Service) -> None:
    other = await service.database.write(create_application, "other", NOON)
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": other.api_key}) as client:
        assert (await client.post(PATH, json={"message_id": "m-1", "state": "SENT"})).status_code == 404


async def test_a_flood_of_delivery_reports_for_many_trackers_gets_429_and_the_rejected_reports_can_be_sent_again(
    service: Service, client: httpx.AsyncClient, clock: Clock
) -> None:
    """Two requests of 1,000 reports with 100 trackers would create 200,000 deliveries."""
    for number in range(100):
        tracker = {"url": f"http://127.0.0.1:9/{number}", "events": ["delivery"], "enabled": number > 0}
        assert (await client.post("/api/v1/trackers", json=tracker)).status_code == 201
    reports = [{"message_id": "m-1", "state": "SENT"}, *({"message_id": f"x-{number}", "state": "SENT"} for number in range(999))]
    assert (await client.post(PATH, json=reports)).json()["accepted"] == 1
    flood = await client.post(PATH, json=[{"message_id": "m-1", "state": "DELIVERED"}, *reports[1:]])
    assert (flood.status_code, flood.json()["error_code"]) == (429, "RATE_LIMITED")
    (row,) = await rows(service.database, schema.messages)
    assert row.delivered_at is None, "no report of the request is stored"
    assert (await client.post(PATH, json={"message_id": "m-1", "state": "SENT"})).status_code == 200, "single reports go on"
    clock.forward(seconds=int(flood.headers["Retry-After"]) + 1)
    again = await client.post(PATH, json=[{"message_id": "m-1", "state": "DELIVERED"}, *reports[1:]])
    assert (again.status_code, again.json()["accepted"]) == (200, 1)


async def test_the_rate_limit_of_delivery_reports_does_not_apply_while_no_tracker_receives_them(client: httpx.AsyncClient) -> None:
    reports = [{"message_id": "m-1", "state": "SENT"}, *({"message_id": f"x-{number}", "state": "SENT"} for number in range(999))]
    for _ in range(4):
        assert (await client.post(PATH, json=reports)).status_code == 200
