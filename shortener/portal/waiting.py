"""This module describes why a delivery waits: its next attempt is not due yet, its tracker fails, or its tracker or
application is disabled. Pages show the text and the time from this module instead of the delivery's `next_at`. `next_at` is only
the earliest time of the next attempt: while the circuit breaker of a failing tracker delays the attempt, `next_at` can be in the
past.
"""
# Tested by tests/portal/test_waiting.py

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from shortener.delivery.deliveries import Delivery
from shortener.delivery.trackers import Tracker
from shortener.model import DeliveryStatus
from shortener.storage.types import from_ms, to_ms


class Wait(NamedTuple):
    """Why a delivery waits. `text` is a part of a sentence. `at` is the time of the next attempt; None if this time is unknown or
    has passed."""

    text: str
    at: datetime | None = None


def wait_of(delivery: Delivery, tracker: Tracker | None, now: datetime, *, application_disabled: bool = False) -> Wait | None:
    """Return why a delivery waits. Return None if it does not wait. `tracker` is None if the delivery is for the callback URL of
    a message, or if its tracker was deleted."""
    if delivery.status is DeliveryStatus.PARKED:
        return Wait("waits: the application is disabled" if application_disabled else "waits: the tracker is disabled")
    if delivery.status is not DeliveryStatus.PENDING:
        return None
    later = delivery.next_at if delivery.next_at is not None and delivery.next_at > now else None
    breaker = "closed" if tracker is None else tracker.health.breaker(to_ms(now))
    if tracker is not None and breaker == "open":
        assert tracker.health.open_until is not None
        opens = from_ms(tracker.health.open_until)
        return Wait("waits: the endpoint fails, next attempt", opens if later is None else max(later, opens))
    if breaker == "half_open":
        return (
            Wait("waits: the endpoint fails, next attempt", later)
            if later
            else Wait("waits: the endpoint fails, next attempt soon")
        )
    if later:
        return Wait("next", later)
    return Wait("waits: the tracker works again and gets its deliveries slowly" if breaker == "recovering" else "next soon")
