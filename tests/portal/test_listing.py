"""Tests that every figure of the portal equals the number of rows of the list that it links to."""

from __future__ import annotations

import csv
import html
import importlib
import io
import pkgutil
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from shortener import portal
from shortener.accounts.credentials import Credentials
from shortener.cli.demo_traffic import DemoClock
from shortener.container import Service
from shortener.portal import listing
from shortener.portal.listing import ListedRow, ListSource, merge
from shortener.portal.operators import Role
from tests.conftest import NOON, client_of
from tests.portal.conftest import SAME_ORIGIN, DemoInstallation, SignIn, accept, invite, log

FIGURE = re.compile(r'data-figure="(\w+)" data-value="(\d+)" href="([^"]+)"')


@dataclass
class DemoPortal:
    """An installation with demo traffic and the browser of an operator."""

    service: Service
    browser: httpx.AsyncClient
    credentials: Credentials

    async def figures(self, page: str) -> list[tuple[str, int, str]]:
        """Return (name, value, URL) of each figure of a page."""
        response = await self.browser.get(page)
        assert response.status_code == 200, response.text
        return [(name, int(value), html.unescape(href)) for name, value, href in FIGURE.findall(response.text)]

    async def rows(self, href: str) -> list[dict[str, str]]:
        """Return the rows of the CSV of a list."""
        path, _, query = href.partition("?")
        response = await self.browser.get(f"{path}.csv?{query}")
        assert response.status_code == 200, response.text
        return list(csv.DictReader(io.StringIO(response.text)))


@pytest.fixture
async def demo(tmp_path: Path, demo_installation: DemoInstallation, fast_passwords: None) -> AsyncIterator[DemoPortal]:
    service = await demo_installation.open_copy(tmp_path)
    try:
        async with client_of(service, SAME_ORIGIN) as browser:
            await accept(browser, await invite(service, "Ada", Role.ADMIN))
            yield DemoPortal(service, browser, demo_installation.credentials)
    finally:
        await service.close(grace=1)


PAGES = ("", "campaigns", "campaigns/order-updates", "campaigns?compare=order-updates")
SUM = re.compile(r'data-sum="(\w*)" data-value="([\d.]+)" href="([^"]+)"')


async def test_every_figure_equals_the_number_of_rows_in_its_list_by_event_time_and_by_send_time(demo: DemoPortal) -> None:
    seen: dict[str, int] = {}
    for page in PAGES:
        for query in ("basis=event", "basis=sent", "basis=event&period=7d", "basis=sent&period=7d&tz=Asia/Kolkata"):
            address = f"/portal/1/{page}{'&' if '?' in page else '?'}{query}"
            for name, value, href in await demo.figures(address):
                if href not in seen:
                    seen[href] = len(await demo.rows(href))
                assert seen[href] == value, (address, name, href)
    assert len(seen) > 100


async def test_every_figure_on_the_page_of_all_applications_equals_the_number_of_rows_in_its_list(demo: DemoPortal) -> None:
    for basis in ("event", "sent"):
        figures = await demo.figures(f"/portal/all/?period=7d&basis={basis}")
        assert len(figures) > 20
        for name, value, href in set(figures):
            assert len(await demo.rows(href)) == value, (name, href)


