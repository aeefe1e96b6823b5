"""Tests of the job that stores recently changed links in the link cache again, with a real Redis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import redis

from shortener.clicks import cache_repair
from shortener.clicks.cache_repair import CacheRepair
from shortener.container import Service
from shortener.redis.link_cache import CachedLink, RedisLinkCache
from tests.clicks.helpers import change_link, create_codes
from tests.conftest import Clock, MakeService
from tests.servers import RedisProcess


@pytest.fixture
async def service(make_service: MakeService, redis_server: RedisProcess) -> Service:
    return await make_service(redis_url=redis_server.url, redis_timeout=5)


@pytest.fixture
def client(redis_server: RedisProcess) -> Iterator[redis.Redis]:
    with contextlib.closing(redis_server.client()) as client:
        yield client


def repair_of(service: Service) -> CacheRepair:
    assert isinstance(service.cache, RedisLinkCache)
    return CacheRepair(service.database, service.cache, service.now_ms)


async def restore_old_entries(service: Service, client: redis.Redis, old: dict[str, CachedLink]) -> None:
    """Store the entries that Redis would still contain if it had been down during the changes of the links."""
    client.flushall()
    await service.cache.put(list(old.values()))


async def test_changes_whose_process_ended_before_redis_responded_again_reach_the_link_cache(
    service: Service, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_repair, "BATCH_CHANGES", 2)
    codes = [code for _ in range(5) for code in await create_codes(service)]
    old = await service.cache.find(codes)
    for code in codes[:3]:
        await change_link(service, code, {"url": "https://new.example/"})
    await change_link(service, codes[3], {"enabled": False})
    await restore_old_entries(service, client, old)
    repair = repair_of(service)
    assert [await repair.step() for _ in range(4)] == [2, 2, 0, 0]
    found = await service.cache.find(codes)
    assert [found[code].url for code in codes[:3]] == ["https://new.example/"] * 3
    assert codes[3] not in found, "clicks on a disabled link must not be redirected"
    assert found[codes[4]] == old[codes[4]]


async def test_a_repair_starts_when_redis_responds_again_and_repeats_a_batch_that_redis_rejected(
    service: Service, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = await create_codes(service)
    old = await service.cache.find(codes)
    repair = repair_of(service)
    assert await repair.step() == 0, "no link has been changed"
    await change_link(service, codes[0], {"url": "https://new.example/"})
    await restore_old_entries(service, client, old)
    assert await repair.step() == 0, "Redis was not down"
    with monkeypatch.context() as patch:
        patch.setattr(RedisLinkCache, "is_up", False)
        assert await repair.step() == 0
    client.config_set("min-replicas-to-write", 1)  # with this setting, Redis rejects writes
    assert await repair.step() == 0
    client.config_set("min-replicas-to-write", 0)
    assert await repair.step() == 1
    assert (await service.cache.find(codes))[codes[0]].url == "https://new.example/"


async def test_a_repair_leaves_out_old_changes(service: Service, clock: Clock) -> None:
    codes = await create_codes(service)
    await change_link(service, codes[0], {"url": "https://new.example/"})
    clock.forward(days=7, seconds=-1)
    assert await repair_of(service).step() == 1
    clock.forward(seconds=2)
    assert await repair_of(service).step() == 0


async def test_a_service_with_redis_has_the_job_that_repairs_the_link_cache(service: Service, client: redis.Redis) -> None:
    codes = await create_codes(service)
    old = await service.cache.find(codes)
    await change_link(service, codes[0], {"enabled": False})
    await restore_old_entries(service, client, old)
    assert await service.jobs.table["cache_repair"].step() == 1
    assert await service.cache.find(codes) == {}
