"""Several processes, one PostgreSQL: what must happen once happens once, and they start and stop as one does.

On PostgreSQL only: SQLite belongs to one process.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.acceptance.conftest import PATIENCE, PHONE, Endpoint
from tests.acceptance.nodes import Answers, Nodes, click_all
from tests.conftest import new_postgresql_database
from tests.servers import children, free_port

LINKS, CLICKS = int(os.environ.get("PROVE_LINKS", "200")), int(os.environ.get("PROVE_CLICKS", "20"))  # `make prove` asks for more


@pytest.fixture
def nodes(postgresql: str, tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path, asyncio.run(new_postgresql_database(postgresql, None)))
    yield nodes
    nodes.close()


def test_first_clicks_that_race_on_two_nodes_are_one_clickthru_each_and_are_delivered(nodes: Nodes, endpoint: Endpoint) -> None:
    one, two = nodes.serve(), nodes.serve()
    nodes.deliver()
    nodes.deliver()
    with one.api() as client:
        tracker = {"name": "mine", "url": endpoint.url, "events": ["state"], "format": "scg"}
        assert client.post("/api/v1/trackers", json=tracker).status_code in (200, 201)
    messages = nodes.rewrite(LINKS)
    codes = [message["links"][0]["code"] for message in messages]
    # The clicks on a link stand together, half of them for each node: they race.
    clicks = [(number % 2, code) for code in codes for number in range(CLICKS)]
    answers: Answers = asyncio.run(click_all([one.base, two.base], clicks))
    assert answers.statuses == {302: LINKS * CLICKS}

    arrived = endpoint.wait(LINKS)
    delivered = Counter(one.json["event"]["fld-val-list"]["message_id"] for one in arrived)
    assert set(delivered) == {message["message_id"] for message in messages}
    assert len({one.headers["webhook-id"] for one in arrived}) == LINKS, "whatever is sent twice has the same id"

    (told,) = asyncio.run(
        nodes.query(
            "SELECT (SELECT count(*) FROM hits) AS hits, (SELECT count(*) FROM events WHERE topics & 1 > 0) AS events, "
            "(SELECT count(DISTINCT message_id) FROM events WHERE topics & 1 > 0) AS messages, "
            "(SELECT count(*) FROM hits WHERE flags & 2 > 0) AS first_hits, "
            "(SELECT count(*) FROM messages WHERE state = 50) AS clicked, "
            "(SELECT sum(attempt) FROM deliveries) AS attempts"
        )
    )
    assert dict(told) == {
        "hits": LINKS * CLICKS,
        "events": LINKS,
        "messages": LINKS,
        "first_hits": LINKS,
        "clicked": LINKS,
        "attempts": LINKS,
    }
    for server in (one, two):
        with server.client() as client:
            metrics = client.get("/metrics").text
        assert "shortener_hits_recorded_total " in metrics
        assert "shortener_hits_recorded_total 0.0" not in metrics, "both nodes took part"
    assert nodes.close() == [0, 0, 0, 0]


def test_two_nodes_that_start_at_once_on_an_empty_database_are_one_installation(nodes: Nodes) -> None:
    servers = [nodes.prepare() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        for start in [threads.submit(server.start) for server in servers]:
            start.result()
    printed = [server.printed for server in servers]
    assert sum('"first_start":{' in line for line in printed) == 1, printed
    assert sum('"first_start":null' in line for line in printed) == 2, printed
    assert nodes.close() == [0, 0, 0]


def test_a_node_with_another_secret_refuses_to_start(nodes: Nodes) -> None:
    nodes.serve()
    stranger = nodes.prepare(SECRET="another-secret-0123456789-abcdefghijklmnop")
    done = subprocess.run(
        [sys.executable, "-m", "shortener", "serve", "--port", str(stranger.port)],
        env=stranger.environment,
        cwd=stranger.folder,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert b"another SECRET" in done.stderr
    assert b"Traceback" not in done.stderr


def test_workers_of_one_serve_share_its_port_are_replaced_and_stop_together(nodes: Nodes) -> None:
    server = nodes.serve("--workers", "2")
    assert server.first["api_key"] in server.printed, "the credentials are printed, by one of them"
    assert server.process is not None
    codes = [message["links"][0]["code"] for message in nodes.rewrite(50)]
    answers = asyncio.run(click_all([server.base], [(0, code) for code in codes * 4]))
    assert answers.statuses == {302: 200}

    parent = server.process.pid

    def workers() -> list[int]:
        return children(parent, "spawn_main")

    victim = workers()[0]
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while len(workers()) < 2 or victim in workers():
        assert time.monotonic() < deadline, "nobody took the place of the worker that was killed"
        time.sleep(0.05)
    with httpx.Client(trust_env=False, headers={"User-Agent": PHONE, "Host": "go.example"}) as client:
        for _ in range(20):
            assert client.get(f"{server.base}/{random.choice(codes)}").status_code == 302
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 10
    (told,) = asyncio.run(nodes.query("SELECT count(*) AS events FROM events WHERE topics & 1 > 0"))
    assert told["events"] == 50


def test_workers_that_cannot_start_end_the_command_with_one_line(nodes: Nodes, tmp_path: Path) -> None:
    environment = nodes.environment("nowhere", DATABASE_URL=f"postgresql://nobody@/none?host={tmp_path}")
    done = subprocess.run(
        [sys.executable, "-m", "shortener", "serve", "--workers", "2", "--port", str(free_port())],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert b"the store is unavailable" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_switched_off_application_is_off_on_every_node_within_a_second(nodes: Nodes) -> None:
    one, two = nodes.serve(), nodes.serve()
    (message,) = nodes.rewrite(1)
    code = message["links"][0]["code"]
    asyncio.run(_disable(nodes))
    deadline = time.monotonic() + 1.5
    with httpx.Client(trust_env=False, headers={"User-Agent": PHONE, "Host": "go.example"}) as client:
        for server in (one, two):
            while client.get(f"{server.base}/{code}").status_code != 410:
                assert time.monotonic() < deadline
                time.sleep(0.05)


async def _disable(nodes: Nodes) -> None:
    connection = await asyncpg.connect(nodes.database_url)
    await connection.execute("UPDATE applications SET disabled_at = 1")
    await connection.execute(
        "INSERT INTO installation (name, value) VALUES ('directory', 'changed') ON CONFLICT (name) DO UPDATE SET value = 'changed'"
    )
    await connection.close()
