"""Figures of `bench.py` for work other than single clicks: export, statistics, maintenance commands, two processes, mixed load,
installation.

Each function returns its figures. The sizes are parameters, so that `--quick` needs seconds and a full run shows the limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import httpx

from benchmarks import delivery_rig, export, growth, loads, rig, statistics, traffic
from benchmarks.rig import Figure, Load, Server
from shortener.container import open_service
from shortener.settings import Settings
from tests.servers import PostgresProcess, RedisProcess

MAX_P99_MS = 15.0
CLICKED = 0.2  # share of clicked messages in a filled database


def exporting(rows: int) -> list[Figure]:
    """Measure the CSV export of `rows` messages over HTTP, and how much the memory of the server grows meanwhile."""
    with rig.server() as server:
        server.links(rows, batch=5000)
        start = time.perf_counter()
        exported, _, memory = export.export(server, rows)
        rate = exported / (time.perf_counter() - start)
    if exported != rows:
        sys.exit(f"the run is void: {exported} of {rows} messages were exported")
    growth_mib = max(memory) - memory[0]
    return [
        Figure("CSV export", rate, "rows/s", target="60,000 rows/s", met=rate >= 60_000, note=f"{rows:,} messages"),
        Figure("CSV export, growth of memory", growth_mib, "MB", target="32 MB", met=growth_mib <= export.MAX_GROWTH_MIB),
    ]


def reporting(counts: int) -> list[Figure]:
    """Measure the slowest statistics report over 28 days on a database with this number of counts."""
    options = Namespace(days=28, campaigns=50, countries=30, counts=counts)
    times = asyncio.run(_report_times(options))
    slowest = max(times, key=lambda name: times[name])
    value, used = times[slowest]
    note = f"{slowest}, {used:.0f} ms of processor time; by country {times['by country'][0]:.0f} ms; {counts:,} counts"
    return [Figure("statistics of 28 days, slowest report", value, "ms", target="100 ms", met=value <= 100, note=note)]


async def _report_times(options: Namespace) -> dict[str, tuple[float, float]]:
    """Return the median elapsed time and the least processor time of each report by event time, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        async with statistics.filled_database(f"sqlite:///{folder}/statistics.db", options) as database:
            scope = statistics.scope_of(28)
            return {name: await statistics.measure(database, report, scope) for name, report in statistics.reports()}


def maintaining(links: int, folder: Path | None) -> list[Figure]:
    """Measure the commands verify, reclassify, copy and purge on a SQLite database of `links` messages, a fifth clicked."""
    found = []
    with _filled(links, folder, days=112) as (url, place, _):
        retention = {f"SHORTENER_{what}_RETENTION_DAYS": str(growth.RETENTION_DAYS) for what in ("MESSAGE", "HIT", "EVENT")}
        expired = links * (112 - growth.RETENTION_DAYS) // 112
        since = (datetime.now(UTC) - timedelta(days=113)).isoformat()
        start = time.perf_counter()
        _command(place, "applications", "list", "--json")
        idle = time.perf_counter() - start  # the duration of a start of the command, which does not depend on the number of rows
        for name, rows, arguments in (
            # With --json, because printing the missing counts as a table takes longer than the check itself.
            ("verify", links, ["verify", "--json"]),
            ("clicks reclassify", round(links * CLICKED), ["clicks", "reclassify", "--since", since, "--dry-run"]),
            ("copy", links, ["copy", "--from", url, "--to", f"sqlite:///{place}/copy.db"]),
            ("purge", expired, ["purge"]),
        ):
            start = time.perf_counter()
            _command(place, *arguments, **(retention if name == "purge" else {}))
            seconds = max(time.perf_counter() - start - idle, 0.01)
            unit = "hits/s" if name == "clicks reclassify" else "messages/s"
            note = f"{rows:,} {unit.partition('/')[0]} in {seconds:.1f} s, {links:,} messages in the database"
            rate = rows / seconds
            found.append(Figure(f"shortener {name}", rate, unit, target=f"50,000 {unit}", met=rate >= 50_000, note=note))
    return found


