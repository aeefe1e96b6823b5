"""This module counts the processes that send deliveries, and divides the concurrency of each tracker among them.

Each process regularly writes a heartbeat (the current time) to its row of the table `delivery_processes`, in the transaction of a
dispatch cycle. A process without a heartbeat for `MAX_SILENCE_MS` milliseconds is not counted. Each process sorts the counted
processes by their random ids and computes its own share from its position.

The shares of all processes add up to the concurrency of the tracker. If the concurrency is smaller than the number of processes,
some processes have no share and send nothing to the tracker. After a process has started or ended, the other processes may use a
wrong number of processes for up to `MAX_SILENCE_MS` milliseconds.

With SQLite there is only one process. Its row is used only to detect that the clock was set back while the process was not running
(clock_steps.py).
"""

from __future__ import annotations

import random
import zlib

from sqlalchemy import Connection, delete, select

from shortener.model import record
from shortener.storage.database import upsert
from shortener.storage.schema import delivery_processes
from shortener.storage.types import from_ms, to_ms

#: The time between two heartbeats of a process, by database engine. The time is longer for SQLite: each write must be synchronised
#: to the disk, and only one process exists.
INTERVAL_MS = {"sqlite": 30_000, "postgresql": 1000}
MAX_SILENCE_MS = 5000
#: The row of a process is deleted if its last heartbeat is older than this.
MAX_AGE_MS = 600_000
#: If a stored heartbeat is further in the future than this, the clock was set back after it was written.
MAX_AHEAD_MS = 5000


@record
class ProcessShare:
    """The position `place` (from 0) of a process among the `count` processes that send deliveries."""

    place: int = 0
    count: int = 1

    def of(self, concurrency: int, queue: str) -> int:
        """Return this process's share of the `concurrency` attempts that all processes may have in flight for a queue."""
        part, rest = divmod(concurrency, self.count)
        # The checksum of the queue name selects the processes that get one attempt more. Therefore different queues select
        # different processes.
        return part + ((self.place + zlib.crc32(queue.encode())) % self.count < rest)


@record
class Heartbeat:
    """A heartbeat that a process wrote at the time `at`, and the share of the process, computed in the same transaction.

    `clock_was_set_back` is true if the database contains a heartbeat whose time is later than `at`."""

    at: int
    share: ProcessShare
    clock_was_set_back: bool


class DeliveryProcesses:
    """The row of this process in the table `delivery_processes`, and its share, which is computed from the rows of all processes.

    If `count` is not None, it is the number of processes, and the heartbeats are not counted."""

    def __init__(self, rng: random.Random, count: int | None = None) -> None:
        self._id = rng.getrandbits(62)
        self._count = count
        self._at: int | None = None
        self.share = ProcessShare()
        self.may_have_row = False  # true after a heartbeat was written, even if its transaction may not have been committed

    def write(self, connection: Connection, now: int) -> Heartbeat | None:
        """Write a heartbeat as a part of the caller's transaction and count the processes. Return None if no heartbeat is due.

        `now` is in milliseconds since 1970."""
        if self._at is not None and 0 <= now - self._at < INTERVAL_MS[connection.dialect.name]:
            return None
        columns = delivery_processes.c
        seen = {row.id: to_ms(row.seen_at) for row in connection.execute(select(columns.id, columns.seen_at))}
        latest = max([*seen.values(), self._at or 0])
        row = {"id": self._id, "seen_at": from_ms(now)}
        self.may_have_row = True
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
        return Heartbeat(now, share, latest > now + MAX_AHEAD_MS)

    def committed(self, heartbeat: Heartbeat) -> None:
        """Store the time of the heartbeat and the share of this process after the transaction was committed."""
        self._at, self.share = heartbeat.at, heartbeat.share

    def remove(self, connection: Connection) -> None:
        """Delete the row of this process from `delivery_processes`. Call this before the process ends."""
        connection.execute(delete(delivery_processes).where(delivery_processes.c.id == self._id))


def is_running(connection: Connection, now: int) -> bool:
    """Return whether a process of the installation sends deliveries. `now` is in milliseconds since 1970.

    After a process was killed, the result may stay true for the interval between two heartbeats plus MAX_SILENCE_MS."""
    oldest = now - INTERVAL_MS[connection.dialect.name] - MAX_SILENCE_MS
    statement = select(delivery_processes.c.id).where(delivery_processes.c.seen_at >= from_ms(oldest)).limit(1)
    return connection.execute(statement).first() is not None
