"""Tests that SIGTERM stops a process within ten seconds, even if a dependency hangs. After the stop, no delivery may be lost,
have a lease, or be sent twice.
"""

import asyncio
import contextlib
import signal
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import Nodes, metric
from tests.acceptance.process import PHONE, Server
from tests.conftest import new_postgresql_database
from tests.servers import PATIENCE, PostgresProcess

WITHIN = 10.0
#: Additional seconds for a busy machine. If a process hangs and has to be killed, its exit code is not 0, so the test still
#: fails.
MARGIN = 30.0


@pytest.fixture
def nodes(nodes_without_redis: Nodes) -> Nodes:
    return nodes_without_redis


def deliveries(folder: Path) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'data' / 'shortener.db'}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM deliveries ORDER BY tracker_id")]


def add_tracker(client: httpx.Client, url: str, **more: Any) -> None:
    answer = client.post("/api/v1/trackers", json={"url": url, "events": ["click"], **more})
    assert answer.status_code == 201, answer.text


def click_a_new_message(server: Server) -> None:
    with server.api() as client:
        given = {"to": "+14085550100", "body": '#track("https://x.example/")'}
        (message,) = client.post("/api/v1/rewrite", json=given).json()["messages"]
    with server.client(**{"User-Agent": PHONE}) as client:
        assert client.get("/" + message["links"][0]["code"]).status_code == 302


def wait_until_all_know_each_other(nodes: Nodes, count: int) -> None:
    """Wait until each of `count` delivering processes knows how many there are.

    A process counts the processes with a heartbeat whenever it writes its own heartbeat. Therefore wait until all processes have
    written their first heartbeat, and then until each of them has written one more."""

    def heartbeats() -> dict[int, Any]:
        rows = asyncio.run(nodes.query("SELECT id, seen_at FROM delivery_processes"))
        return {row["id"]: row["seen_at"] for row in rows}

    deadline = time.monotonic() + PATIENCE
    first: dict[int, Any] = {}
    while len(first) < count or any(heartbeats().get(process, at) <= at for process, at in first.items()):
        assert time.monotonic() < deadline, first
        time.sleep(0.1)  # wait a moment, then check the condition again
        if len(first) < count:
            first = heartbeats()


def click_once(server: Server, code: str) -> None:
    with contextlib.suppress(httpx.TransportError), server.client(**{"User-Agent": PHONE, "Host": "go.example"}) as client:
        client.get("/" + code)


def rewrite_once(server: Server) -> None:
    with contextlib.suppress(httpx.TransportError), server.api() as client:
        client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "no link"})


