"""Measures the pauses of the machine while a benchmark measures latencies.

A thread of the benchmark sleeps for two milliseconds at a time, and writes 4 KiB to the disk from time to time. If a sleep ends
late, the benchmark got no processor, and the server probably got none either. If a write takes long, the commits of the server
also take long. Therefore a latency that is as long as these pauses is probably not caused by the server.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SLEEP_SECONDS = 0.002
SLEEPS_PER_WRITE = 20  # The number of sleeps between two writes. There are few writes, because commits of the server wait for them.
BLOCK = b"\0" * 4096


class Pauses:
    """The longest pauses of the processor and of the disk so far, in milliseconds. `clock` returns the time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.processor = 0.0
        self.disk = 0.0
        self._clock = clock

    def __str__(self) -> str:
        return f"longest pause of the processor {self.processor:.0f} ms, of the disk {self.disk:.0f} ms"

    def sleep(self) -> None:
        began = self._clock()
        time.sleep(SLEEP_SECONDS)
        self.processor = max(self.processor, (self._clock() - began - SLEEP_SECONDS) * 1000)

    def write(self, file: int) -> None:
        """Write to the open file with this descriptor until the disk has stored the block."""
        began = self._clock()
        os.pwrite(file, BLOCK, 0)  # the same block each time, so that the metadata of the file system does not change
        os.fdatasync(file)
        self.disk = max(self.disk, (self._clock() - began) * 1000)


@contextlib.contextmanager
def watch(folder: Path) -> Iterator[Pauses]:
    """Measure the pauses during the `with` block. `folder` is on the disk of the database."""
    pauses = Pauses()
    stop = threading.Event()

    def measure() -> None:
        while not stop.is_set():
            pauses.write(file)
            for _ in range(SLEEPS_PER_WRITE):
                pauses.sleep()

    path = folder / "pauses"
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield pauses
    finally:
        stop.set()
        thread.join()
        os.close(file)
        path.unlink()
