"""What many links weigh, and whether clicks notice that old ones go: python -m benchmarks.growth --links 1000000

Fills a fresh store of each engine with messages of one link each, made at even distances over the last `--days`, of which
`--clicked` per cent were clicked, told to a tracker and delivered. The rows go in by the service's own schema and its own bulk
statements, shaped like those that the service writes. Then it tells

- the bytes per link of every table and index,
- how long a look-up of one code takes, and one of 256,
- how fast the purge goes that a real server does beside clicks that come at a fixed pace, and what the clicks take with and without
  it: everything older than 90 days is due,
- and, once, what a link in the cache and a hit in the spool weigh in Redis.

PostgreSQL and Redis are the packaged servers, with their defaults; Redis keeps its append-only file.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
import orjson
from sqlalchemy import Connection, text

from benchmarks import rig
from shortener.clicks import queries
from shortener.clicks.hit_spool import HitSpool
from shortener.clicks.resolver import Hit
from shortener.container import open_service
from shortener.ids import encode, first_id_at, new_message_id
from shortener.messages.codes import Codes
from shortener.model import DeliveryStatus, HitFlag, State, Topic, Verdict
from shortener.outbox.count_deltas import Cohorts
from shortener.redis.client import open_redis
from shortener.redis.link_cache import CachedLink, RedisLinkCache
from shortener.secret import Secret
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.database import Database
from shortener.storage.open import open_database
from shortener.storage.types import to_ms
from tests.servers import PostgresProcess, RedisProcess

SECRET = "the secret of a benchmark, which nobody needs to keep 0123456789"
PIECE = 20_000  # messages of one transaction
KEPT_DAYS = 90
DAY_MS = 86_400_000
PLAN = 1_000_000  # messages a day
PATIENCE = 900  # seconds until the purge comes to the messages
PEOPLE, PAUSE_MS = 16, 20  # connections of the clicks, and the rest of each between two clicks

insert_messages = BulkInsert(
    schema.messages,
    *("id", "application_id", "cohort_id", "message_id", "request_id", "external_request_id", "content_hash", "to_address"),
    *("from_address", "sender_id_id", "sender_id_alias", "state", "created_at", "sent_at", "delivered_at", "encoding", "segments"),
    "mt_price",
)
insert_first_clicks = BulkInsert(schema.first_clicks, "id", "at", "hit_id", "links")
insert_links = BulkInsert(
    schema.links,
    *("id", "code", "message_id", "application_id", "cohort_id", "domain_id", "position", "flags", "url", "expires_at"),
)
insert_hits = BulkInsert(schema.hits, "id", "link_id", "at", "verdict", "rule", "flags", "address", "user_agent")
insert_events = BulkInsert(
    schema.events,
    *("id", "application_id", "topics", "at", "message_id", "link_id", "hit_id", "facts", "fanned_out"),
)
insert_deliveries = BulkInsert(
    schema.deliveries,
    *("id", "event_id", "topic", "application_id", "tracker_id", "lane", "status", "attempt", "next_at", "created_at"),
    *("finished_at", "last_status"),
)
insert_attempts = BulkInsert(schema.attempts, "id", "delivery_id", "attempt", "at", "milliseconds", "status", "answer")


@dataclass
class Grown:
    """What was found of one engine."""

    engine: str
    links: int
    filled_per_second: float = 0.0
    bytes_per_link: dict[str, float] = field(default_factory=dict)
    look_up_ms: dict[str, float] = field(default_factory=dict)
    clicks: dict[str, rig.Load] = field(default_factory=dict)
    purged_per_second: float = 0.0  # messages with all that is theirs


class Rows:
    """Makes the rows of messages that were sent one after the other from `began` (ms) on, `apart` ms from each other."""

    def __init__(self, began: int, apart: float, clicked: float, cohort: int) -> None:
        self._began = began
        self._apart = apart
        self._clicked = clicked
        self._cohort = cohort
        self._chance = random.Random(1)
        self._codes = Codes(Secret(SECRET).code_salt, randbits=self._chance.getrandbits)
        self.codes: list[str] = []
        self._taken: set[str] = set()

    def _mint(self) -> str:
        """A code that no other message has: among 10 M one in six runs has two that are the same."""
        while (code := self._codes.mint()) in self._taken:
            pass
        self._taken.add(code)
        self.codes.append(code)
        return code

    def write(self, connection: Connection, first: int, count: int) -> None:
        messages, links, first_clicks, hits, events, deliveries, attempts = [], [], [], [], [], [], []
        chance, cohort = self._chance, self._cohort
        for number in range(first, first + count):
            at = self._began + int(number * self._apart)
            message = first_id_at(at) + number % 1000 * 4
            link, code, to = message + 1, self._mint(), f"+1408{number % 10_000_000:07d}"
            clicked_at = at + chance.randrange(10_000, 40_000_000) if chance.random() < self._clicked else None
            hit = None if clicked_at is None else first_id_at(clicked_at) + number % 1_000_000
            name, request = new_message_id(), new_message_id()
            messages.append(
                (message, 1, cohort, name, request, "", encode(chance.getrandbits(128), 22) + "0123456789", to, "18775550100",
                 "EjihJOXWJE24O", "Gladiator", int(State.DELIVERED), at, at + 800, at + 2300, "GSM-7", 1, "0.0095")
            )  # fmt: skip
            url = f"https://shop.example/campaigns/spring?utm_source=sms&customer={number:08d}"
            links.append((link, code, message, 1, cohort, 0, 0, 0, url, at + KEPT_DAYS * DAY_MS))
            if hit is None or clicked_at is None:
                continue
            first_clicks.append((message, clicked_at, hit, 1))
            flags = int(HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE)
            hits.append((hit, link, clicked_at, int(Verdict.HUMAN), "browser", flags, "203.0.113.0", rig.PHONE))
            facts = _facts(name, request, to, code, url)
            topics = int(Topic.STATE | Topic.CLICK)
            events.append((hit, 1, topics, clicked_at, message, link, hit, facts, True))
            delivery, done = hit + 1, int(DeliveryStatus.DELIVERED)
            deliveries.append((delivery, hit, int(Topic.STATE), 1, 1, "t1", done, 1, clicked_at, clicked_at, clicked_at + 40, 200))
            attempts.append((delivery + 1, delivery, 1, clicked_at, 40, 200, "OK"))
        for insert, rows in (
            (insert_messages, messages),
            (insert_links, links),
            (insert_first_clicks, first_clicks),
            (insert_hits, hits),
            (insert_events, events),
            (insert_deliveries, deliveries),
            (insert_attempts, attempts),
        ):
            insert(connection, rows)


def _facts(name: str, request: str, to: str, code: str, url: str) -> str:
    """As the fan-out snapshots them for a tracker."""
    facts = {
        "timestamp": "2026-11-20T12:00:13.000Z", "application_id": 1, "company_id": None, "message_id": name,
        "message_request_id": request, "external_message_request_id": "", "to_address": to, "phone_sha256": "0" * 64,
        "from_address": "18775550100", "sender_id_id": "EjihJOXWJE24O", "sender_id_alias": "Gladiator", "new_state": "CLICKTHRU",
        "reason_code": None, "reason_description": None, "report_status": None, "telecom_message_id": None, "fragments_count": 1,
        "mt_price": "0.0095", "has_attachment": False, "campaign": "spring", "source": "api", "country": "US", "metadata": None,
        "process_key": "D1021E43D3A0B6321A7516693399CBFD", "sent_at": None, "delivered_at": "2026-11-20T12:00:08.000Z",
        "clicked_at": "2026-11-20T12:00:13.000Z", "seconds_since_sent": 12, "seconds_since_delivered": 5, "code": code,
        "short_url": f"https://go.brand.example/{code}", "url": url, "label": None, "click_id": "08evQPmBgBc2qZqZEnt",
        "verdict": "human", "verdict_reason": "browser", "user_agent": rig.PHONE, "first_for_link": True,
        "first_for_message": True, "click_number": 1, "previous_state": "DELIVERED",
    }  # fmt: skip
    return orjson.dumps(facts).decode()


@contextlib.contextmanager
def store(engine: str, folder: Path) -> Iterator[str]:
    """The URL of an empty one."""
    if engine == "sqlite":
        yield f"sqlite:///{folder / 'shortener.db'}"
        return
    server = PostgresProcess()
    try:
        yield server.url
    finally:
        server.close()


async def fill(url: str, folder: Path, links: int, days: int, clicked: float, found: Grown) -> list[str]:
    """Returns the codes, oldest first."""
    service = await open_service(Settings(data_dir=folder, database_url=url, secret=SECRET))
    await service.close(grace=1)
    database = await open_database(url, owner=True)
    try:
        key = (1, "spring", "api", "US", 0)
        cohort = (await database.write(lambda connection: Cohorts().get_ids(connection, {key})))[key]
        began = to_ms(datetime.now(UTC) - timedelta(days=days, hours=12))
        rows = Rows(began, days * DAY_MS / links, clicked, cohort)
        started = time.perf_counter()
        for first in range(0, links, PIECE):
            await database.write(rows.write, first, min(PIECE, links - first))
            found.filled_per_second = links / (time.perf_counter() - started)
        found.bytes_per_link = await database.read(sizes, links)
        found.look_up_ms = await look_up(database, rows.codes)
    finally:
        await database.close()
    if not url.startswith("sqlite"):
        connection = await asyncpg.connect(url)
        await connection.execute("VACUUM ANALYZE")
        await connection.close()
    return rows.codes


_SIZES = {
    "sqlite": "SELECT name, sum(pgsize) FROM dbstat GROUP BY name",
    "postgresql": "SELECT relname, pg_table_size(oid) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace "
    "UNION ALL SELECT relname, pg_relation_size(oid) FROM pg_class WHERE relkind = 'i' AND relnamespace = 'public'::regnamespace",
}


def sizes(connection: Connection, links: int) -> dict[str, float]:
    """Bytes per link of each table and index that comes to one at least, the largest first."""
    found = {name: size / links for name, size in connection.execute(text(_SIZES[connection.dialect.name]))}
    return {name: round(size, 1) for name, size in sorted(found.items(), key=lambda one: -one[1]) if size >= 1}


async def look_up(database: Database, codes: Sequence[str], times: int = 300) -> dict[str, float]:
    """Milliseconds of a transaction that looks up random codes, as a batch of clicks does: of one, and of 256."""
    chance = random.Random(2)
    took: dict[str, float] = {}
    for size in (1, 256):
        seconds = []
        for _ in range(times):
            wanted = chance.sample(codes, size)
            began = time.perf_counter()
            targets = await database.write(queries.find_links, wanted)  # where a click does it
            seconds.append(time.perf_counter() - began)
            assert len(targets) == size
        seconds.sort()
        took[f"{size} codes, p50"] = 1000 * seconds[len(seconds) // 2]
        took[f"{size} codes, p99"] = 1000 * seconds[len(seconds) * 99 // 100]
    return took


def clicks_beside_the_purge(url: str, folder: Path, codes: Sequence[str], days: int, seconds: float, found: Grown) -> None:
    """A server with nothing to purge, then one with everything to purge that is older than 90 days; the same clicks on both."""
    due = len(codes) * (days - KEPT_DAYS) // days
    alive = list(codes[due + len(codes) // days :])
    random.Random(3).shuffle(alive)
    script = rig.script(folder, "clicks", [f"/{code}" for code in alive[:200_000]])
    script.write_text(script.read_text() + f"function delay() return {PAUSE_MS} end\n")
    settings = {"data_dir": str(folder), "database_url": url, "secret": SECRET, "purge_interval": "1"}
    for name, kept in (("without", 3650), ("with", KEPT_DAYS)):
        retention = {f"{what}_retention_days": str(kept) for what in ("message", "hit", "event")}
        with rig.server(**settings, **retention) as server:
            rig.wrk(server.base, seconds=1, connections=PEOPLE, script=script)
            if name == "with":
                _wait_for_the_first(server)
            before, began = purged(server), time.perf_counter()
            found.clicks[name] = rig.wrk(server.base, seconds=seconds, connections=PEOPLE, script=script)
            if name == "with":
                gone = purged(server)
                found.purged_per_second = (gone - before) / (time.perf_counter() - began)
                if gone >= due:
                    sys.exit("the run is void: all that was due had gone before the clicks ended; take more links or fewer seconds")


def _wait_for_the_first(server: rig.Server) -> None:
    """Events go before messages."""
    end = time.monotonic() + PATIENCE
    while not purged(server):
        if time.monotonic() > end:
            sys.exit(f"the run is void: no message was purged within {PATIENCE} s")
        time.sleep(0.1)  # and look again


def purged(server: rig.Server) -> float:
    """Messages that went since the server began."""
    lines = httpx.get(f"{server.base}/metrics", trust_env=False).text.splitlines()
    line = next((line for line in lines if line.startswith('shortener_purged_rows_total{kind="messages"}')), "0")
    return float(line.rpartition(" ")[2])


async def weigh_redis(links: int) -> dict[str, float]:
    """Bytes in Redis of a cached link, and of a spooled hit."""
    folder = Path(tempfile.mkdtemp(prefix="shortener-redis-"))
    process = RedisProcess(folder)
    process.start()
    redis = open_redis(process.url, timeout=5.0)
    try:
        now = to_ms(datetime.now(UTC))
        cache = RedisLinkCache(redis, "sms:01234567:", lambda: now)
        codes = Codes(Secret(SECRET).code_salt)

        def used() -> int:
            with contextlib.closing(process.client()) as client:
                return int(client.info("memory")["used_memory"])

        empty = used()
        for first in range(0, links, 1000):
            await cache.put(
                [
                    CachedLink(codes.mint(), first_id_at(now) + number, first_id_at(now) + number, 1, 0, 0,
                               f"https://shop.example/campaigns/spring?utm_source=sms&customer={number:08d}", None,
                               now + KEPT_DAYS * DAY_MS)
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
    found = Grown(engine, options.links)
    folder = Path(tempfile.mkdtemp(prefix="shortener-growth-", dir=options.folder))
    try:
        with store(engine, folder) as url:
            codes = asyncio.run(fill(url, folder, options.links, options.days, options.clicked / 100, found))
            clicks_beside_the_purge(url, folder, codes, options.days, options.seconds, found)
    finally:
        shutil.rmtree(folder)
    return found


def tell(found: Grown) -> None:
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
    print(f"  {'purge beside the clicks':34}{found.purged_per_second:10,.0f} messages/s: {day / PLAN:.0f} times {PLAN:,} a day")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", type=int, default=100_000)
    parser.add_argument("--days", type=int, default=112, help="over which they were made; those older than 90 are due")
    parser.add_argument("--clicked", type=float, default=20.0, help="per cent of the messages")
    parser.add_argument("--seconds", type=float, default=10.0, help="of clicks, without and with the purge")
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), action="append", help="one of them only")
    parser.add_argument("--folder", type=Path, help="where the SQLite file goes; the temporary folder if absent")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rig.need_wrk()
    results = [grow(engine, options) for engine in options.engine or ("sqlite", "postgresql")]
    redis = asyncio.run(weigh_redis(min(options.links, 100_000)))
    if options.json:
        print(json.dumps({"engines": [asdict(found) for found in results], "redis": redis}, indent=2))
        return
    for found in results:
        tell(found)
    print("\nRedis")
    for name, size in redis.items():
        print(f"  {name:34}{size:10,.0f} bytes")


if __name__ == "__main__":
    main()
