"""The endpoints for messages: the status of one message, paged lists, and the CSV export."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from starlette.responses import Response

from shortener.errors import ApiError, ErrorCode
from shortener.messages.phone_numbers import PhoneNumberError, parse_searched_number
from shortener.model import State
from shortener.reporting.export import ExportRows, export_csv
from shortener.reporting.messages import MessageFilter, MessageMetric, list_messages, serialize_message
from shortener.reporting.rollups import Basis
from shortener.reporting.status import MessageStatus, find_status
from shortener.web.csv_response import csv_response
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import Text
from shortener.web.large_responses import convert_in_pieces
from shortener.web.paging import ByteOrderMark, Cursor, Cursors, NextCursor
from shortener.web.period import Period
from shortener.web.sends import SendFields

_TAG = "Reading"


def _to_upper_case(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _as_e164(value: str) -> str:
    try:
        return parse_searched_number(value)
    except PhoneNumberError:
        raise ValueError("must be a number such as +14085550100") from None


Source = Literal["api", "campaign", "all"]
StateName = Literal["CREATED", "SENT", "FAILED", "EXPIRED", "DELIVERED", "READ", "CLICKTHRU"]


class ExportQuery(Period):
    """Filters of messages. The period refers to the creation of a message."""

    state: Annotated[StateName, BeforeValidator(_to_upper_case)] | None = Field(
        None, description="Only messages with this current state."
    )
    to: Annotated[str, AfterValidator(_as_e164)] | None = Field(
        None, description="Only messages to this phone number: in E.164, or in any notation that a rewrite accepts."
    )
    campaign: Text | None = Field(None, max_length=200, description="Only messages of the campaign with this name.")
    source: Source = Field("all", description="Only messages of this traffic source: `api` or `campaign`. Default: both.")

    metric: MessageMetric | None = Field(
        None,
        description=(
            "Name of a figure of /api/v1/sms/stats: only the messages that this figure counts. As in the statistics, the period is "
            "extended to complete time slots of 15 minutes. `basis` defines which time must be in the period."
        ),
    )
    basis: Literal["event", "sent"] = Field(
        "event",
        description="The time that must be in the period. event (default): the time of the counted event. sent: the time when "
        "the message was created. `basis` has no effect without `metric`.",
    )


class CsvQuery(ExportQuery):
    """Filters of messages, and options of the CSV export."""

    rows: ExportRows = Field(
        "messages", description="Whether the CSV contains one line for each message (default) or for each link."
    )
    bom: ByteOrderMark = False


class MessagesQuery(ExportQuery):
    """Filters of messages, and the position of the page in the list."""

    limit: int = Field(100, ge=1, le=1000, description="Maximum number of messages in a page.")
    cursor: Cursor = None


class MessageFields(ResponseModel):
    message_id: str
    message_request_id: str
    external_message_request_id: str
    to: str
    from_: str = Field(alias="from")
    sender_id_id: str
    sender_id_alias: str
    campaign: str
    source: str
    country: str | None = Field(description="Country of the recipient's phone number, as ISO 3166 code.")
    state: StateName
    report_status: str | None = Field(description="Status word of the carrier, for example DELIVRD.")
    reason_code: str | None
    reason_description: str | None
    telecom_message_id: str | None
    created_at: str
    sent_at: str | None
    delivered_at: str | None
    read_at: str | None
    failed_at: str | None = Field(description="Time when the message failed or expired.")
    clicked_at: str | None = Field(description="Time of the first click by a person on any link of the message.")
    encoding: Literal["GSM-7", "UCS-2"]
    segments: int
    fragments_count: int | None = Field(description="Number of SMS segments that the carrier billed.")
    mt_price: str | None = Field(
        description="Price of the message as a decimal string, for example 0.0095: the price from the request or from a "
        "delivery report, otherwise the cost of sending the message. A refund does not change this price, but the `cost` of the "
        "statistics does not include refunded messages."
    )


class LinkTracking(ResponseModel):
    """The link tracking of a message's first link, in Xoxzo's format."""

    link: str
    shortlink: str
    accessed: bool
    accessed_on: str | None = Field(description="Time of the first click on the link: YYYY-MM-DD HH:MM:SS in UTC.")


class LinkStatus(ResponseModel):
    code: str
    short_url: str
    url: str
    label: str | None
    expires_at: str
    accessed: bool = Field(description="true: a person clicked the link at least once.")
    accessed_on: str | None = Field(description="Time of the first click by a person.")
    clicks: int = Field(
        description="Number of clicks by people on the link. Clicks that are older than HIT_RETENTION_DAYS are not included, "
        "because they are deleted."
    )


class ConversionRevision(ResponseModel):
    revision: int
    status: str | None
    disposition: str | None
    value: str | None
    currency: str | None
    timestamp: str | None = Field(description="Time of the conversion as reported in this revision.")
    received_at: str | None


class ConversionStatus(ResponseModel):
    conversion_id: str
    click_id: str | None = Field(description="Id of the click that led to the conversion, if the tracker reported it.")
    action: str
    transaction_id: str | None
    status: str | None
    disposition: str | None = Field(
        description=(
            "Disposition of the conversion: positive, negative, or null. The disposition was reported, or the service "
            "derived it from the status word."
        )
    )
    pending: bool = Field(description="true: the status word means a pending conversion, and no disposition was reported.")
    value: str | None = Field(description="Value of the conversion as a decimal string.")
    currency: str | None
    timestamp: str = Field(description="Time of the conversion as reported first. Statistics count the conversion at this time.")
    received_at: str | None
    updated_at: str | None = Field(
        description="Time when the latest revision of the conversion was received. null: the conversion was never updated."
    )
    metadata: dict[str, Any] | None = Field(description="Other parameters of the report, and values that could not be parsed.")
    warnings: list[str]
    revision: int = Field(description="Number of the conversion's latest revision.")
    revisions: list[ConversionRevision] = Field(description="All revisions of the conversion, oldest first.")


class SendAttempt(ResponseModel):
    attempt: int
    at: str
    milliseconds: int = Field(description="Duration of the attempt in milliseconds.")
    outcome: str = Field(description="Short name of the result, such as accepted, rejected or timeout.")
    status: int | None = Field(description="HTTP status or SMPP command status of the response. null: there was no response.")
    detail: str | None = Field(description="Error text of the gateway, or text that explains the failure.")


class MessageSend(SendFields):
    attempt_log: list[SendAttempt] = Field(description="The last 100 attempts to hand the message on, oldest first.")


class MessageStatusResponse(MessageFields):
    """The message with its links and conversions."""

    status: Literal[True] = True
    previous_state: str | None = Field(description="State of the message before the first click changed it to CLICKTHRU.")
    metadata: dict[str, Any] | None
    link_tracking: LinkTracking | None = Field(description="Link tracking of the message's first link, in Xoxzo's format.")
    links: list[LinkStatus]
    conversions: list[ConversionStatus] = Field(description="Conversions of the message, oldest first, at most 1,000.")
    send: MessageSend | None = Field(
        description="State of the message in the queue of its gateway. null: no gateway sends the message."
    )


class MessagesResponse(ResponseModel):
    """One page of messages, newest first."""

    status: Literal[True] = True
    messages: list[MessageFields]
    next_cursor: NextCursor


async def status(call: Call[None, None]) -> Mapping[str, Any]:
    """Return the status of one message with its links and conversions."""
    found = await find_message(call, call.path["message_id"])
    return {"status": True, **call.service.status_reader.serialize(found, reveal=may_reveal(call))}


def may_reveal(call: Call[Any, Any]) -> bool:
    """Return whether the caller may read complete phone numbers."""
    return "privacy.reveal" in call.principal.permissions


async def find_message(call: Call[None, None], message_id: str) -> MessageStatus:
    """Return a message of the caller's application. Raise ApiError MESSAGE_NOT_FOUND."""
    found = await call.service.database.read(find_status, call.application_id, message_id)
    if found is None:
        raise ApiError(ErrorCode.MESSAGE_NOT_FOUND)
    return found


