from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, insert, update

from shortener.reporting.queues import QueueMonitor, QueueState, read_queue_state
from shortener.storage import schema
from tests.clicks.helpers import create_codes
from tests.conftest import NOON, Clock, MakeService


def delivery(connection: Connection, number: int, lane: str, **more: Any) -> None:
    values = {"event_id": number, "topic": 1, "application_id": 1, "tracker_id": 1, "status": 0, "attempt": 0, "created_at": NOON}
    connection.execute(insert(schema.deliveries).values(id=number, lane=lane, **values | more))


async def test_the_reported_state_of_a_queue_contains_the_number_and_the_age_of_its_entries(
    make_service: MakeService, clock: Clock
) -> None:
    service = await make_service()
    await create_codes(service)

    def fill(connection: Connection) -> None:
        event = {"application_id": 1, "topics": 1, "fanned_out": False}
        connection.execute(insert(schema.events).values(id=2, at=NOON - timedelta(minutes=5), **event))
        connection.execute(insert(schema.events).values(id=1, at=NOON - timedelta(days=100), **event | {"fanned_out": True}))
        delivery(connection, 1, "t1", next_at=NOON - timedelta(seconds=30))
        delivery(connection, 2, "t1", next_at=NOON + timedelta(hours=1), queue=1)
        delivery(connection, 3, "t2", next_at=NOON - timedelta(days=1), tracker_id=2)
        tracker = {"application_id": 1, "name": "t", "url": "https://t.example/", "topics": 1, "method": "POST", "format": "json"}
        times = {"success": {}, "created_at": NOON, "updated_at": NOON}
        connection.execute(insert(schema.trackers).values(id=1, enabled=True, **tracker, **times))
        connection.execute(insert(schema.trackers).values(id=2, enabled=False, disabled_reason="gone", **tracker, **times))

    assert (await service.database.read(read_queue_state, service.settings, NOON)).database_bytes > 0
    await service.database.write(fill)
    monitor = QueueMonitor(service.database, service.settings, clock)
    assert await monitor.step() == 0
    state = monitor.state
    assert (state.events_pending, state.oldest_event_seconds) == (1, 300)
    assert (state.deliveries_pending, state.deliveries_due) == (3, 2)
    assert state.oldest_due_seconds == 30, "the deliveries of a disabled tracker wait on purpose"
    assert (state.trackers_disabled, state.hits_dead_letter) == (1, 0)
    assert state.purge_lag_seconds == 10 * 86400
    await service.database.write(lambda c: c.execute(update(schema.events).values(at=NOON, fanned_out=True)))
    await service.database.write(lambda c: c.execute(update(schema.deliveries).values(status=1)))
    await monitor.step()
    assert monitor.state == QueueState(trackers_disabled=1, database_bytes=monitor.state.database_bytes)
