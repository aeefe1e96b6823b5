"""This module limits four rates:

- requests of one client that the service rejects (unknown codes, wrong credentials)
- requests with one API key or one postback key
- rejected conversion reports that are stored for one application
- deliveries that the delivery reports of one application create

Each client has a token bucket in memory. Here, a client is an IP address, a key or an application. A counted request takes one
token. A request with delivery reports takes one token for each delivery that it creates. Redirects of known codes take no token,
so people who share an IP address with a misbehaving client can still open their links.

With Redis, the processes of an installation share the limits. Each process adds its requests to a counter in Redis per client and
minute. It also removes one token from its own bucket for each request that another process has counted. This happens in the
background, so for about a second a client can exceed a limit. Without Redis, or while Redis is down, each process enforces the
limit alone.

A limiter stores the buckets of at most MAX_CLIENTS clients. It removes the client whose last counted request is the oldest. The
limiter also stores the counts that it has not sent to Redis yet, for at most MAX_CLIENTS clients. If Redis does not respond to
counts, they are dropped, because Redis may have added them already.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from shortener.metrics import Metrics
from shortener.model import mutable_record
from shortener.redis.client import Client, RedisServer, RedisUnavailable

MAX_CLIENTS = 20_000
MAX_REFUSED_PER_MINUTE = 1000  # The maximum number of rejected conversion reports of one application that are stored per minute.
MAX_SHARED_CLIENTS = 1000  # One run of `share` exchanges the counts of at most this number of clients.
_WINDOW_MS = 60_000
_KEY_MS = 2 * _WINDOW_MS  # The time in milliseconds after which Redis deletes the counter of a client.


@mutable_record
class _Bucket:
    """The bucket of a client: its number of tokens at the time `at` (in ms since 1970), and the requests that Redis has counted for
    it."""

    tokens: float
    at: int
    window: int = 0  # The minute since 1970 to which `shared` belongs.
    shared: int = 0  # The number of the client's requests that all processes together have counted in the minute `window`.


class RateLimiter:
    """A limiter for one kind of requests, such as requests with a wrong credential or with an API key.

    `per_minute` is the number of requests that a client may send in each minute. A client may send all of them at once. 0 means
    no limit. `now_ms` returns the current time in ms since 1970. Keys in Redis begin with `prefix`."""

    def __init__(
        self, name: str, per_minute: int, now_ms: Callable[[], int], redis: RedisServer | None = None, prefix: str = ""
    ) -> None:
        self.name = name
        self.limited = 0  # The number of requests above the limit, since the process started.
        self._capacity = per_minute
        self._now_ms = now_ms
        self._redis = redis
        self._prefix = f"{prefix}limit:{name}:"
        self._buckets: OrderedDict[int, _Bucket] = OrderedDict()
        self._unshared: dict[int, int] = {}

    def take(self, client: int, per_minute: int | None = None, *, cost: int = 1) -> int:
        """Count a request. Return 0 if the request is within the limit. Otherwise return the seconds after which the client may try
        again.

        `per_minute` is the limit of this client; None selects the limit of the limiter. `cost` is the number of tokens that the
        request takes. A request that costs more than the limit takes all tokens of a minute."""
        capacity = self._capacity if per_minute is None else per_minute
        if not capacity:
            return 0
        now = self._now_ms()
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = _Bucket(capacity, now)
            if len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(client)
            self._refill(bucket, now, capacity)
        cost = min(cost, capacity)
        if bucket.tokens < cost:
            self.limited += 1
            return self._seconds_until(bucket, cost, capacity)
        bucket.tokens -= cost
        if self._redis is not None and (client in self._unshared or len(self._unshared) < MAX_CLIENTS):
            self._unshared[client] = self._unshared.get(client, 0) + cost
        return 0

    def seconds_to_wait(self, client: int) -> int:
        """Return what `take` would return for a request of this client, but take no token. A request above the limit is counted
        in `limited`."""
        bucket = self._buckets.get(client)
        if bucket is None or not self._capacity:
            return 0
        self._refill(bucket, self._now_ms(), self._capacity)
        if bucket.tokens >= 1:
            return 0
        self.limited += 1
        return self._seconds_until(bucket, 1, self._capacity)

    async def share(self) -> int:
        """Exchange the counts of recent requests with the other processes through Redis. Return the number of clients whose counts
        were exchanged."""
        if self._redis is None or not self._unshared:
            return 0
        counts = dict(list(self._unshared.items())[:MAX_SHARED_CLIENTS])
        for client in counts:
            del self._unshared[client]
        window = self._now_ms() // _WINDOW_MS

        async def add(client: Client) -> list[int]:
            pipe = client.pipeline(transaction=False)
            for one, count in counts.items():
                key = f"{self._prefix}{window}:{one:x}"
                pipe.incrby(key, count)
                pipe.pexpire(key, _KEY_MS)
            results: list[int] = await pipe.execute()
            return results[::2]

        try:
            totals = await self._redis.run(add)
        except RedisUnavailable:
            return 0
        for (one, count), total in zip(counts.items(), totals, strict=True):
            if (bucket := self._buckets.get(one)) is not None:
                self._take_from_others(bucket, window, count, total)
        return len(counts)

    def _take_from_others(self, bucket: _Bucket, window: int, own: int, total: int) -> None:
        known = bucket.shared if bucket.window == window else 0
        by_others = max(total - known - own, 0)
        bucket.tokens = max(bucket.tokens - by_others, 0.0)
        bucket.window, bucket.shared = window, total

    def _seconds_until(self, bucket: _Bucket, cost: int, capacity: int) -> int:
        """Return the number of seconds, at least 1, until the bucket has enough tokens for a request."""
        return max(math.ceil((cost - bucket.tokens) * 60 / capacity), 1)

    def _refill(self, bucket: _Bucket, now: int, capacity: int) -> None:
        if now > bucket.at:
            bucket.tokens = min(bucket.tokens + (now - bucket.at) * capacity / 60_000, capacity)
        # Also store the time if the clock was set back. Otherwise the bucket would get no tokens until the clock reaches the old
        # time again.
        bucket.at = now


class RateLimits:
    """All rate limits of a process. Each number is the maximum number of requests per client and minute; 0 means no limit."""

    def __init__(
        self,
        *,
        unknown_codes: int,
        rejected_credentials: int,
        postbacks: int = 0,
        reported_deliveries: int = 0,
        now_ms: Callable[[], int],
        redis: RedisServer | None = None,
        prefix: str = "",
    ) -> None:
        self.unknown_codes = RateLimiter("codes", unknown_codes, now_ms, redis, prefix)
        self.rejected_credentials = RateLimiter("credentials", rejected_credentials, now_ms, redis, prefix)
        self.postbacks = RateLimiter("postbacks", postbacks, now_ms, redis, prefix)
        # This limiter counts the deliveries that delivery reports create, by application.
        self.reported_deliveries = RateLimiter("deliveries", reported_deliveries, now_ms, redis, prefix)
        # The default of 0 means no limit. The caller of `take` passes the limit of the API key.
        self.api_keys = RateLimiter("keys", 0, now_ms, redis, prefix)
        # This limiter counts rejected conversion reports, by application. Reports above the limit are not stored. The response to
        # such a report is the error of the report, and not 429.
        self.refused = RateLimiter("refused", MAX_REFUSED_PER_MINUTE, now_ms, redis, prefix)
        self._of_requests = (
            self.unknown_codes,
            self.rejected_credentials,
            self.postbacks,
            self.api_keys,
            self.reported_deliveries,
        )

    def register_metrics(self, metrics: Metrics) -> None:
        metrics.counter(
            "shortener_rate_limited",
            "Responses with status 429, by the kind of request: codes, credentials, postbacks, keys or deliveries.",
            lambda: {(limiter.name,): limiter.limited for limiter in self._of_requests},
            "kind",
        )

    async def share(self) -> int:
        """Exchange the counts of all limiters with the other processes (see `RateLimiter.share`)."""
        return sum([await limiter.share() for limiter in (*self._of_requests, self.refused)])
