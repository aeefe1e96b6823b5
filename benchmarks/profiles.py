"""Where the time goes, row by row of the table: python -m benchmarks.profiles [--only WORD ...] [--seconds N]

For each work it tells the microseconds of processor that a request costs each thread of the server, in user and in kernel mode
(/proc; nothing disturbs the server meanwhile), and then, from a second run under py-spy, the functions in which each thread was:
`own` without what they called, `all` with it. py-spy tells Python's functions: time of SQLite, of sockets and of the parser is
their callers' own. Its looks cost some speed, and its shares are of the samples in which a thread was not idle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks import loads, rig
from benchmarks.loads import Work
from benchmarks.rig import Server

LEAST = 0.02  # of a thread's samples: functions with less are not shown
_TICK = os.sysconf("SC_CLK_TCK")
_NAMES = {"MainThread": "event loop", "sqlite-writer": "writer", "sqlite-checkpoint": "checkpoints"}


@dataclass(frozen=True)
class Spent:
    """Seconds of processor."""

    user: float
    kernel: float

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.user - other.user, self.kernel - other.kernel)


def spent(server: Server) -> dict[int, Spent]:
    """By thread of the server."""
    found = {}
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[int(task.name)] = Spent(int(fields[11]) / _TICK, int(fields[12]) / _TICK)
    return found


def names(server: Server, py_spy: str) -> dict[int, str]:
    told = subprocess.run([py_spy, "dump", "--json", "--pid", str(server.process.pid)], capture_output=True, check=True).stdout
    return {thread["os_thread_id"]: thread["thread_name"] for thread in json.loads(told)}


def costs(server: Server, work: Work, seconds: float, py_spy: str) -> str:
    """A line on what a request costs each thread."""
    before = spent(server)
    load = work.run(seconds)
    after = spent(server)
    called = names(server, py_spy)
    others = Spent(0, 0)
    parts = []
    for thread, total in after.items():
        took = total - before.get(thread, Spent(0, 0))
        name = _NAMES.get(called.get(thread, ""))
        if name is None:
            others = Spent(others.user + took.user, others.kernel + took.kernel)
        else:
            parts.append((name, took))
    each = [
        f"{name} {1e6 * took.user / load.requests:.1f} + {1e6 * took.kernel / load.requests:.1f}"
        for name, took in [*parts, ("others", others)]
    ]
    return f"{load.per_second:,.0f}/s, p99 {load.p99:.1f} ms; µs a request, user + kernel: {', '.join(each)}"


def functions(server: Server, work: Work, seconds: float, py_spy: str) -> dict[str, tuple[int, Counter[str], Counter[str]]]:
    """By thread: the number of samples, and those of each function, own and all."""
    stacks = server.folder / "stacks"
    command = [py_spy, "record", "--pid", str(server.process.pid), "--duration", str(round(seconds)), "--rate", "200", "--threads"]
    record = subprocess.Popen(
        [*command, "--nonblocking", "--format", "raw", "--output", str(stacks)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    work.run(seconds + 2)
    record.wait(60)
    found: dict[str, tuple[int, Counter[str], Counter[str]]] = {}
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        name = next((short for long, short in _NAMES.items() if long in thread), None)
        if name is None or not frames:
            continue
        samples, own, every = found.get(name, (0, Counter(), Counter()))
        calls = [frame.rpartition(":")[0] + ")" if ":" in frame else frame for frame in frames]  # without the line
        own[calls[-1]] += int(count)
        for call in set(calls):
            every[call] += int(count)
        found[name] = samples + int(count), own, every
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=loads.WORKS, nargs="+", help="parts of the table")
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    rig.need_wrk()
    py_spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or "py-spy"
    for name, make in loads.WORKS.items():
        if options.only is not None and name not in options.only:
            continue
        with rig.server() as server:
            work = make(server)
            work.run(1)
            print(f"\n== {name}: {costs(server, work, options.seconds, py_spy)}", flush=True)
            for thread, (samples, own, every) in functions(server, work, options.seconds, py_spy).items():
                print(f"\n{thread}, {samples} samples\n   all   own")
                for call, count in every.most_common():
                    if count >= LEAST * samples and (own[call] or "shortener/" in call):
                        print(f"{count / samples:6.1%}{own[call] / samples:6.1%}  {call}")


if __name__ == "__main__":
    main()
