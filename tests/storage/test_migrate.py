"""Tests that the schema is created and migrated, and that old and unknown schemas are rejected."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import BigInteger, Connection, func, inspect, select, text, type_coerce, update

from shortener.accounts.settings import PERMISSIONS
from shortener.container import open_service
from shortener.model import Topic
from shortener.retention.purge import purge
from shortener.settings import Settings
from shortener.storage import migrate as module
from shortener.storage import schema
from shortener.storage.migrate import (
    MigrationBlocked,
    MigrationStep,
    SchemaMismatch,
    current_version,
    migrate,
    prepare,
    steps,
    upgrade,
)
from shortener.storage.migrations import HEAD
from shortener.storage.open import open_database
from shortener.storage.schema import metadata
from tests import fork_server
from tests.acceptance.process import PHONE
from tests.conftest import NOON, Clock, client_of, new_postgresql_database
from tests.rows import messages_now
from tests.servers import PATIENCE
from tests.storage.old_installation import OLD_KEY, OLD_SECRET, OLD_TOKEN, difference, fill_old


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database. A test with this fixture runs with each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'shortener.db'}"
    return await new_postgresql_database(request.getfixturevalue("postgresql"), None)


@pytest.fixture
async def old_url(empty_url: str) -> str:
    """The URL of a database with the first schema and with rows in every table."""

    await module._run_on(empty_url, fill_old)
    return empty_url


def conditions(connection: Connection) -> dict[str, str]:
    """Return the SQL definition of each index. Alembic's comparison of schemas ignores the conditions of indexes, so tests
    compare this, too."""
    if connection.dialect.name == "sqlite":
        found = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"))
    else:
        found = connection.execute(text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"))
    return {name: re.sub(r"\s+", " ", definition) for name, definition in found}


async def test_the_migrations_produce_the_schema_of_the_code(empty_url: str) -> None:
    await migrate(empty_url)
    assert await module._run_on(empty_url, difference) == []
    by_migrations = await module._run_on(empty_url, conditions)
    await module._run_on(empty_url, metadata.drop_all)
    await module._run_on(empty_url, metadata.create_all)
    assert by_migrations == await module._run_on(empty_url, conditions)


async def test_the_function_prepare_creates_the_schema_in_an_empty_database_and_a_second_call_changes_nothing(
    empty_url: str,
) -> None:
    assert await current_version(empty_url) is None
    await prepare(empty_url)
    assert await current_version(empty_url) == HEAD
    await prepare(empty_url)
    assert await migrate(empty_url) == (HEAD, HEAD)


def count_rows(connection: Connection) -> dict[str, int]:
    """Return the number of rows of each table that exists in the database."""
    there = inspect(connection).get_table_names()
    tables = {name: table for name, table in metadata.tables.items() if name in there}
    return {name: connection.scalar(select(func.count()).select_from(table)) or 0 for name, table in tables.items()}


def clicks_of_messages(connection: Connection) -> list[tuple[Any, ...]]:
    """For each message, return its state, its state before the click, the time and the hit id of the first click, and the number
    of clicked links."""
    if "clicked_at" in {column["name"] for column in inspect(connection).get_columns("messages")}:
        columns = "message_id, state, previous_state, clicked_at, click_hit_id, clicked_links"
        return [tuple(row) for row in connection.execute(text(f"SELECT {columns} FROM messages ORDER BY message_id"))]
    now = messages_now.c
    columns_now = (now.message_id, now.state, now.previous_state, type_coerce(now.clicked_at, BigInteger), now.click_hit_id)
    return [tuple(row) for row in connection.execute(select(*columns_now, now.clicked_links).order_by(now.message_id))]


async def test_an_installation_at_the_first_schema_is_migrated_and_continues_to_work(
    old_url: str, tmp_path: Path, clock: Clock
) -> None:
    rows = await module._run_on(old_url, count_rows)
    assert rows.pop("first_clicks", None) is None
    assert min(rows.values()) > 0, "every table has rows"
    with pytest.raises(SchemaMismatch, match=r"at schema 0001, this version needs .*: run `shortener migrate`"):
        await prepare(old_url)

    before = await module._run_on(old_url, clicks_of_messages)
    progress: list[MigrationStep] = []
    assert await migrate(old_url, progress.append) == ("0001", HEAD)
    begun = [step.revision for step in progress if not step.seconds]
    assert begun == [step.revision for step in progress if step.done] == [revision for revision, _ in steps("0001")]
    migrated = await module._run_on(old_url, count_rows)
    assert migrated == dict.fromkeys(migrated, 0) | rows | {"first_clicks": 2, "installation": rows["installation"] + 2}, (
        "no row is lost, and other new tables are empty"
    )
    assert await module._run_on(old_url, difference) == []
    assert await module._run_on(old_url, clicks_of_messages) == before, "the clicks are the same as before"

    clock.forward(minutes=1)
    settings = Settings(data_dir=tmp_path, database_url=old_url, secret=OLD_SECRET, allow_private_targets=True)
    service = await open_service(settings, clock=clock)
    try:
        service.recorder.start()
        assert service.first_credentials is None
        async with client_of(service, {"User-Agent": PHONE}) as phone, client_of(service, {"X-API-Key": OLD_KEY}) as pipeline:
            fresh, again = [await phone.get(f"/{code}") for code in ("GaLLwBkLqG", "NPB4r5Gjvl")]
            assert (fresh.headers["Location"], again.headers["Location"]) == (
                "https://shop.example/d",
                "https://shop.example/a?b=1",
            )
            states = {
                name: (await pipeline.get(f"/api/v1/sms/status/{name}")).json()["state"] for name in ("fresh", "clicked", "waiting")
            }
            assert set(states.values()) == {"CLICKTHRU"}
            repeat = {"to": "+14085550100", "message_id": "fresh", "body": 'c #track("https://shop.example/d")'}
            response = (await pipeline.post("/api/v1/rewrite", json=repeat)).json()
            assert response["messages"][0]["links"][0]["code"] == "GaLLwBkLqG", "a repeated message_id gets the existing link"
        async with client_of(service, {"X-Api-Token": OLD_TOKEN}) as tracker:
            repeated = {
                "message_id": "clicked",
                "action": "deposit",
                "value": "25.00",
                "currency": "EUR",
                "transaction_id": "t1",
            }
            assert (await tracker.get("/api/v1/track", params=repeated)).json()["duplicate"]
        while await service.fanout.step():
            pass

        def clickthrus(connection: Connection) -> list[str]:
            events, messages = schema.events, schema.messages
            statement = select(messages.c.message_id).join_from(events, messages, events.c.message_id == messages.c.id)
            return list(connection.scalars(statement.where(events.c.topics.op("&")(int(Topic.STATE | Topic.CLICK)) == 3)))

        assert sorted(await service.database.read(clickthrus)) == ["clicked", "fresh", "waiting"], "one event for each message"
        tracker_id = schema.trackers.c.id
        secret, headers = await service.database.read(
            lambda c: c.execute(select(schema.trackers.c.secret, schema.trackers.c.headers).where(tracker_id == 1)).one()
        )
        assert service.secret.decrypt(secret).startswith("whsec_")
        assert "Bearer of the old tracker" in service.secret.decrypt(headers)

        deliveries = schema.deliveries
        await service.database.write(lambda c: c.execute(update(deliveries).values(status=1, finished_at=clock())))
        await purge(service.database, settings, NOON + timedelta(days=500))
        remaining = await service.database.read(count_rows)
        assert {name for name, number in remaining.items() if number == 0} >= {
            "messages", "links", "hits", "events", "deliveries", "attempts", "conversions", "idempotency"
        }  # fmt: skip
    finally:
        await service.close(grace=1)


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("0001", "run `shortener migrate`"),
        ("9999", "does not know.*upgrade the service"),
        ("0001a", "does not know.*upgrade the service"),
    ],
)
async def test_an_old_or_unknown_schema_is_rejected(store_url: str, version: str, says: str) -> None:
    database = await open_database(store_url, owner=True)
    await database.write(lambda connection: connection.execute(text(f"UPDATE alembic_version SET version_num = '{version}'")))
    await database.close()
    with pytest.raises(SchemaMismatch, match=says):
        await prepare(store_url)
    if version != "0001":
        with pytest.raises(SchemaMismatch, match=says):
            await migrate(store_url)


async def test_a_database_with_tables_of_another_program_is_rejected(empty_url: str) -> None:
    await module._run_on(empty_url, lambda connection: connection.exec_driver_sql("CREATE TABLE messages (mine int)"))
    for function in (prepare, migrate):
        with pytest.raises(SchemaMismatch, match=r"did not create \(messages\).*use a separate database"):
            await function(empty_url)
    assert await module._run_on(empty_url, lambda connection: connection.exec_driver_sql("SELECT * FROM messages").all()) == []


async def test_several_processes_can_migrate_one_postgresql_database_at_the_same_time(postgresql: str) -> None:
    """This test runs only with PostgreSQL, because one process uses a SQLite database."""
    for function in (prepare, migrate):
        url = await new_postgresql_database(postgresql, None)
        await asyncio.gather(*(function(url) for _ in range(4)))
        assert await module._run_on(url, difference) == []
    url = await new_postgresql_database(postgresql, None)
    await module._run_on(url, partial(upgrade, revision="0001"))
    await asyncio.gather(*(migrate(url) for _ in range(4)))
    assert await current_version(url) == HEAD


@pytest.fixture
async def trackers_read(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, asyncpg.Connection, Any]]:
    """A PostgreSQL database at the schema 0021: its URL, a connection, and an open transaction of this connection that has read
    the table `trackers`. The next migration changes this table, so it must wait for the transaction."""
    monkeypatch.setattr(module, "LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(module, "LOCK_PAUSE_SECONDS", 0.1)
    url = await new_postgresql_database(postgresql, None)
    await module._run_on(url, partial(upgrade, revision="0021"))
    connection = await asyncpg.connect(url, server_settings={"application_name": "pg_dump"})
    transaction = connection.transaction()
    await transaction.start()
    await connection.fetch("SELECT * FROM trackers")
    yield url, connection, transaction
    await connection.close()


async def test_a_migration_that_waits_for_a_reader_lets_other_statements_run_and_continues_when_the_reader_ends(
    trackers_read: tuple[str, asyncpg.Connection, Any],
) -> None:
    url, _, transaction = trackers_read
    waits, details = asyncio.Event(), list[str]()

    def progress(step: MigrationStep) -> None:
        if step.detail:
            details.append(step.detail)
            waits.set()

    migrating = asyncio.create_task(migrate(url, progress))
    async with asyncio.timeout(PATIENCE):
        await waits.wait()
        other = await asyncpg.connect(url)
        for _ in range(20):
            assert await other.fetch("SELECT * FROM trackers") == [], "the statements of a node run between the attempts"
        assert not migrating.done()
        await transaction.commit()
        assert await migrating == ("0021", HEAD)
        await other.close()
    assert re.fullmatch(
        r"waits for a lock\. The oldest transaction on the database is \d+ s old \(process \d+ of pg_dump\)", details[0]
    )


async def test_a_migration_that_gets_no_lock_ends_with_an_error_and_a_second_call_continues(
    trackers_read: tuple[str, asyncpg.Connection, Any],
) -> None:
    url, _, transaction = trackers_read
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(MigrationBlocked, match=r"migration 0022 .* got no lock .* of pg_dump\).* `shortener migrate` again"):
            await migrate(url, lock_wait=0.3)
        assert await current_version(url) == "0021"
        await transaction.commit()
        await migrate(url)
    assert await current_version(url) == HEAD
    assert await module._run_on(url, difference) == []


def environment(url: str, folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    return inherited | {"SHORTENER_DATABASE_URL": url, "SHORTENER_DATA_DIR": str(folder), "SHORTENER_SECRET": OLD_SECRET}


@pytest.mark.acceptance
async def test_the_server_rejects_an_old_schema_and_works_after_the_migrate_command(old_url: str, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return fork_server.run(words, environment(old_url, tmp_path), capture_output=True, text=True, timeout=PATIENCE)

    rejected = await asyncio.to_thread(run, "serve", "--port", "0")
    assert rejected.returncode == 1
    assert "run `shortener migrate`" in rejected.stderr
    assert "Traceback" not in rejected.stderr
    done = await asyncio.to_thread(run, "migrate")
    assert done.returncode == 0
    assert f"schema 0001 -> {HEAD}" in done.stdout
    for revision, description in steps("0001"):
        assert re.search(
            rf"^{revision}  {description} \.\.\.\n(.*\n)*?{revision}  {description} done in \d+\.\d s", done.stderr, re.M
        ), done.stderr
    assert (await asyncio.to_thread(run, "verify")).returncode == 0


@pytest.mark.acceptance
async def test_the_migrate_command_prints_one_line_for_a_new_database(empty_url: str, tmp_path: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        words = ("migrate",)
        return fork_server.run(words, environment(empty_url, tmp_path), capture_output=True, text=True, timeout=PATIENCE)

    done = await asyncio.to_thread(run)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"schema none -> {HEAD}\n"


#: With this number of rows, a migration takes much longer than PROGRESS_INTERVAL_SECONDS, even on a fast machine.
BIG = {"sqlite": 4_000_000, "postgresql": 2_000_000}
_FILL = {
    "sqlite": "INSERT INTO events (id, application_id, topics, at, message_id, fanned_out) "
    f"WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {BIG['sqlite']}) "
    "SELECT i, 1, 3, i, (i * 7919) % 1000003, true FROM n",
    "postgresql": "INSERT INTO events (id, application_id, topics, at, message_id, fanned_out) "
    f"SELECT i, 1, 3, i, (i * 7919) % 1000003, true FROM generate_series(1::bigint, {BIG['postgresql']}) AS i",
}


@pytest.mark.slow
async def test_a_long_migration_shows_its_progress(empty_url: str, tmp_path: Path) -> None:
    def fill(connection: Connection) -> None:
        upgrade(connection, "0001")
        engine = connection.dialect.name
        # Insert the rows while the table has no index, because this is faster. The migration then drops the empty index and
        # builds it.
        connection.exec_driver_sql("DROP INDEX events_by_message")
        connection.exec_driver_sql(_FILL[engine])
        connection.exec_driver_sql("CREATE INDEX events_by_message ON events (application_id) WHERE message_id < 0")

    await module._run_on(empty_url, fill)
    # With little memory and one process, PostgreSQL needs about ten times as long to build the index.
    if empty_url.startswith("postgresql"):
        connection = await asyncpg.connect(empty_url)
        name = await connection.fetchval("SELECT current_database()")
        for setting in ("maintenance_work_mem = '1MB'", "max_parallel_maintenance_workers = 0"):
            await connection.execute(f"ALTER DATABASE {name} SET {setting}")
        await connection.close()

    def run() -> str:
        """Run the command on a new pseudo-terminal. Return the text that it wrote to the terminal."""
        reader, terminal = pty.openpty()
        command = [sys.executable, "-m", "shortener", "migrate"]
        process = subprocess.Popen(command, env=environment(empty_url, tmp_path), stdout=subprocess.DEVNULL, stderr=terminal)
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(reader, 4096):
                shown += piece
        except OSError:  # The command has closed its end of the terminal.
            pass
        os.close(reader)
        assert process.wait(PATIENCE) == 0, shown
        return shown.decode()

    shown = await asyncio.to_thread(run)
    states = [part.strip().removesuffix("\x1b[K") for part in shown.split("\r") if part.startswith("0002")]
    assert states[0].endswith("...")
    assert re.search(r"done in \d+\.\d s", shown)
    between = [state for state in states if re.search(r"\.\.\. \d+ s", state)]
    assert between, shown
    if empty_url.startswith("postgresql"):
        assert any(re.search(r"building index: .* \d+ %", state) for state in between), shown
    assert await module._run_on(empty_url, difference) == []


async def test_the_migration_grants_new_permissions_to_api_keys_that_had_all_permissions(empty_url: str) -> None:
    def fill(connection: Connection) -> None:
        upgrade(connection, "0009")
        for number, permissions in enumerate(
            ('["sms.read","sms.send","trackers.write"]', '["sms.read","trackers.write"]', '["sms.send"]')
        ):
            connection.exec_driver_sql(
                "INSERT INTO api_keys (application_id, name, hash, hint, permissions, created_at) "
                f"VALUES (1, 'k', 'h{number}', 'sk_', '{permissions}', 0)"
            )

    await module._run_on(empty_url, fill)
    await migrate(empty_url)
    keys = schema.api_keys.c
    stored = await module._run_on(empty_url, lambda c: c.scalars(select(keys.permissions).order_by(keys.id)).all())
    assert stored == [sorted(PERMISSIONS), ["sms.read", "trackers.read", "trackers.write"], ["sms.send"]]
