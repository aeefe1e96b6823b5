"""Infobip's send call for text messages. The service rewrites the messages and does not send them.

Infobip writes phone numbers without a plus.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, WrapValidator
from pydantic.config import JsonDict

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import new_message_id
from shortener.messages.plan import RewriteItem
from shortener.messages.spans import TrackMode
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Sender, Text, check_metadata
from shortener.web.rewrite_call import REWRITE_ERRORS, REWRITE_HEADERS, rewrite_items
from shortener.web.rewrite_shapes import MAX_BODY_LENGTH, MessageId, RewrittenLinkFields, Tracking
from shortener.web.validation import limit_errors

_PLAIN_NUMBER = re.compile(r"[1-9][0-9]{6,14}")


_EXAMPLE: JsonDict = {
    "messages": [
        {"from": "InfoSMS", "destinations": [{"to": "41793026731"}], "text": "Your PIN is 1a2B3c, see https://shop.example/pin"}
    ],
    "tracking": {"track": "SMS", "type": "One_Time_Pin"},
    "urlOptions": {"shortenUrl": True},
}


class InfobipDestination(RequestModel):
    """One recipient of a text in Infobip's format."""

    to: str = Field(description="International phone number with or without a plus, for example 41793026731.")
    message_id: MessageId | None = Field(
        None, alias="messageId", description="Id of the message to this recipient. Default: the service generates an id."
    )


def _check_callback_data(value: str) -> str:
    check_metadata({"callbackData": value})
    return value


#: Fields that affect only the sending of a message. They are accepted for compatibility.
_IgnoredField = Annotated[Any, Field(description="Accepted and ignored, because it affects only the sending.")]


class InfobipText(RequestModel):
    """One text for one or more recipients."""

    from_: Sender = Field("", alias="from", description="Sender of the message. Events of the message contain it.")
    destinations: list[Annotated[InfobipDestination, WrapValidator(limit_errors)]] = Field(min_length=1)
    text: str = Field(
        max_length=MAX_BODY_LENGTH,
        description='Text of the message. #track("url") and #trackurl("url","label") become short links.',
    )
    callback_data: Annotated[Text, AfterValidator(_check_callback_data)] | None = Field(
        None,
        alias="callbackData",
        description="Data of the caller, at most 4 KiB. Events in the format `infobip` contain it as callbackData.",
    )
    delivery_time_window: _IgnoredField = Field(None, alias="deliveryTimeWindow")
    flash: _IgnoredField = None
    intermediate_report: _IgnoredField = Field(None, alias="intermediateReport")
    language: _IgnoredField = None
    notify_content_type: _IgnoredField = Field(None, alias="notifyContentType")
    notify_url: _IgnoredField = Field(None, alias="notifyUrl")
    regional: _IgnoredField = None
    send_at: _IgnoredField = Field(None, alias="sendAt")
    transliteration: _IgnoredField = None
    validity_period: _IgnoredField = Field(None, alias="validityPeriod")


class InfobipUrlOptions(RequestModel):
    """Options for the URLs in all texts. A short link is always tracked and always begins with its protocol."""

    shorten_url: bool = Field(True, alias="shortenUrl", description="true: every URL in the texts becomes a short link.")
    track_clicks: bool = Field(
        True, alias="trackClicks", description="Must not be false if shortenUrl is true, because a short link is always tracked."
    )
    remove_protocol: Literal[False] = Field(
        False,
        alias="removeProtocol",
        description="Only false is accepted, because some phones do not recognize a link without its protocol.",
    )
    custom_domain: Text | None = Field(
        None,
        alias="customDomain",
        max_length=255,
        description="Host of one of the application's own domains. Other hosts are rejected.",
    )


class InfobipRequest(RequestModel):
    """A request of Infobip's call \"send fully featured text message\"."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    bulk_id: Text = Field(
        "",
        alias="bulkId",
        max_length=100,
        description="Id of the request. Events contain it as message_request_id. Default: the service generates an id.",
    )
    messages: list[Annotated[InfobipText, WrapValidator(limit_errors)]] = Field(min_length=1)
    tracking: Tracking | None = Field(
        None, description="Assigns the messages to a conversion process. With `track` URL every URL of the texts is replaced too."
    )
    url_options: InfobipUrlOptions | None = Field(None, alias="urlOptions")


class InfobipStatus(ResponseModel):
    """Infobip's status object. Its value is always PENDING_ENROUTE."""

    groupId: int
    groupName: str
    id: int
    name: str
    description: str


