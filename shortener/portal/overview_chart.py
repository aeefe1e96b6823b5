"""The chart of the overview page. It shows one metric, with one bar per hour, day, week or four weeks. A mark at each bar shows
the value in the previous period."""

# Tested by tests/portal/test_overview.py

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta, tzinfo
from typing import Any

from shortener.model import record
from shortener.portal.charts import Bar, days_per_bar, label_of_days, label_of_hour
from shortener.portal.page import Visit
from shortener.portal.periods import local_days, local_hours
from shortener.portal.scopes import report_of, scopes_of
from shortener.reporting.figures import Figures
from shortener.reporting.statistics import daily, hourly
from shortener.times import start_of

#: The metrics that the chart can show. Each is the name of a figure, with its label and the page that lists the counted rows.
METRICS = {
    "clicks": ("Clicks", "clicks"),
    "clicked_messages": ("Clicked messages", "clicks"),
    "messages": ("Messages", "messages"),
    "converted_messages": ("Converted messages", "messages"),
    "conversions": ("Conversions", "conversions"),
    "suspected_hits": ("Suspected hits", "clicks"),
}
DEFAULT_METRIC = "clicks"
MAX_HOURLY = timedelta(days=3, hours=1)  # The longest period that has one bar per hour.


@record
class Bucket:
    """The part of the period that one bar shows. It contains the start, the end, the figures, and the figures of the
    corresponding part of the previous period."""

    since: datetime
    until: datetime
    label: str
    title: str
    figures: Figures
    before: Figures | None
    is_known: bool  # False if no application of the page existed at the time of the bar. The chart then shows a gap.


async def buckets(visit: Visit) -> list[Bucket]:
    """Return one bucket for each bar of the chart, oldest first."""
    period = visit.period
    if period.until - period.since <= MAX_HOURLY:
        return await _hours(visit)
    now = await report_of(visit, daily, period.zone)
    before = await report_of(visit, daily, period.zone, scopes=scopes_of(visit, *period.previous))
    return _days(visit, now.groups, before.groups)


def _days(visit: Visit, now: Mapping[date, Figures], before: Mapping[date, Figures]) -> list[Bucket]:
    period = visit.period
    days = local_days(period.since, period.until, period.zone)
    size = days_per_bar(len(days))
    earlier = local_days(*period.previous, period.zone)
    found = []
    for index in range(0, len(days), size):
        chunk = days[index : index + size]
        since = max(start_of(chunk[0], period.zone), period.since)
        until = min(start_of(chunk[-1] + timedelta(days=1), period.zone), period.until)
        label, title = label_of_days(chunk)
        figures, past = Figures(), Figures()
        for day in chunk:
            figures.merge(now.get(day, Figures()))
        for day in earlier[index : index + size]:
            past.merge(before.get(day, Figures()))
        has_past = index < len(earlier) and _is_known(visit, start_of(earlier[index], period.zone))
        found.append(Bucket(since, until, label, title, figures, past if has_past else None, _is_known(visit, until)))
    return found


async def _hours(visit: Visit) -> list[Bucket]:
    """Return one bucket for each hour. An hour is compared with the hour of the previous period that has the same local time.
    When daylight saving time ends, one local hour occurs twice; the second one is compared with nothing."""
    period = visit.period
    now = (await report_of(visit, hourly, period.zone)).groups
    before = (await report_of(visit, hourly, period.zone, scopes=scopes_of(visit, *period.previous))).groups
    past_hours: dict[datetime, Figures] = {}
    for begin, _ in local_hours(*period.previous, period.zone):
        past_hours.setdefault(_local(begin, period.zone), Figures()).merge(before.get(begin, Figures()))
    distance = _local(period.since, period.zone) - _local(period.previous[0], period.zone)
    found = []
    for begin, end in local_hours(period.since, period.until, period.zone):
        label, title = label_of_hour(begin.astimezone(period.zone), end.astimezone(period.zone))
        is_known = _is_known(visit, begin - (period.since - period.previous[0]))
        past = past_hours.pop(_local(begin, period.zone) - distance, None) if is_known else None
        figures = now.get(begin, Figures())
        found.append(Bucket(max(begin, period.since), min(end, period.until), label, title, figures, past, _is_known(visit, end)))
    return found


def _local(at: datetime, zone: tzinfo) -> datetime:
    """Return the local time at which the hour of `at` begins, without a UTC offset."""
    return at.astimezone(zone).replace(tzinfo=None, minute=0, second=0, microsecond=0)


def _is_known(visit: Visit, until: datetime) -> bool:
    """Return whether any application of the page existed before `until`."""
    return any(application.created_at < until for application in visit.applications)


def bars_of(visit: Visit, parts: list[Bucket], metric: str) -> list[Bar]:
    """Return the bars of the chart. Each bar is a hyperlink to the list of the rows that the bar counts."""
    bars = []
    for part in parts:
        value = part.figures[metric] if part.is_known or part.figures[metric] else None
        title = part.title if value is not None else f"{part.title}: the application did not exist yet"
        before = None if part.before is None else part.before[metric]
        bars.append(Bar(part.label, title, value, href_of(visit, part, metric), before, is_partial=part.until >= visit.now))
    return bars


def href_of(visit: Visit, part: Bucket, metric: str) -> str:
    """Return the URL of the page that lists the rows which a bar counts."""
    query: dict[str, Any] = visit.period.query(part.since, part.until)
    return visit.link(
        METRICS[metric][1], keep=False, **query, metric=metric, campaign=visit.get("campaign"), source=visit.get("source")
    )
