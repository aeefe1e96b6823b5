"""The start times of the attempts of trackers with a rate.

A rate (pace.py) limits how fast the deliveries of a tracker are claimed. An attempt that waits for an earlier attempt of the same
message begins up to two seconds after its claim. When the receiver responds to the earlier attempts, several waiting attempts
could therefore begin at once. `StartTimes` delays an attempt until the rate permits its start. Starts that the rate permitted
earlier, but that were not used, may follow at once. As for claims, this applies only to the starts of a short period
(`pace.BURST_MS`). An attempt that begins directly after its claim is not delayed.
"""

# Tested by tests/delivery/test_order.py

from __future__ import annotations

from shortener.delivery.pace import BURST_MS

MAX_QUEUES = 1000  # If more queues than this are stored, those that permit a start at once are removed.


class StartTimes:
    """The permitted start times of the attempts of one process, by queue. Times are in seconds since 1970."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}  # by queue: when the next attempt would begin if all began at equal intervals
        self._latest = 0.0  # the time of the last call of `pause`

    def pause(self, queue: str, rate: float, now: float) -> float:
        """Return how long an attempt must wait until its start, in seconds, and count its start. `rate` is the number of attempts
        per second that the tracker permits."""
        if now < self._latest:  # the clock was set back, so the stored times may be far in the future
            self._next.clear()
        self._latest = now
        if len(self._next) > MAX_QUEUES:
            self._next = {name: at for name, at in self._next.items() if at > now}
        step = 1 / rate
        tolerance = max(BURST_MS / 1000, 1.5 * step) - step
        expected = max(self._next.get(queue, 0.0), now)
        at = max(now, expected - tolerance)
        self._next[queue] = expected + step
        return at - now
