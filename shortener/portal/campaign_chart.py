"""The chart of a campaign: its clicks over time. Each click is counted at its own time, not at the send date of its message.

Most people click within a day of the sending, so a chart with one bar for each day would have a single bar for most campaigns.
Therefore, if all clicks of the period are within a few days, the chart shows only these days, with one bar for each hour.
"""

# Tested by tests/portal/test_listing.py

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta

from sqlalchemy import Connection

from shortener.model import record
from shortener.portal.charts import Bar, days_per_bar, label_of_days, label_of_hour
from shortener.portal.listing import campaign_query
from shortener.portal.overview_chart import MAX_HOURLY
from shortener.portal.page import Visit
from shortener.portal.periods import PeriodChoice, local_days, local_hours
from shortener.reporting.figures import Figures
from shortener.reporting.rollups import Basis
from shortener.reporting.statistics import StatisticsFilter, daily, hourly
from shortener.times import end_of, start_of

MAX_DAYS_OF_HOURS = 3  # If all clicks are within this number of consecutive days, the chart has one bar for each hour.


@record
class CampaignClicks:
    """The clicks of a campaign from `since` until `until`. `hours` has the clicks by hour (the key is the start of the hour in
    UTC). If `hours` is None, the chart shows `days`. `is_part`: the chart shows only a part of the page's period, and the rest of
    the period has no clicks."""

    since: datetime
    until: datetime
    days: Mapping[date, Figures]
    hours: Mapping[datetime, Figures] | None = None
    is_part: bool = False


def read_clicks(connection: Connection, scope: StatisticsFilter, period: PeriodChoice) -> CampaignClicks:
    """Read the clicks of a campaign. Call this in the transaction that reads the other figures of the page."""
    by_event = replace(scope, basis=Basis.EVENT)
    if period.until - period.since <= MAX_HOURLY:
        return CampaignClicks(period.since, period.until, {}, hourly(connection, by_event, period.zone).groups)
    days = daily(connection, by_event, period.zone).groups
    clicked = [day for day, figures in days.items() if figures["clicks"]]
    if not clicked or (clicked[-1] - clicked[0]).days >= MAX_DAYS_OF_HOURS:
        return CampaignClicks(period.since, period.until, days)
    since = max(start_of(clicked[0], period.zone), period.since)
    until = min(end_of(clicked[-1], period.zone), period.until)
    hours = hourly(connection, replace(by_event, since=since, until=until), period.zone).groups
    return CampaignClicks(since, until, days, hours, is_part=True)


def bars_of(visit: Visit, clicks: CampaignClicks, name: str) -> list[Bar]:
    """Return the bars of the chart. `name` is the name of the campaign. Each bar is a hyperlink to the list of its clicks."""
    zone = visit.period.zone
    bars = []
    if clicks.hours is not None:
        for begin, end in local_hours(clicks.since, clicks.until, zone):
            texts = label_of_hour(begin.astimezone(zone), end.astimezone(zone))
            limits = max(begin, clicks.since), min(end, clicks.until)
            bars.append(_bar(visit, name, texts, limits, clicks.hours.get(begin, Figures())["clicks"]))
        return bars
    shown = local_days(clicks.since, clicks.until, zone)
    size = days_per_bar(len(shown))
    for index in range(0, len(shown), size):
        chunk = shown[index : index + size]
        limits = max(start_of(chunk[0], zone), clicks.since), min(end_of(chunk[-1], zone), clicks.until)
        number = sum(clicks.days.get(day, Figures())["clicks"] for day in chunk)
        bars.append(_bar(visit, name, label_of_days(chunk), limits, number))
    return bars


def _bar(visit: Visit, name: str, texts: tuple[str, str], limits: tuple[datetime, datetime], number: int) -> Bar:
    query = {**visit.period.query(*limits), "basis": Basis.EVENT.name.lower(), "metric": "clicks", **campaign_query(name)}
    return Bar(*texts, number, visit.link("clicks", keep=False, **query), is_partial=limits[1] >= visit.now)


def shown_days(visit: Visit, clicks: CampaignClicks) -> str | None:
    """Return the days that the chart shows as text, such as "29 Nov to 30 Nov 2026". Return None if it shows the whole period."""
    if not clicks.is_part:
        return None
    last = clicks.until - timedelta(microseconds=1)
    return label_of_days(local_days(clicks.since, last, visit.period.zone))[1]
