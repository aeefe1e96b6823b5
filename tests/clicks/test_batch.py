"""Tests of the transaction that writes a batch of hits, on SQLite and PostgreSQL: the counts, and the repetition of a batch."""

import asyncio
import sqlite3
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from shortener.clicks import queries
from shortener.clicks.batch import BatchResult, HitBatchWriter
from shortener.clicks.resolver import Hit, LinkResolver
from shortener.clicks.verdicts.correction import VerdictChange, apply_changes
from shortener.container import Service
from shortener.delivery import fanout_queries
from shortener.delivery.fanout import requeue_events
from shortener.messages.delivery_reports import DeliveryReport, DeliveryReportResult
from shortener.model import State, Verdict
from shortener.outbox import first_clicks
from shortener.outbox.count_deltas import TIME_SLOT_MS, time_to_click_bucket, time_to_click_seconds
from shortener.reporting.count_check import verify
from shortener.reporting.rollup_check import verify_rollups
from shortener.storage import schema
from shortener.storage.types import from_ms
from tests.clicks.helpers import change_settings as choose
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import fetch_rows as rows
from tests.clicks.helpers import make_hit as hit
from tests.conftest import Clock
from tests.databases import someone_at, until_it_waits
from tests.factory import AUDIT
from tests.rows import messages_now


def record_of(service: Service) -> HitBatchWriter:
    return HitBatchWriter(service.ids, LinkResolver(service.directory, service.click_ids), service.directory)


async def counted(service: Service) -> dict[tuple[int, str], int]:
    """Return the amounts of the latest count delta by (time slot, metric). Slot 0 is the quarter of an hour that begins at the
    last full hour."""
    noon = service.now_ms() // (4 * TIME_SLOT_MS) * 4
    tally = (await rows(service, schema.count_deltas))[-1]
    sums: Counter[tuple[int, str]] = Counter()
    for _, quarter, metric, amount in tally.data:
        sums[quarter - noon, metric] += int(amount)
    return dict(sums)


async def check(service: Service, clock: Clock) -> None:
    """Assert that the stored counts and rolled-up counts equal the result of counting all rows again."""
    assert await service.database.read(verify, clock() - timedelta(days=1), clock() + timedelta(days=1)) == []
    assert await service.database.read(verify_rollups, clock() - timedelta(days=1), clock() + timedelta(days=1)) == []


async def test_a_batch_of_hits_is_counted_by_metric_and_time_slot_and_the_fan_out_counts_the_times_to_click(
    service: Service, clock: Clock
) -> None:
    codes = [(await send(service))[0] for _ in range(3)]
    both = await send(service, '#track("https://x.example/1") #track("https://x.example/2")')
    (soon,) = await send(service, expires_in=30)
    clock.forward(seconds=60)
    now, bucket = service.now_ms(), f"ttc:{time_to_click_bucket(60)}"
    batch = [
        hit(service, codes[0]),
        hit(service, codes[1]),
        hit(service, codes[0]),
        hit(service, codes[2], at=now + TIME_SLOT_MS),
        *(hit(service, code) for code in both),
        hit(service, codes[2], Verdict.SUSPECTED),
        hit(service, codes[2], Verdict.IGNORED),
        hit(service, soon),
        hit(service, soon, Verdict.SUSPECTED),
        hit(service, "doesnotexist"),
    ]
    outcome = await service.database.write(record_of(service).write, batch)
    assert (outcome.recorded, outcome.first_clicks, outcome.events) == (10, 4, 6)
    assert [bool(resolution.location) for resolution in outcome.resolutions] == [True] * 8 + [False] * 3
    assert await counted(service) == {
        (0, "clicks"): 5,
        (0, "clicked_messages"): 3,
        (0, "clicked_links"): 4,
        (1, "clicked_links"): 1,
        (1, "clicks"): 1,
        (1, "clicked_messages"): 1,
        (0, "suspected_hits"): 1,
        (0, "ignored_hits"): 1,
        (0, "late_hits"): 2,
    }
    await check(service, clock)
    pending = await service.database.read(fanout_queries.pending_ids, 1)
    await service.database.write(lambda connection: fanout_queries.quarantine(connection, pending[0]))
    await check(service, clock)
    assert await requeue_events(service.database, AUDIT, clock()) == 1
    await service.fanout.flush()
    assert await counted(service) == {(0, bucket): 3, (1, f"ttc:{time_to_click_bucket(60 + 15 * 60)}"): 1}
    await check(service, clock)


