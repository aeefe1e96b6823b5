"""Tests of the tasks of marketing, support and an admin in a real browser, mostly with the keyboard only."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.portal.browser import PASSWORD, Chromium, Visitor, accept_invitation
from tests.acceptance.portal.shots import start
from tests.acceptance.process import PHONE, Server
from tests.servers import PATIENCE

MAX_TABS = 200


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server process without data. Tests may change its data, which is not allowed with `demo_server`."""
    server = start(tmp_path_factory.mktemp("tasks"))
    yield server
    server.kill()


def focus_by_keyboard(visit: Visitor, selector: str) -> None:
    """Press Tab until an element that matches `selector` has the focus. Fail if the focus is not visible."""
    wanted = visit.page.locator(selector).first.element_handle()
    for _ in range(MAX_TABS):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("wanted => document.activeElement === wanted", wanted):
            assert visit.page.evaluate("document.activeElement.matches(':focus-visible')")
            return
    raise AssertionError(f"{MAX_TABS} presses of Tab do not reach {selector}")


def press(visit: Visitor, key: str, selector: str) -> None:
    """Move the focus to an element with the keyboard. Then press a key that opens a page."""
    focus_by_keyboard(visit, selector)
    with visit.page.expect_navigation():
        visit.page.keyboard.press(key)


def test_an_operator_compares_two_campaigns_and_opens_the_list_of_counted_rows_by_keyboard(
    browser: Chromium, demo_server: Server, viewer: Any
) -> None:
    with browser.page(state=viewer) as visit:
        visit.open(demo_server.base + "/portal/1/?period=28d")
        press(visit, "Enter", "nav.side-wide a:has-text('Campaigns')")
        for name in ("autumn-sale", "black-friday"):
            focus_by_keyboard(visit, f"input[name=compare][value={name}]")
            visit.page.keyboard.press("Space")
            assert visit.page.is_checked(f"input[name=compare][value={name}]")
        press(visit, "Enter", "button:has-text('Compare the chosen campaigns')")
        heads = visit.page.locator("table.compare thead a").all_inner_texts()
        assert sorted(heads) == ["autumn-sale", "black-friday"]

        figure = "table.compare tr:has(th:text-is('Clicks')) a[data-figure]"
        value = int(visit.page.get_attribute(figure, "data-value"))
        assert value > 0
        press(visit, "Enter", figure)
        assert visit.page.locator("h1").inner_text() == "Clicks"
        assert visit.page.locator("main table tbody tr").count() == min(value, 50)
        assert visit.problems == []


def test_support_finds_a_message_by_its_phone_number_and_reveals_the_number(browser: Chromium, empty_server: Server) -> None:
    number = "+4915123456789"
    with empty_server.api() as client:
        message = {"to": number, "message_id": "order-1001", "body": 'Your order: #track("https://shop.example/1001")'}
        assert client.post("/api/v1/rewrite", json=message).status_code == 200
    support = accept_invitation(browser, empty_server, "Sue", "support", 1)
    with browser.page(state=support, width=390) as visit:
        visit.open(empty_server.base + "/portal/1/")
        visit.page.fill("header input[name=q]", number)
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_selector("h1:has-text('Messages')")
        visit.page.click("main tbody th a")
        visit.page.wait_for_selector("h1:has-text('Message to')")
        assert number not in visit.page.content()
        visit.page.click("button:has-text('Show the number')")
        visit.page.wait_for_selector(f"h1:has-text('{number}')")
        assert visit.problems == []


