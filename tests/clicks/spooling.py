"""Helpers and fixtures for tests of an outage of the database: a recorder with a spool in Redis, and a database that can fail."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from shortener.clicks.hit_spool import HitSpool
from shortener.clicks.recorder import Recorder
from shortener.clicks.spool_drainer import SpoolDrainer
from shortener.container import Service
from tests.clicks.helpers import UnreliableDatabase
from tests.clicks.helpers import make_hit as hit
from tests.conftest import MakeService
from tests.servers import PATIENCE, RedisProcess

LOCATION = b"https://x.example/a"


class HangingDatabase(UnreliableDatabase):
    """An unreliable database whose writes wait until the test sets `go`."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.go = asyncio.Event()
        self.go.set()

    async def write(self, transact: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        await self.go.wait()
        return await super().write(transact, *args, **kwargs)


class Node:
    """A recorder and its drainer. They share the Redis of the service, and a test can disconnect their database."""

    def __init__(self, service: Service, **more: Any) -> None:
        assert service.redis is not None
        self.service = service
        self.store = HangingDatabase(service)
        self.spool = HitSpool(service.redis, "sms:test:", limit=more.pop("limit", 1000), now_ms=service.now_ms)
        self.notifications = 0
        values: dict[str, Any] = {"deadline": 0.1, "waiting_limit": 100, "on_events": self._notify, "cache": service.cache} | more
        self.recorder = Recorder(self.store, service.ids, service.click_ids, service.directory, spool=self.spool, **values)
        self.drainer = SpoolDrainer(self.spool, self.recorder, self.store)
        self.recorder.start()

    def _notify(self) -> None:
        self.notifications += 1

    def disconnect(self) -> None:
        self.store.refuse_writes = self.store.refuse_reads = True

    def reconnect(self) -> None:
        self.store.refuse_writes = self.store.refuse_reads = False

    async def click(self, code: str, **more: Any) -> bytes | None:
        return (await self.recorder.record(hit(self.service, code, **more))).location

    async def drained(self) -> None:
        """Run the drainer until the spool is empty and the recorder writes to the database again."""
        async with asyncio.timeout(PATIENCE):
            while await self.drainer.step() or self.recorder.outage:
                await asyncio.sleep(0.005)  # a pause, because the recorder also waits between two attempts to write


@pytest.fixture
async def service(make_service: MakeService, redis_server: RedisProcess) -> Service:
    return await make_service(redis_url=redis_server.url, redis_timeout=0.5)


MakeNode = Callable[..., Node]


@pytest.fixture
async def make_node(service: Service) -> AsyncIterator[MakeNode]:
    nodes: list[Node] = []

    def make(**more: Any) -> Node:
        nodes.append(Node(service, **more))
        return nodes[-1]

    yield make
    for node in nodes:
        await node.recorder.stop(1)


@pytest.fixture
async def node(make_node: MakeNode) -> Node:
    return make_node()
