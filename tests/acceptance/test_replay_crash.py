"""Test that kills a process with SIGKILL within a batch of a background replay. The next process must continue the replay, and no
delivery may be replayed twice.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance import kill_points
from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import wait_until
from tests.acceptance.process import PHONE, Server, serving
from tests.servers import PATIENCE

DEAD = 1200  # The number of dead deliveries. They are processed in three batches.


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name, value in kill_points.environment(tmp_path / "points").items():
        monkeypatch.setenv(name, value)
    yield from serving(tmp_path, DELIVERY_RECOVERY_RATE="100000")


def query(server: Server, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run an SQL statement on the database of the server, and commit."""
    with contextlib.closing(sqlite3.connect(server.folder / "data" / "shortener.db", timeout=PATIENCE)) as database, database:
        return database.execute(statement, values).fetchall()


def clone(server: Server, table: str, changed: dict[str, str]) -> None:
    """Insert DEAD - 1 copies of the only row of a table. `changed` contains SQL expressions for some columns. In them, n is the
    number of the copy: 1, 2 and so on."""
    names = [row[1] for row in query(server, f"PRAGMA table_info({table})")]
    columns = ", ".join(changed.get(name, name) for name in names)
    numbers = f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {DEAD - 1}) "
    query(server, f"{numbers} INSERT INTO {table} ({', '.join(names)}) SELECT {columns} FROM numbers, {table} AS t")


def test_a_replay_continues_after_kill_9_within_a_batch_and_replays_each_delivery_once(server: Server, endpoint: Endpoint) -> None:
    endpoint.answers = [400]
    tracker = {"url": endpoint.url, "events": ["click"], "max_attempts": 1, "with_suspected": True}
    with server.api() as client:
        assert client.post("/api/v1/trackers", json=tracker).status_code == 201
        message = {"to": "+4915123456789", "body": 'Your order: #track("https://shop.example/1")'}
        code = client.post("/api/v1/rewrite", json=message).json()["messages"][0]["links"][0]["code"]
    assert httpx.get(f"{server.base}/{code}", headers={"User-Agent": PHONE}, trust_env=False, timeout=PATIENCE).status_code == 302
    wait_until(lambda: bool(query(server, "SELECT id FROM deliveries WHERE status = 2")), "the delivery is not dead")
    clone(server, "events", {"id": "t.id + n", "fanned_out": "1", "facts": "facts"})
    clone(server, "deliveries", {"id": "t.id + n", "event_id": "t.event_id + n"})

    kill_points.arm(server.folder / "points", "Replays._perform_batch", "before commit")
    columns = "id, application_id, tracker_id, state, started_by, total, created_at"
    query(server, f"INSERT INTO replays ({columns}) VALUES (1, 1, 1, 'running', 'Ada', ?, ?)", DEAD, int(time.time() * 1000))
    assert server.process is not None
    server.process.wait(PATIENCE)
    assert query(server, "SELECT state, replayed, cursor FROM replays") == [("running", 0, 0)]
    assert query(server, "SELECT count(*) FROM deliveries WHERE status = 2") == [(DEAD,)], "the batch has no effect"
    server.kill()
    server.start()
    wait_until(lambda: query(server, "SELECT state FROM replays") == [("done",)], "the replay does not continue")
    assert query(server, "SELECT replayed, total FROM replays") == [(DEAD, DEAD)]
    statement = "SELECT status, base_attempt, replay_id, count(*) FROM deliveries GROUP BY 1, 2, 3"
    wait_until(lambda: query(server, statement) == [(1, 1, 1, DEAD)], "some deliveries were not sent, or replayed twice")
    assert server.stop() == 0
