"""How a tracker is doing, as one small value, and the breaker that follows from it. No I/O; times are milliseconds since 1970.

After `FAILURES` failed attempts in a row the breaker opens: the tracker's deliveries wait, and none of their attempts is spent.
When the pause is over one delivery goes as a probe. If it fails, the breaker stays open for twice as long; if it succeeds, the
breaker closes and the backlog is released at a bounded rate, so that a tracker that has just come back is not knocked over again.
An answer with `Retry-After` opens it too, for as long as it says: a tracker that asks for quiet gets it for all its deliveries.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

FAILURES = 10
FIRST_PAUSE, LONGEST_PAUSE = 30_000, 300_000
#: A burst of the release: what `rate` allows in so many milliseconds.
BURST = 1000


@dataclass(frozen=True, slots=True)
class TrackerHealth:
    """`open_until`: the breaker is open, and a probe may go from then on. `recovering_at`: how far the release has come."""

    failures_in_row: int = 0
    open_until: int | None = None
    recovering_at: int | None = None
    last_success_at: int | None = None
    last_failure_at: int | None = None

    def breaker(self, now: int) -> str:
        """`closed`, `open`, `half_open` (a probe may go) or `recovering` (closed, with a backlog)."""
        if self.open_until is not None:
            return "open" if now < self.open_until else "half_open"
        return "closed" if self.recovering_at is None else "recovering"

    @property
    def allows_any_number(self) -> bool:
        """Whether any number of deliveries may go."""
        return self.open_until is None and self.recovering_at is None

    def succeeded(self, now: int) -> TrackerHealth:
        if self.open_until is not None:
            return dataclasses.replace(self, failures_in_row=0, open_until=None, recovering_at=now, last_success_at=now)
        return dataclasses.replace(self, failures_in_row=0, last_success_at=now)

    def failed(self, now: int, *, probe: bool = False, quiet_until: int | None = None) -> TrackerHealth:
        """`probe`: the attempt was the one that an open breaker let through. `quiet_until`: how long the tracker wants no more."""
        failures, open_until = self.failures_in_row, self.open_until
        if open_until is None or probe:  # else it began before the breaker opened
            failures += 1
            open_until = now + pause(failures) if probe or failures >= FAILURES else None
        if quiet_until is not None:
            open_until = max(open_until or 0, min(quiet_until, now + LONGEST_PAUSE))
        return dataclasses.replace(self, failures_in_row=failures, open_until=open_until, last_failure_at=now)

    def probing(self, until: int) -> TrackerHealth:
        """A probe goes; if nothing is heard of it, another may go from `until` on."""
        return dataclasses.replace(self, open_until=until)

    def allowance(self, now: int, rate: float) -> int | None:
        """How many deliveries of the backlog may go now, at `rate` a second; None: no backlog, any number."""
        if self.recovering_at is None:
            return None
        return int((now - max(self.recovering_at, now - BURST)) * rate / 1000)

    def released(self, count: int, now: int, rate: float) -> TrackerHealth:
        """After `count` deliveries of the backlog were let go."""
        assert self.recovering_at is not None
        return dataclasses.replace(self, recovering_at=max(self.recovering_at, now - BURST) + round(count * 1000 / rate))

    def recovered(self) -> TrackerHealth:
        """The backlog is gone."""
        return dataclasses.replace(self, recovering_at=None)


def pause(failures: int) -> int:
    """Milliseconds that the breaker stays open after so many failures in a row."""
    doublings = min(max(failures - FAILURES, 0), 10)
    return min(FIRST_PAUSE << doublings, LONGEST_PAUSE)
