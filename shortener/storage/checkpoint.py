"""This module makes the checkpoints of the SQLite WAL in a separate thread, so that the writer does not wait for them.

The checkpoint thread has its own connection. It copies pages from the WAL into the database file while the writer appends to the
WAL. It starts a checkpoint when enough rows have changed or enough time has passed.

While commits continue, the thread hardly ever reaches the end of the WAL. If the WAL is long, the writer therefore copies the
remaining pages between two of its commits. Its next commit then restarts the WAL from the beginning. SQLite itself makes the
database file durable only at this restart. To shorten the wait of the writer, the thread calls fdatasync after each of its
checkpoints, so that only the last few pages are left.

SQLite before 3.51.3 can corrupt a database file if a checkpoint begins on a completely copied WAL while another connection
restarts the WAL. No checkpoint of this service begins on such a WAL. The writer makes a checkpoint right after a commit of its
own. The thread waits for two commits after its previous checkpoint. The second of these commits began after that checkpoint had
ended, so its pages are not copied yet. No connection can restart the WAL before they are copied. A transaction that changes
nothing adds nothing to the WAL, so it does not count as a commit. No other code makes checkpoints (docs/decisions/0009).

The WAL still contains deleted data until later commits overwrite it. If deleted data must not stay on the disk, `truncate`
empties the WAL. The thread first copies the WAL as usual, so that the writer waits only for the last pages.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger(__name__)

#: The target duration of a checkpoint. With longer checkpoints, less is written, because a page that several commits changed is
#: written only once. With shorter checkpoints, the writer waits less, because the disk is busy for a shorter time.
TARGET_SECONDS = 0.3
# The number of changed rows after which a checkpoint begins: its minimum, default and maximum.
MIN_ROWS, DEFAULT_ROWS, MAX_ROWS = 2_000, 20_000, 500_000
MAX_INTERVAL_SECONDS = 5.0  # The maximum time between two checkpoints if few rows change.
# A WAL with at least this number of frames is long. The writer should copy its remaining pages, so that the WAL restarts from the
# beginning.
LONG_WAL_FRAMES = 50_000
#: Before the writer copies the remaining pages of a long WAL, the thread repeats its checkpoint until one takes at most
#: SHORT_SECONDS. It repeats it at most MAX_REPEATS times. SHORT_SECONDS is the limit for a WAL of LONG_WAL_FRAMES. For a longer
#: WAL, the limit is longer in proportion. With a fixed limit, a WAL that grows as fast as the disk can write would never restart.
SHORT_SECONDS, MAX_REPEATS = 0.02, 5
#: If the WAL has at least this number of frames, the writer copies its remaining pages even if commits must wait. This limits the
#: size of the WAL.
MAX_WAL_FRAMES = 150_000
#: If a reader uses an old snapshot of the database, the WAL cannot restart. A warning is logged if the WAL has at least this
#: number of frames.
REPORTED_WAL_FRAMES = 500_000
REPORT_INTERVAL_SECONDS = 60.0
#: When the writer truncates the WAL, it waits at most for this time until readers end. Commits wait, too.
TRUNCATION_WAIT_MS = 20
#: The minimum time between two truncations. While the WAL grows again after a truncation, commits take longer.
TRUNCATION_INTERVAL_SECONDS = 30.0
#: If a truncation fails because of a reader, it is tried again after this time. Each failure doubles the time, up to the maximum.
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 5.0, 60.0
_CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"
_TRUNCATION = "PRAGMA wal_checkpoint(TRUNCATE)"


class Checkpointer:
    """The checkpoint thread of the process that serves from the SQLite file at `path`. Only one process serves from a file.
    `request_commit` must make the writer commit a change soon, and must not wait for the commit."""

    def __init__(self, path: Path, request_commit: Callable[[], None]) -> None:
        self._path = path
        self._request_commit = request_commit
        # Close this file handle after all connections to the database. Closing it earlier would release the POSIX locks of the
        # connections.
        self._file = os.open(path, os.O_RDONLY)
        self._commits = 0
        self._changes = 0  # The number of rows that the writer connection has changed.
        self._checkpointed_changes = 0  # The number of rows that were changed before the last checkpoint began.
        self._rows_per_checkpoint = DEFAULT_ROWS
        self._rows_reached = threading.Event()
        self._first_safe_commit = 2  # The number of the first commit after which the thread may begin its next checkpoint.
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
        """Empty the WAL within some seconds, so that it no longer contains data that committed transactions have deleted. If a
        reader uses an old snapshot, the truncation is tried again later, and commits continue. Any thread may call this
        method."""
        self._must_truncate = True
        # The thread may already be waiting for the two commits that it needs before a checkpoint. Without other commits, only
        # these two requests end the wait.
        for _ in range(2):
            self._request_commit()

    def committed(self, writer: Any, *, is_requested: bool = False) -> None:
        """Count a commit, so that the checkpoint thread knows when to run. The writer thread calls this method after each commit,
        with its sqlite3 connection. `is_requested` is true for a commit that `request_commit` caused and that changed no rows."""
        changes = writer.total_changes
        if changes == self._changes and not is_requested:
            return
        self._commits += 1
        self._changes = changes
        if self._writer_must_finish:
            self._writer_must_finish = False
            # Ignore the error, for example a full disk. The next commit will raise it again.
            with contextlib.suppress(sqlite3.Error):
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
        """Stop the checkpoint thread. After this call, no checkpoint is running and none will begin."""
        self._stopping.set()
        for event in (self._rows_reached, self._may_begin, self._writer_finished):
            event.set()
        self._thread.join()

    def close(self) -> None:
        """Close the database file. All connections of this process must be closed before."""
        os.close(self._file)

    def _run(self) -> None:
        with contextlib.ExitStack() as opened:
            connection: sqlite3.Connection | None = None
            while self._wait_for_rows():
                truncates = self._must_truncate and time.monotonic() >= self._next_truncation_at
                if truncates:
                    self._must_truncate = self._is_truncated = False
                try:
                    if connection is None:  # A process that ends before its first checkpoint needs no connection.
                        connection = opened.enter_context(self._connect())
                    self._copy_and_restart(connection, truncates)
                # After an error, for example a full disk, no data is lost, because the WAL still contains everything.
                except Exception as error:
                    log.warning("checkpoint_failed", error=f"{type(error).__name__}: {error}")
                    self._stopping.wait(MAX_INTERVAL_SECONDS)
                if truncates:
                    self._after_truncation()

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            yield connection

    @property
    def _is_running(self) -> bool:
        return not self._stopping.is_set()

    def _copy_and_restart(self, connection: sqlite3.Connection, truncates: bool) -> None:
        """Make a checkpoint. If the WAL is long or must be truncated, repeat the checkpoint, and then make the writer copy the
        remaining pages."""
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
        """Choose the earliest time of the next truncation. If the last truncation failed, it is tried again at this time."""
        now = time.monotonic()
        if self._is_truncated:
            self._retry_seconds = MIN_RETRY_SECONDS
            self._next_truncation_at = now + TRUNCATION_INTERVAL_SECONDS
            return
        self._must_truncate = True
        self._next_truncation_at = now + self._retry_seconds
        # This condition is true once in a sequence of failures, at the fourth, so that the warning is logged once.
        if self._retry_seconds < MAX_RETRY_SECONDS <= 2 * self._retry_seconds:
            log.warning("wal_not_truncated", cause="a reader, such as a backup, is open for long")
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)

    def _copy(self, connection: sqlite3.Connection, requests_commits: bool) -> int:
        """Wait for two commits and make a checkpoint. Return the number of frames in the WAL, or 0 if the thread was stopped."""
        # Set `_first_safe_commit` before the event is cleared. In the reverse order, a commit between these two steps could set
        # the event too early.
        self._first_safe_commit = self._commits + 2
        self._may_begin.clear()
        if requests_commits:  # Without these requests, an installation in which nothing is written would never truncate its WAL.
            self._request_commit()
            self._request_commit()
        if self._is_running:
            self._may_begin.wait()
        if not self._is_running:
            return 0
        changed, self._checkpointed_changes = self._checkpointed_changes, self._changes
        began = time.monotonic()
        _, frames, copied = connection.execute(_CHECKPOINT).fetchone()
        os.fdatasync(self._file)  # SQLite calls fdatasync only for a complete checkpoint, so call it here for a partial one.
        seconds = time.monotonic() - began
        if seconds > TARGET_SECONDS or self._checkpointed_changes - changed >= self._rows_per_checkpoint:
            factor = min(max(TARGET_SECONDS / seconds, 0.5), 1.5)
            self._rows_per_checkpoint = round(min(max(self._rows_per_checkpoint * factor, MIN_ROWS), MAX_ROWS))
        self._report(int(frames), int(copied))
        return int(frames)

    def _report(self, frames: int, copied: int) -> None:
        """If the WAL is too long, log a warning, at most once in REPORT_INTERVAL_SECONDS. `copied` is the number of frames that
        are already in the database file."""
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
        """Ask the writer to copy the remaining pages of the WAL after its next commit, and wait until it has done this. If
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
