"""GET /portal/{app}/conversions and its page `refused`: the list of conversions with their revisions, and the list of refused
conversion reports."""
# Tested by tests/portal/test_listing.py

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.conversions.status_words import category_of
from shortener.portal.clicks import country_of
from shortener.portal.listing import FilterField, ListedRow, ListSource, campaign_of, choice, show_list
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.reporting.conversions import (
    CONVERSION_COLUMNS,
    REFUSED_COLUMNS,
    ConversionFilter,
    ConversionPage,
    RefusedPage,
    csv_cells,
    list_conversions,
    list_refused,
    serialize_listed,
    serialize_refused,
)

NO_CURRENCY = "none"  # The value of the query parameter `value_in` that selects values without a currency.
_METRIC = FilterField("metric", "Show", {"conversions": "All conversions"})
_DISPOSITION = FilterField(
    "disposition",
    "Result",
    {"positive": "Approved", "pending": "Pending", "negative": "Rejected", "none": "No result yet"},
    is_common=True,
)
FIELDS = (
    _DISPOSITION,
    FilterField("campaign", "Campaign", is_common=True),
    FilterField("action", "Action", is_common=True),
    FilterField("status", "Status word"),
    FilterField("transaction", "Transaction id"),
    FilterField("message", "Message id"),
    FilterField("country", "Country of the number (code)"),
    FilterField("destination", "Destination (host and path)"),
    FilterField("label", "Label"),
    FilterField("source", "Source", {"api": "API", "campaign": "Campaign"}),
    FilterField("value_in", "Currency of the counted values"),
    FilterField("warnings", "Warnings", {"1": "Only with warnings"}),
)
REFUSED_FIELDS = (FilterField("reason", "Error code", is_common=True),)


async def conversions(visit: Visit) -> Response:
    """Show the list of conversions that match the filters, newest first."""
    choice(visit, _METRIC)
    return await show_list(visit, "conversions.html", _conversions(visit), FIELDS, title="Conversions")


def _conversions(visit: Visit) -> ListSource:
    period = visit.period
    disposition, currency = choice(visit, _DISPOSITION), visit.get("value_in")
    encode_click = visit.service.click_ids.encode

    def read(connection: Connection, application_id: int, limit: int, below: int | None) -> ConversionPage:
        filters = ConversionFilter(
            application_id,
            since=period.since,
            until=period.until,
            is_figure=True,
            basis=period.basis,
            campaign=campaign_of(visit),
            source=visit.get("source"),
            country=country_of(visit),
            destination=visit.get("destination"),
            label=visit.get("label"),
            action=visit.get("action"),
            status=visit.get("status"),
            disposition=disposition,
            message_id=visit.get("message"),
            transaction_id=visit.get("transaction"),
            with_warnings=visit.get("warnings") == "1",
        )
        page = list_conversions(connection, filters, limit, below)
        return page if currency is None else replace(page, rows=[row for row in page.rows if _counts(row, currency)])

    def describe(page: Any, row: Any) -> dict[str, Any]:
        return serialize_listed(row, page.revisions.get(row.id, ()), encode_click)

    def serialize(listed: ListedRow) -> dict[str, Any]:
        return csv_cells(listed.details)

    return ListSource("conversions", read, CONVERSION_COLUMNS, serialize, lambda row: row.at, describe)


def _counts(row: Any, currency: str) -> bool:
    """Return whether the statistics add the value of a conversion to their sum in this currency. NO_CURRENCY selects the sum of
    the values without a currency."""
    if row.value is None or (row.currency or NO_CURRENCY) != currency:
        return False
    return category_of(row.status, row.disposition) in ("positive", "other")


async def refused(visit: Visit) -> Response:
    """List the conversion reports that were refused, newest first."""
    return await show_list(visit, "refused.html", _refused(visit), REFUSED_FIELDS, title="Refused conversions")


def _refused(visit: Visit) -> ListSource:
    def read(connection: Connection, application_id: int, limit: int, below: int | None) -> RefusedPage:
        period = visit.period
        return list_refused(
            connection, application_id, limit, below, since=period.since, until=period.until, reason=visit.get("reason")
        )

    def describe(page: Any, row: Any) -> dict[str, Any]:
        return serialize_refused(row)

    def serialize(listed: ListedRow) -> dict[str, Any]:
        return csv_cells(listed.details)

    return ListSource("refused-conversions", read, REFUSED_COLUMNS, serialize, lambda row: row.received_at, describe)


PAGES = [
    PortalPage(
        "/portal/{app}/conversions",
        conversions,
        csv=True,
        navigation=NavigationItem("Conversions", "badge-dollar-sign", 50, key="v"),
    ),
    PortalPage("/portal/{app}/conversions/refused", refused, csv=True),
]
