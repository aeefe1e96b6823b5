"""Infobip's send calls for text messages, versions 1 and 2. The calls send through the gateway of the application. Without a
gateway they only rewrite, and the response contains a warning. POST /api/v1/rewrite accepts the same format, but never sends.
Infobip writes phone numbers without a plus.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, WrapValidator
from pydantic.config import JsonDict

from shortener.errors import ErrorCode
from shortener.ids import new_message_id
from shortener.messages.rewrite_item import RewriteItem
from shortener.messages.spans import TrackMode
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import CampaignName, RequestId, Sender, Text, check_metadata
from shortener.web.rewrite_call import REWRITE_ERRORS, REWRITE_HEADERS, rewrite_items
from shortener.web.rewrite_shapes import MAX_BODY_LENGTH, MessageId, RewrittenLinkFields
from shortener.web.validation import limit_errors
from shortener.web.vendors.error_shapes import infobip_error
from shortener.web.vendors.vendor_model import Unsupported, VendorModel, field_warnings

_PLAIN_NUMBER = re.compile(r"[1-9][0-9]{6,14}")


_EXAMPLE: JsonDict = {
    "messages": [
        {"from": "InfoSMS", "destinations": [{"to": "41793026731"}], "text": "Your PIN is 1a2B3c, see https://shop.example/pin"}
    ],
    "tracking": {"track": "SMS", "type": "One_Time_Pin"},
    "urlOptions": {"shortenUrl": True},
}


class InfobipDestination(VendorModel):
    """One recipient of a text in Infobip's format."""

    to: str = Field(description="International phone number with or without a plus, for example 41793026731.")
    message_id: MessageId | None = Field(
        None, alias="messageId", description="Id of the message to this recipient. Default: the service generates an id."
    )


def check_callback_data(value: str) -> str:
    check_metadata({"callbackData": value})
    return value


#: The type of the field `callbackData` of a message.
CallbackData = Annotated[Text, AfterValidator(check_callback_data)]

#: Fields that have no meaning in this service. They are accepted for compatibility.
IgnoredField = Annotated[Any, Field(description="Field of Infobip that is accepted and ignored.")]
_WARNED = Field(description="Not supported. A value other than false causes a warning and has no other effect.")
AT_ONCE = Annotated[Any, _WARNED, Unsupported("is not supported; the message is sent at once")]
WITHOUT_FLASH = Annotated[Any, _WARNED, Unsupported("is not supported; the message is sent as a normal SMS")]
UNCHANGED_TEXT = Annotated[Any, _WARNED, Unsupported("is not supported; the characters of the text stay as they are")]
NO_REPORT_URL = Annotated[
    Any, _WARNED, Unsupported("is not supported; create a tracker of the format infobip with the event delivery")
]
GATEWAY_VALIDITY = Annotated[Any, _WARNED, Unsupported("is not supported; the validity period of the gateway applies")]
GATEWAY_RATE = Annotated[Any, _WARNED, Unsupported("is not supported; the rate of the gateway applies")]
NO_REGIONAL = Annotated[Any, _WARNED, Unsupported("is not supported; the settings of the gateway apply")]


class InfobipText(VendorModel):
    """One text for one or more recipients."""

    from_: Sender = Field("", alias="from", description="Sender of the message. Events of the message contain it.")
    destinations: list[Annotated[InfobipDestination, WrapValidator(limit_errors)]] = Field(min_length=1)
    text: str = Field(
        max_length=MAX_BODY_LENGTH,
        description='Text of the message. #track("url") and #trackurl("url","label") become short links.',
    )
    callback_data: CallbackData | None = Field(
        None,
        alias="callbackData",
        description="Data of the caller, at most 4 KiB. Events in the format `infobip` contain it as callbackData.",
    )
    campaign_reference_id: CampaignName = Field(
        "",
        alias="campaignReferenceId",
        description="Name of the campaign to which the message belongs. Statistics and lists can be filtered and grouped by it.",
    )
    delivery_time_window: AT_ONCE = Field(None, alias="deliveryTimeWindow")
    flash: WITHOUT_FLASH = None
    intermediate_report: IgnoredField = Field(None, alias="intermediateReport")
    language: UNCHANGED_TEXT = None
    notify_content_type: IgnoredField = Field(None, alias="notifyContentType")
    notify_url: NO_REPORT_URL = Field(None, alias="notifyUrl")
    regional: NO_REGIONAL = None
    send_at: AT_ONCE = Field(None, alias="sendAt")
    transliteration: UNCHANGED_TEXT = None
    validity_period: GATEWAY_VALIDITY = Field(None, alias="validityPeriod")
    entity_id: IgnoredField = Field(None, alias="entityId")
    application_id: IgnoredField = Field(None, alias="applicationId")


