"""`make bench`: measure the service on this machine and print a table of figures, ratios to the baseline, and targets.

    python -m benchmarks.bench [--quick] [--only PART ...] [--compare CHECKOUT] [--folder DIR] [--json] [--chart FILE.svg]

The goals are stated for a machine with a baseline of 49,700/s. The report converts them to the speed of this machine. On a
machine with half of that baseline, the goal of a rate is half as high, and the goal of a duration is twice as long.

`--quick` uses 200,000 links and short runs. A full run uses a million links, and ten million links for the figures of a large
database. It takes about ten minutes, and needs 10 GB in `--folder`. Clicks are the requests of real handsets behind a proxy
(`traffic.py`).

`--compare CHECKOUT` starts one server with this code and one with the code in another folder, and measures them in alternating
rounds (`compare.py`). `--only` may then name clicks, rewrites and conversions.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import uvloop

from benchmarks import compare, deliveries, delivery_rig, filling, growth, loads, operations, postgresql, rig, traffic
from benchmarks import mixed as mixed_load
from benchmarks.rig import Figure, Goal, Load, Server

CONVERTED_MESSAGES = 100_000


class Run:
    """The sizes and durations of a run, the rate of its baseline, and its figures."""

    def __init__(self, quick: bool) -> None:
        self.is_quick = quick
        self.seconds = 4.0 if quick else 10.0
        self.many = 200_000 if quick else 1_000_000
        self.most = 1_000_000 if quick else 10_000_000
        self.newest = 500_000 if quick else 1_000_000  # a link counts as new if it is one of this many newest links
        self.folder: Path | None = None  # folder of the databases; None: the system's temporary folder
        self.baseline = 0.0  # responses per second of the bare ASGI application
        self.figures: list[Figure] = []

    @property
    def speed(self) -> float:
        """The speed of this machine, relative to the machine for which the goals are stated."""
        return self.baseline / rig.REFERENCE_BASELINE

    def add(self, work: str, value: float, unit: str, *, goal: Goal | None = None, relative: bool = True, note: str = "") -> None:
        """Add a figure to the report, with its ratio to the baseline if `relative` is true."""
        ratio = value / self.baseline if relative and self.baseline else None
        self.figures.append(Figure(work, value, unit, ratio, goal, note=note))

    def add_p99(self, work: str, load: Load, goal: Goal | None = None) -> None:
        self.add(f"{work}, p99", load.p99, "ms", goal=goal, relative=False)


def check_recorded(server: Server, before: int, responses: int, slack: int = 64) -> None:
    """Exit if the database has fewer new hits than wrk counted responses with 302. Up to `slack` more hits are accepted: when wrk
    ends, each connection may have one request whose response wrk does not count."""
    recorded = server.query("SELECT count(*) FROM hits") - before
    if not responses <= recorded <= responses + slack:
        sys.exit(f"the run is void: {responses} redirects were sent, but {recorded} hits are in the database")


def settled(server: Server, table: str = "hits") -> int:
    """Wait until the server has finished the last requests of wrk. Return the number of rows of `table`."""
    time.sleep(0.5)  # wrk ends before the server has sent the last responses
    rows: int = server.query(f"SELECT count(*) FROM {table}")
    return rows


def clicks(run: Run) -> None:
    """Measure first clicks, repeated clicks and unknown codes, while a tracker receives the events."""
    with delivery_rig.receiver() as sink, rig.server() as server:
        started = time.perf_counter()
        codes = server.links(run.many)
        filled = time.perf_counter() - started
        with server.api() as client:
            tracker = {"name": "bench", "url": f"http://127.0.0.1:{sink.port}/", "events": ["state"], "format": "scg"}
            client.post("/api/v1/trackers", json=tracker).raise_for_status()
        distinct = loads.first_clicks(server, codes)
        before = settled(server)
        load = distinct.run(run.seconds)
        check_recorded(server, before, load.requests)
        firsts = server.query("SELECT count(*) FROM first_clicks WHERE at IS NOT NULL")
        note = f"p50 {load.p50:.1f} ms, p99 {load.p99:.1f} ms, {firsts:,} first clicks of {run.many:,} links, "
        note += f"{sink.count():,} delivered meanwhile"
        run.add("first clicks, distinct links", load.per_second, "/s", goal=rig.share(0.45), note=note)
        run.add_p99("first clicks", load, rig.duration(8))
        before = settled(server)
        load = loads.repeat_clicks(server, codes[0]).run(run.seconds)
        check_recorded(server, before, load.requests)
        run.add("repeat clicks, one hot link", load.per_second, "/s", goal=rig.share(0.55), note=f"p99 {load.p99:.1f} ms")
        load = loads.unknown_codes(server).run(run.seconds)
        run.add(
            "unknown codes",
            load.per_second,
            "/s",
            goal=rig.share(0.60),
            note=f"p99 {load.p99:.1f} ms, {load.not_2xx_3xx:,} responses were 404",
        )
        run.add("links created, 500 recipients a request", run.many / filled, "/s", relative=False, note="one connection")
        run.add("resident memory", server.resident_mb, "MB", relative=False)


def single(run: Run) -> None:
    """Measure first clicks of one client, so that each commit contains only one click.

    Clicks before the measurement make SQLite restart the WAL from its beginning. From then on, SQLite overwrites the WAL file,
    which is faster than extending it."""
    with rig.server() as server:
        paths = [f"/{code}" for code in server.links(60_000)]
        salts = server.salts_of_wal()
        rig.wrk(server.base, traffic.script(server.folder, "before", paths[:30_000]), seconds=7, connections=1)
        if server.salts_of_wal() == salts:
            sys.exit("the run is void: the WAL did not restart at its beginning")
        before = settled(server)
        load = rig.wrk(server.base, traffic.script(server.folder, "single", paths[30_000:]), seconds=3, connections=1)
        check_recorded(server, before, load.requests)
        if load.requests > 30_000:
            sys.exit("the run is void: links were clicked twice")
        fsync = rig.fsync_ms(server.folder)
    baseline = rig.measure_baseline(2, connections=1)
    limit = 3 * baseline.p50 + fsync
    note = f"p99 {load.p99:.2f} ms; baseline {baseline.p50:.3f} ms, an fsync {fsync:.3f} ms"
    run.figures.append(Figure("a single click", load.p50, "ms", goal=rig.maximum(limit), note=note))


def rewrites(run: Run) -> None:
    """Measure rewrites with one and with 100 recipients per request."""
    with rig.server() as server:
        for recipients, connections in ((1, 64), (100, 16)):
            work = loads.rewrites(server, recipients, connections)
            work.run(1)
            before = settled(server, "links")
            load = work.run(run.seconds)
            created = server.query("SELECT count(*) FROM links") - before
            if not load.requests * recipients <= created <= (load.requests + connections) * recipients or load.not_2xx_3xx:
                sys.exit(
                    f"the run is void: {load.requests} rewrites of {recipients} succeeded, but {created} links are in the database"
                )
            note = f"p99 {load.p99:.1f} ms"
            if recipients == 1:
                run.add("rewrite, one message a request", load.per_second, "/s", goal=rig.rate(8_000), note=note)
            else:
                value = load.per_second * recipients
                run.add("rewrite, 100 recipients a request", value, "messages/s", goal=rig.rate(25_000), note=note)


def conversions(run: Run) -> None:
    """Measure conversion reports, one for each message."""
    with rig.server() as server:
        load = loads.conversions(server, CONVERTED_MESSAGES).run(run.seconds)
        stored = server.query("SELECT count(*) FROM conversions")
        if load.not_2xx_3xx or stored < min(load.requests, CONVERTED_MESSAGES):
            sys.exit(f"the run is void: {load.requests} conversions succeeded, but {stored} are in the database")
        run.add(
            "conversions received", load.per_second, "/s", goal=rig.share(0.15), note=f"p99 {load.p99:.1f} ms, {stored:,} stored"
        )


#: The runs of `many` are short, because each link can have only one first click, and the smaller database has few links.
FEW_LINKS, WARM_UP_CLICKS, SHORT_SECONDS, REPEATS = 100_000, 35_000, 2.0, 3


def many(run: Run) -> None:
    """Measure first clicks on two databases that are filled in advance: one with 100,000 links and a much larger one.

    The larger database is measured twice: with clicks on random links, and with clicks on random new links, because most people
    click on new links. The figures are medians of short runs, each with a new server."""
    chance = random.Random(1)
    few: list[Load] = []
    for _ in range(REPEATS):
        with _grown(run, FEW_LINKS) as (url, folder, codes):
            few.append(_short_run(url, folder, chance.sample(codes, FEW_LINKS))[0])
    rate = _add_median(run, f"first clicks, {FEW_LINKS:,} links", few)
    with _grown(run, run.most) as (url, folder, codes):
        random_links = chance.sample(codes, FEW_LINKS * REPEATS)
        clicked = set(random_links)
        newest = chance.sample([code for code in codes[-run.newest :] if code not in clicked], FEW_LINKS * REPEATS)
        memory = 0.0
        for which, chosen in (("", random_links), (f", on the newest {run.newest:,}", newest)):
            results = []
            for start in range(REPEATS):
                load, memory = _short_run(url, folder, chosen[start::REPEATS])
                results.append(load)
            ratio = _add_median(run, f"first clicks, {run.most:,} links{which}", results) / rate
            name = f"{run.most:,} links instead of {FEW_LINKS:,}{which}"
            run.figures.append(Figure(name, ratio, "x", goal=rig.minimum(0.8)))
    run.figures.append(Figure(f"resident memory with {run.most:,} links", memory, "MB", goal=rig.maximum(150)))


@contextlib.contextmanager
def _grown(run: Run, links: int) -> Iterator[tuple[str, Path, list[str]]]:
    """Create a database with `links` links. Yield the URL and the folder of the database, and the codes, oldest first."""
    folder = Path(tempfile.mkdtemp(prefix="shortener-many-", dir=run.folder))
    try:
        with growth.empty_database("sqlite", folder) as url:
            codes = asyncio.run(growth.fill(url, folder, links, 80, 0.0, growth.Grown("sqlite", links)))
            os.sync()  # The operating system may still write the filled database to the disk, which delays checkpoints.
            yield url, folder, codes
    finally:
        shutil.rmtree(folder)


def _short_run(url: str, folder: Path, codes: Sequence[str]) -> tuple[Load, float]:
    """Start a server and click on these links. Return the result of wrk and the server's memory in MiB."""
    with rig.server(data_dir=str(folder), database_url=url, secret=filling.SECRET) as server:
        for name, part, seconds in (
            ("warm_up", codes[:WARM_UP_CLICKS], SHORT_SECONDS / 2),
            ("many", codes[WARM_UP_CLICKS:], SHORT_SECONDS),
        ):
            before = settled(server)
            load = rig.wrk(server.base, traffic.script(folder, name, [f"/{code}" for code in part]), seconds=seconds)
            check_recorded(server, before, load.requests)
            if load.requests > len(part):
                sys.exit(f"the run is void: {load.requests} clicks went to {len(part)} links, so not all were first clicks")
        return load, server.resident_mb


