"""This module collects all errors of a rewrite request in one error response, even if some fields do not match the model.

The models find fields of a wrong type, and the rewriter finds invalid texts, URLs and recipients. Without this module, the
response would contain only the errors that the models found, and a caller would have to correct a large batch twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices, AliasPath, ValidationError

import shortener.messages.rewriter  # noqa: F401 - `service.rewriter` needs it. Here it is imported in a thread.
from shortener.accounts.directory import Application
from shortener.errors import ApiError, Detail
from shortener.ids import new_message_id
from shortener.messages.item_plan import Problem
from shortener.messages.rewrite_item import RewriteItem
from shortener.web.rewrite_shapes import RewriteMessage, rewrite_item
from shortener.web.validation import InvalidInput, validate

if TYPE_CHECKING:
    from shortener.container import Service


async def complete_error(
    service: Service, application: Application, error: InvalidInput, *, is_batch: bool, is_stored: bool = True
) -> ApiError:
    """Return an error with the details of `error` and the problems that the rewriter finds in the other fields.

    The details are in the order of the messages. The error code is the code of the first detail. `is_stored` is false for a
    preview: conflicts with stored messages are then left out."""
    messages = error.data["messages"] if is_batch else [error.data]
    if not isinstance(messages, list) or len(messages) > service.settings.batch_limit:
        return error
    # A batch may have very many errors and recipients. Process them in threads, so that the event loop is free for clicks.
    details, invalid, (items, places, incomplete) = await asyncio.to_thread(_split, error, messages, is_batch=is_batch)
    problems = await service.rewriter.find_problems(application, items, incomplete=incomplete, is_stored=is_stored)
    return await asyncio.to_thread(_with_problems, error, details, problems, invalid, places, is_batch=is_batch)


def _split(
    error: InvalidInput, messages: Sequence[Any], *, is_batch: bool
) -> tuple[list[Detail], dict[int, set[str]], tuple[list[RewriteItem], list[int], set[int]]]:
    """Split an error and its input into three results: the details of the error, the paths of the invalid fields (by the index of
    their message), and the valid parts of the messages (see `_valid_parts`)."""
    details = [_with_place(detail, is_batch, error) for detail in error.details]
    invalid: dict[int, set[str]] = {}
    for detail in details:
        if detail.index is not None:
            invalid.setdefault(detail.index, set()).add(_path_in_message(detail.field, is_batch))
    has_hidden = error.details_total > len(error.details)
    return details, invalid, _valid_parts(messages, invalid, is_batch=is_batch, has_hidden=has_hidden)


def _with_problems(
    error: InvalidInput,
    details: list[Detail],
    problems: Sequence[Problem],
    invalid: Mapping[int, set[str]],
    places: Sequence[int],
    *,
    is_batch: bool,
) -> ApiError:
    """Return an error with the details, and with those problems whose fields are not in `invalid`."""
    for problem in problems:
        detail = replace(problem.full_detail, index=places[problem.item])
        unchecked = invalid.get(places[problem.item], set())
        if "to" in unchecked:
            # If `to` is invalid, the number of recipients is unknown, so the number of ids cannot be checked.
            unchecked = unchecked | {"message_id"}
        if not is_inside(_path_in_message(detail.field, is_batch), unchecked):
            details.append(detail)
    details.sort(key=lambda detail: -1 if detail.index is None else detail.index)
    hidden = error.details_total - len(error.details)
    return ApiError(details[0].code or error.code, details=details, hidden_details=hidden)


def _valid_parts(
    messages: Sequence[Any], invalid: dict[int, set[str]], *, is_batch: bool, has_hidden: bool
) -> tuple[list[RewriteItem], list[int], set[int]]:
    """Return three results: the valid parts of messages, for each part the index of its message, and the indexes of the parts
    that are incomplete because a field of the message is invalid.

    `invalid` contains the paths of the invalid fields, by the index of their message. An error has a limited number of details,
    so some paths can be missing (`has_hidden`). This function then adds the missing paths, except those of unknown fields."""
    items: list[RewriteItem] = []
    places: list[int] = []
    incomplete: set[int] = set()
    for index, message in enumerate(messages):
        if has_hidden and index not in invalid and isinstance(message, Mapping):
            # Leave out unknown fields. There may be very many, and their validation would take long.
            message = {name: value for name, value in message.items() if name in _KNOWN_NAMES}
            invalid[index] = _invalid_fields(message)
        found = _valid_part(message, invalid.get(index, set()), f"messages.{index}" if is_batch else "")
        if found is not None:
            item, is_complete = found
            if not is_complete:
                incomplete.add(len(items))
            items.append(item)
            places.append(index)
    return items, places, incomplete


def valid_part(fields: Mapping[str, Any], invalid: Collection[str]) -> tuple[dict[str, Any], bool]:
    """Return the valid fields of a message, and whether no field had to be left out. `invalid` contains the paths of the invalid
    fields and list entries.

    In a list of recipients or message ids, a placeholder replaces each invalid entry, so that the other entries keep their
    positions and can be checked. The check can also find problems with a placeholder, so the caller must ignore problems at the
    paths in `invalid`."""
    # the names of the invalid fields; for each, the indexes of its invalid list entries, or "" if the whole field is invalid
    entries: dict[str, set[str]] = {}
    for path in invalid:
        name, _, entry = path.partition(".")
        entries.setdefault(name, set()).add(entry)
    valid: dict[str, Any] = {name: value for name, value in fields.items() if name not in entries}
    is_complete = True
    for name, places in entries.items():
        values = fields.get(name)
        if name in _LISTS and isinstance(values, list) and "" not in places:
            valid[name] = [_LISTS[name]() if str(place) in places else value for place, value in enumerate(values)]
        else:
            is_complete = False
    return valid, is_complete


def _names(name: str, alias: str | AliasPath | AliasChoices | None) -> Iterable[str]:
    """Return all names that a request may use for a field."""
    if isinstance(alias, AliasChoices):
        return map(str, alias.choices)
    return [str(alias or name)]


#: The names of all fields of a message, including their aliases.
_KNOWN_NAMES = frozenset(
    chain.from_iterable(_names(name, field.validation_alias) for name, field in RewriteMessage.model_fields.items())
)
#: The fields that can be a list with one entry per recipient. The function of each field returns a placeholder for an invalid
#: entry.
_LISTS: Mapping[str, Callable[[], str]] = {"to": str, "message_id": new_message_id}


def is_inside(path: str, invalid: Collection[str]) -> bool:
    """Return whether a path, or the field that contains it, is in `invalid`."""
    return path in invalid or path.partition(".")[0] in invalid


def _with_place(detail: Detail, is_batch: bool, error: InvalidInput) -> Detail:
    """Return a detail to which the indexes of its message and its recipient are added. They are read from its path, such as
    `messages.3.to.2`."""
    parts = detail.field.split(".")
    index: int | None = 0
    if is_batch:
        index = int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else None
    return replace(detail, index=index, recipient=recipient_of(_path_in_message(detail.field, is_batch)), code=error.code)


def recipient_of(path: str) -> int | None:
    """Return the index of the recipient that the path of a field inside a message concerns: 2 for `to.2`; None for `to`."""
    parts = path.split(".")
    return int(parts[1]) if len(parts) == 2 and parts[0] in _LISTS and parts[1].isdecimal() else None


def _path_in_message(path: str, is_batch: bool) -> str:
    """Return the path of a field relative to its SMS message: `to.2` for `messages.3.to.2`. Return "" for the path of a whole
    message."""
    return ".".join(path.split(".")[2 if is_batch else 0 :])


def _invalid_fields(message: Any) -> set[str]:
    """Return the paths of the fields of a message that do not match the model."""
    try:
        validate(RewriteMessage, message)
    except InvalidInput as error:
        return {detail.field for detail in error.details}
    return set()


def _valid_part(message: Any, invalid: set[str], path: str) -> tuple[RewriteItem, bool] | None:
    """Return a message without its invalid fields as input of the rewriter, and whether no field had to be left out. Return None
    if the rewriter cannot check any part of the message."""
    if not isinstance(message, Mapping) or "" in invalid:
        return None
    fields, is_complete = valid_part({name: value for name, value in message.items() if name != "on_invalid"}, invalid)
    try:
        return rewrite_item(RewriteMessage.model_validate({"to": [], "body": ""} | fields), path), is_complete
    except ValidationError:
        return None
