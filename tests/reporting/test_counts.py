"""Tests of the counts: how count deltas are added to them, and how the verification compares them with the rows."""

from __future__ import annotations

import asyncio
import itertools
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, func, select, text, update

from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import TIME_SLOT_MS, CountDelta
from shortener.reporting import count_check, counts, delta_rows, recount_rules
from shortener.reporting.count_check import CountDifference, verifiable_since, verify
from shortener.reporting.counts import fold, read_unfolded, time_slots
from shortener.reporting.delta_rows import read_events
from shortener.reporting.rollup_data import EXACT
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.conftest import MakeService, new_postgresql_database
from tests.reporting.history import DAY, NOON, SLOT, append_delta, write_history

NOON_SLOT = to_ms(NOON) // TIME_SLOT_MS

Amounts = dict[tuple[int, int, str], Decimal]


def read_counts(connection: Connection) -> Amounts:
    return {(row.cohort_id, row.quarter, row.metric): row.amount for row in connection.execute(select(schema.counts))}


def entries_left(connection: Connection) -> list[tuple[Any, Any]]:
    """Return the entries that are left in all rows of count deltas, with their origins."""
    rows = connection.execute(select(schema.count_deltas).order_by(schema.count_deltas.c.id))
    return [pair for row in rows for pair in zip(row.data, row.origins, strict=True)]


def count_deltas_left(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(schema.count_deltas)).scalar_one()


async def test_folding_adds_count_deltas_to_the_counts_and_deletes_the_deltas(database: Database) -> None:
    def write_deltas(connection: Connection) -> None:
        append_delta(connection, 1, (1, NOON, "clicks", 2), (1, NOON + SLOT, "clicks", 1), (2, NOON, "clicks", 1))
        append_delta(connection, 2, (1, NOON + SLOT - timedelta(milliseconds=1), "clicks", 3), (1, NOON, "messages", 1))

    await database.write(write_deltas)
    assert await database.write(fold) == 2
    expected = {
        (1, NOON_SLOT, "clicks"): Decimal(5),
        (1, NOON_SLOT, "messages"): Decimal(1),
        (1, NOON_SLOT + 1, "clicks"): Decimal(1),
        (2, NOON_SLOT, "clicks"): Decimal(1),
    }
    assert await database.read(read_counts) == expected
    assert await database.read(count_deltas_left) == 0
    assert await database.write(fold) == 0
    assert await database.read(read_counts) == expected


async def test_one_call_of_fold_processes_the_oldest_count_deltas_up_to_a_limit(database: Database) -> None:
    def write_deltas(connection: Connection) -> None:
        for row in (5, 3, 4, 1, 2):
            append_delta(connection, row, (row, NOON, "clicks", 1))

    await database.write(write_deltas)
    assert await database.write(fold, 2) == 2
    assert sorted(cohort for cohort, _, _ in await database.read(read_counts)) == [1, 2]
    assert [await database.write(fold, 2) for _ in range(3)] == [2, 1, 0]


async def test_one_run_of_fold_adds_the_amounts_of_few_origins_so_that_clicks_do_not_wait_for_the_writer(
    database: Database,
) -> None:
    """One row can have hundreds of origins, for example after a batch of clicks on messages that were sent at different times."""

    def write_deltas(connection: Connection) -> None:
        for row in range(3):
            delta = CountDelta()
            for metric in ("clicks", "first_clicks"):  # each origin has two entries, with entries of other origins between them
                for sent in range(50):
                    delta.add_slots(1, NOON_SLOT, metric, NOON_SLOT - sent - row * 25, 0)
            count_deltas.append(connection, row, delta)

    def origins_left(connection: Connection) -> int:
        return sum(len(row.origins) for row in connection.execute(select(schema.count_deltas))) // 2

    await database.write(write_deltas)
    left, runs = [150], 0
    while (folded := await database.write(counts.fold_batch)).rows:
        left.append(await database.read(origins_left))
        assert folded.is_full == (left[-1] > 0)
        runs += 1
        assert await database.read(read_counts) == {
            (1, NOON_SLOT, metric): Decimal(150 - left[-1]) for metric in ("clicks", "first_clicks")
        }
    assert max(before - after for before, after in itertools.pairwise(left)) == counts.MAX_FOLD_ORIGINS
    assert await database.read(count_deltas_left) == 0


async def test_a_split_count_delta_has_the_order_in_which_a_merge_sorts_entries(database: Database) -> None:
    delta = CountDelta()
    for number in range(12):
        delta.add_slots(number % 2, NOON_SLOT - number % 3, "clicks", NOON_SLOT - number % 4, number % 2)
    split = [entry for part in delta.split(5) for entry in zip(part.data(), part.origins(), strict=True)]
    for row in (1, 2):
        await database.write(count_deltas.append, row, delta)
    await database.write(counts.merge)
    merged = [((*key,), (*origin,)) for (*key, _), origin in await database.read(entries_left)]
    assert [((*key,), origin) for (*key, _), origin in split] == merged


