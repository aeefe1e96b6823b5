"""Benchmarks of deliveries to trackers: python -m benchmarks.deliveries speed | isolation | backlog

speed      The service creates the deliveries of stored events, sends them to a receiver in another process and records the
           outcomes, durably on SQLite with synchronous=FULL. For comparison, the same run measures how many requests per second
           httpx sends to this receiver with 64 requests in flight, without storing anything.
isolation  A real server with 50 trackers gets clicks at a fixed rate. Measures the time from an event to its arrival at a tracker,
           in turns without and with receivers that never respond. These receivers are additional trackers. With
           --callback-hosts 3000, they are 3,000 hosts that get callbacks of another application.
backlog    A real server gets clicks at a fixed rate, first without deliveries and then while 100,000 deliveries become due at once.
           Measures the latency of redirects and the memory of the server.

Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
from pathlib import Path

import httpx
import uvloop

from benchmarks.delivery_rig import Sink, add_tracker, applications, click, fill, quantile, receiver, server, unclicked
from benchmarks.isolation import add_isolation_options, measure_isolation
from shortener.container import open_service
from shortener.settings_sources import load

MIN_PER_SECOND = 3000.0
MIN_RATIO_TO_HTTPX = 8.0
MAX_MEGABYTES = 250.0
MAX_P99_RATIO = 2.0  # the p99 latency of redirects during deliveries, divided by the p99 without deliveries

HTTPX_IN_FLIGHT, HTTPX_REQUESTS = 64, 2000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    speed = modes.add_parser("speed")
    speed.add_argument("--events", type=int, default=20_000)
    speed.add_argument("--trackers", type=int, default=4, help="number of trackers that share the events")
    speed.add_argument("--concurrency", type=int, default=64, help="requests in flight to each tracker")
    speed.set_defaults(run=measure_speed)
    isolation = modes.add_parser("isolation")
    add_isolation_options(isolation)
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
            await fill(service, count, range(1, trackers + 1))
            start = time.perf_counter()
            service.start(web=False)
            while service.dispatcher.totals.delivered < count:
                await asyncio.sleep(0.005)  # the pause between two checks
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


# Functions that measure redirects during many deliveries.


def measure_backlog(options: argparse.Namespace, sink: Sink) -> bool:
    return uvloop.run(clear(options, sink))


async def clear(options: argparse.Namespace, sink: Sink) -> bool:
    """Print the latencies of redirects and the memory of the server during many deliveries. Return whether the targets are met."""
    with tempfile.TemporaryDirectory() as folder:
        service = await open_service(load({}, data_dir=Path(folder), allow_private_targets=True))
        one, other = await applications(service, 2)
        tracker = await add_tracker(service, one, f"http://127.0.0.1:{sink.port}/", enabled=False, concurrency=64)
        await fill(service, options.deliveries, [one])
        await service.fanout.flush()
        codes = await unclicked(service, int(2 * options.rate * (options.seconds + 2)), application=other)
        first = service.first_credentials
        await service.close()
        assert first is not None
        with server(Path(folder), delivery_recovery_rate="100000") as (port, pid):
            await click(port, codes, options.rate, 2)  # warm-up clicks, which are not measured
            idle = await click(port, codes, options.rate, options.seconds)
            clicking = asyncio.create_task(click(port, codes, options.rate, options.seconds))
            await asyncio.sleep(0.2)  # send some clicks before the deliveries become due
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


if __name__ == "__main__":
    sys.exit(main())
