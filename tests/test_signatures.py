from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from shortener.secret import new_signing_secret
from shortener.signatures import SignatureError, SigningSecret, parse_secret, secret_warning, sign, verify
from tests.one_test import in_one_test

NOW = datetime(2026, 11, 20, 12, 0, 0, 250_000, tzinfo=UTC)
OLD_KEY, NEW_KEY = b"o" * 32, b"n" * 32
OLD_TEXT, NEW_TEXT = (f"whsec_{base64.b64encode(key).decode()}" for key in (OLD_KEY, NEW_KEY))
OLD, NEW = parse_secret(OLD_TEXT), parse_secret(NEW_TEXT)
BODY = b'{"a":1}'


def reference_signature(secret: bytes, event_id: str, at: datetime, body: str) -> str:
    # Pass the time in UTC. The package `standardwebhooks` treats every time as UTC, whatever its time zone is.
    return Webhook(secret).sign(event_id, at.astimezone(UTC), body)


@given(
    body=st.text(st.characters(codec="utf-8")),
    secret=st.binary(min_size=1, max_size=64),
    at=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.timezones()),  # noqa: DTZ001 - bounds are naive
)
def test_the_signature_equals_the_signature_of_the_standard_webhooks_package(body: str, secret: bytes, at: datetime) -> None:
    headers = sign("evt_1", at, body.encode(), [SigningSecret(b"", (secret,))])
    assert headers["webhook-signature"] == reference_signature(secret, "evt_1", at, body)
    assert headers["webhook-timestamp"] == str(int(at.timestamp()))


def test_the_standard_webhooks_package_verifies_requests_with_the_old_and_the_new_secret() -> None:
    headers = sign("evt_1", datetime.now(UTC), BODY, [NEW, OLD])
    for secret in (NEW_TEXT, OLD_TEXT):
        assert Webhook(secret).verify(BODY, headers) == {"a": 1}


def test_the_signature_of_the_published_standard_webhooks_example_is_correct() -> None:
    key = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, b'{"test": 2432232314}', [key])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_time_zone_does_not_change_the_signature() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert sign("evt_1", elsewhere, BODY, [NEW]) == sign("evt_1", NOW, BODY, [NEW])


def test_signing_with_a_naive_time_raises_an_error() -> None:
    with pytest.raises(ValueError, match="time zone"):
        sign("evt_1", NOW.replace(tzinfo=None), BODY, [NEW])


def test_the_signature_of_23_telecom_is_the_hex_hmac_of_timestamp_and_body_keyed_with_the_secret_text() -> None:
    headers = sign("evt_1", NOW, BODY, [NEW])
    timestamp = headers["X-Webhook-Timestamp"]
    expected = hmac.new(NEW_TEXT.encode(), f"{timestamp}.".encode() + BODY, hashlib.sha256).hexdigest()
    assert headers["X-Webhook-Signature"] == f"sha256={expected}"
    both = sign("evt_1", NOW, BODY, [NEW, OLD])["X-Webhook-Signature"].split(",")
    assert both == [headers["X-Webhook-Signature"], sign("evt_1", NOW, BODY, [OLD])["X-Webhook-Signature"]]
    assert timestamp == headers["webhook-timestamp"] == "1795176000"


def test_each_signed_attempt_has_its_own_timestamp_and_the_same_webhook_id() -> None:
    first, second = (sign("evt_1", NOW + timedelta(seconds=wait), BODY, [NEW]) for wait in (0, 300))
    assert first["webhook-id"] == second["webhook-id"] == "evt_1"
    assert first["webhook-timestamp"] != second["webhook-timestamp"]
    assert first["webhook-signature"] != second["webhook-signature"]


def test_a_request_without_a_secret_contains_only_the_webhook_id_and_timestamp_headers() -> None:
    assert set(sign("evt_1", NOW, BODY, [])) == {"webhook-id", "webhook-timestamp", "X-Webhook-Timestamp"}


@given(body=st.binary(), texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=2))
def test_a_signed_request_can_be_verified_with_each_of_its_secrets(body: bytes, texts: list[str]) -> None:
    secrets = [parse_secret(f" {text}") for text in texts]
    headers = sign("evt_1", NOW, body, secrets)
    verify(headers, body, secrets, NOW)
    verify({name.upper(): value for name, value in headers.items()}, body, secrets, NOW)
    verify({name: value for name, value in headers.items() if name != "X-Webhook-Signature"}, body, secrets[-1:], NOW)