async def test_a_merge_of_count_deltas_leaves_fewer_rows_with_the_same_sums_sorted_by_origin(database: Database) -> None:
    def write_deltas(connection: Connection) -> None:
        for row in range(40):
            delta = CountDelta()
            for number in range(10):
                delta.add_slots(1, NOON_SLOT, "clicks", NOON_SLOT - (row * 7 + number) % 30, 0)
            delta.add_slots(2, NOON_SLOT, "value:EUR", NOON_SLOT, 0, Decimal("0.10"))
            delta.add_slots(2, NOON_SLOT, "clicks", NOON_SLOT, 0, -1)
            count_deltas.append(connection, row + 1, delta)

    await database.write(write_deltas)
    before = await database.read(read_events, 1000)
    assert await database.write(counts.merge) == 1, "all amounts fit in one row"
    after = await database.read(read_events, 1000)
    assert (after[1], after[0]) == (before[1], [1])
    sent = [origin[0] for (cohort, *_), origin in await database.read(entries_left) if cohort == 1]
    assert len(sent) == 30
    assert sent == sorted(sent)
    assert await database.write(counts.merge) == 1, "one row cannot become fewer"
    assert await database.read(read_events, 1000) == after
    while (await database.write(counts.fold_batch)).rows:
        pass
    assert await database.read(read_counts) == {
        (1, NOON_SLOT, "clicks"): Decimal(400),
        (2, NOON_SLOT, "clicks"): Decimal(-40),
        (2, NOON_SLOT, "value:EUR"): Decimal("4.00"),
    }
    assert await database.write(counts.merge) == 0


async def test_a_merge_of_count_deltas_ends_at_a_row_of_an_older_release_and_at_a_limit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_deltas(connection: Connection) -> None:
        for row in range(1, 61):
            append_delta(connection, row, (row, NOON, "clicks", 1))
        connection.execute(update(schema.count_deltas).where(schema.count_deltas.c.id == 21).values(origins=None))

    await database.write(write_deltas)
    before = await database.read(read_events, 1000)
    monkeypatch.setattr(delta_rows, "MAX_ROW_AMOUNTS", 4)
    monkeypatch.setattr(delta_rows, "MAX_MERGED_AMOUNTS", 10)
    assert await database.write(counts.merge) == 3, "the ten oldest rows become three"
    assert (await database.read(read_events, 1000)).ids == [1, 2, 3, *range(11, 61)]
    monkeypatch.setattr(delta_rows, "MAX_MERGED_AMOUNTS", 3000)
    assert await database.write(counts.merge) == 12, "twenty amounts in five rows; row 21 has no origins"
    after = await database.read(read_events, 1000)
    assert after.amounts == before.amounts
    assert after.ids == [1, 2, 3, 11, 12, *range(21, 61)]


async def test_one_run_of_fold_adds_many_rows_with_the_same_few_origins(database: Database) -> None:
    def write_deltas(connection: Connection) -> None:
        for row in range(counts.MAX_FOLD_ROWS + 10):
            append_delta(connection, row, (row % 4, NOON, "clicks", 1))

    await database.write(write_deltas)
    first, second = await database.write(counts.fold_batch), await database.write(counts.fold_batch)
    assert first == counts.Folded(counts.MAX_FOLD_ROWS, is_full=True, first_id=0, last_id=counts.MAX_FOLD_ROWS - 1, quarantined=[])
    assert second == counts.Folded(
        10, is_full=False, first_id=counts.MAX_FOLD_ROWS, last_id=counts.MAX_FOLD_ROWS + 9, quarantined=[]
    )


async def test_folding_count_deltas_adds_amounts_of_money_exactly(database: Database) -> None:
    def write_deltas(connection: Connection) -> None:
        append_delta(connection, 1, (1, NOON, "value:EUR", Decimal("0.1")), (1, NOON, "value:USD", Decimal("1E+3")))
        append_delta(connection, 2, (1, NOON, "value:EUR", Decimal("0.2")))
        append_delta(
            connection, 3, (1, NOON, "value:EUR", Decimal("-0.30")), (1, NOON, "value:USD", Decimal("999999999999999999.999999"))
        )

    await database.write(write_deltas)
    assert await database.write(fold, 1) == 1
    assert await database.write(fold, 9) == 2
    amounts = await database.read(read_counts)
    assert amounts[1, NOON_SLOT, "value:EUR"] == 0
    assert amounts[1, NOON_SLOT, "value:USD"] == Decimal("1000000000000000999.999999")


