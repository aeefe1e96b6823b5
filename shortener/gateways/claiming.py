"""This module claims due messages of gateways, so that only this process hands them on until their leases end.

`delivery/claims.py` decides how many messages of each gateway are claimed. The row of a gateway is locked during the claim, so
its concurrency, rate and circuit breaker limit all processes together. A gateway that another process has locked is left out
until the next cycle. The messages of a disabled gateway or application wait. They do not count towards the rate of a gateway, are
never its probe, and do not delay the messages of other applications.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field

import structlog
from sqlalchemy import Connection

from shortener.delivery.claims import Candidate, SlotUsage, available_slots, plan_claims
from shortener.delivery.dispatch_queries import ClaimRequest
from shortener.gateways import queries
from shortener.gateways.attempt import SendInFlight, SendLimits
from shortener.gateways.expiry import PAUSE_MS, fail_removed, finish_reported, give_back_later, hold_lost
from shortener.gateways.finishing import SendChange
from shortener.gateways.gateway import StoredGateway
from shortener.gateways.gateway_health import changed_columns
from shortener.gateways.queries import ClaimedSend, GatewayState
from shortener.gateways.store import GatewayStore
from shortener.model import ALL_APPLICATIONS, mutable_record
from shortener.settings import Settings

log = structlog.get_logger(__name__)

#: If the rate of a gateway permits no message now, the dispatcher waits at least this long before it examines the gateway again.
MIN_RATE_PAUSE_MS = 20


@mutable_record
class SendClaimResult:
    """The result of one transaction that claimed messages.

    `changes` contains the new values of messages that need no attempt. `gateways` are the gateways that were read from the
    database, by id. `wake_at` is the time at which the rate of a gateway allows the next message; None if no rate delays a
    message. `postponed` is the number of messages of disabled applications that were postponed. Their gateways were left out, so
    another cycle must follow."""

    attempts: list[SendInFlight] = field(default_factory=list)
    changes: list[SendChange] = field(default_factory=list)
    gateways: dict[int, StoredGateway] = field(default_factory=dict)
    wake_at: int | None = None
    postponed: int = 0


def find_finished(connection: Connection, states: Sequence[GatewayState], now: int, skipped: Collection[int]) -> list[SendChange]:
    """Return changes for messages that must not be claimed: all messages of removed gateways and, for gateways with the policy
    `hold`, the messages whose process died during the attempt. Leave out the messages whose row ids are in `skipped`.

    The caller writes the changes before it claims other messages."""
    changes: list[SendChange] = []
    for state in states:
        if state.is_removed:
            changes += fail_removed(connection, state.id, now, skipped)
        elif state.holds_doubtful and state.is_due(now):
            changes += hold_lost(connection, state.id, now, skipped)
    return changes


class SendClaimWriter:
    """A writer of claims. It caches each gateway until the revision of the gateway changes."""

    def __init__(self, store: GatewayStore, settings: Settings, rng: random.Random) -> None:
        self._store = store
        self._settings = settings
        self._rng = rng
        self._gateways: dict[int, StoredGateway] = {}

    def committed(self, result: SendClaimResult) -> None:
        """Update the cached gateways after the transaction was committed."""
        self._gateways |= result.gateways

    def write(
        self,
        connection: Connection,
        states: Sequence[GatewayState],
        usage: SlotUsage,
        limit: int,
        now: int,
        *,
        leases_wait: bool,
    ) -> SendClaimResult:
        """Claim up to `limit` messages of locked gateways, as a part of the caller's transaction. If `leases_wait` is true, claim
        no message that has a lease."""
        result = SendClaimResult()
        by_queue: dict[str, GatewayState] = {}
        candidates: list[Candidate] = []
        disabled = self._store.disabled_applications()
        for state in states:
            is_usable = state.enabled and not state.is_removed
            if not is_usable or not state.is_due(now) or state.health.breaker(now) == "open":
                continue
            is_shared = state.application_id == ALL_APPLICATIONS
            may_wait = [one for one in disabled if is_shared or one == state.application_id]
            postponed = queries.postpone_unclaimed(connection, state.id, may_wait, now, now + PAUSE_MS) if may_wait else 0
            if postponed:
                result.postponed += postponed
                continue
            candidate = self._candidate(state, usage, result, now)
            if candidate is not None:
                by_queue[state.queue.name] = state
                candidates.append(candidate)
        recovery_rate = self._settings.delivery_recovery_rate
        # The order is random. Otherwise the same gateway would always be the last one when there are fewer free slots than
        # gateways.
        self._rng.shuffle(candidates)
        requests = plan_claims(candidates, usage, limit, now=now, recovery_rate=recovery_rate, rng=self._rng)
        holding = {state.id for state in by_queue.values() if state.holds_doubtful or leases_wait}
        claimed = queries.claim(connection, requests, now, holding)
        counts = Counter(queries.queue_name(one.gateway_id) for one in claimed)
        probes = {
            candidate.queue.name
            for candidate in candidates
            if self._write_release(connection, by_queue[candidate.queue.name], candidate, requests, counts, now)
        }
        gateways = self._load(connection, {by_queue[request.queue].id: by_queue[request.queue] for request in requests}, result)
        for claim in claimed:
            reported = finish_reported(claim, now)
            if reported is not None or claim.application_id in disabled:
                result.changes.append(reported or give_back_later(claim, now))
                continue
            state = by_queue[queries.queue_name(claim.gateway_id)]
            is_probe = state.queue.name in probes
            result.attempts.append(self._attempt(claim, state, gateways.get(claim.gateway_id), is_probe=is_probe))
        return result

    def _attempt(self, claim: ClaimedSend, state: GatewayState, gateway: StoredGateway | None, *, is_probe: bool) -> SendInFlight:
        """Return the attempt to hand a claimed message on. `gateway` is None if the stored gateway is unusable."""
        return SendInFlight(
            claim=claim,
            config=gateway.config if gateway is not None else None,
            limits=self._limits(state, gateway),
            queue=state.queue.name,
            application_id=state.application_id,
            is_probe=is_probe,
        )

    def _candidate(self, state: GatewayState, usage: SlotUsage, result: SendClaimResult, now: int) -> Candidate | None:
        """Return the queue of the gateway as a candidate from which messages can be claimed. Return None if no slot is free or the
        rate permits no message."""
        settings = self._settings
        elsewhere = max(state.in_flight - usage.by_queue[state.queue.name], 0)
        concurrency = max((state.concurrency or settings.gateway_slots_per_gateway) - elsewhere, 0)
        timeout = state.timeout or settings.gateway_timeout
        candidate = Candidate(state.queue, state.application_id, concurrency, timeout, state.health, state.pace)
        if state.pace.limit(now) is not None and not state.pace.allowance(now):
            wake_at = max(state.pace.next_at(now), now + MIN_RATE_PAUSE_MS)
            result.wake_at = wake_at if result.wake_at is None else min(result.wake_at, wake_at)
            return None
        return candidate if available_slots(candidate, usage, is_only_queue=True) > 0 else None

    def _write_release(
        self,
        connection: Connection,
        state: GatewayState,
        candidate: Candidate,
        requests: Sequence[ClaimRequest],
        counts: Mapping[str, int],
        now: int,
    ) -> bool:
        """Update the circuit breaker and the rate of a gateway after messages were claimed. Return whether the claimed message is
        the probe of an open circuit breaker."""
        if all(request.queue != state.queue.name for request in requests):
            return False
        count = counts[state.queue.name]
        health = state.health
        is_probe = health.open_until is not None and count > 0
        if is_probe:
            health = health.probing(candidate.lease_until(now))
        elif health.recovering_at is not None:
            if count:
                health = health.released(count, now, self._settings.delivery_recovery_rate)
            if not queries.has_due(connection, state.id, now):  # the backlog is empty
                health = health.recovered()
        values = changed_columns(state.health, health, state.pace, state.pace.claimed(count, now))
        if values:
            queries.update_gateway(connection, state.id, values)
        return is_probe

    def _load(
        self, connection: Connection, states: Mapping[int, GatewayState], result: SendClaimResult
    ) -> dict[int, StoredGateway]:
        """Return the gateways by id. Read a gateway from the database if its cached copy is outdated."""
        found = {}
        for gateway_id, state in states.items():
            cached = self._gateways.get(gateway_id)
            if cached is None or cached.config.revision != state.revision:
                try:
                    cached = result.gateways[gateway_id] = self._store.load(connection, gateway_id)
                except Exception:
                    log.exception("gateway_not_usable", gateway=gateway_id)
                    continue
            found[gateway_id] = cached
        return found

    def _limits(self, state: GatewayState, gateway: StoredGateway | None) -> SendLimits:
        settings = self._settings
        timeout = state.timeout or settings.gateway_timeout
        if gateway is None:
            return SendLimits(settings.gateway_attempts, timeout, settings.gateway_schedule)
        return SendLimits(
            gateway.max_attempts or settings.gateway_attempts, timeout, tuple(gateway.schedule or settings.gateway_schedule)
        )
