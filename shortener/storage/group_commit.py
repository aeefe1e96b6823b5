"""Group commit: requests that arrive at the same time are written together, and each request waits for its own result.

`GroupCommit` queues the requests in a `Batcher` (batcher.py). If the connection to the database ends during COMMIT, it is unknown
whether the batch is stored (CommitUncertain). The group commit then repeats the batch if it has the function `apply_again`, which
recognises items that are already stored. See docs/decisions/0034.
"""
# Tested by tests/storage/test_batcher.py

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy import Connection

from shortener.errors import CommitUncertain, StoreUnavailable
from shortener.storage.batcher import Batcher
from shortener.storage.database import Database, after_commit

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")

MAX_CLASHES = 5  # The maximum number of attempts to write a batch that a unique index rejects.
MIN_ITEMS = 8  # If at least this number of requests wait, at least this number are written together.
#: If it is unknown whether a batch is stored, the batch is repeated for this time. The time is shorter than the usual time limits
#: of callers, and shorter than the time limit of a stop.
UNCERTAIN_SECONDS = 5.0

#: The result of each item of a batch, and a value for the whole batch.
Applied = tuple[Sequence[Result | Exception], Value]
#: A function that writes the items of a batch in a transaction.
Apply = Callable[[Connection, Sequence[Item]], Applied[Result, Value]]


class _Request(Generic[Item, Result]):
    """An item whose request waits for the result.

    If it is unknown whether the item is stored, `uncertain_until` is a time on the clock of the event loop. At this time, the
    request fails with CommitUncertain."""

    __slots__ = ("future", "item", "uncertain_until")

    def __init__(self, item: Item, future: asyncio.Future[Result]) -> None:
        self.item = item
        self.future = future
        self.uncertain_until: float | None = None


class GroupCommit(Generic[Item, Result, Value]):
    """A batcher that writes many requests in one transaction. Each request waits for its own result.

    `apply(connection, items)` returns one result for each item, and a value for the batch. If a result is an exception, only the
    request with that item fails. If a unique index rejects the batch (a clash of codes, or a race with another process), `apply`
    runs again. If the batch still fails, `apply` runs for each item alone. After a batch is committed, `after(value)` is called
    with the value of the batch, and then its requests get their results.

    A batch has at most `max_items`. If more than `max_waiting` requests wait, `submit` raises StoreUnavailable at once. `is_bulk`
    and `rows_of` have the same meaning as in `Batcher`.

    `apply_again` does the same as `apply` for items that may already be stored, and must not store them twice. If it is given,
    and it is unknown whether a batch is stored, the batch is repeated with `apply_again` for UNCERTAIN_SECONDS."""

    def __init__(
        self,
        database: Database,
        apply: Apply[Item, Result, Value],
        *,
        apply_again: Apply[Item, Result, Value] | None = None,
        max_items: int = 256,
        max_waiting: int = 10_000,
        after: Callable[[Value], None] = lambda value: None,
        is_bulk: bool = False,
        rows_of: Callable[[Item], int] | None = None,
    ) -> None:
        handler = _RequestHandler(apply, apply_again, after)
        self._max_waiting = max_waiting
        self._batcher: Batcher[_Request[Item, Result], Applied[Result, Value]] = Batcher(
            database,
            handler,
            min_items=MIN_ITEMS,
            max_items=max_items,
            max_clashes=MAX_CLASHES,
            is_bulk=is_bulk,
            rows_of=None if rows_of is None else lambda request: rows_of(request.item),
        )

    async def submit(self, item: Item) -> Result:
        """Return the result of the item after its transaction is committed.

        Raise the exception that `apply` returned for the item. Raise StoreUnavailable if the item is not stored, and
        CommitUncertain if it is unknown whether it is stored."""
        if self._batcher.waiting >= self._max_waiting:
            raise StoreUnavailable("too many requests wait for the database")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._batcher.put(_Request(item, future))
        return await future

    async def flush(self) -> None:
        """Wait until no request is in the queue and no batch is in flight."""
        await self._batcher.flush()


class _RequestHandler(Generic[Item, Result, Value]):
    """The batch handler of a group commit: it passes a result or an exception to each request of a batch."""

    def __init__(
        self,
        apply: Apply[Item, Result, Value],
        apply_again: Apply[Item, Result, Value] | None,
        after: Callable[[Value], None],
    ) -> None:
        self._apply = apply
        self._apply_again = apply_again
        self._after = after

    def apply(self, connection: Connection, items: Sequence[_Request[Item, Result]], is_uncertain: bool) -> Applied[Result, Value]:
        apply = self._apply_again if is_uncertain and self._apply_again is not None else self._apply
        return apply(connection, [request.item for request in items])

    def committed(self, items: Sequence[_Request[Item, Result]], result: Applied[Result, Value]) -> None:
        results, value = result
        with after_commit():
            self._after(value)
        for request, own_result in zip(items, results, strict=True):
            if isinstance(own_result, Exception):
                _fail(request.future, own_result)
            elif not request.future.done():
                request.future.set_result(own_result)

    async def unavailable(
        self, items: Sequence[_Request[Item, Result]], error: StoreUnavailable
    ) -> Sequence[_Request[Item, Result]]:
        loop = asyncio.get_running_loop()
        now, repeated = loop.time(), []
        for request in items:
            if request.uncertain_until is None and isinstance(error, CommitUncertain):
                request.uncertain_until = now + UNCERTAIN_SECONDS
                # After UNCERTAIN_SECONDS, the caller gets this error even if an attempt is still running.
                loop.call_later(UNCERTAIN_SECONDS, _fail, request.future, CommitUncertain(str(error)))
            if request.uncertain_until is None:
                _fail(request.future, StoreUnavailable(str(error)))
            elif self._apply_again is None or now >= request.uncertain_until:
                _fail(request.future, CommitUncertain(str(error)))
            else:
                repeated.append(request)
        return repeated

    async def rejected(
        self, failures: Sequence[tuple[_Request[Item, Result], Exception]], stored: int
    ) -> Sequence[_Request[Item, Result]]:
        for request, error in failures:
            _fail(request.future, error if request.uncertain_until is None else CommitUncertain(str(error)))
        return []


def _fail(future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
