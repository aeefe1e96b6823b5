"""How many connections the server accepts: from one address, and in total.

The total follows from the number of files that the process may open, because without a free file descriptor the server could
accept nobody. When the total is reached, the connections that have waited longest for a request are closed for new ones. One
address (IPv6: one /64) may have CONNECTIONS_PER_ADDRESS connections and never more than half of the total. Trusted proxies and
programs on this machine have no such limit, because many people connect through them.
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

RESERVED_FILES = 256  # for databases, deliveries and files of the process; with a small limit a quarter of it
MAX_OPEN_FILES = 1_048_576  # more is of no use
_EVICTED_SHARE = 16  # a sixteenth of all connections is closed at a time, so that the search is rare
_REFUSALS_PER_LOG_LINE = 1000
_MAX_CACHED_ADDRESSES = 8192
_IPV6_PREFIX = 64


class LimitedConnection(Protocol):
    """A connection of the server. `waiting_since`: the loop time since when it waits for a request; None during a request."""

    @property
    def waiting_since(self) -> float | None: ...
    def close(self) -> None: ...


def raise_open_files_limit() -> int:
    """Raise the number of files that this process may open to the maximum that the system permits. Return it."""
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
    """The connections of one process, counted by address."""

    def __init__(self, per_address: int, trusted_proxies: tuple[Network, ...], open_files: int) -> None:
        self.total = open_files - min(RESERVED_FILES, open_files // 4)
        self.per_address = min(per_address, self.total // 2)
        self._trusted_proxies = trusted_proxies
        self._counts: dict[str, int] = {}
        self._refused = 0

    def admit(self, peer: str | None, connections: Collection[LimitedConnection]) -> bool:
        """Count a new connection from `peer` and return True, or return False if the address has too many.

        `connections` are all connections of the process, with the new one."""
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
        """Forget an admitted connection."""
        address = _limited_address(peer, self._trusted_proxies) if peer is not None else None
        if address is None:
            return
        count = self._counts.get(address, 0)
        if count > 1:
            self._counts[address] = count - 1
        else:
            self._counts.pop(address, None)

    def _close_waiting(self, connections: Collection[LimitedConnection]) -> None:
        """Close a part of the connections that wait for a request, longest waiting first."""
        waiting = [(since, id(one), one) for one in connections if (since := one.waiting_since) is not None]
        oldest = heapq.nsmallest(max(len(connections) // _EVICTED_SHARE, 1), waiting)
        log.warning("connections_closed_for_others", closed=len(oldest), open=len(connections), limit=self.total)
        for _, _, connection in oldest:
            connection.close()


@lru_cache(maxsize=_MAX_CACHED_ADDRESSES)
def _limited_address(peer: str, trusted_proxies: tuple[Network, ...]) -> str | None:
    """Return the address or /64 network that a peer is counted by; None if it has no limit."""
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
