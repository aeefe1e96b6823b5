"""A stress test of everything at once, with faults: what was acknowledged is compared with what is stored, cached and delivered.

`make prove` runs it for a minute on each engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection

from shortener.storage.open import open_database
from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import Nodes, metric, wait_until
from tests.acceptance.process import Server, locked, serving
from tests.acceptance.stress import MixedLoad
from tests.rows import Rows
from tests.servers import PostgresProcess, RedisProcess

SECONDS = float(os.environ.get("PROVE_STRESS_SECONDS", "8"))  # `make prove` sets 60
OLD_MESSAGES = 200
SETTINGS = {
    "PURGE_INTERVAL": "0.2",
    "PURGE_BATCH": "400",
    "MESSAGE_RETENTION_DAYS": "30",
    "DELIVERY_SCHEDULE": "0.1,0.5,1,1,1,1,1,1,1",
}
Query = Callable[[str], list[dict[str, Any]]]
Fault = Callable[[], Awaitable[None]]


def add_old_messages(url: str) -> None:
    """Insert messages whose retention is over, so that the purge works during the load."""

    def fill(connection: Connection) -> None:
        rows = Rows(connection)
        for number in range(OLD_MESSAGES):
            rows.complete_message(datetime.now(UTC) - timedelta(days=200), message_id=f"old {number}")

    async def run() -> None:
        database = await open_database(url, owner=False)
        await database.write(fill)
        await database.close()

    asyncio.run(run())


def add_tracker(server: Server, endpoint: Endpoint) -> None:
    tracker = {"name": "all", "url": endpoint.url, "events": ["state", "click", "conversion"], "format": "json"}
    tracker["fields"] = ["event", "event_id", "message_id", "new_state"]
    with server.api() as client:
        assert client.post("/api/v1/trackers", json=tracker).status_code == 201


async def run_load(load: MixedLoad, faults: list[Fault]) -> None:
    """Run the load, and begin the faults one after the other at equal distances."""
    pause = SECONDS / (len(faults) + 1)
    async with load.running():
        for fault in faults:
            await asyncio.sleep(pause)  # the load runs without a fault
            await fault()
        await asyncio.sleep(pause)


def wait_until_quiet(servers: list[Server], query: Query) -> None:
    def is_quiet() -> bool:
        (left,) = query(
            "SELECT (SELECT count(*) FROM deliveries WHERE status = 0) + (SELECT count(*) FROM tallies) AS work, "
            "(SELECT count(*) FROM events WHERE fanned_out = false) AS events, "
            "(SELECT count(*) FROM messages WHERE message_id LIKE 'old %') AS old"
        )
        left["hits in memory"] = sum(metric(server, "shortener_hits_unrecorded") for server in servers)
        remaining.update(left)
        return not any(left.values())

    remaining: dict[str, float] = {}
    with contextlib.suppress(AssertionError):
        wait_until(is_quiet, "all work is done", patience=150)
    pending = query("SELECT * FROM deliveries WHERE status = 0 LIMIT 3") + query(
        "SELECT * FROM events WHERE fanned_out = false LIMIT 3"
    )
    assert not any(remaining.values()), (remaining, pending)


def compare(load: MixedLoad, query: Query, endpoint: Endpoint) -> None:
    """Compare what was acknowledged with what is stored and delivered."""
    done = load.done
    links = {row["code"]: row for row in query("SELECT code, url, message_id FROM links")}
    messages = {row["message_id"]: row for row in query("SELECT id, message_id, delivered_at FROM messages")}
    assert [code for message, code in done.messages.items() if links[code]["message_id"] != messages[message]["id"]] == []
    assert len(links) == len(messages), "each message has its link, and no message is stored twice"

    stored = Counter({row["code"]: row["hits"] for row in query(HITS_BY_CODE)})
    lost = {code: (count, stored[code]) for code, count in done.clicks.items() if stored[code] < count}
    assert lost == {}, "(acknowledged, stored)"
    extra = {code: hits for code, hits in stored.items() if hits > done.clicks[code] + done.uncertain_clicks[code]}
    assert extra == {}, "no hit is stored twice, and none that got 503"

    clicked = {row["message_id"] for row in query("SELECT id AS message_id FROM first_clicks WHERE at IS NOT NULL")}
    events = query("SELECT id, message_id FROM events WHERE topics & 1 > 0 AND hit_id IS NOT NULL")
    assert Counter(row["message_id"] for row in events) == Counter(clicked), "one CLICKTHRU for each clicked message"
    assert {messages[m]["id"] for m, code in done.messages.items() if done.clicks[code]} <= clicked

    conversions = [row["transaction_id"] for row in query("SELECT transaction_id FROM conversions")]
    assert len(conversions) == len(set(conversions))
    assert set(done.conversions) <= set(conversions) <= set(done.conversions) | done.uncertain_conversions
    assert [message for message in done.delivered if messages[message]["delivered_at"] is None] == []

    wrong = {code: links[code]["url"] for code, possible in done.destinations.items() if links[code]["url"] not in possible}
    assert wrong == {}, "the last acknowledged change of a link is stored"
    settings = orjson.loads(query("SELECT settings FROM applications")[0]["settings"])
    assert {name: settings.get(name) for name, possible in done.settings.items() if settings.get(name) not in possible} == {}

    told: dict[str, set[str]] = defaultdict(set)
    for request in endpoint.arrived:
        told[request.headers["webhook-id"]].add(request.json["message_id"])
    assert {len(of_event) for of_event in told.values()} == {1}
    (deliveries,) = query(
        "SELECT count(*) AS made, sum(CASE WHEN status = 1 THEN 1 ELSE 0 END) AS delivered FROM deliveries "
        "WHERE tracker_id IS NOT NULL"
    )
    assert deliveries["made"] == deliveries["delivered"]
    assert len(told) == deliveries["made"], "each delivery was sent, and nothing that is not stored was sent"
    assert {message for message, code in done.messages.items() if done.clicks[code]} <= set().union(*told.values())

    assert min(done.statuses[kind, 200] for kind in ("rewrite", "track", "report", "link", "settings")) > 0
    assert done.statuses["click", 302] > 0
    unexpected = {kind: count for kind, count in done.statuses.items() if kind[1] not in (0, 200, 302, 503)}
    assert unexpected == {}


HITS_BY_CODE = "SELECT l.code, count(*) AS hits FROM hits h JOIN links l ON l.id = h.link_id GROUP BY l.code"


async def restart(server: Server) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


@pytest.fixture
def server(tmp_path: Any) -> Iterator[Server]:
    # No hit gets its response before it is stored: such a hit would be lost by `kill -9`, as the documents state.
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
            await asyncio.sleep(1.5)  # the duration of the lock

    async def receiver_fails() -> None:
        endpoint.answers += [500, 200] * 20  # never ten failures in a row, which would open the circuit breaker

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
    one, two = nodes.serve(), nodes.serve()

    def query(statement: str) -> list[dict[str, Any]]:
        return [dict(row) for row in asyncio.run(nodes.query(statement))]

    def database_restarts() -> None:
        postgres_server.kill()
        postgres_server.start()

    def redis_restarts() -> None:
        redis_server.kill()
        time.sleep(0.5)  # the duration of the outage
        redis_server.start()

    async def database_hangs() -> None:
        postgres_server.freeze()
        await asyncio.sleep(1.5)  # the duration of the outage
        postgres_server.thaw()

    async def settled() -> None:
        """Wait until no hit is in memory only, which a killed process would lose."""
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
