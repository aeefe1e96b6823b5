"""Statistics: totals, by day, hour, country, campaign, destination and label."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field

from shortener.conversions.status_words import CATEGORIES
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.outbox.link_sets import MAX_NAMES
from shortener.reporting.figures import ConversionFigures, Figures
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
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import Text
from shortener.web.messages import Source
from shortener.web.paging import Cursor, Cursors, NextCursor
from shortener.web.period import Period, TimeZoneName, time_zone

DEFAULT_DAYS = 30  # number of days in the default period, including today
#: Upper bounds of the groups of times to click, in seconds.
CLICK_TIME_BOUNDS_SECONDS = (10, 30, 60, 300, 900, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400)


class StatisticsQuery(Period):
    """Filters of statistics. Without `since`: the last 30 days."""

    campaign: Text | None = Field(None, max_length=200, description="Only messages of the campaign with this name.")
    source: Source = Field("all", description="Only messages of this traffic source: `api` or `campaign`. Default: both.")
    basis: Literal["event", "sent"] = Field(
        "event",
        description="The time that counts. `event`: each event at its own time. `sent`: each event at the time when its message "
        "was created, so a click today on a message of yesterday counts yesterday, and no click or delivery rate exceeds 1.",
    )
    tz: TimeZoneName = "UTC"


class CampaignsQuery(StatisticsQuery):
    """Filters of the statistics by campaign, and the page."""

    limit: int = Field(100, ge=1, le=200, description="Maximum number of campaigns in a page.")
    cursor: Cursor = None


class TimeToClick(ResponseModel):
    """Number of messages whose time from sending to the first click is in this group."""

    within_seconds: int | None = Field(
        description="Upper bound of the time from sending to the first click, in seconds; null: longer than the largest bound."
    )
    messages: int


class FigureFields(ResponseModel):
    """Counts by the time of each event, or of its message (`basis`)."""

    messages: int = Field(description="Number of messages that were rewritten, including messages without links.")
    segments: int
    links: int = Field(description="Number of short links in the counted messages.")
    sent: int
    delivered: int
    read: int
    failed: int = Field(description="Number of messages that failed or expired.")
    clicked_messages: int = Field(description="Number of messages that got their first click.")
    clicked_links: int = Field(description="Number of links that got their first click.")
    clicks: int = Field(description="Number of hits by people on links that had not expired.")
    suspected_hits: int = Field(
        description="Number of hits by scanners, link previews and other programs. They do not count as clicks."
    )
    ignored_hits: int = Field(description="Number of HEAD requests and prefetches. They do not count as clicks.")
    late_hits: int = Field(description="Number of hits on expired links. They do not count as clicks.")
    conversions: int
    cost: str = Field(
        description="Cost of the messages that were sent through gateways, as a decimal string in the currency of the balance."
    )
    value: dict[str, str] = Field(
        description="Sum of the values of conversions that are neither negative nor pending, by currency, as decimal strings; "
        '"" means no currency. A sum of 0 is left out.'
    )
    conversions_by_disposition: dict[str, int] = Field(
        description="Number of conversions: positive, negative, pending, and other (no disposition and no known status word)."
    )
    value_by_disposition: dict[str, dict[str, str]] = Field(
        description="Sums of the values of conversions by disposition and by currency."
    )
    delivery_rate: float | None = Field(description="Delivery rate: delivered divided by messages. null if there are no messages.")
    click_rate: float | None = Field(description="Click rate: clicked_messages divided by messages. null if there are no messages.")
    conversion_rate: float | None = Field(
        description="Conversion rate: conversions divided by messages. null if there are no messages."
    )
    median_seconds_to_click: float | None = Field(
        description="Median time from sending to the first click, in seconds, accurate to 2.5 %."
    )
    p90_seconds_to_click: float | None = Field(
        description="90th percentile of the time from sending to the first click, in seconds, accurate to 2.5 %."
    )
    time_to_click: list[TimeToClick] = Field(
        description="Number of clicked messages by the time from sending to their first click. Each message is in one group."
    )
    devices: dict[str, int] = Field(
        description="Number of clicks by device: phone, tablet, desktop, bot, other. Updated a few minutes after `clicks`."
    )
    browsers: dict[str, int] = Field(
        description="Number of clicks by browser or by app with a built-in browser. Updated a few minutes after `clicks`."
    )
    click_countries: dict[str, int] = Field(
        description="Number of clicks by the country of the client's IP address (ISO 3166), from NETWORK_FILES. Clicks of unknown "
        "countries are left out. Updated a few minutes after `clicks`."
    )


class _StatisticsResponse(ResponseModel):
    status: Literal[True] = True
    since: str = Field(description="Start of the period. The time slot of 15 minutes that contains it is counted completely.")
    until: str = Field(description="End of the period. The time slot of 15 minutes that contains it is counted completely.")
    complete: bool = Field(description="false if the newest events are not counted yet because of high load.")


class TotalsResponse(_StatisticsResponse, FigureFields):
    """The statistics of all messages in the period."""


class DailyFigures(FigureFields):
    day: str


class HourFigures(FigureFields):
    hour: int = Field(description="Hour of the day in `tz`, 0 to 23.")


class HoursResponse(_StatisticsResponse):
    """One entry for each hour of the day, over all days of the period."""

    tz: str
    hours: list[HourFigures]


class CampaignFigures(FigureFields):
    campaign: str = Field(description='Name of the campaign. "" stands for messages without a campaign.')


class CampaignsResponse(_StatisticsResponse):
    """Campaigns with counts in the period, newest campaign first."""

    campaigns: list[CampaignFigures]
    next_cursor: NextCursor


class DestinationFigures(FigureFields):
    destination: str = Field(description='Host and path of the destination. "other" stands for all destinations beyond the limit.')


class DestinationsResponse(_StatisticsResponse):
    """One entry for each destination, most messages first."""

    destinations: list[DestinationFigures]


class LabelFigures(FigureFields):
    label: str = Field(description='Label of `#trackurl` links. "other" stands for all labels beyond the limit.')


class LabelsResponse(_StatisticsResponse):
    """One entry for each label, most messages first."""

    labels: list[LabelFigures]


class DailyResponse(_StatisticsResponse):
    """One entry for every day of the period, oldest first."""

    tz: str
    days: list[DailyFigures]


class ActionFigures(ResponseModel):
    """Counts and values of the conversions with one action."""

    action: str = Field(
        description="The action, in lower case. `(other)` stands for all actions beyond the first 200 of the application."
    )
    conversions: int
    conversions_by_disposition: dict[str, int] = Field(
        description="Number of conversions by disposition: positive, negative, pending, other."
    )
    value: dict[str, str] = Field(
        description="Sum of the values of conversions that are neither negative nor pending, by currency."
    )
    value_by_disposition: dict[str, dict[str, str]] = Field(
        description="Sums of the values of conversions by disposition and by currency."
    )


class ActionsResponse(_StatisticsResponse):
    """One entry for each action of a conversion, most conversions first."""

    actions: list[ActionFigures]


class CountryFigures(FigureFields):
    country: str | None = Field(
        description="Country of the recipients' phone numbers as ISO 3166 code. null: the number does not show the country."
    )


class CountriesResponse(_StatisticsResponse):
    """One entry for each country of a recipient's number, most messages first."""

    countries: list[CountryFigures]


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
    report = await call.service.database.read(daily, scope, time_zone(call.query.tz))
    days = [{"day": day.isoformat(), **figures(day_figures)} for day, day_figures in report.groups.items()]
    return {**_head(scope, report.complete), "tz": call.query.tz, "days": days}


