"""Benchmark of the portal's pages:

    python -m benchmarks.portal [--links N] [--cohorts N] [--days N] [--engine E] [--requests N] [--only PATH ...]

Fills a database with links, their messages, hits and counts, signs an operator in, and requests each page in this process. For
each page, it prints the number of statements, the rows that they return, the bytes of the page without compression, the processor
time of this process (median of 20 requests), and the time to respond in milliseconds (median and 95th percentile). Both times
include the rendering of the templates, but no network. With SQLite, the processor time also contains the database. The load of
the machine hardly changes the processor time. The default is 100,000 links of 300 cohorts (campaigns x countries) over 28 days;
every fifth link has a hit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Connection, Engine, event, text

from benchmarks.statistics import fill_counts
from shortener.container import Service, open_service
from shortener.ids import first_id_at
from shortener.model import HitFlag, Verdict
from shortener.portal import operators
from shortener.portal.operators import Role
from shortener.server.application import HttpApplication
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.database import Database
from shortener.storage.types import to_ms
from tests.acceptance.process import PHONE
from tests.servers import PostgresProcess

END = datetime(2026, 11, 20, 13, 7, tzinfo=UTC)
COUNTRIES = 30
BATCH_ROWS = 50_000
#: Every fifth link of each cohort has a hit.
LINKS_PER_HIT = 5
FIRST_CLICK = (HitFlag.FIRST_FOR_MESSAGE | HitFlag.FIRST_FOR_LINK).value
#: The number of rows of the table `counts` for each cohort.
COUNTS_PER_COHORT = 900

PATHS = (
    "/portal/1/",
    "/portal/1/?campaign=campaign+7&basis=sent",
    "/portal/1/?period=365d",
    "/portal/all/",
    "/portal/1/campaigns",
    "/portal/1/campaigns/campaign%207",
    "/portal/1/messages",
    "/portal/1/messages?campaign=campaign+7",
    "/portal/1/messages?to=%2B14085550100",
    "/portal/1/messages/m7",
    "/portal/1/clicks?metric=clicks",
    "/portal/1/clicks?metric=clicks&campaign=campaign+7",
    "/portal/1/clicks?metric=suspected_hits",
    "/portal/1/conversions",
    "/portal/1/links",
    "/portal/1/links/c7",
    "/portal/1/live",
    "/portal/1/deliveries",
    "/portal/search?q=nothing",
    "/portal/admin/system",
    "/portal/admin/audit",
    "/portal/me",
)


@dataclass
class Measured:
    """The statements that one request executed, and the rows that they returned."""

    statements: int = 0
    rows: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", type=int, default=100_000)
    parser.add_argument("--cohorts", type=int, default=300)
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--requests", type=int, default=20, help="requests for each page")
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--only", nargs="+", metavar="PATH", help="measure only pages whose address contains one of these texts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _url(options.engine) as url:
        asyncio.run(_run(Path(folder), url, options))


@contextlib.contextmanager
def _url(engine: str) -> Iterator[str]:
    """Yield the URL of an empty database. "" means SQLite in the data folder."""
    if engine == "sqlite":
        yield ""
        return
    server = PostgresProcess()
    try:
        yield server.url
    finally:
        server.stop()


async def _run(folder: Path, url: str, options: argparse.Namespace) -> None:
    service = await open_service(Settings(data_dir=folder, database_url=url), clock=lambda: END)
    try:
        started = time.perf_counter()
        await _fill(service.database, options)
        print(
            f"{options.engine}, {options.links:,} links, {options.cohorts:,} cohorts, {options.days} days, "
            f"filled in {time.perf_counter() - started:.0f} s; load average {os.getloadavg()[0]:.1f}"
        )
        await _measure(service, options)
    finally:
        await service.close(grace=1)


async def _measure(service: Service, options: argparse.Namespace) -> None:
    transport = httpx.ASGITransport(HttpApplication(service))
    headers = {"Sec-Fetch-Site": "same-origin"}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers) as browser:
        invitation = await service.database.write(operators.invite, "Ada", Role.ADMIN, 0, END)
        password = "seven quiet harbour lamps"
        await browser.post("/portal/welcome", data={"token": invitation.token, "password": password, "again": password})
        print(f"{'page':<52}{'statements':>11}{'rows':>7}{'bytes':>9}{'CPU ms':>9}{'p50 ms':>9}{'p95 ms':>9}")
        for path in PATHS:
            if options.only is not None and not any(part in path for part in options.only):
                continue
            with _counted() as measured:
                page = await browser.get(path)
            if page.status_code != 200:
                raise SystemExit(f"{path}: HTTP {page.status_code}")
            elapsed, used = [], []
            for _ in range(options.requests):
                started, cpu = time.perf_counter(), time.process_time()
                await browser.get(path)
                elapsed.append((time.perf_counter() - started) * 1000)
                used.append((time.process_time() - cpu) * 1000)
            p95 = statistics.quantiles(elapsed, n=20, method="inclusive")[-1] if len(elapsed) > 1 else elapsed[0]
            print(
                f"{path:<52}{measured.statements:>11}{measured.rows:>7}{len(page.content):>9,}"
                f"{statistics.median(used):>9.1f}{statistics.median(elapsed):>9.1f}{p95:>9.1f}"
            )


@contextlib.contextmanager
def _counted() -> Iterator[Measured]:
    """Count the SQL statements that are executed during the `with` block, and the rows that they return."""
    measured = Measured()

    def executed(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        measured.statements += 1
        # When SQLAlchemy calls this function, both database drivers have already read all rows into the private list `_rows`.
        measured.rows += len(getattr(cursor, "_rows", ()))

    event.listen(Engine, "after_cursor_execute", executed)
    try:
        yield measured
    finally:
        event.remove(Engine, "after_cursor_execute", executed)


async def _fill(database: Database, options: argparse.Namespace) -> None:
    campaigns = max(options.cohorts // COUNTRIES, 8)
    shape = argparse.Namespace(
        days=options.days, campaigns=campaigns, countries=COUNTRIES, counts=campaigns * COUNTRIES * COUNTS_PER_COHORT
    )
    await fill_counts(database, shape)
    await _fill_links(database, options.links, campaigns * COUNTRIES, options.days)
    await database.write(_analyze)


async def _fill_links(database: Database, number: int, cohorts: int, days: int) -> None:
    """Insert messages of one link each, spread evenly over the days, and one hit for every LINKS_PER_HIT links."""
    m, n, h = schema.messages, schema.links, schema.hits
    insert_messages = BulkInsert(
        m,
        *("id", "application_id", "cohort_id", "message_id", "request_id", "content_hash", "to_address", "state", "created_at"),
        *("encoding", "segments"),
    )
    insert_links = BulkInsert(
        n, "id", "code", "message_id", "application_id", "cohort_id", "domain_id", "position", "flags", "url", "expires_at"
    )
    insert_hits = BulkInsert(h, "id", "link_id", "at", "verdict", "rule", "flags", "address", "user_agent")
    insert_clicks = BulkInsert(schema.first_clicks, "id", "at", "hit_id", "links")
    begin, end = to_ms(END - timedelta(days=days)), to_ms(END)
    expires = to_ms(END + timedelta(days=30))
    for first in range(0, number, BATCH_ROWS):
        messages, links, hits, clicks = [], [], [], []
        for one in range(first, min(first + BATCH_ROWS, number)):
            at = begin + (end - begin) * one // number
            row, cohort = first_id_at(at) + one % 1000, 1 + one % cohorts
            messages.append((row, 1, cohort, f"m{one}", "", "", f"+1408{5550100 + one}", 0, at, "GSM-7", 1))
            links.append((row, f"c{one}", row, 1, cohort, 0, 0, 0, "https://shop.example/", expires))
            if one // cohorts % LINKS_PER_HIT == 0:
                hits.append((row, row, at, Verdict.HUMAN.value, "phone", FIRST_CLICK, "203.0.113.0", PHONE))
                clicks.append((row, at, row, 1))
        await database.write(insert_messages, messages)
        await database.write(insert_links, links)
        await database.write(insert_hits, hits)
        await database.write(insert_clicks, clicks)


def _analyze(connection: Connection) -> None:
    connection.execute(text("ANALYZE"))


if __name__ == "__main__":
    main()
