"""Tests of early hits: a hit before the report SENT is suspected, and it is classified again after the report."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from shortener.clicks.batch import HitBatchWriter
from shortener.clicks.resolver import LinkResolver
from shortener.clicks.verdicts import early_hits
from shortener.container import Service
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import State, Topic, Verdict
from shortener.storage import schema
from shortener.storage.postgres import async_engine
from tests.clicks.helpers import PHONE_HEADERS, change_settings, create_codes, fetch_rows, forget_expressions, make_hit
from tests.clicks.verdicts.helpers import (
    PHONE,
    assert_counts_match,
    only_message,
    record_click,
    run_reclassifier,
    sent_events,
)
from tests.conftest import Clock
from tests.rows import messages_now


async def verdicts(service: Service) -> list[Any]:
    return [(hit.verdict, hit.rule) for hit in await fetch_rows(service, schema.hits)]


async def test_a_hit_before_the_sent_report_is_suspected_and_becomes_the_first_click_after_the_report(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await change_settings(service, suspect_before_sent=True)
    (code,) = await create_codes(service, message_ids=("m-1",))
    at = clock()
    await service.recorder.record(make_hit(service, code, user_agent=PHONE_HEADERS["User-Agent"]))
    assert await verdicts(service) == [(Verdict.SUSPECTED, "before_sent")]
    assert [message.state for message in await fetch_rows(service, messages_now)] == [State.CREATED]
    assert await service.early_hits.step(clock()) == 0
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock.forward(minutes=5))])
    await service.jobs.table["devices"].step()
    forget_expressions(monkeypatch)
    assert await service.early_hits.step(clock()) == 1
    monkeypatch.undo()
    assert [verdict for verdict, _ in await verdicts(service)] == [Verdict.HUMAN]
    (message,) = await fetch_rows(service, messages_now)
    assert (message.state, message.previous_state, message.clicked_at) == (State.CLICKTHRU, State.SENT, at)
    topics = [Topic(event.topics) for event in await fetch_rows(service, schema.events)]
    assert topics == [Topic.DELIVERY | Topic.STATE, Topic.STATE | Topic.CLICK]
    assert await fetch_rows_of_early_hits(service) == []
    clock.forward(minutes=10)
    await service.jobs.table["devices"].step()
    await service.fanout.flush()
    await assert_counts_match(service)


async def test_the_sent_report_does_not_change_the_verdict_on_a_hit_by_a_crawler(service: Service, clock: Clock) -> None:
    await change_settings(service, suspect_before_sent=True)
    (unsent,) = await create_codes(service, message_ids=("m-1",))
    (sent,) = await create_codes(service, message_ids=("m-2",))
    await service.delivery_reports.record(1, [DeliveryReport("m-2", State.DELIVERED, clock())])
    await service.recorder.record(make_hit(service, unsent, user_agent="curl/8.0"))
    await service.recorder.record(make_hit(service, sent))
    assert [verdict for verdict, _ in await verdicts(service)] == [Verdict.SUSPECTED, Verdict.HUMAN]
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())])
    assert await service.early_hits.step(clock()) == 1
    assert [verdict for verdict, _ in await verdicts(service)] == [Verdict.SUSPECTED, Verdict.HUMAN]
    assert await service.early_hits.step(clock()) == 0


@pytest.mark.parametrize("is_early", [False, True])
async def test_a_report_of_read_alone_shows_that_the_message_was_sent(service: Service, clock: Clock, is_early: bool) -> None:
    await change_settings(service, suspect_before_sent=True, retract_clicks=True)
    (code,) = await create_codes(service, message_ids=("m-1",))
    report = DeliveryReport("m-1", State.READ, clock())
    if is_early:
        await record_click(service, code)
        await service.delivery_reports.record(1, [report])
        assert await service.early_hits.step(clock()) == 1
    else:
        await service.delivery_reports.record(1, [report])
        await record_click(service, code)
    assert (await only_message(service)).state == State.CLICKTHRU
    assert (await run_reclassifier(service)).corrections.to_suspected == 0
    assert [verdict for verdict, _ in await verdicts(service)] == [Verdict.HUMAN]
    assert Topic.CLICK_RETRACTED not in [topics for topics, _ in await sent_events(service)]


async def test_an_early_hit_is_classified_again_if_the_first_attempt_to_store_it_failed(service: Service, clock: Clock) -> None:
    await change_settings(service, suspect_before_sent=True)
    (code,) = await create_codes(service, message_ids=("m-1",))
    writer, hit = batch_writer(service), make_hit(service, code, user_agent=PHONE)

    def fail(connection: Connection) -> None:
        writer.write(connection, [hit])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await service.database.write(fail)
    await service.database.write(writer.write, [hit])
    assert await verdicts(service) == [(Verdict.SUSPECTED, "before_sent")]
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock.forward(minutes=5))])
    assert await service.early_hits.step(clock()) == 1
    assert (await only_message(service)).state == State.CLICKTHRU


def batch_writer(service: Service) -> HitBatchWriter:
    return HitBatchWriter(service.ids, LinkResolver(service.directory, service.click_ids), service.directory)


@contextlib.asynccontextmanager
async def other_process(service: Service) -> AsyncIterator[AsyncConnection]:
    """Yield a connection to PostgreSQL that acts as another process. It has an open transaction, which is committed at the
    end."""
    engine = async_engine(service.settings.database_url)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def waits_for(connection: AsyncConnection) -> bool:
    """Return whether another transaction waits for a lock that this connection has."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    return bool(await connection.scalar(text(waiting)))


