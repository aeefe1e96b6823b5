"""These tests send deliveries to a tracker while other trackers hang or limit requests, with the real clock on both databases."""
# Part of the tests of shortener/delivery/dispatcher.py.

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from shortener.container import Service, open_service
from shortener.delivery.claims import RESERVED_PART
from shortener.delivery.guarded_resolver import MAX_LOOKUPS
from shortener.delivery.trackers import NewTracker
from shortener.settings import Settings
from shortener.storage import schema
from tests.delivery.conftest import FIRST_FLAGS, FIRST_TOPICS, write_click
from tests.factory import AUDIT, add_message, rows
from tests.receiver import Receiver, Reply, Request
from tests.servers import PATIENCE, SOON_SECONDS


class LimitedReceiver(Receiver):
    """A receiver that accepts up to `limit` requests in each second and returns 429 to all others."""

    def __init__(self, limit: int, retry_after: str | None) -> None:
        super().__init__()
        self.limit = limit
        self.headers = {"retry-after": retry_after} if retry_after else {}
        self.accepted = 0
        self.seconds: Counter[int] = Counter()

    def _reply(self, request: Request) -> Reply:
        second = int(time.monotonic())
        self.seconds[second] += 1
        if self.seconds[second] > self.limit:
            return Reply(429, b"slow down", self.headers)
        self.accepted += 1
        return Reply()

    @property
    def refused(self) -> int:
        """The number of requests that got 429: possibly none if the machine is so busy that the service never reaches the limit."""
        return sum(max(0, requests - self.limit) for requests in self.seconds.values())


@pytest.fixture
async def running(store_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    """Provide a running service with the real clock and all background jobs. An attempt times out after 60 seconds."""
    values: dict[str, Any] = {"database_url": store_url, "allow_private_targets": True, "delivery_timeout": 60}
    service = await open_service(Settings(data_dir=tmp_path, **values))
    service.start()
    yield service
    await service.close(grace=2)


async def add_tracker(service: Service, url: str, **values: object) -> int:
    new = NewTracker(url=url, events=["click"], signed=False, format="json", **values)  # type: ignore[arg-type]
    return (await service.trackers.create(AUDIT, 1, new)).tracker.id


async def click(service: Service, count: int, callback_url: Callable[[int], str] = lambda number: "") -> None:
    """Write the first clicks of `count` new messages in one transaction. `callback_url` returns the callback URL for the number of
    a message, or an empty text for no callback."""

    def write(connection: Connection) -> None:
        for number in range(count):
            url = callback_url(number) or None
            message = add_message(connection, service.ids, f"message {service.ids()}", callback_url=url)
            write_click(connection, service.ids, message, FIRST_FLAGS, FIRST_TOPICS, service.clock())

    await service.database.write(write)
    service.events_wake_up.notify()


@pytest.mark.slow  # sends 60 events to a receiver that accepts 20 in a second
@pytest.mark.parametrize("retry_after", [None, "1"])
async def test_a_tracker_that_limits_requests_gets_all_events_and_no_429_response_counts_as_an_attempt(
    running: Service, retry_after: str | None
) -> None:
    receiver = LimitedReceiver(20, retry_after)
    async with receiver.listen():
        tracker = await add_tracker(running, receiver.url(), max_attempts=2)
        await click(running, 60)
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            while receiver.accepted < 60:
                await asyncio.sleep(0.05)  # wait, because the receiver accepts only 20 requests in a second
        assert time.monotonic() - began < 2 * SOON_SECONDS, "the limit allows 3 seconds"
        async with asyncio.timeout(PATIENCE):
            while any(row.status != 1 for row in await rows(running.database, schema.deliveries)):
                await asyncio.sleep(0.05)  # wait until the outcomes are recorded
    found = await rows(running.database, schema.deliveries)
    assert {row.attempt - row.base_attempt for row in found} == {1}
    state = (await running.trackers.get(tracker)).health
    assert (state.failures_in_row, state.open_until) == (0, None)
    assert (running.dispatcher.totals.rates_lowered > 0) == (receiver.refused > 0)


@pytest.mark.slow
async def test_a_tracker_gets_no_more_than_max_per_second_deliveries_with_the_real_clock(
    running: Service, receiver: Receiver
) -> None:
    await add_tracker(running, receiver.url(), max_per_second=20)
    began = time.monotonic()
    await click(running, 60)
    await receiver.wait_for(60)
    assert time.monotonic() - began > 2.5, "60 events at 20 in a second"


@pytest.mark.parametrize(("trackers", "concurrency"), [(1, 256), (16, None)])
async def test_a_healthy_tracker_gets_events_at_once_while_other_trackers_never_respond(
    running: Service, receiver: Receiver, trackers: int, concurrency: int | None
) -> None:
    receiver.by_path = {"/hang": Reply(hang=True)}
    for _ in range(trackers):
        await add_tracker(running, receiver.url("/hang"), concurrency=concurrency, timeout=60)
    await click(running, 300 // trackers)
    async with asyncio.timeout(PATIENCE):
        while running.dispatcher.in_flight < 190:
            await asyncio.sleep(0.05)  # wait until the hanging trackers use their slots
    await add_tracker(running, receiver.url("/well"))
    slowest = 0.0
    for number in range(1, 11):
        began = time.monotonic()
        await click(running, 1)
        async with asyncio.timeout(PATIENCE):
            while sum(request.target == "/well" for request in receiver.requests) < number:
                await asyncio.sleep(0.005)  # wait until the healthy tracker has received the event
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < SOON_SECONDS, "the hanging attempts last 60 seconds"


async def test_callbacks_to_hosts_that_hang_leave_slots_for_trackers(running: Service, receiver: Receiver) -> None:
    hanging = Receiver()
    hanging.default_reply = Reply(hang=True)
    slots = running.settings.delivery_slots
    usable = slots - slots // RESERVED_PART

    def url_on_host(number: int) -> str:
        return f"http://127.0.{number // 200}.{number % 200 + 1}:{hanging.port}/"

    async with hanging.listen("0.0.0.0"):
        await click(running, slots + 44, url_on_host)
        await hanging.wait_for(usable)
        assert running.dispatcher.in_flight == usable, "the callbacks of an application leave some slots free"
        await add_tracker(running, receiver.url("/well"))
        began = time.monotonic()
        await click(running, 1)
        await receiver.wait_for(1)
        assert time.monotonic() - began < SOON_SECONDS, "the hanging attempts last 60 seconds"
        assert len(hanging.requests) == usable


async def test_callbacks_to_names_that_never_resolve_occupy_no_dns_lookup_of_a_tracker(
    running: Service, receiver: Receiver
) -> None:
    waiting: list[str] = []
    is_released = threading.Event()

    def lookup(host: str, port: int) -> list[str]:
        if host == "good.example":
            return ["127.0.0.1"]
        waiting.append(host)
        is_released.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_AGAIN, "no response")

    running.trackers._guard.lookup = lookup
    await click(running, MAX_LOOKUPS + 8, lambda number: f"http://x.dead{number}.example/")
    try:
        async with asyncio.timeout(PATIENCE):
            while len(waiting) < MAX_LOOKUPS:
                await asyncio.sleep(0.005)  # wait until the callbacks use all of their threads
        await add_tracker(running, f"http://good.example:{receiver.port}/well")
        await click(running, 1)
        await receiver.wait_for(1)
    finally:
        is_released.set()
    assert receiver.requests[0].target == "/well"
