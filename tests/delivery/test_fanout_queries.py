"""These tests check which trackers get deliveries of an event, on both databases."""

from shortener.container import Service
from shortener.storage import schema
from tests.delivery.conftest import MakeTracker, Story, changes
from tests.factory import AUDIT, rows


async def test_an_event_creates_no_delivery_for_a_tracker_that_its_owner_disabled(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    disabled = await make_tracker("https://tracker.example/off", "click", enabled=False)
    enabled = await make_tracker("https://tracker.example/on", "click")
    await story.first_click()
    await service.fanout.flush()
    assert [row.tracker_id for row in await rows(service.database, schema.deliveries)] == [enabled]
    await service.trackers.update(AUDIT, disabled, changes(enabled=True))
    await story.first_click()
    await service.fanout.flush()
    found = [row.tracker_id for row in await rows(service.database, schema.deliveries)]
    assert sorted(found) == sorted([enabled, enabled, disabled])
