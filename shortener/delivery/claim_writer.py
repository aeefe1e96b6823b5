"""The transaction that claims deliveries: find the due queues, read their trackers, plan the claims, write them.

claims.py decides how much each queue gets. This module reads its inputs (queues, tracker states, targets) and writes its decision
(claims, breakers). Deliveries that cannot be sent now wait, or expire (expiry.py). `ClaimWriter.write` changes no state of the
writer, because the transaction may run again. `committed` does.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from sqlalchemy import Connection, select

from shortener.delivery import dispatch_queries
from shortener.delivery.attempt import AttemptInFlight
from shortener.delivery.claims import Candidate, SlotUsage, available_slots, plan_claims
from shortener.delivery.dispatch_queries import FIRST_ATTEMPTS, RETRIES, ClaimedDelivery, DeliveryQueue, TrackerState
from shortener.delivery.expiry import MAX_HOLD, expire_overdue, expire_queue
from shortener.delivery.request import DeliveryTarget, Secrets, callback
from shortener.delivery.trackers import Trackers
from shortener.ids import encode
from shortener.settings import Settings
from shortener.storage import schema

log = structlog.get_logger(__name__)

#: Queues that one cycle examines. It bounds a transaction that on SQLite blocks every other writer.
MAX_QUEUES = 256


@dataclass(slots=True)
class ClaimResult:
    """The effects of one transaction.

    `after`: the queue after which the next cycle starts. `more`: the next cycle must examine further queues.
    `targets`: targets that were read from the database, by tracker id."""

    after: str
    attempts: list[AttemptInFlight] = field(default_factory=list)
    targets: dict[int, DeliveryTarget] = field(default_factory=dict)
    more: bool = False
    expired: int = 0


class ClaimWriter:
    """Claims due deliveries. It caches the targets of trackers until their revision changes."""

    def __init__(self, trackers: Trackers, settings: Settings, rng: random.Random) -> None:
        self._trackers = trackers
        self._settings = settings
        self._rng = rng
        self._targets: dict[int, DeliveryTarget] = {}
        self._after = ""

    def committed(self, result: ClaimResult) -> None:
        """Update the writer after the transaction is committed."""
        self._targets |= result.targets
        self._after = result.after

    def write(self, connection: Connection, usage: SlotUsage, limit: int, paused: Mapping[str, int], now: int) -> ClaimResult:
        """Claim up to `limit` deliveries, as a part of the caller's transaction.

        `paused`: queues that are skipped, with the end of their pause. Times are milliseconds since 1970."""
        result = ClaimResult(self._after)
        if limit <= 0:
            return result
        queues, is_last = _queues_after(connection, self._after)
        due = [queue for queue in queues if _is_due(queue, now) and paused.get(queue.name, 0) <= now]
        ids = {tracker for queue in due if (tracker := _tracker_of(queue.name)) is not None}
        states = dispatch_queries.tracker_states(connection, ids)
        targets = self._current_targets(connection, result, states)
        candidates: dict[str, Candidate] = {}
        for queue in due:
            candidate = self._candidate(connection, result, queue, states, targets, now)
            if candidate is not None and available_slots(candidate, usage) > 0:
                candidates[queue.name] = candidate
        unhealthy = _lock_unhealthy(connection, candidates)

        requests = plan_claims(
            list(candidates.values()),
            usage,
            limit,
            now=now,
            recovery_rate=self._settings.delivery_recovery_rate,
            rng=self._rng,
        )
        if requests:
            result.after = requests[-1].queue
        else:
            # Continue with the next queues, once around.
            result.after, result.more = ("", False) if is_last else (queues[-1].name, True)

        claimed = dispatch_queries.claim(connection, requests, now)
        counts = Counter((claim.queue, FIRST_ATTEMPTS if claim.attempt == 1 else RETRIES) for claim in claimed)
        # A part that returned fewer claims than requested has no further due deliveries.
        has_more = {request.queue for request in requests if counts[request.queue, request.part] == request.limit}
        probes: set[str] = set()
        for name in unhealthy & {request.queue for request in requests}:
            count = counts[name, FIRST_ATTEMPTS] + counts[name, RETRIES]
            if self._write_release(connection, candidates[name], count, name in has_more, now):
                probes.add(name)
        callbacks = [claim.id for claim in claimed if claim.callback_url is not None]
        secrets = self._trackers.callback_secrets(connection, callbacks) if callbacks else {}
        for claim in claimed:
            target = self._target_of(claim, targets, secrets.get(claim.id, ()))
            application = candidates[claim.queue].application_id
            result.attempts.append(AttemptInFlight(claim, target, application, claim.queue in probes))
        return result

    def _candidate(
        self,
        connection: Connection,
        result: ClaimResult,
        queue: DeliveryQueue,
        states: Mapping[int, TrackerState],
        targets: Mapping[int, DeliveryTarget],
        now: int,
    ) -> Candidate | None:
        """Return the queue as a candidate; None if its deliveries must wait or have ended now."""
        settings = self._settings
        tracker = _tracker_of(queue.name)
        if tracker is None:
            return Candidate(queue, None, self._share(settings.delivery_slots_per_tracker), settings.delivery_timeout)
        state = states.get(tracker)
        if state is None:
            result.expired += expire_queue(connection, queue.name, "tracker_deleted", now)
            return None
        if not state.enabled:
            max_hold = timedelta(days=settings.event_retention_days)
            result.expired += expire_overdue(connection, queue, "tracker_disabled", now, max_hold)
            return None
        if state.health.breaker(now) == "open":
            result.expired += expire_overdue(connection, queue, "breaker_open", now, MAX_HOLD)
            return None
        target = targets.get(tracker)
        if target is None:  # the attempt will fail locally
            return Candidate(queue, state.application_id, 1, settings.delivery_timeout, state.health)
        return Candidate(queue, state.application_id, self._share(target.concurrency), target.timeout, state.health)

    def _share(self, concurrency: int) -> int:
        """Return the part of a tracker's concurrency that this process may use, at least 1."""
        return max(1, concurrency // max(self._settings.delivery_processes, self._settings.workers))

    def _write_release(self, connection: Connection, candidate: Candidate, count: int, has_more: bool, now: int) -> bool:
        """Write what the breaker let pass: `count` deliveries. `has_more`: more are due. Return True if they are a probe."""
        health = stored = candidate.health
        assert health is not None
        is_probe = health.open_until is not None and count > 0
        if is_probe:
            health = health.probing(candidate.lease_until(now))
        elif health.recovering_at is not None:
            if count:
                health = health.released(count, now, self._settings.delivery_recovery_rate)
            if not has_more:
                health = health.recovered()
        tracker = _tracker_of(candidate.queue.name)
        if health != stored and tracker is not None:
            dispatch_queries.update_tracker(connection, tracker, dispatch_queries.health_columns(health))
        return is_probe

    def _current_targets(
        self, connection: Connection, result: ClaimResult, states: Mapping[int, TrackerState]
    ) -> dict[int, DeliveryTarget]:
        """Return the targets of the trackers. Those that changed since they were cached are read from the database."""
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
            log.exception("callback_not_usable", delivery=encode(claim.id))
            return None


def _queues_after(connection: Connection, after: str) -> tuple[list[DeliveryQueue], bool]:
    """Return up to MAX_QUEUES queues after `after`, continued from the first, and whether the last of all is among them."""
    queues = dispatch_queries.pending_queues(connection, after, MAX_QUEUES)
    is_last = len(queues) < MAX_QUEUES
    if after and is_last:
        first = dispatch_queries.pending_queues(connection, "", MAX_QUEUES - len(queues))
        queues += [queue for queue in first if queue.name <= after]
    return queues, is_last


def _lock_unhealthy(connection: Connection, candidates: dict[str, Candidate]) -> set[str]:
    """Lock the trackers whose breaker limits them and read their health again. Return the names of their queues.

    Candidates whose tracker is locked by another process are removed."""
    names = {
        name for name, candidate in candidates.items() if candidate.health is not None and not candidate.health.allows_any_number
    }
    ids = {tracker for name in names if (tracker := _tracker_of(name)) is not None}
    locked = dispatch_queries.lock_unlocked_states(connection, ids)
    for name in list(names):
        tracker = _tracker_of(name)
        if tracker is not None and tracker in locked:
            candidates[name].health = locked[tracker].health
        else:
            del candidates[name]
            names.discard(name)
    return names


def _is_due(queue: DeliveryQueue, now: int) -> bool:
    return any(at is not None and at <= now for at in (queue.first_due, queue.retry_due))


def _tracker_of(queue: str) -> int | None:
    return int(queue[1:]) if queue.startswith("t") else None