def test_main_tasks_of_support_and_admins_work_by_keyboard(browser: Chromium, empty_server: Server) -> None:
    with empty_server.api() as client:
        message = {"to": "+4915123456780", "message_id": "order-1002", "body": 'Your order: #track("https://shop.example/1002")'}
        assert client.post("/api/v1/rewrite", json=message).status_code == 200
    with browser.page() as visit:
        keyboard = visit.page.keyboard
        accept_invitation(browser, empty_server, "Kay")
        visit.open(empty_server.base + "/portal/signin")  # the operator signs in
        focus_by_keyboard(visit, "[name=name]")
        keyboard.type("Kay")
        keyboard.press("Tab")
        keyboard.type(PASSWORD)
        with visit.page.expect_navigation():
            keyboard.press("Enter")
        keyboard.press("/")  # the operator finds a message and reveals its number
        keyboard.type("order-1002")
        with visit.page.expect_navigation():
            keyboard.press("Enter")
        press(visit, "Enter", "button:has-text('Show the number')")
        assert "+4915123456780" in visit.page.locator("h1").inner_text()
        press(visit, "Enter", "nav.side-wide a:has-text('Try it')")  # the operator creates a message
        press(visit, "Enter", "button:has-text('Create the message')")
        assert visit.page.locator("h1").inner_text() == "The message exists"
        press(visit, "Enter", "nav.side-wide a:has-text('Operators')")  # the operator invites another operator
        focus_by_keyboard(visit, "#invite [name=name]")
        keyboard.type("Olga")
        press(visit, "Space", "button:has-text('Create an invitation')")
        assert "Send this link to Olga" in visit.page.locator("main").inner_text()
        assert visit.problems == []


def _continue_late(route: Any) -> None:
    time.sleep(0.3)  # delay the response, as on a slow network
    route.continue_()


def test_an_admin_creates_a_message_and_sees_its_click_on_the_live_page_without_a_reload(
    browser: Chromium, empty_server: Server
) -> None:
    admin = accept_invitation(browser, empty_server, "Ada")
    with browser.page(state=admin) as visit:
        visit.open(empty_server.base + "/portal/1/")
        visit.page.click("nav.side-wide a:has-text('Try it')")
        visit.page.click("button:has-text('Create the message')")
        visit.page.wait_for_selector("h1:has-text('The message exists')")
        short_url = visit.page.locator("[data-copy]").first.get_attribute("data-copy")
        assert short_url is not None
        message_id = visit.page.locator("main a:has-text('What happened to it')").get_attribute("href").rpartition("/")[2]

        # The script htmx loads at once, but its extension for server-sent events loads late.
        visit.page.route("**/hx-sse*", _continue_late)
        with visit.page.expect_response("**/live/stream"):
            visit.page.click("main a:has-text('Live')")
        visit.page.wait_for_selector("[data-stream-state].good:has-text('following')")
        visit.page.evaluate("window.isSamePage = true")
        rows = visit.page.locator("#live-rows > li")
        assert rows.count() == 0
        path = "/" + short_url.rpartition("/")[2]
        opened = httpx.get(empty_server.base + path, headers={"User-Agent": PHONE}, trust_env=False, timeout=PATIENCE)
        assert opened.status_code == 302
        visit.page.wait_for_selector(f"#live-rows > li:has-text('{message_id}')")
        assert rows.count() == 1
        assert not visit.page.is_visible(".unless-rows")
        opened = httpx.get(empty_server.base + path, headers={"User-Agent": PHONE}, trust_env=False, timeout=PATIENCE)
        visit.page.wait_for_selector("#live-rows > li:nth-child(2)")
        assert visit.page.evaluate("window.isSamePage")

        visit.page.click("#live-rows a >> nth=0")
        visit.page.wait_for_selector("h1:has-text('Message to')")
        assert visit.page.locator("ol.timeline h3:has-text('First click')").count() == 1
        assert visit.problems == []


