"""Tests of features that only PostgreSQL has: cut connections, statements that hang, several hosts and TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import IntegrityError

from shortener.errors import CommitUncertain, StoreUnavailable
from shortener.storage import schema
from shortener.storage.migrate import migrate
from shortener.storage.notifier import PostgresNotifier
from shortener.storage.postgres import PostgresDatabase
from tests.conftest import new_postgresql_database
from tests.servers import PATIENCE, PostgresProcess, Proxy, tls_context


@pytest.fixture
async def database(postgres_server: PostgresProcess) -> AsyncIterator[PostgresDatabase]:
    url = await new_postgresql_database(postgres_server.url, None)
    await migrate(url)
    database = await PostgresDatabase.open(url, pool_size=4, timeout=0.5)
    yield database
    await database.close()


def add(connection: Connection, name: str) -> None:
    connection.execute(insert(schema.installation).values(name=name, value="x"))


def names(connection: Connection) -> set[str]:
    return set(connection.execute(select(schema.installation.c.name)).scalars())


async def use_all_connections(database: PostgresDatabase) -> None:
    await asyncio.gather(*(database.read(names) for _ in range(8)))


async def test_transactions_after_a_restart_of_postgresql_do_not_fail(
    database: PostgresDatabase, postgres_server: PostgresProcess
) -> None:
    await use_all_connections(database)
    await asyncio.to_thread(postgres_server.stop)
    await asyncio.to_thread(postgres_server.start)
    await database.write(add, "a")
    assert await database.read(names) == {"a"}
    await use_all_connections(database)
    await asyncio.to_thread(postgres_server.kill)
    await asyncio.to_thread(postgres_server.start)
    assert await database.read(names) == {"a"}
    await database.write(add, "b")
    assert [len(rows) async for rows in database.stream(select(schema.installation))] == [2]


async def test_a_stopped_postgresql_server_raises_store_unavailable_at_once(
    database: PostgresDatabase, postgres_server: PostgresProcess
) -> None:
    await database.read(names)
    await asyncio.to_thread(postgres_server.stop)
    try:
        seconds = []
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await database.write(add, "a")
            with pytest.raises(StoreUnavailable):
                await database.read(names)
            seconds.append(time.monotonic() - began)
        assert min(seconds) < 0.5, "neither call waits for the time limit"
    finally:
        await asyncio.to_thread(postgres_server.start)


async def test_a_statement_that_hangs_is_cancelled_and_its_connection_is_replaced(database: PostgresDatabase) -> None:
    def hang(connection: Connection) -> None:
        add(connection, "never")
        connection.execute(text("SELECT pg_sleep(10)"))

    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await database.write(hang)
    assert time.monotonic() - began < 8
    await database.write(add, "a")
    assert await database.read(names) == {"a"}


async def test_a_postgresql_server_that_hangs_raises_store_unavailable_after_the_time_limit(
    database: PostgresDatabase, postgres_server: PostgresProcess
) -> None:
    await use_all_connections(database)
    postgres_server.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await database.write(add, "a")
        assert time.monotonic() - began < 8
    finally:
        postgres_server.thaw()
    await database.write(add, "b")
    assert "b" in await database.read(names)


async def test_a_commit_without_a_response_raises_commit_uncertain_and_the_transaction_is_not_repeated(
    database: PostgresDatabase, postgres_server: PostgresProcess
) -> None:
    await use_all_connections(database)
    runs: list[str] = []

    def add_and_freeze(connection: Connection) -> None:
        runs.append("run")
        add(connection, "a")
        postgres_server.freeze()

    try:
        with pytest.raises(CommitUncertain):
            await database.write(add_and_freeze)
    finally:
        postgres_server.thaw()
    assert runs == ["run"]
    assert database.has_failed_writes


async def test_a_connection_that_ends_during_commit_raises_commit_uncertain(
    database: PostgresDatabase, postgres_server: PostgresProcess
) -> None:
    def add_and_kill(connection: Connection) -> None:
        add(connection, "a")
        postgres_server.kill()

    try:
        with pytest.raises(CommitUncertain):
            await database.write(add_and_kill)
    finally:
        await asyncio.to_thread(postgres_server.start)
    await database.write(add, "b")


async def test_a_commit_that_postgresql_rejects_is_certain(database: PostgresDatabase) -> None:
    """PostgreSQL checks a deferred constraint at COMMIT. The error means for certain that the transaction is rolled back."""

    def reject(connection: Connection) -> None:
        connection.execute(text("CREATE TEMPORARY TABLE once (id INT UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        connection.execute(text("INSERT INTO once VALUES (1), (1)"))

    with pytest.raises(IntegrityError):
        await database.write(reject)


async def test_a_postgresql_url_with_several_hosts_connects_to_a_host_that_responds(
    postgres_server: PostgresProcess, tmp_path: Path
) -> None:
    url = await new_postgresql_database(postgres_server.url, None)
    await migrate(url)
    several = url.replace("?host=", f"?target_session_attrs=read-write&host={tmp_path},")
    database = await PostgresDatabase.open(several, pool_size=1)
    await database.write(add, "a")
    await database.close()


async def test_sslmode_require_sends_no_data_to_a_postgresql_server_without_tls() -> None:
    received, done = bytearray(), asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read(1024))
        writer.write(b"N")
        received.extend(await reader.read())
        writer.close()
        done.set()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(StoreUnavailable, match="rejected SSL"):
        await PostgresDatabase.open(f"postgresql://me:password@127.0.0.1:{port}/d?sslmode=require")
    await asyncio.wait_for(done.wait(), PATIENCE)
    server.close()
    assert bytes(received) == bytes.fromhex("0000000804d2162f"), "an SSLRequest and nothing else"


@pytest.fixture
async def tls_url(postgres_server: PostgresProcess, certificate: Path) -> AsyncIterator[str]:
    """The URL of a database over TCP and TLS. The server of the tests has no TLS, so a proxy adds it."""
    url = await new_postgresql_database(postgres_server.url, None)
    await migrate(url)
    user_and_name, _, folder = url.partition("?host=")
    async with Proxy(Path(folder) / ".s.PGSQL.5432", tls=tls_context(certificate), like_postgresql=True).running() as proxy:
        yield f"postgresql://postgres@127.0.0.1:{proxy.port}/{user_and_name.rpartition('/')[2]}"


async def test_postgresql_over_tls_rejects_a_certificate_for_another_host(tls_url: str, certificate: Path) -> None:
    database = await PostgresDatabase.open(f"{tls_url}?sslmode=verify-full&sslrootcert={certificate}", pool_size=2)
    try:
        await database.write(add, "a")
        assert await database.read(names) == {"a"}
    finally:
        await database.close()
    with pytest.raises(StoreUnavailable, match="certificate"):
        await PostgresDatabase.open(f"{tls_url.replace('127.0.0.1', 'localhost')}?sslmode=verify-full&sslrootcert={certificate}")
    with pytest.raises(StoreUnavailable):
        await PostgresDatabase.open(f"{tls_url}?sslmode=disable")


async def test_the_notifier_connects_to_postgresql_over_tls(tls_url: str, certificate: Path) -> None:
    notifier = PostgresNotifier(f"{tls_url}?sslmode=verify-full&sslrootcert={certificate}")
    notifier.start()
    try:
        async with asyncio.timeout(PATIENCE):
            while not notifier.connected:
                await asyncio.sleep(0.01)  # wait a moment, then check the condition again
    finally:
        await notifier.stop()
