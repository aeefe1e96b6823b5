"""Devices and browsers of clicks: counted once, behind the hot path, whatever comes late."""

import asyncio
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from shortener.clicks import device_counts
from shortener.clicks.batch import HitBatchWriter
from shortener.clicks.device_counts import LAG_MS, last_counted_hit
from shortener.clicks.resolver import LinkResolver
from shortener.container import Service
from shortener.model import Verdict
from shortener.outbox.count_deltas import CountDelta
from shortener.reporting.counts import verify
from shortener.reporting.statistics import StatisticsFilter, totals
from shortener.retention.erasure import erase_message
from shortener.storage import schema
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import fetch_rows as rows
from tests.clicks.helpers import make_hit as hit
from tests.conftest import NOON, Clock, MakeService

IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)
DESKTOP = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:143.0) Gecko/20100101 Firefox/143.0"
OLD_ENOUGH = timedelta(milliseconds=LAG_MS, seconds=1)


async def click(service: Service, code: str, user_agent: str = IPHONE, **more: Any) -> None:
    await service.recorder.record(hit(service, code, user_agent=user_agent, **more))


async def counted(service: Service) -> dict[str, int]:
    """By device and browser, as far as the job has come."""
    added: Counter[str] = Counter()
    for tally in await rows(service, schema.count_deltas):
        for _, _, metric, amount in tally.data:
            if metric.startswith(("device:", "browser:")):
                added[metric] += int(amount)
    return dict(added)


async def check_counts(service: Service) -> None:
    assert await service.database.read(verify, NOON - timedelta(days=1), NOON + timedelta(days=1)) == []


async def test_clicks_are_counted_by_device_and_browser_some_minutes_later(service: Service, clock: Clock) -> None:
    (code,) = await send(service)
    for agent in (IPHONE, IPHONE, DESKTOP):
        await click(service, code, agent)
    step = service.jobs.table["devices"].step
    assert await step() == 0
    assert await counted(service) == {}
    await check_counts(service)
    clock.now += OLD_ENOUGH
    await step()
    expected = {"device:phone": 2, "browser:Safari": 2, "device:desktop": 1, "browser:Firefox": 1}
    assert await counted(service) == expected
    await step()
    assert await counted(service) == expected
    await check_counts(service)


async def test_only_clicks_are_counted(service: Service, clock: Clock) -> None:
    (code,) = await send(service, expires_in=60)
    await click(service, code, verdict=Verdict.SUSPECTED)
    await click(service, code, verdict=Verdict.IGNORED)
    clock.forward(minutes=2)
    await click(service, code)
    clock.now += OLD_ENOUGH
    await service.devices.catch_up(service.now_ms())
    assert await counted(service) == {}
    assert await service.database.read(last_counted_hit) == (await rows(service, schema.hits))[-1].id


async def test_a_hit_that_is_written_after_the_job_has_passed_it_is_counted_with_it(service: Service, clock: Clock) -> None:
    (code,) = await send(service)
    waited = [hit(service, code, user_agent=DESKTOP) for _ in range(2)]
    clock.forward(seconds=1)
    await click(service, code)
    last = hit(service, code, user_agent=DESKTOP)  # late, but not yet passed
    clock.now += OLD_ENOUGH
    await service.devices.catch_up(service.now_ms())
    clock.forward(seconds=1)
    for late in (*waited, last):
        await service.recorder.record(late)
    assert await counted(service) == {"device:phone": 1, "browser:Safari": 1, "device:desktop": 2, "browser:Firefox": 2}
    await check_counts(service)
    await service.devices.catch_up(service.now_ms())
    assert (await counted(service))["device:desktop"] == 3
    await check_counts(service)


async def test_an_old_hit_behind_a_new_one_in_the_same_batch_is_counted_too(service: Service, clock: Clock) -> None:
    (code,) = await send(service)
    old = hit(service, code, user_agent=DESKTOP)
    clock.forward(seconds=1)
    await click(service, code)
    clock.now += OLD_ENOUGH
    await service.devices.catch_up(service.now_ms())
    writer = HitBatchWriter(service.ids, LinkResolver(service.directory, service.click_ids), service.directory)
    await service.database.write(writer.write, [hit(service, code), old])
    assert (await counted(service))["device:desktop"] == 1
    await check_counts(service)


async def test_a_late_hit_that_comes_between_reading_a_page_and_keeping_it_is_not_missed(service: Service, clock: Clock) -> None:
    (code,) = await send(service)
    waited = hit(service, code, user_agent=DESKTOP)
    await click(service, code)
    clock.now += OLD_ENOUGH
    page = await service.database.read(device_counts._read_page, service.ids())
    await service.recorder.record(waited)
    assert await service.database.write(service.devices._store, page, CountDelta()) is False, "to be read again"
    await service.devices.catch_up(service.now_ms())
    assert await counted(service) == {"device:phone": 1, "browser:Safari": 1, "device:desktop": 1, "browser:Firefox": 1}
    await check_counts(service)


async def test_several_processes_count_everything_once(
    make_service: MakeService, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_counts, "PAGE_HITS", 7)
    one = await make_service()
    two = one if one.database.dialect == "sqlite" else await make_service()
    (code,) = await send(one)
    for _ in range(30):
        await click(one, code)
    clock.now += OLD_ENOUGH

    async def walk(service: Service) -> None:
        while await service.database.read(last_counted_hit) < (await rows(one, schema.hits))[-1].id:
            await service.devices.step(service.now_ms())

    await asyncio.gather(walk(one), walk(two), walk(one))
    assert await counted(one) == {"device:phone": 30, "browser:Safari": 30}
    await check_counts(one)


async def test_statistics_tell_them_and_verify_knows_them(service: Service, clock: Clock) -> None:
    (code,) = await send(service)
    await click(service, code)
    await click(service, code, DESKTOP)
    clock.now += OLD_ENOUGH
    await service.devices.catch_up(service.now_ms())
    figures = (await service.database.read(totals, StatisticsFilter(1, NOON, NOON + timedelta(hours=1)))).groups[None]
    assert (figures.devices, figures.browsers) == ({"phone": 1, "desktop": 1}, {"Safari": 1, "Firefox": 1})
    await service.jobs.table["counts"].step()
    figures = (await service.database.read(totals, StatisticsFilter(1, NOON, NOON + timedelta(hours=1)))).groups[None]
    assert figures.devices == {"phone": 1, "desktop": 1}
    await check_counts(service)
    lost = schema.counts.c.metric == "device:phone"
    await service.database.write(lambda connection: connection.execute(schema.counts.delete().where(lost)))
    (drift,) = await service.database.read(verify, NOON, NOON + timedelta(hours=1))
    assert (drift.metric, drift.kept, drift.counted) == ("device:phone", Decimal(0), Decimal(1))


async def test_after_an_erasure_the_counts_are_still_right(service: Service, clock: Clock) -> None:
    for number in range(2):
        (code,) = await send(service, message_ids=(f"m-{number}",))
        await click(service, code)
    clock.now += OLD_ENOUGH
    await service.devices.catch_up(service.now_ms())
    await service.database.write(erase_message, 1, "m-0", clock())
    assert (await counted(service))["device:phone"] == 2
    await check_counts(service)
