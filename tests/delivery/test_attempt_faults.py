"""These tests check delivery attempts that fail because of this host or of the service itself, on both databases."""

import socket
from typing import Any

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from shortener.container import Service
from shortener.delivery.guard import Guard
from shortener.delivery.http_exchange import OutgoingRequest, SendResult
from shortener.delivery.outcomes import MAX_LOST_OUTCOMES
from shortener.delivery.sender import Sender
from shortener.storage import schema
from tests.conftest import NOON, Clock
from tests.delivery.conftest import MakeTracker, Story
from tests.delivery.dispatching import (
    DEAD,
    DELIVERED,
    PENDING,
    deliver,
    deliveries,
    delivery,
    other_dispatcher,
    run_attempts,
    tracker_row,
)
from tests.factory import AUDIT, rows
from tests.receiver import Receiver, Reply


async def test_a_failure_of_the_local_dns_resolver_does_not_count_as_a_delivery_attempt(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    def failing_lookup(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "the resolver is down")

    tracker = await make_tracker("http://tracker.example/", concurrency=1)
    await story.first_click()
    await service.fanout.flush()
    async with Sender(Guard(), user_agent="test", limit=4, clock=clock, lookup=failing_lookup) as sender:
        dispatcher = other_dispatcher(service, sender=sender)
        await dispatcher.flush()
        row = await delivery(service)
        assert (row.status, row.attempt, row.last_error) == (PENDING, 0, "resolver_down")
        assert row.next_at > NOON
        assert (await tracker_row(service, tracker)).failures_in_row == 0
        assert await rows(service.database, schema.attempts) == []
        assert dispatcher.totals.local_failures == 1
        await story.first_click()
        await service.fanout.flush()
        await dispatcher.flush()
        assert dispatcher.totals.local_failures == 1, "the queue is paused"
        clock.forward(days=6)
        for _ in range(2):
            await dispatcher.flush()
            clock.forward(minutes=1)
        found = [(row.status, row.last_error) for row in await deliveries(service)]
        assert found == [(DEAD, "resolver_down"), (PENDING, "resolver_down")], "the hold counts from the first local failure"
        clock.forward(days=6)
        await dispatcher.flush()
        assert (await deliveries(service))[1].status == DEAD, "nothing waits without limit"


class FaultyTracer:
    """A tracer whose method `fault` raises an error."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def header(self, application_id: int, message_id: str) -> None:
        assert self.fault != "header"

    def record(self, *args: Any, **attributes: Any) -> None:
        assert self.fault != "record"


async def test_a_fault_before_the_request_is_a_local_failure_and_leaves_no_slot_in_use(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    tracer: Any = FaultyTracer("header")
    service.dispatcher.use_tracer(tracer)
    await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.attempt, row.last_error, row.lease_until) == (PENDING, 0, "internal_error", None)
    assert (service.dispatcher.in_flight, receiver.requests) == (0, [])
    service.dispatcher.use_tracer(None)
    clock.forward(seconds=15)
    await service.dispatcher.flush()
    assert (await delivery(service)).status == DELIVERED


@pytest.mark.parametrize("place", ["response", "sender"])
@pytest.mark.parametrize("status", [200, 500])
async def test_a_fault_of_the_service_after_the_request_counts_as_an_attempt_so_the_delivery_becomes_dead(
    service: Service,
    make_tracker: MakeTracker,
    story: Story,
    receiver: Receiver,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    status: int,
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a fault of the service")

    async def send_and_fail(self: Sender, request: OutgoingRequest, deadline: float) -> SendResult:
        await send(self, request, deadline)
        raise RuntimeError("a fault of the service")

    send = Sender.send
    if place == "response":
        monkeypatch.setattr("shortener.delivery.attempt.classify_response", fail)
    else:
        monkeypatch.setattr(Sender, "send", send_and_fail)
    receiver.default_reply = status
    await make_tracker(receiver.url(), max_attempts=3)
    await story.first_click()
    with capture_logs() as logs:
        await deliver(service)
        for _ in range(10):
            clock.forward(seconds=15)
            await service.dispatcher.flush()
        assert (await delivery(service)).status == PENDING
        assert len(receiver.requests) == 2, "the second attempt after 5 seconds, the third after 5 minutes"
        clock.forward(minutes=6)
        await service.dispatcher.flush()
        clock.forward(days=1)
        await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.attempt, row.last_error, len(receiver.requests)) == (DEAD, 3, "response_not_processed", 3)
    known = status if place == "response" else None
    attempts = await rows(service.database, schema.attempts)
    assert [(one.attempt, one.status, one.error) for one in attempts] == [
        (number, known, "response_not_processed") for number in (1, 2, 3)
    ]
    assert [one["event"] for one in logs if one["log_level"] == "error"] == ["response_not_processed"] * 3
    totals = service.dispatcher.totals
    assert (totals.reasons["response_not_processed"], totals.local_failures, totals.dead) == (3, 0, 1)


async def test_a_delivery_whose_outcomes_are_lost_too_often_becomes_dead(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    await make_tracker(receiver.url(), max_attempts=2)
    await story.first_click()
    await service.fanout.flush()
    with capture_logs() as logs:
        for _ in range(2 + MAX_LOST_OUTCOMES):
            dispatcher = other_dispatcher(service)
            await run_attempts(dispatcher)
            clock.forward(minutes=1)  # the process dies before it records the outcome, and the lease ends
        await other_dispatcher(service).flush()
    row = await delivery(service)
    assert (row.status, row.last_error, row.last_status) == (DEAD, "outcomes_lost", None)
    assert len(receiver.requests) == 2 + MAX_LOST_OUTCOMES
    assert await rows(service.database, schema.attempts) == []
    assert [one["error"] for one in logs if one["event"] == "delivery_dead"] == ["outcomes_lost"]
    await service.deliveries.replay(AUDIT, row.id, clock())
    await service.dispatcher.flush()
    assert (await delivery(service)).status == DELIVERED


async def test_a_delivery_with_more_attempts_than_the_lowered_maximum_of_its_tracker_is_dead_with_the_right_reason(
    service: Service,
    make_tracker: MakeTracker,
    story: Story,
    receiver: Receiver,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shortener.delivery.attempt.MAX_LOST_OUTCOMES", 1)
    receiver.default_reply = Reply(500)
    tracker = await make_tracker(receiver.url(), max_attempts=10)
    await story.first_click()
    await service.fanout.flush()
    for _ in range(3):
        await service.dispatcher.flush()
        clock.forward(hours=12)
    await service.trackers.update(AUDIT, tracker, {"max_attempts": 1})
    with capture_logs() as logs:
        await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.last_error, len(receiver.requests)) == (DEAD, "attempts_used_up", 3)
    assert [one["error"] for one in logs if one["event"] == "delivery_dead"] == ["attempts_used_up"]
    assert service.dispatcher.totals.reasons["attempts_used_up"] == 1
    assert [one.attempt for one in await rows(service.database, schema.attempts)] == [1, 2, 3]


async def test_the_outcome_of_an_attempt_is_recorded_if_it_cannot_be_traced(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url())
    await story.first_click()
    tracer: Any = FaultyTracer("record")
    service.dispatcher.use_tracer(tracer)
    await deliver(service)
    assert ((await delivery(service)).status, service.dispatcher.in_flight, len(receiver.requests)) == (DELIVERED, 0, 1)


async def test_the_time_limit_for_local_failures_of_a_delivery_begins_at_its_first_local_failure(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [500]
    await make_tracker(receiver.url(), schedule=[8 * 86400])
    await story.first_click()
    await deliver(service)
    clock.forward(days=9)
    async with Sender(Guard(), user_agent="test", limit=0, clock=clock) as blocked:
        dispatcher = other_dispatcher(service, sender=blocked)
        await service.database.write(lambda connection: connection.execute(update(schema.trackers).values(timeout=0.1, revision=9)))
        await dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.attempt, row.last_error, row.held_since) == (PENDING, 1, "no_slot", clock())
    clock.forward(minutes=1)
    receiver.replies = [500]
    await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.attempt, row.held_since) == (2, None), "a charged attempt ends the hold"
