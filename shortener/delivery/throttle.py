"""The throttle slows down deliveries while many hits arrive: fan-out and dispatcher use small batches and pause between them.

Hits and deliveries share the event loop and, on SQLite, the only database writer. A delivery can wait longer than a hit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: If at least this number of hits arrive per second, the throttle slows down deliveries.
BUSY_RATE = 20.0
#: The throttle measures the number of hits in periods of this length.
WINDOW_SECONDS = 0.25
#: Up to this number of hits per second, deliveries use a third of the time of the event loop. At higher rates, deliveries use a
#: smaller part of the time, so they are sent later.
FLOOD_RATE = 2_500.0
MAX_PAUSE_SECONDS = 0.25


class Throttle:
    """A throttle of deliveries that measures the rate of hits.

    `hits` returns the number of hits that the process has recorded. `now` returns the current time in seconds."""

    def __init__(self, hits: Callable[[], int] = lambda: 0, now: Callable[[], float] = time.monotonic) -> None:
        self._hits = hits
        self._now = now
        self._counted, self._at = hits(), now()
        self._rate = 0.0

    def pause_for(self, worked: float) -> float:
        """Return how many seconds deliveries must pause after `worked` seconds of work. Return 0 if few hits arrive."""
        return min(worked * max(2.0, (self._rate / FLOOD_RATE) ** 2), max(worked, MAX_PAUSE_SECONDS)) if self.is_busy else 0.0

    @property
    def is_busy(self) -> bool:
        """Return whether so many hits arrive at present that deliveries must slow down."""
        now = self._now()
        if now - self._at >= WINDOW_SECONDS:
            hits = self._hits()
            self._rate = (hits - self._counted) / (now - self._at)
            self._counted, self._at = hits, now
        return self._rate >= BUSY_RATE
