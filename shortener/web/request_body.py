"""This module reads and parses the body of a request without blocking other requests.

The service counts the values of a JSON body while the body arrives, and stops reading at the limit. Otherwise parsing millions of
values would block the process for seconds. Sizes of lists and objects are checked before the model validates their items. A large
body is parsed and validated in a separate thread, so that the event loop can handle other requests at the same time.

Every function raises ApiError: BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INVALID_JSON, BATCH_TOO_LARGE or INVALID_REQUEST.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import record
from shortener.web.call_headers import find_header
from shortener.web.damaged_json import load_damaged_json, repair
from shortener.web.exact_amounts import restore_amounts
from shortener.web.validation import validate

#: A JSON body with more bytes is parsed in a separate thread. The validation of a body of this size can take 20 ms if it has many
#: errors.
LARGE_BODY_BYTES = 16 * 1024
MAX_FORM_BYTES = 256 * 1024  # the limit for forms is lower, because a form is slower to decode than JSON
MAX_FORM_FIELDS = 1000
MAX_REPORT_BYTES = 256 * 1024  # maximum size of a report of a tracker or a gateway; the service stores only a few KiB of a report
MAX_OBJECT_FIELDS = 1000
MIN_LIST_ITEMS = 1000  # the limit for the number of items in a list is at least this number, even if BATCH_LIMIT is lower
MAX_TEXT_LENGTH = 100_000  # maximum number of characters of one text or name
#: Matches the paths of fields that can have one item for each recipient: `to` and `message_id` of a message. The message is the
#: whole body, an item of the body, or an item of its field `messages`.
_RECIPIENT_LIST = re.compile(r"((messages\.)?[0-9]+\.)?(to|message_id)")
MAX_DEPTH = 32  # maximum depth of nested lists and objects
_VALUES_PER_ITEM, _MORE_VALUES, _MAX_VALUES = 200, 10_000, 1_000_000

Model = TypeVar("Model", bound=BaseModel)

#: A single thread parses large bodies. Several threads would compete with the event loop for the interpreter lock.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large-body")


@record
class BodyLimits:
    """The limits for the bodies of one endpoint. `max_batch` is the maximum number of items in a batch. A batch is a list, which
    is the whole body or its field `messages`.

    `largest_batch` is the largest BATCH_LIMIT that the installation has ever had. A body with this number of items is read,
    because it can be a repeat of an earlier request. The endpoint rejects a new request with more than `max_batch` items.

    `is_setting` is true if `max_bytes` comes from the setting BODY_LIMIT. Only then, error texts name this setting."""

    max_bytes: int
    max_batch: int
    has_batch: bool
    largest_batch: int = 0
    is_setting: bool = True

    @property
    def max_values(self) -> int:
        """The maximum number of values in a JSON body. `read_body` counts commas and opening brackets in place of values, because
        it does not parse the body."""
        return min(_MORE_VALUES + _VALUES_PER_ITEM * self.accepted_batch, _MAX_VALUES)

    @property
    def accepted_batch(self) -> int:
        """The maximum number of items in a body that is read. It is higher than `max_batch` if BATCH_LIMIT was higher earlier,
        because a repeat can then have more items."""
        return max(self.max_batch, self.largest_batch)

    @classmethod
    def of_report(cls, body_limit: int) -> BodyLimits:
        """Return the limits for a body with one report. It may have at most MAX_REPORT_BYTES bytes, and at most BODY_LIMIT
        (`body_limit`)."""
        return cls(min(body_limit, MAX_REPORT_BYTES), max_batch=1, has_batch=False, is_setting=body_limit <= MAX_REPORT_BYTES)

    def too_many(self, description: str) -> ApiError:
        return ApiError(ErrorCode.BATCH_TOO_LARGE if self.has_batch else ErrorCode.INVALID_REQUEST, description)


async def read_model(
    request: Request,
    model: type[Model],
    limits: BodyLimits,
    *,
    accepts_forms: bool = False,
    is_optional: bool = False,
    repairs_text: bool = False,
) -> Model | None:
    """Return the body as `model`, or None if it is empty and `is_optional`.

    With `repairs_text`, invalid text in JSON is replaced (see `damaged_json`)."""
    kind = find_header(request, b"content-type")
    if kind is None:
        kind = "application/json"
    elif kind != "application/json":
        kind = kind.partition(";")[0].strip().lower()
    is_form = accepts_forms and kind == "application/x-www-form-urlencoded"
    content = await read_body(request, limits, is_form=is_form)
    if is_optional and not content:
        return None
    if not is_form and kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, f"Content-Type must be application/json, not {kind[:100]!r}.")
    if len(content) <= LARGE_BODY_BYTES:
        return _parse(content, model, limits, is_form, repairs_text)
    return await asyncio.get_running_loop().run_in_executor(_thread, _parse, content, model, limits, is_form, repairs_text)


async def read_body(request: Request, limits: BodyLimits, *, is_form: bool = False) -> bytes:
    """Return the whole body. If it is too long or has too many values, raise ApiError without reading the rest."""
    max_bytes, setting = limits.max_bytes, " (BODY_LIMIT)" if limits.is_setting else ""
    if is_form and max_bytes > MAX_FORM_BYTES:
        max_bytes, setting = MAX_FORM_BYTES, " as a form; send JSON instead"
    length = find_header(request, b"content-length") or ""
    size = int(length[:20]) if length.isdecimal() else 0
    chunks: list[bytes] = []
    received = values = counted = 0  # The first chunks, `counted` in number, contain `values` values.
    has_more = True
    while has_more and size <= max_bytes:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        has_more = message.get("more_body", False)
        received += len(chunk)
        size = max(size, received)
        if size > max_bytes:
            break
        chunks.append(chunk)
        if not is_form and received > limits.max_values:  # a shorter body cannot have too many values
            values += sum(one.count(b",") + one.count(b"{") + one.count(b"[") for one in chunks[counted:])
            counted = len(chunks)
            if values > limits.max_values:
                raise limits.too_many(
                    f"The body must have at most {limits.max_values} values ({_MORE_VALUES} and {_VALUES_PER_ITEM} for each item "
                    f"of a batch; BATCH_LIMIT is {limits.max_batch})."
                )
    if size > max_bytes:
        raise ApiError(ErrorCode.BODY_TOO_LARGE, f"The body must have at most {max_bytes} bytes{setting}.")
    return b"".join(chunks)


def _parse(content: bytes, model: type[Model], limits: BodyLimits, is_form: bool, repairs_text: bool) -> Model:
    if is_form:
        try:
            pairs = parse_qsl(content.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
        except ValueError:
            reason = f"The form must be UTF-8 and have at most {MAX_FORM_FIELDS} fields."
            raise ApiError(ErrorCode.INVALID_REQUEST, reason) from None
        return validate(model, group_by_name(pairs))
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        reason = f"The body is not valid JSON: {str(error)[:200]}" if content.strip() else "The body is empty. Send a JSON object."
        invalid = ApiError(ErrorCode.INVALID_JSON, reason)
        if not repairs_text:
            raise invalid from None
        try:
            damaged = load_damaged_json(content)
        except (ValueError, RecursionError):
            raise invalid from None
        check_sizes(damaged, limits)
        restore_amounts(content, damaged)
        return validate(model, repair(damaged))
    if _may_exceed(content, limits):
        check_sizes(data, limits)
    restore_amounts(content, data)
    return validate(model, data)


def _may_exceed(content: bytes, limits: BodyLimits) -> bool:
    """Return whether a JSON text may exceed a limit of `check_sizes`. This is an estimate: it counts only bytes, commas and
    brackets."""
    commas, brackets = content.count(b","), content.count(b"{") + content.count(b"[")
    return len(content) > MAX_TEXT_LENGTH or commas >= min(limits.accepted_batch, MAX_OBJECT_FIELDS) or brackets > MAX_DEPTH


def check_sizes(data: Any, limits: BodyLimits) -> None:
    """Raise ApiError if a list or an object in parsed JSON has too many items, if a text has too many characters, or if the
    nesting is too deep."""
    batch = data.get("messages") if isinstance(data, dict) else data
    if isinstance(batch, list) and len(batch) > limits.accepted_batch:
        raise limits.too_many(f"One request must have at most {limits.max_batch} items (BATCH_LIMIT), not {len(batch)}.")
    max_items = max(limits.accepted_batch, MIN_LIST_ITEMS)
    level: list[tuple[str, Any]] = []  # the lists, objects and long texts at the current depth, each with its path
    if isinstance(data, dict | list) or (isinstance(data, str) and len(data) > MAX_TEXT_LENGTH):
        level.append(("", data))
    for _ in range(MAX_DEPTH):
        below: list[tuple[str, Any]] = []
        for path, value in level:
            if isinstance(value, dict):
                if len(value) > MAX_OBJECT_FIELDS:
                    raise _invalid(path, f"must have at most {MAX_OBJECT_FIELDS} fields, not {len(value)}")
                members: Iterable[tuple[Any, Any]] = value.items()
                for name in value:
                    if len(name) > MAX_TEXT_LENGTH:
                        raise _invalid(path, f"must not have a field name of more than {MAX_TEXT_LENGTH} characters")
            elif isinstance(value, list):
                if len(value) > max_items:
                    if limits.has_batch and _RECIPIENT_LIST.fullmatch(path):
                        raise limits.too_many(f"{path} must have at most {limits.max_batch} items (BATCH_LIMIT), not {len(value)}.")
                    raise _invalid(path, f"must have at most {max_items} items, not {len(value)}")
                members = enumerate(value)
            else:
                raise _invalid(path, f"must have at most {MAX_TEXT_LENGTH} characters, not {len(value)}")
            for name, member in members:
                if isinstance(member, dict | list):
                    if member:
                        below.append((f"{path}.{name}" if path else str(name), member))
                elif isinstance(member, str) and len(member) > MAX_TEXT_LENGTH:
                    below.append((f"{path}.{name}" if path else str(name), member))
        if not below:
            return
        level = below
    raise _invalid(level[0][0], f"must not be nested more than {MAX_DEPTH} levels deep")


def _invalid(path: str, reason: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(path or "body", reason)])


def group_by_name(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return parameters of a query or a form by name. The values of a repeated parameter become a list."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}
