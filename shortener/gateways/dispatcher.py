"""The dispatcher hands queued messages on to gateways and records the outcomes.

It works like the dispatcher of deliveries (delivery/dispatcher.py). Both use the same modules of the package `delivery`:
claims.py plans the claims and slots, attempt_pool.py contains the attempts in flight, health.py is the circuit breaker, pace.py
computes the rate, and outcomes.py contains the schedule. In each cycle, one transaction records the ended attempts and claims due
messages. After the commit the attempts start, so a claim is durable before its message is handed on.

Guarantees
- A queued message becomes SENT or FAILED, or it is held. It is never handed on again after the gateway accepted it and the
  outcome was recorded.
- A claim gives the process a lease that is longer than the attempt can last. If the lease ends without an outcome, the process
  died, could not use the database or had a fault, and the gateway may have accepted the message. The message is then doubtful.
  The policy of the gateway decides whether the message is handed on again (`resend`) or held (`hold`). A doubtful message whose
  delivery report has arrived is not handed on again.
- The transaction locks the row of each gateway, so its concurrency, its rate and its circuit breaker limit all processes together.
- If the transaction fails although the database is available, each outcome and the claims of each gateway get a transaction of
  their own. Therefore a value that cannot be stored or computed delays only its own message or gateway. This also applies to
  messages that are given up without an attempt. If such a message cannot be written, the dispatcher tries again after
  UNWRITABLE_PAUSE_MS.
- An error after the commit neither repeats outcomes nor prevents the attempts of claimed messages.
- A message that was not accepted within GATEWAY_VALIDITY_HOURS becomes FAILED, and its text is deleted.
- If the clock is set back, the planned delays of messages, leases, circuit breakers and rates start again at the new time. Some
  messages wait longer than planned, by at most the size of the clock step (clock_steps.py). If the clock jumps far ahead, the
  jump makes no message FAILED and ends no lease of an attempt in flight. For this, storage/clock_guard.py provides `clock_ahead`,
  which returns the size of the jump, and `leases_wait`, which returns whether no lease may be treated as ended.
- `stop` prevents new attempts. It waits for the attempts in flight and records their outcomes.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import field, replace
from datetime import timedelta

import structlog
from sqlalchemy import Connection, select

from shortener.clicks.throttle import Throttle
from shortener.delivery.attempt_pool import MAX_STARTS, AttemptPool, QueuePauses
from shortener.delivery.clock_steps import TOLERANCE_MS
from shortener.delivery.dispatch_queries import find_stored
from shortener.errors import CommitUncertain, StoreUnavailable
from shortener.gateways.attempt import EndedSend, SendInFlight, SendRunner
from shortener.gateways.claiming import SendClaimResult, SendClaimWriter, find_finished
from shortener.gateways.clock_steps import repair
from shortener.gateways.connections import Connections
from shortener.gateways.expiry import MAX_ROWS, expire
from shortener.gateways.finishing import SendChange, SendWriter
from shortener.gateways.gateway_health import write_health
from shortener.gateways.queries import FinishedSend, find_waiting, lock_health, lock_states, queue_name
from shortener.gateways.store import GatewayStore
from shortener.gateways.submission import SubmitOutcome
from shortener.ids import IdGenerator, encode
from shortener.jobs import WakeUp
from shortener.messages.delivery_reports import DeliveryReports
from shortener.metrics import Metrics
from shortener.model import Clock, SendStatus, mutable_record
from shortener.settings import Settings
from shortener.storage.clock_guard import LeasesWait
from shortener.storage.database import Database, after_commit
from shortener.storage.schema import sends
from shortener.storage.send_conditions import IS_PENDING
from shortener.storage.types import to_ms

log = structlog.get_logger(__name__)

#: One cycle writes at most this many outcomes, because its transaction blocks every other writer on SQLite.
MAX_OUTCOMES = 256
#: The interval at which the dispatcher looks for messages that are too old to be sent.
EXPIRY_INTERVAL_MS = 30_000
#: After a failure of this host, the dispatcher hands no messages on to the gateway for this time.
LOCAL_PAUSE_MS = 5_000
#: If a message cannot be given up, the dispatcher tries again after this time.
UNWRITABLE_PAUSE_MS = 30_000
#: The dispatcher remembers at most this many messages that could not be given up.
MAX_UNWRITABLE = 4096


@mutable_record
class SendTotals:
    """The counters of the dispatcher for /metrics since the process started. `reasons` counts attempts by the reason of their
    result."""

    reasons: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    failed: int = 0
    held: int = 0
    doubtful: int = 0
    leases_lost: int = 0
    breakers_opened: int = 0


@mutable_record
class _Cycle:
    """The result of the transaction of one cycle, which ran at the time `now` (milliseconds since 1970).

    `written` contains the new status of each ended attempt whose outcome was written, by the id of its message. `given_up` are the
    rows that were written for messages without an attempt. `unwritable` are the ids of messages that cannot be given up. `opened`
    are the ids of the gateways whose circuit breaker opened. `has_expired` is true if the cycle found all messages that are too
    old. `has_repaired` is true if the cycle repaired the times of all gateways, and `repaired` is the number of changed rows."""

    now: int
    written: dict[int, int] = field(default_factory=dict)
    events: int = 0
    given_up: list[FinishedSend] = field(default_factory=list)
    unwritable: list[int] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    has_expired: bool = False
    has_repaired: bool = False
    repaired: int = 0
    claims: SendClaimResult = field(default_factory=SendClaimResult)


class GatewayDispatcher:
    """The dispatcher of one process. `wake_up` is set when a cycle has work to do."""

    def __init__(
        self,
        database: Database,
        store: GatewayStore,
        connections: Connections,
        reports: DeliveryReports,
        ids: IdGenerator,
        clock: Clock,
        settings: Settings,
        rng: random.Random,
        throttle: Throttle,
        *,
        wake_up: WakeUp | None = None,
        clock_ahead: Callable[[], timedelta] = timedelta,
        leases_wait: LeasesWait = lambda connection: False,
    ) -> None:
        self._database = database
        self.writer = SendWriter(ids, reports)
        self._runner = SendRunner(connections, ids, clock, rng)
        self._clock = clock
        self._clock_ahead = clock_ahead
        self._leases_wait = leases_wait
        self._settings = settings
        self._rng = rng
        self._throttle = throttle
        self.wake_up = wake_up or WakeUp()
        self.totals = SendTotals()
        self._claims = SendClaimWriter(store, settings, rng)
        self.attempts = AttemptPool[EndedSend](settings.gateway_slots)
        self.pauses = QueuePauses(LOCAL_PAUSE_MS)
        self._unwritable: dict[int, int] = {}  # row id of a message that could not be given up -> time of the next try
        self._expired_at = 0
        self._latest: int | None = None  # the time of the latest cycle; None until a cycle has examined the times of all gateways
        self._cycle_lock = asyncio.Lock()
        self._stopping = False

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metrics of the dispatcher."""
        totals = self.totals
        metrics.counter(
            "shortener_gateway_attempts",
            "Attempts to hand a message on to a gateway, by reason of the outcome.",
            lambda: {(reason,): count for reason, count in totals.reasons.items()},
            "reason",
        )
        metrics.gauge(
            "shortener_gateway_attempts_in_flight",
            "Attempts to hand a message on that are running, or whose outcome is not yet in the database.",
            lambda: self.attempts.usage.busy,
        )
        metrics.counter("shortener_gateway_sent", "Messages that gateways accepted.", lambda: totals.sent)
        metrics.counter("shortener_gateway_failed", "Messages that could not be sent.", lambda: totals.failed)
        metrics.counter("shortener_gateway_held", "Doubtful messages that were held.", lambda: totals.held)
        metrics.counter(
            "shortener_gateway_doubtful",
            "Attempts whose response is missing, so that the gateway may have accepted the message.",
            lambda: totals.doubtful,
        )
        metrics.counter(
            "shortener_gateway_leases_lost",
            "Outcomes of attempts that were ignored because another process had then claimed the message.",
            lambda: totals.leases_lost,
        )
        metrics.counter(
            "shortener_gateway_breakers_opened",
            "How often a gateway's circuit breaker opened.",
            lambda: totals.breakers_opened,
        )

    async def step(self) -> int:
        """Run one cycle. Return 0 if there was no work. Otherwise return the sum of the recorded outcomes, the started attempts,
        and the messages that were given up or postponed without an attempt.

        Raise StoreUnavailable if the database is unavailable. In this case nothing has changed. After CommitUncertain, the next
        cycle gives back the messages that this cycle has claimed."""
        async with self._cycle_lock:
            ended = self.attempts.ended[:MAX_OUTCOMES]
            if not ended and (self._stopping or not await self._is_due(to_ms(self._clock()))):
                return 0
            throttled = self._throttle.is_busy
            # If the cycle cannot record all outcomes, it claims nothing. Otherwise it could claim messages whose lease has ended
            # but whose outcome is not recorded yet. These messages would be handed on again.
            limit = 0 if len(ended) < len(self.attempts.ended) else self._max_claims(ended, throttled)
            loop = asyncio.get_running_loop()
            began = loop.time()
            try:
                done, started = await self._run_cycle(ended, limit)
            except StoreUnavailable:
                raise
            except Exception:
                log.exception("gateway_cycle_failed")
                done, started = await self._run_in_parts(ended, limit, throttled)
        if throttled and started:
            await asyncio.sleep(self._throttle.pause_for(loop.time() - began))
        return done

    def _max_claims(self, ended: Sequence[EndedSend], throttled: bool) -> int:
        """Return how many messages the next cycle may claim. This cycle also records the ended attempts in `ended`."""
        if self._stopping:
            return 0
        free = self.attempts.usage.free + len(ended)
        return min(free, MAX_STARTS) if throttled else free

    async def _run_cycle(self, ended: Sequence[EndedSend], limit: int, only: int | None = None) -> tuple[int, int]:
        """Record `ended`, the oldest ended attempts. Then claim up to `limit` messages, of all gateways or of the gateway `only`,
        and start their attempts. Return the sum that `step` describes, and the number of started attempts."""
        last: list[_Cycle] = []
        try:
            cycle = await self._database.write_later(self._write_cycle, ended, limit, only, last)
        except CommitUncertain:
            self._give_back(last[-1].claims.attempts if last else ())
            raise
        self.attempts.remove(ended)
        # An exception in these steps must not prevent the start of the claimed attempts, and must not cause the outcomes to be
        # recorded again.
        with after_commit():
            self._account(cycle, ended)
        await self.attempts.start(cycle.claims.attempts, self._create_task)
        attempts = len(cycle.claims.attempts)
        return len(ended) + attempts + len(cycle.given_up) + cycle.claims.postponed, attempts

    def _create_task(self, attempt: SendInFlight) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(attempt))

    async def _run(self, attempt: SendInFlight) -> None:
        try:
            self.attempts.end(await self._runner.run(attempt))
        except Exception:  # the message becomes doubtful when its lease ends, as if the process had died
            log.exception("send_attempt_failed", send=encode(attempt.claim.id))
            self.attempts.release(attempt)
        self.wake_up.notify()

    def _give_back(self, attempts: Sequence[SendInFlight]) -> None:
        """Give claims back in the next cycle, because it is unknown whether they are stored. Their messages were not handed on, so
        they must not become doubtful when their leases end."""
        for attempt in attempts:
            self.attempts.end_unstarted(self._runner.give_back(attempt, None, may_be_unclaimed=True))

    async def _run_in_parts(self, ended: Sequence[EndedSend], limit: int, throttled: bool) -> tuple[int, int]:
        """Repeat a failed cycle in parts. Each outcome, and the claims of each gateway, get their own transaction.

        An outcome that cannot be recorded is dropped. Its message is doubtful when its lease ends. A gateway whose messages
        cannot be claimed is left out for LOCAL_PAUSE_MS. If `limit` is 0, no messages are claimed. Return the same as
        `_run_cycle`."""
        done = started = 0
        for one in ended:
            try:
                await self._run_cycle([one], 0)
            except StoreUnavailable:
                raise
            except Exception:
                log.exception("send_outcome_not_recorded", send=encode(one.change.row.id))
                await self._record_without_attempt(one)
            done += 1
        for gateway_id in await self._database.read(find_waiting) if limit else ():
            try:
                counts = await self._run_cycle([], self._max_claims([], throttled), gateway_id)
            except StoreUnavailable:
                raise
            except Exception:
                log.exception("gateway_not_usable", gateway=gateway_id)
                self.pauses.pause(queue_name(gateway_id), to_ms(self._clock()))
                continue
            done, started = done + counts[0], started + counts[1]
        return done, started

    async def _record_without_attempt(self, ended: EndedSend) -> None:
        """Record an outcome without the row of its attempt, which may be the part that cannot be stored. If this fails too, drop
        the outcome."""
        try:
            await self._run_cycle([replace(ended, change=replace(ended.change, attempt_row=None))], 0)
        except StoreUnavailable:
            raise
        except Exception:
            self.attempts.remove([ended])

    async def flush(self) -> None:
        """Run cycles until every due message was attempted and its outcome is recorded."""
        await self.attempts.flush(self.step)

    async def stop(self, grace: float) -> None:
        """Stop within `grace` seconds: start no attempts, and record those in flight. The message of an attempt that lasts longer
        becomes doubtful."""
        self._stopping = True
        began = asyncio.get_running_loop().time()
        self.wake_up.notify_after(None)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(began + grace):
                async with self._cycle_lock:
                    pass  # wait for a running cycle, which may start attempts
                await self.attempts.drain(self.step, began + grace * 0.8)
        if self.attempts.ended or self.attempts.tasks:
            log.error("outcomes_lost_at_shutdown", messages=self.attempts.usage.busy)

    async def _is_due(self, now: int) -> bool:
        """Return whether a message is pending, or whether it is time to look for messages that are too old."""
        return self._is_expiry_due(now) or await self._database.read(_has_pending)

    def _write_cycle(
        self, connection: Connection, ended: Sequence[EndedSend], limit: int, only: int | None, last: list[_Cycle]
    ) -> _Cycle:
        """Record outcomes and claim up to `limit` messages in one transaction. Append the result to `last` before the commit.

        If `only` is not None, claim only messages of the gateway with this id. The method does not change the dispatcher object,
        because the database may run the transaction again."""
        # The time is read here and not in `step`, because this transaction can wait for others before it starts.
        now = to_ms(self._clock())
        cycle = _Cycle(now)
        # `leases_wait` is called after `now` was read. In the opposite order, a step of the clock between the two could be
        # missed.
        waits = self._leases_wait(connection)
        # Every transaction locks gateways before all other rows, so that transactions cannot deadlock.
        locked = lock_health(connection, {one.attempt.claim.gateway_id for one in ended})
        outcomes = [one for one in ended if not one.may_be_unclaimed]
        cycle.written, cycle.events = self.writer.write(connection, [one.change for one in outcomes], now)
        recorded = [one for one in outcomes if one.change.row.id in cycle.written]
        recorded += self._write_returns(connection, cycle, [one for one in ended if one.may_be_unclaimed])
        cycle.opened = write_health(connection, recorded, locked)
        usage, paused = self.attempts.usage_without(ended), self.pauses.with_failures(ended, now)
        if limit > 0 and only is None and not waits and self._is_expiry_due(now):
            validity = timedelta(hours=self._settings.gateway_validity_hours)
            too_old = expire(connection, now, validity, self._skipped(now), self._clock_ahead())
            self._give_up(connection, cycle, too_old)
            cycle.has_expired = len(too_old) < MAX_ROWS
        if limit > 0:
            states = lock_states(connection, now, only, leases_wait=waits)
            if only is None and (self._latest is None or now < self._latest - TOLERANCE_MS):
                cycle.repaired, cycle.has_repaired = repair(connection, now, self._settings.gateway_schedule, self._rng)
                states = lock_states(connection, now, leases_wait=waits) if cycle.repaired else states
            states = [one for one in states if paused.get(one.queue.name, 0) <= now]
            if not waits:
                self._give_up(connection, cycle, find_finished(connection, states, now, self._skipped(now)))
            cycle.claims = self._claims.write(connection, states, usage, limit, now, leases_wait=waits)
            self._give_up(connection, cycle, cycle.claims.changes)
        last.append(cycle)
        return cycle

    def _write_returns(self, connection: Connection, cycle: _Cycle, returns: Sequence[EndedSend]) -> list[EndedSend]:
        """Release claims for which it is unknown whether they were committed. Return the elements of `returns` whose claim was
        stored.

        Outcomes are written by a separate statement, because the transaction that stored a claim may also have stored the outcome
        of the previous attempt of the message."""
        if not returns:
            return []
        stored = find_stored(connection, sends.name, [one.attempt.claim for one in returns])
        changes = [one.change for one in returns if one.attempt.claim in stored]
        written, _ = self.writer.write(connection, changes, cycle.now)
        cycle.written |= written
        return [one for one in returns if one.change in changes and one.change.row.id in written]

    def _give_up(self, connection: Connection, cycle: _Cycle, changes: Sequence[SendChange]) -> None:
        """Write changes of messages that need no attempt, and add the result to the cycle."""
        written = self.writer.write_each(connection, changes, cycle.now)
        cycle.given_up += written.rows
        cycle.events += written.events
        cycle.unwritable += written.unwritable

    def _skipped(self, now: int) -> list[int]:
        """Return the ids of the messages that could not be given up and whose next try is later."""
        return [row for row, until in self._unwritable.items() if now < until <= now + UNWRITABLE_PAUSE_MS][-MAX_UNWRITABLE:]

    def _is_expiry_due(self, now: int) -> bool:
        return not 0 <= now - self._expired_at < EXPIRY_INTERVAL_MS

    def _account(self, cycle: _Cycle, ended: Sequence[EndedSend]) -> None:
        """Update the pauses and the counters, write the log and start the delivery of events, after the transaction was
        committed."""
        now = cycle.now
        if cycle.has_repaired or self._latest is not None:
            self._latest = now if cycle.has_repaired else max(now, self._latest or 0)
        if cycle.repaired:
            log.warning("clock_was_set_back", repaired="messages of gateways, leases, breakers and rates")
        if cycle.has_expired:
            self._expired_at = now
        skipped = {row: self._unwritable[row] for row in self._skipped(now)}
        self._unwritable = skipped | dict.fromkeys(cycle.unwritable, now + UNWRITABLE_PAUSE_MS)
        self._claims.committed(cycle.claims)
        self._wake_at(cycle.claims.wake_at, now)
        totals = self.totals
        for one in ended:
            if one.change.row.id not in cycle.written:
                if one.result is None:  # no attempt was made, so no outcome was lost
                    continue
                totals.leases_lost += 1
                log.warning("send_lease_lost", send=encode(one.change.row.id))
                continue
            if one.result is not None:
                totals.reasons[one.result.reason] += 1
                totals.doubtful += one.result.outcome is SubmitOutcome.DOUBT
            self._count(one.change.row._replace(status=cycle.written[one.change.row.id]))
        for row in cycle.given_up:
            self._count(row)
        self.pauses.update(ended, now)
        totals.breakers_opened += len(cycle.opened)
        for gateway in cycle.opened:
            log.warning("gateway_breaker_opened", gateway=gateway)
        self.writer.published(cycle.events)

    def _count(self, row: FinishedSend) -> None:
        totals = self.totals
        if row.status == SendStatus.SENT:
            totals.sent += 1
        elif row.status == SendStatus.FAILED:
            totals.failed += 1
            log.warning("message_not_sent", send=encode(row.id), error=row.last_error)
        elif row.status == SendStatus.HELD:
            totals.held += 1
            log.warning("message_held", send=encode(row.id), error=row.last_error)

    def _wake_at(self, at: int | None, now: int) -> None:
        """Set a timer that starts a cycle at this time (milliseconds since 1970). None removes the timer."""
        self.wake_up.notify_after(None if at is None or self._stopping else min(max(at - now, 0) / 1000, 60.0))


def _has_pending(connection: Connection) -> bool:
    return connection.execute(select(sends.c.id).where(IS_PENDING).limit(1)).first() is not None
