"""These tests list, read and replay deliveries and count the backlog of a tracker, on both databases."""

from datetime import timedelta

import pytest

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.delivery import deliveries
from shortener.delivery.deliveries import DeliveryBacklog, DeliveryFilter
from shortener.errors import ApiError, ErrorCode
from shortener.model import DeliveryStatus, Topic
from shortener.storage import schema
from shortener.storage.types import to_ms
from tests.conftest import NOON, Clock, MakeService
from tests.delivery.conftest import MakeTracker, Story, changes
from tests.delivery.dispatching import cancel_attempts, fill
from tests.factory import AUDIT, rows
from tests.receiver import Receiver, Reply

PENDING, DELIVERED, DEAD, PARKED = DeliveryStatus.PENDING, DeliveryStatus.DELIVERED, DeliveryStatus.DEAD, DeliveryStatus.PARKED


async def ids_of(
    service: Service, criteria: DeliveryFilter, limit: int = 100, below: int | None = None
) -> tuple[list[int], int | None]:
    page = await service.deliveries.page(criteria, limit, below)
    return [delivery.id for delivery in page.deliveries], page.next


async def test_a_delivery_is_returned_with_its_attempts(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [Reply(500, b"oh\x00no" + b"x" * 5000), 204]
    tracker = await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.flush()
    clock.forward(seconds=6)
    await service.dispatcher.flush()
    (row,) = await rows(service.database, schema.deliveries)
    stored, attempts = await service.deliveries.get(row.id, 1)
    assert (stored.tracker_id, stored.message_id, stored.topic, stored.status) == (tracker, "m-1", Topic.CLICK, DELIVERED)
    assert stored.event_id == receiver.requests[0].headers["webhook-id"]
    assert (stored.attempt, stored.next_at, stored.finished_at, stored.last_status) == (2, None, clock(), 204)
    first, second = attempts
    assert (first.attempt, first.at, first.status, first.error) == (1, NOON, 500, "other_status")
    assert first.answer == "oh\ufffdno" + "x" * (1024 - 5), "the first KiB, without invalid characters"
    assert (second.attempt, second.at, second.status, second.error) == (2, clock(), 204, None)


async def test_a_page_of_deliveries_is_sorted_newest_first_and_the_next_page_starts_below_its_last_id(
    service: Service, make_tracker: MakeTracker
) -> None:
    tracker = await make_tracker("https://t.example/")
    ids = await fill(service, tracker, DELIVERED, 7)
    await fill(service, await make_tracker("https://u.example/"), DELIVERED, 3)
    seen: list[int] = []
    below = None
    while True:
        some, below = await ids_of(service, DeliveryFilter(1, tracker), 3, below)
        seen += some
        if below is None:
            break
    assert seen == ids[::-1]
    assert len((await ids_of(service, DeliveryFilter(1)))[0]) == 10


async def test_deliveries_can_be_filtered_by_status_and_time(service: Service, make_tracker: MakeTracker, clock: Clock) -> None:
    tracker = await make_tracker("https://t.example/")
    dead = await fill(service, tracker, DEAD, 2)
    clock.forward(hours=1)
    delivered = await fill(service, tracker, DELIVERED, 2)
    clock.forward(hours=1)
    pending = await fill(service, tracker, PENDING, 2)
    by_status = {status: set((await ids_of(service, DeliveryFilter(1, tracker, status)))[0]) for status in DeliveryStatus}
    assert by_status == {DEAD: set(dead), DELIVERED: set(delivered), PENDING: set(pending), PARKED: set()}
    later = DeliveryFilter(1, tracker, since=NOON + timedelta(hours=1))
    assert set((await ids_of(service, later))[0]) == {*delivered, *pending}
    earlier = DeliveryFilter(1, tracker, until=NOON + timedelta(hours=1))
    assert set((await ids_of(service, earlier))[0]) == set(dead)
    await service.trackers.update(AUDIT, tracker, changes(enabled=False))
    assert set((await ids_of(service, DeliveryFilter(1, tracker, PARKED)))[0]) == set(pending)
    assert (await ids_of(service, DeliveryFilter(1, tracker, PENDING)))[0] == []


async def test_a_delivery_filter_without_index_examines_a_limited_number_of_rows(
    service: Service, make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "MAX_WALK_ROWS", 4)
    tracker = await make_tracker("https://t.example/")
    wanted = await fill(service, tracker, DELIVERED, 1)
    await fill(service, tracker, DEAD, 9)
    pages = []
    below = None
    for _ in range(3):
        some, below = await ids_of(service, DeliveryFilter(1, tracker, DELIVERED), 10, below)
        pages.append(some)
    assert pages == [[], [], wanted]
    assert below is None
    assert len((await ids_of(service, DeliveryFilter(1, tracker, DEAD), 100))[0]) == 9, "dead deliveries have an index"


async def test_an_application_cannot_access_the_deliveries_of_another_application(
    service: Service, make_tracker: MakeTracker
) -> None:
    other = (await service.database.write(create_application, "other", NOON)).application_id
    (mine,) = await fill(service, await make_tracker("https://t.example/"), DEAD, 1)
    assert (await ids_of(service, DeliveryFilter(other)))[0] == []
    for attempt in (service.deliveries.get(mine, other), service.deliveries.replay(AUDIT, mine, NOON, other)):
        with pytest.raises(ApiError) as caught:
            await attempt
        assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_replayed_delivery_gets_the_full_number_of_attempts_again_and_can_be_replayed_several_times(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    await make_tracker(receiver.url(), format="scg", max_attempts=2, schedule=[1])
    await story.first_click()
    await service.fanout.flush()
    (row,) = await rows(service.database, schema.deliveries)

    async def until_it_ends() -> None:
        for _ in range(4):
            await service.dispatcher.flush()
            clock.forward(seconds=2)

    await until_it_ends()
    for replays in (1, 2):
        assert (await service.deliveries.get(row.id))[0].status is DEAD
        replayed = await service.deliveries.replay(AUDIT, row.id, clock(), 1)
        assert (replayed.status, replayed.attempt) == (PENDING, 2 * replays)
        await until_it_ends()
    receiver.default_reply = 200
    for _ in range(2):  # at the second replay, the delivery is already delivered
        await service.deliveries.replay(AUDIT, row.id, clock(), 1)
        await until_it_ends()
    assert [request.json["attempt"] for request in receiver.requests] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    stored, attempts = await service.deliveries.get(row.id)
    assert (stored.status, len(attempts)) == (DELIVERED, 8)


@pytest.mark.parametrize("all_of_tracker", [False, True])
async def test_a_replay_is_sent_at_once_although_the_failed_attempts_opened_the_circuit_breaker(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock, all_of_tracker: bool
) -> None:
    receiver.default_reply = 500
    tracker = await make_tracker(receiver.url(), schedule=[1])
    await story.first_click()
    await service.fanout.flush()
    for _ in range(10):
        await service.dispatcher.flush()
        clock.forward(seconds=2)
    (row,) = await rows(service.database, schema.deliveries)
    assert (await service.deliveries.get(row.id))[0].status is DEAD
    assert (await service.trackers.get(tracker)).health.breaker(to_ms(clock())) == "open"
    receiver.default_reply = 200
    if all_of_tracker:
        assert await service.deliveries.replay_dead(AUDIT, DeliveryFilter(1, tracker), clock()) == (1, None)
    else:
        await service.deliveries.replay(AUDIT, row.id, clock(), 1)
    await service.dispatcher.flush()
    assert (await service.deliveries.get(row.id))[0].status is DELIVERED
    assert (await service.trackers.get(tracker)).health.open_until is None


async def test_a_replay_during_a_probe_of_a_tracker_causes_no_second_probe_at_the_same_time(
    service: Service, make_service: MakeService, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    tracker = await make_tracker(receiver.url(), schedule=[1])
    (dead,) = await fill(service, tracker, DEAD, 1)
    await story.first_click()
    await service.fanout.flush()
    for _ in range(10):
        await service.dispatcher.flush()
        clock.forward(seconds=2)
    await story.first_click()
    await service.fanout.flush()
    clock.forward(seconds=30)
    receiver.take()
    receiver.default_reply = Reply(hang=True)
    await service.dispatcher.step()
    await receiver.wait_for(1)
    await service.deliveries.replay(AUDIT, dead, clock(), 1)
    assert (await service.trackers.get(tracker)).health.breaker(to_ms(clock())) == "open", (
        "the circuit breaker stays open until the probe has a result"
    )
    processes = [service] if service.database.dialect == "sqlite" else [service, await make_service()]
    for process in processes:
        await process.dispatcher.step()
    assert sum(process.dispatcher.in_flight for process in processes) == 1
    for process in processes:
        cancel_attempts(process.dispatcher)


async def test_a_replay_does_not_end_the_pause_that_a_tracker_requested_with_retry_after(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [200, Reply(503, headers={"Retry-After": "60"})]
    await make_tracker(receiver.url())
    for _ in range(2):
        await story.first_click()
        await service.fanout.flush()
        await service.dispatcher.flush()
    (delivered,) = [row.id for row in await rows(service.database, schema.deliveries) if row.status == DELIVERED.value]
    await service.deliveries.replay(AUDIT, delivered, clock(), 1)
    await service.dispatcher.flush()
    assert len(receiver.requests) == 2
    clock.forward(seconds=61)
    await service.dispatcher.flush()
    assert len(receiver.requests) == 3


async def test_a_pending_delivery_and_a_delivery_of_a_deleted_tracker_cannot_be_replayed(
    service: Service, make_tracker: MakeTracker
) -> None:
    tracker = await make_tracker("https://t.example/")
    (pending,) = await fill(service, tracker, PENDING, 1)
    (dead,) = await fill(service, tracker, DEAD, 1)
    with pytest.raises(ApiError) as caught:
        await service.deliveries.replay(AUDIT, pending, NOON)
    assert caught.value.code is ErrorCode.CONFLICT
    await service.trackers.delete(AUDIT, tracker)
    with pytest.raises(ApiError) as caught:
        await service.deliveries.replay(AUDIT, dead, NOON)
    assert caught.value.code is ErrorCode.CONFLICT


async def test_replayed_dead_deliveries_are_sent_at_the_recovery_rate(
    service: Service, make_tracker: MakeTracker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "MAX_REPLAYED_PER_TRANSACTION", 2)
    tracker, other = await make_tracker("https://t.example/"), await make_tracker("https://u.example/")
    old = await fill(service, tracker, DEAD, 3)
    clock.forward(hours=1)
    new = await fill(service, tracker, DEAD, 3)
    await fill(service, tracker, DELIVERED, 1)
    await fill(service, other, DEAD, 1)
    until = DeliveryFilter(1, tracker, until=NOON + timedelta(minutes=30))
    assert await service.deliveries.replay_dead(AUDIT, until, clock()) == (3, None)
    assert set((await ids_of(service, DeliveryFilter(1, tracker, PENDING)))[0]) == set(old)
    assert (await service.trackers.get(tracker)).health.breaker(0) == "recovering"
    monkeypatch.setattr(deliveries, "MAX_REPLAYED_PER_CALL", 2)
    assert await service.deliveries.replay_dead(AUDIT, DeliveryFilter(1, tracker), clock()) == (2, new[1])
    assert await service.deliveries.replay_dead(AUDIT, DeliveryFilter(1, tracker), clock(), new[1]) == (1, None)
    assert (await service.trackers.get(other)).health.recovering_at is None


async def test_the_backlog_of_a_tracker_is_counted_up_to_a_limit(
    service: Service, make_tracker: MakeTracker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = await make_tracker("https://t.example/")
    assert await service.deliveries.backlog(tracker, NOON) == DeliveryBacklog(0, 0, None)
    await fill(service, tracker, DEAD, 3)
    await fill(service, tracker, PENDING, 2, next_at=NOON + timedelta(hours=1))
    await fill(service, tracker, PENDING, 2, next_at=NOON + timedelta(minutes=1), queue=1)
    clock.forward(seconds=1)
    assert await service.deliveries.backlog(tracker, clock()) == DeliveryBacklog(4, 3, None)
    clock.forward(hours=2)
    assert await service.deliveries.backlog(tracker, clock()) == DeliveryBacklog(4, 3, NOON + timedelta(minutes=1))
    monkeypatch.setattr(deliveries, "MAX_COUNT", 2)
    assert await service.deliveries.backlog(tracker, clock()) == DeliveryBacklog(2, 2, NOON + timedelta(minutes=1))
