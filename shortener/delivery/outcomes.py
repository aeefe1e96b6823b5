"""What an answer means for a delivery: one table, read from top to bottom, the first row that fits decides.

It follows Standard Webhooks and Svix: whatever is not a success is tried again on the schedule, 410 disables the tracker, and
redirects are failures. Only answers that refuse the form of the request, which is the same every time, end a delivery early.
A delivery that ends stays listed and replayable.
"""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Protocol

#: Seconds between attempts: the example schedule of Standard Webhooks, ten attempts in 75 h 35 min.
DEFAULT_SCHEDULE = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
#: Jitter is added to a delay, never subtracted: up to this part of it, and up to this many seconds.
JITTER_PART, JITTER_MAX = 0.1, 900.0
#: `Retry-After` is believed within these bounds, in seconds.
RETRY_AFTER_MIN, RETRY_AFTER_MAX = 1.0, 86400.0

_STATUSES = re.compile(r"([2-5])xx|([2-5][0-9]{2})(?:-([2-5][0-9]{2}))?", re.IGNORECASE)


class OutcomeKind(enum.Enum):
    DELIVERED = "delivered"
    RETRY = "retry"  # on the schedule; not before the time that the tracker asked for
    FINAL = "final"  # dead now, without the attempts that are left
    DISABLE = "disable"  # dead now, and the tracker is disabled


class ResponseFacts(Protocol):
    """The part of `sender.SendResult` that an outcome depends on."""

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


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    kind: OutcomeKind
    reason: str  # a row of the table, by name
    not_before: datetime | None = None
    charged: bool = True  # False: a fault of this host; the attempt does not count


#: The outcome of an attempt that this host failed to make. It must be the first row of OUTCOME_TABLE.
LOCAL_FAILURE = AttemptOutcome(OutcomeKind.RETRY, "local_failure", charged=False)


@dataclass(frozen=True, slots=True)
class SuccessCriteria:
    """When a tracker has taken an event: a set of statuses such as `2xx` or `200,202-204`, and a text that the body must hold."""

    statuses: str = "2xx"
    body_contains: str | None = None

    def matches(self, status: int | None) -> bool:
        return status in _status_set(self.statuses)


@dataclass(frozen=True, slots=True)
class OutcomeRule:
    name: str
    when: str  # for people
    kind: OutcomeKind
    why: str
    fits: Callable[[ResponseFacts, SuccessCriteria], bool]


def _complete(reply: ResponseFacts) -> bool:
    return reply.error is None


def _holds(reply: ResponseFacts, success: SuccessCriteria) -> bool:
    return success.body_contains is None or success.body_contains.encode() in reply.body


_FORM_REFUSED = frozenset({405, 406, 411, 413, 414, 415, 431, 501, 505})

OUTCOME_TABLE = (
    OutcomeRule(
        "local_failure",
        "no answer, and the cause is on this host (resolver down, no sockets left)",
        OutcomeKind.RETRY,
        "the tracker did nothing wrong: the attempt is not counted",
        lambda reply, success: reply.is_local,
    ),
    OutcomeRule(
        "success",
        "a status of the tracker's success set, a complete body that holds body_contains",
        OutcomeKind.DELIVERED,
        "default: any 2xx",
        lambda reply, success: success.matches(reply.status) and _complete(reply) and _holds(reply, success),
    ),
    OutcomeRule(
        "refused_in_body",
        "a status of the success set, but the body lacks body_contains",
        OutcomeKind.RETRY,
        "trackers answer 200 with success=false",
        lambda reply, success: success.matches(reply.status) and _complete(reply),
    ),
    OutcomeRule(
        "gone",
        "410",
        OutcomeKind.DISABLE,
        "Standard Webhooks: the receiver wants no more of this",
        lambda reply, success: reply.status == 410,
    ),
    OutcomeRule(
        "throttled",
        "429, 503",
        OutcomeKind.RETRY,
        "not before Retry-After (seconds or a date, 1 s to 24 h)",
        lambda reply, success: reply.status in (429, 503),
    ),
    OutcomeRule(
        "form_refused",
        ", ".join(map(str, sorted(_FORM_REFUSED))),
        OutcomeKind.FINAL,
        "method, size, type or version are refused, and the next attempt has the same",
        lambda reply, success: reply.status in _FORM_REFUSED,
    ),
    OutcomeRule(
        "incomplete",
        "a status of the success set, then a timeout, a reset or more than 64 KiB of body",
        OutcomeKind.RETRY,
        "only a complete answer is a receipt",
        lambda reply, success: success.matches(reply.status),
    ),
    OutcomeRule(
        "redirect",
        "any other 3xx",
        OutcomeKind.RETRY,
        "redirects are never followed; put the final URL into the tracker",
        lambda reply, success: reply.status is not None and 300 <= reply.status < 400,
    ),
    OutcomeRule(
        "other_status",
        "any other status, such as 204 where 200 is wanted, 400, 401, 404, 408, 500, 502",
        OutcomeKind.RETRY,
        "receivers are mended, configured and redeployed within the schedule",
        lambda reply, success: reply.status is not None,
    ),
    OutcomeRule(
        "no_answer",
        "no status: timeout, refused, reset, unreachable, DNS, TLS, blocked address, not HTTP",
        OutcomeKind.RETRY,
        "the tracker may come back",
        lambda reply, success: True,
    ),
)


