"""Tests that every figure of the portal equals the number of rows in the list to which the figure links."""

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
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest
from sqlalchemy import Connection, insert

from shortener import portal
from shortener.accounts.credentials import Credentials
from shortener.cli.demo_traffic import DemoClock
from shortener.container import Service
from shortener.errors import ReadTooLong, StoreUnavailable
from shortener.portal import listing
from shortener.portal.campaigns import steps_of
from shortener.portal.listing import ListedRow, ListSource, merge
from shortener.portal.operators import Role
from shortener.portal.pages import all_pages
from shortener.portal.verdict_texts import RULE_NAMES
from shortener.reporting.figures import Figures
from shortener.reporting.hits import HitFilter, count_rules
from shortener.reporting.statistics import find_newest_campaigns
from shortener.storage.database import Database
from shortener.storage.schema import cohorts
from tests.conftest import NOON, Clock, client_of
from tests.one_service import on_one_service
from tests.portal.conftest import SAME_ORIGIN, DemoInstallation, NewBrowser, SignIn, accept, click, invite, log, send

FIGURE = re.compile(r'data-figure="(\w+)" data-value="(\d+)" href="([^"]+)"')


@dataclass
class DemoPortal:
    """An installation with or without demo traffic, and the browser of an operator."""

    service: Service
    browser: httpx.AsyncClient
    credentials: Credentials

    async def figures(self, page: str) -> list[tuple[str, int, str]]:
        """Return (name, value, URL) of each figure of a page."""
        response = await self.browser.get(page)
        assert response.status_code == 200, response.text
        return [(name, int(value), html.unescape(href)) for name, value, href in FIGURE.findall(response.text)]

    async def check(self, *pages: str) -> int:
        """Check that each figure of these pages equals the number of rows in its list. Return how many different lists there
        are."""
        seen: dict[str, int] = {}
        for page in pages:
            for name, value, href in await self.figures(page):
                if href not in seen:
                    seen[href] = len(await self.rows(href))
                assert seen[href] == value, (page, name, href)
        return len(seen)

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


@pytest.fixture
async def empty(service: Service, sign_in: SignIn, credentials: Credentials) -> DemoPortal:
    """An installation without traffic, and the browser of an admin."""
    return DemoPortal(service, await sign_in(), credentials)


PAGES = ("", "campaigns", "campaigns/order-updates", "campaigns?compare=order-updates")
SUM = re.compile(r'data-sum="(\w*)" data-value="([\d.]+)" href="([^"]+)"')


@pytest.mark.slow
async def test_every_figure_equals_the_number_of_rows_in_its_list_by_event_time_and_by_send_time(demo: DemoPortal) -> None:
    queries = ("basis=event", "basis=sent", "basis=event&period=7d", "basis=sent&period=7d&tz=Asia/Kolkata")
    pages = [f"/portal/1/{page}{'&' if '?' in page else '?'}{query}" for page in PAGES for query in queries]
    assert await demo.check(*pages) > 100


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


async def test_a_long_value_gets_the_width_of_two_figures(empty: DemoPortal, clock: Clock) -> None:
    await send(empty.service, empty.browser, message_id="m1", campaign="Spring")
    for value, currency in (("1234567890", "IDR"), ("12345.5", "EUR")):
        report = {"message_id": "m1", "transaction_id": currency, "value": value, "currency": currency}
        headers = {"X-Api-Token": empty.credentials.tracker_token}
        assert (await empty.browser.post("/api/v1/track", json=report, headers=headers)).status_code == 200
    clock.forward(minutes=20)
    for page in ("", "campaigns/Spring"):
        text = (await empty.browser.get(f"/portal/1/{page}")).text
        assert '<dd class="big long"><a class="figure" data-sum="IDR"' in text
        assert '<dd class="big"><a class="figure" data-sum="EUR"' in text


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


@on_one_service
@pytest.mark.parametrize("page", ["1/messages", "1/links", "1/campaigns", "1/deliveries", "1/trackers", "admin/audit"])
async def test_the_audit_log_row_of_an_export_has_a_masked_number_and_only_short_values_of_known_filters(
    service: Service, sign_in: SignIn, page: str
) -> None:
    browser = await sign_in()
    before = len(await log(service))
    query = {"to": "+14085550123", "label": "x" * 9000, "unknown": "+14085550123", "period": "28d", "url": "a\x01b"}
    response = await browser.get(f"/portal/{page}.csv", params=query)
    assert response.status_code == 200, response.text
    [row] = [row for row in (await log(service))[before:] if row.action in ("list_exported", "exported")]
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


