"""The link cache after concurrent rewrites, with a real Redis."""

import asyncio

from sqlalchemy import select

from shortener.container import Service
from shortener.storage import schema
from tests.clicks.helpers import create_codes
from tests.conftest import MakeService
from tests.servers import RedisProcess


async def all_codes(service: Service) -> set[str]:
    return set(await service.database.read(lambda connection: connection.execute(select(schema.links.c.code)).scalars().all()))


async def test_every_link_of_concurrent_rewrites_is_in_the_cache(make_service: MakeService, redis_server: RedisProcess) -> None:
    service = await make_service(redis_url=redis_server.url, redis_timeout=5)

    async def client(number: int) -> None:
        for turn in range(15):
            await create_codes(service, campaign=f"{number}/{turn}")

    await asyncio.gather(*map(client, range(20)))
    codes = await all_codes(service)
    assert len(codes) == 300
    assert (await service.cache.find(codes)).keys() == codes
