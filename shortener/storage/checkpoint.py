"""Checkpoints of SQLite's WAL beside the writer, which would stand still for as long as one takes.

A thread with a connection of its own copies the pages into the file while the writer goes on appending to the WAL: when many rows
were changed since the last time, or some time has passed. It hardly ever comes to the end of a WAL that grows, so when the WAL is
long, the writer copies what is left, between two of its commits; then the WAL begins anew with the next one. SQLite makes the file
durable only then, with everything that was copied before; the thread does so each time, and leaves the writer little to wait for.

SQLite before 3.51.3 can damage a file when a checkpoint begins on a WAL that is copied to its end and another connection begins it
anew meanwhile. Neither of the two here ever begins on such a WAL. The writer's follows its own commit. The thread's follows two
commits that were told of after its last one: the second of them began after that one ended, so nothing has copied it, and until
something has, nobody can begin the WAL anew. Nothing else checkpoints (docs/decisions/0009).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

#: Seconds that a checkpoint should take. The longer, the more commits share the writing of a page; the shorter, the less the writer
#: waits for a disk that is busy with it.
AIM = 0.3
FEWEST, FIRST, MOST = 2_000, 20_000, 500_000  # rows changed between two checkpoints
LONGEST = 5.0  # seconds between two checkpoints when fewer are
LONG = 50_000  # frames of a WAL that should begin anew
#: What came while the thread worked for so many seconds is little, and of a longer WAL in proportion: one that is written to as
#: fast as the disk can would never begin anew. If it took longer the thread works again, so many times at most.
LITTLE, TIMES = 0.02, 5
_CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"

#: sync_file_range(2), to the end of the file: wait for what is under way, write, and wait until it is written.
_WRITE_AND_WAIT = 1 | 2 | 4
_sync_file_range: Any = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
if _sync_file_range is not None:
    _sync_file_range.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint


class Checkpointer:
    """For the one process that serves from the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Closed when the connections are: closing it would take their locks from them.
        self._file = os.open(path, os.O_RDONLY)
        self._commits = 0
        self._changes = 0  # rows that the writer's connection has changed
        self._changed = 0  # of these, before the last checkpoint began
        self._enough = FIRST
        self._is_enough = threading.Event()
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
        self._changes = writer.total_changes
        if self._rest_wanted:
            self._rest_wanted = False
            with contextlib.suppress(sqlite3.Error):  # a full disk: the next commit tells
                writer.execute(_CHECKPOINT).fetchone()
            self._rest_done.set()
            return
        if self._changes - self._changed >= self._enough and not self._is_enough.is_set():
            self._is_enough.set()
        if self._commits >= self._wanted and not self._may_begin.is_set():
            self._may_begin.set()

    def stop(self) -> None:
        """Return when no checkpoint is under way or will begin."""
        self._stopping.set()
        for what_is_waited_for in (self._is_enough, self._may_begin, self._rest_done):
            what_is_waited_for.set()
        self._thread.join()

    def close(self) -> None:
        """Call it when no connection of this process is open any more."""
        os.close(self._file)

    def _run(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            while self._wait_for_enough():
                try:
                    frames = self._copy(connection)
                    for _ in range(TIMES):
                        if frames < LONG or not self._is_running:
                            break
                        began = time.monotonic()
                        frames = self._copy(connection)
                        if time.monotonic() - began <= LITTLE * frames / LONG:
                            self._let_writer_finish()
                            break
                except (sqlite3.Error, OSError):  # a full disk, for example; the WAL keeps everything
                    self._stopping.wait(LONGEST)

    @property
    def _is_running(self) -> bool:
        return not self._stopping.is_set()

    def _copy(self, connection: sqlite3.Connection) -> int:
        """Copy what there is after two more commits; returns the frames of the WAL, 0 if there was no checkpoint."""
        self._wanted = self._commits + 2  # before what was told of until now is forgotten, or one commit might do
        self._may_begin.clear()
        if self._is_running:
            self._may_begin.wait()
        if not self._is_running:
            return 0
        changed, self._changed = self._changed, self._changes
        began = time.monotonic()
        _, frames, _ = connection.execute(_CHECKPOINT).fetchone()
        # First without the journal of the file system, which the writer's commits may need; what it cannot do, the next does.
        if _sync_file_range is not None:
            _sync_file_range(self._file, 0, 0, _WRITE_AND_WAIT)
        os.fdatasync(self._file)  # a partial checkpoint is not made durable by SQLite
        took = time.monotonic() - began
        if took > AIM or self._changed - changed >= self._enough:
            self._enough = round(min(max(self._enough * min(max(AIM / took, 0.5), 1.5), FEWEST), MOST))
        return int(frames)

    def _wait_for_enough(self) -> bool:
        """Wait until a checkpoint is worth its while; False when it is time to stop."""
        self._is_enough.clear()
        if self._changes - self._changed < self._enough and self._is_running:
            self._is_enough.wait(LONGEST)
        return self._is_running

    def _let_writer_finish(self) -> None:
        """Have the writer copy the rest, after its next commit."""
        self._rest_done.clear()
        self._rest_wanted = True
        if self._is_running:
            self._rest_done.wait()
