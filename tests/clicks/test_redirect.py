"""GET /{code} through the whole application (contract, section 4), on both engines."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, select

from shortener.accounts.administration import (
    add_domain,
    block_host,
    create_application,
    unblock_host,
    update_application,
    update_domain,
)
from shortener.accounts.credentials import create_key
from shortener.accounts.directory import ALL_APPLICATIONS
from shortener.accounts.settings import PERMISSIONS
from shortener.clicks.verdicts.contextual_rules import RULES as CIRCUMSTANCES
from shortener.container import Service
from shortener.model import Topic
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS as PHONE
from tests.clicks.helpers import create_link as link
from tests.conftest import Clock, MakeService, client_of
from tests.servers import SOON_SECONDS


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
        ("OPTIONS", {}),
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


async def test_the_fallbacks_of_link_domain_and_application_win_in_that_order(branded: Service, clock: Clock) -> None:
    update = update_application
    async with of_brand(branded) as client:
        plain = await link(client, expires_in=1)
        own = await link(client, expires_in=1, fallback_url="https://x.example/link")
        clock.forward(seconds=2)

        async def leads_to(path: str) -> str | None:
            await branded.directory.refresh()
            location: str | None = (await client.get(path, headers=PHONE)).headers.get("location")
            return location

        assert await leads_to(plain) is None
        await branded.database.write(update, 2, {"fallback_url": "https://über.example/app"}, clock())
        assert await leads_to(plain) == "https://xn--ber-goa.example/app"
        change = {"fallback_url": "https://x.example/domain"}
        await branded.database.write(update_domain, "go.brand.example", change, clock())
        assert await leads_to(plain) == "https://x.example/domain"
        assert await leads_to(own) == "https://x.example/link"


@pytest.fixture
async def branded(make_service: MakeService, clock: Clock) -> Service:
    """A service with a second application that has a domain of its own."""
    service = await make_service(base_url="https://s.example")
    await service.database.write(create_application, "brand", clock(), domain="https://go.brand.example")
    await service.directory.refresh()
    return service


async def test_codes_count_on_the_domain_they_were_made_for_and_on_the_default_one(branded: Service, clock: Clock) -> None:
    key = await branded.database.write(create_key, 2, "x", ["sms.send"], clock())
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
        known = await client.get("/.well-known/security.txt", headers={"Host": "go.brand.example"})
    assert (robots.status_code, robots.text) == (200, "User-agent: *\nDisallow: /\n")
    assert known.json()["error_code"] == "NOT_FOUND", "the installation's to answer, if it has something there"


@pytest.mark.parametrize("path", ["/api/v1/rewrite", "/openapi.json", "/abcdefghij", "/"])
async def test_an_unknown_host_gets_404_and_its_name_nowhere(branded: Service, path: str) -> None:
    async with client_of(branded) as client:
        answer = await client.get(path, headers={"Host": "evil.example"})
    assert answer.status_code == 404
    assert "evil.example" not in answer.text + str(answer.headers)


async def test_a_click_id_is_appended_for_applications_that_ask(service: Service, clock: Clock) -> None:
    await service.database.write(update_application, 1, {"click_id_param": "cid"}, clock())
    await service.directory.refresh()
    key = service.first_credentials.api_key if service.first_credentials else ""
    async with client_of(service, {"X-API-Key": key}) as client:
        location = (await client.get(await link(client), headers=PHONE)).headers["location"]
    (hit,) = await hits(service)
    assert location == f"https://x.example/a?b=1&c=%20&cid={service.click_ids.encode(hit.id)}#f"


async def test_addresses_are_shortened_before_they_are_kept(make_service: MakeService) -> None:
    service = await make_service(trusted_proxies="127.0.0.0/8")
    key = service.first_credentials.api_key if service.first_credentials else ""
    async with client_of(service, {"X-API-Key": key}) as client:
        path = await link(client)
        await client.get(path, headers=PHONE | {"X-Forwarded-For": "198.51.100.77"})
        await client.get(path, headers=PHONE | {"X-Forwarded-For": "2001:db8:1:2:3::4"})
    assert [hit.address for hit in await hits(service)] == ["198.51.100.0", "2001:db8:1::"]


@asynccontextmanager
async def of_brand(branded: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Calls as the application with domains of its own."""
    key = await branded.database.write(create_key, 2, "x", PERMISSIONS, branded.clock())
    await branded.directory.refresh()
    async with client_of(branded, {"X-API-Key": key}) as client:
        yield client


