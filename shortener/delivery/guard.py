"""The address guard prevents requests to IP addresses that are not public, such as those of the operator's own network.

`rejection_reason` classifies an address with the lists of this module, because `ipaddress.is_global` treats NAT64 addresses, 6to4
addresses, shared addresses that are mapped to IPv6, multicast addresses and the metadata services of clouds as public. `Guard`
checks addresses twice, because the IP address of a host name can change between the two checks: `check_host` checks every address
of a host when a tracker is saved, and `socket_factory` checks the address of each connection. `Guard(allow_private=True)`
(setting ALLOW_PRIVATE_TARGETS) also accepts loopback, private and shared addresses, but no other special addresses.

`check_host` runs a limited number of DNS look-ups at a time. `check_literal` checks a host without a look-up. It is used for URLs
to which no request is sent at that moment.

The functions raise `ForbiddenTarget` and `HostUnresolved`. The error texts do not contain the address or its kind, so that
customers cannot learn anything about the operator's network.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from aiohttp import AddrInfoType

#: A blocking function that returns all addresses of a host name as text. It raises `OSError` (`socket.gaierror`) or `UnicodeError`
#: if the name does not resolve.
Lookup = Callable[[str, int], Sequence[str]]

LOOPBACK = "loopback address"
PRIVATE = "private address"
SHARED = "shared (CGNAT) address"
METADATA = "metadata address"
LINK_LOCAL = "link-local address"
MULTICAST = "multicast address"
RESERVED = "reserved address"
UNSPECIFIED = "unspecified address"
TUNNELLED = "tunnelled address"

_PERMITTED_IN_DEVELOPMENT = frozenset({LOOPBACK, PRIVATE, SHARED})

# Several networks of a list may contain the same IP address. The first of them determines the kind of the address, for example
# METADATA before LINK_LOCAL. The networks come from the special-purpose registries of IANA and from the documentation of cloud
# providers.
_IPV4 = [
    (IPv4Network(network), reason)
    for network, reason in (
        ("169.254.169.254/32", METADATA),  # AWS, Azure, GCP and others
        ("169.254.170.2/32", METADATA),  # AWS ECS
        ("168.63.129.16/32", METADATA),  # Azure, on a public address
        ("100.100.100.200/32", METADATA),  # Alibaba
        ("192.0.0.192/32", METADATA),  # Oracle
        ("0.0.0.0/8", UNSPECIFIED),
        ("127.0.0.0/8", LOOPBACK),
        ("10.0.0.0/8", PRIVATE),
        ("172.16.0.0/12", PRIVATE),
        ("192.168.0.0/16", PRIVATE),
        ("100.64.0.0/10", SHARED),
        ("169.254.0.0/16", LINK_LOCAL),
        ("192.0.0.0/24", RESERVED),
        ("192.0.2.0/24", RESERVED),
        ("192.88.99.0/24", RESERVED),  # anycast addresses of 6to4 relays
        ("198.18.0.0/15", RESERVED),
        ("198.51.100.0/24", RESERVED),
        ("203.0.113.0/24", RESERVED),
        ("224.0.0.0/4", MULTICAST),
        ("240.0.0.0/4", RESERVED),
    )
]
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_IPV6 = [
    (IPv6Network(network), reason)
    for network, reason in (
        ("fd00:ec2::254/128", METADATA),  # AWS
        ("fd20:ce::254/128", METADATA),  # GCP
        ("::/128", UNSPECIFIED),
        ("::1/128", LOOPBACK),
        ("fc00::/7", PRIVATE),
        ("fe80::/10", LINK_LOCAL),
        ("ff00::/8", MULTICAST),
        ("::/96", TUNNELLED),  # IPv4-compatible
        ("64:ff9b:1::/48", TUNNELLED),  # local NAT64
        ("2001::/32", TUNNELLED),  # Teredo
        ("2002::/16", TUNNELLED),  # 6to4
        ("2001::/23", RESERVED),
        ("2001:db8::/32", RESERVED),
        ("3fff::/20", RESERVED),
    )
]
_GLOBAL_UNICAST = IPv6Network("2000::/3")


class ForbiddenTarget(OSError):
    """The error for an IP address to which no request may be sent. It is an OSError, so aiohttp treats it as a failed
    connection."""

    def __init__(self, reason: str) -> None:
        """Create the error. `reason` is the kind of the address. Only operators may see the reason, because it describes their
        network."""
        self.reason = reason
        super().__init__("the host must have a public address (for development, the operator can set ALLOW_PRIVATE_TARGETS)")


class HostUnresolved(Exception):
    """The error for a host name that has no address, or for which the resolver does not respond in time.

    The name may get an address later, so a tracker with this host can be saved."""


def rejection_reason(address: str | IPv4Address | IPv6Address) -> str | None:
    """Return the reason why no request may be sent to an IP address, or None if the address is public.

    Return `RESERVED` for a text that is not an IP address."""
    if isinstance(address, str):
        try:
            # The zone id of an IPv6 address (after %) is only the name of a local interface.
            address = ip_address(address.partition("%")[0])
        except ValueError:
            return RESERVED
    if isinstance(address, IPv6Address):
        if address not in _MAPPED and address not in _NAT64:
            for network6, reason in _IPV6:
                if address in network6:
                    return reason
            return None if address in _GLOBAL_UNICAST else RESERVED
        # A connection to a NAT64 address reaches the embedded IPv4 address. On an IPv6-only host, the resolver returns every public
        # IPv4 address in this form.
        address = IPv4Address(int(address) & 0xFFFFFFFF)
    for network, reason in _IPV4:
        if address in network:
            return reason
    return None


def system_lookup(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host from the resolver of the operating system, which also reads the hosts file."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class LookupThreads:
    """A runner of blocking DNS look-ups, each in its own thread, at most `limit` at a time.

    The look-ups of one domain may use only a quarter of `limit`. Otherwise many trackers in a domain whose name servers do not
    respond would delay the look-ups of all other trackers.

    The threads are daemon threads, because a resolver that hangs must not delay the exit of the process or other work in a shared
    thread pool. If the caller of a look-up stops waiting, the thread stays occupied until the look-up ends.
    """

    def __init__(self, limit: int) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._limit_of_domain = max(limit // 4, 1)
        # The semaphores of domains with look-ups that run or wait. A semaphore is removed when no look-up uses it.
        self._of_domains: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, lookup: Lookup, host: str, port: int) -> Sequence[str]:
        """Wait until the limit of all look-ups and the limit of the domain permit one more look-up. Then run `lookup` in a new
        thread and return the addresses. Raise the exception that `lookup` raises."""
        of_domain = self._of_domains.setdefault(domain_of(host), asyncio.Semaphore(self._limit_of_domain))
        await of_domain.acquire()
        try:
            await self._slots.acquire()
        except BaseException:
            of_domain.release()
            raise

        def release() -> None:
            self._slots.release()
            of_domain.release()

        try:
            result = _start_lookup(lookup, host, port, release)
        except BaseException:
            release()
            raise
        return await result


def domain_of(host: str) -> str:
    """Return the part of a host name that one owner usually controls: the last two labels, or the last three labels if the name
    ends like co.uk."""
    labels = host.lower().rstrip(".").split(".")
    has_short_ending = len(labels) > 2 and len(labels[-1]) == 2 and len(labels[-2]) <= 3
    return ".".join(labels[-3 if has_short_ending else -2 :])


def _start_lookup(lookup: Lookup, host: str, port: int, ended: Callable[[], None]) -> asyncio.Future[Sequence[str]]:
    """Start a thread that runs the look-up, and return a future of the addresses. `ended` is called when the look-up ends."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Sequence[str]] = loop.create_future()

    def settle(addresses: Sequence[str] | None, error: Exception | None) -> None:
        ended()
        if result.done():
            return
        if addresses is None:
            result.set_exception(error or OSError("no response"))
        else:
            result.set_result(addresses)

    def run() -> None:
        addresses, error = None, None
        try:
            addresses = lookup(host, port)
        except Exception as caught:
            error = caught
        with suppress(RuntimeError):  # the event loop may be closed when the look-up ends
            loop.call_soon_threadsafe(settle, addresses, error)

    threading.Thread(target=run, name=f"look up {host}", daemon=True).start()
    return result