class InfobipTracking(VendorModel):
    """Settings that assign the messages to a conversion process."""

    track: Literal["SMS", "URL"] = "SMS"
    type: Text = Field("", max_length=100, description="Name of the conversion process, for example One_Time_Pin.")
    base_url: Annotated[Any, _WARNED, Unsupported("is not supported; urlOptions.customDomain selects the domain")] = Field(
        None, alias="baseUrl"
    )
    process_key: Annotated[Any, _WARNED, Unsupported("is not supported; `type` selects the conversion process")] = Field(
        None, alias="processKey"
    )


class InfobipUrlOptions(VendorModel):
    """Options for the URLs in all texts. A short link is always tracked and always begins with its protocol."""

    shorten_url: bool = Field(True, alias="shortenUrl", description="true: every URL in the texts becomes a short link.")
    track_clicks: bool = Field(
        True,
        alias="trackClicks",
        description="false causes a warning if shortenUrl is true, because a short link is always tracked.",
    )
    tracking_url: Annotated[
        Any, _WARNED, Unsupported("is not supported; create a tracker of the format infobip with the event click")
    ] = Field(None, alias="trackingUrl")
    remove_protocol: Annotated[
        bool, Unsupported("is not supported, because some phones do not recognize a link without its protocol")
    ] = Field(False, alias="removeProtocol", description="true causes a warning: short links always begin with their protocol.")
    custom_domain: Text | None = Field(
        None,
        alias="customDomain",
        max_length=255,
        description="Host of one of the application's own domains. Other hosts are rejected.",
    )


class InfobipRequest(VendorModel):
    """A request of Infobip's call \"send fully featured text message\"."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    bulk_id: RequestId = Field(
        "",
        alias="bulkId",
        description="Id of the request. Events contain it as message_request_id. Default: the service generates an id.",
    )
    messages: list[Annotated[InfobipText, WrapValidator(limit_errors)]] = Field(min_length=1)
    tracking: InfobipTracking | None = Field(
        None, description="Assigns the messages to a conversion process. If `track` is URL, every URL becomes a short link."
    )
    url_options: InfobipUrlOptions | None = Field(None, alias="urlOptions")
    type: IgnoredField = Field(None, exclude=True)  # left out of stored contents: release 0.2 did not store this field
    include_sms_count_in_response: IgnoredField = Field(None, alias="includeSmsCountInResponse")
    sending_speed_limit: GATEWAY_RATE = Field(None, alias="sendingSpeedLimit")


class InfobipStatus(ResponseModel):
    """Infobip's status object. The response to a send call contains PENDING_ENROUTE, or the reason of a rejected recipient."""

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
    text: str | None = Field(
        description="The rewritten text, which the caller must send to this recipient if `sent` is false. null: recipient rejected."
    )
    links: list[RewrittenLinkFields]
    encoding: Literal["GSM-7", "UCS-2"] | None = Field(description="Encoding of the rewritten text. null: recipient rejected.")
    warnings: list[str]
    sent: bool = Field(description="Whether the message is queued for a gateway. false: the caller must send the rewritten text.")


class InfobipResponse(ResponseModel):
    """A response in Infobip's format with one entry per destination, in order."""

    bulkId: str
    messages: list[InfobipMessageFields]
    warnings: list[str] = Field(description="Warnings about fields of the request that have no effect.")


#: The status object of a message that was just accepted, as Infobip returns it.
PENDING = {
    "groupId": 1,
    "groupName": "PENDING",
    "id": 7,
    "name": "PENDING_ENROUTE",
    "description": "Message sent to next instance",
}


#: The status of a recipient to whom the service must not send. The other recipients get their messages, as in the API of Infobip.
_REJECTED: Mapping[ErrorCode, tuple[int, str, str]] = {
    ErrorCode.NO_PRICE: (6, "REJECTED_NETWORK", "Network is forbidden"),
    ErrorCode.OPTED_OUT: (14, "REJECTED_DESTINATION", "The destination number is blacklisted"),
}
REJECTED_CODES = frozenset(_REJECTED)


