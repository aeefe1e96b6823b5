"""Memory of the CSV export: python -m benchmarks.export [--rows N]

N messages of one link each (a million) are rewritten through the API of a real server on SQLite, then exported over HTTP. Told are
the speed and the server's resident memory, before and after each tenth of the rows. After the first tenth it must not grow by more
than MOST_GROWTH, whatever N is. Exits with 1 if it does, or if a line is missing.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks import rig
from benchmarks.rig import Server

MOST_GROWTH = 32.0  # MiB: the page caches of the four readers of SQLite, 8 MiB each, may still be filling
TENTHS = 10
BATCH = 10_000  # messages of one rewrite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with rig.server() as server:
        began = time.perf_counter()
        server.links(options.rows, batch=BATCH)
        print(f"rewritten  {options.rows:>12,} messages in {time.perf_counter() - began:.0f} s")
        before = server.resident_mb
        began = time.perf_counter()
        rows, size, memory = export(server, options.rows)
        seconds = time.perf_counter() - began
    growth = max(memory) - memory[0]
    print(f"exported   {rows:>12,} rows, {size / 1e6:.0f} MB, {rows / seconds:,.0f} rows/s")
    print(f"memory     {before:>12.0f} MiB before, then {' '.join(f'{mib:.0f}' for mib in memory)}")
    print(f"growth     {growth:>12.1f} MiB after the first tenth (at most {MOST_GROWTH})")
    return 0 if rows == options.rows and growth <= MOST_GROWTH else 1


def export(server: Server, expected: int) -> tuple[int, int, list[float]]:
    """Rows and bytes of the CSV; the server's memory in MiB after each tenth of the expected rows."""
    rows, size = -1, 0  # the header is no row
    memory: list[float] = []
    with server.api() as client, client.stream("GET", "/api/v1/sms/messages/unified/export") as answer:
        answer.raise_for_status()
        for piece in answer.iter_raw():
            rows += piece.count(b"\n")
            size += len(piece)
            while rows >= expected * (len(memory) + 1) / TENTHS:
                memory.append(server.resident_mb)
    return rows, size, memory or [server.resident_mb]


if __name__ == "__main__":
    sys.exit(main())
