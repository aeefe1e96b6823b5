"""Tests of many concurrent rewrite requests with a real Redis, and of failed commits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, select

from shortener.container import Service
from shortener.errors import StoreUnavailable
from shortener.messages.rewrite_item import RewriteItem
from shortener.storage import schema
from tests.conftest import MakeService
from tests.servers import PATIENCE, RedisProcess

#: The number of concurrent rewrite requests. `make prove` runs the test with 2,000.
REWRITES = int(os.environ.get("PROVE_REWRITES", "400"))
CALLERS = 40


async def rewrite(service: Service, number: int, **more: Any) -> str:
    application = service.directory.applications()[0]
    item = RewriteItem((f"+1408555{number:04}",), 'see #track("https://x.example/")', **more)
    (message,) = await service.rewriter.rewrite(application, [item])
    return str(message["links"][0]["code"])


async def test_every_link_of_many_concurrent_rewrites_is_in_the_link_cache(
    make_service: MakeService, redis_server: RedisProcess
) -> None:
    service = await make_service(redis_url=redis_server.url, redis_timeout=5.0)
    numbers = iter(range(REWRITES))
    codes: list[str] = []

    async def call() -> None:
        for number in numbers:
            code = await rewrite(service, number, campaign=f"campaign {number % 7}")
            codes.append(code)
            assert code in await service.cache.find([code]), "the response comes after the link is in the cache"

    await asyncio.wait_for(asyncio.gather(*(call() for _ in range(CALLERS))), PATIENCE * 5)
    assert len(codes) == REWRITES
    missing = set(codes) - (await service.cache.find(codes)).keys()
    assert missing == set()


class FailingCommits:
    """A database that fails selected commits: the statements of the transaction run, and then nothing is stored."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.fail_campaigns: set[str] = set()
        self.failed = 0

    async def write_later(self, transact: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def run(connection: Connection, *args: Any, **kwargs: Any) -> Any:
            result = transact(connection, *args, **kwargs)
            campaigns = set(connection.scalars(select(schema.cohorts.c.campaign)))
            if campaigns & self.fail_campaigns:
                self.failed += 1
                raise StoreUnavailable("the connection was cut at COMMIT")
            return result

        return await self._database.write_later(run, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


async def test_no_row_id_stays_in_a_cache_after_the_commit_of_the_row_has_failed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = service.rewriter._commits._batcher
    database = FailingCommits(service.database)
    monkeypatch.setattr(batcher, "_database", database)
    database.fail_campaigns = {f"bad {number}" for number in range(5)}
    tracking = [("SMS", f"type {number}") for number in range(10)]
    results = await asyncio.gather(
        *(
            rewrite(service, number, campaign=f"{kind} {number}", tracking=tracking[number])
            for number in range(5)
            for kind in ("good", "bad")
        ),
        return_exceptions=True,
    )
    assert database.failed > 0
    assert any(isinstance(result, StoreUnavailable) for result in results)
    database.fail_campaigns = set()
    for number in range(5):
        for kind in ("good", "bad"):
            await rewrite(service, 100 + number, campaign=f"{kind} {number}", tracking=tracking[number])

    def orphans(connection: Connection) -> tuple[int, int]:
        cohorts = set(connection.scalars(select(schema.cohorts.c.id)))
        processes = set(connection.scalars(select(schema.processes.c.id))) | {0}
        used = set(connection.scalars(select(schema.messages.c.cohort_id)))
        used_processes = set(connection.scalars(select(schema.cohorts.c.process_id)))
        return len(used - cohorts), len(used_processes - processes)

    assert await service.database.read(orphans) == (0, 0)