def classify_response(answer: ResponseFacts, success: SuccessCriteria, now: datetime) -> AttemptOutcome:
    """What to do after `answer`, which arrived at the aware time `now`."""
    row = next(row for row in OUTCOME_TABLE if row.fits(answer, success))
    not_before = None
    if row.name == "throttled" and answer.retry_after is not None:
        not_before = now + timedelta(seconds=min(max(answer.retry_after, RETRY_AFTER_MIN), RETRY_AFTER_MAX))
    return AttemptOutcome(row.kind, row.name, not_before, charged=not answer.is_local)


def parse_success(given: Mapping[str, Any] | None) -> SuccessCriteria:
    """A tracker's `success` field: `statuses` and `body_contains`, both optional. Raises `ValueError` saying what is wrong."""
    given = given or {}
    if unknown := set(given) - {"statuses", "body_contains"}:
        raise ValueError(f"unknown key {min(unknown)}; known are statuses, body_contains")
    statuses = given.get("statuses")
    if statuses is None:
        statuses = "2xx"
    if not isinstance(statuses, str) or len(statuses) > 100:
        raise ValueError('statuses wants a text such as "2xx", "200" or "200,202-204"')
    _status_set(statuses)
    contains = given.get("body_contains")
    if contains is not None and (not isinstance(contains, str) or not 1 <= len(contains) <= 200):
        raise ValueError("body_contains wants a text of 1 to 200 characters, or null")
    return SuccessCriteria(statuses, contains)


@lru_cache(maxsize=256)
def _status_set(text: str) -> frozenset[int]:
    statuses: set[int] = set()
    for part in text.split(","):
        found = _STATUSES.fullmatch(part.strip())
        if found is None:
            raise ValueError(f'{part.strip()!r} is not a status from 200 to 599, a range such as "200-204", or "2xx"')
        if found[1]:
            statuses.update(range(int(found[1]) * 100, int(found[1]) * 100 + 100))
        else:
            first, last = int(found[2]), int(found[3] or found[2])
            if first > last:
                raise ValueError(f"{part.strip()!r} ends before it begins")
            statuses.update(range(first, last + 1))
    return frozenset(statuses)


def next_delay(attempt: int, schedule: Sequence[float], rng: random.Random) -> float:
    """Seconds from the failed attempt (the first one is 1) to the next. Beyond the end the last delay repeats.

    Jitter of up to 10 % of the delay, and at most 15 minutes, is added, so that a tracker's backlog does not come back at once.
    """
    delay = float(schedule[min(attempt, len(schedule)) - 1])
    return delay + rng.random() * min(delay * JITTER_PART, JITTER_MAX)


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds of a `Retry-After` header (RFC 9110: seconds or a date), from 1 s to 24 h; None when it is absent or garbage."""
    text = (text or "").strip()
    if re.fullmatch(r"[+-]?[0-9]+", text):
        # A number of this length is beyond the bound, and int() has a limit of its own.
        seconds = float(text[:12])
    else:
        try:
            date = parsedate_to_datetime(text)
            seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return min(max(seconds, RETRY_AFTER_MIN), RETRY_AFTER_MAX)
