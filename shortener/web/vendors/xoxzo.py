"""Endpoints in Xoxzo's format: the send call, the status of a message, and the list of sent messages.

The send call sends a message through the gateway of the application. If it has no gateway, the call only rewrites the text, and
the response contains a warning. The response to a form is a list, because Xoxzo's clients read a list. The response to JSON is an
object, as in Xoxzo's guide for link tracking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import AliasChoices, ConfigDict, Field, RootModel
from pydantic.config import JsonDict
from starlette.responses import Response

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.messages.rewrite_item import RewriteItem
from shortener.reporting.messages import MessageFilter
from shortener.reporting.status import list_first_links
from shortener.times import end_of, start_of
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel, json_response
from shortener.web.fields import CampaignName, Text
from shortener.web.messages import LinkTracking, find_message, may_reveal
from shortener.web.rewrite_call import REWRITE_ERRORS, REWRITE_HEADERS, rewrite_items
from shortener.web.rewrite_shapes import (
    MAX_BODY_LENGTH,
    IsSent,
    MessageId,
    MessageOptions,
    MessageSender,
    RewrittenLinkFields,
    with_options,
)
from shortener.web.vendors.error_shapes import xoxzo_error
from shortener.web.vendors.vendor_model import Unsupported, VendorModel, field_warnings

MAX_LISTED = 1000  # The maximum number of messages in a list.
_EXAMPLE: JsonDict = {
    "sender": "Sender",
    "message": "test link tracking https://shop.example/en/",
    "recipient": "+818012345678",
    "track_link": "true",
}
#: The field names of the service, with the names of the same fields in Xoxzo's format.
_NAMES = {"to": "recipient", "body": "message", "from": "sender"}


class XoxzoRequest(MessageOptions):
    """One message for one recipient in Xoxzo's format. The optional fields of the native rewrite call are accepted too."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    recipient: str = Field(description="Phone number in E.164, for example +818012345678.")
    message: str = Field(
        max_length=MAX_BODY_LENGTH,
        description="Text of the message. If `track_link` is true, the first URL or bare domain in the text becomes a short link.",
    )
    sender: MessageSender = ""
    message_id: MessageId | None = Field(
        None, description="Id of the message, returned as `msgid`. Default: the service generates an id."
    )


class XoxzoSendRequest(VendorModel, XoxzoRequest):
    """One message for one recipient in Xoxzo's format. Unknown fields are ignored, with a warning."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    tags: CampaignName = Field("", description="Tag of the message, stored as its campaign.")
    callback_url: Annotated[Text, Unsupported("is not supported; create a tracker of the format xoxzo with the event delivery")] = (
        Field(
            "",
            alias="callbackurl",
            validation_alias=AliasChoices("callbackurl"),
            description="The URL to which Xoxzo sends delivery reports. This service does not send reports to it: the field "
            "only causes a warning. To get reports, create a tracker of the format `xoxzo`.",
        )
    )


class XoxzoSentMessage(ResponseModel):
    """A sent message. Without a gateway it is not sent: the caller must send the text in `message`."""

    msgid: str
    message: str
    links: list[RewrittenLinkFields]
    warnings: list[str]
    sent: IsSent


class XoxzoSendResponse(RootModel[XoxzoSentMessage | list[XoxzoSentMessage]]):
    """The sent message: an object for a request in JSON, and a list with this object for a form."""


class XoxzoStatusResponse(ResponseModel):
    """The status of a message in Xoxzo's format."""

    msgid: str
    status: str = Field(description="Delivery status. DELIVERED includes messages that were read or clicked.")
    sender: str
    recipient: str
    url: str
    sent_time: str = Field(
        description="Time when the message was sent: YYYY-MM-DD HH:MM:SS in UTC. If it was not sent: the time when it was "
        "rewritten."
    )
    cost: float | None
    parts: int = Field(description="Number of SMS segments.")
    tags: list[str] = Field(description="Name of the message's campaign, if it has one.")
    link_tracking: LinkTracking | None


class XoxzoListResponse(RootModel[list[XoxzoStatusResponse]]):
    """Messages, newest first, at most 1,000."""


class XoxzoListQuery(RequestModel):
    """The query parameters of the list of sent messages."""

    sent_date: str | None = Field(
        None,
        description=(
            "Only messages of this day (YYYY-MM-DD, UTC). With `<`, `<=`, `>` or `>=` in place of `=`, only messages before "
            "or after this day, for example `sent_date>=2026-11-20`."
        ),
        examples=["2026-11-20"],
    )


async def send(call: Call[None, XoxzoSendRequest]) -> Mapping[str, Any] | Response:
    """Rewrite a message in Xoxzo's format, and send it through the gateway of the application."""
    request = call.body
    item = rewrite_item(request)
    gateway = item.gateway if "gateway" in request.model_fields_set else ""
    (rewritten,) = await rewrite_items(call, [replace(item, gateway=gateway, campaign=item.campaign or request.tags)])
    sent = {
        "msgid": rewritten["message_id"],
        "message": rewritten["body"],
        "links": rewritten["links"],
        "warnings": [*rewritten["warnings"], *field_warnings(request)],
        "sent": rewritten.get("sent", False),
    }
    kind = call.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return json_response([sent] if kind == "application/x-www-form-urlencoded" else sent, 201)