@pytest.mark.parametrize("path", ["/conversions", "/conversions/refused"])
async def test_a_column_of_conversions_means_the_same_in_the_csv_of_the_portal_and_of_the_api(demo: DemoPortal, path: str) -> None:
    period = "since=2026-01-01&until=2026-12-31"
    async with client_of(demo.service, {"X-API-Key": demo.credentials.api_key}) as client:
        refused = await client.post(
            "/api/v1/track", json={"message_id": "nosuch"}, headers={"X-Api-Token": demo.credentials.tracker_token}
        )
        assert refused.status_code == 404
        of_portal = await demo.rows(f"/portal/1{path}?{period}")
        response = await client.get(f"/api/v1{path}.csv?{period}")
        assert response.status_code == 200, response.text
    of_api = list(csv.DictReader(io.StringIO(response.text)))
    assert of_portal
    # the portal masks phone numbers in these columns
    columns = of_portal[0].keys() & of_api[0].keys() - {"description", "metadata", "parameters"}
    assert {"revision", "revisions", "warnings"} <= columns or {"details", "reason"} <= columns
    for name in sorted(columns):
        assert sorted(row[name] for row in of_portal) == sorted(row[name] for row in of_api), name


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


async def test_the_csv_links_of_pages_download_files_that_excel_reads_as_utf_8(demo: DemoPortal) -> None:
    await demo.browser.post("/portal/1/domains", data={"domain": "https://go.brand.example"})
    tracker = {"name": "Café", "url": "https://tracker.example/", "events": ["click"]}
    headers = {"X-API-Key": demo.credentials.api_key}
    await demo.browser.post("/api/v1/trackers", json=tracker, headers=headers)
    paths = [page.path.replace("{app}", "1") for page in all_pages() if page.csv and not page.needs_gateway]
    linked = set()
    for path in paths:
        page = (await demo.browser.get(path, params={"period": "365d"})).text
        for href in re.findall(r'href="([^"]+\.csv[^"]*)"', page):
            linked.add(path)
            response = await demo.browser.get(html.unescape(href))
            assert response.content.startswith("\ufeff".encode()), href
        assert not (await demo.browser.get(f"{path}.csv?period=365d")).content.startswith("\ufeff".encode()), path
    assert linked >= {"/portal/1/campaigns", "/portal/1/messages", "/portal/1/clicks", "/portal/1/links", "/portal/1/trackers"}


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
    """Return the source of a list. To create a page, it examines `scanned` rows of an application, and puts the rows with even
    ids into the page."""

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
        assert ("Choose 2 to 4 campaigns in the list" in page) == is_noted, query
    five = "&".join(f"compare=c{number}" for number in range(5))
    page = (await browser.get(f"/portal/1/campaigns?choose=1&{five}")).text
    assert "The first 4 of the chosen ones are shown." in page
    assert "Side by side" in page
    both = (await browser.get("/portal/1/campaigns?compare=order-updates&compare=win-back")).text
    assert "campaigns.csv?compare=order-updates&amp;compare=win-back" in both, "links to the same page keep all chosen campaigns"


#: Names that differ only in their spaces. One of them has nothing but spaces.
SPACED = ("Spring", "Spring ", "\N{NO-BREAK SPACE}Spring", "  ")


@pytest.mark.slow
async def test_figures_of_campaigns_whose_names_differ_only_in_spaces_lead_to_the_rows_of_one_campaign(
    empty: DemoPortal, new_browser: NewBrowser, clock: Clock
) -> None:
    phone = await new_browser()
    for number, name in enumerate(SPACED, start=1):
        for _ in range(number):
            message = await send(empty.service, empty.browser, campaign=name)
        await click(empty.service, phone, message["links"][0]["code"])
    await empty.service.recorder.flush()
    await empty.service.fanout.flush()  # the fan-out adds the times from sending to click to the statistics
    clock.forward(minutes=20)
    names = [quote(name) for name in SPACED]
    pages = ["", "campaigns", *(f"campaigns/{name}" for name in names), *(f"?campaign={name}" for name in names)]
    pages.append("campaigns?" + "&".join(f"compare={name}" for name in names))
    addresses = [f"/portal/1/{page}{'&' if '?' in page else '?'}period=today" for page in pages]
    assert await empty.check(*addresses) > 50
    for page in ("", "campaigns"):
        figures = await empty.figures(f"/portal/1/{page}")
        linked = [(parse_qs(urlsplit(href).query), value) for name, value, href in figures if name == "messages"]
        counted = {query["campaign"][0]: value for query, value in linked if "campaign" in query}
        assert counted == {name: number for number, name in enumerate(SPACED, start=1)}
    totals = [(await empty.figures(f"/portal/1/?campaign={name}"))[0][1] for name in names]
    assert totals == [1, 2, 3, 4]


