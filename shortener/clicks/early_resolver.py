"""Resolving hits without their transaction: from the link cache, else by a plain read of the database.

Both have time limits, because the database and Redis may accept a connection and then never answer. Nothing here raises: a hit
that cannot be resolved is missing from the result.
"""
# Tested by tests/clicks/test_hit_writer.py, tests/clicks/test_hit_spool.py

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from shortener.clicks import queries
from shortener.clicks.client_address import shorten_address
from shortener.clicks.resolver import LinkDirectory, LinkRecord, LinkResolver
from shortener.clicks.waiting_hit import WaitingHit
from shortener.errors import StoreUnavailable
from shortener.redis.link_cache import LinkCache
from shortener.storage.database import Database

log = structlog.get_logger(__name__)


class EarlyResolver:
    """Sets `resolution` of waiting hits. A hit on a link also gets the address that its application may store."""

    def __init__(self, database: Database, cache: LinkCache, directory: LinkDirectory, resolver: LinkResolver) -> None:
        self._database = database
        self._cache = cache
        self._directory = directory
        self._resolver = resolver

    async def from_cache(self, hits: Sequence[WaitingHit], within: float) -> None:
        """Resolve the hits that the link cache knows, within that many seconds."""
        codes = {waiting.hit.code for waiting in hits if waiting.resolution is None}
        if not codes:
            return
        try:
            links: Mapping[str, LinkRecord] = await asyncio.wait_for(self._cache.find(codes), within)
        except TimeoutError:
            return
        except Exception:
            log.exception("link_cache_failed")
            return
        self._resolve([waiting for waiting in hits if waiting.hit.code in links], links.get)

    async def from_database(self, hits: Sequence[WaitingHit], within: float) -> None:
        """Resolve the hits by a plain read, within that many seconds."""
        unresolved = [waiting for waiting in hits if waiting.resolution is None]
        if not unresolved:
            return
        codes = {waiting.hit.code for waiting in unresolved}
        try:
            links = await asyncio.wait_for(self._database.read(queries.find_links, codes), within)
        except (StoreUnavailable, TimeoutError):
            return
        except Exception:  # for example, the statement or the permission to connect is wrong
            log.exception("link_read_failed")
            return
        self._resolve(unresolved, links.get)

    def _resolve(self, hits: Sequence[WaitingHit], find: Callable[[str], LinkRecord | None]) -> None:
        policies = self._directory.hit_policies
        for waiting in hits:
            if waiting.resolution is not None:
                continue
            hit = waiting.hit
            resolution = waiting.resolution = self._resolver.resolve(hit, find(hit.code), policies)
            if resolution.unknown:
                waiting.is_settled = True
            elif (privacy := policies.ip_privacy.get(resolution.application_id)) is not None:
                hit.address = shorten_address(hit.address, privacy)
