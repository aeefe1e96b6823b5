"""Bells between processes. On PostgreSQL only: SQLite belongs to one process, and has nobody else to wake."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from shortener.jobs import Bell
from shortener.store.bells import RemoteBells
from tests.conftest import MakeService, new_postgresql_database
from tests.servers import PATIENCE


class Listener:
    """One process's bells; `heard` counts how often its own were rung from elsewhere."""

    def __init__(self, dsn: str) -> None:
        self.bells = RemoteBells(dsn)
        self.bells.on("events", self._hear)
        self.heard = 0
        self.bell = Bell()
        self.bells.start()

    def _hear(self) -> None:
        self.heard += 1
        self.bell.ring()

    async def connected(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while not self.bells.connected:
                await asyncio.sleep(0.01)  # and look again

    async def heard_after(self, before: int) -> None:
        """Return when it was heard once more; an earlier ring may have left the bell set."""
        async with asyncio.timeout(PATIENCE):
            while self.heard == before:
                await self.bell.wait(PATIENCE)


@pytest.fixture
async def dsn(postgresql: str) -> str:
    return await new_postgresql_database(postgresql, None)


@pytest.fixture
async def pair(dsn: str) -> AsyncIterator[tuple[Listener, Listener]]:
    one, two = Listener(dsn), Listener(dsn)
    await one.connected()
    await two.connected()
    yield one, two
    await asyncio.gather(one.bells.stop(), two.bells.stop())


async def test_a_bell_is_heard_in_every_other_process_and_not_at_home(pair: tuple[Listener, Listener]) -> None:
    one, two = pair
    one.bells.ring("events")
    await two.heard_after(0)
    two.bells.ring("events")
    await one.heard_after(0)
    assert (one.heard, two.heard) == (1, 1)


async def test_a_thousand_rings_are_few_messages(pair: tuple[Listener, Listener]) -> None:
    one, two = pair
    for _ in range(1000):
        one.bells.ring("events")
        one.bells.ring("nobody listens to this one")
    await two.heard_after(0)
    assert two.heard == 1


async def test_a_connection_that_is_cut_is_made_again(pair: tuple[Listener, Listener], dsn: str) -> None:
    one, two = pair
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()
    async with asyncio.timeout(PATIENCE):
        while one.bells.connected or two.bells.connected:
            await asyncio.sleep(0.01)  # and look again
    one.bells.ring("events")  # lost: whoever waits for it polls as well
    await one.connected()
    await two.connected()
    before = two.heard
    one.bells.ring("events")
    await two.heard_after(before)


async def test_a_click_on_one_node_wakes_the_fan_out_of_the_other(make_service: MakeService) -> None:
    from tests.click.test_recorder import hit, send

    one = await make_service()
    if one.bells is None:
        pytest.skip("SQLite belongs to one process, and has nobody else to wake")
    two = await make_service()
    assert two.bells is not None
    one.bells.start()
    two.bells.start()
    async with asyncio.timeout(PATIENCE):
        while not (one.bells.connected and two.bells.connected):
            await asyncio.sleep(0.01)  # and look again
    (code,) = await send(one)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await one.recorder.record(hit(one, code))
    await two.events_bell.wait(PATIENCE)
    assert loop.time() - began < PATIENCE / 2
