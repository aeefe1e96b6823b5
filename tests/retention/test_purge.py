from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Column, Connection, Table, event, insert, select, update
from structlog.testing import capture_logs

from shortener.container import Service
from shortener.ids import IdGenerator, first_id_at
from shortener.model import DeliveryStatus, HitFlag, Verdict
from shortener.reporting.status import MessageStatusReader, find_status
from shortener.retention.purge import _KINDS, PAUSE_FACTOR, RESTART_INTERVAL, Purge, PurgeResult, _delete_batch, purge
from shortener.retention.traffic import Traffic
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.clock_guard import WAIT_AFTER_STEP
from shortener.storage.database import Database
from shortener.storage.migrate import migrate
from shortener.storage.sqlite import SqliteDatabase
from shortener.storage.types import to_iso, to_ms
from tests.conftest import NOON, Clock
from tests.databases import someone_at, until_it_waits
from tests.reporting.plans import scanned
from tests.rows import KINDS, Rows, count

T = TypeVar("T")

DAY = timedelta(days=1)
ROWS_OF_COMPLETE_MESSAGE = 12  # The number of rows that `Rows.complete_message` inserts.
NOW = NOON + 800 * DAY  # An id cannot be older than 2026. NOW is in 2029, so that rows can be more than two years old.
LONG_AGO = NOW - 400 * DAY
#: All retention times differ, so that a test shows which of the settings applies.
_VALUES: dict[str, Any] = {
    "message_retention_days": 365,
    "hit_retention_days": 200,
    "event_retention_days": 90,
    "purge_batch": 10,
}
SETTINGS = Settings(**_VALUES)
PENDING: dict[str, Any] = {"status": DeliveryStatus.PENDING.value, "finished_at": None}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the purge continue at once after each batch. Tests of the pauses restore PAUSE_FACTOR."""
    monkeypatch.setattr("shortener.retention.purge.PAUSE_FACTOR", 0)


def put(connection: Connection, build: Callable[[Rows], T]) -> T:
    return build(Rows(connection))


def ids_in(connection: Connection, table: Table) -> set[int]:
    return set(connection.execute(select(table.c.id)).scalars())


def test_ids_generated_before_a_time_are_smaller_than_the_first_id_of_that_time() -> None:
    at = to_ms(NOON)
    just_before, then = IdGenerator(1023, lambda: at - 1), IdGenerator(0, lambda: at)
    older = [just_before() for _ in range(4096)]
    assert max(older) < first_id_at(at) <= then()
    assert first_id_at(0) == 0
    assert first_id_at(to_ms(datetime.max.replace(tzinfo=UTC))) == 2**63 - 1


async def test_a_message_past_its_retention_is_deleted_with_all_its_rows(database: Database) -> None:
    await database.write(put, lambda rows: [rows.complete_message(LONG_AGO), rows.complete_message(NOW - 10 * DAY)])
    purged = await purge(database, SETTINGS, NOW)
    assert purged == PurgeResult(
        messages=1,
        links=1,
        first_clicks=1,
        hits=1,
        conversions=1,
        first_conversions=1,
        conversion_revisions=1,
        events=1,
        deliveries=1,
        attempts=1,
        sends=1,
        send_attempts=1,
    )
    assert await database.read(count) == {table.name: 0 if table is schema.idempotency else 1 for table in KINDS}


async def test_a_first_click_and_other_hits_are_deleted_with_their_message(database: Database) -> None:
    def build(rows: Rows) -> int:
        message = rows.message(LONG_AGO)
        link = rows.link(message)
        rows.first_click(message, link, NOW - DAY)
        rows.hit(link, NOW - DAY)
        recent = rows.message(NOW - DAY)
        return rows.first_click(recent, rows.link(recent))

    recent_hit = await database.write(put, build)
    assert await purge(database, SETTINGS, NOW) == PurgeResult(messages=1, links=1, first_clicks=1, hits=2)
    assert await database.read(ids_in, schema.hits) == {recent_hit}


async def test_the_codes_of_purged_links_are_kept_and_no_code_of_another_link(database: Database) -> None:
    def codes_of(connection: Connection, column: Column[str]) -> list[str]:
        return sorted(connection.execute(select(column)).scalars())

    def build(rows: Rows) -> None:
        for age in (400, 390, 10):
            message = rows.message(NOW - age * DAY)
            for _ in range(4):  # four links, so that a batch of ten rows ends between two links of a message
                rows.link(message)

    await database.write(put, build)
    links, purged = schema.links.c.code, schema.purged_codes.c.code
    all_codes = await database.read(codes_of, links)
    async for _ in Purge(database, Settings(**_VALUES | {"purge_batch": 3})).batches(NOW):
        assert sorted(await database.read(codes_of, links) + await database.read(codes_of, purged)) == all_codes
    assert len(await database.read(codes_of, links)) == 4


async def test_a_link_with_the_code_of_a_purged_link_is_purged_too(database: Database) -> None:
    """A process of a release before 0.4 can create such a link during an upgrade."""

    def build(rows: Rows) -> None:
        link = rows.link(rows.message(LONG_AGO))
        code = select(schema.links.c.code).where(schema.links.c.id == link).scalar_subquery()
        rows.connection.execute(insert(schema.purged_codes).values(code=code))

    await database.write(put, build)
    assert await purge(database, SETTINGS, NOW) == PurgeResult(messages=1, links=1)


async def test_the_purge_deletes_many_messages_in_small_batches_oldest_first(database: Database) -> None:
    await database.write(put, lambda rows: [rows.complete_message(LONG_AGO + n * DAY) for n in range(20)])
    ids = sorted(await database.read(ids_in, schema.messages))
    total = 0
    async for batch in Purge(database, SETTINGS).batches(NOW):
        assert batch.rows <= SETTINGS.purge_batch
        total += batch.rows
        remaining = sorted(await database.read(ids_in, schema.messages))
        assert remaining == ids[len(ids) - len(remaining) :]
    assert total == 20 * ROWS_OF_COMPLETE_MESSAGE
    assert await database.read(count) == {table.name: 0 for table in KINDS}


async def test_the_purge_pauses_nine_times_as_long_as_each_batch_took(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortener.retention.purge.PAUSE_FACTOR", PAUSE_FACTOR)
    await database.write(put, lambda rows: [rows.complete_message(LONG_AGO) for _ in range(6)])
    durations: list[float] = []
    pauses: list[float] = []
    write, sleep = database.write_later, asyncio.sleep

    async def timed(*arguments: Any) -> Any:
        started = time.monotonic()
        result = await write(*arguments)
        durations.append(time.monotonic() - started)
        return result

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(database, "write_later", timed)
    monkeypatch.setattr(asyncio, "sleep", pause)
    batches = [batch async for batch in Purge(database, SETTINGS).batches(NOW)]
    monkeypatch.undo()
    assert len(batches) == len(durations) == len(pauses) > len(KINDS)
    assert all(pause >= PAUSE_FACTOR * seconds for seconds, pause in zip(durations, pauses, strict=True))


@pytest.mark.parametrize("is_present", [False, True])
async def test_the_purge_command_pauses_and_deletes_in_small_batches_only_while_clicks_or_messages_arrive(
    database: Database, monkeypatch: pytest.MonkeyPatch, is_present: bool
) -> None:
    await database.write(put, lambda rows: [rows.complete_message(LONG_AGO) for _ in range(3)])
    monkeypatch.setattr("shortener.retention.purge.PAUSE_FACTOR", PAUSE_FACTOR)
    pauses: list[float] = []
    totals = [0]
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def check(traffic: Traffic) -> bool:
        return is_present

    monkeypatch.setattr(Traffic, "is_present", check)
    monkeypatch.setattr(asyncio, "sleep", pause)
    await purge(database, SETTINGS, NOW, lambda so_far: totals.append(so_far.rows))
    monkeypatch.undo()
    assert any(pauses) == is_present
    assert (max(after - before for before, after in pairwise(totals)) <= SETTINGS.purge_batch) == is_present


async def test_the_purge_reports_the_total_of_deleted_rows_after_each_batch(database: Database) -> None:
    await database.write(put, lambda rows: [rows.complete_message(LONG_AGO) for _ in range(3)])
    totals: list[int] = []
    purged = await purge(database, SETTINGS, NOW, lambda so_far: totals.append(so_far.rows))
    assert totals == sorted(totals)
    assert totals[-1] == purged.rows == 3 * ROWS_OF_COMPLETE_MESSAGE


async def test_a_message_with_more_rows_than_a_batch_is_deleted_in_several_batches(database: Database) -> None:
    def build(rows: Rows) -> None:
        message = rows.message(LONG_AGO)
        for _ in range(3):
            link = rows.link(message)
            for _ in range(12):
                rows.hit(link, NOW - DAY)

    await database.write(put, build)
    total = PurgeResult()
    async for batch in Purge(database, SETTINGS).batches(NOW):
        assert batch.rows <= SETTINGS.purge_batch
        total.add(batch)
    assert total == PurgeResult(messages=1, links=3, hits=36)


async def test_the_purge_keeps_a_message_while_one_of_its_links_is_active(database: Database) -> None:
    def build(rows: Rows) -> tuple[int, int]:
        active, off = rows.message(LONG_AGO), rows.message(LONG_AGO)
        rows.link(active, expires_at=LONG_AGO + DAY)
        rows.link(active, expires_at=NOW + DAY)
        rows.link(off, expires_at=NOW + DAY, disabled_at=NOW - DAY)
        return active, off

    active, _ = await database.write(put, build)
    assert (await purge(database, SETTINGS, NOW)).messages == 1
    assert await database.read(ids_in, schema.messages) == {active}
    assert (await purge(database, SETTINGS, NOW + DAY)).links == 2


async def test_the_purge_keeps_an_expired_link_until_the_message_of_the_link_is_deleted(database: Database) -> None:
    await database.write(put, lambda rows: rows.link(rows.message(NOW - 364 * DAY), expires_at=NOW - 274 * DAY))
    assert await purge(database, SETTINGS, NOW) == PurgeResult()
    assert await purge(database, SETTINGS, NOW + 2 * DAY) == PurgeResult(messages=1, links=1)


async def test_the_purge_deletes_hits_by_their_own_age_even_if_their_message_is_not_deleted(database: Database) -> None:
    def build(rows: Rows) -> int:
        link = rows.link(rows.message(NOW - 300 * DAY))
        for age in (299, 250, 201):
            rows.hit(link, NOW - age * DAY)
        return rows.hit(link, NOW - 199 * DAY)

    young = await database.write(put, build)
    assert await purge(database, SETTINGS, NOW) == PurgeResult(hits=3)
    assert await database.read(ids_in, schema.hits) == {young}


async def test_the_purge_of_old_hits_changes_nothing_in_the_status_of_a_message_except_the_number_of_clicks(
    database: Database,
) -> None:
    def build(rows: Rows) -> None:
        cohort = {"id": 1, "application_id": 1, "campaign": "", "source": "api", "country": "US"}
        rows.connection.execute(schema.cohorts.insert().values(cohort))
        message = rows.message(NOW - 300 * DAY, message_id="m")
        first, second = rows.link(message), rows.link(message, position=1)
        rows.hit(first, NOW - 300 * DAY, verdict=Verdict.SUSPECTED.value)
        rows.first_click(message, first, NOW - 299 * DAY)
        rows.hit(second, NOW - 298 * DAY, flags=HitFlag.FIRST_FOR_LINK.value)
        rows.hit(second, NOW - 297 * DAY)

    def status(connection: Connection) -> dict[str, Any]:
        found = find_status(connection, 1, "m")
        assert found is not None
        return MessageStatusReader(str, str).serialize(found, reveal=True)

    await database.write(put, build)
    before = await database.read(status)
    assert [link["accessed"] for link in before["links"]] == [True, True]
    assert await purge(database, SETTINGS, NOW) == PurgeResult(hits=2, emptied_hits=2)
    after = await database.read(status)
    assert [link.pop("clicks") for link in (*before["links"], *after["links"])] == [1, 2, 1, 1], "only clicks are counted from hits"
    assert after == before
    remaining = await database.read(lambda c: c.execute(select(schema.hits)).all())
    assert {(hit.address, hit.user_agent) for hit in remaining} == {("", "")}
    assert await purge(database, SETTINGS, NOW) == PurgeResult()
    assert (await purge(database, SETTINGS, NOW + 66 * DAY)) == PurgeResult(messages=1, links=2, first_clicks=1, hits=2)


async def test_the_purge_keeps_hits_whose_events_are_not_fanned_out_yet(database: Database) -> None:
    def build(rows: Rows) -> None:
        message = rows.message(NOW - 300 * DAY)
        hit = rows.hit(rows.link(message), NOW - 299 * DAY)
        rows.event(message, hit_id=hit, fanned_out=False)

    await database.write(put, build)
    assert await purge(database, SETTINGS, NOW) == PurgeResult()
    await database.write(lambda c: c.execute(update(schema.events).values(fanned_out=True)))
    assert await purge(database, SETTINGS, NOW) == PurgeResult(hits=1, events=1)


async def test_the_purge_deletes_an_event_when_the_retention_time_has_passed_since_its_last_delivery(database: Database) -> None:
    def build(rows: Rows) -> list[int]:
        message = rows.message(NOW - 200 * DAY)

        def add_event(**delivery: Any) -> int:
            event = rows.event(message, NOW - 100 * DAY)
            rows.attempt(rows.delivery(event))
            if delivery:
                rows.attempt(rows.delivery(event, **{"tracker_id": 3, **delivery}))
            return event

        old = {"finished_at": NOW - 91 * DAY}
        add_event()
        add_event(status=DeliveryStatus.DEAD.value, **old)
        rows.tracker(2, enabled=False)
        add_event(tracker_id=2, **PENDING, next_at=NOW - 91 * DAY)
        return [
            add_event(**PENDING),
            # the tracker of this delivery was disabled after the delivery was replayed
            add_event(tracker_id=2, **PENDING, next_at=NOW - 89 * DAY),
            # the event of this delivery is old, but the delivery was replayed and ended later
            add_event(status=DeliveryStatus.DELIVERED.value, finished_at=NOW - 89 * DAY),
            rows.event(message, NOW - 100 * DAY, fanned_out=False),
            rows.event(message, NOW - 89 * DAY),
        ]

    remaining = await database.write(put, build)
    assert await purge(database, SETTINGS, NOW) == PurgeResult(events=3, deliveries=5, attempts=5)
    assert await database.read(ids_in, schema.events) == set(remaining)


async def test_the_purge_keeps_a_message_with_a_pending_event_or_delivery(database: Database) -> None:
    def build(rows: Rows) -> set[int]:
        not_fanned_out, not_sent = rows.message(LONG_AGO), rows.message(LONG_AGO)
        rows.event(not_fanned_out, NOW - DAY, fanned_out=False)
        rows.delivery(rows.event(not_sent), **PENDING)
        parked = rows.message(LONG_AGO)
        rows.tracker(2, enabled=False)
        rows.delivery(rows.event(parked, NOW - DAY), tracker_id=2, **PENDING)
        return {not_fanned_out, not_sent}

    pending = await database.write(put, build)
    assert await purge(database, SETTINGS, NOW) == PurgeResult(messages=1, events=1, deliveries=1)
    assert await database.read(ids_in, schema.messages) == pending


async def test_responses_to_an_idempotency_key_are_deleted_after_a_day(database: Database) -> None:
    def build(rows: Rows) -> None:
        for hours in range(48):
            rows.idempotent_response(NOW - timedelta(hours=hours), str(hours))
        rows.idempotent_response(NOW - timedelta(hours=30), "30", application_id=2)

    await database.write(put, build)
    assert await purge(database, SETTINGS, NOW) == PurgeResult(idempotency=24)
    assert (await database.read(count))["idempotency"] == 25


async def test_the_purge_never_deletes_counts(database: Database) -> None:
    def build(rows: Rows) -> None:
        rows.complete_message(LONG_AGO)
        values = {"cohort_id": 1, "quarter": 1, "metric": "clicks", "amount": 1}
        rows.connection.execute(schema.counts.insert().values(values))

    await database.write(put, build)
    await purge(database, SETTINGS, NOW)
    assert len(await database.read(lambda c: c.execute(select(schema.counts)).all())) == 1


async def test_the_purge_job_continues_after_the_last_checked_row_and_restarts_once_a_day(database: Database) -> None:
    def build(rows: Rows) -> int:
        kept_message = rows.message(LONG_AGO)
        delivery = rows.delivery(rows.event(kept_message), **PENDING)
        rows.message(LONG_AGO + DAY)
        return delivery

    await database.write(put, build)
    job = Purge(database, SETTINGS)
    assert await job.step(NOW) == 1
    finished = update(schema.deliveries).values(status=DeliveryStatus.DELIVERED.value, finished_at=LONG_AGO)
    await database.write(lambda c: c.execute(finished))
    assert await job.step(NOW + timedelta(hours=1)) == 0
    assert await job.step(NOW + RESTART_INTERVAL) == 3
    assert job.total == PurgeResult(messages=2, events=1, deliveries=1)


async def test_the_purge_job_deletes_nothing_while_it_waits_but_the_purge_of_a_person_does(database: Database) -> None:
    job = Purge(database, SETTINGS)
    await database.write(put, lambda rows: rows.complete_message(NOON))
    assert await job.step(NOON) == 0
    ahead = NOON + 2000 * DAY
    with capture_logs() as logged:
        assert await job.step(ahead) == 0
    assert logged == [
        {"event": "clock_moved_ahead", "log_level": "error", "hours": 48000, "until": to_iso(ahead + WAIT_AFTER_STEP)},
        {"event": "purge_waits", "log_level": "error", "hours": 48000, "until": to_iso(ahead + WAIT_AFTER_STEP)},
    ]
    assert (await purge(database, SETTINGS, ahead + timedelta(hours=1))).messages == 1


async def test_the_service_runs_the_purge_as_a_background_job(service: Service, clock: Clock) -> None:
    await service.database.write(put, lambda rows: rows.complete_message(NOON))
    job = service.jobs.table["purge"]
    assert job.interval == service.settings.purge_interval
    assert await job.step() == 0
    clock.now = NOON + timedelta(days=service.settings.message_retention_days + 1)
    assert await job.step() == ROWS_OF_COMPLETE_MESSAGE


def _add_audit_and_session(connection: Connection, number: int) -> None:
    """Insert a row of the audit log whose retention time has ended, and a session that has expired."""
    at, texts = NOW - 401 * DAY, {"operator": "", "network": "", "action": "", "object": ""}
    row_id = IdGenerator(number, lambda: to_ms(at))()
    connection.execute(insert(schema.audit_log).values(id=row_id, at=at, **texts))
    times = dict.fromkeys(("created_at", "seen_at", "expires_at", "password_at"), at)
    session = {"operator_id": 1, "hash": str(number), "network": "", "user_agent": ""}
    connection.execute(insert(schema.operator_sessions).values(**session, **times))


async def test_no_statement_of_the_purge_scans_a_table(tmp_path: Path) -> None:
    """Run a purge that deletes rows of every kind, and examine SQLite's query plan of each of its statements."""
    await migrate(f"sqlite:///{tmp_path / 'shortener.db'}")
    database = SqliteDatabase(tmp_path / "shortener.db", owner=True)
    seen: dict[str, Any] = {}

    def build(rows: Rows) -> None:
        for n in range(3):
            rows.complete_message(LONG_AGO + n * DAY)
            rows.complete_message(NOW - 201 * DAY)
            rows.event(rows.message(NOW - 100 * DAY), NOW - 100 * DAY)
            rows.idempotent_response(LONG_AGO, str(n))
            links = rows.connection.scalars(select(schema.links.c.id)).all()
            change = {"application_id": 1, "at": LONG_AGO, "actor": "key 1", "changes": {}}
            new = [{"id": 100 * n + place, "link_id": link} | change for place, link in enumerate(links)]
            rows.connection.execute(insert(schema.link_changes).values(new))
            old = rows.message(LONG_AGO)
            rows.connection.execute(insert(schema.early_hits).values(id=old, at=LONG_AGO))
            rows.connection.execute(insert(schema.hits_dead_letter).values(hit="{}", reason="x", at=LONG_AGO))
            rows.refused_conversion(LONG_AGO)
            _add_audit_and_session(rows.connection, n)
            stored = {"operation": "POST /", "key": str(n), "content_hash": "", "created_at": LONG_AGO}
            rows.connection.execute(insert(schema.stored_responses).values(application_id=1, **stored))

    def explain(connection: Connection) -> dict[str, str]:
        """Return the query plan of each statement, with the statement as the key."""
        return {
            statement: "\n".join(row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))
            for statement, parameters in seen.items()
        }

    def record(c: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: Any) -> None:
        if not statement.startswith(("BEGIN", "EXPLAIN")):
            seen.setdefault(statement, parameters[0] if executemany else parameters)

    try:
        await database.write(put, build)
        writer = await database.write(lambda connection: connection.engine)
        event.listen(writer, "before_cursor_execute", record)
        purged = await purge(database, SETTINGS, NOW)
        event.remove(writer, "before_cursor_execute", record)
        assert all(dataclasses.asdict(purged).values()), purged
        plans = await database.write(explain)
    finally:
        await database.close()
    assert sum(plan.count("SEARCH ") for plan in plans.values()) > 20
    scans = [(step, statement) for statement, plan in plans.items() for step in scanned(plan)]
    assert [scan for scan in scans if "USING COVERING INDEX events_pending" not in scan[0]] == []


