"""The address that a request came from, and the part of it that is stored.

Behind a proxy, the peer of the connection is the proxy, and X-Forwarded-For contains the client's address. Any client can send that
header. Therefore it is read only if the peer is a trusted proxy, and from the right, where trusted proxies append. Text that is not
an address is never stored: the peer's address is used instead, or "" if the peer has none.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Privacy = Literal["full", "short", "none"]

_MAX_CACHED_ADDRESSES = 8_192
_MAX_ADDRESS_LENGTH = 64  # characters of an address with zone, brackets and port
_HOST_BITS = {4: 32 - 24, 6: 128 - 48}  # removed by "short", by IP version


def client_address(peer: str | None, x_forwarded_for: str, trusted_proxies: Sequence[Network]) -> str:
    """Return the client's address in canonical form, or "" if it is unknown.

    `peer`: the address of the other end of the connection. None is a local socket, which counts as a trusted proxy if any proxy is
    trusted. `x_forwarded_for`: the values of all headers of that name, joined by commas; "" if there is none.

    The client is the right-most address that is not a trusted proxy, or the left-most address if all are trusted proxies. If an
    entry to its right is not an address, the client is the peer.
    """
    peer_address = _parse(peer or "")
    client = peer_address
    if x_forwarded_for and trusted_proxies and (peer_address is None or _is_in(peer_address, trusted_proxies)):
        for entry in reversed(x_forwarded_for.split(",")):
            client = _parse(entry)
            if client is None:
                client = peer_address
                break
            if not _is_in(client, trusted_proxies):
                break
    return str(client) if client is not None else ""


def shorten_address(address: str, privacy: Privacy) -> str:
    """Return the part of an address that is stored: all of it ("full"), its network ("short") or "" ("none").

    The network is the address with all bits behind the first 24 (IPv4) or 48 (IPv6) set to zero."""
    if privacy == "full":
        return address
    return _network(address) if privacy == "short" else ""


def hash_client(address: str, key: bytes) -> int:
    """Return a keyed hash of the client that an address belongs to: the IPv4 address, or the /64 network of an IPv6 address.

    0 for an unknown address. The hash is equal in all processes of an installation and does not reveal the address."""
    if not address:
        return 0
    if ":" in address and (parsed := _parse(address)) is not None and parsed.version == 6:
        address = str(int(parsed) >> 64)
    return int.from_bytes(hashlib.blake2b(address.encode(), key=key, digest_size=8).digest()) or 1


@lru_cache(maxsize=_MAX_CACHED_ADDRESSES)
def _network(text: str) -> str:
    address = _parse(text)
    if address is None:
        return ""
    host_bits = _HOST_BITS[address.version]
    # ipaddress.ip_network() takes three times as long.
    return str(type(address)(int(address) >> host_bits << host_bits))


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _parse(text: str) -> Address | None:
    """Parse an address in the forms that proxies use; None if it is not an address.

    Examples: 203.0.113.7, 203.0.113.7:4711, 2001:db8::7, [2001:db8::7]:4711, ::ffff:203.0.113.7."""
    text = text.strip()
    return _parse_short(text) if 0 < len(text) <= _MAX_ADDRESS_LENGTH else None


@lru_cache(maxsize=_MAX_CACHED_ADDRESSES)
def _parse_short(text: str) -> Address | None:
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 6:
        # A dual-stack socket reports IPv4 addresses in mapped form. A zone (%eth0) is meaningful on the proxy only.
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return address
