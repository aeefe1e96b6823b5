"""The send pipeline hands over texts and gets them back with short links: POST /api/v1/rewrite, which takes Xoxzo's and Infobip's
words too, and the calls under which those two know it.

Whatever the call, nothing is sent: the answer holds the text that the pipeline sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
from pydantic import Discriminator, RootModel, Tag

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.messages.plan import RewriteItem
from shortener.urls import host_of
from shortener.web import rewrite_shapes
from shortener.web.endpoint import Call, Endpoint
from shortener.web.rewrite_shapes import RewriteBatch, RewriteMessage, RewriteResponse
from shortener.web.vendors import infobip, xoxzo
from shortener.web.vendors.infobip import InfobipRequest, InfobipResponse
from shortener.web.vendors.xoxzo import XoxzoRequest, XoxzoSendResponse

_OF_INFOBIP = {"bulkId", "tracking", "urlOptions"}
_FORMS: dict[Any, str] = {RewriteMessage: "single", RewriteBatch: "batch", XoxzoRequest: "xoxzo", InfobipRequest: "infobip"}


def _form_of(value: Any) -> str:
    if not isinstance(value, dict):
        return _FORMS.get(type(value), "single")  # a model that is being serialised
    if "messages" in value:
        messages = value["messages"]
        first = messages[0] if isinstance(messages, list) and messages else None
        of_infobip = value.keys() & _OF_INFOBIP or (isinstance(first, dict) and "destinations" in first)
        return "infobip" if of_infobip else "batch"
    return "xoxzo" if "recipient" in value or ("message" in value and "to" not in value) else "single"


class RewriteRequest(
    RootModel[
        Annotated[
            Annotated[RewriteMessage, Tag("single")]
            | Annotated[RewriteBatch, Tag("batch")]
            | Annotated[XoxzoRequest, Tag("xoxzo")]
            | Annotated[InfobipRequest, Tag("infobip")],
            Discriminator(_form_of),
        ]
    ]
):
    """One message, or `messages`; or a message in Xoxzo's words; or Infobip's request, known by `destinations`."""


class AnyRewriteResponse(RootModel[RewriteResponse | InfobipResponse]):
    """One entry per recipient, in request order. Infobip's request is answered in Infobip's shape."""


async def rewrite(call: Call[None, RewriteRequest]) -> Mapping[str, Any]:
    match call.body.root:
        case InfobipRequest() as request:
            return await _infobip(call, request)
        case RewriteBatch(messages=messages):
            items = [rewrite_shapes.outgoing(message, f"messages.{index}") for index, message in enumerate(messages)]
        case XoxzoRequest() as message:
            items = [xoxzo.outgoing(message)]
        case message:
            items = [rewrite_shapes.outgoing(message)]
    return {"status": True, "messages": await _rewritten(call, items)}


async def infobip_send(call: Call[None, InfobipRequest]) -> Mapping[str, Any]:
    return await _infobip(call, call.body)


async def xoxzo_send(call: Call[None, XoxzoRequest]) -> Mapping[str, Any]:
    (rewritten,) = await _rewritten(call, [xoxzo.outgoing(call.body)])
    return xoxzo.answer(rewritten)


async def _infobip(call: Call[None, Any], request: InfobipRequest) -> Mapping[str, Any]:
    domain = call.principal.application.domain
    host = domain.host if domain else host_of(call.service.settings.base_url)
    return infobip.answer(request, await _rewritten(call, infobip.outgoing(request, host)))


async def _rewritten(call: Call[None, Any], items: Sequence[RewriteItem]) -> list[dict[str, Any]]:
    key = call.request.headers.get("idempotency-key")
    content = b""
    if key is not None:
        if not 1 <= len(key) <= 255 or not key.isprintable():
            reason = "wants 1 to 255 printable characters"
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("Idempotency-Key", reason)])
        content = orjson.dumps(call.body.model_dump(mode="json", by_alias=True), option=orjson.OPT_SORT_KEYS)
    return await call.service.rewriter.rewrite(call.principal.application, items, idempotency_key=key, content=content)


_TAG = "Send pipeline"
_HEADERS = {"Idempotency-Key": "Names the request, 1 to 255 characters: for 24 hours a repeat gets the same answer."}
_ERRORS = (
    ErrorCode.INVALID_TRACK_DIRECTIVE,
    ErrorCode.INVALID_TRACK_URL,
    ErrorCode.INVALID_RECIPIENT,
    ErrorCode.BATCH_TOO_LARGE,
    ErrorCode.MESSAGE_ID_CONFLICT,
    ErrorCode.IDEMPOTENCY_CONFLICT,
)

ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/rewrite",
        rewrite,
        "Rewrite one message or many",
        _TAG,
        permission="sms.send",
        body=RewriteRequest,
        response=AnyRewriteResponse,
        headers=_HEADERS,
        errors=_ERRORS,
        description="All of it is stored, or nothing; the answer is sent once the links are durable. "
        "The same `message_id` with the same content, or the same `Idempotency-Key`, answers as the first time.",
    ),
    Endpoint(
        "POST",
        "/sms/messages/",
        xoxzo_send,
        "Rewrite a message under Xoxzo's call",
        _TAG,
        permission="sms.send",
        body=XoxzoRequest,
        body_forms=True,
        response=XoxzoSendResponse,
        status=201,
        headers=_HEADERS,
        errors=_ERRORS,
        description="The same as POST /api/v1/rewrite with this body, answered in Xoxzo's shape. Nothing is sent.",
    ),
    *(
        Endpoint(
            "POST",
            f"/sms/{version}/text/advanced",
            infobip_send,
            f"Rewrite messages under Infobip's call, version {version}",
            _TAG,
            permission="sms.send",
            body=InfobipRequest,
            response=InfobipResponse,
            headers=_HEADERS,
            errors=_ERRORS,
            description="The same as POST /api/v1/rewrite with this body. Nothing is sent.",
        )
        for version in (1, 2)
    ),
]
