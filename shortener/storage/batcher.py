"""Batching: items that arrive while a transaction runs are written together in the next transaction.

`Batcher` queues items and writes them in batches. `GroupCommit` (group_commit.py) uses it for requests that wait for their own
result.

At most two batches are in flight. Each has a state:

    OPEN ──(its transaction begins)──> TAKEN ──> COMMITTED
      └──(the database refused)───────> TAKEN ──> FAILED

A batch takes its items only when its transaction begins, or when the database refuses the transaction. On SQLite, the second batch
waits for the writer thread, and can still take items that arrive during this time. Therefore the writer never waits for the event
loop. On PostgreSQL, the second batch has its own connection. So two items that arrive within milliseconds may be committed in the
reverse order.

A batch takes at most two thirds of this sum: the number of waiting items plus the number of items in the previous batch. If one
batch took all waiting items, the database and the event loop would alternate, and each would wait for the other.

The batcher passes the result of a transaction to the handler and keeps no copy. If an attempt fails before its transaction has
begun, this counts as StoreUnavailable, whatever the exception is. No failure stops the batcher.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from itertools import accumulate, islice
from typing import Generic, Protocol, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shortener.errors import StoreUnavailable
from shortener.storage.database import Database
from shortener.storage.outage_log import outage_log

log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_IN_FLIGHT = 2  # The maximum number of batches in flight.
#: The maximum number of rows of a batch on SQLite, if `rows_of` is given. An item with more rows is written alone. Clicks wait
#: until a transaction ends, and a transaction with 200 rows of messages and links takes about 6 ms of processor time.
MAX_ROWS = 256
# The items of a rejected batch are written one by one. If this number of them fail and none succeeds, all items of the batch
# count as rejected.
MAX_PROBES = 8
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.05, 1.0  # The shortest and the longest pause before a batch is retried.


class BatchState(Enum):
    OPEN = "open"  # The batch has no items yet. It takes them when its transaction begins.
    TAKEN = "taken"  # The batch has its items. Its transaction runs or is retried.
    COMMITTED = "committed"
    FAILED = "failed"  # The transaction failed, and the handler returned no items to retry.


class RetryTransaction(Exception):
    """Raised by `BatchHandler.apply`, to roll the transaction back and run it again at once."""


class Batch(Generic[Item]):
    """The items that one transaction writes. Only the task of this batch and its transaction change the object."""

    __slots__ = ("has_begun", "is_uncertain", "items", "state")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.state = BatchState.OPEN
        self.has_begun = False  # Whether the transaction of the current attempt has begun.
        self.is_uncertain = False  # Whether an earlier attempt raised StoreUnavailable although it may have been committed.


class BatchHandler(Protocol[Item, Result]):
    """The functions that a `Batcher` calls for each batch. `apply` may run in another thread. The others run on the event
    loop."""

    def apply(self, connection: Connection, items: Sequence[Item], is_uncertain: bool) -> Result:
        """Write one or more items in the transaction. `is_uncertain` is true if an earlier attempt may have stored some of
        them."""
        ...

    def committed(self, items: Sequence[Item], result: Result) -> None:
        """Handle the result of `apply` after its transaction is committed."""
        ...

    async def unavailable(self, items: Sequence[Item], error: StoreUnavailable) -> Sequence[Item]:
        """Handle items that were not written because the database was unavailable. Return the items that must be tried again
        after a pause."""
        ...

    async def rejected(self, failures: Sequence[tuple[Item, Exception]], stored: int) -> Sequence[Item]:
        """Handle items that failed although each was written alone. Return the items that must be tried again after a pause.
        `stored` is the number of the other items of the batch, which were committed.

        If MAX_PROBES items failed alone and none was stored, `failures` contains the whole batch (see `gives_up_early`)."""
        ...


class Batcher(Generic[Item, Result]):
    """A queue of items that are written in batches, each in one transaction.

    A batch has at most `max_items` items. If at least `min_items` items wait, it has at least this number. If a unique index
    rejects a batch `max_clashes` times, its items are written one by one. If `gives_up_early` is true, this ends after MAX_PROBES
    failures without a success. If `is_bulk` is true, the batches are written with `Database.write_later`.

    `rows_of` returns the approximate number of rows of an item. If it is given, a batch on SQLite has at most MAX_ROWS rows, and
    an item with more rows is written alone."""

    def __init__(
        self,
        database: Database,
        handler: BatchHandler[Item, Result],
        *,
        min_items: int,
        max_items: int,
        max_clashes: int = 1,
        gives_up_early: bool = False,
        is_bulk: bool = False,
        rows_of: Callable[[Item], int] | None = None,
    ) -> None:
        self._database = database
        self._is_bulk = is_bulk
        self._rows_of = rows_of if rows_of is not None and database.dialect == "sqlite" else None
        self._handler = handler
        self._min_items = min_items
        self._max_items = max_items
        self._max_clashes = max_clashes
        self._gives_up_early = gives_up_early
        self._waiting: deque[Item] = deque()
        self._batches: list[Batch[Item]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: Batch[Item] | None = None  # The batch that has not taken its items yet, or None.
        self._last_size = 0  # The number of items in the previous batch.
        # Each batch takes its items in the thread of its transaction, so a lock protects the queue of items.
        self._taking = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_paused = False
        self._became_idle = asyncio.Event()

    @property
    def waiting(self) -> int:
        """The number of queued items that no batch has taken yet."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """The number of batches in flight."""
        return len(self._batches)

    def __len__(self) -> int:
        return sum((len(batch.items) for batch in self._batches), len(self._waiting))

    def pause(self) -> None:
        """Begin no new batch until `resume` is called."""
        self._is_paused = True

    def resume(self) -> None:
        """Begin batches again after `pause`."""
        self._is_paused = False
        self._begin()

    def put(self, item: Item) -> None:
        """Add one item to the queue."""
        self._waiting.append(item)
        if self._open is None:
            self._begin()

    def put_all(self, items: Iterable[Item]) -> None:
        """Add several items to the queue."""
        self._waiting.extend(items)
        self._begin()

    def taken_items(self) -> list[Item]:
        """Return the items of all batches in flight."""
        with self._taking:
            return [item for batch in self._batches for item in batch.items]

    def withdraw(self, matches: Callable[[Item], bool]) -> list[Item]:
        """Remove the matching items from the queue, and return them in order. Items that a batch has taken are not removed."""
        with self._taking:
            withdrawn = [item for item in self._waiting if matches(item)]
            self._waiting = deque(item for item in self._waiting if not matches(item))
        return withdrawn

    async def flush(self) -> None:
        """Wait until no item is in the queue and no batch is in flight."""
        while self._waiting or self._batches:
            self._became_idle.clear()
            await self._became_idle.wait()

    async def stop(self) -> None:
        """Cancel the batches in flight, and begin no more batches. Items that are not committed stay in memory."""
        self._is_paused = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self) -> None:
        """Begin a batch if three things are true: items wait, no open batch will take them, and fewer than MAX_IN_FLIGHT batches
        are in flight."""
        if self._waiting and self._open is None and len(self._batches) < MAX_IN_FLIGHT and not self._is_paused:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._open = batch = Batch[Item]()
            self._batches.append(batch)
            task = self._loop.create_task(self._process(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self, batch: Batch[Item]) -> None:
        """Move waiting items into the open batch. This method runs in the thread of the batch's transaction."""
        with self._taking:
            self._open = None
            batch.state = BatchState.TAKEN
            available = len(self._waiting)
            size = min(max((available + self._last_size) * 2 // 3, self._min_items), self._max_items, available)
            if self._rows_of is not None and size:
                size = _count_within(map(self._rows_of, islice(self._waiting, size)), MAX_ROWS)
            batch.items.extend(self._waiting.popleft() for _ in range(size))
            self._last_size = size
            if self._waiting and self._loop is not None:
                self._loop.call_soon_threadsafe(self._begin)

    async def _process(self, batch: Batch[Item]) -> None:
        try:
            await self._write_until_done(batch)
        except Exception:  # If the handler raises an error, the items of this batch are lost. Later batches continue.
            batch.state = BatchState.FAILED
            log.exception("batch_handler_failed", items=len(batch.items))
        finally:
            self._batches = [other for other in self._batches if other is not batch]
            if self._open is batch:  # The task was cancelled before the transaction began, so the batch has no items.
                self._open = None
        self._begin()
        if not self._waiting and not self._batches:
            self._became_idle.set()

    async def _write_until_done(self, batch: Batch[Item]) -> None:
        """Write a batch. Repeat this with the items that the handler returned for another attempt, until none is left."""
        pause = FIRST_RETRY_SECONDS
        while True:
            try:
                result = await self._write(batch, batch.items)
            except StoreUnavailable as error:
                batch.items = list(await self._handler.unavailable(batch.items, error))
            except Exception as error:
                batch.items = list(await self._isolate(batch, error))
            else:
                batch.state = BatchState.COMMITTED
                if result is not None:
                    self._handler.committed(batch.items, result)
                return
            if not batch.items:
                batch.state = BatchState.FAILED
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_RETRY_SECONDS)

    async def _isolate(self, batch: Batch[Item], error: Exception) -> Sequence[Item]:
        """Write each item of a rejected batch in its own transaction. Return the items that must be tried again."""
        items = batch.items
        if len(items) == 1:
            return await self._handler.rejected([(items[0], error)], 0)
        failures: list[tuple[Item, Exception]] = []
        stored = 0
        for index, item in enumerate(items):
            try:
                result = await self._write(batch, [item])
            except StoreUnavailable as unavailable:
                rest = [*(failed for failed, _ in failures), *items[index:]]
                return await self._handler.unavailable(rest, unavailable)
            except Exception as own_error:
                failures.append((item, own_error))
                if self._gives_up_early and not stored and len(failures) >= MAX_PROBES:
                    # The items that failed alone come last in the list, so that the next attempt begins with other items.
                    return await self._handler.rejected([*((rest, own_error) for rest in items[index + 1 :]), *failures], 0)
            else:
                stored += 1
                if result is not None:
                    self._handler.committed([item], result)
        return await self._handler.rejected(failures, stored) if failures else []

    async def _write(self, batch: Batch[Item], items: list[Item]) -> Result | None:
        """Write a batch in one transaction.

        Return None if the batch has no items. Raise the exceptions of the database and the handler."""
        clashes_left = self._max_clashes
        while True:
            batch.has_begun = False
            try:
                write = self._database.write_later if self._is_bulk else self._database.write
                return await write(self._transact, batch, items)
            except RetryTransaction:
                continue
            except StoreUnavailable:
                if batch.state is BatchState.OPEN:
                    self._take(batch)
                batch.is_uncertain = True
                raise
            except Exception as error:
                if not batch.has_begun:  # The transaction did not begin, for example because the server refused the connection.
                    if batch.state is BatchState.OPEN:
                        self._take(batch)
                    outage_log.warn(error)
                    raise StoreUnavailable(str(error)) from error
                clashes_left -= isinstance(error, IntegrityError)
                if not isinstance(error, IntegrityError) or clashes_left == 0:
                    raise

    def _transact(self, connection: Connection, batch: Batch[Item], items: list[Item]) -> Result | None:
        batch.has_begun = True
        if batch.state is BatchState.OPEN:
            self._take(batch)
        return self._handler.apply(connection, items, batch.is_uncertain) if items else None


def _count_within(rows: Iterable[int], limit: int) -> int:
    """Return how many numbers, from the first on, can be added before their sum exceeds `limit`. Return at least 1."""
    return max(sum(total <= limit for total in accumulate(rows)), 1)
