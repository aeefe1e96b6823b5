"""Selection of the deliveries that a process claims next: a pure function of queues, health and free slots.

A slot is the right to have one attempt in flight. The rules keep slots free for others:

- A queue never takes more slots than it leaves free, and never more than its concurrency.
- An application never takes more than three times the slots that it leaves free.
- A queue that no other queue waits beside takes three quarters of all slots.
- A queue that uses few slots may take up to four although its application is at its limit, while one sixteenth of all slots is free
  (callbacks: up to one, while one eighth is free).
- The breaker of a tracker (health.py) and its rate (pace.py) limit its queue.
- A queue of callbacks has one slot until its host has responded.
- All candidates of a cycle get an equal share first.
- If first attempts and retries of a queue are both due, each part gets half.

So every further queue or application that hangs takes a smaller part of the remaining slots. Times are milliseconds since
1970-01-01 UTC.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES, ClaimRequest, DeliveryQueue
from shortener.delivery.health import TrackerHealth
from shortener.delivery.pace import TrackerPace

K = TypeVar("K")

#: How long a lease outlasts the time limit of its attempt: time to record the outcome, and tolerance for clocks that differ.
LEASE_MARGIN_MS = 10_000
#: Part of the margin that must remain when the request starts. If the claim took longer to commit, it is returned.
MIN_LEASE_LEFT_MS = LEASE_MARGIN_MS // 2
#: An application takes at most this many times the slots that it leaves free.
APPLICATION_FACTOR = 3
#: While this part of all slots (one in eight) is free, each host of callbacks may take one slot.
RESERVED_PART = 8
#: Slots that a tracker gets beside hanging trackers of its application, while this part of all slots (one in sixteen) is free.
MIN_SLOTS, LAST_PART = 4, 16


@dataclass(slots=True)
class SlotUsage:
    """Slots of this process that are in use, by queue and by application (None: callbacks of an older release)."""

    total: int
    busy: int = 0
    by_queue: Counter[str] = field(default_factory=Counter)
    by_application: Counter[int | None] = field(default_factory=Counter)

    @property
    def free(self) -> int:
        return self.total - self.busy

    @property
    def unreserved(self) -> int:
        """Free slots beyond the quarter that a queue leaves free although no other queue waits."""
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


@dataclass(slots=True)
class Candidate:
    """A queue with due deliveries. `health` and `pace` None: callbacks, which have neither. `timeout`: seconds of one attempt.

    `concurrency` is the share of this process."""

    queue: DeliveryQueue
    application_id: int | None
    concurrency: int
    timeout: float
    health: TrackerHealth | None = None
    pace: TrackerPace | None = None

    def is_limited(self, now: int) -> bool:
        """Whether the breaker or the rate limits the queue. Then the tracker must be locked before anything is claimed."""
        if self.health is not None and not self.health.allows_any_number:
            return True
        return self.pace is not None and self.pace.limit(now) is not None

    def lease_until(self, now: int) -> int:
        """Return the end of a lease that starts at `now`."""
        return now + round(self.timeout * 1000) + LEASE_MARGIN_MS


def plan_claims(
    candidates: Sequence[Candidate], usage: SlotUsage, limit: int, *, now: int, recovery_rate: float, rng: random.Random
) -> list[ClaimRequest]:
    """Return what to claim for the candidates, in their order, at most `limit` deliveries in total.

    `recovery_rate`: deliveries per second of the backlog of a recovering tracker. `usage` is not changed."""
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
    """Return how many more slots the queue may take; its breaker and its rate are not considered.

    `is_only_queue`: no other queue is waiting."""
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


def _allowance(candidate: Candidate, usage: SlotUsage, now: int, recovery_rate: float) -> int:
    """Return how many deliveries the breaker and the rate let pass."""
    by_rate = None if candidate.pace is None else candidate.pace.allowance(now)
    by_breaker = _breaker_allowance(candidate, usage, now, recovery_rate)
    return by_breaker if by_rate is None else min(by_breaker, by_rate)


def _breaker_allowance(candidate: Candidate, usage: SlotUsage, now: int, recovery_rate: float) -> int:
    if candidate.health is None:
        return usage.total
    match candidate.health.breaker(now):
        case "open":  # another process has just sent the probe
            return 0
        case "half_open":
            return 0 if usage.by_queue[candidate.queue.name] else 1
    allowance = candidate.health.allowance(now, recovery_rate)
    return usage.total if allowance is None else allowance


def _split(candidate: Candidate, count: int, now: int, rng: random.Random) -> list[ClaimRequest]:
    """Divide `count` claims between first attempts and retries."""
    name, first_due, retry_due = candidate.queue
    is_first_due = first_due is not None and first_due <= now
    is_retry_due = retry_due is not None and retry_due <= now
    if is_first_due and is_retry_due:
        # Chance decides about an odd one: strict alternation could always favour the same part.
        firsts = (count + rng.getrandbits(1)) // 2
    else:
        firsts = count if is_first_due else 0
    lease_until = candidate.lease_until(now)
    counts = ((FIRST_ATTEMPTS, firsts), (RETRIES, count - firsts))
    return [ClaimRequest(name, part, size, lease_until) for part, size in counts if size]
