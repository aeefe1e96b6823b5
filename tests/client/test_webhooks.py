from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shortener.client import InvalidSignatureError, verify_webhook
from shortener.secret import new_signing_secret
from shortener.signatures import parse_secret, sign

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SECRET = new_signing_secret()
STANDARD = ("webhook-id", "webhook-timestamp", "webhook-signature")
TELECOM = ("x-webhook-timestamp", "x-webhook-signature")


def signed(data: Any, *secrets: str, at: datetime = NOW) -> tuple[dict[str, str], bytes]:
    """Return (headers, body) of a signed request as the service sends it. The names of headers are in lower case."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    headers = sign("evt_1", at, body, [parse_secret(secret) for secret in secrets or (SECRET,)])
    return {name.lower(): value for name, value in headers.items()}, body


@pytest.mark.parametrize("kept", [STANDARD, TELECOM, STANDARD + TELECOM], ids=["Standard Webhooks", "23 Telecom", "both"])
def test_verify_webhook_accepts_a_request_with_the_signature_of_only_one_scheme(kept: tuple[str, ...]) -> None:
    headers, body = signed({"event": "click", "event_id": "evt_1", "attempt": 2})
    event = verify_webhook(SECRET, {name: headers[name] for name in kept}, body, now=NOW)
    assert (event.event_id, event.name, event.attempt, event.sent_at) == ("evt_1", "click", 2, NOW)
    assert event.data["event"] == "click"


@pytest.mark.parametrize("changed", [*STANDARD, *TELECOM, "body"])
def test_verify_webhook_rejects_a_request_that_was_changed(changed: str) -> None:
    headers, body = signed({"event": "click", "event_id": "evt_1"})
    if changed == "body":
        body = body.replace(b"click", b"clock")
    else:
        headers[changed] = headers[changed][:-2] + "11"
    with pytest.raises(InvalidSignatureError):
        verify_webhook(SECRET, headers, body, now=NOW)


def test_verify_webhook_rejects_a_request_without_signature_or_with_another_secret() -> None:
    headers, body = signed({"event_id": "evt_1"}, new_signing_secret())
    with pytest.raises(InvalidSignatureError):
        verify_webhook(SECRET, headers, body, now=NOW)
    with pytest.raises(InvalidSignatureError, match="no signature"):
        verify_webhook(SECRET, {"webhook-id": "evt_1"}, body, now=NOW)


def test_verify_webhook_accepts_both_secrets_during_a_rotation() -> None:
    old, new = new_signing_secret(), new_signing_secret()
    headers, body = signed({"event_id": "evt_1"}, new, old)
    for secrets in (old, new, [old, new]):
        assert verify_webhook(secrets, headers, body, now=NOW).event_id == "evt_1"


@pytest.mark.parametrize("minutes", [-6, 6])
def test_verify_webhook_rejects_an_old_request(minutes: int) -> None:
    headers, body = signed({"event_id": "evt_1"})
    with pytest.raises(InvalidSignatureError, match="time"):
        verify_webhook(SECRET, headers, body, now=NOW + timedelta(minutes=minutes))


@pytest.mark.parametrize("body", [b"", b"[]", b"<xml/>", b"[" * 100_000])
def test_verify_webhook_rejects_a_signed_body_that_is_no_json_object(body: bytes) -> None:
    headers, body = signed(body)
    with pytest.raises(InvalidSignatureError, match="JSON"):
        verify_webhook(SECRET, headers, body, now=NOW)


def test_verify_webhook_returns_the_field_evt_tp_as_the_name_of_a_syniverse_event() -> None:
    headers, body = signed({"topic": "SCG-Message", "attempt": 1, "event": {"evt-tp": "message_state_change"}})
    assert verify_webhook(SECRET, headers, body, now=NOW).name == "message_state_change"
