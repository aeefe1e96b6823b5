"""`make bench`: one run on this machine, one table: figure, ratio to the ceiling of the same run, target, met or not.

    python -m benchmarks.bench [--quick] [--only WORD ...] [--folder DIR] [--json] [--chart FILE.svg]

`--quick` uses 200,000 links and short runs. Without it a million links are made first, and ten million for the row about many
links, which takes some ten minutes and 10 GB in `--folder`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvloop

from benchmarks import deliveries, growth, loads, postgresql, rig
from benchmarks.rig import Figure, Load, Server

CONVERTED = 100_000  # messages


class Run:
    def __init__(self, quick: bool) -> None:
        self.seconds = 4.0 if quick else 10.0
        self.many = 200_000 if quick else 1_000_000
        self.most = 1_000_000 if quick else 10_000_000
        self.newest = 500_000 if quick else 1_000_000  # of these
        self.folder: Path | None = None  # of the large files; the temporary one
        self.raw = 0.0
        self.figures: list[Figure] = []

    def add(self, work: str, value: float, unit: str, *, target: float | None = None, of_raw: bool = True, note: str = "") -> None:
        ratio = value / self.raw if of_raw and self.raw else None
        measured = ratio if ratio is not None else value
        met = None if target is None else measured >= target
        text = "" if target is None else (f"{target:.2f} of raw" if ratio is not None else f"{target:,.0f} {unit}")
        self.figures.append(Figure(work, value, unit, ratio, text, met, note))


def check_recorded(server: Server, before: int, answered: int, slack: int = 64) -> None:
    """Every 302 that was counted has its row; wrk may leave as many requests under way as it has connections."""
    recorded = server.query("SELECT count(*) FROM hits") - before
    if not answered <= recorded <= answered + slack:
        sys.exit(f"the run is void: {answered} redirects were answered, {recorded} hits are in the store")


def settled(server: Server, table: str = "hits") -> int:
    """The number of rows, once what wrk left under way is done."""
    time.sleep(0.5)  # the last answers may be under way
    rows: int = server.query(f"SELECT count(*) FROM {table}")
    return rows


def clicks(run: Run) -> None:
    with deliveries.receiver() as sink, rig.server() as server:
        started = time.perf_counter()
        codes = server.links(run.many)
        filled = time.perf_counter() - started
        with server.api() as client:
            tracker = {"name": "bench", "url": f"http://127.0.0.1:{sink.port}/", "events": ["state"], "format": "scg"}
            answer = client.post("/api/v1/trackers", json=tracker)
            answer.raise_for_status()
        distinct = loads.first_clicks(server, codes)
        before = settled(server)
        load = distinct.run(run.seconds)
        check_recorded(server, before, load.requests)
        firsts = server.query("SELECT count(*) FROM first_clicks WHERE at IS NOT NULL")
        note = f"p50 {load.p50:.1f} ms, p99 {load.p99:.1f} ms (target 10), {firsts:,} first clicks out of {run.many:,} links, "
        note += f"{sink.count():,} delivered meanwhile"
        run.add("first clicks, distinct links", load.per_second, "/s", target=0.45, note=note)
        before = settled(server)
        load = loads.repeat_clicks(server, codes[0]).run(run.seconds)
        check_recorded(server, before, load.requests)
        run.add("repeat clicks, one hot link", load.per_second, "/s", target=0.50, note=f"p99 {load.p99:.1f} ms")
        load = loads.unknown_codes(server).run(run.seconds)
        run.add(
            "unknown codes", load.per_second, "/s", target=0.60, note=f"p99 {load.p99:.1f} ms, {load.not_2xx_3xx:,} answered 404"
        )
        run.add("links made, 500 recipients a request", run.many / filled, "/s", of_raw=False, note="one connection, while filling")
        run.add("resident memory", server.resident_mb, "MB", of_raw=False)


def lonely(run: Run) -> None:
    """One person alone: every click is a first one, and waits for its own commit. On a server that has run for a while: its WAL is
    written over, which a disk does faster than letting it grow."""
    with rig.server() as server:
        paths = [f"/{code}" for code in server.links(60_000)]
        salts = server.salts_of_wal()
        rig.wrk(server.base, seconds=7, connections=1, script=rig.script(server.folder, "before", paths[:30_000]))
        if server.salts_of_wal() == salts:
            sys.exit("the run is void: the WAL did not begin anew")
        before = settled(server)
        script = rig.script(server.folder, "lonely", paths[30_000:])
        alone = rig.wrk(server.base, seconds=3, connections=1, script=script)
        check_recorded(server, before, alone.requests)
        if alone.requests > 30_000:
            sys.exit("the run is void: links were clicked twice")
        fsync = rig.fsync_ms(server.folder)
    raw = rig.measure_raw(2, connections=1)
    most = 3 * raw.p50 + fsync
    note = f"p99 {alone.p99:.2f} ms; raw {raw.p50:.3f} ms, an fsync {fsync:.3f} ms"
    run.figures.append(Figure("one lonely click", alone.p50, "ms", target=f"{most:.2f} ms", met=alone.p50 < most, note=note))


def rewrites(run: Run) -> None:
    with rig.server() as server:
        for recipients, connections in ((1, 64), (100, 16)):
            work = loads.rewrites(server, recipients, connections)
            work.run(1)
            before = settled(server, "links")
            load = work.run(run.seconds)
            made = server.query("SELECT count(*) FROM links") - before
            if not load.requests * recipients <= made <= (load.requests + connections) * recipients or load.not_2xx_3xx:
                sys.exit(f"the run is void: {load.requests} rewrites of {recipients} were answered, {made} links are in the store")
            note = f"p99 {load.p99:.1f} ms"
            if recipients == 1:
                run.add("rewrite, one message a request", load.per_second, "/s", target=0.12, note=note)
            else:
                value = load.per_second * recipients
                run.add("rewrite, 100 recipients a request", value, "messages/s", target=20_000, of_raw=False, note=note)


def conversions(run: Run) -> None:
    with rig.server() as server:
        load = loads.conversions(server, CONVERTED).run(run.seconds)
        made = server.query("SELECT count(*) FROM conversions")
        if load.not_2xx_3xx or made < min(load.requests, CONVERTED):
            sys.exit(f"the run is void: {load.requests} conversions were answered, {made} are in the store")
        run.add("conversions in", load.per_second, "/s", target=0.15, note=f"p99 {load.p99:.1f} ms, {made:,} stored")


#: A store of so many links lets a run be only so short: each click is a first one, on a link that nobody clicked before.
FEW, WARMING, SHORT, TIMES = 100_000, 35_000, 2.0, 3


def many(run: Run) -> None:
    """The same clicks on a store of 100,000 links and on one of many more, made by the service's own statements: on any of them, as
    likely as another, and then on the newest alone, where people's clicks are. Medians of short runs, each on its own server."""
    chance = random.Random(1)
    few: list[Load] = []
    for _ in range(TIMES):
        with _grown(run, FEW) as (url, folder, codes):
            few.append(_short_run(url, folder, chance.sample(codes, FEW))[0])
    rate = _add_median(run, f"first clicks, {FEW:,} links", few)
    with _grown(run, run.most) as (url, folder, codes):
        any_of_them = chance.sample(codes, FEW * TIMES)
        clicked = set(any_of_them)
        newest = chance.sample([code for code in codes[-run.newest :] if code not in clicked], FEW * TIMES)
        memory = 0.0
        for which, chosen in (("", any_of_them), (f", on the newest {run.newest:,}", newest)):
            loads = []
            for start in range(TIMES):
                load, memory = _short_run(url, folder, chosen[start::TIMES])
                loads.append(load)
            ratio = _add_median(run, f"first clicks, {run.most:,} links{which}", loads) / rate
            name = f"{run.most:,} links instead of {FEW:,}{which}"
            run.figures.append(Figure(name, ratio, "x", target="0.80 x", met=ratio >= 0.8))
    run.figures.append(Figure(f"resident memory with {run.most:,} links", memory, "MB", target="200 MB", met=memory <= 200))


