"""Deliveries make room for hits: while many hits come in, fan-out and dispatcher work in small pieces and rest between them.

A hit waits for what stands before it on the event loop and at the one writer of SQLite; a delivery can wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: So many hits a second are many; looked at over so many seconds.
MANY, OVER = 20.0, 0.25
#: Up to so many, deliveries may take a third of the time, and keep up with what the hits bring. Beyond it is a flood, which ends:
#: they take less and less, and catch up later.
FLOOD, LONGEST_REST = 2_500.0, 0.25


class Throttle:
    """`hits`: how many the process has recorded so far; `now`: seconds."""

    def __init__(self, hits: Callable[[], int] = lambda: 0, now: Callable[[], float] = time.monotonic) -> None:
        self._hits = hits
        self._now = now
        self._seen, self._at = hits(), now()
        self._rate = 0.0

    def pause_for(self, worked: float) -> float:
        """Seconds to leave to the hits after so many of work."""
        return min(worked * max(2.0, (self._rate / FLOOD) ** 2), max(worked, LONGEST_REST)) if self.is_busy else 0.0

    @property
    def is_busy(self) -> bool:
        """Whether many hits come in."""
        now = self._now()
        if now - self._at >= OVER:
            hits = self._hits()
            self._rate = (hits - self._seen) / (now - self._at)
            self._seen, self._at = hits, now
        return self._rate >= MANY
