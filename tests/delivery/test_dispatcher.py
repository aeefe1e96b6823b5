"""Claims, attempts and what becomes of them, on both engines, against a real receiver."""

import asyncio
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import pytest
from sqlalchemy import Connection, Row, insert, update
from standardwebhooks.webhooks import Webhook
from structlog.testing import capture_logs

from shortener.container import Service, open_sender
from shortener.delivery import dispatch_queries
from shortener.delivery.claims import LEASE_MARGIN_MS, MIN_LEASE_LEFT_MS
from shortener.delivery.dispatcher import Dispatcher
from shortener.delivery.expiry import MAX_HOLD
from shortener.delivery.guard import Guard
from shortener.delivery.health import MAX_FAILURES
from shortener.delivery.outcomes import DEFAULT_SCHEDULE
from shortener.delivery.sender import Sender
from shortener.delivery.throttle import Throttle
from shortener.delivery.trackers import NewTracker
from shortener.errors import StoreUnavailable
from shortener.model import DeliveryStatus
from shortener.storage import schema
from shortener.storage.database import Database
from tests.conftest import NOON, Clock, MakeService
from tests.delivery.conftest import MakeTracker, Story, changes
from tests.factory import rows
from tests.receiver import Receiver, Reply
from tests.servers import PATIENCE

P = ParamSpec("P")
T = TypeVar("T")

PENDING, DELIVERED, DEAD = (int(status) for status in (DeliveryStatus.PENDING, DeliveryStatus.DELIVERED, DeliveryStatus.DEAD))


async def deliver(service: Service) -> None:
    await service.fanout.flush()
    await service.dispatcher.flush()


async def deliveries(service: Service) -> list[Row[Any]]:
    return await rows(service.database, schema.deliveries)


async def delivery(service: Service) -> Row[Any]:
    (row,) = await deliveries(service)
    return row


async def tracker_row(service: Service, tracker: int) -> Row[Any]:
    return next(row for row in await rows(service.database, schema.trackers) if row.id == tracker)


def statuses(found: list[Row[Any]]) -> Counter[int]:
    return Counter(row.status for row in found)


def other_dispatcher(service: Service, database: Database | None = None, sender: Sender | None = None) -> Dispatcher:
    """What another process, or this one after a restart, would have."""
    store = database or service.database
    rng = random.Random(1)
    sender = sender or service.sender
    return Dispatcher(store, service.trackers, sender, service.ids, service.clock, service.settings, rng, Throttle())


async def flying(dispatcher: Dispatcher, receiver: Receiver, requests: int) -> None:
    """Claim, and return when so many requests are at the receiver, which does not answer."""
    assert await dispatcher.step() >= requests
    await receiver.wait_for(requests)


def kill(dispatcher: Dispatcher) -> None:
    """Nothing of what is under way is ever recorded by this one."""
    for task in dispatcher._tasks:
        task.cancel()


