"""Tests of HTTP gateways: their requests, the meaning of each response, and the checks of the settings."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from shortener.delivery.guard import Guard
from shortener.delivery.http_exchange import SendResult
from shortener.delivery.sender import Sender
from shortener.gateways.http import KIND, HttpSettings, build_request, classify
from shortener.gateways.submission import GatewayConfig, GatewayContext, GatewayReport, OutgoingMessage, SubmitOutcome, SubmitResult
from shortener.model import utcnow
from tests.delivery.receiver import Behaviour, drip, receiver, respond, send_bytes
from tests.servers import SOON_SECONDS

MESSAGE = OutgoingMessage(
    "0abc", "m-1", "+14085550100", "Grüße & Küsse", "Brand", "GSM-7", 1, "https://go.example/api/v1/gateways/reports/k/0abc"
)


def settings(**values: Any) -> HttpSettings:
    return HttpSettings(**{"url": "https://gw.example/send", "body": '{"t":"{text}"}', **values})


def response(status: int | None, body: bytes = b"", **values: Any) -> SendResult:
    return SendResult(status, body, **{"error": None if status else "timeout", "detail": "", "milliseconds": 1, **values})


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (200, SubmitOutcome.ACCEPTED, "accepted"),
        (202, SubmitOutcome.ACCEPTED, "accepted"),
        (301, SubmitOutcome.RETRY, "refused_by_gateway"),
        (400, SubmitOutcome.REJECTED, "rejected"),
        (401, SubmitOutcome.RETRY, "refused_by_gateway"),
        (403, SubmitOutcome.RETRY, "refused_by_gateway"),
        (404, SubmitOutcome.RETRY, "refused_by_gateway"),
        (408, SubmitOutcome.RETRY, "gateway_error"),
        (422, SubmitOutcome.REJECTED, "rejected"),
        (429, SubmitOutcome.RETRY, "throttled"),
        (500, SubmitOutcome.RETRY, "gateway_error"),
        (502, SubmitOutcome.DOUBT, "gateway_timeout"),
        (503, SubmitOutcome.RETRY, "throttled"),
        (504, SubmitOutcome.DOUBT, "gateway_timeout"),
    ],
)
def test_the_http_status_of_a_gateway_response_determines_the_outcome_of_the_send_attempt(
    status: int, outcome: SubmitOutcome, reason: str
) -> None:
    result = classify(settings(), response(status))
    assert (result.outcome, result.reason, result.status) == (outcome, reason, status)


def test_a_message_without_a_gateway_response_is_doubtful_only_if_the_request_was_sent() -> None:
    assert classify(settings(), response(None, error="timeout", may_have_arrived=True)).outcome is SubmitOutcome.DOUBT
    assert classify(settings(), response(None, error="connection_reset", may_have_arrived=True)).outcome is SubmitOutcome.DOUBT
    assert classify(settings(), response(None, error="timeout")).outcome is SubmitOutcome.RETRY
    assert classify(settings(), response(None, error="connection_refused")).outcome is SubmitOutcome.RETRY
    local = classify(settings(), response(None, error="resolver_down", is_local=True))
    assert (local.outcome, local.is_local) == (SubmitOutcome.RETRY, True)


VONAGE = {
    "success_path": "$.messages.0.status",
    "success_values": ["0"],
    "retry_codes": ["1"],
    "id_path": "$.messages.0.message-id",
    "error_path": "$.messages.0.error-text",
    "error_code_path": "$.messages.0.status",
}


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"messages":[{"status":"0","message-id":"0A"}]}', SubmitOutcome.ACCEPTED),
        (b'{"messages":[{"status":"6","error-text":"Anti-Spam Rejection"}]}', SubmitOutcome.REJECTED),
        (b'{"messages":[{"status":"1","error-text":"Throughput Rate Exceeded"}]}', SubmitOutcome.RETRY),
        (b'{"messages":[]}', SubmitOutcome.UNREADABLE),
        (b"<html>", SubmitOutcome.UNREADABLE),
        (b"", SubmitOutcome.UNREADABLE),
    ],
)
def test_a_value_in_the_response_body_determines_the_outcome_for_a_gateway_that_always_returns_200(
    body: bytes, outcome: SubmitOutcome
) -> None:
    result = classify(settings(**VONAGE), response(200, body))
    assert result.outcome is outcome
    if outcome is SubmitOutcome.ACCEPTED:
        assert result.gateway_message_id == "0A"
    if outcome is SubmitOutcome.REJECTED:
        assert (result.error_code, result.detail) == ("6", "Anti-Spam Rejection")


def test_a_gateway_request_contains_the_encoded_values_and_basic_credentials() -> None:
    configured = settings(
        url="https://gw.example/send?to={phone}&from={sender_id}",
        headers={"X-Id": "{message_id}"},
        content_type="application/x-www-form-urlencoded",
        body="text={text}&hex={text_hex}&coding={encoding}&dlr={report_url}",
        variables={"username": "user", "password": "pass:word"},
        basic_auth=True,
        encodings={"GSM-7": "0", "UCS-2": "8"},
    )
    request = build_request(configured, MESSAGE, repeats=True)
    assert request.url == "https://gw.example/send?to=%2B14085550100&from=Brand"
    assert request.headers == {
        "X-Id": "m-1",
        "Authorization": "Basic dXNlcjpwYXNzOndvcmQ=",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    assert request.body == (
        b"text=Gr%C3%BC%C3%9Fe%20%26%20K%C3%BCsse&hex=47727e1e652026204b7e737365&coding=0"
        b"&dlr=https%3A%2F%2Fgo.example%2Fapi%2Fv1%2Fgateways%2Freports%2Fk%2F0abc"
    )
    assert request.may_repeat


def test_a_gateway_request_that_must_not_be_repeated_uses_a_new_connection() -> None:
    request = build_request(settings(), MESSAGE, repeats=False)
    assert not request.may_repeat
    assert request.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"url": "gw.example/send"}, "url"),
        ({"url": "https://{host}/send", "variables": {"host": "x"}}, "placeholder in scheme, host or port"),
        ({"url": "https://gw.example/{nope}"}, "is not a placeholder"),
        ({"url": "https://ü.example/"}, "ASCII"),
        ({"body": '{"a":{text}}'}, "must be JSON"),
        ({"body": "{text}", "content_type": "application/json"}, "must be JSON"),
        ({"headers": {"X-A": "a\r\nB: c"}}, "printable"),
        ({"headers": {"Content-Type": "text/x"}}, "content_type"),
        ({"variables": {"text": "x"}}, "not the name of a built-in placeholder"),
        ({"success_statuses": "two hundred"}, "must be"),
        ({"success_path": "$.status"}, "success_values"),
        ({"id_path": "id"}, "must be a path"),
        ({"report_states": {"1": "SEEN"}}, "SENT, DELIVERED"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_invalid_settings_of_an_http_gateway_are_rejected(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        settings(**values)


def test_the_displayed_settings_of_an_http_gateway_contain_no_credentials() -> None:
    configured = settings(
        url="https://gw.example/send?user=S3CRET&pass={password}&to={phone}",
        headers={"Authorization": "Bearer S3CRET"},
        body='{"key":"S3CRET","to":"{phone}"}',
        variables={"password": "S3CRET"},
    )
    shown = KIND.describe(configured)
    assert "S3CRET" not in str(shown)
    assert shown["url"] == "https://gw.example/send?user=***&pass={password}&to={phone}"
    assert (shown["headers"], shown["variables"], shown["body_set"]) == (["Authorization"], ["password"], True)


async def submit(behaviour: Behaviour, timeout: float = 5, *, repeats: bool = True) -> SubmitResult:
    """Submit a message to a local gateway that behaves as `behaviour` defines."""

    async def ignore(gateway_id: int, report: GatewayReport) -> bool:
        return True

    async with receiver(behaviour) as peer, Sender(Guard(allow_private=True), user_agent="test", limit=4) as sender:
        context = GatewayContext(sender, sender, ignore, utcnow)
        config = GatewayConfig(1, "gw", "http", 1, settings(url=peer.url("/send")), "https://go.example/r", False, repeats)
        return await KIND.open(config, context).submit(MESSAGE, timeout)


async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize(
    ("behaviour", "timeout", "outcome", "reason"),
    [
        (respond(200), 5, SubmitOutcome.ACCEPTED, "accepted"),
        (send_bytes(), 0.3, SubmitOutcome.DOUBT, "timeout"),
        (close, 5, SubmitOutcome.DOUBT, "connection_reset"),
        (send_bytes(b"SSH-2.0-OpenSSH\r\n\r\n"), 5, SubmitOutcome.DOUBT, "protocol_error"),
        (send_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), 0.3, SubmitOutcome.ACCEPTED, "accepted"),
        (drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 500, 0.001), 5, SubmitOutcome.DOUBT, "too_large"),
    ],
)
async def test_a_send_attempt_to_a_faulty_gateway_ends_within_the_time_limit(
    behaviour: Behaviour, timeout: float, outcome: SubmitOutcome, reason: str
) -> None:
    for seconds in (timeout, 10 * timeout):  # on a busy machine the request or the response may not arrive in time
        began = time.monotonic()
        result = await submit(behaviour, seconds)
        assert time.monotonic() - began < seconds + SOON_SECONDS
        if (result.outcome, result.reason) == (outcome, reason):
            break
    assert (result.outcome, result.reason) == (outcome, reason)


async def test_the_address_guard_blocks_a_gateway_that_has_a_private_address_without_permission() -> None:
    async with Sender(Guard(), user_agent="test", limit=4) as sender:
        result = await sender.send(build_request(settings(url="http://127.0.0.1:9/"), MESSAGE, repeats=True), 2)
    assert classify(settings(), result).outcome is SubmitOutcome.RETRY
    assert result.error == "blocked_address"


@pytest.mark.parametrize(
    ("url", "message_id", "expected"),
    [
        ("https://gw.example/a/{message_id}/send", "..", "https://gw.example/a/%2E%2E/send"),
        ("https://gw.example/a/.{message_id}?id={message_id}", ".", "https://gw.example/a/%2E%2E?id=."),
        ("https://gw.example/a/../{message_id}", "..", "https://gw.example/a/../%2E%2E"),
        ("https://gw.example/a/%2e{message_id}", ".", "https://gw.example/a/%2E%2E"),
        ("https://gw.example/a/{message_id}", "../b", "https://gw.example/a/..%2Fb"),
        ("https://gw.example/a/{message_id}", "1..2", "https://gw.example/a/1..2"),
    ],
)
def test_a_value_in_the_path_of_a_gateway_url_cannot_change_the_directory(url: str, message_id: str, expected: str) -> None:
    request = build_request(settings(url=url), replace(MESSAGE, message_id=message_id), repeats=True)
    assert request.url == expected
