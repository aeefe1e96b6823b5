"""Log lines about a database that is unavailable.

During an outage, every statement, every new connection and every job fails with the same error, many times a second. The log has at
most one line in PAUSE_SECONDS for each error. The field `repeated` of a line is the number of lines that were left out before it.
"""
# Tested by tests/storage/test_outage_log.py

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

PAUSE_SECONDS = 5.0
MAX_ERRORS = 100  # The maximum number of errors in memory. Texts of errors may contain changing values.

log = structlog.get_logger(__name__)


class OutageLog:
    """The errors that were logged in the last PAUSE_SECONDS. All threads of a process share one object."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._errors: dict[str, tuple[float, int]] = {}  # the time of the last line, and the number of lines left out since then

    def warn(self, error: BaseException) -> None:
        """Log that the database did not answer a statement or a connection, unless the same error was just logged."""
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


#: The log of this process.
outage_log = OutageLog()
