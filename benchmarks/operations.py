"""Parts of `bench.py` that measure other work than requests: export, statistics, maintenance commands, two processes,
installation.

Each function returns its figures. The sizes of the data are parameters: with `--quick`, a function takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from sqlalchemy import func, select

from benchmarks import export, filling, growth, loads, rig, statistics
from benchmarks.rig import Figure, Load
from shortener.storage import schema
from shortener.storage.open import open_database
from tests.servers import PostgresProcess, RedisProcess

CLICKED = 0.2  # share of clicked messages in a filled database
ROWS_PER_HIT = 4  # rows that `clicks reclassify` reads for a hit: the hit, its link, its message and the first click


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
        Figure("CSV export", rate, "rows/s", goal=rig.rate(60_000), note=f"{rows:,} messages"),
        Figure("CSV export, growth of memory", growth_mib, "MB", goal=rig.maximum(export.MAX_GROWTH_MIB)),
    ]


def reporting(counts: int) -> list[Figure]:
    """Measure the slowest statistics report over 28 days on a database with this number of counts."""
    options = Namespace(days=28, campaigns=50, countries=30, counts=counts)
    times = asyncio.run(_report_times(options))
    slowest = max(times, key=lambda name: times[name])
    value, used = times[slowest]
    note = f"{slowest}, {used:.0f} ms of processor time; by country {times['by country'][0]:.0f} ms; {counts:,} counts"
    return [Figure("statistics of 28 days, slowest report", value, "ms", goal=rig.duration(100), note=note)]


async def _report_times(options: Namespace) -> dict[str, tuple[float, float]]:
    """Return the median elapsed time and the smallest processor time of each statistics report, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        async with statistics.filled_database(f"sqlite:///{folder}/statistics.db", options) as database:
            scope = statistics.scope_of(28)
            return {name: await statistics.measure(database, report, scope) for name, report in statistics.reports()}


def maintaining(links: int, folder: Path | None) -> list[Figure]:
    """Measure the commands verify, reclassify, copy and purge on a SQLite database of `links` messages, of which a fifth is
    clicked.

    The rates are rows per second. `verify` and `copy` process every row of the database. `purge` processes the rows that it
    deletes. `clicks reclassify` reads four rows for each hit: the hit, its link, its message and the first click of the
    message."""
    found = []
    with filled(links, folder, days=112) as (url, place, _):
        retention = {f"SHORTENER_{what}_RETENTION_DAYS": str(filling.RETENTION_DAYS) for what in ("MESSAGE", "HIT", "EVENT")}
        since = (datetime.now(UTC) - timedelta(days=113)).isoformat()
        stored = asyncio.run(_stored_rows(url))
        start, used = time.perf_counter(), _processor_seconds()
        command(place, "applications", "list", "--json")
        # Measure the duration and the processor time of the start of a command, which do not depend on the number of rows.
        idle, idle_used = time.perf_counter() - start, _processor_seconds() - used
        for name, arguments in (
            ("verify", ["verify", "--json"]),
            ("clicks reclassify", ["clicks", "reclassify", "--since", since, "--dry-run", "--json"]),
            ("copy", ["copy", "--from", url, "--to", f"sqlite:///{place}/copy.db", "--json"]),
            ("purge", ["purge", "--json"]),
        ):
            start, used = time.perf_counter(), _processor_seconds()
            result = json.loads(command(place, *arguments, **(retention if name == "purge" else {})))
            seconds = max(time.perf_counter() - start - idle, 0.01)
            used = max(_processor_seconds() - used - idle_used, 0.01)
            if name == "purge":
                rows, work = sum(result.values()), f"{result['messages']:,} messages"
            elif name == "clicks reclassify":
                rows, work = ROWS_PER_HIT * result["hits"], f"{result['hits']:,} hits"
            else:
                rows, work = stored, f"{links:,} messages"
            rate = rows / seconds
            note = f"{rows:,} rows ({work}) in {seconds:.1f} s, {used:.1f} s of processor time; {links:,} messages in the database"
            found.append(Figure(f"shortener {name}", rate, "rows/s", goal=rig.rate(50_000), note=note))
    return found