async def test_a_batch_of_hits_that_is_written_twice_stores_each_hit_once(service: Service, clock: Clock) -> None:
    codes = [(await send(service))[0] for _ in range(2)]
    record = record_of(service)
    first = [hit(service, code) for code in codes]
    await service.database.write(record.write, first)
    more = [*first, hit(service, codes[0])]
    outcome = await service.database.write(record.write, more, True)
    assert (outcome.recorded, outcome.first_clicks, outcome.events > 0) == (3, 2, True)
    assert [resolution.location for resolution in outcome.resolutions] == [b"https://x.example/a"] * 3
    assert Counter(one.id for one in await rows(service, schema.hits)) == Counter(one.id for one in more)
    await check(service, clock)


async def test_recording_a_click_does_not_access_the_messages_table(service: Service) -> None:
    """Clicks arrive in random order, so each click would read and write a different page of this table (docs/decisions/0013)."""
    codes = [(await send(service))[0] for _ in range(3)]
    record = record_of(service)
    touched: set[str | None] = set()

    def look(action: int, table: str | None, *_: str | None) -> int:
        touched.add(table)
        return sqlite3.SQLITE_OK

    def write(connection: Connection, batch: list[Hit]) -> BatchResult:
        if connection.dialect.name == "postgresql":
            scans = "coalesce(seq_scan, 0) + coalesce(idx_scan, 0)"
            uses = text(f"SELECT relname, {scans} + n_tup_ins + n_tup_upd FROM pg_stat_xact_user_tables")
            before = set(connection.execute(uses).all())
            outcome = record.write(connection, batch)
            touched.update(name for name, _ in set(connection.execute(uses).all()) - before)
            return outcome
        driver: Any = connection.connection.driver_connection
        driver.set_authorizer(look)  # SQLite calls `look` with the name of each table when it prepares a statement
        try:
            return record.write(connection, batch)
        finally:
            driver.set_authorizer(None)

    outcome = await service.database.write(write, [hit(service, code) for code in (*codes, codes[0])])
    assert (outcome.recorded, outcome.first_clicks) == (4, 3)
    assert {"links", "first_clicks", "hits", "events", "tallies"} <= touched
    assert "messages" not in touched


async def test_postgresql_reads_first_clicks_by_primary_key_even_if_the_table_is_small(
    service: Service,
) -> None:
    if service.database.dialect == "sqlite":
        pytest.skip("The statement for SQLite fixes the join order, so SQLite always uses the primary key.")

    def plan(connection: Connection, statement: str, wanted: list[Any]) -> str:
        return "\n".join(line for (line,) in connection.exec_driver_sql(f"EXPLAIN {statement}", (wanted,)))

    for statement, wanted in (
        (queries._FIND["postgresql"], ["one", "two", "three"]),
        (first_clicks._READ["postgresql"], list(range(30))),
        (first_clicks._DELETE_EMPTY, list(range(30))),
    ):
        told = await service.database.read(plan, statement, wanted)
        assert "first_clicks_pkey" in told
        assert "Seq Scan on first_clicks" not in told


async def test_a_first_click_that_another_process_stored_after_the_look_up_is_not_stored_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    if service.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer, so no other transaction can run between the look-up and the claim.")
    await send(service, '#track("https://x.example/1") #track("https://x.example/2")')
    (message,) = [one.id for one in await rows(service, messages_now)]
    ours = (message, service.now_ms(), service.ids(), 0b11)

    def claim(connection: Connection, row: dict[str, Any]) -> dict[int, tuple[int, bool]]:
        connection.execute(schema.first_clicks.delete())
        connection.execute(schema.first_clicks.insert().values(id=message, **row))
        return queries.claim_first_clicks(connection, [ours], {})

    # First case: another process has stored the first click of the message, on its first link. Second case: a correction has
    # removed that first click.
    at = from_ms(ours[1] - 1)
    assert await service.database.write(claim, {"at": at, "hit_id": 5, "links": 0b01}) == {message: (0b10, False)}
    (now,) = await rows(service, schema.first_clicks)
    assert (now.at, now.hit_id, now.links) == (at, 5, 0b11)
    assert await service.database.write(claim, {"links": 0b01}) == {message: (0b10, False)}
    (now,) = await rows(service, schema.first_clicks)
    assert (now.at, now.hit_id, now.links) == (None, None, 0b11), "the correction assigns the first click"

    def gone(connection: Connection, ids: list[int]) -> dict[int, first_clicks.FirstClick]:
        connection.execute(schema.first_clicks.delete())
        return read(connection, ids)

    # Third case: a correction deletes the row of first_clicks between the two statements of `claim_first_clicks`.
    read = first_clicks.read
    monkeypatch.setattr(first_clicks, "read", gone)
    assert await service.database.write(claim, {"at": at, "hit_id": 5, "links": 0b01}) == {message: (0b11, True)}
    (now,) = await rows(service, schema.first_clicks)
    assert (now.hit_id, now.links) == (ours[2], 0b11)


