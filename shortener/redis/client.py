"""This module connects to Redis, which contains the link cache and the spool of hits. The service also works without Redis and
with an empty Redis. If all connections are in use, a call waits for a free connection, at most for its time limit. When
the call has a connection, its command has the same time limit again. A call that fails raises `RedisUnavailable`.

After a call without a response, a background task pings the server. While the pings get no response, every other call without
`force` fails at once and sends nothing. If the server responds to the first ping, only the connection had ended, for example
because the server was restarted. The failed command is then repeated once. redis-py itself does not repeat commands.

URLs: redis://, rediss:// (TLS), unix://, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE[/DB], redis+cluster://HOST:PORT,HOST:PORT.
The last two use TLS if they begin with rediss+. User and password are before the hosts, and query parameters are options of
redis-py, such as ssl_ca_certs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog

from shortener.metrics import Metrics
from shortener.redis_urls import parse_redis_url

log = structlog.get_logger(__name__)

T = TypeVar("T")
# A client of redis-py: Redis or RedisCluster. Both classes have the commands that the service uses, but no common type.
Client = Any

WRITE_CHECK_KEY = "shortener:write-check"  # The Redis key that /readyz writes, to check whether Redis accepts writes.
WRITE_CHECK_MS = 10_000  # The time in milliseconds after which Redis deletes WRITE_CHECK_KEY.
PING_INTERVAL_SECONDS = 0.25  # The pause between two pings of a Redis server that is down.
# The time limit in seconds of a call with `force`. Such a call needs Redis, for example because the database is not available.
FORCED_TIMEOUT_SECONDS = 1.0


# redis-py is imported in functions: it takes 9 MB of memory, and an installation without REDIS_URL does not need it.
@cache
def _rejections() -> type[Exception]:
    """Return the exception class that redis-py raises if the server has rejected a command."""
    from redis.exceptions import ResponseError

    return ResponseError


@cache
def _failures() -> tuple[type[Exception], ...]:
    """Return the exception classes that redis-py raises if the server does not respond."""
    from redis.exceptions import RedisClusterException, RedisError

    return (RedisError, RedisClusterException, OSError, TimeoutError, asyncio.IncompleteReadError)


class RedisUnavailable(Exception):
    """Raised if Redis does not respond or rejects the command (out of memory, read-only). Redis may still have executed the
    command."""


class RedisServer:
    """A Redis server, a Sentinel service or a cluster.

    `timeout` is the time limit of a call in seconds. `connections` is the maximum number of calls at a time; further calls wait.
    `calls`, `failures` and `queued` count all calls, the failed calls and the calls that waited, since the process started."""

    def __init__(self, client: Client, *, timeout: float, connections: int, sentinels: Sequence[Client] = ()) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(connections)
        self._sentinels = sentinels
        self._timeout = timeout
        # None while the server responds to calls. After a call without a response, it is a future with the result of the first
        # ping: True if the server responds to this ping.
        self._first_ping: asyncio.Future[bool] | None = None
        self._pinger: asyncio.Task[None] | None = None
        self.calls = self.failures = self.queued = 0

    @property
    def is_up(self) -> bool:
        """Whether Redis responds. It becomes False after a call and a ping without a response, and True when the server responds
        to a ping."""
        return self._first_ping is None or not self._first_ping.done() or self._first_ping.result()

    def register_metrics(self, metrics: Metrics) -> None:
        metrics.gauge("shortener_redis_up", "1 if Redis responded to the last call or ping; otherwise 0.", lambda: self.is_up)
        metrics.counter("shortener_redis_calls", "Calls to Redis.", lambda: self.calls)
        metrics.counter("shortener_redis_failures", "Calls to Redis that got no response or were rejected.", lambda: self.failures)
        metrics.counter("shortener_redis_queued", "Calls to Redis that waited for a free connection.", lambda: self.queued)

    async def run(self, command: Callable[[Client], Awaitable[T]], *, force: bool = False) -> T:
        """Return the result of `command(client)`. The command may run twice. Raise RedisUnavailable if it fails.

        With `force`, the command is sent even if the server seems to be down, and its time limit is FORCED_TIMEOUT_SECONDS."""
        failure: Exception | None = None
        for _ in range(2):
            if self._first_ping is not None and not force and not await asyncio.shield(self._first_ping):
                break
            limit = FORCED_TIMEOUT_SECONDS if force else self._timeout
            await self._take_slot(limit)
            self.calls += 1
            try:
                async with asyncio.timeout(limit):
                    return await _keep_cancellation(command(self._client))
            except _rejections() as error:
                self.failures += 1
                raise RedisUnavailable(str(error)) from error
            except _failures() as error:
                self.failures += 1
                self._start_pinging(error)
                failure = error
            finally:
                self._slots.release()
        text = f"{type(failure).__name__}: {failure}" if failure else "Redis has been down since an earlier call"
        raise RedisUnavailable(text) from failure

    async def _take_slot(self, limit: float) -> None:
        """Wait until a connection is free. Raise RedisUnavailable after `limit` seconds. A wait for a connection does not mean
        that Redis is down, so no ping is sent."""
        if not self._slots.locked():
            await self._slots.acquire()  # A connection is free, so `acquire` returns at once.
            return
        self.queued += 1
        try:
            async with asyncio.timeout(limit):
                await self._slots.acquire()
        except TimeoutError:
            self.failures += 1
            raise RedisUnavailable("all connections are in use") from None

    async def ping(self) -> bool:
        """Return whether the server responds to a ping in time."""
        try:
            async with asyncio.timeout(self._timeout):
                await _keep_cancellation(self._client.ping())
        except Exception:  # any error means that the server is down; the task that pings must not end
            return False
        return True

    async def accepts_writes(self) -> bool:
        """Return whether the server stores a value in time. A ping does not show this: a replica, or a server whose memory is
        full, responds to a ping but rejects writes."""
        try:
            async with asyncio.timeout(self._timeout):
                await _keep_cancellation(self._client.set(WRITE_CHECK_KEY, b"", px=WRITE_CHECK_MS))
        except Exception:  # any error means that Redis cannot store hits
            return False
        return True

    async def close(self) -> None:
        """Stop the pings and close all connections to Redis."""
        if self._pinger is not None:
            self._pinger.cancel()
            await asyncio.gather(self._pinger, return_exceptions=True)
        for client in (self._client, *self._sentinels):
            await client.aclose()

    def _start_pinging(self, error: Exception) -> None:
        if self._first_ping is None:
            loop = asyncio.get_running_loop()
            self._first_ping = loop.create_future()
            self._pinger = loop.create_task(self._ping_until_up(self._first_ping, error))

    async def _ping_until_up(self, first_ping: asyncio.Future[bool], cause: Exception) -> None:
        while not await self.ping():
            if not first_ping.done():
                log.warning("redis_down", error=f"{type(cause).__name__}: {cause}")
                first_ping.set_result(False)
            await asyncio.sleep(PING_INTERVAL_SECONDS)
        self._first_ping = None
        if first_ping.done():
            log.warning("redis_up")
        else:
            first_ping.set_result(True)


async def _keep_cancellation(command: Awaitable[T]) -> T:
    """Return the result of a command. Raise CancelledError if this task was cancelled during the command.

    redis-py sends each command with asyncio.wait_for. On Python 3.11, this function loses a cancellation that arrives just after
    the command was sent. Without this wrapper, a time limit would then have no effect, and a background job would continue after
    its stop."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        return await command
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


