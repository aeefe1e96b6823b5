"""Tests of the URL to which gateways report deliveries."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from shortener.container import Service
from shortener.gateways.report_calls import MAX_ITEMS
from tests.conftest import Clock
from tests.factory import AUDIT
from tests.one_service import on_one_service
from tests.receiver import Receiver, Reply


@pytest.fixture
async def sent(service: Service, client: httpx.AsyncClient, receiver: Receiver) -> dict[str, Any]:
    """Send a message through a gateway. Return its message_id and the URL path to which the gateway reports its delivery."""
    receiver.default_reply = Reply(200, b'{"id":"x1"}')
    options = {"url": receiver.url(), "token": "t"}
    settings = {"report_states": {"9": "FAILED"}, "report_response": "ACK"}
    body = {"name": "gw", "preset": "plain", "options": options, "settings": settings}
    assert (await client.post("/api/v1/gateways", json=body)).status_code == 201
    rewritten = await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "x", "gateway": "gw"})
    await service.gateway_dispatcher.flush()
    url = receiver.requests[0].json["report_url"]
    assert url.startswith(service.settings.base_url)
    return {"message_id": rewritten.json()["messages"][0]["message_id"], "path": url.removeprefix(service.settings.base_url)}


async def state(client: httpx.AsyncClient, sent: dict[str, Any]) -> str:
    status = (await client.get(f"/api/v1/sms/status/{sent['message_id']}")).json()
    return str(status["state"])


@pytest.mark.parametrize("form", ["query", "form", "json", "list"])
async def test_a_gateway_report_is_accepted_as_query_parameters_as_a_form_or_as_json(
    service: Service, client: httpx.AsyncClient, sent: dict[str, Any], form: str
) -> None:
    parameters = {"status": "DELIVRD", "error_code": "000", "description": "fine", "timestamp": "2026-11-20T12:00:05Z"}
    path = sent["path"]
    if form == "query":
        response = await client.get(path, params=parameters)
    elif form == "form":
        response = await client.post(path, data=parameters)
    else:
        response = await client.post(path, json=[parameters] if form == "list" else parameters)
    assert (response.status_code, response.text) == (200, "ACK")
    assert await state(client, sent) == "DELIVERED"


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"status":"DELIVRD"}',
        '{"status":"DELIVRD"}'.encode("utf-16"),
        '{"status":"DELIVRD","description":"entregué"}'.encode("latin-1"),
        b' \r\n[{"status":"DELIVRD"}]',
    ],
)
async def test_a_gateway_report_in_json_with_a_byte_order_mark_or_bytes_that_are_not_utf_8_is_recorded(
    client: httpx.AsyncClient, sent: dict[str, Any], content: bytes
) -> None:
    assert (await client.post(sent["path"], content=content)).status_code == 200
    assert await state(client, sent) == "DELIVERED"


async def test_a_gateway_report_without_a_reference_in_the_path_is_matched_by_the_gateway_message_id(
    client: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    path = sent["path"].rpartition("/")[0]
    assert (await client.post(path, json={"id": "x1", "status": "9"})).status_code == 200
    assert await state(client, sent) == "FAILED"


async def test_a_report_key_that_another_process_created_is_accepted_at_once(
    service: Service, client: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    gateway = await service.gateways.find("gw", 1)
    changed = await service.gateways.update(AUDIT, gateway.id, {"rotate_report_key": True}, 1)
    path = changed.config.report_url.removeprefix(service.settings.base_url)
    assert path not in sent["path"]
    assert (await client.post(path, json={"id": "x1", "status": "9"})).status_code == 200
    assert await state(client, sent) == "FAILED"


async def test_a_gateway_report_with_a_wrong_key_in_its_path_is_rejected_and_changes_nothing(
    client: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    response = await client.post("/api/v1/gateways/reports/gr_wrong/0", json={"status": "DELIVRD"})
    assert (response.status_code, response.json()["error_code"]) == (401, "UNAUTHORIZED")
    assert await state(client, sent) == "SENT"


@on_one_service
@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"status":"GARBAGE"}', b"[]", b"[1]", b'"x"', b"status=" + b"x" * 5000]
)
async def test_a_gateway_report_that_cannot_be_parsed_gets_200_and_changes_nothing(
    client: httpx.AsyncClient, sent: dict[str, Any], content: bytes
) -> None:
    response = await client.post(sent["path"], content=content)
    assert response.status_code == 200
    assert await state(client, sent) == "SENT"


async def test_a_head_request_to_the_report_url_of_a_gateway_records_nothing(
    client: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    response = await client.head(sent["path"], params={"status": "DELIVRD"})
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")
    assert await state(client, sent) == "SENT"


def losses(service: Service) -> dict[str, float]:
    """Return how many delivery reports were not recorded, by reason, from the metric."""
    text = service.metrics.text("")[0].decode()
    found = re.findall(r'shortener_gateway_reports_unknown_total\{gateway="2",reason="(\w+)"\} (\S+)', text)
    return {reason: float(number) for reason, number in found}


async def unrecorded_events(client: httpx.AsyncClient, path: str, **request: Any) -> list[tuple[str, int]]:
    """Send a call to the report URL. For each log line about reports that were not recorded, return the reason and the number of
    reports."""
    with capture_logs() as lines:
        response = await client.post(path, **request)
    assert (response.status_code, response.text) == (200, "ACK")
    found = [line for line in lines if line["event"] == "gateway_report_not_recorded"]
    assert all(line["gateway"] == 2 and line["log_level"] == "warning" for line in found)
    return [(line["reason"], line["reports"]) for line in found]


@pytest.mark.parametrize(
    ("has_reference", "request_content", "reason", "number"),
    [
        (True, {}, "no_status", 1),
        (True, {"json": {"state": "DELIVRD"}}, "no_status", 1),
        (True, {"json": [{"state": "DELIVRD"}, {"status": ""}, {"status": None}]}, "no_status", 3),
        (True, {"content": b"<report><status>DELIVRD</status></report>"}, "no_status", 1),
        (False, {"json": {"status": "9", "message": "x1"}}, "no_id", 1),
        (False, {"json": {"status": "9", "id": "another"}}, "unknown_message", 1),
        (False, {"json": [{"status": "9", "message": "x1"}] * (MAX_ITEMS + 3)}, "no_id", MAX_ITEMS),
    ],
)
async def test_a_gateway_report_whose_status_or_message_is_not_found_is_counted_and_logged(
    service: Service,
    client: httpx.AsyncClient,
    sent: dict[str, Any],
    has_reference: bool,
    request_content: dict[str, Any],
    reason: str,
    number: int,
) -> None:
    service.gateway_reports._wait.seconds = 0
    path = sent["path"] if has_reference else sent["path"].rpartition("/")[0]
    logged = await unrecorded_events(client, path, **request_content)
    expected = {reason: number} | ({"too_many": 3} if number == MAX_ITEMS else {})
    assert losses(service) == dict(logged) == expected
    assert await state(client, sent) == "SENT"


async def test_a_gateway_report_with_an_unknown_word_is_counted_and_its_word_is_logged(
    service: Service, client: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    with capture_logs() as lines:
        await client.post(sent["path"], json={"status": "GARBAGE"})
    assert [line["word"] for line in lines if line["event"] == "gateway_report_unreadable"] == ["GARBAGE"]
    assert losses(service) == {"unknown_word": 1}


async def test_gateway_reports_are_counted_as_lost_if_the_list_of_reports_is_not_in_the_body(
    service: Service, client: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    await service.gateways.update(AUDIT, 2, {"settings": {"report_items": "results"}}, 1)
    report = {"status": "DELIVRD"}
    assert await unrecorded_events(client, sent["path"], json={"messages": [report]}) == [("no_list", 1)]
    assert losses(service) == {"no_list": 1}
    assert await unrecorded_events(client, sent["path"], json={"results": []}) == [], "a call without reports loses none"
    assert await unrecorded_events(client, sent["path"], json={"results": [report]}) == []
    assert (await state(client, sent), losses(service)) == ("DELIVERED", {"no_list": 1})


async def test_lost_gateway_reports_cause_at_most_one_log_line_in_a_minute_for_each_reason(
    service: Service, client: httpx.AsyncClient, sent: dict[str, Any], clock: Clock
) -> None:
    path = sent["path"]
    assert await unrecorded_events(client, path, json={}) == [("no_status", 1)]
    assert await unrecorded_events(client, path, json=[{}, {}]) == []
    assert await unrecorded_events(client, path.rpartition("/")[0], json={"status": "9"}) == [("no_id", 1)]
    clock.forward(seconds=60)
    assert await unrecorded_events(client, path, json={}) == [("no_status", 3)]
    assert losses(service) == {"no_status": 4, "no_id": 1}


async def test_recorded_gateway_reports_do_not_count_as_lost(
    service: Service, client: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    assert await unrecorded_events(client, sent["path"], json={"status": "DELIVRD"}) == []
    assert losses(service) == {}