async def test_a_delivery_is_recorded_with_its_attempt(
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


async def test_the_attempt_is_spent_and_durable_before_the_request_is_answered(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    receiver.default_reply = Reply(hang=True)
    await make_tracker(receiver.url(), timeout=5)
    await story.first_click()
    await service.fanout.flush()
    await flying(service.dispatcher, receiver, 1)
    row = await delivery(service)
    lease = NOON + timedelta(seconds=5, milliseconds=LEASE_MARGIN_MS)
    assert (row.status, row.attempt, row.lease_until) == (PENDING, 1, lease)
    kill(service.dispatcher)


async def test_what_a_killed_process_had_claimed_is_taken_up_when_its_lease_ends(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [Reply(hang=True)]
    await make_tracker(receiver.url(), format="scg", timeout=5)
    await story.first_click()
    await service.fanout.flush()
    await flying(service.dispatcher, receiver, 1)
    kill(service.dispatcher)
    restarted = other_dispatcher(service)
    clock.forward(seconds=14)
    await restarted.flush()
    assert len(receiver.requests) == 1, "the lease still runs"
    clock.forward(seconds=1)
    await restarted.flush()
    first, second = receiver.requests
    assert (first.json["attempt"], second.json["attempt"]) == (1, 2), "the first attempt is spent"
    assert first.json["event_id"] == second.json["event_id"] == first.headers["webhook-id"] == second.headers["webhook-id"]
    row = await delivery(service)
    assert (row.status, row.attempt) == (DELIVERED, 2)


async def test_an_outcome_that_comes_after_the_lease_was_lost_changes_nothing(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [Reply(hang=True)]
    await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    await flying(service.dispatcher, receiver, 1)
    clock.forward(minutes=1)
    await other_dispatcher(service).flush()
    before = await delivery(service)
    assert before.status == DELIVERED
    await service.dispatcher.stop(60, attempts_grace=0)
    assert service.dispatcher.totals.leases_lost == 1
    assert await delivery(service) == before


async def test_a_410_after_the_lease_was_lost_disables_nothing_and_is_not_counted(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    tracker = await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    receiver.replies = [410, 200]
    late = service.dispatcher
    await late.step()
    await asyncio.wait(late._tasks)
    clock.forward(minutes=1)
    await other_dispatcher(service).flush()
    before = await delivery(service)
    assert before.status == DELIVERED
    await late.flush()
    assert (late.totals.leases_lost, late.totals.dead, late.totals.trackers_disabled) == (1, 0, 0)
    assert late.totals.reasons == {}
    assert await delivery(service) == before
    assert [one.status for one in await rows(service.database, schema.attempts)] == [200]
    row = await tracker_row(service, tracker)
    assert (row.enabled, row.failures_in_row) == (True, 0)


class Slow:
    """A store whose next commit takes so many seconds, by the clock of the test."""

    def __init__(self, database: Database, clock: Clock, *seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._seconds = list(seconds)

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        result = await self._database.write(transact, *args, **kwargs)
        if self._seconds:
            self._clock.forward(seconds=self._seconds.pop(0))
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


@pytest.mark.parametrize(("seconds", "requests"), [(MIN_LEASE_LEFT_MS / 1000, 1), (MIN_LEASE_LEFT_MS / 1000 + 0.001, 0), (60, 0)])
async def test_no_attempt_begins_whose_lease_may_end_before_it(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock, seconds: float, requests: int
) -> None:
    await make_tracker(receiver.url(), timeout=5, format="scg")
    await story.first_click()
    await service.fanout.flush()
    slow: Any = Slow(service.database, clock, seconds)
    dispatcher = other_dispatcher(service, slow)
    await dispatcher.step()
    await asyncio.wait(dispatcher._tasks)
    assert len(receiver.requests) == requests
    assert await dispatcher.step() >= 1
    await dispatcher.flush()
    (request,) = receiver.requests
    row = await delivery(service)
    assert (request.json["attempt"], row.status, row.attempt) == (1, DELIVERED, 1), "given back, it is not spent"
    assert dispatcher.totals.claims_returned == 1 - requests


async def test_an_attempt_ends_by_its_deadline_whatever_it_waits_for(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    """Resolver and slots of the sender: nothing keeps a claimed delivery longer, so a lease covers it."""
    released = threading.Event()

    def silent(host: str, port: int) -> list[str]:
        released.wait(10)
        return ["127.0.0.1"]

    receiver.default_reply = Reply(hang=True)
    await make_tracker("http://silent.example/", timeout=0.3)
    await make_tracker(receiver.url(), timeout=0.3)
    await story.first_click()
    await service.fanout.flush()
    try:
        async with Sender(Guard(True), user_agent="test", limit=1, clock=service.clock, lookup=silent) as sender:
            dispatcher = other_dispatcher(service, sender=sender)
            began = time.monotonic()
            await dispatcher.step()
            await asyncio.wait(dispatcher._tasks)
            assert time.monotonic() - began < 5, "neither the resolver (10 s) nor the tracker delays the end"
            await dispatcher.step()
    finally:
        released.set()
    assert all(row.lease_until is None for row in await deliveries(service))


async def test_ten_attempts_in_all_on_the_schedule_and_then_dead(
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
        assert len(receiver.requests) == row.attempt, "not before its time"
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


async def test_a_tracker_has_a_schedule_and_a_number_of_attempts_of_its_own(
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


async def test_retry_after_is_honoured(service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver) -> None:
    told = {"120": 120, "Fri, 20 Nov 2026 12:02:00 GMT": 120, "-5": 5, "soon": 5, "99999999": 86400}
    for retry_after, seconds in told.items():
        receiver.replies = [Reply(429, headers={"retry-after": retry_after})]
        tracker = await make_tracker(receiver.url())
        await story.first_click()
        await deliver(service)
        wait = ((await deliveries(service))[-1].next_at - NOON).total_seconds()
        assert seconds <= wait <= seconds * 1.1, retry_after
        await service.trackers.delete(tracker)


async def test_a_tracker_that_asks_for_quiet_gets_it_for_all_its_deliveries(
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


async def test_410_disables_the_tracker_visibly_and_parks_the_rest(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [410]
    tracker = await make_tracker(receiver.url(), concurrency=1)
    await story.first_click()
    await story.first_click()
    with capture_logs() as logs:
        await deliver(service)
    assert len(receiver.requests) == 1
    told = await service.trackers.get(tracker)
    assert (told.enabled, told.disabled_reason) == (False, "it answered 410 Gone")
    assert {"event": "tracker_disabled", "tracker": tracker, "reason": "it answered 410 Gone", "log_level": "warning"} in logs
    assert b"\nshortener_trackers_disabled_total 1.0\n" in service.metrics.text("")[0]
    assert statuses(await deliveries(service)) == {DEAD: 1, PENDING: 1}
    await story.first_click()
    clock.forward(days=2)
    await deliver(service)
    assert len(receiver.requests) == 1, "what comes later waits too"
    await service.trackers.update(tracker, changes(enabled=True))
    clock.forward(seconds=1)
    await deliver(service)
    assert len(receiver.requests) == 3
    assert statuses(await deliveries(service)) == {DEAD: 1, DELIVERED: 2}


async def test_what_a_disabled_tracker_keeps_too_long_ends_dead(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    await make_tracker(receiver.url(), enabled=False)
    await story.first_click()
    await service.fanout.flush()
    clock.forward(days=service.settings.event_retention_days - 1)
    await deliver(service)
    assert (await delivery(service)).status == PENDING
    clock.forward(days=2)
    await deliver(service)
    row = await delivery(service)
    assert (row.status, row.last_error, receiver.requests) == (DEAD, "tracker_disabled", [])


async def test_the_deliveries_of_a_deleted_tracker_end_dead_and_never_reach_another(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    tracker = await make_tracker(receiver.url("/deleted"))
    await story.first_click()
    await service.fanout.flush()
    await service.trackers.delete(tracker)
    assert await make_tracker(receiver.url("/other")) != tracker, "a number is not given twice"
    await service.dispatcher.flush()
    row = await delivery(service)
    assert (row.status, row.last_error, receiver.requests) == (DEAD, "tracker_deleted", [])


async def test_success_may_be_one_status_only_and_want_a_text(
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


async def test_redirects_are_failures_and_what_cannot_succeed_is_final(
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


async def test_get_has_no_body_and_static_headers_go_along(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url("/?p={phone}"), method="GET", headers={"Authorization": "Bearer x", "X-Mine": "1"})
    await story.first_click()
    await deliver(service)
    (request,) = receiver.requests
    assert (request.method, request.target, request.body) == ("GET", "/?p=%2B14085550100", b"")
    assert (request.headers["authorization"], request.headers["x-mine"]) == ("Bearer x", "1")
    assert "content-type" not in request.headers


async def test_both_secrets_sign_during_a_rotation_and_one_afterwards(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    clock.now = datetime.now(NOON.tzinfo)  # the oracle has no other clock
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
    await service.trackers.update(tracker, changes(secret=new, secret_overlap=3600))
    assert await verified_by() == [True, True]
    clock.forward(seconds=100)
    assert len(receiver.requests[-1].headers["webhook-signature"].split()) == 2
    await service.database.write(
        lambda connection: connection.execute(update(schema.trackers).values(previous_secret_until=clock() - timedelta(seconds=1)))
    )
    await service.trackers.update(tracker, changes(name="read again"))
    assert await verified_by() == [False, True]


async def test_an_attempt_is_signed_anew(
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


async def test_the_breaker_opens_sends_one_probe_and_releases_the_backlog_at_a_bounded_rate(
    make_service: MakeService, receiver: Receiver, clock: Clock
) -> None:
    service = await make_service(delivery_recovery_rate=10)
    tracker = (
        await service.trackers.create(
            1, NewTracker(url=receiver.url(), events=["click"], signed=False, concurrency=4, schedule=[1])
        )
    ).tracker.id
    story = Story(service)
    receiver.default_reply = 500
    for _ in range(40):
        await story.first_click()
    await deliver(service)
    assert MAX_FAILURES <= len(receiver.requests) < MAX_FAILURES + 4, "no more than were under way"
    assert service.dispatcher.totals.breakers_opened == 1
    health = (await service.trackers.get(tracker)).health
    assert health.breaker(queries_now(clock)) == "open"

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
    assert (await service.trackers.get(tracker)).health.breaker(queries_now(clock)) == "closed"
    assert statuses(await deliveries(service)) == {DELIVERED: 40}


def queries_now(clock: Clock) -> int:
    return int(clock().timestamp() * 1000)


async def test_a_success_between_failures_keeps_the_breaker_closed(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url(), concurrency=1)
    receiver.replies = [*[500] * (MAX_FAILURES - 1), 200, *[500] * (MAX_FAILURES - 1)]
    for _ in range(2 * MAX_FAILURES):
        await story.first_click()
        await deliver(service)
    assert len(receiver.requests) == 2 * MAX_FAILURES
    assert service.dispatcher.totals.breakers_opened == 0


async def test_what_an_open_breaker_keeps_too_long_ends_dead(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.default_reply = 500
    await make_tracker(receiver.url(), concurrency=1)
    for _ in range(MAX_FAILURES + 5):
        await story.first_click()
    await deliver(service)
    last = (await deliveries(service))[-1]
    assert (last.status, last.attempt) == (PENDING, 0)
    until = clock() + MAX_HOLD + timedelta(minutes=1)
    while clock() < until:  # each probe fails
        await service.dispatcher.flush()
        clock.forward(hours=12)
    await service.dispatcher.flush()
    assert "breaker_open" in {row.last_error for row in await deliveries(service) if row.status == DEAD}


async def test_a_hanging_tracker_holds_only_its_own_slots(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service(delivery_slots=16)
    story = story_of(service)
    receiver.by_path = {"/hang": Reply(hang=True)}
    for path in ("/hang", "/well"):
        await service.trackers.create(1, NewTracker(url=receiver.url(path), events=["click"], timeout=5))
    for _ in range(60):
        await story.first_click()
    await service.fanout.flush()
    dispatcher = service.dispatcher
    while Counter(request.target for request in receiver.requests)["/well"] < 60:
        if not await dispatcher.step():
            await dispatcher.wake_up.wait(5)
    hanging = Counter(request.target for request in receiver.requests)["/hang"]
    assert hanging <= 8, "no lane gets more slots than it leaves free"
    kill(dispatcher)


@pytest.mark.parametrize(("processes", "concurrency", "share"), [(1, 8, 8), (3, 8, 2), (4, 2, 1)])
async def test_a_trackers_slots_are_shared_out_among_the_processes_that_deliver(
    make_service: MakeService,
    receiver: Receiver,
    story_of: Callable[[Service], Story],
    processes: int,
    concurrency: int,
    share: int,
) -> None:
    service = await make_service(delivery_processes=processes, delivery_slots_per_tracker=concurrency)
    story = story_of(service)
    receiver.default_reply = Reply(hang=True)
    await service.trackers.create(1, NewTracker(url=receiver.url(), events=["click"], concurrency=concurrency))
    for number in range(10):
        await story.first_click(await story.message(callback_url=f"http://127.0.0.1:{receiver.port}/{number}"))
    await service.fanout.flush()
    while await service.dispatcher.step():
        pass
    assert service.dispatcher._usage.by_queue == {"t1": share, "c127.0.0.1": share}
    kill(service.dispatcher)


@pytest.fixture
def story_of() -> Callable[[Service], Story]:
    return Story


async def test_many_hanging_trackers_leave_slots_for_others(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service(delivery_slots=16)
    story = story_of(service)
    receiver.by_path = {"/hang": Reply(hang=True)}
    for _ in range(10):
        await service.trackers.create(1, NewTracker(url=receiver.url("/hang"), events=["click"], timeout=5))
    for _ in range(10):
        await story.first_click()
    await service.fanout.flush()
    while await service.dispatcher.step():
        pass
    assert 10 <= service.dispatcher.in_flight < 16
    await service.trackers.create(1, NewTracker(url=receiver.url("/well"), events=["click"]))
    await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.step()
    await receiver.wait_for(service.dispatcher.in_flight)
    assert "/well" in {request.target for request in receiver.requests}
    kill(service.dispatcher)


async def test_first_attempts_and_retries_do_not_starve_each_other(
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


async def test_a_fault_of_our_own_is_not_charged(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    def broken(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "the resolver is down")

    tracker = await make_tracker("http://tracker.example/", concurrency=1)
    await story.first_click()
    await service.fanout.flush()
    async with Sender(Guard(), user_agent="test", limit=4, clock=clock, lookup=broken) as sender:
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
        assert dispatcher.totals.local_failures == 1, "the lane rests"
        clock.forward(days=6)
        for _ in range(2):
            await dispatcher.flush()
            clock.forward(minutes=1)
        found = {(row.status, row.last_error) for row in await deliveries(service)}
        assert found == {(DEAD, "resolver_down")}, "but nothing waits for ever"


class Flaky:
    """A store that cannot be written to while it is down."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.down = False

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]:
        return self._database.dialect

    @property
    def node(self) -> int:
        return self._database.node

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.down:
            raise StoreUnavailable("down")
        return await self._database.write(transact, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


async def test_outcomes_wait_for_a_store_that_is_away(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    tracker = await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    store = Flaky(service.database)
    dispatcher = other_dispatcher(service, store)
    await dispatcher.step()
    await asyncio.wait(dispatcher._tasks)
    store.down = True
    with pytest.raises(StoreUnavailable):
        await dispatcher.step()
    assert dispatcher.in_flight == 1, "its slot is not free before its outcome is durable"
    store.down = False
    await dispatcher.flush()
    assert ((await delivery(service)).status, len(receiver.requests)) == (DELIVERED, 1)
    assert (await tracker_row(service, tracker)).failures_in_row == 0, "our store is nothing to the tracker"


async def test_stop_lets_attempts_end_and_records_them(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url())
    for _ in range(5):
        await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.step()
    await service.dispatcher.stop(5)
    assert statuses(await deliveries(service)) == {DELIVERED: 5}
    await story.first_click()
    await service.fanout.flush()
    assert await service.dispatcher.step() == 0, "nothing new begins"
    await other_dispatcher(service).flush()
    assert len(receiver.requests) == 6, "nothing is sent twice"


async def test_stop_hands_back_what_cannot_end_in_time(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    receiver.by_path = {"/hang": Reply(hang=True)}
    await make_tracker(receiver.url("/hang"))
    await story.first_click()
    await service.fanout.flush()
    await flying(service.dispatcher, receiver, 1)
    await service.dispatcher.stop(60, attempts_grace=0)
    row = await delivery(service)
    assert (row.status, row.attempt, row.queue, row.next_at, row.lease_until) == (
        PENDING,
        0,
        dispatch_queries.FIRST_ATTEMPTS,
        NOON,
        None,
    )
    assert service.dispatcher.totals.claims_returned == 1


async def test_a_probe_that_a_stop_handed_back_keeps_nobody_from_sending_another(
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
    await flying(stopped, receiver, 1)
    await stopped.stop(60, attempts_grace=0)
    receiver.take()
    receiver.default_reply = 200
    await service.dispatcher.flush()
    assert len(receiver.requests) == 1
    assert statuses(await deliveries(service))[DELIVERED] == 1


async def test_stop_is_over_in_time_though_the_store_hangs(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    class Hanging(Flaky):
        async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
            if self.down:
                hangs.set()
                await asyncio.Event().wait()
            return await super().write(transact, *args, **kwargs)

    hangs = asyncio.Event()
    await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    store = Hanging(service.database)
    dispatcher = other_dispatcher(service, store)
    await dispatcher.step()
    await asyncio.wait(dispatcher._tasks)
    store.down = True
    turn = asyncio.create_task(dispatcher.step())
    async with asyncio.timeout(PATIENCE):
        await hangs.wait()
        await dispatcher.stop(0.1)
    turn.cancel()
    await asyncio.wait([turn])


async def test_many_outcomes_share_a_transaction(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url(), concurrency=64)
    for _ in range(64):
        await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.step()
    await asyncio.wait(service.dispatcher._tasks)
    assert await service.dispatcher.step() == 64
    assert service.dispatcher.totals.dispatch_cycles == 2


async def test_processes_that_share_a_store_never_claim_the_same_delivery(
    make_service: MakeService, postgresql_only: None, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    first, second = await make_service(), await make_service()
    story = story_of(first)
    await first.trackers.create(1, NewTracker(url=receiver.url(), events=["click"], concurrency=8, signed=False))
    for _ in range(100):
        await story.first_click()
    await asyncio.gather(first.fanout.flush(), second.fanout.flush())
    await asyncio.gather(first.dispatcher.flush(), second.dispatcher.flush())
    await asyncio.gather(first.dispatcher.flush(), second.dispatcher.flush())
    assert statuses(await deliveries(first)) == {DELIVERED: 100}
    assert Counter(Counter(request.headers["webhook-id"] for request in receiver.requests).values()) == {1: 100}
    assert all(service.dispatcher.totals.delivered > 0 for service in (first, second))


async def test_of_several_processes_one_sends_the_probe(
    make_service: MakeService, postgresql_only: None, receiver: Receiver, story_of: Callable[[Service], Story], clock: Clock
) -> None:
    services = [await make_service() for _ in range(3)]
    story = story_of(services[0])
    receiver.default_reply = 500
    tracker = (
        await services[0].trackers.create(
            1, NewTracker(url=receiver.url(), events=["click"], concurrency=1, signed=False, timeout=5)
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
        kill(service.dispatcher)


async def test_several_processes_release_a_backlog_at_one_rate(
    make_service: MakeService, postgresql_only: None, receiver: Receiver, story_of: Callable[[Service], Story], clock: Clock
) -> None:
    services = [await make_service(delivery_recovery_rate=10) for _ in range(3)]
    story = story_of(services[0])
    receiver.default_reply = 500
    await services[0].trackers.create(
        1, NewTracker(url=receiver.url(), events=["click"], concurrency=1, signed=False, schedule=[1])
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


@pytest.fixture
def postgresql_only(store_url: str) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("SQLite belongs to one process; these tests are of several")


async def test_a_lane_costs_the_same_however_many_rows_wait_in_it(service: Service) -> None:
    def fill(connection: Connection) -> None:
        common = {"topic": 2, "application_id": 1, "status": 0, "attempt": 0, "next_at": NOON, "created_at": NOON}
        pending = [{"id": n, "event_id": n, "tracker_id": 1, "lane": "t1", **common} for n in range(2000)]
        pending += [{"id": 5000 + n, "event_id": 5000 + n, "tracker_id": n, "lane": f"t{n}", **common} for n in range(2, 600)]
        connection.execute(insert(schema.deliveries), pending)

    await service.database.write(fill)

    def fake_names(connection: Connection, after: str) -> list[str]:
        return [lane.name for lane in dispatch_queries.pending_queues(connection, after, 256)]

    everything = []
    after = ""
    while found := await service.database.read(fake_names, after):
        everything += found
        after = found[-1]
    assert everything == sorted(f"t{n}" for n in range(1, 600))
    if service.database.dialect == "sqlite":

        def plan(connection: Connection) -> list[str]:
            statement = "EXPLAIN QUERY PLAN " + dispatch_queries._QUEUES["sqlite"]
            return [row[3] for row in connection.exec_driver_sql(statement, ("", 256))]

        steps = [step for step in await service.database.read(plan) if " d " in step]
        assert steps
        assert all("SEARCH d USING INDEX deliveries_due (lane" in step for step in steps)


async def test_more_lanes_than_one_turn_looks_at_are_all_served(
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
    assert service.dispatcher.totals.dispatch_cycles - turns <= 4, "once around, then it rests"


async def test_no_request_reaches_an_address_that_became_forbidden(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    """The whole path with the real guard: saved while it was allowed, or through a name that leads elsewhere meanwhile."""
    open_service = await make_service()
    story = story_of(open_service)
    for url in (receiver.url("/literal"), f"http://localhost:{receiver.port}/name"):
        await open_service.trackers.create(1, NewTracker(url=url, events=["click"]))
    await story.first_click(await story.message(callback_url=receiver.url("/callback")))
    await open_service.fanout.flush()
    async with open_sender(Guard(), open_service.settings, open_service.clock) as guarded:
        await other_dispatcher(open_service, sender=guarded).flush()
    assert receiver.connections == 0
    assert {(row.status, row.last_error) for row in await deliveries(open_service)} == {(PENDING, "blocked_address")}


async def test_http_is_not_used_when_it_is_switched_off(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service(allow_http_targets=False)
    story = story_of(service)
    await story.first_click(await story.message(callback_url=receiver.url("/callback")))
    await deliver(service)
    row = await delivery(service)
    assert (row.status, row.last_error, receiver.connections) == (PENDING, "blocked_address", 0)


async def test_a_running_service_delivers_by_itself_and_stops_cleanly(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service(start=True)
    await service.trackers.create(1, NewTracker(url=receiver.url(), events=["click"]))
    await story_of(service).first_click()
    service.events_wake_up.notify()
    await receiver.wait_for(1)


async def test_no_delivery_where_it_is_left_out(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service()
    service.start(web=False, deliver=False)
    assert {task.get_name() for task in service.jobs._tasks}.isdisjoint({"fanout", "dispatcher"})
