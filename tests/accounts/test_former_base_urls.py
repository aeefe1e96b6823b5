"""Tests of a change of BASE_URL: links that were sent before the change still work."""

from __future__ import annotations

from typing import Any

import httpx

from shortener.accounts.administration import add_domain, update_domain
from shortener.container import Service
from shortener.server.application import HttpApplication
from shortener.storage.installation import MAX_FORMER_BASE_URLS, find_former_base_urls
from tests.conftest import MakeService, client_of


async def _rewrite(service: Service, **message: Any) -> str:
    """Rewrite a message and return the short URL in it."""
    key = service.first_credentials
    assert key is not None
    host = httpx.URL(service.settings.base_url).netloc.decode()
    body = {"to": "+14085550100", "body": '#track("https://x.example/a")', **message}
    async with client_of(service, {"X-API-Key": key.api_key, "Host": host}) as client:
        answer = await client.post("/api/v1/rewrite", json=body)
    url: str = answer.json()["messages"][0]["links"][0]["short_url"]
    return url


async def _open(service: Service, url: str) -> int:
    """Request a short URL and return the status of the response. If it is a redirect, also check that RedirectProtocol accepts
    the URL."""
    address = httpx.URL(url)
    async with client_of(service, {"Host": address.netloc.decode()}) as client:
        status = (await client.get(address.path)).status_code
    prefix, _, code = address.path.rpartition("/")
    assert status == 404 or HttpApplication(service).match_code(address.netloc, prefix, code)[0], url
    return status


async def _restart(make_service: MakeService, service: Service, base_url: str) -> Service:
    await service.close(grace=1)
    changed = await make_service(base_url=base_url)
    changed.first_credentials = service.first_credentials
    return changed


async def test_links_that_were_sent_with_a_former_base_url_still_work(make_service: MakeService) -> None:
    service = await make_service(base_url="https://go.old.example")
    old = await _rewrite(service)
    service = await _restart(make_service, service, "https://go.new.example/s")
    new = await _rewrite(service)
    assert (old.rpartition("/")[0], new.rpartition("/")[0]) == ("https://go.old.example", "https://go.new.example/s")
    for url in (old, new):
        assert await _open(service, url) == 302
        assert await _open(service, url.replace("https://", "https://other.")) == 404
    service = await _restart(make_service, service, "https://go.new.example")
    for url in (old, new, await _rewrite(service)):
        assert await _open(service, url) == 302
    assert await service.database.read(find_former_base_urls) == ["https://go.old.example", "https://go.new.example/s"]


async def test_a_former_host_of_base_url_serves_only_codes_and_links_may_lead_to_it(make_service: MakeService) -> None:
    service = await _restart(make_service, await make_service(base_url="https://go.old.example"), "https://go.new.example")
    async with client_of(service, {"Host": "go.old.example"}) as client:
        for path in ("/", "/docs", "/portal/signin", "/healthz", "/metrics"):
            assert (await client.get(path)).status_code == 404, path
        assert (await client.get("/api/v1/application")).json()["error_code"] == "UNKNOWN_HOST"
        assert (await client.get("/internal/domain-check", params={"domain": "go.old.example"})).status_code == 200
    to_shop = await _rewrite(service, body='#track("https://go.old.example/shop")')
    assert await _open(service, to_shop) == 302, "the host may have another use now"


async def test_a_former_host_of_base_url_may_become_a_domain_on_which_the_earlier_links_still_work(
    make_service: MakeService,
) -> None:
    service = await make_service(base_url="https://go.old.example/s")
    old = await _rewrite(service)
    service = await _restart(make_service, service, "https://manage.example")
    elsewhere = await _rewrite(service)
    (application,) = service.directory.applications()
    domain = await service.database.write(add_domain, application.id, "https://go.old.example", service.clock())
    await service.database.write(add_domain, application.id, "https://third.example", service.clock())
    await service.directory.refresh()
    new = await _rewrite(service)
    assert new.startswith("https://go.old.example/")
    for url in (old, elsewhere, new):
        assert await _open(service, url) == 302
    assert await _open(service, new.replace("go.old", "third")) == 404
    assert await _open(service, old.replace("go.old.example/s", "third.example")) == 404
    await service.database.write(update_domain, "go.old.example", {"path": "/t"}, service.clock())
    await service.directory.refresh()
    assert service.directory.domain_by_id(domain) is not None
    for url in (old, new):
        assert await _open(service, url) == 302


async def test_the_list_of_former_base_urls_is_limited_and_contains_each_url_once(make_service: MakeService) -> None:
    service = await make_service(base_url="https://go0.example")
    for number in (1, 0, 1, *range(2, MAX_FORMER_BASE_URLS + 3)):
        service = await _restart(make_service, service, f"https://go{number}.example")
    found = await service.database.read(find_former_base_urls)
    assert found == [f"https://go{number}.example" for number in range(2, MAX_FORMER_BASE_URLS + 2)]
