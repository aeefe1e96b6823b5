"""Deliveries: python -m benchmarks.deliveries speed | isolation | backlog

speed      Events that are in the log already are fanned out, claimed, rendered, signed, POSTed to a receiver in a process of its
           own, and recorded, everything durable, on SQLite with synchronous=FULL. Beside it, in the same run and to the same
           receiver, what httpx 0.28 sends from its own pool with 64 requests in flight, with nothing stored.
isolation  A real server with 50 trackers, clicked at a fixed rate: the time from an event to its arrival, without and with one
           more tracker that never answers, in turns.
backlog    A real server, clicked at a fixed rate, first at rest and then while 100,000 deliveries become due at once: the time
           that a redirect takes, and the memory of the server.

Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, ClassVar

import httpx
import uvloop
from sqlalchemy import Connection, insert

from benchmarks.rig import PHONE, free_port, wait_for
from shortener.accounts.administration import create_application
from shortener.container import Service, open_service
from shortener.delivery.trackers import NewTracker
from shortener.model import HitFlag, LinkFlag, State, Topic, Verdict
from shortener.outbox import events
from shortener.outbox.events import Event
from shortener.settings import load
from shortener.storage import schema

LEAST_PER_SECOND = 3000.0
LEAST_TIMES_HTTPX = 8.0
MOST_SLOWER = 1.1  # p95 from event to arrival, with a hanging tracker beside it
MOST_MEGABYTES = 250.0
MOST_TIMES_P99 = 2.0

HTTPX_IN_FLIGHT, HTTPX_REQUESTS = 64, 2000
PIECE = 5000  # rows of one transaction of the preparation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    speed = modes.add_parser("speed")
    speed.add_argument("--events", type=int, default=20_000)
    speed.add_argument("--trackers", type=int, default=4, help="that the events are spread over")
    speed.add_argument("--concurrency", type=int, default=64, help="of each tracker")
    speed.set_defaults(run=measure_speed)
    isolation = modes.add_parser("isolation")
    isolation.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    isolation.add_argument("--turns", type=int, default=20, help="without, and as many with the hanging tracker")
    isolation.set_defaults(run=measure_isolation)
    backlog = modes.add_parser("backlog")
    backlog.add_argument("--deliveries", type=int, default=100_000)
    backlog.add_argument("--rate", type=int, default=200, help="clicks a second")
    backlog.add_argument("--seconds", type=float, default=15.0)
    backlog.set_defaults(run=measure_backlog)
    options = parser.parse_args()
    with receiver() as sink:
        met: bool = options.run(options, sink)
    return 0 if met else 1


# Speed.


def measure_speed(options: argparse.Namespace, sink: Sink) -> bool:
    rate = uvloop.run(deliver(sink.port, options.events, options.trackers, options.concurrency))
    received = sink.count()
    httpx_rate = uvloop.run(post_with_httpx(sink.port))
    print(f"deliveries                  {rate:8.0f} /s   (at least {LEAST_PER_SECOND:.0f})")
    print(f"httpx {httpx.__version__}, {HTTPX_IN_FLIGHT} in flight     {httpx_rate:8.0f} /s")
    print(f"ratio                       {rate / httpx_rate:8.1f}      (at least {LEAST_TIMES_HTTPX:.0f})")
    if received != options.events:
        print(f"the receiver got {received} requests, {options.events} were due")
        return False
    return rate >= LEAST_PER_SECOND and rate >= LEAST_TIMES_HTTPX * httpx_rate


async def deliver(port: int, count: int, trackers: int, concurrency: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        service = await open_service(load({}, data_dir=Path(folder), allow_private_targets=True))
        try:
            for application in await applications(service, trackers):
                url = f"http://127.0.0.1:{port}/{application}?message={{message_id}}&click={{click_id}}"
                await add_tracker(service, application, url, concurrency=concurrency)
            await fill(service, count, trackers)
            began = time.perf_counter()
            service.start(web=False)
            while service.dispatcher.totals.delivered < count:
                await asyncio.sleep(0.005)  # and look again
            return count / (time.perf_counter() - began)
        finally:
            await service.close()


async def post_with_httpx(port: int) -> float:
    body = b"x" * 900
    limits = httpx.Limits(max_connections=HTTPX_IN_FLIGHT, max_keepalive_connections=HTTPX_IN_FLIGHT)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:

        async def work(share: int) -> None:
            for _ in range(share):
                (await client.post(f"http://127.0.0.1:{port}/", content=body)).raise_for_status()

        share = HTTPX_REQUESTS // HTTPX_IN_FLIGHT
        began = time.perf_counter()
        await asyncio.gather(*(work(share) for _ in range(HTTPX_IN_FLIGHT)))
        return share * HTTPX_IN_FLIGHT / (time.perf_counter() - began)


# Isolation.


def measure_isolation(options: argparse.Namespace, sink: Sink) -> bool:
    return uvloop.run(isolate(options, sink))


async def isolate(options: argparse.Namespace, sink: Sink) -> bool:
    healthy, clicks_a_second = 50, 10
    with tempfile.TemporaryDirectory() as folder:
        service = await open_service(load({}, data_dir=Path(folder), allow_private_targets=True))
        for number in range(healthy):
            await add_tracker(service, 1, f"http://127.0.0.1:{sink.port}/{number}?t={{timestamp}}")
        hanging = await add_tracker(service, 1, f"http://127.0.0.1:{sink.port}/hang", enabled=False)
        codes = await unclicked(service, int(options.seconds * clicks_a_second * (2 * options.turns + 1)), application=1)
        first = service.first_credentials
        await service.close()
        assert first is not None
        # Short turns, all of a kind together: the machine's own moods fall on both alike.
        took: dict[bool, list[float]] = {False: [], True: []}
        with server(Path(folder)) as (port, _):
            await click(port, codes, clicks_a_second, options.seconds / 2)  # warm
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                client.headers["X-API-Key"] = first.api_key
                for turn in range(2 * options.turns):
                    with_hanging = turn % 2 == 1
                    answer = await client.patch(f"/api/v1/trackers/{hanging}", json={"enabled": with_hanging})
                    answer.raise_for_status()
                    sink.latencies()
                    await click(port, codes, clicks_a_second, options.seconds)
                    took[with_hanging] += sink.latencies()
    alone, beside = (quantile(took[which], 0.95) for which in (False, True))
    print(f"{healthy} trackers, p95 from event to arrival           {alone:7.1f} ms")
    print(f"the same beside one that never answers      {beside:7.1f} ms")
    print(f"ratio                                       {beside / alone:7.2f}      (at most {MOST_SLOWER})")
    return beside <= alone * MOST_SLOWER


# Backlog.


def measure_backlog(options: argparse.Namespace, sink: Sink) -> bool:
    return uvloop.run(clear(options, sink))


async def clear(options: argparse.Namespace, sink: Sink) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        service = await open_service(load({}, data_dir=Path(folder), allow_private_targets=True))
        one, other = await applications(service, 2)
        tracker = await add_tracker(service, one, f"http://127.0.0.1:{sink.port}/", enabled=False, concurrency=64)
        await fill(service, options.deliveries, 1)
        await service.fanout.flush()
        codes = await unclicked(service, int(2 * options.rate * (options.seconds + 2)), application=other)
        first = service.first_credentials
        await service.close()
        assert first is not None
        with server(Path(folder), delivery_recovery_rate="100000") as (port, pid):
            await click(port, codes, options.rate, 2)  # warm
            idle = await click(port, codes, options.rate, options.seconds)
            clicking = asyncio.create_task(click(port, codes, options.rate, options.seconds))
            await asyncio.sleep(0.2)  # until the clicks have begun
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                headers = {"X-API-Key": first.api_key}
                (await client.patch(f"/api/v1/trackers/{tracker}", json={"enabled": True}, headers=headers)).raise_for_status()
            busy = await clicking
            delivered = sink.count()
            megabytes = peak_megabytes(pid)
    before, during = quantile(idle, 0.99), quantile(busy, 0.99)
    print(f"redirect at rest        p50 {quantile(idle, 0.5):6.1f} ms   p99 {before:6.1f} ms   ({options.rate} clicks a second)")
    print(f"with deliveries due     p50 {quantile(busy, 0.5):6.1f} ms   p99 {during:6.1f} ms   ({delivered} delivered meanwhile)")
    print(f"ratio of p99            {during / before:6.2f}               (at most {MOST_TIMES_P99})")
    print(f"memory of the server    {megabytes:6.0f} MB            (at most {MOST_MEGABYTES:.0f})")
    return during <= before * MOST_TIMES_P99 and megabytes <= MOST_MEGABYTES


def peak_megabytes(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


# What they stand on.


def quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


async def applications(service: Service, count: int) -> list[int]:
    """The default application, and others."""
    found = [1]
    for number in range(1, count):
        made = await service.database.write(create_application, f"application {number}", service.clock())
        found.append(made.application_id)
    return found


async def add_tracker(service: Service, application: int, url: str, **more: Any) -> int:
    given = NewTracker(url=url, events=["state"], format="scg", **more)
    return (await service.trackers.create(application, given)).tracker.id


async def fill(service: Service, count: int, applications: int) -> None:
    """First clicks of messages, as the click path leaves them."""
    for start in range(0, count, PIECE):
        await service.database.write(_fill, service, start, min(PIECE, count - start), applications)


async def unclicked(service: Service, count: int, *, application: int) -> Iterator[str]:
    """Links that nobody clicked; their codes."""
    await service.database.write(_unclicked, service, count, application)
    return (f"fresh{number}" for number in range(count))


def _unclicked(connection: Connection, service: Service, count: int, application: int) -> None:
    rows = [_message(service, f"fresh{number}", application, State.SENT) for number in range(count)]
    connection.execute(insert(schema.messages), [message for message, _ in rows])
    connection.execute(insert(schema.links), [link for _, link in rows])


def _message(service: Service, code: str, application: int, state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """A message and its link."""
    ids, now = service.ids, service.clock()
    message = {
        "id": ids(),
        "application_id": application,
        "cohort_id": 1,
        "message_id": code,
        "request_id": "request",
        "content_hash": "",
        "to_address": "+14085550100",
        "state": state.value,
        "created_at": now,
        "encoding": "GSM-7",
        "segments": 1,
    }
    link = {
        "id": ids(),
        "code": code,
        "message_id": message["id"],
        "application_id": application,
        "cohort_id": 1,
        "domain_id": 0,
        "position": 0,
        "flags": LinkFlag.NONE.value,
        "url": "https://shop.example/a?b=1",
        "expires_at": now.replace(year=now.year + 1),
    }
    return message, link


def _fill(connection: Connection, service: Service, start: int, count: int, applications: int) -> None:
    ids, now = service.ids, service.clock()
    messages, links, clicks, hits = [], [], [], []
    rows: list[Event] = []
    for number in range(start, start + count):
        application = number % applications + 1
        message, link = _message(service, f"code{number}", application, State.DELIVERED)
        hit = {
            "id": ids(),
            "link_id": link["id"],
            "at": now,
            "verdict": Verdict.HUMAN.value,
            "rule": "person",
            "flags": (HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE).value,
            "address": "192.0.2.0",
            "user_agent": PHONE,
        }
        messages.append(message)
        clicks.append({"id": message["id"], "at": now, "hit_id": hit["id"], "links": 1})
        links.append(link)
        hits.append(hit)
        topics = Topic.STATE | Topic.CLICK
        rows.append(Event(hit["id"], application, topics, now, message["id"], link["id"], hit["id"]))
    written = ((schema.messages, messages), (schema.links, links), (schema.first_clicks, clicks), (schema.hits, hits))
    for table, values in written:
        connection.execute(insert(table), values)
    events.append(connection, rows)


@contextmanager
def server(folder: Path, **settings: str) -> Iterator[tuple[int, int]]:
    """A real `shortener serve` on a folder that is filled already: its port and its process."""
    port = free_port()
    environment = {
        "PATH": "/usr/bin:/bin",
        "SHORTENER_DATA_DIR": str(folder),
        "SHORTENER_ALLOW_PRIVATE_TARGETS": "true",
        "SHORTENER_LOG_LEVEL": "error",
        **{f"SHORTENER_{name.upper()}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "shortener", "serve", "--port", str(port), "--json"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz")
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def click(port: int, codes: Iterator[str], rate: int, seconds: float) -> list[float]:
    """Click a fresh link every 1/rate seconds, whatever the answers do; milliseconds from when each click was due."""
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    opened = []
    taken: list[float] = []

    async def one(due: float, code: str) -> None:
        try:
            reader, writer = idle.get_nowait()
        except asyncio.QueueEmpty:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            opened.append(writer)
        writer.write(f"GET /{code} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: {PHONE}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        taken.append((time.perf_counter() - due) * 1000)  # the loop's own clock tells whole milliseconds
        if not head.startswith(b"HTTP/1.1 302"):
            raise RuntimeError(head.decode())
        idle.put_nowait((reader, writer))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(due - time.perf_counter())  # they come at a fixed pace
            group.create_task(one(due, next(codes)))
    for writer in opened:
        writer.close()
    return taken


# The receiver: as little as answers a POST, in a process of its own.


@dataclass
class Sink:
    port: int
    _pipe: Pipe

    def count(self) -> int:
        """Requests so far."""
        self._pipe.send("count")
        got: int = self._pipe.recv()
        return got

    def latencies(self) -> list[float]:
        """Milliseconds from `?t=TIME` to the arrival, of the requests since the last call."""
        self._pipe.send("latencies")
        got: list[float] = self._pipe.recv()
        return got


class _Protocol(asyncio.Protocol):
    count = 0
    latencies: ClassVar[list[float]] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower() + b"\r\n"
            at = head.find(b"content-length:")
            length = int(head[at + 15 : head.find(b"\r\n", at)]) if at >= 0 else 0
            if len(self._data) < end + 4 + length:
                return
            target = self._data[: self._data.find(b"\r\n")]
            self._data = self._data[end + 4 + length :]
            if b"/hang" in target:
                continue
            _Protocol.count += 1
            if (at := target.find(b"?t=")) >= 0:
                sent = time.strptime(target[at + 3 : at + 26].decode().replace("%3A", ":")[:19], "%Y-%m-%dT%H:%M:%S")
                seconds = time.mktime(sent) - time.timezone + int(target.split(b".")[1][:3]) / 1000
                _Protocol.latencies.append((time.time() - seconds) * 1000)
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")


def _receive(pipe: Pipe) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(_Protocol, "127.0.0.1", 0, backlog=1024)
        pipe.send(listening.sockets[0].getsockname()[1])
        stop = asyncio.Event()

        def asked() -> None:
            match pipe.recv():
                case "count":
                    pipe.send(_Protocol.count)
                case "latencies":
                    pipe.send(_Protocol.latencies)
                    _Protocol.latencies.clear()
                case _:
                    stop.set()

        loop.add_reader(pipe.fileno(), asked)
        await stop.wait()

    uvloop.run(serve())


@contextmanager
def receiver() -> Iterator[Sink]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_receive, args=(theirs,), daemon=True)
    process.start()
    try:
        yield Sink(ours.recv(), ours)
    finally:
        ours.send("stop")
        process.join(5)


if __name__ == "__main__":
    sys.exit(main())