async def stats_by_hour(call: Call[StatisticsQuery, None]) -> dict[str, Any]:
    """Return the statistics of each hour of the day."""
    scope = _scope(call)
    report = await call.service.database.read(by_hour, scope, time_zone(call.query.tz))
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
    actions: dict[str, dict[str, ConversionFigures]] = {}
    for (category, action), counted in report.groups[None].by_action.items():
        actions.setdefault(action, {}).setdefault(category, ConversionFigures()).add(counted)
    rows = []
    for action, by_category in actions.items():
        revenue = ConversionFigures()
        for category in ("positive", "other"):
            revenue.add(by_category.get(category, ConversionFigures()))
        rows.append(
            {
                "action": action,
                "conversions": sum(one.conversions for one in by_category.values()),
                "value": _sums(revenue.value),
                **_by_disposition({category: by_category.get(category, ConversionFigures()) for category in CATEGORIES}),
            }
        )
    rows.sort(key=lambda row: (-row["conversions"], row["action"]))
    return {**_head(scope, report.complete), "actions": rows}


def _by_disposition(by_category: Mapping[str, ConversionFigures]) -> dict[str, Any]:
    return {
        "conversions_by_disposition": {category: one.conversions for category, one in by_category.items()},
        "value_by_disposition": {category: _sums(one.value) for category, one in by_category.items()},
    }


