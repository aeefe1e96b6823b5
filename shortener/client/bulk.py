"""This module divides a bulk rewrite of any number of messages into requests (chunks). It has no I/O; both clients send the
requests of `BulkRewrite`.

A chunk has at most `batch_limit` recipients. A message with more recipients is divided. The service may permit fewer recipients
than `batch_limit`. If it rejects a chunk as too large, the chunk is divided in two. Each chunk has its own `Idempotency-Key`,
which is made of the key of the whole call and the range of the chunk's recipients. Therefore a repeated call with the same key
gets the same texts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from shortener.client import calls
from shortener.client.calls import ApiCall, RewriteOptions
from shortener.client.exceptions import (
    BulkError,
    ClientError,
    ConnectionFailedError,
    DeadlineError,
    ErrorDetail,
    RateLimitError,
    ResponseError,
    ServerFailureError,
    UnexpectedResponseError,
)
from shortener.client.long_text import long_text
from shortener.client.models import RewrittenText, SkippedRecipient
from shortener.plurals import counted

Progress = Callable[[int, int], None]
OnFailure = Literal["raise", "send_long"]
OnInvalid = Literal["fail", "skip"]
Results = list[RewrittenText | SkippedRecipient]

_TOO_LARGE = ("BATCH_TOO_LARGE", "BODY_TOO_LARGE")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class BulkMessage(RewriteOptions, total=False):
    """A message of a bulk call. `to` and `body` are required. If `to` is a list, `message_id` is a list of the same length."""

    to: str | Sequence[str]
    body: str
    from_: str
    message_id: str | Sequence[str]


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a message that belongs to a chunk. `message` is the index of the message, and `first` is the index of the part's
    first recipient in the message."""

    message: int
    first: int
    fields: Mapping[str, Any]
    to: Sequence[str]
    ids: Sequence[str] | None

    def halves(self) -> tuple[_Part, _Part]:
        middle = len(self.to) // 2
        return self._slice(0, middle), self._slice(middle, len(self.to))

    def _slice(self, start: int, end: int) -> _Part:
        ids = None if self.ids is None else self.ids[start:end]
        return replace(self, first=self.first + start, to=self.to[start:end], ids=ids)

    def body(self) -> dict[str, Any]:
        fields = {**self.fields, "to": list(self.to)}
        return fields if self.ids is None else {**fields, "message_id": list(self.ids)}


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of a bulk call that is sent as one request. `start` is the index of its first recipient among all recipients of the
    bulk call."""

    parts: tuple[_Part, ...]
    start: int

    @property
    def size(self) -> int:
        return sum(len(part.to) for part in self.parts)

    def halves(self) -> tuple[Chunk, Chunk]:
        if len(self.parts) == 1:
            first, second = self.parts[0].halves()
            return Chunk((first,), self.start), Chunk((second,), self.start + len(first.to))
        middle = len(self.parts) // 2
        left = Chunk(self.parts[:middle], self.start)
        return left, Chunk(self.parts[middle:], self.start + left.size)


class BulkRewrite:
    """The state of one bulk call.

    A client sends the call that `next_call` returns, and passes the outcome to `succeeded` or `failed`. The client repeats both
    steps until `next_call` returns None."""

    def __init__(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        batch_limit: int,
        on_failure: OnFailure,
        on_invalid: OnInvalid,
        key: str | None,
        extra_schemes: Container[str],
        is_single: bool = False,
        total_seconds: float | None = None,
    ) -> None:
        """`total_seconds` is the time limit of the whole call, which begins now; None: no limit. `is_single` is true if the call
        has one message for one recipient. In the errors of such a call, field names do not begin with `messages.0`. Raise
        ValueError for arguments that cannot be used, for example a message with `gateway` and `send_long`."""
        if on_failure not in ("raise", "send_long"):
            raise ValueError("on_failure must be raise or send_long")
        if on_invalid not in ("fail", "skip"):
            raise ValueError("on_invalid must be fail or skip")
        self.results: Results = []
        self._on_failure = on_failure
        self._on_invalid = on_invalid
        self._key = key or new_key()
        self._extra_schemes = extra_schemes
        self._is_single = is_single
        self._ends_at = None if total_seconds is None else time.monotonic() + total_seconds
        parts = [_part_of(index, message, needs_ids=on_failure == "send_long") for index, message in enumerate(messages)]
        if on_failure == "send_long" and any("gateway" in part.fields for part in parts):
            # Even without a response, the service may have queued the message for its gateway. If the caller then sends the text
            # with long URLs, the recipient gets the message twice.
            raise ValueError("on_failure='send_long' is only for messages that you send yourself, not for messages with `gateway`")
        self.total = sum(len(part.to) for part in parts)
        self._chunks = _chunks_of(parts, batch_limit)
        self._chunks.reverse()

    def remaining_seconds(self) -> float | None:
        """Return the time until the time limit of the whole call; None without a limit. Raise DeadlineError if it has passed."""
        if self._ends_at is None:
            return None
        remaining = self._ends_at - time.monotonic()
        if remaining <= 0:
            raise DeadlineError("the deadline of the whole call has passed")
        return remaining

    def next_call(self) -> ApiCall[Results] | None:
        """Return the call of the next chunk; None if all recipients have a result."""
        if not self._chunks:
            return None
        chunk = self._chunks[-1]
        if self._is_single:
            (part,) = chunk.parts
            body = {**part.body(), "to": part.to[0]}
            if part.ids is not None:
                body["message_id"] = part.ids[0]
            return calls.rewrite(calls.encode(body), self._key, 1)
        body = {"on_invalid": self._on_invalid, "messages": [part.body() for part in chunk.parts]}
        key = f"{self._key}-{chunk.start}-{chunk.start + chunk.size}"
        return calls.rewrite(calls.encode(body), key, chunk.size)

    def succeeded(self, results: Results) -> None:
        """Add the results of the current chunk."""
        self._chunks.pop()
        self.results += results

    def failed(self, error: ClientError) -> None:
        """React to the failure of the current chunk: divide the chunk, create its texts with long URLs, or raise the error."""
        chunk = self._chunks[-1]
        if isinstance(error, ResponseError) and error.error_code in _TOO_LARGE and chunk.size > 1:
            self._chunks[-1:] = reversed(chunk.halves())
            return
        if self._on_failure == "send_long" and is_service_failure(error):
            try:
                self.succeeded(self._long_texts(chunk, error))
                return
            except ResponseError as invalid:
                error = invalid
        elif isinstance(error, ResponseError):
            _relocate(error, chunk)
        if self._is_single or (not self.results and not self._has_more):
            raise error
        raise BulkError(self.results, self.total, error) from error

    @property
    def _has_more(self) -> bool:
        return len(self._chunks) > 1

    def _long_texts(self, chunk: Chunk, error: ClientError) -> Results:
        reason = str(error)
        return [
            long_text(part.fields, to, message_id, reason, self._extra_schemes)
            for part in chunk.parts
            for to, message_id in zip(part.to, part.ids or (), strict=True)
        ]


def is_service_failure(error: ClientError) -> bool:
    """Return whether an error comes from the service, for example because it was down or too slow. Return False if the request
    itself is wrong."""
    kinds = (ConnectionFailedError, DeadlineError, UnexpectedResponseError, ServerFailureError, RateLimitError)
    return isinstance(error, kinds) or (isinstance(error, ResponseError) and error.status_code in (408, 425))


def new_key() -> str:
    """Return a random id of 131 bits, for an `Idempotency-Key` or a message."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(22))


