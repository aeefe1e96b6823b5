"""Links and blocked hosts over HTTP: showing, switching, and who may do so."""

from typing import Any

import httpx
import pytest

from shortener.accounts.administration import add_domain, create_application, update_domain
from shortener.accounts.credentials import create_key
from shortener.accounts.settings import PERMISSIONS
from shortener.container import Service
from shortener.redis.link_cache import NoLinkCache
from shortener.retention.erasure import erase_message
from tests.clicks.helpers import PHONE_HEADERS as PHONE
from tests.clicks.helpers import create_link as link
from tests.conftest import Clock, client_of

NOON = "2026-11-20T12:00:00Z"


async def shown(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    answer = await client.get(f"/api/v1/links{path}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["link"])


async def test_a_link_is_shown_with_its_destination(client: httpx.AsyncClient) -> None:
    path = await link(client, message_id="m-1")
    assert await shown(client, path) == {
        "code": path[1:],
        "short_url": f"http://127.0.0.1:8000{path}",
        "url": "https://x.example/a?b=1&c=%20#f",
        "label": None,
        "message_id": "m-1",
        "state": "live",
        "off_by": None,
        "enabled": True,
        "disabled_at": None,
        "expires_at": "2027-02-18T12:00:00Z",
    }


async def test_a_link_can_be_disabled_at_once_and_enabled_again(client: httpx.AsyncClient, clock: Clock) -> None:
    path = await link(client)
    for _ in range(2):
        told = (await client.patch(f"/api/v1/links{path}", json={"enabled": False})).json()["link"]
        assert (told["state"], told["off_by"], told["enabled"], told["disabled_at"]) == ("off", "link", False, NOON)
        answer = await client.get(path, headers=PHONE)
        assert (answer.status_code, "switched off" in answer.text) == (410, True)
        clock.forward(seconds=1)
    told = (await client.patch(f"/api/v1/links{path}", json={"enabled": True})).json()["link"]
    assert (told["state"], told["off_by"], told["disabled_at"]) == ("live", None, None)
    assert (await client.get(path, headers=PHONE)).status_code == 302


async def test_a_link_shows_why_it_does_not_redirect(client: httpx.AsyncClient, service: Service, clock: Clock) -> None:
    await service.database.write(add_domain, 1, "https://go.brand.example", clock())
    await service.directory.refresh()
    path = await link(client, expires_in=60)
    await client.post("/api/v1/blocked-hosts", json={"host": "*.example"})
    assert (await shown(client, path))["off_by"] == "host"
    await service.database.write(update_domain, "go.brand.example", {"disabled": True}, clock())
    await service.directory.refresh()
    assert (await shown(client, path))["off_by"] == "domain"
    await client.delete("/api/v1/blocked-hosts/*.example")
    await service.database.write(update_domain, "go.brand.example", {"disabled": False}, clock())
    await service.directory.refresh()
    clock.forward(minutes=2)
    told = await shown(client, path)
    assert (told["state"], told["off_by"]) == ("expired", None)


async def test_a_link_of_an_erased_message_cannot_be_enabled(client: httpx.AsyncClient, service: Service, clock: Clock) -> None:
    path = await link(client, message_id="m-1")
    await service.database.write(erase_message, 1, "m-1", clock())
    answer = await client.patch(f"/api/v1/links{path}", json={"enabled": True})
    assert (answer.status_code, answer.json()["error_code"]) == (409, "CONFLICT")
    assert (await client.get(path, headers=PHONE)).status_code == 410


async def test_disabling_a_link_removes_it_from_the_link_cache(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []

    class Away(NoLinkCache):
        async def invalidate(self, codes: Any) -> bool:
            forgotten.extend(codes)
            return False

    path = await link(client)
    monkeypatch.setattr(service, "cache", Away())
    assert (await client.patch(f"/api/v1/links{path}", json={"enabled": False})).status_code == 200
    assert forgotten == [path[1:]]
    assert (await client.patch("/api/v1/links/nosuchcode", json={"enabled": False})).status_code == 404
    assert forgotten == [path[1:]]


async def test_hosts_are_blocked_listed_and_unblocked(client: httpx.AsyncClient) -> None:
    path = await link(client)
    assert (await client.post("/api/v1/blocked-hosts", json={"host": "X.Example"})).json() == {"status": True, "host": "x.example"}
    told = (await client.get("/api/v1/blocked-hosts")).json()
    assert told == {"status": True, "blocked_hosts": [{"host": "x.example", "created_at": NOON}]}
    assert (await client.get(path, headers=PHONE)).status_code == 410
    assert (await client.delete("/api/v1/blocked-hosts/x.example")).json() == {"status": True, "host": "x.example"}
    assert (await client.delete("/api/v1/blocked-hosts/x.example")).status_code == 404
    assert (await client.get(path, headers=PHONE)).status_code == 302


@pytest.mark.parametrize("body", [{}, {"host": ""}, {"host": "https://x.example/"}, {"host": "x" * 300}, {"host": "a\0b"}])
async def test_an_invalid_host_is_rejected(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await client.post("/api/v1/blocked-hosts", json=body)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "host")


async def test_links_and_hosts_of_another_application_return_404(client: httpx.AsyncClient, service: Service, clock: Clock) -> None:
    path = await link(client)
    await client.post("/api/v1/blocked-hosts", json={"host": "other.example"})
    made = await service.database.write(create_application, "other", clock())
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": made.api_key}) as other:
        assert (await other.get(f"/api/v1/links{path}")).status_code == 404
        assert (await other.patch(f"/api/v1/links{path}", json={"enabled": False})).status_code == 404
        assert (await other.get("/api/v1/blocked-hosts")).json()["blocked_hosts"] == []
        assert (await other.delete("/api/v1/blocked-hosts/other.example")).status_code == 404
    assert (await client.get(path, headers=PHONE)).status_code == 302


@pytest.mark.parametrize(
    ("method", "path", "body", "permission"),
    [
        ("GET", "/api/v1/links/x", None, "sms.read"),
        ("PATCH", "/api/v1/links/x", {"enabled": False}, "links.write"),
        ("GET", "/api/v1/blocked-hosts", None, "sms.read"),
        ("POST", "/api/v1/blocked-hosts", {"host": "x.example"}, "links.write"),
        ("DELETE", "/api/v1/blocked-hosts/x.example", None, "links.write"),
        ("POST", "/api/v1/erasures", {"phone": "+14085550100"}, "privacy.erase"),
        ("GET", "/api/v1/trackers", None, "trackers.read"),
        ("POST", "/api/v1/trackers", {}, "trackers.write"),
        ("GET", "/api/v1/application", None, "trackers.read"),
        ("PATCH", "/api/v1/application", {}, "admin"),
    ],
)
async def test_each_endpoint_requires_its_permission(
    service: Service, clock: Clock, method: str, path: str, body: Any, permission: str
) -> None:
    others = [name for name in PERMISSIONS if name != permission]
    right = await service.database.write(create_key, 1, "right", [permission], clock())
    wrong = await service.database.write(create_key, 1, "wrong", others, clock())
    await service.directory.refresh()
    for key, refused in ((right, False), (wrong, True)):
        async with client_of(service, {"X-API-Key": key}) as client:
            assert ((await client.request(method, path, json=body)).status_code == 403) is refused
