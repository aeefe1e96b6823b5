"""Folding tallies into counts, and counting again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, func, insert, select, update

from shortener.model import HitFlag, Verdict
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import TIME_SLOT_MS, CountDelta
from shortener.reporting import counts
from shortener.reporting.counts import CountDifference, fold, read_unfolded, time_slots, verifiable_since, verify
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.conftest import MakeService, new_postgresql_database
from tests.rows import Rows

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
NOON_QUARTER = to_ms(NOON) // TIME_SLOT_MS
DAY = timedelta(days=1)

Amounts = dict[tuple[int, int, str], Decimal]


def leave(connection: Connection, row: int, *amounts: tuple[int, datetime, str, int | Decimal]) -> None:
    """A tally as a transaction leaves it."""
    tally = CountDelta()
    for cohort, at, metric, amount in amounts:
        tally.add(cohort, to_ms(at), metric, amount)
    count_deltas.append(connection, row, tally)


def kept(connection: Connection) -> Amounts:
    return {(row.cohort_id, row.quarter, row.metric): row.amount for row in connection.execute(select(schema.counts))}


def waiting(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(schema.count_deltas)).scalar_one()


async def test_a_fold_adds_tallies_up_and_deletes_them(database: Database) -> None:
    def happen(connection: Connection) -> None:
        leave(connection, 1, (1, NOON, "clicks", 2), (1, NOON + QUARTER, "clicks", 1), (2, NOON, "clicks", 1))
        leave(connection, 2, (1, NOON + QUARTER - timedelta(milliseconds=1), "clicks", 3), (1, NOON, "messages", 1))

    await database.write(happen)
    assert await database.write(fold) == 2
    expected = {
        (1, NOON_QUARTER, "clicks"): Decimal(5),
        (1, NOON_QUARTER, "messages"): Decimal(1),
        (1, NOON_QUARTER + 1, "clicks"): Decimal(1),
        (2, NOON_QUARTER, "clicks"): Decimal(1),
    }
    assert await database.read(kept) == expected
    assert await database.read(waiting) == 0
    assert await database.write(fold) == 0
    assert await database.read(kept) == expected


async def test_a_fold_takes_the_oldest_tallies_and_no_more_than_its_limit(database: Database) -> None:
    def happen(connection: Connection) -> None:
        for row in (5, 3, 4, 1, 2):
            leave(connection, row, (row, NOON, "clicks", 1))

    await database.write(happen)
    assert await database.write(fold, 2) == 2
    assert sorted(cohort for cohort, _, _ in await database.read(kept)) == [1, 2]
    assert [await database.write(fold, 2) for _ in range(3)] == [2, 1, 0]


async def test_amounts_of_money_are_added_exactly(database: Database) -> None:
    def happen(connection: Connection) -> None:
        leave(connection, 1, (1, NOON, "value:EUR", Decimal("0.1")), (1, NOON, "value:USD", Decimal("1E+3")))
        leave(connection, 2, (1, NOON, "value:EUR", Decimal("0.2")))
        leave(connection, 3, (1, NOON, "value:EUR", Decimal("-0.30")), (1, NOON, "value:USD", Decimal("999999999999999999.999999")))

    await database.write(happen)
    assert await database.write(fold, 1) == 1
    assert await database.write(fold, 9) == 2
    amounts = await database.read(kept)
    assert amounts[1, NOON_QUARTER, "value:EUR"] == 0
    assert amounts[1, NOON_QUARTER, "value:USD"] == Decimal("1000000000000000999.999999")


async def test_a_fold_that_fails_changes_nothing(database: Database) -> None:
    def happen(connection: Connection) -> None:
        leave(connection, 1, (1, NOON, "clicks", 1))

    def fail(connection: Connection) -> None:
        fold(connection)
        raise RuntimeError("power cut")

    await database.write(happen)
    with pytest.raises(RuntimeError):
        await database.write(fail)
    assert await database.read(kept) == {}
    assert await database.read(waiting) == 1


async def test_two_processes_that_fold_at_once_count_everything_once(postgresql: str, postgresql_template: str) -> None:
    from shortener.storage.postgres import PostgresDatabase

    url = await new_postgresql_database(postgresql, postgresql_template)
    nodes = [await PostgresDatabase.open(url, pool_size=2) for _ in range(2)]

    def happen(connection: Connection) -> None:
        for row in range(200):
            leave(connection, row, (row % 3, NOON, "clicks", 1), (0, NOON, "value:EUR", Decimal("0.01")))

    async def fold_all(node: Database) -> int:
        folded = 0
        while await node.read(waiting):
            folded += await node.write(fold, 7)
        return folded

    try:
        await nodes[0].write(happen)
        folded = await asyncio.gather(fold_all(nodes[0]), fold_all(nodes[1]))
        assert sum(folded) == 200
        amounts = await nodes[0].read(kept)
        assert sum(amount for (_, _, metric), amount in amounts.items() if metric == "clicks") == 200
        assert amounts[0, NOON_QUARTER, "value:EUR"] == 2
    finally:
        for node in nodes:
            await node.close()


async def test_a_second_folder_leaves_the_work_to_the_first(postgresql: str, postgresql_template: str) -> None:
    from shortener.storage.postgres import PostgresDatabase

    node = await PostgresDatabase.open(await new_postgresql_database(postgresql, postgresql_template), pool_size=2)
    begun, folded = asyncio.Event(), asyncio.Event()

    async def first() -> int:
        async with node._engine.begin() as connection:
            done = await connection.run_sync(fold)
            begun.set()
            await folded.wait()
            return done

    try:
        await node.write(lambda connection: leave(connection, 1, (1, NOON, "clicks", 1)))
        task = asyncio.create_task(first())
        await begun.wait()
        assert await node.write(fold) == 0
        folded.set()
        assert await task == 1
        assert await node.read(kept) == {(1, NOON_QUARTER, "clicks"): Decimal(1)}
    finally:
        await node.close()


_amounts = st.tuples(
    st.integers(1, 3),
    st.sampled_from([NOON, NOON + QUARTER]),
    st.sampled_from(["clicks", "value:EUR", "ttc:7"]),
    st.decimals(-(10**18), 10**18, places=6, allow_nan=False),
)


@given(st.lists(st.lists(_amounts, max_size=4), max_size=8), st.integers(1, 4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_is_left_in_whatever_order_counts_the_same(
    sqlite: Database, left: list[list[tuple[int, datetime, str, Decimal]]], limit: int
) -> None:
    expected: Amounts = {}

    def happen(connection: Connection) -> None:
        connection.execute(delete(schema.counts))
        for row, amounts in enumerate(left):
            leave(connection, row, *amounts)
            for cohort, at, metric, amount in amounts:
                key = (cohort, to_ms(at) // TIME_SLOT_MS, metric)
                expected[key] = counts.EXACT.add(expected.get(key, Decimal()), amount)

    await sqlite.write(happen)
    while await sqlite.write(fold, limit):
        pass
    assert await sqlite.read(kept) == expected


async def test_what_is_not_folded_can_be_read_in_pieces(database: Database) -> None:
    def happen(connection: Connection) -> None:
        for row in range(5):
            leave(connection, row, (1, NOON, "clicks", row))

    await database.write(happen)
    ids, sums = await database.read(read_unfolded, 2, 1)
    assert sorted(ids) == [2, 3]
    assert sums == {(1, NOON_QUARTER, "clicks"): Decimal(5)}


def test_quarters_include_the_one_that_has_begun() -> None:
    assert time_slots(NOON, NOON + QUARTER) == range(NOON_QUARTER, NOON_QUARTER + 1)
    millisecond = timedelta(milliseconds=1)
    assert time_slots(NOON + millisecond, NOON + QUARTER + millisecond) == range(NOON_QUARTER, NOON_QUARTER + 2)


def test_raw_rows_are_complete_for_their_retention_less_the_life_of_a_link() -> None:
    assert verifiable_since(NOON, kept=365 * DAY, link_ttl=90 * DAY) == NOON - 275 * DAY
    assert verifiable_since(NOON, kept=30 * DAY, link_ttl=90 * DAY) == NOON


# Counting again.


def happen(connection: Connection) -> None:
    """Two messages with hits of each kind and conversions, and the tallies that their writers would have left."""
    cohorts = [
        {"id": 1, "application_id": 1, "campaign": "spring", "source": "api", "country": "US"},
        {"id": 2, "application_id": 1, "campaign": "", "source": "api", "country": "DE"},
    ]
    connection.execute(insert(schema.cohorts), cohorts)
    application = {"id": 1, "name": "default", "settings": {}, "created_at": NOON}
    connection.execute(insert(schema.applications).values(application))
    rows = Rows(connection)
    first = rows.message(
        NOON,
        segments=2,
        sent_at=NOON + timedelta(minutes=1),
        delivered_at=NOON + timedelta(minutes=20),
        read_at=NOON + timedelta(minutes=40),
    )
    link = rows.link(first, expires_at=NOON + 2 * DAY)
    off = rows.link(first, position=1, disabled_at=NOON + timedelta(minutes=50))
    clicked = NOON + timedelta(minutes=41)
    rows.first_click(first, link, clicked)
    rows.hit(link, clicked + timedelta(minutes=1))
    rows.hit(link, clicked, verdict=int(Verdict.SUSPECTED))
    rows.hit(link, clicked, verdict=int(Verdict.IGNORED))
    rows.hit(link, NOON + 3 * DAY, flags=int(HitFlag.LATE))
    rows.hit(link, NOON + 3 * DAY, flags=int(HitFlag.LATE), verdict=int(Verdict.SUSPECTED))
    rows.hit(off, NOON + timedelta(minutes=45))
    rows.hit(off, NOON + timedelta(minutes=55), flags=int(HitFlag.DISABLED))  # no click
    rows.conversion(first, value=Decimal("12.50"), currency="EUR", at=clicked)
    rows.conversion(first, value=Decimal("-2.5"), currency="EUR", at=clicked, action="refund")
    rows.conversion(first, value=Decimal("1"), at=clicked, action="points")
    rows.conversion(first, at=clicked, action="reply")
    rows.message(NOON, cohort_id=2, failed_at=NOON + timedelta(minutes=5))
    leave(
        connection,
        1,
        (1, NOON, "messages", 1),
        (1, NOON, "segments", 2),
        (1, NOON, "sent", 1),
        (1, NOON + QUARTER, "delivered", 1),
        (1, NOON + 2 * QUARTER, "read", 1),
        (2, NOON, "messages", 1),
        (2, NOON, "segments", 1),
        (2, NOON, "failed", 1),
    )
    leave(
        connection,
        2,
        (1, clicked, "clicks", 2),
        (1, clicked, "clicked_messages", 1),
        (1, clicked, "ttc:160", 1),
        (1, clicked, "suspected_hits", 1),
        (1, clicked, "ignored_hits", 1),
        (1, NOON + 3 * DAY, "late_hits", 2),
        (1, NOON + timedelta(minutes=45), "clicks", 1),
        (1, clicked, "conversions", 4),
        (1, clicked, "value:EUR", Decimal("10.00")),
        (1, clicked, "value:", Decimal(1)),
    )


async def recount(database: Database, since: datetime = NOON - DAY, until: datetime = NOON + 9 * DAY) -> list[CountDifference]:
    return await database.read(verify, since, until)


async def test_counts_that_are_right_show_no_drift_folded_or_not(database: Database) -> None:
    await database.write(happen)
    assert await recount(database) == []
    while await database.write(fold, 1):
        assert await recount(database) == []


async def test_a_count_that_was_broken_is_reported(database: Database) -> None:
    await database.write(happen)
    await database.write(fold)
    broken = schema.counts.c.metric == "clicks", schema.counts.c.quarter == NOON_QUARTER + 2
    await database.write(lambda connection: connection.execute(update(schema.counts).where(*broken).values(amount=Decimal(7))))
    assert await recount(database) == [
        CountDifference(
            application_id=1,
            campaign="spring",
            source="api",
            country="US",
            at=NOON + 2 * QUARTER,
            metric="clicks",
            kept=Decimal(7),
            counted=Decimal(2),
        )
    ]


async def test_a_count_that_was_lost_is_reported(database: Database) -> None:
    await database.write(happen)
    await database.write(fold)

    def lose(connection: Connection, metric: str) -> list[CountDifference]:
        attempt = connection.begin_nested()
        lost = schema.counts.c.metric.startswith("ttc:") if metric == "ttc" else schema.counts.c.metric == metric
        connection.execute(delete(schema.counts).where(lost))
        drifts = verify(connection, NOON - DAY, NOON + 9 * DAY)
        attempt.rollback()
        return drifts

    of_messages = {metric for metric, _, _ in counts._OF_MESSAGES}
    of_hits = {"clicks", "suspected_hits", "ignored_hits", "late_hits"}
    for metric in of_messages | of_hits | {"conversions", "value:EUR", "value:"}:
        drifts = await database.write(lose, metric)
        assert {drift.metric for drift in drifts} == {metric}
        assert all(drift.kept == 0 and drift.counted > 0 for drift in drifts)
    assert await recount(database) == []


async def test_a_count_of_what_never_happened_is_reported(database: Database) -> None:
    await database.write(happen)
    await database.write(lambda connection: leave(connection, 3, (9, NOON, "clicks", 1)))
    assert [(drift.application_id, drift.kept, drift.counted) for drift in await recount(database)] == [(0, Decimal(1), Decimal(0))]


async def test_only_the_quarters_asked_for_are_compared(database: Database) -> None:
    await database.write(happen)
    await database.write(fold)
    await database.write(lambda connection: connection.execute(delete(schema.counts)))
    assert await recount(database, NOON + DAY, NOON + 2 * DAY) == []
    late = await recount(database, NOON + DAY)
    assert [(drift.metric, drift.at) for drift in late] == [("late_hits", NOON + 3 * DAY)]


async def test_pieces_of_any_size_count_the_same(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await database.write(happen)
    monkeypatch.setattr(counts, "MAX_RECOUNT_ROWS", 1)
    monkeypatch.setattr(counts, "MAX_RECOUNT_COHORTS", 1)
    assert await recount(database) == []
    await database.write(fold)
    assert await recount(database) == []


async def test_the_job_folds_what_the_service_did(make_service: MakeService) -> None:
    service = await make_service()
    job = service.jobs.table["counts"]

    def many(connection: Connection) -> Any:
        for row in range(counts.MAX_FOLD_ROWS + 1):
            leave(connection, row, (1, NOON, "clicks", 1))

    await service.database.write(many)
    assert await job.step() == counts.MAX_FOLD_ROWS  # a full batch: goes on at once
    assert await job.step() == 0  # the rest can wait for more
    assert await service.database.read(waiting) == 0
    assert await service.database.read(kept) == {(1, NOON_QUARTER, "clicks"): Decimal(counts.MAX_FOLD_ROWS + 1)}
