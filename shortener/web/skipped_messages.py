"""This module handles requests with `on_invalid: skip` that contain messages which do not match the model.

Like a message with an invalid text, such a message is left out: the response contains an error in the place of each of its
recipients. If only entries in the lists of recipients or message ids are invalid, only these recipients are left out.
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
    """A request in which some messages do not match the model and are left out. `items` has one item for each message. An item is
    complete if its message matches the model. `content` is the whole request, with which repeats of its Idempotency-Key are
    compared."""

    items: Sequence[RewriteItem]
    content: bytes


async def keep_valid(data: Mapping[str, Any], *, is_batch: bool) -> PartlyValidRequest | None:
    """Return a request that does not match the model, without its invalid messages. Return None if the request must be rejected,
    because `on_invalid` of an invalid message is not skip, or because a field of the batch itself is not valid.

    The messages are validated in a thread, because they may have very many errors. In the event loop, the validation would delay
    clicks."""
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
    """Return a message as input of the rewriter. If the message does not match the model, the input contains its errors. Return
    None if these errors require that the whole request is rejected. `default` is the `on_invalid` of the batch."""
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
    """Return a message of which only entries of `to` and `message_id` are invalid. In the result, "" replaces an invalid
    recipient, and None replaces an invalid message id."""
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
    """Return the recipients and the message ids that the response shows for a message that is left out. "" replaces a recipient
    that cannot be read, and None replaces an id that cannot be read. If no recipient can be read, the message counts as a message
    for one recipient."""
    to, ids = (message.get("to"), message.get("message_id")) if isinstance(message, Mapping) else (None, None)
    recipients = tuple(one if isinstance(one, str) else "" for one in (to if isinstance(to, list) and to else [to]))
    listed = ids if isinstance(ids, list) else [ids]
    return recipients, tuple(as_message_id(one) for one in listed)
