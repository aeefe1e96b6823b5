"""Tests of the texts that say why a delivery waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shortener.delivery.health import EndpointHealth
from shortener.model import DeliveryStatus
from shortener.portal.waiting import wait_of
from shortener.storage.types import to_ms

NOW = datetime(2026, 11, 28, 20, 31, tzinfo=UTC)
PAST, SOON, LATER = NOW - timedelta(minutes=43), NOW + timedelta(minutes=2), NOW + timedelta(hours=1)
OPEN, PROBE = EndpointHealth(10, open_until=to_ms(SOON)), EndpointHealth(10, open_until=to_ms(PAST))
RECOVERING = EndpointHealth(recovering_at=to_ms(PAST))


@pytest.mark.parametrize(
    ("health", "next_at", "text", "at"),
    [
        (OPEN, PAST, "waits: the endpoint fails, next attempt", SOON),
        (OPEN, LATER, "waits: the endpoint fails, next attempt", LATER),
        (PROBE, PAST, "waits: the endpoint fails, next attempt soon", None),
        (PROBE, LATER, "waits: the endpoint fails, next attempt", LATER),
        (RECOVERING, PAST, "waits: the tracker works again and gets its deliveries slowly", None),
        (EndpointHealth(), PAST, "next soon", None),
        (EndpointHealth(), LATER, "next", LATER),
        (None, PAST, "next soon", None),
        (None, LATER, "next", LATER),
    ],
)
def test_a_pending_delivery_waits_for_the_later_of_its_next_attempt_and_the_end_of_the_pause_of_its_tracker(
    health: EndpointHealth | None, next_at: datetime, text: str, at: datetime | None
) -> None:
    delivery = cast(Any, SimpleNamespace(status=DeliveryStatus.PENDING, next_at=next_at))
    tracker = None if health is None else cast(Any, SimpleNamespace(health=health))
    assert wait_of(delivery, tracker, NOW) == (text, at)


def test_a_parked_delivery_waits_for_the_tracker_or_the_application_and_a_finished_one_for_nothing() -> None:
    def delivery(status: DeliveryStatus) -> Any:
        return SimpleNamespace(status=status, next_at=None)

    parked = delivery(DeliveryStatus.PARKED)
    assert wait_of(parked, None, NOW) == ("waits: the tracker is disabled", None)
    assert wait_of(parked, None, NOW, application_disabled=True) == ("waits: the application is disabled", None)
    assert wait_of(delivery(DeliveryStatus.DEAD), None, NOW) is None
