"""Benchmark of the statistics reports:

    python -m benchmarks.statistics [--days N] [--counts N] [--links N] [--engine E] [--only REPORT ...]

Fills a database with counts of campaigns x countries, rolls them up, and measures every report, including the conversion to the
fields of the API. It prints the median elapsed time of five runs and the smallest processor time of this process. On a machine
that also does other work, compare only the processor times. With PostgreSQL, they do not contain the work of the database server.
By default, there are 1,350,000 counts of 50 campaigns in 30 countries over 28 days. `--links` also inserts that many links with
their messages, to show that the reports do not read them. `--engine postgresql` starts a PostgreSQL server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, func, insert, select, tuple_

from shortener.ids import first_id_at
from shortener.outbox.count_deltas import TIME_SLOT_MS
from shortener.reporting import rollup_data, rollups
from shortener.reporting.rollups import Basis, GroupName, Kind, Level, series
from shortener.reporting.statistics import (
    StatisticsFilter,
    StatisticsReport,
    by_country,
    by_destination,
    by_hour,
    by_label,
    campaign_page,
    daily,
    totals,
)
from shortener.storage import raw_sql, schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.database import Database
from shortener.storage.migrate import migrate
from shortener.storage.open import open_database
from shortener.storage.types import to_ms
from shortener.web.statistics_fields import figures
from tests.servers import PostgresProcess

END = datetime(2026, 11, 20, 13, 7, tzinfo=UTC)
RUNS = 5
BATCH_ROWS = 100_000
DESTINATIONS = 4  # number of destinations of each campaign

_counts = BulkInsert(schema.counts, "cohort_id", "quarter", "metric", "amount", "rolled_up", on_conflict="DO NOTHING")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--campaigns", type=int, default=50)
    parser.add_argument("--countries", type=int, default=30)
    parser.add_argument("--counts", type=int, default=1_350_000, help="rows of the table counts")
    parser.add_argument("--links", type=int, default=0, help="links to insert in addition")
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--only", nargs="+", metavar="REPORT", help="measure only reports whose name contains one of these texts")
    options = parser.parse_args()
    with _url(options.engine) as url:
        asyncio.run(_measure(url, options))


@contextlib.contextmanager
def _url(engine: str) -> Iterator[str]:
    if engine == "postgresql":
        server = PostgresProcess()
        try:
            yield server.url
        finally:
            server.stop()
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'statistics.db'}"


@contextlib.asynccontextmanager
async def filled_database(url: str, options: argparse.Namespace) -> AsyncIterator[Database]:
    """Yield a new database with the counts of `options` (days, campaigns, countries, counts)."""
    await migrate(url)
    database = await open_database(url, owner=True)
    try:
        await fill_counts(database, options)
        yield database
    finally:
        await database.close()


def scope_of(days: int, basis: Basis = Basis.EVENT) -> StatisticsFilter:
    """Return the filter for the newest `days` of the counts."""
    return StatisticsFilter(1, END - timedelta(days=days), END, basis=basis)


async def _measure(url: str, options: argparse.Namespace) -> None:
    started = time.perf_counter()
    async with filled_database(url, options) as database:
        if options.links:
            await _fill_links(database, options)
        rows = await database.read(_table_rows)
        print(f"filled in {time.perf_counter() - started:.0f} s: " + ", ".join(f"{name} {count:,}" for name, count in rows.items()))
        for days in sorted({1, 7, 28, options.days}):
            print(f"\n{days} days, ms{'':>20}{'event':>10}{'(cpu)':>8}{'sent':>10}{'(cpu)':>8}")
            for name, report in reports():
                if options.only is not None and not any(text in name for text in options.only):
                    continue
                measured: list[float] = []
                for basis in (Basis.EVENT, Basis.SENT):
                    measured += await measure(database, report, scope_of(days, basis))
                print(f"{name:<30}" + "".join(f"{ms:>{width}.1f}" for ms, width in zip(measured, (10, 8, 10, 8), strict=True)))


def reports() -> list[tuple[str, Callable[[Connection, StatisticsFilter], Any]]]:
    berlin, kolkata = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kolkata")
    one = "campaign 7"

    def of_campaign(scope: StatisticsFilter) -> StatisticsFilter:
        return StatisticsFilter(scope.application_id, scope.since, scope.until, one, basis=scope.basis)

    return [
        ("totals", totals),
        ("daily UTC", lambda connection, scope: daily(connection, scope, UTC)),
        ("daily Europe/Berlin", lambda connection, scope: daily(connection, scope, berlin)),
        ("daily Asia/Kolkata", lambda connection, scope: daily(connection, scope, kolkata)),
        ("by hour Europe/Berlin", lambda connection, scope: by_hour(connection, scope, berlin)),
        ("by country", by_country),
        ("by campaign, 100 a page", lambda connection, scope: campaign_page(connection, scope, 100)),
        ("by destination", by_destination),
        ("by label", by_label),
        ("totals of a campaign", lambda connection, scope: totals(connection, of_campaign(scope))),
        ("countries of a campaign", lambda connection, scope: by_country(connection, of_campaign(scope))),
    ]


async def measure(
    database: Database, report: Callable[[Connection, StatisticsFilter], Any], scope: StatisticsFilter
) -> tuple[float, float]:
    """Return the median of the elapsed times and the smallest processor time of a report, in milliseconds."""
    elapsed, used = [], []
    for _ in range(RUNS):
        started, before = time.perf_counter(), time.process_time()
        result = await database.read(report, scope)
        counted = result.groups.values() if isinstance(result, StatisticsReport) else [one for _, one in result.campaigns]
        for one in counted:
            figures(one)
        elapsed.append((time.perf_counter() - started) * 1000)
        used.append((time.process_time() - before) * 1000)
    return statistics.median(elapsed), min(used)


async def fill_counts(database: Database, options: argparse.Namespace) -> None:
    cohorts = options.campaigns * options.countries
    await database.write(_fill_names, options)
    rng = random.Random(7)
    last = to_ms(END) // TIME_SLOT_MS
    slots = options.days * 96
    each = options.counts // cohorts
    metrics = [
        "messages",
        "segments",
        "links",
        "sent",
        "delivered",
        "clicks",
        "clicked_messages",
        "converted_messages",
        "clicked_links",
        "suspected_hits",
    ]
    metrics += ["device:phone", "browser:Chrome"]
    rows: list[tuple[object, ...]] = []
    for cohort in range(1, cohorts + 1):
        written = 0
        while written < each:
            slot = last - rng.randrange(slots)
            for metric in [*metrics, *(f"ttc:{rng.randrange(30, 250)}" for _ in range(3))]:
                amount = str(1 + rng.randrange(50))
                rows.append((cohort, slot, metric, amount, amount))
                written += 1
        if len(rows) >= BATCH_ROWS:
            await database.write(_counts, rows)
            rows = []
    await database.write(_counts, rows)
    for kind in Kind:
        await database.write(_roll_up, kind)
    after = (-1, -1, -1)
    while (last_row := await database.write(_pack, after)) is not None:
        after = last_row


def _roll_up(connection: Connection, kind: Kind) -> None:
    """Roll up the counts with SQL, which is faster than `fold`. Each cohort has one destination and one label."""
    named = {}
    for row in connection.execute(select(schema.cohorts)):
        number = row.id % DESTINATIONS
        named[row.id] = {
            Kind.APPLICATION: GroupName(1, kind, row.source),
            Kind.CAMPAIGN: GroupName(1, kind, row.source, row.campaign),
            Kind.COUNTRY: GroupName(1, kind, row.source, country=row.country),
            Kind.COHORT: GroupName(1, kind, row.source, row.campaign, row.country),
            Kind.DESTINATION: GroupName(1, kind, row.source, row.campaign, name=f"shop.example/{row.campaign}/{number}"),
            Kind.LABEL: GroupName(1, kind, row.source, row.campaign, name=f"label {number}"),
        }[kind]
    columns = ("id", "application_id", "kind", "source", "campaign", "country", "name")
    connection.execute(
        insert(schema.count_groups), [dict(zip(columns, (name.id, *name), strict=True)) for name in set(named.values())]
    )
    table = f"groups_{kind}"
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {table} (cohort_id INTEGER PRIMARY KEY, group_id BIGINT)")
    pairs = ", ".join(f"({cohort}, {name.id})" for cohort, name in named.items())
    connection.exec_driver_sql(f"INSERT INTO {table} VALUES {pairs}")
    is_sqlite = connection.dialect.name == "sqlite"
    pack = "json_group_object(metric, amount)" if is_sqlite else "json_object_agg(metric, amount)::text"
    for basis in Basis:
        for level in Level:
            if kind is Kind.COHORT and basis is Basis.EVENT:
                continue
            connection.exec_driver_sql(
                f"INSERT INTO rollups SELECT group_id, {series(basis, level)}, period, {pack} FROM "
                f"(SELECT g.group_id, c.quarter / {level.slots} AS period, c.metric, sum(CAST(c.amount AS INTEGER)) AS amount "
                f"FROM counts AS c JOIN {table} AS g ON g.cohort_id = c.cohort_id "
                f"GROUP BY g.group_id, c.quarter / {level.slots}, c.metric) AS sums GROUP BY group_id, period"
            )


def _pack(connection: Connection, after: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Write the next rows of rolled-up counts as `fold` does. Return the key of the last row, or None at the end."""
    c = schema.rollups.c
    key = tuple_(c.group_id, c.series, c.period)
    statement = select(c.group_id, c.series, c.period, c.data).where(key > after).order_by(c.group_id, c.series, c.period)
    rows = connection.execute(statement.limit(BATCH_ROWS)).all()
    packed = [(*row[:3], data) for row in rows if '"ttc":' in (data := rollup_data.dumps(row.data))]
    raw_sql.execute_bulk(connection, rollups.UPSERT, packed)
    return (rows[-1].group_id, rows[-1].series, rows[-1].period) if rows else None