def _sums(value: Mapping[str, Decimal]) -> dict[str, str]:
    """Return the sums by currency as decimal strings, without sums of 0."""
    return {currency: format(amount, "f") for currency, amount in sorted(value.items()) if amount}


def figures(counted: Figures) -> dict[str, Any]:
    """Convert the figures of a report to the fields of `FigureFields`."""
    return {
        **{metric: counted[metric] for metric in _COUNTED},
        "cost": format(counted.cost, "f"),
        "value": _sums(counted.value),
        **_by_disposition(counted.by_category()),
        "delivery_rate": counted.delivery_rate,
        "click_rate": counted.click_rate,
        "conversion_rate": counted.conversion_rate,
        "median_seconds_to_click": counted.seconds_to_click(50),
        "p90_seconds_to_click": counted.seconds_to_click(90),
        "time_to_click": [
            {"within_seconds": seconds, "messages": amount}
            for seconds, amount in zip(
                (*CLICK_TIME_BOUNDS_SECONDS, None), counted.clicked_within(CLICK_TIME_BOUNDS_SECONDS), strict=True
            )
        ],
        "devices": _sort_by_amount(counted.devices),
        "browsers": _sort_by_amount(counted.browsers),
        "click_countries": _sort_by_amount(counted.click_countries),
    }


def _sort_by_amount(amounts: dict[str, int]) -> dict[str, int]:
    return {name: amount for name, amount in sorted(amounts.items(), key=lambda one: (-one[1], one[0])) if amount}


_COUNTED = (
    "messages",
    "segments",
    "links",
    "sent",
    "delivered",
    "read",
    "failed",
    "clicked_messages",
    "clicked_links",
    "clicks",
    "suspected_hits",
    "ignored_hits",
    "late_hits",
    "conversions",
)


def _scope(call: Call[Any, None]) -> StatisticsFilter:
    return statistics_filter(call.query, call.application_id, call.service.clock())


def statistics_filter(query: StatisticsQuery, application_id: int, now: datetime) -> StatisticsFilter:
    """Convert a query to a filter. Without `since`, the period starts at midnight DEFAULT_DAYS before its end."""
    zone = time_zone(query.tz)
    # The end of a period is excluded, so one millisecond is added to include events of the current millisecond.
    until = end_of(query.until, zone) if query.until is not None else now + timedelta(milliseconds=1)
    if query.since is not None:
        since = start_of(query.since, zone)
    else:
        last: date = (until - timedelta(milliseconds=1)).astimezone(zone).date()
        since = start_of(last - timedelta(days=DEFAULT_DAYS - 1), zone)
    source = None if query.source == "all" else query.source
    return StatisticsFilter(application_id, since, until, query.campaign, source, Basis[query.basis.upper()])


def _head(scope: StatisticsFilter, complete: bool) -> dict[str, Any]:
    return {"status": True, "since": to_iso(scope.since), "until": to_iso(scope.until), "complete": complete}


_TAG = "Statistics"
_DESCRIPTION = (
    "Counts are updated as events occur and include events of the last second. With `basis=event`, each event counts at its own "
    "time. The clicks of a day may belong to messages of the day before, so a rate of a short period may exceed 1. With "
    "`basis=sent`, each event counts at the time when its message was created."
)
_LIMITED = (
    f"In one campaign, the first {MAX_NAMES} have their own entry; all others are in the entry `other`. A message with several "
    "links counts in the entry of each of them, and its first click counts in the entry that was clicked. Messages from before "
    "version 1.1 are not included."
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
        description=f"{_DESCRIPTION} Campaigns without counts in the period are left out.",
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
