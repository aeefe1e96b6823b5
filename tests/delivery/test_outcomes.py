from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.delivery.http_exchange import SendResult
from shortener.delivery.outcomes import (
    DEFAULT_SCHEDULE,
    OUTCOME_TABLE,
    OutcomeKind,
    SuccessCriteria,
    classify_response,
    next_delay,
    parse_retry_after,
    parse_success,
)
from shortener.delivery.send_failures import ERRORS
from tests.one_test import in_one_test

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ANY_2XX = SuccessCriteria()


def response(status: int | None, body: bytes = b"ok", error: str | None = None, **more: Any) -> SendResult:
    return SendResult(status=status, body=body, error=error, detail="", milliseconds=1, **more)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_a_delivery_succeeds_after_any_2xx_status_by_default(status: int) -> None:
    assert classify_response(response(status), ANY_2XX, NOW).kind is OutcomeKind.DELIVERED


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_a_delivery_is_retried_after_a_redirect(status: int) -> None:
    outcome = classify_response(response(status), ANY_2XX, NOW)
    assert (outcome.kind, outcome.reason, outcome.not_before) == (OutcomeKind.RETRY, "redirect", None)


@in_one_test
@pytest.mark.parametrize("status", [101, 400, 401, 402, 403, 404, 408, 409, 422, 425, 451, 500, 502, 504, 599, 999])
def test_a_delivery_is_retried_after_any_status_without_a_special_rule(status: int) -> None:
    outcome = classify_response(response(status), ANY_2XX, NOW)
    assert (outcome.kind, outcome.reason, outcome.charged) == (OutcomeKind.RETRY, "other_status", True)


@pytest.mark.parametrize("status", [405, 406, 411, 413, 414, 415, 431, 501, 505])
def test_a_delivery_is_not_retried_if_the_receiver_rejects_the_form_of_the_request(status: int) -> None:
    assert classify_response(response(status), ANY_2XX, NOW).kind is OutcomeKind.FINAL


def test_a_410_response_disables_the_tracker_even_if_its_body_is_incomplete() -> None:
    assert classify_response(response(410), ANY_2XX, NOW).kind is OutcomeKind.DISABLE
    assert classify_response(response(410, error="too_large"), ANY_2XX, NOW).kind is OutcomeKind.DISABLE


@pytest.mark.parametrize("status", [429, 503])
def test_the_retry_after_header_sets_the_earliest_time_of_the_next_attempt(status: int) -> None:
    assert classify_response(response(status, retry_after=120.0), ANY_2XX, NOW).not_before == NOW + timedelta(seconds=120)
    assert classify_response(response(status, retry_after=1e9), ANY_2XX, NOW).not_before == NOW + timedelta(hours=24)
    assert classify_response(response(status, retry_after=-3.0), ANY_2XX, NOW).not_before == NOW + timedelta(seconds=1)
    assert classify_response(response(status), ANY_2XX, NOW).not_before is None
    assert classify_response(response(status, error="timeout", retry_after=120.0), ANY_2XX, NOW).not_before is not None


def test_the_retry_after_header_is_ignored_if_the_status_is_not_429_or_503() -> None:
    assert classify_response(response(500, retry_after=120.0), ANY_2XX, NOW).not_before is None


@pytest.mark.parametrize("error", ["timeout", "protocol_error", "too_large"])
def test_a_delivery_succeeds_after_a_success_status_even_if_the_response_is_incomplete(error: str) -> None:
    outcome = classify_response(response(200, error=error), ANY_2XX, NOW)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.DELIVERED, "success")


@pytest.mark.parametrize("error", ["timeout", "protocol_error", "too_large"])
def test_a_delivery_is_retried_if_the_response_is_incomplete_and_lacks_the_required_text(error: str) -> None:
    criteria = SuccessCriteria(body_contains="good")
    outcome = classify_response(response(200, error=error), criteria, NOW)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.RETRY, "incomplete")
    outcome = classify_response(response(200, b"all good", error=error), criteria, NOW)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.DELIVERED, "success")


@in_one_test
@pytest.mark.parametrize("error", ERRORS)
def test_a_delivery_without_a_response_is_retried_and_local_failures_do_not_count_as_attempts(error: str) -> None:
    for is_local in (True, False):
        outcome = classify_response(response(None, b"", error, is_local=is_local), ANY_2XX, NOW)
        assert (outcome.kind, outcome.charged) == (OutcomeKind.RETRY, not is_local)


def test_a_tracker_can_accept_only_status_200_as_success() -> None:
    only_200 = parse_success({"statuses": "200"})
    assert classify_response(response(200), only_200, NOW).kind is OutcomeKind.DELIVERED
    assert classify_response(response(204, b""), only_200, NOW).kind is OutcomeKind.RETRY
    assert classify_response(response(201), only_200, NOW).kind is OutcomeKind.RETRY


def test_a_tracker_can_require_a_text_in_the_response_body_for_success() -> None:
    criteria = parse_success({"statuses": "2xx", "body_contains": "success=true;"})
    assert classify_response(response(200, b"success=true;"), criteria, NOW).kind is OutcomeKind.DELIVERED
    refused = classify_response(response(200, b"success=false;"), criteria, NOW)
    assert (refused.kind, refused.reason) == (OutcomeKind.RETRY, "refused_in_body")
    assert classify_response(response(500, b"success=true;"), criteria, NOW).kind is OutcomeKind.RETRY


def test_a_delivery_succeeds_after_an_error_status_that_the_tracker_defines_as_success() -> None:
    assert classify_response(response(302), parse_success({"statuses": "200,302"}), NOW).kind is OutcomeKind.DELIVERED
    assert classify_response(response(410), parse_success({"statuses": "410"}), NOW).kind is OutcomeKind.DELIVERED


