"""Tests that kill the server with SIGKILL at chosen points of transactions, under mixed load. Everything that was acknowledged
must be stored, and nothing may be stored incompletely.

`make prove` (PROVE_KILL_POINTS=all) kills the server at each point of each kind of transaction, on both engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shortener.model import SendStatus
from tests.acceptance import kill_points
from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import Nodes, wait_until
from tests.acceptance.process import Server, serving
from tests.acceptance.stress import SETTINGS, MixedLoad, Query, add_old_messages, add_tracker, compare, wait_until_quiet
from tests.acceptance.transaction_names import opened_transactions
from tests.document_blocks import ROOT
from tests.servers import PATIENCE

#: The names of the functions of transactions in which the server is killed. They are, in this order: a rewrite, hits,
#: conversions, delivery reports, fan-out, dispatch cycles of deliveries and of gateways, a change of a link or of settings, a
#: batch of the purge, and the job that adds count deltas to the counts.
TRANSACTIONS = (
    *("RewriteWriter.apply", "HitWriter.apply", "Conversions._record", "DeliveryReports._apply_group", "Fanout._fan_out"),
    *("Dispatcher._write_cycle", "GatewayDispatcher._write_cycle", "update.<locals>.write", "_delete_batch", "_fold"),
)
ALL = list(itertools.product(TRANSACTIONS, kill_points.POINTS)) if os.environ.get("PROVE_KILL_POINTS") == "all" else None
#: With this long deadline, each hit is stored before its response. A hit whose response came earlier could be lost by `kill -9`.
NO_EARLY_RESPONSE = {"HIT_DEADLINE": "20"}
SENDS = 5


def test_the_service_itself_opens_every_transaction_that_the_kill_points_interrupt() -> None:
    """TRANSACTIONS contains names of functions as strings, and most of them are used only in `make prove`.

    If a function was renamed, does not open a transaction any more, or is called only by commands, a server is never killed in
    its transaction. This test fails in these cases."""
    opened = opened_transactions(set((ROOT / "shortener").rglob("*.py")) - set((ROOT / "shortener" / "cli").rglob("*.py")))
    names = {*TRANSACTIONS, "Replays._perform_batch"}  # test_replay_crash.py kills the server in the last of these transactions
    assert names - opened == set()


def test_a_function_that_runs_only_inside_the_transaction_of_another_function_opens_no_transaction(tmp_path: Path) -> None:
    (tmp_path / "reports.py").write_text(
        """
class DeliveryReports:
    def __init__(self, database):
        self._group = GroupCommit(database, self._apply_group, apply_again=self._apply_group)

    def _apply_group(self, connection, waiting):
        return self.apply(connection, waiting)

    def apply(self, connection, requests):
        self._log.write(self.apply)

async def update(call):
    def write(connection):
        return 1

    await call.service.database.write(write)
"""
    )
    assert opened_transactions([tmp_path / "reports.py"]) == {"DeliveryReports._apply_group", "update.<locals>.write"}


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the kill points. The servers of a test inherit the environment variables that this fixture sets."""
    for name, value in kill_points.environment(tmp_path / "points").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "points"


@pytest.fixture
def server(points: Path, tmp_path: Path) -> Iterator[Server]:
    yield from serving(tmp_path, BASE_URL="http://go.example", **NO_EARLY_RESPONSE, **SETTINGS)


