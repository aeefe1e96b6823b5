"""The spool: a Redis stream that stores hits while the database cannot store them.

When Redis has acknowledged a hit, the hit is in the stream, and is as durable as other data in Redis. Later, the spool drainer
(`spool_drainer`) writes the hits to the database. It deletes an entry only after the hit is committed. A second stream,
`spool:dead`, stores dead letters until the table of dead letters accepts them (`dead_letters.py`).

An entry contains all fields of `Hit` except `origin`: this hash of the full client address is never stored.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_type_hints

import orjson

from shortener.clicks.dead_letters import DeadLetter, from_entry
from shortener.clicks.resolver import Hit
from shortener.metrics import Metrics
from shortener.model import Verdict
from shortener.redis.client import Client, RedisServer, RedisUnavailable

# The duration of a lease on the spool. If the lease ends while its process still writes hits, hits may be written in the wrong
# order, but none is lost.
LEASE_MS = 5000
MAX_MOVED = 500  # the number of entries that `HitSpool.move_from` moves at a time
MAX_DEAD_LETTERS = 100_000  # maximum number of dead letters in Redis; if there are more, the oldest ones are removed
_FIELD, _REASON = b"h", b"r"
_TYPES: dict[str, Any] = {name: hint for name, hint in get_type_hints(Hit).items() if name != "origin"}


class SpoolState(NamedTuple):
    """The state of the stream: the number of its hits, and the ids of its first and last entry."""

    depth: int
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)


class HitSpool:
    """The spool of hits in Redis. `limit` is the maximum number of hits in the stream. `add` compares the limit with `depth`,
    which may be out of date.

    `depth` and `oldest_at` are the number of hits and the time of the oldest hit when this process last read the state of the
    stream."""

    def __init__(self, redis: RedisServer, prefix: str, *, limit: int, now_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._stream = prefix + "spool:hits"
        self._dead = prefix + "spool:dead"
        self._lease = prefix + "spool:lease"
        self._own_id = secrets.token_hex(8).encode()
        self._limit = limit
        self._now_ms = now_ms
        self.depth = 0
        self.oldest_at: int | None = None  # time of the oldest hit, in milliseconds since 1970; None if the stream is empty

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metrics that show the state of the stream."""
        metrics.gauge(
            "shortener_spool_depth", "Hits in the Redis stream when this process last read its state.", lambda: self.depth
        )
        metrics.gauge("shortener_spool_age_seconds", "Age of the oldest hit in the Redis stream.", self._age)

    async def add(self, hits: Sequence[Hit]) -> bool:
        """Add hits to the spool. Return True if Redis has acknowledged all of the hits.

        Return False if the spool is full, or if it is unknown whether Redis has stored all of the hits."""
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
        """Store dead letters in Redis until the database accepts them. Return whether Redis has acknowledged all of them."""

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
        """Return the `count` oldest dead letters, each as (entry id, dead letter). Raise RedisUnavailable if Redis does not
        respond."""

        async def command(client: Client) -> list[tuple[bytes, dict[bytes, bytes]]]:
            entries: list[tuple[bytes, dict[bytes, bytes]]] = await client.xrange(self._dead, count=count)
            return entries

        return [
            (entry, from_entry(fields.get(_FIELD, b""), fields.get(_REASON, b"").decode(errors="replace") or "rejected"))
            for entry, fields in await self._redis.run(command)
        ]

    async def delete_dead_letters(self, entries: Sequence[bytes]) -> None:
        """Delete dead letters by entry id. Raise RedisUnavailable if Redis does not respond."""

        async def command(client: Client) -> None:
            await client.xdel(self._dead, *entries)

        await self._redis.run(command, force=True)

    async def look(self) -> SpoolState:
        """Read and return the current state of the stream. Raise RedisUnavailable if Redis does not respond."""

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

    async def move_from(self, prefix: str) -> int:
        """Move the hits and dead letters of another spool to this spool. The keys of the other spool begin with `prefix`. Return
        the number of moved entries. Neither spool must be in use during the move.

        Raise RedisUnavailable if Redis does not respond. A second call then continues the move."""

        async def command(client: Client) -> int:
            moved = 0
            for name, own in (("spool:hits", self._stream), ("spool:dead", self._dead)):
                while entries := await client.xrange(prefix + name, count=MAX_MOVED):
                    pipe = client.pipeline(transaction=False)
                    for _, fields in entries:
                        pipe.xadd(own, fields)
                    await pipe.execute()
                    await client.xdel(prefix + name, *(entry for entry, _ in entries))
                    moved += len(entries)
            return moved

        return await self._redis.run(command, force=True)

    async def take_lease(self) -> bool:
        """Take or renew the lease that permits this process to drain the spool, for LEASE_MS milliseconds.

        Return whether this process has the lease. Raise RedisUnavailable if Redis does not respond."""

        async def command(client: Client) -> bool:
            if await client.set(self._lease, self._own_id, nx=True, px=LEASE_MS):
                return True
            # No process takes a lease for more than LEASE_MS. If a lease has more time left, the clock of Redis was set back, and
            # this process takes the lease away from the other process.
            if await client.get(self._lease) != self._own_id and await client.pttl(self._lease) <= LEASE_MS:
                return False
            await client.set(self._lease, self._own_id, px=LEASE_MS)
            return True

        return await self._redis.run(command)

    async def read(self, count: int, after: bytes | None = None) -> list[tuple[bytes, Hit | DeadLetter]]:
        """Return up to `count` entries that follow the entry with the id `after`, oldest first. If `after` is None, begin with
        the oldest entry. Each result is (entry id, hit), or (entry id, dead letter) if the entry is not a hit.

        Raise RedisUnavailable if Redis does not respond."""
        start = "-" if after is None else b"(" + after

        async def command(client: Client) -> list[tuple[bytes, dict[bytes, bytes]]]:
            entries: list[tuple[bytes, dict[bytes, bytes]]] = await client.xrange(self._stream, start, count=count)
            return entries

        entries = await self._redis.run(command, force=True)
        return [(entry, _parse_hit(fields) or _unreadable(fields)) for entry, fields in entries]

    async def delete(self, entries: Sequence[bytes]) -> None:
        """Delete entries by id. Raise RedisUnavailable if Redis does not respond."""

        async def command(client: Client) -> None:
            await client.xdel(self._stream, *entries)

        await self._redis.run(command, force=True)
        self.depth = max(self.depth - len(entries), 0)

    def _age(self) -> float:
        return 0.0 if self.oldest_at is None else max(self._now_ms() - self.oldest_at, 0) / 1000


def _fields(hit: Hit) -> dict[str, object]:
    return {name: getattr(hit, name) for name in _TYPES}


def _parse_id(entry: bytes) -> tuple[int, int]:
    """Return an entry id, for example 1795230298905-0, as two integers, so that ids can be compared."""
    milliseconds, _, sequence = entry.partition(b"-")
    return int(milliseconds), int(sequence)


def _parse_hit(fields: dict[bytes, bytes]) -> Hit | None:
    """Return the hit that an entry contains, or None if it is not a hit, for example because a field has a wrong type. Fields
    that a newer version of the program has added are ignored."""
    try:
        values = orjson.loads(fields[_FIELD])
        known = {name: value for name, value in values.items() if name in _TYPES} | {"verdict": Verdict(values["verdict"])}
        return Hit(**known) if all(isinstance(value, _TYPES[name]) for name, value in known.items()) else None
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def _unreadable(fields: dict[bytes, bytes]) -> DeadLetter:
    content = fields[_FIELD] if _FIELD in fields else orjson.dumps({str(name): str(value) for name, value in fields.items()})
    return from_entry(content, "the entry of the spool is not a hit")
