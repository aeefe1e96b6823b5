"""The address guard: no request of ours reaches an address that only our own network should reach.

`refusal` judges one address by an own list, because `ipaddress.is_global` lets pass NAT64, 6to4, mapped shared addresses,
multicast and the cloud's metadata services. `Guard` applies it twice: `check_host` to every address of a name when a tracker is
saved, and `socket_factory` to the address that is really about to be connected to, which is what counts: between the two a name
may change. `Guard(allow_private=True)` (ALLOW_PRIVATE_TARGETS) lets loopback, private and shared addresses pass, nothing else.

Raises `ForbiddenTarget` and `HostUnresolved`. Neither names the address, so that a customer learns nothing about our network.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import AddrInfoType

#: All addresses of a name, as text; blocking. Raises `OSError` (`socket.gaierror`) or `UnicodeError`.
Lookup = Callable[[str, int], Sequence[str]]

LOOPBACK = "loopback address"
PRIVATE = "private address"
SHARED = "shared (CGNAT) address"
METADATA = "metadata address"
LINK_LOCAL = "link-local address"
MULTICAST = "multicast address"
RESERVED = "reserved address"
UNSPECIFIED = "unspecified address"
DISGUISED = "tunnelled address"

_PERMITTED_IN_DEVELOPMENT = frozenset({LOOPBACK, PRIVATE, SHARED})

# The first network that holds an address decides. IANA's special-purpose registries, and where clouds serve metadata.
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
        ("::/96", DISGUISED),  # IPv4-compatible
        ("64:ff9b:1::/48", DISGUISED),  # local NAT64
        ("2001::/32", DISGUISED),  # Teredo
        ("2002::/16", DISGUISED),  # 6to4
        ("2001::/23", RESERVED),
        ("2001:db8::/32", RESERVED),
        ("3fff::/20", RESERVED),
    )
]
_GLOBAL_UNICAST = IPv6Network("2000::/3")


class ForbiddenTarget(OSError):
    """An address that no tracker may live on. An OSError, so that a connector takes it for a connection that failed."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the host leads to a {reason}")


class HostUnresolved(Exception):
    """A name has no address, or none was found in time. The name may be made later: whoever saves a tracker decides."""


def refusal(address: str | IPv4Address | IPv6Address) -> str | None:
    """Why no request may go to `address`, or None when it is public. What is not an address at all is refused."""
    if isinstance(address, str):
        try:
            # A zone id only says through which of our interfaces.
            address = ip_address(address.partition("%")[0])
        except ValueError:
            return RESERVED
    if isinstance(address, IPv6Address):
        if address not in _MAPPED and address not in _NAT64:
            for network6, reason in _IPV6:
                if address in network6:
                    return reason
            return None if address in _GLOBAL_UNICAST else RESERVED
        # NAT64 leads where the IPv4 address leads, and on an IPv6-only host every public IPv4 address looks so.
        address = IPv4Address(int(address) & 0xFFFFFFFF)
    for network, reason in _IPV4:
        if address in network:
            return reason
    return None


def system_lookup(host: str, port: int) -> list[str]:
    """What the system's resolver says, hosts file included."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def look_up(lookup: Lookup, host: str, port: int) -> Sequence[str]:
    """Run a blocking look-up in a thread of its own.

    The thread is a daemon: a resolver that hangs must neither hold up other work of a shared pool nor the end of the process.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Sequence[str]] = loop.create_future()

    def settle(addresses: Sequence[str] | None, error: Exception | None) -> None:
        if answer.done():
            return
        if addresses is None:
            answer.set_exception(error or OSError("no answer"))
        else:
            answer.set_result(addresses)

    def run() -> None:
        addresses, error = None, None
        try:
            addresses = lookup(host, port)
        except Exception as caught:
            error = caught
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, addresses, error)

    threading.Thread(target=run, name=f"look up {host}", daemon=True).start()
    return await answer


class Guard:
    def __init__(self, allow_private: bool = False, *, lookup: Lookup = system_lookup) -> None:
        self.lookup = lookup
        self._permitted: frozenset[str] = _PERMITTED_IN_DEVELOPMENT if allow_private else frozenset()

    def check_address(self, address: str) -> None:
        """Raises `ForbiddenTarget`."""
        reason = refusal(address)
        if reason is not None and reason not in self._permitted:
            raise ForbiddenTarget(reason)

    async def check_host(self, host: str, port: int, *, timeout: float = 3.0) -> None:
        """Judge every address of a host, a name or a literal, within `timeout` seconds.

        Raises `ForbiddenTarget` if any address is refused, `HostUnresolved` if there is none.
        """
        try:
            addresses: Sequence[str] = [str(ip_address(host.partition("%")[0]))]
        except ValueError:
            try:
                async with asyncio.timeout(timeout):
                    addresses = await look_up(self.lookup, host, port)
            except TimeoutError:
                raise HostUnresolved("the name did not resolve in time") from None
            except (OSError, UnicodeError):
                raise HostUnresolved("the name does not resolve") from None
        if not addresses:
            raise HostUnresolved("the name does not resolve")
        for address in addresses:
            self.check_address(address)

    def socket_factory(self, info: AddrInfoType) -> socket.socket:
        """Makes the socket of a connection, unless its address is refused; for `aiohttp.TCPConnector(socket_factory=...)`.

        Raises `ForbiddenTarget`.
        """
        family, kind, protocol, _, address = info
        self.check_address(str(address[0]))
        return socket.socket(family, kind, protocol)
