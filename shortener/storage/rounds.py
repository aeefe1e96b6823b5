"""What waits for the store goes there in rounds: each takes what is there when its transaction begins.

Not before. Two rounds are under way at a time. On SQLite the second waits for the one writer, and what comes meanwhile goes with
it: the writer goes from one commit to the next, and never stands still while the event loop hands out results and gathers the next
batch. On PostgreSQL the second has a connection of its own and runs beside the first, as those of two nodes do: while one waits for
an answer of the server, the other is worked on. Two things that come within milliseconds may so be committed the other way round.

Of what is there a round takes no more than two thirds, counting those that get their results just now: while these are committed,
the others come again. If all went at once, the store and the event loop would take turns at standing still.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")

AT_ONCE = 2  # rounds


class Rounds(Generic[Item]):
    """`work(batch)` brings one batch to its end; the transaction in it calls `take(batch)` while the batch is empty. A round takes
    `least` items or two thirds of what is there, whichever is more, and `limit` at most. `idle` is called when nothing is left."""

    def __init__(
        self,
        work: Callable[[list[Item]], Coroutine[None, None, None]],
        *,
        least: int,
        limit: int,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._work = work
        self._least = least
        self._limit = limit
        self._idle = idle
        self._waiting: deque[Item] = deque()
        self._batches: list[list[Item]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_open = False  # a round is to come that will take what waits
        self._last = 0  # items of the last round
        self._taking = threading.Lock()  # a batch is taken in the thread of its transaction
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_held = False

    @property
    def waiting(self) -> int:
        """Items that no round has taken."""
        return len(self._waiting)

    @property
    def batches(self) -> int:
        """Rounds under way."""
        return len(self._batches)

    def __len__(self) -> int:
        return sum(map(len, (self._waiting, *self._batches)))

    def hold(self) -> None:
        """Take nothing before `start`."""
        self._is_held = True

    def start(self) -> None:
        """Take what was put before."""
        self._is_held = False
        self.begin()

    def put(self, items: Iterable[Item]) -> None:
        self._waiting.extend(items)
        self.begin()

    def put_one(self, item: Item) -> None:
        self._waiting.append(item)
        if not self._is_open:
            self.begin()

    def begin(self) -> None:
        """See to it that what waits is taken, unless a round is to come that will, or enough of them are under way."""
        if self._waiting and not self._is_open and len(self._batches) < AT_ONCE and not self._is_held:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._is_open = True
            batch: list[Item] = []
            self._batches.append(batch)
            task = self._loop.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def take(self, batch: list[Item]) -> None:
        """Fill an empty batch, in whatever thread."""
        with self._taking:
            self._is_open = False
            here = len(self._waiting)
            most = min(max((here + self._last) * 2 // 3, self._least), self._limit, here)
            batch.extend(self._waiting.popleft() for _ in range(most))
            self._last = most
            if self._waiting and self._loop is not None:
                self._loop.call_soon_threadsafe(self.begin)

    def all(self) -> list[Item]:
        """Everything that is not done with, in order."""
        with self._taking:
            return [item for batch in (*self._batches, self._waiting) for item in batch]

    def taken(self) -> list[Item]:
        with self._taking:
            return [item for batch in self._batches for item in batch]

    def withdraw(self, which: Callable[[Item], bool]) -> list[Item]:
        """Take these back from what no round has taken yet."""
        with self._taking:
            withdrawn = [item for item in self._waiting if which(item)]
            self._waiting = deque(item for item in self._waiting if not which(item))
        return withdrawn

    async def stop(self) -> None:
        """Leave everything where it is."""
        self._is_held = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, batch: list[Item]) -> None:
        try:
            await self._work(batch)
        finally:
            self._batches = [one for one in self._batches if one is not batch]
        self.begin()
        if not self._waiting and not self._batches:
            self._idle()