async def test_an_error_while_count_deltas_are_folded_changes_nothing(database: Database) -> None:
    def write_deltas(connection: Connection) -> None:
        append_delta(connection, 1, (1, NOON, "clicks", 1))

    def fail(connection: Connection) -> None:
        fold(connection)
        raise RuntimeError("power cut")

    await database.write(write_deltas)
    with pytest.raises(RuntimeError):
        await database.write(fail)
    assert await database.read(read_counts) == {}
    assert await database.read(count_deltas_left) == 1


async def test_two_processes_that_fold_at_the_same_time_add_each_count_delta_once(
    postgresql: str, postgresql_template: str
) -> None:
    from shortener.storage.postgres import PostgresDatabase

    url = await new_postgresql_database(postgresql, postgresql_template)
    nodes = [await PostgresDatabase.open(url, pool_size=2) for _ in range(2)]

    def write_deltas(connection: Connection) -> None:
        for row in range(200):
            append_delta(connection, row, (row % 3, NOON, "clicks", 1), (0, NOON, "value:EUR", Decimal("0.01")))

    async def fold_all(node: Database) -> int:
        folded = 0
        while await node.read(count_deltas_left):
            folded += await node.write(fold, 7)
        return folded

    try:
        await nodes[0].write(write_deltas)
        folded = await asyncio.gather(fold_all(nodes[0]), fold_all(nodes[1]))
        assert sum(folded) == 200
        amounts = await nodes[0].read(read_counts)
        assert sum(amount for (_, _, metric), amount in amounts.items() if metric == "clicks") == 200
        assert amounts[0, NOON_SLOT, "value:EUR"] == 2
    finally:
        for node in nodes:
            await node.close()


async def test_only_one_process_folds_count_deltas_at_a_time(postgresql: str, postgresql_template: str) -> None:
    from shortener.storage.postgres import PostgresDatabase

    node = await PostgresDatabase.open(await new_postgresql_database(postgresql, postgresql_template), pool_size=2)
    begun, folded = asyncio.Event(), asyncio.Event()

    async def first() -> int:
        async with node._engine.begin() as connection:
            folded_rows = await connection.run_sync(fold)
            begun.set()
            await folded.wait()
            return folded_rows

    try:
        await node.write(lambda connection: append_delta(connection, 1, (1, NOON, "clicks", 1)))
        task = asyncio.create_task(first())
        await begun.wait()
        assert await node.write(fold) == 0
        folded.set()
        assert await task == 1
        assert await node.read(read_counts) == {(1, NOON_SLOT, "clicks"): Decimal(1)}
    finally:
        await node.close()


_keys = st.integers(1, 3), st.sampled_from([NOON, NOON + SLOT])
_amounts = st.one_of(
    st.tuples(*_keys, st.sampled_from(["clicks", "ttc:7"]), st.integers(-(10**14), 10**14).map(Decimal)),
    st.tuples(*_keys, st.just("value:EUR"), st.decimals(-(10**18), 10**18, places=6, allow_nan=False)),
)


