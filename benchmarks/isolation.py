"""The benchmark of deliveries to trackers that respond, while other receivers never respond: python -m benchmarks.deliveries
isolation

A run consists of short slices, in turns with and without the hanging receivers, so that variations of the machine affect both
kinds. Each slice measures the p95 time from an event to its arrival. The result is the median of these times with hanging
receivers, divided by the median without them.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sqlite3
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import httpx
import uvloop

from benchmarks.delivery_rig import Sink, add_tracker, applications, click, fill, quantile, server, unclicked
from shortener.container import Service, open_service
from shortener.settings_sources import load

# The p95 time from an event to its arrival in slices with hanging receivers, divided by the p95 time in slices without them
MAX_RATIO = 1.1
MIN_HANGING_ATTEMPTS = 100  # Slices with hanging hosts begin when this number of attempts is in flight.


def add_isolation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of each slice in seconds")
    parser.add_argument(
        "--rounds", type=int, default=20, help="number of slices with the hanging receivers, and again without them"
    )
    parser.add_argument("--trackers", type=int, default=50, help="number of healthy trackers")
    parser.add_argument(
        "--rate", type=int, default=10, help="clicks per second, each of which is delivered to all healthy trackers"
    )
    parser.add_argument("--hanging", type=int, default=1, help="number of trackers that never respond")
    parser.add_argument(
        "--concurrency", type=int, help="concurrency of the hanging trackers (default: the default of the settings)"
    )
    parser.add_argument(
        "--callback-hosts",
        type=int,
        default=0,
        help="instead of trackers, use callbacks of another application to this number of hosts that never respond",
    )


def measure_isolation(options: argparse.Namespace, sink: Sink) -> bool:
    return uvloop.run(isolate(options, sink))


async def isolate(options: argparse.Namespace, sink: Sink) -> bool:
    """Measure and print the times from an event to its arrival. Return whether the target is met."""
    kind = HangingCallbacks(options.callback_hosts) if options.callback_hosts else HangingTrackers(options)
    with tempfile.TemporaryDirectory() as folder:
        service = await open_service(load({}, data_dir=Path(folder), allow_private_targets=True))
        for number in range(options.trackers):
            await add_tracker(service, 1, f"http://127.0.0.1:{sink.port}/{number}?t={{timestamp}}")
        await kind.prepare(service, sink.port, Path(folder))
        codes = await unclicked(service, int(options.seconds * options.rate * (2 * options.rounds + 1)), application=1)
        first = service.first_credentials
        await service.close()
        assert first is not None
        slices: dict[bool, list[list[float]]] = {False: [], True: []}
        with server(Path(folder)) as (port, _):
            await click(port, codes, options.rate, options.seconds / 2)  # warm-up clicks, which are not measured
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                client.headers["X-API-Key"] = first.api_key
                for number in range(2 * options.rounds):
                    with_hanging = number % 2 == 1
                    await kind.switch(client, with_hanging)
                    sink.latencies()
                    await click(port, codes, options.rate, options.seconds)
                    slices[with_hanging].append(sink.latencies())
    print(f"{options.trackers} trackers beside {kind}; medians of {options.rounds} slices")
    ratios = [_print_quantile(slices, part) for part in (0.5, 0.95)]
    print(f"ratio of p95                         {ratios[1]:8.2f}      (at most {MAX_RATIO})")
    return ratios[1] <= MAX_RATIO


def _print_quantile(slices: dict[bool, list[list[float]]], part: float) -> float:
    """Compute the quantile `part` of the times in each slice. Print the median of these quantiles for the slices with hanging
    receivers, and for the slices without them.

    Return the first median divided by the second."""
    without, with_hanging = (statistics.median(quantile(one, part) for one in slices[kind]) for kind in (False, True))
    print(f"p{part * 100:.0f} from event to arrival: without {without:7.1f} ms, with {with_hanging:7.1f} ms")
    return with_hanging / without


class HangingReceivers(ABC):
    """Receivers that never respond. The benchmark can switch them on and off while a server runs."""

    @abstractmethod
    async def prepare(self, service: Service, port: int, folder: Path) -> None:
        """Store the receivers before the server starts. `port` is the port of the receiver process."""

    @abstractmethod
    async def switch(self, client: httpx.AsyncClient, on: bool) -> None:
        """Switch the hanging receivers on or off."""


class HangingTrackers(HangingReceivers):
    """Trackers that never respond. They belong to the same application as the trackers that respond."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._count, self._concurrency = options.hanging, options.concurrency
        self._trackers: Sequence[int] = ()

    def __str__(self) -> str:
        return f"{self._count} that never respond (concurrency {self._concurrency or 'default'})"

    async def prepare(self, service: Service, port: int, folder: Path) -> None:
        url = f"http://127.0.0.1:{port}/hang"
        options = {"enabled": False, "concurrency": self._concurrency, "timeout": 60}
        self._trackers = [await add_tracker(service, 1, url, **options) for _ in range(self._count)]

    async def switch(self, client: httpx.AsyncClient, on: bool) -> None:
        for tracker in self._trackers:
            (await client.patch(f"/api/v1/trackers/{tracker}", json={"enabled": on})).raise_for_status()


class HangingCallbacks(HangingReceivers):
    """Callbacks to hosts that never respond. They belong to another application, and each has a different host (127.x.y.z)."""

    def __init__(self, hosts: int) -> None:
        self._hosts = hosts
        self._file = Path()

    def __str__(self) -> str:
        return f"callbacks to {self._hosts} hosts that never respond"

    async def prepare(self, service: Service, port: int, folder: Path) -> None:
        _, other = await applications(service, 2)
        hosts = [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(self._hosts)]
        await fill(service, self._hosts, [other], [f"http://{host}:{port}/hang" for host in hosts])
        await service.fanout.flush()
        self._file = folder / "shortener.db"
        self._write(False)

    async def switch(self, client: httpx.AsyncClient, on: bool) -> None:
        """Switch on: make all callbacks due, and wait until attempts to the hosts are in flight. Switch off: mark all callbacks
        as delivered, and wait until no attempt is in flight."""
        await asyncio.to_thread(self._write, on)
        async with asyncio.timeout(60):
            while (await _attempts_in_flight(client) >= min(MIN_HANGING_ATTEMPTS, self._hosts // 2)) != on:
                await asyncio.sleep(0.1)  # the pause between two checks
            while not on and await _attempts_in_flight(client):
                await asyncio.sleep(0.1)  # the pause between two checks

    def _write(self, on: bool) -> None:
        with closing(sqlite3.connect(self._file, timeout=30)) as connection, connection:
            values = "status = 0, attempt = 0, base_attempt = 0, queue = 0, lease_until = NULL, next_at = ?"
            now = int(time.time() * 1000)
            done = connection.execute(
                f"UPDATE deliveries SET {values if on else 'status = 1, finished_at = ?'} WHERE tracker_id IS NULL", (now,)
            )
        assert done.rowcount == self._hosts


async def _attempts_in_flight(client: httpx.AsyncClient) -> int:
    found = re.search(r"^shortener_deliveries_in_flight\S* (\d+)", (await client.get("/metrics")).text, re.MULTILINE)
    assert found
    return int(found[1])
