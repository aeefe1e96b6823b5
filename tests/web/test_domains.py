"""Tests of the domains of an application over HTTP, and of the domain with which the short links of a rewrite begin."""

from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from shortener.accounts.administration import add_domain, create_application
from shortener.accounts.version import mark_accounts_changed
from shortener.container import Service
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS as PHONE
from tests.clicks.helpers import TO
from tests.conftest import Clock, MakeService, client_of
from tests.one_service import on_one_service

PATH = "/api/v1/domains"
URL = "https://x.example/"


async def rewrite(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post("/api/v1/rewrite", json={"to": TO, "body": f'see #track("{URL}")', **more})


async def short_url(client: httpx.AsyncClient, **more: Any) -> str:
    response = await rewrite(client, **more)
    assert response.status_code == 200, response.text
    message = response.json()["messages"][0]
    assert message["body"] == "see " + message["links"][0]["short_url"]
    return str(message["links"][0]["short_url"])


async def visit(client: httpx.AsyncClient, url: str) -> int:
    """Request a short link. Return the HTTP status."""
    host, _, path = url.removeprefix("https://").removeprefix("http://").partition("/")
    return (await client.get(f"/{path}", headers=PHONE | {"Host": host})).status_code


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The set of names for which the DNS has no address. Every other name has an address."""
    missing: list[str] = []

    async def has_address(host: str) -> bool:
        return host not in missing

    monkeypatch.setattr("shortener.delivery.dns_warnings.has_address", has_address)
    return missing


async def test_domains_of_an_application_are_added_listed_changed_and_removed(client: httpx.AsyncClient) -> None:
    added = await client.post(PATH, json={"domain": "https://Go.Brand.example./", "fallback_url": "https://x.example/over"})
    assert added.status_code == 201
    assert added.json()["domain"] == {
        "host": "go.brand.example",
        "application_id": 1,
        "base_url": "https://go.brand.example",
        "path": "",
        "fallback_url": "https://x.example/over",
        "home_url": None,
        "assetlinks": None,
        "apple_app_site_association": None,
        "enabled": True,
        "default": False,
        "new_links": True,
        "warnings": [],
    }
    assert (await client.post(PATH, json={"base_url": "two.brand.example"})).json()["domain"][
        "base_url"
    ] == "https://two.brand.example"
    changes: dict[str, Any] = {"default": True, "fallback_url": None, "home_url": "https://brand.example/", "assetlinks": []}
    changed = (await client.patch(f"{PATH}/two.brand.example", json=changes)).json()["domain"]
    assert {name: changed[name] for name in changes} == changes
    listed = (await client.get(PATH)).json()["domains"]
    assert [(one["host"], one["default"], one["new_links"]) for one in listed] == [
        ("go.brand.example", False, False),
        ("two.brand.example", True, True),
    ]
    assert (await client.get(f"{PATH}/two.brand.example")).json()["domain"] == changed
    assert (await client.delete(f"{PATH}/two.brand.example")).json()["domain"]["host"] == "two.brand.example"
    assert (await client.get(f"{PATH}/two.brand.example")).status_code == 404
    assert [one["host"] for one in (await client.get(PATH)).json()["domains"]] == ["go.brand.example"]


@on_one_service
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"domain": "https://*.brand.example"}, "domain"),
        ({"domain": "https://go.brand.example/a b"}, "domain"),
        ({"domain": "-bad-.com"}, "domain"),
        ({"domain": "https://a_b.example"}, "domain"),
        ({"domain": "https://go.brand.example:0"}, "domain"),
        ({"domain": "https://go.brand.example:99999"}, "domain"),
        ({"domain": "https://go.brand.example", "fallback_url": "http://127.0.0.1:8000/x"}, "fallback_url"),
        ({"domain": "https://go.brand.example", "home_url": "https://go.brand.example/x"}, "home_url"),
        ({"domain": "https://go.brand.example", "home_url": "javascript:1"}, "home_url"),
        ({"domain": "https://go.brand.example", "assetlinks": {}}, "assetlinks"),
        ({}, "domain"),
    ],
)
async def test_an_invalid_domain_is_rejected_and_not_stored(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    response = await client.post(PATH, json=body)
    assert (response.status_code, response.json()["details"][0]["field"]) == (400, field)
    assert (await client.get(PATH)).json()["domains"] == []


async def test_the_response_that_adds_a_domain_warns_if_phones_cannot_reach_its_host(
    client: httpx.AsyncClient, addresses: list[str]
) -> None:
    addresses.append("go.brand.example")
    for host, expected in (
        ("go.brand.example", ["finds no DNS address for go.brand.example"]),
        ("two.brand.example", []),
        ("http://localhost:8000", ["localhost is a name of one machine", "as on BASE_URL"]),
    ):
        warnings = (await client.post(PATH, json={"domain": host})).json()["domain"]["warnings"]
        assert len(warnings) == len(expected), warnings
        assert all(text in warning for text, warning in zip(expected, warnings, strict=True))
    listed = {one["host"]: len(one["warnings"]) for one in (await client.get(PATH)).json()["domains"]}
    assert listed == {"go.brand.example": 0, "two.brand.example": 0, "localhost:8000": 2}, "a list makes no DNS look-up"


async def test_a_domain_with_a_final_dot_and_a_port_is_stored_without_the_dot(client: httpx.AsyncClient) -> None:
    body = {"domain": "https://Go.Brand.example.:8443/", "home_url": "https://brand.example/"}
    added = await client.post(PATH, json=body)
    assert (added.status_code, added.json()["domain"]["host"]) == (201, "go.brand.example:8443")
    assert added.json()["domain"]["home_url"] == "https://brand.example/"
    added = await client.post(PATH, json={"domain": "localhost.:8000"})
    assert (added.status_code, len(added.json()["domain"]["warnings"])) == (201, 2)


async def test_domains_of_another_application_return_404(client: httpx.AsyncClient, service: Service, clock: Clock) -> None:
    made = await service.database.write(create_application, "other", clock(), domain="https://go.other.example")
    await service.directory.refresh()
    for method in ("GET", "PATCH", "DELETE"):
        response = await client.request(method, f"{PATH}/go.other.example", json={} if method == "PATCH" else None)
        assert response.status_code == 404
    assert (await client.post(PATH, json={"domain": "go.other.example"})).status_code == 409
    async with client_of(service, {"X-API-Key": made.api_key}) as other:
        await other.delete(f"{PATH}/go.other.example")
        assert (await client.post(PATH, json={"domain": "go.other.example"})).status_code == 409, "its links still use the host"
        assert (await other.post(PATH, json={"domain": "go.other.example"})).status_code == 201


async def test_a_message_can_use_any_domain_of_its_application(client: httpx.AsyncClient, service: Service, clock: Clock) -> None:
    for host in ("go.brand.example", "two.brand.example"):
        await client.post(PATH, json={"domain": host})
    assert (await short_url(client)).startswith("https://go.brand.example/")
    on_two = await short_url(client, domain="TWO.brand.example")
    assert on_two.startswith("https://two.brand.example/")
    assert await visit(client, on_two) == 302
    await service.database.write(create_application, "other", clock(), domain="https://go.other.example")
    await service.directory.refresh()
    for host in ("go.other.example", "nosuch.example", "127.0.0.1:8000"):
        refused = await rewrite(client, domain=host)
        assert (refused.status_code, refused.json()["details"][0]["field"]) == (400, "domain")
    await client.patch(f"{PATH}/two.brand.example", json={"enabled": False})
    refused = await rewrite(client, domain="two.brand.example")
    assert (refused.status_code, refused.json()["error_code"]) == (409, "NO_USABLE_DOMAIN")


async def test_a_rewrite_with_links_fails_if_all_domains_of_the_application_are_disabled_or_removed(
    client: httpx.AsyncClient,
) -> None:
    assert (await short_url(client)).startswith("http://127.0.0.1:8000/")
    await client.post(PATH, json={"domain": "go.brand.example"})
    old = await short_url(client)
    for leave in ("disable", "remove"):
        if leave == "disable":
            await client.patch(f"{PATH}/go.brand.example", json={"disabled": True})
            assert await visit(client, old) == 410
            await_enabled = {"enabled": True}
        else:
            await client.patch(f"{PATH}/go.brand.example", json=await_enabled)
            await client.delete(f"{PATH}/go.brand.example")
            assert await visit(client, old) == 302, "links that were sent work until they expire"
        refused = await rewrite(client)
        assert (refused.status_code, refused.json()["error_code"]) == (409, "NO_USABLE_DOMAIN")
        plain = await client.post("/api/v1/rewrite", json={"to": TO, "body": "no link"})
        assert plain.status_code == 200, "a text without links needs no domain"
    await client.patch("/api/v1/application", json={"allow_shared_host": True})
    assert (await short_url(client)).startswith("http://127.0.0.1:8000/")


async def test_short_links_contain_the_path_of_their_domain_before_the_code(client: httpx.AsyncClient) -> None:
    await client.post(PATH, json={"domain": "https://go.brand.example/ABCDEF"})
    url = await short_url(client, message_id="m-1")
    assert url.startswith("https://go.brand.example/ABCDEF/")
    code = url.rsplit("/", 1)[1]
    for path, status in ((f"ABCDEF/{code}", 302), (f"ABCDEF/{code}/", 302), (code, 404), (f"OTHER/{code}", 404)):
        assert await visit(client, f"https://go.brand.example/{path}") == status, path
    assert await visit(client, f"http://127.0.0.1:8000/ABCDEF/{code}") == 302
    assert (await client.get("/api/v1/sms/status/m-1")).json()["links"][0]["short_url"] == url
    assert (await client.get(f"/api/v1/links/{code}")).json()["link"]["short_url"] == url
    assert await short_url(client, message_id="m-1") == url, "a repeat gets its first link"
    assert url in (await client.get("/api/v1/sms/messages/unified/export")).text

    await client.patch(f"{PATH}/go.brand.example", json={"path": "/{sender}"})
    assert await visit(client, url) == 302, "links behind the earlier path still work"
    assert await short_url(client, message_id="m-1") == url
    new = await short_url(client, **{"from": "VM-SHOPIN"})
    assert new.startswith("https://go.brand.example/VM-SHOPIN/")
    assert await visit(client, new) == 302
    assert (await short_url(client, **{"from": "channel:7", "sender_id_alias": "SHOPIN"})).startswith(
        "https://go.brand.example/SHOPIN/"
    )
    for sender in ("", "My Shop"):
        refused = await rewrite(client, **{"from": sender})
        assert (refused.status_code, refused.json()["details"][0]["field"]) == (400, "from")


async def test_short_urls_in_events_contain_the_path_of_the_domain(client: httpx.AsyncClient, service: Service) -> None:
    await service.database.write(add_domain, 1, "https://go.brand.example/ABCDEF", service.clock())
    await service.directory.refresh()
    await client.post(
        "/api/v1/trackers", json={"url": "https://t.example/", "events": ["state"], "format": "json", "fields": ["short_url"]}
    )
    url = await short_url(client)
    assert await visit(client, url) == 302
    await service.fanout.step()
    deliveries = (await client.get("/api/v1/deliveries")).json()["deliveries"]
    assert len(deliveries) == 1
    events = await service.database.read(_facts)
    assert [facts["short_url"] for facts in events] == [url]


def _facts(connection: Any) -> list[dict[str, Any]]:
    from sqlalchemy import select

    from shortener.storage import schema

    return list(connection.scalars(select(schema.events.c.facts).where(schema.events.c.facts.is_not(None))))


async def test_the_setting_base_url_may_contain_a_path(make_service: Any) -> None:
    service = await make_service(base_url="https://s.example/{sender}")
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        url = await short_url(client, **{"from": "SHOPIN"})
        assert url.startswith("https://s.example/SHOPIN/")
        assert await visit(client, url) == 302
        code = url.rsplit("/", 1)[1]
        assert await visit(client, f"https://s.example/api/{code}") == 404
        assert await visit(client, f"https://s.example/{code}") == 302


async def test_a_domain_that_an_earlier_version_stored_in_another_spelling_is_found(
    service: Service, client: httpx.AsyncClient
) -> None:
    """Earlier versions stored an IPv6 address as the caller wrote it. The current version stores its shortest form."""
    stored, canonical = "[2001:db8:0::1]:8443", "[2001:db8::1]:8443"
    domain = {"application_id": 1, "host": stored, "base_url": f"https://{stored}", "created_at": service.clock()}
    await service.database.write(lambda connection: connection.execute(insert(schema.domains).values(domain)))
    await service.database.write(mark_accounts_changed)
    await service.directory.refresh()
    for host in (stored, canonical, "[2001:DB8:0:0::1]:8443"):
        assert (await client.get(f"{PATH}/{host}")).json()["domain"]["host"] == stored
        assert (await client.patch(f"{PATH}/{host}", json={"default": True})).status_code == 200
        assert await short_url(client, domain=host)
    taken = await client.post(PATH, json={"domain": f"https://{canonical}"})
    assert taken.json()["error_code"] == "CONFLICT"
    fallback = await client.patch("/api/v1/application", json={"fallback_url": f"https://{canonical}/x"})
    assert "would loop" in fallback.text
    assert (await client.delete(f"{PATH}/{canonical}")).status_code == 200
    assert (await client.get(f"{PATH}/{stored}")).status_code == 404


async def test_a_domain_with_a_path_may_have_the_name_of_base_url(make_service: MakeService) -> None:
    service = await make_service(base_url="https://go.own.example")
    assert service.first_credentials is not None
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        assert (await client.post(PATH, json={"domain": "https://go.own.example"})).status_code == 400
        assert (await client.post(PATH, json={"domain": "https://go.own.example/ABCDEF"})).status_code == 201
        url = await short_url(client)
        assert url.startswith("https://go.own.example/ABCDEF/")
        assert await visit(client, url) == 302


@on_one_service
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"enabled": None}, "enabled"),
        ({"disabled": None}, "disabled"),
        ({"default": None}, "default"),
        ({"enabled": True, "disabled": True}, "disabled"),
        ({"disabled": False, "enabled": False}, "disabled"),
    ],
)
async def test_a_change_of_a_domain_that_is_null_or_contradicts_itself_is_rejected(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    await client.post(PATH, json={"domain": "https://go.brand.example"})
    path = f"{PATH}/go.brand.example"
    changed = (await client.patch(path, json={"enabled": False, "disabled": True, "default": True})).json()["domain"]
    assert (changed["enabled"], changed["default"]) == (False, True)
    response = await client.patch(path, json=body)
    assert (response.status_code, response.json()["details"][0]["field"]) == (400, field)
    assert (await client.get(path)).json()["domain"] == changed
