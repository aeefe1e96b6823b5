"""Tests of the state of the queues of gateways, such as the number of waiting messages."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, insert, update

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.gateways.gateway import NewGateway
from shortener.metrics import Metrics
from shortener.reporting.gateway_queues import GatewayQueue, read_gateway_queues, register_gateway_metrics
from shortener.reporting.queues import QueueMonitor
from shortener.storage import schema
from tests.conftest import NOON, Clock
from tests.factory import AUDIT


def send(connection: Connection, number: int, gateway: int, seconds: float, **more: Any) -> None:
    """Insert a message that was queued `seconds` ago for a gateway."""
    at = NOON - timedelta(seconds=seconds)
    values = {"application_id": 1, "status": 0, "next_at": NOON + timedelta(hours=1), "created_at": at} | more
    connection.execute(insert(schema.sends).values(id=number, gateway_id=gateway, **values))


async def test_the_messages_that_wait_for_a_gateway_are_counted_with_the_age_of_the_oldest_one(
    service: Service, clock: Clock
) -> None:
    busy, idle, off, gone = [
        (await service.gateways.create(AUDIT, 1, NewGateway(name=name, kind="simulator"))).id
        for name in ("busy", "idle", "off", "gone")
    ]
    other = await service.database.write(create_application, "other", NOON)

    def fill(connection: Connection) -> None:
        send(connection, 1, busy, 60)
        send(connection, 2, busy, 600, queue=1)
        send(connection, 3, busy, 900, application_id=other.application_id)
        send(connection, 4, busy, 1200, status=3, doubtful=True)
        send(connection, 5, busy, 1200, status=1)
        send(connection, 6, off, 900)
        send(connection, 7, gone, 900)
        changes: dict[int, dict[str, Any]] = {
            busy: {"open_until": NOON + timedelta(seconds=30), "failures_in_row": 12, "last_success_at": NOON},
            off: {"enabled": False, "disabled_reason": "the secret is lost", "open_until": NOON, "failures_in_row": 10},
            gone: {"removed_at": NOON},
        }
        gateways, applications = schema.gateways, schema.applications
        for gateway, values in changes.items():
            connection.execute(update(gateways).where(gateways.c.id == gateway).values(values))
        connection.execute(update(applications).where(applications.c.id == other.application_id).values(disabled_at=NOON))

    await service.database.write(fill)
    monitor = QueueMonitor(service.database, service.settings, clock)
    await monitor.step()
    found = {one.name: one for one in monitor.gateways}
    assert set(found) == {"simulator", "busy", "idle", "off"}
    assert found["busy"] == GatewayQueue(
        busy, "busy", True, None, waiting=3, oldest_seconds=600, held=1, is_open=True, failures_in_row=12, last_success_at=NOON
    )
    assert found["idle"] == GatewayQueue(idle, "idle", True, None)
    assert found["off"] == GatewayQueue(off, "off", False, "the secret is lost", waiting=1, failures_in_row=10)
    metrics = Metrics()
    register_gateway_metrics(metrics, lambda: monitor.gateways)
    text = metrics.text("")[0].decode()
    labels = f'{{gateway="{busy}",name="busy"}}'
    for line in (
        f"shortener_gateway_waiting{labels} 3.0",
        f"shortener_gateway_oldest_waiting_seconds{labels} 600.0",
        f"shortener_gateway_messages_held{labels} 1.0",
        f"shortener_gateway_breaker_open{labels} 1.0",
        f'shortener_gateway_breaker_open{{gateway="{off}",name="off"}} 0.0',
    ):
        assert line in text


async def test_a_gateway_for_which_nothing_waits_has_the_age_zero(service: Service) -> None:
    [simulator] = await service.database.read(read_gateway_queues, NOON)
    assert simulator == GatewayQueue(simulator.id, "simulator", True, None)