async def test_a_filter_by_campaign_or_label_keeps_its_spaces_in_the_form_the_list_and_the_audit_log(
    empty: DemoPortal, clock: Clock
) -> None:
    for number, name in enumerate(SPACED[:3], start=1):
        for _ in range(number):
            await send(empty.service, empty.browser, campaign=name, body=f'#trackurl("https://shop.example/","{name}")')
    clock.forward(minutes=20)
    for field in ("campaign", "label"):
        for path in ("messages", "links"):
            href = f"/portal/1/{path}?{field}=Spring+"
            assert len(await empty.rows(href)) == 2
            page = (await empty.browser.get(href)).text
            assert f'name="{field}" value="Spring "' in page
            assert "\N{LEFT DOUBLE QUOTATION MARK}Spring \N{RIGHT DOUBLE QUOTATION MARK}" in page
        assert (await log(empty.service))[-1].after == {field: "Spring "}


async def test_spaces_around_a_pasted_code_or_message_id_are_ignored(
    empty: DemoPortal, new_browser: NewBrowser, clock: Clock
) -> None:
    message = await send(empty.service, empty.browser)
    await send(empty.service, empty.browser)
    code = message["links"][0]["code"]
    await click(empty.service, await new_browser(), code)
    await empty.service.recorder.flush()
    clock.forward(minutes=20)
    for query in (f"code=+{code}+", f"message={message['message_id']}+"):
        assert [row["code"] for row in await empty.rows(f"/portal/1/clicks?{query}")] == [code]


async def test_figures_of_recipients_of_unknown_country_lead_to_the_messages_to_these_recipients(
    empty: DemoPortal, clock: Clock
) -> None:
    await send(empty.service, empty.browser, campaign="Spring")
    await send(empty.service, empty.browser, campaign="Spring", to="+9991234567")
    clock.forward(minutes=20)
    await empty.check("/portal/1/?period=today", "/portal/1/campaigns/Spring?period=today")
    linked = [(href, value) for name, value, href in await empty.figures("/portal/1/") if "country=" in href]
    assert [value for href, value in linked if "country=unknown" in href] == [1, 0]


async def test_the_figures_of_the_page_of_messages_without_a_campaign_lead_to_the_rows_of_these_messages(
    empty: DemoPortal, new_browser: NewBrowser, clock: Clock
) -> None:
    phone = await new_browser()
    for name in ("", "", "Spring"):
        message = await send(empty.service, empty.browser, campaign=name)
        await click(empty.service, phone, message["links"][0]["code"])
    await empty.service.recorder.flush()
    await empty.service.fanout.flush()
    clock.forward(minutes=20)
    listed = (await empty.browser.get("/portal/1/campaigns?period=today")).text
    (href,) = re.findall(r'<a class="name" href="([^"]+)">without a campaign', listed)
    page = html.unescape(href)
    assert "<h1>Messages without a campaign</h1>" in (await empty.browser.get(page)).text
    assert await empty.check(page) > 15
    assert (await empty.figures(page))[0][1] == 2


@on_one_service
@pytest.mark.parametrize(("days", "bars"), [(100, 101), (130, 19), (900, 33), (3660, 131)])
@pytest.mark.parametrize("page", ["1/", "all/", "1/campaigns/order-updates"])
async def test_the_bars_of_a_period_of_any_length_add_up_to_the_clicks_and_lead_to_their_rows(
    demo: DemoPortal, page: str, days: int, bars: int
) -> None:
    begin = demo.service.clock() - timedelta(days=days)
    response = await demo.browser.get(f"/portal/{page}?since={begin:%Y-%m-%dT%H:%M}&tz=UTC&metric=clicks")
    assert response.status_code == 200
    whole = next(int(value) for name, value, _ in FIGURE.findall(response.text) if name == "clicks")
    table = response.text.partition("Show as table")[2].partition("</table>")[0]
    shown = [(int(value), html.unescape(href)) for _, value, href in FIGURE.findall(table)]
    assert (table.count("<tr><th"), sum(value for value, _ in shown)) == (bars + 1, whole), "the head of the table is a row too"
    most = max(shown)
    assert len(await demo.rows(most[1])) == most[0] > 0


