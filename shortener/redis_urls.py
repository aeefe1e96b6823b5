"""This module parses Redis URLs: the URL of one server, of Redis Sentinel or of a Redis Cluster."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

#: The schemes of Redis URLs: one server, Sentinel or Cluster; `rediss` uses TLS.
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """The parts of a Redis URL. `mode` is "" for one server, "sentinel" or "cluster". `path` has no slash at its start and end,
    unless the scheme is unix."""

    mode: str
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    path: str


def parse_redis_url(url: str) -> RedisUrl:
    """Return the parts of a Redis URL. Raise ValueError if it is invalid; the text of the error is for the operator."""
    parts = urlsplit(url)
    if parts.scheme not in REDIS_SCHEMES:
        raise ValueError(f"must begin with one of {', '.join(scheme + '://' for scheme in REDIS_SCHEMES)}")
    if parts.scheme == "unix":
        return RedisUrl("", False, (), parts.path)
    mode = parts.scheme.partition("+")[2]
    default_port = 26379 if mode == "sentinel" else 6379
    hosts = []
    for one in parts.netloc.rpartition("@")[2].split(","):
        place = urlsplit("//" + one)
        if not place.hostname:
            raise ValueError("must name a host")
        hosts.append((place.hostname, place.port or default_port))
    path = parts.path.strip("/")
    if mode == "sentinel" and not path.partition("/")[0]:
        raise ValueError("must name a service: redis+sentinel://HOST:PORT,HOST:PORT/SERVICE")
    return RedisUrl(mode, parts.scheme.startswith("rediss"), tuple(hosts), path)