async def test_the_conversion_values_in_a_list_add_up_to_the_total_that_links_to_the_list(demo: DemoPortal) -> None:
    for number, fields in enumerate(
        (
            {"value": "10.50", "currency": "EUR", "status": "approved"},
            {"value": "7", "currency": "EUR"},
            {"value": "3", "status": "approved"},
            {"value": "100", "currency": "EUR", "status": "rejected"},
            {"value": "200", "currency": "EUR", "status": "pending"},
        )
    ):
        # The message demo-00050 belongs to the campaign black-friday.
        report = {"message_id": "demo-00050", "action": "sale", "transaction_id": f"t{number}", **fields}
        response = await demo.browser.post("/api/v1/track", json=report, headers={"X-Api-Token": demo.credentials.tracker_token})
        assert response.status_code == 200, response.text
    clock = demo.service.clock
    assert isinstance(clock, DemoClock)
    clock.now += timedelta(minutes=20)
    for page in ("1/?period=28d", "all/?period=28d&basis=sent", "1/campaigns?period=28d", "1/campaigns/black-friday?period=28d"):
        text = (await demo.browser.get(f"/portal/{page}")).text
        sums = SUM.findall(text)
        assert sums, page
        for currency, amount, href in sums:
            rows = await demo.rows(html.unescape(href))
            assert {row["currency"] or "none" for row in rows} == {currency}
            assert sum(Decimal(row["value"]) for row in rows) == Decimal(amount)


async def test_the_lists_of_all_applications_contain_the_rows_of_each_application(demo: DemoPortal) -> None:
    one = await demo.rows("/portal/1/messages?period=28d")
    everything = await demo.rows("/portal/all/messages?period=28d")
    assert len(one) == len(everything) > 0
    assert {row["application"] for row in everything} == {"1"}


async def test_an_export_of_a_portal_list_is_recorded_in_the_audit_log_and_has_masked_phone_numbers(demo: DemoPortal) -> None:
    rows = await demo.rows("/portal/1/messages?period=28d")
    assert all("…" in row["to"] for row in rows)
    complete = await demo.rows("/portal/1/messages?period=28d&numbers=1")
    assert all("…" not in row["to"] for row in complete)
    exported = [row for row in await log(demo.service) if row.action == "list_exported"]
    assert [row.after.get("numbers") for row in exported] == [None, "1"]


@pytest.mark.parametrize("page", ["1/messages", "1/links", "1/campaigns", "1/deliveries", "1/trackers", "admin/audit"])
async def test_the_audit_log_row_of_an_export_has_a_masked_number_and_only_short_values_of_known_filters(
    service: Service, sign_in: SignIn, page: str
) -> None:
    browser = await sign_in()
    query = {"to": "+14085550123", "label": "x" * 9000, "unknown": "+14085550123", "period": "28d", "url": "a\x01b"}
    response = await browser.get(f"/portal/{page}.csv", params=query)
    assert response.status_code == 200, response.text
    [row] = [row for row in await log(service) if row.action in ("list_exported", "exported")]
    assert row.after == {"period": "28d", "to": "+14…23", "url": "a\ufffdb", "label": "x" * 200}