class Killer:
    """Kills a server at kill points, and starts it again. `sent` contains the ids of the messages that the server accepted for
    the gateway."""

    def __init__(self, server: Server, points: Path, url: str, query: Query) -> None:
        self._server = server
        self._points = points
        self._url = url
        self._query = query
        self.sent: list[str] = []

    def kill_at(self, transaction: str, point: str) -> None:
        """Wait until the server has killed itself at `point` of its next transaction with the name `transaction`. Then start it
        again. The load continues all the time."""
        process = self._server.process
        assert process is not None
        kill_points.arm(self._points, transaction, point)
        if transaction == "_delete_batch":
            self._add_old_messages()
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None:
            assert time.monotonic() < deadline, f"{transaction} did not write"
            if transaction.startswith("Gateway"):
                self._send()
            time.sleep(0.02)  # wait a moment, then check the condition again
        self._server.kill()
        self._server.start()

    def _send(self) -> None:
        """Send messages through the gateway. If a request gets no response, its messages are uncertain and are not recorded."""
        body = {"to": [f"+1408555{number:04}" for number in range(SENDS)], "message": 'see #track("https://x.example/")'}
        with self._server.api() as client, contextlib.suppress(httpx.TransportError):
            response = client.post("/api/v1/sms/send", json=body | {"sender_id": "18775550100"})
            assert response.json()["sent"] is True, response.text
            self.sent += [message["message_id"] for message in response.json()["messages"]]

    def _add_old_messages(self) -> None:
        """Wait until the purge has deleted the old messages that were added before. Then add new ones for the next purge."""
        deadline = time.monotonic() + PATIENCE
        while self._query("SELECT 1 AS one FROM messages WHERE message_id LIKE 'old %' LIMIT 1"):
            if self._server.process is None or self._server.process.poll() is not None:
                return  # the server has already killed itself during the purge
            assert time.monotonic() < deadline, "old messages are not deleted"
            time.sleep(0.05)  # wait a moment, then check the condition again
        add_old_messages(self._url)


def kill_and_compare(server: Server, killer: Killer, kills: list[tuple[str, str]], query: Query, endpoint: Endpoint) -> None:
    """Under mixed load, kill the server at these points. Then compare what it acknowledged with what is stored."""
    add_tracker(server, endpoint)
    server.command("applications", "update", "1", "--gateway", "simulator")
    load = MixedLoad([server.base], server.first["api_key"], server.first["tracker_token"])

    async def story() -> None:
        async with load.running():
            for kill in kills:
                await asyncio.to_thread(killer.kill_at, *kill)

    asyncio.run(story())
    wait_until_quiet([server], query)
    compare(load, query, endpoint)
    verified = server.command("verify")
    assert (verified["drift"], verified["orphans"]) == ([], [])
    wait_until(lambda: not query("SELECT 1 AS one FROM sends WHERE status = 0"), "messages wait for the gateway")
    sends = query("SELECT m.message_id, s.status FROM sends s JOIN messages m ON m.id = s.id")
    assert {row["message_id"] for row in sends} >= set(killer.sent)
    assert {row["status"] for row in sends} <= {SendStatus.SENT}
    assert len(sends) % SENDS == 0, "a request for several recipients is stored completely or not at all"
    assert server.stop() == 0


def test_after_kill_9_at_any_point_of_a_transaction_everything_acknowledged_is_stored_with_sqlite(
    server: Server, endpoint: Endpoint, points: Path
) -> None:
    file = server.folder / "data" / "shortener.db"

    def query(statement: str) -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(statement)]

    kills = [
        ("RewriteWriter.apply", "before commit"),
        ("HitWriter.apply", "first write"),
        ("Dispatcher._write_cycle", "before commit"),
    ]
    killer = Killer(server, points, f"sqlite:///{file}", query)
    kill_and_compare(server, killer, ALL or kills, query, endpoint)
    assert query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]


@pytest.mark.skipif(ALL is None, reason="only in `make prove` (PROVE_KILL_POINTS=all)")
def test_after_kill_9_at_any_point_of_a_transaction_everything_acknowledged_is_stored_with_postgresql(
    nodes_without_redis: Nodes, endpoint: Endpoint, points: Path
) -> None:
    nodes = nodes_without_redis
    nodes.settings |= SETTINGS | NO_EARLY_RESPONSE
    server = nodes.serve()

    def query(statement: str) -> list[dict[str, Any]]:
        return [dict(row) for row in asyncio.run(nodes.query(statement))]

    kill_and_compare(server, Killer(server, points, nodes.database_url, query), ALL or [], query, endpoint)
