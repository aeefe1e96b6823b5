"""The spool: a Redis stream that holds hits while the database does not take them.

A hit is in the stream once Redis acknowledged it. It is as durable there as Redis's own persistence makes it. `spool_drainer`
writes the entries to the database later, and deletes an entry only after the commit of its hit. A second stream, `spool:dead`,
holds dead letters until their table takes them (`dead_letters.py`).

An entry contains the fields of `Hit` without `origin`: nothing about a full address is stored.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import orjson

from shortener.clicks.dead_letters import DeadLetter, from_entry
from shortener.clicks.resolver import Hit
from shortener.metrics import Metrics
from shortener.model import Verdict
from shortener.redis.client import Client, RedisServer, RedisUnavailable

LEASE_MS = 5000  # if the lease ends while its holder still writes, hits may be written out of order, and nothing else
MAX_DEAD_LETTERS = 100_000  # hits; above it Redis removes the oldest
_FIELD, _REASON = b"h", b"r"
_NAMES = tuple(field.name for field in dataclasses.fields(Hit) if field.name != "origin")


class SpoolState(NamedTuple):
    """The content of the stream: the number of hits, and the ids of the first and the last entry."""

    depth: int
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)


class HitSpool:
    """`limit`: maximum number of hits in the stream, by the last `depth` that this process knows.

    `depth`, `oldest_at`: the state of the stream when it was last looked at.
    """

    def __init__(self, redis: RedisServer, prefix: str, *, limit: int, now_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._stream = prefix + "spool:hits"
        self._dead = prefix + "spool:dead"
        self._lease = prefix + "spool:lease"
        self._own_id = secrets.token_hex(8).encode()
        self._limit = limit
        self._now_ms = now_ms
        self.depth = 0
        self.oldest_at: int | None = None  # ms since 1970

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the state of the stream on /metrics."""
        metrics.gauge("shortener_spool_depth", "Hits in the Redis stream, as of the last look.", lambda: self.depth)
        metrics.gauge("shortener_spool_age_seconds", "Age of the oldest hit in the Redis stream.", self._age)

    async def add(self, hits: Sequence[Hit]) -> bool:
        """Return True once Redis acknowledged all hits, False if it may have taken only some of them or the spool is full."""
        if self.depth + len(hits) > self._limit:
            return False
        entries = [orjson.dumps(_fields(hit)) for hit in hits]

        async def command(client: Client) -> None:
            pipe = client.pipeline(transaction=False)
            for entry in entries:
                pipe.xadd(self._stream, {_FIELD: entry})
            await pipe.execute()

        try:
            await self._redis.run(command, force=True)
        except RedisUnavailable:
            return False
        self.depth += len(hits)
        return True

    async def add_dead_letters(self, letters: Sequence[DeadLetter]) -> bool:
        """Keep dead letters until the database takes them. Return whether Redis acknowledged all of them."""

        async def command(client: Client) -> None:
            pipe = client.pipeline(transaction=False)
            for letter in letters:
                pipe.xadd(self._dead, {_FIELD: letter.hit, _REASON: letter.reason}, maxlen=MAX_DEAD_LETTERS, approximate=True)
            await pipe.execute()

        try:
            await self._redis.run(command, force=True)
        except RedisUnavailable:
            return False
        return True

    async def read_dead_letters(self, count: int) -> list[tuple[bytes, DeadLetter]]:
        """Return the oldest dead letters by id. Raises RedisUnavailable."""

        async def command(client: Client) -> list[tuple[bytes, dict[bytes, bytes]]]:
            entries: list[tuple[bytes, dict[bytes, bytes]]] = await client.xrange(self._dead, count=count)
            return entries

        return [
            (entry, from_entry(fields.get(_FIELD, b""), fields.get(_REASON, b"").decode(errors="replace") or "rejected"))
            for entry, fields in await self._redis.run(command)
        ]

    async def delete_dead_letters(self, entries: Sequence[bytes]) -> None:
        """Delete dead letters by id. Raises RedisUnavailable."""

        async def command(client: Client) -> None:
            await client.xdel(self._dead, *entries)

        await self._redis.run(command, force=True)

    async def look(self) -> SpoolState:
        """Return the current state of the stream. Raises RedisUnavailable."""

        async def command(client: Client) -> tuple[int, list[tuple[bytes, object]], list[tuple[bytes, object]]]:
            return (
                await client.xlen(self._stream),
                await client.xrange(self._stream, count=1),
                await client.xrevrange(self._stream, count=1),
            )

        depth, first, last = await self._redis.run(command)
        self.depth = depth
        self.oldest_at = _parse_id(first[0][0])[0] if first else None
        return SpoolState(depth, _parse_id(first[0][0]), _parse_id(last[0][0])) if first and last else SpoolState(0)

    async def take_lease(self) -> bool:
        """Return whether this process may drain the spool for the next LEASE_MS. Raises RedisUnavailable."""

        async def command(client: Client) -> bool:
            if await client.set(self._lease, self._own_id, nx=True, px=LEASE_MS):
                return True
            # A lease that lasts longer than LEASE_MS is from before a step of Redis's clock.
            if await client.get(self._lease) != self._own_id and await client.pttl(self._lease) <= LEASE_MS:
                return False
            await client.set(self._lease, self._own_id, px=LEASE_MS)
            return True

        return await self._redis.run(command)

    async def read(self, count: int) -> list[tuple[bytes, Hit | DeadLetter]]:
        """Return the oldest entries by id, with a dead letter for an entry that is not a hit. Raises RedisUnavailable."""

        async def command(client: Client) -> list[tuple[bytes, dict[bytes, bytes]]]:
            entries: list[tuple[bytes, dict[bytes, bytes]]] = await client.xrange(self._stream, count=count)
            return entries

        entries = await self._redis.run(command, force=True)
        return [(entry, _parse_hit(fields) or _unreadable(fields)) for entry, fields in entries]

    async def delete(self, entries: Sequence[bytes]) -> None:
        """Delete entries by id. Raises RedisUnavailable."""

        async def command(client: Client) -> None:
            await client.xdel(self._stream, *entries)

        await self._redis.run(command, force=True)
        self.depth = max(self.depth - len(entries), 0)

    def _age(self) -> float:
        return 0.0 if self.oldest_at is None else max(self._now_ms() - self.oldest_at, 0) / 1000


def _fields(hit: Hit) -> dict[str, object]:
    return {name: getattr(hit, name) for name in _NAMES}


def _parse_id(entry: bytes) -> tuple[int, int]:
    """Return an entry id, for example 1795230298905-0, as two numbers that can be compared."""
    milliseconds, _, sequence = entry.partition(b"-")
    return int(milliseconds), int(sequence)


def _parse_hit(fields: dict[bytes, bytes]) -> Hit | None:
    """Return the hit of an entry, or None. Fields that a newer version added are ignored."""
    try:
        values = orjson.loads(fields[_FIELD])
        known = {name: value for name, value in values.items() if name in _NAMES}
        return Hit(**known | {"verdict": Verdict(values["verdict"])})
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def _unreadable(fields: dict[bytes, bytes]) -> DeadLetter:
    content = fields[_FIELD] if _FIELD in fields else orjson.dumps({str(name): str(value) for name, value in fields.items()})
    return from_entry(content, "the entry of the spool is not a hit")
