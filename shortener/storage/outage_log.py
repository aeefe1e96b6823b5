"""Log lines about a database that is unavailable.

During an outage, every statement, every new connection and every job fails with the same error, many times a second. For each
error, the log therefore has at most one line in PAUSE_SECONDS. The field `repeated` of a line is the number of lines for the same
error that were left out before it.
"""
# Tested by tests/storage/test_outage_log.py

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

PAUSE_SECONDS = 5.0
#: The maximum number of different errors that are remembered. There may be many, because the text of an error may contain
#: changing values.
MAX_ERRORS = 100

log = structlog.get_logger(__name__)


class OutageLog:
    """The errors that were logged in the last PAUSE_SECONDS. All threads of a process share one object."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # the time of the last line of each error, and the number of lines that were left out since then
        self._errors: dict[str, tuple[float, int]] = {}

    def warn(self, error: BaseException) -> None:
        """Log that the database did not answer. Do nothing if the same error was logged within PAUSE_SECONDS."""
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        now = self._clock()
        with self._lock:
            logged_at, repeated = self._errors.get(text, (-PAUSE_SECONDS, 0))
            if now - logged_at < PAUSE_SECONDS:
                self._errors[text] = (logged_at, repeated + 1)
                return
            if text not in self._errors and len(self._errors) >= MAX_ERRORS:
                self._errors.clear()
            self._errors[text] = (now, 0)
        more = {"repeated": repeated} if repeated else {}
        log.warning("store_unavailable", error=text, **more)


#: All modules of a process use this object.
outage_log = OutageLog()
