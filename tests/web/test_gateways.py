"""Tests of the administration of gateways over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.delivery.sample_delivery import MAX_TESTS_PER_APPLICATION
from shortener.messages.opt_outs import add_opt_out
from tests.conftest import NOON, MakeService, client_of
from tests.factory import audited_rows
from tests.one_service import on_one_service
from tests.receiver import Receiver, Reply

PATH = "/api/v1/gateways"


async def create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json=fields)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def test_the_api_creates_returns_changes_and_removes_a_gateway(service: Service, client: httpx.AsyncClient) -> None:
    options = {"url": "http://127.0.0.1:13013/cgi-bin/sendsms", "username": "user", "password": "S3CRET"}
    created = await create(client, name="kannel", preset="kannel", options=options, on_doubt="hold", timeout=3)
    assert "S3CRET" not in str(created)
    assert (created["kind"], created["preset"], created["on_doubt"], created["timeout"]) == ("http", "kannel", "hold", 3)
    assert created["health"]["breaker"] == "closed"
    path = f"{PATH}/{created['gateway_id']}"
    assert (await client.get(path)).json() == created
    assert [one["name"] for one in (await client.get(PATH)).json()["gateways"]] == ["kannel"]
    changed = (await client.patch(path, json={"enabled": False, "timeout": None, "settings": {"success_statuses": "200"}})).json()
    assert (changed["enabled"], changed["timeout"], changed["on_doubt"]) == (False, service.settings.gateway_timeout, "hold")
    assert changed["settings"]["success_statuses"] == "200"
    assert (await client.delete(path)).json() == {"status": True}
    assert (await client.get(path)).status_code == 404


async def test_the_api_changes_one_variable_and_rejects_the_mask_of_a_hidden_value(client: httpx.AsyncClient) -> None:
    settings = {"url": "http://127.0.0.1:1/?key=S3CRET&user={user}&charset=UTF-8", "variables": {"user": "u", "password": "p"}}
    created = await create(client, name="gw", settings=settings)
    path, url = f"{PATH}/{created['gateway_id']}", created["settings"]["url"]
    assert url == "http://127.0.0.1:1/?key=***&user={user}&charset=UTF-8"
    refused = await client.patch(path, json={"settings": {"url": url}})
    assert (refused.status_code, refused.json()["details"][0]["field"]) == (400, "settings.url")
    changed = await client.patch(path, json={"settings": {"variables.password": "new", "variables.more": "x"}})
    assert changed.json()["settings"]["variables"] == ["more", "password", "user"]


@on_one_service
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x", "preset": "kannel", "options": {}}, "options"),
        ({"name": "x", "settings": {"url": "not a url"}}, "settings"),
        ({"name": "none", "kind": "simulator"}, "name"),
        ({"name": "x", "kind": "fax"}, "kind"),
        ({"name": "x", "kind": "simulator", "timeout": 0}, "timeout"),
        ({"name": "x", "kind": "simulator", "max_per_second": 1e-310}, "max_per_second"),
        ({"name": "x", "kind": "simulator", "allow_private": True}, "allow_private"),
    ],
)
async def test_invalid_gateways_are_rejected(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    response = await client.post(PATH, json=body)
    assert response.status_code == 400
    assert response.json()["details"][0]["field"] == field


async def test_the_gateway_of_another_application_returns_404(service: Service, client: httpx.AsyncClient) -> None:
    created = await create(client, name="sim", kind="simulator")
    other = await service.database.write(create_application, "other", NOON)
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": other.api_key}) as stranger:
        path = f"{PATH}/{created['gateway_id']}"
        assert (await stranger.get(PATH)).json()["gateways"] == []
        for response in (
            await stranger.get(path),
            await stranger.patch(path, json={"enabled": False}),
            await stranger.delete(path),
            await stranger.post(f"{path}/test", json={"to": "+14085550100"}),
        ):
            assert response.status_code == 404
        assert (await stranger.patch("/api/v1/application", json={"gateway": "sim"})).status_code == 400


async def test_a_test_message_shows_the_response_of_the_gateway(client: httpx.AsyncClient, receiver: Receiver) -> None:
    receiver.replies = [Reply(200, b'{"id":"x"}'), Reply(400, b'{"error":"bad number 14085550100"}')]
    created = await create(client, name="plain", preset="plain", options={"url": receiver.url()})
    path = f"{PATH}/{created['gateway_id']}/test"
    accepted = (await client.post(path, json={"to": "+14085550100", "text": "hi"})).json()
    assert (accepted["outcome"], accepted["gateway_message_id"], accepted["http_status"]) == ("accepted", "x", 200)
    assert receiver.requests[0].json["text"] == "hi"
    rejected = (await client.post(path, json={"to": "+14085550100"})).json()
    assert (rejected["outcome"], rejected["detail"]) == ("rejected", "bad number 14…00")
    assert (await client.post(path, json={"to": "12"})).json()["error_code"] == "INVALID_RECIPIENT"


async def test_test_messages_that_hang_are_limited_and_use_no_slots_of_other_messages(
    make_service: MakeService, receiver: Receiver
) -> None:
    service = await make_service(gateway_slots=1)
    assert service.first_credentials is not None
    receiver.by_path = {"/hang": Reply(hang=True), "/": Reply(200, b'{"id":"x"}')}
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        slow = await create(client, name="slow", preset="plain", options={"url": receiver.url("/hang")})
        await create(client, name="fast", preset="plain", options={"url": receiver.url("/")})
        path, body = f"{PATH}/{slow['gateway_id']}/test", {"to": "+14085550100"}
        tests = [asyncio.create_task(client.post(path, json=body)) for _ in range(MAX_TESTS_PER_APPLICATION)]
        await receiver.wait_for(MAX_TESTS_PER_APPLICATION)
        assert (await client.post(path, json=body)).status_code == 429
        await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "hi", "gateway": "fast"})
        await service.gateway_dispatcher.flush()
        assert receiver.requests[-1].target == "/"
        for test in tests:
            test.cancel()


async def test_a_test_message_to_a_number_on_the_opt_out_list_is_rejected(
    service: Service, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    created = await create(client, name="plain", preset="plain", options={"url": receiver.url()})
    path = f"{PATH}/{created['gateway_id']}/test"
    await service.database.write(add_opt_out, 1, "+14085550100", NOON, "reply")
    for number in ("+14085550100", "+1 (408) 555-0100"):
        refused = await client.post(path, json={"to": number})
        assert (refused.status_code, refused.json()["error_code"]) == (409, "OPTED_OUT")
        assert refused.json()["details"][0]["field"] == "to"
    assert receiver.requests == []
    assert (await client.post(path, json={"to": "+14085550101"})).status_code == 200


async def test_an_application_cannot_create_a_gateway_with_a_private_address(make_service: Any, clock: Any) -> None:
    service = await make_service(allow_private_targets=False)
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        response = await client.post(PATH, json={"name": "k", "preset": "plain", "options": {"url": "http://127.0.0.1:1/"}})
    assert (response.status_code, response.json()["error_code"]) == (400, "FORBIDDEN_TARGET")


@on_one_service
@pytest.mark.parametrize("number", ["2147483648", "9223372036854775808", "9" * 30, "9" * 5000])
async def test_a_large_number_in_the_path_of_the_api_is_an_unknown_id(client: httpx.AsyncClient, number: str) -> None:
    for path in ("gateways", "keys", "trackers"):
        responses = [await client.get(f"/api/v1/{path}/{number}"), await client.delete(f"/api/v1/{path}/{number}")]
        assert [response.status_code for response in responses] == [404, 404], path
    assert (await client.delete(f"/api/v1/postback-keys/{number}")).status_code == 404


async def test_concurrent_requests_create_one_gateway_with_a_name_and_remove_it_once(
    client: httpx.AsyncClient, service: Service
) -> None:
    posts = await asyncio.gather(*(client.post("/api/v1/gateways", json={"name": "g", "kind": "simulator"}) for _ in range(4)))
    assert sorted(answer.status_code for answer in posts) == [201, 409, 409, 409]
    number = next(answer.json()["gateway_id"] for answer in posts if answer.status_code == 201)
    other = (await client.post("/api/v1/gateways", json={"name": "h", "kind": "simulator"})).json()["gateway_id"]
    renames = (client.patch(f"/api/v1/gateways/{one}", json={"name": "new"}) for one in (number, other))
    assert sorted(answer.status_code for answer in await asyncio.gather(*renames)) == [200, 409]
    deletions = await asyncio.gather(*(client.delete(f"/api/v1/gateways/{number}") for _ in range(3)))
    assert sorted(answer.status_code for answer in deletions) == [200, 404, 404]
    assert [row.action for row in await audited_rows(service.database)].count("gateway_removed") == 1
