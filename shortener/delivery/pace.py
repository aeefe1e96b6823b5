"""The rate at which a tracker receives deliveries, as one small value. No I/O. Times are milliseconds since 1970-01-01 UTC.

Two limits apply, and the lower one counts: `max_per_second`, which the customer sets, and `rate`, which the service learns from
429 responses. The first 429 sets the rate to the successes of the last second. A later 429 lowers it by a tenth, or by half if
the rate has not recovered since the last one. Each success raises it: slowly near the rate at which the last 429 came
(`ceiling`), fast elsewhere. A 429 to a request that was sent less than a second after the rate was lowered does not lower it
again: many receivers count the requests of a second, and reject all further requests in it.

The value is stored with the tracker, and a process locks it before it sends. So all processes together keep the rate.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

#: A tracker that returns 429 to everything still gets one request in this time.
MIN_RATE = 1 / 20
#: A learned rate above this is no limit any more.
MAX_RATE = 1000.0
#: The rate is lowered at most once in this time.
LOWERING_INTERVAL_MS = 1000
#: A learned rate is forgotten this long after the last 429.
MAX_AGE_MS = 3_600_000
#: Parts of the rate that remain after a 429: if the rate had recovered since the last one, and otherwise.
LOWERED, HALVED = 0.9, 0.5
#: What one success adds to the rate: near the ceiling, and elsewhere. Near means between `LOWERED` and `FAR` of the ceiling.
SLOW_STEP, FAST_STEP, FAR = 0.005, 0.2, 1.1
#: Unused rate of at most this time, or of one and a half deliveries, can be used later.
BURST_MS = 100


@dataclass(frozen=True, slots=True)
class TrackerPace:
    """Limits in deliveries per second, None: no limit. `paced_until`: the time up to which the rate is used."""

    max_per_second: float | None = None
    rate: float | None = None
    ceiling: float | None = None
    lowered_at: int | None = None
    paced_until: int | None = None

    def limit(self, now: int) -> float | None:
        """Return the rate that applies now, None if there is no limit."""
        if self.rate is None or self.lowered_at is None or not 0 <= now - self.lowered_at < MAX_AGE_MS + self._quiet_ms:
            return self.max_per_second
        return self.rate if self.max_per_second is None else min(self.rate, self.max_per_second)

    @property
    def _quiet_ms(self) -> int:
        """How long the tracker wanted no request after the last 429."""
        return 0 if self.paced_until is None or self.lowered_at is None else max(self.paced_until - self.lowered_at, 0)

    def allowance(self, now: int) -> int | None:
        """Return how many deliveries may be sent now. None: any number."""
        limit = self.limit(now)
        if limit is None:
            return None
        return max(int((now - self._used_until(now, limit)) * limit / 1000 + 1e-9), 0)

    def next_at(self, now: int) -> int:
        """Return when the next delivery may be sent. There is a limit."""
        limit = self.limit(now)
        assert limit is not None
        return self._used_until(now, limit) + math.ceil(1000 / limit)

    def claimed(self, count: int, now: int) -> TrackerPace:
        """Return the pace after `count` deliveries were claimed."""
        limit = self.limit(now)
        if limit is None or count == 0:
            return self
        return dataclasses.replace(self, paced_until=self._used_until(now, limit) + math.ceil(count * 1000 / limit))

    def throttled(self, now: int, *, started: int, successes: int, quiet_until: int | None = None) -> TrackerPace:
        """Return the pace after a 429.

        `started`: when the request was sent. `successes`: accepted deliveries of the last second. `quiet_until`: the tracker
        wants no request before this time."""
        used = self.paced_until if quiet_until is None else max(self.paced_until or 0, quiet_until)
        if self.rate is not None and self.lowered_at is not None and started <= self.lowered_at + LOWERING_INTERVAL_MS:
            return dataclasses.replace(self, paced_until=used)
        if self.rate is None or self.limit(now) is None:
            before = rate = float(max(successes, 1))
        else:
            before = self.rate
            has_recovered = self.ceiling is None or before > self.ceiling * (LOWERED + 0.001)
            rate = before * (LOWERED if has_recovered else HALVED)
        return dataclasses.replace(
            self, rate=max(rate, MIN_RATE), ceiling=max(before, MIN_RATE), lowered_at=now, paced_until=max(used or 0, now)
        )

    def succeeded(self, count: int) -> TrackerPace:
        """Return the pace after `count` deliveries were accepted."""
        if self.rate is None or self.ceiling is None:
            return self
        normal = self.ceiling * LOWERED
        if self.rate < normal * 0.999:
            rate = min(self.rate + count * FAST_STEP, normal)
        else:
            rate = self.rate + count * (SLOW_STEP if self.rate <= self.ceiling * FAR else FAST_STEP)
        if rate >= min(MAX_RATE, self.max_per_second or MAX_RATE):
            return dataclasses.replace(self, rate=None, ceiling=None, lowered_at=None)
        return dataclasses.replace(self, rate=rate)

    def _used_until(self, now: int, limit: float) -> int:
        return max(self.paced_until or 0, now - max(BURST_MS, math.ceil(1500 / limit)))
