"""Tests with PgBouncer in transaction mode, if it is installed. In this mode, each transaction can use another server
connection."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import Connection, insert, select

from shortener.container.connections import open_notifier
from shortener.errors import StoreUnavailable
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.open import open_database
from shortener.storage.postgres import split_url
from tests.conftest import new_postgresql_database
from tests.servers import PATIENCE, free_port

PGBOUNCER = shutil.which("pgbouncer")


@pytest.fixture
def pooled_url(postgresql: str, postgresql_template: str) -> Iterator[str]:
    """The URL of a database that is reached through PgBouncer. PgBouncer has two connections to the server."""
    if PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed")
    direct = asyncio.run(new_postgresql_database(postgresql, postgresql_template))
    name, _, host = direct.partition("?host=")
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="shortener-pgbouncer-"))
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = host={host} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        "unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n"
    )
    command = [PGBOUNCER, "-q", str(configuration)]
    if os.geteuid() == 0:  # PgBouncer refuses to run as root. Run it as pgserver, the user of the PostgreSQL server.
        folder.chmod(0o755)
        command[1:1] = ["-u", "pgserver"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"postgresql://postgres@127.0.0.1:{port}/{name.rpartition('/')[2]}"
    try:
        asyncio.run(_wait_until_ready(url))
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE)
        shutil.rmtree(folder)


async def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection = await asyncpg.connect(url, statement_cache_size=0)
        except OSError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)  # wait a moment, then check the condition again
        else:
            await connection.close()
            return


def work(connection: Connection, number: int) -> int:
    connection.execute(insert(schema.installation).values(name=f"n{number}", value="x"))
    return len(connection.execute(select(schema.installation)).all())


async def test_many_transactions_can_share_two_server_connections_of_pgbouncer(pooled_url: str) -> None:
    databases = [await open_database(pooled_url + "?prepared_statements=off", owner=True) for _ in range(3)]
    try:
        await asyncio.gather(*(databases[number % 3].write(work, number) for number in range(300)))
        rows = await asyncio.gather(
            *(databases[number % 3].read(lambda c: len(c.execute(select(schema.installation)).all())) for number in range(100))
        )
        assert set(rows) == {300}
        streamed = [len(piece) async for piece in databases[0].stream(select(schema.installation), size=100)]
        assert streamed == [100, 100, 100]
    finally:
        for database in databases:
            await database.close()


async def test_statements_fail_behind_pgbouncer_unless_the_url_has_the_parameter_prepared_statements_off(pooled_url: str) -> None:
    """PgBouncer can run a statement on a server connection that has not prepared it.

    Only newer versions of PgBouncer can be configured to support prepared statements."""
    databases: list[Database] = []
    try:
        with pytest.raises(StoreUnavailable, match="prepared statement"):
            await _work_with(20, pooled_url, databases)  # usually, a statement of the second node fails
    finally:
        for database in databases:
            await database.close()


async def _work_with(nodes: int, url: str, databases: list[Database]) -> None:
    for node in range(nodes):
        databases.append(await open_database(url, owner=True))
        writes = (databases[-1].write(work, 100 * node + number) for number in range(50))
        outcomes = await asyncio.gather(*writes, return_exceptions=True)  # `gather` waits until all writes have ended.
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome


def test_the_parameter_prepared_statements_is_removed_from_the_url() -> None:
    assert split_url("postgresql://u:p@h/d?sslmode=require&prepared_statements=off") == (
        "postgresql://u:p@h/d?sslmode=require",
        False,
    )
    assert split_url("postgresql://u:p@h/d?prepared_statements=on") == ("postgresql://u:p@h/d", True)
    assert split_url("postgresql://u:p%40@h1:1,h2:2/d?a=%20b") == ("postgresql://u:p%40@h1:1,h2:2/d?a=%20b", True)


def test_no_notifier_is_opened_on_sqlite_or_without_prepared_statements() -> None:
    assert open_notifier(Settings(database_url="postgresql://h/d?prepared_statements=off")) is None
    assert open_notifier(Settings(database_url="postgresql://h/d")) is not None
    assert open_notifier(Settings()) is None
