"""Endpoints in Xoxzo's format: the send call, which rewrites a message without sending it, and the status of a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from shortener.errors import ErrorCode
from shortener.messages.plan import RewriteItem
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import Sender
from shortener.web.messages import LinkTracking, find_message, may_reveal
from shortener.web.rewrite_call import REWRITE_ERRORS, REWRITE_HEADERS, rewrite_items
from shortener.web.rewrite_shapes import MAX_BODY_LENGTH, MessageId, MessageOptions, RewrittenLinkFields, with_options

_EXAMPLE: JsonDict = {
    "sender": "Sender",
    "message": "test link tracking https://shop.example/en/",
    "recipient": "+818012345678",
    "track_link": "true",
}
#: Field names of the service, mapped to the field names of Xoxzo.
_NAMES = {"to": "recipient", "body": "message", "from": "sender"}


class XoxzoRequest(MessageOptions):
    """One message for one recipient in Xoxzo's format. The optional fields of the native rewrite call are accepted too."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    recipient: str = Field(description="Phone number in E.164, for example +818012345678.")
    message: str = Field(
        max_length=MAX_BODY_LENGTH,
        description="Text of the message. If `track_link` is true, the first URL or bare domain in the text becomes a short link.",
    )
    sender: Sender = Field("", description="Sender of the message. Events of the message contain it.")
    message_id: MessageId | None = Field(
        None, description="Id of the message, returned as `msgid`. Default: the service generates an id."
    )


class XoxzoSendResponse(ResponseModel):
    """The rewritten message. The service does not send messages: the caller must send the text in `message`."""

    msgid: str
    message: str
    links: list[RewrittenLinkFields]
    warnings: list[str]


class XoxzoStatusResponse(ResponseModel):
    """The status of a message in Xoxzo's format."""

    msgid: str
    status: str = Field(description="Delivery status. DELIVERED includes messages that were read or clicked.")
    sender: str
    recipient: str
    url: str
    sent_time: str = Field(description="Time when the message was rewritten: YYYY-MM-DD HH:MM:SS in UTC.")
    cost: float | None
    tags: list[str] = Field(description="Name of the message's campaign, if it has one.")
    link_tracking: LinkTracking | None


async def send(call: Call[None, XoxzoRequest]) -> Mapping[str, Any]:
    """Rewrite a message in Xoxzo's format. The service does not send the message."""
    (rewritten,) = await rewrite_items(call, [rewrite_item(call.body)])
    return {
        "msgid": rewritten["message_id"],
        "message": rewritten["body"],
        "links": rewritten["links"],
        "warnings": rewritten["warnings"],
    }


async def status(call: Call[None, None]) -> Mapping[str, Any]:
    """Return the status of a message in Xoxzo's format."""
    message = await find_message(call, call.path["msgid"])
    path = call.request.url.path.rstrip("/")
    url = f"{call.service.settings.base_origin}{path}/"
    return call.service.status_reader.serialize_xoxzo(message, url, reveal=may_reveal(call))


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
        "Rewrite a message (Xoxzo)",
        "Send pipeline",
        permission="sms.send",
        body=XoxzoRequest,
        body_forms=True,
        response=XoxzoSendResponse,
        status=201,
        headers=REWRITE_HEADERS,
        errors=REWRITE_ERRORS,
        description="Rewrites a message like POST /api/v1/rewrite and responds in Xoxzo's format. No message is sent.",
    ),
    Endpoint(
        "GET",
        "/sms/messages/{msgid:path}/",
        status,
        "Show a message in Xoxzo's format",
        "Messages",
        permission="sms.read",
        response=XoxzoStatusResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND,),
    ),
    Endpoint(
        "GET",
        "/sms/messages/{msgid:path}",
        status,
        "Show a message in Xoxzo's format (without the final slash)",
        "Messages",
        permission="sms.read",
        response=XoxzoStatusResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND,),
    ),
]
