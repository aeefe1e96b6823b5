"""A message to rewrite, in our own words (most of them Syniverse's), and what other systems' words for it share with ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, WithJsonSchema

from shortener.messages.plan import RewriteItem
from shortener.web.endpoint import RequestModel, ResponseModel
from shortener.web.fields import Metadata, Price, Sender, Text, Time

MAX_BODY = 20_000  # characters: far above the longest concatenated SMS, far below what would stall a batch


def _check_id(value: str) -> str:
    if not 1 <= len(value) <= 100 or not value.isprintable():
        raise ValueError("must have 1 to 100 printable characters")
    return value


MessageId = Annotated[Text, AfterValidator(_check_id)]


def _as_track_link(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


#: Xoxzo's flag is the text "true".
TrackLink = Annotated[
    bool,
    BeforeValidator(_as_track_link),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["true", "false"]}]}),
]


class Tracking(RequestModel):
    """Infobip's `tracking` object: gives the message a conversion process."""

    track: Literal["SMS", "URL"] = "SMS"
    type: Text = Field("", max_length=100, description="What is measured, for example One_Time_Pin.")


class Options(RequestModel):
    """What a message may have beyond recipient, sender and text."""

    sender_id_id: Text = Field("", max_length=100)
    sender_id_alias: Text = Field("", max_length=100)
    message_request_id: Text = Field("", max_length=100, description="Echoed in events; minted when absent.")
    external_message_request_id: Text = Field("", max_length=100)
    track: Literal["directives", "first_url", "all_urls"] = "directives"
    track_link: TrackLink | None = Field(None, description="Xoxzo: track the first URL.")
    lt_callbackurl: Text | None = Field(
        None,
        max_length=2048,
        validation_alias=AliasChoices("lt_callbackurl", "lt_callbackur"),
        description="Xoxzo: POSTed once, on the first click. `lt_callbackur` is taken too.",
    )
    tracking: Tracking | None = None
    campaign: Text = Field("", max_length=200)
    source: Literal["api", "campaign"] = "api"
    mt_price: Price | None = Field(None, description="Decimal string or number.")
    expires_in: int | None = Field(None, ge=1, le=3650 * 86400, description="Seconds from now.")
    expires_at: Time | None = Field(None, description="UTC time, ISO 8601.")
    fallback_url: Text | None = Field(None, max_length=2048, description="Where the links lead once they expired.")
    metadata: Metadata | None = Field(None, description="Flat object, at most 4 KiB, echoed in events.")


class RewriteMessage(Options):
    """One message for one recipient, or for each of several."""

    to: str | list[str] = Field(description="E.164 number such as +14085550100, or a list of them.")
    body: str = Field(max_length=MAX_BODY, description='Text with #track("url") and #trackurl("url","label").')
    from_: Sender = Field("", alias="from", description="Sender, echoed in events.")
    message_id: MessageId | list[MessageId] | None = Field(
        None, description="The pipeline's id, unique in the application; minted when absent. A list when `to` is one."
    )


class RewriteBatch(RequestModel):
    messages: list[RewriteMessage] = Field(min_length=1)


class RewrittenLinkFields(ResponseModel):
    code: str
    short_url: str
    url: str
    label: str | None
    expires_at: str


class RewrittenMessageFields(ResponseModel):
    message_id: str
    message_request_id: str
    to: str
    body: str
    links: list[RewrittenLinkFields]
    encoding: Literal["GSM-7", "UCS-2"]
    segments: int
    segments_without_rewriting: int
    warnings: list[str] = Field(description="What phones or carriers may stumble over, in words.")


class RewriteResponse(ResponseModel):
    """One entry per recipient, in request order."""

    status: Literal[True] = True
    messages: list[RewrittenMessageFields]


def outgoing(message: RewriteMessage, path: str = "") -> RewriteItem:
    """`path`: where the message stands in the request, such as `messages.3`."""
    to, ids = message.to, message.message_id

    def field_path(name: str, recipient: int | None) -> str:
        several = {"to": to, "message_id": ids}.get(name)
        parts = [path, name, str(recipient) if isinstance(several, list) and recipient is not None else ""]
        return ".".join(part for part in parts if part)

    return with_options(
        message,
        to=tuple(to) if isinstance(to, list) else (to,),
        body=message.body,
        sender=message.from_,
        message_ids=None if ids is None else (ids,) if isinstance(ids, str) else tuple(ids),
        field_path=field_path,
    )


def with_options(
    options: Options,
    *,
    to: tuple[str, ...],
    body: str,
    sender: str,
    message_ids: tuple[str | None, ...] | None,
    field_path: Callable[[str, int | None], str],
) -> RewriteItem:
    track = options.track
    if track == "directives" and options.track_link:
        track = "first_url"
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
        mt_price=options.mt_price,
        expires_in=options.expires_in,
        expires_at=options.expires_at,
        fallback_url=options.fallback_url,
        callback_url=options.lt_callbackurl,
        metadata=options.metadata,
        tracking=(options.tracking.track, options.tracking.type) if options.tracking else ("", ""),
    )
