"""The endpoints that return statistics: totals, and figures by day, hour, country, campaign, destination, label and action."""

from __future__ import annotations

from datetime import date, datetime, timedelta, tzinfo
from typing import Any, Literal

from pydantic import Field

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.outbox.link_sets import MAX_NAMES
from shortener.reporting.rollups import Basis
from shortener.reporting.statistics import (
    MAX_DAYS,
    StatisticsFilter,
    by_country,
    by_destination,
    by_hour,
    by_label,
    campaign_page,
    daily,
    totals,
)
from shortener.storage.types import to_iso
from shortener.times import end_of, start_of
from shortener.web.endpoint import Call, Endpoint
from shortener.web.fields import Text
from shortener.web.messages import Source
from shortener.web.paging import Cursor, Cursors
from shortener.web.period import Period
from shortener.web.statistics_fields import (
    ActionsResponse,
    CampaignsResponse,
    CountriesResponse,
    DailyResponse,
    DestinationsResponse,
    HoursResponse,
    LabelsResponse,
    TotalsResponse,
    action_figures,
    figures,
)

DEFAULT_DAYS = 30  # the default period has this number of days, including today


class StatisticsQuery(Period):
    """Filters of statistics. If `since` is absent, the period is the last 30 days."""

    campaign: Text | None = Field(None, max_length=200, description="Only messages of the campaign with this name.")
    source: Source = Field("all", description="Only messages of this traffic source: `api` or `campaign`. Default: both.")
    basis: Literal["event", "sent"] = Field(
        "event",
        description=(
            "The time at which an event is counted. `event`: the time of the event. `sent`: the time when its message was "
            "created. With `sent`, a click today on a message of yesterday counts for yesterday, and no click rate and no "
            "delivery rate exceeds 1."
        ),
    )


class CampaignsQuery(StatisticsQuery):
    """Filters of the statistics by campaign, and the position of the page in the list."""

    limit: int = Field(100, ge=1, le=200, description="Maximum number of campaigns in a page.")
    cursor: Cursor = None


async def stats(call: Call[StatisticsQuery, None]) -> dict[str, Any]:
    """Return the total statistics of a period."""
    scope = _scope(call)
    report = await call.service.database.read(totals, scope)
    return {**_head(scope, report.complete), **figures(report.groups[None])}


async def stats_daily(call: Call[StatisticsQuery, None]) -> dict[str, Any]:
    """Return the statistics of each day."""
    scope = _scope(call)
    if scope.until - scope.since > timedelta(days=MAX_DAYS):
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("since", f"must be at most {MAX_DAYS} days before until")])
    report = await call.service.database.read(daily, scope, call.query.zone)
    days = [{"day": day.isoformat(), **figures(day_figures)} for day, day_figures in report.groups.items()]
    return {**_head(scope, report.complete), "tz": call.query.tz, "days": days}


async def stats_by_hour(call: Call[StatisticsQuery, None]) -> dict[str, Any]:
    """Return the statistics of each hour of the day."""
    scope = _scope(call)
    report = await call.service.database.read(by_hour, scope, call.query.zone)
    hours = [{"hour": hour, **figures(hour_figures)} for hour, hour_figures in report.groups.items()]
    return {**_head(scope, report.complete), "tz": call.query.tz, "hours": hours}


async def stats_by_country(call: Call[StatisticsQuery, None]) -> dict[str, Any]:
    """Return the statistics of each recipient country."""
    scope = _scope(call)
    report = await call.service.database.read(by_country, scope)
    groups = sorted(report.groups.items(), key=lambda group: (-group[1]["messages"], group[0]))
    countries = [{"country": country or None, **figures(country_figures)} for country, country_figures in groups]
    return {**_head(scope, report.complete), "countries": countries}


async def stats_by_campaign(call: Call[CampaignsQuery, None]) -> dict[str, Any]:
    """Return the statistics of each campaign."""
    scope = _scope(call)
    cursors = Cursors(call.service.secret, "campaigns")
    page = await call.service.database.read(campaign_page, scope, call.query.limit, cursors.decode(call.query.cursor))
    campaigns = [{"campaign": campaign, **figures(counted)} for campaign, counted in page.campaigns]
    return {**_head(scope, page.complete), "campaigns": campaigns, "next_cursor": cursors.encode(page.next)}


async def stats_by_destination(call: Call[StatisticsQuery, None]) -> dict[str, Any]:
    """Return the statistics of each destination."""
    scope = _scope(call)
    report = await call.service.database.read(by_destination, scope)
    destinations = [{"destination": name, **figures(counted)} for name, counted in report.groups.items()]
    return {**_head(scope, report.complete), "destinations": destinations}


