"""The endpoints that list conversions and refused conversion reports, as JSON and as CSV."""
# Tested by tests/web/test_conversion_lists.py

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from starlette.responses import Response

from shortener.errors import ErrorCode
from shortener.reporting.conversions import (
    ConversionFilter,
    conversions_csv,
    list_conversions,
    list_refused,
    refused_csv,
    serialize_listed,
    serialize_refused,
)
from shortener.reporting.rollups import Basis
from shortener.web.csv_response import csv_response
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import Text
from shortener.web.large_responses import convert_in_pieces
from shortener.web.messages import ConversionStatus, Source, may_reveal
from shortener.web.paging import ByteOrderMark, Cursor, Cursors, NextCursor
from shortener.web.period import Period

_TAG = "Conversions"
_LIMIT = Field(100, ge=1, le=1000, description="Maximum number of rows in a page.")


class ConversionsCsvQuery(Period):
    """Filters of conversions. The period refers to the time of a conversion: the time that its first report states."""

    campaign: Text | None = Field(
        None, max_length=200, description="Only conversions of messages of this campaign. Empty: only messages without a campaign."
    )
    action: Text | None = Field(
        None, max_length=255, description="Only conversions with this action. Upper and lower case make no difference."
    )
    status: Text | None = Field(
        None,
        max_length=64,
        description="Only conversions whose latest revision has this status word. Upper and lower case make no difference.",
    )
    disposition: Literal["positive", "negative", "pending", "none"] | None = Field(
        None,
        description=(
            "Only conversions with this disposition: positive, negative, pending (the status word means pending), or none "
            "(neither positive nor negative). none includes the pending conversions."
        ),
    )
    message_id: Text | None = Field(None, max_length=255, description="Only conversions of the message with this id.")
    transaction_id: Text | None = Field(
        None, max_length=255, description="Only conversions with this transaction id. Upper and lower case make no difference."
    )
    warnings: bool = Field(False, description="true: only conversions with a value, currency or time that could not be parsed.")
    metric: Literal["conversions"] | None = Field(
        None,
        description=(
            "Name of a figure of the statistics: only the conversions that this figure counts. As in the statistics, the period is "
            "extended to complete time slots of 15 minutes. `basis` defines which time must be in the period."
        ),
    )
    basis: Literal["event", "sent"] = Field(
        "event",
        description="The time that must be in the period. event (default): the time of the conversion. sent: the time when "
        "its message was created. `basis` has no effect without `metric`.",
    )
    source: Source = Field("all", description="Only conversions of messages of this traffic source. Default: all.")
    country: Text | None = Field(
        None, max_length=2, description="Only conversions of messages to phone numbers of this country (ISO 3166 code)."
    )
    destination: Text | None = Field(
        None,
        max_length=300,
        description="Only conversions of messages with a link to this destination: host and path, as in "
        "/api/v1/sms/stats/by-destination.",
    )
    label: Text | None = Field(None, max_length=300, description="Only conversions of messages with a link with this label.")
    bom: ByteOrderMark = False


class ConversionsQuery(ConversionsCsvQuery):
    """Filters of conversions, and the position of the page in the list."""

    limit: int = _LIMIT
    cursor: Cursor = None


class RefusedCsvQuery(Period):
    """Filters of refused reports. The period refers to the time of receipt."""

    reason: Text | None = Field(
        None,
        max_length=64,
        description="Only reports with this reason: an error code, for example MESSAGE_NOT_FOUND, or NOT_APPLIED.",
    )
    bom: ByteOrderMark = False


class RefusedQuery(RefusedCsvQuery):
    """Filters of refused reports, and the position of the page in the list."""

    limit: int = _LIMIT
    cursor: Cursor = None


class ListedConversion(ConversionStatus):
    message_id: str
    campaign: str


class ConversionsResponse(ResponseModel):
    """One page of conversions, newest first."""

    status: Literal[True] = True
    conversions: list[ListedConversion]
    next_cursor: NextCursor


class RefusedReport(ResponseModel):
    refused_id: str
    received_at: str
    endpoint: str = Field(description="HTTP method and path of the request, without the postback key.")
    reason: str = Field(
        description="Error code of the response to the refused report. NOT_APPLIED: the report was accepted with a warning, but "
        "changed nothing."
    )
    description: str
    details: list[dict[str, Any]]
    message_id: str | None
    click_id: str | None
    transaction_id: str | None
    parameters: dict[str, Any] = Field(
        description="All parameters of the refused report, at most 4 KiB. Credentials are removed, and "
        "phone numbers are masked unless the API key has the permission `privacy.reveal`."
    )


