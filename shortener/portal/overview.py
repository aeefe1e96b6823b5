"""GET /portal/{app}/: the overview page of an application. It shows the figures and their changes since the previous period, a
chart, the funnel from message to conversion, the times from sending to click, and panels with figures by campaign, destination,
country, device and browser. Every figure is a hyperlink to the list of the rows that it counts. The page for all applications
shows the sums over all applications and the figures of each application. If the database cannot return the data of a panel in
time, this panel shows an error instead, and the rest of the page is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection
from starlette.responses import Response

from shortener.errors import ApiError, Detail, ErrorCode, StoreUnavailable
from shortener.portal.attention import attention
from shortener.portal.clicks import click_times
from shortener.portal.formats import shares
from shortener.portal.getting_started import first_steps
from shortener.portal.listing import campaign_query
from shortener.portal.overview_chart import DEFAULT_METRIC, METRICS, bars_of, buckets, href_of
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.scopes import report_of, scopes_of
from shortener.reporting.figures import Figures
from shortener.reporting.statistics import StatisticsFilter, by_country, by_destination, campaign_page, totals

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_ROWS = 10  # The maximum number of rows in a panel of the page.
PANEL_SECONDS = 2.0  # The time limit in seconds for reading the data of one panel.


async def overview(visit: Visit) -> Response:
    """Show the overview page for a period."""
    metric = visit.get("metric") or DEFAULT_METRIC
    if metric not in METRICS:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("metric", f"must be one of {', '.join(METRICS)}")])
    now = await report_of(visit, totals)
    before = await report_of(visit, totals, scopes=scopes_of(visit, *visit.period.previous))
    # If no application existed at the start of the previous period, do not compare: every figure would seem to grow.
    existed = any(application.created_at <= visit.period.previous[0] for application in visit.applications)
    figures, past = now.groups.get(None, Figures()), before.groups.get(None, Figures()) if existed else Figures()
    parts = await buckets(visit)
    return visit.render(
        "overview.html",
        title="Overview",
        figures=figures,
        before=past,
        complete=now.complete,
        parts=parts,
        bars=bars_of(visit, parts, metric),
        href_of=lambda part: href_of(visit, part, metric),
        metric=metric,
        metrics=METRICS,
        campaign_query=campaign_query,
        names={application.id: application.name for application in visit.applications},
        click_times=click_times(figures),
        devices=shares(figures.devices),
        browsers=shares(figures.browsers),
        campaigns=await _panel("campaigns", _campaigns(visit)),
        # `merges_rest=False`: without it, a report merges the last destinations into one group. No list contains exactly the rows
        # of such a group, so the panel could not link its figures to a list.
        destinations=await _panel("destinations", _groups(visit, partial(by_destination, merges_rest=False))),
        countries=await _panel("countries", _groups(visit, by_country)),
        applications=await _panel("applications", _applications(visit)) if visit.application is None else [],
        attention=await _panel("attention", attention(visit, figures)),
        steps=await _panel("first steps", first_steps(visit)) or [],
    )


async def _panel(name: str, work: Awaitable[T]) -> T | None:
    """Return the data of a panel. Return None if the database does not return the data within PANEL_SECONDS."""
    try:
        async with asyncio.timeout(PANEL_SECONDS):
            return await work
    except (TimeoutError, StoreUnavailable):
        log.warning("panel_failed", panel=name)
        return None


async def _groups(visit: Visit, report: Any) -> list[tuple[str, Figures]]:
    """Run a report, and return the groups with the most messages, at most MAX_ROWS."""
    groups = (await report_of(visit, report)).groups
    return sorted(groups.items(), key=lambda group: (-group[1]["messages"], -group[1]["clicks"], group[0]))[:MAX_ROWS]


async def _campaigns(visit: Visit) -> list[tuple[int, str, Figures]]:
    """Return (application, name, figures) for each of the newest campaigns with messages or events in the period. Two
    applications can have campaigns of the same name; these are separate."""

    def read(connection: Connection, scopes: list[StatisticsFilter]) -> list[tuple[int, str, Figures]]:
        found: list[tuple[int, int, str, Figures]] = []
        for scope in scopes:
            page = campaign_page(connection, scope, MAX_ROWS)
            rows = zip(page.numbers, page.campaigns, strict=True)
            found += [(number, scope.application_id, name, figures) for number, (name, figures) in rows]
        # All applications share one sequence of campaign numbers, so the highest numbers belong to the newest campaigns.
        newest = sorted(found, key=itemgetter(0), reverse=True)[:MAX_ROWS]
        return [row[1:] for row in newest]

    return await visit.service.database.read(read, scopes_of(visit))


async def _applications(visit: Visit) -> list[tuple[Any, Figures]]:
    """On the page for all applications, return the figures of each application."""
    rows = []
    for application, scope in zip(visit.applications, scopes_of(visit), strict=True):
        report = await visit.service.database.read(totals, scope)
        rows.append((application, report.groups[None]))
    return rows


PAGES = [PortalPage("/portal/{app}/", overview, navigation=NavigationItem("Overview", "layout-dashboard", 10, key="o", phone=1))]
