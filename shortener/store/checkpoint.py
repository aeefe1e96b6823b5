"""Checkpoints of SQLite's WAL beside the writer, which would stand still for as long as one takes.

A thread with a connection of its own copies the pages into the file while the writer goes on appending to the WAL. It can never
come to the end of a WAL that grows, so after it the writer copies the little that is left, between two of its commits; then the
WAL begins anew with the next one.

SQLite before 3.51.3 can damage a file when a checkpoint begins on a WAL that is copied to its end and another connection begins it
anew meanwhile. Neither of the two here ever begins on such a WAL: each follows a commit of the writer that nothing has copied yet,
and until that is copied nobody can begin the WAL anew. Nothing else checkpoints (docs/decisions/0009).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

#: So many pages are a good piece of work: the more, the more commits share the writing of a page; the fewer, the shorter a restart.
PAGES = 60_000
SHORTEST, LONGEST = 0.5, 5.0  # seconds between two checkpoints
_CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"


class Checkpointer:
    """For the one process that serves from the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pause = SHORTEST
        self._stopping = threading.Event()
        self._dirty = threading.Event()  # the writer committed what nothing has copied yet
        self._rest_wanted = False
        self._rest_done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sqlite-checkpoint", daemon=True)
        self._thread.start()

    def committed(self, writer: Any) -> None:
        """Call it in the writer's thread, with its sqlite3 connection, after each commit."""
        if self._rest_wanted:
            self._rest_wanted = False
            with contextlib.suppress(sqlite3.Error):  # a full disk: the next commit tells
                writer.execute(_CHECKPOINT).fetchone()
            self._dirty.clear()
            self._rest_done.set()
        elif not self._dirty.is_set():
            self._dirty.set()

    def stop(self) -> None:
        """Return when no checkpoint is under way or will begin."""
        self._stopping.set()
        self._dirty.set()
        self._rest_done.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            while True:
                self._dirty.wait()
                if self._stopping.wait(self._pause):
                    return
                self._dirty.clear()
                try:
                    _, pages, copied = connection.execute(_CHECKPOINT).fetchone()
                except sqlite3.Error:  # a full disk, for example; the WAL keeps everything
                    self._pause = LONGEST
                    self._dirty.set()
                    continue
                self._pause = min(max(self._pause * PAGES / max(pages, 1), SHORTEST), LONGEST)
                if copied < pages or self._dirty.is_set():
                    self._rest_done.clear()
                    self._rest_wanted = True
                    if self._stopping.is_set():
                        return
                    self._rest_done.wait()
