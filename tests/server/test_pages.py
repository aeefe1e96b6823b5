"""Tests of the pages that exist on every host, and of the paths that exist on an application's own domain."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shortener.accounts.administration import update_domain
from shortener.container import Service
from shortener.server.pages import home_page
from tests.conftest import Clock, client_of
from tests.one_service import on_one_service

BRAND = {"Host": "go.brand.example"}


@pytest.fixture
async def visitor(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client without credentials."""
    async with client_of(service) as client:
        yield client


async def change(service: Service, clock: Clock, **changes: Any) -> None:
    await service.database.write(update_domain, "go.brand.example", changes, clock())
    await service.directory.refresh()


@on_one_service
@pytest.mark.parametrize("host", ["s.example", "go.brand.example", "127.0.0.1", "unknown.example"])
async def test_robots_txt_and_the_icon_exist_on_every_host(visitor: httpx.AsyncClient, host: str) -> None:
    robots = await visitor.get("/robots.txt", headers={"Host": host})
    assert (robots.status_code, robots.text) == (200, "User-agent: *\nDisallow: /\n")
    icon = await visitor.get("/favicon.ico", headers={"Host": host})
    assert (icon.status_code, icon.headers["content-type"], icon.content[:4]) == (200, "image/x-icon", b"\0\0\1\0")
    head = await visitor.head("/favicon.ico", headers={"Host": host})
    assert (head.headers["content-length"], head.content) == (str(len(icon.content)), b"")


@on_one_service
@pytest.mark.parametrize("path", ["/", "/nosuchcode", "/docs", "/portal", "/.well-known/assetlinks.json"])
async def test_an_unknown_host_returns_404_for_every_path_except_robots_txt_and_the_icon(
    visitor: httpx.AsyncClient, path: str
) -> None:
    assert (await visitor.get(path, headers={"Host": "unknown.example"})).status_code == 404


async def test_the_home_page_of_the_installation_links_to_the_portal_and_the_documentation(visitor: httpx.AsyncClient) -> None:
    page = await visitor.get("/", headers={"Host": "s.example"})
    assert page.status_code == 200
    assert 'href="/docs"' in page.text
    assert 'href="/portal"' in page.text


@pytest.mark.parametrize(
    ("portal_url", "expected"), [(None, False), ("/portal", True), ("https://portal.example/portal", True), ('/"><x>', False)]
)
def test_the_home_page_links_to_the_portal_only_if_the_portal_is_served(portal_url: str | None, expected: bool) -> None:
    page = home_page(portal_url).body.decode()
    assert (f'href="{portal_url}"' in page) is expected
    assert "<x>" not in page


async def test_the_root_path_of_a_domain_redirects_to_the_home_url_of_the_domain(
    visitor: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    assert (await visitor.get("/", headers=BRAND)).status_code == 404
    await change(service, clock, home_url="https://brand.example/über")
    home = await visitor.get("/", headers=BRAND)
    assert (home.status_code, home.headers["location"]) == (302, "https://brand.example/%C3%BCber")
    await change(service, clock, disabled=True)
    assert (await visitor.get("/", headers=BRAND)).status_code == 404


async def test_the_domain_of_an_application_serves_the_app_association_files_of_this_domain(
    visitor: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    paths = ("/.well-known/assetlinks.json", "/.well-known/apple-app-site-association")
    for path in paths:
        assert (await visitor.get(path, headers=BRAND)).status_code == 404
    android: Any = [{"relation": ["x"]}]
    apple: Any = {"applinks": {"details": []}}
    await change(service, clock, assetlinks=json.dumps(android), apple_app_site_association=json.dumps(apple))
    for path, content in zip(paths, (android, apple), strict=True):
        found = await visitor.get(path, headers=BRAND)
        assert (found.status_code, found.headers["content-type"], found.json()) == (200, "application/json", content)
        assert (await visitor.get(path, headers={"Host": "s.example"})).status_code == 404


@on_one_service
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_health_checks_and_metrics_respond_only_on_the_base_host_and_local_hosts(
    visitor: httpx.AsyncClient, path: str
) -> None:
    for host, is_there in (
        ("s.example", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("localhost", True),
        ("go.brand.example", False),
        ("serve1:8000", False),
    ):
        assert ((await visitor.get(path, headers={"Host": host})).status_code != 404) is is_there, host


async def test_the_domain_check_responds_on_any_host_except_the_domain_of_an_application(visitor: httpx.AsyncClient) -> None:
    path = "/internal/domain-check?domain=go.brand.example"
    for host, status in (("serve1:8000", 200), ("s.example", 200), ("go.brand.example", 404)):
        assert (await visitor.get(path, headers={"Host": host})).status_code == status


async def test_a_hit_with_an_unknown_code_redirects_to_the_fallback_url_of_the_domain_and_is_counted(
    visitor: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    assert (await visitor.get("/nosuchcode", headers=BRAND)).status_code == 404
    await change(service, clock, fallback_url="https://brand.example/lost")
    found = await visitor.get("/nosuchcode", headers=BRAND)
    assert (found.status_code, found.headers["location"]) == (302, "https://brand.example/lost")
    assert (await visitor.get("/nosuchcode", headers={"Host": "s.example"})).status_code == 404
    totals = service.recorder.totals
    assert (totals.unknown, totals.unknown_redirected) == (3, 1)
    assert not sum(totals.verdicts.values()), "an unknown code is no hit on a link"