def _add_median(run: Run, work: str, results: Sequence[Load]) -> float:
    rate = rig.median([load.per_second for load in results])
    run.add(work, rate, "/s", note=f"p99 {rig.median([load.p99 for load in results]):.1f} ms; medians of {len(results)} runs")
    return rate


def purging(run: Run) -> None:
    """Measure the latency of clicks while a purge deletes expired links. The clicks have the same rate as in growth.py."""
    links = 5 * run.many
    found = growth.Grown("sqlite", links)
    folder = Path(tempfile.mkdtemp(prefix="shortener-purge-", dir=run.folder))
    try:
        with growth.empty_database("sqlite", folder) as url:
            codes = asyncio.run(growth.fill(url, folder, links, 112, 0.2, found))
            # Clicks are sent for at least ten seconds, so that two checkpoints of the WAL occur.
            growth.clicks_during_a_purge(url, folder, codes, 112, max(run.seconds, 10), found)
    finally:
        shutil.rmtree(folder)
    without, beside = found.clicks["without"].p99, found.clicks["with"].p99
    note = f"p99 {without:.1f} ms without a purge, {beside:.1f} ms during it"
    note += f"; {found.purged_per_second:,.0f} messages a second were purged"
    run.figures.append(Figure("clicks during a purge, p99", beside / without, "x", goal=rig.maximum(2), note=note))


