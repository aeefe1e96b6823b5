"""Tests of postback keys: they can be created, used, rotated and revoked, and they allow only reports of conversions."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from shortener.accounts.administration import create_application
from shortener.accounts.credentials import create_key
from shortener.container import Service
from shortener.redis.rate_limit import RateLimiter
from shortener.storage import schema
from tests.conftest import NOON, Clock, client_of
from tests.factory import add_message, audited_rows, rows


@pytest.fixture(autouse=True)
async def message(service: Service) -> None:
    await service.database.write(add_message, service.ids)


async def created(client: httpx.AsyncClient, name: str = "network") -> dict[str, Any]:
    response = await client.post("/api/v1/postback-keys", json={"name": name})
    assert response.status_code == 201, response.text
    body: dict[str, Any] = response.json()
    return body


async def postback(service: Service, key: str, query: str = "message_id=m-1", method: str = "GET") -> httpx.Response:
    async with client_of(service) as anyone:
        return await anyone.request(method, f"/api/v1/postback/{key}?{query}")


async def test_a_network_can_report_conversions_with_a_postback_url_and_no_header(
    service: Service, client: httpx.AsyncClient
) -> None:
    key = await created(client)
    assert key["url"] == f"http://127.0.0.1:8000/api/v1/postback/{key['postback_key']}"
    first = await postback(service, key["postback_key"], "message_id=m-1&action=sale&value=3")
    second = await postback(service, key["postback_key"], "message_id=m-1&action=sale&value=3", "POST")
    assert (first.status_code, first.json()["duplicate"], second.json()["duplicate"]) == (200, False, True)


async def test_a_postback_key_allows_only_conversion_reports_and_is_stored_hashed(
    service: Service, client: httpx.AsyncClient
) -> None:
    key = (await created(client))["postback_key"]
    for headers in ({"X-API-Key": key}, {"X-Api-Token": key}, {"Authorization": f"Bearer {key}"}):
        async with client_of(service, headers) as other:
            for path in ("/api/v1/conversions", "/api/v1/postback-keys", "/api/v1/track?message_id=m-1"):
                assert (await other.get(path)).status_code == 401
    assert key not in repr(await rows(service.database, schema.postback_keys))
    listed = await client.get("/api/v1/postback-keys")
    assert key not in listed.text
    assert [(one["name"], one["hint"]) for one in listed.json()["postback_keys"]] == [("network", key[:8])]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"name": ""}', b'{"name": null}'])
async def test_a_postback_key_and_an_api_key_need_no_name(client: httpx.AsyncClient, content: bytes) -> None:
    for path, name in (("/api/v1/postback-keys", "postback_keys"), ("/api/v1/keys", "keys")):
        response = await client.post(path, content=content)
        assert response.status_code == 201, response.text
        assert (await client.get(path)).json()[name][-1]["name"] == ""


async def test_an_unknown_postback_key_returns_401_and_the_postback_key_of_another_application_returns_404(
    service: Service, client: httpx.AsyncClient
) -> None:
    assert (await postback(service, "pk_" + "a" * 43)).status_code == 401
    other = await service.database.write(create_application, "other", NOON)
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": other.api_key}) as others:
        key = await created(others)
    assert (await postback(service, key["postback_key"])).status_code == 404
    assert (await client.delete(f"/api/v1/postback-keys/{key['id']}")).status_code == 404
    assert (await client.post(f"/api/v1/postback-keys/{key['id']}/rotate")).status_code == 404


async def test_the_previous_postback_key_is_valid_until_the_end_of_the_overlap(
    service: Service, client: httpx.AsyncClient, clock: Clock
) -> None:
    old = await created(client)
    response = await client.post(f"/api/v1/postback-keys/{old['id']}/rotate", json={"overlap_hours": 2})
    new = response.json()
    assert new["previous_valid_until"] == "2026-11-20T14:00:00Z"
    assert [(await postback(service, one["postback_key"])).status_code for one in (old, new)] == [200, 200]
    clock.forward(hours=2)
    assert [(await postback(service, one["postback_key"])).status_code for one in (old, new)] == [401, 200]
    assert (await client.post(f"/api/v1/postback-keys/{old['id']}/rotate")).status_code == 404


async def test_a_revoked_postback_key_is_invalid_at_once(service: Service, client: httpx.AsyncClient) -> None:
    key = await created(client)
    assert (await client.delete(f"/api/v1/postback-keys/{key['id']}")).json() == {"status": True}
    assert (await postback(service, key["postback_key"])).status_code == 401
    assert (await client.delete(f"/api/v1/postback-keys/{key['id']}")).status_code == 404


async def test_only_api_keys_with_the_permission_admin_can_manage_postback_keys(service: Service) -> None:
    key = await service.database.write(create_key, 1, "reader", ["sms.send", "sms.read"], NOON)
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": key}) as reader:
        assert (await reader.get("/api/v1/postback-keys")).status_code == 403
        assert (await reader.post("/api/v1/postback-keys", json={"name": "x"})).status_code == 403


async def test_the_rate_of_reports_with_each_postback_key_is_limited(
    service: Service, client: httpx.AsyncClient, clock: Clock
) -> None:
    service.rate_limits.postbacks = RateLimiter("postbacks", 3, service.now_ms)
    one, other = await created(client, "one"), await created(client, "other")
    assert [(await postback(service, one["postback_key"])).status_code for _ in range(4)] == [200, 200, 200, 429]
    limited = await postback(service, one["postback_key"])
    assert (limited.json()["error_code"], limited.headers["retry-after"]) == ("RATE_LIMITED", "20")
    refused = (await client.get("/api/v1/conversions/refused", params={"reason": "RATE_LIMITED"})).json()["refused"]
    assert [report["endpoint"] for report in refused] == ["GET /api/v1/postback/{postback_key}"] * 2
    assert (await postback(service, other["postback_key"])).status_code == 200
    clock.forward(seconds=20)
    assert (await postback(service, one["postback_key"])).status_code == 200


async def test_log_lines_and_refused_reports_do_not_contain_the_postback_key(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "settings", service.settings.model_copy(update={"access_log": "on"}))
    key = (await created(client))["postback_key"]
    with capture_logs() as log_lines:
        await postback(service, key, "message_id=unknown")
        await postback(service, key, f"message_id=m-1&transaction_id={{tid}}&u=https://x/{key}")
    requests = [line["path"] for line in log_lines if line["event"] == "request"]
    assert requests == ["/api/v1/postback/{postback_key}"] * 2
    assert key not in repr(log_lines)
    assert key not in (await client.get("/api/v1/conversions/refused")).text
    (one, other) = await rows(service.database, schema.refused_conversions)
    assert one.endpoint == other.endpoint == "GET /api/v1/postback/{postback_key}"


async def test_the_audit_log_names_each_postback_key_that_was_created_replaced_or_revoked_with_an_api_key(
    service: Service, client: httpx.AsyncClient
) -> None:
    key = await created(client)
    rotated = (await client.post(f"/api/v1/postback-keys/{key['id']}/rotate")).json()
    for status in (200, 404):
        assert (await client.delete(f"/api/v1/postback-keys/{rotated['id']}")).status_code == status
    audited = await audited_rows(service.database)
    assert [(row.operator, row.action, row.object, row.application_id, row.after) for row in audited] == [
        ("key 1", "postback_key_created", "network", 1, None),
        ("key 1", "postback_key_rotated", "network", 1, {"previous_valid_until": rotated["previous_valid_until"]}),
        ("key 1", "postback_key_revoked", "network", 1, None),
    ]
