"""This module converts gateways to JSON fields for the API and the command line, without credentials."""
# Tested by tests/web/test_gateways.py

from __future__ import annotations

from datetime import datetime
from typing import Any

from shortener.gateways.gateway import LostSettings, StoredGateway
from shortener.gateways.kinds import KINDS
from shortener.gateways.submission import SubmitResult
from shortener.model import ALL_APPLICATIONS
from shortener.settings import Settings
from shortener.storage.types import from_ms, to_iso, to_ms


def gateway_fields(settings: Settings, gateway: StoredGateway, now: datetime) -> dict[str, Any]:
    """Return the JSON fields of a gateway. If the gateway has no value for a limit, the field contains the setting of the
    installation."""
    config, health = gateway.config, gateway.health
    return {
        "gateway_id": gateway.id,
        "name": gateway.name,
        "kind": config.kind,
        "preset": gateway.preset or None,
        "application_id": None if gateway.application_id == ALL_APPLICATIONS else gateway.application_id,
        "enabled": gateway.enabled,
        "allow_private": config.allow_private,
        "on_doubt": gateway.on_doubt,
        "max_attempts": gateway.max_attempts or settings.gateway_attempts,
        "timeout": gateway.timeout or settings.gateway_timeout,
        "concurrency": gateway.concurrency or settings.gateway_slots_per_gateway,
        "max_per_second": gateway.max_per_second,
        "schedule": list(gateway.schedule or settings.gateway_schedule),
        "settings": {} if isinstance(config.settings, LostSettings) else dict(KINDS[config.kind].describe(config.settings)),
        "report_url": config.report_url,
        "health": {
            "breaker": health.breaker(to_ms(now)),
            "failures_in_row": health.failures_in_row,
            "open_until": _iso(health.open_until),
            "last_success_at": _iso(health.last_success_at),
            "last_failure_at": _iso(health.last_failure_at),
            "rate": gateway.pace.limit(to_ms(now)),
        },
        "created_at": to_iso(gateway.created_at),
        "updated_at": to_iso(gateway.updated_at),
    }


def test_fields(result: SubmitResult) -> dict[str, Any]:
    """Return the JSON fields of the result of a test message."""
    return {
        "outcome": result.outcome.value,
        "reason": result.reason,
        "detail": result.detail,
        "error_code": result.error_code or None,
        "gateway_message_id": result.gateway_message_id,
        "http_status": result.status,
        "milliseconds": result.milliseconds,
    }


def _iso(ms: int | None) -> str | None:
    return None if ms is None else to_iso(from_ms(ms))
