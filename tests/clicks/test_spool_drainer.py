"""Tests of the drainer, which stores the hits of the spool in the database after an outage, with a real Redis."""

import asyncio
import contextlib
import json
import time
from typing import Any

import orjson
import pytest
from sqlalchemy import text

from shortener.clicks.dead_letters import MAX_TEXT_CHARACTERS, from_hit
from shortener.clicks.hit_spool import SpoolState
from shortener.clicks.resolver import Hit
from shortener.container import Service
from shortener.errors import StoreUnavailable
from shortener.model import HitFlag
from shortener.outbox.count_deltas import CountDelta
from shortener.storage import schema
from shortener.storage.batcher import MAX_PROBES
from tests.clicks.helpers import count_state_events as clickthru_events
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import fetch_rows as rows
from tests.clicks.helpers import hits_table_away, reject_hits
from tests.clicks.helpers import make_hit as hit
from tests.clicks.spooling import LOCATION, MakeNode, Node
from tests.clicks.spooling import make_node as make_node
from tests.clicks.spooling import node as node
from tests.clicks.spooling import service as service
from tests.conftest import Clock
from tests.rows import messages_now
from tests.servers import PATIENCE, RedisProcess


async def test_the_earliest_click_in_the_spool_is_the_first_click_in_any_order_of_arrival(
    service: Service, make_node: MakeNode, clock: Clock
) -> None:
    (code,) = await send(service)
    one, two = make_node(), make_node()
    one.disconnect()
    two.disconnect()
    at = service.now_ms()
    for one_of_two, later in ((one, 500), (two, 200), (one, 300), (two, 100), (one, 400)):
        assert await one_of_two.click(code, at=at + later) == LOCATION
    one.reconnect()
    two.reconnect()
    await asyncio.gather(one.drained(), two.drained())
    firsts = [kept.at for kept in await rows(service, schema.hits) if kept.flags & HitFlag.FIRST_FOR_MESSAGE]
    assert firsts == [clock.forward(milliseconds=100)]
    assert sum((await clickthru_events(service)).values()) == 1
    assert one.recorder.totals.drained == 0 or two.recorder.totals.drained == 0, "only one node drains the spool at a time"


async def test_a_click_that_is_committed_before_the_spool_is_drained_stays_the_first_click(
    service: Service, node: Node, make_node: MakeNode
) -> None:
    (code,) = await send(service)
    node.disconnect()
    at = service.now_ms()
    assert await node.click(code, at=at) == LOCATION
    other = make_node()  # this node still writes to the database, because it has not noticed the outage
    live = service.ids()
    assert await other.click(code, at=at + 1000, id=live) == LOCATION
    node.reconnect()
    await node.drained()
    assert len(await rows(service, schema.hits)) == 2
    assert (await rows(service, messages_now))[0].click_hit_id == live
    assert sum((await clickthru_events(service)).values()) == 1


async def test_a_database_that_hangs_causes_an_outage_and_hits_in_its_late_commit_are_counted_once(
    service: Service, node: Node
) -> None:
    codes = [(await send(service))[0] for _ in range(3)]
    await service.database.write(lambda connection: connection.execute(schema.count_deltas.delete()))
    node.store.go.clear()
    began = time.monotonic()
    resolutions = await asyncio.gather(*(node.click(code) for code in codes))
    assert resolutions == [LOCATION] * 3
    assert 0.1 <= time.monotonic() - began < PATIENCE
    node.recorder._deadline = PATIENCE
    began = time.monotonic()
    for _ in range(3):
        assert await node.click(codes[0]) == LOCATION
    assert time.monotonic() - began < PATIENCE, "later clicks do not wait for the deadline"
    node.store.go.set()  # now the database commits the first batch, although its hits are also in the spool
    await node.recorder.flush()
    await node.drained()
    assert len(await rows(service, schema.hits)) == 6
    assert sorted((await clickthru_events(service)).values()) == [1, 1, 1]
    added = CountDelta()
    for tally in await rows(service, schema.count_deltas):
        added.merge(tally.data)
    assert sum(int(amount) for (_, _, metric), amount in added.items() if metric == "clicks") == 6


async def test_a_drainer_whose_write_hung_finishes_although_another_process_has_stored_the_same_hits(
    service: Service, node: Node, make_node: MakeNode
) -> None:
    codes = [(await send(service))[0] for _ in range(3)]
    node.store.go.clear()
    await asyncio.gather(*(node.click(code) for code in codes))
    await make_node().drained()
    assert len(await rows(service, schema.hits)) == 3
    node.store.go.set()
    await node.recorder.flush()
    assert len(await rows(service, schema.hits)) == 3
    assert node.recorder.totals.dropped == 0