def open_redis(url: str, *, timeout: float, connections: int = 16) -> RedisServer:
    """Return a Redis client for a URL. The first call opens the first connection. Raise ValueError if the URL is not valid.

    `timeout` is the time limit of a call in seconds, `connections` the maximum number of calls at a time. The pool has one more
    connection, for pings."""
    from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    parsed = parse_redis_url(url)
    from_url: dict[str, Any] = {**parse_url(_single_server_url(url, parsed.tls) if parsed.mode else url)}
    options = from_url | {
        # `RedisServer.run` has shorter time limits. The limits of the socket end those commands for which `run` has stopped
        # waiting.
        "socket_timeout": FORCED_TIMEOUT_SECONDS,
        "socket_connect_timeout": FORCED_TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 0),  # Turn off the retries of redis-py, which makes up to ten attempts by default.
        "health_check_interval": 0,
        # Without `driver_info`, redis-py does not send its version, which saves one round trip for each new connection.
        "driver_info": None,
        "protocol": 2,
    }
    client: Client
    sentinels: Sequence[Client] = ()
    if parsed.mode:
        for name in ("host", "port", "db", "connection_class"):
            options.pop(name, None)
    if parsed.mode == "sentinel":
        service, _, database = parsed.path.partition("/")
        sentinel_options = {
            name: value for name, value in options.items() if name not in ("username", "password", "health_check_interval")
        }
        sentinel = Sentinel(parsed.hosts, sentinel_kwargs=sentinel_options | {"ssl": parsed.tls}, **options)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        sentinels = sentinel.sentinels
        client = sentinel.master_for(service, db=int(database or 0), ssl=parsed.tls, max_connections=connections + 1)
    elif parsed.mode == "cluster":
        client = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in parsed.hosts],
            ssl=parsed.tls,
            max_connections=connections + 1,
            require_full_coverage=False,
            **options,
        )
    else:
        client = Redis.from_pool(ConnectionPool(max_connections=connections + 1, **options))
    return RedisServer(client, timeout=timeout, connections=connections, sentinels=sentinels)


def _single_server_url(url: str, tls: bool) -> str:
    """Return the URL of a single server with the user, password and parameters of `url`. The parser of redis-py can read these
    values only from the URL of a single server."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return f"{'rediss' if tls else 'redis'}://{user}{at}host/?{parts.query}"
