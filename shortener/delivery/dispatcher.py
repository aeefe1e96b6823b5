"""The dispatcher: attempts due deliveries and records the outcomes.

It works in dispatch cycles. A cycle is one transaction that records the finished attempts (outcome_writer.py) and claims as many
deliveries as slots are free (claim_writer.py). Then the attempts start (attempt.py). So a claim is durable before its request is
sent, an outcome is recorded after it, and many of both share a commit. A slot becomes free when its outcome is durable.

Guarantees
- A claim counts an attempt and holds a lease that is longer than the attempt can last: all waiting (for a slot of the sender, the
  resolver, the receiver) is within the attempt's time limit. If a process dies, its deliveries are due again when the lease ends,
  with the same event id and one attempt less. An outcome after the lease was lost changes nothing. Leases are compared with
  `clock`, which processes share (storage/clock.py); the margins allow clocks to differ by `claims.MIN_LEASE_LEFT_MS`.
- A queue (one tracker, or the callbacks of one host) never blocks another: claims.py limits the slots of queues and applications.
- A tracker's breaker (health.py) and rate (pace.py) are stored in the database. All processes together obey them; one of them sends
  the probe of a breaker. processes.py divides the concurrency of a tracker among the processes.
- A local failure (resolver, sockets, database) does not count as an attempt. A delivery ends dead if an open breaker or local
  failures delay it for `expiry.MAX_HOLD`, or if its tracker or application stays disabled for the event retention.
- After the clock was set back, no retry, lease or breaker waits longer than planned (clock_steps.py).
- `stop` starts nothing, waits for the attempts in flight, records them and returns the claims that cannot finish in time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog
from sqlalchemy import Connection

from shortener.delivery.attempt import LOCAL_FAILURE_PAUSE_MS, AttemptInFlight, AttemptRunner, FinishedAttempt
from shortener.delivery.claim_writer import ClaimResult, ClaimWriter
from shortener.delivery.claims import LEASE_MARGIN_MS, SlotUsage
from shortener.delivery.clock_steps import repair
from shortener.delivery.outcome_writer import GONE, OutcomeResult, OutcomeWriter
from shortener.delivery.processes import DeliveryProcesses, SignOfLife
from shortener.delivery.sender import Sender
from shortener.delivery.throttle import Throttle
from shortener.delivery.trackers import Trackers
from shortener.errors import StoreUnavailable
from shortener.ids import IdGenerator, encode
from shortener.jobs import WakeUp
from shortener.metrics import Metrics
from shortener.model import Clock, DeliveryStatus
from shortener.settings import Settings
from shortener.storage.database import Database
from shortener.storage.types import to_ms

log = structlog.get_logger(__name__)

#: Outcomes that one cycle writes. It bounds a transaction that on SQLite blocks every other writer.
MAX_OUTCOMES = 512
#: Attempts that start in one cycle while many hits arrive, and without a pause at any time: each costs the event loop a fraction of
#: a millisecond when it starts and when it ends.
MAX_STARTS = 8
#: A timer for a limited rate is not set for longer than this.
MAX_TIMER_SECONDS = 60.0
#: Queues of callbacks that are remembered as responsive.
MAX_RESPONSIVE = 10_000


@dataclass(slots=True)
class DispatcherTotals:
    """Counters for /metrics since the process started. `reasons`: attempts by row of outcomes.OUTCOME_TABLE."""

    reasons: Counter[str] = field(default_factory=Counter)
    delivered: int = 0
    retried: int = 0
    dead: int = 0
    local_failures: int = 0
    claims_returned: int = 0
    leases_lost: int = 0
    trackers_disabled: int = 0
    breakers_opened: int = 0
    rates_lowered: int = 0
    clock_steps: int = 0
    dispatch_cycles: int = 0


class Dispatcher:
    """Runs dispatch cycles. `wake_up` is set when a cycle has something to do."""

    def __init__(
        self,
        database: Database,
        trackers: Trackers,
        sender: Sender,
        ids: IdGenerator,
        clock: Clock,
        settings: Settings,
        rng: random.Random,
        throttle: Throttle,
    ) -> None:
        self._database = database
        self._clock = clock
        self._throttle = throttle
        self._runner = AttemptRunner(sender, ids, clock, rng, allow_http=settings.allow_http_targets)
        self._claims = ClaimWriter(trackers, settings, rng)
        self._outcomes = OutcomeWriter(ids)
        self._processes = DeliveryProcesses(rng, settings.delivery_processes or None)
        self._lease_ms = round(settings.delivery_timeout * 1000) + LEASE_MARGIN_MS
        self.wake_up = WakeUp()
        self.totals = DispatcherTotals()
        self._usage = SlotUsage(settings.delivery_slots)
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished: list[FinishedAttempt] = []
        self._paused: dict[str, int] = {}  # queue -> end of its pause after a local failure
        self._responsive: dict[str, None] = {}  # queues of callbacks whose host has responded to the last attempt
        self._timer: asyncio.TimerHandle | None = None
        self._cycle_lock = asyncio.Lock()
        self._stopping = False

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the totals on /metrics."""
        totals = self.totals
        metrics.counter(
            "shortener_delivery_attempts",
            "Delivery attempts by outcome.",
            lambda: {(reason,): count for reason, count in totals.reasons.items()},
            "outcome",
        )
        metrics.gauge("shortener_deliveries_in_flight", "Slots in use.", lambda: self.in_flight)
        for name, help in (
            ("deliveries_delivered", "Deliveries that a receiver accepted."),
            ("deliveries_retried", "Failed attempts that will be repeated."),
            ("deliveries_dead", "Deliveries that ended without success."),
            ("deliveries_local_failures", "Attempts that failed because of this host. They do not count as attempts."),
            ("deliveries_claims_returned", "Claims that were returned: at shutdown, or because the lease was too short."),
            ("deliveries_leases_lost", "Outcomes that were ignored because the lease had ended."),
            ("dispatch_cycles", "Transactions of the dispatcher."),
        ):
            metrics.counter(f"shortener_{name}", help, partial(getattr, totals, name.removeprefix("deliveries_")))
        metrics.counter("shortener_trackers_disabled", "Trackers disabled by a 410 response.", lambda: totals.trackers_disabled)
        metrics.counter("shortener_tracker_rates_lowered", "Rates of trackers lowered by 429.", lambda: totals.rates_lowered)
        metrics.counter("shortener_clock_steps", "Repairs after the clock was set back.", lambda: totals.clock_steps)
        metrics.gauge("shortener_delivery_processes", "Processes that deliver.", lambda: self._processes.share.count)
        metrics.counter("shortener_breakers_opened", "Circuit breakers of trackers that opened.", lambda: totals.breakers_opened)

    @property
    def in_flight(self) -> int:
        """Slots in use: attempts in flight, and outcomes that are not yet durable."""
        return self._usage.busy

    async def step(self) -> int:
        """Run one cycle. Return the number of outcomes and started attempts. Raise StoreUnavailable: nothing changed."""
        loop = asyncio.get_running_loop()
        async with self._cycle_lock:
            finished = self._finished[:MAX_OUTCOMES]
            if self._stopping and not finished:
                return 0
            started, throttled = loop.time(), self._throttle.is_busy
            limit = 0 if self._stopping else self._usage.free + len(finished)
            if throttled:
                limit = min(limit, MAX_STARTS)
            outcomes, claims, sign = await self._database.write(self._write_cycle, finished, limit)
            del self._finished[: len(finished)]
            if sign is not None:
                self._note(sign)
            self._account(outcomes, finished)
            self._claims.committed(claims)
            self._wake_at(claims.wake_at)
            self.totals.dead += claims.expired
            for number, attempt in enumerate(claims.attempts, 1):
                self._usage.take(attempt.claim.queue, attempt.application_id)
                task = loop.create_task(self._run(attempt))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                if number % MAX_STARTS == 0:
                    await asyncio.sleep(0)  # the event loop serves hits in between
        if throttled and claims.attempts:
            await asyncio.sleep(self._throttle.pause_for(loop.time() - started))  # hits use the database meanwhile
        return len(finished) + len(claims.attempts) + claims.expired + claims.more

    async def flush(self) -> None:
        """Attempt every due delivery and record the outcomes."""
        while await self.step() or self._tasks or self._finished:
            if self._tasks and not self._finished:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def stop(self, grace: float, attempts_grace: float | None = None) -> None:
        """Start nothing more, wait for the attempts in flight, record them, and return the claims that did not finish.

        All of it takes at most `grace` seconds, the wait for attempts at most `attempts_grace` (default: 80 % of `grace`)."""
        self._stopping = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        cancel_at = began + (grace * 0.8 if attempts_grace is None else attempts_grace)
        try:
            async with asyncio.timeout_at(began + grace):
                async with self._cycle_lock:
                    pass  # a running cycle may still start attempts
                if self._tasks:
                    await asyncio.wait(self._tasks, timeout=cancel_at - loop.time())
                for task in self._tasks:
                    task.cancel()
                if self._tasks:
                    await asyncio.wait(self._tasks)
                while self._finished:
                    try:
                        await self.step()
                    except StoreUnavailable:
                        await asyncio.sleep(0.1)  # the database may return before the grace ends
        except TimeoutError:
            # Their leases end, and they are attempted again.
            log.error("outcomes_lost_at_shutdown", deliveries=self.in_flight)

        if self._timer is not None:
            self._timer.cancel()
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout_at(began + grace):
                await self._database.write(self._processes.remove)

    def _wake_at(self, at: int | None) -> None:
        """Start a cycle at this time (milliseconds since 1970), when the rate of a tracker lets a delivery pass."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None and not self._stopping:
            seconds = max(at - to_ms(self._clock()), 0) / 1000
            if seconds < MAX_TIMER_SECONDS:  # cycles run more often anyway
                self._timer = asyncio.get_running_loop().call_later(seconds, self.wake_up.notify)

    def _note(self, sign: SignOfLife) -> None:
        self._processes.committed(sign)
        if sign.clock_was_set_back:
            self.totals.clock_steps += 1
            log.warning("clock_was_set_back", repaired="retries, leases, breakers and rates")

    async def _run(self, attempt: AttemptInFlight) -> None:
        self._finished.append(await self._runner.run(attempt))
        self.wake_up.notify()

    def _write_cycle(
        self, connection: Connection, finished: Sequence[FinishedAttempt], limit: int
    ) -> tuple[OutcomeResult, ClaimResult, SignOfLife | None]:
        """Record outcomes and claim up to `limit` deliveries. No state changes here: the transaction may run again."""
        now = to_ms(self._clock())
        sign = None if self._stopping else self._processes.write(connection, now)
        if sign is not None and sign.clock_was_set_back:
            repair(connection, now, self._lease_ms)
        outcomes = self._outcomes.write(connection, finished, now) if finished else OutcomeResult()
        usage = self._usage.copy()
        # A pause that is longer than planned was set before the clock was set back.
        paused = {queue: until for queue, until in self._paused.items() if until <= now + LOCAL_FAILURE_PAUSE_MS}
        for one in finished:
            usage.release(one.attempt.claim.queue, one.attempt.application_id)
            if one.is_local_failure:
                paused[one.attempt.claim.queue] = one.at + LOCAL_FAILURE_PAUSE_MS
        share = self._processes.share if sign is None else sign.share
        return outcomes, self._claims.write(connection, usage, limit, paused, now, share, self._responsive), sign

    def _account(self, outcomes: OutcomeResult, finished: Sequence[FinishedAttempt]) -> None:
        """Update slots, pauses, totals and log after the commit."""
        now = to_ms(self._clock())
        totals = self.totals
        totals.dispatch_cycles += 1
        self._outcomes.committed(outcomes, now)
        for one in finished:
            queue = one.attempt.claim.queue
            self._usage.release(queue, one.attempt.application_id)
            if one.is_local_failure:
                self._paused[queue] = one.at + LOCAL_FAILURE_PAUSE_MS
            self._note_response(one)
        self._paused = {queue: until for queue, until in self._paused.items() if now < until <= now + LOCAL_FAILURE_PAUSE_MS}
        for one in outcomes.recorded:
            if one.outcome is None:
                totals.claims_returned += 1
                continue
            totals.reasons[one.outcome.reason] += 1
            totals.local_failures += one.is_local_failure
            if one.delivery.status == DeliveryStatus.DELIVERED:
                totals.delivered += 1
            elif one.delivery.status == DeliveryStatus.DEAD:
                totals.dead += 1
                delivery, error = encode(one.delivery.id), one.delivery.last_error
                log.warning("delivery_dead", delivery=delivery, queue=one.attempt.claim.queue, error=error)
            elif one.outcome.charged:
                totals.retried += 1
        totals.leases_lost += outcomes.leases_lost
        totals.trackers_disabled += len(outcomes.disabled)
        totals.breakers_opened += len(outcomes.opened)
        totals.rates_lowered += len(outcomes.slowed)
        if outcomes.leases_lost:
            log.warning("leases_lost", deliveries=outcomes.leases_lost)
        for tracker in outcomes.disabled:
            log.warning("tracker_disabled", tracker=tracker, reason=GONE)
        for tracker in outcomes.opened:
            log.warning("breaker_opened", tracker=tracker)

    def _note_response(self, finished: FinishedAttempt) -> None:
        """Remember whether the host of a queue of callbacks responds. Until it does, the queue has one slot."""
        claim = finished.attempt.claim
        if claim.tracker_id is not None or finished.outcome is None:
            return
        self._responsive.pop(claim.queue, None)
        if finished.delivery.last_status is not None:
            self._responsive[claim.queue] = None
            if len(self._responsive) > MAX_RESPONSIVE:
                del self._responsive[next(iter(self._responsive))]
