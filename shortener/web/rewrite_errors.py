"""This module collects all errors of a rewrite in one response, even if some fields do not match the model.

The models report a field of a wrong type, and the rewriter reports texts, URLs and recipients that are not valid. Without this
module, a response would contain only the errors of the models, and a caller would have to correct a large batch twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

import shortener.messages.rewriter  # noqa: F401 - `service.rewriter` needs it. Here it is imported in a thread.
from shortener.accounts.directory import Application
from shortener.errors import ApiError, Detail
from shortener.messages.rewrite_item import RewriteItem
from shortener.web.rewrite_shapes import RewriteMessage, rewrite_item
from shortener.web.validation import InvalidInput

if TYPE_CHECKING:
    from shortener.container import Service


async def complete_error(service: Service, application: Application, error: InvalidInput, *, is_batch: bool) -> ApiError:
    """Return an error with the details of `error` and the problems that the rewriter finds in the other fields.

    The details are in the order of the messages. The code is that of the first detail."""
    messages = error.data["messages"] if is_batch else [error.data]
    if not isinstance(messages, list) or len(messages) > service.settings.batch_limit:
        return error
    details = [_with_place(detail, is_batch, error) for detail in error.details]
    invalid: dict[int, set[str]] = {}
    for detail in details:
        if detail.index is not None:
            invalid.setdefault(detail.index, set()).add(_field_of_message(detail.field, is_batch))
    items: list[RewriteItem] = []
    places: list[int] = []
    for index, message in enumerate(messages):
        item = _valid_part(message, invalid.get(index, set()), f"messages.{index}" if is_batch else "")
        if item is not None:
            items.append(item)
            places.append(index)
    for problem in await service.rewriter.find_problems(application, items):
        detail = replace(problem.full_detail, index=places[problem.item])
        if _field_of_message(detail.field, is_batch) not in invalid.get(places[problem.item], set()):
            details.append(detail)
    details.sort(key=lambda detail: -1 if detail.index is None else detail.index)
    hidden = error.details_total - len(error.details)
    return ApiError(details[0].code or error.code, details=details, hidden_details=hidden)


def _with_place(detail: Detail, is_batch: bool, error: InvalidInput) -> Detail:
    """Return a detail with the indexes of its message and recipient, which are read from its path (`messages.3.to.2`)."""
    parts = detail.field.split(".")
    index: int | None = 0
    if is_batch:
        index = int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else None
        parts = parts[2:]
    is_recipient = len(parts) == 2 and parts[0] in ("to", "message_id") and parts[1].isdecimal()
    return replace(detail, index=index, recipient=int(parts[1]) if is_recipient else None, code=error.code)


def _field_of_message(path: str, is_batch: bool) -> str:
    """Return the name of the field of an SMS message that the path of an error names; "" if it names the whole message."""
    parts = path.split(".")[2 if is_batch else 0 :]
    return parts[0] if parts else ""


def _valid_part(message: Any, invalid: set[str], path: str) -> RewriteItem | None:
    """Return a message without its invalid fields; None if nothing of it can be checked."""
    if not isinstance(message, Mapping) or "" in invalid:
        return None
    fields = {name: value for name, value in message.items() if name not in invalid and name != "on_invalid"}
    try:
        return rewrite_item(RewriteMessage.model_validate({"to": [], "body": ""} | fields), path)
    except ValidationError:
        return None
