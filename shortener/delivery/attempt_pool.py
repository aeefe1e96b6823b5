"""The attempts that one dispatcher has in flight, and the queues that it pauses.

The dispatcher of deliveries and the dispatcher of messages for gateways use these classes. An attempt has a slot from its start
until its outcome is durable. Until then it is in one of two places: in `AttemptPool.tasks` while it runs, and in
`AttemptPool.ended` while its outcome waits for the next cycle. The classes have no I/O. Code inside a transaction must only read
them, because the database may run a transaction again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from shortener.delivery.claims import SlotUsage

#: After this many starts, the dispatcher lets other tasks of the event loop run. While many hits arrive, a cycle starts at most
#: this many attempts.
MAX_STARTS = 8
#: If outcomes could not be recorded during a shutdown, the dispatcher tries again after this pause.
RECORD_AGAIN_SECONDS = 0.1


class StartableAttempt(Protocol):
    """An attempt whose claim is committed."""

    @property
    def queue(self) -> str: ...
    @property
    def application_id(self) -> int | None: ...


class EndedAttempt(Protocol):
    """The result of a claim, which is not yet in the database. `at` is the time of the result in milliseconds since 1970."""

    @property
    def attempt(self) -> StartableAttempt: ...
    @property
    def at(self) -> int: ...
    @property
    def is_local_failure(self) -> bool: ...


Startable = TypeVar("Startable", bound=StartableAttempt)
Ended = TypeVar("Ended", bound=EndedAttempt)


class AttemptPool(Generic[Ended]):
    """The slots of one dispatcher and the attempts that use them. `ended` contains the results to record, the oldest first."""

    def __init__(self, slots: int) -> None:
        self.usage = SlotUsage(slots)
        self.tasks: set[asyncio.Task[None]] = set()
        self.ended: list[Ended] = []

    async def start(self, attempts: Sequence[Startable], create_task: Callable[[Startable], asyncio.Task[None]]) -> None:
        """Take a slot for each attempt and start its task. Before a task ends, it must pass its attempt to `end` or `release`."""
        for number, attempt in enumerate(attempts, 1):
            self.usage.take(attempt.queue, attempt.application_id)
            task = create_task(attempt)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            if number % MAX_STARTS == 0:
                await asyncio.sleep(0)  # let the event loop respond to hits before the next attempts start

    def end(self, ended: Ended) -> None:
        """Keep the result of an attempt, which has a slot. `remove` removes the result and releases the slot."""
        self.ended.append(ended)

    def end_unstarted(self, ended: Ended) -> None:
        """Take a slot for the result of a claim whose attempt was not started, and keep the result in the same way."""
        self.usage.take(ended.attempt.queue, ended.attempt.application_id)
        self.ended.append(ended)

    def remove(self, ended: Sequence[Ended]) -> None:
        """Remove the oldest ended attempts, whose outcomes are stored or are dropped, and release their slots."""
        del self.ended[: len(ended)]
        for one in ended:
            self.release(one.attempt)

    def release(self, attempt: StartableAttempt) -> None:
        """Release the slot of an attempt that has no outcome to record."""
        self.usage.release(attempt.queue, attempt.application_id)

    def usage_without(self, ended: Iterable[Ended]) -> SlotUsage:
        """Return a copy of the slot usage in which the slots of these attempts are free."""
        usage = self.usage.copy()
        for one in ended:
            usage.release(one.attempt.queue, one.attempt.application_id)
        return usage

    async def flush(self, step: Callable[[], Awaitable[int]]) -> None:
        """Run `step`, a cycle of the dispatcher, until nothing is due and every outcome is recorded."""
        while await step() or self.tasks or self.ended:
            if self.tasks and not self.ended:
                await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)

    async def drain(self, step: Callable[[], Awaitable[int]], cancel_at: float) -> None:
        """Let the running attempts end, and run `step` until every outcome is recorded.

        Attempts that still run at the time `cancel_at` (a time of the event loop) are cancelled. `step` must not start attempts
        any more. The caller limits the total time."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=cancel_at - asyncio.get_running_loop().time())
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        while self.ended:
            try:
                await step()
            except Exception:
                await asyncio.sleep(RECORD_AGAIN_SECONDS)  # the database may become available before the shutdown ends


class QueuePauses:
    """The queues from which a dispatcher claims nothing for `pause_ms` milliseconds after a failure of this host.

    A pause can end later than `pause_ms` from now only if the clock was set back. Such a pause is ignored. Times are milliseconds
    since 1970."""

    def __init__(self, pause_ms: int) -> None:
        self._pause_ms = pause_ms
        self._until: dict[str, int] = {}  # queue name -> time at which its pause ends

    def pause(self, queue: str, now: int) -> None:
        self._until[queue] = now + self._pause_ms

    def with_failures(self, ended: Iterable[EndedAttempt], now: int) -> dict[str, int]:
        """Return the end of the pause of each queue, including the pauses that local failures in `ended` cause."""
        until = {queue: until for queue, until in self._until.items() if until <= now + self._pause_ms}
        for one in ended:
            if one.is_local_failure:
                until[one.attempt.queue] = one.at + self._pause_ms
        return until

    def update(self, ended: Iterable[EndedAttempt], now: int) -> None:
        """Add the pauses that local failures in `ended` cause, and remove the pauses that are over."""
        until = self.with_failures(ended, now)
        self._until = {queue: at for queue, at in until.items() if now < at <= now + self._pause_ms}
