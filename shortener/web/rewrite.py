"""POST /api/v1/rewrite: the send pipeline hands over texts with directives and gets them back with short links."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import AliasChoices, BeforeValidator, Discriminator, Field, RootModel, Tag, field_validator

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.rewrite.service import Outgoing
from shortener.web.endpoint import Answer, Call, Endpoint, Model
from shortener.web.fields import Metadata, Price, Text, Time

MAX_BODY = 20_000  # characters: far above the longest concatenated SMS, far below what would stall a batch


class Tracking(Model):
    """Infobip's `tracking` object: gives the message a conversion process."""

    track: Literal["SMS", "URL"] = "SMS"
    type: Text = Field("", max_length=100, description="What is measured, for example One_Time_Pin.")


def _as_track_link(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


class RewriteMessage(Model):
    """One message for one recipient, or for each of several."""

    to: str | list[str] = Field(description="E.164 number such as +14085550100, or a list of them.")
    body: str = Field(max_length=MAX_BODY, description='Text with #track("url") and #trackurl("url","label").')
    from_: Text = Field("", alias="from", max_length=100, description="Sender, echoed in events.")
    sender_id_id: Text = Field("", max_length=100)
    sender_id_alias: Text = Field("", max_length=100)
    message_id: Text | list[Text] | None = Field(
        None, description="The pipeline's id, unique in the application; minted when absent. A list when `to` is one."
    )
    message_request_id: Text = Field("", max_length=100, description="Echoed in events; minted when absent.")
    external_message_request_id: Text = Field("", max_length=100)
    track: Literal["directives", "first_url", "all_urls"] = "directives"
    track_link: Annotated[bool | None, BeforeValidator(_as_track_link)] = Field(None, description="Xoxzo: track the first URL.")
    lt_callbackurl: Text | None = Field(
        None,
        max_length=2048,
        validation_alias=AliasChoices("lt_callbackurl", "lt_callbackur"),
        description="Xoxzo: POSTed once, on the first click.",
    )
    tracking: Tracking | None = None
    campaign: Text = Field("", max_length=200)
    source: Literal["api", "campaign"] = "api"
    mt_price: Price | None = Field(None, description="Decimal string or number.")
    expires_in: int | None = Field(None, ge=1, le=3650 * 86400, description="Seconds from now.")
    expires_at: Time | None = Field(None, description="UTC time, ISO 8601.")
    fallback_url: Text | None = Field(None, max_length=2048, description="Where the links lead once they expired.")
    metadata: Metadata | None = Field(None, description="Flat object, at most 4 KiB, echoed in events.")

    @field_validator("message_id")
    @classmethod
    def _check_ids(cls, value: str | list[str] | None) -> str | list[str] | None:
        for one in [value] if isinstance(value, str) else value or ():
            if not 1 <= len(one) <= 100 or not one.isprintable():
                raise ValueError("wants 1 to 100 printable characters")
        return value


class RewriteBatch(Model):
    messages: list[RewriteMessage] = Field(min_length=1)


def _form_of(value: Any) -> str:
    return "batch" if isinstance(value, RewriteBatch) or (isinstance(value, dict) and "messages" in value) else "single"


class RewriteRequest(
    RootModel[Annotated[Annotated[RewriteMessage, Tag("single")] | Annotated[RewriteBatch, Tag("batch")], Discriminator(_form_of)]]
):
    """One message, or `messages`."""


class LinkAnswer(Answer):
    code: str
    short_url: str
    url: str
    label: str | None
    expires_at: str


class MessageAnswer(Answer):
    message_id: str
    message_request_id: str
    to: str
    body: str
    links: list[LinkAnswer]
    encoding: Literal["GSM-7", "UCS-2"]
    segments: int
    segments_without_rewriting: int
    warnings: list[str]


class RewriteAnswer(Answer):
    """One entry per recipient, in request order."""

    status: Literal[True] = True
    messages: list[MessageAnswer]


def outgoing(message: RewriteMessage, path: str) -> Outgoing:
    to_is_list = isinstance(message.to, list)
    to = tuple(message.to) if isinstance(message.to, list) else (message.to,)
    ids = message.message_id
    track = message.track
    if track == "directives" and message.track_link:
        track = "first_url"
    sender_id = message.sender_id_id or (message.from_.removeprefix("sender_id:") if message.from_.startswith("sender_id:") else "")
    return Outgoing(
        path=path,
        to=to,
        to_is_list=to_is_list,
        body=message.body,
        message_ids=None if ids is None else (ids,) if isinstance(ids, str) else tuple(ids),
        track=track,
        from_address=message.from_,
        sender_id_id=sender_id,
        sender_id_alias=message.sender_id_alias,
        request_id=message.message_request_id,
        external_request_id=message.external_message_request_id,
        campaign=message.campaign,
        source=message.source,
        mt_price=message.mt_price,
        expires_in=message.expires_in,
        expires_at=message.expires_at,
        fallback_url=message.fallback_url,
        callback_url=message.lt_callbackurl,
        metadata=message.metadata,
        tracking=(message.tracking.track, message.tracking.type) if message.tracking else None,
    )


async def rewrite(call: Call[None, RewriteRequest]) -> dict[str, Any]:
    request = call.body.root
    if isinstance(request, RewriteBatch):
        items = [outgoing(message, f"messages.{index}") for index, message in enumerate(request.messages)]
    else:
        items = [outgoing(request, "")]
    key = call.request.headers.get("idempotency-key")
    content = b""
    if key is not None:
        if not 1 <= len(key) <= 255 or not key.isprintable():
            reason = "wants 1 to 255 printable characters"
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("Idempotency-Key", reason)])
        content = orjson.dumps(call.body.model_dump(mode="json", by_alias=True), option=orjson.OPT_SORT_KEYS)
    messages = await call.service.rewriter.rewrite(call.principal.application, items, idempotency_key=key, content=content)
    return {"status": True, "messages": messages}


ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/rewrite",
        rewrite,
        "Rewrite one message or many",
        "Send pipeline",
        permission="sms.send",
        body=RewriteRequest,
        answer=RewriteAnswer,
        errors=(
            ErrorCode.INVALID_TRACK_DIRECTIVE,
            ErrorCode.INVALID_TRACK_URL,
            ErrorCode.INVALID_RECIPIENT,
            ErrorCode.BATCH_TOO_LARGE,
            ErrorCode.MESSAGE_ID_CONFLICT,
            ErrorCode.IDEMPOTENCY_CONFLICT,
        ),
        description="All of it is stored, or nothing; the answer is sent once the links are durable. "
        "The same `message_id` with the same content, or the same `Idempotency-Key`, answers as the first time.",
    )
]
