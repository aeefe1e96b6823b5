"""Tests of the link cache with a real Redis: after concurrent rewrites, after links were removed from Redis, and after links were
changed.
"""

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import select

from shortener.container import Service
from shortener.redis.link_cache import CachedLink
from shortener.storage import schema
from tests.clicks.helpers import change_link, create_codes, make_hit
from tests.conftest import MakeService
from tests.servers import PATIENCE, RedisProcess


async def all_codes(service: Service) -> set[str]:
    return set(await service.database.read(lambda connection: connection.execute(select(schema.links.c.code)).scalars().all()))


async def test_every_link_of_concurrent_rewrites_is_in_the_link_cache(
    make_service: MakeService, redis_server: RedisProcess
) -> None:
    service = await make_service(redis_url=redis_server.url, redis_timeout=5)

    async def client(number: int) -> None:
        for turn in range(15):
            await create_codes(service, campaign=f"{number}/{turn}")

    await asyncio.gather(*map(client, range(20)))
    codes = await all_codes(service)
    assert len(codes) == 300
    assert (await service.cache.find(codes)).keys() == codes


async def test_a_link_that_is_missing_in_redis_is_cached_again_by_its_next_click(
    make_service: MakeService, redis_server: RedisProcess
) -> None:
    service = await make_service(redis_url=redis_server.url, redis_timeout=5)
    (clicked,), (other,), (disabled,) = [await create_codes(service) for _ in range(3)]
    await change_link(service, disabled, {"enabled": False})
    redis_server.client().flushall()
    for code in (clicked, disabled, "nosuchcode"):
        await service.recorder.record(make_hit(service, code))
    await wait_for(service, {clicked})
    assert (await service.cache.find([clicked, other, disabled, "nosuchcode"])).keys() == {clicked}


async def test_a_changed_link_is_in_the_link_cache_with_its_new_values(
    make_service: MakeService, redis_server: RedisProcess
) -> None:
    service = await make_service(redis_url=redis_server.url, redis_timeout=5)
    (code,) = await create_codes(service)
    await change_link(service, code, {"url": "https://new.example/", "fallback_url": "https://x.example/over"})
    found = (await service.cache.find([code]))[code]
    assert (found.url, found.fallback_url) == ("https://new.example/", "https://x.example/over")
    await change_link(service, code, {"enabled": False})
    assert await service.cache.find([code]) == {}
    await service.recorder.record(make_hit(service, code))
    await change_link(service, code, {"enabled": True})
    assert (await service.cache.find([code]))[code] == found


async def test_the_link_cache_contains_the_last_of_two_concurrent_changes_of_a_link(
    make_service: MakeService, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await make_service(redis_url=redis_server.url, redis_timeout=5)
    (code,) = await create_codes(service)
    replace = service.cache.replace

    async def overtaken(links: Sequence[CachedLink]) -> None:
        """Delay a write to the link cache until another process has changed the link."""
        monkeypatch.setattr(service.cache, "replace", replace)
        await change_link(service, code, {"url": "https://second.example/"})
        await replace(links)

    monkeypatch.setattr(service.cache, "replace", overtaken)
    await change_link(service, code, {"url": "https://first.example/"})
    assert (await service.cache.find([code]))[code].url == "https://second.example/"


async def wait_for(service: Service, codes: set[str]) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await service.cache.find(codes)).keys() != codes:
            await asyncio.sleep(0.01)  # wait a moment before the condition is checked again
