"""The link cache: what a redirect needs of a link, where a node finds it while the database is away.

The database stays the truth, and answers as long as it can; what is here is written through by the rewrite, with the link's own
time to live, and is never needed for anything but an answer. A link that changes is forgotten: from then on only the database
tells of it, so a switched-off link is never answered from a stale copy. Applications and domains that are switched off are known
from the directory, and count for cached links too.

Nothing here raises: a cache that cannot be asked knows nothing, and one that cannot be told is counted in `failures`. What could
not be forgotten is remembered here, and told again when Redis is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from shortener.metrics import Metrics
from shortener.redis.client import Client, RedisServer, RedisUnavailable

_FORGOTTEN = b""
_FORGOTTEN_FOR = 3_600_000  # ms; a rewrite that is under way cannot bring back what was forgotten
_PIECE = 1000  # commands of one round trip


@dataclass(frozen=True, slots=True)
class CachedLink:
    """A link as a redirect needs it. Times are ms since 1970."""

    code: str
    link_id: int
    message: int  # row id
    application_id: int
    domain_id: int
    flags: int
    url: str  # as the Location header spells it
    fallback_url: str | None
    expires_at: int

    @property
    def location(self) -> None:
        """`url` is already the one that is sent."""
        return None

    @property
    def disabled_at(self) -> None:
        """A link that is switched off is forgotten."""
        return None

    def dumps(self) -> bytes:
        return orjson.dumps(
            (
                self.link_id,
                self.message,
                self.application_id,
                self.domain_id,
                self.flags,
                self.url,
                self.fallback_url,
                self.expires_at,
            )
        )

    @classmethod
    def loads(cls, code: str, value: bytes) -> CachedLink | None:
        """None for what another version wrote."""
        try:
            return cls(code, *orjson.loads(value))
        except (ValueError, TypeError):
            return None


class LinkCache(Protocol):
    async def put(self, links: Sequence[CachedLink]) -> None:
        """Keep new links until they expire."""
        ...

    async def find(self, codes: Collection[str]) -> dict[str, CachedLink]:
        """Those that are kept."""
        ...

    async def invalidate(self, codes: Collection[str]) -> bool:
        """Answer for these no more: they changed. False: Redis is away, and may answer for them until it is told."""
        ...


class NoLinkCache:
    async def put(self, links: Sequence[CachedLink]) -> None:
        return

    async def find(self, codes: Collection[str]) -> dict[str, CachedLink]:
        return {}

    async def invalidate(self, codes: Collection[str]) -> bool:
        return True


@dataclass(slots=True)
class _CacheWrite:
    done: asyncio.Future[None]
    links: list[CachedLink] = field(default_factory=list)


class RedisLinkCache:
    """`prefix`: of every key, so that installations can share a Redis. `now_ms`: what times to live are counted from."""

    def __init__(self, redis: RedisServer, prefix: str, now_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._prefix = prefix
        self._now_ms = now_ms
        self._owed: set[str] = set()
        self._next: _CacheWrite | None = None
        self._writing: asyncio.Task[None] | None = None
        self.kept = self.found = self.missed = self.failures = 0

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the totals on /metrics."""
        metrics.counter("shortener_cache_links", "Links that were written to the cache.", lambda: self.kept)
        metrics.counter("shortener_cache_found", "Links that the cache answered for.", lambda: self.found)
        metrics.counter("shortener_cache_missed", "Codes that the cache was asked for and did not know.", lambda: self.missed)
        metrics.counter("shortener_cache_failures", "Links that could not be written or forgotten.", lambda: self.failures)

    async def put(self, links: Sequence[CachedLink]) -> None:
        """Links that arrive during a round trip go together with the next one."""
        if not links:
            return
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._next = _CacheWrite(loop.create_future())
        batch = self._next
        batch.links += links
        if self._writing is None or self._writing.done():
            self._writing = loop.create_task(self._write())
        await batch.done

    async def find(self, codes: Collection[str]) -> dict[str, CachedLink]:
        wanted = list(codes)

        async def ask(client: Client) -> list[bytes | None]:
            pipe = client.pipeline(transaction=False)
            for code in wanted:
                pipe.get(self._prefix + code)
            values: list[bytes | None] = await pipe.execute()
            return values

        try:
            values = await self._redis.run(ask, force=True)
        except RedisUnavailable:
            return {}
        links = [CachedLink.loads(code, value) for code, value in zip(wanted, values, strict=True) if value]
        found = {link.code: link for link in links if link is not None}
        self.found += len(found)
        self.missed += len(wanted) - len(found)
        return found

    async def invalidate(self, codes: Collection[str]) -> bool:
        async def ask(client: Client) -> None:
            pipe = client.pipeline(transaction=False)
            for code in codes:
                pipe.set(self._prefix + code, _FORGOTTEN, px=_FORGOTTEN_FOR)
            await pipe.execute()

        if not codes:
            return True
        try:
            await self._redis.run(ask, force=True)
        except RedisUnavailable:
            self.failures += len(codes)
            self._owed.update(codes)
            return False
        self._owed.difference_update(codes)
        return True

    async def retry_invalidations(self) -> int:
        """Forget what could not be forgotten; returns how many that were."""
        owed = list(self._owed)[:_PIECE] if self._redis.up else []
        return len(owed) if owed and await self.invalidate(owed) else 0

    async def _write(self) -> None:
        while self._next is not None:
            batch, self._next = self._next, None
            for start in range(0, len(batch.links), _PIECE):
                await self._write_piece(batch.links[start : start + _PIECE])
            batch.done.set_result(None)

    async def _write_piece(self, links: list[CachedLink]) -> None:
        now = self._now_ms()

        async def ask(client: Client) -> None:
            pipe = client.pipeline(transaction=False)
            for link in links:
                pipe.set(self._prefix + link.code, link.dumps(), px=max(link.expires_at - now, 1), nx=True)
            await pipe.execute()

        try:
            await self._redis.run(ask)
        except RedisUnavailable:
            self.failures += len(links)
        else:
            self.kept += len(links)