@on_one_service
@pytest.mark.parametrize(
    "query", ["period=28d", "period=365d", "period=28d&tz=Australia/Lord_Howe", "since=2026-11-18&until=2026-11-19"]
)
async def test_the_chart_of_a_campaign_whose_clicks_belong_to_a_few_days_shows_the_hours_of_these_days(
    demo: DemoPortal, query: str
) -> None:
    text = (await demo.browser.get(f"/portal/1/campaigns/black-friday?{query}&basis=event")).text
    table = text.partition("Show as table")[2].partition("</table>")[0]
    shown = [(int(value), html.unescape(href)) for _, value, href in FIGURE.findall(table)]
    assert table.count(" to ") == len(shown) > 20, "each bar is an hour"
    assert ("The rest of the period has no clicks." in text) == query.startswith("period")
    clicks = [value for name, value, _ in await demo.figures(f"/portal/1/campaigns/black-friday?{query}&basis=event")]
    assert sum(value for value, _ in shown) in clicks[:5], "the bars add up to the figure"
    for value, href in shown:
        if value:
            assert len(await demo.rows(href)) == value


@on_one_service
@pytest.mark.parametrize("query", ["", "&basis=sent", "&campaign=order-updates", "&source=api"])
@pytest.mark.parametrize("metric", ["suspected_hits", "ignored_hits"])
async def test_the_list_of_hits_that_are_no_clicks_counts_the_reasons_and_each_number_leads_to_its_hits(
    demo: DemoPortal, metric: str, query: str
) -> None:
    page = f"/portal/1/clicks?period=28d&metric={metric}{query}"
    text = (await demo.browser.get(page)).text
    assert "Why they were not counted" in text
    figures = await demo.figures(page)
    assert [name for name, _, _ in figures] == [metric] * len(figures)
    assert sum(value for _, value, _ in figures) == len(await demo.rows(page)) > 0
    for _, value, href in figures:
        assert len(await demo.rows(href)) == value
        (rule,) = parse_qs(urlsplit(href).query)["rule"]
        shown = (await demo.browser.get(href)).text
        assert f"Reason: {RULE_NAMES[rule]}" in shown
        assert "Why they were not counted" not in shown, "the rest has one reason"
    for other in ("metric=clicks", f"metric={metric}&device=phone", f"metric={metric}&campaign=none"):
        assert "Why they were not counted" not in (await demo.browser.get(f"/portal/1/clicks?period=28d&{other}")).text


