"""The request and response models of a rewrite in the native format, and the options that all formats share. Most fields have the
same names as in Syniverse's API.
"""
# Tested by tests/web/test_rewrite.py

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, WithJsonSchema, WrapValidator, model_validator

from shortener.messages.rewrite_item import RewriteItem
from shortener.messages.spans import TrackMode
from shortener.web.endpoint import RequestModel, ResponseModel
from shortener.web.fields import CampaignName, EndTime, Metadata, Price, RequestId, Sender, Text, UrlText, number_as_text
from shortener.web.validation import limit_errors

# The maximum number of characters of a text. Even a concatenated SMS is much shorter. Longer texts would slow down a batch.
MAX_BODY_LENGTH = 20_000


def _check_id(value: str) -> str:
    if not 1 <= len(value) <= 100 or not value.isprintable():
        raise ValueError("must have 1 to 100 printable characters")
    return value


#: An id that the caller chooses. A JSON number is converted to text.
MessageId = Annotated[
    Text,
    BeforeValidator(number_as_text),
    AfterValidator(_check_id),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": 100}, {"type": "integer"}]}),
]


def as_message_id(value: Any) -> str | None:
    """Return a value of a request as a message id; None if it is not a valid id."""
    text = number_as_text(value)
    try:
        return _check_id(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _without_null(value: Any) -> Any:
    return ["" if entry is None else entry for entry in value] if isinstance(value, list) and None in value else value


#: One or several phone numbers. A null in a list, for example from an empty table cell, becomes a recipient that is not valid, so
#: that `on_invalid` applies to it.
Recipients = Annotated[str | list[str], BeforeValidator(_without_null)]

#: Fields that several formats contain.
MessageSender = Annotated[Sender, Field(description="Sender of the message. Events of the message contain it.")]
MessageCampaign = Annotated[
    CampaignName,
    Field(description="Name of the campaign to which the message belongs. Statistics and lists can be filtered and grouped by it."),
]
ConversionProcessName = Annotated[
    Text, Field(max_length=100, description="Name of the conversion process, for example One_Time_Pin.")
]
IsSent = Annotated[
    bool, Field(description="Whether the message is queued for a gateway. false: the caller must send the rewritten text.")
]

#: What happens to a message or a recipient that is not valid.
OnInvalid = Literal["fail", "skip"]
_ON_INVALID = (
    "fail: the whole request is rejected. skip: the valid messages to valid recipients are stored. For each other recipient, "
    "the response contains an error in its place. A message with a missing field, an unknown field or a wrong type is not "
    "valid either."
)


def _as_track_link(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


#: A boolean, or the text "true" or "false", because clients of Xoxzo send the text.
TrackLink = Annotated[
    bool,
    BeforeValidator(_as_track_link),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["true", "false"]}]}),
]


def _as_gateway(value: Any) -> Any:
    """Return "" for true, and None for false and "none". Return any other value unchanged."""
    if isinstance(value, bool):
        return "" if value else None
    return {"": None, "none": None, "default": ""}.get(value, value) if isinstance(value, str) else value


#: The gateway that sends a message. The value "" stands for the gateway of the application.
GatewayName = Annotated[
    Annotated[Text, Field(max_length=64)] | None,
    BeforeValidator(_as_gateway),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 64}, {"type": "boolean"}, {"type": "null"}]}),
]


