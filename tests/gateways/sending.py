"""Helpers that run the dispatcher of the gateways in tests."""

from __future__ import annotations

import random

from shortener.clicks.throttle import Throttle
from shortener.container import Service
from shortener.gateways.dispatcher import GatewayDispatcher
from shortener.gateways.submission import Connections
from shortener.model import SendStatus
from tests.receiver import Receiver

PENDING, SENT, FAILED, HELD = (int(status) for status in SendStatus)


def other_process(service: Service) -> GatewayDispatcher:
    """Return a new dispatcher on the same database. It simulates another process or a restart of this process."""
    connections = Connections(service.gateway_connections.context, service.gateway_connections.kinds)
    return GatewayDispatcher(
        service.database,
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
    for task in dispatcher._tasks:
        task.cancel()
