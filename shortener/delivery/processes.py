"""The processes that deliver from one database, counted by their signs of life, and the part of each in a tracker's concurrency.

Every process writes its row of `delivery_processes` regularly, in the transaction of a dispatch cycle. A process without a sign of
life for `MAX_SILENCE_MS` does not count. The processes are sorted by their random ids, so each knows its place without agreement.

The parts of all processes add up to the concurrency of a tracker. If it is smaller than the number of processes, some have no part,
and others deliver for them. While a process starts or ends, the processes can disagree for up to `MAX_SILENCE_MS`.

With SQLite there is one process. Its row only shows whether the clock was set back while it did not run (clock_steps.py).
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from shortener.storage.database import upsert
from shortener.storage.schema import delivery_processes
from shortener.storage.types import from_ms, to_ms

#: Time between two signs of life. SQLite has one process, and each write costs a synchronisation of the disk.
INTERVAL_MS = {"sqlite": 30_000, "postgresql": 1000}
MAX_SILENCE_MS = 5000
#: Rows of processes that have been silent for this long are deleted.
MAX_AGE_MS = 600_000
#: A time that is further ahead than this was written by a clock that has been set back since.
MAX_AHEAD_MS = 5000


@dataclass(frozen=True, slots=True)
class ProcessShare:
    """The place of a process, from 0, among `count` processes."""

    place: int = 0
    count: int = 1

    def of(self, concurrency: int, queue: str) -> int:
        """Return the part of a queue's concurrency that this process may use."""
        part, rest = divmod(concurrency, self.count)
        # The name of the queue decides who gets the rest, so that no process gets it for every queue.
        return part + ((self.place + zlib.crc32(queue.encode())) % self.count < rest)


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """The result of a sign of life. `clock_was_set_back`: a process wrote a later time than the current one."""

    at: int
    share: ProcessShare
    clock_was_set_back: bool


class DeliveryProcesses:
    """This process among the processes that deliver. `count` replaces the number of processes if it is set."""

    def __init__(self, rng: random.Random, count: int | None = None) -> None:
        self._id = rng.getrandbits(62)
        self._count = count
        self._at: int | None = None
        self.share = ProcessShare()

    def write(self, connection: Connection, now: int) -> SignOfLife | None:
        """Write a sign of life as a part of the caller's transaction; None if none is due. `now`: milliseconds since 1970."""
        if self._at is not None and 0 <= now - self._at < INTERVAL_MS[connection.dialect.name]:
            return None
        columns = delivery_processes.c
        seen = {row.id: to_ms(row.seen_at) for row in connection.execute(select(columns.id, columns.seen_at))}
        latest = max([*seen.values(), self._at or 0])
        row = {"id": self._id, "seen_at": from_ms(now)}
        connection.execute(
            upsert(connection, delivery_processes).values(row).on_conflict_do_update(index_elements=["id"], set_=row)
        )
        others = columns.id != self._id
        connection.execute(delete(delivery_processes).where(others, columns.seen_at < from_ms(now - MAX_AGE_MS)))
        connection.execute(delete(delivery_processes).where(others, columns.seen_at > from_ms(now + MAX_AHEAD_MS)))
        if connection.dialect.name == "sqlite":
            alive = [self._id]
        else:
            alive = sorted({self._id, *(one for one, at in seen.items() if abs(now - at) <= MAX_SILENCE_MS)})
        share = ProcessShare(alive.index(self._id), len(alive))
        if self._count is not None:
            share = ProcessShare(share.place % self._count, self._count)
        return SignOfLife(now, share, latest > now + MAX_AHEAD_MS)

    def committed(self, sign: SignOfLife) -> None:
        """Use the result after the transaction is committed."""
        self._at, self.share = sign.at, sign.share

    def remove(self, connection: Connection) -> None:
        """Delete the row of this process, because it ends."""
        connection.execute(delete(delivery_processes).where(delivery_processes.c.id == self._id))
