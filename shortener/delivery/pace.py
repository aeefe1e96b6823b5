"""This module computes the rate at which a tracker receives deliveries. It has no I/O. Times are milliseconds since 1970-01-01 UTC.

The lower of two limits applies: `max_per_second`, which the customer sets, and `rate`, which the service learns from 429 responses.
The first 429 response sets the rate to the number of successes in the last second. A later 429 response lowers the rate by a tenth,
or by half if the rate has not recovered since the previous 429 response. Each success raises the rate. It rises slowly near
`ceiling`, the rate at which the tracker last returned 429, and fast otherwise. A 429 response does not lower the rate again if its
request was sent before the rate was lowered, or less than a second afterwards. The reason is that many receivers reject all further
requests in the same second.

The database stores the rate with the tracker. A process locks the tracker before it claims deliveries, so the rate limits all
processes together.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from shortener.model import record
from shortener.storage.types import to_ms

#: The range of `max_per_second`. A stored value outside the range counts as the nearest value in it, because some earlier releases
#: accepted every positive number.
MIN_PER_SECOND, MAX_PER_SECOND = 0.01, 100_000.0
#: The lowest learned rate in deliveries per second: a tracker that always returns 429 still gets one request in 20 seconds.
MIN_RATE = 1 / 20
#: A learned rate that reaches this number of deliveries per second is removed, so that it no longer limits the tracker.
MAX_RATE = 1000.0
#: The learned rate is lowered at most once in this time.
LOWERING_INTERVAL_MS = 1000
#: A learned rate no longer applies when this time has passed since the rate was last lowered.
MAX_AGE_MS = 3_600_000
#: A 429 response multiplies the rate by `LOWERED` if the rate has recovered since the previous 429 response, otherwise by `HALVED`.
LOWERED, HALVED = 0.9, 0.5
#: One success adds `SLOW_STEP` to the rate if the rate is between `LOWERED` and `FAR` times the ceiling, otherwise `FAST_STEP`.
SLOW_STEP, FAST_STEP, FAR = 0.005, 0.2, 1.1
#: If a tracker got fewer deliveries than its rate allows, it may get the missed deliveries of this period at once. At a low rate,
#: the period is 1.5 times the interval between two deliveries.
BURST_MS = 100

#: The columns of the tables `trackers` and `gateways` that contain the pace, in the order of the fields.
PACE_COLUMNS = ("max_per_second", "rate", "rate_ceiling", "rate_lowered_at", "paced_until")


@record
class EndpointPace:
    """The rate limits of a tracker or a gateway, in deliveries per second. None means that there is no such limit.

    `paced_until` is the time up to which claimed deliveries have used the rate. Each claimed delivery moves this time forward by
    one interval of the rate. `lowered_at` is the time at which the learned rate was last lowered."""

    max_per_second: float | None = None
    rate: float | None = None
    ceiling: float | None = None
    lowered_at: int | None = None
    paced_until: int | None = None

    @classmethod
    def from_row(cls, row: Any) -> EndpointPace:
        """Return the pace in a row of the table `trackers` or `gateways`, whose times are aware datetimes."""
        times = (None if at is None else to_ms(at) for at in (row.rate_lowered_at, row.paced_until))
        return cls(row.max_per_second, row.rate, row.rate_ceiling, *times)

    def limit(self, now: int) -> float | None:
        """Return the rate limit that applies at the time `now`, in deliveries per second. Return None if there is no limit."""
        limit = self.max_per_second
        if limit is not None:
            # With this order of the arguments of `max`, NaN becomes MIN_PER_SECOND.
            limit = min(max(MIN_PER_SECOND, limit), MAX_PER_SECOND)
        if self.rate is None or self.lowered_at is None or not 0 <= now - self.lowered_at < MAX_AGE_MS + self._quiet_ms:
            return limit
        return self.rate if limit is None else min(self.rate, limit)

    @property
    def _quiet_ms(self) -> int:
        """The milliseconds from the time at which the rate was last lowered to `paced_until`; 0 if `paced_until` is earlier."""
        return 0 if self.paced_until is None or self.lowered_at is None else max(self.paced_until - self.lowered_at, 0)

    def allowance(self, now: int) -> int | None:
        """Return how many deliveries the rate limit allows now. Return None if there is no limit."""
        limit = self.limit(now)
        if limit is None:
            return None
        return max(int((now - self._used_until(now, limit)) * limit / 1000 + 1e-9), 0)

    def next_at(self, now: int) -> int:
        """Return the time at which the next delivery may be sent. The tracker must have a rate limit."""
        limit = self.limit(now)
        assert limit is not None
        return self._used_until(now, limit) + math.ceil(1000 / limit)

    def claimed(self, count: int, now: int) -> EndpointPace:
        """Return the pace of the tracker after `count` of its deliveries were claimed at the time `now`."""
        limit = self.limit(now)
        if limit is None or count == 0:
            return self
        return dataclasses.replace(self, paced_until=self._used_until(now, limit) + math.ceil(count * 1000 / limit))

    def throttled(self, now: int, *, started: int, successes: int, quiet_until: int | None = None) -> EndpointPace:
        """Return the pace of the tracker after a 429 response.

        `started` is the time at which the request was sent. `successes` is the number of deliveries that the tracker accepted in
        the last second. `quiet_until` is the time in the `Retry-After` header, before which the tracker accepts no request."""
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

    def succeeded(self, count: int) -> EndpointPace:
        """Return the pace of the tracker after it accepted `count` deliveries."""
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