def _processor_seconds() -> float:
    """Return the processor time of all commands that have ended."""
    times = os.times()
    return times.children_user + times.children_system


async def _stored_rows(url: str) -> int:
    """Return the number of rows in all tables of a database."""
    database = await open_database(url, owner=True)
    try:
        counts = [select(func.count()).select_from(table).scalar_subquery() for table in schema.metadata.sorted_tables]
        return await database.read(lambda connection: sum(connection.execute(select(*counts)).one()))
    finally:
        await database.close()


@contextlib.contextmanager
def filled(links: int, parent: Path | None, *, days: int) -> Iterator[tuple[str, Path, list[str]]]:
    """Fill a SQLite database. Yield its URL, its folder and the codes, oldest first."""
    place = Path(tempfile.mkdtemp(prefix="shortener-operations-", dir=parent))
    try:
        with growth.empty_database("sqlite", place) as url:
            codes = asyncio.run(growth.fill(url, place, links, days, CLICKED, growth.Grown("sqlite", links)))
            yield url, place, codes
    finally:
        shutil.rmtree(place, ignore_errors=True)


def command(place: Path, *arguments: str, **more: str) -> str:
    """Run a command of the service on the database in `place`. Return its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHORTENER_")}
    environment |= {
        "SHORTENER_DATA_DIR": str(place),
        "SHORTENER_DATABASE_URL": f"sqlite:///{place / 'shortener.db'}",
        "SHORTENER_SECRET": filling.SECRET,
        **more,
    }
    command = [sys.executable, "-m", "shortener", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the run is void: shortener {' '.join(arguments)} failed: {done.stderr or done.stdout[-1000:]}")
    return done.stdout


def two_processes(links: int, seconds: float) -> list[Figure]:
    """Measure first clicks on PostgreSQL and Redis with `--workers 2` and with one process."""
    rates = {workers: _first_clicks_of(workers, links, seconds) for workers in (1, 2)}
    ratio = rates[2].per_second / rates[1].per_second
    cores = os.cpu_count() or 1
    # The load generator and the databases share the processor cores, so the goal applies to machines with at least four cores.
    goal = rig.minimum(1.6) if cores >= 4 else None
    one, two = rates[1], rates[2]
    note = f"{one.per_second:,.0f} and {two.per_second:,.0f}/s, p99 {one.p99:.1f} and {two.p99:.1f} ms, {cores} cores"
    return [Figure("PostgreSQL: two processes instead of one", ratio, "x", goal=goal, note=note)]


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


def installing() -> list[Figure]:
    """Count the packages of the lock file and the bytes of their files, and measure the memory of an idle process."""
    names = re.findall(r"^([A-Za-z0-9._-]+)==", (rig.ROOT / "requirements.lock").read_text(), re.MULTILINE)
    sizes = {name: size for name in names if (size := _installed_bytes(name)) is not None}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    note = f"{len(sizes)} of {len(names)} are installed here; largest: "
    note += ", ".join(f"{name} {sizes[name] / 1e6:.0f} MB" for name in largest)
    with rig.server() as server:
        time.sleep(5)  # wait until the process has finished its start and is idle
        memory = server.resident_mb
    return [
        Figure("packages of an installation", len(sizes), "packages", note=note),
        Figure("size of these packages", sum(sizes.values()) / 1e6, "MB"),
        Figure("resident memory of an idle process", memory, "MB", goal=rig.maximum(60)),
    ]


def _installed_bytes(name: str) -> int | None:
    """Return the bytes of the files of an installed package, without compiled caches; None if it is not installed."""
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        return None
    places = [Path(str(file.locate())) for file in files if "__pycache__" not in file.parts]
    return sum(place.stat().st_size for place in places if place.is_file())
