"""Tests of the overview, with the traffic of a demo installation."""

from __future__ import annotations

import asyncio
import csv
import html
import io
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from shortener.accounts import administration
from shortener.container import Service
from shortener.delivery.trackers import NewTracker
from shortener.errors import StoreUnavailable
from shortener.model import DeliveryStatus
from shortener.portal import overview
from shortener.portal.operators import Role
from tests.conftest import NOON, Clock, client_of
from tests.delivery.dispatching import fill
from tests.factory import AUDIT
from tests.portal.conftest import SAME_ORIGIN, DemoInstallation, NewBrowser, SignIn, accept, click, invite, send

FIGURE = re.compile(r'data-figure="(\w+)" data-value="(\d+)" href="([^"]+)"')


def figures_of(page: httpx.Response) -> list[tuple[str, int, str]]:
    assert page.status_code == 200, page.text
    return [(name, int(value), html.unescape(href)) for name, value, href in FIGURE.findall(page.text)]


async def test_the_portal_shows_the_overview_of_an_application_without_data(sign_in: SignIn) -> None:
    browser = await sign_in()
    for period in ("today", "24h", "7d", "28d", "month", "365d"):
        page = await browser.get(f"/portal/1/?period={period}")
        assert {value for _, value, _ in figures_of(page)} == {0}
    redirected = await browser.get("/portal/1?period=7d")
    assert redirected.headers["location"] == "/portal/1/?period=7d"


