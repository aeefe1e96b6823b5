"""Tests of faults of PostgreSQL, Redis and the disk while clicks arrive. The tests stop, freeze, kill, empty or fill real
servers.

Each test requires four things: redirects still work; each redirected click is counted once; a request that the service cannot
perform gets 503 with Retry-After; and the service recovers by itself after the fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import Answers, Nodes, click_until, metric, wait_until
from tests.acceptance.process import PHONE, Server, locked, serving
from tests.receiver import Request
from tests.servers import PATIENCE, PostgresProcess, Proxy, RedisProcess

OUTAGE = float(os.environ.get("PROVE_OUTAGE", "3"))  # the duration of a fault in seconds; `make prove` sets 60
#: clicks in the last second of an outage are not compared, because a node may not have stored them in the spool yet
LAST_SECOND = 1.0
KEEP_ALIVE_SECONDS = 5.0  # the time after which the server closes an idle connection, the default of uvicorn
NO_MORE = 0.050  # during a fault, the p90 latency in seconds may be twice the latency without a fault, plus this time


def try_rewrite(server: Server) -> httpx.Response:
    with server.api() as client:
        return client.post("/api/v1/rewrite", json={"to": "+14085550199", "body": '#track("https://x.example/")'})


def get(server: Server, code: str) -> httpx.Response:
    with server.client(**{"User-Agent": PHONE, "Host": "go.example"}) as client:
        return client.get(f"/{code}")


@dataclass
class Load:
    """Clicks that are sent continuously on random links of `codes`. A test may append codes while the load runs."""

    bases: list[str]
    codes: list[str]
    answers: Answers = field(default_factory=Answers)
    outages: list[tuple[float, float]] = field(default_factory=list)  # the start and the end of each outage of the database

    @contextlib.asynccontextmanager
    async def running(self, people: int = 8, pause: float = 0.01) -> AsyncIterator[None]:
        done = False
        task = asyncio.create_task(click_until(self.bases, self.codes, lambda: done, self.answers, people=people, pause=pause))
        try:
            yield
        finally:
            done = True
            await task

    async def go_on(self, clicks: int) -> None:
        """Wait until `clicks` more clicks have got a response."""
        enough = self.answers.statuses.total() + clicks
        async with asyncio.timeout(PATIENCE):
            while self.answers.statuses.total() < enough:
                await asyncio.sleep(0.01)  # wait a moment, then count again


async def outage(nodes: Nodes, load: Load, begin: Callable[[], None], end: Callable[[], None], fresh: list[str]) -> None:
    """Make PostgreSQL unavailable for OUTAGE seconds. During this time, the links in `fresh` get their first clicks."""
    one, two = nodes.servers
    await asyncio.to_thread(begin)
    try:
        load.codes += fresh
        began, began_at = time.monotonic(), time.time()
        refused = await asyncio.to_thread(try_rewrite, one)
        assert (refused.status_code, refused.json()["error_code"]) == (503, "UNAVAILABLE")
        assert int(refused.headers["Retry-After"]) > 0
        await asyncio.sleep(max(OUTAGE - (time.monotonic() - began), 0))  # wait for the rest of the outage
        assert await asyncio.to_thread(metric, two, "shortener_store_outage") == 1
        assert await asyncio.to_thread(metric, two, "shortener_spool_depth") > 0
        with two.client() as client:
            ready = await asyncio.to_thread(client.get, "/readyz")
        assert (ready.status_code, ready.json()["checks"]["database"]) == (200, "failed"), "a load balancer keeps the node"
        load.outages.append((began_at, time.time() - LAST_SECOND))
    finally:
        await asyncio.to_thread(end)  # end the outage even if the test has failed, because the other tests use the same server

    def is_over() -> bool:
        return all(metric(node, "shortener_store_outage") == 0 for node in (one, two)) and try_rewrite(one).status_code == 200

    await asyncio.to_thread(wait_until, is_over, "the nodes did not come back by themselves")
    await load.go_on(200)


def message_of(told: Request) -> str:
    found: str = told.json["event"]["fld-val-list"]["message_id"]
    return found


def test_after_an_outage_of_postgresql_under_load_every_click_is_stored_and_counted_once(
    nodes: Nodes, postgres_server: PostgresProcess, redis_server: RedisProcess, endpoint: Endpoint
) -> None:
    one, two = nodes.serve(), nodes.serve()
    with one.api() as client:
        client.post("/api/v1/trackers", json={"name": "mine", "url": endpoint.url, "events": ["state"], "format": "scg"})
    messages = nodes.rewrite(200)
    codes = [message["links"][0]["code"] for message in messages]
    load = Load([one.base, two.base], codes[:50])

    async def story() -> None:
        async with load.running():
            while len(load.answers.redirected) < 50:
                await asyncio.sleep(0.05)  # wait a moment, then count again
            server = postgres_server
            await outage(nodes, load, server.stop, server.start, codes[50:100])
            await outage(nodes, load, server.freeze, server.thaw, codes[100:150])
            await outage(nodes, load, server.kill, server.start, codes[150:])
            async with asyncio.timeout(PATIENCE):
                while len(load.answers.redirected) < len(codes):  # wait for all links, because the load chooses links at random
                    await asyncio.sleep(0.05)  # wait a moment, then count again

    asyncio.run(story())
    with contextlib.closing(redis_server.client()) as client:
        (stream,) = client.keys("sms:*:spool:hits") or ["none"]
        wait_until(lambda: client.xlen(stream) == 0, "the spool is not drained")
    assert set(load.answers.statuses) == {302}, "every click on a cached link is redirected"
    assert metric(one, "shortener_hits_spooled_total") > 0
    assert metric(one, "shortener_hits_dropped_total") + metric(two, "shortener_hits_dropped_total") == 0
    wait_until(lambda: metric(one, "shortener_hits_unrecorded") + metric(two, "shortener_hits_unrecorded") == 0, "hits wait")

    rows = asyncio.run(
        nodes.query(
            "SELECT l.code, count(*) AS hits, min(h.at) AS earliest, max(f.at) AS clicked_at, "
            "sum((h.flags & 2) / 2) AS firsts, max(e.events) AS events "
            "FROM hits h JOIN links l ON l.id = h.link_id JOIN messages m ON m.id = l.message_id "
            "LEFT JOIN first_clicks f ON f.id = m.id "
            "LEFT JOIN (SELECT message_id, count(*) AS events FROM events WHERE topics & 1 > 0 GROUP BY message_id) e "
            "ON e.message_id = m.id GROUP BY l.code"
        )
    )
    assert {row["code"]: row["hits"] for row in rows} == load.answers.redirected, "each click is stored once"
    assert len(rows) == 200
    assert {(row["firsts"], row["events"]) for row in rows} == {(1, 1)}, "one first click and one CLICKTHRU for each message"
    # Compare only links whose earliest click was during an outage. At other times, two nodes may record the first clicks of a
    # link at the same time. The click that is committed first is then the first click, even if the other click is earlier.
    spooled = [row for row in rows if any(begin <= row["earliest"] / 1000 <= end for begin, end in load.outages)]
    assert spooled
    assert [row["code"] for row in spooled if row["clicked_at"] != row["earliest"]] == [], "the earliest click is the first"
    # If the outcome of an attempt could not be stored, the event is sent again with the same event id. Therefore compare sets.
    wanted = {message["message_id"] for message in messages}
    wait_until(lambda: {message_of(one) for one in endpoint.arrived} == wanted, "an event of a first click has not arrived")
    assert len({one.headers["webhook-id"] for one in endpoint.arrived}) == len(wanted)
    assert nodes.close() == [0, 0]


def test_without_postgresql_and_redis_redirects_get_503_with_retry_after(
    nodes: Nodes, postgres_server: PostgresProcess, redis_server: RedisProcess
) -> None:
    server = nodes.serve()
    (message,) = nodes.rewrite(1)
    code = message["links"][0]["code"]
    postgres_server.stop()
    try:
        assert get(server, code).status_code == 302
        redis_server.kill()
        began = time.monotonic()
        answer = get(server, code)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert time.monotonic() - began < 10, "a response within HIT_DEADLINE, with time to spare for a loaded machine"
        redis_server.start()
        wait_until(lambda: get(server, code).status_code == 302, "the link is not in Redis after the restart")
    finally:
        postgres_server.start()
    wait_until(lambda: metric(server, "shortener_store_outage") == 0, "the outage of the database does not end")
    assert get(server, code).status_code == 302


@pytest.fixture
def proxy(redis_server: RedisProcess) -> Iterator[Proxy]:
    with Proxy(redis_server.port).in_a_thread() as proxy:
        yield proxy


@contextlib.contextmanager
def refused(server: RedisProcess, proxy: Proxy) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextlib.contextmanager
def black_holed(server: RedisProcess, proxy: Proxy) -> Iterator[None]:
    server.freeze()
    yield
    server.thaw()


@contextlib.contextmanager
def wiped(server: RedisProcess, proxy: Proxy) -> Iterator[None]:
    with contextlib.closing(server.client()) as client:
        client.flushall()
    yield


@contextlib.contextmanager
def out_of_memory(server: RedisProcess, proxy: Proxy) -> Iterator[None]:
    with contextlib.closing(server.client()) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        yield
        client.config_set("maxmemory", "0")


@contextlib.contextmanager
def slow(server: RedisProcess, proxy: Proxy) -> Iterator[None]:
    proxy.delay = 0.2
    yield
    proxy.delay = 0.0


#: The faults of Redis. The value says whether the service detects during the fault that Redis is unavailable.
REDIS_FAULTS: dict[Callable[[RedisProcess, Proxy], AbstractContextManager[None]], bool] = {
    refused: True,
    black_holed: True,
    wiped: False,
    out_of_memory: False,
    slow: True,
}


@pytest.mark.parametrize("fault", REDIS_FAULTS)
def test_a_failing_redis_does_not_delay_redirects(
    nodes: Nodes,
    redis_server: RedisProcess,
    proxy: Proxy,
    fault: Callable[[RedisProcess, Proxy], AbstractContextManager[None]],
) -> None:
    server = nodes.serve(**({"REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"} if fault is slow else {}))
    codes = [message["links"][0]["code"] for message in nodes.rewrite(100)]
    everything = Counter[str]()

    async def p90() -> float:
        """Return the p90 latency of redirects in seconds. Meanwhile, rewrites write to Redis."""
        load = Load([server.base], codes)
        async with load.running(people=4, pause=0.005):
            for _ in range(8):
                answer = await asyncio.to_thread(try_rewrite, server)
                assert answer.status_code == 200, answer.text
                await load.go_on(40)
        assert set(load.answers.statuses) == {302}
        everything.update(load.answers.redirected)
        return load.answers.percentile(0.9)

    def is_cached() -> bool:
        code = try_rewrite(server).json()["messages"][0]["links"][0]["code"]
        with contextlib.closing(redis_server.client()) as client:
            return len(client.keys(f"sms:*:{code}")) == 1

    async def story() -> tuple[float, float, float]:
        assert is_cached()
        before = await p90()
        with fault(redis_server, proxy):
            during = await p90()
            is_up = 0 if REDIS_FAULTS[fault] else 1
            # Wait for the state: on a busy machine, even a Redis without a fault may exceed its time limit once.
            wait_until(lambda: metric(server, "shortener_redis_up") == is_up, "the service does not know the state of Redis")
            if fault is out_of_memory:
                assert not is_cached()
        wait_until(lambda: metric(server, "shortener_redis_up") == 1, "the service does not detect that Redis responds again")
        wait_until(is_cached, "links are not written to Redis again")
        return before, during, await p90()

    before, during, after = asyncio.run(story())
    shown = f"p90 {1000 * before:.1f} ms before, {1000 * during:.1f} ms meanwhile, {1000 * after:.1f} ms after"
    assert during < 2 * max(before, after) + NO_MORE, shown
    failures = metric(server, "shortener_redis_failures_total")
    assert failures < 20, "after the first failures, requests no longer call Redis"
    # If a hit was not stored before its response, it is stored later.
    wait_until(lambda: metric(server, "shortener_hits_unrecorded") == 0, "hits wait")
    (told,) = asyncio.run(nodes.query("SELECT count(*) AS hits FROM hits"))
    assert told["hits"] == everything.total(), "each click is stored"
    assert nodes.close() == [0]


def test_no_node_redirects_an_erased_or_disabled_link_from_its_cache(nodes: Nodes, postgres_server: PostgresProcess) -> None:
    one, two = nodes.serve(), nodes.serve()
    erased, off, kept = (message["links"][0]["code"] for message in nodes.rewrite(3))
    one.command("messages", "erase", "--phone", "+14085550000", "--yes")
    with one.api() as client:
        assert client.patch(f"/api/v1/links/{off}", json={"enabled": False}).status_code == 200
    postgres_server.stop()
    try:
        for server in (two, one):
            assert get(server, kept).status_code == 302
            assert {get(server, erased).status_code, get(server, off).status_code} == {503}, (
                "only the database contains the erasure and the disabled link"
            )
    finally:
        postgres_server.start()
    wait_until(
        lambda: {get(two, erased).status_code, get(two, off).status_code} == {410}, "the links do not return 410 after the outage"
    )


# The tests below cause faults of the file of a SQLite database.


@pytest.fixture
def lone_server(tmp_path: Path) -> Iterator[Server]:
    yield from serving(tmp_path, HIT_DEADLINE="0.5", BASE_URL="http://go.example")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system for the data of the server. A test that uses this fixture must name it before `lone_server`."""
    place = tmp_path / "data"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def counts(server: Server) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(f"file:{server.folder / 'data' / 'shortener.db'}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return dict(connection.execute("SELECT l.code, count(*) FROM hits h JOIN links l ON l.id = h.link_id GROUP BY l.code"))


@contextlib.contextmanager
def takes_no_byte(server: Server) -> Iterator[None]:
    """Limit the size of the process's files to 1 byte, so that the process cannot write data to any file."""
    assert server.process is not None
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def disk_full(server: Server) -> Iterator[None]:
    """Fill the file system of the server with another file."""
    filler = server.folder / "data" / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.parametrize("fault", [locked, takes_no_byte])
def test_a_locked_or_unwritable_database_file_delays_redirects_only_until_the_hit_deadline(
    lone_server: Server, fault: Callable[[Server], AbstractContextManager[None]]
) -> None:
    people_go_on(lone_server, fault)


def test_a_full_disk_delays_redirects_only_until_the_hit_deadline(small_disk: Path, lone_server: Server) -> None:
    people_go_on(lone_server, disk_full)


def people_go_on(server: Server, fault: Callable[[Server], AbstractContextManager[None]]) -> None:
    with server.api() as client:
        batch = {"to": [f"+1408555{number:04}" for number in range(50)], "body": '#track("https://x.example/")'}
        codes = [message["links"][0]["code"] for message in client.post("/api/v1/rewrite", json=batch).json()["messages"]]
    load = Load([server.base], codes)
    usual: list[float] = []  # contains one item: the duration of the longest click before the fault

    def refused() -> bool:
        """Return whether the server refuses a rewrite. On a full disk, some rewrites still succeed, because the files of the
        database contain free pages."""
        answer = try_rewrite(server)
        if answer.status_code == 200:
            return False
        assert (answer.status_code, answer.json()["error_code"]) == (503, "UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) > 0
        return True

    async def story() -> None:
        async with load.running(people=4, pause=0.02):
            await load.go_on(50)
            usual.append(load.answers.percentile(1))
            with fault(server):
                await asyncio.to_thread(wait_until, refused, "a rewrite still succeeds")
                await asyncio.sleep(OUTAGE)  # let the fault last for OUTAGE seconds
                assert await asyncio.to_thread(refused), "rewrites are still refused after the outage time"
                assert await asyncio.to_thread(metric, server, "shortener_hits_unrecorded") > 0
                assert await asyncio.to_thread(metric, server, "shortener_late_responses_total") > 0
            await asyncio.to_thread(wait_until, lambda: not refused(), "rewrites do not succeed again")
            await load.go_on(50)

    asyncio.run(story())
    assert set(load.answers.statuses) == {302}
    assert load.answers.percentile(1) < 2.0 + 2 * usual[0], "no click waits much longer than the deadline"
    wait_until(lambda: metric(server, "shortener_hits_unrecorded") == 0, "hits still wait")
    assert metric(server, "shortener_hits_dropped_total") == 0
    assert counts(server) == load.answers.redirected, "each click is stored once"
    assert server.stop() == 0


def test_a_request_that_arrived_while_the_server_was_suspended_gets_a_response(lone_server: Server) -> None:
    """A virtual machine is suspended for a snapshot or a migration, for example. When it continues, each connection seems to have
    been idle for too long, although its client has sent a request."""
    assert lone_server.process is not None
    with lone_server.api() as client:
        batch = {"to": ["+14085550199"], "body": '#track("https://x.example/")'}
        code = client.post("/api/v1/rewrite", json=batch).json()["messages"][0]["links"][0]["code"]
    request = f"GET /{code} HTTP/1.1\r\nHost: go.example\r\nUser-Agent: {PHONE}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", lone_server.port), PATIENCE) as connection:
        connection.sendall(request)
        assert connection.recv(2**16).startswith(b"HTTP/1.1 302 ")
        lone_server.process.send_signal(signal.SIGSTOP)
        connection.sendall(request)
        time.sleep(KEEP_ALIVE_SECONDS + 1)  # the suspension is longer than the time for which a connection may be idle
        lone_server.process.send_signal(signal.SIGCONT)
        assert connection.recv(2**16).startswith(b"HTTP/1.1 302 ")
