"""This module implements the circuit breaker of a tracker. It has no I/O. Times are milliseconds since 1970-01-01 UTC.

After `MAX_FAILURES` failed attempts in a row, the circuit breaker opens: the deliveries of the tracker wait, and use up no
attempts. When the pause ends, one delivery is sent as a probe. If the probe fails, the circuit breaker stays open for
twice as long. If the probe succeeds, the circuit breaker closes, and the waiting deliveries (the backlog) are sent at a limited
rate, so that they do not overload the tracker again. A failure response with `Retry-After` also opens the circuit breaker, for
the time in the header but at most `MAX_PAUSE_MS`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from shortener.model import record
from shortener.storage.types import to_ms

MAX_FAILURES = 10
MIN_PAUSE_MS, MAX_PAUSE_MS = 30_000, 300_000
#: A recovering tracker may get several deliveries at once: as many as its recovery rate allows in this time, and at least one.
BURST_MS = 1000

#: The columns of the tables `trackers` and `gateways` that contain the health, in the order of the fields.
HEALTH_COLUMNS = ("failures_in_row", "open_until", "recovering_at", "last_success_at", "last_failure_at", "opened_at")


@record
class EndpointHealth:
    """The state of the circuit breaker of a tracker or a gateway.

    If the circuit breaker is open, `opened_at` is the time at which it opened, and a probe may be sent from `open_until` on. While
    the tracker recovers, its backlog is sent at the recovery rate, counted from `recovering_at`. Each sent delivery moves
    `recovering_at` forward by one interval of this rate.
    """

    failures_in_row: int = 0
    open_until: int | None = None
    recovering_at: int | None = None
    last_success_at: int | None = None
    last_failure_at: int | None = None
    opened_at: int | None = None

    @classmethod
    def from_row(cls, row: Any) -> EndpointHealth:
        """Return the health in a row of the table `trackers` or `gateways`, whose times are aware datetimes."""
        times = (getattr(row, name) for name in HEALTH_COLUMNS[1:])
        return cls(row.failures_in_row, *(None if at is None else to_ms(at) for at in times))

    def breaker(self, now: int) -> str:
        """Return the state of the circuit breaker at the time `now`.

        The states are `closed`, `open`, `half_open` (a probe may be sent) and `recovering` (closed, but a backlog is left)."""
        if self.open_until is not None:
            return "open" if now < self.open_until else "half_open"
        return "closed" if self.recovering_at is None else "recovering"

    @property
    def allows_any_number(self) -> bool:
        """Return whether the circuit breaker does not limit the deliveries: it is closed, and no backlog is left."""
        return self.open_until is None and self.recovering_at is None

    def succeeded(self, now: int) -> EndpointHealth:
        """Return the health of the tracker after a successful attempt. A success closes the circuit breaker."""
        return dataclasses.replace(self._closed(now), failures_in_row=0, last_success_at=now)

    def answered(self, now: int) -> EndpointHealth:
        """Return the health of the tracker after a 429 response to a probe. The tracker works, so its circuit breaker closes."""
        return dataclasses.replace(self._closed(now), failures_in_row=0)

    def _closed(self, now: int) -> EndpointHealth:
        if self.open_until is None:
            return self
        return dataclasses.replace(self, open_until=None, opened_at=None, recovering_at=now)

    def failed(self, now: int, *, probe: bool = False, quiet_until: int | None = None) -> EndpointHealth:
        """Return the health of the tracker after a failed attempt.

        `probe` is true if the attempt was the probe of an open circuit breaker. `quiet_until` is the time in the `Retry-After`
        header of the response, before which the tracker accepts no request.
        """
        failures, open_until = self.failures_in_row, self.open_until
        if open_until is None or probe:  # ignore attempts that started before the circuit breaker opened
            failures += 1
            open_until = now + pause(failures) if probe or failures >= MAX_FAILURES else None
        if quiet_until is not None:
            open_until = max(open_until or 0, min(quiet_until, now + MAX_PAUSE_MS))
        opened_at = None if open_until is None else self.opened_at or now
        return dataclasses.replace(self, failures_in_row=failures, open_until=open_until, opened_at=opened_at, last_failure_at=now)

    def probing(self, until: int) -> EndpointHealth:
        """Return the health of the tracker after a probe was sent. Another probe may be sent from `until` on.

        The second probe is necessary if the process dies before it records the result of the first probe."""
        return dataclasses.replace(self, open_until=until)

    def allowance(self, now: int, rate: float) -> int | None:
        """Return how many deliveries of the backlog may be sent now at `rate` deliveries per second.

        Return None if there is no backlog, and therefore no limit."""
        if self.recovering_at is None:
            return None
        return int((now - self._released_until(now, rate)) * rate / 1000 + 1e-9)

    def released(self, count: int, now: int, rate: float) -> EndpointHealth:
        """Return the health of the tracker after `count` deliveries of its backlog were sent at `rate` deliveries per second."""
        return dataclasses.replace(self, recovering_at=self._released_until(now, rate) + round(count * 1000 / rate))

    def _released_until(self, now: int, rate: float) -> int:
        assert self.recovering_at is not None
        return max(self.recovering_at, now - max(BURST_MS, math.ceil(1000 / rate)))

    def recovered(self) -> EndpointHealth:
        """Return the health of a tracker that is no longer recovering, because its backlog was sent."""
        return dataclasses.replace(self, recovering_at=None)


def pause(failures: int) -> int:
    """Return for how many milliseconds the circuit breaker stays open after `failures` failures in a row."""
    doublings = min(max(failures - MAX_FAILURES, 0), 10)
    return min(MIN_PAUSE_MS << doublings, MAX_PAUSE_MS)