async def test_two_processes_can_run_the_purge_at_the_same_time(database: Database) -> None:
    await database.write(put, lambda rows: [rows.complete_message(LONG_AGO) for _ in range(10)])
    one, two = await asyncio.gather(purge(database, SETTINGS, NOW), purge(database, SETTINGS, NOW))
    assert one.rows + two.rows == 10 * ROWS_OF_COMPLETE_MESSAGE


async def test_no_statement_of_the_purge_reads_more_rows_than_its_batch(database: Database) -> None:
    """Examine PostgreSQL's query plan of each statement, with enough rows for a realistic plan."""
    if database.dialect == "sqlite":
        pytest.skip("This test reads query plans of PostgreSQL. SQLite has a separate test.")
    many = 20_000
    first = first_id_at(to_ms(LONG_AGO))
    old_messages = (
        "INSERT INTO messages (id, application_id, cohort_id, message_id, request_id, content_hash, to_address, state, "
        f"created_at, encoding, segments) SELECT {first} + i, 1, 1, i::text, '', '', '', 0, 0, '', 1 "
    )
    fills = [
        old_messages,
        f"INSERT INTO first_clicks (id, at, hit_id, links) SELECT {first} + i, 0, {first} + i, 1 ",
        f"INSERT INTO links (id, code, message_id, application_id, cohort_id, domain_id, position, flags, url, expires_at) "
        f"SELECT {first} + i, i::text, {first} + i, 1, 1, 0, 0, 0, '', i ",
        f"INSERT INTO hits (id, link_id, at, verdict, rule, flags, address, user_agent) "
        f"SELECT {first} + i, {first} + i, i, 0, '', 3, '', '' ",
        f"INSERT INTO events (id, application_id, topics, at, message_id, hit_id, fanned_out) "
        f"SELECT {first} + i, 1, 3, i, {first} + i, {first} + i, true ",
        f"INSERT INTO deliveries (id, event_id, topic, application_id, tracker_id, lane, status, attempt, next_at, created_at, "
        f"finished_at) SELECT {first} + i, {first} + i, 1, 1, 1, 't1', 1, 1, i, i, i ",
        f"INSERT INTO attempts (id, delivery_id, attempt, at, milliseconds) SELECT {first} + i, {first} + i, 1, i, 1 ",
    ]
    plans: list[str] = []

    def record(connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not statement.startswith("EXPLAIN"):
            lines = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars()
            plans.append("\n".join((statement, *lines)))

    def fill(connection: Connection) -> None:
        for statement in fills:
            connection.exec_driver_sql(f"{statement} FROM generate_series(1, {many}) AS i")
        connection.exec_driver_sql("ANALYZE")

    def one_batch(connection: Connection, kind: str) -> None:
        event.listen(connection, "before_cursor_execute", record)
        try:
            _delete_batch(connection, _KINDS[kind], SETTINGS.model_copy(update={"purge_batch": 100}), NOW, 0)
        finally:
            event.remove(connection, "before_cursor_execute", record)

    await database.write(fill)
    for kind in ("events", "messages"):
        await database.write(one_batch, kind)
    assert len(plans) > 8
    for plan in plans:
        for table in ("messages", "links", "hits", "events", "deliveries", "attempts"):
            assert f"Seq Scan on {table}" not in plan, plan
        assert "hashed SubPlan" not in plan, plan


async def test_dead_letters_are_deleted_after_the_retention_time_of_hits(database: Database) -> None:
    def add(connection: Connection) -> None:
        rows = [{"hit": "{}", "reason": "x", "at": NOW - days * DAY} for days in (199, 201, 300)]
        connection.execute(insert(schema.hits_dead_letter), rows)

    await database.write(add)
    assert await purge(database, SETTINGS, NOW) == PurgeResult(hits_dead_letter=2)
    assert len(await database.read(ids_in, schema.hits_dead_letter)) == 1


async def test_the_first_conversion_of_a_message_is_deleted_with_it_although_an_older_message_is_kept(database: Database) -> None:
    def build(rows: Rows) -> int:
        older = rows.message(LONG_AGO)
        rows.link(older, expires_at=NOW + DAY)
        rows.conversion(older)
        rows.converted(older)
        rows.complete_message(LONG_AGO + DAY)
        return older

    older = await database.write(put, build)
    assert (await purge(database, SETTINGS, NOW)).first_conversions == 1
    assert await database.read(ids_in, schema.first_conversions) == {older}


async def test_first_conversions_of_messages_that_an_older_release_has_purged_are_deleted(database: Database) -> None:
    def build(rows: Rows) -> list[int]:
        purged = [rows.id_at(LONG_AGO + n * DAY) for n in range(3)]
        kept = rows.complete_message(NOW - 10 * DAY)
        for message in purged:
            rows.converted(message, LONG_AGO)
        return [kept]

    kept = await database.write(put, build)
    assert await purge(database, SETTINGS, NOW) == PurgeResult(first_conversions=3)
    assert await database.read(ids_in, schema.first_conversions) == set(kept)


async def test_refused_conversions_are_deleted_after_30_days(database: Database) -> None:
    await database.write(put, lambda rows: [rows.refused_conversion(NOW - days * DAY) for days in (100, 31, 29, 0)])
    assert (await purge(database, SETTINGS, NOW)).refused_conversions == 2
    kept = await database.read(lambda connection: connection.execute(select(schema.refused_conversions.c.received_at)).all())
    assert [row.received_at for row in kept] == [NOW - 29 * DAY, NOW]


async def test_a_delivery_that_is_replayed_during_a_purge_is_not_deleted(service: Service) -> None:
    """The replay commits after the purge has read which events it may delete, and before it deletes them."""
    if service.database.dialect == "sqlite":
        pytest.skip("SQLite runs one transaction after the other")
    at = NOW - (SETTINGS.event_retention_days + 1) * DAY

    def build(rows: Rows) -> int:
        return rows.delivery(rows.event(rows.message(at)))

    delivery = await service.database.write(put, build)
    async with someone_at(service, "UPDATE deliveries SET status = 0, finished_at = NULL WHERE id = $1", delivery) as replay:
        task = asyncio.create_task(purge(service.database, SETTINGS, NOW))
        await until_it_waits(replay, task)
    await task
    assert delivery in await service.database.read(ids_in, schema.deliveries)
