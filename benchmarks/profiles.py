"""Processor time by load, thread and function.

    python -m benchmarks.profiles [--only LOAD ...] [--seconds N] [--checkout DIR]

`--checkout` examines the code in another folder, for example the previous release, with the same loads.

The first run of each load reports how many microseconds of processor time each thread of the server needs per request, in user
and in kernel mode. These times are read from /proc, so the measurement does not slow the server down.

The second run of each load uses the profiler py-spy. It reports the share of each Python function in the samples: `own` without
the functions that it calls, `all` with them. Time in SQLite, sockets and the HTTP parser belongs to `own` of the calling
function. Idle samples are not counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from benchmarks import loads, rig
from benchmarks.loads import Work
from benchmarks.rig import Server

MIN_SHARE = 0.02  # functions with a smaller share of a thread's samples are not printed
_NAMES = {"MainThread": "event loop", "sqlite-writer": "writer", "sqlite-checkpoint": "checkpoints"}


def names(server: Server, py_spy: str) -> dict[int, str]:
    """Return the names of the server's threads."""
    printed = subprocess.run([py_spy, "dump", "--json", "--pid", str(server.process.pid)], capture_output=True, check=True).stdout
    return {thread["os_thread_id"]: thread["thread_name"] for thread in json.loads(printed)}


def costs(server: Server, work: Work, seconds: float, py_spy: str) -> str:
    """Run the load. Return a line with the processor time per request of each thread."""
    before = rig.processor_time(server.process.pid)
    load = work.run(seconds)
    after = rig.processor_time(server.process.pid)
    thread_names = names(server, py_spy)
    others = rig.ProcessorTime(0, 0)
    parts = []
    for thread, total in after.items():
        used = total - before.get(thread, rig.ProcessorTime(0, 0))
        name = _NAMES.get(thread_names.get(thread, ""))
        if name is None:
            others = rig.ProcessorTime(others.user + used.user, others.kernel + used.kernel)
        else:
            parts.append((name, used))
    each = [
        f"{name} {1e6 * used.user / load.requests:.1f} + {1e6 * used.kernel / load.requests:.1f}"
        for name, used in [*parts, ("others", others)]
    ]
    return f"{load.per_second:,.0f}/s, p99 {load.p99:.1f} ms; µs a request, user + kernel: {', '.join(each)}"


def functions(server: Server, work: Work, seconds: float, py_spy: str) -> dict[str, tuple[int, Counter[str], Counter[str]]]:
    """Run the load under py-spy. Return for each thread the number of samples, and the number of `own` and of `all` samples of
    each function."""
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
        calls = [frame.rpartition(":")[0] + ")" if ":" in frame else frame for frame in frames]  # remove the line number
        own[calls[-1]] += int(count)
        for call in set(calls):
            every[call] += int(count)
        found[name] = samples + int(count), own, every
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=loads.WORKS, nargs="+", help="examine only these loads")
    parser.add_argument("--seconds", type=float, default=6.0, help="duration of each run in seconds")
    parser.add_argument("--checkout", type=Path, default=rig.ROOT, help="folder of the code to examine")
    options = parser.parse_args()
    rig.need_wrk()
    py_spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or "py-spy"
    for name, make in loads.WORKS.items():
        if options.only is not None and name not in options.only:
            continue
        with rig.server(options.checkout.resolve()) as server:
            work = make(server)
            work.run(1)
            print(f"\n== {name}: {costs(server, work, options.seconds, py_spy)}", flush=True)
            # Use new requests, because a repeated click or conversion report executes other code.
            for thread, (samples, own, every) in functions(server, make(server), options.seconds, py_spy).items():
                print(f"\n{thread}, {samples} samples\n   all   own")
                for call, count in every.most_common():
                    if count >= MIN_SHARE * samples and (own[call] or "shortener/" in call):
                        print(f"{count / samples:6.1%}{own[call] / samples:6.1%}  {call}")


if __name__ == "__main__":
    main()
