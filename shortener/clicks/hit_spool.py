"""The spool: a Redis stream that holds hits while the database does not accept them.

A hit is in the stream when Redis has acknowledged it: as durable as Redis's own persistence makes it. `spool_drainer` writes the
entries to the database later. An entry is deleted only after the commit that holds its hit.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import orjson

from shortener.clicks.resolver import Hit
from shortener.metrics import Metrics
from shortener.model import Verdict
from shortener.redis.client import Client, RedisServer, RedisUnavailable

LEASE = 5000  # ms; a lease that runs out while its holder still writes costs order, nothing else
_FIELD = b"h"
_NAMES = frozenset(field.name for field in dataclasses.fields(Hit))


class SpoolState(NamedTuple):
    """What is in the stream: how many hits, the ids of its first and last entry."""

    depth: int
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)


class HitSpool:
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

    def register_metrics(self, metrics: Metrics) -> None:
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
            await self._redis.run(ask, force=True)
        except RedisUnavailable:
            return False
        self.depth += len(hits)
        return True

    async def look(self) -> SpoolState:
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
        return SpoolState(depth, _number(first[0][0]), _number(last[0][0])) if first and last else SpoolState(0)

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

        return [(entry, _hit(fields)) for entry, fields in await self._redis.run(ask, force=True)]

    async def delete(self, entries: Sequence[bytes]) -> None:
        """Raises RedisUnavailable."""

        async def ask(client: Client) -> None:
            await client.xdel(self._stream, *entries)

        await self._redis.run(ask, force=True)
        self.depth = max(self.depth - len(entries), 0)

    def _age(self) -> float:
        return 0.0 if self.oldest_at is None else max(self._now_ms() - self.oldest_at, 0) / 1000


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
