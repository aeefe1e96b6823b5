"""Everything that runs in the background, in one table: name, pause, and what it does.

A job is an async function that does one round of work and returns how many things it did; it runs again at once while it
finds work, else after `interval` seconds or when its bell is rung. A round that fails is logged and tried again: an error in the
background never takes the process down.
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
    """Wakes a job before its pause is over."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()

    async def wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return
        finally:
            self._event.clear()


@dataclass(slots=True)
class Job:
    """`interval`: seconds of pause when a round found nothing to do. `step`: one round, returns how many things it did.

    `min_interval`: seconds between two rounds that found something: what comes in meanwhile is done in one go, instead of a
    commit each."""

    name: str
    interval: float
    step: Callable[[], Awaitable[int]]
    wake_up: WakeUp = field(default_factory=WakeUp)
    min_interval: float = 0.0
    runs: int = 0
    failures: int = 0
    done: int = 0


class Jobs:
    def __init__(self) -> None:
        self.table: dict[str, Job] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, job: Job) -> Job:
        self.table[job.name] = job
        return job

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the counts of every job on /metrics."""
        for name, help in (
            ("runs", "Runs of background jobs."),
            ("failures", "Runs of background jobs that failed and are retried."),
            ("done", "Items that background jobs processed."),
        ):
            metrics.counter(f"shortener_job_{name}", help, partial(self._read, name), "job")

    def _read(self, attribute: str) -> dict[tuple[str, ...], float]:
        return {(job.name,): getattr(job, attribute) for job in self.table.values()}

    @property
    def running(self) -> bool:
        """Whether every job is at work."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def start(self, *, without: Collection[str] = ()) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(_run(job), name=job.name) for job in self.table.values() if job.name not in without]

    async def stop(self) -> None:
        """Cancel every job where it waits; what it had committed stands."""
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
            await asyncio.sleep(job.min_interval)  # requests get in between two rounds in any case
        else:
            await job.wake_up.wait(job.interval)