@pytest.mark.parametrize("missing", ["webhook-signature", "X-Webhook-Signature"])
def test_the_verification_of_signatures_accepts_a_request_with_the_signature_of_only_one_scheme(missing: str) -> None:
    headers = sign("evt_1", NOW, BODY, [NEW])
    del headers[missing]
    verify(headers, BODY, [NEW], NOW)


@in_one_test
@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "evt_2"},
        {"webhook-timestamp": "1795176001"},
        {"webhook-timestamp": ""},
        {"webhook-timestamp": "NaN"},
        {"webhook-timestamp": "1" * 5000},
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,****"},
        {"webhook-signature": "v1,é v2,\udcff"},
        {"webhook-id": "\udcff"},
        {"X-Webhook-Timestamp": "1795176001"},
        {"X-Webhook-Signature": "sha256="},
        {"X-Webhook-Signature": "\udcff"},
    ],
)
def test_the_verification_of_signatures_rejects_a_request_with_a_changed_header(change: dict[str, str]) -> None:
    with pytest.raises(SignatureError):
        verify(sign("evt_1", NOW, BODY, [NEW]) | change, BODY, [NEW], NOW)


def test_the_verification_ignores_signatures_of_other_versions() -> None:
    headers = sign("evt_1", NOW, BODY, [NEW])
    headers["webhook-signature"] = f"v1a,xyz {headers['webhook-signature']} v2,abc"
    verify(headers, BODY, [NEW], NOW)


@pytest.mark.parametrize(
    ("body", "secret", "later", "message"),
    [
        (b"other", NEW, 0, "match"),
        (BODY, OLD, 0, "match"),
        (BODY, NEW, 301, "differs"),
        (BODY, NEW, -301, "differs"),
    ],
)
def test_the_verification_of_signatures_rejects_a_wrong_body_secret_or_time(
    body: bytes, secret: SigningSecret, later: int, message: str
) -> None:
    with pytest.raises(SignatureError, match=message):
        verify(sign("evt_1", NOW, BODY, [NEW]), body, [secret], NOW + timedelta(seconds=later))


def test_the_verification_of_signatures_rejects_a_request_without_a_signature() -> None:
    with pytest.raises(SignatureError, match="no signature"):
        verify(sign("evt_1", NOW, BODY, []), BODY, [NEW], NOW)


def test_a_generated_signing_secret_has_32_random_bytes() -> None:
    first, second = new_signing_secret(), new_signing_secret()
    assert first != second
    assert first.startswith("whsec_")
    (key,) = parse_secret(first).keys
    assert len(key) == 32
    assert Webhook(first)._whsecret == key


def test_the_utf8_text_of_a_signing_secret_without_prefix_is_the_key() -> None:
    text = "päss-word".encode()
    assert parse_secret("päss-word") == SigningSecret(text, (text,))
    assert parse_secret("whsec_" + base64.b64encode(b"key").decode()).keys == (b"key",)


def svix_webhook(secret: str) -> Any:
    from svix.webhooks import Webhook  # this import takes a fifth of a second

    return Webhook(secret)


@pytest.mark.parametrize("size", [24, 32, 64])
def test_published_libraries_verify_signatures_of_a_base64_secret_without_prefix(size: int) -> None:
    text = base64.b64encode(bytes(range(size))).decode()
    headers = sign("evt_1", datetime.now(UTC), BODY, [parse_secret(text)])
    assert len(headers["webhook-signature"].split(" ")) == 2
    assert Webhook(text).verify(BODY, headers) == Webhook(text.encode()).verify(BODY, headers) == {"a": 1}
    svix_webhook(text).verify(BODY, headers)  # this call raises an error if no signature matches
    assert secret_warning(text) is None


@pytest.mark.parametrize("text", ["My-S3cr3t-pass!", base64.b64encode(b"x" * 23).decode(), base64.b64encode(b"x" * 65).decode()])
def test_a_signing_secret_that_published_libraries_reject_is_used_as_the_key_and_causes_a_warning(text: str) -> None:
    assert parse_secret(text).keys == (text.encode(),)
    assert "Standard Webhooks" in (secret_warning(text) or "")
    assert ("fewer than 24 bytes" in (secret_warning(text) or "")) == (len(text) < 24)


@pytest.mark.parametrize("text", [OLD_TEXT, NEW_TEXT])
def test_the_svix_library_verifies_both_secrets_during_a_rotation(text: str) -> None:
    svix_webhook(text).verify(BODY, sign("evt_1", datetime.now(UTC), BODY, [NEW, OLD]))


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_***", "whsec_YWJ", "x" * 513])
def test_an_invalid_signing_secret_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_secret(text)
