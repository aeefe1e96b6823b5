"""This module decides from the response to an attempt whether the delivery is delivered, retried or dead.

The first row of `OUTCOME_TABLE` that matches the response determines the outcome. The table follows Standard Webhooks and Svix:
after a response that is not a success, such as a redirect, the delivery is retried on the schedule. There are two exceptions. After
a 410 response, the delivery becomes dead at once and the tracker is disabled. If the receiver rejects the method, size or type of
the request, the delivery becomes dead at once, because every further attempt would be rejected too. A dead delivery stays listed
and can be replayed.
"""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Protocol

from shortener.model import record

#: The default delays between attempts, in seconds: the example schedule of Standard Webhooks with ten attempts in 75 h 35 min.
DEFAULT_SCHEDULE = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
#: A random jitter is added to each delay: at most this part of the delay, and at most this many seconds.
JITTER_PART, MAX_JITTER_SECONDS = 0.1, 900.0
#: If a `Retry-After` time is outside these limits, the nearest limit applies.
MIN_RETRY_AFTER_SECONDS, MAX_RETRY_AFTER_SECONDS = 1.0, 86400.0

#: The `disabled_reason` of a tracker that was disabled because it returned 410.
GONE = "it answered 410 Gone"

_STATUSES = re.compile(r"([2-5])xx|([2-5][0-9]{2})(?:-([2-5][0-9]{2}))?", re.IGNORECASE)


class OutcomeKind(enum.Enum):
    """The possible effects of an attempt on its delivery."""

    DELIVERED = "delivered"
    RETRY = "retry"  # the delivery is attempted again on the schedule, but not before the time in Retry-After
    FINAL = "final"  # the delivery becomes dead at once, although attempts are left
    DISABLE = "disable"  # the delivery becomes dead at once, and the tracker is disabled


class ResponseFacts(Protocol):
    """The properties of a response that determine the outcome of an attempt. `http_exchange.SendResult` has them."""

    @property
    def status(self) -> int | None: ...
    @property
    def body(self) -> bytes: ...
    @property
    def error(self) -> str | None: ...
    @property
    def retry_after(self) -> float | None: ...
    @property
    def is_local(self) -> bool: ...


@record
class AttemptOutcome:
    """The outcome of an attempt.

    `reason` is the name of the matching row of OUTCOME_TABLE. `not_before` is the earliest time of the next attempt, from the
    `Retry-After` header. `charged` is false if the attempt does not count, because this host failed."""

    kind: OutcomeKind
    reason: str
    not_before: datetime | None = None
    charged: bool = True


#: The outcome of an attempt that failed because of this host. It corresponds to the first row of OUTCOME_TABLE.
LOCAL_FAILURE = AttemptOutcome(OutcomeKind.RETRY, "local_failure", charged=False)


@record
class SuccessCriteria:
    """The conditions under which a response means that the tracker accepted an event.

    `statuses` is a set of HTTP statuses, such as `2xx` or `200,202-204`. `body_contains` is a text that the response body must
    contain. If `retries_every_status` is true, the delivery is retried after every other response (Xoxzo: "up to ten times" until a
    200).
    """

    statuses: str = "2xx"
    body_contains: str | None = None
    retries_every_status: bool = False

    def matches(self, status: int | None) -> bool:
        """Return whether the given HTTP status is in `statuses`."""
        return status in _status_set(self.statuses)


@record
class OutcomeRule:
    """A row of OUTCOME_TABLE: if `matches` returns true for a response, the outcome of the attempt is `kind`.

    `when` (the condition) and `why` (the reason for the outcome) are texts for the documentation."""

    name: str
    when: str
    kind: OutcomeKind
    why: str
    matches: Callable[[ResponseFacts, SuccessCriteria], bool]


def _is_complete(response: ResponseFacts) -> bool:
    return response.error is None


def _has_text(response: ResponseFacts, success: SuccessCriteria) -> bool:
    return success.body_contains is None or success.body_contains.encode() in response.body