@given(
    status=st.none() | st.integers(100, 999) | st.integers(198, 301),
    body=st.sampled_from([b"", b"ok", b"it is ok", b"no"]),
    error=st.none() | st.sampled_from(ERRORS),
    retry_after=st.none() | st.floats(1, 86400),
    is_local=st.booleans(),
)
def test_every_response_matches_a_row_of_the_outcome_table(
    status: int | None, body: bytes, error: str | None, retry_after: float | None, is_local: bool
) -> None:
    outcome = classify_response(
        response(status, body, error, retry_after=retry_after, is_local=is_local), SuccessCriteria("2xx", "ok"), NOW
    )
    assert (outcome.reason, outcome.kind) in {(row.name, row.kind) for row in OUTCOME_TABLE}
    is_success = not is_local and status is not None and 200 <= status < 300 and b"ok" in body
    assert (outcome.kind is OutcomeKind.DELIVERED) == is_success


def test_the_names_in_the_outcome_table_are_unique() -> None:
    assert len({row.name for row in OUTCOME_TABLE}) == len({row.when for row in OUTCOME_TABLE}) == len(OUTCOME_TABLE)
    assert all(row.why for row in OUTCOME_TABLE)


# The tests below check success criteria.


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("2xx", [200, 299], [199, 300]),
        ("2XX", [204], [404]),
        ("200", [200], [201]),
        ("200,201", [200, 201], [202]),
        (" 200 , 202-204 ", [200, 202, 204], [201, 205]),
        ("2xx,302,404", [250, 302, 404], [301]),
        ("200-599", [200, 599], [600]),
    ],
)
def test_sets_of_http_statuses_are_parsed(text: str, inside: list[int], outside: list[int]) -> None:
    success = parse_success({"statuses": text})
    assert all(success.matches(status) for status in inside)
    assert not any(success.matches(status) for status in [*outside, None])


@pytest.mark.parametrize("value", [None, {}, {"statuses": None, "body_contains": None}])
def test_any_2xx_status_is_the_default_success_criterion(value: dict[str, Any] | None) -> None:
    assert parse_success(value) == SuccessCriteria("2xx", None)


@in_one_test
@pytest.mark.parametrize(
    "value",
    [
        {"statuses": ""},
        {"statuses": "1xx"},
        {"statuses": "100"},
        {"statuses": "2x"},
        {"statuses": "200,"},
        {"statuses": "204-200"},
        {"statuses": "200-2xx"},
        {"statuses": "600"},
        {"statuses": "٢٠٠"},
        {"statuses": "2xx," * 30 + "2xx"},
        {"statuses": 200},
        {"statuses": [200]},
        {"body_contains": ""},
        {"body_contains": 1},
        {"body_contains": "x" * 201},
        {"status": "200"},
    ],
)
def test_invalid_success_criteria_are_rejected(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_success(value)


# The tests below check the delays between attempts and the Retry-After header.


def test_the_default_schedule_of_ten_attempts_equals_the_schedule_of_standard_webhooks() -> None:
    rng = random.Random(7)
    total = 0.0
    for attempt, delay in enumerate(DEFAULT_SCHEDULE, 1):
        waited = next_delay(attempt, DEFAULT_SCHEDULE, rng)
        assert delay <= waited <= delay + min(delay * 0.1, 900)
        total += waited
    assert len(DEFAULT_SCHEDULE) == 9
    assert sum(DEFAULT_SCHEDULE) == timedelta(hours=75, minutes=35, seconds=5).total_seconds()
    assert total >= sum(DEFAULT_SCHEDULE)


@given(
    attempt=st.integers(1, 60),
    schedule=st.lists(st.floats(0, 30 * 86400), min_size=1, max_size=12),
    rng=st.randoms(use_true_random=False),
)
def test_jitter_is_added_to_the_retry_delay_and_never_subtracted(attempt: int, schedule: list[float], rng: random.Random) -> None:
    delay = schedule[min(attempt, len(schedule)) - 1]
    assert delay <= next_delay(attempt, schedule, rng) <= delay + min(delay * 0.1, 900)


@in_one_test
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 1),
        ("1", 1),
        (" 120 ", 120),
        ("+5", 5),
        ("-3", 1),
        ("86401", 86400),
        ("9" * 5000, 86400),
        ("1.5", None),
        ("soon", None),
        ("1e3", None),
        ("Fri, 20 Nov 2026 12:01:40 GMT", 100),
        ("Friday, 20-Nov-26 12:01:40 GMT", 100),
        ("Fri Nov 20 12:01:40 2026", 100),
        ("Fri, 20 Nov 2026 13:01:40 +0100", 100),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 1),
        ("Mon, 20 Nov 2036 12:00:00 GMT", 86400),
        ("Fri, 99 Nov 2026 12:00:00 GMT", None),
    ],
)
def test_the_retry_after_header_is_parsed_as_seconds_or_a_date_within_limits(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, NOW) == seconds


@given(st.text(max_size=60) | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ \S*", fullmatch=True))
def test_parsing_an_arbitrary_retry_after_header_raises_no_error(text: str) -> None:
    seconds = parse_retry_after(text, NOW)
    assert seconds is None or 1 <= seconds <= 86400


@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - bounds are naive
def test_a_date_in_the_retry_after_header_is_exact_to_the_second(at: datetime) -> None:
    expected = min(max((at.replace(microsecond=0) - NOW).total_seconds(), 1), 86400)
    elsewhere = at.astimezone(timezone(timedelta(hours=-7)))
    assert parse_retry_after(format_datetime(at, usegmt=True), NOW) == expected
    assert parse_retry_after(format_datetime(elsewhere), NOW) == expected
