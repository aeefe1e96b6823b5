"""This module records finished attempts in the database: it updates deliveries and trackers and adds rows to `attempts`.

An outcome is ignored if the lease of the delivery ended and another process claimed the delivery. An ignored outcome changes no
delivery and no circuit breaker, adds no row to `attempts`, and is counted only in `leases_lost`. An ignored 410 response does not
disable the tracker.

If a tracker was changed during an attempt, for example its URL, the outcome changes only the delivery. It does not change the
circuit breaker or the rate of the tracker and does not disable it.

`OutcomeWriter.write` does not change the `OutcomeWriter` object, because the database may run the transaction again.
`OutcomeWriter.committed` changes it after the commit.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from sqlalchemy import Connection

from shortener.delivery import dispatch_queries
from shortener.delivery.attempt import LOCAL_FAILURE_PAUSE_MS, FinishedAttempt
from shortener.delivery.dispatch_queries import TrackerState
from shortener.delivery.health import EndpointHealth
from shortener.delivery.outcomes import ATTEMPTS_USED_UP, GONE, OutcomeKind
from shortener.delivery.pace import EndpointPace
from shortener.ids import DELIVERY_IDS, IdGenerator
from shortener.model import DeliveryStatus, Topic, mutable_record
from shortener.outbox import operations
from shortener.storage.types import from_ms, to_ms

#: The time of a tracker's last success is written to the database at most once in this time.
SUCCESS_INTERVAL_MS = 1000
#: If this process counts the successes of more trackers than this, it removes the trackers without recent successes from memory.
MAX_TRACKERS_COUNTED = 10_000


@mutable_record
class OutcomeResult:
    """The result of one transaction that recorded attempts.

    `recorded` contains the attempts whose outcome was written. `leases_lost` is the number of attempts whose outcome was ignored.
    The other lists contain ids of trackers: `disabled` by a 410 response, `opened` (the circuit breaker opened) and `slowed` (the
    rate was lowered). `success_written` lists the trackers whose last success is in the database. `success_unknown` lists the
    trackers whose next success must be written, even if another success was written less than SUCCESS_INTERVAL_MS ago.
    """

    recorded: list[FinishedAttempt] = field(default_factory=list)
    leases_lost: int = 0
    disabled: list[int] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    slowed: list[int] = field(default_factory=list)
    success_written: list[int] = field(default_factory=list)
    success_unknown: list[int] = field(default_factory=list)


class OutcomeWriter:
    """A writer of attempt outcomes.

    Not every success is written to the database. The writer remembers for each tracker when it last wrote a success."""

    def __init__(self, ids: IdGenerator) -> None:
        self._ids = ids
        self._success_at: dict[int, int] = {}
        self._successes: dict[int, RecentCount] = {}

    def write(self, connection: Connection, finished: Sequence[FinishedAttempt], now: int) -> OutcomeResult:
        """Write the outcomes of attempts, as a part of the caller's transaction. `now` is in milliseconds since 1970."""
        finished = [_with_known_outcomes(connection, one) if one.is_without_request else one for one in finished]
        # If it was unknown whether a commit succeeded, the commit may have stored both the outcome of an attempt and the next
        # claim of the same delivery. `finished` then contains two attempts of one delivery. Two statements write their outcomes,
        # because one statement can change a delivery only once.
        outcomes = [one for one in finished if not one.may_be_unclaimed]
        uncertain = [one for one in finished if one.may_be_unclaimed]
        claims = dispatch_queries.find_stored(connection, "deliveries", [one.attempt.claim for one in uncertain])
        returns = [one for one in uncertain if one.attempt.claim in claims]
        recorded = [one for part in (outcomes, returns) for one in _finish(connection, part)]
        lost = len(outcomes) - sum(not one.may_be_unclaimed for one in recorded)
        result = OutcomeResult(recorded, leases_lost=lost)
        dispatch_queries.insert_attempts(connection, [one.attempt_row for one in recorded if one.attempt_row is not None])
        self._write_health(connection, result, now)
        self._write_operations(connection, result, now)
        return result

    def committed(self, result: OutcomeResult, now: int) -> None:
        """Update the times and counts of successes in memory after the transaction was committed."""
        for tracker in result.success_unknown:
            self._success_at.pop(tracker, None)
        for tracker in result.success_written:
            self._success_at[tracker] = now
        if len(self._successes) > MAX_TRACKERS_COUNTED:
            self._successes = {tracker: count for tracker, count in self._successes.items() if count.total(now)}
        for tracker, successes in _successes_by_tracker(result.recorded).items():
            self._successes.setdefault(tracker, RecentCount()).add(successes, now)

    def _write_health(self, connection: Connection, result: OutcomeResult, now: int) -> None:
        by_tracker: dict[int, list[FinishedAttempt]] = {}
        for one in result.recorded:
            tracker = one.attempt.claim.tracker_id
            if tracker is not None and (one.outcome is not None or one.attempt.is_probe):
                by_tracker.setdefault(tracker, []).append(one)
        affected = []
        for tracker, attempts in by_tracker.items():
            if any(
                one.attempt.is_probe or one.attempt.is_paced or one.delivery.status != DeliveryStatus.DELIVERED for one in attempts
            ):
                result.success_unknown.append(tracker)
                affected.append(tracker)
            elif not self._is_success_recent(tracker, now):
                affected.append(tracker)
        for tracker, state in dispatch_queries.locked_states(connection, affected).items():
            attempts = [one for one in by_tracker[tracker] if _is_current(one, state)]
            health = state.health
            for one in by_tracker[tracker]:
                health = _health_after(health, one, has_result=_is_current(one, state))
            pace = self._pace_after(state, attempts, now)
            values: dict[str, Any] = dispatch_queries.health_columns(health) if health != state.health else {}
            if pace != state.pace:
                values |= dispatch_queries.pace_columns(pace)
            if pace.lowered_at is not None and pace.lowered_at != state.pace.lowered_at:
                result.slowed.append(tracker)
            if state.enabled and any(one.outcome and one.outcome.kind is OutcomeKind.DISABLE for one in attempts):
                values |= {"enabled": False, "disabled_reason": GONE, "revision": state.revision + 1, "updated_at": from_ms(now)}
                result.disabled.append(tracker)
            if values:
                dispatch_queries.update_tracker(connection, tracker, values)
            if health.open_until is not None and state.health.open_until is None:
                result.opened.append(tracker)
            if attempts and health.open_until is None and not health.failures_in_row:
                result.success_written.append(tracker)

    def _pace_after(self, state: TrackerState, attempts: Sequence[FinishedAttempt], now: int) -> EndpointPace:
        successes = sum(one.delivery.status == DeliveryStatus.DELIVERED for one in attempts)
        pace = state.pace.succeeded(successes)
        if recent := self._successes.get(state.id):
            successes += recent.total(now)
        for one in attempts:
            if one.is_rate_limited:
                not_before = one.outcome and one.outcome.not_before
                quiet_until = to_ms(not_before) if not_before else None
                pace = pace.throttled(one.at, started=one.started, successes=successes, quiet_until=quiet_until)
        return pace

    def _write_operations(self, connection: Connection, result: OutcomeResult, now: int) -> None:
        """Append the operations events that inform customers of dead deliveries and disabled trackers."""
        dead: dict[tuple[int, int], list[FinishedAttempt]] = {}  # the key is (application id, tracker id)
        for one in result.recorded:
            claim, application = one.attempt.claim, one.attempt.application_id
            is_dead = one.delivery.status == DeliveryStatus.DEAD and claim.topic != Topic.OPERATIONS
            if is_dead and application is not None and claim.tracker_id is not None:
                dead.setdefault((application, claim.tracker_id), []).append(one)
        found: list[tuple[int, str, dict[str, Any]]] = []
        for (application, tracker), attempts in dead.items():
            last = attempts[-1]
            fields = {
                "tracker_id": tracker,
                "delivery_id": DELIVERY_IDS.encode(last.attempt.claim.id),
                "delivery_event": Topic(last.attempt.claim.topic).api_name,
                "count": len(attempts),
                "reason": last.delivery.last_error,
            }
            found.append((application, operations.DELIVERY_DEAD, fields))
        for one in result.recorded:
            tracker_id, application = one.attempt.claim.tracker_id, one.attempt.application_id
            if tracker_id in result.disabled and application is not None:
                fields = {"tracker_id": tracker_id, "reason": GONE}
                if (application, operations.TRACKER_DISABLED, fields) not in found:
                    found.append((application, operations.TRACKER_DISABLED, fields))
        operations.append(connection, self._ids, from_ms(now), found)

    def _is_success_recent(self, tracker: int, now: int) -> bool:
        at = self._success_at.get(tracker)
        return at is not None and at <= now < at + SUCCESS_INTERVAL_MS


