"""Several requests, one commit: what arrives while a transaction runs is done together in the next.

`apply(connection, items)` returns one result for each item; an exception among them is that item's alone. It must be safe to
run again: it is, when a unique index refuses the batch (a clash of codes, a race with another process), and, item by item, when
the batch as a whole fails for a reason of our own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shortener.errors import StoreUnavailable
from shortener.store.database import Database

Item = TypeVar("Item")
Result = TypeVar("Result")

CLASHES = 5  # how often a batch that a unique index refused is tried again


class GroupCommit(Generic[Item, Result]):
    """`limit`: most items of one transaction; `waiting_limit`: above it, StoreUnavailable at once; `after`: called on commit."""

    def __init__(
        self,
        database: Database,
        apply: Callable[[Connection, Sequence[Item]], Sequence[Result | Exception]],
        *,
        limit: int = 256,
        waiting_limit: int = 10_000,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._apply = apply
        self._limit = limit
        self._waiting_limit = waiting_limit
        self._after = after
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """The item's result, once it is durable. Raises what `apply` gave for it, or StoreUnavailable: then nothing was kept."""
        if len(self._waiting) >= self._waiting_limit:
            raise StoreUnavailable("too many requests wait for the store")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run())
        return await future

    async def flush(self) -> None:
        """Return when nothing is waiting or under way."""
        while self._running is not None and not self._running.done():
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._limit, len(self._waiting)))]
            await self._commit(batch)

    async def _commit(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        items = [item for item, _ in batch]
        for left in reversed(range(CLASHES)):
            try:
                results = await self._database.write(self._apply, items)
            except StoreUnavailable as error:
                for _, future in batch:
                    _fail(future, StoreUnavailable(str(error)))
            except Exception as error:
                if isinstance(error, IntegrityError) and left:
                    continue
                if len(batch) == 1:
                    _fail(batch[0][1], error)
                else:
                    for one in batch:
                        await self._commit([one])
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if isinstance(result, Exception):
                        _fail(future, result)
                    elif not future.done():
                        future.set_result(result)
                self._after()
            return


def _fail(future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
