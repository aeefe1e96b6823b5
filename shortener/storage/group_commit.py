"""Several requests, one commit: what arrives while a transaction runs is done together in the next.

`apply(connection, items)` returns one result for each item; an exception among them is that item's alone. It must be safe to
run again: it is, when a unique index refuses the batch (a clash of codes, a race with another process), and, item by item, when
the batch as a whole fails for a reason of our own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shortener.errors import StoreUnavailable
from shortener.storage.batcher import Rounds
from shortener.storage.database import Database

Item = TypeVar("Item")
Result = TypeVar("Result")

CLASHES = 5  # how often a batch that a unique index refused is tried again
LEAST = 8  # items of a commit, as far as there are any

_Waiting = tuple[Item, asyncio.Future[Result]]


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
        self._waiting_limit = waiting_limit
        self._after = after
        self._rounds: Rounds[_Waiting[Item, Result]] = Rounds(self._commit, least=LEAST, limit=limit, idle=lambda: self._idle.set())
        self._idle = asyncio.Event()
        self._idle.set()

    async def submit(self, item: Item) -> Result:
        """The item's result, once it is durable. Raises what `apply` gave for it, or StoreUnavailable: then nothing was kept."""
        if self._rounds.waiting >= self._waiting_limit:
            raise StoreUnavailable("too many requests wait for the store")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._idle.clear()
        self._rounds.put_one((item, future))
        return await future

    async def flush(self) -> None:
        """Return when nothing is waiting or under way."""
        await self._idle.wait()

    async def _commit(self, batch: list[_Waiting[Item, Result]]) -> None:
        for left in reversed(range(CLASHES)):
            try:
                results = await self._database.write(self._apply_to, batch)
            except StoreUnavailable as error:
                if not batch:
                    self._rounds.take(batch)
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
                if batch:
                    self._after()
            return

    def _apply_to(self, connection: Connection, batch: list[_Waiting[Item, Result]]) -> Sequence[Result | Exception]:
        if not batch:
            self._rounds.take(batch)
        return self._apply(connection, [item for item, _ in batch]) if batch else []


def _fail(future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
