"""Tests of wake-up events between processes. They run only with PostgreSQL, because one process uses a SQLite database."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from shortener.jobs import WakeUp
from shortener.storage.notifier import PostgresNotifier
from tests.conftest import MakeService, new_postgresql_database
from tests.servers import PATIENCE


class Listener:
    """The notifier of one process. `received` is the number of wake-up events that it got from other processes."""

    def __init__(self, dsn: str) -> None:
        self.notifier = PostgresNotifier(dsn)
        self.notifier.on("events", self._receive)
        self.received = 0
        self.wake_up = WakeUp()
        self.notifier.start()

    def _receive(self) -> None:
        self.received += 1
        self.wake_up.notify()

    async def connected(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while not self.notifier.connected:
                await asyncio.sleep(0.01)  # wait a moment, then check the condition again

    async def received_after(self, before: int) -> None:
        """Wait until the listener has received more than `before` wake-up events. A single wait would not be enough, because an
        earlier wake-up event may have set `wake_up`."""
        async with asyncio.timeout(PATIENCE):
            while self.received == before:
                await self.wake_up.wait(PATIENCE)


async def wait_for_all_events(sender: Listener, receiver: Listener) -> None:
    """Wait until the receiver has got all wake-up events that were sent before this call. PostgreSQL delivers them in the order
    of the commits."""
    last = asyncio.Event()
    receiver.notifier.on("last", last.set)
    sender.notifier.notify("last")
    await asyncio.wait_for(last.wait(), PATIENCE)


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


async def test_a_wake_up_event_reaches_the_other_processes_but_not_its_sender(pair: tuple[Listener, Listener]) -> None:
    for sender, other in (pair, pair[::-1]):
        before = (sender.received, other.received)
        sender.notifier.notify("events")
        await other.received_after(before[1])
        await wait_for_all_events(other, sender)
        assert (sender.received, other.received) == (before[0], before[1] + 1)


async def test_a_thousand_wake_up_events_are_sent_with_few_notify_statements(pair: tuple[Listener, Listener]) -> None:
    one, two = pair
    for _ in range(1000):
        one.notifier.notify("events")
        one.notifier.notify("an event without a callback")
    await two.received_after(0)
    await wait_for_all_events(one, two)
    assert two.received == 1


async def test_the_notifier_reconnects_after_its_connection_is_cut(pair: tuple[Listener, Listener], dsn: str) -> None:
    one, two = pair
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()
    async with asyncio.timeout(PATIENCE):
        while one.notifier.connected or two.notifier.connected:
            await asyncio.sleep(0.01)  # wait a moment, then check the condition again
    one.notifier.notify("events")  # This wake-up event may be lost, because the notifiers are disconnected.
    await one.connected()
    await two.connected()
    before = two.received
    one.notifier.notify("events")
    await two.received_after(before)


async def test_a_click_in_one_process_starts_the_fan_out_in_another_process(make_service: MakeService) -> None:
    from tests.clicks.helpers import create_codes as send
    from tests.clicks.helpers import make_hit as hit

    one = await make_service()
    if one.notifier is None:
        pytest.skip("one process uses a SQLite database, so there is no other to wake")
    two = await make_service()
    assert two.notifier is not None
    one.notifier.start()
    two.notifier.start()
    async with asyncio.timeout(PATIENCE):
        while not (one.notifier.connected and two.notifier.connected):
            await asyncio.sleep(0.01)  # wait a moment, then check the condition again
    (code,) = await send(one)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await one.recorder.record(hit(one, code))
    await two.events_wake_up.wait(PATIENCE)
    assert loop.time() - began < PATIENCE / 2
