"""Tests of the open connections of a process to gateways."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from pydantic import BaseModel

from shortener.container import Service
from shortener.gateways.connection_keeper import ConnectionKeeper
from shortener.gateways.connections import Connections
from shortener.gateways.gateway import NewGateway
from shortener.gateways.simulator import KIND, SimulatorGateway, SimulatorSettings
from shortener.gateways.submission import GatewayConfig, GatewayConnection, GatewayContext
from tests.factory import AUDIT
from tests.gateways.smpp.smsc import running_smsc
from tests.servers import PATIENCE

CONFIG = GatewayConfig(2, "test", KIND.name, revision=1, settings=SimulatorSettings(), report_url="")


class ClosableGateway(SimulatorGateway):
    """A connection to the simulator that states whether it was closed."""

    is_closed = False

    async def close(self) -> None:
        self.is_closed = True
        await super().close()


class ClosableKind(type(KIND)):  # type: ignore[misc] # mypy permits no base class that is computed
    """The kind `simulator` with connections that state whether they were closed."""

    settings_model: type[BaseModel] = SimulatorSettings

    def open(self, config: GatewayConfig, context: GatewayContext) -> GatewayConnection:
        return ClosableGateway(config, context)


async def test_attempts_share_a_connection_until_the_settings_of_the_gateway_change(service: Service) -> None:
    connections = Connections(service.gateway_connections.context, {KIND.name: ClosableKind()})
    async with connections.use(CONFIG) as first, connections.use(CONFIG) as second:
        assert first is second
        assert isinstance(first, ClosableGateway)
        async with connections.use(replace(CONFIG, revision=2)) as changed:
            assert changed is not first
            assert not first.is_closed, "two attempts use the connection"
    assert first.is_closed
    async with connections.use(replace(CONFIG, revision=2)) as again:
        assert again is changed
    assert isinstance(changed, ClosableGateway)
    assert not changed.is_closed
    await connections.close()
    assert changed.is_closed


async def test_the_connections_say_whether_the_connection_to_a_gateway_is_open(service: Service) -> None:
    connections = service.gateway_connections
    async with running_smsc() as smsc:
        settings = {"url": f"smpp://127.0.0.1:{smsc.port}", "system_id": "x"}
        gateway = await service.gateways.create(AUDIT, 1, NewGateway(name="smsc", kind="smpp", settings=settings))
        http = await service.gateways.create(AUDIT, 1, NewGateway(name="simulated", kind="simulator"))
        assert connections.is_open(gateway.id) is None, "this process has not used the gateway yet"
        await service.directory.refresh()
        await ConnectionKeeper(service.gateways, service.directory, connections).step()
        async with connections.use(http.config), asyncio.timeout(PATIENCE):
            while not connections.is_open(gateway.id):
                await asyncio.sleep(0.01)  # wait a moment before the condition is checked again
            assert connections.is_open(http.id) is None, "this kind keeps no connection open"
    async with asyncio.timeout(PATIENCE):
        while connections.is_open(gateway.id):
            await asyncio.sleep(0.01)  # wait a moment before the condition is checked again
    assert connections.is_open(gateway.id) is False
    await connections.close()