@contextlib.contextmanager
def _grown(run: Run, links: int) -> Iterator[tuple[str, Path, list[str]]]:
    """The URL of a store with so many links, its folder, and their codes, oldest first."""
    folder = Path(tempfile.mkdtemp(prefix="shortener-many-", dir=run.folder))
    try:
        with growth.store("sqlite", folder) as url:
            yield url, folder, asyncio.run(growth.fill(url, folder, links, 80, 0.0, growth.Grown("sqlite", links)))
    finally:
        shutil.rmtree(folder)


def _short_run(url: str, folder: Path, codes: Sequence[str]) -> tuple[Load, float]:
    """Clicks on these links, with a fresh server; and its memory in MB."""
    with rig.server(data_dir=str(folder), database_url=url, secret=growth.SECRET) as server:
        for name, some, seconds in (("warming", codes[:WARMING], SHORT / 2), ("many", codes[WARMING:], SHORT)):
            before = settled(server)
            load = rig.wrk(server.base, seconds=seconds, script=rig.script(folder, name, [f"/{code}" for code in some]))
            check_recorded(server, before, load.requests)
            if load.requests > len(some):
                sys.exit(f"the run is void: {load.requests} clicks came on {len(some)} links, and were not all first ones")
        return load, server.resident_mb


def _add_median(run: Run, work: str, loads: Sequence[Load]) -> float:
    rate = rig.median([load.per_second for load in loads])
    run.add(work, rate, "/s", note=f"p99 {rig.median([load.p99 for load in loads]):.1f} ms; medians of {len(loads)} runs")
    return rate