class InfobipMessageFields(ResponseModel):
    """The rewritten message of one recipient."""

    to: str = Field(description="Phone number of the recipient without a plus.")
    status: InfobipStatus
    smsCount: int = Field(description="Number of SMS segments of the rewritten text.")
    messageId: str
    text: str = Field(description="The rewritten text, which the caller must send to this recipient.")
    links: list[RewrittenLinkFields]
    encoding: Literal["GSM-7", "UCS-2"]
    warnings: list[str]


class InfobipResponse(ResponseModel):
    """A response in Infobip's format with one entry per destination, in order. The caller must send the text in `text`."""

    bulkId: str
    messages: list[InfobipMessageFields]


#: The first status that Infobip returns for every accepted message.
_PENDING = {
    "groupId": 1,
    "groupName": "PENDING",
    "id": 7,
    "name": "PENDING_ENROUTE",
    "description": "Message sent to next instance",
}


def rewrite_request_items(request: InfobipRequest) -> list[RewriteItem]:
    """Convert a request in Infobip's format to the input of the rewriter. Raise ApiError INVALID_REQUEST."""
    track = _track_mode(request)
    tracking = (request.tracking.track, request.tracking.type) if request.tracking else ("", "")
    bulk_id = request.bulk_id or new_message_id()
    return [
        RewriteItem(
            to=tuple(_with_plus(destination.to) for destination in message.destinations),
            body=message.text,
            message_ids=tuple(destination.message_id for destination in message.destinations),
            field_path=_FieldPath(f"messages.{index}"),
            track=track,
            from_address=message.from_,
            request_id=bulk_id,
            metadata=None if message.callback_data is None else {"callbackData": message.callback_data},
            tracking=tracking,
            domain=(request.url_options.custom_domain or "") if request.url_options else "",
        )
        for index, message in enumerate(request.messages)
    ]


class _FieldPath:
    """Maps a field to its path in a request in Infobip's format, for errors. `path` is the path of the message."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, name: str, recipient: int | None) -> str:
        if recipient is not None:
            return f"{self._path}.destinations.{recipient}.{'messageId' if name == 'message_id' else name}"
        if name == "domain":
            return "urlOptions.customDomain"
        return f"{self._path}.{'text' if name == 'body' else name}"


def _track_mode(request: InfobipRequest) -> TrackMode | None:
    """Return which URLs become short links. Return None if the request does not specify it."""
    options = request.url_options
    all_urls = request.tracking is not None and request.tracking.track == "URL"
    if options is None:
        return "all_urls" if all_urls else None
    if not (options.shorten_url or all_urls):
        return "directives"
    if not options.track_clicks:
        reason = "must be true with shortenUrl, because a short link is always tracked"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("urlOptions.trackClicks", reason)])
    return "all_urls"


def _with_plus(number: str) -> str:
    return f"+{number}" if _PLAIN_NUMBER.fullmatch(number) else number


async def rewrite(call: Call[None, Any], request: InfobipRequest) -> dict[str, Any]:
    """Rewrite the texts of `request`; return the response in Infobip's format."""
    rewritten = await rewrite_items(call, rewrite_request_items(request))
    return {
        "bulkId": request.bulk_id or rewritten[0]["message_request_id"],
        "messages": [
            {
                "to": message["to"].removeprefix("+"),
                "status": _PENDING,
                "smsCount": message["segments"],
                "messageId": message["message_id"],
                "text": message["body"],
                "links": message["links"],
                "encoding": message["encoding"],
                "warnings": message["warnings"],
            }
            for message in rewritten
        ],
    }


async def send(call: Call[None, InfobipRequest]) -> dict[str, Any]:
    """Rewrite messages in Infobip's format. The service does not send them."""
    return await rewrite(call, call.body)


ENDPOINTS = [
    Endpoint(
        "POST",
        f"/sms/{version}/text/advanced",
        send,
        f"Rewrite messages (Infobip, version {version})",
        "Send pipeline",
        permission="sms.send",
        body=InfobipRequest,
        response=InfobipResponse,
        headers=REWRITE_HEADERS,
        errors=REWRITE_ERRORS,
        description="Rewrites messages like POST /api/v1/rewrite with the same body. No message is sent.",
    )
    for version in (1, 2)
]