def delivering(run: Run) -> None:
    """Measure deliveries of events to a local receiver."""
    with delivery_rig.receiver() as sink:
        rate = uvloop.run(deliveries.deliver(sink.port, 20_000, 4, 64))
        if sink.count() != 20_000:
            sys.exit("the run is void: the receiver did not get each delivery once")
    run.add("deliveries sent", rate, "/s", goal=rig.rate(7_000), note="everything durable, 4 trackers")


def scaled_out(run: Run) -> None:
    """Measure the service with PostgreSQL and Redis on the same machine, with a separate baseline."""
    for figure in postgresql.measure(50_000 if run.many < 1_000_000 else 500_000, run.seconds):
        figure.work = f"PostgreSQL + Redis: {figure.work}"
        run.figures.append(figure)


def starting(run: Run) -> None:
    """Measure the duration of `shortener --help` and of the first start of a server."""

    def seconds_of(*command: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "shortener", *command], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return rig.median(times)

    help_seconds = seconds_of("--help")
    run.figures.append(Figure("shortener --help", help_seconds, "s", goal=rig.duration(0.04)))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with rig.server():
            times.append(time.perf_counter() - start)
    first = rig.median(times)
    run.figures.append(Figure("start to first response (empty folder)", first, "s", goal=rig.duration(0.5)))


