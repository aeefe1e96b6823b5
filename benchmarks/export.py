"""Memory of the CSV export: python -m benchmarks.export [--rows N]

N messages of one link each (a million) are rewritten through the API of a real server on SQLite, then exported over HTTP. Told are
the speed and the server's resident memory: before, after the first FIRST rows, and at its most. After the first rows it must not
grow by more than MOST_GROWTH, whatever N is. Exits with 1 if it does, or if a line is missing.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks import rig
from benchmarks.rig import Server

MOST_GROWTH = 16.0  # MiB: what the allocator may make of pages that come and go
FIRST = 10_000
BATCH = 10_000  # messages of one rewrite
LOOK_EVERY = 200  # pieces of the answer between two looks at the server's memory


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
        rows, size, first, peak = export(server)
        seconds = time.perf_counter() - began
    print(f"exported   {rows:>12,} rows, {size / 1e6:.0f} MB, {rows / seconds:,.0f} rows/s")
    print(f"memory     {before:>12.1f} MiB before, {first:.1f} after {FIRST:,} rows, {peak:.1f} at its peak")
    print(f"growth     {peak - first:>12.1f} MiB after the first rows (at most {MOST_GROWTH})")
    return 0 if rows == options.rows and peak - first <= MOST_GROWTH else 1


def export(server: Server) -> tuple[int, int, float, float]:
    """Rows and bytes of the CSV; the server's memory in MiB after the first rows, and at its peak."""
    rows, size, first, peak = -1, 0, 0.0, server.resident_mb  # the header is no row
    with server.api() as client, client.stream("GET", "/api/v1/sms/messages/unified/export") as answer:
        answer.raise_for_status()
        for number, piece in enumerate(answer.iter_raw()):
            rows += piece.count(b"\n")
            size += len(piece)
            if number % LOOK_EVERY == 0:
                peak = max(peak, server.resident_mb)
            if not first and rows >= FIRST:
                first = peak = server.resident_mb
    return rows, size, first or peak, max(peak, server.resident_mb)


if __name__ == "__main__":
    sys.exit(main())
