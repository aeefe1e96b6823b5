"""The throttle slows down other work while many hits arrive. Fan-out and dispatchers use small batches and pause between them.
Exports pause between their pages.

Hits and the other work share the event loop, the interpreter lock and, on SQLite, the only database writer. A delivery or an
export may be late, but a person who has tapped a link must not wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

#: If at least this number of hits arrive per second, the throttle slows down other work.
BUSY_RATE = 20.0
#: The throttle measures the rate of hits over periods of this length.
WINDOW_SECONDS = 0.25
#: A rate in hits per second. Up to 1.4 times this rate, a pause is twice as long as the work before it. At higher rates, the
#: length of a pause grows with the square of the rate. Deliveries are then sent later, and exports take longer.
FLOOD_RATE = 2_500.0
#: If this number of clients waits for a redirect, on average, the pauses are as long as at FLOOD_RATE. Above 1.4 times this
#: number, the length of a pause grows with the square of the number. Many clients wait if the hits use the whole capacity of the
#: machine. On a slow machine, this happens at a rate below FLOOD_RATE.
FLOOD_WAITING = 8.0
MAX_PAUSE_SECONDS = 0.25  # The maximum length of a pause in seconds; but after longer work, the pause may be as long as the work.


class Throttle:
    """Calculates pauses for other work from the rate of hits.

    `hits` returns the number of hits that the process has recorded. `waited` returns the sum of the seconds for which clients
    have waited for their responses. `now` returns the current time in seconds."""

    def __init__(
        self,
        hits: Callable[[], int] = lambda: 0,
        waited: Callable[[], float] = lambda: 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hits = hits
        self._waited = waited
        self._now = now
        self._hits_before, self._waited_before, self._at = hits(), waited(), now()
        self._rate = 0.0
        self._waiting = 0.0  # the average number of clients that waited at the same time

    def pause_for(self, worked: float) -> float:
        """Return how many seconds other work must pause after `worked` seconds of work. Return 0 if few hits arrive."""
        if not self.is_busy:
            return 0.0
        flood = max(self._rate / FLOOD_RATE, self._waiting / FLOOD_WAITING)
        return min(worked * max(2.0, flood**2), max(worked, MAX_PAUSE_SECONDS))

    @property
    def is_busy(self) -> bool:
        """Return whether so many hits arrive at present that other work must slow down."""
        now = self._now()
        if (seconds := now - self._at) >= WINDOW_SECONDS:
            hits, waited = self._hits(), self._waited()
            self._rate = (hits - self._hits_before) / seconds
            self._waiting = (waited - self._waited_before) / seconds
            self._hits_before, self._waited_before, self._at = hits, waited, now
        return self._rate >= BUSY_RATE

    async def slow_down(self, pages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield the pages of an iterator. While many hits arrive, pause before the next page. The length of the pause depends
        only on the time that reading the page took, and not on the time in which the client receives it."""
        began = self._now()
        async for page in pages:
            worked = self._now() - began
            yield page
            if pause := self.pause_for(worked):
                await asyncio.sleep(pause)
            began = self._now()