async def test_spooled_hits_count_once_if_the_result_of_their_commit_was_lost(service: Service, node: Node) -> None:
    (code,) = await send(service)
    node.store.lose_results = 1
    assert await node.click(code) == LOCATION
    assert (await node.spool.look()).depth == 1
    await node.drained()
    assert len(await rows(service, schema.hits)) == 1
    assert sum((await clickthru_events(service)).values()) == 1


async def test_a_spool_drainer_that_is_killed_after_a_commit_stores_no_hit_twice(service: Service, node: Node) -> None:
    (code,) = await send(service)
    node.disconnect()
    for _ in range(3):
        await node.click(code)
    node.reconnect()
    entries = await node.spool.read(10)
    await node.recorder.write_spooled(
        [kept for _, kept in entries if isinstance(kept, Hit)]
    )  # the drainer is killed before it deletes the entries
    await node.drained()
    assert len(await rows(service, schema.hits)) == 3
    assert len(await rows(service, schema.events)) == 1


async def test_a_spool_entry_that_is_not_a_hit_becomes_a_dead_letter(
    service: Service, node: Node, redis_server: RedisProcess
) -> None:
    (code,) = await send(service)
    node.disconnect()
    await node.click(code)
    newer = orjson.dumps({**orjson.loads(orjson.dumps(hit(service, code))), "of_a_newer_version": 1})
    with contextlib.closing(redis_server.client()) as client:
        for fields in ({"h": "not JSON"}, {"h": '{"id": 1}'}, {"x": "y"}, {"h": newer}):
            client.xadd("sms:test:spool:hits", fields)
    node.reconnect()
    await node.drained()
    assert len(await rows(service, schema.hits)) == 2
    assert (node.recorder.totals.dropped, node.recorder.totals.dead_letters) == (0, 3)
    assert await node.spool.look() == SpoolState(0)
    letters = await rows(service, schema.hits_dead_letter)
    assert [(letter.hit, letter.code) for letter in letters] == [
        ("not JSON", None),
        ('{"id": 1}', None),
        ("""{"b'x'":"b'y'"}""", None),
    ]


async def test_spool_entries_whose_fields_have_wrong_types_become_dead_letters_and_the_hits_are_stored(
    service: Service, node: Node, redis_server: RedisProcess
) -> None:
    (code,) = await send(service)
    node.disconnect()
    await node.click(code)
    fields = orjson.loads(orjson.dumps(hit(service, code)))
    faults: list[dict[str, Any]] = [{"at": None}, {"at": "12"}, {"id": 1.5}, {"rule": None}, {"code": 7}, {"verdict": 99}]
    entries = [json.dumps(fields | fault) for fault in faults]
    entries += [json.dumps(fields | {"code": "\ud800"}), "[" * 100_000]
    with contextlib.closing(redis_server.client()) as client:
        for entry in entries:
            client.xadd("sms:test:spool:hits", {"h": entry})
    node.reconnect()
    await node.drained()
    assert len(await rows(service, schema.hits)) == 1
    letters = await rows(service, schema.hits_dead_letter)
    assert [letter.hit for letter in letters] == [entry[:MAX_TEXT_CHARACTERS] for entry in entries]
    assert [letter.code for letter in letters] == [code] * 4 + [None, code, None, None]
    assert (node.recorder.totals.dead_letters, await node.spool.look()) == (len(entries), SpoolState(0))


async def test_many_hits_at_the_beginning_of_the_spool_that_the_database_rejects_do_not_stop_it(
    service: Service, node: Node
) -> None:
    await reject_hits(service, "rejected")
    (code,) = await send(service)
    node.disconnect()
    for rule in ["rejected"] * (MAX_PROBES + 2) + ["test"] * 2:
        assert await node.click(code, rule=rule) == LOCATION
    node.reconnect()
    with pytest.raises(StoreUnavailable):
        await node.drainer.step()
    await node.drained()
    assert len(await rows(service, schema.hits)) == 2
    assert len(await rows(service, schema.hits_dead_letter)) == node.recorder.totals.dead_letters == MAX_PROBES + 2
    assert await node.spool.look() == SpoolState(0)