def exporting(run: Run) -> None:
    """Measure the CSV export."""
    run.figures += operations.exporting(run.many // 10 if run.is_quick else run.many)


def reporting(run: Run) -> None:
    """Measure the statistics reports."""
    run.figures += operations.reporting(135_000 if run.is_quick else 1_350_000)


def maintaining(run: Run) -> None:
    """Measure the commands verify, reclassify, copy and purge."""
    run.figures += operations.maintaining(run.many // 10 if run.is_quick else run.most, run.folder)


def two_processes(run: Run) -> None:
    """Measure two processes on PostgreSQL and Redis, compared with one."""
    run.figures += operations.two_processes(run.many // 4, run.seconds)


def mixed(run: Run) -> None:
    """Measure clicks during rewrites, exports, pages of the portal, a purge and many due deliveries."""
    run.figures += mixed_load.measure(
        run.many // 4 if run.is_quick else run.many, 10_000 if run.is_quick else 100_000, max(run.seconds, 8), run.folder
    )


def installing(run: Run) -> None:
    """Count the packages of an installation, and measure the memory of an idle process."""
    run.figures += operations.installing()


WORKS: dict[str, Callable[[Run], None]] = {
    "clicks": clicks,
    "single": single,
    "rewrites": rewrites,
    "conversions": conversions,
    "deliveries": delivering,
    "many": many,
    "purge": purging,
    "postgresql": scaled_out,
    "starting": starting,
    "export": exporting,
    "statistics": reporting,
    "maintenance": maintaining,
    "workers": two_processes,
    "mixed": mixed,
    "install": installing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="use 200,000 links and short runs")
    parser.add_argument("--only", choices=WORKS, nargs="+", help="measure only these parts of the report")
    parser.add_argument(
        "--compare", type=Path, metavar="CHECKOUT", help="also measure the code in this folder, in alternating rounds"
    )
    parser.add_argument("--folder", type=Path, help="folder for the databases (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--chart", type=Path, help="write a bar chart of the ratios to this SVG file")
    options = parser.parse_args()
    rig.need_wrk()
    run = Run(options.quick)
    run.folder = options.folder
    before = run.baseline = rig.measure_baseline(run.seconds / 2).per_second
    if options.compare:
        run.figures += compare.figures(options.compare.resolve(), run.seconds, run.many, options.only)
    for name, work in WORKS.items():
        if not options.compare and (options.only is None or name in options.only):
            print(f"{name} ...", file=sys.stderr)
            earlier = len(run.figures)
            work(run)
            for figure in run.figures[earlier:]:
                figure.judge(run.speed)
            print(rig.table(run.figures[earlier:]), file=sys.stderr)  # now, because a later part may fail
    after = rig.measure_baseline(run.seconds / 2).per_second
    drift = abs(after - before) / before
    if options.json:
        print(json.dumps({"baseline": [before, after], "figures": [asdict(figure) for figure in run.figures]}, indent=2))
    else:
        warning = "  (the machine was not idle: the figures are not reliable)" if drift > 0.1 else ""
        print(f"baseline: {before:,.0f}/s before, {after:,.0f}/s after{warning}")
        print(f"targets of rates and durations are for a machine of this speed, {run.speed:.2f} of the one of the goals")
        print(rig.table(run.figures))
    if options.chart:
        options.chart.write_text(chart(run.figures))


def chart(figures: list[Figure]) -> str:
    """Return an SVG bar chart of the ratios to the baseline, with a line at each target."""
    bars = [figure for figure in figures if figure.ratio is not None]
    height = 30 * len(bars) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="760" height="{height}" fill="white"/>',
        '<text x="10" y="20">Ratio to the bare ASGI application in the same run; the line marks the target</text>',
    ]
    for index, figure in enumerate(bars):
        assert figure.ratio is not None
        y = 34 + 30 * index
        colour = {None: "#777", True: "#2a7", False: "#c63"}[figure.met]
        parts.append(f'<text x="10" y="{y + 15}">{figure.work}</text>')
        parts.append(f'<rect x="270" y="{y}" width="{400 * min(figure.ratio, 1):.0f}" height="20" fill="{colour}"/>')
        parts.append(f'<text x="{276 + 400 * min(figure.ratio, 1):.0f}" y="{y + 15}">{figure.ratio:.2f}</text>')
        if figure.goal is not None:
            x = 270 + 400 * min(figure.goal.value / rig.REFERENCE_BASELINE, 1)
            parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{y - 3}" y2="{y + 23}" stroke="black"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
