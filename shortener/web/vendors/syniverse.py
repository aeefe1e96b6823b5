"""Syniverse's call that creates a message request: one text for one or more recipients.

The call sends messages through the gateway of the application. If it has no gateway, the call only rewrites the text, and the
response contains a warning. Syniverse's clients read the field `id`. The response also contains the rewritten messages. Errors
have the form of this service, because Syniverse's clients read only the HTTP status.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.config import JsonDict

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import new_message_id
from shortener.messages.rewrite_item import RewriteItem
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import Metadata, RequestId, Sender, Text
from shortener.web.rewrite_call import REWRITE_ERRORS, REWRITE_HEADERS, rewrite_items
from shortener.web.rewrite_shapes import MAX_BODY_LENGTH, MessageCampaign, RefusedRecipientFields, SentMessageFields
from shortener.web.vendors.vendor_model import RequestWarnings, Unsupported, VendorModel, field_warnings

_EXAMPLE: JsonDict = {
    "from": "channel:Bxn9SHBYhl89Kn",
    "to": ["+14085550100"],
    "body": 'Hello Kola, please visit us at #track("https://shop.example/a?b=1") for new information',
}
_NOT_SUPPORTED = Field(description="Not supported. A value causes a warning and has no other effect.")
_AtOnce = Annotated[Any, _NOT_SUPPORTED, Unsupported("is not supported; the message is sent at once")]
_Untranslated = Annotated[Any, _NOT_SUPPORTED, Unsupported("is not supported; the text is not translated")]


def _check_consent(value: str) -> str:
    return "" if value.strip().upper() == "NONE" else value


class SyniverseMessageRequest(VendorModel):
    """A message request of Syniverse. Unknown fields are ignored, with a warning."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    from_: Sender = Field(
        "",
        alias="from",
        description="Sender of the message: a number, a name, `channel:ID` or `sender_id:ID`. Events of the message contain it.",
    )
    to: str | list[str] = Field(description="Phone numbers in E.164, for example +14085550100.")
    body: str = Field(
        max_length=MAX_BODY_LENGTH,
        description='Text of the message. #track("url") and #trackurl("url","label") are replaced by short links.',
    )
    external_id: RequestId = Field(
        "", description="Id of the request in the caller's system. Events contain it as external_message_request_id."
    )
    external_message_request_id: RequestId = Field("", description="Another name of the field `external_id`.")
    campaign_id: MessageCampaign = ""
    metadata: Metadata | None = Field(
        None, description="Metadata of the message: a flat object of at most 4 KiB of JSON. Events contain it."
    )
    attachments: Annotated[list[Any] | Text | None, _NOT_SUPPORTED, Unsupported("is not supported; an SMS has no attachment")] = (
        None
    )
    media_urls: Annotated[Any, _NOT_SUPPORTED, Unsupported("is not supported; an SMS has no attachment")] = None
    consent_requirement: Annotated[
        Text, AfterValidator(_check_consent), Unsupported("is not supported; only the opt-out list of the application is checked")
    ] = Field(
        "",
        description="Any value except NONE causes a warning, because only the opt-out list of the application is checked.",
    )
    scheduled_delivery_time: _AtOnce = None
    scheduled_delivery_time_zone: Annotated[Any, Field(description="Field of Syniverse that is accepted and ignored.")] = None
    pause_before_transmit: _AtOnce = None
    pause_expiry_time: Annotated[Any, Field(description="Field of Syniverse that is accepted and ignored.")] = None
    expiry_time: Annotated[Any, _NOT_SUPPORTED, Unsupported("is not supported; the validity period of the gateway applies")] = None
    test_message_flag: Annotated[Any, _NOT_SUPPORTED, Unsupported("is not supported; the message is sent")] = None
    failover: Annotated[Any, _NOT_SUPPORTED, Unsupported("is not supported; the message is sent as an SMS only")] = None
    price_threshold: Annotated[Any, _NOT_SUPPORTED, Unsupported("is not supported; the balance of the application applies")] = None
    src_language: Annotated[Any, Field(description="Field of Syniverse that is accepted and ignored.")] = None
    dst_language: _Untranslated = None
    translate: _Untranslated = None
    conversation_id: Annotated[Any, Field(description="Field of Syniverse that is accepted and ignored.")] = None
    program_id: Annotated[Any, Field(description="Field of Syniverse that is accepted and ignored.")] = None
    subject: Annotated[Any, Field(description="Field of Syniverse that is accepted and ignored.")] = None
    application_id: Annotated[Any, Field(description="Accepted and ignored: the API key determines the application.")] = None
    criteria: Annotated[Any, Field(description="Field of Syniverse that is accepted and ignored.")] = None
    contact_delivery_address_priority: Annotated[Any, Field(description="Field of Syniverse that is accepted and ignored.")] = None
    sender_id_sort_criteria: Annotated[Any, Field(description="Field of Syniverse that is accepted and ignored.")] = None


class SyniverseResponse(ResponseModel):
    """The id of the message request, and the rewritten messages."""

    id: str = Field(description="Id of the message request. Events contain it as message_request_id.")
    status: Literal[True] = True
    sent: bool = Field(
        description="Whether the messages are queued for a gateway. false: the caller must send the rewritten texts."
    )
    messages: list[SentMessageFields | RefusedRecipientFields]
    warnings: RequestWarnings


async def send(call: Call[None, SyniverseMessageRequest]) -> dict[str, Any]:
    """Rewrite a text for its recipients, and send it through the gateway of the application."""
    request = call.body
    to = request.to if isinstance(request.to, list) else [request.to]
    if not to:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("to", "must have at least 1 item")])
    sender = request.from_

    def field_path(name: str, recipient: int | None) -> str:
        return f"to.{recipient}" if name == "to" and recipient is not None and isinstance(request.to, list) else name

    item = RewriteItem(
        to=tuple(to),
        body=request.body,
        field_path=field_path,
        from_address=sender,
        sender_id_id=sender.removeprefix("sender_id:") if sender.startswith("sender_id:") else "",
        request_id=new_message_id(),
        external_request_id=request.external_id or request.external_message_request_id,
        campaign=request.campaign_id,
        metadata=request.metadata,
        gateway="",
        skipped_codes=frozenset({ErrorCode.OPTED_OUT, ErrorCode.NO_PRICE}),
    )
    rewritten = await rewrite_items(call, [item])
    accepted = [message for message in rewritten if "error_code" not in message]
    if not accepted:
        details = [Detail(message["field"], message["reason"]) for message in rewritten]
        raise ApiError(ErrorCode[rewritten[0]["error_code"]], details=details)
    return {
        "id": accepted[0]["message_request_id"],
        "status": True,
        "sent": all(message.get("sent", False) for message in accepted),
        "messages": rewritten,
        "warnings": field_warnings(request),
    }


ENDPOINTS = [
    Endpoint(
        "POST",
        "/scg-external-api/api/v1/messaging/message_requests",
        send,
        "Create a message request (Syniverse)",
        "Send pipeline",
        permission="sms.send",
        body=SyniverseMessageRequest,
        response=SyniverseResponse,
        headers=REWRITE_HEADERS,
        errors=REWRITE_ERRORS,
        description="Rewrites the text for each recipient and sends it through the gateway of the application. If the "
        "application has no gateway, nothing is sent: `sent` is false, and a warning begins with NOT_SENT. A recipient to "
        "whom the service must not send (opted out, no price) has an `error_code` in `messages`, and the other recipients "
        "get the message.",
    ),
]
