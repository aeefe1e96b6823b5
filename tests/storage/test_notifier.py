"""Bells between processes. On PostgreSQL only: SQLite belongs to one process, and has nobody else to wake."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from shortener.jobs import WakeUp
from shortener.storage.notifier import PostgresNotifier
from tests.conftest import MakeService, new_postgresql_database
from tests.servers import PATIENCE


class Listener:
    """One process's bells; `heard` counts how often its own were rung from elsewhere."""

    def __init__(self, dsn: str) -> None:
        self.notifier = PostgresNotifier(dsn)
        self.notifier.on("events", self._hear)
        self.heard = 0
        self.wake_up = WakeUp()
        self.notifier.start()

    def _hear(self) -> None:
        self.heard += 1
        self.wake_up.notify()

    async def connected(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while not self.notifier.connected:
                await asyncio.sleep(0.01)  # and look again

    async def heard_after(self, before: int) -> None:
        """Return when it was heard once more; an earlier ring may have left the bell set."""
        async with asyncio.timeout(PATIENCE):
            while self.heard == before:
                await self.wake_up.wait(PATIENCE)


@pytest.fixture
async def dsn(postgresql: str) -> str:
    return await new_postgresql_database(postgresql, None)


@pytest.fixture
async def pair(dsn: str) -> AsyncIterator[tuple[Listener, Listener]]:
    one, two = Listener(dsn), Listener(dsn)
    await one.connected()
    await two.connected()
    yield one, two
    await asyncio.gather(one.notifier.stop(), two.notifier.stop())


async def test_a_bell_is_heard_in_every_other_process_and_not_at_home(pair: tuple[Listener, Listener]) -> None:
    one, two = pair
    one.notifier.notify("events")
    await two.heard_after(0)
    two.notifier.notify("events")
    await one.heard_after(0)
    assert (one.heard, two.heard) == (1, 1)


async def test_a_thousand_rings_are_few_messages(pair: tuple[Listener, Listener]) -> None:
    one, two = pair
    for _ in range(1000):
        one.notifier.notify("events")
        one.notifier.notify("nobody listens to this one")
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
        while one.notifier.connected or two.notifier.connected:
            await asyncio.sleep(0.01)  # and look again
    one.notifier.notify("events")  # lost: whoever waits for it polls as well
    await one.connected()
    await two.connected()
    before = two.heard
    one.notifier.notify("events")
    await two.heard_after(before)


async def test_a_click_on_one_node_wakes_the_fan_out_of_the_other(make_service: MakeService) -> None:
    from tests.clicks.helpers import create_codes as send
    from tests.clicks.helpers import make_hit as hit

    one = await make_service()
    if one.notifier is None:
        pytest.skip("SQLite belongs to one process, and has nobody else to wake")
    two = await make_service()
    assert two.notifier is not None
    one.notifier.start()
    two.notifier.start()
    async with asyncio.timeout(PATIENCE):
        while not (one.notifier.connected and two.notifier.connected):
            await asyncio.sleep(0.01)  # and look again
    (code,) = await send(one)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await one.recorder.record(hit(one, code))
    await two.events_wake_up.wait(PATIENCE)
    assert loop.time() - began < PATIENCE / 2
