"""These tests check that deliveries become dead if they wait too long or their tracker is deleted, on both databases."""

from datetime import timedelta

from shortener.container import Service
from shortener.delivery.expiry import MAX_HOLD
from shortener.delivery.health import MAX_FAILURES
from tests.conftest import Clock
from tests.delivery.conftest import MakeTracker, Story, changes
from tests.delivery.dispatching import DEAD, PENDING, deliver, deliveries, delivery
from tests.factory import AUDIT
from tests.receiver import Receiver


async def test_deliveries_become_dead_if_their_tracker_is_disabled_for_too_long(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    tracker = await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    await service.trackers.update(AUDIT, tracker, changes(enabled=False))
    clock.forward(days=service.settings.event_retention_days - 1)
    await deliver(service)
    assert (await delivery(service)).status == PENDING
    clock.forward(days=2)
    await deliver(service)
    row = await delivery(service)
    assert (row.status, row.last_error, receiver.requests) == (DEAD, "tracker_disabled", [])


async def test_deliveries_of_a_deleted_tracker_become_dead(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    tracker = await make_tracker(receiver.url("/deleted"))
    await story.first_click()
    await service.fanout.flush()
    await service.trackers.delete(AUDIT, tracker)
    assert await make_tracker(receiver.url("/other")) != tracker, "the id of a deleted tracker is not used again"
    await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.last_error, receiver.requests) == (DEAD, "tracker_deleted", [])


async def test_deliveries_become_dead_if_the_circuit_breaker_is_open_for_too_long(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    await make_tracker(receiver.url(), concurrency=1)
    for _ in range(MAX_FAILURES + 5):
        await story.first_click()
    await deliver(service)
    last = (await deliveries(service))[-1]
    assert (last.status, last.attempt) == (PENDING, 0)
    held_until = clock() + MAX_HOLD

    async def expired() -> int:
        """Flush the dispatcher. Return the number of deliveries that are dead because they waited for the circuit breaker."""
        await service.dispatcher.flush()
        return sum(row.status == DEAD and row.last_error == "breaker_open" for row in await deliveries(service))

    while clock() < held_until - timedelta(hours=12):  # each probe of the open circuit breaker fails
        assert await expired() == 0
        clock.forward(hours=12)
    clock.forward(hours=12, minutes=1)
    assert await expired() > 0


async def test_an_operations_event_informs_the_customer_of_deliveries_that_became_dead_because_they_waited_too_long(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 200
    await make_tracker(receiver.url("/operations"), "operations")
    other = await make_tracker(receiver.url("/none"), "operations")
    disabled = await make_tracker(receiver.url("/disabled"))
    deleted = await make_tracker(receiver.url("/deleted"))
    for _ in range(3):
        await story.first_click()
    await service.fanout.flush()
    await service.trackers.delete(AUDIT, deleted)
    await service.trackers.update(AUDIT, disabled, changes(enabled=False))
    clock.forward(days=service.settings.event_retention_days + 1)
    await service.dispatcher.flush()
    await service.fanout.flush()
    await service.trackers.update(AUDIT, other, changes(enabled=False))
    await deliver(service)
    sent = [request.json for request in receiver.requests if request.target == "/operations"]
    found = sorted((one["event"], one["tracker_id"], one["count"], one["delivery_event"], one["reason"]) for one in sent)
    assert found == [
        ("delivery_dead", disabled, 3, "click", "tracker_disabled"),
        ("delivery_dead", deleted, 3, "click", "tracker_deleted"),
    ]
    clock.forward(days=service.settings.event_retention_days + 1)
    await deliver(service)
    await deliver(service)
    expired = [row for row in await deliveries(service) if row.status == DEAD and row.tracker_id == other]
    assert (len(expired), len(receiver.requests)) == (2, 2), "an expired operations event raises no event"
