"""Tests of API keys and tracker tokens over HTTP, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.logs import mask
from tests.conftest import client_of
from tests.factory import audited_rows
from tests.one_service import on_one_service
from tests.web.calls import TO


async def create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/api/v1/keys", json={"name": "pipeline", **fields})
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def test_a_new_api_key_works_at_once_and_has_the_default_permissions(service: Service, client: httpx.AsyncClient) -> None:
    created = await create(client)
    assert created["api_key"].startswith("sk_")
    assert (created["key"]["permissions"], created["key"]["rate_limit"]) == (["sms.read", "sms.send"], None)
    async with client_of(service, {"X-API-Key": created["api_key"]}) as other:
        assert (await other.post("/api/v1/rewrite", json={"to": TO, "body": "x"})).status_code == 200
        assert (await other.get("/api/v1/keys")).status_code == 403


async def test_the_list_of_api_keys_does_not_contain_the_secret_key_texts(client: httpx.AsyncClient) -> None:
    created = await create(client, rate_limit=60)
    response = await client.get("/api/v1/keys")
    rows = response.json()["keys"]
    assert [row["is_current"] for row in rows] == [True, False]
    assert rows[1] == created["key"]
    assert created["api_key"] not in response.text
    assert (await client.get(f"/api/v1/keys/{created['key_id']}")).json()["key"] == created["key"]


async def test_the_name_and_the_rate_limit_of_an_api_key_can_be_changed(client: httpx.AsyncClient) -> None:
    path = f"/api/v1/keys/{(await create(client))['key_id']}"
    changed = (await client.patch(path, json={"name": "other", "rate_limit": 5})).json()["key"]
    assert (changed["name"], changed["rate_limit"]) == ("other", 5)
    assert (await client.patch(path, json={"name": None})).json()["key"]["name"] == "other"
    assert (await client.patch(path, json={})).json()["key"] == changed
    assert (await client.patch(path, json={"rate_limit": None})).json()["key"]["rate_limit"] is None
    assert (await client.patch(path, json={"name": ""})).json()["key"]["name"] == "", "an empty text removes the name"


async def test_an_api_key_cannot_raise_its_rate_limit_or_create_an_api_key_with_a_higher_limit(
    service: Service, client: httpx.AsyncClient
) -> None:
    limited = await create(client, permissions=["admin"], rate_limit=30)
    own = f"/api/v1/keys/{limited['key_id']}"
    async with client_of(service, {"X-API-Key": limited["api_key"]}) as other:
        for rate_limit in (None, 31):
            for response in (
                await other.patch(own, json={"rate_limit": rate_limit}),
                await other.post("/api/v1/keys", json={"name": "x", "permissions": ["admin"], "rate_limit": rate_limit}),
            ):
                assert (response.status_code, response.json()["error_code"]) == (403, "FORBIDDEN")
                assert response.json()["details"][0]["field"] == "rate_limit"
        assert (await other.patch(own, json={"name": "y"})).status_code == 200
        assert (await other.patch(own, json={"rate_limit": 20})).json()["key"]["rate_limit"] == 20
    assert len((await client.get("/api/v1/keys")).json()["keys"]) == 2


async def test_a_revoked_api_key_is_rejected_at_once(service: Service, client: httpx.AsyncClient) -> None:
    created = await create(client)
    path = f"/api/v1/keys/{created['key_id']}"
    revoked = await client.delete(path)
    assert revoked.json()["key"]["revoked_at"] is not None
    async with client_of(service, {"X-API-Key": created["api_key"]}) as other:
        assert (await other.get("/api/v1/sms/messages")).status_code == 401
    assert (await client.delete(path)).status_code == 404
    assert (await client.patch(path, json={"name": "x"})).status_code == 404


async def test_an_api_key_cannot_revoke_itself(client: httpx.AsyncClient) -> None:
    (current,) = (await client.get("/api/v1/keys")).json()["keys"]
    response = await client.delete(f"/api/v1/keys/{current['key_id']}")
    assert (response.status_code, response.json()["error_code"]) == (409, "CONFLICT")


async def test_an_api_key_can_grant_only_permissions_that_it_has(service: Service, client: httpx.AsyncClient) -> None:
    admin = await create(client, permissions=["admin", "sms.read"])
    async with client_of(service, {"X-API-Key": admin["api_key"]}) as other:
        await create(other, permissions=["sms.read"])
        response = await other.post("/api/v1/keys", json={"name": "x", "permissions": ["privacy.reveal"]})
    assert (response.status_code, response.json()["details"][0]["field"]) == (403, "permissions")


@on_one_service
@pytest.mark.parametrize(
    "fields",
    [
        {"name": "  "},
        {"name": "x" * 101},
        {"name": "a\u0000b"},
        {"name": "x", "permissions": []},
        {"name": "x", "permissions": ["root"]},
        {"name": "x", "rate_limit": 0},
        {"name": "x", "unknown": 1},
    ],
)
async def test_a_request_that_creates_an_api_key_with_invalid_values_is_rejected_and_creates_nothing(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    response = await client.post("/api/v1/keys", json=fields)
    assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_REQUEST")
    assert len((await client.get("/api/v1/keys")).json()["keys"]) == 1


async def test_an_api_key_of_another_application_is_not_found(service: Service, client: httpx.AsyncClient) -> None:
    from shortener.accounts.administration import create_application

    other = await service.database.write(create_application, "other", service.clock())
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": other.api_key}) as stranger:
        (key,) = (await stranger.get("/api/v1/keys")).json()["keys"]
        for response in (
            await client.get(f"/api/v1/keys/{key['key_id']}"),
            await client.patch(f"/api/v1/keys/{key['key_id']}", json={"name": "x"}),
            await client.delete(f"/api/v1/keys/{key['key_id']}"),
        ):
            assert response.status_code == 404
        assert (await stranger.get("/api/v1/keys")).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/tokens", "/api/v1/tokens/rotate"])
async def test_the_previous_tracker_token_stays_valid_for_the_overlap_after_a_rotation(
    service: Service, client: httpx.AsyncClient, credentials: Credentials, path: str
) -> None:
    rotated = (await client.post(path, json={"overlap": 60})).json()
    assert rotated["tracker_token"].startswith("tt_")
    listed = (await client.get("/api/v1/tokens")).json()["tokens"]
    assert [token["valid_until"] for token in listed] == [rotated["previous_valid_until"], None]
    for token in (rotated["tracker_token"], credentials.tracker_token):
        async with client_of(service, {"X-Api-Token": token}) as tracker:
            assert (await tracker.get("/api/v1/track", params={"message_id": "nobody"})).status_code == 404
    await client.post(path, json={"overlap": 0})
    assert len((await client.get("/api/v1/tokens")).json()["tokens"]) == 1
    async with client_of(service, {"X-Api-Token": rotated["tracker_token"]}) as tracker:
        assert (await tracker.get("/api/v1/track", params={"message_id": "nobody"})).status_code == 401


async def test_a_token_rotation_without_options_has_an_overlap_of_a_day(client: httpx.AsyncClient) -> None:
    rotated = (await client.post("/api/v1/tokens")).json()
    assert rotated["previous_valid_until"] == "2026-11-21T12:00:00Z"


async def test_each_of_several_concurrent_requests_creates_one_api_key(client: httpx.AsyncClient) -> None:
    created = await asyncio.gather(*(create(client, name=f"key {index}") for index in range(10)))
    assert len({one["api_key"] for one in created}) == 10
    assert len((await client.get("/api/v1/keys")).json()["keys"]) == 11


async def test_the_audit_log_names_each_api_key_that_was_created_changed_or_revoked_with_an_api_key(
    client: httpx.AsyncClient, service: Service
) -> None:
    created = await create(client, name="till +14085550100", rate_limit=60)
    path = f"/api/v1/keys/{created['key_id']}"
    for changes in ({"rate_limit": 5}, {"rate_limit": 5}, {"name": "shop"}):
        assert (await client.patch(path, json=changes)).status_code == 200
    for status in (200, 404):
        assert (await client.delete(path)).status_code == status
    rotated = (await client.post("/api/v1/tokens")).json()
    rows = await audited_rows(service.database)
    name = "till " + mask("+14085550100")
    assert [(row.operator, row.action, row.object, row.application_id, row.before, row.after) for row in rows] == [
        ("key 1", "api_key_created", name, 1, None, {"permissions": "sms.read, sms.send", "rate_limit": 60}),
        ("key 1", "api_key_changed", name, 1, {"rate_limit": 60}, {"rate_limit": 5}),
        ("key 1", "api_key_changed", name, 1, {"name": name}, {"name": "shop"}),
        ("key 1", "api_key_revoked", "shop", 1, None, None),
        ("key 1", "tracker_token_rotated", "", 1, None, {"previous_valid_until": rotated["previous_valid_until"]}),
    ]
    assert created["api_key"] not in repr(rows)