#: The outcome reason of a 429 response. A tracker's 429 response does not count as an attempt during the first day of a delivery.
RATE_LIMITED = "rate_limited"
#: The outcome reason and the error of an attempt whose response the service could not process, because the service itself has a
#: fault.
UNPROCESSED = "response_not_processed"
#: The outcome reason and the error of a delivery that is not sent again because the outcomes of too many attempts were lost.
OUTCOMES_LOST = "outcomes_lost"
#: The outcome reason and the error of a delivery that already had as many attempts as its tracker permits, because `max_attempts`
#: was lowered.
ATTEMPTS_USED_UP = "attempts_used_up"
#: A delivery is sent again after an attempt whose outcome was lost. Such repeats can exceed the maximum number of attempts by at
#: most this number.
MAX_LOST_OUTCOMES = 10
_FORM_REJECTED = frozenset({405, 406, 411, 413, 414, 415, 431, 501, 505})

OUTCOME_TABLE = (
    OutcomeRule(
        "local_failure",
        "no response, and the cause is on this host (resolver down, no sockets left)",
        OutcomeKind.RETRY,
        "the tracker did nothing wrong; the attempt does not count",
        lambda response, success: response.is_local,
    ),
    OutcomeRule(
        "success",
        "a status of the tracker's success set; with `body_contains`, this text is in the first 64 KiB of the body",
        OutcomeKind.DELIVERED,
        "default: any 2xx; the status counts even if the rest of the response is malformed or incomplete",
        lambda response, success: success.matches(response.status) and _has_text(response, success),
    ),
    OutcomeRule(
        "refused_in_body",
        "a status of the success set, but the body does not contain `body_contains`",
        OutcomeKind.RETRY,
        "some trackers return 200 with success=false",
        lambda response, success: success.matches(response.status) and _is_complete(response),
    ),
    OutcomeRule(
        "gone",
        "410",
        OutcomeKind.DISABLE,
        "Standard Webhooks: the receiver accepts no more events",
        lambda response, success: response.status == 410 and not success.retries_every_status,
    ),
    OutcomeRule(
        RATE_LIMITED,
        "429",
        OutcomeKind.RETRY,
        "not before the time in Retry-After (seconds or a date, 1 s to 24 h); the tracker's rate is lowered",
        lambda response, success: response.status == 429,
    ),
    OutcomeRule(
        "throttled",
        "503",
        OutcomeKind.RETRY,
        "not before the time in Retry-After",
        lambda response, success: response.status == 503,
    ),
    OutcomeRule(
        "form_refused",
        ", ".join(map(str, sorted(_FORM_REJECTED))),
        OutcomeKind.FINAL,
        "method, size, type or version is rejected, and the next attempt would be the same",
        lambda response, success: response.status in _FORM_REJECTED and not success.retries_every_status,
    ),
    OutcomeRule(
        "incomplete",
        "a status of the success set, then a failure before `body_contains` was found",
        OutcomeKind.RETRY,
        "the rest of the body could contain the text",
        lambda response, success: success.matches(response.status),
    ),
    OutcomeRule(
        "redirect",
        "any other 3xx",
        OutcomeKind.RETRY,
        "redirects are never followed; enter the final URL in the tracker",
        lambda response, success: response.status is not None and 300 <= response.status < 400,
    ),
    OutcomeRule(
        "other_status",
        "any other status, for example 400, 401, 404, 408, 500, 502, or 204 if only 200 means success",
        OutcomeKind.RETRY,
        "receivers are often repaired, configured or redeployed within the schedule",
        lambda response, success: response.status is not None,
    ),
    OutcomeRule(
        UNPROCESSED,
        "a fault of this service while it processed the response",
        OutcomeKind.RETRY,
        "counted as an attempt, because the tracker may have the event",
        lambda response, success: response.error == UNPROCESSED,
    ),
    OutcomeRule(
        OUTCOMES_LOST,
        f"no request: outcomes of attempts were lost, and the delivery had {MAX_LOST_OUTCOMES} attempts more than its maximum",
        OutcomeKind.FINAL,
        "the process died during the attempts, or could not record their outcomes; the tracker may have the event",
        lambda response, success: response.error == OUTCOMES_LOST,
    ),
    OutcomeRule(
        ATTEMPTS_USED_UP,
        "no request: the delivery had more attempts than its maximum, because `max_attempts` was lowered after them",
        OutcomeKind.FINAL,
        "the tracker did not accept the event in at least `max_attempts` attempts",
        lambda response, success: response.error == ATTEMPTS_USED_UP,
    ),
    OutcomeRule(
        "no_answer",
        "no status: timeout, refused, reset, unreachable, DNS, TLS, blocked address, not HTTP",
        OutcomeKind.RETRY,
        "the tracker may become available again",
        lambda response, success: True,
    ),
)