def rejected_fields(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the response fields of a rejected recipient, which all versions of the send call share. Return None if the entry is a
    rewritten message."""
    if "error_code" not in entry:
        return None
    number, name, description = _REJECTED[ErrorCode[entry["error_code"]]]
    return {
        "status": {"groupId": 5, "groupName": "REJECTED", "id": number, "name": name, "description": description},
        "messageId": entry["message_id"] or new_message_id(),
        "text": None,
        "links": [],
        "encoding": None,
        "warnings": [f"{entry['error_code']}: the recipient {entry['reason']}; nothing was stored or sent"],
        "sent": False,
    }


def rewrite_request_items(request: InfobipRequest, gateway: str | None = None) -> list[RewriteItem]:
    """Convert a request in Infobip's format to the input of the rewriter.

    `gateway` is the name of the gateway that sends the messages; "" means the gateway of the application. If it is None, the
    messages are only rewritten."""
    track = _track_mode(request)
    tracking = (request.tracking.track, request.tracking.type) if request.tracking else ("", "")
    bulk_id = request.bulk_id or new_message_id()
    return [
        RewriteItem(
            to=tuple(with_plus(destination.to) for destination in message.destinations),
            body=message.text,
            message_ids=tuple(destination.message_id for destination in message.destinations),
            field_path=_FieldPath(f"messages.{index}"),
            track=track,
            from_address=message.from_,
            request_id=bulk_id,
            metadata=None if message.callback_data is None else {"callbackData": message.callback_data},
            tracking=tracking,
            domain=(request.url_options.custom_domain or "") if request.url_options else "",
            campaign=message.campaign_reference_id,
            gateway=gateway,
            skipped_codes=frozenset() if gateway is None else REJECTED_CODES,
        )
        for index, message in enumerate(request.messages)
    ]


class _FieldPath:
    """A function that returns the path of a field in a request in Infobip's format, for errors. `path` is the path of the
    message."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, name: str, recipient: int | None) -> str:
        if recipient is not None:
            return f"{self._path}.destinations.{recipient}.{'messageId' if name == 'message_id' else name}"
        if name == "domain":
            return "urlOptions.customDomain"
        return f"{self._path}.{'text' if name == 'body' else name}"


def _track_mode(request: InfobipRequest) -> TrackMode | None:
    """Return which URLs become short links, or None if the request does not specify this."""
    options = request.url_options
    all_urls = request.tracking is not None and request.tracking.track == "URL"
    if options is None:
        return "all_urls" if all_urls else None
    return "all_urls" if options.shorten_url or all_urls else "directives"


def with_plus(number: str) -> str:
    return f"+{number}" if _PLAIN_NUMBER.fullmatch(number) else number


async def rewrite(call: Call[None, Any], request: InfobipRequest, gateway: str | None = None) -> dict[str, Any]:
    """Rewrite the texts of `request`, and return the response in Infobip's format.

    `gateway` is the name of the gateway that sends the messages; "" means the gateway of the application. If it is None, the
    messages are only rewritten."""
    items = rewrite_request_items(request, gateway)
    rewritten = await rewrite_items(call, items)
    about_request = field_warnings(request, without="messages")
    options = request.url_options
    if options and options.shorten_url and not options.track_clicks:
        about_request.append("urlOptions.trackClicks: a short link is always tracked")
    about_text = [
        field_warnings(text, f"messages.{index}") for index, text in enumerate(request.messages) for _ in text.destinations
    ]
    return response_fields(items, rewritten, about_text, about_request)


def response_fields(
    items: Sequence[RewriteItem],
    rewritten: Sequence[Mapping[str, Any]],
    about_text: Sequence[Sequence[str]],
    about_request: Sequence[str],
) -> dict[str, Any]:
    """Return the fields of a response in Infobip's format. `about_text` has the warnings about the fields of the request for each
    recipient, and `about_request` those about the fields of the whole request."""
    return {
        "bulkId": bulk_id_of(rewritten, items),
        "messages": [
            {
                "to": message["to"].removeprefix("+"),
                "smsCount": message.get("segments", 0),
                **(rejected_fields(message) or accepted_fields(message, warnings)),
            }
            for message, warnings in zip(rewritten, about_text, strict=True)
        ],
        "warnings": list(about_request),
    }


def bulk_id_of(rewritten: Sequence[Mapping[str, Any]], items: Sequence[RewriteItem]) -> str:
    """Return the id of a request. If the request is a repeat, this is the id in its first response."""
    found: str = next((message["message_request_id"] for message in rewritten if "error_code" not in message), items[0].request_id)
    return found


def accepted_fields(message: Mapping[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
    """Return the response fields of a rewritten message that are the same in all versions of the send call."""
    return {
        "status": PENDING,
        "messageId": message["message_id"],
        "text": message["body"],
        "links": message["links"],
        "encoding": message["encoding"],
        "warnings": [*message["warnings"], *warnings],
        "sent": message.get("sent", False),
    }


async def send(call: Call[None, InfobipRequest]) -> dict[str, Any]:
    """Rewrite messages in Infobip's format, and send them through the gateway of the application."""
    return await rewrite(call, call.body, gateway="")


#: The description of each send call of Infobip.
SENDS = (
    "Rewrites the messages and sends them through the gateway of the application. Without a gateway nothing is sent: `sent` is "
    "false, and a warning begins with NOT_SENT. A recipient to whom the service must not send (opted out, no price) gets the "
    "status group REJECTED; the other recipients get the message. Errors also contain Infobip's `requestError`."
)

ENDPOINTS = [
    Endpoint(
        "POST",
        f"/sms/{version}/text/advanced",
        send,
        f"Send messages (Infobip, version {version})",
        "Send pipeline",
        permission="sms.send",
        body=InfobipRequest,
        error_shape=infobip_error,
        response=InfobipResponse,
        headers=REWRITE_HEADERS,
        errors=REWRITE_ERRORS,
        description=SENDS,
    )
    for version in (1, 2)
]
