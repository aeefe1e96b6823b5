"""The spool: a Redis stream that holds hits while the database does not take them, and the drainer that writes them later.

A hit is in the stream when Redis has acknowledged it: as durable as Redis's own persistence makes it. An entry is deleted only
after the commit that holds its hit, and a hit that is stored already is left out (its id is its key), so a hit that was spooled
twice, or drained by a process that was killed before it could delete, counts once.

One process drains at a time, under a lease: it takes many entries at once and writes them in the order of their times, so that of
several first clicks in the stream the earliest wins. Against a click that the database took meanwhile there is no order to restore:
what was committed first, and perhaps told to a tracker, stays the first click. So that this is rare, a node goes on spooling until
everything is drained that it found in the stream when the database was back, for at most `CATCH_UP` seconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import orjson
import structlog
from sqlalchemy import Connection, text

from shortener.click.landing import Hit
from shortener.click.recorder import BATCH, Recorder
from shortener.errors import StoreUnavailable
from shortener.metrics import Metrics
from shortener.model import Verdict
from shortener.store.database import Database
from shortener.store.redis import Client, RedisServer, RedisUnavailable

log = structlog.get_logger(__name__)

WINDOW = 5000  # entries that are taken and put in order at once
LEASE = 5000  # ms; a lease that runs out while its holder still writes costs order, nothing else
CATCH_UP = 10.0  # seconds
PATIENCE = 2.0  # seconds for the database to answer whether it is back
_FIELD = b"h"
_NAMES = frozenset(field.name for field in dataclasses.fields(Hit))


class Backlog(NamedTuple):
    """What is in the stream: how many hits, the ids of its first and last entry."""

    depth: int
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)


class Spool:
    """`limit`: most hits that it holds, as far as this process can see. `depth`, `oldest_at`: as of the last look."""

    def __init__(self, redis: RedisServer, prefix: str, *, limit: int, now_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._stream = prefix + "spool:hits"
        self._lease = prefix + "spool:lease"
        self._me = secrets.token_hex(8).encode()
        self._limit = limit
        self._now_ms = now_ms
        self.depth = 0
        self.oldest_at: int | None = None  # ms since 1970

    def offer(self, metrics: Metrics) -> None:
        """Show how full it is on /metrics."""
        metrics.gauge("shortener_spool_depth", "Hits in the Redis stream, as of the last look.", lambda: self.depth)
        metrics.gauge("shortener_spool_age_seconds", "Age of the oldest hit in the Redis stream.", self._age)

    async def add(self, hits: Sequence[Hit]) -> bool:
        """True when Redis has acknowledged all of them; False: not all of them, or it is full."""
        if self.depth + len(hits) > self._limit:
            return False

        async def ask(client: Client) -> None:
            pipe = client.pipeline(transaction=False)
            for hit in hits:
                pipe.xadd(self._stream, {_FIELD: orjson.dumps(hit)})
            await pipe.execute()

        try:
            await self._redis.run(ask, insist=True)
        except RedisUnavailable:
            return False
        self.depth += len(hits)
        return True

    async def look(self) -> Backlog:
        """Raises RedisUnavailable."""

        async def ask(client: Client) -> tuple[int, list[tuple[bytes, object]], list[tuple[bytes, object]]]:
            return (
                await client.xlen(self._stream),
                await client.xrange(self._stream, count=1),
                await client.xrevrange(self._stream, count=1),
            )

        depth, first, last = await self._redis.run(ask)
        self.depth = depth
        self.oldest_at = _number(first[0][0])[0] if first else None
        return Backlog(depth, _number(first[0][0]), _number(last[0][0])) if first and last else Backlog(0)

    async def take_lease(self) -> bool:
        """Whether this process is the one that drains, for the next LEASE milliseconds. Raises RedisUnavailable."""

        async def ask(client: Client) -> bool:
            if await client.set(self._lease, self._me, nx=True, px=LEASE):
                return True
            if await client.get(self._lease) != self._me:
                return False
            await client.pexpire(self._lease, LEASE)
            return True

        return await self._redis.run(ask)

    async def read(self, count: int) -> list[tuple[bytes, Hit | None]]:
        """The oldest entries, by id; None for one that is not a hit. Raises RedisUnavailable."""

        async def ask(client: Client) -> list[tuple[bytes, dict[bytes, bytes]]]:
            entries: list[tuple[bytes, dict[bytes, bytes]]] = await client.xrange(self._stream, count=count)
            return entries

        return [(entry, _hit(fields)) for entry, fields in await self._redis.run(ask, insist=True)]

    async def delete(self, entries: Sequence[bytes]) -> None:
        """Raises RedisUnavailable."""

        async def ask(client: Client) -> None:
            await client.xdel(self._stream, *entries)

        await self._redis.run(ask, insist=True)
        self.depth = max(self.depth - len(entries), 0)

    def _age(self) -> float:
        return 0.0 if self.oldest_at is None else max(self._now_ms() - self.oldest_at, 0) / 1000


class Drainer:
    """Writes what is in the spool, and tells the recorder when the database is back."""

    def __init__(self, spool: Spool, recorder: Recorder, database: Database) -> None:
        self._spool = spool
        self._recorder = recorder
        self._database = database
        self._back: tuple[float, tuple[int, int]] | None = None  # since when, and the last entry that was there then

    async def step(self) -> int:
        """One window; returns the number of its entries. Raises StoreUnavailable: then what is not written stays in the stream."""
        try:
            backlog = await self._spool.look()
            drained = await self._drain() if backlog.depth and await self._spool.take_lease() else 0
            if drained:
                backlog = await self._spool.look()
        except RedisUnavailable:
            drained, backlog = 0, Backlog(0)
        except StoreUnavailable:
            self._back = None
            raise
        if self._recorder.outage:
            await self._end_outage(backlog)
        return drained

    async def _drain(self) -> int:
        entries = await self._spool.read(WINDOW)
        unreadable = [entry for entry, hit in entries if hit is None]
        if unreadable:
            log.error("spooled_hits_unreadable", entries=len(unreadable))
            self._recorder.totals.dropped += len(unreadable)
            await self._spool.delete(unreadable)
        hits = sorted(((hit.at, hit.id, entry, hit) for entry, hit in entries if hit is not None), key=lambda one: one[:2])
        for start in range(0, len(hits), BATCH):
            piece = hits[start : start + BATCH]
            await self._recorder.write_late([hit for *_, hit in piece])
            await self._spool.delete([entry for _, _, entry, _ in piece])
        return len(entries)

    async def _end_outage(self, backlog: Backlog) -> None:
        now = asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(self._database.write(_ask), PATIENCE)
        except (StoreUnavailable, TimeoutError) as error:
            self._back = None
            raise StoreUnavailable(str(error)) from error
        if self._back is None:
            self._back = (now, backlog.last)
        since, last = self._back
        if not backlog.depth or backlog.first > last or now - since > CATCH_UP:
            self._back = None
            self._recorder.end_outage()


def _ask(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))


def _number(entry: bytes) -> tuple[int, int]:
    """The id of an entry, such as 1795230298905-0, so that ids compare."""
    milliseconds, _, sequence = entry.partition(b"-")
    return int(milliseconds), int(sequence)


def _hit(fields: dict[bytes, bytes]) -> Hit | None:
    try:
        values = orjson.loads(fields[_FIELD])
        known = {name: value for name, value in values.items() if name in _NAMES}
        return Hit(**known | {"verdict": Verdict(values["verdict"])})
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
