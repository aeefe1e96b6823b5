"""Statistics: totals, by day, by country."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.reporting.messages import serialize_decimal
from shortener.reporting.statistics import MAX_DAYS, Figures, StatisticsFilter, by_country, daily, totals
from shortener.storage.types import to_iso
from shortener.times import end_of, start_of
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import Text
from shortener.web.messages import Source
from shortener.web.period import Period

DAYS = 30  # told when `since` is not given, today included
#: Seconds, minutes, hours and days that times to click are told by.
WITHIN = (10, 30, 60, 300, 900, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400)


class StatisticsQuery(Period):
    """What is counted. Without `since`: the last 30 days."""

    campaign: Text | None = Field(None, max_length=200)
    source: Source = Field("all", description="API traffic, campaigns or both.")


class DailyQuery(StatisticsQuery):
    """What is counted. Without `since`: the last 30 days. Times without a zone and dates are in `tz`."""

    tz: str = Field("UTC", max_length=64, description="Time zone that days are cut in, for example Europe/Berlin.")

    @field_validator("tz")
    @classmethod
    def _check_zone(cls, value: str) -> str:
        _zone(value)
        return value


def _zone(name: str) -> tzinfo:
    if name == "UTC":  # known also where no time zones are installed
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("is not a time zone that this machine knows; wants a name such as Europe/Berlin") from None


class TimeToClick(ResponseModel):
    within_seconds: int | None = Field(description="From sending to the first click, at most; null: longer than all others.")
    messages: int


class FigureFields(ResponseModel):
    """Each is counted at its own time: a message when it was made, a click when it was clicked."""

    messages: int = Field(description="Messages rewritten or registered.")
    segments: int
    sent: int
    delivered: int
    read: int
    failed: int = Field(description="Failed or expired.")
    clicked_messages: int = Field(description="Messages that were clicked for the first time.")
    clicks: int = Field(description="Hits of people on links that were alive.")
    suspected_hits: int = Field(description="Hits of scanners, previews and the like; no clicks.")
    ignored_hits: int = Field(description="HEAD requests and prefetches.")
    late_hits: int = Field(description="Hits on expired links.")
    conversions: int
    value: dict[str, str] = Field(description='Sum of the conversions\' values by currency; "" for those without one. Decimals.')
    delivery_rate: float | None = Field(description="delivered / messages; null when there are no messages.")
    click_rate: float | None = Field(description="clicked_messages / messages.")
    conversion_rate: float | None = Field(description="conversions / messages.")
    median_seconds_to_click: float | None = Field(description="From sending to the first click; within 2.5 %.")
    p90_seconds_to_click: float | None
    time_to_click: list[TimeToClick] = Field(description="Clicked messages by the time that it took, each in one entry only.")
    devices: dict[str, int] = Field(description="Clicks by kind: phone, tablet, desktop, bot, other; some minutes behind `clicks`.")
    browsers: dict[str, int] = Field(description="Clicks by browser, or app with a browser in it; some minutes behind `clicks`.")


class _StatisticsResponse(ResponseModel):
    status: Literal[True] = True
    since: str = Field(description="Counted from here, from the beginning of its quarter of an hour.")
    until: str = Field(description="Counted up to here, to the end of its quarter of an hour.")
    complete: bool = Field(description="False when so much just happened that the newest of it is not counted yet.")


class TotalsResponse(_StatisticsResponse, FigureFields):
    pass


class Day(FigureFields):
    day: str


class DailyResponse(_StatisticsResponse):
    """Every day of the time, oldest first."""

    tz: str
    days: list[Day]


class Country(FigureFields):
    country: str | None = Field(description="ISO 3166 code; null when the number does not tell.")


class CountriesResponse(_StatisticsResponse):
    """Countries of the recipients' numbers, most messages first."""

    countries: list[Country]


async def stats(call: Call[StatisticsQuery, None]) -> dict[str, Any]:
    scope = _scope(call.query, call.application_id, call.service.clock(), UTC)
    report = await call.service.database.read(totals, scope)
    return {**_head(scope, report.complete), **figures(report.groups[None])}