class RefusedResponse(ResponseModel):
    """One page of refused reports, newest first."""

    status: Literal[True] = True
    refused: list[RefusedReport]
    next_cursor: NextCursor


async def index(call: Call[ConversionsQuery, None]) -> Mapping[str, Any]:
    """Return one page of conversions."""
    service, cursors = call.service, Cursors(call.service.secret, "conversion cursors")
    filters = _filter(call.application_id, call.query)
    page = await service.database.read(list_conversions, filters, call.query.limit, cursors.decode(call.query.cursor))
    encode_click = service.click_ids.encode
    return {
        "status": True,
        "conversions": await convert_in_pieces(
            lambda row: serialize_listed(row, page.revisions.get(row.id, ()), encode_click, reveal=may_reveal(call)), page.rows
        ),
        "next_cursor": cursors.encode(page.next),
    }


async def export(call: Call[ConversionsCsvQuery, None]) -> Response:
    """Stream the conversions that match the filters as CSV."""
    service = call.service
    filters = _filter(call.application_id, call.query)
    pages = conversions_csv(service.database, filters, service.click_ids.encode, bom=call.query.bom, reveal=may_reveal(call))
    return await csv_response(call, "conversions", pages)


async def refused(call: Call[RefusedQuery, None]) -> Mapping[str, Any]:
    """Return one page of refused reports."""
    service, cursors = call.service, Cursors(call.service.secret, "refused conversion cursors")
    since, until = call.query.limits()
    page = await service.database.read(
        list_refused,
        call.application_id,
        call.query.limit,
        cursors.decode(call.query.cursor),
        since=since,
        until=until,
        reason=call.query.reason,
    )
    found = [serialize_refused(row, reveal=may_reveal(call)) for row in page.rows]
    return {"status": True, "refused": found, "next_cursor": cursors.encode(page.next)}


async def export_refused(call: Call[RefusedCsvQuery, None]) -> Response:
    """Stream the refused conversion reports that match the filters as CSV."""
    query = call.query
    since, until = query.limits()
    pages = refused_csv(
        call.service.database,
        call.application_id,
        bom=query.bom,
        reveal=may_reveal(call),
        since=since,
        until=until,
        reason=query.reason,
    )
    return await csv_response(call, "refused-conversions", pages)


def _filter(application_id: int, query: ConversionsCsvQuery) -> ConversionFilter:
    since, until = query.limits()
    return ConversionFilter(
        application_id,
        since=since,
        until=until,
        is_figure=query.metric is not None,
        basis=Basis[query.basis.upper()],
        source=None if query.source == "all" else query.source,
        country=query.country,
        destination=query.destination,
        label=query.label,
        campaign=query.campaign,
        action=query.action,
        status=query.status,
        disposition=query.disposition,
        message_id=query.message_id,
        transaction_id=query.transaction_id,
        with_warnings=query.warnings,
    )


_PAGES = (
    "Newest first. `cursor` requests the next page. A page may contain fewer rows than `limit`, or none, and still have a "
    "`next_cursor`, because at most 10,000 conversions are read to fill one page."
)
_CSV = "All rows that match the filters, newest first, in UTF-8. A cell that a spreadsheet would run as a formula is escaped."
_STORED = "Reports are stored for 30 days, at most 10,000 for each application."

ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/conversions",
        index,
        "List conversions with their revisions",
        _TAG,
        permission="sms.read",
        query=ConversionsQuery,
        response=ConversionsResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=_PAGES,
    ),
    Endpoint(
        "GET",
        "/api/v1/conversions.csv",
        export,
        "Export conversions as CSV",
        _TAG,
        permission="sms.read",
        query=ConversionsCsvQuery,
        media_type="text/csv",
        description=f"{_CSV} The column `revisions` has all revisions as JSON.",
    ),
    Endpoint(
        "GET",
        "/api/v1/conversions/refused",
        refused,
        "List refused reports of conversions",
        _TAG,
        permission="sms.read",
        query=RefusedQuery,
        response=RefusedResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=f"Newest first, with the reason. {_STORED}",
    ),
    Endpoint(
        "GET",
        "/api/v1/conversions/refused.csv",
        export_refused,
        "Export refused reports of conversions as CSV",
        _TAG,
        permission="sms.read",
        query=RefusedCsvQuery,
        media_type="text/csv",
        description=f"{_CSV} {_STORED}",
    ),
]