def begun_request(server: Server, body: bytes = b"") -> socket.socket:
    """Send the headers of a request and a part of its body. Return the open connection."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    head = f"POST /api/v1/rewrite HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {server.first['api_key']}\r\nContent-Length: 42\r\n"
    client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    return client


def connect_again_and_again(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE).close()


def test_a_stopping_server_completes_its_running_deliveries_or_releases_their_leases(server: Server, endpoint: Endpoint) -> None:
    endpoint.slow = {"/slow": 2.0, "/hangs": 60.0}
    with server.api() as client:
        for path in endpoint.slow:
            add_tracker(client, endpoint.url + path, timeout=30)
    click_a_new_message(server)
    endpoint.wait(2)
    with begun_request(server, b"{"), socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.sendall(b"GET /a")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < WITHIN + MARGIN
    slow, hangs = deliveries(server.folder)
    assert (slow["status"], slow["attempt"], slow["lease_until"]) == (1, 1, None)
    assert (hangs["status"], hangs["attempt"], hangs["lease_until"]) == (0, 0, None)
    assert hangs["next_at"] <= time.time() * 1000, "a delivery whose lease was released is due at once"

    endpoint.slow = {}
    server.start()
    told = endpoint.wait(3)
    assert sorted(request.target for request in told) == ["/hangs", "/hangs", "/slow"], "a delivery that ended is not sent again"
    assert len({request.headers["webhook-id"] for request in told if request.target == "/hangs"}) == 1
    assert server.stop() == 0
    assert [(one["status"], one["attempt"]) for one in deliveries(server.folder)] == [(1, 1), (1, 1)]
    assert len(endpoint.arrived) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_after_sigterm_or_sighup_readyz_returns_503_other_requests_get_responses_and_the_process_exits_with_0(
    server: Server, number: signal.Signals
) -> None:
    codes: list[int] = []
    stopped = threading.Thread(target=lambda: codes.append(server.stop(number)))
    body = b'{"to": "+14085550100", "body": "no link."}'
    assert len(body) == 42
    with begun_request(server, body[:10]) as begun, server.client() as probe:
        assert probe.get("/readyz").status_code == 200
        stopped.start()
        deadline = time.monotonic() + PATIENCE
        while (answer := probe.get("/readyz")).status_code == 200:
            assert time.monotonic() < deadline
        assert (answer.status_code, answer.json()["checks"]["process"]) == (503, "failed")
        with server.client() as another:
            assert another.get("/healthz").status_code == 200, "the server still accepts connections"
        # The server has closed its listening socket. It still responds to the request that was already started.
        with contextlib.suppress(httpx.TransportError):
            while True:
                probe.get("/healthz", headers={"Connection": "close"})
                assert time.monotonic() < deadline
        begun.sendall(body[10:])
        assert begun.recv(65536).startswith(b"HTTP/1.1 200 ")
    stopped.join(WITHIN + MARGIN)
    assert codes == [0]


def test_serve_and_deliver_processes_stop_in_time_and_leave_no_leased_delivery(nodes: Nodes, endpoint: Endpoint) -> None:
    endpoint.slow = {"/hangs": 60.0}
    server = nodes.serve("--workers", "2")
    nodes.deliver()
    with server.api() as client:
        add_tracker(client, endpoint.url + "/hangs", timeout=30, concurrency=6)
    wait_until_all_know_each_other(nodes, 3)
    codes = [message["links"][0]["code"] for message in nodes.rewrite(12)]
    with server.client(**{"User-Agent": PHONE, "Host": "go.example"}) as client:
        assert {client.get(f"/{code}").status_code for code in codes} == {302}
    endpoint.wait(6)
    time.sleep(1)  # wait for a seventh event, which a process would send if it exceeded its share of the tracker's six slots
    assert len(endpoint.arrived) == 6, "three processes share the slots of the tracker"
    with begun_request(server), ThreadPoolExecutor(1) as apart:
        began = time.monotonic()
        closing = apart.submit(nodes.close)
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
            connect_again_and_again(server)
        assert not closing.done(), "the port is closed while the server waits for the last request"
        assert closing.result() == [0, 0]
        assert time.monotonic() - began < WITHIN + MARGIN
    (told,) = asyncio.run(
        nodes.query(
            "SELECT count(*) FILTER (WHERE status = 0 AND attempt = 0) AS pending, count(lease_until) AS leased FROM deliveries"
        )
    )
    assert tuple(told) == (12, 0)


def test_a_frozen_database_does_not_delay_the_stop_of_the_server(
    postgres_server: PostgresProcess, endpoint: Endpoint, tmp_path: Path
) -> None:
    url = asyncio.run(new_postgresql_database(postgres_server.url, None))
    nodes = Nodes(tmp_path, url, settings={"HIT_DEADLINE": "2"})
    endpoint.slow = {"/slow": 1.0}
    server = nodes.serve()
    nodes.deliver()
    with server.api() as client:
        add_tracker(client, endpoint.url + "/slow", timeout=30)
    code = nodes.rewrite(1)[0]["links"][0]["code"]
    with server.client(**{"User-Agent": PHONE, "Host": "go.example"}) as client:
        assert client.get(f"/{code}").status_code == 302
    endpoint.wait(1)
    postgres_server.freeze()
    with ThreadPoolExecutor(12) as apart:
        for _ in range(6):  # these requests wait, because they write to the frozen database
            apart.submit(click_once, server, code)
            apart.submit(rewrite_once, server)
        with server.client() as probe:
            while metric(server, "shortener_hits_unrecorded") == 0:
                assert probe.get("/healthz").status_code == 200
        began = time.monotonic()
        assert nodes.close() == [0, 0]
        assert time.monotonic() - began < WITHIN + MARGIN
    postgres_server.thaw()
    # The outcome of the attempt could not be stored. The delivery keeps its lease, and is sent again when the lease has ended.
    (told,) = asyncio.run(nodes.query("SELECT status, attempt FROM deliveries"))
    assert tuple(told) == (0, 1)
