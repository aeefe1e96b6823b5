"""The background jobs of a process, in one table: name, interval and function.

A job is an async function that does one run of work and returns how many items it processed. It runs again at once while it finds
work, else after `interval` seconds or when its wake-up event is set. A run that fails is logged and repeated. An error in a job
never ends the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import structlog

from shortener.errors import StoreUnavailable
from shortener.metrics import Metrics

log = structlog.get_logger(__name__)


class WakeUp:
    """An event that makes a job run before its interval is over."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Set the event."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Wait until the event is set, at most so many seconds, and clear it."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return
        finally:
            self._event.clear()


@dataclass(slots=True)
class Job:
    """A background job.

    `step` does one run and returns how many items it processed. `interval` is the pause in seconds after a run without work.
    `min_interval` is the pause in seconds after a run with work: items that arrive in this time are processed in one run, instead
    of one commit each. `runs`, `failures` and `done` (items) count since the start of the process."""

    name: str
    interval: float
    step: Callable[[], Awaitable[int]]
    wake_up: WakeUp = field(default_factory=WakeUp)
    min_interval: float = 0.0
    runs: int = 0
    failures: int = 0
    done: int = 0


class Jobs:
    """The table of background jobs."""

    def __init__(self) -> None:
        self.table: dict[str, Job] = {}
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
        """Whether all jobs are running."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def start(self, *, without: Collection[str] = ()) -> None:
        """Start all jobs except those with the names in `without`."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(_run(job), name=job.name) for job in self.table.values() if job.name not in without]

    async def stop(self) -> None:
        """Cancel all jobs. What they have committed stays."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []


async def _run(job: Job) -> None:
    while True:
        try:
            done = await job.step()
            job.done += done
        except StoreUnavailable:
            job.failures += 1
            done = 0
        except Exception:
            job.failures += 1
            done = 0
            log.exception("job_failed", job=job.name)
        job.runs += 1
        if done:
            await asyncio.sleep(job.min_interval)  # also with 0, other tasks run between two runs of the job
        else:
            await job.wake_up.wait(job.interval)
