"""This module converts trackers, deliveries, attempts and test deliveries to JSON fields for the HTTP API and the command line.

Times are converted to ISO 8601 texts in UTC. The functions have no I/O.
"""
# Tested by tests/web/test_trackers.py

from __future__ import annotations

from datetime import datetime
from typing import Any

from shortener.delivery.deliveries import Delivery, DeliveryAttempt, DeliveryBacklog
from shortener.delivery.sample_delivery import SampleDelivery
from shortener.delivery.trackers import Tracker
from shortener.ids import DELIVERY_IDS
from shortener.macros import entity_problems
from shortener.model import Topic
from shortener.settings import Settings
from shortener.signatures import secret_warning
from shortener.storage.types import from_ms, to_iso, to_ms


def tracker_fields(settings: Settings, tracker: Tracker) -> dict[str, Any]:
    """Return the JSON fields of a tracker and of the limits that apply to it, without its secrets and headers."""
    return {
        "tracker_id": tracker.id,
        "role": tracker.role,
        "name": tracker.name,
        "enabled": tracker.enabled,
        "disabled_reason": tracker.disabled_reason,
        "url": tracker.url,
        "events": tracker.events,
        "conversion_actions": tracker.conversion_actions,
        "conversion_dispositions": tracker.conversion_dispositions,
        "method": tracker.method,
        "format": tracker.format,
        "fields": tracker.fields,
        "headers_set": tracker.headers_set,
        "client_certificate_set": tracker.client_certificate_set,
        "secret_set": tracker.secret_set,
        "previous_secret_until": to_iso(tracker.previous_secret_until),
        "success": tracker.success,
        **effective_limits(settings, tracker),
        "with_suspected": tracker.with_suspected,
        "created_at": to_iso(tracker.created_at),
        "updated_at": to_iso(tracker.updated_at),
    }


def effective_limits(settings: Settings, tracker: Tracker) -> dict[str, Any]:
    """Return the limits that apply to a tracker, by name: the tracker's own value, or the default in the settings if the tracker
    has none."""
    return {
        "max_attempts": tracker.max_attempts or settings.delivery_attempts,
        "timeout": tracker.timeout or settings.delivery_timeout,
        "concurrency": tracker.concurrency or settings.delivery_slots_per_tracker,
        "max_per_second": tracker.max_per_second,
        "schedule": list(tracker.schedule or settings.delivery_schedule),
    }


def tracker_warnings(tracker: Tracker, secret: str | None) -> list[str]:
    """Return the warnings about a saved tracker. `secret` is the signing secret in the request; None if the request has none."""
    found = [secret_warning(secret) if secret else None, *(f"url {problem}" for problem in entity_problems(tracker.url))]
    has_filter = tracker.conversion_actions or tracker.conversion_dispositions
    if has_filter and not Topic.CONVERSION & tracker.topics:
        found.append("conversion_actions and conversion_dispositions have no effect: events does not contain conversion")
    return [warning for warning in found if warning]


def health_fields(tracker: Tracker, backlog: DeliveryBacklog, now: datetime) -> dict[str, Any]:
    """Return the JSON fields of a tracker's circuit breaker and backlog at the time `now`."""
    health = tracker.health
    return {
        "breaker": health.breaker(to_ms(now)),
        "open_until": _iso(health.open_until),
        "failures_in_row": health.failures_in_row,
        "rate": None if (rate := tracker.pace.limit(to_ms(now))) is None else round(rate, 3),
        "last_success_at": _iso(health.last_success_at),
        "last_failure_at": _iso(health.last_failure_at),
        "pending": backlog.pending,
        "dead": backlog.dead,
        "waiting_since": to_iso(backlog.waiting_since),
    }


def delivery_fields(delivery: Delivery) -> dict[str, Any]:
    """Return the JSON fields of a delivery, without its attempts."""
    return {
        "delivery_id": DELIVERY_IDS.encode(delivery.id),
        "tracker_id": delivery.tracker_id,
        "callback_url": delivery.callback_url,
        "event_id": delivery.event_id,
        "event": delivery.topic.api_name,
        "message_id": delivery.message_id,
        "status": delivery.status.api_name,
        "attempt": delivery.attempt,
        "next_at": to_iso(delivery.next_at),
        "created_at": to_iso(delivery.created_at),
        "finished_at": to_iso(delivery.finished_at),
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
    }


def attempt_fields(attempt: DeliveryAttempt) -> dict[str, Any]:
    """Return the JSON fields of one attempt of a delivery. `milliseconds` is the duration of the attempt."""
    return {
        "attempt": attempt.attempt,
        "at": to_iso(attempt.at),
        "milliseconds": attempt.milliseconds,
        "status": attempt.status,
        "error": attempt.error,
        "detail": attempt.detail,
        "answer": attempt.answer,
    }


def sample_delivery_fields(sample: SampleDelivery) -> dict[str, Any]:
    """Return the JSON fields of the result of a test delivery."""
    return {
        "delivery_id": DELIVERY_IDS.encode(sample.delivery_id),
        "event_id": sample.event_id,
        "delivered": sample.delivered,
        "reason": sample.reason,
        "http_status": sample.http_status,
        "error": sample.error,
        "detail": sample.detail,
        "milliseconds": sample.milliseconds,
        "answer": sample.answer,
    }


def _iso(ms: int | None) -> str | None:
    return None if ms is None else to_iso(from_ms(ms))
