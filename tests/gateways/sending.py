"""Helpers that run the dispatcher of the gateways in tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from shortener.clicks.throttle import Throttle
from shortener.container import Service
from shortener.gateways.connections import Connections
from shortener.gateways.dispatcher import GatewayDispatcher
from shortener.gateways.early_reports import MessageNotKnownYet
from shortener.gateways.report_calls import ReportCall
from shortener.gateways.submission import GatewayReport
from shortener.model import SendStatus
from shortener.storage.database import Database
from tests.conftest import Clock
from tests.receiver import Receiver

P = ParamSpec("P")
T = TypeVar("T")

PENDING, SENT, FAILED, HELD = (int(status) for status in SendStatus)


class BusyDatabase:
    """A database whose transactions of bulk work begin late: each one moves the test clock forward by `seconds`, as if it had
    waited for other transactions."""

    def __init__(self, database: Database, clock: Clock, seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._seconds = seconds

    async def write_later(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._clock.forward(seconds=self._seconds)
        return await self._database.write_later(transact, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def other_process(service: Service, database: Any = None) -> GatewayDispatcher:
    """Return a new dispatcher on the same database, or on `database`. It simulates another process or a restart of this process."""
    connections = Connections(service.gateway_connections.context, service.gateway_connections.kinds)
    return GatewayDispatcher(
        database or service.database,
        service.gateways,
        connections,
        service.delivery_reports,
        service.ids,
        service.clock,
        service.settings,
        random.Random(1),
        Throttle(),
    )


async def start_attempts(dispatcher: GatewayDispatcher, receiver: Receiver, requests: int) -> None:
    """Run a dispatch cycle and wait until `requests` requests have reached the receiver, which must not respond."""
    assert await dispatcher.step() >= requests
    await receiver.wait_for(requests)


def kill(dispatcher: GatewayDispatcher) -> None:
    """Cancel the running attempts of a dispatcher without recording them, as if its process was killed."""
    for task in dispatcher.attempts.tasks:
        task.cancel()


async def receive(service: Service, gateway_id: int, report: GatewayReport, states: Mapping[str, str] | None = None) -> bool:
    """Receive a delivery report of a gateway in a call of its own. Return whether it was recorded."""
    reports = service.gateway_reports
    unrecorded = reports.unrecorded.of_gateway(gateway_id)
    try:
        await reports.receive_all(gateway_id, ReportCall([report], {}), states or {})
    except MessageNotKnownYet:
        return False
    return reports.unrecorded.of_gateway(gateway_id) == unrecorded
