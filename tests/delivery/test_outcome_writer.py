"""These tests check how outcomes of attempts change deliveries, circuit breakers and trackers, on both databases."""

import asyncio

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from shortener.container import Service
from shortener.delivery.health import MAX_FAILURES
from shortener.delivery.outcomes import MAX_LOST_OUTCOMES
from shortener.delivery.trackers import NewTracker
from shortener.storage import schema
from tests.conftest import Clock, MakeService
from tests.delivery.conftest import MakeTracker, Story, changes
from tests.delivery.dispatching import (
    DEAD,
    DELIVERED,
    PENDING,
    CountingDatabase,
    deliver,
    deliveries,
    delivery,
    now_ms,
    other_dispatcher,
    start_attempts,
    statuses,
    tracker_row,
)
from tests.factory import AUDIT, rows
from tests.receiver import Receiver, Reply


async def test_the_outcome_of_an_attempt_is_ignored_if_another_process_has_claimed_the_delivery_in_the_meantime(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [Reply(hang=True)]
    await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    await start_attempts(service.dispatcher, receiver, 1)
    clock.forward(minutes=1)
    await other_dispatcher(service).flush()
    before = await delivery(service)
    assert before.status == DELIVERED
    await service.dispatcher.stop(60, attempts_grace=0)
    assert service.dispatcher.totals.leases_lost == 1
    assert await delivery(service) == before


async def test_a_410_response_is_ignored_if_another_process_has_claimed_the_delivery_in_the_meantime(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    tracker = await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    receiver.replies = [410, 200]
    slow = service.dispatcher
    await slow.step()
    await asyncio.wait(slow.attempts.tasks)
    clock.forward(minutes=1)
    await other_dispatcher(service).flush()
    before = await delivery(service)
    assert before.status == DELIVERED
    await slow.flush()
    assert (slow.totals.leases_lost, slow.totals.dead, slow.totals.trackers_disabled) == (1, 0, 0)
    assert slow.totals.reasons == {}
    assert await delivery(service) == before
    assert [one.status for one in await rows(service.database, schema.attempts)] == [200]
    row = await tracker_row(service, tracker)
    assert (row.enabled, row.failures_in_row) == (True, 0)


async def test_a_503_response_with_retry_after_pauses_all_deliveries_of_the_tracker(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [Reply(503, headers={"retry-after": "60"})]
    await make_tracker(receiver.url())
    await story.first_click()
    await deliver(service)
    await story.first_click()
    clock.forward(seconds=59)
    await deliver(service)
    assert len(receiver.requests) == 1
    clock.forward(seconds=1)
    await deliver(service)
    clock.forward(seconds=10)
    await deliver(service)
    assert statuses(await deliveries(service)) == {DELIVERED: 2}


async def test_each_failed_attempt_that_will_be_repeated_is_logged_with_the_status_and_the_time_of_the_next_attempt(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    receiver.replies = [503]
    tracker = await make_tracker(receiver.url())
    await story.first_click()
    with capture_logs() as logs:
        await deliver(service)
    (line,) = [line for line in logs if line["event"] == "delivery_failed"]
    assert (line["tracker"], line["status"], line["log_level"]) == (tracker, 503, "info")
    assert line["next_attempt"].startswith("2026-11-20T12:0")


async def test_a_410_response_disables_the_tracker_and_its_other_deliveries_wait(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [410]
    tracker = await make_tracker(receiver.url(), concurrency=1)
    await story.first_click()
    await story.first_click()
    with capture_logs() as logs:
        await deliver(service)
    assert len(receiver.requests) == 1
    stored = await service.trackers.get(tracker)
    assert (stored.enabled, stored.disabled_reason) == (False, "it answered 410 Gone")
    assert {"event": "tracker_disabled", "tracker": tracker, "reason": "it answered 410 Gone", "log_level": "warning"} in logs
    assert b"\nshortener_trackers_disabled_total 1.0\n" in service.metrics.text("")[0]
    assert statuses(await deliveries(service)) == {DEAD: 1, PENDING: 1}
    await story.first_click()
    clock.forward(days=2)
    await deliver(service)
    assert len(receiver.requests) == 1, "later events wait too"
    await service.trackers.update(AUDIT, tracker, changes(enabled=True))
    clock.forward(seconds=1)
    await deliver(service)
    assert len(receiver.requests) == 3
    assert statuses(await deliveries(service)) == {DEAD: 1, DELIVERED: 2}


@pytest.mark.parametrize("reply", [410, 429, Reply(503, headers={"retry-after": "60"})], ids=["410", "429", "503"])
async def test_a_response_of_the_old_url_neither_disables_nor_slows_nor_pauses_a_tracker_with_a_new_url(
    reply: int | Reply, service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    receiver.replies = [reply]
    tracker = await make_tracker(receiver.url("/old"))
    await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.step()
    await asyncio.wait(service.dispatcher.attempts.tasks)
    await service.trackers.update(AUDIT, tracker, changes(url=receiver.url("/new")))
    await service.dispatcher.flush()
    row = await tracker_row(service, tracker)
    assert (row.enabled, row.rate, row.failures_in_row, row.open_until) == (True, None, 0, None)
    assert service.dispatcher.totals.trackers_disabled == 0
    assert len(await rows(service.database, schema.attempts)) == 1


async def test_another_probe_is_sent_at_once_if_the_tracker_was_changed_during_the_probe(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    tracker = await make_tracker(receiver.url())
    is_open = update(schema.trackers).values(failures_in_row=MAX_FAILURES, opened_at=clock(), open_until=clock())
    await service.database.write(lambda connection: connection.execute(is_open).rowcount)
    await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.step()
    await asyncio.wait(service.dispatcher.attempts.tasks)
    await service.trackers.update(AUDIT, tracker, changes(name="renamed"))
    await service.dispatcher.flush()
    assert (await service.trackers.get(tracker)).health.breaker(now_ms(clock)) == "half_open"
    await story.first_click()
    await deliver(service)
    assert (await service.trackers.get(tracker)).health.open_until is None
    assert statuses(await deliveries(service)) == {DELIVERED: 2}


@pytest.mark.parametrize("is_open", [False, True])
async def test_deliveries_that_become_dead_without_a_request_do_not_count_against_their_tracker(
    is_open: bool, service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    tracker = await make_tracker(receiver.url(), max_attempts=1)
    for _ in range(MAX_FAILURES + 1):
        await story.first_click()
    await service.fanout.flush()
    lost = update(schema.deliveries).values(attempt=1 + MAX_LOST_OUTCOMES)
    await service.database.write(lambda connection: connection.execute(lost).rowcount)
    if is_open:
        failing = update(schema.trackers).values(failures_in_row=MAX_FAILURES, opened_at=clock(), open_until=clock())
        await service.database.write(lambda connection: connection.execute(failing).rowcount)
    await service.dispatcher.flush()
    assert (statuses(await deliveries(service)), receiver.requests) == ({DEAD: MAX_FAILURES + 1}, [])
    health = (await service.trackers.get(tracker)).health
    assert (health.failures_in_row, health.last_failure_at) == (MAX_FAILURES if is_open else 0, None)
    assert health.breaker(now_ms(clock)) == ("half_open" if is_open else "closed")
    await story.first_click()
    await deliver(service)
    assert len(receiver.requests) == 1


async def test_one_probe_closes_the_circuit_breaker_and_the_backlog_is_sent_at_the_recovery_rate(
    make_service: MakeService, receiver: Receiver, clock: Clock
) -> None:
    service = await make_service(delivery_recovery_rate=10)
    tracker = (
        await service.trackers.create(
            AUDIT, 1, NewTracker(url=receiver.url(), events=["click"], signed=False, concurrency=4, schedule=[1])
        )
    ).tracker.id
    story = Story(service)
    receiver.default_reply = 500
    for _ in range(40):
        await story.first_click()
    await deliver(service)
    assert MAX_FAILURES <= len(receiver.requests) < MAX_FAILURES + 4, "only attempts in flight follow"
    assert service.dispatcher.totals.breakers_opened == 1
    health = (await service.trackers.get(tracker)).health
    assert health.breaker(now_ms(clock)) == "open"

    receiver.take()
    clock.forward(seconds=30)
    await service.dispatcher.flush()
    assert len(receiver.take()) == 1, "one probe, and it fails"
    clock.forward(seconds=59)
    await service.dispatcher.flush()
    assert receiver.take() == [], "the pause is twice as long"

    receiver.default_reply = 200
    clock.forward(seconds=1)
    await service.dispatcher.flush()
    assert len(receiver.take()) == 1, "the probe succeeds"
    released = []
    for _ in range(6):
        clock.forward(seconds=1)
        await service.dispatcher.flush()
        released.append(len(receiver.take()))
    assert released[:3] == [10, 10, 10]
    assert sum(released) == 39
    assert (await service.trackers.get(tracker)).health.breaker(now_ms(clock)) == "closed"
    assert statuses(await deliveries(service)) == {DELIVERED: 40}


async def test_a_success_between_failures_keeps_the_circuit_breaker_closed(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url(), concurrency=1)
    receiver.replies = [*[500] * (MAX_FAILURES - 1), 200, *[500] * (MAX_FAILURES - 1)]
    for _ in range(2 * MAX_FAILURES):
        await story.first_click()
        await deliver(service)
    assert len(receiver.requests) == 2 * MAX_FAILURES
    assert service.dispatcher.totals.breakers_opened == 0


async def test_another_probe_is_sent_after_a_process_that_stops_has_released_its_claim_of_a_probe(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    await make_tracker(receiver.url(), concurrency=1)
    for _ in range(MAX_FAILURES + 2):
        await story.first_click()
    await deliver(service)
    receiver.take()
    clock.forward(seconds=30)
    receiver.default_reply = Reply(hang=True)
    stopped = other_dispatcher(service)
    await start_attempts(stopped, receiver, 1)
    await stopped.stop(60, attempts_grace=0)
    receiver.take()
    receiver.default_reply = 200
    await service.dispatcher.flush()
    assert len(receiver.requests) == 1
    assert statuses(await deliveries(service))[DELIVERED] == 1


async def test_the_outcomes_of_many_delivery_attempts_are_recorded_in_one_transaction(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url(), concurrency=64)
    for _ in range(64):
        await story.first_click()
    await service.fanout.flush()
    database = CountingDatabase(service.database)
    dispatcher = other_dispatcher(service, database)
    assert await dispatcher.step() == 64
    await asyncio.wait(dispatcher.attempts.tasks)
    database.transactions = 0
    assert await dispatcher.step() == 64
    assert database.transactions == 1
    assert statuses(await deliveries(service)) == {DELIVERED: 64}
