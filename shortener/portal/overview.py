"""GET /portal/{app}/: the overview: figures with their change, chart, campaigns, countries, destinations."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from starlette.responses import Response

from shortener.portal.charts import Bar
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.periods import local_days
from shortener.portal.scopes import report_of, scopes_of
from shortener.reporting.figures import Figures
from shortener.reporting.statistics import by_country, daily, totals
from shortener.times import end_of, start_of


async def overview(visit: Visit) -> Response:
    """Show the overview of a period."""
    period = visit.period
    now = await report_of(visit, totals)
    before = await report_of(visit, totals, scopes=scopes_of(visit, *period.previous))
    days = await report_of(visit, daily, period.zone)
    countries = await report_of(visit, by_country)
    return visit.render(
        "overview.html",
        title="Overview",
        figures=now.groups.get(None, Figures()),
        before=before.groups.get(None, Figures()),
        complete=now.complete,
        bars=_bars(visit, days.groups),
        countries=sorted(countries.groups.items(), key=lambda group: (-group[1]["messages"], group[0]))[:12],
    )


def _bars(visit: Visit, days: Mapping[date, Figures]) -> list[Bar]:
    period = visit.period
    bars = []
    for day in local_days(period.since, period.until, period.zone):
        since, until = max(start_of(day, period.zone), period.since), min(end_of(day, period.zone), period.until)
        query = period.query(since, until) | {"metric": "clicks"}
        value = days.get(day, Figures())["clicks"]
        href = visit.link("clicks", keep=False, **query)
        bars.append(Bar(f"{day:%-d %b}", f"{day:%a %-d %b %Y}", value, href, is_partial=until >= visit.now))
    return bars


PAGES = [PortalPage("/portal/{app}/", overview, navigation=NavigationItem("Overview", "layout-dashboard", 10))]
