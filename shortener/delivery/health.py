"""Health of a tracker as one small value, and its circuit breaker. No I/O. Times are milliseconds since 1970-01-01 UTC.

After `MAX_FAILURES` failed attempts in a row the breaker opens: deliveries wait, and no attempt is counted. When the pause
ends, one delivery is sent as a probe. If the probe fails, the breaker stays open for twice as long. If it succeeds, the breaker
closes, and the backlog is released at a limited rate so that it does not overload the tracker again. A response with
`Retry-After` opens the breaker too, for the time that it states: the tracker then gets no delivery at all.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

MAX_FAILURES = 10
MIN_PAUSE_MS, MAX_PAUSE_MS = 30_000, 300_000
#: A release may send at once what the rate allows in this time.
BURST_MS = 1000


@dataclass(frozen=True, slots=True)
class TrackerHealth:
    """State of a tracker's breaker. `open_until`: the breaker is open; from this time a probe may be sent. `opened_at`: when the
    breaker opened.

    `recovering_at`: the time up to which the release of the backlog has used its rate.
    """

    failures_in_row: int = 0
    open_until: int | None = None
    recovering_at: int | None = None
    last_success_at: int | None = None
    last_failure_at: int | None = None
    opened_at: int | None = None

    def breaker(self, now: int) -> str:
        """Return `closed`, `open`, `half_open` (a probe may be sent) or `recovering` (closed, with a backlog)."""
        if self.open_until is not None:
            return "open" if now < self.open_until else "half_open"
        return "closed" if self.recovering_at is None else "recovering"

    @property
    def allows_any_number(self) -> bool:
        """Whether the breaker does not limit the number of deliveries."""
        return self.open_until is None and self.recovering_at is None

    def succeeded(self, now: int) -> TrackerHealth:
        """Return the health after a successful attempt. A success closes the breaker."""
        return dataclasses.replace(self._closed(now), failures_in_row=0, last_success_at=now)

    def answered(self, now: int) -> TrackerHealth:
        """Return the health after a probe got a 429: the tracker works, but it accepts fewer requests."""
        return dataclasses.replace(self._closed(now), failures_in_row=0)

    def _closed(self, now: int) -> TrackerHealth:
        if self.open_until is None:
            return self
        return dataclasses.replace(self, open_until=None, opened_at=None, recovering_at=now)

    def failed(self, now: int, *, probe: bool = False, quiet_until: int | None = None) -> TrackerHealth:
        """Return the health after a failed attempt.

        `probe`: the attempt was the probe of an open breaker. `quiet_until`: the tracker asked for no request before this time.
        """
        failures, open_until = self.failures_in_row, self.open_until
        if open_until is None or probe:  # otherwise the attempt started before the breaker opened
            failures += 1
            open_until = now + pause(failures) if probe or failures >= MAX_FAILURES else None
        if quiet_until is not None:
            open_until = max(open_until or 0, min(quiet_until, now + MAX_PAUSE_MS))
        opened_at = None if open_until is None else self.opened_at or now
        return dataclasses.replace(self, failures_in_row=failures, open_until=open_until, opened_at=opened_at, last_failure_at=now)

    def probing(self, until: int) -> TrackerHealth:
        """Return the health after a probe was sent. If its result is never recorded, another may follow from `until`."""
        return dataclasses.replace(self, open_until=until)

    def allowance(self, now: int, rate: float) -> int | None:
        """Return how many deliveries of the backlog may be sent now at `rate` per second. None: there is no backlog."""
        if self.recovering_at is None:
            return None
        return int((now - max(self.recovering_at, now - BURST_MS)) * rate / 1000)

    def released(self, count: int, now: int, rate: float) -> TrackerHealth:
        """Return the health after `count` deliveries of the backlog were sent at `rate` per second."""
        assert self.recovering_at is not None
        return dataclasses.replace(self, recovering_at=max(self.recovering_at, now - BURST_MS) + round(count * 1000 / rate))

    def recovered(self) -> TrackerHealth:
        """Return the health after the backlog is empty."""
        return dataclasses.replace(self, recovering_at=None)


def pause(failures: int) -> int:
    """Return how many milliseconds the breaker stays open after `failures` failures in a row."""
    doublings = min(max(failures - MAX_FAILURES, 0), 10)
    return min(MIN_PAUSE_MS << doublings, MAX_PAUSE_MS)
