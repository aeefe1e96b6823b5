"""Benchmarks of deliveries to trackers: python -m benchmarks.deliveries speed | isolation | backlog

speed      The service fans out stored events, claims, renders and signs the deliveries, POSTs them to a receiver in another
           process and records the outcomes. Each step is durable, on SQLite with synchronous=FULL. The same run measures how many
           requests httpx sends to the same receiver with 64 requests in flight, without storing anything.
isolation  A real server with 50 trackers gets clicks at a fixed rate. Measures the time from an event to its arrival at a tracker,
           alternately without and with a tracker that never responds.
backlog    A real server gets clicks at a fixed rate, first without deliveries and then while 100,000 deliveries become due at once.
           Measures the latency of redirects and the memory of the server.

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

from benchmarks import traffic
from benchmarks.rig import PHONE, free_port, wait_for
from shortener.accounts.administration import create_application
from shortener.container import Service, open_service
from shortener.delivery.trackers import NewTracker
from shortener.model import HitFlag, LinkFlag, State, Topic, Verdict
from shortener.outbox import events
from shortener.outbox.events import Event
from shortener.settings import load
from shortener.storage import schema

MIN_PER_SECOND = 3000.0
MIN_RATIO_TO_HTTPX = 8.0
MAX_ISOLATION_RATIO = 1.1  # p95 time from an event to its arrival, with a hanging tracker divided by without one
MAX_MEGABYTES = 250.0
MAX_P99_RATIO = 2.0  # p99 latency of redirects, during deliveries divided by without deliveries

HTTPX_IN_FLIGHT, HTTPX_REQUESTS = 64, 2000
BATCH_ROWS = 5000  # rows per transaction while the benchmark fills the database


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    speed = modes.add_parser("speed")
    speed.add_argument("--events", type=int, default=20_000)
    speed.add_argument("--trackers", type=int, default=4, help="number of trackers that share the events")
    speed.add_argument("--concurrency", type=int, default=64, help="requests in flight to each tracker")
    speed.set_defaults(run=measure_speed)
    isolation = modes.add_parser("isolation")
    isolation.add_argument("--seconds", type=float, default=2.0, help="duration of each measurement in seconds")
    isolation.add_argument(
        "--rounds", type=int, default=20, help="number of measurements with the hanging trackers, and again without them"
    )
    isolation.add_argument("--hanging", type=int, default=1, help="number of trackers that never respond")
    isolation.add_argument(
        "--concurrency", type=int, help="concurrency of the hanging trackers (default: the default of the settings)"
    )
    isolation.set_defaults(run=measure_isolation)
    backlog = modes.add_parser("backlog")
    backlog.add_argument("--deliveries", type=int, default=100_000)
    backlog.add_argument("--rate", type=int, default=200, help="clicks per second")
    backlog.add_argument("--seconds", type=float, default=15.0)
    backlog.set_defaults(run=measure_backlog)
    options = parser.parse_args()
    with receiver() as sink:
        met: bool = options.run(options, sink)
    return 0 if met else 1


# Functions that measure the rate of deliveries.


def measure_speed(options: argparse.Namespace, sink: Sink) -> bool:
    """Measure and print the rates of deliveries. Return whether the targets are met."""
    rate = uvloop.run(deliver(sink.port, options.events, options.trackers, options.concurrency))
    received = sink.count()
    httpx_rate = uvloop.run(post_with_httpx(sink.port))
    print(f"deliveries                  {rate:8.0f} /s   (at least {MIN_PER_SECOND:.0f})")
    print(f"httpx {httpx.__version__}, {HTTPX_IN_FLIGHT} in flight     {httpx_rate:8.0f} /s")
    print(f"ratio                       {rate / httpx_rate:8.1f}      (at least {MIN_RATIO_TO_HTTPX:.0f})")
    if received != options.events:
        print(f"the receiver got {received} requests instead of {options.events}")
        return False
    return rate >= MIN_PER_SECOND and rate >= MIN_RATIO_TO_HTTPX * httpx_rate


async def deliver(port: int, count: int, trackers: int, concurrency: int) -> float:
    """Deliver `count` stored events to `trackers` trackers on this port. Return the deliveries per second."""
    with tempfile.TemporaryDirectory() as folder:
        service = await open_service(load({}, data_dir=Path(folder), allow_private_targets=True))
        try:
            for application in await applications(service, trackers):
                url = f"http://127.0.0.1:{port}/{application}?message={{message_id}}&click={{click_id}}"
                await add_tracker(service, application, url, concurrency=concurrency)
            await fill(service, count, trackers)
            start = time.perf_counter()
            service.start(web=False)
            while service.dispatcher.totals.delivered < count:
                await asyncio.sleep(0.005)
            return count / (time.perf_counter() - start)
        finally:
            await service.close()


async def post_with_httpx(port: int) -> float:
    """Return the requests per second that httpx sends to this port."""
    body = b"x" * 900
    limits = httpx.Limits(max_connections=HTTPX_IN_FLIGHT, max_keepalive_connections=HTTPX_IN_FLIGHT)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:

        async def work(share: int) -> None:
            for _ in range(share):
                (await client.post(f"http://127.0.0.1:{port}/", content=body)).raise_for_status()

        share = HTTPX_REQUESTS // HTTPX_IN_FLIGHT
        start = time.perf_counter()
        await asyncio.gather(*(work(share) for _ in range(HTTPX_IN_FLIGHT)))
        return share * HTTPX_IN_FLIGHT / (time.perf_counter() - start)


# Functions that measure whether a hanging tracker delays others.


def measure_isolation(options: argparse.Namespace, sink: Sink) -> bool:
    return uvloop.run(isolate(options, sink))


async def isolate(options: argparse.Namespace, sink: Sink) -> bool:
    """Measure and print the times from an event to its arrival. Return whether the target is met."""
    healthy, clicks_a_second = 50, 10
    with tempfile.TemporaryDirectory() as folder:
        service = await open_service(load({}, data_dir=Path(folder), allow_private_targets=True))
        for number in range(healthy):
            await add_tracker(service, 1, f"http://127.0.0.1:{sink.port}/{number}?t={{timestamp}}")
        hanging = [
            await add_tracker(
                service, 1, f"http://127.0.0.1:{sink.port}/hang", enabled=False, concurrency=options.concurrency, timeout=60
            )
            for _ in range(options.hanging)
        ]
        codes = await unclicked(service, int(options.seconds * clicks_a_second * (2 * options.rounds + 1)), application=1)
        first = service.first_credentials
        await service.close()
        assert first is not None
        # Short rounds with and without the hanging trackers alternate, so that variations of the machine affect both.
        milliseconds: dict[bool, list[float]] = {False: [], True: []}
        with server(Path(folder)) as (port, _):
            await click(port, codes, clicks_a_second, options.seconds / 2)  # warm-up clicks, which are not measured
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                client.headers["X-API-Key"] = first.api_key
                for round_ in range(2 * options.rounds):
                    with_hanging = round_ % 2 == 1
                    for tracker in hanging:
                        response = await client.patch(f"/api/v1/trackers/{tracker}", json={"enabled": with_hanging})
                        response.raise_for_status()
                    sink.latencies()
                    await click(port, codes, clicks_a_second, options.seconds)
                    milliseconds[with_hanging] += sink.latencies()
    without, with_hanging_tracker = (quantile(milliseconds[kind], 0.95) for kind in (False, True))
    print(f"{healthy} trackers, p95 from event to arrival           {without:7.1f} ms")
    print(f"the same with {options.hanging} that never respond        {with_hanging_tracker:7.1f} ms")
    print(f"ratio                                       {with_hanging_tracker / without:7.2f}      (at most {MAX_ISOLATION_RATIO})")
    return with_hanging_tracker <= without * MAX_ISOLATION_RATIO


# Functions that measure redirects during many deliveries.


def measure_backlog(options: argparse.Namespace, sink: Sink) -> bool:
    return uvloop.run(clear(options, sink))


async def clear(options: argparse.Namespace, sink: Sink) -> bool:
    """Print the latencies of redirects and the memory of the server during many deliveries. Return whether the targets are met."""
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
            await click(port, codes, options.rate, 2)  # warm-up clicks, which are not measured
            idle = await click(port, codes, options.rate, options.seconds)
            clicking = asyncio.create_task(click(port, codes, options.rate, options.seconds))
            await asyncio.sleep(0.2)  # some clicks precede the deliveries
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                headers = {"X-API-Key": first.api_key}
                (await client.patch(f"/api/v1/trackers/{tracker}", json={"enabled": True}, headers=headers)).raise_for_status()
            busy = await clicking
            delivered = sink.count()
            megabytes = peak_megabytes(pid)
    before, during = quantile(idle, 0.99), quantile(busy, 0.99)
    print(f"without deliveries      p50 {quantile(idle, 0.5):6.1f} ms   p99 {before:6.1f} ms   ({options.rate} clicks a second)")
    print(f"with deliveries         p50 {quantile(busy, 0.5):6.1f} ms   p99 {during:6.1f} ms   ({delivered} delivered meanwhile)")
    print(f"ratio of p99            {during / before:6.2f}               (at most {MAX_P99_RATIO})")
    print(f"memory of the server    {megabytes:6.0f} MB            (at most {MAX_MEGABYTES:.0f})")
    return during <= before * MAX_P99_RATIO and megabytes <= MAX_MEGABYTES


def peak_megabytes(pid: int) -> float:
    """Return the largest resident memory that the process had, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


