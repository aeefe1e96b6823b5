"""This module signs the requests of deliveries with the headers of Standard Webhooks and of 23 Telecom, and verifies such
signatures.

In the scheme of 23 Telecom, the key is the text of the secret, exactly as it was shown. In the scheme of Standard Webhooks, a
secret with the prefix `whsec_` is base64 after the prefix, and the key is the decoded bytes. For a secret without the prefix, the
key is its text. The published libraries of Standard Webhooks, however, always decode a secret as base64. Therefore, if a secret
without the prefix is base64 of 24 to 64 bytes, the module adds a second Standard Webhooks signature whose key is the decoded
bytes.

Lists of secrets begin with the newest. During the rotation of a secret there are two secrets, and each signature header contains
a signature for each of them. Each attempt is signed with the time of the attempt, so a receiver that rejects old signatures
accepts a retry even after days. The header `webhook-id` is the same in all attempts, so receivers can recognise a repeated
delivery.
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

#: Standard Webhooks writes a signing secret as this prefix, followed by the secret in base64.
SIGNING_PREFIX = "whsec_"
MAX_SECRET_LENGTH = 512
#: If a secret without prefix is base64, and its decoded size is in this range, requests get a second signature. Standard Webhooks
#: permits keys of this size.
MIN_DECODED_BYTES, MAX_DECODED_BYTES = 24, 64
#: A new secret with the prefix must have a key of at least this many bytes. A shorter secret without the prefix is accepted with
#: a warning, because receivers of 23 Telecom's scheme already have secrets of any length. Secrets with the prefix that older
#: releases stored may also be shorter.
MIN_KEY_BYTES = 24
_SECONDS = re.compile(r"[0-9]{1,12}")


class SignatureError(Exception):
    """The error for a received request without a correct signature, or with a signature that is too old."""


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """The keys of a signing secret. `text` is the key for the scheme of 23 Telecom, and `keys` are the keys for the scheme of
    Standard Webhooks."""

    text: bytes
    keys: tuple[bytes, ...]


def parse_secret(text: str) -> SigningSecret:
    """Convert the text of a signing secret to its keys. Raise ValueError if the text is not a valid secret."""
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
    """Return a warning if the libraries of Standard Webhooks cannot use the secret unchanged, otherwise None. If such a secret is
    also too short, the warning says so."""
    if text.startswith(SIGNING_PREFIX) or len(parse_secret(text).keys) > 1:
        return None
    warning = (
        "The libraries of Standard Webhooks decode a secret as base64. This secret is used as text, so pass the base64 of its text "
        "to them, or use a generated secret. X-Webhook-Signature is not affected."
    )
    if len(text.encode()) < MIN_KEY_BYTES:
        warning += f" The secret has fewer than {MIN_KEY_BYTES} bytes, so others may guess it."
    return warning


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None


def sign(event_id: str, at: datetime, body: bytes, secrets: Sequence[SigningSecret]) -> dict[str, str]:
    """Return the signature headers of a request that is sent at the time `at`, which must have a time zone.

    If `secrets` is empty, the headers contain only the event id and the time."""
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
    """Check the signatures of a received request. Raise `SignatureError` with the reason if they are not valid.

    The names of headers may be in upper or lower case. A signature of one of the two schemes is enough. If the signatures of both
    schemes are present, both must be correct.
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