async def index(call: Call[MessagesQuery, None]) -> Mapping[str, Any]:
    """Return one page of messages."""
    cursors = Cursors(call.service.secret, "cursors")
    below = cursors.decode(call.query.cursor)
    found = await call.service.database.read(list_messages, _filter(call.application_id, call.query), call.query.limit, below)
    return {
        "status": True,
        "messages": await convert_in_pieces(partial(serialize_message, reveal=may_reveal(call)), found.rows),
        "next_cursor": cursors.encode(found.next),
    }


async def export(call: Call[CsvQuery, None]) -> Response:
    """Stream the messages that match the filters as CSV."""
    service = call.service
    query = call.query
    pages = export_csv(
        service.database,
        _filter(call.application_id, query),
        service.status_reader.base_url,
        rows=query.rows,
        bom=query.bom,
        reveal=may_reveal(call),
    )
    return await csv_response(call, "messages", pages)


def _filter(application_id: int, query: ExportQuery) -> MessageFilter:
    since, until = query.limits()
    return MessageFilter(
        application_id,
        state=None if query.state is None else State[query.state],
        to=query.to,
        campaign=query.campaign,
        source=None if query.source == "all" else query.source,
        since=since,
        until=until,
        metric=query.metric,
        basis=Basis[query.basis.upper()],
    )


_PAGES = (
    "Newest first. `cursor` requests the next page. A page may contain fewer messages than `limit`, or none, and still have a "
    "`next_cursor`, because with some filters at most 10,000 messages are read to fill one page."
)

ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/sms/status/{message_id:path}",
        status,
        "Show a message with its links and conversions",
        _TAG,
        permission="sms.read",
        response=MessageStatusResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND,),
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/messages",
        index,
        "List messages",
        _TAG,
        permission="sms.read",
        query=MessagesQuery,
        response=MessagesResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=_PAGES,
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/messages/unified",
        index,
        "List the messages of the sources `api` and `campaign` together",
        _TAG,
        permission="sms.read",
        query=MessagesQuery,
        response=MessagesResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=_PAGES,
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/messages/unified/export",
        export,
        "Export messages as CSV",
        _TAG,
        permission="sms.read",
        query=CsvQuery,
        media_type="text/csv",
        description=(
            "Exports all messages that match the filters, newest first, in UTF-8. `url`, `label` and `destination` belong to "
            "the first link of the message, or with `rows=links` to the link of the line. `clicked_url` is the URL of "
            "the first click. `conversions` is the number of all conversions of the message. `value` is the sum of the "
            "values of conversions that are neither negative nor pending. If there are several currencies, `value` has "
            "one sum for each currency in `currency`, separated by semicolons. `conversions` and `value` include the "
            "same conversions as `GET /api/v1/sms/stats`. A cell that begins like a formula gets an apostrophe in front, "
            "but a number or a phone number (also a masked one) gets none. If the connection ends early, the export is "
            "incomplete."
        ),
    ),
]
