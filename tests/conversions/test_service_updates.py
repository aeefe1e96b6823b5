"""Tests of updated conversions: revisions, events, counts, late repeats, conflicts and races."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from shortener.container import Service
from shortener.conversions import queries, revisions
from shortener.conversions.parsing import ConversionReport, parse_conversion
from shortener.conversions.revisions import EFFECT_WARNINGS, REPEAT_WINDOW, Effect
from shortener.conversions.service import OTHER_ACTIONS, Conversions
from shortener.errors import ApiError, CommitUncertain, ErrorCode
from shortener.ids import ClickIds, IdGenerator
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import CountDelta
from shortener.reporting.count_check import verify
from shortener.reporting.counts import fold
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.conftest import NOON, Clock
from tests.databases import Cut, CutCommits
from tests.factory import Message, add_message, count_delta_sums, rows
from tests.rows import Rows

LEAD = {"status": "lead"}
APPROVED = {"status": "approved", "value": "30", "currency": "USD"}
REJECTED = {"status": "rejected"}


@pytest.fixture(autouse=True)
async def message(service: Service) -> Message:
    return await service.database.write(add_message, service.ids)


def report(*, at: Any = NOON, **parameters: Any) -> ConversionReport:
    return parse_conversion({"message_id": "m-1", "transaction_id": "T1", **parameters}, at)


async def assert_counts_agree(database: Database) -> None:
    """Assert that the counts of conversions equal a recount of the rows. Check this before and after the count deltas are added
    to the counts."""
    for _ in range(2):
        different = await database.read(verify, NOON - timedelta(days=2), NOON + timedelta(days=2))
        # The counts of the message always differ, because the tests insert the message without counting it.
        assert [one for one in different if one.metric not in ("messages", "segments")] == []
        while await database.write(fold):
            pass


async def sums(database: Database) -> dict[str, str]:
    """Return the sum of the count deltas of each metric, except sums that are 0."""
    return {metric: amount for metric, amount in (await count_delta_sums(database)).items() if Decimal(amount)}


@pytest.mark.parametrize("transaction_id", ["T1", ""])
@pytest.mark.parametrize("order", list(itertools.permutations([LEAD, APPROVED, REJECTED])))
async def test_conversion_reports_with_three_different_statuses_in_any_order_create_three_revisions_of_one_conversion(
    service: Service, order: tuple[dict[str, str], ...], transaction_id: str
) -> None:
    results = []
    for parameters in order:
        results.append(await service.conversions.ingest(1, report(transaction_id=transaction_id, **parameters)))
    assert [(one.updated, one.revision) for one in results] == [(False, 1), (True, 2), (True, 3)]
    assert not any(one.duplicate for one in results)
    assert len({one.conversion_id for one in results}) == 1
    (stored,) = await rows(service.database, schema.conversions)
    assert (stored.status, stored.value, stored.revision) == (order[-1]["status"], Decimal(30), 3)
    earlier = await rows(service.database, schema.conversion_revisions)
    assert [(one.revision, one.status) for one in earlier] == [(1, order[0]["status"]), (2, order[1]["status"])]
    events = await rows(service.database, schema.events)
    assert [event.data["revision"] for event in events] == [1, 2, 3]
    assert [event.data["previous_status"] for event in events] == [None, order[0]["status"], order[1]["status"]]
    category = {"lead": "pending", "approved": "positive", "rejected": "negative"}[order[-1]["status"]]
    expected = {"conversions": "1", "converted_messages": "1"}
    expected |= {f"conversions:{category}:conversion": "1", f"value:USD:{category}:conversion": "30"}
    assert await sums(service.database) == expected | ({"value:USD": "30"} if category == "positive" else {})
    await assert_counts_agree(service.database)


async def test_the_counts_of_conversions_are_correct_after_every_revision(service: Service) -> None:
    steps = [
        (LEAD, {}),
        (APPROVED, {"value:USD": "30"}),
        ({"status": "approved", "value": "35.50"}, {"value:USD": "35.50"}),
        ({"currency": "EUR"}, {"value:EUR": "35.50"}),
        (REJECTED, {}),
        ({"status": "paid", "value": "-1.00"}, {"value:EUR": "-1.00"}),
    ]
    for parameters, expected in steps:
        await service.conversions.ingest(1, report(**parameters))
        found = await sums(service.database)
        assert {metric: amount for metric, amount in found.items() if metric.count(":") == 1} == expected
        assert (found["conversions"], found["converted_messages"]) == ("1", "1")
    last = (await rows(service.database, schema.events))[-1].data
    assert (last["previous_status"], last["previous_value"], last["value"]) == ("rejected", "35.50", "-1.00")
    await assert_counts_agree(service.database)


async def test_an_update_of_a_conversion_keeps_the_fields_that_the_conversion_report_does_not_contain(service: Service) -> None:
    await service.conversions.ingest(1, report(status="approved", value="30", currency="USD", sub="1"))
    await service.conversions.ingest(1, report(status="rejected", reason="fraud"))
    (stored,) = await rows(service.database, schema.conversions)
    assert (stored.status, stored.disposition, stored.value, stored.currency) == ("rejected", "negative", Decimal(30), "USD")
    assert stored.metadata == {"reason": "fraud"}
    (earlier,) = await rows(service.database, schema.conversion_revisions)
    assert (earlier.status, earlier.disposition, earlier.metadata) == ("approved", "positive", {"sub": "1"})


async def test_an_update_of_a_conversion_is_counted_at_the_time_of_the_first_report(service: Service, clock: Clock) -> None:
    await service.conversions.ingest(1, report(**APPROVED))
    later = clock.forward(days=1)
    await service.conversions.ingest(1, report(at=later, **REJECTED))
    (stored,) = await rows(service.database, schema.conversions)
    assert (stored.at, stored.latest_at, stored.updated_at) == (NOON, later, later)
    await assert_counts_agree(service.database)


# These tests check repeated and conflicting conversion reports.


async def test_a_conversion_report_that_equals_an_earlier_revision_changes_nothing(service: Service, clock: Clock) -> None:
    for parameters in (LEAD, APPROVED, REJECTED):
        await service.conversions.ingest(1, report(**parameters))
    for parameters in (LEAD, APPROVED, REJECTED, {"status": "approved"}, {}):
        result = await service.conversions.ingest(1, report(at=clock(), **parameters))
        assert (result.duplicate, result.updated) == (True, False)
    assert len(await rows(service.database, schema.events)) == 3


async def test_a_report_of_an_earlier_status_creates_a_revision_after_the_repeat_window_or_with_a_newer_timestamp(
    service: Service, clock: Clock
) -> None:
    for parameters in (APPROVED, REJECTED):
        await service.conversions.ingest(1, report(**parameters))
    newer = report(at=clock(), timestamp=(NOON + timedelta(seconds=1)).isoformat(), **APPROVED)
    assert (await service.conversions.ingest(1, newer)).revision == 3
    clock.now += REPEAT_WINDOW
    repeat = await service.conversions.ingest(1, report(at=clock(), **REJECTED))
    assert (repeat.duplicate, repeat.warnings) == (True, (EFFECT_WARNINGS[Effect.REPEAT_OF_EARLIER],))
    clock.forward(milliseconds=1)
    assert (await service.conversions.ingest(1, report(at=clock(), **REJECTED))).revision == 4


async def test_a_conversion_that_is_approved_rejected_and_approved_again_gets_three_revisions(
    service: Service, clock: Clock
) -> None:
    for parameters in (APPROVED, REJECTED, APPROVED):
        result = await service.conversions.ingest(1, report(at=clock(), **parameters))
        clock.forward(minutes=5)
    assert (result.updated, result.revision, result.warnings) == (True, 3, ())
    await assert_counts_agree(service.database)


async def test_a_conversion_report_beyond_the_maximum_number_of_revisions_gets_a_warning(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revisions, "MAX_REVISIONS", 2)
    for parameters in (APPROVED, REJECTED):
        await service.conversions.ingest(1, report(**parameters))
    beyond = await service.conversions.ingest(1, report(status="refunded"))
    assert (beyond.duplicate, beyond.revision, len(beyond.warnings)) == (True, 2, 1)


async def test_a_conversion_report_with_another_value_and_no_transaction_id_is_rejected_as_a_conflict(service: Service) -> None:
    one = report(transaction_id="", value="12.54")
    await service.conversions.ingest(1, one)
    assert (await service.conversions.ingest(1, one)).duplicate
    for other in ({"value": "1.31"}, {"value": "12.54", "currency": "USD"}, {"value": "12.54", "currency": "EUR"}):
        if other == {"value": "12.54", "currency": "USD"}:
            assert (await service.conversions.ingest(1, report(transaction_id="", **other))).updated
            continue
        with pytest.raises(ApiError, match="transaction_id") as raised:
            await service.conversions.ingest(1, report(transaction_id="", **other))
        assert raised.value.code is ErrorCode.CONVERSION_CONFLICT
    assert (await service.conversions.ingest(1, report(transaction_id="2", value="1.31"))).revision == 1


async def test_a_conversion_of_an_earlier_release_keeps_the_letter_case_of_its_action_and_its_counts(
    service: Service, message: Message
) -> None:
    """A release before 0.3 kept the capitals of an action, and counted only `conversions` and `value:`."""

    def old_row(connection: Any) -> None:
        Rows(connection, NOON).conversion(message.row, action="Sale", transaction_id="T1", value=Decimal(7), currency="EUR")
        delta = CountDelta()
        delta.add(message.cohort_id, to_ms(NOON), "conversions")
        delta.add(message.cohort_id, to_ms(NOON), "value:EUR", Decimal(7))
        count_deltas.append(connection, 1, delta)

    await service.database.write(old_row)
    await assert_counts_agree(service.database)
    assert (await service.conversions.ingest(1, report(action="Sale", value="7", currency="EUR"))).duplicate
    assert (await service.conversions.ingest(1, report(action="Sale", status="rejected"))).revision == 2
    (stored,) = await rows(service.database, schema.conversions)
    assert (stored.action, stored.counted_as) == ("Sale", "negative:sale")
    await assert_counts_agree(service.database)


async def test_the_number_of_conversion_actions_that_are_counted_separately_is_limited(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_COUNTED_ACTIONS", 2)
    for number in range(4):
        await service.conversions.ingest(1, report(action=f"action-{number}"))
    counted = [row.counted_as for row in await rows(service.database, schema.conversions)]
    assert counted == ["other:action-0", "other:action-1", f"other:{OTHER_ACTIONS}", f"other:{OTHER_ACTIONS}"]
    await assert_counts_agree(service.database)


async def test_the_event_of_a_conversion_revision_contains_the_values_of_that_revision(service: Service) -> None:
    """The deliveries are created from the event later. At this time, the conversion may already have the next revision."""

    def subscribe(connection: Any) -> None:
        Rows(connection, NOON).tracker(1, enabled=True)
        connection.execute(schema.trackers.update().values(topics=8))

    await service.database.write(subscribe)
    for parameters in (LEAD, APPROVED, REJECTED):
        await service.conversions.ingest(1, report(transaction_id="Order-1", action="Sale", **parameters))
    await service.fanout.flush()
    facts = [event.facts for event in await rows(service.database, schema.events)]
    assert [(one["conversion_status"], one["value"], one["disposition"]) for one in facts] == [
        ("lead", None, None),
        ("approved", "30", "positive"),
        ("rejected", "30", "negative"),
    ]
    assert {(one["action"], one["transaction_id"]) for one in facts} == {("Sale", "Order-1")}


# These tests check concurrent conversion reports.


def another_process(service: Service, clock: Clock, number: int) -> Conversions:
    """Return another `Conversions` for the same database. It forms its own batches, as it would in another process."""
    ids = IdGenerator(5 + number, lambda: to_ms(clock()))
    return Conversions(service.database, ids, ClickIds(b"key"), clock, lambda: None)


async def test_fifty_concurrent_conversion_reports_with_two_statuses_create_one_conversion_with_two_revisions(
    service: Service,
) -> None:
    reports = [report(**(APPROVED if number % 2 else LEAD)) for number in range(50)]
    results = await asyncio.gather(*(service.conversions.ingest(1, one) for one in reports))
    (stored,) = await rows(service.database, schema.conversions)
    assert stored.revision == 2
    assert len(await rows(service.database, schema.conversion_revisions)) == 1
    assert len(await rows(service.database, schema.events)) == 2
    assert [one.duplicate for one in results].count(False) == 2
    await assert_counts_agree(service.database)


async def test_processes_that_update_the_same_conversions_concurrently_lose_no_update(service: Service, clock: Clock) -> None:
    """Each of three services reports ten statuses for each of five transaction ids. On PostgreSQL, their transactions overlap."""
    database = service.database
    processes = [another_process(service, clock, number) for number in range(3)]
    reports = [
        replace(report(), transaction_id=f"t-{transaction}", status=f"status {status}", value=Decimal(status), currency="EUR")
        for status in range(10)
        for transaction in range(5)
    ]
    jobs = [process.ingest(1, one) for process in processes for one in (reports if process is processes[0] else reports[::-1])]
    results = await asyncio.gather(*jobs)
    stored = await rows(database, schema.conversions)
    assert len(stored) == 5
    assert {row.revision for row in stored} == {10}, "each status is a revision, and none is repeated"
    earlier = await rows(database, schema.conversion_revisions)
    for row in stored:
        statuses = [one.status for one in earlier if one.conversion_id == row.id] + [row.status]
        assert sorted(statuses) == sorted(f"status {number}" for number in range(10))
    assert [one.duplicate for one in results].count(False) == 50
    assert len(await rows(database, schema.events)) == 50
    await assert_counts_agree(database)


async def test_two_transactions_that_add_the_same_new_conversion_actions_do_not_deadlock(service: Service, clock: Clock) -> None:
    database = service.database
    processes = [another_process(service, clock, number) for number in range(2)]
    reports = [report(action=f"action {number}") for number in range(40)]
    await asyncio.gather(*(processes[0].ingest(1, one) for one in reports), *(processes[1].ingest(1, one) for one in reports[::-1]))
    assert len(await rows(database, schema.conversions)) == 40
    await assert_counts_agree(database)


@pytest.mark.parametrize("cuts", [["stored"], ["rolled back"], ["stored", "stored"], ["rolled back", "stored"]])
async def test_the_result_of_an_update_whose_commit_was_cut_is_that_of_an_update(
    service: Service, monkeypatch: pytest.MonkeyPatch, cuts: list[Cut]
) -> None:
    await service.conversions.ingest(1, report(**LEAD))
    database = CutCommits(service.database, cuts)
    monkeypatch.setattr(service.conversions._group._batcher, "_database", database)
    approved, same, rejected = await asyncio.gather(
        *(service.conversions.ingest(1, report(**values)) for values in (APPROVED, APPROVED, REJECTED))
    )
    assert [(one.updated, one.duplicate, one.revision) for one in (approved, same, rejected)] == [
        (True, False, 2),
        (False, True, same.revision),
        (True, False, 3),
    ]
    assert approved.unapplied is None
    assert approved.warnings == ()
    again = await service.conversions.ingest(1, report(**REJECTED))
    assert (again.updated, again.duplicate, again.revision) == (False, True, 3)
    assert service.conversions.reports == {"new": 1, "updated": 2, "duplicate": 2}
    events = [event for event in await rows(service.database, schema.events) if event.conversion_id is not None]
    assert len(events) == 3
    assert [one.revision for one in await rows(service.database, schema.conversion_revisions)] == [1, 2]
    await assert_counts_agree(service.database)


async def test_the_result_of_an_update_whose_commit_was_cut_does_not_change_if_another_process_updates_before_the_retry(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.conversions.ingest(1, report(**LEAD))
    other = Conversions(service.database, service.ids, ClickIds(bytes(16)), lambda: NOON, lambda: None)

    class UpdatedBeforeTheRetry(CutCommits):
        async def write_later(self, transact: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await super().write_later(transact, *args, **kwargs)
            except CommitUncertain:
                assert (await other.ingest(1, report(**REJECTED))).revision == 3
                raise

        write = write_later

    database = UpdatedBeforeTheRetry(service.database, ["stored"])
    monkeypatch.setattr(service.conversions._group._batcher, "_database", database)
    approved = await service.conversions.ingest(1, report(**APPROVED))
    assert (approved.updated, approved.revision, approved.unapplied) == (True, 2, None)
    (stored,) = await rows(service.database, schema.conversions)
    assert (stored.status, stored.revision) == ("rejected", 3)
