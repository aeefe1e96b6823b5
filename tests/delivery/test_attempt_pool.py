"""Tests of the attempts in flight and of the paused queues of a dispatcher."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from shortener.delivery.attempt_pool import MAX_STARTS, AttemptPool, QueuePauses
from shortener.model import record
from tests.servers import PATIENCE

PAUSE_MS = 5_000
NOW = 1_000_000


@record
class Attempt:
    queue: str = "t1"
    application_id: int | None = 7


@record
class EndedNow:
    attempt: Attempt = Attempt()
    at: int = NOW
    is_local_failure: bool = False


class Pool(AttemptPool[EndedNow]):
    """A pool whose attempts end when `may_end` is set, and whose `step` records the outcomes as a cycle of a dispatcher does."""

    def __init__(self, slots: int = 8) -> None:
        super().__init__(slots)
        self.may_end = asyncio.Event()
        self.errors: list[Exception] = []
        self.due: list[Attempt] = []
        self.recorded = 0

    def create_task(self, attempt: Attempt) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(attempt))

    async def start_here(self, attempts: Sequence[Attempt]) -> None:
        await self.start(attempts, self.create_task)

    async def step(self) -> int:
        if self.errors:
            raise self.errors.pop()
        ended, due = self.ended.copy(), self.due.copy()
        self.due.clear()
        self.remove(ended)
        self.recorded += len(ended)
        await self.start_here(due)
        return len(ended) + len(due)

    async def _run(self, attempt: Attempt) -> None:
        try:
            await self.may_end.wait()
        finally:
            self.end(EndedNow(attempt))


async def test_an_attempt_uses_a_slot_until_its_outcome_is_recorded() -> None:
    pool = Pool()
    await pool.start_here([Attempt("t1"), Attempt("t2")])
    assert (pool.usage.free, pool.usage.by_queue, len(pool.tasks)) == (6, {"t1": 1, "t2": 1}, 2)
    pool.may_end.set()
    await asyncio.wait(pool.tasks)
    assert (pool.usage.busy, len(pool.tasks), len(pool.ended)) == (2, 0, 2)
    pool.remove(pool.ended[:1])
    assert (pool.usage.by_queue, pool.usage.by_application, len(pool.ended)) == ({"t2": 1}, {7: 1}, 1)


async def test_the_event_loop_runs_other_tasks_each_time_a_few_attempts_were_started() -> None:
    pool = Pool(slots=100)
    counts: list[int] = []
    asyncio.get_running_loop().call_soon(lambda: counts.append(len(pool.tasks)))
    await pool.start_here([Attempt()] * (2 * MAX_STARTS))
    assert counts == [MAX_STARTS]
    pool.may_end.set()
    await asyncio.wait(pool.tasks)


async def test_an_attempt_that_was_not_started_uses_a_slot_until_its_claim_is_given_back() -> None:
    pool = Pool()
    pool.end_unstarted(EndedNow())
    assert (pool.usage.busy, len(pool.ended)) == (1, 1)
    pool.remove(pool.ended[:])
    assert (pool.usage.busy, len(pool.ended)) == (0, 0)


async def test_the_slot_of_an_attempt_without_an_outcome_is_released() -> None:
    pool = Pool()
    pool.usage.take("t1", 7)
    pool.release(Attempt())
    assert pool.usage.busy == 0


async def test_a_transaction_computes_the_free_slots_without_changing_the_pool() -> None:
    pool = Pool()
    pool.end_unstarted(EndedNow())
    pool.end_unstarted(EndedNow(Attempt("t2")))
    assert (pool.usage_without(pool.ended[:1]).by_queue, pool.usage.busy) == ({"t2": 1}, 2)


async def test_flush_waits_for_attempts_and_records_them() -> None:
    pool = Pool()
    pool.due = [Attempt(), Attempt()]
    asyncio.get_running_loop().call_later(0.01, pool.may_end.set)
    async with asyncio.timeout(PATIENCE):
        await pool.flush(pool.step)
    assert (pool.recorded, pool.usage.busy) == (2, 0)


async def test_drain_cancels_the_attempts_that_still_run_and_records_them_although_a_cycle_fails() -> None:
    pool = Pool()
    await pool.start_here([Attempt(), Attempt()])
    await asyncio.sleep(0)  # let the tasks begin, because a task that is cancelled before it begins has no outcome
    pool.errors = [OSError("the database is unavailable"), ValueError("a value cannot be stored")]
    async with asyncio.timeout(PATIENCE):
        await pool.drain(pool.step, cancel_at=asyncio.get_running_loop().time())
    assert (pool.recorded, pool.usage.busy, pool.tasks) == (2, 0, set())


def test_a_queue_is_paused_for_the_planned_time_after_a_local_failure() -> None:
    pauses = QueuePauses(PAUSE_MS)
    pauses.update([EndedNow(Attempt("t1"), is_local_failure=True), EndedNow(Attempt("t2"))], NOW)
    pauses.pause("t3", NOW + 1)
    assert pauses.with_failures([], NOW + 1) == {"t1": NOW + PAUSE_MS, "t3": NOW + 1 + PAUSE_MS}
    pauses.update([], NOW + PAUSE_MS)
    assert pauses.with_failures([], NOW + PAUSE_MS) == {"t3": NOW + 1 + PAUSE_MS}


def test_a_transaction_that_may_run_again_does_not_change_the_pauses() -> None:
    pauses = QueuePauses(PAUSE_MS)
    assert pauses.with_failures([EndedNow(is_local_failure=True)], NOW) == {"t1": NOW + PAUSE_MS}
    assert pauses.with_failures([], NOW) == {}


@pytest.mark.parametrize("is_updated", [False, True])
def test_a_pause_that_is_longer_than_planned_because_the_clock_was_set_back_is_ignored(is_updated: bool) -> None:
    pauses = QueuePauses(PAUSE_MS)
    pauses.pause("t1", NOW)
    if is_updated:
        pauses.update([], NOW - 1)
    assert pauses.with_failures([], NOW - 1) == {}
