"""Infobip's send call for messages, version 3, which its current clients use.

The call sends messages like versions 1 and 2 (infobip.py). Its response contains Infobip's fields and also the rewritten texts.
"""
# Tested by tests/web/vendors/test_infobip.py

from __future__ import annotations

from typing import Annotated, Any

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
from shortener.web.vendors.vendor_model import RequestWarnings, VendorModel, field_warnings

_EXAMPLE: JsonDict = {
    "messages": [
        {
            "sender": "InfoSMS",
            "destinations": [{"to": "41793026731"}],
            "content": {"text": "Your PIN is 1a2B3c, see https://shop.example/pin"},
        }
    ],
    "options": {
        "tracking": {"shortenUrl": True, "trackClicks": True},
        "conversionTracking": {"useConversionTracking": True, "conversionTrackingName": "One_Time_Pin"},
    },
}


class InfobipContent(VendorModel):
    """The content of a message."""

    text: MessageText
    transliteration: UNCHANGED_TEXT = None
    language: UNCHANGED_TEXT = None


class InfobipMessageOptions(VendorModel):
    """The options of one message in Infobip's format."""

    platform: IgnoredField = None
    validity_period: GATEWAY_VALIDITY = Field(None, alias="validityPeriod")
    delivery_time_window: AT_ONCE = Field(None, alias="deliveryTimeWindow")
    campaign_reference_id: MessageCampaign = Field("", alias="campaignReferenceId")
    regional: NO_REGIONAL = None
    flash: WITHOUT_FLASH = None


class InfobipWebhooks(VendorModel):
    """The settings for Infobip's notifications about one message."""

    delivery: NO_REPORT_URL = None
    content_type: IgnoredField = Field(None, alias="contentType")
    callback_data: CallbackData = Field(None, alias="callbackData")


class InfobipMessage(VendorModel):
    """One message for one or more recipients."""

    sender: MessageSender = ""
    destinations: Destinations
    content: InfobipContent
    options: InfobipMessageOptions | None = None
    webhooks: InfobipWebhooks | None = None


class InfobipScheduling(VendorModel):
    """The id of the request, and the time of sending."""

    bulk_id: BulkId = Field("", alias="bulkId")
    send_at: AT_ONCE = Field(None, alias="sendAt")
    sending_speed_limit: GATEWAY_RATE = Field(None, alias="sendingSpeedLimit")


class InfobipConversionTracking(VendorModel):
    """Settings that assign the messages to a conversion process."""

    use_conversion_tracking: bool = Field(
        False, alias="useConversionTracking", description="true: the messages start a conversion process."
    )
    conversion_tracking_name: ConversionProcessName = Field("", alias="conversionTrackingName")


class InfobipRequestOptions(VendorModel):
    """Options of all messages of a request."""

    schedule: InfobipScheduling | None = None
    tracking: InfobipUrlOptions | None = None
    include_sms_count_in_response: IgnoredField = Field(None, alias="includeSmsCountInResponse")
    conversion_tracking: InfobipConversionTracking | None = Field(None, alias="conversionTracking")


class InfobipV3Request(VendorModel):
    """A request of Infobip's call "send SMS messages", version 3."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    messages: list[Annotated[InfobipMessage, WrapValidator(limit_errors)]] = Field(min_length=1)
    options: InfobipRequestOptions = Field(default_factory=InfobipRequestOptions)


class InfobipMessageDetails(ResponseModel):
    """Details of a sent message."""

    messageCount: int = Field(description="Number of SMS segments of the rewritten text.")


class InfobipV3MessageFields(ResponseModel):
    """The rewritten message of one recipient."""

    messageId: str
    status: InfobipStatus
    destination: str = Field(description="Phone number of the recipient without a plus.")
    details: InfobipMessageDetails
    text: RewrittenText
    links: list[RewrittenLinkFields]
    encoding: TextEncoding
    warnings: list[str]
    sent: IsSent


class InfobipV3Response(ResponseModel):
    """A response in Infobip's format with one entry per destination, in order."""

    bulkId: str
    messages: list[InfobipV3MessageFields]
    warnings: RequestWarnings


async def send(call: Call[None, InfobipV3Request]) -> dict[str, Any]:
    """Rewrite messages in Infobip's format, and send them through the gateway of the application."""
    request = call.body
    bulk_id = (request.options.schedule.bulk_id if request.options.schedule else "") or new_message_id()
    items = [_item(request, message, f"messages.{index}", bulk_id) for index, message in enumerate(request.messages)]
    rewritten = await rewrite_items(call, items)
    about_request = field_warnings(request, without="messages")
    tracking = request.options.tracking
    if tracking and tracking.shorten_url and not tracking.track_clicks:
        about_request.append("options.tracking.trackClicks: a short link is always tracked")
    about_message = [
        field_warnings(message, f"messages.{index}") for index, message in enumerate(request.messages) for _ in message.destinations
    ]
    return {
        "bulkId": bulk_id_of(rewritten, items),
        "messages": [
            {
                "destination": message["to"].removeprefix("+"),
                "details": {"messageCount": message.get("segments", 0)},
                **(rejected_fields(message) or accepted_fields(message, warnings)),
            }
            for message, warnings in zip(rewritten, about_message, strict=True)
        ],
        "warnings": about_request,
    }


def _item(request: InfobipV3Request, message: InfobipMessage, path: str, bulk_id: str) -> RewriteItem:
    tracking, conversion = request.options.tracking, request.options.conversion_tracking
    callback_data = message.webhooks.callback_data if message.webhooks else None
    track: TrackMode | None = None
    if tracking is not None:
        track = "all_urls" if tracking.shorten_url else "directives"
    return RewriteItem(
        to=tuple(with_plus(destination.to) for destination in message.destinations),
        body=message.content.text,
        message_ids=tuple(destination.message_id for destination in message.destinations),
        field_path=FieldPath(path, "options.tracking.customDomain", {"body": "content.text", "from": "sender"}),
        track=track,
        from_address=message.sender,
        request_id=bulk_id,
        campaign=message.options.campaign_reference_id if message.options else "",
        metadata=None if callback_data is None else {"callbackData": callback_data},
        tracking=("SMS", conversion.conversion_tracking_name) if conversion and conversion.use_conversion_tracking else ("", ""),
        domain=(tracking.custom_domain or "") if tracking else "",
        gateway="",
        skipped_codes=REJECTED_CODES,
    )


ENDPOINTS = [
    Endpoint(
        "POST",
        "/sms/3/messages",
        send,
        "Send messages (Infobip, version 3)",
        "Send pipeline",
        permission="sms.send",
        body=InfobipV3Request,
        error_shape=infobip_error,
        response=InfobipV3Response,
        headers=REWRITE_HEADERS,
        errors=REWRITE_ERRORS,
        description=SENDS,
    ),
]
