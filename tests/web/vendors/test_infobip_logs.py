"""Infobip's delivery reports, logs and preview over HTTP, on SQLite and PostgreSQL."""

import asyncio
from typing import Any

import httpx
import pytest

from shortener.container import Service
from shortener.storage import schema
from tests.conftest import Clock, client_of
from tests.factory import rows
from tests.web.calls import click, rewrite


@pytest.fixture
async def sent(client: httpx.AsyncClient) -> list[str]:
    """Create a delivered, a failed and a pending message. Return their ids."""
    request = {
        "bulkId": "bulk-1",
        "messages": [
            {
                "from": "InfoSMS",
                "destinations": [{"to": "41793026731", "messageId": "m-1"}, {"to": "41793026732", "messageId": "m-2"}],
                "text": "see https://shop.example/",
                "callbackData": "order 7",
                "campaignReferenceId": "spring",
            }
        ],
    }
    assert (await client.post("/sms/2/text/advanced", json=request)).status_code == 200
    other = {
        "messages": [{"sender": "Other", "destinations": [{"to": "41793026733", "messageId": "m-3"}], "content": {"text": "x"}}]
    }
    assert (await client.post("/sms/3/messages", json=other)).status_code == 200
    reports = [
        {"message_id": "m-1", "state": "DELIVERED", "mt_price": "0.0095", "fragments_count": 2},
        {"message_id": "m-2", "state": "FAILED", "reason_code": "27", "reason_description": "absent subscriber"},
    ]
    assert (await client.post("/api/v1/sms/status", json=reports)).json()["accepted"] == 2
    return ["m-1", "m-2", "m-3"]


async def results(client: httpx.AsyncClient, path: str, **query: Any) -> list[dict[str, Any]]:
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


async def ids(client: httpx.AsyncClient, path: str, **query: Any) -> list[str]:
    return sorted(one["messageId"] for one in await results(client, path, **query))


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_the_report_endpoint_of_infobip_returns_each_message_with_a_final_status_once(
    client: httpx.AsyncClient, sent: list[str], version: int
) -> None:
    path = f"/sms/{version}/reports"
    assert (await client.head(path)).status_code == 200
    assert await ids(client, path) == ["m-1", "m-2"]
    assert await ids(client, path) == []
    for report in ({"message_id": "m-3", "state": "SENT"}, {"message_id": "m-3", "state": "EXPIRED"}):
        assert (await client.post("/api/v1/sms/status", json=report)).status_code == 200
    assert await ids(client, path) == ["m-3"]
    for report in ({"message_id": "m-1", "state": "READ"}, {"message_id": "m-3", "state": "EXPIRED", "status": "EXPIRED"}):
        assert (await client.post("/api/v1/sms/status", json=report)).status_code == 200
    assert await ids(client, path) == [], "a later report about the same message"


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_infobip_delivery_reports_that_are_requested_by_message_id_can_be_read_again(
    client: httpx.AsyncClient, sent: list[str], version: int
) -> None:
    path = f"/sms/{version}/reports"
    for _ in range(2):
        assert await ids(client, path, messageId="m-1") == ["m-1"]
        assert await ids(client, path, messageId="m-3") == []
        assert await ids(client, path, bulkId="bulk-1") == ["m-1", "m-2"]
        assert await ids(client, path, bulkId="other") == []
        assert len(await ids(client, path, bulkId="bulk-1", limit=1)) == 1
    assert await ids(client, path) == ["m-1", "m-2"]


