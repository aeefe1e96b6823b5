"""Tests of the operations event that announces, once for each replaced token, the time at which the token expires."""

from datetime import timedelta
from typing import Any

from sqlalchemy import select

from shortener.accounts.credentials import rotate_token
from shortener.container import Service
from shortener.delivery.trackers import NewTracker
from shortener.model import Topic
from shortener.outbox.expiring_keys import announce, has_expiring
from shortener.storage import schema
from tests.conftest import Clock
from tests.factory import AUDIT


async def events(service: Service) -> list[Any]:
    return await service.database.read(lambda connection: list(connection.execute(select(schema.events))))


async def test_one_event_announces_the_expiry_of_a_replaced_token_during_the_last_day_of_the_token(
    service: Service, clock: Clock
) -> None:
    new = NewTracker(url="https://tracker.example/", events=["operations"])
    await service.trackers.create(AUDIT, 1, new)
    _, until = await service.database.write(rotate_token, 1, clock(), timedelta(days=3))
    assert await service.database.write(announce, service.ids, clock()) == 0
    assert await service.database.read(has_expiring, clock()) is False
    clock.forward(days=2)
    assert await service.database.read(has_expiring, clock()) is True
    assert await service.database.write(announce, service.ids, clock()) == 1
    assert await service.database.write(announce, service.ids, clock()) == 0
    assert await service.database.read(has_expiring, clock()) is False
    (event,) = await events(service)
    assert (event.topics, event.data["topic"], event.data["key_kind"]) == (Topic.OPERATIONS, "key_expiring", "tracker_token")
    assert event.data["expires_at"] == until.strftime("%Y-%m-%dT%H:%M:%SZ")
    clock.forward(days=3)
    assert await service.database.write(announce, service.ids, clock()) == 0
    notices = await service.database.read(lambda connection: list(connection.execute(select(schema.expiry_notices))))
    assert notices == []


async def test_the_expiry_of_a_token_creates_no_event_if_no_tracker_subscribes_to_operations_events(
    service: Service, clock: Clock
) -> None:
    await service.database.write(rotate_token, 1, clock(), timedelta(hours=1))
    assert await service.database.write(announce, service.ids, clock()) == 0
    assert await events(service) == []
