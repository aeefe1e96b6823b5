"""This module contains the response fields of statistics, and converts the figures of reports to these fields."""
# Tested by tests/web/test_statistics.py

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field

from shortener.conversions.status_words import CATEGORIES
from shortener.reporting.figures import ConversionFigures, Figures
from shortener.web.endpoint import ResponseModel
from shortener.web.paging import NextCursor

_LATER = "Clicks of the last two minutes are not included, even if `complete` is true."

#: Messages are grouped by their time from sending to the first click. These are the upper bounds of the groups, in seconds.
CLICK_TIME_BOUNDS_SECONDS = (10, 30, 60, 300, 900, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400)


class TimeToClick(ResponseModel):
    """One group of messages, by the time from sending to the first click, and the number of messages in this group."""

    within_seconds: int | None = Field(
        description="Upper bound of the time from sending to the first click, in seconds; null: longer than the largest bound."
    )
    messages: int


class FigureFields(ResponseModel):
    """Figures of the events in the period. The parameter `basis` selects whether an event counts at its own time or at the time
    when its message was created."""

    messages: int = Field(description="Number of messages that were rewritten, including messages without links.")
    segments: int
    links: int = Field(description="Number of short links in the counted messages.")
    sent: int
    delivered: int
    read: int
    failed: int = Field(description="Number of messages that failed or expired.")
    clicked_messages: int = Field(description="Number of messages that were clicked for the first time.")
    clicked_links: int = Field(description="Number of links that were clicked for the first time.")
    clicks: int = Field(description="Number of hits by people on links that had not expired.")
    suspected_hits: int = Field(
        description="Number of hits by scanners, link previews and other programs. They do not count as clicks."
    )
    ignored_hits: int = Field(description="Number of HEAD requests and prefetches. They do not count as clicks.")
    late_hits: int = Field(description="Number of hits on expired links. They do not count as clicks.")
    converted_messages: int = Field(
        description="Number of messages with at least one conversion of any disposition. A message counts once, at the time of its "
        "first conversion."
    )
    conversions: int = Field(description="Number of conversions. A message can have several.")
    cost: str = Field(
        description="Cost of the messages that were sent through gateways. The cost of a message that certainly was not sent "
        "is refunded and not included. `mt_price` does not change after a refund, so the cost can differ from the sum of "
        "`mt_price`. A decimal string in the currency of the balance (`GET /api/v1/balance`), or in the currency of the "
        "operator's prices if the application has no balance."
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
        description="Conversion rate: converted_messages divided by messages. null if there are no messages."
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
    devices: dict[str, int] = Field(description=f"Number of clicks by device: phone, tablet, desktop, bot, other. {_LATER}")
    browsers: dict[str, int] = Field(description=f"Number of clicks by browser or by app with a built-in browser. {_LATER}")
    click_countries: dict[str, int] = Field(
        description="Number of clicks by the country of the client's IP address (ISO 3166), from NETWORK_FILES. Clicks of unknown "
        f"countries are left out. {_LATER}"
    )


class StatisticsResponse(ResponseModel):
    status: Literal[True] = True
    since: str = Field(description="Start of the period. The time slot of 15 minutes that contains it is counted completely.")
    until: str = Field(description="End of the period. The time slot of 15 minutes that contains it is counted completely.")
    complete: bool = Field(
        description=(
            "false if the figures do not contain all events. Under high load, the newest events are counted later. After an "
            "upgrade, older events are missing until a job has counted them. Events in a damaged row of the database are "
            "missing until an operator has repaired the row. `complete` does not apply to `devices`, `browsers` and "
            "`click_countries`, which count each click about two minutes later."
        )
    )


class TotalsResponse(StatisticsResponse, FigureFields):
    """The statistics of all messages in the period."""


class DailyFigures(FigureFields):
    day: str


class HourFigures(FigureFields):
    hour: int = Field(description="Hour of the day in `tz`, 0 to 23.")


class HoursResponse(StatisticsResponse):
    """One entry for each hour of the day, over all days of the period."""

    tz: str
    hours: list[HourFigures]


class CampaignFigures(FigureFields):
    campaign: str = Field(description='Name of the campaign. "" stands for messages without a campaign.')


class CampaignsResponse(StatisticsResponse):
    """Campaigns with messages or events in the period, newest campaign first."""

    campaigns: list[CampaignFigures]
    next_cursor: NextCursor


class DestinationFigures(FigureFields):
    destination: str = Field(
        description='Host and path of the destination. "other" stands for all destinations after the first 200 of each campaign.'
    )


class DestinationsResponse(StatisticsResponse):
    """One entry for each destination. The destination with the most messages comes first."""

    destinations: list[DestinationFigures]


class LabelFigures(FigureFields):
    label: str = Field(
        description='Label of `#trackurl` links. "other" stands for all labels after the first 200 of each campaign.'
    )


class LabelsResponse(StatisticsResponse):
    """One entry for each label. The label with the most messages comes first."""

    labels: list[LabelFigures]


class DailyResponse(StatisticsResponse):
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


class ActionsResponse(StatisticsResponse):
    """One entry for each action. The action with the most conversions comes first."""

    actions: list[ActionFigures]


class CountryFigures(FigureFields):
    country: str | None = Field(
        description="Country of the recipients' phone numbers as ISO 3166 code. null: the numbers belong to no country."
    )


class CountriesResponse(StatisticsResponse):
    """One entry for each country of recipients' numbers. The country with the most messages comes first."""

    countries: list[CountryFigures]


def action_figures(counted: Figures) -> list[dict[str, Any]]:
    """Convert the conversions of a report to `ActionFigures`: one entry for each action, the action with the most conversions
    first."""
    actions: dict[str, dict[str, ConversionFigures]] = {}
    for (category, action), amounts in counted.by_action.items():
        actions.setdefault(action, {}).setdefault(category, ConversionFigures()).add(amounts)
    rows = []
    for action, by_category in actions.items():
        revenue = ConversionFigures()
        for category in ("positive", "other"):
            revenue.add(by_category.get(category, ConversionFigures()))
        rows.append(
            {
                "action": action,
                "conversions": sum(one.conversions for one in by_category.values()),
                "value": sums(revenue.value),
                **by_disposition({category: by_category.get(category, ConversionFigures()) for category in CATEGORIES}),
            }
        )
    return sorted(rows, key=lambda row: (-row["conversions"], row["action"]))


def by_disposition(by_category: Mapping[str, ConversionFigures]) -> dict[str, Any]:
    return {
        "conversions_by_disposition": {category: one.conversions for category, one in by_category.items()},
        "value_by_disposition": {category: sums(one.value) for category, one in by_category.items()},
    }


def sums(value: Mapping[str, Decimal]) -> dict[str, str]:
    """Return the sums by currency as decimal strings, without sums of 0."""
    return {currency: format(amount, "f") for currency, amount in sorted(value.items()) if amount}


def figures(counted: Figures) -> dict[str, Any]:
    """Convert the figures of a report to the fields of `FigureFields`."""
    return {
        **{metric: counted[metric] for metric in _COUNTED},
        "cost": format(counted.cost, "f"),
        "value": sums(counted.value),
        **by_disposition(counted.by_category()),
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
    "converted_messages",
    "conversions",
)