@given(st.lists(st.lists(_amounts, max_size=4), max_size=8), st.integers(1, 4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_counts_do_not_depend_on_how_many_count_deltas_each_fold_processes(
    sqlite: Database, deltas: list[list[tuple[int, datetime, str, Decimal]]], limit: int
) -> None:
    expected: Amounts = {}

    def write_deltas(connection: Connection) -> None:
        for table in (schema.counts, schema.count_deltas):
            connection.execute(delete(table))
        for row, amounts in enumerate(deltas):
            append_delta(connection, row, *amounts)
            for cohort, at, metric, amount in amounts:
                key = (cohort, to_ms(at) // TIME_SLOT_MS, metric)
                expected[key] = EXACT.add(expected.get(key, Decimal()), amount)

    await sqlite.write(write_deltas)
    while await sqlite.write(fold, limit):
        pass
    assert await sqlite.read(read_counts) == expected


async def test_count_deltas_that_are_not_folded_can_be_read_in_pages(database: Database) -> None:
    def write_deltas(connection: Connection) -> None:
        for row in range(5):
            append_delta(connection, row, (1, NOON, "clicks", row))

    await database.write(write_deltas)
    ids, sums = await database.read(read_unfolded, 2, 1)
    assert sorted(ids) == [2, 3]
    assert sums == {(1, NOON_SLOT, "clicks"): Decimal(5)}


def test_the_time_slots_of_a_period_include_slots_that_are_only_partly_in_the_period() -> None:
    assert time_slots(NOON, NOON + SLOT) == range(NOON_SLOT, NOON_SLOT + 1)
    millisecond = timedelta(milliseconds=1)
    assert time_slots(NOON + millisecond, NOON + SLOT + millisecond) == range(NOON_SLOT, NOON_SLOT + 2)


def test_counts_can_be_verified_for_the_retention_time_minus_the_lifetime_of_links() -> None:
    assert verifiable_since(NOON, kept=365 * DAY, link_ttl=90 * DAY) == NOON - 275 * DAY
    assert verifiable_since(NOON, kept=30 * DAY, link_ttl=90 * DAY) == NOON


# From here on, the tests check the verification of the counts.


async def recount(database: Database, since: datetime = NOON - DAY, until: datetime = NOON + 9 * DAY) -> list[CountDifference]:
    return await database.read(verify, since, until)


async def test_the_verification_of_counts_finds_no_difference_before_and_after_count_deltas_are_folded(database: Database) -> None:
    await database.write(write_history)
    assert await recount(database) == []
    while await database.write(fold, 1):
        assert await recount(database) == []


async def test_the_verification_of_counts_reports_a_wrong_count(database: Database) -> None:
    await database.write(write_history)
    await database.write(fold)
    broken = schema.counts.c.metric == "clicks", schema.counts.c.quarter == NOON_SLOT + 2
    await database.write(lambda connection: connection.execute(update(schema.counts).where(*broken).values(amount=Decimal(7))))
    assert await recount(database) == [
        CountDifference(
            application_id=1,
            campaign="spring",
            source="api",
            country="US",
            at=NOON + 2 * SLOT,
            metric="clicks",
            kept=Decimal(7),
            counted=Decimal(2),
        )
    ]


async def test_the_verification_of_counts_reports_the_amounts_of_a_damaged_row_of_count_deltas_as_missing(
    database: Database,
) -> None:
    await database.write(write_history)
    damage = "UPDATE tallies SET data = '[[1,' WHERE id = (SELECT min(id) FROM tallies)"
    await database.write(lambda connection: connection.execute(text(damage)))
    missing = await recount(database)
    assert missing
    assert all(one.kept < one.counted for one in missing)


async def test_the_verification_of_counts_reports_a_missing_count(database: Database) -> None:
    await database.write(write_history)
    await database.write(fold)

    def lose(connection: Connection, metric: str) -> list[CountDifference]:
        attempt = connection.begin_nested()
        lost = schema.counts.c.metric.startswith("ttc:") if metric == "ttc" else schema.counts.c.metric == metric
        connection.execute(delete(schema.counts).where(lost))
        differences = verify(connection, NOON - DAY, NOON + 9 * DAY)
        attempt.rollback()
        return differences

    of_messages = {rule.metric.value for rule in recount_rules.OF_MESSAGES}
    of_hits = {"clicks", "suspected_hits", "ignored_hits", "late_hits"}
    for metric in of_messages | of_hits | {"converted_messages", "conversions", "value:EUR", "value:"}:
        differences = await database.write(lose, metric)
        assert {difference.metric for difference in differences} == {metric}
        assert all(difference.kept == 0 and difference.counted > 0 for difference in differences)
    assert await recount(database) == []


async def test_the_verification_of_counts_reports_a_count_without_matching_rows(database: Database) -> None:
    await database.write(write_history)
    await database.write(lambda connection: append_delta(connection, 3, (9, NOON, "clicks", 1)))
    assert [(difference.application_id, difference.kept, difference.counted) for difference in await recount(database)] == [
        (0, Decimal(1), Decimal(0))
    ]


async def test_the_verification_of_counts_compares_only_the_requested_time_slots(database: Database) -> None:
    await database.write(write_history)
    await database.write(fold)
    await database.write(lambda connection: connection.execute(delete(schema.counts)))
    assert await recount(database, NOON + DAY, NOON + 2 * DAY) == []
    late = await recount(database, NOON + DAY)
    assert [(difference.metric, difference.at) for difference in late] == [("late_hits", NOON + 3 * DAY)]


async def test_the_verification_of_counts_has_the_same_result_with_any_number_of_rows_per_statement(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.write(write_history)
    monkeypatch.setattr(recount_rules, "MAX_RECOUNT_ROWS", 1)
    monkeypatch.setattr(count_check, "MAX_RECOUNT_COHORTS", 1)
    assert await recount(database) == []
    await database.write(fold)
    assert await recount(database) == []


async def test_the_background_job_folds_one_full_batch_of_count_deltas_per_run(make_service: MakeService) -> None:
    service = await make_service()
    job = service.jobs.table["counts"]

    def append_many(connection: Connection) -> Any:
        for row in range(counts.MAX_FOLD_ROWS + 1):
            append_delta(connection, row, (1, NOON, "clicks", 1))

    await service.database.write(append_many)
    assert await job.step() == counts.MAX_FOLD_ROWS  # The batch was full, so the result is not 0 and the job runs again at once.
    assert await job.step() == 0  # The batch was not full, so the job waits for more count deltas.
    assert await service.database.read(count_deltas_left) == 0
    assert await service.database.read(read_counts) == {(1, NOON_SLOT, "clicks"): Decimal(counts.MAX_FOLD_ROWS + 1)}
