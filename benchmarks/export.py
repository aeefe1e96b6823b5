"""Benchmark of the speed and memory of the CSV export: python -m benchmarks.export [--rows N]

Rewrites N messages (default: a million) of one link each through the API of a real server on SQLite, and exports them over HTTP.
Reports the speed and the server's resident memory, before the export and after each tenth of the rows. Exits with 1 if the memory
grows by more than MAX_GROWTH_MIB after the first tenth, or if a row is missing.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks import rig
from benchmarks.rig import Server

MAX_GROWTH_MIB = 32.0  # the page caches of the four SQLite readers (8 MiB each) may still grow
TENTHS = 10
BATCH_MESSAGES = 10_000  # messages per rewrite request


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of messages")
    options = parser.parse_args()
    with rig.server() as server:
        start = time.perf_counter()
        server.links(options.rows, batch=BATCH_MESSAGES)
        print(f"rewritten  {options.rows:>12,} messages in {time.perf_counter() - start:.0f} s")
        before = server.resident_mb
        start = time.perf_counter()
        rows, size, memory = export(server, options.rows)
        seconds = time.perf_counter() - start
    growth = max(memory) - memory[0]
    print(f"exported   {rows:>12,} rows, {size / 1e6:.0f} MB, {rows / seconds:,.0f} rows/s")
    print(f"memory     {before:>12.0f} MiB before, then {' '.join(f'{mib:.0f}' for mib in memory)}")
    print(f"growth     {growth:>12.1f} MiB after the first tenth (at most {MAX_GROWTH_MIB})")
    return 0 if rows == options.rows and growth <= MAX_GROWTH_MIB else 1


def export(server: Server, expected: int) -> tuple[int, int, list[float]]:
    """Export the messages. Return the rows and bytes of the CSV, and the memory in MiB after each tenth of the expected rows."""
    rows, size = -1, 0  # the header line is not a row
    memory: list[float] = []
    with server.api() as client, client.stream("GET", "/api/v1/sms/messages/unified/export") as response:
        response.raise_for_status()
        for chunk in response.iter_raw():
            rows += chunk.count(b"\n")
            size += len(chunk)
            while rows >= expected * (len(memory) + 1) / TENTHS:
                memory.append(server.resident_mb)
    return rows, size, memory or [server.resident_mb]


if __name__ == "__main__":
    sys.exit(main())
