"""Tests of the counts of clicks by device and browser. The background job counts each click once, even if it is stored late."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from shortener.clicks import device_counts
from shortener.clicks.batch import HitBatchWriter
from shortener.clicks.device_counts import LAG_MS, DeviceCounter, last_counted_hit
from shortener.clicks.resolver import LinkResolver
from shortener.clicks.user_agents import load_expressions
from shortener.container import Service
from shortener.model import Verdict
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import CountDelta
from shortener.reporting.count_check import verify
from shortener.reporting.counts import fold
from shortener.reporting.statistics import StatisticsFilter, totals
from shortener.retention.erasure import erase_message
from shortener.storage import schema
from shortener.storage.clock import SharedClock
from tests.clicks.helpers import PHONE_HEADERS, create_codes, fetch_rows, forget_expressions, make_hit
from tests.conftest import NOON, Clock, MakeService
from tests.factory import AUDIT, keep_sends

IPHONE = PHONE_HEADERS["User-Agent"]
DESKTOP = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:143.0) Gecko/20100101 Firefox/143.0"
OLD_ENOUGH = timedelta(milliseconds=LAG_MS, seconds=1)


async def record_click(service: Service, code: str, user_agent: str = IPHONE, **more: Any) -> None:
    await service.recorder.record(make_hit(service, code, user_agent=user_agent, **more))


async def device_sums(service: Service) -> dict[str, int]:
    """Return the sum of all count deltas for each device and each browser, by metric."""
    added: Counter[str] = Counter()
    for row in await fetch_rows(service, schema.count_deltas):
        for _, _, metric, amount in row.data:
            if metric.startswith(("device:", "browser:")):
                added[metric] += int(amount)
    return dict(added)


async def assert_counts_match(service: Service) -> None:
    assert await service.database.read(verify, NOON - timedelta(days=1), NOON + timedelta(days=1)) == []


async def test_the_device_job_counts_clicks_by_device_and_browser_two_minutes_after_the_click(
    service: Service, clock: Clock
) -> None:
    (code,) = await create_codes(service)
    for agent in (IPHONE, IPHONE, DESKTOP):
        await record_click(service, code, agent)
    step = service.jobs.table["devices"].step
    assert await step() == 0
    assert await device_sums(service) == {}
    await assert_counts_match(service)
    clock.now += OLD_ENOUGH
    await step()
    expected = {"device:phone": 2, "browser:Safari": 2, "device:desktop": 1, "browser:Firefox": 1}
    assert await device_sums(service) == expected
    await step()
    assert await device_sums(service) == expected
    await assert_counts_match(service)


async def test_the_device_job_writes_the_counts_of_many_clicks_in_rows_of_limited_size(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single large row would be slow: it is folded in many transactions, and each of them writes the rest of the row again."""
    monkeypatch.setattr(count_deltas, "MAX_ENTRIES_PER_ROW", 2)
    for _ in range(3):
        (code,) = await create_codes(service)
        for agent in (IPHONE, DESKTOP):
            await record_click(service, code, agent)
        clock.forward(minutes=15)
    while await service.database.write(fold):
        pass
    await service.devices.catch_up()
    rows = await fetch_rows(service, schema.count_deltas)
    assert [len(row.data) for row in rows] == [2] * 6
    assert len({row.origins[0][0] for row in rows}) == 3
    assert sum((await device_sums(service)).values()) == 12
    while await service.database.write(fold):
        pass
    await assert_counts_match(service)


async def test_the_device_counts_contain_clicks_and_no_other_hits(service: Service, clock: Clock) -> None:
    (code,) = await create_codes(service, expires_in=60)
    await record_click(service, code, verdict=Verdict.SUSPECTED)
    await record_click(service, code, verdict=Verdict.IGNORED)
    clock.forward(minutes=2)
    await record_click(service, code)
    clock.now += OLD_ENOUGH
    await service.devices.catch_up()
    assert await device_sums(service) == {}
    assert await service.database.read(last_counted_hit) == (await fetch_rows(service, schema.hits))[-1].id