def test_support_replays_dead_deliveries_and_sees_their_outcomes_without_a_reload(browser: Chromium, empty_server: Server) -> None:
    endpoint = Endpoint()
    endpoint.answers = [400] * 3
    tracker = {"url": f"{endpoint.url}/events", "events": ["click"], "name": "shop", "max_attempts": 1, "with_suspected": True}
    with empty_server.api() as client:
        created = client.post("/api/v1/trackers", json=tracker).json()
        for number in range(3):
            message = {"to": "+4915123456789", "body": f'Your order: #track("https://shop.example/{number}")'}
            code = client.post("/api/v1/rewrite", json=message).json()["messages"][0]["links"][0]["code"]
            opened = httpx.get(f"{empty_server.base}/{code}", headers={"User-Agent": PHONE}, trust_env=False, timeout=PATIENCE)
            assert opened.status_code == 302
        endpoint.wait(3)
        deadline = time.monotonic() + PATIENCE
        while client.get(f"/api/v1/trackers/{created['tracker_id']}").json()["health"]["dead"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # wait a moment, then check the condition again
    support = accept_invitation(browser, empty_server, "Rita", "support", 1)
    with browser.page(state=support, width=390) as visit:
        visit.open(f"{empty_server.base}/portal/1/deliveries?tracker={created['tracker_id']}&status=dead")
        visit.page.click("a:has-text('Replay all…')")
        assert visit.page.locator("main h2 a[data-figure=dead]").get_attribute("data-value") == "3"
        visit.page.click("button:has-text('Replay 3 now')")
        visit.page.wait_for_selector("a[data-figure=delivered][data-value='3']")
        assert "3 of 3 queued again" in visit.page.locator("#progress").inner_text()
        visit.page.wait_for_selector("#progress:not([hx-get])")
        assert visit.page.locator("button:has-text('Stop')").count() == 0
        assert visit.problems == []
    arrived = endpoint.wait(6)
    ids = [request.headers["webhook-id"] for request in arrived]
    assert sorted(ids[:3]) == sorted(ids[3:]), "the event ids stay the same"
    endpoint.close()


def test_a_second_click_on_the_button_that_creates_a_key_sends_no_second_form(browser: Chromium, empty_server: Server) -> None:
    """A second request must not be sent: its response would replace the page that shows the key."""
    state = accept_invitation(browser, empty_server, "Dora")
    sent: list[str] = []

    def respond_late(route: Any) -> None:
        if route.request.method == "POST":
            sent.append(route.request.url)
        response = route.fetch()
        time.sleep(0.5)  # delay the response, so that the second click comes before it
        route.fulfill(response=response)

    with browser.page(state=state) as visit:
        visit.open(f"{empty_server.base}/portal/1/keys")
        visit.page.fill("[name=name]", "shop")
        visit.page.check("[name=permissions] >> nth=0")
        visit.page.route("**/portal/1/keys", respond_late)
        button = visit.page.locator("button:has-text('Create the key')")
        button.evaluate("one => { one.click(); setTimeout(() => one.click(), 100) }")
        visit.page.wait_for_selector("text=is shown only now")
    assert len(sent) == 1


def test_a_form_whose_request_was_stopped_can_be_sent_again(browser: Chromium, empty_server: Server) -> None:
    state = accept_invitation(browser, empty_server, "Edda")
    sent: list[str] = []

    def stop(route: Any) -> None:
        sent.append(route.request.url)
        route.abort("aborted")

    with browser.page(state=state) as visit:
        page = visit.page
        page.clock.install()
        visit.open(f"{empty_server.base}/portal/1/keys")
        page.fill("[name=name]", "shop")
        page.check("[name=permissions] >> nth=0")
        page.route("**/portal/1/keys", stop)
        button = page.locator("button:has-text('Create the key')")
        for _ in range(2):
            button.evaluate("one => one.click()")
        page.wait_for_function("document.querySelector('form[data-sent]')")
        page.unroute("**/portal/1/keys")
        page.clock.fast_forward(10_001)
        button.evaluate("one => one.click()")
        page.wait_for_selector("text=is shown only now")
    assert len(sent) == 1


@pytest.mark.parametrize("scripts", [True, False])
def test_two_clicks_over_a_slow_network_add_a_domain_once_and_show_no_error(
    browser: Chromium, empty_server: Server, scripts: bool
) -> None:
    """Without the script of the portal, the browser sends the form twice and shows the second response."""
    state = accept_invitation(browser, empty_server, "Fay")
    host = f"go.{str(scripts).lower()}.example"
    sent: list[str] = []
    with browser.page(state=state, scripts=scripts) as visit:
        page = visit.page
        visit.open(f"{empty_server.base}/portal/1/domains")
        page.fill("[name=domain]", host)
        page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
        network = page.context.new_cdp_session(page)
        slow = {"offline": False, "latency": 1000, "downloadThroughput": 20_000, "uploadThroughput": 20_000}
        network.send("Network.emulateNetworkConditions", slow)
        box = page.locator("button:has-text('Add the domain')").bounding_box()
        assert box is not None
        with page.expect_request("**/portal/1/domains"):
            page.mouse.click(box["x"] + 9, box["y"] + 9)
        page.mouse.click(box["x"] + 9, box["y"] + 9)
        page.wait_for_selector("text=The domain is added.")
    assert len(sent) == (1 if scripts else 2)
    with empty_server.api() as client:
        (added,) = [one for one in client.get("/api/v1/domains").json()["domains"] if one["host"] == host]
    assert added["enabled"]


def _expire_sessions(server: Server) -> None:
    """Make all sessions look as if their last request had arrived a day ago."""
    day = 86_400_000
    with contextlib.closing(sqlite3.connect(server.folder / "shortener.db", timeout=PATIENCE)) as database, database:
        database.execute("UPDATE operator_sessions SET seen_at = seen_at - ?", (day,))


@pytest.mark.parametrize("scripts", [True, False])
def test_a_form_whose_session_has_expired_appears_with_its_entries_after_the_operator_has_signed_in_again(
    browser: Chromium, empty_server: Server, scripts: bool
) -> None:
    state = accept_invitation(browser, empty_server, "Nora")
    with browser.page(state=state, scripts=scripts) as visit:
        page = visit.page
        visit.open(f"{empty_server.base}/portal/1/trackers/new")
        page.fill("[name=url]", "https://93.184.216.34/in?id={message_id}&x=<y>")
        page.fill("[name=name]", 'a "name" & more')
        page.select_option("[name=format]", "scg")
        page.uncheck("[name=enabled]")
        page.check("[name=events][value=late_click]")
        _expire_sessions(empty_server)
        page.click("button:has-text('Create the tracker')")
        page.wait_for_selector("h1:has-text('Sign in')")
        assert "a &quot;name&quot;" not in page.content()
        page.fill("[name=name]", "Nora")
        page.fill("[name=password]", PASSWORD)
        page.click("button:has-text('Sign in')")
        page.wait_for_selector("h1:has-text('New tracker')")
        assert "The form was not sent" in page.locator("main").inner_text()
        assert page.input_value("[name=url]") == "https://93.184.216.34/in?id={message_id}&x=<y>"
        assert page.input_value("[name=name]") == 'a "name" & more'
        assert page.input_value("[name=format]") == "scg"
        assert not page.is_checked("[name=enabled]")
        chosen = page.locator("[name=events]:checked")
        assert [one.get_attribute("value") for one in chosen.all()] == ["state", "late_click", "conversion"]
        page.click("button:has-text('Create the tracker')")
        page.wait_for_selector(".code:has-text('whsec_')")
        secret = page.locator(".code:has-text('whsec_')").inner_text()
        page.reload()
        page.wait_for_selector("text=This form was sent before")
        assert secret not in page.content()
        if scripts:
            assert [text for text in visit.problems if "403" not in text and "422" not in text] == []


def test_typing_into_a_page_whose_session_has_expired_loses_nothing(browser: Chromium, empty_server: Server) -> None:
    state = accept_invitation(browser, empty_server, "Pia")
    text = 'typed #track("https://a.example/")'
    with browser.page(state=state) as visit:
        visit.open(f"{empty_server.base}/portal/1/try")
        _expire_sessions(empty_server)
        visit.page.fill("[name=body]", text)
        visit.page.wait_for_selector("#result:has-text('Your entries are still in the form')")
        visit.page.click("button:has-text('Create the message')")
        visit.page.fill("[name=name]", "Pia")
        visit.page.fill("[name=password]", PASSWORD)
        visit.page.click("button:has-text('Sign in')")
        visit.page.wait_for_selector("h1:has-text('Try it')")
        assert visit.page.input_value("[name=body]") == text


def test_the_receiver_offers_the_exact_headers_and_body_of_a_request_as_files(
    browser: Chromium, demo_server: Server, admin: Any
) -> None:
    with browser.page(state=admin, scripts=False) as visit:
        visit.open(demo_server.base + "/portal/1/receiver")
        contents = []
        for name in ("headers.txt", "body.json"):
            with visit.page.expect_download() as download:
                visit.page.locator(f"details[open] a[download='{name}']").first.click()
            assert download.value.suggested_filename == name
            contents.append(download.value.path().read_bytes())
        headers, body = contents
        assert f"Content-Length: {len(body)}\n".encode() in headers


def test_a_copied_link_shows_the_same_period_later_and_in_another_time_zone(
    browser: Chromium, demo_server: Server, viewer: Any
) -> None:
    with browser.page(state=viewer) as visit:
        visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        visit.open(demo_server.base + "/portal/1/campaigns?period=7d&compare=autumn-sale&compare=black-friday")
        visit.page.click("form button[data-copy]")
        visit.page.wait_for_selector(".tip:has-text('Copied')")
        copied = visit.page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith(demo_server.base + "/portal/1/campaigns?")
        parts = parse_qs(urlsplit(copied).query)
        assert (parts["period"], parts["tz"], parts["compare"]) == (["custom"], ["Europe/Berlin"], ["autumn-sale", "black-friday"])
        before = visit.page.locator("table.compare").inner_text()
        visit.open(copied)
        assert visit.page.locator("table.compare").inner_text() == before
        # With plain http, browsers give a page no access to the clipboard.
        visit.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        visit.page.click("form button[data-copy]")
        visit.page.wait_for_selector(".tip:has-text('Copied')")
        assert visit.problems == []


def test_the_number_of_a_bar_appears_at_once_under_the_pointer(browser: Chromium, demo_server: Server, viewer: Any) -> None:
    with browser.page(state=viewer) as visit:
        visit.open(demo_server.base + "/portal/1/?period=7d")
        visit.page.locator(".plot .slot .target").nth(2).hover()
        assert visit.page.locator(".tip").is_visible()
        assert re.match(r"\w{3} \d+ \w{3} \d{4}: \d+\nThe period before: \d+", visit.page.locator(".tip").inner_text())
        assert visit.page.evaluate("document.querySelectorAll('.plot .slot')[2].querySelector('title')") is None
        visit.page.mouse.move(1, 1)
        assert not visit.page.locator(".tip").is_visible()
        assert visit.problems == []


def test_long_names_of_applications_and_campaigns_do_not_push_fields_and_columns_out_of_the_window(
    browser: Chromium, empty_server: Server
) -> None:
    empty_server.command("applications", "create", "A very long name of an application for the customer loyalty team")
    campaign = "Second reminder for customers who did not open the first message of the loyalty programme " + "a" * 60
    with empty_server.api() as client:
        message = {"to": "+4915123456781", "campaign": campaign, "body": '#track("https://shop.example/1003")'}
        response = client.post("/api/v1/rewrite", json=message)
        assert response.status_code == 200
        path = urlsplit(response.json()["messages"][0]["links"][0]["short_url"]).path
        httpx.get(empty_server.base + path, headers={"User-Agent": PHONE}, follow_redirects=False)
    state = accept_invitation(browser, empty_server, "Lea")
    with browser.page(state=state, width=390) as visit:
        visit.open(empty_server.base + "/portal/admin/operators")
        assert visit.overflow() == 0
        visit.page.set_viewport_size({"width": 1280, "height": 900})
        for page in ("clicks", "links"):
            visit.open(f"{empty_server.base}/portal/1/{page}")
            frame = "(frame => frame.scrollWidth - frame.clientWidth)(document.querySelector('.table-frame'))"
            assert visit.page.locator("tbody tr").count() > 0, page
            assert visit.page.evaluate(frame) == 0, page
        assert visit.problems == []
