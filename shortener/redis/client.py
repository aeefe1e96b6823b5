"""Redis: link cache, and spool for an outage of the database. Nothing has to be in it; with it wiped or away, nothing is wrong.

Promises. A call ends within its time limit, in `RedisUnavailable` at the latest; the client's own retries are off. A Redis that is
down or slow is noticed once: the call that met it asks for a ping, and while pings go unanswered every other call fails at once,
without a byte sent. A lost connection to a Redis that answers the ping costs one more try, and nobody sees it.

URLs: redis://, rediss:// (TLS), unix://, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE[/DB], redis+cluster://HOST:PORT,HOST:PORT,
the last two with rediss+ for TLS; user and password before the hosts; options of redis-py, such as ssl_ca_certs, as parameters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from shortener.metrics import Metrics

log = structlog.get_logger(__name__)

T = TypeVar("T")
Client = Any  # Redis or RedisCluster: the commands used here are the same, their types are not

PROBE_EVERY = 0.25  # seconds between pings of a Redis that is down
LAST_RESORT = 1.0  # seconds for a call that insists: the database is away, and there is nobody else to ask
#: What the client raises when the server cannot be asked, or does not answer; a ResponseError is an answer.
_FAULTS = (RedisError, RedisClusterException, OSError, TimeoutError, asyncio.IncompleteReadError)


class RedisUnavailable(Exception):
    """Redis cannot be asked now, or refused (out of memory, read-only); what was to be kept may or may not be."""


class RedisServer:
    """`timeout`: seconds that a call may take. `calls`, `failures`: since the process began."""

    def __init__(self, client: Client, *, timeout: float, sentinels: Sequence[Client] = ()) -> None:
        self._client = client
        self._sentinels = sentinels
        self._timeout = timeout
        self._doubt: asyncio.Future[bool] | None = None  # whether it answered the first ping after a failure; None: all is well
        self._prober: asyncio.Task[None] | None = None
        self.calls = self.failures = 0

    @property
    def up(self) -> bool:
        """Whether it answered when it was last asked."""
        return self._doubt is None or not self._doubt.done() or self._doubt.result()

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the totals on /metrics."""
        metrics.gauge("shortener_redis_up", "1 unless Redis was down or slow when it was last asked.", lambda: self.up)
        metrics.counter("shortener_redis_calls", "Calls of Redis.", lambda: self.calls)
        metrics.counter("shortener_redis_failures", "Calls of Redis that it did not answer, or refused.", lambda: self.failures)

    async def run(self, ask: Callable[[Client], Awaitable[T]], *, force: bool = False) -> T:
        """What `ask(client)` answers; it may be asked twice. `force`: ask a Redis that seems to be down, and for longer.

        Raises RedisUnavailable."""
        fault: Exception | None = None
        for _ in range(2):
            if self._doubt is not None and not force and not await asyncio.shield(self._doubt):
                break
            self.calls += 1
            try:
                async with asyncio.timeout(LAST_RESORT if force else self._timeout):
                    return await ask(self._client)
            except ResponseError as error:
                self.failures += 1
                raise RedisUnavailable(str(error)) from error
            except _FAULTS as error:
                self.failures += 1
                self._suspect(error)
                fault = error
        raise RedisUnavailable(f"{type(fault).__name__}: {fault}" if fault else "it was down when it was last asked") from fault

    async def close(self) -> None:
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        for client in (self._client, *self._sentinels):
            await client.aclose()

    def _suspect(self, error: Exception) -> None:
        if self._doubt is None:
            loop = asyncio.get_running_loop()
            self._doubt = loop.create_future()
            self._prober = loop.create_task(self._probe(self._doubt, error))

    async def _probe(self, doubt: asyncio.Future[bool], cause: Exception) -> None:
        """Ping until it answers."""
        while not await self.answers():
            if not doubt.done():
                log.warning("redis_down", error=f"{type(cause).__name__}: {cause}")
                doubt.set_result(False)
            await asyncio.sleep(PROBE_EVERY)  # and ask again
        self._doubt = None
        if doubt.done():
            log.warning("redis_back")
        else:
            doubt.set_result(True)

    async def answers(self) -> bool:
        """Whether it answers a ping in time."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._client.ping()
        except _FAULTS:
            return False
        return True


def open_redis(url: str, *, timeout: float, connections: int = 16) -> RedisServer:
    """Nothing is sent until the first call. Raises ValueError for an unusable URL."""
    scheme, hosts, path = _split(url)
    tls, kind = scheme.startswith("rediss"), scheme.partition("+")[2]
    given: dict[str, Any] = {**parse_url(url if not kind else _single(url, tls))}
    options = given | {
        "socket_timeout": LAST_RESORT,  # the limits proper are `run`'s; this one is for what it gave up on
        "socket_connect_timeout": LAST_RESORT,
        "retry": Retry(NoBackoff(), 0),  # redis-py's own default makes ten attempts
        "health_check_interval": 0,
        "driver_info": None,  # one round trip less on connecting
        "protocol": 2,
    }
    client: Client
    sentinels: Sequence[Client] = ()
    if kind:
        for name in ("host", "port", "db", "connection_class"):
            options.pop(name, None)
    if kind == "sentinel":
        service, _, database = path.partition("/")
        if not service:
            raise ValueError("names no service: wants redis+sentinel://HOST:PORT,HOST:PORT/SERVICE")
        of_sentinels = {
            name: value for name, value in options.items() if name not in ("username", "password", "health_check_interval")
        }
        sentinel = Sentinel(hosts, sentinel_kwargs=of_sentinels | {"ssl": tls}, **options)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        sentinels = sentinel.sentinels
        client = sentinel.master_for(service, db=int(database or 0), ssl=tls, max_connections=connections)
    elif kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in hosts]
        client = RedisCluster(
            startup_nodes=nodes,
            ssl=tls,
            max_connections=connections,
            require_full_coverage=False,
            **options,
        )
    else:
        client = Redis.from_pool(ConnectionPool(max_connections=connections, **options))
    return RedisServer(client, timeout=timeout, sentinels=sentinels)


SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def check_redis_url(url: str) -> None:
    """Raises ValueError, in words for an operator."""
    scheme, _, path = _split(url)
    if scheme.endswith("+sentinel") and not path.partition("/")[0]:
        raise ValueError("names no service: wants redis+sentinel://HOST:PORT,HOST:PORT/SERVICE")


def _split(url: str) -> tuple[str, list[tuple[str, int]], str]:
    """Scheme, hosts with their ports, path without its slash."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"wants one of {', '.join(scheme + '://' for scheme in SCHEMES)}")
    if parts.scheme == "unix":
        return parts.scheme, [], parts.path
    default = 26379 if parts.scheme.endswith("sentinel") else 6379
    hosts = []
    for one in parts.netloc.rpartition("@")[2].split(","):
        place = urlsplit("//" + one)
        if not place.hostname:
            raise ValueError("names no host")
        hosts.append((place.hostname, place.port or default))
    return parts.scheme, hosts, parts.path.strip("/")


def _single(url: str, tls: bool) -> str:
    """The URL as one of a single server, from which user, password and parameters are read."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return f"{'rediss' if tls else 'redis'}://{user}{at}host/?{parts.query}"
