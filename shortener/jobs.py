"""This module runs the background jobs of a process. One table contains the name, the interval and the function of each job.

A job is an async function that does one run of work and returns how many items it processed. If a run processed items, the job
runs again at once. Otherwise it runs again after `interval` seconds, or earlier if its wake-up event is set. A run that fails is
logged and repeated. An error in a job never ends the process.

After the start of the process, the jobs make their first runs one after the other. If they ran at the same time, they would open
ten connections to the database. The process would keep these connections, each with a thread and 0.2 MB of memory.

A `TaskSupervisor` runs the tasks that must run until the process ends: the jobs, the loops of the recorder and the notifier. If a
task ends earlier, the supervisor logs it, counts it in `shortener_task_restarts` and starts it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import field
from functools import partial

import structlog

from shortener.errors import StoreUnavailable
from shortener.metrics import Metrics
from shortener.model import mutable_record

log = structlog.get_logger(__name__)

RESTART_SECONDS = 0.1  # The pause in seconds before a task that ended is started again.
FIRST_RUN_SECONDS = 0.2  # The maximum time that the first run of a job waits for the first run of the previous job.
RECENT_SECONDS = 10.0  # After a task has ended unexpectedly, /readyz reports it for this number of seconds.


class TaskSupervisor:
    """A supervisor of long-running tasks. A task that ends before `stop`, with or without an exception, is logged, counted and
    started again."""

    def __init__(self) -> None:
        self.restarts: dict[str, int] = {}  # The number of restarts since the process started, by name of the task.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended_at: dict[str, float] = {}  # The time at which each task last ended, on the clock of the event loop.
        self._is_stopping = False

    def register_metrics(self, metrics: Metrics) -> None:
        metrics.counter(
            "shortener_task_restarts",
            "Long-running tasks that ended unexpectedly and were started again.",
            lambda: {(name,): float(count) for name, count in self.restarts.items()},
            "task",
        )

    @property
    def is_healthy(self) -> bool:
        """Whether no task has ended unexpectedly within the last RECENT_SECONDS."""
        if not self._ended_at:
            return True
        now = asyncio.get_running_loop().time()
        return all(now - ended_at > RECENT_SECONDS for ended_at in self._ended_at.values())

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run the coroutine function `run` as a task until `stop` is called. Return the task, which the caller may cancel."""
        self.restarts.setdefault(name, 0)
        task = asyncio.get_running_loop().create_task(self._keep_running(name, run), name=name)
        self._tasks[name] = task
        return task

    async def stop(self) -> None:
        """Cancel all supervised tasks."""
        self._is_stopping = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_running(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        own = asyncio.current_task()
        assert own is not None
        while True:
            error: BaseException | None = None
            try:
                await run()
            except asyncio.CancelledError as cancelled:
                if own.cancelling():
                    raise
                error = cancelled  # Only a call that the task awaited was cancelled, and not the task itself.
            except Exception as raised:
                error = raised
            self.restarts[name] += 1
            self._ended_at[name] = asyncio.get_running_loop().time()
            log.error("task_ended", task=name, exc_info=error)
            await asyncio.sleep(RESTART_SECONDS)


class WakeUp:
    """A wake-up event: it makes a job run before the interval of the job is over."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def notify(self) -> None:
        """Set the wake-up event, so that the job that waits for it runs."""
        self._event.set()

    def notify_after(self, seconds: float | None) -> None:
        """Set the wake-up event after `seconds`. Cancel the timer of an earlier call. If `seconds` is None, start no new
        timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.notify)

    async def wait(self, seconds: float) -> None:
        """Wait until the wake-up event is set, but at most `seconds`. Then clear the wake-up event."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return
        finally:
            self._event.clear()


@mutable_record
class Job:
    """A background job.

    `step` does one run and returns how many items it processed. `interval` is the pause in seconds after a run that processed no
    items. `min_interval` is the pause in seconds after a run that processed items. Items that arrive during this pause are
    processed together in the next run, and not in one transaction each. `runs`, `failures` and `done` (items) count since the
    start of the process."""

    name: str
    interval: float
    step: Callable[[], Awaitable[int]]
    wake_up: WakeUp = field(default_factory=WakeUp)
    min_interval: float = 0.0
    runs: int = 0
    failures: int = 0
    done: int = 0
    is_failing: bool = False  # Whether the last run raised an error other than StoreUnavailable (the database is unavailable).


class Jobs:
    """The table of background jobs."""

    def __init__(self, supervisor: TaskSupervisor | None = None) -> None:
        self.table: dict[str, Job] = {}
        self._supervisor = supervisor or TaskSupervisor()
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, job: Job) -> Job:
        """Add a job to the table and return it."""
        self.table[job.name] = job
        return job

    def register_metrics(self, metrics: Metrics) -> None:
        for name, help in (
            ("runs", "Runs of background jobs."),
            ("failures", "Runs of background jobs that failed and are repeated."),
            ("done", "Items that background jobs processed."),
        ):
            metrics.counter(f"shortener_job_{name}", help, partial(self._read, name), "job")

    def _read(self, attribute: str) -> dict[tuple[str, ...], float]:
        return {(job.name,): getattr(job, attribute) for job in self.table.values()}

    @property
    def running(self) -> bool:
        """Whether all background jobs are running."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    @property
    def failing(self) -> list[str]:
        """The names of the jobs whose last run failed with an unexpected error."""
        return [job.name for job in self.table.values() if job.is_failing]

    def start(self, *, without: Collection[str] = ()) -> None:
        """Start all background jobs except those whose names are in `without`."""
        first_runs = asyncio.Semaphore(1)
        self._tasks = [
            self._supervisor.start(job.name, partial(_run, job, first_runs))
            for job in self.table.values()
            if job.name not in without
        ]

    async def stop(self) -> None:
        """Cancel all background jobs. A job loses only the transaction that it has not committed yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []


async def _run(job: Job, first_runs: asyncio.Semaphore) -> None:
    async with _turn(first_runs):
        done = await _run_once(job)
    while True:
        if done:
            await asyncio.sleep(job.min_interval)  # Even a pause of 0 seconds lets other tasks run between two runs of the job.
        else:
            await job.wake_up.wait(job.interval)
        done = await _run_once(job)


async def _run_once(job: Job) -> int:
    """Run the job once and return how many items it processed. If the run fails, log the error and return 0."""
    done = 0
    try:
        done = await job.step()
        job.done += done
        job.is_failing = False
    except StoreUnavailable:
        job.failures += 1
        job.is_failing = False
    except Exception:
        job.failures += 1
        job.is_failing = True
        log.exception("job_failed", job=job.name)
    job.runs += 1
    return done


@asynccontextmanager
async def _turn(turns: asyncio.Semaphore) -> AsyncIterator[None]:
    """Let only one job at a time run the `with` block. A job that runs longer than FIRST_RUN_SECONDS no longer delays the next
    job."""
    await turns.acquire()
    is_over = False

    def end() -> None:
        nonlocal is_over
        if not is_over:
            is_over = True
            turns.release()

    timer = asyncio.get_running_loop().call_later(FIRST_RUN_SECONDS, end)
    try:
        yield
    finally:
        timer.cancel()
        end()
