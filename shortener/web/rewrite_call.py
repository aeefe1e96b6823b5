"""This module contains the code that all rewrite endpoints share. It reads the Idempotency-Key and calls the rewriter. It also
lists the error codes of the rewriter for the OpenAPI document."""
# Tested by tests/web/test_rewrite.py

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import shortener.messages.rewriter  # noqa: F401 - `service.rewriter` needs it. Here it is imported in a thread.
from shortener.errors import ErrorCode
from shortener.messages.rewrite_item import RewriteItem
from shortener.web.endpoint import Call
from shortener.web.idempotency import describe_header, idempotency_key
from shortener.web.request_content import content_of_0_2, sent_content

#: The description of the header Idempotency-Key of a rewrite. A repeat may come from any API key of the application, because the
#: response to a rewrite contains no credentials.
REWRITE_HEADERS = describe_header("application")
REWRITE_ERRORS = (
    ErrorCode.INVALID_TRACK_DIRECTIVE,
    ErrorCode.INVALID_TRACK_URL,
    ErrorCode.FORBIDDEN_TARGET,
    ErrorCode.INVALID_RECIPIENT,
    ErrorCode.BATCH_TOO_LARGE,
    ErrorCode.MESSAGE_ID_CONFLICT,
    ErrorCode.IDEMPOTENCY_CONFLICT,
    ErrorCode.NO_USABLE_DOMAIN,
    ErrorCode.SENDER_NOT_ALLOWED,
    ErrorCode.OPTED_OUT,
    ErrorCode.NO_PRICE,
    ErrorCode.INSUFFICIENT_BALANCE,
)


async def rewrite_items(
    call: Call[None, Any], items: Sequence[RewriteItem], *, content: bytes | None = None
) -> list[dict[str, Any]]:
    """Rewrite the messages in `items` for the caller's application. Return one entry per recipient, in order: the fields of the
    rewritten message, or the error of a recipient that was left out.

    A repeat with the same Idempotency-Key must have the same `content`. By default, this is the content of `call.body`."""
    key = idempotency_key(call.request)
    earlier_content = content or b""
    if key is not None and content is None:
        content, earlier_content = sent_content(call.body), content_of_0_2(call.body)
    return await call.service.rewriter.rewrite(
        call.principal.application, items, idempotency_key=key, content=content or b"", earlier_content=earlier_content
    )