class ResolverResponses:
    """The last two different names for which the resolver of this machine responded, each with the time.

    If no response arrives for a name, a recent response for another name shows that the resolver works. Two names are stored,
    because one of them can be the name without a response."""

    def __init__(self) -> None:
        self._latest = self._other = ("", -math.inf)

    def note(self, host: str, now: float) -> None:
        """Store that the resolver responded for a name at the time `now` of the event loop."""
        if self._latest[0] != host:
            self._other = self._latest
        self._latest = (host, now)

    def has_other(self, host: str, since: float) -> bool:
        """Return whether the resolver has responded for a name other than `host` since `since` (a time of the event loop)."""
        return any(name != host and at >= since for name, at in (self._latest, self._other))


#: `Guard.check_host` runs at most this many look-ups at a time.
MAX_CHECKS = 16
#: Host names that always refer to this host or to the local network.
_LOCAL_NAMES = re.compile(r"(.*\.)?(localhost|local|internal|localdomain|home\.arpa)\.?")


def is_ip_address(host: str) -> bool:
    """Return whether a host is an IP address, with or without brackets and a zone id."""
    try:
        ip_address(host.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return False
    return True


class Guard:
    """An address guard. `lookup` is the function that resolves host names in `check_host`.

    All senders that use the guard share `responses`."""

    def __init__(self, allow_private: bool = False, *, lookup: Lookup = system_lookup) -> None:
        self.lookup = lookup
        self.responses = ResolverResponses()
        self._threads = LookupThreads(MAX_CHECKS)
        self._permitted: frozenset[str] = _PERMITTED_IN_DEVELOPMENT if allow_private else frozenset()

    def check_address(self, address: str) -> None:
        """Raise `ForbiddenTarget` if no request may be sent to the given IP address."""
        reason = rejection_reason(address)
        if reason is not None and reason not in self._permitted:
            raise ForbiddenTarget(reason)

    async def check_host(self, host: str, port: int, *, timeout: float = 3.0) -> None:
        """Check every IP address of a host (a name or an IP address) within `timeout` seconds.

        Raise `ForbiddenTarget` if any address is forbidden, or if the name is always local, such as metadata.google.internal.
        Raise `HostUnresolved` if the host has no address.
        """
        self.check_literal(host)
        if is_ip_address(host):
            return
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._threads.run(self.lookup, host, port)
        except TimeoutError:
            raise HostUnresolved("the name did not resolve in time") from None
        except (OSError, UnicodeError):
            raise HostUnresolved("the name does not resolve") from None
        if not addresses:
            raise HostUnresolved("the name does not resolve")
        for address in addresses:
            self.check_address(address)

    def check_literal(self, host: str) -> None:
        """Raise `ForbiddenTarget` if the host is a forbidden address or a name that is always local. The method makes no DNS
        look-up."""
        host = host.removeprefix("[").removesuffix("]").partition("%")[0]
        try:
            address = str(ip_address(host))
        except ValueError:
            if _LOCAL_NAMES.fullmatch(host.lower()):
                address = "127.0.0.1"
            else:
                return
        self.check_address(address)

    def socket_factory(self, info: AddrInfoType) -> socket.socket:
        """Create the socket of a connection, for `aiohttp.TCPConnector(socket_factory=...)`.

        Raise `ForbiddenTarget` if no request may be sent to the address of the connection."""
        family, kind, protocol, _, address = info
        self.check_address(str(address[0]))
        return socket.socket(family, kind, protocol)