def _with_known_outcomes(connection: Connection, finished: FinishedAttempt) -> FinishedAttempt:
    """Return the result of a delivery that becomes dead without a request, with the reason that the stored attempts show.

    If the number of stored attempts is at least `max_attempts` of the tracker, the reason becomes ATTEMPTS_USED_UP. This happens
    if `max_attempts` was lowered after the attempts."""
    claim, target = finished.attempt.claim, finished.attempt.target
    known = dispatch_queries.count_attempts(connection, claim.id, claim.base_attempt)
    return finished.with_reason(ATTEMPTS_USED_UP) if target is not None and known >= target.max_attempts else finished


def _finish(connection: Connection, finished: Sequence[FinishedAttempt]) -> list[FinishedAttempt]:
    """Write the new values of deliveries. Return the attempts whose deliveries were not claimed by another process in the
    meantime."""
    written = dispatch_queries.finish(connection, [one.delivery for one in finished])
    return [one for one in finished if one.delivery.id in written]


class RecentCount:
    """A counter of the successful attempts of the last second."""

    def __init__(self) -> None:
        self._parts: deque[tuple[int, int]] = deque()

    def add(self, count: int, now: int) -> None:
        self.total(now)
        self._parts.append((now, count))

    def total(self, now: int) -> int:
        while self._parts and not 0 <= now - self._parts[0][0] < 1000:
            self._parts.popleft()
        return sum(count for _, count in self._parts)


