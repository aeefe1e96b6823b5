"""Helpers that start several server processes on the same PostgreSQL and Redis, and send concurrent clicks to them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from tests import fork_server
from tests.acceptance.process import NO_EARLY_RESPONSE, PHONE, Server
from tests.fork_server import AnyProcess
from tests.servers import PATIENCE, free_port

SECRET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEF"


@dataclass
class Nodes:
    """Server processes that share one database. Each process has its own folder, as if it ran on its own machine."""

    folder: Path
    database_url: str
    redis_url: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    servers: list[Server] = field(default_factory=list)
    deliverers: list[AnyProcess] = field(default_factory=list)

    def environment(self, name: str, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
        settings = {
            "DATA_DIR": str(self.folder / name),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "SECRET": SECRET,
            "BASE_URL": "http://go.example",
            "ALLOW_PRIVATE_TARGETS": "true",
            "DELIVERY_SCHEDULE": "0.1,0.1,0.1",
            "HIT_DEADLINE": NO_EARLY_RESPONSE,
            **self.settings,
            **more,
        }
        return kept | {f"SHORTENER_{name}": value for name, value in settings.items()}

    def prepare(self, *options: str, **more: str) -> Server:
        name = f"node{len(self.servers)}"
        (self.folder / name).mkdir()
        server = Server(self.folder / name, free_port(), self.environment(name, **more))
        server.options = options
        self.servers.append(server)
        return server

    def serve(self, *options: str, **more: str) -> Server:
        """Start one more `shortener serve` and return it."""
        server = self.prepare(*options, **more)
        server.start()
        server.first = server.first or self.servers[0].first
        return server

    def deliver(self, **environment: str) -> None:
        """Start one more `shortener deliver` and return it. `environment` contains additional environment variables."""
        name = f"deliver{len(self.deliverers)}"
        (self.folder / name).mkdir()
        process = fork_server.start(
            ["deliver"], self.environment(name) | environment, cwd=self.folder / name, stdout=subprocess.PIPE
        )
        self.deliverers.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"Delivering.\n"

    def clock_off_by(self, seconds: int) -> dict[str, str]:
        """Return environment variables that make the clock of a process wrong by `seconds`. They change the results of `utcnow`
        and `time_ns`."""
        folder = self.folder / f"clock{seconds}"
        folder.mkdir()
        code = (
            "import time\nfrom datetime import timedelta\nfrom shortener import model\n"
            f"system, model.SHIFT = time.time_ns, timedelta(seconds={seconds})\n"
            f"time.time_ns = lambda: system() + {seconds} * 10**9\n"
            "model.utcnow.__code__ = (lambda: datetime.now(UTC) + SHIFT).__code__\n"
        )
        return fork_server.executed_first(code, folder)

    def close(self) -> list[int]:
        """Send SIGTERM to all running processes. Return their exit codes."""
        processes = [server.process for server in self.servers if server.process is not None] + self.deliverers
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes = []
        for process in processes:
            try:
                codes.append(process.wait(PATIENCE))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
            if process.stdout is not None:
                process.stdout.close()
        for server in self.servers:
            server.process = None
        self.deliverers.clear()
        return codes

    def rewrite(self, count: int, body: str = 'see #track("https://x.example/")', *, country: int = 1408) -> list[dict[str, Any]]:
        """Rewrite `count` messages with one link each. Return the messages of the response."""
        messages: list[dict[str, Any]] = []
        with self.servers[0].api() as client:
            for start in range(0, count, 500):
                to = [f"+{country}555{number:04}" for number in range(start, min(start + 500, count))]
                answer = client.post("/api/v1/rewrite", json={"to": to, "body": body})
                assert answer.status_code == 200, answer.text
                messages += answer.json()["messages"]
        return messages

    async def query(self, statement: str) -> list[Any]:
        connection = await asyncpg.connect(self.database_url)
        try:
            rows: list[Any] = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()


@dataclass
class Answers:
    """The responses to clicks: the HTTP statuses, the codes that were redirected with 302, and the durations in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    redirected: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    retry_after: set[str | None] = field(default_factory=set)  # the Retry-After headers of responses with 503

    def percentile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


async def click_all(bases: Sequence[str], clicks: Sequence[tuple[int, str]], people: int = 64) -> Answers:
    """Send all clicks with `people` concurrent clients, and return the responses. A click is a pair: the index of the node and
    the code."""
    answers = Answers()
    left = iter(clicks)
    async with crowd(people) as session:

        async def person() -> None:
            for node, code in left:
                await click(session, bases[node], code, answers)

        await asyncio.gather(*(person() for _ in range(people)))
    return answers


async def click_until(
    bases: Sequence[str], codes: Sequence[str], stop: Callable[[], bool], answers: Answers, *, people: int = 16, pause: float = 0.0
) -> None:
    """Click on random codes at random nodes until `stop()` returns True."""
    chance = random.Random(7)
    async with crowd(people) as session:

        async def person() -> None:
            while not stop():
                await click(session, chance.choice(bases), chance.choice(codes), answers)
                await asyncio.sleep(pause)  # this client pauses before its next click

        await asyncio.gather(*(person() for _ in range(people)))


def crowd(people: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=people),
        headers={"User-Agent": PHONE, "Host": "go.example"},
        timeout=aiohttp.ClientTimeout(total=PATIENCE),
        trust_env=False,
    )


async def click(session: aiohttp.ClientSession, base: str, code: str, answers: Answers) -> None:
    began = time.monotonic()
    async with session.get(f"{base}/{code}", allow_redirects=False) as answer:
        await answer.read()
    answers.seconds.append(time.monotonic() - began)
    answers.statuses[answer.status] += 1
    if answer.status == 302:
        answers.redirected[code] += 1
    else:
        answers.retry_after.add(answer.headers.get("Retry-After"))


def metric(server: Server, name: str) -> float:
    with server.client() as client:
        line = next(line for line in client.get("/metrics").text.splitlines() if line.startswith(name + " "))
    return float(line.split()[1])


def wait_until(true: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)  # wait a moment, then check the condition again