async def stats_daily(call: Call[DailyQuery, None]) -> dict[str, Any]:
    zone = _zone(call.query.tz)
    scope = _scope(call.query, call.application_id, call.service.clock(), zone)
    if scope.until - scope.since > timedelta(days=MAX_DAYS):
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("since", f"is more than {MAX_DAYS} days before until")])
    report = await call.service.database.read(daily, scope, zone)
    days = [{"day": day.isoformat(), **figures(of_day)} for day, of_day in report.groups.items()]
    return {**_head(scope, report.complete), "tz": call.query.tz, "days": days}


async def stats_by_country(call: Call[StatisticsQuery, None]) -> dict[str, Any]:
    scope = _scope(call.query, call.application_id, call.service.clock(), UTC)
    report = await call.service.database.read(by_country, scope)
    groups = sorted(report.groups.items(), key=lambda group: (-group[1]["messages"], group[0]))
    countries = [{"country": country or None, **figures(of_country)} for country, of_country in groups]
    return {**_head(scope, report.complete), "countries": countries}


def figures(counted: Figures) -> dict[str, Any]:
    """As FiguresAnswer tells them."""
    return {
        **{metric: counted[metric] for metric in _COUNTED},
        "value": {currency: serialize_decimal(amount) for currency, amount in sorted(counted.value.items())},
        "delivery_rate": counted.delivery_rate,
        "click_rate": counted.click_rate,
        "conversion_rate": counted.conversion_rate,
        "median_seconds_to_click": counted.seconds_to_click(50),
        "p90_seconds_to_click": counted.seconds_to_click(90),
        "time_to_click": [
            {"within_seconds": seconds, "messages": amount}
            for seconds, amount in zip((*WITHIN, None), counted.clicked_within(WITHIN), strict=True)
        ],
        "devices": _most_first(counted.devices),
        "browsers": _most_first(counted.browsers),
    }


def _most_first(amounts: dict[str, int]) -> dict[str, int]:
    return {name: amount for name, amount in sorted(amounts.items(), key=lambda one: (-one[1], one[0])) if amount}


_COUNTED = (
    "messages",
    "segments",
    "sent",
    "delivered",
    "read",
    "failed",
    "clicked_messages",
    "clicks",
    "suspected_hits",
    "ignored_hits",
    "late_hits",
    "conversions",
)


def _scope(query: StatisticsQuery, application_id: int, now: datetime, zone: tzinfo) -> StatisticsFilter:
    # One millisecond more: what happens at this moment is counted too.
    until = end_of(query.until, zone) if query.until is not None else now + timedelta(milliseconds=1)
    if query.since is not None:
        since = start_of(query.since, zone)
    else:
        last: date = (until - timedelta(milliseconds=1)).astimezone(zone).date()
        since = start_of(last - timedelta(days=DAYS - 1), zone)
    source = None if query.source == "all" else query.source
    return StatisticsFilter(application_id, since, until, query.campaign, source)


def _head(scope: StatisticsFilter, complete: bool) -> dict[str, Any]:
    return {"status": True, "since": to_iso(scope.since), "until": to_iso(scope.until), "complete": complete}


_TAG = "Statistics"
_DESCRIPTION = (
    "From counts that are kept as things happen, never by scanning hits; what happened a moment ago is in them. Each thing is "
    "counted at its own time, so the clicks of a day may be of messages of the day before, and a rate of a short time above 1."
)

ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/sms/stats",
        stats,
        "Totals",
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
        "Day by day, in your time zone",
        _TAG,
        permission="sms.read",
        query=DailyQuery,
        response=DailyResponse,
        description=f"{_DESCRIPTION} At most {MAX_DAYS} days.",
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/stats/by-country",
        stats_by_country,
        "By country of the recipient",
        _TAG,
        permission="sms.read",
        query=StatisticsQuery,
        response=CountriesResponse,
        description=_DESCRIPTION,
    ),
]