def classify_response(response: ResponseFacts, success: SuccessCriteria, now: datetime) -> AttemptOutcome:
    """Return the outcome of an attempt from its response. `now` is the time of the response, with a time zone."""
    row = next(row for row in OUTCOME_TABLE if row.matches(response, success))
    not_before = None
    if row.name in (RATE_LIMITED, "throttled") and response.retry_after is not None:
        not_before = now + timedelta(seconds=min(max(response.retry_after, MIN_RETRY_AFTER_SECONDS), MAX_RETRY_AFTER_SECONDS))
    return AttemptOutcome(row.kind, row.name, not_before, charged=not response.is_local)


def parse_success(value: Mapping[str, Any] | None) -> SuccessCriteria:
    """Convert the `success` field of a tracker to criteria. Its keys `statuses` and `body_contains` are optional.

    Raise ValueError if the field is invalid."""
    value = value or {}
    if unknown := set(value) - {"statuses", "body_contains"}:
        raise ValueError(f"unknown key {min(unknown)}; allowed: statuses, body_contains")
    statuses = value.get("statuses")
    if statuses is None:
        statuses = "2xx"
    if not isinstance(statuses, str) or len(statuses) > 100:
        raise ValueError('statuses must be a text such as "2xx", "200" or "200,202-204"')
    _status_set(statuses)
    contains = value.get("body_contains")
    if contains is not None and (not isinstance(contains, str) or not 1 <= len(contains) <= 200):
        raise ValueError("body_contains must be a text of 1 to 200 characters, or null")
    return SuccessCriteria(statuses, contains)


@lru_cache(maxsize=256)
def _status_set(text: str) -> frozenset[int]:
    statuses: set[int] = set()
    for part in text.split(","):
        found = _STATUSES.fullmatch(part.strip())
        if found is None:
            raise ValueError(f'{part.strip()!r} must be a status from 200 to 599, a range such as "200-204", or "2xx"')
        if found[1]:
            statuses.update(range(int(found[1]) * 100, int(found[1]) * 100 + 100))
        else:
            first, last = int(found[2]), int(found[3] or found[2])
            if first > last:
                raise ValueError(f"{part.strip()!r} must not end before it starts")
            statuses.update(range(first, last + 1))
    return frozenset(statuses)


def next_delay(attempt: int, schedule: Sequence[float], rng: random.Random) -> float:
    """Return the seconds between the failed attempt number `attempt` (from 1) and the next attempt.

    If there are more attempts than delays, the last delay is used again. A random jitter of up to 10 % of the delay, at most 15
    minutes, is added, so that a tracker does not receive many retries at the same time.
    """
    delay = float(schedule[min(attempt, len(schedule)) - 1])
    return delay + rng.random() * min(delay * JITTER_PART, MAX_JITTER_SECONDS)


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Return the seconds in a `Retry-After` header (RFC 9110: seconds or a date), limited to the range from 1 s to 24 h.

    Return None if the header is missing or invalid."""
    text = (text or "").strip()
    if re.fullmatch(r"[+-]?[0-9]+", text):
        # Only the first 12 digits are converted, because every number of 12 digits exceeds the limit.
        seconds = float(text[:12])
    else:
        try:
            date = parsedate_to_datetime(text)
            seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return min(max(seconds, MIN_RETRY_AFTER_SECONDS), MAX_RETRY_AFTER_SECONDS)