def _fill_names(connection: Connection, options: argparse.Namespace) -> None:
    names = [
        {"application_id": 1, "campaign": f"campaign {campaign}", "source": "api", "country": f"C{country}"}
        for country in range(options.countries)
        for campaign in range(options.campaigns)
    ]
    connection.execute(insert(schema.cohorts), names)


async def _fill_links(database: Database, options: argparse.Namespace) -> None:
    message = BulkInsert(
        schema.messages,
        *("id", "application_id", "cohort_id", "message_id", "request_id", "content_hash", "to_address", "state", "created_at"),
        *("encoding", "segments"),
    )
    link = BulkInsert(
        schema.links,
        *("id", "code", "message_id", "application_id", "cohort_id", "domain_id", "position", "flags", "url", "expires_at"),
    )
    start = first_id_at(to_ms(END - timedelta(days=options.days)))
    cohorts = options.campaigns * options.countries
    for first in range(0, options.links, BATCH_ROWS):
        numbers = range(first, min(first + BATCH_ROWS, options.links))
        at = to_ms(END)
        messages = [
            (start + number, 1, 1 + number % cohorts, f"m{number}", "", "", "+14085550100", 0, at, "GSM-7", 1) for number in numbers
        ]
        links = [
            (start + number, f"c{number}", start + number, 1, 1 + number % cohorts, 0, 0, 0, "https://shop.example/", at)
            for number in numbers
        ]
        await database.write(message, messages)
        await database.write(link, links)


def _table_rows(connection: Connection) -> dict[str, int]:
    tables = (schema.cohorts, schema.counts, schema.rollups, schema.count_groups, schema.links)
    return {table.name: connection.scalar(select(func.count()).select_from(table)) or 0 for table in tables}


if __name__ == "__main__":
    main()
