"""Signatures of deliveries: the headers of Standard Webhooks and of 23 Telecom.

A secret is a key in bytes: base64 after the prefix `whsec_`, or a text of the customer as UTF-8. Both schemes use the same key.
Secrets are sorted, newest first. During a rotation there are two: Standard Webhooks contains one signature for each, 23
Telecom's header only that of the newest. Each attempt has its own signature with its own time, so a delivery that is retried
after days is still fresh. `webhook-id` stays the same, so receivers can recognise repeats.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets as random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

PREFIX = "whsec_"
MAX_SECRET_LENGTH = 512
_SECONDS = re.compile(r"[0-9]{1,12}")


class SignatureError(Exception):
    """The request does not prove that its sender has the secret, or it is too old."""


def new_secret() -> str:
    """Return a random secret: `whsec_` and 32 bytes in base64."""
    return PREFIX + base64.b64encode(random.token_bytes(32)).decode()


def parse_secret(text: str) -> bytes:
    """Return the key of a secret. Raise ValueError if the text is not a valid secret."""
    if not text or len(text) > MAX_SECRET_LENGTH:
        raise ValueError(f"must have 1 to {MAX_SECRET_LENGTH} characters")
    if not text.startswith(PREFIX):
        return text.encode()
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ValueError("must be base64 after whsec_")
    return key


def sign(event_id: str, at: datetime, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """Return the headers of one attempt at the aware time `at`. Without a secret they contain only the event id and the time."""
    timestamp = _seconds(at)
    headers = {"webhook-id": event_id, "webhook-timestamp": timestamp, "X-Webhook-Timestamp": timestamp}
    if secrets:
        headers["webhook-signature"] = " ".join(_standard(event_id, timestamp, body, secret) for secret in secrets)
        headers["X-Webhook-Signature"] = _telecom(timestamp, body, secrets[0])
    return headers


def verify(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    now: datetime,
    tolerance: timedelta = timedelta(minutes=5),
) -> None:
    """Check a received request. The names of headers ignore case. Raise `SignatureError` with the reason.

    One of the two schemes is enough, but every signature that is present must be correct.
    """
    found = {name.lower(): value for name, value in headers.items()}
    standard, telecom = found.get("webhook-signature"), found.get("x-webhook-signature")
    if standard is None and telecom is None:
        raise SignatureError("there is no signature")
    if standard is not None:
        timestamp = _checked_timestamp(found.get("webhook-timestamp"), now, tolerance)
        event_id = found.get("webhook-id", "")
        signatures = [part.encode(errors="replace") for part in standard.split(" ")]
        expected = [_standard(event_id, timestamp, body, secret).encode() for secret in secrets]
        if not any(hmac.compare_digest(one, other) for one in signatures for other in expected):
            raise SignatureError("webhook-signature does not match the body, the id, the time and the secret")
    if telecom is not None:
        timestamp = _checked_timestamp(found.get("x-webhook-timestamp"), now, tolerance)
        claim = telecom.encode(errors="replace")
        if not any(hmac.compare_digest(claim, _telecom(timestamp, body, secret).encode()) for secret in secrets):
            raise SignatureError("X-Webhook-Signature does not match the body, the time and the secret")


def _standard(event_id: str, timestamp: str, body: bytes, secret: bytes) -> str:
    digest = hmac.digest(secret, f"{event_id}.{timestamp}.".encode(errors="replace") + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def _telecom(timestamp: str, body: bytes, secret: bytes) -> str:
    return "sha256=" + hmac.digest(secret, f"{timestamp}.".encode() + body, hashlib.sha256).hex()


def _seconds(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError("the time must have a time zone")
    return str(int(at.timestamp()))


def _checked_timestamp(timestamp: str | None, now: datetime, tolerance: timedelta) -> str:
    if timestamp is None or not _SECONDS.fullmatch(timestamp):
        raise SignatureError("the timestamp is missing or invalid")
    if abs(now.timestamp() - int(timestamp)) > tolerance.total_seconds():
        raise SignatureError("the timestamp differs too much from the current time")
    return timestamp
