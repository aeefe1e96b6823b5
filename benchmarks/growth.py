"""Size of a database with many links, and latency of clicks during a purge: python -m benchmarks.growth --links 1000000

Fills an empty database of each engine with messages of one link each, created at even intervals over the last `--days`.
`--clicked` is the percentage of messages that have a click with its event and its delivery. The rows are those that the service
would have written (filling.py). Then it reports

- the bytes per link of every table and index,
- the duration of a look-up of one code, and of 256 codes,
- the rate of the purge in a real server during clicks at a fixed rate, and the latency of these clicks with and without the purge,
  which deletes everything older than 90 days,
- the bytes that Redis needs for a link in the cache and for a hit in the spool (measured once, not for each engine).

PostgreSQL and Redis use their default settings. Redis writes its append-only file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx
from sqlalchemy import Connection, text

from benchmarks import filling, rig, traffic
from benchmarks.filling import DAY_MS, RETENTION_DAYS
from shortener.clicks import queries
from shortener.clicks.hit_spool import HitSpool
from shortener.clicks.resolver import Hit
from shortener.container import open_service
from shortener.ids import first_id_at
from shortener.messages.codes import Codes
from shortener.model import Verdict
from shortener.redis.client import open_redis
from shortener.redis.link_cache import CachedLink, RedisLinkCache
from shortener.secret import Secret
from shortener.settings import Settings
from shortener.storage.database import Database
from shortener.storage.open import open_database
from shortener.storage.types import to_ms
from tests.servers import PostgresProcess, RedisProcess

DAILY_MESSAGES = 1_000_000  # the report shows whether the purge can delete this number of messages per day
PURGE_TIMEOUT_SECONDS = 900  # maximum wait until the purge deletes the first messages
CLIENTS, PAUSE_MS = 16, 20  # number of connections that send clicks, and their pause between two clicks


@dataclass
class Grown:
    """The measurements of one engine."""

    engine: str
    links: int
    filled_per_second: float = 0.0
    bytes_per_link: dict[str, float] = field(default_factory=dict)
    look_up_ms: dict[str, float] = field(default_factory=dict)
    clicks: dict[str, rig.Load] = field(default_factory=dict)
    purged_per_second: float = 0.0  # messages purged per second, with all their rows


@contextlib.contextmanager
def empty_database(engine: str, folder: Path) -> Iterator[str]:
    """Yield the URL of an empty database."""
    if engine == "sqlite":
        yield f"sqlite:///{folder / 'shortener.db'}"
        return
    server = PostgresProcess()
    try:
        yield server.url
    finally:
        server.close()


async def fill(url: str, folder: Path, links: int, days: int, clicked: float, found: Grown) -> list[str]:
    """Fill the database and measure its size and its look-ups. Return the codes, oldest first."""
    service = await open_service(Settings(data_dir=folder, database_url=url, secret=filling.SECRET))
    await service.close(grace=1)
    database = await open_database(url, owner=True)
    try:
        started = time.perf_counter()
        codes = await filling.fill_messages(database, links, days=days, clicked=clicked, now=datetime.now(UTC))
        found.filled_per_second = links / (time.perf_counter() - started)
        found.bytes_per_link = await database.read(sizes, links)
        found.look_up_ms = await look_up(database, codes)
    finally:
        await database.close()
    if not url.startswith("sqlite"):
        connection = await asyncpg.connect(url)
        await connection.execute("VACUUM ANALYZE")
        await connection.close()
    return codes


_SIZES = {
    "sqlite": "SELECT name, sum(pgsize) FROM dbstat GROUP BY name",
    "postgresql": "SELECT relname, pg_table_size(oid) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace "
    "UNION ALL SELECT relname, pg_relation_size(oid) FROM pg_class WHERE relkind = 'i' AND relnamespace = 'public'::regnamespace",
}


def sizes(connection: Connection, links: int) -> dict[str, float]:
    """Return the bytes per link of each table and index, largest first. Tables and indexes below one byte per link are omitted."""
    found = {name: size / links for name, size in connection.execute(text(_SIZES[connection.dialect.name]))}
    return {name: round(size, 1) for name, size in sorted(found.items(), key=lambda item: -item[1]) if size >= 1}


async def look_up(database: Database, codes: Sequence[str], times: int = 300) -> dict[str, float]:
    """Return the milliseconds of two transactions. The first transaction looks up one random code, the second a batch of 256
    codes."""
    chance = random.Random(2)
    milliseconds: dict[str, float] = {}
    for size in (1, 256):
        seconds = []
        for _ in range(times):
            sample = chance.sample(codes, size)
            start = time.perf_counter()
            # Use a write transaction, because the service looks up the links of clicks in the transaction that writes their hits.
            targets = await database.write(queries.find_links, sample)
            seconds.append(time.perf_counter() - start)
            assert len(targets) == size
        seconds.sort()
        milliseconds[f"{size} codes, p50"] = 1000 * seconds[len(seconds) // 2]
        milliseconds[f"{size} codes, p99"] = 1000 * seconds[len(seconds) * 99 // 100]
    return milliseconds


def clicks_during_a_purge(url: str, folder: Path, codes: Sequence[str], days: int, seconds: float, found: Grown) -> None:
    """Measure clicks on a server with nothing to purge, then on a server that purges messages older than RETENTION_DAYS."""
    expired = len(codes) * (days - RETENTION_DAYS) // days
    alive = list(codes[expired + len(codes) // days :])
    random.Random(3).shuffle(alive)
    script = traffic.script(folder, "clicks", [f"/{code}" for code in alive[:200_000]])
    script.write_text(script.read_text() + f"function delay() return {PAUSE_MS} end\n")
    settings = {"data_dir": str(folder), "database_url": url, "secret": filling.SECRET, "purge_interval": "1"}
    for name, days_kept in (("without", 3650), ("with", RETENTION_DAYS)):
        retention = {f"{what}_retention_days": str(days_kept) for what in ("message", "hit", "event")}
        with rig.server(**settings, **retention) as server:
            rig.wrk(server.base, script, seconds=1, connections=CLIENTS)
            if name == "with":
                wait_for_the_first_purge(server)
            before, start = purged(server), time.perf_counter()
            found.clicks[name] = rig.wrk(server.base, script, seconds=seconds, connections=CLIENTS)
            if name == "with":
                purged_messages = purged(server)
                found.purged_per_second = (purged_messages - before) / (time.perf_counter() - start)
                if purged_messages >= expired:
                    sys.exit("the run is void: the purge ended before the clicks did; use more links or fewer seconds")


def wait_for_the_first_purge(server: rig.Server) -> None:
    """Wait until the purge has deleted a message. The purge deletes old events before it deletes messages."""
    end = time.monotonic() + PURGE_TIMEOUT_SECONDS
    while not purged(server):
        if time.monotonic() > end:
            sys.exit(f"the run is void: no message was purged within {PURGE_TIMEOUT_SECONDS} s")
        time.sleep(0.1)  # the pause between two checks


def purged(server: rig.Server) -> float:
    """Return the number of messages purged since the start of the server."""
    lines = httpx.get(f"{server.base}/metrics", trust_env=False).text.splitlines()
    line = next((line for line in lines if line.startswith('shortener_purged_rows_total{kind="messages"}')), "0")
    return float(line.rpartition(" ")[2])


async def redis_sizes(links: int) -> dict[str, float]:
    """Return the bytes that Redis needs for a cached link and for a spooled hit."""
    folder = Path(tempfile.mkdtemp(prefix="shortener-redis-"))
    process = RedisProcess(folder)
    process.start()
    redis = open_redis(process.url, timeout=5.0)
    try:
        now = to_ms(datetime.now(UTC))
        cache = RedisLinkCache(redis, "sms:01234567:", lambda: now)
        codes = Codes(Secret(filling.SECRET).code_salt)

        def used() -> int:
            with contextlib.closing(process.client()) as client:
                return int(client.info("memory")["used_memory"])

        empty = used()
        for first in range(0, links, 1000):
            await cache.put(
                [
                    CachedLink(codes.mint(), first_id_at(now) + number, first_id_at(now) + number, 1, 0, 0,
                               f"https://shop.example/campaigns/spring?utm_source=sms&customer={number:08d}", None,
                               now + RETENTION_DAYS * DAY_MS)
                    for number in range(first, first + 1000)
                ]
            )  # fmt: skip
        assert cache.written == links
        filled = used()
        spool = HitSpool(redis, "sms:01234567:", limit=links, now_ms=lambda: now)
        hits = [
            Hit(first_id_at(now) + number, codes.mint(), None, now, Verdict.HUMAN, "browser", "203.0.113.0", rig.PHONE)
            for number in range(links)
        ]
        for first in range(0, links, 1000):
            assert await spool.add(hits[first : first + 1000])
        return {"cached link": (filled - empty) / links, "spooled hit": (used() - filled) / links}
    finally:
        await redis.close()
        process.kill()
        shutil.rmtree(folder)


def grow(engine: str, options: argparse.Namespace) -> Grown:
    """Run all measurements of one engine."""
    found = Grown(engine, options.links)
    folder = Path(tempfile.mkdtemp(prefix="shortener-growth-", dir=options.folder))
    try:
        with empty_database(engine, folder) as url:
            codes = asyncio.run(fill(url, folder, options.links, options.days, options.clicked / 100, found))
            clicks_during_a_purge(url, folder, codes, options.days, options.seconds, found)
    finally:
        shutil.rmtree(folder)
    return found


def report(found: Grown) -> None:
    """Print the measurements of one engine."""
    total = sum(found.bytes_per_link.values())
    print(f"\n{found.engine}, {found.links:,} links, filled at {found.filled_per_second:,.0f} links/s")
    print(f"  {'bytes per link':34}{total:10,.0f}")
    for name, size in found.bytes_per_link.items():
        print(f"    {name:32}{size:10,.1f}")
    for name, milliseconds in found.look_up_ms.items():
        print(f"  {'look-up of ' + name:34}{milliseconds:10.2f} ms")
    for name, load in found.clicks.items():
        print(
            f"  {'clicks ' + name + ' the purge':34}{load.per_second:10,.0f} /s, p50 {load.p50:.1f} ms, p99 {load.p99:.1f} ms"
            + (f", {load.not_2xx_3xx:,} not redirected" if load.not_2xx_3xx else "")
        )
    day = found.purged_per_second * 86_400
    rate = f"{found.purged_per_second:10,.0f} messages/s: {day / DAILY_MESSAGES:.0f} times {DAILY_MESSAGES:,} a day"
    print(f"  {'purge during the clicks':34}{rate}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", type=int, default=100_000)
    parser.add_argument(
        "--days", type=int, default=112, help="age of the oldest message in days; the purge deletes messages older than 90 days"
    )
    parser.add_argument("--clicked", type=float, default=20.0, help="percentage of clicked messages")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="seconds during which clicks are sent, once without and once with a running purge",
    )
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), action="append", help="measure only this engine")
    parser.add_argument("--folder", type=Path, help="folder of the SQLite file (default: the system's folder for temporary files)")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    options = parser.parse_args()
    rig.need_wrk()
    results = [grow(engine, options) for engine in options.engine or ("sqlite", "postgresql")]
    redis = asyncio.run(redis_sizes(min(options.links, 100_000)))
    if options.json:
        print(json.dumps({"engines": [asdict(found) for found in results], "redis": redis}, indent=2))
        return
    for found in results:
        report(found)
    print("\nRedis")
    for name, size in redis.items():
        print(f"  {name:34}{size:10,.0f} bytes")


if __name__ == "__main__":
    main()
