"""Tests of access to the portal in a browser: invitations, the second factor, sign-in and sign-out, roles, and use with the
keyboard.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import orjson
import pyotp

from tests.acceptance.portal.browser import PASSWORD, Chromium, accept_invitation
from tests.acceptance.portal.shots import start
from tests.acceptance.process import Server
from tests.servers import PATIENCE


def test_the_first_admin_signs_up_with_the_printed_invitation_and_adds_a_second_factor(browser: Chromium, tmp_path: Path) -> None:
    server = start(tmp_path)
    try:
        invitation = re.search(r'"portal_invitation":"([^"]+)"', server.printed)
        assert invitation is not None
        file = tmp_path / "portal-invitation"
        assert file.read_text().strip() == invitation[1]
        assert file.stat().st_mode & 0o777 == 0o600
        with browser.page() as visit:
            page = visit.page
            visit.open(invitation[1])
            assert page.url.endswith("/portal/welcome")  # the token is no longer in the address bar
            page.fill("[name=name]", "Grace")
            page.fill("[name=password]", PASSWORD)
            page.fill("[name=again]", PASSWORD)
            page.click("button.main")
            page.click("a:has-text('Set up')")
            secret = page.inner_text(".code").strip()
            page.fill("[name=code]", pyotp.TOTP(secret).now())
            page.click("button:has-text('Turn on')")
            codes = page.locator(".secrets li").all_inner_texts()
            assert len(codes) == 10
            page.click("text=I have stored them")
            page.click("summary[aria-label^='Your account']")
            page.click("button:has-text('Sign out')")
            page.fill("[name=name]", "grace")
            page.fill("[name=password]", PASSWORD)
            page.click("button.main")
            page.fill("[name=code]", codes[0])
            page.click("button.main")
            page.wait_for_selector("h1:has-text('Overview')")
            assert visit.problems == []
        assert not file.exists()
        server.kill()
        server.start()
        assert '"portal_invitation":null' in server.printed
    finally:
        if server.process is not None:
            server.kill()


def test_an_invitation_link_can_be_pasted_into_a_form_in_a_browser_without_scripts(browser: Chromium, demo_server: Server) -> None:
    invitation = demo_server.command("operators", "invite", "Noor", "--role", "viewer", "--application", "1")
    with browser.page(scripts=False) as visit:
        page = visit.page
        visit.open(f"{demo_server.base}/portal/welcome")
        page.fill("[name=token]", invitation["url"])
        page.click("button.main")
        page.fill("[name=password]", PASSWORD)
        page.fill("[name=again]", PASSWORD)
        page.click("button.main")
        page.wait_for_selector("h1:has-text('Overview')")


def test_a_viewer_gets_404_for_administration_pages_and_for_pages_of_other_applications(
    browser: Chromium, demo_server: Server, viewer: object
) -> None:
    with browser.page(state=viewer) as visit:
        visit.open(f"{demo_server.base}/portal/")
        assert visit.page.url == f"{demo_server.base}/portal/1/"
        assert "Operators" not in visit.page.inner_text("nav")
        for path in ("/portal/all/", "/portal/2/", "/portal/admin/operators"):
            response = visit.page.goto(demo_server.base + path)
            assert response.status == 404


def test_a_disabled_operator_is_signed_out_at_once(browser: Chromium, demo_server: Server) -> None:
    state = accept_invitation(browser, demo_server, "Dora", "viewer", 1)
    with browser.page(state=state) as visit:
        visit.open(f"{demo_server.base}/portal/1/")
        demo_server.command("operators", "disable", "Dora")
        visit.open(f"{demo_server.base}/portal/1/")
        assert "/portal/signin" in visit.page.url


def test_the_overview_page_can_be_operated_with_the_keyboard(browser: Chromium, demo_server: Server, viewer: object) -> None:
    with browser.page(state=viewer) as visit:
        page = visit.page
        visit.open(f"{demo_server.base}/portal/1/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "The period before"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.name") == "period"
        page.select_option("select[name=period]", "7d")
        page.wait_for_url(re.compile("period=7d"))
        # The links in the chart are skipped by the tab key, because the table below the chart has the same links.
        assert page.locator("svg.chart a:not([tabindex='-1'])").count() == 0


def test_a_portal_page_on_a_phone_has_a_bar_with_the_main_pages_and_a_menu_with_all_other_pages(
    browser: Chromium, demo_server: Server, viewer: object
) -> None:
    for width in (320, 390):
        with browser.page(state=viewer, width=width) as visit:
            page = visit.page
            visit.open(f"{demo_server.base}/portal/1/?period=7d")
            assert not page.is_visible("nav.side-wide")
            labels = page.locator("nav.bottom > ul > li > a").all_inner_texts()
            assert labels == ["Overview", "Messages", "Live", "Campaigns"]
            for box in [page.locator("nav.bottom > ul > li").nth(number).bounding_box() for number in range(5)]:
                assert box["width"] >= 44
                assert box["height"] >= 44
            page.click("nav.bottom a:has-text('Messages')")
            page.wait_for_selector("h1:has-text('Messages')")
            assert "period=7d" in page.url
            page.click("nav.bottom summary")
            page.click("nav.bottom .side a:has-text('Conversions')")
            page.wait_for_selector("h1:has-text('Conversions')")
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            bar, content = page.locator("nav.bottom").bounding_box(), page.locator("main").bounding_box()
            assert content["y"] + content["height"] <= bar["y"] + 1  # the bar at the bottom does not cover the end of the page
            assert visit.problems == []


def test_an_error_of_try_it_is_in_view_and_has_the_focus_and_copy_buttons_stay_beside_their_texts(
    browser: Chromium, demo_server: Server, admin: object
) -> None:
    for width, height in ((390, 700), (1280, 720)):
        with browser.page(state=admin, width=width) as visit:
            page = visit.page
            page.set_viewport_size({"width": width, "height": height})
            visit.open(f"{demo_server.base}/portal/1/try")
            page.fill("[name=to]", "555")
            page.click("button:has-text('Preview')")
            page.wait_for_selector("[role=alert]:focus")
            assert page.evaluate("scrollY") == 0
            page.click("[role=alert] a:has-text('Recipient')")
            page.wait_for_selector("#f-to[aria-invalid=true]:focus")
            page.fill("[name=to]", "+14085550100")
            page.click("button:has-text('Preview')")
            page.wait_for_selector("#preview")
            box = page.locator("#preview").bounding_box()
            assert 0 <= box["y"] <= height - 100, "the preview is visible at the top of the window"
            visit.open(f"{demo_server.base}/portal/1/receiver")
            text, button = page.locator(".copyable .code").bounding_box(), page.locator(".copyable button").bounding_box()
            assert text["x"] + text["width"] <= button["x"]
            assert text["y"] < button["y"] + button["height"] / 2 < text["y"] + text["height"]


def test_keyboard_shortcuts_open_portal_pages_and_the_search_but_have_no_effect_in_text_fields(
    browser: Chromium, demo_server: Server, viewer: object
) -> None:
    with browser.page(state=viewer) as visit:
        visit.open(f"{demo_server.base}/portal/1/")
        visit.page.keyboard.type("gm")
        visit.page.wait_for_selector("h1:has-text('Messages')")
        visit.page.keyboard.press("/")
        assert visit.page.evaluate("document.activeElement.name") == "q"
        visit.page.keyboard.type("go")
        assert visit.page.input_value("header input[name=q]") == "go"


def test_stopping_the_server_does_not_wait_for_open_portal_pages_and_the_live_page_says_that_it_is_interrupted(
    browser: Chromium, tmp_path: Path
) -> None:
    server = start(tmp_path)
    state = accept_invitation(browser, server, "Ada")
    with browser.page(state=state) as visit:
        visit.open(f"{server.base}/portal/1/")
        visit.open(f"{server.base}/portal/1/live")
        visit.page.wait_for_selector("[data-stream-state].good:has-text('following')")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 8
        visit.page.wait_for_selector("[data-stream-state].warn:has-text('interrupted, tries again')")
        server.start()
        try:
            visit.page.wait_for_selector("[data-stream-state].good:has-text('following')", timeout=1000 * PATIENCE)
        finally:
            server.kill()


def test_the_demo_command_serves_the_portal_and_deletes_its_data_when_it_stops(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shortener", "demo", "--portal", "--port", "0", "--messages", "10", "--json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        started = orjson.loads(process.stdout.readline())
        assert started["portal_invitation"].startswith(started["base_url"] + "/portal/welcome#")
        assert httpx.get(started["base_url"] + "/portal/signin", trust_env=False, timeout=PATIENCE).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.stdout.close()  # type: ignore[union-attr]
