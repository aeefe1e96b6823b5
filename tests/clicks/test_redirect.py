"""Tests of GET /{code} through the whole application, on SQLite and PostgreSQL."""

import hashlib
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
from shortener.accounts.settings import PERMISSIONS
from shortener.clicks.verdicts.contextual_rules import RULES as CONTEXTUAL_RULES
from shortener.container import Service
from shortener.model import ALL_APPLICATIONS, Topic
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS, change_settings, create_link, fetch_rows
from tests.conftest import Clock, MakeService, client_of
from tests.one_service import on_one_service
from tests.servers import SOON_SECONDS


async def event_topics(service: Service) -> list[Topic]:
    return [Topic(row.topics) for row in await service.database.read(lambda c: c.execute(select(schema.events)).all())]


async def test_a_click_is_redirected_with_headers_against_caching_and_indexing(client: httpx.AsyncClient, service: Service) -> None:
    response = await client.get(await create_link(client), headers=PHONE_HEADERS)
    assert response.status_code == 302
    assert response.headers["location"] == "https://x.example/a?b=1&c=%20#f"
    assert response.headers["cache-control"] == "private, no-store"
    assert response.headers["referrer-policy"] == "no-referrer-when-downgrade"
    assert response.headers["x-robots-tag"] == "noindex"
    assert response.content == b""
    assert "set-cookie" not in response.headers
    (hit,) = await fetch_rows(service, schema.hits)
    assert hit.user_agent == PHONE_HEADERS["User-Agent"]


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("https://пример.рф/путь?q=é#я", "https://xn--e1afmkfd.xn--p1ai/%D0%BF%D1%83%D1%82%D1%8C?q=%C3%A9#%D1%8F"),
        ("HTTPS://X.Example/A{b}|c?d=[1]&e=+%2B", "https://x.example/A{b}|c?d=[1]&e=+%2B"),
    ],
)
async def test_the_location_header_is_the_destination_encoded_as_ascii(client: httpx.AsyncClient, url: str, location: str) -> None:
    assert (await client.get(await create_link(client, url), headers=PHONE_HEADERS)).headers["location"] == location


async def test_head_and_prefetch_requests_are_redirected_but_are_not_clicks(client: httpx.AsyncClient, service: Service) -> None:
    path = await create_link(client)
    for method, headers in (
        ("HEAD", {}),
        ("OPTIONS", {}),
        ("GET", {"Sec-Purpose": "prefetch"}),
        ("GET", {"Purpose": "prefetch"}),
        ("GET", {"X-Purpose": "preview"}),
        ("GET", {"X-Moz": "prefetch"}),
    ):
        response = await client.request(method, path, headers=PHONE_HEADERS | headers)
        assert (response.status_code, response.headers["location"]) == (302, "https://x.example/a?b=1&c=%20#f")
    assert await event_topics(service) == []
    assert {hit.verdict for hit in await fetch_rows(service, schema.hits)} == {2}
    await client.get(path, headers=PHONE_HEADERS)
    assert await event_topics(service) == [Topic.STATE | Topic.CLICK]


@on_one_service
@pytest.mark.parametrize(
    "tail", [".", ",", ")", "!", "?", ";", ":", '"', "'", "%22", "%E2%80%9D", ").", "...", "/", "/?x=1", "%E2%80%8B", "👍"]
)
async def test_characters_that_programs_add_behind_the_code_are_ignored(client: httpx.AsyncClient, tail: str) -> None:
    assert (await client.get(await create_link(client) + tail, headers=PHONE_HEADERS)).status_code == 302


@on_one_service
@pytest.mark.parametrize(
    "path", ["/nosuchcode", "/abcdefghij", "/ABCDEFGHIJ/", "/a%00b", "/a%0d%0ab", "/%F0%9F%98%80", "/favicon.png"]
)
async def test_a_path_without_a_code_gets_404_and_stores_nothing(client: httpx.AsyncClient, service: Service, path: str) -> None:
    response = await client.get(path, headers=PHONE_HEADERS)
    assert response.status_code == 404
    assert "location" not in response.headers
    assert await fetch_rows(service, schema.hits) == []


