"""Tests of the link cache: what it stores and for how long, and what it returns after a change."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shortener.redis import link_cache
from shortener.redis.client import open_redis
from shortener.redis.link_cache import CachedLink, NoLinkCache, RedisLinkCache
from tests.servers import PATIENCE, RedisProcess

NOW = 1_795_176_000_000


def link(code: str, **more: Any) -> CachedLink:
    values: dict[str, Any] = {
        "code": code,
        "link_id": 2**62 + 1,
        "message": 7,
        "application_id": 1,
        "domain_id": 0,
        "flags": 1,
        "url": "https://x.example/ä?b=1",
        "fallback_url": None,
        "expires_at": NOW + 60_000,
    }
    return CachedLink(**values | more)


@pytest.fixture
async def cache(redis_server: RedisProcess) -> AsyncIterator[RedisLinkCache]:
    redis = open_redis(redis_server.url, timeout=PATIENCE)
    yield RedisLinkCache(redis, "sms:test:", lambda: NOW)
    await redis.close()


async def start_again(redis_server: RedisProcess, cache: RedisLinkCache) -> None:
    redis_server.start()
    while not cache.is_up:
        await asyncio.sleep(0.01)  # a pause before the number of pings is checked again


async def test_the_link_cache_returns_a_link_until_the_link_expires(cache: RedisLinkCache, redis_server: RedisProcess) -> None:
    stored = link("abc", fallback_url="https://x.example/over")
    await cache.put([stored])
    assert await cache.find(["abc", "unknown"]) == {"abc": stored}
    with contextlib.closing(redis_server.client()) as client:
        assert 59_000 < client.pttl("sms:test:abc") <= 60_000
    assert (cache.written, cache.found, cache.missed) == (1, 1, 1)


async def test_the_link_cache_ignores_entries_in_the_format_of_another_version(
    cache: RedisLinkCache, redis_server: RedisProcess
) -> None:
    with contextlib.closing(redis_server.client()) as client:
        client.set("sms:test:abc", "not JSON")
        client.set("sms:test:def", "[1, 2]")
    assert await cache.find(["abc", "def"]) == {}


async def test_links_that_are_stored_in_the_cache_at_the_same_time_share_round_trips_to_redis(cache: RedisLinkCache) -> None:
    await asyncio.gather(*(cache.put([link(f"c{number}"), link(f"d{number}")]) for number in range(2000)))
    assert len(await cache.find([f"c{number}" for number in range(2000)])) == 2000
    assert cache._redis.calls < 12


async def test_a_rewrite_that_began_before_the_invalidation_of_a_cached_link_does_not_restore_the_link(
    cache: RedisLinkCache,
) -> None:
    await cache.put([link("abc")])
    await cache.invalidate(["abc"])
    await cache.put([link("abc")])
    assert await cache.find(["abc"]) == {}


async def test_the_link_cache_finds_nothing_and_raises_no_error_while_redis_is_down(
    cache: RedisLinkCache, redis_server: RedisProcess
) -> None:
    await cache.put([link("abc")])
    redis_server.kill()
    await cache.put([link("def")])
    assert await cache.find(["abc"]) == {}
    assert not await cache.invalidate(["abc"])
    assert cache.failures == 2
    redis_server.start()
    assert set(await cache.find(["abc", "def"])) == {"abc"}


async def test_a_failed_invalidation_of_a_cached_link_is_repeated_when_redis_is_up_again(
    cache: RedisLinkCache, redis_server: RedisProcess
) -> None:
    await cache.put([link("abc")])
    redis_server.kill()
    assert not await cache.invalidate(["abc"])
    redis_server.start()
    assert await cache.retry_invalidations() == 1
    assert await cache.retry_invalidations() == 0
    assert await cache.find(["abc"]) == {}


async def test_a_failed_invalidation_is_not_repeated_after_the_link_was_stored_again(
    cache: RedisLinkCache, redis_server: RedisProcess
) -> None:
    redis_server.kill()
    assert not await cache.invalidate(["abc", "def"])
    await cache.replace([link("def")])
    await start_again(redis_server, cache)
    current = link("abc", url="https://new.example/")
    await cache.replace([current])
    assert await cache.retry_invalidations() == 1, "Redis did not store the other link"
    assert await cache.find(["abc", "def"]) == {"abc": current}


async def test_the_number_of_failed_invalidations_in_memory_is_limited(
    cache: RedisLinkCache, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_cache, "MAX_FAILED_INVALIDATIONS", 3)
    redis_server.kill()
    assert not await cache.invalidate(["a", "b"])
    assert not await cache.invalidate(["c", "d"])
    assert cache.failures == 4
    await start_again(redis_server, cache)
    assert [await cache.retry_invalidations() for _ in range(2)] == [3, 0]


async def test_an_installation_without_redis_has_an_empty_link_cache() -> None:
    cache = NoLinkCache()
    await cache.put([link("abc")])
    assert await cache.find(["abc"]) == {}
    assert await cache.invalidate(["abc"])
