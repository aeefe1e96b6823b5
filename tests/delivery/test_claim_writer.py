"""These tests check how one or several processes claim deliveries of several queues, on both databases."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Connection, insert, update

from shortener.container import Service
from shortener.delivery.claims import LEASE_MARGIN_MS
from shortener.delivery.deliveries import DeliveryFilter
from shortener.delivery.health import MAX_FAILURES
from shortener.delivery.trackers import NewTracker
from shortener.model import DeliveryStatus
from shortener.storage import schema
from tests.conftest import NOON, Clock, MakeService
from tests.delivery.conftest import MakeTracker, Story, changes
from tests.delivery.dispatching import (
    DEAD,
    DELIVERED,
    PENDING,
    cancel_attempts,
    deliver,
    deliveries,
    delivery,
    now_ms,
    other_dispatcher,
    start_attempts,
    statuses,
    tracker_row,
)
from tests.factory import AUDIT
from tests.receiver import Receiver, Reply


def set_application_disabled(connection: Connection, application: int, at: datetime | None) -> None:
    table = schema.applications
    connection.execute(update(table).where(table.c.id == application).values(disabled_at=at))


async def test_the_claim_of_a_delivery_is_stored_before_the_response_arrives(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    receiver.default_reply = Reply(hang=True)
    await make_tracker(receiver.url(), timeout=5)
    await story.first_click()
    await service.fanout.flush()
    await start_attempts(service.dispatcher, receiver, 1)
    row = await delivery(service)
    lease = NOON + timedelta(seconds=5, milliseconds=LEASE_MARGIN_MS)
    assert (row.status, row.attempt, row.lease_until) == (PENDING, 1, lease)
    cancel_attempts(service.dispatcher)


async def test_a_delivery_of_a_killed_process_is_attempted_again_when_its_lease_ends(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [Reply(hang=True)]
    await make_tracker(receiver.url(), format="scg", timeout=5)
    await story.first_click()
    await service.fanout.flush()
    await start_attempts(service.dispatcher, receiver, 1)
    cancel_attempts(service.dispatcher)
    restarted = other_dispatcher(service)
    clock.forward(seconds=14)
    await restarted.flush()
    assert len(receiver.requests) == 1, "the lease still runs"
    clock.forward(seconds=1)
    await restarted.flush()
    first, second = receiver.requests
    assert (first.json["attempt"], second.json["attempt"]) == (1, 2), "the first attempt counts, although its outcome is lost"
    assert first.json["event_id"] == second.json["event_id"] == first.headers["webhook-id"] == second.headers["webhook-id"]
    row = await delivery(service)
    assert (row.status, row.attempt) == (DELIVERED, 2)


async def test_a_tracker_that_hangs_leaves_slots_for_a_healthy_tracker(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service(delivery_slots=16)
    story = story_of(service)
    receiver.by_path = {"/hang": Reply(hang=True)}
    for path in ("/hang", "/well"):
        await service.trackers.create(AUDIT, 1, NewTracker(url=receiver.url(path), events=["click"], timeout=5))
    for _ in range(60):
        await story.first_click()
    await service.fanout.flush()
    dispatcher = service.dispatcher
    while Counter(request.target for request in receiver.requests)["/well"] < 60:
        if not await dispatcher.step():
            await dispatcher.wake_up.wait(5)
    hanging = Counter(request.target for request in receiver.requests)["/hang"]
    assert hanging <= 12, "one quarter of the slots stays free"
    cancel_attempts(dispatcher)


async def test_callbacks_to_a_host_use_one_slot_until_the_host_has_responded(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service(delivery_slots_per_tracker=4)
    story = story_of(service)
    receiver.default_reply = Reply(hang=True)
    for _ in range(10):
        await story.first_click(await story.message(callback_url=receiver.url("/callback")))
    await service.fanout.flush()
    while await service.dispatcher.step():
        pass
    assert service.dispatcher.attempts.usage.by_queue == {"c1/127.0.0.1": 1}
    cancel_attempts(service.dispatcher)
    service.dispatcher._responsive["c1/127.0.0.1"] = None
    while await service.dispatcher.step():
        pass
    assert service.dispatcher.attempts.usage.by_queue == {"c1/127.0.0.1": 4}
    cancel_attempts(service.dispatcher)


async def test_callbacks_to_a_host_that_responds_use_several_slots(service: Service, receiver: Receiver, story: Story) -> None:
    for _ in range(3):
        await story.first_click(await story.message(callback_url=receiver.url("/callback")))
    await deliver(service)
    assert len(receiver.requests) == 3
    assert list(service.dispatcher._responsive) == ["c1/127.0.0.1"]


async def test_deliveries_of_a_disabled_application_wait_until_the_application_is_enabled(
    service: Service, make_tracker: MakeTracker, receiver: Receiver, story: Story, clock: Clock
) -> None:
    receiver.default_reply = 500
    await make_tracker(receiver.url("/tracker"), schedule=[60])
    await story.first_click(await story.message(callback_url=receiver.url("/callback")))
    await deliver(service)
    assert len(receiver.take()) == 2
    await service.database.write(set_application_disabled, 1, clock())
    clock.forward(days=20)
    await story.first_click()
    await deliver(service)
    assert receiver.take() == []
    page = await service.deliveries.page(DeliveryFilter(1), 10)
    assert {one.status for one in page.deliveries} == {DeliveryStatus.PARKED}
    await service.database.write(set_application_disabled, 1, None)
    receiver.default_reply = 200
    await deliver(service)
    assert sorted(request.target for request in receiver.take()) == ["/callback", "/tracker", "/tracker"]
    assert statuses(await deliveries(service)) == {DELIVERED: 3}


async def test_deliveries_become_dead_if_their_application_is_disabled_for_too_long(
    service: Service, make_tracker: MakeTracker, receiver: Receiver, story: Story, clock: Clock
) -> None:
    await make_tracker(receiver.url())
    await story.first_click(await story.message(callback_url=receiver.url("/callback")))
    await service.fanout.flush()
    clock.forward(days=service.settings.event_retention_days)
    await service.database.write(set_application_disabled, 1, clock())
    clock.forward(days=service.settings.event_retention_days - 1)
    await service.dispatcher.flush()
    assert statuses(await deliveries(service)) == {PENDING: 2}, "the hold counts from the time when the application was disabled"
    clock.forward(days=2)
    await service.dispatcher.flush()
    assert {(row.status, row.last_error) for row in await deliveries(service)} == {(DEAD, "application_disabled")}


async def test_the_rate_limit_of_a_tracker_applies_to_all_processes_together(
    make_service: MakeService, postgresql_only: None, receiver: Receiver, story_of: Callable[[Service], Story], clock: Clock
) -> None:
    services = [await make_service() for _ in range(3)]
    story = story_of(services[0])
    await services[0].trackers.create(AUDIT, 1, NewTracker(url=receiver.url(), events=["click"], signed=False, max_per_second=10))
    for _ in range(60):
        await story.first_click()
    await services[0].fanout.flush()
    counts = []
    for _ in range(3):
        for _ in range(40):
            clock.forward(milliseconds=25)
            await asyncio.gather(*(service.dispatcher.flush() for service in services))
        counts.append(len(receiver.take()))
    assert 27 <= sum(counts) <= 33, counts


async def test_the_tracker_setting_max_per_second_limits_the_delivery_attempts(
    service: Service, make_tracker: MakeTracker, receiver: Receiver, story: Story, clock: Clock
) -> None:
    await make_tracker(receiver.url(), max_per_second=5)
    for _ in range(30):
        await story.first_click()
    await service.fanout.flush()
    counts = []
    for _ in range(4):
        for _ in range(50):
            clock.forward(milliseconds=20)
            await service.dispatcher.flush()
        counts.append(len(receiver.take()))
    assert all(4 <= count <= 6 for count in counts), counts
    assert sum(counts) in (19, 20, 21)


async def test_many_trackers_that_hang_leave_slots_for_other_trackers(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service(delivery_slots=16)
    story = story_of(service)
    receiver.by_path = {"/hang": Reply(hang=True)}
    for _ in range(10):
        await service.trackers.create(AUDIT, 1, NewTracker(url=receiver.url("/hang"), events=["click"], timeout=5))
    for _ in range(10):
        await story.first_click()
    await service.fanout.flush()
    while await service.dispatcher.step():
        pass
    assert 10 <= service.dispatcher.in_flight < 16
    await service.trackers.create(AUDIT, 1, NewTracker(url=receiver.url("/well"), events=["click"]))
    await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.step()
    await receiver.wait_for(service.dispatcher.in_flight)
    assert "/well" in {request.target for request in receiver.requests}
    cancel_attempts(service.dispatcher)


async def test_first_attempts_and_retries_of_a_tracker_do_not_block_each_other(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    await make_tracker(receiver.url(), concurrency=2, format="scg", schedule=[1])
    receiver.replies = [500, 500, 500, 500]
    for _ in range(4):
        await story.first_click()
    await deliver(service)
    clock.forward(seconds=2)
    for _ in range(4):
        await story.first_click()
    await service.fanout.flush()
    receiver.take()
    await service.dispatcher.flush()
    assert sorted(request.json["attempt"] for request in receiver.requests[:2]) == [1, 2]
    assert len(receiver.requests) == 8


async def test_processes_that_share_a_database_never_claim_the_same_delivery(
    make_service: MakeService, postgresql_only: None, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    first, second = await make_service(), await make_service()
    story = story_of(first)
    await first.trackers.create(AUDIT, 1, NewTracker(url=receiver.url(), events=["click"], concurrency=8, signed=False))
    for _ in range(100):
        await story.first_click()
    await asyncio.gather(first.fanout.flush(), second.fanout.flush())
    await asyncio.gather(first.dispatcher.flush(), second.dispatcher.flush())
    await asyncio.gather(first.dispatcher.flush(), second.dispatcher.flush())
    assert statuses(await deliveries(first)) == {DELIVERED: 100}
    assert Counter(Counter(request.headers["webhook-id"] for request in receiver.requests).values()) == {1: 100}
    assert all(service.dispatcher.totals.delivered > 0 for service in (first, second))


async def test_only_one_of_several_processes_sends_the_probe_of_an_open_circuit_breaker(
    make_service: MakeService, postgresql_only: None, receiver: Receiver, story_of: Callable[[Service], Story], clock: Clock
) -> None:
    services = [await make_service() for _ in range(3)]
    story = story_of(services[0])
    receiver.default_reply = 500
    tracker = (
        await services[0].trackers.create(
            AUDIT, 1, NewTracker(url=receiver.url(), events=["click"], concurrency=1, signed=False, timeout=5)
        )
    ).tracker.id
    for _ in range(MAX_FAILURES + 10):
        await story.first_click()
    await deliver(services[0])
    assert len(receiver.take()) == MAX_FAILURES
    clock.forward(seconds=30)
    receiver.default_reply = Reply(hang=True)
    for _ in range(3):
        await asyncio.gather(*(service.dispatcher.step() for service in services))
    await receiver.wait_for(1)
    assert [service.dispatcher.in_flight for service in services].count(1) == 1
    assert sum(service.dispatcher.in_flight for service in services) == len(receiver.requests) == 1
    assert (await tracker_row(services[0], tracker)).failures_in_row == MAX_FAILURES
    for service in services:
        cancel_attempts(service.dispatcher)


async def test_several_processes_share_the_recovery_rate_of_a_tracker(
    make_service: MakeService, postgresql_only: None, receiver: Receiver, story_of: Callable[[Service], Story], clock: Clock
) -> None:
    services = [await make_service(delivery_recovery_rate=10) for _ in range(3)]
    story = story_of(services[0])
    receiver.default_reply = 500
    await services[0].trackers.create(
        AUDIT, 1, NewTracker(url=receiver.url(), events=["click"], concurrency=1, signed=False, schedule=[1])
    )
    for _ in range(MAX_FAILURES + 30):
        await story.first_click()
    await deliver(services[0])
    clock.forward(seconds=30)
    receiver.default_reply = 200
    receiver.take()
    await services[0].dispatcher.flush()
    assert len(receiver.take()) == 1, "the probe"
    released = []
    for _ in range(3):
        clock.forward(seconds=1)
        for _ in range(2):
            await asyncio.gather(*(service.dispatcher.flush() for service in services))
        released.append(len(receiver.take()))
    assert released == [10, 10, 10]


async def test_a_tracker_with_one_attempt_at_a_time_has_recovered_when_its_backlog_is_sent(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story], clock: Clock
) -> None:
    service = await make_service(delivery_recovery_rate=0.5)
    story = story_of(service)
    new = NewTracker(url=receiver.url(), events=["click"], concurrency=1, signed=False)
    tracker = (await service.trackers.create(AUDIT, 1, new)).tracker.id
    for _ in range(3):
        await story.first_click()
    for enabled in (False, True):
        await service.trackers.update(AUDIT, tracker, changes(enabled=enabled))
    breakers = []
    for _ in range(3):
        clock.forward(seconds=2)
        await deliver(service)
        breakers.append((await service.trackers.get(tracker)).health.breaker(now_ms(clock)))
    assert (len(receiver.requests), breakers) == (3, ["recovering", "recovering", "closed"])


async def test_all_due_deliveries_are_sent_even_if_there_are_more_queues_than_one_dispatch_cycle_examines(
    service: Service, receiver: Receiver, make_tracker: MakeTracker, story: Story
) -> None:
    def fill(connection: Connection) -> None:
        common = {"topic": 2, "application_id": 1, "status": 0, "attempt": 1, "created_at": NOON, "queue": 1}
        later = NOON + timedelta(hours=1)
        waiting = [{"id": n, "event_id": n, "lane": f"c{n}", "next_at": later, "callback_url": "x", **common} for n in range(600)]
        connection.execute(insert(schema.deliveries), waiting)

    await service.database.write(fill)
    await make_tracker(receiver.url())
    await story.first_click()
    await deliver(service)
    assert len(receiver.requests) == 1
    assert await service.dispatcher.step() in (0, 1)
    turns = service.dispatcher.totals.dispatch_cycles
    await service.dispatcher.flush()
    assert service.dispatcher.totals.dispatch_cycles - turns <= 4, "no further cycles run when nothing is left to claim"


async def test_a_tracker_with_an_unreadable_secret_does_not_block_other_trackers(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    broken = await make_tracker(receiver.url("/broken"), secret="a secret of mine")
    await make_tracker(receiver.url("/well"))
    damage = update(schema.trackers).where(schema.trackers.c.id == broken).values(secret="gAAAA", revision=2)
    await service.database.write(lambda connection: connection.execute(damage))
    await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.flush()
    assert [request.target for request in receiver.requests] == ["/well"]
    page = await service.deliveries.page(DeliveryFilter(1, broken), 10)
    assert [(one.status, one.attempt, one.last_error) for one in page.deliveries] == [(PENDING, 0, "internal_error")]