Switch = Callable[[Connection, datetime, bool], None]


def _application(connection: Connection, now: datetime, off: bool) -> None:
    update_application(connection, 2, {"disabled": off}, now)


def _domain(connection: Connection, now: datetime, off: bool) -> None:
    update_domain(connection, "go.brand.example", {"disabled": off}, now)


def _host(connection: Connection, now: datetime, off: bool) -> None:
    if off:
        block_host(connection, 2, "x.example", now)
    else:
        unblock_host(connection, 2, "x.example")


@pytest.mark.parametrize("switch", [_application, _domain, _host])
async def test_what_is_switched_off_answers_410_with_a_page_for_people_and_can_be_switched_on_again(
    branded: Service, clock: Clock, switch: Switch
) -> None:
    async with of_brand(branded) as client:
        path = await link(client)
        for host in ("go.brand.example", "s.example"):
            for off in (True, False):
                await branded.database.write(switch, clock(), off)
                await branded.directory.refresh()
                answer = await client.get(path, headers=PHONE | {"Host": host})
                assert answer.status_code == (410 if off else 302)
                assert ("switched off" in answer.text and "brand" in answer.text) is off
                assert len(answer.content) < 4096
    assert await topics(branded) == [Topic.STATE | Topic.CLICK]
    assert len(await hits(branded)) == 4


@pytest.mark.parametrize("switch", [_application, _domain, _host])
async def test_a_switch_holds_on_another_node_within_a_second(make_service: MakeService, clock: Clock, switch: Switch) -> None:
    one = await make_service(base_url="https://s.example", start=True)
    two = one if one.database.dialect == "sqlite" else await make_service(base_url="https://s.example", start=True)
    await one.database.write(create_application, "brand", clock(), domain="https://go.brand.example")
    async with of_brand(one) as client, client_of(two) as elsewhere:
        path = await link(client)
        await two.directory.refresh()
        assert (await elsewhere.get(path, headers=PHONE)).status_code == 302
        await one.database.write(switch, clock(), True)
        began = time.monotonic()
        while (await elsewhere.get(path, headers=PHONE)).status_code == 302:
            assert time.monotonic() - began < SOON_SECONDS


async def test_one_of_two_domains_can_be_killed_and_new_links_are_made_on_the_other(branded: Service, clock: Clock) -> None:
    await branded.database.write(add_domain, 2, "https://two.brand.example", clock())
    async with of_brand(branded) as client:

        async def made_on() -> tuple[str, str]:
            body = {"to": "+14085550100", "body": '#track("https://x.example/")'}
            answer = await client.post("/api/v1/rewrite", json=body)
            host, code = answer.json()["messages"][0]["links"][0]["short_url"].removeprefix("https://").split("/")
            return host, "/" + code

        async def status(path: str, host: str) -> int:
            return (await client.get(path, headers=PHONE | {"Host": host})).status_code

        first, on_first = await made_on()
        await branded.database.write(_domain, clock(), True)
        await branded.directory.refresh()
        second, on_second = await made_on()
        assert (first, second) == ("go.brand.example", "two.brand.example")
        assert [await status(on_first, host) for host in (first, second, "s.example")] == [410, 404, 410]
        assert [await status(on_second, host) for host in (first, second, "s.example")] == [404, 302, 302]


async def test_a_repeated_message_gets_its_links_on_the_domain_that_they_were_made_for(branded: Service, clock: Clock) -> None:
    async with of_brand(branded) as client:
        body = {"to": "+14085550100", "message_id": "m-1", "body": 'see #track("https://x.example/")'}
        first = (await client.post("/api/v1/rewrite", json=body)).json()
        await branded.database.write(add_domain, 2, "https://another.and.longer.brand.example", clock())
        await branded.database.write(_domain, clock(), True)
        await branded.directory.refresh()
        assert (await client.post("/api/v1/rewrite", json=body)).json() == first
    default = branded.first_credentials
    assert default is not None
    async with client_of(branded, {"X-API-Key": default.api_key}) as client:
        first = (await client.post("/api/v1/rewrite", json=body)).json()
        assert first["messages"][0]["links"][0]["short_url"].startswith("https://s.example/")
        await branded.database.write(add_domain, 1, "https://mine.example", clock())
        await branded.directory.refresh()
        assert (await client.post("/api/v1/rewrite", json=body)).json() == first


