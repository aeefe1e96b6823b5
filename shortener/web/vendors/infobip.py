"""Infobip's send calls for text messages, versions 1 and 2. The calls send messages through the gateway of the application. If it
has no gateway, they only rewrite the texts, and the response contains a warning. POST /api/v1/rewrite accepts the same format,
but never sends. Infobip writes phone numbers without a plus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WrapValidator
from pydantic.config import JsonDict

from shortener.ids import new_message_id
from shortener.messages.rewrite_item import RewriteItem
from shortener.messages.spans import TrackMode
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.rewrite_call import REWRITE_ERRORS, REWRITE_HEADERS, rewrite_items
from shortener.web.rewrite_shapes import (
    ConversionProcessName,
    IsSent,
    MessageCampaign,
    MessageSender,
    RewrittenLinkFields,
)
from shortener.web.validation import limit_errors
from shortener.web.vendors.error_shapes import infobip_error
from shortener.web.vendors.infobip_fields import (
    AT_ONCE,
    GATEWAY_RATE,
    GATEWAY_VALIDITY,
    NO_REGIONAL,
    NO_REPORT_URL,
    REJECTED_CODES,
    SENDS,
    UNCHANGED_TEXT,
    WARNED,
    WITHOUT_FLASH,
    BulkId,
    CallbackData,
    Destinations,
    FieldPath,
    IgnoredField,
    InfobipStatus,
    InfobipUrlOptions,
    MessageText,
    RewrittenText,
    TextEncoding,
    accepted_fields,
    bulk_id_of,
    rejected_fields,
    with_plus,
)
from shortener.web.vendors.vendor_model import RequestWarnings, Unsupported, VendorModel, field_warnings

_EXAMPLE: JsonDict = {
    "messages": [
        {"from": "InfoSMS", "destinations": [{"to": "41793026731"}], "text": "Your PIN is 1a2B3c, see https://shop.example/pin"}
    ],
    "tracking": {"track": "SMS", "type": "One_Time_Pin"},
    "urlOptions": {"shortenUrl": True},
}


class InfobipText(VendorModel):
    """One text for one or more recipients."""

    from_: MessageSender = Field("", alias="from")
    destinations: Destinations
    text: MessageText
    callback_data: CallbackData = Field(None, alias="callbackData")
    campaign_reference_id: MessageCampaign = Field("", alias="campaignReferenceId")
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
    type: ConversionProcessName = ""
    base_url: Annotated[Any, WARNED, Unsupported("is not supported; urlOptions.customDomain selects the domain")] = Field(
        None, alias="baseUrl"
    )
    process_key: Annotated[Any, WARNED, Unsupported("is not supported; `type` selects the conversion process")] = Field(
        None, alias="processKey"
    )


class InfobipRequest(VendorModel):
    """A request of Infobip's call \"send fully featured text message\"."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    bulk_id: BulkId = Field("", alias="bulkId")
    messages: list[Annotated[InfobipText, WrapValidator(limit_errors)]] = Field(min_length=1)
    tracking: InfobipTracking | None = Field(
        None, description="Assigns the messages to a conversion process. If `track` is URL, every URL becomes a short link."
    )
    url_options: InfobipUrlOptions | None = Field(None, alias="urlOptions")
    type: IgnoredField = Field(None, exclude=True)  # Stored contents lack this field, because release 0.2 did not store it.
    include_sms_count_in_response: IgnoredField = Field(None, alias="includeSmsCountInResponse")
    sending_speed_limit: GATEWAY_RATE = Field(None, alias="sendingSpeedLimit")


class InfobipMessageFields(ResponseModel):
    """The rewritten message of one recipient."""

    to: str = Field(description="Phone number of the recipient without a plus.")
    status: InfobipStatus
    smsCount: int = Field(description="Number of SMS segments of the rewritten text.")
    messageId: str
    text: RewrittenText
    links: list[RewrittenLinkFields]
    encoding: TextEncoding
    warnings: list[str]
    sent: IsSent


class InfobipResponse(ResponseModel):
    """A response in Infobip's format with one entry per destination, in order."""

    bulkId: str
    messages: list[InfobipMessageFields]
    warnings: RequestWarnings


def rewrite_request_items(request: InfobipRequest, gateway: str | None = None) -> list[RewriteItem]:
    """Convert a request in Infobip's format to the input of the rewriter.

    `gateway` is the name of the gateway that sends the messages; "" means the gateway of the application. If `gateway` is None,
    the messages are only rewritten."""
    track = _track_mode(request)
    tracking = (request.tracking.track, request.tracking.type) if request.tracking else ("", "")
    bulk_id = request.bulk_id or new_message_id()
    return [
        RewriteItem(
            to=tuple(with_plus(destination.to) for destination in message.destinations),
            body=message.text,
            message_ids=tuple(destination.message_id for destination in message.destinations),
            field_path=FieldPath(f"messages.{index}", "urlOptions.customDomain", {"body": "text"}),
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


def _track_mode(request: InfobipRequest) -> TrackMode | None:
    """Return which URLs become short links, or None if the request does not specify this."""
    options = request.url_options
    all_urls = request.tracking is not None and request.tracking.track == "URL"
    if options is None:
        return "all_urls" if all_urls else None
    return "all_urls" if options.shorten_url or all_urls else "directives"


async def rewrite(call: Call[None, Any], request: InfobipRequest, gateway: str | None = None) -> dict[str, Any]:
    """Rewrite the texts of `request`, and return the response in Infobip's format.

    `gateway` is the name of the gateway that sends the messages; "" means the gateway of the application. If `gateway` is None,
    the messages are only rewritten."""
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
    """Return the fields of a response in Infobip's format. `about_text` contains, for each recipient, the warnings about the
    fields of the recipient's message. `about_request` contains the warnings about fields that apply to the whole request."""
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


async def send(call: Call[None, InfobipRequest]) -> dict[str, Any]:
    """Rewrite messages in Infobip's format, and send them through the gateway of the application."""
    return await rewrite(call, call.body, gateway="")


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
