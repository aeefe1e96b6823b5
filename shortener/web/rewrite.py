"""POST /api/v1/rewrite: the endpoint that replaces the links in texts with short links.

The endpoint accepts four forms of request: one message, a batch, Xoxzo's send call and Infobip's send call. The response contains
the rewritten texts, which the caller must send. If a request contains the field `gateway`, the service itself sends the messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, RootModel, Tag

from shortener.accounts.directory import Principal
from shortener.errors import ApiError, ErrorCode
from shortener.messages.rewrite_item import RewriteItem
from shortener.web import rewrite_errors, rewrite_shapes, skipped_messages
from shortener.web.endpoint import Call, Endpoint
from shortener.web.rewrite_call import REWRITE_ERRORS, REWRITE_HEADERS, rewrite_items
from shortener.web.rewrite_shapes import RewriteBatch, RewriteMessage, RewriteResponse
from shortener.web.skipped_messages import PartlyValidRequest
from shortener.web.validation import InvalidInput
from shortener.web.vendors import infobip, xoxzo
from shortener.web.vendors.infobip import InfobipRequest, InfobipResponse
from shortener.web.vendors.xoxzo import XoxzoRequest

if TYPE_CHECKING:
    from shortener.container import Service

#: The maximum number of characters of all texts of a preview together. The limit is small, because the event loop computes a
#: preview and must not be blocked for long.
MAX_PREVIEWED = 20_000
_INFOBIP_FIELDS = {"bulkId", "tracking", "urlOptions"}
_FORMS: dict[Any, str] = {RewriteMessage: "single", RewriteBatch: "batch", XoxzoRequest: "xoxzo", InfobipRequest: "infobip"}


def _form_of(value: Any) -> str:
    """Return the form of a request: single, batch, xoxzo or infobip. The names of the fields in the request determine its
    form."""
    if not isinstance(value, dict):
        # When pydantic serializes a request, it calls this function with the model instead of the input.
        return _FORMS.get(type(value), "single")
    if "messages" in value:
        messages = value["messages"]
        first = messages[0] if isinstance(messages, list) and messages else None
        is_infobip = value.keys() & _INFOBIP_FIELDS or (isinstance(first, dict) and "destinations" in first)
        return "infobip" if is_infobip else "batch"
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
    """A rewrite request: one message, a batch in `messages`, a message in Xoxzo's format, or a request in Infobip's format."""


def _is_batch(value: Any) -> str:
    return "batch" if isinstance(value, RewriteBatch) or (isinstance(value, dict) and "messages" in value) else "single"


class PreviewRequest(
    RootModel[Annotated[Annotated[RewriteMessage, Tag("single")] | Annotated[RewriteBatch, Tag("batch")], Discriminator(_is_batch)]]
):
    """One message, or a batch in `messages`, as in a rewrite request."""


class AnyRewriteResponse(RootModel[RewriteResponse | InfobipResponse]):
    """One entry per recipient, in the order of the request. A request in Infobip's form gets a response in Infobip's form."""


async def rewrite(call: Call[None, RewriteRequest | PartlyValidRequest]) -> Mapping[str, Any]:
    """Rewrite one message or a batch. The body is one message, a list of messages, or the request of Infobip or Xoxzo."""
    if isinstance(call.body, PartlyValidRequest):
        return {"status": True, "messages": await rewrite_items(call, call.body.items, content=call.body.content)}
    match call.body.root:
        case InfobipRequest() as request:
            return await infobip.rewrite(call, request)
        case XoxzoRequest() as message:
            items = [xoxzo.rewrite_item(message)]
        case body:
            items = _items(body)
    return {"status": True, "messages": await rewrite_items(call, items)}


async def preview(call: Call[None, PreviewRequest | PartlyValidRequest]) -> Mapping[str, Any]:
    """Return the response that a rewrite would have, with sample codes. Store nothing."""
    items = call.body.items if isinstance(call.body, PartlyValidRequest) else _items(call.body.root)
    planned = sum(len(item.body) * len(item.to) for item in items)
    if planned > MAX_PREVIEWED:
        raise ApiError(ErrorCode.BATCH_TOO_LARGE, f"A preview may have at most {MAX_PREVIEWED} characters of text in total.")
    return {"status": True, "messages": await call.service.rewriter.preview(call.principal.application, items)}


def _items(body: RewriteMessage | RewriteBatch) -> list[RewriteItem]:
    if isinstance(body, RewriteMessage):
        return [rewrite_shapes.rewrite_item(body)]
    messages = enumerate(body.messages)
    return [rewrite_shapes.rewrite_item(message, f"messages.{index}", body.on_invalid) for index, message in messages]


async def keep_valid(error: InvalidInput) -> PartlyValidRequest | None:
    """If `on_invalid` permits it, return a request without its invalid messages. Return None if the whole request must be
    rejected."""
    form = _form_of(error.data)
    if form not in ("single", "batch") or not isinstance(error.data, dict):
        return None
    return await skipped_messages.keep_valid(error.data, is_batch=form == "batch")


async def complete_error(service: Service, principal: Principal | None, error: InvalidInput) -> ApiError:
    """Return an error that contains the details of `error` and also the problems of all texts, URLs and recipients in the same
    body."""
    return await _complete_error(service, principal, error)


async def complete_preview_error(service: Service, principal: Principal | None, error: InvalidInput) -> ApiError:
    """Do the same as `complete_error` for a preview. A preview stores nothing, so conflicts with stored messages are not
    reported."""
    return await _complete_error(service, principal, error, is_stored=False)


async def _complete_error(
    service: Service, principal: Principal | None, error: InvalidInput, *, is_stored: bool = True
) -> ApiError:
    form = _form_of(error.data)
    if principal is None or form not in ("single", "batch") or not isinstance(error.data, dict):
        return error
    return await rewrite_errors.complete_error(service, principal.application, error, is_batch=form == "batch", is_stored=is_stored)


ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/rewrite",
        rewrite,
        "Rewrite one message or many",
        "Send pipeline",
        permission="sms.send",
        body=RewriteRequest,
        complete_error=complete_error,
        keep_valid=keep_valid,
        response=AnyRewriteResponse,
        headers=REWRITE_HEADERS,
        errors=REWRITE_ERRORS,
        description="The request is stored completely or not at all. The response is sent only after the links are stored "
        "durably. A repeat with the same `message_id` and the same content, or with the same `Idempotency-Key`, gets the "
        "first response.",
    ),
    Endpoint(
        "POST",
        "/api/v1/rewrite/preview",
        preview,
        "Preview a rewrite",
        "Send pipeline",
        permission="sms.send",
        body=PreviewRequest,
        complete_error=complete_preview_error,
        keep_valid=keep_valid,
        response=RewriteResponse,
        errors=(
            ErrorCode.INVALID_TRACK_DIRECTIVE,
            ErrorCode.INVALID_TRACK_URL,
            ErrorCode.FORBIDDEN_TARGET,
            ErrorCode.INVALID_RECIPIENT,
            ErrorCode.BATCH_TOO_LARGE,
            ErrorCode.NO_USABLE_DOMAIN,
            ErrorCode.SENDER_NOT_ALLOWED,
        ),
        stores_nothing=True,
        description="Responds like a rewrite, with segments, warnings and links with a sample code, and stores nothing. The "
        f"texts may have {MAX_PREVIEWED} characters in total.",
    ),
]
