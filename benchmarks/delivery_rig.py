"""The parts that benchmarks of deliveries share: stored messages, a server, clicks, and a receiver in another process."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, ClassVar

import uvloop
from sqlalchemy import Connection, insert

from benchmarks import traffic
from benchmarks.rig import PHONE, free_port, wait_for
from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.delivery.trackers import NewTracker
from shortener.model import HitFlag, LinkFlag, State, Topic, Verdict
from shortener.outbox import events
from shortener.outbox.events import Event
from shortener.storage import schema
from tests.factory import AUDIT

BATCH_ROWS = 5000  # rows per transaction while the benchmark fills the database


def quantile(values: Sequence[float], part: float) -> float:
    """Return a quantile of the values. `part` is the fraction of the values below it, for example 0.95."""
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


async def applications(service: Service, count: int) -> list[int]:
    """Return the ids of `count` applications: the default application and new applications."""
    found = [1]
    for number in range(1, count):
        created = await service.database.write(create_application, f"application {number}", service.clock())
        found.append(created.application_id)
    return found


async def add_tracker(service: Service, application: int, url: str, **options: Any) -> int:
    """Create a tracker that receives state events. Return its id."""
    new = NewTracker(url=url, events=["state"], format="scg", **options)
    return (await service.trackers.create(AUDIT, application, new)).tracker.id


async def fill(service: Service, count: int, applications: Sequence[int], callback_urls: Sequence[str] = ()) -> None:
    """Insert `count` messages with first clicks and events, like those that the service stores.

    The messages are distributed evenly among the applications. If there are `callback_urls`, the messages get these URLs in
    turn."""
    for start in range(0, count, BATCH_ROWS):
        await service.database.write(_fill, service, start, min(BATCH_ROWS, count - start), applications, callback_urls)


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


def _fill(
    connection: Connection, service: Service, start: int, count: int, applications: Sequence[int], callback_urls: Sequence[str]
) -> None:
    ids, now = service.ids, service.clock()
    messages, links, clicks, hits = [], [], [], []
    rows: list[Event] = []
    for number in range(start, start + count):
        application = applications[number % len(applications)]
        message, link = _message(service, f"code{number}", application, State.DELIVERED)
        message["callback_url"] = callback_urls[number % len(callback_urls)] if callback_urls else None
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
        latencies.append((time.perf_counter() - due) * 1000)  # uvloop's own clock counts only whole milliseconds
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
        """Return the latency of each request that arrived since the previous call of this method, in milliseconds.

        The latency is the time of arrival minus the time in the URL parameter `t`. Requests without `t` are left out."""
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
        server = await loop.create_server(_Protocol, "0.0.0.0", 0, backlog=1024)  # on every address 127.x.y.z
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
