"""Tests of the page /docs in a browser: its search, its links and its forms that send requests. The browser enforces the
Content-Security-Policy of the page.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.portal.browser import Chromium, browser_path, chromium
from tests.acceptance.process import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browser_path() is None,
        reason="SKIPPED: no browser for the page /docs (apt-get install chromium-headless-shell)",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


def test_the_search_of_the_docs_page_shows_the_operations_that_contain_all_search_words(server: Server, browser: Chromium) -> None:
    with browser.page() as visit:
        visit.open(f"{server.base}/docs")
        visit.page.keyboard.press("/")
        visit.page.keyboard.type("trackers test")
        visible = visit.page.locator("details.operation:visible summary .path").all_inner_texts()
        assert "/api/v1/trackers/{tracker_id}/test" in visible
        assert 1 <= len(visible) < 10
        assert visit.page.locator("#found").inner_text().startswith(f"{len(visible)} of ")
        visit.page.keyboard.press("Escape")
        assert visit.page.locator("details.operation:visible").count() > 60
        visit.page.fill("#search", "no operation has these words")
        assert visit.page.locator("details.operation:visible").count() == 0
        assert visit.problems == []


def test_a_link_to_an_operation_opens_that_operation_on_the_docs_page(server: Server, browser: Chromium) -> None:
    with browser.page() as visit:
        visit.open(f"{server.base}/docs#list_trackers")
        assert visit.page.locator("#list_trackers form.try button").is_visible()
        assert visit.problems == []


def test_a_form_on_the_docs_page_sends_a_request_with_the_api_key_and_shows_the_response(server: Server, browser: Chromium) -> None:
    with browser.page() as visit:
        page = visit.page
        visit.open(f"{server.base}/docs#rewrite")
        page.click("#rewrite form.try button")
        page.wait_for_selector("#rewrite .result:visible")
        assert page.inner_text("#rewrite .status").startswith("401 ")
        visit.problems.clear()  # the browser writes the status 401 to its console as an error
        page.fill("#api-key", server.first["api_key"])
        page.click("#rewrite form.try button")
        page.wait_for_selector("#rewrite .status:text-matches('^200 ')")
        assert '"segments": 1' in page.inner_text("#rewrite .answer")
        page.goto(f"{server.base}/docs#get_message")
        page.click("#get_message form.try button")
        page.wait_for_selector("#get_message .status:text-matches('^200 ')")
        page.goto(f"{server.base}/docs#track_conversion")
        page.fill("#tracker-token", server.first["tracker_token"])
        page.click("#track_conversion form.try button")
        page.wait_for_selector("#track_conversion .status:text-matches('^200 ')")
        assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert visit.problems == []


def test_without_scripts_the_docs_page_is_complete_and_shows_no_forms(server: Server, browser: Chromium) -> None:
    with browser.page(scripts=False) as visit:
        visit.open(f"{server.base}/docs")
        assert visit.page.locator("#search:visible").count() == 0
        visit.page.click("details.operation summary >> nth=0")
        assert visit.page.locator("#rewrite pre >> nth=0").is_visible()
        assert visit.page.locator("form.try:visible").count() == 0


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_docs_page_is_never_wider_than_the_window(server: Server, browser: Chromium, width: int) -> None:
    with browser.page(width=width) as visit:
        visit.open(f"{server.base}/docs#rewrite")
        assert visit.overflow() == 0