@on_one_service
@pytest.mark.parametrize("metric", ["suspected_hits", "ignored_hits"])
async def test_the_list_of_hits_that_are_no_clicks_has_no_reasons_if_they_cannot_be_counted(
    demo: DemoPortal, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    page = f"/portal/1/clicks?period=28d&metric={metric}"
    _, _, href = (await demo.figures(page))[0]
    code = next(row["code"] for row in await demo.rows(href))
    of_link = f"{page}&code={code}"
    assert "Why they were not counted" in (await demo.browser.get(of_link)).text
    with monkeypatch.context() as patched:
        patched.setattr("shortener.reporting.hits.MAX_SCANNED_ROWS", 0)
        assert await demo.service.database.read(count_rules, HitFilter(1, code=code)) is None

    def takes_too_long(*_: object) -> None:
        raise ReadTooLong

    with monkeypatch.context() as patched:
        patched.setattr("shortener.portal.clicks.count_rules", takes_too_long)
        response = await demo.browser.get(of_link)
    assert response.status_code == 200
    assert "Why they were not counted" not in response.text


@on_one_service
@pytest.mark.parametrize("basis", ["sent", "event"])
async def test_the_page_of_a_campaign_shows_which_of_its_links_countries_and_devices_are_clicked(
    demo: DemoPortal, basis: str
) -> None:
    page = f"/portal/1/campaigns/black-friday?period=28d&basis={basis}"
    text = (await demo.browser.get(page)).text
    filters = {
        "since": (NOON - timedelta(days=27)).date().isoformat(),
        "tz": "Europe/Berlin",
        "campaign": "black-friday",
        "basis": basis,
    }
    headers = {"X-API-Key": demo.credentials.api_key}
    for parameter, listed in (("destination", "destinations"), ("label", "labels"), ("country", "countries")):
        response = await demo.browser.get(f"/api/v1/sms/stats/by-{parameter}", params=filters, headers=headers)
        expected = {row[parameter]: row["clicked_messages"] for row in response.json()[listed]}
        found = [
            (parse_qs(urlsplit(href).query)[parameter][0], value)
            for name, value, href in await demo.figures(page)
            if name == "clicked_messages" and f"{parameter}=" in href
        ]
        assert dict(found) == expected, parameter
        assert len(found) == len(expected) > 1, parameter
    assert "Labels of links" in text
    for parameter in ("device", "browser"):
        assert f"{parameter}=" in text


@pytest.mark.parametrize("page", ["?period=24h", "?period=today", "campaigns/Spring?period=today", "campaigns/Spring?period=24h"])
async def test_the_bar_of_a_time_slot_that_has_just_begun_leads_to_the_rows_of_this_slot(
    empty: DemoPortal, clock: Clock, page: str
) -> None:
    clock.forward(minutes=15, seconds=10)
    await send(empty.service, empty.browser, campaign="Spring")
    clock.forward(seconds=20)
    await empty.check(f"/portal/1/{page}&metric=messages")
    bars = [href for _, value, href in await empty.figures(f"/portal/1/{page}&metric=messages") if "period=custom" in href]
    begun = [parse_qs(urlsplit(href).query)["until"][0][11:16] for href in bars]
    assert begun[-1] == "13:16", "the end of the last bar is 12:15:30 UTC, in Berlin"


FORM = re.compile(r'<form[^>]*method="get"[^>]*>.*?</form>', re.DOTALL)
HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')


@on_one_service
@pytest.mark.parametrize(
    "page",
    [
        "",
        "campaigns",
        "campaigns/Spring",
        "messages",
        "clicks",
        "conversions",
        "conversions/refused",
        "links",
        "deliveries",
        "gateways",
        "sends",
        "receiver",
    ],
)
async def test_the_forms_of_a_portal_page_keep_the_time_zone_and_the_time_basis(empty: DemoPortal, page: str) -> None:
    await send(empty.service, empty.browser, campaign="Spring")
    text = (await empty.browser.get(f"/portal/1/{page}?tz=Asia/Kolkata&basis=event")).text
    forms = [form for form in FORM.findall(text) if 'role="search"' not in form]
    assert forms
    for form in forms:
        fields = dict(HIDDEN.findall(form))
        assert fields["tz"] == "Asia/Kolkata", form
        assert fields.get("basis") == "event" or '<option value="event" selected>' in form, form


async def test_the_filter_form_of_messages_without_a_campaign_keeps_this_filter_until_a_campaign_is_entered(
    empty: DemoPortal, clock: Clock
) -> None:
    await send(empty.service, empty.browser)
    for _ in range(2):
        await send(empty.service, empty.browser, campaign="Spring")
    clock.forward(minutes=20)
    text = (await empty.browser.get("/portal/1/messages?no_campaign=1")).text
    forms = [dict(HIDDEN.findall(form)) for form in FORM.findall(text) if 'class="filters card' in form]
    assert [fields.get("no_campaign") for fields in forms] == ["1"]
    assert len(await empty.rows("/portal/1/messages?no_campaign=1&campaign=&metric=messages")) == 1
    assert len(await empty.rows("/portal/1/messages?no_campaign=1&campaign=Spring&metric=messages")) == 2


@on_one_service
@pytest.mark.parametrize("name", ["report.csv", "a?b=1#c", "100% off", "50%25"])
async def test_the_form_and_the_links_of_a_campaign_page_lead_to_the_same_campaign(empty: DemoPortal, name: str) -> None:
    await send(empty.service, empty.browser, campaign=name)
    path = f"/portal/1/campaigns/{quote(name, safe='')}"
    page = (await empty.browser.get(path)).text
    (action,) = re.findall(r'<form class="filters" method="get" action="([^"]+)"', page)
    failed = (await empty.browser.get(f"{path}?period=nonsense")).text
    (back,) = re.findall(r'href="([^"]+)">Show the last 28 days', failed)
    for address in (action, back):
        assert f"<h1>{name}</h1>" in (await empty.browser.get(html.unescape(address))).text, address


@on_one_service
@pytest.mark.parametrize(
    "path",
    [
        "1/messages",
        "all/messages",
        "1/clicks",
        "1/conversions",
        "1/conversions/refused",
        "1/links",
        "1/campaigns",
        "1/deliveries",
        "1/sends",
        "admin/audit",
    ],
)
async def test_a_csv_export_whose_first_rows_cannot_be_read_is_an_error_page_and_no_file(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    browser, write = await sign_in(), service.database.write

    async def unavailable(*_: object) -> None:
        raise StoreUnavailable("outage")

    with monkeypatch.context() as outage:

        async def write_before_the_outage(*arguments: Any, **named: Any) -> Any:
            result = await write(*arguments, **named)
            outage.setattr(service.database, "read", unavailable)
            return result

        outage.setattr(service.database, "write", write_before_the_outage)
        response = await browser.get(f"/portal/{path}.csv")
    assert response.status_code == 503
    assert response.headers["content-type"].startswith("text/html")
    assert "content-disposition" not in response.headers


def test_the_weakest_step_of_a_campaign_is_the_one_with_the_share_that_is_furthest_below_the_usual_share() -> None:
    def figures(*numbers: int) -> Figures:
        return Figures(dict(zip(("messages", "delivered", "clicked_messages", "converted_messages"), numbers, strict=True)))

    usual = figures(1000, 900, 450, 90)
    assert [step.share for step in steps_of(figures(100, 90, 45, 3), usual)] == [0.9, 0.5, 3 / 45]
    assert [step.is_weakest for step in steps_of(figures(100, 90, 45, 3), usual)] == [False, False, True]
    assert [step.is_weakest for step in steps_of(figures(100, 70, 10, 1), usual)] == [False, True, False]
    assert not any(step.is_weakest for step in steps_of(usual, usual))
    nothing = steps_of(Figures(), usual)
    assert [(step.share, step.is_weakest) for step in nothing] == [(None, False)] * 3


async def test_the_page_of_a_campaign_says_where_it_loses_more_than_usual_and_exports_its_clicks(demo: DemoPortal) -> None:
    page = (await demo.browser.get("/portal/1/campaigns/win-back?period=28d")).text
    assert "The weakest step is “Clicked, of the delivered messages”." in page
    assert '<a class="button" href="/portal/1/campaigns?period=28d&amp;compare=win-back">Compare…</a>' in page
    page = (await demo.browser.get("/portal/1/campaigns/black-friday?period=28d")).text
    (href,) = re.findall(r'href="([^"]+)">(?:(?!href).)*CSV of the clicks', page)
    clicks = next(int(value) for name, value, _ in FIGURE.findall(page) if name == "clicks")
    exported = (await demo.browser.get(html.unescape(href))).text
    assert len(list(csv.DictReader(io.StringIO(exported)))) == clicks > 0


async def test_a_comparison_of_campaigns_shows_their_rates_first_and_the_best_rates_in_bold(demo: DemoPortal) -> None:
    page = (await demo.browser.get("/portal/1/campaigns?period=28d&compare=win-back&compare=order-updates")).text
    table = page.partition('<table class="compare">')[2].partition("</table>")[0]
    labels = re.findall(r'<th scope="row">([^<]+)', table)
    assert labels[:4] == ["Delivery rate", "Click rate", "Conversion rate", "Converted after a click"]
    (row,) = re.findall(r'<th scope="row">Click rate.*?</tr>', table)
    first, second = re.findall(r'<td class="num">(.*?)</td>', row)
    assert ("<strong>" in first, "<strong>" in second) == (False, True)


async def test_the_filter_by_campaign_suggests_the_newest_campaigns(demo: DemoPortal) -> None:
    for path in ("messages", "clicks", "conversions", "links"):
        page = (await demo.browser.get(f"/portal/1/{path}")).text
        (suggested,) = re.findall(r'<datalist id="campaigns">(.*?)</datalist>', page)
        names = re.findall(r'<option value="([^"]+)">', suggested)
        assert 1 < len(names) <= listing.SUGGESTED_CAMPAIGNS, path
        assert re.search(r'<input name="campaign"[^>]* list="campaigns">', page)


async def test_only_the_newest_campaigns_of_the_shown_applications_are_suggested(database: Database) -> None:
    def write(connection: Connection) -> None:
        rows = [
            {
                "application_id": 1 + number % 2,
                "campaign": f"c{number // 4}" if number else "",
                "source": "api",
                "country": str(number),
            }
            for number in range(40)
        ]
        connection.execute(insert(cohorts), rows)

    await database.write(write)
    assert await database.read(find_newest_campaigns, [1], 3) == ["c9", "c8", "c7"]
    assert await database.read(find_newest_campaigns, [2, 3], 50) == [f"c{number}" for number in range(9, -1, -1)]
    assert await database.read(find_newest_campaigns, [3], 50) == []
