"""Tests of the background job that keeps the connections of gateways open."""

from __future__ import annotations

import asyncio

from sqlalchemy import update

from shortener.container import Service
from shortener.gateways.connection_keeper import ConnectionKeeper
from shortener.gateways.gateway import NewGateway
from shortener.metrics import Metrics
from shortener.storage import schema
from tests.factory import AUDIT
from tests.gateways.smpp.smsc import running_smsc
from tests.servers import PATIENCE, free_port


async def test_a_gateway_whose_settings_are_unusable_does_not_prevent_the_connections_of_the_others(service: Service) -> None:
    async with running_smsc() as smsc:
        settings = {"url": f"smpp://127.0.0.1:{smsc.port}", "system_id": "x"}
        first, _second = [
            await service.gateways.create(AUDIT, 1, NewGateway(name=name, kind="smpp", settings=settings))
            for name in ("first", "second")
        ]
        await service.directory.refresh()
        table = schema.gateways
        broken = update(table).where(table.c.id == first.id).values(settings="not encrypted")
        await service.database.write(lambda connection: connection.execute(broken).rowcount)
        await ConnectionKeeper(service.gateways, service.directory, service.gateway_connections).step()
        await smsc.wait_for(lambda: len(smsc.binds) == 1)
        await service.gateway_connections.close()


async def test_a_metric_says_whether_the_process_has_a_session_with_each_smpp_gateway(service: Service) -> None:
    async with running_smsc() as smsc:
        made = {
            name: await service.gateways.create(
                AUDIT, 1, NewGateway(name=name, kind="smpp", settings={"url": f"smpp://127.0.0.1:{port}", "system_id": "x"})
            )
            for name, port in (("works", smsc.port), ("refused", free_port()))
        }
        await service.directory.refresh()
        keeper, metrics = ConnectionKeeper(service.gateways, service.directory, service.gateway_connections), Metrics()
        keeper.register_metrics(metrics)

        def line(name: str, value: float) -> str:
            return f'shortener_gateway_link_up{{gateway="{made[name].id}",name="{name}"}} {value}'

        await keeper.step()
        async with asyncio.timeout(PATIENCE):
            while line("works", 1.0) not in metrics.text("")[0].decode():
                await asyncio.sleep(0.01)  # the pause between two checks
        assert line("refused", 0.0) in metrics.text("")[0].decode()
        await service.gateways.remove(AUDIT, made["refused"].id)
        await service.directory.refresh()
        await keeper.step()
        assert "refused" not in metrics.text("")[0].decode()
        await service.gateway_connections.close()
