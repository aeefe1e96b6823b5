"""Tests of several server processes that share one PostgreSQL database. Each event must occur once, and the processes must start
and stop cleanly.

The tests use only PostgreSQL, because only one process can use a SQLite database.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests import fork_server
from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import Answers, Nodes, click_all, wait_until
from tests.acceptance.process import NO_TLS, PHONE, Server
from tests.conftest import new_postgresql_database
from tests.servers import PATIENCE, SOON_SECONDS, RedisProcess, children, free_port

#: All workers must stop within ten seconds. The other twenty seconds are for a busy machine.
STOP_SECONDS = 30.0
# The number of links, and the number of clicks on each link. `make prove` sets larger numbers.
LINKS, CLICKS = int(os.environ.get("PROVE_LINKS", "200")), int(os.environ.get("PROVE_CLICKS", "20"))


@pytest.fixture
def nodes(nodes_without_redis: Nodes) -> Nodes:
    return nodes_without_redis


def test_concurrent_first_clicks_on_two_nodes_create_one_clickthru_event_per_message(nodes: Nodes, endpoint: Endpoint) -> None:
    one, two = nodes.serve(), nodes.serve()
    nodes.deliver()
    nodes.deliver()
    with one.api() as client:
        tracker = {"name": "mine", "url": endpoint.url, "events": ["state"], "format": "scg"}
        assert client.post("/api/v1/trackers", json=tracker).status_code in (200, 201)
    messages = nodes.rewrite(LINKS)
    codes = [message["links"][0]["code"] for message in messages]
    # The clicks on a link go to the two nodes in turn, so that both nodes try to record its first click.
    clicks = [(number % 2, code) for code in codes for number in range(CLICKS)]
    answers: Answers = asyncio.run(click_all([one.base, two.base], clicks))
    assert answers.statuses == {302: LINKS * CLICKS}

    arrived = endpoint.wait(LINKS)
    delivered = Counter(one.json["event"]["fld-val-list"]["message_id"] for one in arrived)
    assert set(delivered) == {message["message_id"] for message in messages}
    assert len({one.headers["webhook-id"] for one in arrived}) == LINKS, "a repeated event has the same id"

    (told,) = asyncio.run(
        nodes.query(
            "SELECT (SELECT count(*) FROM hits) AS hits, (SELECT count(*) FROM events WHERE topics & 1 > 0) AS events, "
            "(SELECT count(DISTINCT message_id) FROM events WHERE topics & 1 > 0) AS messages, "
            "(SELECT count(*) FROM hits WHERE flags & 2 > 0) AS first_hits, "
            "(SELECT count(*) FROM first_clicks WHERE at IS NOT NULL) AS clicked, "
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
        assert "shortener_hits_recorded_total 0.0" not in metrics, "both nodes recorded hits"
    assert nodes.close() == [0, 0, 0, 0]


def test_two_nodes_that_start_at_once_on_an_empty_database_create_one_installation(nodes: Nodes, postgresql: str) -> None:
    nodes.database_url = asyncio.run(new_postgresql_database(postgresql, None))
    servers = [nodes.prepare() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        for start in [threads.submit(server.start) for server in servers]:
            start.result()
    printed = [server.printed for server in servers]
    assert sum('"first_start":{' in line for line in printed) == 1, printed
    assert sum('"first_start":null' in line for line in printed) == 2, printed
    assert nodes.close() == [0, 0, 0]


def test_concurrent_first_conversions_on_two_nodes_count_each_message_once_as_converted(nodes: Nodes) -> None:
    one, two = nodes.serve(), nodes.serve()
    messages = [message["message_id"] for message in nodes.rewrite(100)]

    async def report_all() -> None:
        async def report(node: Server, order: list[str]) -> None:
            limits = httpx.Limits(max_connections=16)
            async with httpx.AsyncClient(
                base_url=node.base, verify=NO_TLS, trust_env=False, timeout=PATIENCE, limits=limits
            ) as client:
                for number in range(2):
                    calls = [{"message_id": message, "transaction_id": f"{node.port} {number}"} for message in order]
                    token = {"X-Api-Token": one.first["tracker_token"]}
                    answers = await asyncio.gather(*(client.get("/api/v1/track", params=call, headers=token) for call in calls))
                    assert {answer.status_code for answer in answers} == {200}

        await asyncio.gather(report(one, messages), report(two, messages[::-1]))

    asyncio.run(report_all())
    for server in (one, two):
        with server.api() as client:
            stats = client.get("/api/v1/sms/stats", params={"basis": "sent"}).json()
        assert (stats["messages"], stats["conversions"], stats["converted_messages"], stats["conversion_rate"]) == (
            100,
            400,
            100,
            1.0,
        )
    verified = one.command("verify")
    assert (verified["drift"], verified["orphans"]) == ([], [])


def test_a_node_with_another_secret_than_the_database_does_not_start(nodes: Nodes) -> None:
    nodes.serve()
    stranger = nodes.prepare(SECRET="another-secret-0123456789-abcdefghijklmnop")
    words = ["serve", "--port", str(stranger.port)]
    done = fork_server.run(words, stranger.environment, cwd=stranger.folder, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert b"another SECRET" in done.stderr
    assert b"Traceback" not in done.stderr


def test_workers_of_one_serve_command_share_its_port_are_replaced_and_stop_together(nodes: Nodes) -> None:
    server = nodes.serve("--workers", "2")
    assert server.first["api_key"] in server.printed, "one of the workers prints the credentials"
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
        assert time.monotonic() < deadline, "no worker replaced the killed worker"
        time.sleep(0.05)  # wait a moment, then check the condition again
    with httpx.Client(
        verify=NO_TLS, trust_env=False, timeout=PATIENCE, headers={"User-Agent": PHONE, "Host": "go.example"}
    ) as client:
        for _ in range(20):
            assert client.get(f"{server.base}/{random.choice(codes)}").status_code == 302
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < STOP_SECONDS
    (told,) = asyncio.run(nodes.query("SELECT count(*) AS events FROM events WHERE topics & 1 > 0"))
    assert told["events"] == 50


def test_the_serve_command_exits_with_an_error_and_no_traceback_if_no_worker_can_start(nodes: Nodes, tmp_path: Path) -> None:
    environment = nodes.environment("nowhere", DATABASE_URL=f"postgresql://nobody@/none?host={tmp_path}")
    done = subprocess.run(
        [sys.executable, "-m", "shortener", "serve", "--workers", "2", "--port", str(free_port())],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert b"the database is unavailable" in done.stderr
    assert b"Traceback" not in done.stderr


# The tests below examine state that nodes share through PostgreSQL and Redis.


@pytest.fixture
def pair(nodes: Nodes, redis_server: RedisProcess) -> tuple[Server, Server]:
    """Two nodes that share one PostgreSQL and one Redis."""
    nodes.redis_url = redis_server.url
    return nodes.serve(), nodes.serve()


def get(server: Server, code: str, host: str = "go.example") -> int:
    with httpx.Client(verify=NO_TLS, trust_env=False, timeout=PATIENCE, headers={"User-Agent": PHONE, "Host": host}) as client:
        return client.get(f"{server.base}/{code}").status_code


def wait_until_answered(server: Server, code: str, status: int) -> None:
    wait_until(lambda: get(server, code, "go.brand.example") == status, f"the status is not {status}", SOON_SECONDS)


def switch_link(server: Server, code: str, enabled: bool) -> None:
    with server.api() as client:
        assert client.patch(f"/api/v1/links/{code}", json={"enabled": enabled}).status_code == 200


def switch_host(server: Server, code: str, enabled: bool) -> None:
    with server.api() as client:
        if enabled:
            assert client.delete("/api/v1/blocked-hosts/x.example").status_code in (200, 204)
        else:
            assert client.post("/api/v1/blocked-hosts", json={"host": "x.example"}).status_code in (200, 201)


def switch_domain(server: Server, code: str, enabled: bool) -> None:
    server.command("domains", "enable" if enabled else "disable", "go.brand.example")


def switch_application(server: Server, code: str, enabled: bool) -> None:
    server.command("applications", "update", "1", "--enable" if enabled else "--disable")


@pytest.mark.parametrize("switch", [switch_link, switch_host, switch_domain, switch_application])
def test_disabling_a_link_host_domain_or_application_takes_effect_on_every_node_within_a_second(
    nodes: Nodes, pair: tuple[Server, Server], switch: Callable[[Server, str, bool], None]
) -> None:
    one, two = pair
    one.command("applications", "update", "1", "--add-domain", "https://go.brand.example")
    wait_until(lambda: "//go.brand.example/" in nodes.rewrite(1)[0]["links"][0]["short_url"], "the domain is not known")
    code = nodes.rewrite(1)[0]["links"][0]["code"]
    for server in pair:
        wait_until_answered(server, code, 302)
    switch(one, code, False)
    for server in (two, one):
        wait_until_answered(server, code, 410)
    switch(one, code, True)
    for server in (two, one):
        wait_until_answered(server, code, 302)


def test_the_metrics_of_two_nodes_add_up_to_the_number_of_requests(nodes: Nodes, pair: tuple[Server, Server]) -> None:
    codes = [message["links"][0]["code"] for message in nodes.rewrite(20)]
    clicks = [(number % 2, code) for code in codes for number in range(6)] + [(0, codes[0])] * 30
    answers = asyncio.run(click_all([server.base for server in pair], clicks))
    assert answers.statuses == {302: 150}
    shares = [metrics(server) for server in pair]
    assert all(share["shortener_hits_recorded_total"] >= 60 for share in shares)
    told = dict(asyncio.run(nodes.query("SELECT count(*) AS hits, count(*) FILTER (WHERE flags & 2 > 0) AS firsts FROM hits"))[0])
    assert sum(share["shortener_hits_recorded_total"] for share in shares) == told["hits"] == 150
    assert sum(share["shortener_first_clicks_total"] for share in shares) == told["firsts"] == 20
    assert sum(share['shortener_redirects_total{status="302"}'] for share in shares) == 150


def metrics(server: Server) -> dict[str, float]:
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def test_nodes_with_different_clocks_use_the_clock_of_the_database(nodes: Nodes, endpoint: Endpoint) -> None:
    slow, fast = nodes.clock_off_by(-600), nodes.clock_off_by(600)
    one, two = nodes.prepare(), nodes.prepare()
    for server, environment in ((one, slow), (two, fast)):
        server.environment |= environment
        server.start()
        server.first = server.first or one.first
    nodes.deliver(**fast)
    nodes.deliver(**slow)
    assert [round(metrics(server)["shortener_clock_offset_seconds"] / 600) for server in (one, two)] == [1, -1]
    with one.api() as client:
        endpoint.slow["/"] = 1.0  # the response is delayed, and meanwhile the node with the fast clock looks for expired leases
        tracker = {"name": "mine", "url": endpoint.url, "events": ["state"], "format": "scg"}
        assert client.post("/api/v1/trackers", json=tracker).status_code == 201
    codes = [message["links"][0]["code"] for message in nodes.rewrite(24)]
    asyncio.run(click_all([one.base, two.base], [(number % 2, code) for number, code in enumerate(codes)]))
    arrived = Counter(request.headers["webhook-id"] for request in endpoint.wait(24))
    assert set(arrived.values()) == {1}
    delivered = "SELECT count(*) AS n FROM deliveries WHERE status = 1"
    wait_until(lambda: asyncio.run(nodes.query(delivered))[0]["n"] == 24, "a delivery has no outcome")
    (told,) = asyncio.run(
        nodes.query(
            "SELECT max(d.attempt) AS attempts, max(abs(h.at - extract(epoch FROM clock_timestamp()) * 1000)) AS away "
            "FROM deliveries d CROSS JOIN hits h"
        )
    )
    assert told["attempts"] == 1, "no node attempted a delivery that another node had leased"
    assert told["away"] < 400_000, "the hits of all nodes have the time of one clock"
    assert nodes.close() == [0, 0, 0, 0]
