"""The link cache in Redis contains the fields of a link that a redirect needs while the database is not available.

A redirect reads the database whenever it is available. The rewriter writes each new link to the cache, where it expires together
with the link. If a redirect finds a link in the database but not in Redis, it stores the link in Redis again. If a link changes,
its entry is invalidated before the change and replaced after it. Therefore, while Redis responds, the cache never returns the old
values of a changed link. The cache does not contain whether an application or a domain is disabled, because redirects read this
from the directory of accounts.

No method raises an error. If Redis does not respond, a look-up finds nothing, and a failed write is counted in `failures`. Failed
invalidations stay in memory, and `retry_invalidations` repeats them when Redis is up again. At most MAX_FAILED_INVALIDATIONS stay
in memory. If there are more, they are repaired in another way: `clicks.cache_repair` stores the newest changes in the cache
again, and an erasure repeats its own invalidations.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import field
from typing import Protocol

import orjson
import structlog

from shortener.metrics import Metrics
from shortener.model import mutable_record, record
from shortener.redis.client import Client, RedisServer, RedisUnavailable

log = structlog.get_logger(__name__)

_INVALIDATED = b""
# For this number of milliseconds after an invalidation, a rewrite that began before it cannot store the old link again.
_INVALIDATED_MS = 3_600_000
_MAX_COMMANDS = 1000  # The maximum number of Redis commands in one round trip.
MAX_FAILED_INVALIDATIONS = 100_000  # The maximum number of codes that `retry_invalidations` keeps in memory.


@record
class CachedLink:
    """The fields of a link that a redirect needs. Times are milliseconds since 1970."""

    code: str
    link_id: int
    message: int  # The row id of the link's message.
    application_id: int
    domain_id: int
    flags: int
    url: str  # The destination in the form of a Location header.
    fallback_url: str | None
    expires_at: int

    @property
    def location(self) -> None:
        """Always None: `url` already has the form of a Location header."""
        return None

    @property
    def disabled_at(self) -> None:
        """Always None: the cache does not contain disabled links."""
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
        """Return the link. Return None if another version of the service has written `value` in another format."""
        try:
            return cls(code, *orjson.loads(value))
        except (ValueError, TypeError):
            return None


class LinkCache(Protocol):
    """The interface of a cache that stores links by code."""

    async def put(self, links: Sequence[CachedLink]) -> None:
        """Store new links until they expire."""
        ...

    async def replace(self, links: Sequence[CachedLink]) -> None:
        """Store the current values of changed links."""
        ...

    async def find_missing(self, codes: Sequence[str]) -> Sequence[str]:
        """Return those of the codes that have no entry, for example because Redis was emptied. Return no codes if Redis does not
        respond."""
        ...

    async def find(self, codes: Collection[str]) -> dict[str, CachedLink]:
        """Return the stored links by code."""
        ...

    async def invalidate(self, codes: Collection[str]) -> bool:
        """Remove changed links from the cache. Return False if Redis does not respond; the cache may then still contain the old
        links."""
        ...


class NoLinkCache:
    """The cache of an installation without Redis: it is always empty."""

    async def put(self, links: Sequence[CachedLink]) -> None:
        return

    async def replace(self, links: Sequence[CachedLink]) -> None:
        return

    async def find_missing(self, codes: Sequence[str]) -> Sequence[str]:
        return ()

    async def find(self, codes: Collection[str]) -> dict[str, CachedLink]:
        return {}

    async def invalidate(self, codes: Collection[str]) -> bool:
        return True


@mutable_record
class _CacheWrite:
    """New links that wait for the next write to Redis. `done` gets a result after the write, even if it failed."""

    done: asyncio.Future[None]
    links: list[CachedLink] = field(default_factory=list)


class RedisLinkCache:
    """A link cache that stores links in Redis.

    Every key begins with `prefix`, so several installations can share a Redis. `now_ms` returns the current time in milliseconds
    since 1970. With it, the cache computes how long an entry lives: until its link expires."""

    def __init__(self, redis: RedisServer, prefix: str, now_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._prefix = prefix
        self._now_ms = now_ms
        self._failed_invalidations: set[str] = set()
        self._next: _CacheWrite | None = None
        self._writing: asyncio.Task[None] | None = None
        self.written = self.restored = self.found = self.missed = self.failures = 0

    def register_metrics(self, metrics: Metrics) -> None:
        metrics.counter("shortener_cache_links", "Links that were written to the link cache.", lambda: self.written)
        metrics.counter(
            "shortener_cache_restored", "Links that Redis had lost and that a redirect stored again.", lambda: self.restored
        )
        metrics.counter("shortener_cache_found", "Look-ups that found the link in the link cache.", lambda: self.found)
        metrics.counter("shortener_cache_missed", "Look-ups that did not find the link in the link cache.", lambda: self.missed)
        metrics.counter(
            "shortener_cache_failures", "Links that could not be written or invalidated in the link cache.", lambda: self.failures
        )

    async def put(self, links: Sequence[CachedLink]) -> None:
        """Store new links until they expire. Links that arrive during a round trip are all written in the next round trip."""
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

    async def replace(self, links: Sequence[CachedLink]) -> None:
        """Store links. This overwrites existing and invalidated entries."""
        for start in range(0, len(links), _MAX_COMMANDS):
            part = links[start : start + _MAX_COMMANDS]
            if await self._write_once(part, only_missing=False):
                # The entries are current now. Earlier failed invalidations of these links must not be repeated, because they
                # would delete the entries.
                self._failed_invalidations.difference_update(link.code for link in part)
            else:
                self._invalidate_later([link.code for link in part])

    @property
    def is_up(self) -> bool:
        """Whether Redis responds."""
        return self._redis.is_up

    async def find_missing(self, codes: Sequence[str]) -> Sequence[str]:
        """Return those of the codes that have no entry. A code with an invalidated entry is not returned, because its link must
        not be stored again. Return no codes if Redis does not respond."""
        keys = [self._prefix + code for code in codes]

        async def read(client: Client) -> list[bytes | None]:
            # MGET reads all keys at once. In a cluster, all keys of a command must be in one hash slot, so mget_nonatomic sends one
            # MGET for each slot.
            command = getattr(client, "mget_nonatomic", client.mget)  # only a client of a cluster has mget_nonatomic
            values: list[bytes | None] = await command(keys)
            return values

        if not keys or not self._redis.is_up:
            return ()
        try:
            values = await self._redis.run(read)
        except RedisUnavailable:
            return ()
        missing = [code for code, value in zip(codes, values, strict=True) if value is None]
        self.restored += len(missing)
        return missing

    async def find(self, codes: Collection[str]) -> dict[str, CachedLink]:
        """Return the stored links by code. Return no link if Redis does not respond."""
        requested = list(codes)

        async def get(client: Client) -> list[bytes | None]:
            pipe = client.pipeline(transaction=False)
            for code in requested:
                pipe.get(self._prefix + code)
            values: list[bytes | None] = await pipe.execute()
            return values

        try:
            values = await self._redis.run(get, force=True)
        except RedisUnavailable:
            return {}
        links = [CachedLink.loads(code, value) for code, value in zip(requested, values, strict=True) if value]
        found = {link.code: link for link in links if link is not None}
        self.found += len(found)
        self.missed += len(requested) - len(found)
        return found

    async def invalidate(self, codes: Collection[str]) -> bool:
        """Remove changed links from the cache. Return False if Redis does not respond; `retry_invalidations` then tries again."""

        async def overwrite(client: Client) -> None:
            pipe = client.pipeline(transaction=False)
            for code in codes:
                pipe.set(self._prefix + code, _INVALIDATED, px=_INVALIDATED_MS)
            await pipe.execute()

        if not codes:
            return True
        try:
            await self._redis.run(overwrite, force=True)
        except RedisUnavailable:
            self.failures += len(codes)
            self._invalidate_later(codes)
            return False
        self._failed_invalidations.difference_update(codes)
        return True

    def _invalidate_later(self, codes: Collection[str]) -> None:
        room = max(MAX_FAILED_INVALIDATIONS - len(self._failed_invalidations), 0)
        self._failed_invalidations.update(itertools.islice(codes, room))

    async def retry_invalidations(self) -> int:
        """If Redis is up, repeat failed invalidations of links. Return how many succeeded."""
        codes = list(self._failed_invalidations)[:_MAX_COMMANDS] if self._redis.is_up else []
        return len(codes) if codes and await self.invalidate(codes) else 0

    async def _write(self) -> None:
        while self._next is not None:
            batch, self._next = self._next, None
            try:
                for start in range(0, len(batch.links), _MAX_COMMANDS):
                    await self._write_once(batch.links[start : start + _MAX_COMMANDS])
            except Exception:  # after any error, the callers that wait for this write must get a result
                log.exception("links_not_cached", links=len(batch.links))
                self.failures += len(batch.links)
            finally:
                batch.done.set_result(None)

    async def _write_once(self, links: Sequence[CachedLink], *, only_missing: bool = True) -> bool:
        """Write the links in one round trip. If `only_missing` is true, existing and invalidated entries stay unchanged. Return
        False if Redis does not respond."""
        now = self._now_ms()

        async def set_missing(client: Client) -> None:
            pipe = client.pipeline(transaction=False)
            for link in links:
                pipe.set(self._prefix + link.code, link.dumps(), px=max(link.expires_at - now, 1), nx=only_missing)
            await pipe.execute()

        try:
            await self._redis.run(set_missing)
        except RedisUnavailable:
            self.failures += len(links)
            return False
        self.written += len(links)
        return True
