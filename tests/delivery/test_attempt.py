"""These tests send deliveries to a local receiver and check requests, retries and signatures on both databases."""

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import update
from standardwebhooks.webhooks import Webhook

from shortener.container import Service
from shortener.container.connections import open_sender
from shortener.delivery.claims import MIN_LEASE_LEFT_MS
from shortener.delivery.guard import Guard
from shortener.delivery.outcomes import DEFAULT_SCHEDULE
from shortener.delivery.sender import Sender
from shortener.delivery.trackers import NewTracker
from shortener.storage import schema
from tests.conftest import NOON, Clock, MakeService
from tests.delivery.conftest import MakeTracker, Story, changes
from tests.delivery.dispatching import (
    DEAD,
    DELIVERED,
    PENDING,
    SlowDatabase,
    deliver,
    deliveries,
    delivery,
    other_dispatcher,
    run_attempts,
    tracker_row,
)
from tests.factory import AUDIT, rows
from tests.receiver import Receiver, Reply
from tests.servers import PATIENCE


async def test_a_successful_delivery_is_stored_with_its_attempt(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    receiver.default_reply = Reply(202, b"thanks")
    tracker = await make_tracker(receiver.url("/hook?m={message_id}"))
    await story.first_click()
    await deliver(service)
    (request,) = receiver.requests
    assert (request.method, request.target) == ("POST", "/hook?m=m-1")
    row = await delivery(service)
    assert (row.status, row.attempt, row.lease_until, row.finished_at) == (DELIVERED, 1, None, NOON)
    assert (row.last_status, row.last_error) == (202, None)
    (attempt,) = await rows(service.database, schema.attempts)
    assert (attempt.delivery_id, attempt.attempt, attempt.at, attempt.status) == (row.id, 1, NOON, 202)
    assert (attempt.error, attempt.detail, attempt.answer) == (None, None, "thanks")
    assert (await tracker_row(service, tracker)).last_success_at == NOON


@pytest.mark.parametrize(("seconds", "requests"), [(MIN_LEASE_LEFT_MS / 1000, 1), (MIN_LEASE_LEFT_MS / 1000 + 0.001, 0), (60, 0)])
async def test_a_delivery_attempt_does_not_start_if_the_lease_of_the_delivery_ends_too_soon(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock, seconds: float, requests: int
) -> None:
    await make_tracker(receiver.url(), timeout=5, format="scg")
    await story.first_click()
    await service.fanout.flush()
    slow: Any = SlowDatabase(service.database, clock, seconds)
    dispatcher = other_dispatcher(service, slow)
    await run_attempts(dispatcher)
    assert len(receiver.requests) == requests
    assert await dispatcher.step() >= 1
    await dispatcher.flush()
    (request,) = receiver.requests
    row = await delivery(service)
    assert (request.json["attempt"], row.status, row.attempt) == (1, DELIVERED, 1), "a returned claim does not count as an attempt"
    assert dispatcher.totals.claims_returned == 1 - requests


async def test_a_delivery_attempt_ends_within_its_time_limit_while_it_waits_for_dns_or_a_slot(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    """The lease of a delivery must last longer than the waits for the DNS resolver and for a slot of the sender."""
    released = threading.Event()

    def hanging_lookup(host: str, port: int) -> list[str]:
        released.wait(PATIENCE)
        return ["127.0.0.1"]

    receiver.default_reply = Reply(hang=True)
    await make_tracker("http://silent.example/", timeout=0.3)
    await make_tracker(receiver.url(), timeout=0.3)
    await story.first_click()
    await service.fanout.flush()
    try:
        async with Sender(Guard(True), user_agent="test", limit=1, clock=service.clock, lookup=hanging_lookup) as sender:
            dispatcher = other_dispatcher(service, sender=sender)
            began = time.monotonic()
            await run_attempts(dispatcher)
            assert time.monotonic() - began < 10, "neither the resolver nor the tracker delays the end"
            await dispatcher.step()
    finally:
        released.set()
    assert all(row.lease_until is None for row in await deliveries(service))


async def test_a_delivery_becomes_dead_after_ten_failed_attempts_on_the_default_schedule(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    await make_tracker(receiver.url(), format="scg")
    await story.first_click()
    await deliver(service)
    for _ in range(20):
        row = await delivery(service)
        if row.status != PENDING:
            break
        clock.now = row.next_at - timedelta(milliseconds=1)
        await service.dispatcher.flush()
        assert len(receiver.requests) == row.attempt, "no attempt before next_at"
        clock.now = row.next_at
        await service.dispatcher.flush()
    assert (row.status, row.attempt, row.last_status, row.last_error) == (DEAD, 10, 500, "other_status")
    attempts = await rows(service.database, schema.attempts)
    assert [one.attempt for one in attempts] == list(range(1, 11))
    assert [request.json["attempt"] for request in receiver.requests] == list(range(1, 11))
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    for delay, (before, after) in zip(DEFAULT_SCHEDULE, pairwise(attempts), strict=True):
        waited = (after.at - before.at).total_seconds()
        assert delay <= waited <= delay + min(delay * 0.1, 900) + 0.001, "jitter is added, never subtracted"
    clock.forward(days=30)
    await service.dispatcher.flush()
    assert len(receiver.requests) == 10


async def test_a_tracker_can_have_a_custom_retry_schedule_and_maximum_number_of_attempts(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 503
    await make_tracker(receiver.url(), schedule=[60], max_attempts=3)
    await story.first_click()
    await deliver(service)
    for _ in range(5):
        clock.forward(seconds=66)
        await service.dispatcher.flush()
    assert [(one.at - NOON).total_seconds() for one in await rows(service.database, schema.attempts)] == [0, 66, 132]
    assert (await delivery(service)).status == DEAD


async def test_the_next_delivery_attempt_waits_until_the_time_in_the_retry_after_header(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    delays = {"120": 120, "Fri, 20 Nov 2026 12:02:00 GMT": 120, "-5": 5, "soon": 5, "99999999": 86400}
    for retry_after, seconds in delays.items():
        receiver.replies = [Reply(503, headers={"retry-after": retry_after})]
        tracker = await make_tracker(receiver.url())
        await story.first_click()
        await deliver(service)
        wait = ((await deliveries(service))[-1].next_at - NOON).total_seconds()
        assert seconds <= wait <= seconds * 1.1, retry_after
        await service.trackers.delete(AUDIT, tracker)


async def test_a_tracker_can_require_a_status_and_a_text_in_the_response_body_for_success(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url(), success={"statuses": "200", "body_contains": "success=true;"})
    receiver.replies = [Reply(200, b"success=false;")]
    await story.first_click()
    await deliver(service)
    receiver.replies = [Reply(201, b"success=true;")]
    await story.first_click()
    await deliver(service)
    receiver.replies = [Reply(200, b"success=true;")]
    await story.first_click()
    await deliver(service)
    errors = [(row.status, row.last_error) for row in await deliveries(service)]
    assert errors == [(PENDING, "refused_in_body"), (PENDING, "other_status"), (DELIVERED, None)]


async def test_a_delivery_is_retried_after_a_redirect_and_becomes_dead_after_status_405(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url())
    receiver.replies = [Reply(302, headers={"location": receiver.url("/elsewhere")}), 405]
    await story.first_click()
    await deliver(service)
    await story.first_click()
    await deliver(service)
    assert [(row.status, row.last_error) for row in await deliveries(service)] == [(PENDING, "redirect"), (DEAD, "form_refused")]
    assert len(receiver.requests) == 2


async def test_a_get_request_to_a_tracker_has_no_body_and_contains_the_static_headers(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url("/?p={phone}"), method="GET", headers={"Authorization": "Bearer x", "X-Mine": "1"})
    await story.first_click()
    await deliver(service)
    (request,) = receiver.requests
    assert (request.method, request.target, request.body) == ("GET", "/?p=%2B14085550100", b"")
    assert (request.headers["authorization"], request.headers["x-mine"]) == ("Bearer x", "1")
    assert "content-type" not in request.headers


async def test_requests_are_signed_with_both_secrets_during_a_rotation_and_only_with_the_new_secret_afterwards(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    clock.now = datetime.now(NOON.tzinfo)  # the library for Standard Webhooks compares timestamps with the system clock
    old, new = "whsec_" + "b2xk" * 8, "whsec_" + "bmV3" * 8
    tracker = await make_tracker(receiver.url(), secret=old)

    async def verified_by() -> list[bool]:
        await story.first_click()
        await deliver(service)
        request = receiver.requests[-1]
        found = []
        for secret in (old, new):
            try:
                Webhook(secret).verify(request.body, request.headers)
                found.append(True)
            except Exception:
                found.append(False)
        return found

    assert await verified_by() == [True, False]
    await service.trackers.update(AUDIT, tracker, changes(secret=new, secret_overlap=3600))
    assert await verified_by() == [True, True]
    clock.forward(seconds=100)
    assert len(receiver.requests[-1].headers["webhook-signature"].split()) == 2
    await service.database.write(
        lambda connection: connection.execute(update(schema.trackers).values(previous_secret_until=clock() - timedelta(seconds=1)))
    )
    await service.trackers.update(AUDIT, tracker, changes(name="changed"))
    assert await verified_by() == [False, True]


async def test_each_attempt_of_a_delivery_has_its_own_signature(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [500]
    await make_tracker(receiver.url(), secret="a secret of mine")
    await story.first_click()
    await deliver(service)
    clock.forward(seconds=6)
    await service.dispatcher.flush()
    first, second = (request.headers for request in receiver.requests)
    assert first["webhook-id"] == second["webhook-id"]
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 6
    assert first["x-webhook-signature"] != second["x-webhook-signature"]


async def test_the_replay_of_a_delivery_restarts_the_time_limit_for_local_failures_and_429_responses(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    await make_tracker(receiver.url(), max_attempts=1)
    receiver.replies = [500]
    await story.first_click()
    await deliver(service)
    old = clock() - timedelta(days=6)
    aged = update(schema.deliveries).values(created_at=old, held_since=old)
    await service.database.write(lambda connection: connection.execute(aged))
    row = await delivery(service)
    await service.deliveries.replay(AUDIT, row.id, clock())
    row = await delivery(service)
    assert (row.held_since, row.restarted_at) == (None, clock())
    receiver.replies = [429]
    await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.attempt - row.base_attempt) == (PENDING, 0), "a 429 within a day of the replay uses no attempt"


async def test_a_429_response_does_not_count_as_an_attempt_on_the_first_day_of_a_delivery(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 429
    tracker = await make_tracker(receiver.url(), max_attempts=2, schedule=[60], format="scg")
    await story.first_click()
    await deliver(service)
    end = clock() + timedelta(hours=23, minutes=50)
    while clock() < end:
        clock.forward(minutes=10)
        await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.last_error, row.attempt - row.base_attempt) == (PENDING, "rate_limited", 0)
    assert [request.json["attempt"] for request in receiver.requests] == list(range(1, len(receiver.requests) + 1))
    assert len(await rows(service.database, schema.attempts)) == len(receiver.requests) == row.attempt > 100
    state = await tracker_row(service, tracker)
    assert (state.failures_in_row, state.open_until) == (0, None), "a 429 opens no breaker"
    for _ in range(3):
        clock.forward(minutes=10)
        await service.dispatcher.flush()
    assert (await delivery(service)).status == DEAD, "after a day each 429 counts"


async def test_a_delivery_does_not_become_dead_because_of_a_retry_after_header_of_one_day(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = Reply(503, headers={"retry-after": "86400"})
    await make_tracker(receiver.url())
    await story.first_click()
    await deliver(service)
    for _ in range(8):
        clock.forward(days=1, minutes=1)
        await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.attempt) == (PENDING, 9)


@pytest.mark.parametrize("status", [405, 410, 429])
async def test_a_callback_of_a_message_is_retried_after_any_status_except_200(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock, status: int
) -> None:
    receiver.default_reply = status
    await story.first_click(await story.message(callback_url=receiver.url("/callback")))
    await deliver(service)
    for _ in range(20):
        clock.forward(hours=30)
        await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.attempt, len(receiver.requests)) == (DEAD, 10, 10)


async def test_no_request_reaches_a_stored_tracker_whose_address_is_forbidden_now(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    """Private addresses are allowed when the trackers are saved, and forbidden when the deliveries are sent."""
    open_service = await make_service()
    story = story_of(open_service)
    for url in (receiver.url("/literal"), f"http://localhost:{receiver.port}/name"):
        await open_service.trackers.create(AUDIT, 1, NewTracker(url=url, events=["click"]))
    await story.first_click(await story.message(callback_url=receiver.url("/callback")))
    await open_service.fanout.flush()
    async with open_sender(Guard(), open_service.settings, open_service.clock) as guarded:
        await other_dispatcher(open_service, sender=guarded).flush()
    assert receiver.connections == 0
    assert {(row.status, row.last_error) for row in await deliveries(open_service)} == {(PENDING, "blocked_address")}


async def test_a_delivery_to_an_http_url_fails_if_the_settings_forbid_http(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service(allow_http_targets=False)
    story = story_of(service)
    await story.first_click(await story.message(callback_url=receiver.url("/callback")))
    await deliver(service)
    row = await delivery(service)
    assert (row.status, row.last_error, receiver.connections) == (PENDING, "blocked_address", 0)


async def test_operations_events_inform_customers_of_dead_deliveries_and_disabled_trackers(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    gone = await make_tracker(receiver.url("/gone"), "click")
    failing = await make_tracker(receiver.url("/failing"), "click", max_attempts=1)
    await make_tracker(receiver.url("/operations"), "operations", max_attempts=1)
    receiver.by_path = {"/gone": 410, "/failing": 500, "/operations": 500}
    await story.first_click()
    await deliver(service)
    await deliver(service)
    await deliver(service)
    sent = [request.json for request in receiver.requests if request.target == "/operations"]
    found = sorted((one["event"], one["tracker_id"], one["count"], one["delivery_event"]) for one in sent)
    assert found == sorted(
        [("delivery_dead", gone, 1, "click"), ("delivery_dead", failing, 1, "click"), ("tracker_disabled", gone, None, None)],
        key=str,
    )
    assert len(await rows(service.database, schema.events)) == 4, "a dead operations event raises none"


async def test_no_operations_event_is_stored_if_no_tracker_subscribes_to_operations_events(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    receiver.replies = [410]
    await make_tracker(receiver.url("/gone"), "click")
    await story.first_click()
    await deliver(service)
    assert len(await rows(service.database, schema.events)) == 1


async def test_a_callback_of_a_message_has_ten_signed_attempts_whatever_the_response_status_is(
    service: Service, story: Story, receiver: Receiver, clock: Clock
) -> None:
    clock.now = datetime.now(NOON.tzinfo)  # the library for Standard Webhooks compares timestamps with the system clock
    receiver.replies = [405, 406, 410, 411, 413, 415, 431, 501, 505, 404]
    await story.first_click(await story.message(callback_url=receiver.url("/callback")))
    secret = service.first_credentials and service.first_credentials.callback_secret
    assert secret
    await deliver(service)
    request = receiver.requests[0]
    assert Webhook(secret).verify(request.body, request.headers)["msgid"] == "m-1"
    for _ in range(12):
        clock.forward(hours=30)
        await deliver(service)
    row = await delivery(service)
    assert (len(receiver.requests), row.attempt, row.status, row.last_status) == (10, 10, DEAD, 404)
    assert {"webhook-signature", "x-webhook-signature"} <= receiver.requests[-1].headers.keys()