async def create_early_code(service: Service) -> str:
    """Return the code of a link in a message that is not reported as sent. Skip the test on SQLite."""
    if service.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer, so the two transactions cannot overlap.")
    await change_settings(service, suspect_before_sent=True)
    (code,) = await create_codes(service, message_ids=("m-1",))
    return code


async def test_an_old_hit_from_the_spool_is_classified_again_if_the_report_is_committed_before_the_hit(
    service: Service, clock: Clock
) -> None:
    code = await create_early_code(service)
    hit = make_hit(service, code, at=service.now_ms(), user_agent=PHONE)
    clock.forward(minutes=10)
    async with other_process(service) as connection:
        await connection.run_sync(batch_writer(service).write, [hit])
        await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())])
    assert await verdicts(service) == [(Verdict.SUSPECTED, "before_sent")]
    assert await service.early_hits.step(clock()) == 1
    assert (await only_message(service)).state == State.CLICKTHRU


async def test_a_report_that_arrives_while_another_early_hit_is_stored_classifies_both_hits_again(
    service: Service, clock: Clock
) -> None:
    code = await create_early_code(service)
    await record_click(service, code)
    clock.forward(minutes=10)
    async with other_process(service) as connection:
        await connection.run_sync(batch_writer(service).write, [make_hit(service, code, user_agent=PHONE)])
        report = asyncio.create_task(service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())]))
        while not report.done() and not await waits_for(connection):
            await asyncio.sleep(0.01)  # a pause before the locks are queried again
        if report.done():
            await service.early_hits.step(clock())
    await report
    await service.early_hits.step(clock())
    assert [verdict for verdict, _ in await verdicts(service)] == [Verdict.HUMAN, Verdict.HUMAN]
    assert await fetch_rows_of_early_hits(service) == []


async def test_the_job_waits_for_an_early_hit_that_is_being_stored_and_classifies_it_too(service: Service, clock: Clock) -> None:
    code = await create_early_code(service)
    await record_click(service, code)
    (stored,) = await fetch_rows(service, schema.hits)
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())])
    async with other_process(service) as connection:
        await connection.run_sync(early_hits.add, [(await only_message(service)).id], clock())
        await connection.execute(schema.hits.insert().values({**stored._mapping, "id": service.ids()}))
        step = asyncio.create_task(service.early_hits.step(clock()))
        while not await waits_for(connection):
            assert not step.done()
            await asyncio.sleep(0.01)  # a pause before the locks are queried again
    assert await step == 1
    assert [verdict for verdict, _ in await verdicts(service)] == [Verdict.HUMAN, Verdict.HUMAN]


async def fetch_rows_of_early_hits(service: Service) -> list[Any]:
    return await service.database.read(lambda connection: list(connection.execute(schema.early_hits.select())))
