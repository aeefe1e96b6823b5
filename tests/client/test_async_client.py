"""Tests of both clients with a server that simulates network failures. Each test runs once with each of the two clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from shortener.client import (
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    Client,
    ClientError,
    ConflictError,
    ConnectionFailedError,
    DeadlineError,
    InsufficientBalanceError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RetryPolicy,
    RewrittenText,
    ServerFailureError,
    UnexpectedResponseError,
)
from shortener.client.exceptions import response_error
from tests.client.scripted import (
    Answer,
    accepted,
    cut_off,
    drip,
    hang,
    no_response,
    refused,
    reply,
    rewritten,
    scripted,
)
from tests.servers import PATIENCE, free_port

FAST = RetryPolicy(first_delay=0.001, max_delay=0.01)
TEXT = '#track("https://shop.example/a") now'
Call = Callable[..., Any]


@pytest.fixture(params=["Client", "AsyncClient"])
def call(request: pytest.FixtureRequest) -> Call:
    """Return a function that creates a client (Client or AsyncClient), calls one of its methods and closes it."""

    def run_blocking(base: str, method: str = "rewrite", *, client: dict[str, Any] | None = None, **arguments: Any) -> Any:
        with Client(base, **{"api_key": "KEY", "timeout": 10, "retry": FAST, **(client or {})}) as one:
            return getattr(one, method)(**arguments)

    def run_async(base: str, method: str = "rewrite", *, client: dict[str, Any] | None = None, **arguments: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(base, **{"api_key": "KEY", "timeout": 10, "retry": FAST, **(client or {})}) as one:
                return await getattr(one, method)(**arguments)

        return asyncio.run(run())

    return run_blocking if request.param == "Client" else run_async


def rewrite(call: Call, base: str, **arguments: Any) -> Any:
    return call(base, **{"to": "+14085550100", "body": TEXT, **arguments})


def test_the_client_returns_the_text_and_the_links_of_a_rewrite(call: Call) -> None:
    with scripted(accepted()) as server:
        text = rewrite(call, server.base, from_="Shop", campaign="autumn")
    assert isinstance(text, RewrittenText)
    assert (text.body, text.message_id, text.segments, text.warnings) == ("see http://127.0.0.1:8000/8kVnq2LmRd", "m-1", 1, ())
    assert text.links[0].url == "https://shop.example/a"
    (request,) = server.requests
    assert (request.method, request.target) == ("POST", "/api/v1/rewrite")
    assert request.json == {"to": "+14085550100", "body": TEXT, "from": "Shop", "campaign": "autumn"}
    assert request.headers["x-api-key"] == "KEY"
    assert len(request.headers["idempotency-key"]) == 22


def test_the_client_returns_a_list_of_texts_for_a_list_of_recipients(call: Call) -> None:
    with scripted(accepted(rewritten("+1"), rewritten("+2"))) as server:
        texts = rewrite(call, server.base, to=["+1", "+2"])
    assert [text.to for text in texts] == ["+1", "+2"]


@pytest.mark.parametrize(
    "failure",
    [no_response, cut_off, refused(503, "UNAVAILABLE"), refused(500, "INTERNAL_ERROR"), reply(502, b"<html>Bad gateway</html>")],
    ids=["closed", "cut off", "503", "500", "502 of a proxy"],
)
def test_the_client_repeats_a_failed_call_with_the_same_idempotency_key(call: Call, failure: Answer) -> None:
    with scripted(failure, failure, accepted()) as server:
        assert rewrite(call, server.base).message_id == "m-1"
    first, second, third = server.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == third.headers["idempotency-key"]
    assert first.body == third.body


@pytest.mark.slow
def test_the_client_waits_for_the_time_in_the_retry_after_header_before_it_repeats_a_request(call: Call) -> None:
    with scripted(refused(503, "UNAVAILABLE", Retry_After="1"), accepted()) as server:
        start = time.monotonic()
        rewrite(call, server.base)
        assert time.monotonic() - start >= 1


@pytest.mark.parametrize("failure", [hang, drip], ids=["no response", "one byte at a time"])
def test_the_client_raises_a_deadline_error_although_the_connection_is_still_open(call: Call, failure: Answer) -> None:
    with scripted(failure) as server:
        start = time.monotonic()
        with pytest.raises(DeadlineError):
            rewrite(call, server.base, timeout=0.3)
        assert 0.2 < time.monotonic() - start < PATIENCE


@pytest.mark.parametrize(
    "failure",
    [
        hang,
        drip,
        no_response,
        cut_off,
        refused(503, "UNAVAILABLE", Retry_After="60"),
        refused(429, "RATE_LIMITED"),
        reply(200, b"<html>Sign in to the hotel network</html>"),
    ],
    ids=["hang", "drip", "closed", "cut off", "503", "429", "another server"],
)
def test_the_client_returns_a_text_with_long_urls_if_the_service_does_not_respond_in_time(call: Call, failure: Answer) -> None:
    message_ids: set[str] = set()
    with scripted(failure) as server:
        for timeout in (0.3, 3, 30):  # on a busy machine, the request may not arrive within 0.3 seconds, so longer timeouts follow
            text = rewrite(call, server.base, timeout=timeout, on_failure="send_long")
            message_ids.add(text.message_id)
            if server.requests:
                break
    assert (text.body, text.is_tracked, text.links) == ("https://shop.example/a now", False, ())
    assert text.warnings[0].startswith("not tracked: ")
    # A request of an earlier call may arrive after its client has stopped waiting.
    assert {request.json["message_id"] for request in server.requests} <= message_ids


def test_the_client_returns_a_text_with_long_urls_if_the_connection_is_refused(call: Call) -> None:
    base = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionFailedError, match=f"the connection to {base} failed"):
        rewrite(call, base)
    assert rewrite(call, base, on_failure="send_long", message_id="mine").message_id == "mine"


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "INVALID_RECIPIENT", BadRequestError),
        (401, "UNAUTHORIZED", AuthenticationError),
        (402, "INSUFFICIENT_BALANCE", InsufficientBalanceError),
        (403, "FORBIDDEN", PermissionDeniedError),
        (404, "MESSAGE_NOT_FOUND", NotFoundError),
        (409, "MESSAGE_ID_CONFLICT", ConflictError),
        (413, "BODY_TOO_LARGE", BadRequestError),
    ],
)
def test_a_request_that_the_service_rejects_raises_an_error_at_once_even_with_the_option_send_long(
    call: Call, status: int, code: str, error: type[ClientError]
) -> None:
    with scripted(refused(status, code, X_Request_Id="req-1")) as server:
        for on_failure in ("raise", "send_long"):
            with pytest.raises(error) as raised:
                rewrite(call, server.base, on_failure=on_failure)
            assert (raised.value.status_code, raised.value.error_code, raised.value.request_id) == (status, code, "req-1")  # type: ignore[attr-defined]
    assert len(server.requests) == 2


def test_a_client_call_fails_after_the_maximum_number_of_attempts(call: Call) -> None:
    with scripted(refused(429, "RATE_LIMITED")) as server:
        with pytest.raises(RateLimitError):
            rewrite(call, server.base)
        assert len(server.requests) == FAST.max_attempts
    with scripted(refused(503, "UNAVAILABLE")) as server, pytest.raises(ServerFailureError):
        call(server.base, "status", message_id="m-1")


def test_a_redirect_or_an_html_page_instead_of_json_raises_an_unexpected_response_error(call: Call) -> None:
    for answer in (reply(200, b"<html>"), reply(302, b"", Location="/portal"), reply(200, {"status": True})):
        with scripted(answer) as server, pytest.raises(UnexpectedResponseError):
            rewrite(call, server.base)


def test_a_bulk_rewrite_reports_its_progress_and_returns_the_texts_in_the_order_of_the_messages(call: Call) -> None:
    progress: list[tuple[int, int]] = []
    chunks = [accepted(rewritten("+1"), rewritten("+2")), accepted(rewritten("+3"))]
    with scripted(*chunks) as server:
        texts = call(
            server.base,
            "rewrite_many",
            client={"batch_limit": 2},
            messages=[{"to": to, "body": TEXT} for to in ("+1", "+2", "+3")],
            progress=lambda done, total: progress.append((done, total)),
            idempotency_key="job-7",
        )
    assert [text.to for text in texts] == ["+1", "+2", "+3"]
    assert progress == [(2, 3), (3, 3)]
    assert [request.headers["idempotency-key"] for request in server.requests] == ["job-7-0-2", "job-7-2-3"]


def test_after_the_deadline_of_a_bulk_call_the_client_returns_the_remaining_texts_with_long_urls(call: Call) -> None:
    for deadline in (0.3, 3, 30):  # on a busy machine, the request may not arrive within 0.3 seconds, so longer deadlines follow
        with scripted(hang) as server:
            texts = call(
                server.base,
                "rewrite_many",
                client={"batch_limit": 1},
                messages=[{"to": to, "body": TEXT} for to in ("+1", "+2", "+3")],
                on_failure="send_long",
                deadline=deadline,
            )
        assert [text.is_tracked for text in texts] == [False] * 3
        if server.requests:
            break
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("base", "parameters"),
    [
        ("sms.example", {}),
        ("ftp://sms.example", {}),
        ("https://sms.example/?a=1", {}),
        ("https://sms.example", {"api_key": "a b"}),
        ("https://sms.example", {"api_key": "ключ"}),
        ("https://sms.example", {"timeout": 0}),
    ],
)
def test_an_invalid_parameter_of_the_client_is_rejected_when_the_client_is_created(base: str, parameters: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="must"):
            kind(base, **parameters)


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (0, None, "400 INVALID_REQUEST: Wrong."),
        (1, None, "400 INVALID_REQUEST: Wrong. (to.0: is wrong)"),
        (3, None, "400 INVALID_REQUEST: Wrong. (to.0: is wrong; 2 further errors, see `details`)"),
        (2, 1200, "400 INVALID_REQUEST: Wrong. (to.0: is wrong; 1,199 further errors, see `details`)"),
    ],
)
def test_the_text_of_an_error_has_the_first_detail_and_the_number_of_further_errors(
    count: int, total: int | None, expected: str
) -> None:
    body: dict[str, Any] = {"error_code": "INVALID_REQUEST", "description": "Wrong."}
    body["details"] = [{"field": f"to.{number}", "reason": "is wrong"} for number in range(count)]
    assert str(response_error(400, body | ({"details_total": total} if total else {}))) == expected


def test_a_client_call_without_the_required_credential_is_rejected_before_a_request_is_sent(call: Call) -> None:
    with pytest.raises(ValueError, match=r"requires Client\(\.\.\., tracker_token=\.\.\.\)"):
        call("http://127.0.0.1:9", "report_conversion", message_id="m-1")
