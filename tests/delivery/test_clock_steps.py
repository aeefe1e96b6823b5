"""These tests check retries, leases, circuit breakers and rates after the system clock was changed, on both databases."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import update

from shortener.container import Service
from shortener.delivery.claims import LEASE_MARGIN_MS
from shortener.delivery.clock_steps import repaired_health, repaired_pace
from shortener.delivery.health import MAX_FAILURES, MIN_PAUSE_MS, EndpointHealth
from shortener.delivery.pace import EndpointPace
from shortener.storage import schema
from shortener.storage.types import to_ms
from tests.conftest import Clock
from tests.delivery.conftest import MakeTracker, Story
from tests.delivery.dispatching import (
    DELIVERED,
    PENDING,
    cancel_attempts,
    deliver,
    deliveries,
    delivery,
    other_dispatcher,
    start_attempts,
    statuses,
    tracker_row,
)
from tests.receiver import Receiver, Reply

STEP = timedelta(hours=5)


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_retry_waits_only_its_planned_delay_after_the_clock_was_set_back(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock, restarted: bool
) -> None:
    receiver.default_reply = 500
    await make_tracker(receiver.url(), schedule=[60])
    for _ in range(5):
        await story.first_click()
    await deliver(service)
    clock.now -= STEP
    dispatcher = other_dispatcher(service) if restarted else service.dispatcher
    await dispatcher.flush()
    assert len(receiver.take()) == 5
    assert all(0 <= (row.next_at - clock()).total_seconds() <= 66 for row in await deliveries(service))
    receiver.default_reply = 200
    clock.forward(seconds=67)
    await dispatcher.flush()
    assert statuses(await deliveries(service)) == {DELIVERED: 5}
    assert dispatcher.totals.clock_steps == 1


async def test_a_first_attempt_is_sent_although_the_clock_was_set_back_after_the_event(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    await make_tracker(receiver.url())
    await service.dispatcher.step()
    await story.first_click()
    await service.fanout.flush()
    clock.now -= STEP
    await service.dispatcher.flush()
    assert (await delivery(service)).status == DELIVERED


async def test_a_delivery_of_a_killed_process_is_retried_in_time_after_the_clock_was_set_back(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = Reply(hang=True)
    await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    killed = other_dispatcher(service)
    await start_attempts(killed, receiver, 1)
    cancel_attempts(killed)
    clock.now -= STEP
    await service.dispatcher.flush()
    assert len(receiver.requests) == 1, "the attempt may still be in flight"
    receiver.default_reply = 200
    clock.forward(milliseconds=5000 + LEASE_MARGIN_MS)
    await service.dispatcher.flush()
    assert (await delivery(service)).status == DELIVERED


async def test_a_running_delivery_attempt_is_recorded_although_the_clock_was_set_back(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = Reply(hang=True)
    await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    await start_attempts(service.dispatcher, receiver, 1)
    clock.now -= STEP
    await service.dispatcher.step()
    cancel_attempts(service.dispatcher)
    await asyncio.wait(service.dispatcher.attempts.tasks)
    receiver.default_reply = 200
    await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.attempt) == (DELIVERED, 1)
    assert (service.dispatcher.totals.leases_lost, service.dispatcher.totals.claims_returned) == (0, 1)


async def test_a_circuit_breaker_stays_open_only_for_its_planned_pause_after_the_clock_was_set_back(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    tracker = await make_tracker(receiver.url(), concurrency=1)
    for _ in range(MAX_FAILURES + 1):
        await story.first_click()
    await deliver(service)
    assert (await tracker_row(service, tracker)).open_until is not None
    clock.now -= STEP
    receiver.default_reply = 200
    await service.dispatcher.flush()
    clock.forward(milliseconds=75_000)
    await service.dispatcher.flush()
    assert (await tracker_row(service, tracker)).open_until is None


async def test_waiting_deliveries_are_sent_once_after_the_clock_was_set_forward(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [500]
    await make_tracker(receiver.url())
    await story.first_click()
    await deliver(service)
    clock.now += STEP
    await service.dispatcher.flush()
    assert (len(receiver.requests), (await delivery(service)).status) == (2, DELIVERED)


async def test_a_delivery_queue_paused_by_a_local_failure_continues_after_the_clock_was_set_back(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    tracker = await make_tracker(receiver.url())
    service.dispatcher.pauses.pause(f"t{tracker}", to_ms(clock()))
    clock.now -= STEP
    await story.first_click()
    await deliver(service)
    assert (await delivery(service)).status == DELIVERED


async def test_no_stored_time_of_a_delivery_is_changed_while_the_clock_runs_normally(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    await make_tracker(receiver.url())
    await story.first_click()
    await deliver(service)
    later = clock() + timedelta(days=2)
    await service.database.write(lambda connection: connection.execute(update(schema.deliveries).values(next_at=later)))
    clock.forward(minutes=1)
    await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.next_at, service.dispatcher.totals.clock_steps) == (PENDING, later, 0)


def test_after_a_clock_change_an_open_circuit_breaker_stays_open_for_at_most_its_planned_pause() -> None:
    now = 1_000_000_000
    ahead = now + 18_000_000
    health = EndpointHealth(MAX_FAILURES, open_until=ahead, recovering_at=ahead, opened_at=ahead)
    repaired = repaired_health(health, now)
    assert repaired.open_until is not None
    assert now + MIN_PAUSE_MS <= repaired.open_until <= now + 70_000
    assert (repaired.recovering_at, repaired.opened_at) == (now, now)
    assert repaired_health(EndpointHealth(), now) == EndpointHealth()


def test_after_a_clock_change_a_tracker_still_waits_for_the_time_in_a_retry_after_header() -> None:
    now = 1_000_000_000
    ahead = now + 18_000_000
    pace = EndpointPace(rate=5.0, ceiling=5.0, lowered_at=ahead, paced_until=ahead + 60_000)
    assert repaired_pace(pace, now) == EndpointPace(rate=5.0, ceiling=5.0, lowered_at=now, paced_until=now + 60_000)
    assert repaired_pace(EndpointPace(max_per_second=5.0, paced_until=ahead), now).paced_until == now
