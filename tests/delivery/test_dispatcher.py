"""These tests check the dispatcher when the database fails, at shutdown, and in a running service."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pytest
from sqlalchemy import Connection, func, select
from structlog.testing import capture_logs

from shortener.container import Service
from shortener.delivery import dispatch_queries
from shortener.delivery import dispatcher as dispatcher_module
from shortener.delivery.attempt import AttemptInFlight, AttemptRunner, FinishedAttempt
from shortener.delivery.attempt_pool import MAX_STARTS
from shortener.delivery.dispatcher import Dispatcher
from shortener.delivery.fanout import MAX_EVENTS_WHILE_BUSY, Fanout
from shortener.delivery.trackers import NewTracker
from shortener.errors import CommitUncertain, StoreUnavailable
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.open import open_database
from tests.clicks.helpers import Hits
from tests.conftest import NOON, Clock, MakeService
from tests.databases import Cut, CutCommits
from tests.delivery.conftest import MakeTracker, Story
from tests.delivery.dispatching import (
    DELIVERED,
    PENDING,
    UnavailableDatabase,
    deliveries,
    delivery,
    other_dispatcher,
    run_attempts,
    start_attempts,
    statuses,
    tracker_row,
)
from tests.factory import AUDIT, rows
from tests.receiver import Receiver, Reply
from tests.servers import PATIENCE

P = ParamSpec("P")
T = TypeVar("T")


async def test_outcomes_of_delivery_attempts_are_recorded_when_the_database_is_available_again(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    tracker = await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    store = UnavailableDatabase(service.database)
    dispatcher = other_dispatcher(service, store)
    await run_attempts(dispatcher)
    store.down = True
    with pytest.raises(StoreUnavailable):
        await dispatcher.step()
    assert dispatcher.in_flight == 1, "a slot is in use until its outcome is durable"
    store.down = False
    await dispatcher.flush()
    assert ((await delivery(service)).status, len(receiver.requests)) == (DELIVERED, 1)
    assert (await tracker_row(service, tracker)).failures_in_row == 0, "a database failure is not the tracker's failure"


async def test_stopping_the_dispatcher_waits_for_running_attempts_and_records_them(
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
    assert await service.dispatcher.step() == 0, "no attempt starts after stop"
    await other_dispatcher(service).flush()
    assert len(receiver.requests) == 6, "nothing is sent twice"


async def test_stopping_the_dispatcher_releases_the_claims_of_attempts_that_do_not_end_in_time(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    receiver.by_path = {"/hang": Reply(hang=True)}
    await make_tracker(receiver.url("/hang"))
    await story.first_click()
    await service.fanout.flush()
    await start_attempts(service.dispatcher, receiver, 1)
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


async def test_stopping_the_dispatcher_ends_in_time_if_the_database_hangs(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    class HangingDatabase(UnavailableDatabase):
        async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
            if self.down:
                hangs.set()
                await asyncio.Event().wait()
            return await super().write(transact, *args, **kwargs)

    hangs = asyncio.Event()
    await make_tracker(receiver.url())
    await story.first_click()
    await service.fanout.flush()
    store = HangingDatabase(service.database)
    dispatcher = other_dispatcher(service, store)
    await run_attempts(dispatcher)
    store.down = True
    cycle = asyncio.create_task(dispatcher.step())
    async with asyncio.timeout(PATIENCE):
        await hangs.wait()
        await dispatcher.stop(0.1)
    cycle.cancel()
    await asyncio.wait([cycle])


async def test_a_running_service_sends_deliveries_and_stops_cleanly(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service(start=True)
    await service.trackers.create(AUDIT, 1, NewTracker(url=receiver.url(), events=["click"]))
    await story_of(service).first_click()
    service.events_wake_up.notify()
    await receiver.wait_for(1)
    with capture_logs() as lines:
        await service.close(grace=PATIENCE)
    failures = {"not_closed", "not_closed_in_time", "outcomes_lost_at_shutdown", "leases_lost"}
    assert [line for line in lines if line["event"] in failures] == []
    database = await open_database(service.settings.store_url, owner=False)
    (row,) = await rows(database, schema.deliveries)
    await database.close()
    assert (row.status, row.attempt, row.lease_until) == (DELIVERED, 1, None)


async def test_a_process_that_does_not_send_deliveries_runs_no_fanout_and_no_dispatcher(
    make_service: MakeService, receiver: Receiver, story_of: Callable[[Service], Story]
) -> None:
    service = await make_service()
    service.start(web=False, deliver=False)
    assert {task.get_name() for task in service.jobs._tasks}.isdisjoint({"fanout", "dispatcher"})


async def test_a_busy_throttle_limits_the_batch_sizes_of_the_fanout_and_the_dispatcher(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    hits = Hits()
    hits.arrive(1000)
    await make_tracker(receiver.url(), concurrency=64)
    for _ in range(MAX_EVENTS_WHILE_BUSY + 1):
        await story.first_click()
    fanout = Fanout(
        service.database,
        service.ids,
        service.click_ids,
        service.clock,
        base_url="http://127.0.0.1:8000",
        throttle=hits.throttle,
        on_deliveries=lambda: None,
    )
    assert await fanout.step() == MAX_EVENTS_WHILE_BUSY
    dispatcher = Dispatcher(
        service.database,
        service.trackers,
        service.sender,
        service.callback_sender,
        service.ids,
        service.clock,
        service.settings,
        random.Random(1),
        hits.throttle,
    )
    assert await dispatcher.step() == MAX_STARTS
    await dispatcher.flush()
    delivered = select(func.count()).where(schema.deliveries.c.status == 1)
    assert await service.database.read(lambda connection: connection.execute(delivered).scalar_one()) == MAX_EVENTS_WHILE_BUSY


async def test_after_a_long_outage_of_the_database_all_outcomes_are_recorded_before_a_delivery_is_claimed_again(
    service: Service,
    make_tracker: MakeTracker,
    story: Story,
    receiver: Receiver,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher_module, "MAX_OUTCOMES", 1)
    await make_tracker(receiver.url())
    for _ in range(3):
        await story.first_click()
    await service.fanout.flush()
    dispatcher = other_dispatcher(service)
    await run_attempts(dispatcher)
    clock.forward(minutes=1)  # the leases end during the outage
    await dispatcher.flush()
    assert (statuses(await deliveries(service)), len(receiver.requests)) == ({DELIVERED: 3}, 3)


@pytest.mark.parametrize(("part", "requests"), [("the row of the attempt", 3), ("the delivery", 4)])
async def test_an_outcome_of_a_delivery_attempt_that_cannot_be_stored_does_not_stop_other_outcomes(
    part: str,
    requests: int,
    service: Service,
    make_tracker: MakeTracker,
    story: Story,
    receiver: Receiver,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await make_tracker(receiver.url())
    for _ in range(3):
        await story.first_click()
    await service.fanout.flush()
    first = min(row.id for row in await deliveries(service))
    run = AttemptRunner.run

    async def run_with_unstorable_time(runner: AttemptRunner, attempt: AttemptInFlight, *args: Any) -> FinishedAttempt:
        ended = await run(runner, attempt, *args)
        if attempt.claim.id == first and attempt.claim.attempt == 1:
            assert ended.attempt_row is not None
            if part == "the delivery":
                return replace(ended, delivery=ended.delivery._replace(last_status=2**80))
            return replace(ended, attempt_row=(*ended.attempt_row[:4], 2**80, *ended.attempt_row[5:]))
        return ended

    monkeypatch.setattr(AttemptRunner, "run", run_with_unstorable_time)
    dispatcher = other_dispatcher(service)
    await dispatcher.flush()
    assert (statuses(await deliveries(service)) == {DELIVERED: 3}) is (requests == 3)
    assert dispatcher.in_flight == 0
    clock.forward(minutes=1)
    await dispatcher.flush()
    assert (statuses(await deliveries(service)), len(receiver.requests)) == ({DELIVERED: 3}, requests)


async def test_an_error_after_the_commit_neither_repeats_an_outcome_nor_drops_a_claimed_delivery(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_tracker(receiver.url(), concurrency=1)
    for _ in range(3):
        await story.first_click()
    await service.fanout.flush()
    dispatcher = other_dispatcher(service)
    monkeypatch.setattr(dispatcher._outcomes, "committed", None)
    with capture_logs() as logs:
        await dispatcher.flush()
    assert (statuses(await deliveries(service)), len(receiver.requests)) == ({DELIVERED: 3}, 3)
    assert (dispatcher.totals.leases_lost, dispatcher.in_flight) == (0, 0)
    assert {line["event"] for line in logs if line["log_level"] == "error"} == {"after_commit_failed"}


@pytest.mark.parametrize("cut", ["stored", "rolled back"])
async def test_deliveries_are_sent_at_once_and_lose_no_attempt_if_the_commit_of_their_claim_was_interrupted(
    cut: Cut, service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url())
    for _ in range(3):
        await story.first_click()
    await service.fanout.flush()
    dispatcher = other_dispatcher(service, cast(Database, CutCommits(service.database, [cut])))
    with pytest.raises(CommitUncertain):
        await dispatcher.step()
    await dispatcher.flush()
    assert [(row.status, row.attempt) for row in await deliveries(service)] == [(DELIVERED, 1)] * 3
    assert (len(receiver.requests), dispatcher.totals.leases_lost, dispatcher.in_flight) == (3, 0, 0)


async def test_a_cut_commit_of_an_outcome_and_of_the_next_claim_of_its_delivery_is_not_an_error(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [500]
    await make_tracker(receiver.url(), schedule=[1])
    await story.first_click()
    await service.fanout.flush()
    dispatcher = other_dispatcher(service, cast(Database, CutCommits(service.database, ["committed", "stored"])))
    await run_attempts(dispatcher)
    clock.forward(seconds=5)  # when the retry is due, one transaction records the outcome and claims the delivery again
    with pytest.raises(CommitUncertain):
        await dispatcher.step()
    with capture_logs() as logs:
        await dispatcher.flush()
    assert [(row.status, row.attempt) for row in await deliveries(service)] == [(DELIVERED, 2)]
    assert sorted(attempt.attempt for attempt in await rows(service.database, schema.attempts)) == [1, 2]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == []
    assert (len(receiver.requests), dispatcher.in_flight) == (2, 0)


async def test_an_interrupted_claim_is_not_given_back_after_another_process_has_claimed_the_delivery_in_the_same_millisecond(
    service: Service, postgresql_only: None, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    receiver.default_reply = Reply(hang=True)
    await make_tracker(receiver.url(), timeout=1)
    await story.first_click()
    await service.fanout.flush()
    first = other_dispatcher(service, cast(Database, CutCommits(service.database, ["rolled back"])))
    second = other_dispatcher(service)
    with pytest.raises(CommitUncertain):
        await first.step()
    await start_attempts(second, receiver, 1)
    claimed = await deliveries(service)
    await first.step()
    assert (await deliveries(service), first.in_flight) == (claimed, 0)
    await second.stop(60, attempts_grace=0)
    assert second.totals.leases_lost == 0
