"""Tests of every figure of the portal in a browser: it links to a list whose CSV has as many rows as the figure counts.

The pages are visited with each filter, by the time of the event and by the time of sending. Each sum of values links to the
conversions whose values it adds up.
"""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from typing import Any

import pytest

from tests.acceptance.portal.browser import Chromium, Visitor
from tests.acceptance.process import Server

PAGES = (
    "/portal/1/?period=28d",
    "/portal/all/?period=7d",
    "/portal/1/?period=7d&campaign=order-updates&metric=messages",
    "/portal/1/?period=7d&source=campaign&metric=conversions",
    "/portal/1/campaigns?period=28d&compare=autumn-sale&compare=black-friday",
    "/portal/1/campaigns/black-friday?period=28d",
)
#: Other pages with figures. Their figures do not depend on a period.
OTHER_PAGES = (
    "/portal/1/trackers",
    "/portal/1/trackers/3",
    "/portal/1/gateways",
    "/portal/1/links?period=28d",
    "/portal/1/messages/demo-00001",
)


def _rows(visit: Visitor, href: str) -> list[dict[str, str]]:
    path, _, query = href.partition("?")
    response = visit.page.request.get(f"{path}.csv?{query}")
    assert response.status == 200, href
    return list(csv.DictReader(io.StringIO(response.text())))


def _check(visit: Visitor, url: str, known: dict[str, int]) -> int:
    """Compare each figure of a page with the number of rows in the list to which it links. Return the number of figures on the
    page."""
    visit.open(url)
    found = visit.figures()
    for name, value, href in found:
        if href not in known:
            known[href] = len(_rows(visit, href))
        assert known[href] == value, (url, name, href)
    script = "[...document.querySelectorAll('a[data-sum]')].map(a => [a.dataset.sum, a.dataset.value, a.href])"
    for currency, amount, href in visit.page.evaluate(script):
        rows = _rows(visit, href)
        assert sum(Decimal(row["value"]) for row in rows) == Decimal(amount), (url, href)
        assert {row["currency"] or "none" for row in rows} == {currency}
    assert visit.problems == []
    return len(found)


@pytest.mark.parametrize("basis", ["event", "sent"])
def test_every_figure_of_the_portal_equals_the_number_of_rows_in_the_list_that_it_links_to(
    browser: Chromium, demo_server: Server, admin: Any, basis: str
) -> None:
    known: dict[str, int] = {}
    with browser.page(state=admin) as visit:
        for page in PAGES:
            assert _check(visit, f"{demo_server.base}{page}&basis={basis}", known) > 10, page
        for page in OTHER_PAGES if basis == "event" else ():
            assert _check(visit, demo_server.base + page, known) > 0, page
        # A click on a figure opens the list of the rows that the figure counts.
        visit.open(f"{demo_server.base}/portal/1/?period=28d&basis={basis}")
        value = int(visit.page.get_attribute("a[data-figure=clicks]", "data-value"))
        visit.page.click("dl.figures a[data-figure=clicks]")
        visit.page.wait_for_selector("h1:has-text('Clicks')")
        assert visit.page.locator("main table tbody tr").count() == min(value, 50)
    assert len(known) > 100
