"""These tests check how the processes that send deliveries are counted, on both databases."""

import random

import pytest

from shortener.delivery.processes import INTERVAL_MS, MAX_AGE_MS, MAX_SILENCE_MS, DeliveryProcesses, ProcessShare, is_running
from shortener.storage import schema
from shortener.storage.database import Database
from tests.factory import rows
from tests.one_test import in_one_test

NOW = 1_700_000_000_000


async def beat(process: DeliveryProcesses, database: Database, now: int) -> None:
    heartbeat = await database.write(process.write, now)
    assert heartbeat is not None
    process.committed(heartbeat)


@in_one_test
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("concurrency", [1, 2, 8, 16, 256])
def test_the_shares_of_all_processes_add_up_to_the_concurrency_of_a_tracker(processes: int, concurrency: int) -> None:
    for queue in ("t1", "t2", "t3", "c1/example.com"):
        shares = [ProcessShare(place, processes).of(concurrency, queue) for place in range(processes)]
        assert sum(shares) == concurrency
        assert max(shares) - min(shares) <= 1


def test_trackers_with_a_concurrency_of_one_are_assigned_to_different_processes() -> None:
    assert {ProcessShare(0, 2).of(1, f"t{number}") for number in range(20)} == {0, 1}


async def test_delivery_processes_are_counted_while_they_write_heartbeats(database: Database) -> None:
    processes = [DeliveryProcesses(random.Random(seed)) for seed in range(3)]
    for _ in range(2):
        for process in processes:
            process._at = None
            await beat(process, database, NOW)
    if database.dialect == "sqlite":
        assert {process.share for process in processes} == {ProcessShare(0, 1)}, "SQLite has one process"
        return
    assert {(process.share.place, process.share.count) for process in processes} == {(0, 3), (1, 3), (2, 3)}
    await beat(processes[0], database, NOW + MAX_SILENCE_MS + 1)
    assert processes[0].share == ProcessShare(0, 1)
    await beat(processes[1], database, NOW + MAX_SILENCE_MS + 2)
    assert processes[1].share.count == 2
    await database.write(processes[1].remove)
    await beat(processes[0], database, NOW + 2 * MAX_SILENCE_MS)
    assert processes[0].share.count == 1


async def test_an_installation_runs_from_the_first_heartbeat_of_a_process_until_the_process_ends(database: Database) -> None:
    process = DeliveryProcesses(random.Random(1))
    assert not await database.read(is_running, NOW)
    await beat(process, database, NOW)
    silence = INTERVAL_MS[database.dialect] + MAX_SILENCE_MS
    assert await database.read(is_running, NOW + silence)
    assert not await database.read(is_running, NOW + silence + 1)
    await database.write(process.remove)
    assert not await database.read(is_running, NOW)


async def test_the_heartbeat_of_a_delivery_process_is_written_once_per_interval(database: Database) -> None:
    process = DeliveryProcesses(random.Random(1))
    interval = INTERVAL_MS[database.dialect]
    await beat(process, database, NOW)
    assert await database.write(process.write, NOW + interval - 1) is None
    await beat(process, database, NOW + interval)


async def test_the_setting_delivery_processes_replaces_the_counted_number_of_processes(database: Database) -> None:
    process = DeliveryProcesses(random.Random(1), 4)
    await beat(process, database, NOW)
    assert process.share == ProcessShare(0, 4)


async def test_the_rows_of_delivery_processes_that_ended_are_deleted(database: Database) -> None:
    await beat(DeliveryProcesses(random.Random(1)), database, NOW)
    await beat(DeliveryProcesses(random.Random(2)), database, NOW + MAX_AGE_MS + 1)
    assert len(await rows(database, schema.delivery_processes)) == 1


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_delivery_process_detects_that_the_clock_was_set_back(database: Database, restarted: bool) -> None:
    process = DeliveryProcesses(random.Random(1))
    await beat(process, database, NOW + 18_000_000)
    if restarted:
        process = DeliveryProcesses(random.Random(2))
    heartbeat = await database.write(process.write, NOW)
    assert heartbeat is not None
    assert heartbeat.clock_was_set_back
    process.committed(heartbeat)
    heartbeat = await database.write(process.write, NOW + 60_000)
    assert heartbeat is not None
    assert not heartbeat.clock_was_set_back