@pytest.fixture
async def demo(
    tmp_path: Path, demo_installation: DemoInstallation, fast_passwords: None
) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A service with demo traffic, and the browser of a viewer."""
    service = await demo_installation.open_copy(tmp_path)
    async with client_of(service, {**SAME_ORIGIN}) as browser:
        await accept(browser, await invite(service, "Ada", Role.VIEWER, 1))
        browser.headers["X-API-Key"] = demo_installation.credentials.api_key
        yield service, browser
    await service.close(grace=1)


async def test_each_overview_figure_equals_the_statistics_of_the_api_by_event_time_and_by_send_time(
    demo: tuple[Service, httpx.AsyncClient],
) -> None:
    _, browser = demo
    for query in (
        {},
        {"basis": "sent"},
        {"campaign": "autumn-sale"},
        {"campaign": "order-updates", "basis": "sent"},
        {"source": "api"},
    ):
        page = await browser.get("/portal/1/", params={"period": "28d", **query})
        since = (NOON - timedelta(days=27)).date().isoformat()
        stats = await browser.get("/api/v1/sms/stats", params={"tz": "Europe/Berlin", "since": since, **query})
        expected = stats.json()
        first: dict[str, int] = {}
        for name, value, _ in figures_of(page):
            first.setdefault(name, value)
        of_messages = ("messages", "sent", "delivered", "failed", "clicked_messages", "converted_messages")
        for name in (*of_messages, "clicks", "suspected_hits", "conversions"):
            assert first[name] == expected[name], (query, name)


async def test_the_bars_of_the_overview_chart_add_up_to_the_figure(demo: tuple[Service, httpx.AsyncClient]) -> None:
    _, browser = demo
    for query in ({"period": "28d"}, {"period": "24h"}, {"period": "365d"}, {"period": "7d", "tz": "Asia/Kolkata"}):
        page = await browser.get("/portal/1/", params={"metric": "messages", **query})
        figures = figures_of(page)
        total = figures[0][1]
        bars = [value for name, value, href in figures if name == "messages" and "period=custom" in href]
        assert sum(bars) == total, query


async def test_the_link_of_each_overview_figure_contains_the_period_the_time_basis_and_the_filters(
    demo: tuple[Service, httpx.AsyncClient],
) -> None:
    _, browser = demo
    page = await browser.get("/portal/1/", params={"period": "7d", "basis": "sent", "campaign": "win-back"})
    for name, _, href in figures_of(page):
        parts = urlsplit(href)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        assert parts.path in ("/portal/1/messages", "/portal/1/clicks", "/portal/1/conversions")
        assert (query["metric"], query["basis"]) == (name, "sent")
        assert query["campaign"] == "win-back"
        assert query["period"] in ("7d", "custom")


async def test_the_overview_of_all_applications_shows_sums_that_link_to_lists_of_all_applications(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    await service.database.write(administration.create_application, "other", clock.now, secret=service.secret)
    await service.directory.refresh()
    browser = await sign_in("Ada")
    page = await browser.get("/portal/all/")
    assert page.status_code == 200
    assert {urlsplit(href).path for _, _, href in figures_of(page)} >= {"/portal/all/clicks", "/portal/all/messages"}
    assert "other" in page.text


async def test_the_overview_reports_a_disabled_tracker_and_an_expiring_postback_key_but_no_replaced_token(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    from sqlalchemy import update

    from shortener.accounts.credentials import rotate_token
    from shortener.accounts.postback_keys import create_postback_key, rotate_postback_key
    from shortener.storage.schema import trackers

    browser = await sign_in("Ada", Role.VIEWER, 1)
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:  # type: ignore[union-attr]
        body = {"name": "<crm>", "url": "http://127.0.0.1:9/hook", "events": ["click"]}
        assert (await client.post("/api/v1/trackers", json=body)).status_code < 300
    change = update(trackers).values(enabled=False, disabled_reason="it failed for 5 days")
    await service.database.write(lambda connection: connection.execute(change))
    key, _ = await service.database.write(create_postback_key, 1, "network", clock.now)
    await service.database.write(rotate_postback_key, 1, key, clock.now, timedelta(hours=24))
    await service.database.write(rotate_token, 1, clock.now, timedelta(hours=24))
    page = await browser.get("/portal/1/")
    assert "Tracker &lt;crm&gt; was disabled: it failed for 5 days" in page.text
    assert "A postback key expires in 24 hours" in page.text
    assert "previous tracker token" not in page.text
    assert "ends in 1" in (await (await sign_in("Max", Role.ADMIN)).get("/portal/1/keys")).text


async def test_the_overview_says_that_the_devices_of_new_clicks_are_not_counted_yet(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    browser = await sign_in("Ada", Role.VIEWER, 1)
    code = (await send(service, browser))["links"][0]["code"]
    clock.forward(minutes=20)
    assert "No clicks in this period." in (await browser.get("/portal/1/")).text
    await click(service, await new_browser(), code)
    await service.recorder.flush()
    clock.forward(minutes=20)
    page = (await browser.get("/portal/1/")).text
    assert re.search(r'data-figure="clicks" data-value="1"', page)
    for noun in ("devices", "browsers"):
        assert f"Not counted yet: the {noun} of new clicks are counted about two minutes later." in page
    assert "No clicks in this period." not in page


async def test_an_overview_without_figures_has_no_empty_panels_and_says_what_to_do_next(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in()
    page = (await browser.get("/portal/1/")).text
    assert "Create a message" in page, "a new installation shows the first steps"
    for panel in ("Funnel", "Clicks over time", "Destinations", "Browsers", "Nothing in this period"):
        assert panel not in page
    await send(service, browser, campaign="Spring")
    clock.forward(minutes=20)
    assert "Funnel" in (await browser.get("/portal/1/?campaign=Spring")).text
    page = (await browser.get("/portal/1/?campaign=Autumn&period=7d")).text
    assert "Funnel" not in page
    assert "Nothing in this period" in page
    assert '<a class="button" href="/portal/1/?period=7d">Remove all filters</a>' in page
    assert "Look at the last 365 days" in page


@pytest.mark.parametrize("failure", [StoreUnavailable("outage"), None])
async def test_a_portal_panel_that_fails_or_is_too_slow_does_not_affect_the_rest_of_the_page(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    async def campaigns(visit: object) -> None:
        if failure is not None:
            raise failure
        # the other panels can be slow on a loaded machine and need a longer time limit
        monkeypatch.setattr(overview, "PANEL_SECONDS", 30)
        await asyncio.Event().wait()

    monkeypatch.setattr(overview, "_campaigns", campaigns)
    monkeypatch.setattr(overview, "PANEL_SECONDS", 0.05 if failure is None else 30)
    browser = await sign_in()
    page = await browser.get("/portal/1/")
    assert page.status_code == 200
    assert page.text.count("This panel took too long") == 1
    assert "Funnel" in page.text


async def test_the_overview_counts_a_message_with_several_conversions_once_and_explains_a_longer_step_of_the_funnel(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    credentials = service.first_credentials
    assert credentials is not None
    browser, other = await sign_in(), await new_browser()
    for number in range(2):
        await send(service, browser, message_id=f"m{number}", campaign="spring")
    clock.forward(minutes=20)
    page = (await browser.get("/portal/1/")).text
    assert "A step can be longer than the one before it" not in page
    assert "A message can have several" not in page
    for transaction in range(4):
        report = {"message_id": "m0", "action": "sale", "transaction_id": f"{transaction}"}
        reported = await other.post("/api/v1/track", json=report, headers={"X-Api-Token": credentials.tracker_token})
        assert reported.status_code == 200
    delivered = {"message_id": "m0", "state": "DELIVERED"}
    await other.post("/api/v1/sms/status", json=delivered, headers={"X-API-Key": credentials.api_key})
    clock.forward(minutes=20)
    page = (await browser.get("/portal/1/")).text
    assert "A step can be longer than the one before it" in page
    assert "Counted by send date, no share exceeds" in page
    assert "Counted by send date, no share exceeds" not in (await browser.get("/portal/1/?basis=sent")).text
    funnel = page.partition("<h2>Funnel</h2>")[2].partition("</section>")[0]
    steps = re.findall(r'data-figure="(\w+)" data-value="(\d+)"', funnel.partition("</ol>")[0])
    assert steps == [("messages", "2"), ("sent", "0"), ("delivered", "1"), ("clicked_messages", "0"), ("converted_messages", "1")]
    assert re.search(
        r'Conversions: <a class="figure" data-figure="conversions" data-value="4".*A message can have several\.', funnel
    )
    assert set(re.findall(r'<progress class="meter" value="\d+" max="(\d+)"', funnel)) == {"2"}
    for shown in (page, (await browser.get("/portal/1/campaigns/spring")).text):
        tile = shown.partition("<dt>Converted</dt>")[2].partition("</div>")[0]
        assert re.search(r'data-figure="converted_messages" data-value="1" href="/portal/1/messages\?', tile)
        assert "50.0\xa0% of messages" in tile
        assert re.search(r'data-figure="conversions" data-value="4".*</a> conversions<', tile)


async def test_a_value_without_a_currency_is_marked_only_beside_values_with_a_currency(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    credentials = service.first_credentials
    assert credentials is not None
    browser, other = await sign_in(), await new_browser()
    await send(service, browser, message_id="m0", campaign="spring")
    for transaction, currency, expected in (("1", "", {"Value"}), ("2", "EUR", {"Value without currency", "Value in EUR"})):
        report = {"message_id": "m0", "action": "sale", "transaction_id": transaction, "value": "10", "currency": currency}
        reported = await other.post("/api/v1/track", json=report, headers={"X-Api-Token": credentials.tracker_token})
        assert reported.status_code == 200
        clock.forward(minutes=20)
        for path in ("/portal/1/", "/portal/1/campaigns/spring"):
            assert set(re.findall("<dt>(Value[^<]*)</dt>", (await browser.get(path)).text)) == expected, path


async def test_an_unknown_metric_of_the_overview_is_rejected(sign_in: SignIn) -> None:
    browser = await sign_in()
    assert (await browser.get("/portal/1/?metric=luck")).status_code == 400


@pytest.mark.slow
async def test_the_csv_export_of_each_overview_figure_has_as_many_rows_as_the_figure(
    demo: tuple[Service, httpx.AsyncClient],
) -> None:
    _, browser = demo
    checked = 0
    for query in ({}, {"basis": "sent"}, {"campaign": "order-updates"}, {"source": "api", "basis": "sent"}):
        page = await browser.get("/portal/1/", params={"period": "28d", **query})
        # Every bar of the chart is a figure too. This test examines only a few bars.
        figures = figures_of(page)
        bars = [figure for figure in figures if "period=custom" in figure[2]]
        for name, value, href in {*(figure for figure in figures if "period=custom" not in figure[2]), *bars[::6]}:
            path, _, parameters = href.partition("?")
            exported = await browser.get(f"{path}.csv?{parameters}")
            assert exported.status_code == 200, href
            rows = len(list(csv.reader(io.StringIO(exported.text)))) - 1
            assert rows == value, (name, href)
            checked += 1
    assert checked > 100


async def test_the_late_hits_that_need_attention_lead_to_the_rows_of_the_same_campaign_and_source(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    browser, phone = await sign_in(), await new_browser()
    codes = []
    for source, campaign in (("api", "Spring"), ("api", "Autumn"), ("campaign", "Spring")):
        fields = {"source": source, "campaign": campaign, "expires_in": 60, "fallback_url": "https://shop.example/late"}
        codes.append((await send(service, browser, **fields))["links"][0]["code"])
    clock.forward(minutes=2)
    for code in codes:
        await click(service, phone, code)
    await service.recorder.flush()
    clock.forward(minutes=20)
    for address, expected in (
        ("1/?source=api", 2),
        ("1/?source=api&campaign=Spring", 1),
        ("1/?period=today", 3),
        ("all/?period=today", 3),
        ("all/?campaign=Spring", 2),
    ):
        page = (await browser.get(f"/portal/{address}")).text
        late = r'<a data-figure="late_hits" data-value="(\d)" href="([^"]+)">\1 hits? came after the link had expired</a>'
        ((number, href),) = re.findall(late, page)
        path, _, parameters = html.unescape(href).partition("?")
        exported = await browser.get(f"{path}.csv?{parameters}")
        assert (int(number), len(exported.text.splitlines()) - 1) == (expected, expected), address


async def test_the_overview_of_all_applications_shows_their_newest_campaigns(
    service: Service, sign_in: SignIn, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "MAX_ROWS", 3)
    browser = await sign_in()
    other = await service.database.write(administration.create_application, "other", clock.now, secret=service.secret)
    await service.directory.refresh()
    for campaign in ("a", "b", "c"):
        await send(service, browser, campaign=campaign)
    body = {"to": "+14085550123", "body": '#track("https://shop.example/")', "campaign": "of-other"}
    assert (await browser.post("/api/v1/rewrite", json=body, headers={"X-API-Key": other.api_key})).status_code == 200
    await send(service, browser, campaign="newest")
    clock.forward(minutes=20)
    page = (await browser.get("/portal/all/")).text
    assert re.findall(r'class="name" href="/portal/\d+/campaigns/([\w-]+)"', page) == ["newest", "of-other", "c"]


async def test_the_dead_deliveries_that_need_attention_lead_to_deliveries_of_a_whole_year(
    service: Service, sign_in: SignIn, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = NewTracker(url="https://t.example/", events=("click",), name="shop", signed=False)
    tracker = (await service.trackers.create(AUDIT, 1, new)).tracker.id
    await fill(service, tracker, DeliveryStatus.DEAD, 2)
    clock.forward(days=40)
    browser = await sign_in()
    page = (await browser.get("/portal/1/")).text
    href = f"/portal/1/deliveries?period=365d&amp;tracker={tracker}&amp;status=dead"
    assert f'<a data-figure="dead" data-value="2" href="{href}">Tracker shop has 2 dead' in page
    exported = await browser.get(html.unescape(href).replace("?", ".csv?"))
    assert len(exported.text.splitlines()) - 1 == 2
    monkeypatch.setattr("shortener.portal.attention.MAX_COUNT", 2)
    page = (await browser.get("/portal/1/")).text
    assert f'<a href="{href}">Tracker shop has 2 or more dead' in page, "a number that is not exact is no figure"


async def test_each_figure_of_a_destination_leads_to_its_rows_also_if_some_destinations_are_stored_or_merged_as_other(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each campaign, only the first `link_sets.MAX_NAMES` destinations are stored by name, and all others are stored as `other`.
    A report of the API lists at most `statistics.MAX_NAMES` destinations, and merges the rest into `other`."""
    monkeypatch.setattr("shortener.outbox.link_sets.MAX_NAMES", 2)
    monkeypatch.setattr("shortener.reporting.statistics.MAX_NAMES", 2)
    browser, phone = await sign_in(), await new_browser()
    for campaign in ("one", "two"):
        for number in range(4):
            message = await send(
                service,
                browser,
                campaign=campaign,
                body=f'#track("https://x.example/{campaign}{number}") #track("https://y.example/{number}")',
            )
            await click(service, phone, message["links"][0]["code"])
    clock.forward(minutes=20)
    page = await browser.get("/portal/1/?period=7d")
    shown = [one for one in figures_of(page) if "destination=" in one[2]]
    assert {parse_qs(urlsplit(href).query)["destination"][0] for _, _, href in shown} >= {"other", "x.example/one0"}
    for name, value, href in shown:
        path, _, query = href.partition("?")
        exported = (await browser.get(f"{path}.csv?{query}")).text
        assert len(list(csv.DictReader(io.StringIO(exported)))) == value, (name, href)


