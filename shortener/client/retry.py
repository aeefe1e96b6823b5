"""This module decides when a failed call is repeated. `Attempts` contains the rules and does no I/O; the clients pass the time to
it.

A call is repeated if it got no complete response, or a response that asks to try later. The delay doubles with each attempt and has
jitter, so that many clients do not return at the same moment. After a response with `Retry-After`, the delay is this time plus
jitter. If the delay would end after the deadline, the call fails at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from shortener.client.exceptions import ClientError, ConnectionFailedError, DeadlineError, ResponseError

#: The HTTP statuses after which a later attempt may succeed. 500 is one of them, because the documents of the service permit a
#: repeat after 500.
REPEATED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_RETRY_AFTER_JITTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a failed call is repeated.

    `max_attempts` includes the first attempt; 1 means no repeats. After the attempt with the number n (from 1), the maximum
    delay is `first_delay * 2**(n-1)` seconds, but never more than `max_delay`. The delay is a random time between half of this
    maximum and the maximum. A `Retry-After` in the response may make it longer.
    `attempt_timeout` is the time limit of one attempt in seconds; with None, only the deadline of the call limits an attempt.
    `random` returns a number from 0 to 1."""

    max_attempts: int = 5
    first_delay: float = 0.1
    max_delay: float = 5.0
    attempt_timeout: float | None = None
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
        if self.first_delay < 0 or self.max_delay < 0:
            raise ValueError("first_delay and max_delay must not be negative")
        if self.attempt_timeout is not None and self.attempt_timeout <= 0:
            raise ValueError("attempt_timeout must be positive")


class Attempts:
    """The attempts of one call. `deadline` and the parameters `now` are times of the same clock, in seconds."""

    def __init__(self, policy: RetryPolicy, deadline: float) -> None:
        self._policy = policy
        self._deadline = deadline
        self._failed = 0
        self._last: ClientError | None = None

    def time_for_attempt(self, now: float) -> float:
        """Return the seconds that the next attempt may take. Raise DeadlineError if there is no time left."""
        remaining = self._deadline - now
        if remaining <= 0:
            raise self.deadline_error() from self._last
        limit = self._policy.attempt_timeout
        return remaining if limit is None else min(remaining, limit)

    def delay_after(self, failure: ClientError, now: float) -> float:
        """Return the seconds to wait after a failed attempt. Raise the failure if the call must not be repeated."""
        self._failed += 1
        if self._last is None or not isinstance(failure, DeadlineError):
            # If a time limit ended this attempt, the error of an earlier attempt is kept, because it contains more information.
            self._last = failure
        if self._failed >= self._policy.max_attempts or not is_repeatable(failure):
            raise failure
        remaining = self._deadline - now
        if remaining <= 0:
            raise self.deadline_error() from self._last
        retry_after = failure.retry_after if isinstance(failure, ResponseError) else None
        if retry_after is not None and retry_after >= remaining:
            raise failure
        longest = min(self._policy.max_delay, self._policy.first_delay * 2.0 ** min(self._failed - 1, 30))
        delay = longest * (0.5 + self._policy.random() / 2)
        if retry_after is not None:
            jitter = self._policy.random() * min(_MAX_RETRY_AFTER_JITTER_SECONDS, max(longest, retry_after / 4))
            delay = max(delay, retry_after + min(jitter, (remaining - retry_after) / 2))
        if delay >= remaining:
            raise self.deadline_error() from self._last
        return delay

    def deadline_error(self) -> DeadlineError:
        """Return the error of a call whose deadline has passed."""
        last = "" if self._last is None or isinstance(self._last, DeadlineError) else f"; its last response: {self._last}"
        return DeadlineError(f"the service did not respond before the deadline{last}")


def is_repeatable(failure: ClientError) -> bool:
    """Return whether a later attempt may succeed."""
    if isinstance(failure, ResponseError):
        return failure.status_code in REPEATED_STATUSES or failure.error_code == "REQUEST_IN_PROGRESS"
    return isinstance(failure, ConnectionFailedError | DeadlineError)


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds of a `Retry-After` header, which is a number or an HTTP date. Return None if the header is absent or
    invalid."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return float(min(int(value[:12]), 10**9))
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, IndexError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max((at - now).total_seconds(), 0.0)