# Functions that prepare the measurements.


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which the share `part` of the values lies."""
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


async def applications(service: Service, count: int) -> list[int]:
    """Return the ids of `count` applications: the default one and new ones."""
    found = [1]
    for number in range(1, count):
        created = await service.database.write(create_application, f"application {number}", service.clock())
        found.append(created.application_id)
    return found


async def add_tracker(service: Service, application: int, url: str, **options: Any) -> int:
    """Create a tracker of state events. Return its id."""
    new = NewTracker(url=url, events=["state"], format="scg", **options)
    return (await service.trackers.create(application, new)).tracker.id


async def fill(service: Service, count: int, applications: int) -> None:
    """Insert `count` messages with first clicks and events, in the form in which the service stores them."""
    for start in range(0, count, BATCH_ROWS):
        await service.database.write(_fill, service, start, min(BATCH_ROWS, count - start), applications)


async def unclicked(service: Service, count: int, *, application: int) -> Iterator[str]:
    """Insert links that nobody has clicked. Return their codes."""
    await service.database.write(_unclicked, service, count, application)
    return (f"fresh{number}" for number in range(count))


def _unclicked(connection: Connection, service: Service, count: int, application: int) -> None:
    rows = [_message(service, f"fresh{number}", application, State.SENT) for number in range(count)]
    connection.execute(insert(schema.messages), [message for message, _ in rows])
    connection.execute(insert(schema.links), [link for _, link in rows])


def _message(service: Service, code: str, application: int, state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rows of a message and of its link."""
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
    """Start `shortener serve` on an existing database. Yield its port and its process id."""
    port = free_port()
    environment = {
        "PATH": "/usr/bin:/bin",
        "SHORTENER_DATA_DIR": str(folder),
        "SHORTENER_ALLOW_PRIVATE_TARGETS": "true",
        "SHORTENER_BASE_URL": f"http://localhost:{port}",
        "SHORTENER_TRUSTED_PROXIES": traffic.TRUSTED_PROXIES,
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
    """Click on a new link every 1/rate seconds, without waiting for responses. Return the latencies in milliseconds.

    A latency includes the delay between the time when the click was due and the time when it was sent."""
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    opened = []
    latencies: list[float] = []

    async def click_once(number: int, due: float) -> None:
        try:
            reader, writer = idle.get_nowait()
        except asyncio.QueueEmpty:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            opened.append(writer)
        writer.write(traffic.request(number, f"/{next(codes)}", f"127.0.0.1:{port}"))
        head = await reader.readuntil(b"\r\n\r\n")
        latencies.append((time.perf_counter() - due) * 1000)  # uvloop's clock has whole milliseconds only
        if not head.startswith(b"HTTP/1.1 302"):
            raise RuntimeError(head.decode())
        idle.put_nowait((reader, writer))

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(due - time.perf_counter())
            group.create_task(click_once(number, due))
    for writer in opened:
        writer.close()
    return latencies


# The receiver of deliveries is a minimal HTTP server in another process.


@dataclass
class Sink:
    """The receiver process: its port and the pipe to it."""

    port: int
    _pipe: Pipe

    def count(self) -> int:
        """Return the number of requests received."""
        self._pipe.send("count")
        requests: int = self._pipe.recv()
        return requests

    def latencies(self) -> list[float]:
        """Return the milliseconds from the time in the URL parameter `t` to the arrival of each request since the previous call."""
        self._pipe.send("latencies")
        milliseconds: list[float] = self._pipe.recv()
        return milliseconds


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
        server = await loop.create_server(_Protocol, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        stop = asyncio.Event()

        def handle_command() -> None:
            match pipe.recv():
                case "count":
                    pipe.send(_Protocol.count)
                case "latencies":
                    pipe.send(_Protocol.latencies)
                    _Protocol.latencies.clear()
                case _:
                    stop.set()

        loop.add_reader(pipe.fileno(), handle_command)
        await stop.wait()

    uvloop.run(serve())


@contextmanager
def receiver() -> Iterator[Sink]:
    """Start the receiver process."""
    context = multiprocessing.get_context("spawn")
    pipe, pipe_of_process = context.Pipe()
    process = context.Process(target=_receive, args=(pipe_of_process,), daemon=True)
    process.start()
    try:
        yield Sink(pipe.recv(), pipe)
    finally:
        pipe.send("stop")
        process.join(5)


if __name__ == "__main__":
    sys.exit(main())
