"""Reading messages: the status of one, lists, the view of API and campaign traffic together, and its CSV."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from starlette.responses import Response, StreamingResponse

from shortener.errors import ApiError, ErrorCode
from shortener.ids import ClickIds
from shortener.model import State
from shortener.reporting.export import export_csv
from shortener.reporting.messages import MessageFilter, list_messages, serialize_message
from shortener.reporting.status import MessageStatus, find_status
from shortener.times import end_of, start_of
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import Text
from shortener.web.period import Period

_TAG = "Reading"


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


_PHONE = re.compile(r"\s*\+?([1-9][0-9]{6,14})\s*")


def _as_e164(value: str) -> str:
    """A + that was not encoded arrives as a space, and some systems leave it out."""
    number = _PHONE.fullmatch(value)
    if number is None:
        raise ValueError("wants a number such as +14085550100")
    return f"+{number[1]}"


Source = Literal["api", "campaign", "all"]
StateName = Literal["CREATED", "SENT", "FAILED", "EXPIRED", "DELIVERED", "READ", "CLICKTHRU"]


class ExportQuery(Period):
    """Which messages."""

    state: Annotated[StateName, BeforeValidator(_upper)] | None = Field(None, description="The state that they are in now.")
    to: Annotated[str, AfterValidator(_as_e164)] | None = Field(None, description="The recipient, E.164.")
    campaign: Text | None = Field(None, max_length=200)
    source: Source = Field("all", description="API traffic, campaigns or both.")


class ListQuery(ExportQuery):
    """Which messages, and which page of them."""

    limit: int = Field(100, ge=1, le=1000, description="Messages of a page.")
    cursor: str | None = Field(None, max_length=100, description="`next_cursor` of the page before.")


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
    country: str | None = Field(description="ISO 3166 code of the recipient's number.")
    state: StateName
    report_status: str | None = Field(description="The carrier's own word, for example DELIVRD.")
    reason_code: str | None
    reason_description: str | None
    telecom_message_id: str | None
    created_at: str
    sent_at: str | None
    delivered_at: str | None
    read_at: str | None
    failed_at: str | None = Field(description="When it failed or expired.")
    clicked_at: str | None = Field(description="When a person first clicked one of its links.")
    encoding: Literal["GSM-7", "UCS-2"]
    segments: int
    fragments_count: int | None = Field(description="Segments that the carrier billed.")
    mt_price: str | None = Field(description="Decimal.")


class LinkTracking(ResponseModel):
    """Xoxzo's: the message's first link."""

    link: str
    shortlink: str
    accessed: bool
    accessed_on: str | None = Field(description="YYYY-MM-DD HH:MM:SS in UTC.")


class LinkStatus(ResponseModel):
    code: str
    short_url: str
    url: str
    label: str | None
    expires_at: str
    accessed: bool = Field(description="Whether a person clicked it.")
    accessed_on: str | None = Field(description="When one did first.")


class ConversionStatus(ResponseModel):
    conversion_id: str
    click_id: str | None = Field(description="The click that it followed, when the tracker named it.")
    action: str
    transaction_id: str | None
    status: str | None
    disposition: str | None
    value: str | None = Field(description="Decimal.")
    currency: str | None
    timestamp: str
    metadata: dict[str, Any] | None


class MessageStatusResponse(MessageFields):
    status: Literal[True] = True
    previous_state: str | None = Field(description="The state before CLICKTHRU.")
    metadata: dict[str, Any] | None
    link_tracking: LinkTracking | None = Field(description="The first link, as Xoxzo tells it.")
    links: list[LinkStatus]
    conversions: list[ConversionStatus] = Field(description="Oldest first, at most 1000.")


class XoxzoStatusResponse(ResponseModel):
    msgid: str
    status: str = Field(description="DELIVERED also when it was read or clicked.")
    sender: str
    recipient: str
    url: str
    sent_time: str = Field(description="YYYY-MM-DD HH:MM:SS in UTC.")
    cost: float | None
    tags: list[str] = Field(description="The campaign, if there is one.")
    link_tracking: LinkTracking | None


class MessagesResponse(ResponseModel):
    """Newest first."""

    status: Literal[True] = True
    messages: list[MessageFields]
    next_cursor: str | None = Field(description="For the next page; null on the last one.")


async def status(call: Call[None, None]) -> Mapping[str, Any]:
    return {"status": True, **call.service.status_reader.serialize(await _find(call, call.path["message_id"]))}


async def xoxzo_status(call: Call[None, None]) -> Mapping[str, Any]:
    found = await _find(call, call.path["msgid"])
    path = call.request.url.path
    return call.service.status_reader.serialize_xoxzo(
        found, f"{call.service.settings.base_url}{path}{'' if path.endswith('/') else '/'}"
    )


async def _find(call: Call[None, None], message_id: str) -> MessageStatus:
    found = await call.service.database.read(find_status, call.application_id, message_id)
    if found is None:
        raise ApiError(ErrorCode.MESSAGE_NOT_FOUND)
    return found


async def messages(call: Call[ListQuery, None]) -> Mapping[str, Any]:
    # A check in the cursor, as in a click id: one that we did not make is told from one whose messages are gone.
    cursors = ClickIds(call.service.secret.key("cursors"))
    below = None
    if call.query.cursor is not None:
        below = cursors.decode(call.query.cursor)
        if below is None:
            raise ApiError(ErrorCode.INVALID_CURSOR)
    found = await call.service.database.read(list_messages, _wanted(call.application_id, call.query), call.query.limit, below)
    return {
        "status": True,
        "messages": [serialize_message(row) for row in found.rows],
        "next_cursor": None if found.next is None else cursors.encode(found.next),
    }


async def export(call: Call[ExportQuery, None]) -> Response:
    service = call.service
    pages = export_csv(service.database, _wanted(call.application_id, call.query), service.status_reader.base_url)
    first = await anext(pages)  # what is wrong with the store now still becomes a 503
    headers = {"Content-Disposition": f'attachment; filename="messages-{service.clock():%Y-%m-%d}.csv"'}

    async def body() -> AsyncIterator[bytes]:
        yield first
        if call.request.method == "GET":
            async for piece in pages:
                yield piece

    return StreamingResponse(body(), media_type="text/csv", headers=headers)


def _wanted(application_id: int, query: ExportQuery) -> MessageFilter:
    return MessageFilter(
        application_id,
        state=None if query.state is None else State[query.state],
        to=query.to,
        campaign=query.campaign,
        source=None if query.source == "all" else query.source,
        since=None if query.since is None else start_of(query.since),
        until=None if query.until is None else end_of(query.until),
    )


_PAGES = (
    "Newest first. Ask for the next page with `cursor`. A page may hold fewer messages than `limit`, or none, and still have a "
    "`next_cursor`: filters that no index answers look among 10,000 messages at a time."
)

ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/sms/status/{message_id:path}",
        status,
        "What is known of one message",
        _TAG,
        permission="sms.read",
        response=MessageStatusResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND,),
    ),
    Endpoint(
        "GET",
        "/sms/messages/{msgid:path}/",
        xoxzo_status,
        "What is known of one message, as Xoxzo tells it",
        _TAG,
        permission="sms.read",
        response=XoxzoStatusResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND,),
    ),
    Endpoint(
        "GET",
        "/sms/messages/{msgid:path}",
        xoxzo_status,
        "The same without the last slash",
        _TAG,
        permission="sms.read",
        response=XoxzoStatusResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND,),
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/messages",
        messages,
        "Messages",
        _TAG,
        permission="sms.read",
        query=ListQuery,
        response=MessagesResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=_PAGES,
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/messages/unified",
        messages,
        "Messages of the API and of campaigns in one view",
        _TAG,
        permission="sms.read",
        query=ListQuery,
        response=MessagesResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=_PAGES,
    ),
    Endpoint(
        "GET",
        "/api/v1/sms/messages/unified/export",
        export,
        "The unified view as CSV",
        _TAG,
        permission="sms.read",
        query=ExportQuery,
        media_type="text/csv",
        description="All messages that the filters let through, newest first, UTF-8, of any number. Cells that a spreadsheet would "
        "run as a formula begin with an apostrophe; plain numbers, and with them phone numbers, are left as they are. A transfer "
        "that is cut off was not complete.",
    ),
]