def purging(run: Run) -> None:
    """Expired links go while people click, at the pace that growth.py clicks at."""
    links = 5 * run.many
    found = growth.Grown("sqlite", links)
    folder = Path(tempfile.mkdtemp(prefix="shortener-purge-", dir=run.folder))
    try:
        with growth.store("sqlite", folder) as url:
            codes = asyncio.run(growth.fill(url, folder, links, 112, 0.2, found))
            growth.clicks_beside_the_purge(url, folder, codes, 112, max(run.seconds, 10), found)  # two checkpoints
    finally:
        shutil.rmtree(folder)
    without, beside = found.clicks["without"].p99, found.clicks["with"].p99
    note = f"p99 {without:.1f} ms without, {beside:.1f} ms beside it; {found.purged_per_second:,.0f} messages a second went"
    run.figures.append(
        Figure("purge beside clicks, p99", beside / without, "x", target="below 2 x", met=beside < 2 * without, note=note)
    )


def delivering(run: Run) -> None:
    with deliveries.receiver() as sink:
        rate = uvloop.run(deliveries.deliver(sink.port, 20_000, 4, 64))
        if sink.count() != 20_000:
            sys.exit("the run is void: the receiver got another number of deliveries than were due")
    run.add("deliveries out", rate, "/s", target=deliveries.LEAST_PER_SECOND, of_raw=False, note="everything durable, 4 trackers")


def scaled_out(run: Run) -> None:
    """PostgreSQL and Redis on the same two cores; with a ceiling of its own run."""
    for figure in postgresql.measure(50_000 if run.many < 1_000_000 else 500_000, run.seconds):
        if figure.work.startswith("first clicks"):
            assert figure.ratio is not None
            figure.target, figure.met = "0.15 of raw", figure.ratio >= 0.15
        figure.work = f"PostgreSQL + Redis: {figure.work}"
        run.figures.append(figure)


def starting(run: Run) -> None:
    def clock(*command: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "shortener", *command], check=True, capture_output=True)
            times.append(time.perf_counter() - began)
        return rig.median(times)

    helped = clock("--help")
    run.figures.append(Figure("shortener --help", helped, "s", target="0.3 s", met=helped <= 0.3))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        with rig.server():
            times.append(time.perf_counter() - began)
    first = rig.median(times)
    run.figures.append(Figure("start to first answer (fresh folder)", first, "s", target="1.0 s", met=first <= 1.0))


WORKS: dict[str, Callable[[Run], None]] = {
    "clicks": clicks,
    "lonely": lonely,
    "rewrites": rewrites,
    "conversions": conversions,
    "deliveries": delivering,
    "many": many,
    "purge": purging,
    "postgresql": scaled_out,
    "starting": starting,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200,000 links, short runs")
    parser.add_argument("--only", choices=WORKS, nargs="+", help="parts of the table")
    parser.add_argument("--folder", type=Path, help="for the large files")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--chart", type=Path, help="write a bar chart as SVG")
    options = parser.parse_args()
    rig.need_wrk()
    run = Run(options.quick)
    run.folder = options.folder
    before = rig.measure_raw(run.seconds / 2).per_second
    run.raw = before
    for name, work in WORKS.items():
        if options.only is None or name in options.only:
            print(f"{name} ...", file=sys.stderr)
            work(run)
    after = rig.measure_raw(run.seconds / 2).per_second
    drift = abs(after - before) / before
    if options.json:
        print(json.dumps({"raw": [before, after], "figures": [vars(figure) for figure in run.figures]}, indent=2))
    else:
        print(f"raw: {before:,.0f}/s before, {after:,.0f}/s after" + ("  (a noisy machine: read with care)" if drift > 0.1 else ""))
        print(rig.table(run.figures))
    if options.chart:
        options.chart.write_text(chart(run.figures))


def chart(figures: list[Figure]) -> str:
    """Bars of the ratios to raw, with a mark at each target."""
    bars = [figure for figure in figures if figure.ratio is not None]
    height = 30 * len(bars) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="760" height="{height}" fill="white"/>',
        '<text x="10" y="20">Share of the raw ASGI ceiling in the same run; the line marks the target</text>',
    ]
    for index, one in enumerate(bars):
        assert one.ratio is not None
        y = 34 + 30 * index
        colour = {None: "#777", True: "#2a7", False: "#c63"}[one.met]
        parts.append(f'<text x="10" y="{y + 15}">{one.work}</text>')
        parts.append(f'<rect x="270" y="{y}" width="{400 * min(one.ratio, 1):.0f}" height="20" fill="{colour}"/>')
        parts.append(f'<text x="{276 + 400 * min(one.ratio, 1):.0f}" y="{y + 15}">{one.ratio:.2f}</text>')
        if one.target:
            x = 270 + 400 * float(one.target.split()[0])
            parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{y - 3}" y2="{y + 23}" stroke="black"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
