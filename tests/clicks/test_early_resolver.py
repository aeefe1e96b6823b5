"""Tests of the early resolver with a link cache and a database that are slow or do not respond."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

from shortener.clicks.early_resolver import EarlyResolver
from shortener.clicks.resolver import LinkResolver
from shortener.clicks.waiting_hit import WaitingHit
from shortener.container import Service
from shortener.redis.link_cache import CachedLink, NoLinkCache
from tests.clicks.helpers import UnreliableDatabase, create_codes, make_hit
from tests.servers import PATIENCE


class SlowCache(NoLinkCache):
    """A link cache that responds only after the test has set `responds`."""

    def __init__(self, links: dict[str, CachedLink]) -> None:
        self.links = links
        self.responds = asyncio.Event()

    async def find(self, codes: Collection[str]) -> dict[str, CachedLink]:
        await self.responds.wait()
        return {code: self.links[code] for code in codes if code in self.links}


class SlowDatabase(UnreliableDatabase):
    """A database that responds to a read only after the test has set `responds`. `is_read` is set when a read begins."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.is_read, self.responds = asyncio.Event(), asyncio.Event()

    async def read(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        self.is_read.set()
        await self.responds.wait()
        return await super().read(query, *args, **kwargs)


async def slow_parts(service: Service) -> tuple[WaitingHit, SlowCache, SlowDatabase, EarlyResolver]:
    (code,) = await create_codes(service)
    url = "https://x.example/a"
    link = CachedLink(code, 1, 1, 1, 0, 0, url, None, service.now_ms() + 1_000_000)
    cache, database = SlowCache({code: link}), SlowDatabase(service)
    waiting = WaitingHit(make_hit(service, code), asyncio.get_running_loop().create_future(), 0.0)
    resolver = LinkResolver(service.directory, service.click_ids)
    return waiting, cache, database, EarlyResolver(database, cache, service.directory, resolver)


@pytest.mark.parametrize("first", ["cache", "database"])
async def test_if_the_link_cache_is_slow_the_first_response_of_cache_or_database_resolves_the_hit(
    service: Service, first: str
) -> None:
    waiting, cache, database, resolver = await slow_parts(service)
    resolving = asyncio.create_task(resolver.resolve([waiting], 0.01, PATIENCE))
    await asyncio.wait_for(database.is_read.wait(), PATIENCE)
    assert waiting.resolution is None
    (cache if first == "cache" else database).responds.set()
    await asyncio.wait_for(resolving, PATIENCE)
    assert waiting.resolution is not None
    assert waiting.resolution.location == b"https://x.example/a"


async def test_a_link_is_not_read_from_the_database_if_the_link_cache_responds_in_time(service: Service) -> None:
    waiting, cache, database, resolver = await slow_parts(service)
    cache.responds.set()
    await resolver.resolve([waiting], PATIENCE, PATIENCE)
    assert waiting.resolution is not None
    assert not database.is_read.is_set()


async def test_a_hit_is_not_resolved_if_neither_the_link_cache_nor_the_database_responds(service: Service) -> None:
    waiting, _, _, resolver = await slow_parts(service)
    await asyncio.wait_for(resolver.resolve([waiting], 0.01, 0.02), PATIENCE)
    assert waiting.resolution is None
