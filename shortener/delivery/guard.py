"""The address guard: no request to a tracker reaches an address that only the own network should reach.

`rejection_reason` classifies an address by its own list, because `ipaddress.is_global` accepts NAT64, 6to4, mapped shared
addresses, multicast and the metadata services of clouds. `Guard` uses it twice: `check_host` checks every address of a name
when a tracker is saved, and `socket_factory` checks the address of each connection, because a name can change in between.
`Guard(allow_private=True)` (ALLOW_PRIVATE_TARGETS) also accepts loopback, private and shared addresses, but nothing else.

`check_host` runs a bounded number of look-ups. `check_literal` makes none: it is for URLs that are not called now.

Raises `ForbiddenTarget` and `HostUnresolved`. Neither text contains the address or its kind, so that customers learn nothing about
the network.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import AddrInfoType

#: A blocking function that returns all addresses of a name, as text. Raises `OSError` (`socket.gaierror`) or `UnicodeError`.
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

# The first network that contains an address decides. Sources: IANA's special-purpose registries, and the documentation of clouds.
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
        ("192.88.99.0/24", RESERVED),  # relays of 6to4
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
    """An address that no tracker may have. It is an OSError, so that aiohttp treats it as a failed connection."""

    def __init__(self, reason: str) -> None:
        """`reason` is for operators only: it distinguishes hosts of the own network."""
        self.reason = reason
        super().__init__("the host must have a public address")


class HostUnresolved(Exception):
    """A name has no address, or none was found in time. It may get one later, so a tracker with this host can be saved."""


def rejection_reason(address: str | IPv4Address | IPv6Address) -> str | None:
    """Return why no request may be sent to `address`; None if it is public. A text that is not an address is rejected."""
    if isinstance(address, str):
        try:
            # A zone id only names a local interface.
            address = ip_address(address.partition("%")[0])
        except ValueError:
            return RESERVED
    if isinstance(address, IPv6Address):
        if address not in _MAPPED and address not in _NAT64:
            for network6, reason in _IPV6:
                if address in network6:
                    return reason
            return None if address in _GLOBAL_UNICAST else RESERVED
        # A NAT64 address reaches the embedded IPv4 address. On an IPv6-only host every public IPv4 address has this form.
        address = IPv4Address(int(address) & 0xFFFFFFFF)
    for network, reason in _IPV4:
        if address in network:
            return reason
    return None


def system_lookup(host: str, port: int) -> list[str]:
    """Return the addresses from the system's resolver, which includes the hosts file."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class LookupThreads:
    """Runs blocking look-ups, each in its own thread, at most `limit` at a time.

    The threads are daemons: a resolver that hangs must not delay other work in a shared pool or the exit of the process. A look-up
    that nobody waits for any more uses its thread until it ends.
    """

    def __init__(self, limit: int) -> None:
        self._slots = asyncio.Semaphore(limit)

    async def run(self, lookup: Lookup, host: str, port: int) -> Sequence[str]:
        """Wait for a thread and return the result of the look-up. Raise its exception."""
        await self._slots.acquire()
        try:
            result = _start_lookup(lookup, host, port, self._slots.release)
        except BaseException:
            self._slots.release()
            raise
        return await result


def _start_lookup(lookup: Lookup, host: str, port: int, ended: Callable[[], None]) -> asyncio.Future[Sequence[str]]:
    """Start a thread and return its result. `ended` is called when the thread ends."""
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
        with suppress(RuntimeError):  # the loop has closed in the meantime
            loop.call_soon_threadsafe(settle, addresses, error)

    threading.Thread(target=run, name=f"look up {host}", daemon=True).start()
    return result


#: Look-ups of `Guard.check_host` at a time.
MAX_CHECKS = 16
#: Names that mean an address of the own host or network in every installation.
_LOCAL_NAMES = re.compile(r"(.*\.)?(localhost|local|internal|localdomain|home\.arpa)\.?")


class Guard:
    """Checks addresses. `lookup` resolves names in `check_host`."""

    def __init__(self, allow_private: bool = False, *, lookup: Lookup = system_lookup) -> None:
        self.lookup = lookup
        self._threads = LookupThreads(MAX_CHECKS)
        self._permitted: frozenset[str] = _PERMITTED_IN_DEVELOPMENT if allow_private else frozenset()

    def check_address(self, address: str) -> None:
        """Raise `ForbiddenTarget` if no request may be sent to the address."""
        reason = rejection_reason(address)
        if reason is not None and reason not in self._permitted:
            raise ForbiddenTarget(reason)

    async def check_host(self, host: str, port: int, *, timeout: float = 3.0) -> None:
        """Check every address of a host (a name or an address) within `timeout` seconds.

        Raise `ForbiddenTarget` if any address is forbidden, `HostUnresolved` if there is none.
        """
        try:
            addresses: Sequence[str] = [str(ip_address(host.partition("%")[0]))]
        except ValueError:
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
        """Check a host without a look-up: an address, or a name that is always local. Raise `ForbiddenTarget`."""
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
        """Return the socket for a connection (`aiohttp.TCPConnector(socket_factory=...)`). Raise `ForbiddenTarget`."""
        family, kind, protocol, _, address = info
        self.check_address(str(address[0]))
        return socket.socket(family, kind, protocol)
