"""Tests of the kind of device and the browser. A first click keeps them after the purge has removed its user agent."""
# This file tests shortener/retention/purge.py.

from __future__ import annotations

from datetime import timedelta

import pytest

from shortener.clicks import user_agents
from shortener.container import Service
from shortener.reporting.count_check import verify
from shortener.reporting.hits import HitFilter, list_hits
from shortener.reporting.statistics import StatisticsFilter, totals
from shortener.retention.purge import PurgeResult, purge
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS, create_codes, fetch_rows, forget_expressions, make_hit
from tests.conftest import NOON, Clock, MakeService

IPHONE = PHONE_HEADERS["User-Agent"]


@pytest.fixture
async def service(make_service: MakeService) -> Service:
    """A service with a longer retention for messages than for hits."""
    return await make_service(hit_retention_days=10)


async def click_and_count(service: Service, clock: Clock) -> None:
    """Record a first click and run the job that counts it by device. Then move the clock forward until the retention of the hit
    has ended."""
    (code,) = await create_codes(service)
    await service.recorder.record(make_hit(service, code, user_agent=IPHONE))
    clock.forward(minutes=5)
    await service.devices.catch_up()
    await service.fanout.flush()
    clock.forward(days=service.settings.hit_retention_days + 1)


async def test_the_clicks_by_device_and_the_list_of_clicks_agree_after_the_purge_of_a_first_click(
    service: Service, clock: Clock
) -> None:
    await click_and_count(service, clock)
    assert (await purge(service.database, service.settings, clock())).emptied_hits == 1
    (hit,) = await fetch_rows(service, schema.hits)
    assert (hit.address, hit.user_agent, hit.device_class) == ("", "", "phone\nSafari")
    since, until = NOON - timedelta(days=1), NOON + timedelta(days=1)
    for device, browser, rows in (("phone", "Safari", 1), ("other", "other", 0)):
        for filters in (HitFilter(1, since, until, device=device), HitFilter(1, since, until, browser=browser)):
            assert len((await service.database.read(list_hits, filters, 10)).rows) == rows, (device, browser)
    figures = (await service.database.read(totals, StatisticsFilter(1, since, until))).groups[None]
    assert (figures.devices, figures.browsers) == ({"phone": 1}, {"Safari": 1})
    assert await service.database.read(verify, since, until) == []
    assert (await purge(service.database, service.settings, clock())).emptied_hits == 0


async def test_the_purge_loads_the_expressions_for_user_agents_before_the_transaction_that_parses_one(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_expressions(monkeypatch)
    assert await purge(service.database, service.settings, clock()) == PurgeResult()
    assert not user_agents.has_expressions(), "a purge that empties no hit needs no expressions"
    monkeypatch.undo()
    await click_and_count(service, clock)
    forget_expressions(monkeypatch)
    assert (await purge(service.database, service.settings, clock())).emptied_hits == 1
