"""This module determines the IP address of the client that sent a request, and the part of the address that is stored.

Behind a proxy, the peer of the connection is the proxy, and the header X-Forwarded-For contains the client's address. Any client
can send this header. Therefore the header is used only if the peer is a trusted proxy. The header is read from right to left,
because each proxy appends an address on the right. A text that is not an address is never stored. The peer's address is then
stored instead, or "" if the peer has no address.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Privacy = Literal["full", "short", "none"]

#: An IP address as 4 bytes (IPv4) or 16 bytes (IPv6) in network order. Addresses are bytes, because the functions of `socket` are
#: several times as fast as the functions of `ipaddress`.
PackedAddress = bytes
#: Networks, each as its first and its last IP address.
AddressRanges = Sequence[tuple[PackedAddress, PackedAddress]]

_MAX_ADDRESS_LENGTH = 64  # maximum number of characters of an IP address with zone, brackets and port
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # the first bytes of an IPv4 address in IPv6-mapped form
_SHORT_BYTES = {4: 3, 16: 6}  # how many bytes the privacy setting "short" keeps: 3 of 4 (IPv4) or 6 of 16 (IPv6)
# how many bytes identify a client: all 4 of an IPv4 address, or the first 8 of 16 (the /64 network) of an IPv6 address
_CLIENT_BYTES = {4: 4, 16: 8}


def client_of(request: HTTPConnection, trusted_proxies: Sequence[Network]) -> str:
    """Return the IP address of the client that sent a request to the API or the portal (see `client_address`). The click path
    does not use this function: `redirect.read_client_info` reads all headers in one loop, which is faster."""
    forwarded = ", ".join(request.headers.getlist("x-forwarded-for"))
    return client_address(request.client.host if request.client else None, forwarded, trusted_proxies)


def client_address(peer: str | None, x_forwarded_for: str, trusted_proxies: Sequence[Network]) -> str:
    """Return the client's IP address in canonical form, or "" if it is unknown. See `find_client`."""
    client = find_client(peer, x_forwarded_for, address_ranges(trusted_proxies))
    return "" if client is None else address_text(client)


def shorten_address(address: str, privacy: Privacy) -> str:
    """Return the part of the IP address `address` that the privacy setting permits to store. "full" returns the text
    unchanged."""
    if privacy == "full":
        return address
    packed = _parse(address)
    return "" if packed is None else stored_address(packed, privacy)


def hash_client(address: str, key: bytes) -> int:
    """Return a keyed hash of the client with this IP address (see `hash_packed`), or 0 if the address is unknown."""
    return hash_packed(_parse(address), key)


def address_ranges(networks: Sequence[Network]) -> AddressRanges:
    """Return the first and the last IP address of each network."""
    return [(network.network_address.packed, network.broadcast_address.packed) for network in networks]


def find_client(peer: str | None, x_forwarded_for: str, trusted_proxies: AddressRanges) -> PackedAddress | None:
    """Return the client's IP address, or None if it is unknown. `peer` is the address of the other end of the connection; None
    for a local socket. A local socket counts as a trusted proxy if at least one proxy is trusted. `x_forwarded_for` contains the
    values of all headers X-Forwarded-For, joined by commas; "" if the request has none.

    If the peer is a trusted proxy, the entries of `x_forwarded_for` are read from right to left. The first address that is not a
    trusted proxy is the client's. If all entries are trusted proxies, the left-most entry is the client. If an entry that is not an
    address is read before the client is found, the peer counts as the client."""
    peer_address = _parse(peer) if peer else None
    client = peer_address
    if x_forwarded_for and trusted_proxies and (peer_address is None or _is_in(peer_address, trusted_proxies)):
        for entry in reversed(x_forwarded_for.split(",")):
            client = _parse(entry)
            if client is None:
                return peer_address
            if not _is_in(client, trusted_proxies):
                break
    return client


def stored_address(address: PackedAddress, privacy: Privacy) -> str:
    """Return the part of an IP address (as bytes) that the privacy setting permits to store. "full" stores the whole address, and
    "none" stores "". "short" stores the network: only the first 24 bits (IPv4) or 48 bits (IPv6) of the address."""
    if privacy == "none":
        return ""
    if privacy == "short":
        size = len(address)
        address = address[: _SHORT_BYTES[size]].ljust(size, b"\0")
    return address_text(address)


def hash_packed(address: PackedAddress | None, key: bytes) -> int:
    """Return a keyed hash of a client. A client is an IPv4 address, or the /64 network of an IPv6 address.

    Return 0 for an unknown address. All processes of an installation return the same hash. The hash does not reveal the
    address."""
    if address is None:
        return 0
    client = address[: _CLIENT_BYTES[len(address)]]
    return int.from_bytes(hashlib.blake2b(client, key=key, digest_size=8).digest()) or 1


def address_text(address: PackedAddress) -> str:
    """Return an IP address as text in canonical form."""
    if len(address) == 4:
        return socket.inet_ntop(socket.AF_INET, address)
    # if the first twelve bytes are zero, inet_ntop writes the last four bytes in IPv4 notation, which is not canonical
    if not any(address[:12]):
        return str(ipaddress.IPv6Address(address))
    return socket.inet_ntop(socket.AF_INET6, address)


def _is_in(address: PackedAddress, ranges: AddressRanges) -> bool:
    size = len(address)
    for first, last in ranges:  # noqa: SIM110  any() with a generator takes twice as long
        if len(first) == size and first <= address <= last:
            return True
    return False


def _parse(text: str) -> PackedAddress | None:
    """Parse an IP address in a notation that proxies use. Return None if the text is not an IP address.

    Examples: 203.0.113.7, 203.0.113.7:4711, 2001:db8::7, [2001:db8::7]:4711, ::ffff:203.0.113.7."""
    text = text.strip()
    if not 0 < len(text) <= _MAX_ADDRESS_LENGTH:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        if ":" not in text:
            return socket.inet_pton(socket.AF_INET, text)
        if "%" in text:
            # A zone such as %eth0 names a network interface of the proxy. It has no meaning on this machine, so it is removed.
            return ipaddress.IPv6Address(int(ipaddress.IPv6Address(text))).packed
        address = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None
    # A dual-stack socket reports IPv4 addresses in IPv6-mapped form.
    return address[12:] if address.startswith(_MAPPED_PREFIX) else address
