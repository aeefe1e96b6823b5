"""Tests, on SQLite, that bulk work does not delay clicks and other short transactions. Bulk work must use
`Database.write_later`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection

from shortener.clicks.verdicts.correction import apply_changes
from shortener.container import Service
from shortener.delivery.deliveries import DeliveryFilter
from shortener.retention.erasure import REPEAT_AFTER_SECONDS, erase
from shortener.retention.erasure_repeats import ErasureRepeats
from tests.conftest import Clock
from tests.factory import AUDIT, keep_sends

PHONE = "+14085550100"
BODY = '#track("https://shop.example/")'


@pytest.fixture
async def bulk(service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that the service has run as bulk work. A message to PHONE is stored before the test."""
    assert (await client.post("/api/v1/rewrite", json={"to": PHONE, "body": BODY})).status_code == 200
    names: list[str] = []
    write_later = service.database.write_later

    async def noted(transact: Callable[..., Any], *args: Any, **options: Any) -> Any:
        def run(connection: Connection) -> Any:
            names.append(transact.__name__)
            return transact(connection, *args, **options)

        return await write_later(run)

    monkeypatch.setattr(service.database, "write_later", noted)
    return names


async def test_the_erasure_of_a_person_and_its_repeats_are_bulk_work(service: Service, clock: Clock, bulk: list[str]) -> None:
    assert (await erase(service.database, None, PHONE, clock(), AUDIT, keep_sends)).messages == 1
    assert set(bulk) == {"erase_phone_number"}
    clock.forward(seconds=REPEAT_AFTER_SECONDS[0])
    assert await ErasureRepeats(service.database, service.cache).step(clock()) == 1
    assert bulk[-1] == "_repeat"


async def test_an_update_of_many_links_is_bulk_work(service: Service, client: httpx.AsyncClient, bulk: list[str]) -> None:
    changed = {"destination": "https://shop.example/", "url": "https://new.example/"}
    assert (await client.post("/api/v1/links/update", json=changed)).status_code == 202
    while await service.link_updates.step():
        pass
    assert "_change" in bulk


async def test_a_replay_of_the_dead_deliveries_of_a_tracker_is_bulk_work(service: Service, clock: Clock, bulk: list[str]) -> None:
    await service.deliveries.replay_dead(AUDIT, DeliveryFilter(1, tracker_id=1), clock())
    assert bulk == ["_replay_dead_batch"]


async def test_changes_of_the_lists_of_opt_outs_and_blocked_hosts_are_bulk_work(client: httpx.AsyncClient, bulk: list[str]) -> None:
    assert (await client.post("/api/v1/opt-outs", json={"phone": PHONE})).status_code < 300
    assert (await client.delete(f"/api/v1/opt-outs/{PHONE}")).status_code < 300
    assert (await client.post("/api/v1/blocked-hosts", json={"host": "bad.example"})).status_code < 300
    assert (await client.delete("/api/v1/blocked-hosts/bad.example")).status_code < 300
    assert bulk == ["_add", "remove_opt_out", "block_host", "unblock_host"]


async def test_a_correction_of_verdicts_is_bulk_work(service: Service, clock: Clock, bulk: list[str]) -> None:
    await apply_changes(service.database, [], service.ids, clock())
    assert bulk == ["change"]


async def test_the_cycles_of_the_fan_out_and_of_both_dispatchers_are_bulk_work(
    service: Service, client: httpx.AsyncClient, bulk: list[str]
) -> None:
    gateway = {"name": "test", "kind": "simulator"}
    assert (await client.post("/api/v1/gateways", json=gateway)).status_code < 300
    message = {"to": PHONE, "body": BODY, "gateway": "test"}
    assert (await client.post("/api/v1/rewrite", json=message)).json()["messages"][0]["sent"]
    bulk.clear()
    await service.fanout.step()
    await service.dispatcher.step()
    await service.gateway_dispatcher.step()
    assert bulk == ["_fan_out", "_write_cycle", "_write_cycle"]


async def test_rewrites_and_delivery_reports_are_bulk_work(client: httpx.AsyncClient, bulk: list[str]) -> None:
    message = (await client.post("/api/v1/rewrite", json={"to": PHONE, "body": BODY})).json()["messages"][0]
    report = {"message_id": message["message_id"], "state": "DELIVERED"}
    assert (await client.post("/api/v1/sms/status", json=report)).status_code == 200
    assert bulk == ["_transact", "_transact"]
