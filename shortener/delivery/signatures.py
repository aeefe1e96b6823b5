"""Signatures of deliveries: Standard Webhooks and 23 Telecom's, in the headers of one request.

A secret is bytes: what follows `whsec_` in base64, or a text of the customer's own as UTF-8. Both schemes use the same bytes.
Secrets come newest first. While a secret is rotated there are two; Standard Webhooks carries a signature by each of them,
23 Telecom's header has room for one and carries the newest. Each attempt is signed anew, with the time of the attempt, so a
delivery that is retried after days is still fresh; `webhook-id` stays what it was, for receivers to tell repeats by.
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
    """A request is not proven to come from the holder of the secret, or is too old to be believed."""


def new_secret() -> str:
    """A secret to show once: `whsec_` and 32 random bytes in base64."""
    return PREFIX + base64.b64encode(random.token_bytes(32)).decode()


def parse_secret(text: str) -> bytes:
    """The key of a secret as the customer knows it. Raises `ValueError` when it cannot be one."""
    if not text or len(text) > MAX_SECRET_LENGTH:
        raise ValueError(f"a secret has 1 to {MAX_SECRET_LENGTH} characters")
    if not text.startswith(PREFIX):
        return text.encode()
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ValueError("a secret that begins with whsec_ goes on in base64")
    return key


def sign(event_id: str, at: datetime, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """The headers of one attempt at the aware time `at`. Without a secret they only name the event and the time."""
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
    """Check a received request; names of headers count in any case. Raises `SignatureError` saying what is wrong.

    One of the two schemes is enough, but each one that is present must be right.
    """
    found = {name.lower(): value for name, value in headers.items()}
    standard, telecom = found.get("webhook-signature"), found.get("x-webhook-signature")
    if standard is None and telecom is None:
        raise SignatureError("there is no signature")
    if standard is not None:
        timestamp = _fresh(found.get("webhook-timestamp"), now, tolerance)
        event_id = found.get("webhook-id", "")
        given = [part.encode(errors="replace") for part in standard.split(" ")]
        right = [_standard(event_id, timestamp, body, secret).encode() for secret in secrets]
        if not any(hmac.compare_digest(one, other) for one in given for other in right):
            raise SignatureError("webhook-signature does not match the body, the id, the time and the secret")
    if telecom is not None:
        timestamp = _fresh(found.get("x-webhook-timestamp"), now, tolerance)
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
        raise ValueError("the time must be aware")
    return str(int(at.timestamp()))


def _fresh(timestamp: str | None, now: datetime, tolerance: timedelta) -> str:
    if timestamp is None or not _SECONDS.fullmatch(timestamp):
        raise SignatureError("there is no usable timestamp")
    if abs(now.timestamp() - int(timestamp)) > tolerance.total_seconds():
        raise SignatureError("the timestamp is too far from the present")
    return timestamp