async def test_infobip_delivery_reports_are_returned_in_pages_in_the_order_of_their_arrival(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortener.reporting.report_polls.PAGE_ROWS", 3)
    names = [f"m-{number}" for number in range(20)]
    messages = [{"to": "+14085550100", "body": "x", "message_id": name} for name in names]
    assert (await client.post("/api/v1/rewrite", json={"messages": messages})).status_code == 200
    names.reverse()
    for name in names:
        assert (await client.post("/api/v1/sms/status", json={"message_id": name, "state": "DELIVERED"})).status_code == 200
    read: list[str] = []
    while part := await results(client, "/sms/3/reports", limit=7):
        read += [one["messageId"] for one in part]
    assert read == names


async def test_concurrent_requests_for_infobip_delivery_reports_get_each_report_once(client: httpx.AsyncClient) -> None:
    messages = [{"to": "+14085550100", "body": "x", "message_id": f"m-{number}"} for number in range(12)]
    assert (await client.post("/api/v1/rewrite", json={"messages": messages})).status_code == 200
    reports = [{"message_id": one["message_id"], "state": "DELIVERED"} for one in messages]
    assert (await client.post("/api/v1/sms/status", json=reports)).json()["accepted"] == 12
    parts = await asyncio.gather(*(results(client, "/sms/3/reports", limit=3) for _ in range(4)))
    assert sorted(one["messageId"] for part in parts for one in part) == sorted(one["message_id"] for one in messages)


async def test_the_infobip_report_of_a_message_that_was_clicked_before_its_delivery_has_the_status_delivered(
    client: httpx.AsyncClient, service: Service
) -> None:
    message = await rewrite(client, "m-1")
    await click(client, message)
    assert (await client.post("/api/v1/sms/status", json={"message_id": "m-1", "state": "DELIVERED"})).status_code == 200
    [found] = await results(client, "/sms/3/reports")
    assert found["status"]["groupName"] == "DELIVERED"


@pytest.mark.parametrize("price", ["0.00000000000000000001", "123456789012.12345678901234567890"])
async def test_prices_in_the_formats_of_xoxzo_and_infobip_are_json_numbers_with_exactly_the_digits_of_the_price(
    client: httpx.AsyncClient, price: str
) -> None:
    await rewrite(client, "m-1", mt_price=price)
    for path in ("/sms/messages/m-1/", "/sms/messages/"):
        assert f'"cost":{price},' in (await client.get(path)).text
    for path in ("/sms/1/logs", "/sms/3/logs"):
        assert f'{{"pricePerMessage":{price}}}' in (await client.get(path)).text


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_click_is_no_delivery_report_but_a_clicked_message_has_infobips_status_delivered(
    client: httpx.AsyncClient, version: int
) -> None:
    await click(client, await rewrite(client, "m-1"))
    assert await results(client, f"/sms/{version}/reports") == []
    for path in ("reports", "logs"):
        [found] = await results(client, f"/sms/{version}/{path}", messageId="m-1")
        assert found["status"]["groupName"] == "DELIVERED", path


async def test_infobip_reports_of_delivered_and_failed_messages_have_the_documented_fields(
    client: httpx.AsyncClient, sent: list[str]
) -> None:
    delivered, failed = await results(client, "/sms/1/reports")
    assert delivered == {
        "bulkId": "bulk-1",
        "messageId": "m-1",
        "to": "41793026731",
        "from": "InfoSMS",
        "sentAt": "2026-11-20T12:00:00.000+0000",
        "doneAt": "2026-11-20T12:00:00.000+0000",
        "smsCount": 2,
        "callbackData": "order 7",
        "price": {"pricePerMessage": 0.0095},
        "status": {
            "groupId": 3,
            "groupName": "DELIVERED",
            "id": 5,
            "name": "DELIVERED_TO_HANDSET",
            "description": "Message delivered to handset",
        },
        "error": {"groupId": 0, "groupName": "OK", "id": 0, "name": "NO_ERROR", "description": "No Error", "permanent": False},
    }
    assert (failed["status"]["groupName"], failed["error"]["id"], failed["error"]["description"]) == (
        "UNDELIVERABLE",
        27,
        "absent subscriber",
    )
    v3, _ = await results(client, "/sms/3/reports")
    assert (v3["to"], v3["sender"], v3["messageCount"], v3["campaignReferenceId"]) == ("41793026731", "InfoSMS", 2, "spring")


async def test_the_log_endpoint_of_infobip_has_filters_and_its_version_3_has_pages(
    client: httpx.AsyncClient, sent: list[str], clock: Clock
) -> None:
    assert await ids(client, "/sms/1/logs") == sent
    assert await ids(client, "/sms/1/logs", **{"from": "Other"}) == ["m-3"]
    assert await ids(client, "/sms/1/logs", to="41793026732") == ["m-2"]
    assert await ids(client, "/sms/2/logs", generalStatus="PENDING") == ["m-3"]
    assert await ids(client, "/sms/2/logs", generalStatus="DELIVERED", messageId="m-1,m-2,m-3") == ["m-1"]
    assert await ids(client, "/sms/2/logs", generalStatus="REJECTED") == []
    assert await ids(client, "/sms/1/logs", sentSince="2026-11-20T11:00:00.000+0000", sentUntil="2026-11-20T13:00:00Z") == sent
    assert await ids(client, "/sms/1/logs", sentUntil="2026-11-20T11:00:00Z", unknown="x") == []
    assert await ids(client, "/sms/3/logs", sender="Other") == ["m-3"]
    for number in ("+41793026731", "0041793026731", "+41 79 302 67 31", "\u202a+41793026731\u202c"):
        assert await ids(client, "/sms/3/logs", destination=number) == ["m-1"], number
    assert await ids(client, "/sms/3/logs", destination="nobody") == []
    first = (await client.get("/sms/3/logs", params={"limit": 2})).json()
    cursor = first["cursor"]["nextCursor"]
    second = (await client.get("/sms/3/logs", params={"limit": 2, "cursor": cursor})).json()
    assert sorted(one["messageId"] for one in first["results"] + second["results"]) == sent
    assert second["cursor"] == {"limit": 2}
    clock.forward(hours=49)
    assert await ids(client, "/sms/1/logs") == []


async def test_the_infobip_log_is_complete_even_if_it_has_more_messages_than_one_page_examines(
    client: httpx.AsyncClient, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortener.reporting.messages.MAX_SCANNED_ROWS", 1)
    assert await ids(client, "/sms/1/logs", **{"from": "InfoSMS"}) == ["m-1", "m-2"]


async def test_errors_of_the_infobip_log_endpoint_have_the_structure_of_infobip_errors(
    client: httpx.AsyncClient, service: Service
) -> None:
    response = await client.get("/sms/1/logs", params={"sentSince": "2026-11-20", "sentUntil": "2026-11-19"})
    assert response.status_code == 400
    exception = response.json()["requestError"]["serviceException"]
    assert exception["messageId"] == "BAD_REQUEST"
    assert exception["validationErrors"] == {"sentUntil": ["must be after sentSince"]}
    async with client_of(service, {"Authorization": "App wrong"}) as stranger:
        response = await stranger.get("/sms/3/reports")
    assert (response.status_code, response.json()["requestError"]["serviceException"]["messageId"]) == (401, "UNAUTHORIZED")
    assert response.json()["error_code"] == "UNAUTHORIZED"


async def test_the_infobip_preview_returns_the_text_with_sample_links_and_stores_nothing(
    client: httpx.AsyncClient, service: Service
) -> None:
    request = {"text": 'see #track("https://shop.example/a")', "languageCode": "TR", "transliteration": None}
    response = await client.post("/sms/1/preview", json=request)
    assert response.status_code == 200, response.text
    told = response.json()
    (shown,) = told["previews"]
    assert told["originalText"] == request["text"]
    assert shown["textPreview"].startswith("see http://127.0.0.1:8000/")
    assert (shown["messageCount"], shown["charactersRemaining"]) == (1, 160 - len(shown["textPreview"]))
    assert shown["configuration"] == {}
    assert told["warnings"] == ["languageCode is not supported; the characters of the text stay as they are"]
    assert await rows(service.database, schema.messages) == []
    response = await client.post("/sms/1/preview", json={"text": '#track("")'})
    assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_TRACK_DIRECTIVE")
    assert "text" in response.json()["requestError"]["serviceException"]["validationErrors"]


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_the_log_endpoint_of_infobip_accepts_the_first_and_the_last_date_of_the_calendar(
    client: httpx.AsyncClient, sent: list[str], version: int
) -> None:
    path = f"/sms/{version}/logs"
    assert await ids(client, path, sentSince="0001-01-01T00:00:00Z") == sent
    assert await ids(client, path, sentUntil="0001-01-01T00:00:00Z") == []
    assert await ids(client, path, sentSince="2026-11-20", sentUntil="9999-12-31T23:30:00Z") == sent
