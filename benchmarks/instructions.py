"""`make instructions`: count the processor instructions that the server executes for a request.

    python -m benchmarks.instructions [--compare CHECKOUT] [--only WORK ...] [--rounds N] [--seconds N]

The server runs under valgrind's callgrind, which counts instructions and not time. So other work on the machine hardly changes
the figures, although it changes rates and processor times by a tenth or more. Use this benchmark to find out whether a change of
the code makes a request slower. It does not count the kernel, the disk or waiting, so it cannot measure rates.

The requests are those of `bench.py --compare`. The server is twenty to fifty times slower than usual, so a round has few
requests, and the background jobs have a larger share than usual. Each figure is the smallest figure of all rounds. Differences of
a few per cent have no meaning.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import compare, rig
from benchmarks.rig import Server

SLOWDOWN = 20  # the server under valgrind takes at least this many times as long as usual
LINKS = 10_000  # more than the first clicks of all rounds, because each needs a new link
WARM_UP_ROUND = compare.ROUNDS - 1  # no measured round has this number, so the warm-up uses other links


def count(server: Server, row: compare.Row, codes: list[str], number: int, seconds: float) -> float:
    """Run the load of one round. Return the instructions per request."""
    work = row.work(server, codes, seconds / SLOWDOWN, number)
    _control(server, "--zero")
    load = work.run(seconds)
    _control(server, "--dump")
    newest = max(server.folder.glob("callgrind.*"), key=lambda file: int(file.suffix[1:] or 0))
    return _total(newest) / load.requests


def _control(server: Server, command: str) -> None:
    subprocess.run(["callgrind_control", command, str(server.process.pid)], check=True, capture_output=True)


def _total(file: Path) -> int:
    """Return the number of instructions in a file that callgrind has written. Wait until it is complete."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if found := re.search(r"^totals: (\d+)|^summary: (\d+)", file.read_text(), re.MULTILINE):
            return int(found[1] or found[2])
        time.sleep(0.1)  # the pause between two checks
    raise TimeoutError(file)


def main() -> None:
    names = [row.name for row in compare.ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=Path, metavar="CHECKOUT", help="folder of other code, which is measured in turns")
    parser.add_argument("--only", choices=names, metavar="WORK", nargs="+", help=f"count only these: {', '.join(map(repr, names))}")
    parser.add_argument("--rounds", type=int, choices=range(1, WARM_UP_ROUND + 1), default=3, help="rounds of each work")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of a round in seconds")
    options = parser.parse_args()
    rig.need_wrk()
    if not shutil.which("callgrind_control"):
        sys.exit("valgrind is required: apt-get install valgrind")
    # With the same seed, the order of sets and the collisions of dictionaries are the same in each process.
    prefix = ["env", "PYTHONHASHSEED=0", "valgrind", "--quiet", "--tool=callgrind", "--callgrind-out-file=callgrind"]
    checkouts = [rig.ROOT, *([options.compare.resolve()] if options.compare else [])]
    for checkout in checkouts:
        with rig.server(checkout) as server:
            server.links(1)  # makes Python compile the modules now; under valgrind, this would take a minute
    print(f"{'work':36}{'instructions per request':>26}{'other code':>14}{'ratio':>8}")
    for row in compare.ROWS:
        if options.only is not None and row.name not in options.only:
            continue
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(rig.server(checkout, prefix, 600)) for checkout in checkouts]
            codes = [server.links(LINKS if row.needs_many_links else 1, batch=100) for server in servers]
            for server, known in zip(servers, codes, strict=True):
                row.work(server, known, options.seconds / SLOWDOWN, WARM_UP_ROUND).run(options.seconds / 2)
            found: list[list[float]] = [[] for _ in servers]
            for number in range(options.rounds):
                for server, known, counts in zip(servers, codes, found, strict=True):
                    counts.append(count(server, row, known, number, options.seconds))
        this, *other = (min(counts) for counts in found)
        spread = f"(up to {max(found[0]):,.0f})"
        compared = f"{other[0]:>14,.0f}{this / other[0]:>8.3f}" if other else ""
        print(f"{row.name:36}{this:>26,.0f}{compared}  {spread}", flush=True)


if __name__ == "__main__":
    main()
