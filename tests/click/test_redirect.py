"""GET /{code} through the whole application (contract, section 4), on both engines."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select

from shortener import accounts
from shortener.model import Topic
from shortener.service import Service
from shortener.store import schema
from tests.conftest import Clock, MakeService, client_of

PHONE = {
    "User-Agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
}


async def link(client: httpx.AsyncClient, url: str = "https://x.example/a?b=1&c=%20#f", **more: Any) -> str:
    """The path of a new short link."""
    answer = await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": f'#track("{url}")', **more})
    return "/" + str(answer.json()["messages"][0]["links"][0]["code"])


async def hits(service: Service) -> list[Any]:
    return list(await service.database.read(lambda c: c.execute(select(schema.hits).order_by(schema.hits.c.id)).all()))


async def topics(service: Service) -> list[Topic]:
    return [Topic(row.topics) for row in await service.database.read(lambda c: c.execute(select(schema.events)).all())]


async def test_a_click_is_sent_on_with_the_headers_of_the_contract(client: httpx.AsyncClient, service: Service) -> None:
    answer = await client.get(await link(client), headers=PHONE)
    assert answer.status_code == 302
    assert answer.headers["location"] == "https://x.example/a?b=1&c=%20#f"
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["referrer-policy"] == "no-referrer-when-downgrade"
    assert answer.headers["x-robots-tag"] == "noindex"
    assert answer.content == b""
    assert "set-cookie" not in answer.headers
    (hit,) = await hits(service)
    assert hit.user_agent == PHONE["User-Agent"]


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("https://пример.рф/путь?q=é#я", "https://xn--e1afmkfd.xn--p1ai/%D0%BF%D1%83%D1%82%D1%8C?q=%C3%A9#%D1%8F"),
        ("HTTPS://X.Example/A{b}|c?d=[1]&e=+%2B", "https://x.example/A{b}|c?d=[1]&e=+%2B"),
    ],
)
async def test_the_location_is_ascii_and_otherwise_as_it_was_written(client: httpx.AsyncClient, url: str, location: str) -> None:
    assert (await client.get(await link(client, url), headers=PHONE)).headers["location"] == location


async def test_head_and_prefetch_are_sent_on_but_never_click(client: httpx.AsyncClient, service: Service) -> None:
    path = await link(client)
    for method, headers in (
        ("HEAD", {}),
        ("GET", {"Sec-Purpose": "prefetch"}),
        ("GET", {"Purpose": "prefetch"}),
        ("GET", {"X-Purpose": "preview"}),
        ("GET", {"X-Moz": "prefetch"}),
    ):
        answer = await client.request(method, path, headers=PHONE | headers)
        assert (answer.status_code, answer.headers["location"]) == (302, "https://x.example/a?b=1&c=%20#f")
    assert await topics(service) == []
    assert {hit.verdict for hit in await hits(service)} == {2}
    await client.get(path, headers=PHONE)
    assert await topics(service) == [Topic.STATE | Topic.CLICK]


@pytest.mark.parametrize("tail", [".", ",", ")", "!", "?", ";", ":", '"', "'", "%22", "%E2%80%9D", ").", "..."])
async def test_what_a_linkifier_took_along_is_forgiven(client: httpx.AsyncClient, tail: str) -> None:
    assert (await client.get(await link(client) + tail, headers=PHONE)).status_code == 302


@pytest.mark.parametrize(
    "path", ["/nosuchcode", "/abcdefghij", "/ABCDEFGHIJ/", "/a%00b", "/a%0d%0ab", "/%F0%9F%98%80", "/favicon.ico", "//x"]
)
async def test_what_is_no_code_is_404_and_leaves_nothing(client: httpx.AsyncClient, service: Service, path: str) -> None:
    answer = await client.get(path, headers=PHONE)
    assert answer.status_code == 404
    assert "location" not in answer.headers
    assert await hits(service) == []


async def test_codes_are_case_sensitive(client: httpx.AsyncClient) -> None:
    assert (await client.get((await link(client)).swapcase(), headers=PHONE)).status_code == 404


async def test_after_ninety_days_the_link_is_gone_with_a_page_for_people(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    path = await link(client)
    clock.forward(days=90)
    answer = await client.get(path, headers=PHONE)
    assert answer.status_code == 410
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "private, no-store"
    assert "default" in answer.text  # the application's name
    assert len(answer.content) < 4096
    assert await topics(service) == [Topic.LATE_CLICK]


async def test_the_fallbacks_of_link_domain_and_application_win_in_that_order(service: Service, clock: Clock) -> None:
    application = 1
    key = service.first_credentials.api_key if service.first_credentials else ""
    update = accounts.update_application
    await service.database.write(update, application, {"fallback_url": "https://über.example/app"}, clock())
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": key}) as client:
        plain = await link(client, expires_in=1)
        own = await link(client, expires_in=1, fallback_url="https://x.example/link")
        clock.forward(seconds=2)
        assert (await client.get(plain, headers=PHONE)).headers["location"] == "https://xn--ber-goa.example/app"
        assert (await client.get(own, headers=PHONE)).headers["location"] == "https://x.example/link"


@pytest.fixture
async def branded(make_service: MakeService, clock: Clock) -> Service:
    """A service with a second application that has a domain of its own."""
    service = await make_service(base_url="https://s.example")
    await service.database.write(accounts.create_application, "brand", clock(), domain="https://go.brand.example")
    await service.directory.refresh()
    return service


async def test_codes_count_on_the_domain_they_were_made_for_and_on_the_default_one(branded: Service, clock: Clock) -> None:
    key = await branded.database.write(accounts.create_key, 2, "x", ["sms.send"], clock())
    assert branded.first_credentials is not None
    default_key = branded.first_credentials.api_key
    await branded.directory.refresh()
    async with client_of(branded) as client:
        answer = await client.post(
            "/api/v1/rewrite", json={"to": "+14085550100", "body": '#track("https://x.example/")'}, headers={"X-API-Key": key}
        )
        short_url = answer.json()["messages"][0]["links"][0]["short_url"]
        assert short_url.startswith("https://go.brand.example/")
        path = "/" + short_url.rsplit("/", 1)[1]
        for host, status in (("go.brand.example", 302), ("GO.BRAND.EXAMPLE.", 302), ("s.example", 302), ("other.example", 404)):
            assert (await client.get(path, headers=PHONE | {"Host": host})).status_code == status, host
        client.headers["X-API-Key"] = default_key
        of_default = await link(client)
        assert (await client.get(of_default, headers=PHONE | {"Host": "go.brand.example"})).status_code == 404
        assert (await client.get(of_default, headers=PHONE | {"Host": "s.example"})).status_code == 302


@pytest.mark.parametrize("path", ["/api/v1/rewrite", "/openapi.json", "/docs", "/portal", "/healthz", "/"])
async def test_on_an_own_domain_there_is_nothing_but_codes(branded: Service, path: str) -> None:
    async with client_of(branded) as client:
        for method in ("GET", "POST"):
            answer = await client.request(method, path, headers={"Host": "go.brand.example"})
            assert answer.status_code == 404
        robots = await client.get("/robots.txt", headers={"Host": "go.brand.example"})
    assert (robots.status_code, robots.text) == (200, "User-agent: *\nDisallow: /\n")


@pytest.mark.parametrize("path", ["/api/v1/rewrite", "/openapi.json", "/abcdefghij", "/"])
async def test_an_unknown_host_gets_404_and_its_name_nowhere(branded: Service, path: str) -> None:
    async with client_of(branded) as client:
        answer = await client.get(path, headers={"Host": "evil.example"})
    assert answer.status_code == 404
    assert "evil.example" not in answer.text + str(answer.headers)


async def test_a_click_id_is_appended_for_applications_that_ask(service: Service, clock: Clock) -> None:
    await service.database.write(accounts.update_application, 1, {"click_id_param": "cid"}, clock())
    await service.directory.refresh()
    key = service.first_credentials.api_key if service.first_credentials else ""
    async with client_of(service, {"X-API-Key": key}) as client:
        location = (await client.get(await link(client), headers=PHONE)).headers["location"]
    (hit,) = await hits(service)
    assert location == f"https://x.example/a?b=1&c=%20&cid={service.click_ids.spell(hit.id)}#f"


async def test_addresses_are_shortened_before_they_are_kept(make_service: MakeService) -> None:
    service = await make_service(trusted_proxies="127.0.0.0/8")
    key = service.first_credentials.api_key if service.first_credentials else ""
    async with client_of(service, {"X-API-Key": key}) as client:
        path = await link(client)
        await client.get(path, headers=PHONE | {"X-Forwarded-For": "198.51.100.77"})
        await client.get(path, headers=PHONE | {"X-Forwarded-For": "2001:db8:1:2:3::4"})
    assert [hit.address for hit in await hits(service)] == ["198.51.100.0", "2001:db8:1::"]


async def test_on_a_killed_domain_or_application_links_are_gone(branded: Service, clock: Clock) -> None:
    key = await branded.database.write(accounts.create_key, 2, "x", ["sms.send"], clock())
    await branded.directory.refresh()
    async with client_of(branded, {"X-API-Key": key}) as client:
        path = await link(client)
        await branded.database.write(accounts.update_application, 2, {"disabled": True}, clock())
        await branded.directory.refresh()
        assert (await client.get(path, headers=PHONE)).status_code == 410
