"""The early resolver finds the destinations of hits that are not stored yet. It reads the link cache, or the database with a
read-only query.

All functions have time limits, because Redis and the database may accept a connection and never respond. They raise no errors. If
a hit cannot be resolved, its resolution is None.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from shortener.clicks import queries
from shortener.clicks.client_address import shorten_address
from shortener.clicks.fallback_values import fill_empty, is_unfilled
from shortener.clicks.resolver import LinkDirectory, LinkRecord, LinkResolver
from shortener.clicks.waiting_hit import WaitingHit
from shortener.errors import StoreUnavailable
from shortener.redis.link_cache import LinkCache
from shortener.storage.database import Database

log = structlog.get_logger(__name__)


class EarlyResolver:
    """A resolver that sets the `resolution` and the flag `is_redirected` of waiting hits. It also shortens the IP address of each
    hit to the part that the application of the link permits to store."""

    def __init__(self, database: Database, cache: LinkCache, directory: LinkDirectory, resolver: LinkResolver) -> None:
        self._database = database
        self._cache = cache
        self._directory = directory
        self._resolver = resolver

    async def resolve(self, hits: Sequence[WaitingHit], cache_seconds: float, read_seconds: float) -> None:
        """Resolve the hits. Read the link cache first, for at most `cache_seconds`. Then read the missing links from the
        database, for at most `read_seconds`. If the cache responds only during this read, its response is still used: a busy
        machine can delay the cache, and the cache is the only source while the database is down."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + cache_seconds + read_seconds
        lookup = asyncio.ensure_future(self.from_cache(hits, cache_seconds + read_seconds))
        tasks = {lookup}
        try:
            await asyncio.wait(tasks, timeout=cache_seconds)
            if any(waiting.resolution is None for waiting in hits):
                tasks.add(asyncio.ensure_future(self.from_database(hits, ends_at - loop.time())))
            running = {task for task in tasks if not task.done()}
            while running and any(waiting.resolution is None for waiting in hits):
                _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def from_cache(self, hits: Sequence[WaitingHit], within: float) -> None:
        """Resolve the hits whose links are in the link cache. `within` is the time limit in seconds."""
        codes = {waiting.hit.code for waiting in hits if waiting.resolution is None}
        if not codes:
            return
        try:
            async with asyncio.timeout(within):
                links: Mapping[str, LinkRecord] = await self._cache.find(codes)
        except TimeoutError:
            return
        except Exception:
            log.exception("link_cache_failed")
            return
        self._resolve([waiting for waiting in hits if waiting.hit.code in links], links.get)

    async def from_database(self, hits: Sequence[WaitingHit], within: float) -> None:
        """Find the link of each hit with a read-only query of the database. `within` is the time limit in seconds."""
        unresolved = [waiting for waiting in hits if waiting.resolution is None]
        if not unresolved:
            return
        codes = {waiting.hit.code for waiting in unresolved}
        try:
            async with asyncio.timeout(within):
                links = await self._database.read(queries.find_links, codes)
        except (StoreUnavailable, TimeoutError):
            return
        except Exception:  # other errors of the database, for example because the PostgreSQL role is not permitted to connect
            log.exception("link_read_failed")
            return
        self._resolve(unresolved, links.get)

    def _resolve(self, hits: Sequence[WaitingHit], find: Callable[[str], LinkRecord | None]) -> None:
        policies = self._directory.hit_policies
        for waiting in hits:
            if waiting.resolution is not None:
                continue
            hit = waiting.hit
            resolution = self._resolver.resolve(hit, find(hit.code), policies)
            if is_unfilled(resolution):
                resolution = fill_empty(resolution)
            waiting.resolution = resolution
            hit.is_redirected = resolution.location is not None
            if resolution.unknown:
                waiting.is_settled = True
            elif (privacy := policies.ip_privacy.get(resolution.application_id)) is not None:
                hit.address = shorten_address(hit.address, privacy)