async def test_a_click_waits_for_a_delivery_report_that_has_locked_the_message(service: Service) -> None:
    if service.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer, so the two transactions cannot overlap.")
    (code,) = await send(service)
    (message,) = [one.id for one in await rows(service, messages_now)]
    async with someone_at(service, first_clicks._INSERT_EMPTY.replace("$1::bigint[]", "ARRAY[$1::bigint]"), message) as report:
        click = asyncio.create_task(service.recorder.record(hit(service, code)))
        await until_it_waits(report, click)
        await report.execute("UPDATE messages SET state = $1", int(State.DELIVERED))
        await report.execute(first_clicks._DELETE_EMPTY, [message])
    assert (await click).location == b"https://x.example/a"
    (now,) = await rows(service, messages_now)
    assert (now.state, now.previous_state) == (State.CLICKTHRU, State.DELIVERED)


async def test_a_delivery_report_waits_for_a_click_that_has_locked_the_message(service: Service, clock: Clock) -> None:
    if service.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer, so the two transactions cannot overlap.")
    await send(service, message_ids=("m-1",))
    (message,) = [one.id for one in await rows(service, messages_now)]
    async with someone_at(service, "INSERT INTO first_clicks (id, at, hit_id, links) VALUES ($1, 1, 1, 1)", message) as click:
        report = asyncio.create_task(service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())]))
        await until_it_waits(click, report)
    assert await report == [DeliveryReportResult("m-1", State.CLICKTHRU, changed=True)]
    (now,) = await rows(service, messages_now)
    assert (now.state, now.previous_state, now.clicked_links) == (State.CLICKTHRU, State.CREATED, 1)


async def test_a_delivery_report_on_a_message_without_clicks_leaves_no_row_in_first_clicks(service: Service, clock: Clock) -> None:
    await send(service, message_ids=("m-1",))
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())])
    assert await rows(service, schema.first_clicks) == []


async def test_the_event_of_a_click_contains_the_states_at_the_click_even_if_it_is_retracted_before_the_fan_out(
    service: Service, clock: Clock
) -> None:
    (code,) = await send(service, message_ids=("m-1",))
    await choose(service, retract_clicks=True)
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())])
    clock.forward(seconds=90)
    machine = hit(service, code)
    await service.database.write(record_of(service).write, [machine])
    (link,) = await rows(service, schema.links)
    change = VerdictChange(machine.id, link.message_id, Verdict.HUMAN, Verdict.SUSPECTED, "test", True)
    later = clock.forward(minutes=5)
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.DELIVERED, later)])
    await service.devices.catch_up()
    assert (await apply_changes(service.database, [change], service.ids, later)).retracted_messages == 1
    await check(service, clock)
    await service.fanout.flush()
    first = next(event for event in await rows(service, schema.events) if event.id == machine.id)
    assert first.data == {"previous_state": "SENT", "new_state": "CLICKTHRU"}
    assert not {
        metric for tally in await rows(service, schema.count_deltas) for _, _, metric, _ in tally.data if metric.startswith("ttc")
    }
    await check(service, clock)


@pytest.mark.parametrize(("seconds", "bucket"), [(-5, 0), (0, 0), (1, 0), (1.01, 1), (1.06, 2)])
def test_the_first_bucket_of_the_time_to_click_ends_after_one_second(seconds: float, bucket: int) -> None:
    assert time_to_click_bucket(seconds) == bucket


@given(st.floats(1, 1e8, exclude_min=True))
def test_the_middle_of_a_time_to_click_bucket_differs_by_less_than_2_5_percent_from_each_time_in_the_bucket(seconds: float) -> None:
    middle = time_to_click_seconds(time_to_click_bucket(seconds))
    assert abs(middle / seconds - 1) < 0.025
