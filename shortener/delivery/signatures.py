"""Signatures of deliveries: the headers of Standard Webhooks and of 23 Telecom.

23 Telecom's key is the text of the secret, exactly as it was shown. The key of Standard Webhooks is the base64 behind the prefix
`whsec_`, decoded. A secret without that prefix is used as its text. If it is base64 of 24 to 64 bytes, there is a second signature
of Standard Webhooks with the decoded bytes, because the published libraries decode a secret with and without the prefix.

Secrets are sorted, newest first. During a rotation there are two, and both headers contain signatures for each of them. Each
attempt has its own signatures with its own time, so a delivery that is retried after days is still fresh. `webhook-id` stays the
same, so receivers can recognise repeats.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from shortener.secret import SIGNING_PREFIX

MAX_SECRET_LENGTH = 512
#: Bytes of a base64 secret without prefix that get a second signature: the sizes that Standard Webhooks permits.
MIN_DECODED_BYTES, MAX_DECODED_BYTES = 24, 64
#: Shortest key that a new secret may have (Standard Webhooks: 24 to 64 bytes). Secrets stored by older releases may be shorter.
MIN_KEY_BYTES = 24
_SECONDS = re.compile(r"[0-9]{1,12}")


class SignatureError(Exception):
    """The request does not prove that its sender has the secret, or it is too old."""


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """The keys of a secret. `text` is the key of 23 Telecom's scheme; `keys` are those of Standard Webhooks."""

    text: bytes
    keys: tuple[bytes, ...]


def parse_secret(text: str) -> SigningSecret:
    """Return the keys of a secret. Raise ValueError if the text is not a valid secret."""
    if not text or len(text) > MAX_SECRET_LENGTH:
        raise ValueError(f"must have 1 to {MAX_SECRET_LENGTH} characters")
    if text.startswith(SIGNING_PREFIX):
        key = _decode(text.removeprefix(SIGNING_PREFIX))
        if not key:
            raise ValueError("must be base64 after whsec_")
        return SigningSecret(text.encode(), (key,))
    decoded = _decode(text)
    is_key = decoded is not None and MIN_DECODED_BYTES <= len(decoded) <= MAX_DECODED_BYTES
    return SigningSecret(text.encode(), (text.encode(), decoded) if is_key and decoded else (text.encode(),))


def secret_warning(text: str) -> str | None:
    """Return what the owner of a secret must know to verify signatures, or None if every published library can use it."""
    if text.startswith(SIGNING_PREFIX) or len(parse_secret(text).keys) > 1:
        return None
    return (
        "The libraries of Standard Webhooks decode a secret as base64. This secret is used as text, so pass its bytes to them, or "
        "use a generated secret. X-Webhook-Signature is not affected."
    )


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None


def sign(event_id: str, at: datetime, body: bytes, secrets: Sequence[SigningSecret]) -> dict[str, str]:
    """Return the headers of one attempt at the aware time `at`. Without a secret they contain only the event id and the time."""
    timestamp = _seconds(at)
    headers = {"webhook-id": event_id, "webhook-timestamp": timestamp, "X-Webhook-Timestamp": timestamp}
    if secrets:
        keys = [key for secret in secrets for key in secret.keys]
        headers["webhook-signature"] = " ".join(_standard(event_id, timestamp, body, key) for key in keys)
        headers["X-Webhook-Signature"] = ",".join(_telecom(timestamp, body, secret.text) for secret in secrets)
    return headers


def verify(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[SigningSecret],
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
        expected = [_standard(event_id, timestamp, body, key).encode() for secret in secrets for key in secret.keys]
        if not any(hmac.compare_digest(one, other) for one in signatures for other in expected):
            raise SignatureError("webhook-signature does not match the body, the id, the time and the secret")
    if telecom is not None:
        timestamp = _checked_timestamp(found.get("x-webhook-timestamp"), now, tolerance)
        claims = [part.strip().encode(errors="replace") for part in telecom.split(",")]
        own = [_telecom(timestamp, body, secret.text).encode() for secret in secrets]
        if not any(hmac.compare_digest(claim, one) for claim in claims for one in own):
            raise SignatureError("X-Webhook-Signature does not match the body, the time and the secret")


def _standard(event_id: str, timestamp: str, body: bytes, key: bytes) -> str:
    digest = hmac.digest(key, f"{event_id}.{timestamp}.".encode(errors="replace") + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def _telecom(timestamp: str, body: bytes, key: bytes) -> str:
    return "sha256=" + hmac.digest(key, f"{timestamp}.".encode() + body, hashlib.sha256).hex()


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
