"""This module writes the circuit breaker and the rate of a gateway after attempts to hand messages on to it. The same rules apply
as for trackers (delivery/health.py, delivery/pace.py).
"""
# Tested by tests/gateways/test_dispatcher.py

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from shortener.delivery.attempt import LOCAL_FAILURE_PAUSE_MS
from shortener.delivery.dispatch_queries import health_columns, pace_columns
from shortener.delivery.health import EndpointHealth
from shortener.delivery.pace import EndpointPace
from shortener.gateways import queries
from shortener.gateways.attempt import EndedSend
from shortener.gateways.queries import LockedGateway


def write_health(connection: Connection, ended: Sequence[EndedSend], locked: Mapping[int, LockedGateway]) -> list[int]:
    """Write the changes of circuit breakers and rates that follow from ended attempts. Return the gateways whose circuit breaker
    opened. `locked` is the result of `queries.lock_health` for the gateways of the attempts. If a gateway was changed during the
    attempt, for example its URL or its password, the outcome changes neither its circuit breaker nor its rate, because the
    outcome shows nothing about the new settings."""
    by_gateway: dict[int, list[EndedSend]] = {}
    for one in ended:
        by_gateway.setdefault(one.attempt.claim.gateway_id, []).append(one)
    opened = []
    for gateway_id in sorted(by_gateway.keys() & locked.keys()):
        revision, health, pace = locked[gateway_id]
        current = [one for one in by_gateway[gateway_id] if _is_current(one, revision)]
        accepted = sum(one.is_response for one in current)
        new_health, new_pace = health, pace.succeeded(accepted)
        for one in by_gateway[gateway_id]:
            new_health = _health_after(new_health, one, has_result=_is_current(one, revision))
        for one in current:
            if one.result is not None and one.result.is_throttled:
                quiet_until = None if one.result.retry_after is None else one.at + round(one.result.retry_after * 1000)
                new_pace = new_pace.throttled(one.at, started=one.started, successes=accepted, quiet_until=quiet_until)
        values = changed_columns(health, new_health, pace, new_pace)
        if values:
            queries.update_gateway(connection, gateway_id, values)
        if new_health.open_until is not None and health.open_until is None:
            opened.append(gateway_id)
    return opened


def _is_current(ended: EndedSend, revision: int) -> bool:
    """Return whether the gateway still has the settings with which the attempt was made. Return True if these are unknown."""
    config = ended.attempt.config
    return config is None or config.revision == revision


def _health_after(health: EndpointHealth, ended: EndedSend, has_result: bool) -> EndpointHealth:
    """Return the health of a gateway after an attempt. If `has_result` is false, the outcome does not show whether the gateway
    works."""
    result, is_probe = ended.result if has_result else None, ended.attempt.is_probe
    if result is None or result.is_local:
        # The probe does not show whether the gateway works, so another probe may be sent: at once, or after a pause if the machine
        # of this service had the fault.
        until = ended.at if result is None else ended.at + LOCAL_FAILURE_PAUSE_MS
        return health.probing(until) if is_probe and health.open_until is not None else health
    if ended.is_response:
        return health.succeeded(ended.at)
    if result.is_throttled:  # a throttled attempt lowers the rate of the gateway and does not open its circuit breaker
        return health.answered(ended.at) if is_probe else health
    quiet_until = None if result.retry_after is None else ended.at + round(result.retry_after * 1000)
    return health.failed(ended.at, probe=is_probe, quiet_until=quiet_until)


def changed_columns(
    health: EndpointHealth, new_health: EndpointHealth, pace: EndpointPace, new_pace: EndpointPace
) -> dict[str, Any]:
    """Return the column values of a gateway that differ from the stored values. If only the time of the last success has changed,
    this time is written at most once a second."""
    values: dict[str, Any] = {}
    is_recent = (
        health.last_success_at is not None
        and new_health.last_success_at is not None
        and 0 <= new_health.last_success_at - health.last_success_at < 1000
        and health.failures_in_row == new_health.failures_in_row
        and health.open_until == new_health.open_until
        and health.recovering_at == new_health.recovering_at
    )
    if new_health != health and not is_recent:
        values |= health_columns(new_health)
    if new_pace != pace:
        values |= pace_columns(new_pace)
    return values
