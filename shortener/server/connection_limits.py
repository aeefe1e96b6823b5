"""This module limits the number of connections: from one client IP address, and in total.

The total limit depends on the number of files that the process may open, because a server without free file descriptors cannot
accept any connection. When the total limit is reached, the server closes the connections that have waited for a request for the
longest time. One IP address (for IPv6, one /64 network) may have CONNECTIONS_PER_ADDRESS connections, but never more than half of
the total. Trusted proxies and programs on this machine have no such limit, because many people connect through them.
"""

from __future__ import annotations

import contextlib
import heapq
import ipaddress
import resource
from collections.abc import Collection
from functools import lru_cache
from typing import Protocol

import structlog

from shortener.settings import Network

log = structlog.get_logger(__name__)

# This number of open files is reserved for databases, deliveries and other purposes. If the process may open few files, only a
# quarter of them is reserved.
RESERVED_FILES = 256
MAX_OPEN_FILES = 1_048_576  # the server sets the maximum number of its open files to this number if the system permits it
_EVICTED_SHARE = 16  # a search for waiting connections is slow; therefore each search closes up to 1/16 of all connections
_REFUSALS_PER_LOG_LINE = 1000
_MAX_CACHED_ADDRESSES = 8192
_IPV6_PREFIX = 64


class LimitedConnection(Protocol):
    """A connection of the server. `waiting_since` is the time (`loop.time()`) since which the connection waits for a request, or
    None during a request."""

    @property
    def waiting_since(self) -> float | None: ...
    def close(self) -> None: ...


def raise_open_files_limit() -> int:
    """Raise the limit of open files of this process to the maximum that the system permits. Return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return open_files_limit()


def open_files_limit() -> int:
    """Return the number of files that this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else min(soft, MAX_OPEN_FILES)


class ConnectionLimits:
    """Counts the connections of one process by client IP address, and enforces the limits."""

    def __init__(self, per_address: int, trusted_proxies: tuple[Network, ...], open_files: int) -> None:
        self.total = open_files - min(RESERVED_FILES, open_files // 4)
        self.per_address = min(per_address, self.total // 2)
        self._trusted_proxies = trusted_proxies
        self._counts: dict[str, int] = {}
        self._refused = 0

    def admit(self, peer: str | None, connections: Collection[LimitedConnection]) -> bool:
        """Count a new connection from `peer` and return True. Return False if the IP address has too many connections.
        `connections` are all connections of the process, including the new one."""
        if len(connections) > self.total:
            self._close_waiting(connections)
        if peer is None:
            return True
        address = _limited_address(peer, self._trusted_proxies)
        if address is None:
            return True
        count = self._counts.get(address, 0)
        if count >= self.per_address:
            if self._refused % _REFUSALS_PER_LOG_LINE == 0:
                log.warning("too_many_connections", refused=self._refused + 1, limit=self.per_address)
            self._refused += 1
            return False
        self._counts[address] = count + 1
        return True

    def release(self, peer: str | None) -> None:
        """Subtract a connection that `admit` counted and that is now closed."""
        address = _limited_address(peer, self._trusted_proxies) if peer is not None else None
        if address is None:
            return
        count = self._counts.get(address, 0)
        if count > 1:
            self._counts[address] = count - 1
        else:
            self._counts.pop(address, None)

    def _close_waiting(self, connections: Collection[LimitedConnection]) -> None:
        """Close some of the connections that wait for a request: those that have waited for the longest time."""
        waiting = [(since, id(one), one) for one in connections if (since := one.waiting_since) is not None]
        oldest = heapq.nsmallest(max(len(connections) // _EVICTED_SHARE, 1), waiting)
        log.warning("connections_closed_for_others", closed=len(oldest), open=len(connections), limit=self.total)
        for _, _, connection in oldest:
            connection.close()


@lru_cache(maxsize=_MAX_CACHED_ADDRESSES)
def _limited_address(peer: str, trusted_proxies: tuple[Network, ...]) -> str | None:
    """Return the text under which the connections of a peer are counted: its IP address, or its /64 network. Return None if the
    peer has no limit."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback or any(address in network for network in trusted_proxies):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)
