"""Functions that all rewrite endpoints share: read Idempotency-Key, call the rewriter, and document its errors."""
# Tested by tests/web/test_rewrite.py

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.messages.plan import RewriteItem
from shortener.web.endpoint import Call

MAX_IDEMPOTENCY_KEY_LENGTH = 255  # characters

REWRITE_HEADERS = {
    "Idempotency-Key": f"Identifies the request, 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} characters. For 24 hours a repeat with the same "
    "key gets the first response."
}
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
)


async def rewrite_items(call: Call[None, Any], items: Sequence[RewriteItem]) -> list[dict[str, Any]]:
    """Rewrite the messages in `items` for the caller's application. Return one rewritten message per recipient, in order."""
    key = call.request.headers.get("idempotency-key")
    content = b""
    if key is not None:
        if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH or not key.isprintable():
            reason = f"must have 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} printable characters"
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("Idempotency-Key", reason)])
        content = orjson.dumps(call.body.model_dump(mode="json", by_alias=True), option=orjson.OPT_SORT_KEYS)
    return await call.service.rewriter.rewrite(call.principal.application, items, idempotency_key=key, content=content)