def _as_seconds(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be an integer")  # without this check, pydantic would read true as one second
    return value


class OptionalFields(RequestModel):
    """Base class of models that treat null like an absent field, because many clients send null for a field that is not set."""

    @model_validator(mode="before")
    @classmethod
    def _remove_null(cls, data: Any) -> Any:
        if isinstance(data, dict) and None in data.values():
            return {name: value for name, value in data.items() if value is not None}
        return data


class Tracking(OptionalFields):
    """The `tracking` object of Infobip. It assigns the message to a conversion process."""

    track: Literal["SMS", "URL"] = "SMS"
    type: ConversionProcessName = ""


class MessageOptions(OptionalFields):
    """Optional fields of a message, in addition to recipient, sender and text."""

    sender_id_id: RequestId = ""
    sender_id_alias: RequestId = ""
    message_request_id: RequestId = Field(
        "",
        description="Id of the request. Events contain it. Default: the service generates an id. A repeated message may have "
        "another id here: its response and its events still have the id of the first request.",
    )
    external_message_request_id: RequestId = Field("", description="Id of the request in the caller's system. Events contain it.")
    track: TrackMode | None = Field(
        None,
        description="directives: rewrite #track and #trackurl; first_url: also rewrite the first plain URL; all_urls: also rewrite "
        "every plain URL. Default: the setting `track` of the application.",
    )
    track_link: TrackLink | None = Field(None, description="Field of Xoxzo: true has the same meaning as `track: first_url`.")
    lt_callbackurl: UrlText | None = Field(
        None,
        max_length=2048,
        validation_alias=AliasChoices("lt_callbackurl", "lt_callbackur"),
        description="Field of Xoxzo: URL that receives one POST at the first click. The name `lt_callbackur` is accepted too.",
    )
    gateway: GatewayName = Field(
        None,
        description="Also send the message. true: through the gateway of the application. A name: through this gateway, "
        "which must be the selected gateway, one of the application's own gateways, or simulator (sends nothing). If the "
        "application has no gateway, the message is not sent, `sent` is false, and a warning begins with NOT_SENT. Default: "
        "null, do not send.",
    )
    tracking: Tracking | None = None
    campaign: MessageCampaign = ""
    source: Literal["api", "campaign"] = Field(
        "api", description="Traffic source of the message. Statistics and lists can be filtered by it."
    )
    domain: Text = Field(
        "",
        examples=[""],
        max_length=255,
        description="Host of a domain of the application, for the short links of this message. Default: the default domain.",
    )
    mt_price: Price | None = Field(None, description="Price of the message, as a decimal string or a number.")
    expires_in: Annotated[int, BeforeValidator(_as_seconds)] | None = Field(
        None, ge=1, le=3650 * 86400, description="Lifetime of the links, in seconds from now. Default: LINK_TTL_DAYS (90 days)."
    )
    expires_at: EndTime | None = Field(
        None,
        description="Time when the links expire, in ISO 8601 (UTC without a zone). A date includes the whole day. Must not be "
        "combined with `expires_in`.",
    )
    fallback_url: UrlText | None = Field(None, max_length=2048, description="URL to which the links redirect after they expire.")
    opt_out: Annotated[list[Annotated[Text, Field(max_length=2048)]], Field(max_length=10)] = Field(
        default_factory=list,  # With `default=[]`, pydantic would call the slow copy.deepcopy for every message.
        json_schema_extra={"default": []},
        description="URLs or labels of opt-out links. A hit on an opt-out link creates a click event even if its verdict is "
        "suspected. Links with the label optout are always opt-out links.",
    )
    metadata: Metadata | None = Field(
        None, description="Metadata of the message: a flat object of at most 4 KiB of JSON. Events contain it."
    )


class RewriteMessage(MessageOptions):
    """A message for one recipient or for several; each recipient gets separate links."""

    to: Recipients = Field(
        description="Phone number in E.164, for example +14085550100, or a list of numbers. Spaces, hyphens, brackets, invisible "
        "characters and a leading 00 are removed."
    )
    body: str = Field(
        max_length=MAX_BODY_LENGTH,
        description='Text of the message. #track("url") and #trackurl("url","label") are replaced by short links.',
    )
    from_: MessageSender = Field("", alias="from")
    message_id: MessageId | list[MessageId] | None = Field(
        None,
        description="Id of the message, unique in the application. If `to` is a list, a list with one id for each recipient. "
        "Default: the service generates an id.",
    )
    on_invalid: OnInvalid | None = Field(None, description=f"{_ON_INVALID} Default: fail, or the value of the batch.")


class RewriteBatch(OptionalFields):
    """A batch of messages. All messages are stored, or none. With `on_invalid: skip`, all valid messages to valid recipients are
    stored."""

    on_invalid: OnInvalid = Field("fail", description=_ON_INVALID)
    messages: list[Annotated[RewriteMessage, WrapValidator(limit_errors)]] = Field(min_length=1)


class RewrittenLinkFields(ResponseModel):
    code: str
    short_url: str
    url: str
    label: str | None
    expires_at: str


class RewrittenMessageFields(ResponseModel):
    """The rewritten message of one recipient."""

    message_id: str
    message_request_id: str
    to: str
    body: str = Field(description="The rewritten text, which the caller must send to the recipient.")
    links: list[RewrittenLinkFields]
    encoding: Literal["GSM-7", "UCS-2"]
    segments: int = Field(description="Number of SMS segments of the rewritten text.")
    segments_without_rewriting: int = Field(description="Number of SMS segments of the original text with the long URLs.")
    warnings: list[str] = Field(description="Texts that explain possible problems of the message with carriers or phones.")


class SentMessageFields(RewrittenMessageFields):
    """The rewritten message of one recipient in a request to send it."""

    sent: IsSent
    cost: str | None = Field(description="Price of the message as a decimal string. null: the message has no price.")


class RefusedRecipientFields(ResponseModel):
    """A recipient that was left out, because its data is not valid or messages to it are not permitted. Nothing was stored for
    this recipient."""

    to: str = Field(
        description="Phone number of the skipped recipient, as written in the request; empty if it is not a text. If `to` of "
        "a message is missing, is empty or has a wrong type, the message has one such entry."
    )
    message_id: str | None = Field(description="Id of the skipped message in the request. null: the request contains no id.")
    error_code: str
    field: str = Field(description="Path of the invalid field in the request.")
    reason: str
    position: int | None


class RewriteResponse(ResponseModel):
    """The rewritten messages, one entry per recipient, in the order of the request."""

    status: Literal[True] = True
    messages: list[RewrittenMessageFields | SentMessageFields | RefusedRecipientFields]


def rewrite_item(message: RewriteMessage, path: str = "", on_invalid: OnInvalid = "fail") -> RewriteItem:
    """Convert a message to the input of the rewriter. `path` is the path of the message in the request, for example `messages.3`.

    `on_invalid` is the value of the batch. It applies if the message itself has no `on_invalid`."""
    to, ids = message.to, message.message_id

    def field_path(name: str, recipient: int | None) -> str:
        value = {"to": to, "message_id": ids}.get(name)
        parts = [path, name, str(recipient) if isinstance(value, list) and recipient is not None else ""]
        return ".".join(part for part in parts if part)

    return with_options(
        message,
        to=tuple(to) if isinstance(to, list) else (to,),
        body=message.body,
        sender=message.from_,
        message_ids=None if ids is None else (ids,) if isinstance(ids, str) else tuple(ids),
        field_path=field_path,
        skip_invalid=(message.on_invalid or on_invalid) == "skip",
    )


def with_options(
    options: MessageOptions,
    *,
    to: tuple[str, ...],
    body: str,
    sender: str,
    message_ids: tuple[str | None, ...] | None,
    field_path: Callable[[str, int | None], str],
    skip_invalid: bool = False,
) -> RewriteItem:
    """Return a message with its options as input of the rewriter. `field_path` is a function that returns the path of a field in
    the request, which errors contain. Its arguments are the name of the field and the index of the recipient."""
    track = options.track
    if options.track_link and track in (None, "directives"):
        track = "first_url"
    elif options.track_link is False and track is None:
        track = "directives"
    return RewriteItem(
        to=to,
        body=body,
        message_ids=message_ids,
        field_path=field_path,
        track=track,
        from_address=sender,
        sender_id_id=options.sender_id_id or (sender.removeprefix("sender_id:") if sender.startswith("sender_id:") else ""),
        sender_id_alias=options.sender_id_alias,
        request_id=options.message_request_id,
        external_request_id=options.external_message_request_id,
        campaign=options.campaign,
        source=options.source,
        domain=options.domain,
        mt_price=options.mt_price,
        expires_in=options.expires_in,
        expires_at=options.expires_at,
        fallback_url=options.fallback_url,
        callback_url=options.lt_callbackurl,
        metadata=options.metadata,
        opt_out=tuple(options.opt_out),
        skip_invalid=skip_invalid,
        gateway=options.gateway,
        tracking=(options.tracking.track, options.tracking.type) if options.tracking else ("", ""),
    )
