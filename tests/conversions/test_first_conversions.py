"""Tests that a message with conversions is counted once as converted, at the time of its first conversion. Usually, the
transaction of the conversion counts the message. If a process of an older release stores the conversion, a background job counts
the message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, delete, insert

from shortener.container import Service
from shortener.conversions import first_conversions
from shortener.conversions.first_conversions import CountProgress, FirstConversions, read_progress
from shortener.conversions.parsing import ConversionReport
from shortener.conversions.service import Conversions
from shortener.ids import ClickIds, IdGenerator
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import TIME_SLOT_MS, CountDelta
from shortener.reporting import count_check, counts
from shortener.reporting.first_conversion_check import count_missing, find_counted_without_row
from shortener.reporting.rollup_check import verify_rollups
from shortener.reporting.rollups import Basis
from shortener.reporting.statistics import StatisticsFilter, totals
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.installation import set_value
from shortener.storage.types import to_ms
from tests.conftest import NOON, Clock
from tests.databases import someone_at, until_it_waits
from tests.factory import Message, add_message, count_delta_sums, rows
from tests.reporting.plans import plans, scanned

DAY = timedelta(days=1)
SALE = ConversionReport(at=NOON, message_id="m-1", action="sale", transaction_id="t-1")


@pytest.fixture
async def message(service: Service) -> Message:
    return await service.database.write(add_message, service.ids)


async def differences(database: Database) -> list[Any]:
    """Return the counts and the rolled-up counts that differ from a recount of the rows. The count `messages` is left out,
    because the tests insert messages without counting them."""
    period = NOON - 30 * DAY, NOON + 30 * DAY
    found: list[Any] = [*await database.read(count_check.verify, *period), *await database.read(verify_rollups, *period)]
    return [one for one in found if one.metric not in ("messages", "segments")]


async def converted(database: Database, since: datetime = NOON - 30 * DAY, basis: Basis = Basis.EVENT) -> int:
    """Return the number of converted messages that statistics show for a period of 31 days."""
    report = await database.read(totals, StatisticsFilter(1, since, since + 31 * DAY, basis=basis))
    return report.groups[None]["converted_messages"]


def store_as_older_release(
    connection: Connection, ids: IdGenerator, message: Message, at: datetime = NOON, transaction_id: str = ""
) -> None:
    """Store a conversion and its count as a process of a release before 0.3 does: without a row in `first_conversions`."""
    values = {"id": ids(), "application_id": 1, "message_id": message.row, "action": "sale", "transaction_id": transaction_id}
    connection.execute(insert(schema.conversions).values(at=at, received_at=at, **values))
    delta = CountDelta()
    delta.add(message.cohort_id, to_ms(at), "conversions", message=message.row)
    count_deltas.append(connection, ids(), delta)


async def fold_all(service: Service) -> None:
    while await service.database.write(counts.fold):
        pass


def job_of(service: Service) -> FirstConversions:
    return FirstConversions(service.database, service.ids, service.clock)


async def test_a_message_with_several_conversions_is_counted_once_at_the_time_of_the_conversion_that_arrived_first(
    service: Service, message: Message
) -> None:
    reports = [
        replace(SALE, at=NOON + 2 * DAY, disposition="negative"),
        replace(SALE, at=NOON, transaction_id="t-2"),  # this conversion is reported later, although it happened earlier
        replace(SALE, at=NOON + 3 * DAY, action="lead"),
    ]
    for report in reports:
        assert not (await service.conversions.ingest(1, report)).duplicate
    (first,) = await rows(service.database, schema.first_conversions)
    assert (first.id, first.at) == (message.row, NOON + 2 * DAY)
    sums = await count_delta_sums(service.database)
    assert (sums["conversions"], sums["converted_messages"]) == ("3", "1")
    assert await differences(service.database) == []


@pytest.mark.usefixtures("message")
async def test_a_repeat_and_an_update_of_a_conversion_do_not_count_the_message_again(service: Service) -> None:
    for report in (SALE, SALE, replace(SALE, status="rejected"), replace(SALE, status="approved")):
        await service.conversions.ingest(1, report)
        assert (await count_delta_sums(service.database))["converted_messages"] == "1"
    (stored,) = await rows(service.database, schema.conversions)
    assert stored.revision == 3
    assert len(await rows(service.database, schema.first_conversions)) == 1


async def test_several_first_conversions_of_a_message_in_one_transaction_count_it_once_at_the_time_of_the_first_report(
    service: Service, message: Message
) -> None:
    times = [NOON + 3 * DAY, NOON, NOON + DAY]
    await asyncio.gather(
        *(service.conversions.ingest(1, replace(SALE, at=at, transaction_id=f"t-{n}")) for n, at in enumerate(times))
    )
    (first,) = await rows(service.database, schema.first_conversions)
    assert (first.id, first.at) == (message.row, NOON + 3 * DAY)
    assert (await count_delta_sums(service.database))["converted_messages"] == "1"


async def test_two_processes_that_receive_different_first_conversions_of_the_same_messages_count_each_message_once(
    database: Database, clock: Clock
) -> None:
    ids, click_ids = IdGenerator(database.node, lambda: to_ms(clock())), ClickIds(b"key")
    names = [f"m-{number}" for number in range(40)]

    def prepare(connection: Connection) -> None:
        for name in names:
            add_message(connection, ids, name)

    await database.write(prepare)
    processes = [Conversions(database, ids, click_ids, clock, lambda: None) for _ in range(3)]
    reports = [
        process.ingest(1, replace(SALE, message_id=name, transaction_id=f"of process {number}"))
        for number, process in enumerate(processes)
        for name in (names if number % 2 else names[::-1])
    ]
    await asyncio.gather(*reports)
    sums = await count_delta_sums(database)
    assert (sums["conversions"], sums["converted_messages"]) == ("120", "40")
    assert len(await rows(database, schema.first_conversions)) == 40
    assert await differences(database) == []


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_conversion_waits_for_the_first_conversion_that_another_process_is_storing(
    service: Service, message: Message, is_committed: bool
) -> None:
    if service.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer, so the two transactions cannot overlap.")
    async with someone_at(service, "INSERT INTO first_conversions (id, at) VALUES ($1, 1)", message.row) as process:
        conversion = asyncio.create_task(service.conversions.ingest(1, SALE))
        await until_it_waits(process, conversion)
        if not is_committed:
            await process.execute("DELETE FROM first_conversions")
    assert not (await conversion).duplicate
    sums = await count_delta_sums(service.database)
    assert (sums["conversions"], sums.get("converted_messages")) == ("1", None if is_committed else "1")


async def test_a_message_is_not_counted_as_converted_if_the_event_of_its_conversion_cannot_be_written(
    service: Service, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no event")

    with monkeypatch.context() as patch:
        patch.setattr("shortener.outbox.events.append", broken)
        with pytest.raises(RuntimeError):
            await service.conversions.ingest(1, SALE)
    assert await rows(service.database, schema.first_conversions) == []
    await service.conversions.ingest(1, SALE)
    assert (await count_delta_sums(service.database))["converted_messages"] == "1"


async def test_the_job_counts_the_messages_whose_conversions_an_older_release_has_stored(
    service: Service, message: Message, clock: Clock
) -> None:
    other = await service.database.write(add_message, service.ids, "m-2")
    for at, name, transaction in ((NOON - DAY, message, "a"), (NOON - 2 * DAY, message, "b"), (NOON, other, "a")):
        await service.database.write(store_as_older_release, service.ids, name, at, transaction)
    assert await differences(service.database) == [], "the job has not reached the conversions"
    assert await job_of(service).step() == 0
    assert await converted(service.database) == 0, "new conversions may still be stored with lower ids"
    await fold_all(service)
    clock.forward(minutes=3)
    await job_of(service).step()
    await job_of(service).step()
    stored = {row.id: row.at for row in await rows(service.database, schema.first_conversions)}
    assert stored == {message.row: NOON - DAY, other.row: NOON}
    assert await converted(service.database) == await converted(service.database, basis=Basis.SENT) == 2
    assert await converted(service.database, NOON - DAY) == 2
    assert await converted(service.database, NOON - timedelta(hours=1)) == 1
    assert await differences(service.database) == []
    await fold_all(service)
    assert await differences(service.database) == []


async def test_a_new_conversion_of_a_message_that_the_job_has_not_reached_counts_it_at_the_time_of_the_old_conversion(
    service: Service, message: Message, clock: Clock
) -> None:
    await service.database.write(store_as_older_release, service.ids, message, NOON - 5 * DAY)
    clock.forward(minutes=1)
    await service.conversions.ingest(1, replace(SALE, at=clock()))
    (first,) = await rows(service.database, schema.first_conversions)
    assert first.at == NOON - 5 * DAY
    await fold_all(service)
    clock.forward(minutes=3)
    await job_of(service).step()
    assert await converted(service.database) == 1
    assert await differences(service.database) == []


async def test_the_job_and_new_conversions_of_the_same_messages_count_each_message_once(service: Service, clock: Clock) -> None:
    old = [await service.database.write(add_message, service.ids, f"m-{n}") for n in range(30)]
    for one in old:
        await service.database.write(store_as_older_release, service.ids, one)
    await fold_all(service)
    clock.forward(minutes=3)
    reports = [service.conversions.ingest(1, replace(SALE, message_id=one.message_id)) for one in old[::-1]]
    await asyncio.gather(job_of(service).step(), job_of(service).step(), *reports)
    assert await converted(service.database) == 30
    assert await differences(service.database) == []


async def test_two_processes_that_run_the_job_at_the_same_time_count_each_page_once(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_conversions, "PAGE_ROWS", 3)
    for number in range(10):
        one = await service.database.write(add_message, service.ids, f"m-{number}")
        await service.database.write(store_as_older_release, service.ids, one)
    await fold_all(service)
    clock.forward(minutes=3)

    async def run(job: FirstConversions) -> None:
        while await job.step():
            pass

    await asyncio.gather(run(job_of(service)), run(job_of(service)))
    await run(job_of(service))
    assert await converted(service.database) == 10


async def test_reports_are_incomplete_while_the_job_has_not_read_conversions_of_the_time_before_the_upgrade(
    service: Service, message: Message, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_conversions, "PAGE_ROWS", 2)
    for number in range(5):
        await service.database.write(store_as_older_release, service.ids, message, NOON, str(number))
    await service.database.write(set_value, "first conversions", "0 behind")  # as migration 0023 does
    await fold_all(service)
    clock.forward(minutes=20)

    async def is_complete() -> bool:
        return (await service.database.read(totals, StatisticsFilter(1, NOON - DAY, NOON + DAY))).complete

    job = job_of(service)
    for steps in range(3):
        assert not await is_complete(), steps
        assert bool(await job.step()) == (steps < 2)
    assert await is_complete()
    for number in range(5):
        await service.database.write(store_as_older_release, service.ids, message, NOON, f"new {number}")
    await fold_all(service)
    clock.forward(minutes=3)
    assert await job.step()
    assert await is_complete(), "the job is only late by minutes"


async def test_the_job_waits_while_old_count_deltas_wait_so_that_reports_include_the_newest_events(
    service: Service, message: Message, clock: Clock
) -> None:
    await service.database.write(store_as_older_release, service.ids, message)
    clock.forward(minutes=3)
    assert await job_of(service).step() == 0
    assert await rows(service.database, schema.first_conversions) == []
    await fold_all(service)
    await job_of(service).step()
    assert len(await rows(service.database, schema.first_conversions)) == 1


async def test_a_conversion_that_was_purged_after_the_job_has_read_it_is_not_counted(
    service: Service, message: Message, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.database.write(store_as_older_release, service.ids, message)
    await fold_all(service)
    clock.forward(minutes=3)
    read = service.database.read

    async def purge_after(query: Callable[..., Any], *args: Any) -> Any:
        found = await read(query, *args)
        if query is first_conversions.read_page:
            await service.database.write(lambda connection: connection.execute(delete(schema.conversions)))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(service.database, "read", purge_after)
        await job_of(service).step()
    assert await rows(service.database, schema.first_conversions) == []
    assert await converted(service.database) == 0


async def test_the_verification_reports_a_message_that_the_job_did_not_count_and_counting_all_again_repairs_it(
    service: Service, message: Message, clock: Clock
) -> None:
    await service.conversions.ingest(1, SALE)
    clock.forward(minutes=3)
    job = job_of(service)
    await job.step()
    assert (await service.database.read(read_progress)) == CountProgress((await rows(service.database, schema.conversions))[0].id)
    assert await differences(service.database) == []

    def lose(connection: Connection) -> None:
        connection.execute(delete(schema.first_conversions))
        connection.execute(delete(schema.count_deltas))
        for metric in ("conversions", "conversions:other:sale"):
            delta = CountDelta()
            delta.add(message.cohort_id, to_ms(NOON), metric, message=message.row)
            count_deltas.append(connection, service.ids(), delta)

    await service.database.write(lose)
    assert {one.metric for one in await differences(service.database)} == {"converted_messages"}
    assert await job.count_all() == 1
    assert await differences(service.database) == []
    assert await job.count_all() == 0


async def test_a_repair_counts_only_those_messages_without_a_row_that_were_not_counted(
    service: Service, message: Message, clock: Clock
) -> None:
    """There are three messages without a row. The first one is counted and has lost its row. The second one was never counted.
    The conversion of the third one is too new for the repair."""
    await service.conversions.ingest(1, SALE)
    older, newer = [await service.database.write(add_message, service.ids, name) for name in ("m-2", "m-3")]
    await service.database.write(store_as_older_release, service.ids, older)
    clock.forward(minutes=3)
    await fold_all(service)
    last = (await rows(service.database, schema.conversions))[-1].id
    await service.database.write(set_value, "first conversions", str(last))
    await service.database.write(store_as_older_release, service.ids, newer)
    await service.database.write(lambda connection: connection.execute(delete(schema.first_conversions)).rowcount)
    assert await service.database.read(count_missing) == 2
    counted = await service.database.read(find_counted_without_row, NOON - DAY, NOON + DAY)
    assert counted == {(message.cohort_id, to_ms(NOON) // TIME_SLOT_MS): 1}
    assert await job_of(service).count_all(counted=counted) == 2
    assert await service.database.read(count_missing) == 0
    assert await differences(service.database) == []
    assert {row.id for row in await rows(service.database, schema.first_conversions)} == {message.row, older.row}


async def test_the_queries_of_converted_messages_search_indexes(service: Service, message: Message, clock: Clock) -> None:
    await service.database.write(store_as_older_release, service.ids, message)

    def explain(connection: Connection) -> list[str]:
        found = plans(connection, lambda: first_conversions.claim(connection, [message.row, message.row + 1]))
        return found + plans(connection, lambda: first_conversions.read_page(connection, 1 << 62))

    for plan in await service.database.write(explain):
        if service.database.dialect == "sqlite":
            assert scanned(plan, "m", "page") == [], plan
        else:
            assert "Seq Scan on first_conversions" not in plan, plan
