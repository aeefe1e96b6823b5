"""The dispatcher sends due deliveries to their receivers and records the outcomes.

It works in dispatch cycles. In each cycle, one transaction records the finished attempts (outcome_writer.py) and claims as many
deliveries as there are free slots (claim_writer.py). After the commit, the attempts start (attempt.py, attempt_pool.py). A claim is
therefore durable before its request is sent. A slot is the right to have one attempt in flight. The slot becomes free when the
outcome of the attempt is durable.

Guarantees
- A claim counts as one attempt and gives the process a lease: until the lease ends, only this process attempts the delivery. The
  lease is longer than the longest possible attempt, including the waits for a slot of the sender, for the resolver and for the
  receiver. If a process dies, its deliveries are due again when their leases end, with the same event id. The interrupted
  attempts count. The outcome of an attempt is ignored if another process has claimed the delivery in the meantime. Processes
  compare leases with the clock of the database (storage/clock.py), which each process knows with an error of less than
  `claims.MIN_LEASE_LEFT_MS`.
- A queue (one tracker, or the callbacks to one host) never blocks another queue: claims.py limits the slots of queues and
  applications. Callbacks use a separate sender. Callbacks to many hosts whose names do not resolve therefore do not delay the
  look-ups for trackers.
- The database stores the circuit breaker (health.py) and the rate (pace.py) of each tracker. The rate therefore limits all
  processes together, and only one process sends the probe of an open circuit breaker. processes.py divides the concurrency of a
  tracker among the processes.
- A local failure (resolver, sockets, unusable row) does not count as an attempt. A delivery becomes dead if an open circuit
  breaker or local failures delay it for `expiry.MAX_HOLD`, or if its tracker or application is disabled for EVENT_RETENTION_DAYS.
- If an outcome cannot be recorded although the database is available, the outcome is dropped, so that it does not block other
  outcomes. The delivery is attempted again when its lease ends, at most `outcomes.MAX_LOST_OUTCOMES` times beyond its maximum
  number of attempts.
- If the clock is set back, the planned delays of retries, leases, circuit breakers and rates start again at the new time. Some
  retries wait longer than planned, by at most the size of the clock step (clock_steps.py). If the clock jumps far ahead, the jump
  makes no delivery dead, and no lease of an attempt in flight ends. For this, storage/clock_guard.py provides `clock_ahead`,
  which returns the size of the jump, and `leases_wait`, which returns whether no lease may be treated as ended.
- `stop` prevents new attempts. It waits for the attempts in flight and records their outcomes. It cancels the attempts that do not
  end in time, and gives their claims back.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import field, replace
from datetime import timedelta
from functools import partial

import structlog
from sqlalchemy import Connection

from shortener.clicks.throttle import Throttle
from shortener.delivery.attempt import LOCAL_FAILURE_PAUSE_MS, AttemptInFlight, AttemptRunner, FinishedAttempt
from shortener.delivery.attempt_pool import MAX_STARTS, AttemptPool, QueuePauses
from shortener.delivery.claim_writer import ClaimResult, ClaimWriter
from shortener.delivery.claims import LEASE_MARGIN_MS
from shortener.delivery.clock_steps import repair
from shortener.delivery.message_order import MessageOrder
from shortener.delivery.outcome_writer import OutcomeResult, OutcomeWriter
from shortener.delivery.outcomes import GONE
from shortener.delivery.processes import DeliveryProcesses, Heartbeat
from shortener.delivery.sender import Sender
from shortener.delivery.trackers import Trackers
from shortener.errors import CommitUncertain, StoreUnavailable
from shortener.ids import DELIVERY_IDS, IdGenerator
from shortener.jobs import WakeUp
from shortener.metrics import Histogram, Metrics
from shortener.model import Clock, DeliveryStatus, mutable_record
from shortener.settings import Settings
from shortener.storage.clock_guard import LeasesWait
from shortener.storage.database import Database, after_commit
from shortener.storage.types import from_ms, to_iso, to_ms
from shortener.tracing import Tracer

log = structlog.get_logger(__name__)

#: One dispatch cycle writes at most this many outcomes, because its transaction blocks every other writer on SQLite.
MAX_OUTCOMES = 512
#: If the rate of a tracker delays the next delivery for longer than this, the dispatcher sets no timer, because the next cycle
#: starts before that time anyway.
MAX_TIMER_SECONDS = 60.0
#: The dispatcher keeps in memory at most this many callback hosts that have responded. The queues of these hosts may use more than
#: one slot.
MAX_RESPONSIVE = 10_000


@mutable_record
class DispatcherTotals:
    """The counters of the dispatcher for /metrics since the process started.

    `reasons` counts the attempts by the name of their row in `outcomes.OUTCOME_TABLE`."""

    reasons: Counter[str] = field(default_factory=Counter)
    seconds: Histogram = field(default_factory=Histogram)  # durations of attempts that ended with a response or a failure
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
    """The dispatcher of one process. `wake_up` is set when a dispatch cycle has work to do."""

    def __init__(
        self,
        database: Database,
        trackers: Trackers,
        sender: Sender,
        callback_sender: Sender,
        ids: IdGenerator,
        clock: Clock,
        settings: Settings,
        rng: random.Random,
        throttle: Throttle,
        *,
        clock_ahead: Callable[[], timedelta] = timedelta,
        leases_wait: LeasesWait = lambda connection: False,
    ) -> None:
        self._database = database
        self._clock = clock
        self._throttle = throttle
        self._runner = AttemptRunner(sender, callback_sender, ids, clock, rng, allow_http=settings.allow_http_targets)
        self._claims = ClaimWriter(trackers, settings, rng, ids, clock_ahead, leases_wait)
        self._outcomes = OutcomeWriter(ids)
        self._processes = DeliveryProcesses(rng, settings.delivery_processes or None)
        self._lease_ms = round(settings.delivery_timeout * 1000) + LEASE_MARGIN_MS
        self.wake_up = WakeUp()
        self.totals = DispatcherTotals()
        self.attempts = AttemptPool[FinishedAttempt](settings.delivery_slots)
        self.pauses = QueuePauses(LOCAL_FAILURE_PAUSE_MS)
        self._order = MessageOrder()
        self._responsive: dict[str, None] = {}  # names of callback queues whose host responded to the last attempt
        self._cycle_lock = asyncio.Lock()
        self._stopping = False

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metrics of the dispatcher, which /metrics returns."""
        totals = self.totals
        metrics.counter(
            "shortener_delivery_attempts",
            "Attempts to send a delivery, by outcome.",
            lambda: {(reason,): count for reason, count in totals.reasons.items()},
            "outcome",
        )
        metrics.histogram(
            "shortener_delivery_attempt_seconds",
            "Duration of attempts to send a delivery, without attempts that failed because of this host.",
            lambda: totals.seconds,
        )
        metrics.gauge(
            "shortener_deliveries_in_flight",
            "Delivery attempts that are running, or whose outcome is not yet in the database.",
            lambda: self.in_flight,
        )
        for name, help in (
            ("deliveries_delivered", "Deliveries that a receiver accepted."),
            ("deliveries_retried", "Failed delivery attempts after which the delivery will be attempted again."),
            ("deliveries_dead", "Deliveries that became dead: no receiver accepted them, and no further attempt follows."),
            ("deliveries_local_failures", "Requests that failed because of this host. They do not count as attempts."),
            (
                "deliveries_claims_returned",
                "Deliveries that the process claimed and gave back, at shutdown or because the lease was too short.",
            ),
            (
                "deliveries_leases_lost",
                "Outcomes of delivery attempts that were ignored because another process had then claimed the delivery.",
            ),
            ("dispatch_cycles", "Transactions in which the dispatcher recorded outcomes and claimed deliveries."),
        ):
            metrics.counter(f"shortener_{name}", help, partial(getattr, totals, name.removeprefix("deliveries_")))
        metrics.counter(
            "shortener_trackers_disabled",
            "Trackers that were disabled because they returned 410.",
            lambda: totals.trackers_disabled,
        )
        metrics.counter(
            "shortener_tracker_rates_lowered",
            "How often the rate of a tracker was lowered after a 429.",
            lambda: totals.rates_lowered,
        )
        metrics.counter(
            "shortener_clock_steps",
            "How often stored times were repaired after the clock was set back.",
            lambda: totals.clock_steps,
        )
        metrics.gauge("shortener_delivery_processes", "Processes that send deliveries.", lambda: self._processes.share.count)
        metrics.counter(
            "shortener_breakers_opened", "How often a tracker's circuit breaker opened.", lambda: totals.breakers_opened
        )

    def use_tracer(self, tracer: Tracer | None) -> None:
        """Trace the attempts with `tracer`."""
        self._runner.tracer = tracer

    @property
    def in_flight(self) -> int:
        """The number of slots in use: attempts in flight, and ended attempts whose outcome is not yet in the database."""
        return self.attempts.usage.busy

    async def step(self) -> int:
        """Run one dispatch cycle. Return 0 if there was no work. Otherwise return the sum of the recorded outcomes, the started
        attempts and the deliveries that became dead without an attempt, plus 1 if the next cycle must examine further queues.

        Raise StoreUnavailable if the database is unavailable. In this case nothing has changed. After CommitUncertain, the next
        cycle gives back the deliveries that this cycle has claimed."""
        loop = asyncio.get_running_loop()
        async with self._cycle_lock:
            finished = self.attempts.ended[:MAX_OUTCOMES]
            if self._stopping and not finished:
                return 0
            started, throttled = loop.time(), self._throttle.is_busy
            # If the cycle cannot record all outcomes, it claims nothing. Otherwise it could claim a delivery whose outcome is not
            # recorded yet but whose lease has ended. This delivery would be sent again.
            has_others = len(finished) < len(self.attempts.ended)
            limit = 0 if self._stopping or has_others else self.attempts.usage.free + len(finished)
            if throttled:
                limit = min(limit, MAX_STARTS)
            try:
                claims = await self._run_cycle(finished, limit)
            except StoreUnavailable:
                raise
            except Exception:
                if not finished:
                    raise
                log.exception("dispatch_cycle_failed")
                await self._record_one_by_one(finished)
                return len(finished)
        if throttled and claims.attempts:
            await asyncio.sleep(self._throttle.pause_for(loop.time() - started))  # let hits use the database
        return len(finished) + len(claims.attempts) + claims.expired + claims.more

    async def _run_cycle(self, finished: Sequence[FinishedAttempt], limit: int) -> ClaimResult:
        """Record the attempts `finished`, which are the oldest ended attempts. Then claim up to `limit` deliveries
        and start their attempts."""
        last: list[ClaimResult] = []
        try:
            outcomes, claims, heartbeat = await self._database.write_later(self._write_cycle, finished, limit, last)
        except CommitUncertain:
            # It is unknown whether the claims are stored. The next cycle gives them back, so that the deliveries do not wait until
            # their leases end.
            for attempt in last[-1].attempts if last else ():
                self.attempts.end_unstarted(self._runner.give_back(attempt, "interrupted", may_be_unclaimed=True))
            raise
        self.attempts.remove(finished)
        # An exception in these steps must not prevent the start of the claimed attempts, and must not cause the outcomes to be
        # recorded again.
        with after_commit():
            self._account(outcomes, finished)
        with after_commit():
            if heartbeat is not None:
                self._committed(heartbeat)
            self._claims.committed(claims)
            self._wake_at(claims.wake_at)
            self.totals.dead += claims.expired
        await self.attempts.start(claims.attempts, self._create_task)
        return claims

    def _create_task(self, attempt: AttemptInFlight) -> asyncio.Task[None]:
        task = asyncio.create_task(self._run(attempt, self._order.earlier(attempt.claim)))
        self._order.add(attempt.claim, task)
        return task

    async def _run(self, attempt: AttemptInFlight, earlier: asyncio.Task[None] | None) -> None:
        self.attempts.end(await self._runner.run(attempt, earlier))
        self.wake_up.notify()

    async def _record_one_by_one(self, finished: Sequence[FinishedAttempt]) -> None:
        """Record each outcome in a transaction of its own, after the transaction that contained all of them failed.

        An outcome that cannot be recorded is dropped, so that it does not block all others. The delivery of a dropped outcome is
        attempted again when its lease ends."""
        for one in finished:
            try:
                await self._run_cycle([one], 0)
            except StoreUnavailable:
                raise
            except Exception:
                log.exception("delivery_outcome_not_recorded", delivery=DELIVERY_IDS.encode(one.delivery.id))
                await self._record_without_attempt(one)

    async def _record_without_attempt(self, finished: FinishedAttempt) -> None:
        """Record an outcome without the row of its attempt, which may be the part that cannot be stored. If this fails too, drop
        the outcome."""
        try:
            await self._run_cycle([replace(finished, attempt_row=None)], 0)
        except StoreUnavailable:
            raise
        except Exception:
            self.attempts.remove([finished])

    async def flush(self) -> None:
        """Run dispatch cycles until every due delivery was attempted and its outcome is recorded."""
        await self.attempts.flush(self.step)

    async def stop(self, grace: float, attempts_grace: float | None = None) -> None:
        """Stop the dispatcher within `grace` seconds: start no attempts, and record the attempts in flight.

        Attempts that do not end within `attempts_grace` seconds (default: 80 % of `grace`) are cancelled, and their claims are
        given back."""
        self._stopping = self._runner.is_stopping = True
        began = asyncio.get_running_loop().time()
        cancel_at = began + (grace * 0.8 if attempts_grace is None else attempts_grace)
        try:
            async with asyncio.timeout_at(began + grace):
                async with self._cycle_lock:
                    pass  # wait for a running cycle, which may start attempts
                await self.attempts.drain(self.step, cancel_at)
        except TimeoutError:
            # The deliveries whose outcomes were not recorded are attempted again when their leases end.
            log.error("outcomes_lost_at_shutdown", deliveries=self.in_flight)

        self.wake_up.notify_after(None)
        if self._processes.may_have_row:
            with suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout_at(began + grace):
                    await self._database.write(self._processes.remove)

    def _wake_at(self, at: int | None) -> None:
        """Set a timer that starts a dispatch cycle at this time (milliseconds since 1970). None removes the timer."""
        seconds = None if at is None or self._stopping else max(at - to_ms(self._clock()), 0) / 1000
        # A longer wait needs no timer, because cycles run more often than once in MAX_TIMER_SECONDS.
        self.wake_up.notify_after(seconds if seconds is not None and seconds < MAX_TIMER_SECONDS else None)

    def _committed(self, heartbeat: Heartbeat) -> None:
        """Store a heartbeat in memory after its transaction was committed. If the clock was set back, count and log this."""
        self._processes.committed(heartbeat)
        if heartbeat.clock_was_set_back:
            self.totals.clock_steps += 1
            log.warning("clock_was_set_back", repaired="retries, leases, breakers and rates")

    def _write_cycle(
        self, connection: Connection, finished: Sequence[FinishedAttempt], limit: int, last: list[ClaimResult]
    ) -> tuple[OutcomeResult, ClaimResult, Heartbeat | None]:
        """Record outcomes and claim up to `limit` deliveries in one transaction. Append the claims to `last` before the commit.

        The method does not change the dispatcher object, because the database may run the transaction again."""
        now = to_ms(self._clock())
        heartbeat = None if self._stopping else self._processes.write(connection, now)
        if heartbeat is not None and heartbeat.clock_was_set_back:
            repair(connection, now, self._lease_ms)
        outcomes = self._outcomes.write(connection, finished, now) if finished else OutcomeResult()
        usage, paused = self.attempts.usage_without(finished), self.pauses.with_failures(finished, now)
        share = self._processes.share if heartbeat is None else heartbeat.share
        claims = self._claims.write(connection, usage, limit, paused, now, share, self._responsive)
        last.append(claims)
        return outcomes, claims, heartbeat

    def _account(self, outcomes: OutcomeResult, finished: Sequence[FinishedAttempt]) -> None:
        """Update the pauses of queues and the counters, and write the log, after the transaction was committed."""
        now = to_ms(self._clock())
        totals = self.totals
        totals.dispatch_cycles += 1
        self._outcomes.committed(outcomes, now)
        for one in finished:
            self._note_response(one)
        self.pauses.update(finished, now)
        for one in outcomes.recorded:
            self._count(one)
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

    def _count(self, finished: FinishedAttempt) -> None:
        """Count a recorded outcome. Write a log line if the delivery was not accepted."""
        totals, outcome, delivery, claim = self.totals, finished.outcome, finished.delivery, finished.attempt.claim
        if outcome is None:
            totals.claims_returned += 1
            return
        totals.reasons[outcome.reason] += 1
        if finished.is_local_failure:
            totals.local_failures += 1
        else:
            totals.seconds.observe((finished.at - finished.started) / 1000)
        if delivery.status == DeliveryStatus.DELIVERED:
            totals.delivered += 1
        elif delivery.status == DeliveryStatus.DEAD:
            totals.dead += 1
            log.warning("delivery_dead", delivery=DELIVERY_IDS.encode(delivery.id), queue=claim.queue, error=delivery.last_error)
        elif outcome.charged:
            totals.retried += 1
            log.info(
                "delivery_failed",
                delivery=DELIVERY_IDS.encode(delivery.id),
                tracker=claim.tracker_id,
                attempt=claim.attempt,
                status=delivery.last_status,
                error=delivery.last_error,
                next_attempt=to_iso(from_ms(delivery.next_at)),
            )

    def _note_response(self, finished: FinishedAttempt) -> None:
        """Remember whether the host of a callback queue responded to the last attempt. If it did not, the queue may use only one
        slot."""
        claim = finished.attempt.claim
        if claim.tracker_id is not None or finished.outcome is None:
            return
        self._responsive.pop(claim.queue, None)
        if finished.delivery.last_status is not None:
            self._responsive[claim.queue] = None
            if len(self._responsive) > MAX_RESPONSIVE:
                del self._responsive[next(iter(self._responsive))]
