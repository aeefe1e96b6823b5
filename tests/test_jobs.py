"""Tests of background jobs: when they run, what they count, and what happens after an error."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shortener.errors import StoreUnavailable
from shortener.jobs import Job, Jobs, TaskSupervisor, WakeUp
from shortener.metrics import Metrics
from tests.servers import PATIENCE

NEVER = 1e6  # An interval in seconds that is longer than any test.


class Work:
    """A job function for tests. Each run returns the next result of a list, or raises the next error. After the end of the list,
    each run finds no work."""

    def __init__(self, *results: int | Exception) -> None:
        self._results = list(results)
        self.finished = asyncio.Event()

    async def step(self) -> int:
        if not self._results:
            self.finished.set()
            return 0
        result = self._results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def wait(self) -> None:
        await asyncio.wait_for(self.finished.wait(), PATIENCE)


async def test_a_background_job_runs_again_at_once_while_it_finds_work() -> None:
    jobs, work = Jobs(), Work(3, 2)
    job = jobs.add(Job("fold", NEVER, work.step))
    jobs.start()
    await work.wait()
    await jobs.stop()
    assert (job.runs, job.done, job.failures) == (3, 5, 0)


@pytest.mark.parametrize("error", [StoreUnavailable("down"), ValueError("a bug")])
async def test_a_background_job_that_fails_runs_again(error: Exception) -> None:
    jobs, work = Jobs(), Work(error, 1)
    job = jobs.add(Job("fold", 0.001, work.step))
    jobs.start()
    await work.wait()
    assert jobs.running
    await jobs.stop()
    assert not jobs.running
    assert (job.done, job.failures) == (1, 1)


async def test_a_wake_up_event_ends_the_pause_of_a_job() -> None:
    jobs, work = Jobs(), Work()
    job = jobs.add(Job("fold", NEVER, work.step))
    jobs.start()
    await work.wait()
    work.finished.clear()
    job.wake_up.notify()
    await work.wait()
    await jobs.stop()


async def test_a_background_job_in_the_list_of_omitted_jobs_does_not_start() -> None:
    jobs, started, omitted = Jobs(), Work(), Work()
    jobs.add(Job("started", NEVER, started.step))
    jobs.add(Job("omitted", NEVER, omitted.step))
    jobs.start(without={"omitted"})
    await started.wait()
    await jobs.stop()
    assert not omitted.finished.is_set()


async def test_the_first_runs_of_jobs_do_not_overlap_and_later_runs_may() -> None:
    running, most, later, release = 0, 0, 0, asyncio.Event()

    async def first() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return 1

    def step() -> Callable[[], Awaitable[int]]:
        runs = iter((first,))

        async def run() -> int:
            nonlocal later
            if one := next(runs, None):
                return await one()
            later += 1
            if later == 5:
                release.set()
            await release.wait()
            return 0

        return run

    jobs = Jobs()
    for name in "abcde":
        jobs.add(Job(name, NEVER, step()))
    jobs.start()
    await asyncio.wait_for(release.wait(), PATIENCE)
    await jobs.stop()
    assert most == 1


async def test_a_job_whose_first_run_hangs_delays_the_first_runs_of_other_jobs_only_for_a_moment() -> None:
    jobs, work = Jobs(), Work(1)
    jobs.add(Job("hangs", NEVER, asyncio.Event().wait))
    jobs.add(Job("works", NEVER, work.step))
    jobs.start()
    await work.wait()
    await jobs.stop()


async def test_a_wake_up_event_that_is_set_before_a_job_waits_for_it_is_not_lost() -> None:
    wake_up = WakeUp()
    wake_up.notify()
    await asyncio.wait_for(wake_up.wait(NEVER), PATIENCE)


async def test_a_wake_up_event_is_set_after_a_time() -> None:
    wake_up = WakeUp()
    wake_up.notify_after(NEVER)
    wake_up.notify_after(0.0)
    await asyncio.wait_for(wake_up.wait(NEVER), PATIENCE)


async def test_a_new_timer_of_a_wake_up_event_replaces_the_timer_before_it() -> None:
    wake_up, passed = WakeUp(), asyncio.Event()
    wake_up.notify_after(0.0)
    wake_up.notify_after(None)
    asyncio.get_running_loop().call_later(0.0, passed.set)
    await passed.wait()
    assert not wake_up._event.is_set()


async def test_the_jobs_stop_also_if_a_wake_up_event_is_set_at_the_same_time() -> None:
    jobs, work = Jobs(), Work()
    job = jobs.add(Job("dispatcher", NEVER, work.step))
    jobs.start()
    await work.wait()
    for turns in range(4):  # how often the event loop runs other tasks between the wake-up event and the stop
        await asyncio.sleep(0)
        job.wake_up.notify()
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(jobs.stop(), PATIENCE)
        jobs.start()
        await asyncio.sleep(0)  # let the job run until it waits
    await jobs.stop()


async def test_the_metrics_contain_the_runs_failures_and_items_of_each_background_job() -> None:
    jobs, work, metrics = Jobs(), Work(4), Metrics()
    jobs.add(Job("fold", NEVER, work.step))
    jobs.register_metrics(metrics)
    jobs.start()
    await work.wait()
    await jobs.stop()
    text = metrics.text("")[0].decode()
    assert 'shortener_job_done_total{job="fold"} 4.0' in text
    assert 'shortener_job_failures_total{job="fold"} 0.0' in text


class Ending:
    """A task for tests. Its first run returns or raises `end`, and its second run lasts until it is cancelled."""

    def __init__(self, end: BaseException | None) -> None:
        self._end = end
        self.runs = 0
        self.is_running = asyncio.Event()

    async def run(self) -> None:
        self.runs += 1
        if self.runs == 1:
            if self._end is not None:
                raise self._end
            return
        self.is_running.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("end", [ValueError("a bug"), asyncio.CancelledError(), None], ids=["error", "cancelled", "returned"])
async def test_a_long_running_task_that_ends_is_counted_and_started_again(end: BaseException | None) -> None:
    supervisor, task, metrics = TaskSupervisor(), Ending(end), Metrics()
    supervisor.register_metrics(metrics)
    supervisor.start("loop", task.run)
    assert supervisor.is_healthy
    await asyncio.wait_for(task.is_running.wait(), PATIENCE)
    assert not supervisor.is_healthy, "/readyz reports the restart of the task for some seconds"
    assert 'shortener_task_restarts_total{task="loop"} 1.0' in metrics.text("")[0].decode()
    await supervisor.stop()
    assert task.runs == 2


async def test_a_long_running_task_that_was_cancelled_by_its_owner_is_not_started_again() -> None:
    supervisor, ended = TaskSupervisor(), asyncio.Event()
    task = supervisor.start("loop", ended.wait)  # type: ignore[arg-type]  # the result of `wait` does not matter
    await asyncio.sleep(0)  # let the task start
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert supervisor.restarts == {"loop": 0}


async def test_a_background_job_is_reported_as_failing_until_a_run_succeeds() -> None:
    jobs, work = Jobs(), Work(ValueError("a bug"))
    jobs.add(Job("fold", NEVER, work.step))
    jobs.start()
    async with asyncio.timeout(PATIENCE):
        while not jobs.failing:
            await asyncio.sleep(0)  # wait a moment, then check the condition again
    assert jobs.failing == ["fold"]
    jobs.table["fold"].wake_up.notify()
    await work.wait()
    await asyncio.sleep(0)  # let the job finish its run
    assert jobs.failing == []
    await jobs.stop()
