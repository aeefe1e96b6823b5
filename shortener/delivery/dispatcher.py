"""The dispatcher: makes the attempts of deliveries that are due, and records what came of them.

It works in turns. A turn is one transaction that writes the outcomes of the attempts which have ended and claims as many
deliveries as there are free slots; then the requests of the claimed ones are begun. So a claim is durable before its request, an
outcome after it, and many of both share a commit. A slot is free again when its outcome is durable.

Promises
- A claim spends an attempt and holds a lease that is longer than the attempt can last: everything that an attempt waits for (a
  slot of the sender, the resolver, the peer) is within its deadline, and no attempt begins whose lease has not `LEASE_LEFT` more
  than that left. What a killed process had claimed is due again when the lease ends, with the same event id and the attempt
  spent. An outcome that comes after the lease was lost changes nothing. Leases are compared with `clock`, which processes share
  (storage/clock.py); while theirs differ by less than `LEASE_LEFT` they do not take each other's.
- No lane (a tracker, or the host of callbacks) holds up another: a lane gets no more slots than its concurrency, shared out among
  the processes that deliver (DELIVERY_PROCESSES), nor more than are left free, so that some are left for lanes that have none;
  slots are offered to lanes in turn. Within a lane first attempts and retries get half of the slots each, if both are due.
- A tracker's breaker (health.py) is in the database: all processes keep it, one of them sends the probe.
- A fault of our own (resolver, sockets, store) is not charged: the attempt is given back. Nothing waits for ever all the same:
  what has been kept back for `LONGEST_HOLD` by the breaker or by our own faults, or for `parked_for` by a disabled tracker, ends
  dead, and can be replayed.
- `stop` begins nothing, waits for the attempts under way, records them and hands back what could not end in time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import orjson
import structlog
from sqlalchemy import ColumnElement, Connection, literal_column, or_, select, update

from shortener.delivery import queries
from shortener.delivery.health import TrackerHealth
from shortener.delivery.outcomes import AttemptOutcome, OutcomeKind, classify_response, next_delay
from shortener.delivery.queries import FIRSTS, RETRIES, ClaimedDelivery, ClaimRequest, DeliveryQueue, FinishedDelivery, TrackerState
from shortener.delivery.request import DeliveryTarget, ForbiddenHost, callback
from shortener.delivery.sender import Sender, SendResult
from shortener.delivery.throttle import Throttle
from shortener.delivery.trackers import Trackers
from shortener.errors import StoreUnavailable
from shortener.ids import IdGenerator, encode
from shortener.jobs import WakeUp
from shortener.metrics import Metrics
from shortener.model import Clock, DeliveryStatus, Topic
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import from_ms, to_ms

log = structlog.get_logger(__name__)

#: Milliseconds that a lease outlasts the deadline of its attempt: time for recording the outcome, and for clocks that differ.
LEASE_MARGIN = 10_000
#: What must be left of that when the request is begun. A claim that took longer to commit is handed back instead.
LEASE_LEFT = LEASE_MARGIN // 2
#: Milliseconds until an attempt that failed by our own fault is made again; its lane rests in this process for as long.
OWN_FAULT_PAUSE = 15_000
LONGEST_HOLD = timedelta(days=5)
#: Lanes that one turn looks at, and outcomes that it writes: bounds of a transaction that on SQLite holds the one writer.
LANES, OUTCOMES = 256, 512
EXPIRED_AT_ONCE = 500
#: Attempts begun in one turn while hits come in, and in one go at any time: each costs the event loop a fraction of a millisecond
#: when it begins and when it ends.
PIECE = 8
#: How often a tracker's last success is written, in ms: not for every delivery.
SUCCESS_NOTED_EVERY = 1000
LONGEST_DETAIL = 500


@dataclass(slots=True)
class DispatcherTotals:
    """For /metrics, since the process began."""

    reasons: Counter[str] = field(default_factory=Counter)  # attempts by row of outcomes.OUTCOME_TABLE
    delivered: int = 0
    retried: int = 0
    dead: int = 0
    own_faults: int = 0
    handed_back: int = 0
    leases_lost: int = 0
    trackers_disabled: int = 0
    breakers_opened: int = 0
    turns: int = 0


@dataclass(frozen=True, slots=True)
class _AttemptInFlight:
    claim: ClaimedDelivery
    target: DeliveryTarget | None  # None: it cannot be used
    probe: bool


@dataclass(frozen=True, slots=True)
class _FinishedAttempt:
    """An attempt that has ended, as it is to be written. `outcome` None: handed back."""

    flight: _AttemptInFlight
    finish: FinishedDelivery
    attempt_row: tuple[object, ...] | None
    outcome: AttemptOutcome | None
    at: int


@dataclass(slots=True)
class _DispatchCycle:
    """What a committed turn did."""

    flights: list[_AttemptInFlight] = field(default_factory=list)
    targets: dict[int, DeliveryTarget] = field(default_factory=dict)  # those that were read anew
    after: str = ""  # the lane that the next turn begins behind
    more: bool = False  # there may be due lanes that this turn did not look at
    expired: int = 0
    leases_lost: int = 0
    disabled: list[int] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    noted: list[int] = field(default_factory=list)  # trackers whose last success was written


class Dispatcher:
    def __init__(
        self,
        database: Database,
        trackers: Trackers,
        sender: Sender,
        ids: IdGenerator,
        clock: Clock,
        settings: Settings,
        rng: random.Random,
        courtesy: Throttle,
    ) -> None:
        self._database = database
        self._trackers = trackers
        self._sender = sender
        self._ids = ids
        self._clock = clock
        self._settings = settings
        self._rng = rng
        self._courtesy = courtesy
        self.wake_up = WakeUp()
        self.totals = DispatcherTotals()
        self._flights: set[asyncio.Task[None]] = set()
        self._ended: list[_FinishedAttempt] = []
        self._busy: Counter[str] = Counter()  # slots by lane
        self._targets: dict[int, DeliveryTarget] = {}
        self._noted: dict[int, int] = {}  # tracker -> when its last success was written
        self._resting: dict[str, int] = {}  # lane -> until when, after a fault of our own
        self._after = ""
        self._turning = asyncio.Lock()
        self._stopping = False

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the totals on /metrics."""
        totals = self.totals
        metrics.counter(
            "shortener_delivery_attempts",
            "Attempts of deliveries, by what came of them.",
            lambda: {(reason,): count for reason, count in totals.reasons.items()},
            "outcome",
        )
        metrics.gauge("shortener_deliveries_in_flight", "Slots that are taken.", lambda: self.in_flight)
        for name, help in (
            ("delivered", "Deliveries that were taken."),
            ("retried", "Attempts that failed and are made again."),
            ("dead", "Deliveries that ended without success."),
            ("own_faults", "Attempts that failed by a fault of this host, and are not charged."),
            ("handed_back", "Attempts that were given back: at a stop, or because too little of their lease was left."),
            ("leases_lost", "Outcomes that came after the lease was over."),
            ("turns", "Transactions of the dispatcher."),
        ):
            metrics.counter(f"shortener_deliveries_{name}", help, partial(getattr, totals, name))
        metrics.counter("shortener_trackers_disabled", "Trackers disabled by a 410.", lambda: totals.trackers_disabled)
        metrics.counter("shortener_breakers_opened", "Breakers of trackers that opened.", lambda: totals.breakers_opened)

    @property
    def in_flight(self) -> int:
        """Slots that are taken: attempts under way, and outcomes that are not yet durable."""
        return self._busy.total()

    async def step(self) -> int:
        """One turn; returns how many outcomes it wrote and attempts it began. Raises StoreUnavailable: then nothing changed."""
        loop = asyncio.get_running_loop()
        async with self._turning:
            ended = self._ended[:OUTCOMES]
            if self._stopping and not ended:
                return 0
            began, gentle = loop.time(), self._courtesy.is_busy
            slots = 0 if self._stopping else self._settings.delivery_slots - self.in_flight + len(ended)
            most = min(slots, PIECE) if gentle else slots
            turn = await self._database.write(self._turn, ended, self._busy.copy(), self._after, most)
            del self._ended[: len(ended)]
            self._account(turn, ended)
            for number, flight in enumerate(turn.flights, 1):
                self._busy[flight.claim.lane] += 1
                task = loop.create_task(self._fly(flight))
                self._flights.add(task)
                task.add_done_callback(self._flights.discard)
                if number % PIECE == 0:
                    await asyncio.sleep(0)  # let hits in between
        if gentle and turn.flights:
            await asyncio.sleep(self._courtesy.rest(loop.time() - began))  # hits have the store meanwhile
        return len(ended) + len(turn.flights) + turn.expired + turn.more

    async def flush(self) -> None:
        """Make every attempt that is due, and record it."""
        while await self.step() or self._flights or self._ended:
            if self._flights and not self._ended:
                await asyncio.wait(self._flights, return_when=asyncio.FIRST_COMPLETED)

    async def stop(self, grace: float) -> None:
        """Begin nothing more; wait up to `grace` seconds for the attempts under way, record them, hand back the others."""
        self._stopping = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout_at(began + grace):
                async with self._turning:
                    pass  # a turn under way may still begin flights
                if self._flights:
                    await asyncio.wait(self._flights, timeout=began + grace * 0.8 - loop.time())
                for task in self._flights:
                    task.cancel()
                if self._flights:
                    await asyncio.wait(self._flights)
                while self._ended:
                    try:
                        await self.step()
                    except StoreUnavailable:
                        await asyncio.sleep(0.1)  # it may be back before the grace is over
        except TimeoutError:
            # Their leases run out, and they are attempted again.
            log.error("outcomes_lost_at_shutdown", deliveries=self.in_flight)

    # One attempt.

    async def _fly(self, flight: _AttemptInFlight) -> None:
        claim, target = flight.claim, flight.target
        began = self._clock()
        deadline = target.timeout if target is not None else 0.0
        if claim.lease_until - to_ms(began) < round(deadline * 1000) + LEASE_LEFT:
            # The commit, or the loop, took so long that another process might begin the same before this one ends.
            log.warning("lease_too_short", delivery=encode(claim.id))
            self._ended.append(self._handed_back(flight, "lease_too_short"))
            self.wake_up.notify()
            return
        try:
            answer = await self._send(claim, target, began)
        except asyncio.CancelledError:
            ended = self._handed_back(flight, "interrupted")
        else:
            ended = self._judged(flight, answer, began)
        self._ended.append(ended)
        self.wake_up.notify()

    async def _send(self, claim: ClaimedDelivery, target: DeliveryTarget | None, at: datetime) -> SendResult:
        if target is None:
            return SendResult(None, b"", "internal_error", "what is stored of the tracker cannot be used", 0, ours=True)
        try:
            facts = orjson.loads(claim.facts) if claim.facts else {}
            request = target.request(
                facts, claim.event, Topic(claim.topic), claim.attempt, at, allow_http=self._settings.allow_http_targets
            )
        except ForbiddenHost as error:
            return SendResult(None, b"", "blocked_address", str(error), 0)
        except Exception:
            log.exception("delivery_not_renderable", delivery=encode(claim.id))
            return SendResult(None, b"", "internal_error", "the request could not be made", 0, ours=True)
        return await self._sender.send(request, target.timeout)

    def _judged(self, flight: _AttemptInFlight, answer: SendResult, began: datetime) -> _FinishedAttempt:
        claim, target = flight.claim, flight.target
        now = self._clock()
        now_ms = to_ms(now)
        if target is None or answer.ours:
            return self._own_fault(flight, answer, now_ms)
        outcome = classify_response(answer, target.success, now)
        self.totals.reasons[outcome.reason] += 1
        spent = claim.attempt - claim.base_attempt
        status, next_at, finished_at = DeliveryStatus.DEAD, claim.lease_until, None
        if outcome.kind is OutcomeKind.DELIVERED:
            status = DeliveryStatus.DELIVERED
        elif outcome.kind is OutcomeKind.RETRY and spent < target.max_attempts:
            status = DeliveryStatus.PENDING
            wait = next_delay(spent, target.schedule, self._rng)
            next_at = now_ms + round(wait * 1000)
            if outcome.not_before is not None:
                next_at = max(next_at, to_ms(outcome.not_before))
        if status is not DeliveryStatus.PENDING:
            finished_at = now_ms
        error = None if status is DeliveryStatus.DELIVERED else answer.error or outcome.reason
        finish = FinishedDelivery(
            claim.id,
            claim.attempt,
            claim.lease_until,
            int(status),
            claim.attempt,
            RETRIES,
            next_at,
            finished_at,
            answer.status,
            error,
        )
        attempt_row = (
            self._ids(),
            claim.id,
            claim.attempt,
            to_ms(began),
            answer.milliseconds,
            answer.status,
            error,
            text_of(answer.detail, LONGEST_DETAIL) or None,
            text_of(answer.excerpt),
        )
        return _FinishedAttempt(flight, finish, attempt_row, outcome, now_ms)

    def _own_fault(self, flight: _AttemptInFlight, answer: SendResult, now: int) -> _FinishedAttempt:
        """The attempt is given back; not logged as one, but visible as the delivery's last error."""
        self.totals.own_faults += 1
        self.totals.reasons["own_fault"] += 1
        log.warning("own_fault", delivery=encode(flight.claim.id), error=answer.error, detail=answer.detail)
        if now - flight.claim.created_at > LONGEST_HOLD // timedelta(milliseconds=1):
            given_back = self._give_back(flight.claim, now, answer.error)._replace(status=int(DeliveryStatus.DEAD), finished_at=now)
        else:
            given_back = self._give_back(flight.claim, now + OWN_FAULT_PAUSE, answer.error)
        self._resting[flight.claim.lane] = now + OWN_FAULT_PAUSE
        return _FinishedAttempt(flight, given_back, None, AttemptOutcome(OutcomeKind.RETRY, "own_fault", charged=False), now)

    def _handed_back(self, flight: _AttemptInFlight, why: str) -> _FinishedAttempt:
        now = to_ms(self._clock())
        return _FinishedAttempt(flight, self._give_back(flight.claim, now, why), None, None, now)

    def _give_back(self, claim: ClaimedDelivery, next_at: int, error: str | None) -> FinishedDelivery:
        queue = RETRIES if claim.attempt > 1 else FIRSTS
        pending = int(DeliveryStatus.PENDING)
        return FinishedDelivery(
            claim.id, claim.attempt, claim.lease_until, pending, claim.attempt - 1, queue, next_at, None, None, error
        )

    # After a commit.

    def _account(self, turn: _DispatchCycle, ended: Sequence[_FinishedAttempt]) -> None:
        totals = self.totals
        totals.turns += 1
        totals.leases_lost += turn.leases_lost
        totals.dead += turn.expired
        totals.trackers_disabled += len(turn.disabled)
        totals.breakers_opened += len(turn.opened)
        for one in ended:
            lane = one.flight.claim.lane
            self._busy[lane] -= 1
            if not self._busy[lane]:
                del self._busy[lane]
            if one.outcome is None:
                totals.handed_back += 1
            elif one.finish.status == DeliveryStatus.DELIVERED:
                totals.delivered += 1
            elif one.finish.status == DeliveryStatus.DEAD:
                totals.dead += 1
                log.warning("delivery_dead", delivery=encode(one.finish.id), lane=lane, error=one.finish.last_error)
            elif one.outcome.charged:
                totals.retried += 1
        if turn.leases_lost:
            log.warning("leases_lost", deliveries=turn.leases_lost)
        for tracker in turn.disabled:
            log.warning("tracker_disabled", tracker=tracker, reason=GONE)
        for tracker in turn.opened:
            log.warning("breaker_opened", tracker=tracker)
        now = to_ms(self._clock())
        for tracker in turn.noted:
            self._noted[tracker] = now
        if self._resting:
            self._resting = {lane: until for lane, until in self._resting.items() if until > now}
        self._targets |= turn.targets
        self._after = turn.after

    # In the transaction. Nothing here changes the dispatcher: the transaction may be run again.

    def _turn(
        self, connection: Connection, ended: Sequence[_FinishedAttempt], busy: Counter[str], after: str, most: int
    ) -> _DispatchCycle:
        """Write what has ended, and claim up to `most`."""
        turn = _DispatchCycle(after=after)
        now = to_ms(self._clock())
        if ended:
            self._write_outcomes(connection, turn, ended, now)
            busy.subtract(one.flight.claim.lane for one in ended)
        if most > 0:
            free = self._settings.delivery_slots - busy.total()
            self._claim(connection, turn, busy, free, most, now)
        return turn

    def _write_outcomes(self, connection: Connection, turn: _DispatchCycle, ended: Sequence[_FinishedAttempt], now: int) -> None:
        written = queries.finish(connection, [one.finish for one in ended])
        turn.leases_lost = len(ended) - written
        queries.insert_attempts(connection, [one.attempt_row for one in ended if one.attempt_row is not None])
        by_tracker: dict[int, list[_FinishedAttempt]] = {}
        for one in ended:
            if one.flight.claim.tracker_id is not None and (one.outcome is not None or one.flight.probe):
                by_tracker.setdefault(one.flight.claim.tracker_id, []).append(one)
        dirty = {tracker for tracker, outcomes in by_tracker.items() if self._changes_health(tracker, outcomes, now)}
        for tracker, state in queries.locked_states(connection, dirty).items():
            health = state.health
            for one in by_tracker[tracker]:
                health = _after(health, one)
            values: dict[str, Any] = _health_values(health) if health != state.health else {}
            if state.enabled and any(one.outcome and one.outcome.kind is OutcomeKind.DISABLE for one in by_tracker[tracker]):
                values |= {"enabled": False, "disabled_reason": GONE, "revision": state.revision + 1, "updated_at": from_ms(now)}
                turn.disabled.append(tracker)
            if values:
                connection.execute(update(schema.trackers).where(schema.trackers.c.id == tracker).values(values))
            if health.open_until is not None and state.health.open_until is None:
                turn.opened.append(tracker)
            if health.open_until is None and not health.failures_in_row:
                turn.noted.append(tracker)  # else the next success has to be written

    def _changes_health(self, tracker: int, ended: Sequence[_FinishedAttempt], now: int) -> bool:
        """Whether the tracker's row has to be looked at: not for every success of a healthy one."""
        if any(one.flight.probe or one.finish.status != DeliveryStatus.DELIVERED for one in ended):
            self._noted.pop(tracker, None)  # only ever costs a look too many
            return True
        noted = self._noted.get(tracker)
        return noted is None or not noted <= now < noted + SUCCESS_NOTED_EVERY

    def _claim(self, connection: Connection, turn: _DispatchCycle, busy: Counter[str], free: int, most: int, now: int) -> None:
        lanes, last = _lanes_in_turn(connection, turn.after)
        due = [lane for lane in lanes if _is_due(lane, now) and self._resting.get(lane.name, 0) <= now]
        states = queries.tracker_states(connection, {tracker for lane in due if (tracker := _tracker_of(lane.name)) is not None})
        targets = self._present_targets(connection, turn, states)

        offers: list[_Candidate] = []
        hit_policies: set[int] = set()  # trackers whose breaker has a say
        for lane in due:
            offer = self._offer(connection, turn, lane, states, targets, now)
            if offer is not None and offer.room(busy, free) > 0:
                offers.append(offer)
                if offer.state is not None and not offer.state.health.is_plain:
                    hit_policies.add(offer.state.id)
        if hit_policies:
            held = queries.free_states(connection, hit_policies)
            offers = [
                offer for offer in offers if offer.state is None or offer.state.id not in hit_policies or offer.state.id in held
            ]
            for offer in offers:
                if offer.state is not None and offer.state.id in held:
                    offer.state = held[offer.state.id]

        share = max(1, most // len(offers)) if offers else 0
        wants: list[ClaimRequest] = []
        taken: list[_Candidate] = []
        for offer in offers:
            if most <= 0:
                break
            offer.most = min(share, most, offer.room(busy, free), self._allowed(offer, busy, now))
            if offer.most <= 0:
                continue
            free -= offer.most
            most -= offer.most
            taken.append(offer)
            wants += self._wants(offer, now)
            turn.after = offer.lane.name
        if not taken:
            # On to the next lanes, once around.
            turn.after, turn.more = ("", False) if last else (lanes[-1].name, True)

        claimed = queries.claim(connection, wants, now)
        count = Counter((claim.lane, FIRSTS if claim.attempt == 1 else RETRIES) for claim in claimed)
        # A queue that gave less than it was asked for has nothing more that is due; see _note_release.
        left = {want.lane for want in wants if count[want.lane, want.queue] == want.most}
        probes: set[int] = set()
        for offer in taken:
            if offer.state is not None and offer.state.id in hit_policies:
                name = offer.lane.name
                if self._note_release(connection, offer, count[name, FIRSTS] + count[name, RETRIES], name in left, now):
                    probes.add(offer.state.id)
        by_lane = {offer.lane.name: offer for offer in taken}
        turn.flights = [
            _AttemptInFlight(claim, self._target_of(claim, by_lane[claim.lane]), claim.tracker_id in probes) for claim in claimed
        ]

    def _offer(
        self,
        connection: Connection,
        turn: _DispatchCycle,
        lane: DeliveryQueue,
        states: dict[int, TrackerState],
        targets: dict[int, DeliveryTarget],
        now: int,
    ) -> _Candidate | None:
        """What the lane may be offered; None when its deliveries have to wait, or to end, now."""
        tracker = _tracker_of(lane.name)
        if tracker is None:
            most = self._share(self._settings.delivery_slots_per_tracker)
            return _Candidate(lane, None, None, most, self._settings.delivery_timeout)
        state = states.get(tracker)
        if state is None:
            turn.expired += _expire(connection, lane.name, "tracker_deleted", now)
            return None
        if not state.enabled:
            parked_for = timedelta(days=self._settings.event_retention_days)
            turn.expired += _expire_old(connection, lane, "tracker_disabled", now, parked_for)
            return None
        if state.health.breaker(now) == "open":
            turn.expired += _expire_old(connection, lane, "breaker_open", now, LONGEST_HOLD)
            return None
        target = targets.get(tracker)
        if target is None:
            return _Candidate(lane, state, None, 1, self._settings.delivery_timeout)
        return _Candidate(lane, state, target, self._share(target.concurrency), target.timeout)

    def _share(self, concurrency: int) -> int:
        """This process's part of what a tracker bears at once: its customer knows nothing of our processes."""
        return max(1, concurrency // max(self._settings.delivery_processes, self._settings.workers))

    def _allowed(self, offer: _Candidate, busy: Counter[str], now: int) -> int:
        """What the tracker's breaker lets through."""
        if offer.state is None:
            return self._settings.delivery_slots
        health = offer.state.health
        match health.breaker(now):
            case "open":  # another process has sent the probe meanwhile
                return 0
            case "half_open":
                return 0 if busy[offer.lane.name] else 1
        allowance = health.allowance(now, self._settings.delivery_recovery_rate)
        return self._settings.delivery_slots if allowance is None else allowance

    def _wants(self, offer: _Candidate, now: int) -> list[ClaimRequest]:
        lease_until = now + round(offer.timeout * 1000) + LEASE_MARGIN
        lane = offer.lane
        firsts = lane.first_due is not None and lane.first_due <= now
        retries = lane.retry_due is not None and lane.retry_due <= now
        if firsts and retries:
            # The odd one goes to either, by lot: taking turns could fall into step with the turns of the lanes.
            half = (offer.most + self._rng.getrandbits(1)) // 2
            counts = ((FIRSTS, half), (RETRIES, offer.most - half))
        else:
            counts = ((FIRSTS if firsts else RETRIES, offer.most), (RETRIES, 0))
        return [ClaimRequest(lane.name, queue, most, lease_until) for queue, most in counts if most]

    def _note_release(self, connection: Connection, offer: _Candidate, count: int, more: bool, now: int) -> bool:
        """Write down what the breaker let go, `more` of it being due; True for a probe."""
        assert offer.state is not None
        health = offer.state.health
        probe = health.open_until is not None and count > 0
        if probe:
            health = health.probing(now + round(offer.timeout * 1000) + LEASE_MARGIN)
        elif health.recovering_at is not None:
            if count:
                health = health.released(count, now, self._settings.delivery_recovery_rate)
            if not more:
                health = health.recovered()
        if health != offer.state.health:
            where = schema.trackers.c.id == offer.state.id
            connection.execute(update(schema.trackers).where(where).values(_health_values(health)))
        return probe

    def _present_targets(
        self, connection: Connection, turn: _DispatchCycle, states: dict[int, TrackerState]
    ) -> dict[int, DeliveryTarget]:
        """The targets of these trackers; those that changed since they were read are read again."""
        found: dict[int, DeliveryTarget] = {}
        stale = []
        for tracker, state in states.items():
            known = self._targets.get(tracker)
            if known is not None and known.revision == state.revision:
                found[tracker] = known
            elif state.enabled:
                stale.append(tracker)
        if stale:
            for row in connection.execute(select(schema.trackers).where(schema.trackers.c.id.in_(stale))):
                try:
                    found[row.id] = turn.targets[row.id] = self._trackers.target(row)
                except Exception:
                    log.exception("tracker_not_usable", tracker=row.id)
        return found

    def _target_of(self, claim: ClaimedDelivery, offer: _Candidate) -> DeliveryTarget | None:
        if claim.callback_url is None:
            return offer.target
        settings = self._settings
        try:
            return callback(
                claim.callback_url,
                max_attempts=settings.delivery_attempts,
                timeout=settings.delivery_timeout,
                concurrency=settings.delivery_slots_per_tracker,
                schedule=settings.delivery_schedule,
            )
        except Exception:
            log.exception("callback_not_usable", delivery=encode(claim.id))
            return None


GONE = "it answered 410 Gone"


@dataclass(slots=True)
class _Candidate:
    """A lane that something is due in and that may be served. `state` None: callbacks of a host."""

    lane: DeliveryQueue
    state: TrackerState | None
    target: DeliveryTarget | None
    concurrency: int
    timeout: float
    most: int = 0

    def room(self, busy: Counter[str], free: int) -> int:
        return min(self.concurrency, free) - busy[self.lane.name]


def _lanes_in_turn(connection: Connection, after: str) -> tuple[list[DeliveryQueue], bool]:
    """Up to LANES lanes behind `after` and then from the beginning, and whether the last of all lanes is among them."""
    lanes = queries.lanes(connection, after, LANES)
    last = len(lanes) < LANES
    if after and last:
        lanes += [lane for lane in queries.lanes(connection, "", LANES - len(lanes)) if lane.name <= after]
    return lanes, last


def _is_due(lane: DeliveryQueue, now: int) -> bool:
    return (lane.first_due is not None and lane.first_due <= now) or (lane.retry_due is not None and lane.retry_due <= now)


def _tracker_of(lane: str) -> int | None:
    return int(lane[1:]) if lane.startswith("t") else None


def _after(health: TrackerHealth, one: _FinishedAttempt) -> TrackerHealth:
    outcome, probe = one.outcome, one.flight.probe
    if outcome is None or not outcome.charged:
        # A probe that told nothing: another may go, at once if this one was handed back.
        until = one.at if outcome is None else one.at + OWN_FAULT_PAUSE
        return health.probing(until) if probe and health.open_until is not None else health
    if outcome.kind is OutcomeKind.DELIVERED:
        return health.succeeded(one.at)
    quiet_until = None if outcome.not_before is None else to_ms(outcome.not_before)
    return health.failed(one.at, probe=probe, quiet_until=quiet_until)


def _health_values(health: TrackerHealth) -> dict[str, Any]:
    times = ("open_until", "recovering_at", "last_success_at", "last_failure_at")
    values: dict[str, Any] = {name: None if (at := getattr(health, name)) is None else from_ms(at) for name in times}
    return values | {"failures_in_row": health.failures_in_row}


#: Written into the statement: with a parameter, the partial index could not be used.
_IS_PENDING = schema.deliveries.c.status == literal_column("0")


def _expire_old(connection: Connection, lane: DeliveryQueue, error: str, now: int, held_for: timedelta) -> int:
    """End what was due that long ago."""
    before = now - held_for // timedelta(milliseconds=1)
    columns = schema.deliveries.c
    return sum(
        _expire(connection, lane.name, error, now, columns.queue == queue, columns.next_at < from_ms(before))
        for queue, due in ((FIRSTS, lane.first_due), (RETRIES, lane.retry_due))
        if due is not None and due < before
    )


def _expire(connection: Connection, lane: str, error: str, now: int, *which: ColumnElement[bool]) -> int:
    """End some deliveries of a lane that are not under way; returns how many."""
    table = schema.deliveries
    columns = table.c
    idle = or_(columns.lease_until.is_(None), columns.lease_until <= from_ms(now))
    some = select(columns.id).where(columns.lane == lane, _IS_PENDING, idle, *which).limit(EXPIRED_AT_ONCE)
    values = {
        "status": DeliveryStatus.DEAD.value,
        "finished_at": from_ms(now),
        "lease_until": None,
        "last_error": error,
    }
    # The conditions once more: on PostgreSQL another process may just have claimed one of them.
    return connection.execute(update(table).where(columns.id.in_(some), _IS_PENDING, idle).values(values)).rowcount


def text_of(raw: str | bytes, limit: int | None = None) -> str:
    """What a peer sent, as text that a database can hold."""
    text = (raw if isinstance(raw, bytes) else raw.encode("utf-8", "replace")).decode("utf-8", "replace")
    return text.replace("\x00", "\ufffd")[:limit]