async def status(call: Call[None, None]) -> Mapping[str, Any]:
    """Return the status of a message in Xoxzo's format."""
    message = await find_message(call, call.path["msgid"])
    path = call.request.url.path.rstrip("/")
    url = f"{call.service.settings.base_origin}{path}/"
    return call.service.status_reader.serialize_xoxzo(message, url, reveal=may_reveal(call))


async def index(call: Call[None, None]) -> Response:
    """Return the newest messages in Xoxzo's format."""
    service = call.service
    since, until = _period(call.request.query_params.multi_items())
    filters = MessageFilter(call.application_id, since=since, until=until)
    found = await service.database.read(list_first_links, filters, MAX_LISTED)
    url = f"{service.settings.base_origin}/sms/messages/"
    rows = [
        service.status_reader.serialize_xoxzo(one, f"{url}{quote(one.message.message_id, safe='')}/", reveal=may_reveal(call))
        for one in found
    ]
    return json_response(rows)


_SENT_DATE = re.compile(r"sent_date(<=|>=|=|<|>)(.*)", re.DOTALL)


def _period(parameters: Sequence[tuple[str, str]]) -> tuple[datetime | None, datetime | None]:
    """Return the period that the conditions on `sent_date` select. Raise ApiError INVALID_REQUEST if a condition is not valid.

    `parameters` are the names and values from the parser of queries, which splits them at "=": `sent_date>=2026-11-20` is the
    parameter `sent_date>` with a value, and `sent_date>2026-11-20` is a name without a value."""
    since: datetime | None = None
    until: datetime | None = None
    for name, value in parameters:
        condition = _SENT_DATE.fullmatch(f"{name}={value}" if value else name)
        if condition is None:
            if name.startswith("sent_date"):
                raise _invalid_date()
            continue
        operator, sent = condition[1], _parse_date(condition[2])
        day, next_day = start_of(sent), end_of(sent)
        if operator != "=" and "<" in operator:
            end = next_day if operator == "<=" else day
            until = end if until is None else min(until, end)
        else:
            start = next_day if operator == ">" else day
            since = start if since is None else max(since, start)
            if operator == "=":
                until = next_day if until is None else min(until, next_day)
    return since, until


def _parse_date(text: str) -> date:
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise _invalid_date() from None


def _invalid_date() -> ApiError:
    reason = "must be one of the operators =, <, <=, > and >=, followed by a date such as 2026-11-20"
    return ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("sent_date", reason)])


def rewrite_item(message: XoxzoRequest) -> RewriteItem:
    """Convert a request in Xoxzo's format to the input of the rewriter."""
    return with_options(
        message,
        to=(message.recipient,),
        body=message.message,
        sender=message.sender,
        message_ids=None if message.message_id is None else (message.message_id,),
        field_path=lambda name, recipient: _NAMES.get(name, name),
    )


ENDPOINTS = [
    Endpoint(
        "POST",
        "/sms/messages/",
        send,
        "Send a message (Xoxzo)",
        "Send pipeline",
        permission="sms.send",
        body=XoxzoSendRequest,
        body_forms=True,
        error_shape=xoxzo_error,
        response=XoxzoSendResponse,
        status=201,
        headers=REWRITE_HEADERS,
        errors=REWRITE_ERRORS,
        description="Rewrites a message and sends it through the gateway of the application. If the application has no "
        "gateway, nothing is sent: `sent` is false, and a warning begins with NOT_SENT. Errors also contain Xoxzo's fields: "
        "a list of reasons for each invalid field, `non_field_errors` or `detail`.",
    ),
    Endpoint(
        "GET",
        "/sms/messages/",
        index,
        "List messages in Xoxzo's format",
        "Messages",
        permission="sms.read",
        query=XoxzoListQuery,
        reads_request=True,
        error_shape=xoxzo_error,
        response=XoxzoListResponse,
        description=f"Returns the newest {MAX_LISTED:,} messages. Conditions on `sent_date` select earlier messages.",
    ),
    Endpoint(
        "GET",
        "/sms/messages/{msgid:path}/",
        status,
        "Show a message in Xoxzo's format",
        "Messages",
        permission="sms.read",
        error_shape=xoxzo_error,
        response=XoxzoStatusResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND,),
    ),
    Endpoint(
        "GET",
        "/sms/messages/{msgid:path}",
        status,
        "Show a message in Xoxzo's format (path without the final slash)",
        "Messages",
        permission="sms.read",
        error_shape=xoxzo_error,
        response=XoxzoStatusResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND,),
    ),
]