def _successes_by_tracker(attempts: Sequence[FinishedAttempt]) -> Counter[int]:
    return Counter(
        one.attempt.claim.tracker_id
        for one in attempts
        if one.delivery.status == DeliveryStatus.DELIVERED and one.attempt.claim.tracker_id is not None
    )


def _is_current(finished: FinishedAttempt, state: TrackerState) -> bool:
    """Return whether the tracker was not changed after the delivery of the attempt was claimed."""
    target = finished.attempt.target
    return target is None or target.revision == state.revision


def _health_after(health: EndpointHealth, finished: FinishedAttempt, has_result: bool) -> EndpointHealth:
    """Return the health of a tracker after an attempt. If `has_result` is false, the outcome does not show whether the tracker
    works. The health then stays as it was, but if the attempt was a probe, another probe may be sent."""
    has_result = has_result and not finished.is_without_request
    outcome, is_probe = finished.outcome if has_result else None, finished.attempt.is_probe
    if outcome is None or not outcome.charged:
        # The probe has no result, so another probe may be sent. It may be sent at once if the claim was given back, and after a
        # pause if this host failed.
        until = finished.at if outcome is None else finished.at + LOCAL_FAILURE_PAUSE_MS
        return health.probing(until) if is_probe and health.open_until is not None else health
    if outcome.kind is OutcomeKind.DELIVERED:
        return health.succeeded(finished.at)
    if finished.is_rate_limited:  # a 429 response lowers the rate of the tracker and does not open its circuit breaker
        return health.answered(finished.at) if is_probe else health
    quiet_until = None if outcome.not_before is None else to_ms(outcome.not_before)
    return health.failed(finished.at, probe=is_probe, quiet_until=quiet_until)
