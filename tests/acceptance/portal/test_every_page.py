"""Tests of each page of the portal in a browser: it is accessible, has no errors, never scrolls sideways, and calls no other
host.

A test fails if a page of the portal is missing in PATHS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.portal.accessibility import axe_violations, examine
from tests.acceptance.portal.browser import Chromium, Visitor
from tests.acceptance.process import Server
from tests.portal.visited_pages import unvisited_pages

#: The paths of all portal pages, with ids of objects of the demo installation. {code} and {delivery} are replaced by ids of
#: `demo_ids`.
PATHS = (
    "/portal/1/",
    "/portal/1/?period=24h&campaign=order-updates&basis=sent&metric=messages",
    "/portal/all/",
    "/portal/1/campaigns?compare=order-updates&compare=black-friday&compare=autumn-sale",
    "/portal/1/campaigns/order-updates",
    "/portal/1/messages?campaign=autumn-sale",
    "/portal/1/messages/demo-00001",
    "/portal/1/clicks?metric=suspected_hits",
    "/portal/1/conversions",
    "/portal/1/conversions/refused",
    "/portal/1/links?campaign=autumn-sale",
    "/portal/1/links/{code}",
    "/portal/1/live",
    "/portal/1/try",
    "/portal/1/trackers",
    "/portal/1/trackers/new",
    "/portal/1/trackers/3",
    "/portal/1/trackers/3/edit",
    "/portal/1/gateways",
    "/portal/1/sends?state=sent",
    "/portal/1/sends?state=held&period=365d",
    "/portal/all/sends",
    "/portal/1/deliveries?tracker=3&status=dead&period=365d",
    "/portal/1/deliveries/replays/new?tracker=3&period=365d",
    "/portal/1/deliveries/replays/rpl_00000000001",
    "/portal/1/deliveries/{delivery}",
    "/portal/1/receiver?format=scg",
    "/portal/1/keys",
    "/portal/1/domains",
    "/portal/1/domains/go.brand.example",
    "/portal/1/settings",
    "/portal/1/privacy",
    "/portal/admin/applications",
    "/portal/search?q=nothing",
    "/portal/admin/system",
    "/portal/confirm",
    "/portal/me",
    "/portal/me/second-factor",
    "/portal/admin/operators",
    "/portal/admin/operators/1",
    "/portal/admin/audit",
    "/portal/1/campaigns",
    "/portal/search?q=demo-00001x",
    "/portal/1/no-such-page",
    "/portal/1/?period=nonsense",
)
PUBLIC_PATHS = ("/portal/signin", "/portal/welcome", "/portal/signin?signed-out=1")
#: Paths that are left out of PATHS: redirects, a stream, and the page that asks for a code, which needs a session with a second
#: factor.
NOT_VISITED = {"/portal", "/portal/", "/portal/open/{signed}", "/portal/{app}/live/stream", "/portal/signin/code"}

#: The frame (header and navigation) is examined only on these pages. They include one page of each kind of navigation, and a page
#: that is not in the navigation. On all other pages, the frame differs only in names.
FRAMES = {
    "/portal/1/",
    "/portal/all/",
    "/portal/1/privacy",
    "/portal/search?q=nothing",
    "/portal/admin/system",
    "/portal/me",
    "/portal/1/?period=nonsense",
}


@pytest.fixture(scope="module")
def _page_of_the_admin(browser: Chromium, admin: Any) -> Iterator[Visitor]:
    with browser.page(state=admin) as visit:
        yield visit


@pytest.fixture
def visit(_page_of_the_admin: Visitor) -> Visitor:
    """A page of an admin in the browser. All tests share it, because opening a new profile takes longer than most tests."""
    visit = _page_of_the_admin
    visit.page.goto("about:blank")
    visit.page.context.clear_permissions()
    visit.page.emulate_media(color_scheme="light")
    visit.page.set_viewport_size({"width": 1280, "height": 900})
    visit.problems.clear()
    return visit


def test_a_browser_visits_every_portal_page() -> None:
    assert unvisited_pages((*PATHS, *PUBLIC_PATHS), NOT_VISITED) == []


def test_axe_measures_the_contrast_of_texts_on_portal_pages(browser: Chromium, demo_server: Server, admin: Any) -> None:
    """This test shows that axe can find the background of the texts. If it could not, the tests of the pages would report no
    contrast at all."""
    with browser.page(state=admin) as visit:
        visit.open(demo_server.base + "/portal/1/")
        visit.page.evaluate("for (const one of document.querySelectorAll('h1, h2')) one.style.color = '#eee'")
        found = [one for one in axe_violations(visit) if one.startswith("color-contrast: <h") and "insufficient" in one]
        assert len(found) == visit.page.locator("h1, h2").count()


@pytest.mark.parametrize(
    ("path", "button", "question"),
    [
        ("/portal/1/keys", "Revoke", "Revoke the key"),
        ("/portal/1/sends?state=held&period=365d", "Give up", "Give the message"),
    ],
)
def test_the_question_before_a_destructive_action_is_accessible_fits_every_window_width_and_causes_no_errors(
    demo_server: Server, visit: Visitor, path: str, button: str, question: str
) -> None:
    visit.open(demo_server.base + path)
    visit.page.click(f"main button:has-text('{button}')")
    visit.page.wait_for_selector(f"h1:has-text('{question}')")
    examine(visit, with_frame=False)
    assert visit.problems == []


def test_the_frame_of_a_page_of_each_navigation_is_examined() -> None:
    assert set(PATHS) >= FRAMES


@pytest.mark.parametrize("path", PATHS)
def test_each_portal_page_is_accessible_fits_every_window_width_and_causes_no_errors(
    demo_server: Server, demo_ids: dict[str, str], visit: Visitor, path: str
) -> None:
    visit.open(demo_server.base + path.format(**demo_ids))
    examine(visit, with_frame=path in FRAMES)
    is_error_page = "no-such-page" in path or "nonsense" in path
    problems = [one for one in visit.problems if not (is_error_page and "Failed to load resource" in one)]
    assert (problems, visit.page.locator("h1").count()) == ([], 1)


@pytest.mark.parametrize("path", PUBLIC_PATHS)
def test_each_page_before_the_sign_in_is_accessible_fits_every_window_width_and_causes_no_errors(
    browser: Chromium, demo_server: Server, path: str
) -> None:
    with browser.page() as visit:
        visit.open(demo_server.base + path)
        examine(visit)
        assert (visit.problems, visit.page.locator("h1").count()) == ([], 1)


def test_every_portal_page_works_without_scripts(
    browser: Chromium, demo_server: Server, admin: Any, demo_ids: dict[str, str]
) -> None:
    with browser.page(state=admin, scripts=False) as visit:
        for path in PATHS[:-2]:
            visit.open(demo_server.base + path.format(**demo_ids))
            assert visit.page.locator("h1").count() == 1
        visit.open(demo_server.base + "/portal/1/")
        visit.page.select_option("select[name=period]", "7d")
        visit.page.click("button:has-text('Show')")
        assert "period=7d" in visit.page.url


def test_the_first_visit_to_the_portal_transfers_few_bytes_and_static_files_are_cached(
    browser: Chromium, demo_server: Server, admin: Any
) -> None:
    for path, state, limit in (("/portal/signin", None, 40_000), ("/portal/1/", admin, 120_000)):
        with browser.page(state=state) as visit:
            session = visit.page.context.new_cdp_session(visit.page)
            session.send("Network.enable")
            sizes: list[int] = []
            session.on("Network.loadingFinished", lambda event, sizes=sizes: sizes.append(event["encodedDataLength"]))
            visit.open(demo_server.base + path)
            assert sizes
            assert sum(sizes) <= limit, path
            assert len(sizes) <= 8
            sizes.clear()
            visit.open(demo_server.base + path)
            assert sum(sizes) <= 25_000