async def test_link_codes_are_case_sensitive(client: httpx.AsyncClient) -> None:
    assert (await client.get((await create_link(client)).swapcase(), headers=PHONE_HEADERS)).status_code == 404


async def test_an_expired_link_gets_410_with_a_page_for_people(client: httpx.AsyncClient, service: Service, clock: Clock) -> None:
    path = await create_link(client)
    clock.forward(days=90)
    response = await client.get(path, headers=PHONE_HEADERS)
    assert response.status_code == 410
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "private, no-store"
    assert "Please ask the sender for a new link" in response.text
    assert len(response.content) < 4096
    assert await event_topics(service) == [Topic.LATE_CLICK]


async def test_the_pages_for_recipients_have_the_name_of_the_first_application_only_after_it_was_renamed(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    expired, off, confirmed = [await create_link(client) for _ in range(3)]
    assert (await client.patch(f"/api/v1/links/{off.rpartition('/')[2]}", json={"enabled": False})).status_code == 200
    await change_settings(service, confirm_clicks="always")

    async def texts() -> list[str]:
        shown = [(await client.get(confirmed, headers=PHONE_HEADERS)).text]
        clock.forward(days=90)
        shown += [(await client.get(link, headers=PHONE_HEADERS)).text for link in (expired, off)]
        clock.forward(days=-90)
        return shown

    confirming, late, switched_off = await texts()
    assert "Press the button to open the page." in confirming
    assert "Please ask the sender for a new link." in late
    assert "please contact the sender." in switched_off
    await change_settings(service, name="ACME")
    name = "<b><bdi>ACME</bdi></b>"
    confirming, late, switched_off = await texts()
    assert f"{name} sent you this link" in confirming
    assert f"Please ask {name} for a new link." in late
    assert f"please contact {name}." in switched_off


async def test_the_fallback_url_of_a_link_has_priority_over_the_fallback_urls_of_its_domain_and_application(
    branded: Service, clock: Clock
) -> None:
    update = update_application
    async with brand_client(branded) as client:
        plain = await create_link(client, expires_in=1)
        own = await create_link(client, expires_in=1, fallback_url="https://x.example/link")
        clock.forward(seconds=2)

        async def location_of(path: str) -> str | None:
            await branded.directory.refresh()
            location: str | None = (await client.get(path, headers=PHONE_HEADERS)).headers.get("location")
            return location

        assert await location_of(plain) is None
        await branded.database.write(update, 2, {"fallback_url": "https://über.example/app"}, clock())
        assert await location_of(plain) == "https://xn--ber-goa.example/app"
        change = {"fallback_url": "https://x.example/domain"}
        await branded.database.write(update_domain, "go.brand.example", change, clock())
        assert await location_of(plain) == "https://x.example/domain"
        assert await location_of(own) == "https://x.example/link"


@pytest.mark.parametrize("owner", ["application", "domain"])
async def test_the_placeholders_in_the_fallback_url_of_an_application_or_a_domain_are_filled_in(
    branded: Service, clock: Clock, owner: str
) -> None:
    url = "https://x.example/?m={message_id}&c={campaign}&p={phone_sha256}&k={code}&u={phone}"
    async with brand_client(branded) as client:
        path = await create_link(client, expires_in=1)
        row = await branded.database.read(
            lambda connection: connection.execute(
                select(schema.messages.c.message_id, schema.messages.c.to_address, schema.cohorts.c.campaign)
                .join_from(schema.messages, schema.cohorts, schema.cohorts.c.id == schema.messages.c.cohort_id)
                .order_by(schema.messages.c.id.desc())
                .limit(1)
            ).one()
        )
        if owner == "domain":
            await branded.database.write(update_domain, "go.brand.example", {"fallback_url": url}, clock())
        else:
            await branded.database.write(update_application, 2, {"fallback_url": url}, clock())
        await branded.directory.refresh()
        clock.forward(seconds=2)
        location = (await client.get(path, headers=PHONE_HEADERS)).headers["location"]
        await branded.database.write(update_application, 2, {"confirm_clicks": "suspicious"}, clock())
        await branded.directory.refresh()
        assert (await client.get(path, headers={"User-Agent": "curl/8"})).headers["location"] == location
    phone = hashlib.sha256(row.to_address.encode()).hexdigest()
    code = path.rpartition("/")[2]
    assert location == f"https://x.example/?m={row.message_id}&c={row.campaign}&p={phone}&k={code}&u={{phone}}"


@pytest.fixture
async def branded(make_service: MakeService, clock: Clock) -> Service:
    """A service with a second application that has its own domain."""
    service = await make_service(base_url="https://s.example")
    await service.database.write(create_application, "brand", clock(), domain="https://go.brand.example")
    await service.directory.refresh()
    return service


async def test_a_code_is_valid_on_its_own_domain_and_on_the_default_host(branded: Service, clock: Clock) -> None:
    key = await branded.database.write(create_key, 2, "x", ["sms.send"], clock())
    assert branded.first_credentials is not None
    default_key = branded.first_credentials.api_key
    await branded.directory.refresh()
    async with client_of(branded) as client:
        response = await client.post(
            "/api/v1/rewrite", json={"to": "+14085550100", "body": '#track("https://x.example/")'}, headers={"X-API-Key": key}
        )
        short_url = response.json()["messages"][0]["links"][0]["short_url"]
        assert short_url.startswith("https://go.brand.example/")
        path = "/" + short_url.rsplit("/", 1)[1]
        for host, status in (("go.brand.example", 302), ("GO.BRAND.EXAMPLE.", 302), ("s.example", 302), ("other.example", 404)):
            assert (await client.get(path, headers=PHONE_HEADERS | {"Host": host})).status_code == status, host
        client.headers["X-API-Key"] = default_key
        of_default = await create_link(client)
        assert (await client.get(of_default, headers=PHONE_HEADERS | {"Host": "go.brand.example"})).status_code == 404
        assert (await client.get(of_default, headers=PHONE_HEADERS | {"Host": "s.example"})).status_code == 302


@on_one_service
@pytest.mark.parametrize("path", ["/api/v1/rewrite", "/openapi.json", "/docs", "/portal", "/healthz", "/"])
async def test_the_domain_of_an_application_serves_short_links_and_not_the_api(branded: Service, path: str) -> None:
    async with client_of(branded) as client:
        for method in ("GET", "POST"):
            response = await client.request(method, path, headers={"Host": "go.brand.example"})
            assert response.status_code == 404
        robots = await client.get("/robots.txt", headers={"Host": "go.brand.example"})
    assert (robots.status_code, robots.text) == (200, "User-agent: *\nDisallow: /\n")


@on_one_service
@pytest.mark.parametrize("path", ["/api/v1/rewrite", "/openapi.json", "/abcdefghij", "/"])
async def test_a_request_with_an_unknown_host_header_gets_404_without_the_host_in_the_body(branded: Service, path: str) -> None:
    async with client_of(branded) as client:
        response = await client.get(path, headers={"Host": "evil.example"})
    assert response.status_code == 404
    assert "evil.example" not in response.text + str(response.headers)


async def test_an_api_or_portal_request_with_an_internal_host_name_gets_404_with_the_cause_and_the_right_host(
    branded: Service,
) -> None:
    async with client_of(branded) as client:
        for host in ("serve1:8000", "go.brand.example"):
            response = await client.post("/api/v1/rewrite", json={}, headers={"Host": host})
            body = response.json()
            assert (response.status_code, body["error_code"]) == (404, "UNKNOWN_HOST")
            assert "Host header" in body["description"]
            assert "'Host: " in body["description"]
            assert "BASE_URL" in body["description"]
            for path in ("/portal", "/portal/signin"):
                refused = await client.get(path, headers={"Host": host})
                assert (refused.status_code, refused.json()["error_code"]) == (404, "UNKNOWN_HOST")
                assert "The portal is served on 's.example'" in refused.json()["description"]
            assert "Link not found" in (await client.get("/portals", headers={"Host": host})).text


async def test_the_click_id_is_appended_to_the_destination_if_the_application_has_the_setting_click_id_param(
    service: Service, clock: Clock
) -> None:
    key = service.first_credentials.api_key if service.first_credentials else ""
    async with client_of(service, {"X-API-Key": key}) as client:
        link = await create_link(client)  # The setting also applies to links that already exist.
        await service.database.write(update_application, 1, {"click_id_param": "cid"}, clock())
        await service.directory.refresh()
        location = (await client.get(link, headers=PHONE_HEADERS)).headers["location"]
    (hit,) = await fetch_rows(service, schema.hits)
    assert location == f"https://x.example/a?b=1&c=%20&cid={service.click_ids.encode(hit.id)}#f"


async def test_client_addresses_are_shortened_before_they_are_stored(make_service: MakeService) -> None:
    service = await make_service(trusted_proxies="127.0.0.0/8")
    key = service.first_credentials.api_key if service.first_credentials else ""
    async with client_of(service, {"X-API-Key": key}) as client:
        path = await create_link(client)
        await client.get(path, headers=PHONE_HEADERS | {"X-Forwarded-For": "198.51.100.77"})
        await client.get(path, headers=PHONE_HEADERS | {"X-Forwarded-For": "2001:db8:1:2:3::4"})
    assert [hit.address for hit in await fetch_rows(service, schema.hits)] == ["198.51.100.0", "2001:db8:1::"]


@asynccontextmanager
async def brand_client(branded: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client with an API key of the application that has its own domain."""
    key = await branded.database.write(create_key, 2, "x", PERMISSIONS, branded.clock())
    await branded.directory.refresh()
    async with client_of(branded, {"X-API-Key": key}) as client:
        yield client


Switch = Callable[[Connection, datetime, bool], None]


def switch_application(connection: Connection, now: datetime, off: bool) -> None:
    update_application(connection, 2, {"disabled": off}, now)


def switch_domain(connection: Connection, now: datetime, off: bool) -> None:
    update_domain(connection, "go.brand.example", {"disabled": off}, now)


def switch_host(connection: Connection, now: datetime, off: bool) -> None:
    if off:
        block_host(connection, 2, "x.example", now)
    else:
        unblock_host(connection, 2, "x.example")


@pytest.mark.parametrize("switch", [switch_application, switch_domain, switch_host])
async def test_a_disabled_link_gets_410_with_a_page_and_can_be_enabled_again(
    branded: Service, clock: Clock, switch: Switch
) -> None:
    async with brand_client(branded) as client:
        path = await create_link(client)
        for host in ("go.brand.example", "s.example"):
            for off in (True, False):
                await branded.database.write(switch, clock(), off)
                await branded.directory.refresh()
                response = await client.get(path, headers=PHONE_HEADERS | {"Host": host})
                assert response.status_code == (410 if off else 302)
                assert ("switched off" in response.text and "brand" in response.text) is off
                assert len(response.content) < 4096
    assert await event_topics(branded) == [Topic.STATE | Topic.CLICK]
    assert len(await fetch_rows(branded, schema.hits)) == 4


@pytest.mark.parametrize("switch", [switch_application, switch_domain, switch_host])
async def test_a_disabled_link_is_disabled_on_other_nodes_within_a_second(
    make_service: MakeService, clock: Clock, switch: Switch
) -> None:
    one = await make_service(base_url="https://s.example", start=True)
    two = one if one.database.dialect == "sqlite" else await make_service(base_url="https://s.example", start=True)
    await one.database.write(create_application, "brand", clock(), domain="https://go.brand.example")
    async with brand_client(one) as client, client_of(two) as elsewhere:
        path = await create_link(client)
        await two.directory.refresh()
        assert (await elsewhere.get(path, headers=PHONE_HEADERS)).status_code == 302
        await one.database.write(switch, clock(), True)
        started_at = time.monotonic()
        while (status := (await elsewhere.get(path, headers=PHONE_HEADERS)).status_code) == 302:
            assert time.monotonic() - started_at < SOON_SECONDS
        assert status == 410


async def test_when_one_of_two_domains_is_disabled_new_links_use_the_other_domain(branded: Service, clock: Clock) -> None:
    await branded.database.write(add_domain, 2, "https://two.brand.example", clock())
    async with brand_client(branded) as client:

        async def create_link_and_host() -> tuple[str, str]:
            body = {"to": "+14085550100", "body": '#track("https://x.example/")'}
            response = await client.post("/api/v1/rewrite", json=body)
            host, code = response.json()["messages"][0]["links"][0]["short_url"].removeprefix("https://").split("/")
            return host, "/" + code

        async def status(path: str, host: str) -> int:
            return (await client.get(path, headers=PHONE_HEADERS | {"Host": host})).status_code

        first, on_first = await create_link_and_host()
        await branded.database.write(switch_domain, clock(), True)
        await branded.directory.refresh()
        second, on_second = await create_link_and_host()
        assert (first, second) == ("go.brand.example", "two.brand.example")
        assert [await status(on_first, host) for host in (first, second, "s.example")] == [410, 404, 410]
        assert [await status(on_second, host) for host in (first, second, "s.example")] == [404, 302, 302]


async def test_a_repeated_rewrite_request_returns_links_on_their_original_domain(branded: Service, clock: Clock) -> None:
    async with brand_client(branded) as client:
        body = {"to": "+14085550100", "message_id": "m-1", "body": 'see #track("https://x.example/")'}
        first = (await client.post("/api/v1/rewrite", json=body)).json()
        await branded.database.write(add_domain, 2, "https://another.and.longer.brand.example", clock())
        await branded.database.write(switch_domain, clock(), True)
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


async def test_messages_with_links_to_a_blocked_host_are_rejected(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    await service.database.write(block_host, ALL_APPLICATIONS, "*.evil.example", clock())
    await service.directory.refresh()
    body = {"to": "+14085550100", "body": 'see #track("https://www.Evil.example/a")'}
    response = await client.post("/api/v1/rewrite", json=body)
    assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_TRACK_URL")
    assert "blocked" in response.json()["details"][0]["reason"]


async def test_conversions_are_recorded_after_the_link_expired_or_was_disabled(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    path = await create_link(client, message_id="m-1", expires_in=60)
    clock.forward(minutes=2)
    await service.database.write(block_host, 1, "x.example", clock())
    await service.directory.refresh()
    assert service.first_credentials is not None
    headers = {"X-Api-Token": service.first_credentials.tracker_token}
    response = await client.get("/api/v1/track", params={"message_id": "m-1"}, headers=headers)
    assert response.status_code == 200
    assert (await client.get(path, headers=PHONE_HEADERS)).status_code == 410
    assert await event_topics(service) == [Topic.CONVERSION]


async def test_suspected_and_ignored_requests_do_not_use_up_the_first_click(client: httpx.AsyncClient, service: Service) -> None:
    path = await create_link(client)
    for agent in (
        "curl/8.9.1",
        "WhatsApp/2.24",
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "",
    ) * 5:
        assert (await client.get(path, headers={"User-Agent": agent})).status_code == 302
    assert await event_topics(service) == []
    await client.get(path, headers=PHONE_HEADERS)
    assert await event_topics(service) == [Topic.STATE | Topic.CLICK]


async def test_every_hit_is_counted_by_verdict_and_rule_in_metrics(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    """Each request of this test matches another classification rule."""
    path = await create_link(client)
    await client.get(path, headers=PHONE_HEADERS)
    await client.head(path, headers=PHONE_HEADERS)
    await client.get(path, headers=PHONE_HEADERS | {"Purpose": "prefetch"})
    old_desktop = "Mozilla/5.0 (X11; Ubuntu; Linux i686; rv:24.0) Gecko/20100101 Firefox/24.0"
    for agent in ("", "WhatsApp/2.24", "curl/8.9.1", "Mozilla/5.0 (compatible; Unheard-Of/1.0)", "x", old_desktop):
        await client.get(path, headers={"User-Agent": agent})

    async def enable_only(**settings: Any) -> None:
        off: dict[str, Any] = {
            "min_seconds_after_sent": None,
            "min_seconds_after_delivered": None,
            "max_recipients_per_address_minute": None,
            "suspect_before_sent": False,
        }
        await change_settings(service, **(off | settings))

    for state, setting in (("SENT", "min_seconds_after_sent"), ("DELIVERED", "min_seconds_after_delivered")):
        await enable_only(**{setting: 5})
        path = await create_link(client, message_id=state)
        report = {"message_id": state, "state": state, "timestamp": clock().isoformat()}
        assert (await client.post("/api/v1/sms/status", json=report)).status_code == 200
        await client.get(path, headers=PHONE_HEADERS)
    await enable_only(suspect_before_sent=True)
    await client.get(await create_link(client), headers=PHONE_HEADERS)
    await enable_only(max_recipients_per_address_minute=1)
    for _ in range(2):
        await client.get(await create_link(client), headers=PHONE_HEADERS)
    await enable_only(all_links_within_second=True)
    body = {"to": "+14085550100", "body": '#track("https://x.example/1") #track("https://x.example/2")'}
    for one in (await client.post("/api/v1/rewrite", json=body)).json()["messages"][0]["links"]:
        await client.get(f"/{one['code']}", headers=PHONE_HEADERS)

    counted = {
        line.rpartition(" ")[0]: line.rpartition(" ")[2]
        for line in (await client.get("/metrics")).text.splitlines()
        if line.startswith("shortener_hits_total{")
    }
    expected = {("human", "browser"): 3} | {
        (verdict, rule): 1
        for verdict, rules in (
            ("ignored", ("method", "prefetch")),
            ("suspected", ("empty_agent", "link_preview", "crawler", "program", "no_browser", "old_desktop", *CONTEXTUAL_RULES)),
        )
        for rule in rules
    }
    assert counted == {
        f'shortener_hits_total{{rule="{rule}",verdict="{verdict}"}}': f"{count}.0" for (verdict, rule), count in expected.items()
    }


async def test_a_client_that_requests_many_unknown_codes_gets_429_but_is_redirected_from_existing_links(
    make_service: MakeService,
) -> None:
    service = await make_service(unknown_code_limit=3, trusted_proxies="127.0.0.0/8")
    assert service.first_credentials is not None
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        path = await create_link(client)
        statuses = [(await client.get(f"/nosuchcode{number}", headers=PHONE_HEADERS)).status_code for number in range(5)]
        assert statuses == [404, 404, 404, 429, 429]
        limited = await client.get("/nosuchcode", headers=PHONE_HEADERS)
        assert (limited.headers["retry-after"], "wait" in limited.text) == ("20", True)
        assert (await client.get(path, headers=PHONE_HEADERS)).status_code == 302
        for address, status in (("198.51.100.7", 404), ("2001:db8:1:2::3", 404)):
            forwarded = {"X-Forwarded-For": address}
            assert (await client.get("/nosuchcode", headers=PHONE_HEADERS | forwarded)).status_code == status
        for number in range(3):  # these addresses are in one IPv6 /64 network, so they count as one client
            forwarded = {"X-Forwarded-For": f"2001:db8:1:2::{number + 10}"}
            last = await client.get("/nosuchcode", headers=PHONE_HEADERS | forwarded)
        assert last.status_code == 429
