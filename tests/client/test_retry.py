from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.client import (
    BadRequestError,
    ClientError,
    ConflictError,
    ConnectionFailedError,
    DeadlineError,
    RetryPolicy,
    ServerFailureError,
    UnexpectedResponseError,
)
from shortener.client.retry import Attempts, is_repeatable, parse_retry_after

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def unavailable(retry_after: float | None = None) -> ServerFailureError:
    return ServerFailureError(503, "UNAVAILABLE", "busy", retry_after=retry_after)


def test_the_retry_delay_of_the_client_doubles_up_to_a_maximum_and_has_jitter() -> None:
    for chance, share in ((0.0, 0.5), (1.0, 1.0)):
        attempts = Attempts(RetryPolicy(max_attempts=9, first_delay=1, max_delay=4, random=partial(float, chance)), 100)
        delays = [attempts.delay_after(ConnectionFailedError(), 0) for _ in range(4)]
        assert delays == [share * 1, share * 2, share * 4, share * 4]


@given(st.floats(0, 30), st.floats(0, 1))
def test_the_client_waits_the_whole_time_of_a_retry_after_header(seconds: float, chance: float) -> None:
    attempts = Attempts(RetryPolicy(random=lambda: chance), 100)
    assert seconds <= attempts.delay_after(unavailable(seconds), 0) < 100


def test_a_call_fails_at_once_if_the_retry_after_time_is_beyond_its_deadline() -> None:
    attempts = Attempts(RetryPolicy(), 10)
    with pytest.raises(ServerFailureError) as raised:
        attempts.delay_after(unavailable(11), 0)
    assert raised.value.retry_after == 11


def test_the_failure_of_the_last_permitted_attempt_of_a_client_call_is_raised() -> None:
    attempts = Attempts(RetryPolicy(max_attempts=2), 100)
    attempts.delay_after(unavailable(), 0)
    with pytest.raises(ServerFailureError):
        attempts.delay_after(unavailable(), 0)


def test_a_failure_at_the_deadline_raises_a_deadline_error_that_contains_the_last_failure() -> None:
    attempts = Attempts(RetryPolicy(), 10)
    with pytest.raises(DeadlineError, match="busy") as raised:
        attempts.delay_after(unavailable(), 10)
    assert isinstance(raised.value.__cause__, ServerFailureError)
    with pytest.raises(DeadlineError):
        attempts.time_for_attempt(10)


def test_a_deadline_error_contains_the_error_response_of_an_earlier_attempt() -> None:
    attempts = Attempts(RetryPolicy(), 10)
    attempts.delay_after(unavailable(1), 0)
    with pytest.raises(DeadlineError, match="UNAVAILABLE") as raised:
        attempts.delay_after(DeadlineError("too late"), 10)
    assert isinstance(raised.value.__cause__, ServerFailureError)


def test_the_timeout_of_an_attempt_is_the_remaining_time_of_the_call_or_the_limit_of_the_retry_policy() -> None:
    assert Attempts(RetryPolicy(), 10).time_for_attempt(4) == 6
    assert Attempts(RetryPolicy(attempt_timeout=2), 10).time_for_attempt(4) == 2


@pytest.mark.parametrize(
    ("error", "repeatable"),
    [
        (ConnectionFailedError(), True),
        (DeadlineError(), True),
        (unavailable(), True),
        (ServerFailureError(500, "INTERNAL_ERROR", ""), True),
        (ServerFailureError(501, "", ""), False),
        (BadRequestError(408, "", ""), True),
        (BadRequestError(400, "INVALID_REQUEST", ""), False),
        (UnexpectedResponseError(), False),
        (ConflictError(409, "REQUEST_IN_PROGRESS", ""), True),
        (ConflictError(409, "MESSAGE_ID_CONFLICT", ""), False),
    ],
)
def test_the_client_repeats_only_requests_whose_failure_may_be_temporary(error: ClientError, repeatable: bool) -> None:
    assert is_repeatable(error) is repeatable


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("2", 2),
        (" 120 ", 120),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("-1", None),
        ("²", None),
        ("9" * 5000, 10**9),
    ],
)
def test_the_client_parses_a_retry_after_header_with_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds


@pytest.mark.parametrize("fields", [{"max_attempts": 0}, {"first_delay": -1}, {"max_delay": -1}, {"attempt_timeout": 0}])
def test_a_retry_policy_with_impossible_values_is_rejected(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**fields)  # type: ignore[arg-type]
