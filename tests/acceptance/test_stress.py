"""A stress test: all kinds of requests at once, and faults. What the servers acknowledged must be stored, cached and delivered.

`make prove` runs it for a minute on each engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import orjson
import pytest

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import Nodes, metric, wait_until
from tests.acceptance.process import Server, locked, serving
from tests.acceptance.stress import SETTINGS, MixedLoad, add_old_messages, add_tracker, compare, wait_until_quiet
from tests.servers import PostgresProcess, RedisProcess

SECONDS = float(os.environ.get("PROVE_STRESS_SECONDS", "8"))  # the duration of the load in seconds; `make prove` sets 60
Fault = Callable[[], Awaitable[None]]


async def run_load(load: MixedLoad, faults: list[Fault]) -> None:
    """Run the load. During the load, begin one fault after the other, at equal intervals."""
    pause = SECONDS / (len(faults) + 1)
    async with load.running():
        for fault in faults:
            await asyncio.sleep(pause)  # let the load run without a fault
            await fault()
        await asyncio.sleep(pause)


async def restart(server: Server) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


@pytest.fixture
def server(tmp_path: Any) -> Iterator[Server]:
    # With this long deadline, each hit is stored before its response. A hit whose response came earlier could be lost by `kill
    # -9`.
    yield from serving(tmp_path, HIT_DEADLINE="20", BASE_URL="http://go.example", **SETTINGS)


def test_everything_acknowledged_under_mixed_load_and_faults_is_stored_and_delivered_with_sqlite(
    server: Server, endpoint: Endpoint
) -> None:
    file = server.folder / "data" / "shortener.db"

    def query(statement: str) -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(statement)]

    async def lock() -> None:
        with locked(server):
            await asyncio.sleep(1.5)  # keep the lock for this time

    async def receiver_fails() -> None:
        endpoint.answers += [500, 200] * 20  # never ten failures in a row, because they would open the circuit breaker

    add_tracker(server, endpoint)
    add_old_messages(f"sqlite:///{file}")
    load = MixedLoad([server.base], server.first["api_key"], server.first["tracker_token"])
    asyncio.run(run_load(load, [receiver_fails, lambda: restart(server), lock, lambda: restart(server)]))
    wait_until_quiet([server], query)
    compare(load, query, endpoint)
    verified = server.command("verify")
    assert (verified["drift"], verified["damage"], verified["orphans"]) == ([], [], [])
    assert metric(server, "shortener_hits_dropped_total") == 0
    assert server.stop() == 0


def test_everything_acknowledged_under_mixed_load_and_faults_is_stored_cached_and_delivered_with_postgresql(
    nodes: Nodes, postgres_server: PostgresProcess, redis_server: RedisProcess, endpoint: Endpoint
) -> None:
    nodes.settings |= SETTINGS
    # with a shorter deadline, kill -9 of node two could lose a hit that got its response before it was stored
    one, two = nodes.serve(), nodes.serve(HIT_DEADLINE="20")

    def query(statement: str) -> list[dict[str, Any]]:
        return [dict(row) for row in asyncio.run(nodes.query(statement))]

    def database_restarts() -> None:
        postgres_server.kill()
        postgres_server.start()

    def redis_restarts() -> None:
        redis_server.kill()
        time.sleep(0.5)  # let the outage last for this time
        redis_server.start()

    async def database_hangs() -> None:
        postgres_server.freeze()
        await asyncio.sleep(1.5)  # let the outage last for this time
        postgres_server.thaw()

    async def settled() -> None:
        """Wait until every hit is stored. Otherwise a kill would lose hits that are only in memory."""
        await asyncio.to_thread(
            wait_until, lambda: sum(metric(node, "shortener_hits_unrecorded") for node in (one, two)) == 0, "hits wait"
        )

    add_tracker(one, endpoint)
    add_old_messages(nodes.database_url)
    load = MixedLoad([one.base, two.base], one.first["api_key"], one.first["tracker_token"])
    faults: list[Fault] = [
        lambda: restart(two),
        database_hangs,
        lambda: asyncio.to_thread(redis_restarts),
        lambda: asyncio.to_thread(database_restarts),
    ]
    asyncio.run(run_load(load, faults))
    asyncio.run(settled())
    wait_until_quiet([one, two], query)
    compare(load, query, endpoint)
    verified = one.command("verify")
    assert (verified["drift"], verified["orphans"]) == ([], [])
    assert sum(metric(node, "shortener_hits_dropped_total") for node in (one, two)) == 0

    stored = {row["code"]: row for row in query("SELECT id, code, url, expires_at FROM links")}
    with contextlib.closing(redis_server.client()) as client:
        (prefix,) = {key.rpartition(":")[0] for key in client.keys("sms:*") if key.rpartition(":")[2] in stored}
        cached = {code: orjson.loads(value) for code in stored if (value := client.get(f"{prefix}:{code}"))}
    assert len(cached) > len(stored) / 2
    differing = {code: link for code, link in cached.items() if (link[0], link[5]) != (stored[code]["id"], stored[code]["url"])}
    assert differing == {}, "the link cache contains what the database contains"
    assert nodes.close() == [0, 0]
