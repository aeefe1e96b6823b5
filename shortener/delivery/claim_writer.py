"""This module claims due deliveries in the database, so that only this process attempts them until their leases end.

It reads the queues that have due deliveries and the state of their trackers. `claims.plan_claims` decides how many deliveries of
each queue are claimed, and this module writes the claims and the new state of the trackers. The deliveries of a disabled tracker or
application wait, and become dead when they have waited too long (expiry.py). `ClaimWriter.write` does not change the `ClaimWriter`
object, because the database may run the transaction again. `ClaimWriter.committed` changes it after the commit.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Connection, select

from shortener.delivery import dispatch_queries
from shortener.delivery.attempt import AttemptInFlight
from shortener.delivery.claims import Candidate, SlotUsage, available_slots, blocked_applications, plan_claims
from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES, ClaimedDelivery, ClaimRequest, DeliveryQueue, TrackerState
from shortener.delivery.expiry import MAX_HOLD, expire_overdue, expire_queue
from shortener.delivery.processes import ProcessShare
from shortener.delivery.queue_names import application_of, is_callback, tracker_of
from shortener.delivery.queue_walk import Position, QueueWalk
from shortener.delivery.request import DeliveryTarget, Secrets, callback
from shortener.delivery.trackers import Trackers
from shortener.ids import DELIVERY_IDS, IdGenerator
from shortener.model import mutable_record
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.clock_guard import LeasesWait

log = structlog.get_logger(__name__)

#: The dispatcher waits at least this long before it examines a queue with a limited rate again.
MIN_RATE_PAUSE_MS = 20


@mutable_record
class ClaimResult:
    """The result of one transaction that claimed deliveries.

    `position` is the place in the queues from which the next dispatch cycle continues. `more` is true if the next cycle must
    examine further queues. `targets` contains the targets that were read from the database, by tracker id.
    `expired` is the number of deliveries that became dead because they waited too long or their tracker was deleted. `wake_at` is
    the time of the next dispatch cycle if the rate of a tracker or the pause of callbacks delays a delivery; otherwise None."""

    position: Position
    attempts: list[AttemptInFlight] = field(default_factory=list)
    targets: dict[int, DeliveryTarget] = field(default_factory=dict)
    more: bool = False
    expired: int = 0
    wake_at: int | None = None

    def wake_not_later_than(self, at: int) -> None:
        """Set `wake_at` to the given time if the given time is earlier than the current value."""
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)


class ClaimWriter:
    """A writer of claims. It caches the target of each tracker until the revision of the tracker changes."""

    def __init__(
        self,
        trackers: Trackers,
        settings: Settings,
        rng: random.Random,
        ids: IdGenerator,
        clock_ahead: Callable[[], timedelta] = timedelta,
        leases_wait: LeasesWait = lambda connection: False,
    ) -> None:
        self._trackers = trackers
        self._clock_ahead = clock_ahead
        self._leases_wait = leases_wait
        self._ids = ids
        self._settings = settings
        self._rng = rng
        self._targets: dict[int, DeliveryTarget] = {}
        self._position = Position()

    def committed(self, result: ClaimResult) -> None:
        """Update the cached targets and the position in the queues after the transaction was committed."""
        self._targets |= result.targets
        self._position = result.position

    def write(
        self,
        connection: Connection,
        usage: SlotUsage,
        limit: int,
        paused: Mapping[str, int],
        now: int,
        share: ProcessShare,
        responsive: Collection[str],
    ) -> ClaimResult:
        """Claim up to `limit` deliveries, as a part of the caller's transaction.

        `paused` contains the queues to skip, each with the time at which its pause ends. `share` determines how many of the
        attempts that a queue may have in flight belong to this process. `responsive` contains the names of the callback queues
        whose host responded to the last attempt. Times are milliseconds since 1970."""
        result = ClaimResult(self._position)
        if limit <= 0:
            return result
        blocked = blocked_applications(usage)
        walk = QueueWalk(connection, self._position, blocked, now)
        due = [queue for queue in walk.queues if queue.is_due(now) and paused.get(queue.name, 0) <= now]
        ids = {tracker for queue in due if (tracker := tracker_of(queue.name)) is not None}
        disabled = dispatch_queries.disabled_applications(connection) if due else {}
        states = dispatch_queries.tracker_states(connection, ids)
        targets = self._current_targets(connection, result, states)
        candidates: dict[str, Candidate] = {}
        callback_candidates = 0
        for queue in due:
            # This transaction makes at most `limit` claims, so it needs at most `limit` callback queues as candidates.
            if is_callback(queue.name) and (callback_candidates == limit or application_of(queue.name) in blocked):
                continue
            candidate = self._candidate(connection, result, queue, states, targets, disabled, now)
            if candidate is None:
                continue
            candidate.concurrency = share.of(candidate.concurrency, queue.name)
            if candidate.health is None and queue.name not in responsive:
                candidate.concurrency = min(candidate.concurrency, 1)
            if available_slots(candidate, usage, is_only_queue=True) > 0:
                candidates[queue.name] = candidate
                callback_candidates += is_callback(queue.name)
        limited = _lock_limited(connection, candidates, result, now)
        requests = plan_claims(
            list(candidates.values()),
            usage,
            limit,
            now=now,
            recovery_rate=self._settings.delivery_recovery_rate,
            rng=self._rng,
        )
        result.position, result.more = walk.next_position(candidates, requests)
        if walk.resumes_at is not None:
            result.wake_not_later_than(walk.resumes_at)
        claimed = dispatch_queries.claim(connection, requests, now, takes_lost=not self._leases_wait(connection))
        probes = self._write_releases(connection, result, limited, requests, claimed, now)
        result.attempts = self._attempts(connection, claimed, candidates, targets, probes, now)
        return result

    def _candidate(
        self,
        connection: Connection,
        result: ClaimResult,
        queue: DeliveryQueue,
        states: Mapping[int, TrackerState],
        targets: Mapping[int, DeliveryTarget],
        disabled: Mapping[int, int],
        now: int,
    ) -> Candidate | None:
        """Return the queue as a candidate from which deliveries can be claimed. Return None if the deliveries of the queue must
        wait, or if this call has made them dead."""
        settings = self._settings
        tracker = tracker_of(queue.name)
        # If the clock jumped ahead, each time limit is extended by the size of the jump, so that the jump makes no delivery dead.
        ahead = self._clock_ahead()
        retention = timedelta(days=settings.event_retention_days) + ahead
        if tracker is None:
            application = application_of(queue.name)
            if application is not None and application in disabled:
                error, since = "application_disabled", disabled[application]
                result.expired += expire_overdue(connection, self._ids, queue, error, now, retention, since)
                return None
            return Candidate(queue, application, settings.delivery_slots_per_tracker, settings.delivery_timeout)
        state = states.get(tracker)
        if state is None:
            # After a step of the clock, the lease of an attempt in flight can seem to have ended. The delivery of such an attempt
            # must not become dead.
            if self._leases_wait(connection):
                return None
            result.expired += expire_queue(connection, self._ids, queue.name, "tracker_deleted", now)
            return None
        if not state.enabled:
            result.expired += expire_overdue(connection, self._ids, queue, "tracker_disabled", now, retention, state.updated_at)
            return None
        if state.application_id in disabled:
            since = disabled[state.application_id]
            result.expired += expire_overdue(connection, self._ids, queue, "application_disabled", now, retention, since)
            return None
        if state.health.breaker(now) == "open":
            since = state.health.opened_at or 0
            result.expired += expire_overdue(connection, self._ids, queue, "breaker_open", now, MAX_HOLD + ahead, since)
            return None
        target = targets.get(tracker)
        if target is None:  # the stored tracker cannot be used, so the attempt will be a local failure
            return Candidate(queue, state.application_id, 1, settings.delivery_timeout, state.health, state.pace)
        return Candidate(queue, state.application_id, target.concurrency, target.timeout, state.health, state.pace)

    def _write_releases(
        self,
        connection: Connection,
        result: ClaimResult,
        limited: Mapping[str, Candidate],
        requests: Sequence[ClaimRequest],
        claimed: Sequence[ClaimedDelivery],
        now: int,
    ) -> set[str]:
        """Update the circuit breakers and the rates of the locked trackers after their deliveries were claimed. Return the queues
        whose claimed delivery is the probe of an open circuit breaker.

        `limited` contains the candidates with locked trackers, by queue name."""
        counts = Counter((claim.queue, FIRST_ATTEMPTS if claim.attempt == 1 else RETRIES) for claim in claimed)
        # If fewer deliveries were claimed than requested, the queue has no further due deliveries.
        has_more = {request.queue for request in requests if counts[request.queue, request.part] == request.limit}
        requested = {request.queue for request in requests}
        recovering = [name for name, candidate in limited.items() if name in requested and candidate.is_recovering]
        backlogs = dispatch_queries.due_queues(connection, recovering, now)
        probes: set[str] = set()
        for name, candidate in limited.items():
            if name in requested:
                count = counts[name, FIRST_ATTEMPTS] + counts[name, RETRIES]
                if self._write_release(connection, candidate, count, name in backlogs, now):
                    probes.add(name)
            if candidate.pace is not None and candidate.pace.limit(now) is not None and (name in has_more or name not in requested):
                result.wake_not_later_than(max(candidate.pace.next_at(now), now + MIN_RATE_PAUSE_MS))
        return probes

    def _write_release(self, connection: Connection, candidate: Candidate, count: int, has_backlog: bool, now: int) -> bool:
        """Update the circuit breaker and the rate of a tracker after `count` of its deliveries were claimed.

        `has_backlog` is true if the tracker is recovering and its queue has further due deliveries. Return whether the claimed
        delivery is the probe of an open circuit breaker."""
        health = stored = candidate.health
        assert health is not None
        assert candidate.pace is not None
        is_probe = health.open_until is not None and count > 0
        if is_probe:
            health = health.probing(candidate.lease_until(now))
        elif health.recovering_at is not None:
            if count:
                health = health.released(count, now, self._settings.delivery_recovery_rate)
            if not has_backlog:
                health = health.recovered()
        pace = candidate.pace.claimed(count, now)
        values: dict[str, Any] = {}
        if health != stored:
            values |= dispatch_queries.health_columns(health)
        if pace != candidate.pace:
            candidate.pace = pace
            values |= dispatch_queries.pace_columns(pace)
        tracker = tracker_of(candidate.queue.name)
        if values and tracker is not None:
            dispatch_queries.update_tracker(connection, tracker, values)
        return is_probe

    def _attempts(
        self,
        connection: Connection,
        claimed: Sequence[ClaimedDelivery],
        candidates: Mapping[str, Candidate],
        targets: Mapping[int, DeliveryTarget],
        probes: Collection[str],
        now: int,
    ) -> list[AttemptInFlight]:
        """Return the attempts to send the claimed deliveries."""
        callbacks = [claim.id for claim in claimed if claim.callback_url is not None]
        secrets = self._trackers.callback_secrets(connection, callbacks) if callbacks else {}
        attempts = []
        for claim in claimed:
            target = self._target_of(claim, targets, secrets.get(claim.id, ()))
            candidate = candidates[claim.queue]
            pace = candidate.pace
            is_paced, rate = (False, None) if pace is None else (pace.rate is not None, pace.limit(now))
            attempts.append(AttemptInFlight(claim, target, candidate.application_id, claim.queue in probes, is_paced, rate))
        return attempts

    def _current_targets(
        self, connection: Connection, result: ClaimResult, states: Mapping[int, TrackerState]
    ) -> dict[int, DeliveryTarget]:
        """Return the targets of the trackers, by tracker id. Read a target from the database if its cached copy is outdated."""
        found: dict[int, DeliveryTarget] = {}
        stale = []
        for tracker, state in states.items():
            cached = self._targets.get(tracker)
            if cached is not None and cached.revision == state.revision:
                found[tracker] = cached
            elif state.enabled:
                stale.append(tracker)
        if stale:
            for row in connection.execute(select(schema.trackers).where(schema.trackers.c.id.in_(stale))):
                try:
                    found[row.id] = result.targets[row.id] = self._trackers.target(row)
                except Exception:
                    log.exception("tracker_not_usable", tracker=row.id)
        return found

    def _target_of(
        self, claim: ClaimedDelivery, targets: Mapping[int, DeliveryTarget], callback_secrets: Secrets
    ) -> DeliveryTarget | None:
        if claim.callback_url is None:
            return None if claim.tracker_id is None else targets.get(claim.tracker_id)
        settings = self._settings
        try:
            return callback(
                claim.callback_url,
                max_attempts=settings.delivery_attempts,
                timeout=settings.delivery_timeout,
                concurrency=settings.delivery_slots_per_tracker,
                schedule=settings.delivery_schedule,
                secrets=callback_secrets,
            )
        except Exception:
            log.exception("callback_not_usable", delivery=DELIVERY_IDS.encode(claim.id))
            return None


def _lock_limited(connection: Connection, candidates: dict[str, Candidate], result: ClaimResult, now: int) -> dict[str, Candidate]:
    """Lock the trackers of the candidates that have a rate limit or a circuit breaker that is not closed.

    Read their circuit breakers and rates again. Remove the candidates whose tracker another process has locked. Return the
    candidates with locked trackers, by queue name."""
    limited = {name: candidate for name, candidate in candidates.items() if candidate.is_limited(now)}
    ids = {tracker for name in limited if (tracker := tracker_of(name)) is not None}
    locked = dispatch_queries.lock_unlocked_states(connection, ids)
    for name, candidate in list(limited.items()):
        tracker = tracker_of(name)
        if tracker is not None and tracker in locked:
            candidate.health = locked[tracker].health
            candidate.pace = locked[tracker].pace
        else:
            del candidates[name], limited[name]
            result.wake_not_later_than(now + MIN_RATE_PAUSE_MS)
    return limited