def _part_of(index: int, message: Mapping[str, Any], *, needs_ids: bool) -> _Part:
    fields = dict(message)
    if "from_" in fields:
        fields["from"] = fields.pop("from_")
    fields = {name: value for name, value in fields.items() if value is not None}
    if "to" not in fields or not isinstance(fields.get("body"), str):
        raise ValueError(f"message {index} requires `to` and the text `body`")
    to, ids = fields.pop("to"), fields.pop("message_id", None)
    recipients = [to] if isinstance(to, str) else list(to)
    if not recipients or not all(isinstance(one, str) for one in recipients):
        raise ValueError(f"`to` of message {index} must be a phone number, or a list of at least one phone number")
    listed = None if ids is None else [ids] if isinstance(ids, str) else list(ids)
    if listed is not None and len(listed) != len(recipients):
        expected = counted(len(recipients), "recipient")
        raise ValueError(f"`message_id` of message {index} must have one id for each of its {expected}")
    # With `on_failure="send_long"`, the client must choose the message ids. If the service does not respond, it may still have
    # stored the message. The text with long URLs, which the client then returns, must have the message_id of the stored message.
    if listed is None and needs_ids:
        listed = [new_key() for _ in recipients]
    return _Part(index, 0, fields, recipients, listed)


def _chunks_of(parts: Sequence[_Part], limit: int) -> list[Chunk]:
    if limit < 1:
        raise ValueError("batch_limit must be at least 1")
    chunks: list[Chunk] = []
    current: list[_Part] = []
    size = start = 0
    for part in parts:
        if len(part.to) > limit - size and "message_request_id" not in part.fields:
            # all chunks of this message get the same request id
            part = replace(part, fields={**part.fields, "message_request_id": new_key()})
        position = 0
        while position < len(part.to):
            taken = part._slice(position, min(len(part.to), position + limit - size))
            position += len(taken.to)
            current.append(taken)
            size += len(taken.to)
            if size == limit:
                chunks.append(Chunk(tuple(current), start))
                start, size, current = start + size, 0, []
    if current:
        chunks.append(Chunk(tuple(current), start))
    return chunks


def _relocate(error: ResponseError, chunk: Chunk) -> None:
    """Change the details of an error of a chunk: the indexes of messages and recipients in the chunk become indexes in the whole
    call."""
    error.details = tuple(_relocated(detail, chunk) for detail in error.details)


def _relocated(detail: ErrorDetail, chunk: Chunk) -> ErrorDetail:
    if detail.index is None or not 0 <= detail.index < len(chunk.parts):
        return detail
    part = chunk.parts[detail.index]
    path = detail.field.split(".")
    if len(path) > 1 and path[0] == "messages":
        path[1] = str(part.message)
        if detail.recipient is not None and path[-1] == str(detail.recipient):
            path[-1] = str(detail.recipient + part.first)
    recipient = None if detail.recipient is None else detail.recipient + part.first
    return replace(detail, field=".".join(path), index=part.message, recipient=recipient)
