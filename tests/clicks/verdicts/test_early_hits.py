"""Tests of early hits: a hit before the sent report is suspected, and the service classifies it again after the report."""

from typing import Any

import pytest

from shortener.container import Service
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import State, Topic, Verdict
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS, change_settings, create_codes, fetch_rows, forget_expressions, make_hit
from tests.clicks.verdicts.helpers import assert_counts_match, only_message, record_click, run_reclassifier, sent_events
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


async def fetch_rows_of_early_hits(service: Service) -> list[Any]:
    return await service.database.read(lambda connection: list(connection.execute(schema.early_hits.select())))