async def test_figures_are_not_compared_with_a_period_in_which_the_application_did_not_exist_completely(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in()
    await send(service, browser)
    clock.forward(days=1)
    for number in range(3):
        await send(service, browser, message_id=f"m{number}")
    clock.forward(minutes=20)
    page = (await (await sign_in("Bea")).get("/portal/1/?period=24h")).text
    assert 'data-value="3"' in page
    assert 'title="The period before' not in page
    clock.forward(days=1)
    await send(service, browser, message_id="later")
    clock.forward(minutes=20)
    page = (await (await sign_in("Cleo")).get("/portal/1/?period=24h")).text
    assert 'class="down" title="The period before: 3"' in page


async def test_the_problems_on_the_page_of_all_applications_name_the_application_and_lead_to_its_pages(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    await service.database.write(administration.create_application, "shop", clock.now, secret=service.secret)
    await service.directory.refresh()
    new = NewTracker(url="https://t.example/", events=("click",), name="crm", signed=False)
    tracker = (await service.trackers.create(AUDIT, 2, new)).tracker.id
    await fill(service, tracker, DeliveryStatus.DEAD, 2)
    page = (await (await sign_in()).get("/portal/all/")).text
    assert f'href="/portal/2/deliveries?period=365d&amp;tracker={tracker}&amp;status=dead">shop: tracker crm has 2 dead' in page


async def test_the_overview_of_a_campaign_leads_to_the_page_of_the_campaign_and_shows_conversion_rates(
    demo: tuple[Service, httpx.AsyncClient],
) -> None:
    _, browser = demo
    page = (await browser.get("/portal/1/?period=28d&campaign=black-friday")).text
    assert '<a href="/portal/1/campaigns/black-friday?period=28d">Open the page of this campaign</a>' in page
    assert re.search(r'data-label="Conversion rate">\d+\.\d\s%', page)


async def test_the_period_of_a_page_has_links_to_the_period_before_and_after_it(sign_in: SignIn) -> None:
    browser = await sign_in()
    page = (await browser.get("/portal/1/?period=7d&metric=messages")).text
    (before,) = re.findall(r'href="([^"]+)" rel="prev" data-key="\["', page)
    assert 'rel="next" data-key="]"' not in page
    query = parse_qs(urlsplit(html.unescape(before)).query)
    assert (query["period"], query["metric"], query["until"][0][:16]) == (["custom"], ["messages"], "2026-11-14T00:00")
    page = (await browser.get(html.unescape(before))).text
    (after,) = re.findall(r'href="([^"]+)" rel="next" data-key="\]"', page)
    assert parse_qs(urlsplit(html.unescape(after)).query)["since"][0][:16] == "2026-11-14T00:00"