async def test_texts_with_links_to_a_blocked_host_are_refused(client: httpx.AsyncClient, service: Service, clock: Clock) -> None:
    await service.database.write(block_host, ALL_APPLICATIONS, "*.evil.example", clock())
    await service.directory.refresh()
    body = {"to": "+14085550100", "body": 'see #track("https://www.Evil.example/a")'}
    answer = await client.post("/api/v1/rewrite", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_TRACK_URL")
    assert "blocked" in answer.json()["details"][0]["reason"]


async def test_conversions_after_expiry_and_after_a_kill_still_count(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    path = await link(client, message_id="m-1", expires_in=60)
    clock.forward(minutes=2)
    await service.database.write(block_host, 1, "x.example", clock())
    await service.directory.refresh()
    assert service.first_credentials is not None
    headers = {"X-Api-Token": service.first_credentials.tracker_token}
    answer = await client.get("/api/v1/track", params={"message_id": "m-1"}, headers=headers)
    assert answer.status_code == 200
    assert (await client.get(path, headers=PHONE)).status_code == 410
    assert await topics(service) == [Topic.CONVERSION]


async def test_any_number_of_machines_before_the_person_leave_the_click_intact(client: httpx.AsyncClient, service: Service) -> None:
    path = await link(client)
    for agent in (
        "curl/8.9.1",
        "WhatsApp/2.24",
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "",
    ) * 5:
        assert (await client.get(path, headers={"User-Agent": agent})).status_code == 302
    assert await topics(service) == []
    await client.get(path, headers=PHONE)
    assert await topics(service) == [Topic.STATE | Topic.CLICK]


async def test_every_hit_is_counted_by_verdict_and_rule_in_metrics(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    """Each rule speaks once, over the wire."""
    path = await link(client)
    await client.get(path, headers=PHONE)
    await client.head(path, headers=PHONE)
    await client.get(path, headers=PHONE | {"Purpose": "prefetch"})
    for agent in ("", "WhatsApp/2.24", "curl/8.9.1", "Mozilla/5.0 (compatible; Unheard-Of/1.0)", "x"):
        await client.get(path, headers={"User-Agent": agent})

    async def choose(**settings: Any) -> None:
        off = {"min_seconds_after_sent": None, "min_seconds_after_delivered": None, "max_recipients_per_address_minute": None}
        await service.database.write(update_application, 1, off | settings, clock())
        await service.directory.refresh()

    for state, setting in (("SENT", "min_seconds_after_sent"), ("DELIVERED", "min_seconds_after_delivered")):
        await choose(**{setting: 5})
        path = await link(client, message_id=state)
        report = {"message_id": state, "state": state, "timestamp": clock().isoformat()}
        assert (await client.post("/api/v1/sms/status", json=report)).status_code == 200
        await client.get(path, headers=PHONE)
    await choose(max_recipients_per_address_minute=1)
    for _ in range(2):
        await client.get(await link(client), headers=PHONE)
    await choose(all_links_within_second=True)
    body = {"to": "+14085550100", "body": '#track("https://x.example/1") #track("https://x.example/2")'}
    for one in (await client.post("/api/v1/rewrite", json=body)).json()["messages"][0]["links"]:
        await client.get(f"/{one['code']}", headers=PHONE)

    counted = {
        line.rpartition(" ")[0]: line.rpartition(" ")[2]
        for line in (await client.get("/metrics")).text.splitlines()
        if line.startswith("shortener_hits_total{")
    }
    expected = {("human", "browser"): 3} | {
        (verdict, rule): 1
        for verdict, rules in (
            ("ignored", ("method", "prefetch")),
            ("suspected", ("empty_agent", "link_preview", "crawler", "program", "no_browser", *CIRCUMSTANCES)),
        )
        for rule in rules
    }
    assert counted == {
        f'shortener_hits_total{{rule="{rule}",verdict="{verdict}"}}': f"{count}.0" for (verdict, rule), count in expected.items()
    }
