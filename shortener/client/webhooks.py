"""This module verifies the requests that the service sends to a tracker or callback, and returns the event that a request
contains.

A request may have a signature of Standard Webhooks, of 23 Telecom, or both. If it has both, both must be correct. The signatures
cover the body and the time, not the URL. Therefore only a POST request with its raw body can be verified: never trust the query
of a GET request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from shortener.client.exceptions import ClientError
from shortener.signatures import SignatureError, parse_secret, verify

DEFAULT_TOLERANCE_SECONDS = 300


class InvalidSignatureError(ClientError):
    """Raised if a request has no valid signature, or if its time is too far from the current time."""


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A verified event. `event_id` is the same in all attempts of a delivery. `data` is the JSON of the body.

    `name` is the kind of event, such as `click` or `conversion`. `attempt` is the number of the delivery attempt. Some formats of
    a tracker do not contain them; then `name` is empty and `attempt` is None."""

    event_id: str
    name: str
    data: Mapping[str, Any]
    sent_at: datetime
    attempt: int | None = None
    body: bytes = field(default=b"", repr=False)


def verify_webhook(
    secrets: str | Iterable[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: datetime | None = None,
    tolerance: float = DEFAULT_TOLERANCE_SECONDS,
) -> WebhookEvent:
    """Verify a received request and return its event. Raise InvalidSignatureError if the signature or the time is not valid.

    `secrets` is the signing secret of the tracker, or several secrets during a rotation. `body` is the raw body. `tolerance` is
    the permitted difference in seconds between the time of the request and `now`."""
    keys = [parse_secret(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    try:
        verify(headers, body, keys, now or datetime.now(UTC), timedelta(seconds=tolerance))
    except SignatureError as error:
        raise InvalidSignatureError(str(error)) from None
    found = {name.lower(): value for name, value in headers.items()}
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidSignatureError("the signed body is not JSON") from None
    if not isinstance(data, dict):
        raise InvalidSignatureError("the signed body is not a JSON object")
    event_id = found.get("webhook-id") or data.get("event_id") or ""
    if not isinstance(event_id, str) or not event_id:
        raise InvalidSignatureError("the request has no event id")
    timestamp = found.get("webhook-timestamp") or found.get("x-webhook-timestamp") or "0"
    return WebhookEvent(event_id, _name_of(data), data, datetime.fromtimestamp(int(timestamp), UTC), _attempt_of(data), body)


def _name_of(data: Mapping[str, Any]) -> str:
    event = data.get("event")
    if isinstance(event, str):
        return event
    if isinstance(event, Mapping):
        return str(event.get("evt-tp", ""))
    return ""


def _attempt_of(data: Mapping[str, Any]) -> int | None:
    attempt = data.get("attempt")
    return attempt if isinstance(attempt, int) and not isinstance(attempt, bool) else None
