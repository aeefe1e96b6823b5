"""Tests of the list of messages that gateways send, and of decisions about held messages."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from shortener.container import Service
from tests.receiver import Receiver, Reply


@pytest.fixture
async def held(service: Service, client: httpx.AsyncClient, receiver: Receiver) -> str:
    """The id of a message that is held, because its gateway closed the connection."""
    receiver.replies = [Reply(close=True)]
    receiver.default_reply = Reply(200, b'{"id":"x1"}')
    body = {"name": "gw", "preset": "plain", "options": {"url": receiver.url()}, "on_doubt": "hold"}
    assert (await client.post("/api/v1/gateways", json=body)).status_code == 201
    rewritten = await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "x", "gateway": "gw"})
    await service.gateway_dispatcher.flush()
    return str(rewritten.json()["messages"][0]["message_id"])


async def listed(client: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get("/api/v1/sends", params=query)).json()["sends"]
    return found


async def test_a_held_message_is_listed_and_can_be_sent_again(
    service: Service, client: httpx.AsyncClient, receiver: Receiver, held: str
) -> None:
    [found] = await listed(client, send_status="held")
    assert (found["message_id"], found["gateway"], found["doubtful"], found["last_error"]) == (held, "gw", True, "connection_reset")
    assert await listed(client, send_status="pending") == []
    resent = (await client.post(f"/api/v1/sends/{held}/resend")).json()
    assert resent == {
        "status": True,
        "send": {**found, "send_status": "pending", "next_attempt_at": resent["send"]["next_attempt_at"]},
    }
    await service.gateway_dispatcher.flush()
    assert [one["send_status"] for one in await listed(client)] == ["sent"]
    assert len(receiver.requests) == 2
    again = await client.post(f"/api/v1/sends/{held}/resend")
    assert (again.status_code, again.json()["error_code"]) == (409, "CONFLICT")


async def test_a_held_message_can_be_discarded(service: Service, client: httpx.AsyncClient, held: str) -> None:
    given_up = (await client.post(f"/api/v1/sends/{held}/discard")).json()["send"]
    assert (given_up["send_status"], given_up["last_error"]) == ("failed", "discarded")
    status = (await client.get(f"/api/v1/sms/status/{held}")).json()
    assert (status["state"], status["reason_code"]) == ("FAILED", "discarded")
    assert (await client.post(f"/api/v1/sends/{held}/discard")).status_code == 409


async def test_a_request_to_send_an_unknown_message_again_returns_404(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/v1/sends/unknown/resend")
    assert (response.status_code, response.json()["error_code"]) == (404, "MESSAGE_NOT_FOUND")


async def test_the_status_of_a_message_shows_its_gateway_and_each_attempt(
    service: Service, client: httpx.AsyncClient, receiver: Receiver, held: str
) -> None:
    shown = (await client.get(f"/api/v1/sms/status/{held}")).json()["send"]
    [attempt] = shown.pop("attempt_log")
    assert shown == (await listed(client))[0]
    assert (shown["gateway"], shown["send_status"], shown["doubtful"], shown["attempts"]) == ("gw", "held", True, 1)
    assert (attempt["attempt"], attempt["outcome"], attempt["status"]) == (1, "connection_reset", None)
    receiver.default_reply = Reply(400, b'{"error":"no route to +14085550100, that is 14085550100"}')
    await client.post(f"/api/v1/sends/{held}/resend")
    await service.gateway_dispatcher.flush()
    status = (await client.get(f"/api/v1/sms/status/{held}")).json()
    assert [one["attempt"] for one in status["send"]["attempt_log"]] == [1, 2]
    assert status["send"]["attempt_log"][1]["status"] == 400
    assert "4085550100" not in str(status["send"]) + str(status["reason_description"]), "the number is masked"
    unsent = (await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "x"})).json()["messages"][0]["message_id"]
    assert (await client.get(f"/api/v1/sms/status/{unsent}")).json()["send"] is None


async def test_the_list_of_sends_has_pages(service: Service, client: httpx.AsyncClient, held: str) -> None:
    for _ in range(4):
        await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "x", "gateway": "simulator"})
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(3):
        page = (await client.get("/api/v1/sends", params={"limit": "2", **cursor})).json()
        seen += [one["message_id"] for one in page["sends"]]
        cursor = {"cursor": page["next_cursor"]}
    assert page["next_cursor"] is None
    assert (len(set(seen)), seen[-1]) == (5, held)
    wrong = await client.get("/api/v1/sends", params={"cursor": "x"})
    assert (wrong.status_code, wrong.json()["error_code"]) == (400, "INVALID_CURSOR")
