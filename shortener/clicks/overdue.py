"""A queue of waiting hits. A hit is overdue if the database has not stored it within HIT_DEADLINE. The client then gets its
response before the hit is stored. The time limit is the same for all hits, so hits become overdue in the order of their arrival.
Therefore `OverdueQueue` is a FIFO queue, and no operation examines all waiting hits.
"""

from __future__ import annotations

from collections import deque

from shortener.clicks.waiting_hit import WaitingHit


class OverdueQueue:
    """A queue of hits in the order in which they become overdue. Hits that already got a response are removed and not
    returned."""

    def __init__(self) -> None:
        self._hits: deque[WaitingHit] = deque()
        self.append = self._hits.append  # a direct reference to the method saves one function call per hit

    def __len__(self) -> int:
        return len(self._hits)

    def discard_done(self) -> None:
        """Remove the hits at the front of the queue that already got a response."""
        hits = self._hits
        while hits and hits[0].response.done():
            hits.popleft()

    def next_at(self) -> float | None:
        """Return the loop time at which the next hit becomes overdue, or None if no hit waits for its response."""
        self.discard_done()
        return self._hits[0].overdue_at if self._hits else None

    def pop_overdue(self, now: float) -> list[WaitingHit]:
        """Remove and return the hits that are overdue at the loop time `now` and got no response yet."""
        hits = self._hits
        overdue: list[WaitingHit] = []
        while hits and (hits[0].overdue_at <= now or hits[0].response.done()):
            waiting = hits.popleft()
            if not waiting.response.done():
                overdue.append(waiting)
        return overdue