async def test_the_spool_does_not_stop_at_a_batch_in_which_the_database_rejects_every_hit(
    service: Service, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortener.clicks.spool_drainer.MAX_BATCH_HITS", MAX_PROBES)
    await reject_hits(service, "rejected")
    (code,) = await send(service)
    node.disconnect()
    for _ in range(3 * MAX_PROBES):
        assert await node.click(code, rule="rejected") == LOCATION
    node.reconnect()
    for _ in range(2):
        # The database has stored no other hit, so it may be the cause of the errors. The rejected hits wait, as in an outage.
        with pytest.raises(StoreUnavailable):
            await node.drainer.step()
    assert await rows(service, schema.hits_dead_letter) == []
    assert await node.click(code) == LOCATION
    await node.drained()
    assert len(await rows(service, schema.hits)) == 1
    assert len(await rows(service, schema.hits_dead_letter)) == node.recorder.totals.dead_letters == 3 * MAX_PROBES
    assert await node.spool.look() == SpoolState(0)


@pytest.mark.parametrize("others", ["rejected", "stored before"])
async def test_only_a_hit_that_the_database_stores_now_decides_that_rejected_batches_become_dead_letters(
    service: Service, node: Node, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    monkeypatch.setattr("shortener.clicks.spool_drainer.MAX_BATCH_HITS", MAX_PROBES)
    (code,) = await send(service)
    node.disconnect()
    for _ in range(2 * MAX_PROBES):
        assert await node.click(code, rule="rejected") == LOCATION
    for _ in range(2):  # these hits form an incomplete batch at the end of the spool
        assert await node.click(code, rule="rejected" if others == "rejected" else "test") == LOCATION
    node.reconnect()
    if others == "stored before":
        entries = await node.spool.read(100)
        await node.recorder.write_spooled([hit for _, hit in entries if isinstance(hit, Hit) and hit.rule == "test"])
    await reject_hits(service, "rejected")
    with pytest.raises(StoreUnavailable):
        await node.drainer.step()
    letters = await rows(service, schema.hits_dead_letter)
    assert len(letters) == (2 if others == "rejected" else 0)
    assert (await node.spool.look()).depth == 2 * MAX_PROBES


async def test_a_hit_that_the_database_accepts_is_found_wherever_it_is_in_the_rejected_batches_of_the_spool(
    service: Service, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2 * MAX_PROBES
    monkeypatch.setattr("shortener.clicks.spool_drainer.MAX_BATCH_HITS", size)
    await reject_hits(service, "rejected")
    (code,) = await send(service)
    node.disconnect()
    for place in range(2 * size):
        await node.click(code, rule="test" if place == size - 2 else "rejected")
    node.reconnect()
    with pytest.raises(StoreUnavailable):
        await node.drainer.step()
    assert await node.drainer.step() == 2 * size
    assert (len(await rows(service, schema.hits)), node.recorder.totals.dead_letters) == (1, 2 * size - 1)


async def drained_after_failures(node: Node, failures: int) -> None:
    """Run the drainer until the spool is empty. At most `failures` of its steps may fail."""
    async with asyncio.timeout(PATIENCE):
        while (await node.spool.look()).depth:
            try:
                await node.drainer.step()
            except StoreUnavailable:
                failures -= 1
                assert failures >= 0


async def test_newer_hits_of_the_spool_are_stored_although_the_database_rejects_all_hits_of_the_first_windows(
    service: Service, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortener.clicks.spool_drainer.MAX_BATCH_HITS", MAX_PROBES)
    monkeypatch.setattr("shortener.clicks.spool_drainer.WINDOW_ENTRIES", 2 * MAX_PROBES)
    await reject_hits(service, "rejected")
    (code,) = await send(service)
    node.disconnect()
    for rule in ["rejected"] * 5 * MAX_PROBES + ["test"] * 2:
        assert await node.click(code, rule=rule) == LOCATION
    node.reconnect()
    # The database has rejected all hits of the window, so the drainer leaves them and continues with the next window.
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await node.drainer.step()
    assert await rows(service, schema.hits_dead_letter) == []
    await drained_after_failures(node, 0)
    assert len(await rows(service, schema.hits)) == 2
    assert len(await rows(service, schema.hits_dead_letter)) == node.recorder.totals.dead_letters == 5 * MAX_PROBES
    assert await node.spool.look() == SpoolState(0)


async def test_hits_that_wait_in_the_spool_are_tried_again_from_the_beginning_after_its_end(
    service: Service, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortener.clicks.spool_drainer.MAX_BATCH_HITS", MAX_PROBES)
    monkeypatch.setattr("shortener.clicks.spool_drainer.WINDOW_ENTRIES", MAX_PROBES)
    await reject_hits(service, "rejected")
    (code,) = await send(service)
    node.disconnect()
    for _ in range(2 * MAX_PROBES):
        assert await node.click(code, rule="rejected") == LOCATION
    node.reconnect()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await node.drainer.step()
    assert await rows(service, schema.hits_dead_letter) == []
    node.disconnect()
    assert await node.click(code) == LOCATION
    node.reconnect()
    await drained_after_failures(node, 2)
    assert len(await rows(service, schema.hits)) == 1
    assert len(await rows(service, schema.hits_dead_letter)) == 2 * MAX_PROBES


async def test_batches_of_the_spool_wait_in_an_outage_of_the_table_of_hits_and_none_becomes_a_dead_letter(
    service: Service, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortener.clicks.spool_drainer.MAX_BATCH_HITS", MAX_PROBES)
    (code,) = await send(service)
    node.disconnect()
    for _ in range(2 * MAX_PROBES):
        assert await node.click(code) == LOCATION
    node.reconnect()
    async with hits_table_away(service):
        with pytest.raises(StoreUnavailable):
            await node.drainer.step()
        assert await rows(service, schema.hits_dead_letter) == []
    await node.drained()
    assert len(await rows(service, schema.hits)) == 2 * MAX_PROBES
    assert await rows(service, schema.hits_dead_letter) == []


# The second fault is a time that is too large: the encoder of spool entries rejects it.
@pytest.mark.parametrize("fault", [{"rule": "rejected"}, {"at": 2**70}])
async def test_a_spooled_hit_that_the_database_rejects_becomes_a_dead_letter_and_the_other_hits_are_stored(
    service: Service, node: Node, redis_server: RedisProcess, fault: dict[str, Any]
) -> None:
    await reject_hits(service, "rejected")
    (code,) = await send(service)
    node.disconnect()
    for _ in range(3):
        await node.click(code)
    await node.click(code, **fault)
    node.reconnect()
    await node.drained()
    await node.recorder.flush()
    assert len(await rows(service, schema.hits)) == 3
    assert (node.recorder.totals.dead_letters, node.recorder.totals.dropped) == (1, 0)
    assert await node.spool.look() == SpoolState(0)
    (letter,) = await rows(service, schema.hits_dead_letter)
    assert (letter.code, json.loads(letter.hit)["code"]) == (code, code)
    assert letter.reason
    with contextlib.closing(redis_server.client()) as client:
        assert client.xlen("sms:test:spool:dead") == 0


async def test_dead_letters_in_redis_move_to_the_table_of_dead_letters(
    service: Service, node: Node, redis_server: RedisProcess
) -> None:
    (code,) = await send(service)
    with contextlib.closing(redis_server.client()) as client:  # the previous release wrote such an entry, without a reason
        client.xadd("sms:test:spool:dead", {"h": json.dumps({"code": code, "at": 2**70})})
    assert await node.spool.add_dead_letters([from_hit(hit(service, code, rule=None), "NotNullViolationError")])
    await node.drainer.step()
    letters = await rows(service, schema.hits_dead_letter)
    assert [(letter.code, letter.reason) for letter in letters] == [(code, "rejected"), (code, "NotNullViolationError")]
    with contextlib.closing(redis_server.client()) as client:
        assert client.xlen("sms:test:spool:dead") == 0
    await node.drainer.step()
    assert len(await rows(service, schema.hits_dead_letter)) == 2


async def test_a_dead_letter_is_stored_in_redis_if_the_table_of_dead_letters_rejects_it(
    service: Service, make_node: MakeNode, redis_server: RedisProcess
) -> None:
    node = make_node(deadline=PATIENCE)  # even a commit that is slow on a loaded machine must not begin an outage
    (code,) = await send(service)
    await service.database.write(lambda c: c.execute(text("ALTER TABLE hits_dead_letter RENAME TO away")))
    assert await node.click(code, rule=None) == LOCATION
    await node.recorder.flush()
    assert (node.recorder.totals.dead_letters, node.recorder.totals.dropped) == (1, 0)
    await service.database.write(lambda c: c.execute(text("ALTER TABLE away RENAME TO hits_dead_letter")))
    await node.drained()
    await node.drainer.step()
    # The drainer may have moved the dead letter twice: it does so if the response of Redis to the deletion is late.
    assert {letter.code for letter in await rows(service, schema.hits_dead_letter)} == {code}


async def test_the_lease_of_the_spool_drainer_ends_in_time_even_if_the_clock_of_redis_was_set_back(
    service: Service, make_node: MakeNode, redis_server: RedisProcess
) -> None:
    one, two = make_node(), make_node()
    assert await one.spool.take_lease()
    assert not await two.spool.take_lease()
    with contextlib.closing(redis_server.client()) as client:
        client.pexpire("sms:test:spool:lease", 5 * 3600 * 1000)  # as if the clock of Redis had been set back by five hours
    assert await two.spool.take_lease()
    assert not await one.spool.take_lease()
