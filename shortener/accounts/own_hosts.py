"""This module determines the hosts on which the service itself responds: the hosts of BASE_URL and PORTAL_URL, and `localhost`
and IP addresses with the port of the service. The domains of applications are not included. A redirect to one of these hosts
would loop.

The module also recognizes hosts of domains that the phones of recipients cannot reach.
"""
# Tested by tests/accounts/test_own_hosts.py

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urlsplit

from shortener.model import record
from shortener.settings import Settings
from shortener.urls import DEFAULT_PORTS, host_of


@record
class OwnHosts:
    """The hosts of BASE_URL and PORTAL_URL, and the local address of the service.

    `hosts` contains the hosts with their ports, as in a Host header. `names` contains the hosts that are not local, without ports.
    `ports` are the ports on which `localhost` and loopback addresses reach the service. `address` is the IP address on which the
    service listens."""

    hosts: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    ports: frozenset[int] = frozenset()
    address: str = ""

    @classmethod
    def of(cls, settings: Settings) -> OwnHosts:
        """Return the hosts of the service for an installation with these settings."""
        urls = [url for url in (settings.base_url, settings.portal_url) if url]
        names = {url: urlsplit(url).hostname or "" for url in urls}
        local = {url for url, name in names.items() if is_local(name)}
        return cls(
            frozenset(host_of(url) for url in urls),
            frozenset(name for url, name in names.items() if url not in local),
            frozenset(port for port in (settings.port, *map(_port, local)) if port),
            settings.host,
        )

    def contains(self, url: str) -> bool:
        """Return whether the host of an absolute URL is one of these hosts."""
        host = host_of(url)
        if not host:
            return False
        name = name_of(host)
        return host in self.hosts or name in self.names or (is_local(name) and self._is_served(url, name))

    def _is_served(self, url: str, name: str) -> bool:
        if _port(url) not in self.ports:
            return False
        if name == "localhost" or name.strip("[]") == self.address:
            return True
        address = ipaddress.ip_address(name.strip("[]"))
        plain = getattr(address, "ipv4_mapped", None) or address
        if plain.is_loopback or plain.is_unspecified:
            return True
        return self.address in ("0.0.0.0", "::") and plain.is_private  # noqa: S104  # compared, not bound


#: An empty set of hosts, for commands that do not know the settings.
NO_HOSTS = OwnHosts()


def name_of(host: str) -> str:
    """Return the value of a Host header without its port."""
    return host if host.endswith("]") else host.partition(":")[0] if not host.startswith("[") else host.rpartition(":")[0]


@lru_cache(maxsize=1024)
def is_local(name: str) -> bool:
    """Return whether a host is `localhost` or an IP address, and not a DNS name. Anybody can create a DNS name that leads to this
    server."""
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


#: A regular expression for names that have no address in the public DNS: names without a dot, and names whose ending is reserved
#: for one machine or one network (RFC 6761, RFC 6762, RFC 8375).
_PRIVATE_NAME = re.compile(r"[^.:]*|.*\.(?:localhost|local|internal|localdomain|home\.arpa)")


def unreachable_host_warnings(host: str) -> list[str]:
    """Return warnings about the host of a domain (with or without a port). One warning says that the phones of recipients cannot
    reach the host. Another warns of an IP address or `localhost`, on which the service responds as on BASE_URL. The function makes
    no DNS look-up."""
    name = name_of(host)
    if _PRIVATE_NAME.fullmatch(name):
        text = "a name of one machine or one network only, so phones of recipients cannot open links on it"
        warnings = [f"the host {name} is {text}"]
    elif not is_local(name):
        return []
    elif not ipaddress.ip_address(name.strip("[]")).is_global:
        warnings = [f"the host {name} is not a public address, so phones of recipients cannot open links on it"]
    else:
        warnings = []
    if is_local(name):
        text = f"on {name}, the service shows its API and portal, as on BASE_URL: it ignores the home_url, assetlinks and "
        warnings.append(text + "apple_app_site_association of the domain")
    return warnings


def _port(url: str) -> int | None:
    parts = urlsplit(url)
    return parts.port or DEFAULT_PORTS.get(parts.scheme)
