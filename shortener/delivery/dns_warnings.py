"""This module looks up in the DNS whether the host of short links has an address.

A new domain may get its DNS record later, so a missing address causes a warning and no error. The look-up takes at most
MAX_LOOKUP_SECONDS. It is made when a domain is added or on request, and never during a rewrite or a redirect.
"""

from __future__ import annotations

from shortener.accounts.own_hosts import name_of, unreachable_host_warnings
from shortener.delivery.guard import ForbiddenTarget, Guard, HostUnresolved
from shortener.urls import host_of_domain

MAX_LOOKUP_SECONDS = 2.0
_LOOKUPS = Guard(allow_private=True)  # The guard resolves host names in its own threads, so a slow resolver delays nothing else.


async def has_address(host: str) -> bool:
    """Return whether the DNS has an address for `host`, a host name with or without a port. Return True for an IP address."""
    try:
        await _LOOKUPS.check_host(name_of(host).strip("[]"), 443, timeout=MAX_LOOKUP_SECONDS)
    except HostUnresolved:
        return False
    except ForbiddenTarget:
        pass  # The host has a private address, which may be intended.
    return True


async def new_domain_warnings(base_url: str) -> list[str]:
    """Return warnings about the host of a new domain, for example that the DNS has no address for it. `base_url` must be valid."""
    host = host_of_domain(base_url)
    if (warnings := unreachable_host_warnings(host)) or await has_address(host):
        return warnings
    return [
        f"this server finds no DNS address for {name_of(host)}. Nobody can open its links until you create an A or AAAA record. "
        "Until then, you can disable the domain"
    ]
