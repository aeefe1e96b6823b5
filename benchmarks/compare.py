"""Measure this code and the code in another folder, such as the previous release, with the same requests: `bench.py --compare`.

A server runs for each of the two, and the rounds alternate between the servers. The report contains the rate and the processor
time of the server per request. If the machine also does other work, compare the smallest processor times, because other work
changes them much less than the rates.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import loads, rig, traffic
from benchmarks.loads import Work
from benchmarks.rig import Figure, Load, Server

ROUNDS = 5  # number of measurements of each load and each checkout
CONVERTIBLE_MESSAGES = 12_000  # messages per second of a round: more than the reports per second, so no message gets two


@dataclass(frozen=True)
class Row:
    """A load to compare. `part` is the name of the part of `bench.py` to which the load belongs. `work(server, codes, seconds,
    round)` returns the requests of a round.

    If `each_round` is true, `work` must return new requests for each round. If `needs_many_links` is true, each request of the load
    clicks on a different link."""

    part: str
    name: str
    work: Callable[[Server, list[str], float, int], Work]
    each_round: bool = False
    needs_many_links: bool = False


@dataclass(frozen=True)
class _Round:
    """One measurement: the result of wrk, and the server's processor time per request in microseconds."""

    load: Load
    microseconds: float


def _some_first_clicks(server: Server, codes: list[str], _: float, number: int) -> Work:
    """Return clicks on the links of one round. No link belongs to two rounds."""
    random.Random(1).shuffle(part := codes[number::ROUNDS])
    return Work(server.base, traffic.script(server.folder, f"distinct{number}", [f"/{code}" for code in part]))


def _conversions(server: Server, _: list[str], seconds: float, __: int) -> Work:
    return loads.conversions(server, 500 * round(seconds * CONVERTIBLE_MESSAGES / 500))


ROWS = (
    Row("clicks", "first clicks, distinct links", _some_first_clicks, each_round=True, needs_many_links=True),
    Row(
        "clicks",
        "repeat clicks, one hot link",
        lambda server, codes, _, number: loads.repeat_clicks(server, codes[0], number),
        each_round=True,
    ),
    Row("clicks", "unknown codes", lambda server, _, __, number: loads.unknown_codes(server, number), each_round=True),
    Row("rewrites", "rewrite, one message a request", lambda server, *_: loads.rewrites(server, 1, 64)),
    Row("rewrites", "rewrite, 100 recipients a request", lambda server, *_: loads.rewrites(server, 100, 16)),
    Row("conversions", "conversions received", _conversions, each_round=True),
)


def figures(other: Path, seconds: float, links: int, only: Sequence[str] | None = None) -> list[Figure]:
    """Return two figures for each load: one for the code in the folder `other`, and one for this code.

    `links` is the number of links of each server. `only` restricts the comparison to these parts of `bench.py`."""
    rows = [row for row in ROWS if only is None or row.part in only]
    found: list[Figure] = []
    with contextlib.ExitStack() as stack:
        base, script = stack.enter_context(rig.baseline_server())
        servers = {checkout: stack.enter_context(rig.server(checkout)) for checkout in (other, rig.ROOT)}
        has_clicks = any(row.part == "clicks" for row in rows)
        codes = {checkout: server.links(links if has_clicks else 1) for checkout, server in servers.items()}
        for row in rows:
            print(f"{row.name} ...", file=sys.stderr)
            baseline: list[float] = []
            rounds: dict[Path, list[_Round]] = {checkout: [] for checkout in servers}
            works: dict[Path, Work] = {}
            for number in range(ROUNDS):
                baseline.append(rig.wrk(base, script, seconds=seconds / 2).per_second)
                for checkout in sorted(servers, reverse=bool(number % 2)):
                    server = servers[checkout]
                    if number == 0 or row.each_round:
                        works[checkout] = row.work(server, codes[checkout], seconds, number)
                    rounds[checkout].append(_measure(server, works[checkout], seconds))
            found += _two_figures(row.name, rounds[other], rounds[rig.ROOT], rig.median(baseline))
    return found


def _measure(server: Server, work: Work, seconds: float) -> _Round:
    before = rig.processor_seconds(server.process.pid)
    load = work.run(seconds)
    used = rig.processor_seconds(server.process.pid) - before
    return _Round(load, 1e6 * used / max(load.requests, 1))


def _two_figures(name: str, other: list[_Round], this: list[_Round], baseline: float) -> list[Figure]:
    found = []
    for rounds, label in ((other, "other"), (this, "this")):
        rate = rig.median([one.load.per_second for one in rounds])
        p99 = rig.median([one.load.p99 for one in rounds])
        times = sorted(one.microseconds for one in rounds)
        note = f"p99 {p99:.1f} ms; {times[0]:.1f} to {times[-1]:.1f} µs of processor time a request"
        found.append(Figure(f"{name} ({label})", rate, "/s", ratio=rate / baseline, note=note))
    fewest = min(one.microseconds for one in this) / min(one.microseconds for one in other)
    found[1].note += f"; {found[1].value / found[0].value:.2f} x the rate, {fewest:.2f} x the processor time; {len(this)} rounds"
    return found
