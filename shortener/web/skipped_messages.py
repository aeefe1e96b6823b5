"""This module handles requests with `on_invalid: skip` in which messages do not match the model.

These messages are left out, in the same way as messages with an invalid text or recipient: the response contains an error in the
place of each of their recipients. If the invalid parts of a message are entries in its list of recipients or message ids, only
these recipients are left out.
"""
# Tested by tests/web/test_skipped_messages.py

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
from pydantic import ValidationError

from shortener.errors import MAX_FIELD_LENGTH, MAX_REASON_LENGTH, Detail, shorten
from shortener.messages.rewrite_item import RewriteItem
from shortener.model import record
from shortener.web.rewrite_errors import recipient_of, valid_part
from shortener.web.rewrite_shapes import RewriteBatch, RewriteMessage, as_message_id, rewrite_item
from shortener.web.validation import InvalidInput, validate


@record
class PartlyValidRequest:
    """A request in which some messages do not match the model and are left out. `items` has one item for each message; the item of
    a message that matches the model is complete. `content` is the whole request. A repeat of its Idempotency-Key is compared with
    it."""

    items: Sequence[RewriteItem]
    content: bytes


async def keep_valid(data: Mapping[str, Any], *, is_batch: bool) -> PartlyValidRequest | None:
    """Return a request that does not match the model without its invalid messages. Return None if the request must be rejected:
    `on_invalid` of an invalid message is not skip, or a field of the batch itself is not valid.

    The messages are validated in a thread, because they may have very many errors, and clicks would wait for the event loop."""
    messages = data.get("messages") if is_batch else [data]
    if not isinstance(messages, list) or not messages or not any(_on_invalid(one) == "skip" for one in (data, *messages)):
        return None
    return await asyncio.to_thread(_keep_valid, data, messages, is_batch=is_batch)


def _keep_valid(data: Mapping[str, Any], messages: Sequence[Any], *, is_batch: bool) -> PartlyValidRequest | None:
    default: Any = "fail"
    if is_batch:
        try:
            default = RewriteBatch.model_validate({**data, "messages": [{"to": "", "body": ""}]}).on_invalid
        except ValidationError:
            return None
    items = []
    for index, message in enumerate(messages):
        item = _item(message, f"messages.{index}" if is_batch else "", default)
        if item is None:
            return None
        items.append(item)
    return PartlyValidRequest(items, orjson.dumps(data, default=str, option=orjson.OPT_SORT_KEYS))


def _on_invalid(message: Any) -> Any:
    return message.get("on_invalid") if isinstance(message, Mapping) else None


def _item(message: Any, path: str, default: Any) -> RewriteItem | None:
    """Return a message as input of the rewriter, with its errors if it does not match the model. Return None if its errors reject
    the request. `default` is the `on_invalid` of the batch."""
    try:
        return rewrite_item(validate(RewriteMessage, message), path, default)
    except InvalidInput as error:
        details = error.details
    own = _on_invalid(message)
    if (default if own is None else own) != "skip":
        return None
    invalid: dict[int | None, Detail] = {}
    for detail in details:
        field = shorten(".".join(part for part in (path, detail.field) if part), MAX_FIELD_LENGTH)
        reason = shorten(detail.reason, MAX_REASON_LENGTH)
        invalid.setdefault(recipient_of(detail.field), Detail(field, reason, detail.position))
    if None not in invalid:
        item = _with_valid_recipients(message, path, {detail.field for detail in details})
        if item is not None:
            return replace(item, skip_invalid=True, invalid=tuple(invalid.items()))
    to, ids = _recipients(message)
    return RewriteItem(to, "", message_ids=ids, skip_invalid=True, invalid=tuple(invalid.items()))


def _with_valid_recipients(message: Mapping[str, Any], path: str, invalid: set[str]) -> RewriteItem | None:
    """Return a message in which only entries of `to` and `message_id` are invalid, with "" and None in place of these entries."""
    fields, _ = valid_part(message, invalid)
    try:
        item = rewrite_item(RewriteMessage.model_validate(fields), path)
    except ValidationError:
        return None
    ids = item.message_ids
    if ids is not None:
        ids = tuple(None if f"message_id.{place}" in invalid else one for place, one in enumerate(ids))
    return replace(item, message_ids=ids)


def _recipients(message: Any) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Return the recipients and the message ids of a message that is left out, for the response. An entry that cannot be read is ""
    or None. If no recipient can be read, the message counts as a message for one recipient."""
    to, ids = (message.get("to"), message.get("message_id")) if isinstance(message, Mapping) else (None, None)
    recipients = tuple(one if isinstance(one, str) else "" for one in (to if isinstance(to, list) and to else [to]))
    listed = ids if isinstance(ids, list) else [ids]
    return recipients, tuple(as_message_id(one) for one in listed)
