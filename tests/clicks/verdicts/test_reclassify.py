"""Tests of reclassification: which hits a run examines, how it forms batches, and how an interrupted run continues."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, update

from shortener.clicks.verdicts import correction, reclassify
from shortener.container import Service
from shortener.model import State, Topic, Verdict
from shortener.reporting.count_check import verify
from shortener.retention.erasure import erase_message
from shortener.retention.purge import purge
from shortener.storage import schema
from tests.clicks.helpers import create_codes, fetch_rows
from tests.clicks.verdicts.helpers import (
    DAY,
    PHONE,
    SCANNER,
    assert_counts_match,
    only_message,
    record_click,
    run_reclassifier,
    sent_events,
)
from tests.conftest import NOON, Clock
from tests.factory import AUDIT, keep_sends
from tests.reporting.plans import plans, scanned
from tests.rows import messages_now


async def test_a_second_reclassification_of_the_same_hits_changes_nothing(retracting: Service, clock: Clock) -> None:
    service = retracting
    for _ in range(3):
        (code,) = await create_codes(service)
        await record_click(service, code, SCANNER)
        await record_click(service, code)
    await run_reclassifier(service)
    events, hits = await sent_events(service), await fetch_rows(service, schema.hits)
    assert len(events) == 9
    for _ in range(2):
        result = await run_reclassifier(service)
        assert (
            result.corrections.to_suspected,
            result.corrections.retracted,
            result.corrections.first_clicks,
            result.corrections.events,
        ) == (
            0,
            0,
            0,
            0,
        )
    assert await sent_events(service) == events
    assert await fetch_rows(service, schema.hits) == hits


async def test_ignored_hits_and_hits_of_erased_messages_are_not_reclassified(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await create_codes(service, message_ids=("m-1",))
    await record_click(service, code, PHONE, verdict=Verdict.IGNORED)
    await record_click(service, code)
    await service.database.write(erase_message, 1, "m-1", clock(), AUDIT, keep_sends)
    result = await run_reclassifier(service)
    assert (result.hits, result.corrections.events) == (0, 0)
    assert (await only_message(service)).state == State.CLICKTHRU
    await assert_counts_match(service)


async def test_a_first_click_whose_user_agent_was_purged_is_not_reclassified(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await create_codes(service)
    await record_click(service, code)
    clock.forward(days=2)
    settings = service.settings.model_copy(update={"hit_retention_days": 1})
    assert (await purge(service.database, settings, clock())).emptied_hits == 0, "the fan-out must process the click first"
    await service.fanout.flush()
    assert (await purge(service.database, settings, clock())).emptied_hits == 1
    result = await run_reclassifier(service)
    assert (result.hits, result.corrections.events) == (0, 0)
    assert (await only_message(service)).state == State.CLICKTHRU
    assert await service.database.read(verify, NOON - DAY, NOON + DAY) == []


async def test_the_reclassification_of_late_hits_and_hits_on_disabled_links_changes_only_their_verdict(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    (expired,) = await create_codes(service, expires_in=60)
    (disabled,) = await create_codes(service)
    clock.forward(minutes=2)
    await service.database.write(
        lambda c: c.execute(update(schema.links).where(schema.links.c.code == disabled).values(disabled_at=clock()))
    )
    await record_click(service, expired, PHONE, verdict=Verdict.SUSPECTED)
    await record_click(service, disabled, PHONE, verdict=Verdict.SUSPECTED)
    late = await record_click(service, expired, SCANNER)
    result = await run_reclassifier(service)
    assert (result.corrections.to_human, result.corrections.to_suspected, result.corrections.events) == (2, 1, 0)
    assert await sent_events(service) == [(Topic.LATE_CLICK, late)]
    await assert_counts_match(service)


async def test_a_dry_run_of_the_reclassification_returns_the_changes_and_stores_nothing(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await create_codes(service)
    await record_click(service, code, SCANNER)
    before = [await fetch_rows(service, table) for table in (schema.hits, messages_now, schema.events)]
    dry = await run_reclassifier(service, dry_run=True)
    assert (dry.hits, dry.corrections.to_suspected, dry.corrections.retracted_messages) == (1, 1, 1)
    assert [await fetch_rows(service, table) for table in (schema.hits, messages_now, schema.events)] == before
    assert (await run_reclassifier(service)).corrections.retracted_messages == 1


async def test_only_hits_in_the_requested_period_are_reclassified(retracting: Service, clock: Clock) -> None:
    service = retracting
    for _ in range(3):
        (code,) = await create_codes(service)
        await record_click(service, code, SCANNER)
        clock.forward(minutes=10)
    result = await service.reclassifier.run(NOON + timedelta(minutes=10), NOON + timedelta(minutes=20), clock())
    assert (result.hits, result.corrections.retracted) == (1, 1)
    assert [hit.verdict for hit in await fetch_rows(service, schema.hits)] == [0, 1, 0]


async def test_the_reclassification_does_not_examine_the_newest_hits(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await create_codes(service)
    await record_click(service, code, SCANNER)
    result = await service.reclassifier.run(NOON - DAY, clock(), clock.forward(minutes=2))
    assert (result.hits, result.until) == (0, NOON + timedelta(minutes=2) - reclassify.DELAY)


async def test_the_reclassification_gives_the_same_result_with_pages_and_batches_of_any_size(
    retracting: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = retracting
    monkeypatch.setattr(reclassify, "PAGE_HITS", 3)
    monkeypatch.setattr(reclassify, "BATCH_CHANGES", 2)
    for _ in range(8):
        (code,) = await create_codes(service)
        await record_click(service, code, SCANNER)
        await record_click(service, code, SCANNER)
        clock.forward(seconds=25)
        await record_click(service, code)
    result = await run_reclassifier(service)
    assert (result.hits, result.corrections.retracted_messages, result.corrections.first_clicks) == (24, 8, 8)
    topics = Counter(topics for topics, _ in await sent_events(service))
    assert topics == {Topic.STATE | Topic.CLICK: 16, Topic.CLICK_RETRACTED: 8}
    await assert_counts_match(service)


async def test_an_interrupted_reclassification_can_be_repeated(
    retracting: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = retracting
    for _ in range(4):
        (code,) = await create_codes(service)
        await record_click(service, code, SCANNER)
        clock.forward(seconds=1)
        await record_click(service, code)
    monkeypatch.setattr(reclassify, "BATCH_CHANGES", 1)
    attempts = 0

    async def fail(*args: Any, **more: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            raise RuntimeError("power cut")
        return await correction.apply_changes(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(reclassify, "apply_changes", fail)
        with pytest.raises(RuntimeError):
            await run_reclassifier(service)
    result = await run_reclassifier(service)
    assert (result.corrections.retracted_messages, result.corrections.first_clicks) == (2, 4)
    assert Counter(topics for topics, _ in await sent_events(service))[Topic.CLICK_RETRACTED] == 4
    await assert_counts_match(service)


async def test_no_statement_of_the_reclassification_scans_a_whole_table(retracting: Service) -> None:
    service = retracting
    if service.database.dialect != "sqlite":
        pytest.skip("both engines run the same statements; this test reads SQLite's plans")
    (code,) = await create_codes(service)
    await record_click(service, code, SCANNER)
    await record_click(service, code)
    first, _ = await fetch_rows(service, schema.hits)
    message = await only_message(service)
    change = correction.VerdictChange(first.id, message.id, Verdict.HUMAN, Verdict.SUSPECTED, "crawler", True)

    def explain(connection: Connection) -> list[str]:
        def run() -> None:
            reclassify.read_page(connection, 0, service.ids(), [1])
            changed = correction.change_verdicts(connection, [change], service.ids, NOON, includes_newest=True)
            assert (changed.to_suspected, changed.retracted) == (1, 1)
            assert correction.assign_first_clicks(connection, changed.unsettled, service.ids).first_clicks == 1

        return plans(connection, run)

    found = await service.database.write(explain)
    assert len(found) > 12
    assert [step for plan in found for step in scanned(plan)] == []
