"""The part `mixed` of `bench.py`: clicks at a fixed rate on one server, first alone and then during all other work at once.

The other work is bulk rewrites, exports of all messages, pages of the portal, a purge and many deliveries that become due at the
same time. A separate process causes the other work, so that it does not delay the client that clicks.

The rate of the clicks is a third of the maximum rate of the server, at most MAX_OFFERED a second. At its maximum rate, a server
has no free processor time, so it could not keep this rate during other work. Each click is due at a fixed time. Its latency is
counted from that time, even if the client sends it later, so if the server stops for a moment, all clicks of that moment are
late. In practice, clicks arrive at such a rate only after a campaign was sent. Therefore the run first sends a campaign, and then
clicks on its links in random order.

The process that causes the other work, the receiver and the client that clicks use the same processor cores as the server.
Therefore the run clicks in turns on the server and on the bare ASGI application, which only responds. The p99 of this application
is the lowest that any server could reach while these processes run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import httpx
import uvloop

from benchmarks import delivery_rig, filling, growth, operations, pauses, rig, traffic
from benchmarks.rig import Figure
from shortener.container import open_service
from shortener.delivery.trackers import TrackerChanges
from shortener.settings import Settings
from tests.factory import AUDIT

MAX_P99_MS, MIN_RATE = 15.0, 0.8
MAX_OFFERED = 1000  # clicks a second; the client needs about 0.15 ms of processor time for each
DAYS = 112  # the age of the oldest message
SLICES = 2  # the number of turns of clicks on the bare application and on the server
WARM_UP_SECONDS = 2.0
WARM_UP_LINKS = 20_000
PAGES = ("/portal/1/", "/portal/1/messages", "/portal/1/clicks?metric=clicks", "/portal/1/campaigns", "/portal/1/conversions")
PAGE_PAUSE_SECONDS = 1.0
PASSWORD = "a long password of a benchmark"
_TEXT = 'Hello Kola, please visit us at #track("https://shop.example/a?b=1") for new information'


def measure(links: int, due: int, seconds: float, folder: Path | None) -> list[Figure]:
    """Return the p99 and the rate of clicks during all other work. `links` is the number of messages, and `due` the number of
    deliveries."""
    with delivery_rig.receiver() as sink, operations.filled(links, folder, days=DAYS) as (url, place, _):
        key = json.loads(operations.command(place, "keys", "create", "1", "--permission", "all", "--json"))["api_key"]
        tracker = asyncio.run(_make_due(url, place, sink.port, due))
        settings = {"data_dir": str(place), "database_url": url, "secret": filling.SECRET}
        with rig.server(**settings, **_kept_for(3650)) as server:
            codes = _send_campaign(server.base, key, WARM_UP_LINKS + int(MAX_OFFERED * (2 * seconds + WARM_UP_SECONDS)))
            random.Random(3).shuffle(codes)
            unused = iter(codes)
            warm_up = traffic.script(place, "warm-up", [f"/{next(unused)}" for _ in range(WARM_UP_LINKS)])
            rig.wrk(server.base, warm_up, seconds=WARM_UP_SECONDS)
            capacity = rig.wrk(server.base, warm_up, seconds=seconds / 2).per_second
            rate = min(int(capacity / 3), MAX_OFFERED)
            with pauses.watch(place) as pauses_alone:
                alone, _ = _click(server.base, unused, rate, seconds)
        invited = json.loads(operations.command(place, "operators", "invite", "Ada", "--role", "admin", "--json"))
        with rig.server(
            **settings, **_kept_for(filling.RETENTION_DAYS), purge_interval="1", delivery_recovery_rate="100000"
        ) as server:
            _click(server.base, unused, rate // 4, WARM_UP_SECONDS)
            growth.wait_for_the_first_purge(server)
            with rig.baseline_server() as (bare, _), _background(server.base, key, invited["url"]) as stop:
                before = growth.purged(server)
                with httpx.Client(base_url=server.base, headers={"X-API-Key": key}, timeout=60, trust_env=False) as client:
                    client.patch(f"/api/v1/trackers/{tracker}", json={"enabled": True}).raise_for_status()
                with pauses.watch(place) as pauses_beside:
                    beside, floor, elapsed = _click_in_turns(server.base, bare, unused, rate, seconds)
                purged, delivered, done = growth.purged(server) - before, sink.count(), stop()
    if not (purged and delivered and all(done.values())):
        sys.exit(f"the run is void: {purged:.0f} messages purged, {delivered} delivered, {done}")
    p99, ratio = delivery_rig.quantile(beside, 0.99), seconds / elapsed
    note = f"{rate:,} clicks/s, alone p99 {delivery_rig.quantile(alone, 0.99):.1f} ms ({pauses_alone}), bare application meanwhile "
    note += f"p99 {delivery_rig.quantile(floor, 0.99):.1f} ms ({pauses_beside}); meanwhile {purged:,.0f} messages purged, "
    note += f"{delivered:,} of {due:,} delivered, " + ", ".join(f"{count:,} {what}" for what, count in done.items())
    return [
        Figure("clicks during all other work, p99", p99, "ms", goal=rig.duration(MAX_P99_MS), note=note),
        Figure(
            "clicks during all other work, rate",
            ratio,
            "x",
            goal=rig.minimum(MIN_RATE),
            note="completed clicks per second, divided by the offered rate",
        ),
    ]


def _send_campaign(base: str, key: str, count: int) -> list[str]:
    """Rewrite the messages of a campaign, 100 in a request. Return the codes of their links."""
    codes: list[str] = []
    with httpx.Client(base_url=base, headers={"X-API-Key": key}, timeout=60, trust_env=False) as client:
        while len(codes) < count:
            body = {"to": [rig.phone(len(codes) + number) for number in range(100)], "body": _TEXT, "campaign": "just sent"}
            answer = client.post("/api/v1/rewrite", json=body).raise_for_status().json()
            codes += [link["code"] for message in answer["messages"] for link in message["links"]]
    return codes


def _kept_for(days: int) -> dict[str, str]:
    return {f"{what}_retention_days": str(days) for what in ("message", "hit", "event")}


def _click_in_turns(
    base: str, bare: str, codes: Iterator[str], rate: int, seconds: float
) -> tuple[list[float], list[float], float]:
    """Click in turns on the bare application and on the server, for `seconds` each. Return the latencies of the server and of the
    bare application in milliseconds, and the seconds that all clicks on the server took."""
    beside: list[float] = []
    floor: list[float] = []
    elapsed = 0.0
    for _ in range(SLICES):
        floor += _click(bare, itertools.cycle(rig.random_paths()), rate, seconds / SLICES)[0]
        # Warm up with a quarter of the rate, because the clicks of people do not begin at the full rate either.
        _click(base, codes, rate // 4, WARM_UP_SECONDS / SLICES)
        latencies, duration = _click(base, codes, rate, seconds / SLICES)
        beside += latencies
        elapsed += duration
    return beside, floor, elapsed


def _click(base: str, codes: Iterator[str], rate: int, seconds: float) -> tuple[list[float], float]:
    """Click at a fixed rate. Return the latencies in milliseconds and the seconds until the last response."""
    port = int(base.rpartition(":")[2])
    start = time.perf_counter()
    latencies = uvloop.run(delivery_rig.click(port, codes, rate, seconds))
    return latencies, max(time.perf_counter() - start, seconds)


async def _make_due(url: str, place: Path, port: int, count: int) -> int:
    """Add a tracker with `count` due deliveries. Disable the tracker, so that the service does not send them yet. Return its
    id."""
    values: Any = {"data_dir": place, "database_url": url, "secret": filling.SECRET, "allow_private_targets": True}
    service = await open_service(Settings(**values))
    try:
        tracker = await delivery_rig.add_tracker(service, 1, f"http://127.0.0.1:{port}/", concurrency=64)
        await delivery_rig.fill(service, count, [1])
        await service.fanout.flush()
        await service.trackers.update(AUDIT, tracker, TrackerChanges(enabled=False))
        return tracker
    finally:
        await service.close(grace=1)


@contextlib.contextmanager
def _background(base: str, key: str, invitation: str) -> Iterator[Callable[[], dict[str, int]]]:
    """Start a process that rewrites, exports and opens pages. Yield a function that ends the process and returns the numbers of
    rewritten messages, exported rows and opened pages."""
    context = multiprocessing.get_context("spawn")
    pipe, pipe_of_process = context.Pipe()
    process = context.Process(target=_work, args=(pipe_of_process, base, key, invitation), daemon=True)
    process.start()
    pipe.recv()  # wait until the process has signed in

    def stop() -> dict[str, int]:
        pipe.send("stop")
        done: dict[str, int] = pipe.recv()
        process.join(60)
        return done

    try:
        yield stop
    finally:
        if process.is_alive():
            process.terminate()
            process.join(10)


def _work(pipe: Pipe, base: str, key: str, invitation: str) -> None:
    done = {"messages rewritten": 0, "rows exported": 0, "pages opened": 0}
    stop = threading.Event()
    operator = _sign_in(base, invitation)

    def client() -> httpx.Client:
        return httpx.Client(base_url=base, headers={"X-API-Key": key}, timeout=60, trust_env=False)

    def rewrite() -> None:
        body = {"to": [rig.phone(number) for number in range(100)], "body": _TEXT}
        with client() as session:
            while not stop.is_set():
                session.post("/api/v1/rewrite", json=body).raise_for_status()
                done["messages rewritten"] += 100

    def export_all() -> None:
        with client() as session:
            while not stop.is_set():
                with session.stream("GET", "/api/v1/sms/messages/unified/export") as response:
                    response.raise_for_status()
                    for chunk in response.iter_raw():
                        done["rows exported"] += chunk.count(b"\n")
                        if stop.is_set():
                            return

    def open_pages() -> None:
        number = 0
        while not stop.wait(PAGE_PAUSE_SECONDS):
            operator.get(PAGES[number % len(PAGES)]).raise_for_status()
            number += 1
            done["pages opened"] = number

    pipe.send("ready")
    threads = [threading.Thread(target=work) for work in (rewrite, export_all, open_pages)]
    for thread in threads:
        thread.start()
    pipe.recv()
    stop.set()
    for thread in threads:
        thread.join(60)
    pipe.send(done)


def _sign_in(base: str, invitation: str) -> httpx.Client:
    """Accept the invitation of an admin. Return a client with the session of this admin."""
    form = {"token": invitation.partition("#")[2], "password": PASSWORD, "again": PASSWORD}
    headers = {"Sec-Fetch-Site": "same-origin"}
    response = httpx.post(f"{base}/portal/welcome", data=form, headers=headers, timeout=60, trust_env=False)
    return httpx.Client(base_url=base, headers=headers, cookies=response.cookies, timeout=60, trust_env=False)
