"""The address that a request came from, and how much of it is kept.

Behind a proxy the peer is the proxy, and the client's address stands in X-Forwarded-For. Anybody can send that header, so it is
believed only from proxies that the operator trusts, and read from the right, where they write. What cannot be read is never kept:
the peer's address is used in its place, and an address that is none becomes "".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Privacy = Literal["full", "short", "none"]

_REMEMBERED = 8_192  # addresses
_LONGEST = 64  # characters of an address with zone, brackets and port; what is longer is not worth remembering


def client_address(peer: str | None, x_forwarded_for: str, trusted: Sequence[Network]) -> str:
    """The client's address in its shortest spelling, "" if it is unknown.

    `peer`: the other end of the connection; None is a local socket, which is trusted where any proxy is. `x_forwarded_for`: the
    header's values joined by commas, "" for none. Read from the right, the first address that is not a trusted proxy's is the
    client's; if all are trusted, it is the left-most. Where an entry is met that is no address, the peer is taken instead.
    """
    here = _parse(peer or "")
    client = here
    if x_forwarded_for and trusted and (here is None or _is_in(here, trusted)):
        for entry in reversed(x_forwarded_for.split(",")):
            client = _parse(entry)
            if client is None:
                client = here
                break
            if not _is_in(client, trusted):
                break
    return str(client) if client is not None else ""


def shorten_address(address: str, privacy: Privacy) -> str:
    """What is kept of an address: all of it, its network ("short": /24 of IPv4, /48 of IPv6, the rest zero), or nothing."""
    if privacy == "full":
        return address
    return _network(address) if privacy == "short" else ""


@lru_cache(maxsize=_REMEMBERED)
def _network(text: str) -> str:
    address = _parse(text)
    if address is None:
        return ""
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False).network_address)


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _parse(text: str) -> Address | None:
    """An address as proxies write it: 203.0.113.7, 203.0.113.7:4711, 2001:db8::7, [2001:db8::7]:4711, ::ffff:203.0.113.7."""
    text = text.strip()
    return _parse_short(text) if 0 < len(text) <= _LONGEST else None


@lru_cache(maxsize=_REMEMBERED)
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
        # A dual-stack socket shows IPv4 this way; a zone (%eth0) means something on the proxy only.
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return address
