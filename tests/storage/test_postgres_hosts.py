"""Tests of database URLs with several hosts: how they are split, and which host `connect` uses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import asyncpg
import pytest

from shortener.storage.postgres_hosts import connect, split_hosts
from tests.conftest import new_postgresql_database
from tests.servers import PATIENCE, free_port


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h/d", ["postgresql://u:p@h/d"]),
        ("postgresql://u@/d?host=/run/pg", ["postgresql://u@/d?host=/run/pg"]),
        (
            "postgresql://u:p%40@db1,db2:6432/d",
            [
                "postgresql://u:p%40@db1/d?target_session_attrs=read-write",
                "postgresql://u:p%40@db2:6432/d?target_session_attrs=read-write",
            ],
        ),
        (
            "postgresql://u@[::1]:1,[::2]/d?target_session_attrs=any&sslmode=require",
            [
                "postgresql://u@[::1]:1/d?target_session_attrs=any&sslmode=require",
                "postgresql://u@[::2]/d?target_session_attrs=any&sslmode=require",
            ],
        ),
        (
            "postgresql://u@/d?host=a,b&port=1,2&target_session_attrs=primary",
            [
                "postgresql://u@/d?host=a&port=1&target_session_attrs=primary",
                "postgresql://u@/d?host=b&port=2&target_session_attrs=primary",
            ],
        ),
        (
            "postgresql:///d?host=a,b&port=7",
            [
                "postgresql:///d?host=a&port=7&target_session_attrs=read-write",
                "postgresql:///d?host=b&port=7&target_session_attrs=read-write",
            ],
        ),
        # A URL with three hosts and two ports is not split. asyncpg then reports the error.
        ("postgresql:///d?host=a,b,c&port=1,2", ["postgresql:///d?host=a,b,c&port=1,2"]),
    ],
)
def test_a_url_with_several_hosts_is_split_into_one_url_for_each_host(url: str, expected: list[str]) -> None:
    assert split_hosts(url) == expected


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never responds, like a server that hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield listener.getsockname()[1]


@pytest.fixture
async def writable(postgresql: str) -> str:
    return await new_postgresql_database(postgresql, None)


async def test_a_host_that_never_answers_does_not_prevent_the_connection_to_the_next_one(writable: str, silent_port: int) -> None:
    async with asyncio.timeout(PATIENCE):
        url = writable.replace("?host=", f"?host=127.0.0.1:{silent_port},127.0.0.1:{free_port()},")
        connection = await connect(url, timeout=10 * PATIENCE)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_a_url_with_several_hosts_connects_to_the_server_that_accepts_writes_by_default(
    writable: str, postgresql: str
) -> None:
    read_only = await new_postgresql_database(postgresql, None)
    name = read_only.partition("?")[0].rpartition("/")[2]
    connection = await asyncpg.connect(postgresql)
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await connection.close()
    url = read_only.replace("?host=", f"?host=127.0.0.1:{free_port()},")
    with pytest.raises(OSError, match=r"host 1: ConnectionRefusedError: .*; host 2: TargetServerAttributeNotMatched: "):
        await connect(url, timeout=PATIENCE)
    anything = await connect(f"{url}&target_session_attrs=any", timeout=PATIENCE)
    await anything.close()


async def test_a_cancelled_connect_call_leaves_no_connection_attempt_running(silent_port: int) -> None:
    before = asyncio.all_tasks()
    task = asyncio.create_task(connect(f"postgresql:///d?host=127.0.0.1,127.0.0.1&port={silent_port}", timeout=10 * PATIENCE))
    async with asyncio.timeout(PATIENCE):
        while len(asyncio.all_tasks() - before) < 3:
            await asyncio.sleep(0.01)  # wait a moment, then check the condition again
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)  # wait a moment, then check the condition again
