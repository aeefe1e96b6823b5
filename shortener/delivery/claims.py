"""This module decides how many due deliveries of each queue the process claims next. It has no I/O.

A queue contains the deliveries of one tracker, or the callbacks of one application to one host. A slot is the right to have one
attempt in flight. These rules keep slots free for queues that respond:

- A queue never uses more slots than its concurrency.
- If several queues have due deliveries and one of them uses several slots, at least the same number of slots stays free. If only
  one queue has due deliveries, it may use three quarters of all slots.
- An application uses at most three slots for each slot that remains free. There are two exceptions. Each tracker of the
  application may use up to four slots while more than one sixteenth of all slots is free. The callbacks to a host may use one
  slot while more than one eighth of all slots is free.
- The circuit breaker of a tracker (health.py) and its rate (pace.py) limit its queue.
- The callbacks to a host use one slot until the host has responded.
- All queues with due deliveries first get an equal share of the claims.
- If first attempts and retries of a queue are both due, each kind gets half of the claims.

So if more and more receivers hang, each additional queue or application gets a smaller part of the remaining slots. Times are
milliseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import field
from typing import TypeVar

from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES, ClaimRequest, DeliveryQueue
from shortener.delivery.health import EndpointHealth
from shortener.delivery.pace import EndpointPace
from shortener.model import mutable_record

K = TypeVar("K")

#: A lease ends this long after the time limit of its attempt. The process uses this margin to record the outcome. The margin also
#: allows for clock differences between processes.
LEASE_MARGIN_MS = 10_000
#: An attempt starts only if its lease ends at least this long after the time limit of the attempt. Otherwise the claim is given
#: back.
MIN_LEASE_LEFT_MS = LEASE_MARGIN_MS // 2
#: For each slot that remains free, an application uses at most this many slots.
APPLICATION_FACTOR = 3
#: If an application is at its limit, its callbacks to a host may use one slot while more than 1/8 of all slots is free.
RESERVED_PART = 8
#: If an application is at its limit, each of its trackers may use `MIN_SLOTS` slots while more than 1/`LAST_PART` of all slots is
#: free.
MIN_SLOTS, LAST_PART = 4, 16


@mutable_record
class SlotUsage:
    """The slots of this process that are in use, by queue and by application.

    The application is None for callbacks that an older release stored."""

    total: int
    busy: int = 0
    by_queue: Counter[str] = field(default_factory=Counter)
    by_application: Counter[int | None] = field(default_factory=Counter)

    @property
    def free(self) -> int:
        return self.total - self.busy

    @property
    def unreserved(self) -> int:
        """The number of free slots minus a quarter of all slots. A single queue must leave this quarter free."""
        return max(self.free - self.total // (APPLICATION_FACTOR + 1), 0)

    def copy(self) -> SlotUsage:
        return SlotUsage(self.total, self.busy, self.by_queue.copy(), self.by_application.copy())

    def take(self, queue: str, application_id: int | None, count: int = 1) -> None:
        self.busy += count
        self.by_queue[queue] += count
        self.by_application[application_id] += count

    def release(self, queue: str, application_id: int | None) -> None:
        self.busy -= 1
        _decrement(self.by_queue, queue)
        _decrement(self.by_application, application_id)


def _decrement(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


@mutable_record
class Candidate:
    """A queue with due deliveries that the process may claim.

    `concurrency` is the number of attempts that this process may have in flight for the queue. `timeout` is the time limit of one
    attempt in seconds. `health` and `pace` are None for callbacks, which have no circuit breaker and no learned rate."""

    queue: DeliveryQueue
    application_id: int | None
    concurrency: int
    timeout: float
    health: EndpointHealth | None = None
    pace: EndpointPace | None = None

    def is_limited(self, now: int) -> bool:
        """Return True if the circuit breaker or a rate of the tracker (learned or configured) restricts how many deliveries may be
        claimed now. If True, the caller must lock the tracker before it claims deliveries."""
        if self.health is not None and not self.health.allows_any_number:
            return True
        return self.pace is not None and self.pace.limit(now) is not None

    @property
    def is_recovering(self) -> bool:
        """Return whether the backlog of the tracker is sent at the recovery rate."""
        return self.health is not None and self.health.open_until is None and self.health.recovering_at is not None

    def lease_until(self, now: int) -> int:
        """Return the end of a lease that starts at `now`, in milliseconds since 1970."""
        return now + round(self.timeout * 1000) + LEASE_MARGIN_MS


def plan_claims(
    candidates: Sequence[Candidate], usage: SlotUsage, limit: int, *, now: int, recovery_rate: float, rng: random.Random
) -> list[ClaimRequest]:
    """Return the claim requests for the candidates, in the order of the candidates, for at most `limit` deliveries in total.

    `recovery_rate` is the number of deliveries per second that a recovering tracker gets. The function does not change `usage`."""
    usage = usage.copy()
    share = max(1, limit // len(candidates)) if candidates else 0
    is_only_queue = len(candidates) == 1
    requests: list[ClaimRequest] = []
    for candidate in candidates:
        available = available_slots(candidate, usage, is_only_queue=is_only_queue)
        count = min(share, limit, available, _allowance(candidate, usage, now, recovery_rate))
        if count > 0:
            limit -= count
            usage.take(candidate.queue.name, candidate.application_id, count)
            requests += _split(candidate, count, now, rng)
    return requests


def available_slots(candidate: Candidate, usage: SlotUsage, *, is_only_queue: bool = False) -> int:
    """Return how many more slots the queue may use. The circuit breaker and the rate are not considered here.

    `is_only_queue` is true if no other queue has due deliveries."""
    free, busy = usage.free, usage.by_queue[candidate.queue.name]
    for_queue = max((free - busy) // 2, int(busy == 0 and free > 0))
    used = usage.by_application[candidate.application_id]
    for_application = max((APPLICATION_FACTOR * free - used) // (APPLICATION_FACTOR + 1), int(used == 0 and free > 0))
    if candidate.health is None:
        for_application = max(for_application, min(1 - busy, free - usage.total // RESERVED_PART))
    else:
        for_application = max(for_application, min(MIN_SLOTS - busy, free - usage.total // LAST_PART))
    if is_only_queue:
        for_queue = max(for_queue, usage.unreserved)
    return min(candidate.concurrency - busy, for_queue, for_application)


def blocked_applications(usage: SlotUsage) -> set[int | None]:
    """Return the applications that have attempts in flight and may use no further slot for a callback."""
    unused_queue = DeliveryQueue("", None, None)
    applications = (Candidate(unused_queue, application, 1, 0.0) for application in usage.by_application)
    return {one.application_id for one in applications if available_slots(one, usage, is_only_queue=True) <= 0}


def _allowance(candidate: Candidate, usage: SlotUsage, now: int, recovery_rate: float) -> int:
    """Return how many deliveries the circuit breaker and the rate of the tracker allow now."""
    by_rate = None if candidate.pace is None else candidate.pace.allowance(now)
    by_breaker = _breaker_allowance(candidate, usage, now, recovery_rate)
    return by_breaker if by_rate is None else min(by_breaker, by_rate)


def _breaker_allowance(candidate: Candidate, usage: SlotUsage, now: int, recovery_rate: float) -> int:
    if candidate.health is None:
        return usage.total
    match candidate.health.breaker(now):
        case "open":  # another process has sent the probe, so the circuit breaker is open again
            return 0
        case "half_open":
            return 0 if usage.by_queue[candidate.queue.name] else 1
    allowance = candidate.health.allowance(now, recovery_rate)
    return usage.total if allowance is None else allowance


def _split(candidate: Candidate, count: int, now: int, rng: random.Random) -> list[ClaimRequest]:
    """Return claim requests that divide `count` claims between the first attempts and the retries of a queue."""
    name, first_due, retry_due = candidate.queue
    is_first_due = first_due is not None and first_due <= now
    is_retry_due = retry_due is not None and retry_due <= now
    if is_first_due and is_retry_due:
        # If the count is odd, a random bit decides whether first attempts or retries get the additional claim.
        firsts = (count + rng.getrandbits(1)) // 2
    else:
        firsts = count if is_first_due else 0
    lease_until = candidate.lease_until(now)
    counts = ((FIRST_ATTEMPTS, firsts), (RETRIES, count - firsts))
    return [ClaimRequest(name, part, size, lease_until) for part, size in counts if size]