async def test_an_export_with_the_character_nul_in_its_query_is_recorded(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in()
    response = await browser.get("/portal/1/campaigns.csv?label=a%00b")
    assert response.status_code == 200, response.text
    [row] = [row for row in await log(service) if row.action == "list_exported"]
    assert row.after == {"label": "a\ufffdb"}


def test_the_audit_log_can_store_every_filter_of_every_portal_list() -> None:
    filters = {
        one.name
        for module in pkgutil.iter_modules(portal.__path__, "shortener.portal.")
        for value in vars(importlib.import_module(module.name)).values()
        for one in (value if isinstance(value, tuple) else (value,))
        if isinstance(one, listing.FilterField)
    }
    assert len(filters) > 10
    assert filters - set(listing.EXPORTED_NAMES) == set()


async def test_the_local_time_in_a_csv_export_is_in_the_time_zone_of_the_portal_page(demo: DemoPortal) -> None:
    rows = await demo.rows("/portal/1/clicks?period=28d&tz=Asia/Kolkata")
    assert rows
    assert all(row["local_time"].endswith("+05:30") for row in rows)


async def test_the_lists_of_trackers_domains_keys_applications_and_operators_have_a_csv(demo: DemoPortal) -> None:
    await demo.browser.post("/portal/1/domains", data={"domain": "https://go.brand.example"})
    tracker = {"name": "=1+1", "url": "https://tracker.example/", "events": ["click"]}
    headers = {"X-API-Key": demo.credentials.api_key}
    assert (await demo.browser.post("/api/v1/trackers", json=tracker, headers=headers)).status_code == 201
    paths = {
        "/portal/1/trackers": "name",
        "/portal/1/domains": "host",
        "/portal/1/keys": "kind",
        "/portal/admin/applications": "name",
        "/portal/admin/operators": "name",
    }
    found = {}
    for path, column in paths.items():
        page = (await demo.browser.get(path)).text
        assert f'<a class="csv" href="{path}.csv' in page, path
        found[path] = [row[column] for row in await demo.rows(path)]
    assert found["/portal/1/trackers"] == ["'=1+1"]
    assert found["/portal/1/domains"] == ["go.brand.example"]
    assert found["/portal/1/keys"] == ["api_key", "tracker_token"]
    assert found["/portal/admin/applications"] == [one.name for one in demo.service.directory.applications()]
    assert found["/portal/admin/operators"] == ["Ada"]
    assert demo.credentials.api_key not in (await demo.browser.get("/portal/1/keys.csv")).text
    exported = [row.object for row in await log(demo.service) if row.action == "list_exported"]
    assert exported == ["trackers", "domains", "keys", "applications", "operators", "keys"]


async def test_the_csv_of_a_list_requires_the_role_of_its_page(sign_in: SignIn) -> None:
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    assert (await viewer.get("/portal/1/domains.csv")).status_code == 200
    for path, status in (("1/trackers", 403), ("1/keys", 403), ("admin/applications", 404), ("admin/operators", 404)):
        assert (await viewer.get(f"/portal/{path}.csv")).status_code == status, path


@dataclass(frozen=True)
class _Row:
    id: int


@dataclass(frozen=True)
class _Page:
    rows: list[_Row]
    next: int | None


def _source(ids: dict[int, list[int]], scanned: int) -> ListSource:
    """Return the source of a list. Each page examines `scanned` rows of an application and contains those with an even id."""

    def read(connection: object, application: int, limit: int, below: int | None) -> _Page:
        candidates = [number for number in sorted(ids[application], reverse=True) if below is None or number < below]
        found = [number for number in candidates[:scanned] if number % 2 == 0]
        if len(found) > limit:
            return _Page([_Row(number) for number in found[:limit]], found[limit - 1])
        floor = candidates[scanned - 1] if len(candidates) > scanned else None
        return _Page([_Row(number) for number in found], floor)

    return ListSource("rows", read, (), lambda listed: {}, lambda row: NOON)


@pytest.mark.parametrize("limit", [1, 3, 50])
@pytest.mark.parametrize("scanned", [2, 5, 100])
def test_the_merged_list_of_all_applications_contains_every_row_once_and_in_order(limit: int, scanned: int) -> None:
    ids = {1: list(range(0, 40, 1)), 2: list(range(100, 130)), 3: [50, 60, 62, 200, 500], 4: []}
    source = _source(ids, scanned)
    found: list[ListedRow] = []
    below = None
    while True:
        page = merge(None, source, list(ids), limit, below)  # type: ignore[arg-type] # the source needs no connection
        found += page.rows
        if page.next is None:
            break
        assert below is None or page.next < below
        below = page.next
    expected = sorted((number for numbers in ids.values() for number in numbers if number % 2 == 0), reverse=True)
    assert [listed.row.id for listed in found] == expected


async def test_a_comparison_without_enough_campaigns_says_how_many_to_choose(demo: DemoPortal) -> None:
    browser = demo.browser
    for query, is_noted in (("choose=1", True), ("choose=1&compare=order-updates", True), ("", False)):
        page = (await browser.get(f"/portal/1/campaigns?{query}")).text
        assert ("Choose two to 4 campaigns in the list" in page) == is_noted, query
    five = "&".join(f"compare=c{number}" for number in range(5))
    page = (await browser.get(f"/portal/1/campaigns?choose=1&{five}")).text
    assert "The first 4 of the chosen ones are shown." in page
    assert "Side by side" in page
