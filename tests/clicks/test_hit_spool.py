"""Tests of an outage of the database with a real Redis: the spool, the responses, and the drainer that stores the hits later."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable

import orjson
import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from shortener.accounts.administration import update_application
from shortener.clicks import spool_drainer
from shortener.clicks.hit_spool import SpoolState
from shortener.clicks.outage import OutageState
from shortener.clicks.recorder import RESPONSE_GRACE_SECONDS
from shortener.container import Service
from shortener.errors import StoreUnavailable
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import HitFlag, State, Topic, Verdict
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS, change_settings, hits_table_away, unreliable_recorder
from tests.clicks.helpers import count_state_events as clickthru_events
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import fetch_rows as rows
from tests.clicks.helpers import make_hit as hit
from tests.clicks.spooling import LOCATION, MakeNode, Node
from tests.clicks.spooling import make_node as make_node
from tests.clicks.spooling import node as node
from tests.clicks.spooling import service as service
from tests.conftest import Clock, MakeService
from tests.rows import messages_now
from tests.servers import PATIENCE, RedisProcess


async def test_hits_during_an_outage_are_redirected_from_the_cache_and_stored_later_with_their_own_times(
    service: Service, node: Node, clock: Clock
) -> None:
    (code,) = await send(service)
    node.disconnect()
    began = time.monotonic()
    times = []
    for _ in range(5):
        times.append(clock.forward(seconds=1))
        assert await node.click(code) == LOCATION
    assert time.monotonic() - began < 10, "no click waits for a database that is known to be unavailable"
    assert node.recorder.outage
    assert node.recorder.unrecorded == 0
    assert (await node.spool.look()).depth == 5
    assert await rows(service, schema.hits) == []

    clock.forward(minutes=1)
    node.reconnect()
    await node.drained()
    hits = await rows(service, schema.hits)
    assert [kept.at for kept in hits] == times
    assert [bool(kept.flags & HitFlag.FIRST_FOR_MESSAGE) for kept in hits] == [True, False, False, False, False]
    (event,) = await rows(service, schema.events)
    assert (event.topics, event.at, event.hit_id) == (Topic.STATE | Topic.CLICK, times[0], hits[0].id)
    assert (await rows(service, messages_now))[0].clicked_at == times[0]
    assert node.notifications == 1
    assert await node.spool.look() == SpoolState(0)
    assert (node.recorder.totals.spooled, node.recorder.totals.drained) == (5, 5)

    assert await node.click(code) == LOCATION
    assert len(await rows(service, schema.hits)) == 6, "and hits go to the database again"


async def test_hits_from_the_spool_are_stored_with_their_verdict_and_their_time_of_arrival(
    service: Service, node: Node, clock: Clock
) -> None:
    (code,) = await send(service, expires_in=60)
    node.disconnect()
    await node.click(code, verdict=Verdict.SUSPECTED)
    clock.forward(seconds=59)
    await node.click(code)
    clock.forward(hours=1)
    node.reconnect()
    await node.drained()
    assert [(kept.verdict, kept.flags) for kept in await rows(service, schema.hits)] == [
        (Verdict.SUSPECTED, 0),
        (Verdict.HUMAN, HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE),
    ]


async def test_the_spool_contains_only_the_part_of_the_client_address_that_the_application_may_store(
    service: Service, node: Node, clock: Clock, redis_server: RedisProcess
) -> None:
    await service.database.write(update_application, 1, {"ip_privacy": "none"}, clock())
    await service.directory.refresh()
    (code,) = await send(service)
    node.disconnect()
    assert await node.click(code, address="198.51.100.0") == LOCATION
    with contextlib.closing(redis_server.client()) as client:
        ((_, entry),) = client.xrange("sms:test:spool:hits")
    assert orjson.loads(entry["h"])["address"] == ""
    node.reconnect()
    await node.drained()
    assert [one.address for one in await rows(service, schema.hits)] == [""]


async def test_a_spooled_hit_that_was_redirected_does_not_count_as_a_hit_that_got_the_confirmation_page(
    service: Service, node: Node, clock: Clock
) -> None:
    await change_settings(service, confirm_clicks="suspicious", suspect_before_sent=True)
    (code,) = await send(service, message_ids=("m-1",))
    node.disconnect()
    assert await node.click(code, user_agent=PHONE_HEADERS["User-Agent"]) == LOCATION
    node.reconnect()
    await node.drained()
    assert [kept.rule for kept in await rows(service, schema.hits)] == ["before_sent"]
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())])
    assert await service.early_hits.step(clock()) == 1
    assert [message.state for message in await rows(service, messages_now)] == [State.CLICKTHRU]


async def test_a_cached_link_does_not_redirect_if_the_link_or_its_application_is_disabled(
    service: Service, node: Node, clock: Clock
) -> None:
    (code,) = await send(service)
    (other,) = await send(service)
    await service.cache.invalidate([other])
    table = schema.applications
    await service.database.write(lambda connection: connection.execute(update(table).values(disabled_at=clock())))
    from shortener.accounts.version import mark_accounts_changed

    await service.database.write(mark_accounts_changed)
    await service.directory.refresh()
    node.disconnect()
    resolution = await node.recorder.record(hit(service, code))
    assert (resolution.location, resolution.gone) == (None, True)
    with pytest.raises(StoreUnavailable):
        await node.click(other)


async def test_if_writes_fail_an_uncached_link_is_read_from_the_database_and_its_hit_is_stored_in_the_spool(
    service: Service, node: Node, redis_server: RedisProcess
) -> None:
    (code,) = await send(service)
    with contextlib.closing(redis_server.client()) as client:
        client.flushall()
    node.store.refuse_writes = True  # the database permits reads and rejects writes, like a standby server
    assert await node.click(code) == LOCATION
    assert (await node.spool.look()).depth == 1
    assert (await node.recorder.record(hit(service, "unknowncod"))).gone is False
    assert (await node.spool.look()).depth == 1, "a hit on an unknown code is not added to the spool"
    node.reconnect()
    await node.drained()
    assert len(await rows(service, schema.hits)) == 1


async def test_hits_get_503_at_once_and_are_not_stored_if_database_and_redis_are_unavailable(
    service: Service, node: Node, redis_server: RedisProcess
) -> None:
    (code,) = await send(service)
    node.disconnect()
    redis_server.kill()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await node.click(code)
        assert time.monotonic() - began < 10
    node.reconnect()
    await node.drained()
    assert await node.click(code) == LOCATION
    assert len(await rows(service, schema.hits)) == 1


async def out_of_memory(redis_server: RedisProcess) -> None:
    with contextlib.closing(redis_server.client()) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")


async def full(redis_server: RedisProcess) -> None:
    """Change nothing: the spool is already full, because the test sets its maximum length to 0."""


@pytest.mark.parametrize(("trouble", "limit"), [(out_of_memory, 1000), (full, 0)])
async def test_hits_that_the_redis_spool_rejects_wait_in_memory_up_to_a_limited_number(
    service: Service,
    make_node: MakeNode,
    redis_server: RedisProcess,
    trouble: Callable[[RedisProcess], Awaitable[None]],
    limit: int,
) -> None:
    (code,) = await send(service)
    node = make_node(limit=limit, waiting_limit=3)
    await trouble(redis_server)
    node.disconnect()
    for _ in range(5):
        assert await node.click(code) == LOCATION
    assert node.recorder.unrecorded == 3
    assert node.recorder.totals.dropped == 2
    node.reconnect()
    await node.drained()
    await node.recorder.flush()
    assert node.recorder.unrecorded == 0
    assert len(await rows(service, schema.hits)) == 3
    assert sum((await clickthru_events(service)).values()) == 1


async def test_spooled_hits_are_not_lost_if_redis_is_killed(service: Service, node: Node, redis_server: RedisProcess) -> None:
    (code,) = await send(service)
    node.disconnect()
    await asyncio.gather(*(node.click(code) for _ in range(20)))
    redis_server.kill()
    redis_server.start()
    node.reconnect()
    await node.drained()
    assert len(await rows(service, schema.hits)) == 20


async def test_if_redis_loses_its_data_during_an_outage_only_the_hits_in_redis_are_lost(
    service: Service, node: Node, redis_server: RedisProcess
) -> None:
    (code,) = await send(service)
    node.disconnect()
    await node.click(code)
    with contextlib.closing(redis_server.client()) as client:
        client.flushall()
    with pytest.raises(StoreUnavailable):
        await node.click(code)
    node.reconnect()
    await node.drained()
    assert await node.click(code) == LOCATION
    (fresh,) = await send(service)
    node.disconnect()
    assert await node.click(fresh) == LOCATION, "links that are created from now on are in the cache again"


async def test_hits_wait_in_memory_if_the_database_is_unavailable_and_redis_is_not_configured(make_service: MakeService) -> None:
    service = await make_service()
    (code,) = await send(service)
    store, recorder = await unreliable_recorder(service)
    store.refuse_writes = True
    assert (await recorder.record(hit(service, code))).location == LOCATION
    assert not recorder.outage
    assert recorder.unrecorded == 1
    store.refuse_writes = False
    await recorder.stop(1)


async def test_a_spool_entry_does_not_contain_the_hash_of_the_client_address(
    service: Service, node: Node, redis_server: RedisProcess
) -> None:
    (code,) = await send(service)
    node.disconnect()
    await node.click(code, origin=hash("192.0.2.77"))
    with contextlib.closing(redis_server.client()) as client:
        ((_, entry),) = client.xrange("sms:test:spool:hits")
    assert "origin" not in json.loads(entry["h"])
    node.reconnect()
    await node.drained()
    assert len(await rows(service, schema.hits)) == 1


async def test_hits_go_to_the_spool_while_the_database_rejects_every_hit(service: Service, node: Node) -> None:
    (code,) = await send(service)
    async with hits_table_away(service):
        for _ in range(3):
            assert await node.click(code) == LOCATION
        assert node.recorder.outage
        with pytest.raises(StoreUnavailable):
            await node.drainer.step()
        assert (await node.spool.look()).depth == 3
        assert node.recorder.outage
    await node.drained()
    assert len(await rows(service, schema.hits)) == 3
    assert (node.recorder.totals.dropped, node.recorder.totals.dead_letters) == (0, 0)


@pytest.mark.parametrize("waiting_limit", [50, 10_000])
async def test_with_a_frozen_redis_responses_are_sent_by_the_deadline_and_the_number_of_waiting_hits_is_limited(
    service: Service, make_node: MakeNode, redis_server: RedisProcess, waiting_limit: int
) -> None:
    (code,) = await send(service)
    deadline = 0.5
    node = make_node(deadline=deadline, waiting_limit=waiting_limit)
    node.store.refuse_writes = True  # the database rejects writes, but not reads
    assert await node.click(code) == LOCATION
    assert node.recorder.outage
    times: list[float] = []
    most = clicked = 0
    refused: list[int] = []  # for each pause below: the number of clicks that got 503, because their link was not read in time

    async def click() -> None:
        nonlocal clicked
        began = time.monotonic()
        clicked += 1
        try:
            assert await node.click(code) == LOCATION
        except StoreUnavailable:
            refused[-1] += 1
        times.append(time.monotonic() - began)

    for pause in (0.1, 0.5, 2.5):  # first 1,000 clicks a second; if the machine is too slow, lower rates
        times.clear()
        refused.append(0)
        redis_server.freeze()
        try:
            clicks: list[asyncio.Task[None]] = []
            for _ in range(10):
                clicks += [asyncio.create_task(click()) for _ in range(100)]
                await asyncio.sleep(pause)
                most = max(most, node.recorder.unrecorded)
            await asyncio.gather(*clicks)
        finally:
            redis_server.thaw()
        longest = deadline + RESPONSE_GRACE_SECONDS + 1  # one additional second, because the machine may be busy
        if max(times) < longest and refused[-1] < 500:
            break
        await redis_is_up(service)
    assert max(times) < longest
    assert refused[-1] < 500
    assert most <= waiting_limit
    node.reconnect()
    await redis_is_up(service)
    await node.drained()
    await node.recorder.flush()
    stored = await rows(service, schema.hits)
    # A hit that counts as dropped may still be stored, because Redis may execute a command after the client's timeout.
    assert len(stored) + node.recorder.totals.dropped + sum(refused) >= 1 + clicked
    assert (node.recorder.totals.dropped == 0) is (waiting_limit > 1000)


async def redis_is_up(service: Service) -> None:
    """Wait until the client detects that Redis responds again."""
    assert service.redis is not None
    async with asyncio.timeout(PATIENCE):
        while not (service.redis.is_up and await service.redis.ping()):
            await asyncio.sleep(0.01)  # a pause before the condition is checked again


async def test_with_a_frozen_redis_and_no_database_hits_get_503_by_the_deadline_and_are_not_stored(
    service: Service, make_node: MakeNode, redis_server: RedisProcess
) -> None:
    (code,) = await send(service)
    deadline = 0.3
    node = make_node(deadline=deadline)
    node.disconnect()
    assert await node.click(code) == LOCATION
    redis_server.freeze()
    try:
        for _ in range(3):
            began = time.monotonic()
            results = await asyncio.gather(*(node.click(code) for _ in range(20)), return_exceptions=True)
            assert {type(result) for result in results} == {StoreUnavailable}
            assert time.monotonic() - began < deadline + RESPONSE_GRACE_SECONDS + 1
    finally:
        redis_server.thaw()
    node.reconnect()
    await redis_is_up(service)
    await node.drained()
    await node.recorder.flush()
    assert len(await rows(service, schema.hits)) == 1


async def test_an_outage_begins_with_a_failed_write_and_ends_when_the_spool_is_drained(service: Service, node: Node) -> None:
    (code,) = await send(service)
    states = [node.recorder.outage_state]
    node.disconnect()
    await node.click(code)
    states.append(node.recorder.outage_state)
    with pytest.raises(StoreUnavailable):
        await node.drainer.step()
    states.append(node.recorder.outage_state)
    node.reconnect()
    await node.drained()
    states.append(node.recorder.outage_state)
    assert states == [OutageState.NORMAL, OutageState.OUTAGE, OutageState.OUTAGE, OutageState.NORMAL]


async def test_an_outage_does_not_end_while_redis_with_spooled_hits_is_unreachable(
    service: Service, node: Node, redis_server: RedisProcess, clock: Clock
) -> None:
    (code,) = await send(service)
    node.disconnect()
    earliest = clock.forward(seconds=1)
    await node.click(code)
    redis_server.kill()
    node.reconnect()
    for _ in range(3):
        await node.drainer.step()
    assert node.recorder.outage_state is OutageState.RECOVERING, "a click that is stored now would be the first click"
    redis_server.start()
    clock.forward(seconds=1)
    await until_redis_is_up(service)
    await node.drained()
    await node.click(code)
    hits = await rows(service, schema.hits)
    assert [(kept.at == earliest, bool(kept.flags & HitFlag.FIRST_FOR_MESSAGE)) for kept in hits] == [(True, True), (False, False)]


async def test_an_outage_ends_with_an_error_in_the_log_if_redis_stays_unreachable(
    service: Service, node: Node, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = await send(service)
    node.disconnect()
    await node.click(code)
    redis_server.kill()
    node.reconnect()
    monkeypatch.setattr(spool_drainer, "MAX_CATCH_UP_SECONDS", 0.0)
    with capture_logs() as logs:
        await node.drained()
    assert [(entry["hits"], entry["redis"]) for entry in logs if entry["event"] == "outage_ended_before_spool"] == [(1, False)]
    assert await node.click(code) == LOCATION, "the database has the link"
    redis_server.start()
    await until_redis_is_up(service)
    await node.drainer.step()
    assert len(await rows(service, schema.hits)) == 2, "the spooled hit is stored later"


async def until_redis_is_up(service: Service) -> None:
    assert service.redis is not None
    async with asyncio.timeout(PATIENCE):
        while not service.redis.is_up:
            await asyncio.sleep(0.01)  # a pause before the condition is checked again
