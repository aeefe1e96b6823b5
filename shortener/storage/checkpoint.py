"""This module makes the checkpoints of the SQLite WAL in a separate thread, so that the writer does not wait for them.

The checkpoint thread has its own connection. It copies pages from the WAL into the database file while the writer appends to the
WAL. It starts a checkpoint when enough rows have changed or enough time has passed. While commits continue, the thread hardly ever
reaches the end of the WAL. If the WAL is long, the writer therefore copies the remaining pages between two of its commits, and its
next commit restarts the WAL from the beginning. SQLite itself makes the database file durable only at this restart. The thread
therefore calls fdatasync after each of its checkpoints, so that the writer waits only for the last few pages.

SQLite before 3.51.3 can corrupt a database file if a checkpoint begins on a completely copied WAL while another connection restarts
the WAL. No checkpoint of this service begins on such a WAL. The writer makes a checkpoint right after a commit of its own. The
thread waits for two commits after its previous checkpoint. The second of these commits began after that checkpoint had ended, so
its pages are not copied yet. No connection can restart the WAL before they are copied. A transaction that changes nothing adds
nothing to the WAL, so it does not count as a commit. No other code makes checkpoints (docs/decisions/0009).

The WAL still contains deleted data until later commits overwrite it. `truncate` therefore empties the WAL after deletions that must
leave nothing on the disk. The thread first copies the WAL as usual, so that the writer waits only for the last pages.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger(__name__)

#: The target duration of a checkpoint. A longer checkpoint writes less, because it writes a page that several commits changed only
#: once. A shorter checkpoint delays the writer less, because the disk is busy for a shorter time.
TARGET_SECONDS = 0.3
# The minimum, default and maximum number of changed rows between two checkpoints.
MIN_ROWS, DEFAULT_ROWS, MAX_ROWS = 2_000, 20_000, 500_000
MAX_INTERVAL_SECONDS = 5.0  # The maximum time between two checkpoints if few rows change.
# A WAL with at least this number of frames is long: the writer should copy its remaining pages, so that the WAL restarts from its
# beginning.
LONG_WAL_FRAMES = 50_000
#: The writer copies the remaining pages of a long WAL only after the thread has made a checkpoint in at most SHORT_SECONDS. If a
#: checkpoint took longer, the thread repeats it, at most MAX_REPEATS times. SHORT_SECONDS is the limit for a WAL of
#: LONG_WAL_FRAMES; for a longer WAL, the limit is proportionally longer. With a fixed limit, a WAL that grows as fast as the disk
#: can write would never restart.
SHORT_SECONDS, MAX_REPEATS = 0.02, 5
#: If the WAL has at least this number of frames, the writer copies its remaining pages even if that delays commits. This limits the
#: size of the WAL.
MAX_WAL_FRAMES = 150_000
#: A WAL with at least this number of frames is logged: it cannot restart, because a reader uses an old snapshot of the database.
REPORTED_WAL_FRAMES = 500_000
REPORT_INTERVAL_SECONDS = 60.0
#: The maximum time that the writer waits for readers when it truncates the WAL. Commits wait during this time.
TRUNCATION_WAIT_MS = 20
#: The time between two truncations, because commits take longer while the WAL grows again.
TRUNCATION_INTERVAL_SECONDS = 30.0
#: The time after a truncation that failed because of a reader. It doubles with each failure up to the maximum.
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 5.0, 60.0
_CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"
_TRUNCATION = "PRAGMA wal_checkpoint(TRUNCATE)"


class Checkpointer:
    """The checkpoint thread of the only process that serves from the SQLite file at `path`. `request_commit` must make the writer
    commit a change soon, and must not wait for it."""

    def __init__(self, path: Path, request_commit: Callable[[], None]) -> None:
        self._path = path
        self._request_commit = request_commit
        # This file handle is closed after all connections to the database, because closing it releases the POSIX locks of the
        # connections.
        self._file = os.open(path, os.O_RDONLY)
        self._commits = 0
        self._changes = 0  # The number of rows that the writer connection has changed.
        self._checkpointed_changes = 0  # The number of rows that were changed before the last checkpoint began.
        self._rows_per_checkpoint = DEFAULT_ROWS
        self._rows_reached = threading.Event()
        self._first_safe_commit = 2  # The number of commits after which the thread may begin its next checkpoint.
        self._may_begin = threading.Event()
        self._writer_must_finish = False
        self._writer_truncates = False
        self._writer_finished = threading.Event()
        self._must_truncate = False
        self._is_truncated = False
        self._retry_seconds = MIN_RETRY_SECONDS
        self._next_truncation_at = 0.0  # The earliest time, on the monotonic clock, at which the WAL may be truncated.
        self._stopping = threading.Event()
        self._next_report_at = 0.0  # The earliest time, on the monotonic clock, at which a long WAL may be logged again.
        self._thread = threading.Thread(target=self._run, name="sqlite-checkpoint", daemon=True)
        self._thread.start()

    def truncate(self) -> None:
        """Empty the WAL within some seconds, so that it does not contain data that committed transactions have deleted. If a reader
        uses an old snapshot, the truncation waits for it, and commits continue. Any thread may call this method."""
        self._must_truncate = True
        # The thread may already be waiting for two commits, which it needs before a checkpoint. If nothing else commits, only these
        # requests end the wait.
        for _ in range(2):
            self._request_commit()

    def committed(self, writer: Any, *, is_requested: bool = False) -> None:
        """Count a commit, so that the checkpoint thread knows when to run. The writer thread calls this after each commit, with its
        sqlite3 connection. `is_requested` is true if the commit is the result of `request_commit` and changed no rows."""
        changes = writer.total_changes
        if changes == self._changes and not is_requested:
            return
        self._commits += 1
        self._changes = changes
        if self._writer_must_finish:
            self._writer_must_finish = False
            with contextlib.suppress(sqlite3.Error):  # An error here, for example a full disk, is raised again by the next commit.
                if self._writer_truncates:
                    self._is_truncated = _truncate(writer)
                else:
                    writer.execute(_CHECKPOINT).fetchone()
            self._writer_finished.set()
            return
        if self._changes - self._checkpointed_changes >= self._rows_per_checkpoint and not self._rows_reached.is_set():
            self._rows_reached.set()
        if self._commits >= self._first_safe_commit and not self._may_begin.is_set():
            self._may_begin.set()

    def stop(self) -> None:
        """Stop the checkpoint thread. When this returns, no checkpoint is running and none will begin."""
        self._stopping.set()
        for event in (self._rows_reached, self._may_begin, self._writer_finished):
            event.set()
        self._thread.join()

    def close(self) -> None:
        """Close the database file. All connections of this process must be closed before."""
        os.close(self._file)

    def _run(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            while self._wait_for_rows():
                truncates = self._must_truncate and time.monotonic() >= self._next_truncation_at
                if truncates:
                    self._must_truncate = self._is_truncated = False
                try:
                    self._copy_and_restart(connection, truncates)
                except Exception as error:  # After an error, for example a full disk, the WAL still contains everything.
                    log.warning("checkpoint_failed", error=f"{type(error).__name__}: {error}")
                    self._stopping.wait(MAX_INTERVAL_SECONDS)
                if truncates:
                    self._after_truncation()

    @property
    def _is_running(self) -> bool:
        return not self._stopping.is_set()

    def _copy_and_restart(self, connection: sqlite3.Connection, truncates: bool) -> None:
        """Make a checkpoint. If the WAL is long or must be truncated, repeat it, and then make the writer copy the remaining
        pages."""
        frames = self._copy(connection, truncates)
        for _ in range(MAX_REPEATS):
            if (frames < LONG_WAL_FRAMES and not truncates) or not self._is_running:
                return
            began = time.monotonic()
            frames = self._copy(connection, truncates)
            is_short = time.monotonic() - began <= SHORT_SECONDS * max(frames / LONG_WAL_FRAMES, 1)
            if is_short or frames >= MAX_WAL_FRAMES:
                self._let_writer_finish(truncates)
                return

    def _after_truncation(self) -> None:
        """Choose the time of the next truncation. If the current truncation failed, this is the time of the next try."""
        now = time.monotonic()
        if self._is_truncated:
            self._retry_seconds = MIN_RETRY_SECONDS
            self._next_truncation_at = now + TRUNCATION_INTERVAL_SECONDS
            return
        self._must_truncate = True
        self._next_truncation_at = now + self._retry_seconds
        # This condition is true only for the fourth failure in a row, so the warning is logged once.
        if self._retry_seconds < MAX_RETRY_SECONDS <= 2 * self._retry_seconds:
            log.warning("wal_not_truncated", cause="a reader, such as a backup, is open for long")
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)

    def _copy(self, connection: sqlite3.Connection, requests_commits: bool) -> int:
        """Wait for two commits and make a checkpoint. Return the number of frames in the WAL, or 0 if the thread was stopped."""
        # Set the number of the required commit before clearing the event. In the reverse order, the event could be set too early.
        self._first_safe_commit = self._commits + 2
        self._may_begin.clear()
        if requests_commits:  # Without these commits, a quiet installation would never truncate its WAL.
            self._request_commit()
            self._request_commit()
        if self._is_running:
            self._may_begin.wait()
        if not self._is_running:
            return 0
        changed, self._checkpointed_changes = self._checkpointed_changes, self._changes
        began = time.monotonic()
        _, frames, copied = connection.execute(_CHECKPOINT).fetchone()
        os.fdatasync(self._file)  # SQLite does not make a partial checkpoint durable, so call fdatasync here.
        seconds = time.monotonic() - began
        if seconds > TARGET_SECONDS or self._checkpointed_changes - changed >= self._rows_per_checkpoint:
            factor = min(max(TARGET_SECONDS / seconds, 0.5), 1.5)
            self._rows_per_checkpoint = round(min(max(self._rows_per_checkpoint * factor, MIN_ROWS), MAX_ROWS))
        self._report(int(frames), int(copied))
        return int(frames)

    def _report(self, frames: int, copied: int) -> None:
        """Log that the WAL is long, at most once in REPORT_INTERVAL_SECONDS. `copied` is the number of frames that are already in
        the database file."""
        now = time.monotonic()
        if frames < REPORTED_WAL_FRAMES or now < self._next_report_at:
            return
        self._next_report_at = now + REPORT_INTERVAL_SECONDS
        size = self._path.with_name(self._path.name + "-wal").stat().st_size
        log.warning("wal_is_long", bytes=size, frames=frames, copied=copied, cause="a reader, such as a backup, is open for long")

    def _wait_for_rows(self) -> bool:
        """Wait until enough rows have changed or enough time has passed. Return False if the checkpoint thread must end."""
        self._rows_reached.clear()
        if self._changes - self._checkpointed_changes < self._rows_per_checkpoint and self._is_running:
            self._rows_reached.wait(MAX_INTERVAL_SECONDS)
        return self._is_running

    def _let_writer_finish(self, truncates: bool) -> None:
        """Make the writer copy the remaining pages of the WAL after its next commit, and wait until it has copied them. If
        `truncates` is true, the writer also truncates the WAL."""
        self._writer_finished.clear()
        self._writer_truncates = truncates
        self._writer_must_finish = True
        if truncates:
            self._request_commit()
        if self._is_running:
            self._writer_finished.wait()


def _truncate(writer: Any) -> bool:
    """Copy the remaining pages of the WAL and truncate it. Return False if a reader uses the WAL."""
    (timeout,) = writer.execute("PRAGMA busy_timeout").fetchone()
    writer.execute(f"PRAGMA busy_timeout={TRUNCATION_WAIT_MS}").fetchone()
    try:
        is_busy, _, _ = writer.execute(_TRUNCATION).fetchone()
    finally:
        writer.execute(f"PRAGMA busy_timeout={timeout}").fetchone()
    return not is_busy
