"""Tests of replies on the connections of gateways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shortener.accounts.gateway_entries import GatewayEntry
from shortener.container import Service
from shortener.storage import schema
from tests.factory import rows
from tests.web.calls import TO

GATEWAY = 5


async def test_the_replies_of_a_phone_on_the_connection_of_a_gateway_are_recorded_in_the_order_of_their_arrival(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The seconds that each call in a thread takes. If the replies did not wait for each other, the second reply of each pair would
    # be recorded first.
    pauses = iter([0.05, 0, 0.05, 0])

    async def to_thread(function: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(next(pauses, 0))
        return function(*args)

    monkeypatch.setattr("shortener.gateways.replies.asyncio.to_thread", to_thread)
    [application] = service.directory.applications()
    gateways = {GATEWAY: GatewayEntry(GATEWAY, application.id, "own", "http", True)}

    def receive(text: str) -> asyncio.Task[None]:
        return asyncio.create_task(service.replies.receive(gateways, GATEWAY, TO.removeprefix("+"), text))

    await asyncio.gather(*map(receive, ("STOP", "START")))
    assert await rows(service.database, schema.opt_outs) == []
    await asyncio.gather(*map(receive, ("START", "STOP")))
    assert [row.phone for row in await rows(service.database, schema.opt_outs)] == [TO]