@contextlib.contextmanager
def _filled(links: int, parent: Path | None, *, days: int) -> Iterator[tuple[str, Path, list[str]]]:
    """Fill a SQLite database. Yield its URL, its folder and the codes, oldest first."""
    place = Path(tempfile.mkdtemp(prefix="shortener-operations-", dir=parent))
    try:
        with growth.empty_database("sqlite", place) as url:
            codes = asyncio.run(growth.fill(url, place, links, days, CLICKED, growth.Grown("sqlite", links)))
            yield url, place, codes
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _command(place: Path, *arguments: str, **more: str) -> str:
    """Run a command of the service on the database in `place`. Return its output. For `verify`, also accept the exit status 1:
    counts differ."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    environment |= {
        "SHORTENER_DATA_DIR": str(place),
        "SHORTENER_DATABASE_URL": f"sqlite:///{place / 'shortener.db'}",
        "SHORTENER_SECRET": growth.SECRET,
        **more,
    }
    command = [sys.executable, "-m", "shortener", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or (done.returncode and "verify" not in arguments):
        sys.exit(f"the run is void: shortener {' '.join(arguments)} failed: {done.stderr}")
    return done.stdout


def two_processes(links: int, seconds: float) -> list[Figure]:
    """Measure first clicks on PostgreSQL and Redis with `--workers 2` and with one process."""
    rates = {workers: _first_clicks_of(workers, links, seconds) for workers in (1, 2)}
    ratio = rates[2].per_second / rates[1].per_second
    cores = os.cpu_count() or 1
    # The load generator and the databases share the processor cores, so the target applies to machines with at least four cores.
    met = ratio >= 1.6 if cores >= 4 else None
    one, two = rates[1], rates[2]
    note = f"{one.per_second:,.0f} and {two.per_second:,.0f}/s, p99 {one.p99:.1f} and {two.p99:.1f} ms, {cores} cores"
    return [Figure("PostgreSQL: two processes instead of one", ratio, "x", target="1.60 x", met=met, note=note)]


def _first_clicks_of(workers: int, links: int, seconds: float) -> Load:
    folder = Path(tempfile.mkdtemp(prefix="shortener-workers-"))
    redis, postgresql = RedisProcess(folder), PostgresProcess()
    redis.start()
    try:
        with rig.server(database_url=postgresql.url, redis_url=redis.url, workers=str(workers)) as server:
            load = loads.first_clicks(server, server.links(links)).run(seconds)
            if load.not_2xx_3xx:
                sys.exit(f"the run is void: {load.not_2xx_3xx} responses were no redirects")
            return load
    finally:
        postgresql.close()
        redis.kill()
        shutil.rmtree(folder)


def mixed(links: int, due: int, seconds: float, folder: Path | None) -> list[Figure]:
    """Measure clicks alone, and then during bulk rewrites, exports, a purge and `due` deliveries at once.

    The clicks come from 16 connections with a pause of 20 ms between two clicks, as in `growth.py`."""
    with delivery_rig.receiver() as sink, _filled(links, folder, days=112) as (url, place, codes):
        key = json.loads(_command(place, "keys", "create", "1", "--permission", "all", "--json"))["api_key"]
        expired = links * (112 - growth.RETENTION_DAYS) // 112
        alive = codes[expired + links // 112 :]
        random.Random(3).shuffle(alive)
        script = traffic.script(place, "clicks", [f"/{code}" for code in alive])
        script.write_text(script.read_text() + f"function delay() return {growth.PAUSE_MS} end\n")
        settings = {"data_dir": str(place), "database_url": url, "secret": growth.SECRET}
        kept = {f"{what}_retention_days": "3650" for what in ("message", "hit", "event")}
        with rig.server(**settings, **kept) as server:
            rig.wrk(server.base, script, seconds=1, connections=growth.CLIENTS)
            alone = rig.wrk(server.base, script, seconds=seconds, connections=growth.CLIENTS)
        asyncio.run(_make_due(url, place, sink.port, due))
        kept = {f"{what}_retention_days": str(growth.RETENTION_DAYS) for what in ("message", "hit", "event")}
        with rig.server(**settings, **kept, purge_interval="1") as server, _background(server, key) as counts:
            beside = rig.wrk(server.base, script, seconds=seconds, connections=growth.CLIENTS)
            delivered, purged = sink.count(), growth.purged(server)
    ratio = beside.per_second / alone.per_second
    note = f"{counts['rewritten']:,} messages rewritten, {counts['exported']:,} rows exported, {purged:,.0f} messages purged, "
    note += f"{delivered:,} of {due:,} delivered in {seconds:.0f} s; alone p99 {alone.p99:.1f} ms"
    return [
        Figure("clicks during all other work, p99", beside.p99, "ms", target="15 ms", met=beside.p99 < MAX_P99_MS, note=note),
        Figure("clicks during all other work, rate", ratio, "x", target="0.80 x", met=ratio >= 0.8, note="of the rate alone"),
    ]


async def _make_due(url: str, place: Path, port: int, count: int) -> None:
    """Add a tracker and `count` events. The server creates their deliveries at its start."""
    values: Any = {"data_dir": place, "database_url": url, "secret": growth.SECRET, "allow_private_targets": True}
    service = await open_service(Settings(**values))
    try:
        await delivery_rig.add_tracker(service, 1, f"http://127.0.0.1:{port}/")
        await delivery_rig.fill(service, count, [1])
    finally:
        await service.close(grace=1)


@contextlib.contextmanager
def _background(server: Server, key: str) -> Iterator[dict[str, int]]:
    """Repeatedly rewrite batches of 100 messages and export all messages until the context ends. Yield the totals."""
    counts = {"rewritten": 0, "exported": 0}
    stop = threading.Event()
    text = 'Hello Kola, please visit us at #track("https://shop.example/a?b=1") for new information'
    body = {"to": [rig.phone(number) for number in range(100)], "body": text}

    def client() -> httpx.Client:
        return httpx.Client(base_url=server.base, headers={"X-API-Key": key}, timeout=60, trust_env=False)

    def rewrite() -> None:
        with client() as session:
            while not stop.is_set():
                session.post("/api/v1/rewrite", json=body).raise_for_status()
                counts["rewritten"] += 100

    def export_all() -> None:
        with client() as session:
            while not stop.is_set():
                with session.stream("GET", "/api/v1/sms/messages/unified/export") as response:
                    for chunk in response.iter_raw():
                        counts["exported"] += chunk.count(b"\n")
                        if stop.is_set():
                            return

    threads = [threading.Thread(target=work) for work in (rewrite, export_all)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def installing() -> list[Figure]:
    """Count the packages of the lock file and their bytes, and measure the memory of an idle process."""
    names = re.findall(r"^([A-Za-z0-9._-]+)==", (rig.ROOT / "requirements.lock").read_text(), re.MULTILINE)
    sizes = {name: size for name in names if (size := _installed_bytes(name)) is not None}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    note = f"{len(sizes)} of {len(names)} are installed here; largest: "
    note += ", ".join(f"{name} {sizes[name] / 1e6:.0f} MB" for name in largest)
    with rig.server() as server:
        time.sleep(5)
        memory = server.resident_mb
    return [
        Figure("packages of an installation", len(sizes), "packages", note=note),
        Figure("size of these packages", sum(sizes.values()) / 1e6, "MB"),
        Figure("resident memory of an idle process", memory, "MB", target="60 MB", met=memory <= 60),
    ]


def _installed_bytes(name: str) -> int | None:
    """Return the bytes of the files of an installed package, without compiled caches; None if it is not installed."""
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        return None
    places = [Path(str(file.locate())) for file in files if "__pycache__" not in file.parts]
    return sum(place.stat().st_size for place in places if place.is_file())
