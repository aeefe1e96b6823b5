"""This module contains helpers for tests that run a dispatcher."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from sqlalchemy import Connection, Row, insert

from shortener.clicks.throttle import Throttle
from shortener.container import Service
from shortener.delivery.dispatcher import Dispatcher
from shortener.delivery.sender import Sender
from shortener.errors import StoreUnavailable
from shortener.model import DeliveryStatus, Topic
from shortener.storage import schema
from shortener.storage.database import Database
from tests.conftest import NOON, Clock
from tests.factory import rows
from tests.receiver import Receiver

P = ParamSpec("P")
T = TypeVar("T")

PENDING, DELIVERED, DEAD = (int(status) for status in (DeliveryStatus.PENDING, DeliveryStatus.DELIVERED, DeliveryStatus.DEAD))


async def deliver(service: Service) -> None:
    """Create the deliveries of all pending events and attempt all due deliveries once."""
    await service.fanout.flush()
    await service.dispatcher.flush()


async def fill(service: Service, tracker: int, status: DeliveryStatus, count: int, **more: Any) -> list[int]:
    """Insert `count` deliveries without an event for a tracker, and return the ids of the deliveries."""
    ids = [service.ids() for _ in range(count)]
    has_ended = status in (DeliveryStatus.DELIVERED, DeliveryStatus.DEAD)
    common = {
        "topic": Topic.CLICK.value,
        "application_id": 1,
        "tracker_id": tracker,
        "lane": f"t{tracker}",
        "status": status.value,
        "attempt": 1,
        "next_at": NOON,
        "created_at": service.clock(),
        "finished_at": service.clock() if has_ended else None,
        **more,
    }

    def write(connection: Connection) -> None:
        connection.execute(insert(schema.deliveries), [{"id": number, "event_id": number, **common} for number in ids])

    await service.database.write(write)
    return ids


async def deliveries(service: Service) -> list[Row[Any]]:
    return await rows(service.database, schema.deliveries)


async def delivery(service: Service) -> Row[Any]:
    """Return the row of the only delivery in the database."""
    (row,) = await deliveries(service)
    return row


async def tracker_row(service: Service, tracker: int) -> Row[Any]:
    return next(row for row in await rows(service.database, schema.trackers) if row.id == tracker)


def statuses(found: list[Row[Any]]) -> Counter[int]:
    """Return the number of deliveries with each status."""
    return Counter(row.status for row in found)


def other_dispatcher(service: Service, database: Database | None = None, sender: Sender | None = None) -> Dispatcher:
    """Return a new dispatcher, which simulates another process or a restart of this process."""
    store = database or service.database
    rng = random.Random(1)
    senders = (sender, sender) if sender else (service.sender, service.callback_sender)
    return Dispatcher(store, service.trackers, *senders, service.ids, service.clock, service.settings, rng, Throttle())


async def run_attempts(dispatcher: Dispatcher) -> None:
    """Run a dispatch cycle and wait until its attempts have ended. Their outcomes are not recorded yet."""
    await dispatcher.step()
    await asyncio.wait(dispatcher.attempts.tasks)


async def start_attempts(dispatcher: Dispatcher, receiver: Receiver, requests: int) -> None:
    """Run a dispatch cycle and wait until `requests` requests have reached the receiver. The receiver must not respond."""
    assert await dispatcher.step() >= requests
    await receiver.wait_for(requests)


def cancel_attempts(dispatcher: Dispatcher) -> None:
    """Cancel all running attempts without recording their outcomes, to simulate a killed process."""
    for task in dispatcher.attempts.tasks:
        task.cancel()


class SlowDatabase:
    """A database whose writes seem slow: each write moves the test clock forward by the next value of `seconds`, if any."""

    def __init__(self, database: Database, clock: Clock, *seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._seconds = list(seconds)

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        result = await self._database.write(transact, *args, **kwargs)
        if self._seconds:
            self._clock.forward(seconds=self._seconds.pop(0))
        return result

    async def write_later(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.write(transact, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


class UnavailableDatabase:
    """A database whose writes raise StoreUnavailable while `down` is true."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.down = False

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]:
        return self._database.dialect

    @property
    def node(self) -> int:
        return self._database.node

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.down:
            raise StoreUnavailable("down")
        return await self._database.write(transact, *args, **kwargs)

    async def write_later(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.write(transact, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


class CountingDatabase(UnavailableDatabase):
    """A database that counts its write transactions."""

    transactions = 0

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.transactions += 1
        return await super().write(transact, *args, **kwargs)


def now_ms(clock: Clock) -> int:
    """Return the time of the test clock in milliseconds since 1970-01-01 UTC."""
    return int(clock().timestamp() * 1000)


async def facts_of_events(service: Service) -> list[Any]:
    return [row.facts for row in await rows(service.database, schema.events)]
