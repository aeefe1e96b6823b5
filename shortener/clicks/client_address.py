"""The client address of a request, and the part of the address that is stored.

Behind a proxy, the peer of the connection is the proxy, and the header X-Forwarded-For contains the client's address. Any client
can send this header. Therefore the header is used only if the peer is a trusted proxy. It is read from right to left, because each
proxy appends an address on the right. Text that is not an address is never stored. In its place, the peer's address is used, or ""
if the peer has no address.
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
_MAX_ADDRESS_LENGTH = 64  # maximum number of characters of an address with zone, brackets and port
_HOST_BITS = {4: 32 - 24, 6: 128 - 48}  # number of low bits that the privacy setting "short" sets to zero, by IP version


def client_address(peer: str | None, x_forwarded_for: str, trusted_proxies: Sequence[Network]) -> str:
    """Return the client's address in canonical form, or "" if it is unknown.

    `peer`: the address of the other end of the connection. None means a local socket. It counts as a trusted proxy if any proxy is
    trusted. `x_forwarded_for`: the values of all headers of that name, joined by commas; "" if the request has none.

    The client is the right-most address that is not a trusted proxy. If all addresses are trusted proxies, it is the left-most
    address. If an entry on the right of the client's entry is not an address, the peer is the client."""
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
    """Return the part of an address that is stored, according to the privacy setting.

    "full": the whole address. "none": "". "short": the network, which is the address with all bits after the first 24 (IPv4) or 48
    (IPv6) set to zero."""
    if privacy == "full":
        return address
    return _network(address) if privacy == "short" else ""


def hash_client(address: str, key: bytes) -> int:
    """Return a keyed hash of a client. The client is the IPv4 address, or the /64 network of the IPv6 address.

    Return 0 for an unknown address. All processes of an installation return the same hash. It does not reveal the address."""
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
    # These operations on integers replace ipaddress.ip_network(), which takes three times as long.
    return str(type(address)(int(address) >> host_bits << host_bits))


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _parse(text: str) -> Address | None:
    """Parse an address in a form that proxies use. Return None if the text is not an address.

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
        # A dual-stack socket reports IPv4 addresses in IPv6-mapped form. A zone such as %eth0 is valid only on the proxy.
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return address