async def stats_by_label(call: Call[StatisticsQuery, None]) -> dict[str, Any]:
    """Return the statistics of each label of `#trackurl` links."""
    scope = _scope(call)
    report = await call.service.database.read(by_label, scope)
    labels = [{"label": name, **figures(counted)} for name, counted in report.groups.items()]
    return {**_head(scope, report.complete), "labels": labels}


async def stats_by_action(call: Call[StatisticsQuery, None]) -> dict[str, Any]:
    """Return the conversion statistics of each action."""
    scope = _scope(call)
    report = await call.service.database.read(totals, scope)
    return {**_head(scope, report.complete), "actions": action_figures(report.groups[None])}


def _scope(call: Call[Any, None]) -> StatisticsFilter:
    return statistics_filter(call.query, call.application_id, call.service.clock())


def statistics_filter(query: StatisticsQuery, application_id: int, now: datetime) -> StatisticsFilter:
    """Return the filter for the reports of `shortener.reporting` that corresponds to the query of a request."""
    since, until = statistics_period(query.since, query.until, query.zone, now)
    source = None if query.source == "all" else query.source
    return StatisticsFilter(application_id, since, until, query.campaign, source, Basis[query.basis.upper()])


def statistics_period(since: date | None, until: date | None, zone: tzinfo, now: datetime) -> tuple[datetime, datetime]:
    """Return the start and the end of a period in UTC. A value without a zone is in the time zone `zone`, and a date as `until`
    includes the whole day. Without `until`, the period ends now; it is empty if `since` is in the future. Without `since`, the
    period has DEFAULT_DAYS days, and its last day is the day of its end, which may be incomplete.
    """
    # A period does not include its end. Therefore the end is one millisecond after now, so that events of the current millisecond
    # are included.
    end = end_of(until, zone) if until is not None else now + timedelta(milliseconds=1)
    if since is not None:
        start = start_of(since, zone)
        return start, end if until is not None else max(start, end)
    last: date = (end - timedelta(milliseconds=1)).astimezone(zone).date()
    return start_of(last - timedelta(days=DEFAULT_DAYS - 1), zone), end


def _head(scope: StatisticsFilter, complete: bool) -> dict[str, Any]:
    return {"status": True, "since": to_iso(scope.since), "until": to_iso(scope.until), "complete": complete}


_TAG = "Statistics"
_DESCRIPTION = (
    "Counts are updated as events occur and include events of the last second. With `basis=event`, each event counts at its "
    "own time. The clicks of a day can belong to messages of the day before, so a rate for a short period can exceed 1. "
    "With `basis=sent`, each event counts at the time when its message was created."
)
_LIMITED = (
    f"In one campaign, the first {MAX_NAMES}  destinations or labels have their own entry. All others are in the entry "
    "`other`. A message with several links counts in the entries of all its links, but its first click counts only in "
    "the entry of the clicked link. Messages from before version 0.3 are included only after `shortener verify --repair`."
)

ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/sms/stats",
        stats,
        "Totals of a period",
        _TAG,
        permission="sms.read",
        query=StatisticsQuery,
        response=TotalsResponse,
        description=_DESCRIPTION,
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/stats/daily",
        stats_daily,
        "Figures by day, in a time zone",
        _TAG,
        permission="sms.read",
        query=StatisticsQuery,
        response=DailyResponse,
        description=f"{_DESCRIPTION} The period must have at most {MAX_DAYS} days.",
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/stats/by-action",
        stats_by_action,
        "Conversions by action and disposition",
        _TAG,
        permission="sms.read",
        query=StatisticsQuery,
        response=ActionsResponse,
        description=f"{_DESCRIPTION} A conversion counts at the time of its first report, under its latest status.",
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/stats/by-country",
        stats_by_country,
        "Figures by country of the recipient",
        _TAG,
        permission="sms.read",
        query=StatisticsQuery,
        response=CountriesResponse,
        description=_DESCRIPTION,
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/stats/by-campaign",
        stats_by_campaign,
        "Figures by campaign",
        _TAG,
        permission="sms.read",
        query=CampaignsQuery,
        response=CampaignsResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=f"{_DESCRIPTION}  Campaigns without messages and events in the period are left out.",
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/stats/by-destination",
        stats_by_destination,
        "Figures by destination",
        _TAG,
        permission="sms.read",
        query=StatisticsQuery,
        response=DestinationsResponse,
        description=f"{_DESCRIPTION} {_LIMITED}",
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/stats/by-label",
        stats_by_label,
        "Figures by label of #trackurl links",
        _TAG,
        permission="sms.read",
        query=StatisticsQuery,
        response=LabelsResponse,
        description=f"{_DESCRIPTION} {_LIMITED}",
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/stats/by-hour",
        stats_by_hour,
        "Figures by hour of the day, in a time zone",
        _TAG,
        permission="sms.read",
        query=StatisticsQuery,
        response=HoursResponse,
        description=_DESCRIPTION,
    ),
]
