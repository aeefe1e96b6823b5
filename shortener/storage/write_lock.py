"""This module waits for the write lock of a SQLite database.

SQLite has no queue for this lock. Its own wait (busy_timeout) tries the lock every 0.1 seconds. While a server writes without a
pause, the lock is free for less than a millisecond between two transactions, so a command could wait for a long time. Therefore
`begin_write` tries the lock every PAUSE_SECONDS. All commands use it, with the limit COMMAND_WAIT_SECONDS.
"""
# Tested by tests/storage/test_write_lock.py

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

#: A command waits for this time at most, which is longer than the limit of a server.
COMMAND_WAIT_SECONDS = 30.0
PAUSE_SECONDS = 0.00025


def begin_write(begin: Callable[[], object], wait_seconds: float) -> None:
    """Call `begin`, which runs BEGIN IMMEDIATE on a connection without a busy_timeout. Repeat the call until the connection has
    the lock. After `wait_seconds`, raise the error of SQLite."""
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            begin()
            return
        except DBAPIError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        time.sleep(PAUSE_SECONDS)


def is_busy(error: DBAPIError) -> bool:
    """Return whether a statement failed because another connection has a lock."""
    code = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY  # the lower byte is the code of the error; the other bytes are details