async def test_a_late_click_whose_id_the_device_job_has_already_passed_is_counted_by_device_at_once(
    service: Service, clock: Clock
) -> None:
    (code,) = await create_codes(service)
    delayed = [make_hit(service, code, user_agent=DESKTOP) for _ in range(2)]
    clock.forward(seconds=1)
    await record_click(service, code)
    last = make_hit(service, code, user_agent=DESKTOP)  # this hit is old too, but the job has only passed smaller ids
    clock.now += OLD_ENOUGH
    await service.devices.catch_up()
    clock.forward(seconds=1)
    for late in (*delayed, last):
        await service.recorder.record(late)
    assert await device_sums(service) == {"device:phone": 1, "browser:Safari": 1, "device:desktop": 2, "browser:Firefox": 2}
    await assert_counts_match(service)
    await service.devices.catch_up()
    assert (await device_sums(service))["device:desktop"] == 3
    await assert_counts_match(service)


async def test_a_late_click_from_the_spool_loads_the_expressions_for_user_agents_before_its_transaction(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = await create_codes(service)
    delayed = make_hit(service, code, user_agent=DESKTOP)
    clock.forward(seconds=1)
    await record_click(service, code)
    clock.now += OLD_ENOUGH
    await service.devices.catch_up()
    forget_expressions(monkeypatch)
    await service.recorder.write_spooled([delayed])
    assert (await device_sums(service))["device:desktop"] == 1


async def test_an_old_click_in_the_same_batch_as_a_new_click_is_counted_by_device(service: Service, clock: Clock) -> None:
    (code,) = await create_codes(service)
    old = make_hit(service, code, user_agent=DESKTOP)
    clock.forward(seconds=1)
    await record_click(service, code)
    clock.now += OLD_ENOUGH
    await service.devices.catch_up()
    writer = HitBatchWriter(service.ids, LinkResolver(service.directory, service.click_ids), service.directory)
    await service.database.write(writer.write, [make_hit(service, code), old])
    assert (await device_sums(service))["device:desktop"] == 1
    await assert_counts_match(service)


async def test_a_click_that_is_stored_while_the_device_job_is_running_is_counted_by_device(service: Service, clock: Clock) -> None:
    (code,) = await create_codes(service)
    delayed = make_hit(service, code, user_agent=DESKTOP)
    await record_click(service, code)
    clock.now += OLD_ENOUGH
    page = await service.database.read(device_counts.read_page, service.ids())
    await service.recorder.record(delayed)
    assert await service.database.write(service.devices.store, page, CountDelta()) is False, "the page must be read again"
    await service.devices.catch_up()
    assert await device_sums(service) == {"device:phone": 1, "browser:Safari": 1, "device:desktop": 1, "browser:Firefox": 1}
    await assert_counts_match(service)


async def test_a_click_that_is_stored_during_a_reclassification_with_a_fast_clock_is_counted_by_device(
    service: Service, clock: Clock
) -> None:
    """Because of the fast clock, the reclassification also counts the newest hits by device, which otherwise wait for a while. Then
    a click with an earlier id is stored. The device job, which counts hits in the order of their ids, must still count it."""
    (code,) = await create_codes(service)
    being_stored = make_hit(service, code, user_agent=DESKTOP)
    await record_click(service, code)
    ahead = clock() + timedelta(minutes=10)
    await service.reclassifier.run(NOON - timedelta(days=1), ahead, ahead)
    await service.recorder.record(being_stored)
    clock.now += OLD_ENOUGH
    await service.devices.catch_up()
    assert await device_sums(service) == {"device:phone": 1, "browser:Safari": 1, "device:desktop": 1, "browser:Firefox": 1}
    await assert_counts_match(service)


async def test_the_device_job_uses_the_time_of_the_database_if_the_clock_of_its_machine_was_set_ahead(
    service: Service, clock: Clock
) -> None:
    if service.database.dialect == "sqlite":
        pytest.skip("one process uses a SQLite database, so there is one clock")
    clock.now = datetime.now(UTC)
    (code,) = await create_codes(service)
    await record_click(service, code)
    ahead = SharedClock(service.database, Clock(clock.now + timedelta(minutes=10)))
    await DeviceCounter(service.database, service.ids, ahead).catch_up()
    assert await service.database.read(last_counted_hit) == 0
    assert abs(ahead() - clock.now) < timedelta(minutes=1)


async def test_catching_up_reads_a_page_again_if_a_late_hit_was_stored_meanwhile(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the page were not read again, the device job would stop at it. A reclassification skips hits that the device job has not
    counted, so it would skip this page and all later ones."""
    (code,) = await create_codes(service)
    late = make_hit(service, code, user_agent=DESKTOP)
    await record_click(service, code)
    clock.now += OLD_ENOUGH
    is_stored = False

    async def store_late_hit_once() -> None:
        nonlocal is_stored
        if not is_stored:
            is_stored = True
            await service.recorder.record(late)
        await load_expressions()

    monkeypatch.setattr(device_counts, "load_expressions", store_late_hit_once)
    await service.devices.catch_up()
    assert await device_sums(service) == {"device:phone": 1, "browser:Safari": 1, "device:desktop": 1, "browser:Firefox": 1}
    assert await service.database.read(last_counted_hit) == max(row.id for row in await fetch_rows(service, schema.hits))
    await assert_counts_match(service)


async def test_several_processes_with_device_jobs_count_each_click_once(
    make_service: MakeService, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_counts, "PAGE_HITS", 7)
    one = await make_service()
    two = one if one.database.dialect == "sqlite" else await make_service()
    (code,) = await create_codes(one)
    for _ in range(30):
        await record_click(one, code)
    clock.now += OLD_ENOUGH

    async def count_all(service: Service) -> None:
        while await service.database.read(last_counted_hit) < (await fetch_rows(one, schema.hits))[-1].id:
            await service.devices.step()

    await asyncio.gather(count_all(one), count_all(two), count_all(one))
    assert await device_sums(one) == {"device:phone": 30, "browser:Safari": 30}
    await assert_counts_match(one)


async def test_statistics_contain_device_counts_and_verify_detects_a_missing_device_count(service: Service, clock: Clock) -> None:
    (code,) = await create_codes(service)
    await record_click(service, code)
    await record_click(service, code, DESKTOP)
    clock.now += OLD_ENOUGH
    await service.devices.catch_up()
    figures = (await service.database.read(totals, StatisticsFilter(1, NOON, NOON + timedelta(hours=1)))).groups[None]
    assert (figures.devices, figures.browsers) == ({"phone": 1, "desktop": 1}, {"Safari": 1, "Firefox": 1})
    await service.jobs.table["counts"].step()
    figures = (await service.database.read(totals, StatisticsFilter(1, NOON, NOON + timedelta(hours=1)))).groups[None]
    assert figures.devices == {"phone": 1, "desktop": 1}
    await assert_counts_match(service)
    lost = schema.counts.c.metric == "device:phone"
    await service.database.write(lambda connection: connection.execute(schema.counts.delete().where(lost)))
    (difference,) = await service.database.read(verify, NOON, NOON + timedelta(hours=1))
    assert (difference.metric, difference.kept, difference.counted) == ("device:phone", Decimal(0), Decimal(1))


async def test_device_counts_are_correct_after_an_erasure(service: Service, clock: Clock) -> None:
    for number in range(2):
        (code,) = await create_codes(service, message_ids=(f"m-{number}",))
        await record_click(service, code)
    clock.now += OLD_ENOUGH
    await service.devices.catch_up()
    await service.database.write(erase_message, 1, "m-0", clock(), AUDIT, keep_sends)
    assert (await device_sums(service))["device:phone"] == 2
    await assert_counts_match(service)
