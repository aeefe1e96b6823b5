"""Checkpoints of SQLite's WAL beside the writer, which would stand still for as long as one takes.

A thread with a connection of its own copies the pages into the file while the writer goes on appending to the WAL. It can never
come to the end of a WAL that grows, so when little is left, the writer copies that, between two of its commits; then the WAL begins
anew with the next one.

SQLite before 3.51.3 can damage a file when a checkpoint begins on a WAL that is copied to its end and another connection begins it
anew meanwhile. Neither of the two here ever begins on such a WAL. The writer's follows its own commit. The thread's follows two
commits that were told of after its last one: the second of them began after that one ended, so nothing has copied it, and until
something has, nobody can begin the WAL anew. Nothing else checkpoints (docs/decisions/0009).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

#: Seconds that a checkpoint should take. The longer, the more commits share the writing of a page; the shorter, the less the writer
#: waits for a disk that is busy with it.
AIM = 0.03
SHORTEST, LONGEST = 0.02, 5.0  # seconds between two checkpoints
#: What came while the thread worked for so many seconds is little; if it took longer it works again, so many times at most.
LITTLE, TIMES = 0.02, 5
_CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"


class Checkpointer:
    """For the one process that serves from the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pause = SHORTEST
        self._commits = 0
        self._wanted = 2  # the number of commits at which the thread may begin
        self._may_begin = threading.Event()
        self._rest_wanted = False
        self._rest_done = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sqlite-checkpoint", daemon=True)
        self._thread.start()

    def committed(self, writer: Any) -> None:
        """Call it in the writer's thread, with its sqlite3 connection, after each commit."""
        self._commits += 1
        if self._rest_wanted:
            self._rest_wanted = False
            with contextlib.suppress(sqlite3.Error):  # a full disk: the next commit tells
                writer.execute(_CHECKPOINT).fetchone()
            self._rest_done.set()
        elif self._commits >= self._wanted and not self._may_begin.is_set():
            self._may_begin.set()

    def stop(self) -> None:
        """Return when no checkpoint is under way or will begin."""
        self._stopping.set()
        self._may_begin.set()
        self._rest_done.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            while self._wait_for_commits() and not self._stopping.wait(self._pause):
                for _ in range(TIMES):
                    began = time.monotonic()
                    try:
                        connection.execute(_CHECKPOINT).fetchone()
                    except sqlite3.Error:  # a full disk, for example; the WAL keeps everything
                        self._pause = LONGEST
                        break
                    took = time.monotonic() - began
                    self._pause = min(max(self._pause * min(max(AIM / took, 0.5), 2.0), SHORTEST), LONGEST)
                    if took <= LITTLE:
                        break
                    if not self._wait_for_commits():
                        return
                if not self._let_writer_finish():
                    return

    def _wait_for_commits(self) -> bool:
        """Wait for two of them; False when it is time to stop."""
        self._may_begin.clear()
        self._wanted = self._commits + 2
        if not self._stopping.is_set():
            self._may_begin.wait()
        return not self._stopping.is_set()

    def _let_writer_finish(self) -> bool:
        """Have the writer copy the rest, after its next commit; False when it is time to stop."""
        self._rest_done.clear()
        self._rest_wanted = True
        if not self._stopping.is_set():
            self._rest_done.wait()
        return not self._stopping.is_set()
