"""Tests of background replays: exact counts, stop, continuation by another process, and conditions that end a replay."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from shortener.accounts.administration import update_application
from shortener.accounts.audit import Actor, AuditWriter
from shortener.container import Service
from shortener.delivery import deliveries, replays
from shortener.delivery.deliveries import DeliveryFilter
from shortener.delivery.replays import (
    Replay,
    ReplayOutcomes,
    Replays,
    StopReason,
    count_outcomes,
    find_replay,
    start_replay,
    stop_replay,
)
from shortener.errors import ApiError, ErrorCode
from shortener.model import DeliveryStatus
from shortener.storage import schema
from tests.conftest import NOON, Clock
from tests.delivery.conftest import MakeTracker, changes
from tests.delivery.dispatching import fill
from tests.delivery.dispatching import statuses as count_statuses
from tests.factory import AUDIT, audited_rows, rows

PENDING, DELIVERED, DEAD = DeliveryStatus.PENDING, DeliveryStatus.DELIVERED, DeliveryStatus.DEAD
ADA = Actor(1, "Ada", 1, "192.0.2.0")


async def start(service: Service, tracker: int, since: datetime | None = None, until: datetime | None = None) -> Replay:
    now = service.clock()
    return await start_replay(service.database, AuditWriter(ADA, service.ids), 1, tracker, since, until, now)


async def stop(service: Service, replay: Replay) -> bool:
    now = service.clock()
    return await service.database.write(stop_replay, AuditWriter(ADA, service.ids), replay, StopReason.OPERATOR, now)


async def read(service: Service, replay: Replay) -> Replay:
    return await service.database.read(find_replay, replay.public_id, 1)


async def outcomes(service: Service, replay: Replay) -> ReplayOutcomes:
    return await service.database.read(count_outcomes, await read(service, replay))


async def finish(service: Service, replay: Replay) -> Replay:
    while await service.replays.step():
        pass
    return await read(service, replay)


async def statuses(service: Service) -> dict[int, int]:
    return dict(count_statuses(await rows(service.database, schema.deliveries)))


async def change(service: Service, ids: list[int], **values: Any) -> None:
    columns = schema.deliveries.c
    await service.database.write(
        lambda connection: connection.execute(update(schema.deliveries).where(columns.id.in_(ids)).values(values)) and None
    )


async def log(service: Service) -> list[tuple[str, str, Any]]:
    """Return actor, action and values of each row of the audit log."""
    return [(row.operator, row.action, row.after) for row in await audited_rows(service.database)]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "MAX_REPLAYED_PER_TRANSACTION", 2)


async def test_a_replay_counts_and_replays_exactly_the_dead_deliveries_of_its_tracker_and_period_even_if_more_than_10000(
    service: Service, make_tracker: MakeTracker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "MAX_UNATTEMPTED", 100_000)
    monkeypatch.setattr(deliveries, "MAX_REPLAYED_PER_TRANSACTION", 4000)
    tracker, other = await make_tracker("https://t.example/"), await make_tracker("https://u.example/")
    await fill(service, tracker, DEAD, 3)
    clock.forward(hours=1)
    since = clock()
    expected = await fill(service, tracker, DEAD, 10_123)
    await fill(service, tracker, DELIVERED, 2)
    await fill(service, other, DEAD, 5)
    clock.forward(hours=1)
    until = clock()
    await fill(service, tracker, DEAD, 4)
    assert await service.deliveries.count_dead(DeliveryFilter(1, tracker, since=since, until=until)) == 10_123
    replay = await start(service, tracker, since, until)
    assert (replay.total, replay.replayed, replay.left, replay.state) == (10_123, 0, 10_123, "running")
    done = await finish(service, replay)
    assert (done.total, done.replayed, done.left, done.state) == (10_123, 10_123, 0, "done")
    assert await statuses(service) == {DEAD: 3 + 5 + 4, DELIVERED: 2, PENDING: 10_123}
    assert {row.id for row in await rows(service.database, schema.deliveries) if row.replay_id == replay.id} == set(expected)
    assert await outcomes(service, replay) == ReplayOutcomes(waiting=10_123, delivered=0, dead=0, moved=0)
    assert (await service.trackers.get(tracker)).health.breaker(0) == "recovering", "they are sent at the recovery rate"


async def test_the_batches_of_a_replay_are_bulk_work_that_lets_clicks_pass(
    service: Service, make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = await make_tracker("https://t.example/")
    await fill(service, tracker, DEAD, 3)
    await start(service, tracker)
    later: list[str] = []
    write_later = service.database.write_later

    async def noted(transact: Any, *args: Any) -> Any:
        later.append(transact.__name__)
        return await write_later(transact, *args)

    monkeypatch.setattr(service.database, "write_later", noted)
    assert await service.replays.step() == 3
    assert later == ["_perform_batch"]


@pytest.mark.usefixtures("small_batches")
async def test_a_stopped_replay_replays_nothing_further_and_does_not_undo_what_it_replayed(
    service: Service, make_tracker: MakeTracker
) -> None:
    tracker = await make_tracker("https://t.example/")
    await fill(service, tracker, DEAD, 7)
    replay = await start(service, tracker, NOON - timedelta(days=1))
    assert await service.replays.step() == 2
    assert await stop(service, replay)
    assert not await stop(service, replay), "a second stop has no effect"
    assert await service.replays.step() == 0
    stopped = await read(service, replay)
    assert (stopped.state, stopped.stop_reason, stopped.stopped_by) == ("stopped", StopReason.OPERATOR, "Ada")
    assert (stopped.total, stopped.replayed, stopped.left) == (7, 2, 5)
    assert await statuses(service) == {PENDING: 2, DEAD: 5}
    assert await log(service) == [
        ("Ada", "replay_started", {"total": 7, "since": "2026-11-19T12:00:00+00:00"}),
        ("Ada", "replay_stopped", {"reason": "operator", "replayed": 2, "total": 7}),
    ]
    again = await start(service, tracker)
    assert again.total == 5, "a new replay contains the remaining deliveries"


@pytest.mark.usefixtures("small_batches")
async def test_another_process_continues_a_replay_whose_process_ended_within_a_batch(
    service: Service, make_tracker: MakeTracker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = await make_tracker("https://t.example/")
    ids = await fill(service, tracker, DEAD, 9)
    replay = await start(service, tracker)
    lost = Replays(service.database, service.ids, clock)
    assert await lost.step() == 2

    class ProcessEnded(Exception):
        pass

    def replay_and_end(*arguments: Any, **options: Any) -> Any:
        deliveries.replay_batch(*arguments, **options)
        raise ProcessEnded

    with monkeypatch.context() as patched:
        patched.setattr(replays, "replay_batch", replay_and_end)
        with pytest.raises(ProcessEnded):
            await lost.step()
    assert await statuses(service) == {PENDING: 2, DEAD: 7}, "a batch without a commit has no effect"
    restarted_at: dict[int, datetime] = {}
    while True:
        clock.forward(seconds=1)
        if not await service.replays.step():
            break
        for row in await rows(service.database, schema.deliveries):
            if row.status == PENDING:
                restarted_at.setdefault(row.id, row.restarted_at)
    done = await read(service, replay)
    assert (done.state, done.total, done.replayed) == ("done", 9, 9)
    assert {row.id: row.restarted_at for row in await rows(service.database, schema.deliveries)} == restarted_at
    assert restarted_at.keys() == set(ids), "each delivery was replayed once"


@pytest.mark.usefixtures("small_batches")
async def test_processes_that_perform_a_replay_at_the_same_time_replay_no_delivery_twice(
    service: Service, make_tracker: MakeTracker, clock: Clock
) -> None:
    tracker = await make_tracker("https://t.example/")
    await fill(service, tracker, DEAD, 21)
    replay = await start(service, tracker)
    other = Replays(service.database, service.ids, clock)
    replayed = await asyncio.gather(*(one.step() for one in (service.replays, other) for _ in range(4)))
    before = (await read(service, replay)).replayed
    assert sum(replayed) == before
    done = await finish(service, replay)
    assert (done.state, done.total, done.replayed) == ("done", 21, 21)
    assert await statuses(service) == {PENDING: 21}


@pytest.mark.usefixtures("small_batches")
async def test_a_replay_does_not_include_deliveries_that_become_dead_after_its_start(
    service: Service, make_tracker: MakeTracker, clock: Clock
) -> None:
    tracker = await make_tracker("https://t.example/")
    first, second, *others = await fill(service, tracker, DEAD, 6)
    replay = await start(service, tracker)
    await service.replays.step()
    clock.forward(seconds=5)
    await change(service, [first], status=DELIVERED.value, finished_at=clock())
    await change(service, [second], status=DEAD.value, finished_at=clock())
    late = await fill(service, tracker, DEAD, 2)
    retried = others[-1]
    await service.deliveries.replay(AUDIT, retried, clock())
    await change(service, [retried], status=DEAD.value, finished_at=clock())
    done = await finish(service, replay)
    assert (done.state, done.total, done.replayed, done.left) == ("done", 6, 5, 1)
    found = {row.id: row.status for row in await rows(service.database, schema.deliveries)}
    assert [found[one] for one in (first, second, retried, *late)] == [DELIVERED, DEAD, DEAD, DEAD, DEAD]
    assert await outcomes(service, replay) == ReplayOutcomes(waiting=3, delivered=1, dead=1, moved=0)
    await service.deliveries.replay(AUDIT, first, clock())
    assert await outcomes(service, replay) == ReplayOutcomes(waiting=3, delivered=0, dead=1, moved=1)


async def test_a_replay_includes_deliveries_that_became_dead_before_the_clock_was_set_back(
    service: Service, make_tracker: MakeTracker, clock: Clock
) -> None:
    tracker = await make_tracker("https://t.example/")
    await fill(service, tracker, DEAD, 2)
    clock.forward(minutes=-10)
    done = await finish(service, await start(service, tracker))
    assert (done.state, done.total, done.replayed) == ("done", 2, 2)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("reason", [StopReason.TRACKER_DELETED, StopReason.TRACKER_DISABLED, StopReason.APPLICATION_DISABLED])
async def test_a_replay_stops_if_its_tracker_is_deleted_or_disabled_or_its_application_is_disabled(
    service: Service, make_tracker: MakeTracker, reason: StopReason
) -> None:
    tracker = await make_tracker("https://t.example/")
    await fill(service, tracker, DEAD, 5)
    replay = await start(service, tracker)
    await service.replays.step()
    if reason is StopReason.TRACKER_DELETED:
        await service.trackers.delete(AUDIT, tracker)
    elif reason is StopReason.TRACKER_DISABLED:
        await service.trackers.update(AUDIT, tracker, changes(enabled=False))
    else:
        await service.database.write(update_application, 1, {"disabled": True}, NOON)
    assert await service.replays.step() == 0
    stopped = await read(service, replay)
    assert (stopped.state, stopped.stop_reason, stopped.replayed) == ("stopped", reason, 2)
    assert await statuses(service) == {PENDING: 2, DEAD: 3}
    assert await service.replays.step() == 0
    expected = ("background job", "replay_stopped", {"reason": reason.value, "replayed": 2, "total": 5})
    assert (await log(service))[1:] == [expected]
    with pytest.raises(ApiError) as caught:
        await start(service, tracker)
    expected_code = ErrorCode.NOT_FOUND if reason is StopReason.TRACKER_DELETED else ErrorCode.CONFLICT
    assert caught.value.code is expected_code


async def test_a_second_replay_of_a_tracker_is_rejected_while_the_first_replay_is_running(
    service: Service, make_tracker: MakeTracker
) -> None:
    tracker, other = await make_tracker("https://t.example/"), await make_tracker("https://u.example/")
    for one in (tracker, other):
        await fill(service, one, DEAD, 3)
    results = await asyncio.gather(*(start(service, tracker) for _ in range(3)), return_exceptions=True)
    (running,) = (one for one in results if isinstance(one, Replay))
    refused = [one for one in results if isinstance(one, ApiError)]
    assert [(one.code, one.fields.get("replay_id")) for one in refused] == [(ErrorCode.CONFLICT, running.public_id)] * 2
    assert "0 of 3" in refused[0].description
    assert len(await log(service)) == len(await rows(service.database, schema.replays)) == 1
    assert (await start(service, other)).total == 3, "a replay of another tracker is not affected"


async def test_a_replay_without_dead_deliveries_is_rejected(service: Service, make_tracker: MakeTracker) -> None:
    tracker = await make_tracker("https://t.example/")
    await fill(service, tracker, DELIVERED, 1)
    with pytest.raises(ApiError) as caught:
        await start(service, tracker)
    assert caught.value.code is ErrorCode.CONFLICT
    assert await rows(service.database, schema.replays) == await log(service) == []


@pytest.mark.usefixtures("small_batches")
async def test_a_replay_waits_while_many_of_its_deliveries_have_no_attempt_yet(
    service: Service, make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "MAX_UNATTEMPTED", 4)
    tracker = await make_tracker("https://t.example/")
    ids = await fill(service, tracker, DEAD, 11)
    replay = await start(service, tracker)
    assert (await finish(service, replay)).replayed == 4
    await change(service, ids[:1], status=DELIVERED.value)
    assert (await finish(service, replay)).replayed == 6
    await change(service, ids[:6], attempt=2, base_attempt=1)  # An attempt failed, and a retry follows.
    assert (await finish(service, replay)).replayed == 10


async def test_a_replay_notifies_the_dispatcher(service: Service, make_tracker: MakeTracker, clock: Clock) -> None:
    notified: list[bool] = []
    job = Replays(service.database, service.ids, clock, lambda: notified.append(True))
    await fill(service, tracker := await make_tracker("https://t.example/"), DEAD, 1)
    assert await job.step() == 0
    assert notified == []
    await start(service, tracker)
    assert await job.step() == 1
    assert notified == [True]


async def test_a_replay_that_fails_does_not_block_the_other_replays(
    service: Service, make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, other = await make_tracker("https://t.example/"), await make_tracker("https://u.example/")
    for tracker in (failing, other):
        await fill(service, tracker, DEAD, 3)
    started = [await start(service, tracker) for tracker in (failing, other)]
    replay_batch = deliveries.replay_batch

    def fail(connection: Any, criteria: DeliveryFilter, *args: Any, **more: Any) -> Any:
        if criteria.tracker_id == failing:
            raise ValueError("unreadable")
        return replay_batch(connection, criteria, *args, **more)

    monkeypatch.setattr(replays, "replay_batch", fail)
    with pytest.raises(ValueError, match="unreadable"):
        await service.replays.step()
    assert [(await read(service, replay)).replayed for replay in started] == [0, 3]
