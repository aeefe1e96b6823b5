"""Tests on SQLite and PostgreSQL that rolled-up counts agree with the stored messages, links, hits and conversions. They must
also agree after clicks, reports, corrections, erasure and purge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, func, select, update

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.outbox.count_deltas import TIME_SLOT_MS
from shortener.reporting import count_check, counts, rollup_check, rollup_repair, rollups
from shortener.reporting.rollup_check import COUNTED_SINCE, verify_rollups
from shortener.reporting.rollup_data import HISTOGRAM
from shortener.reporting.rollup_repair import RowsQuarantined, repair_rollups
from shortener.reporting.rollups import Basis, Level, split
from shortener.reporting.statistics import (
    StatisticsFilter,
    by_country,
    totals,
)
from shortener.retention.erasure import erase
from shortener.storage import schema
from shortener.storage.database import Database, upsert
from shortener.storage.open import open_database
from shortener.storage.types import to_ms
from tests.clicks.helpers import fetch_rows
from tests.conftest import Clock, new_postgresql_database
from tests.factory import AUDIT, keep_sends, rows
from tests.reporting.plans import plans
from tests.web.calls import PHONE, convert, report, rewrite

DAY = timedelta(days=1)
TWO_LINKS = 'A #trackurl("https://shop.example/menu?x=1","menu") and #track("https://shop.example/other/")'


async def fold_all(database: Database) -> None:
    while await database.write(counts.fold):
        pass


async def differences(service: Service) -> list[Any]:
    """Return the stored counts and rolled-up counts that differ from the result of counting all rows again."""
    now = service.clock()
    period = (now - 400 * DAY, now + DAY)
    return [*await service.database.read(count_check.verify, *period), *await service.database.read(verify_rollups, *period)]


async def hit(client: httpx.AsyncClient, message: dict[str, Any], position: int = 0, headers: dict[str, str] | None = None) -> None:
    await client.get("/" + message["links"][position]["code"], headers=headers or PHONE)


async def live(client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock) -> list[dict[str, Any]]:
    """On Friday, write messages of two campaigns, most of them with two links. On Saturday, write clicks on both links, hits by
    programs, reports and conversions."""
    messages = [await rewrite(client, f"m{number}", campaign="spring", body=TWO_LINKS) for number in range(3)]
    messages.append(await rewrite(client, "m3", to="+491701234567", source="campaign", campaign="autumn"))
    await report(client, "m0", "DELIVERED")
    clock.forward(hours=26)
    await report(client, "m1", "DELIVERED")
    await hit(client, messages[0], 0)
    await hit(client, messages[0], 1)
    await hit(client, messages[0], 1)
    await hit(client, messages[1], 1)
    await hit(client, messages[1], 1, {"User-Agent": "curl/8"})
    await client.head("/" + messages[3]["links"][0]["code"])
    await convert(service, credentials, message_id="m0", action="sale", value="0.10", currency="EUR")
    await convert(service, credentials, message_id="m1", action="sale", value="0.20", currency="EUR")
    await service.fanout.flush()
    return messages


async def test_rolled_up_counts_agree_with_all_rows_before_and_after_count_deltas_are_folded(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live(client, service, credentials, clock)
    assert await differences(service) == []
    await service.database.write(counts.merge)
    assert await differences(service) == []
    while (await service.database.write(counts.fold_batch, counts.MAX_FOLD_ROWS, 1)).rows:
        # the counts must agree after each transaction, also if the transaction adds only a part of a row
        assert await differences(service) == []
    assert await differences(service) == []


async def test_rolled_up_counts_agree_with_all_rows_after_erasure_and_late_events(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    messages = await live(client, service, credentials, clock)
    await fold_all(service.database)
    await erase(service.database, None, "+491701234567", clock(), AUDIT, keep_sends)
    await hit(client, messages[2])
    clock.forward(days=91)
    await hit(client, messages[2])
    await report(client, "m2", "DELIVERED")
    await service.fanout.flush()
    clock.forward(seconds=1000)
    await service.devices.catch_up()
    await fold_all(service.database)
    assert await differences(service) == []


async def test_the_verification_reports_a_wrong_rolled_up_count_and_the_repair_corrects_this_count(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live(client, service, credentials, clock)
    await fold_all(service.database)

    def break_clicks(connection: Connection) -> None:
        c = schema.rollups.c
        for row in connection.execute(select(schema.rollups)).all():
            if "clicks" in row.data:
                key = (c.group_id == row.group_id, c.series == row.series, c.period == row.period)
                connection.execute(update(schema.rollups).where(*key).values(data={**row.data, "clicks": 99}))

    await service.database.write(break_clicks)
    found = await differences(service)
    assert {difference.metric for difference in found} == {"clicks"}
    assert {difference.level for difference in found} == set(Level)
    assert {difference.basis for difference in found} == set(Basis)
    period = (clock() - 9 * DAY, clock() + DAY)
    assert await repair_rollups(service.database, *period) == len(found)
    assert await differences(service) == []


async def live_without_rollups(client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock) -> None:
    """Write messages, clicks and conversions. Then delete their rolled-up counts."""
    await live(client, service, credentials, clock)
    await fold_all(service.database)
    await service.database.write(lambda connection: connection.execute(delete(schema.rollups)))


async def test_a_repair_of_counts_counts_the_rows_in_a_read_transaction_and_corrects_them_in_several_write_transactions(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live_without_rollups(client, service, credentials, clock)
    writers: list[Connection] = []
    periods: list[int] = []
    write_later, add_changes, count_rows = service.database.write_later, rollups.add_changes, rollup_check._count_rows

    async def write(transact: Any, *args: Any) -> Any:
        def noted(connection: Connection) -> Any:
            writers.append(connection)
            try:
                return transact(connection, *args)
            finally:
                writers.clear()

        return await write_later(noted)

    def count(connection: Connection, *args: Any, **options: Any) -> Any:
        assert not writers, "the rows are counted in a read transaction"
        return count_rows(connection, *args, **options)

    def add(connection: Connection, changes: Any, names: Any) -> None:
        assert writers
        periods.append(len(changes))
        add_changes(connection, changes, names)

    monkeypatch.setattr(service.database, "write_later", write)
    monkeypatch.setattr(rollup_check, "_count_rows", count)
    monkeypatch.setattr(rollups, "add_changes", add)
    monkeypatch.setattr(rollup_repair, "MAX_CHANGED_PERIODS", 5)
    corrected = await repair_rollups(service.database, clock() - 9 * DAY, clock() + DAY)
    assert corrected
    assert len(periods) > 1
    assert max(periods) == 5
    assert await differences(service) == []


Between = Callable[[Callable[[], Awaitable[Any]]], None]


@pytest.fixture
def between_count_and_correction(service: Service, monkeypatch: pytest.MonkeyPatch) -> Between:
    """Call a function once during a repair, at the time when the rows are counted and the rolled-up counts are not corrected
    yet."""

    def call(function: Callable[[], Awaitable[Any]]) -> None:
        read, find = service.database.read, rollup_repair._find_corrections

        async def read_then_call(query: Any, *args: Any) -> Any:
            found = await read(query, *args)
            if query is find:
                monkeypatch.undo()
                await function()
            return found

        monkeypatch.setattr(service.database, "read", read_then_call)

    return call


async def test_two_repairs_of_counts_at_the_same_time_correct_each_count_once(
    client: httpx.AsyncClient,
    service: Service,
    credentials: Credentials,
    clock: Clock,
    between_count_and_correction: Between,
) -> None:
    await live_without_rollups(client, service, credentials, clock)
    corrected: list[int] = []

    async def repair() -> None:
        corrected.append(await repair_rollups(service.database, clock() - 9 * DAY, clock() + DAY))

    between_count_and_correction(repair)
    await repair()
    assert corrected[0] > 0
    assert corrected[1] == 0
    assert await differences(service) == []


@pytest.mark.parametrize("is_folded", [False, True])
async def test_a_repair_of_counts_is_right_while_the_server_stores_messages_and_clicks(
    client: httpx.AsyncClient,
    service: Service,
    credentials: Credentials,
    clock: Clock,
    between_count_and_correction: Between,
    is_folded: bool,
) -> None:
    await live_without_rollups(client, service, credentials, clock)

    async def go_on() -> None:
        message = await rewrite(client, "m9", campaign="spring", body=TWO_LINKS)
        await report(client, "m9", "DELIVERED")
        await report(client, "m3", "DELIVERED")
        await hit(client, message, 0)
        await hit(client, message, 1)
        await service.fanout.flush()
        if is_folded:
            await fold_all(service.database)

    between_count_and_correction(go_on)
    assert await repair_rollups(service.database, clock() - 9 * DAY, clock() + DAY)
    assert await differences(service) == []
    await fold_all(service.database)
    assert await differences(service) == []


async def test_the_repair_of_counts_is_rejected_while_rows_are_quarantined_so_that_their_amounts_are_not_added_twice(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live(client, service, credentials, clock)
    oldest = (await fetch_rows(service, schema.count_deltas))[0]
    damage = update(schema.count_deltas).where(schema.count_deltas.c.id == oldest.id)
    await service.database.write(lambda connection: connection.execute(damage.values(data=[[1, 1, "clicks", "x"]])))
    await fold_all(service.database)
    assert await differences(service)
    with pytest.raises(RowsQuarantined, match="1 row of count deltas is quarantined"):
        await repair_rollups(service.database, clock() - 9 * DAY, clock() + DAY)
    await service.database.write(counts.release)
    await service.database.write(lambda connection: connection.execute(damage.values(data=oldest.data)))
    await fold_all(service.database)
    assert await differences(service) == []


async def test_verify_names_a_group_whose_first_count_deltas_were_not_added_yet(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live(client, service, credentials, clock)
    lost = schema.count_deltas.c.id == (await fetch_rows(service, schema.count_deltas))[0].id
    await service.database.write(lambda connection: connection.execute(delete(schema.count_deltas).where(lost)))
    found = await service.database.read(verify_rollups, clock() - DAY * 9, clock() + DAY)
    assert {one.group.application_id for one in found} == {1}


async def test_the_repair_of_counts_restores_deleted_rolled_up_counts_from_the_rows(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live_without_rollups(client, service, credentials, clock)
    assert await differences(service)
    await repair_rollups(service.database, clock() - 9 * DAY, clock() + DAY)
    assert await differences(service) == []


async def test_statistics_include_counts_that_an_older_version_wrote_and_a_job_rolls_them_up_later(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    """An older version writes only to the table `counts`, and not to the rolled-up counts."""
    await live(client, service, credentials, clock)
    await fold_all(service.database)
    scope = StatisticsFilter(credentials.application_id, clock() - 9 * DAY, clock() + DAY)
    before = (await service.database.read(totals, scope)).groups[None]

    def add_as_an_older_version(connection: Connection) -> None:
        c = schema.counts.c
        row = connection.execute(select(c.cohort_id, c.quarter, c.metric, c.amount).where(c.metric == "clicks").limit(1)).one()
        key = (c.cohort_id == row.cohort_id, c.quarter == row.quarter, c.metric == row.metric)
        connection.execute(update(schema.counts).where(*key).values(amount=row.amount + 5))

    await service.database.write(add_as_an_older_version)
    c = schema.counts.c
    not_rolled_up = select(func.count()).where(c.rolled_up.is_distinct_from(c.amount))
    for rows_to_add in (1, 0):
        assert await service.database.read(lambda connection: connection.scalar(not_rolled_up)) == rows_to_add
        figures = await service.database.read(totals, scope)
        assert figures.complete
        assert figures.groups[None]["clicks"] == before["clicks"] + 5
        assert await service.jobs.table["rollups"].step() == rows_to_add


async def test_a_background_job_rolls_up_all_existing_counts_after_the_migration(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live(client, service, credentials, clock)
    await fold_all(service.database)
    scope = StatisticsFilter(credentials.application_id, clock() - 9 * DAY, clock() + DAY)
    before = (await service.database.read(by_country, scope)).groups

    def forget(connection: Connection) -> None:
        connection.execute(delete(schema.rollups))
        connection.execute(update(schema.counts).values(rolled_up=None))
        slot = to_ms(clock()) // TIME_SLOT_MS + 96
        connection.execute(upsert(connection, schema.installation).values(name=COUNTED_SINCE, value=str(slot)))

    await service.database.write(forget)
    assert (await service.database.read(by_country, scope)).groups == before, "the counts are added while they are not rolled up"
    while await service.database.write(rollups.heal, 3):
        pass
    assert (await service.database.read(by_country, scope)).groups == before
    found = await service.database.read(verify_rollups, clock() - 9 * DAY, clock() + DAY)
    event = [difference for difference in found if difference.basis is Basis.EVENT]
    assert {difference.group.kind for difference in event} <= {"destination", "label"}, "counts have no destinations"
    await repair_rollups(service.database, clock() - 9 * DAY, clock() + DAY)
    assert await differences(service) == []


@given(st.integers(0, 5000), st.integers(0, 5000), st.sampled_from(Level))
def test_the_rolled_up_periods_of_a_report_cover_each_time_slot_once(start: int, length: int, longest: Level) -> None:
    covered = [
        slot
        for piece in split(range(start, start + length), longest)
        for slot in range(piece.start * piece.level.slots, piece.stop * piece.level.slots)
    ]
    assert covered == list(range(start, start + length))


async def test_many_buckets_of_the_time_to_click_are_summed_and_verified_as_a_histogram(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    messages = [await rewrite(client, f"m{number}", campaign="spring") for number in range(40)]
    scope = StatisticsFilter(1, clock() - DAY, clock() + 9 * DAY, "spring")
    for number, message in enumerate(messages):
        clock.forward(seconds=60 + 10 * number)
        await hit(client, message)
        if number % 3 == 0:
            await service.fanout.flush()
            await fold_all(service.database)
    await service.fanout.flush()
    pending = (await service.database.read(totals, scope)).groups[None]
    await fold_all(service.database)

    rolled_up = await rows(service.database, schema.rollups)
    assert any(HISTOGRAM in row.data for row in rolled_up), "at least one row contains a histogram"
    folded = (await service.database.read(totals, scope)).groups[None]
    assert (folded.times_to_click, folded.seconds_to_click(50)) == (pending.times_to_click, pending.seconds_to_click(50))
    assert sum(folded.times_to_click.values()) == 40
    assert await differences(service) == []


async def test_postgresql_finds_counts_that_are_not_rolled_up_without_reading_all_counts(
    postgresql: str, postgresql_template: str
) -> None:
    """PostgreSQL's planner does not know that the partial index is nearly empty. It uses this index only because of the ORDER BY
    clause."""
    database = await open_database(await new_postgresql_database(postgresql, postgresql_template), owner=True)

    def explain(connection: Connection) -> list[str]:
        connection.exec_driver_sql(
            "INSERT INTO counts (cohort_id, quarter, metric, amount, rolled_up) "
            "SELECT 1, slot, 'clicks', '1', '1' FROM generate_series(1, 20000) AS slot"
        )
        connection.exec_driver_sql("ANALYZE counts")
        return plans(connection, lambda: rollups.read_not_rolled_up(connection, range(1, 20_000), 100))

    try:
        (plan,) = await database.write(explain)
    finally:
        await database.close()
    assert "counts_not_rolled_up" in plan, plan
    assert "Seq Scan" not in plan, plan
