"""This module sends requests on idle connections of aiohttp's pool without aiohttp's request and response objects.

With these objects, the sender needs more than twice the processor time for a request. The first request to an origin (scheme, host,
port) is a normal request of aiohttp, which resolves the host, checks its address and opens the connection. Later requests take an
idle connection of the same origin from the pool, write the same bytes that aiohttp would write, and read the response with the same
connection and parser. `IdleConnections.take` returns None if this is not possible: no connection is idle, or a header of the
request would change a header that aiohttp adds. The caller then sends a normal request.
"""
# Tested by tests/delivery/test_sender.py

from __future__ import annotations

import re
from collections.abc import Mapping
from ssl import SSLContext
from typing import Protocol

import aiohttp
from aiohttp import client_reqrep, http_writer
from aiohttp.connector import Connection
from yarl import URL

#: This module uses private parts of aiohttp in these versions. With another version, all requests are normal requests of aiohttp.
SUPPORTED = re.compile(r"3\.14\.\d+")
#: The service keeps aiohttp's connection key (host, port, TLS settings) for at most this many origins.
MAX_ORIGINS = 10_000
#: A request that contains one of these headers is always a normal request of aiohttp, because each of them changes the headers that
#: aiohttp adds. This module cannot reproduce these changes.
_OWN_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "cookie",
        "expect",
        "host",
        "transfer-encoding",
        "user-agent",
    }
)


class Request(Protocol):
    """The attributes of a request that this module needs. `http_exchange.OutgoingRequest` has these attributes."""

    @property
    def method(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes | None: ...
    @property
    def tls(self) -> SSLContext | None: ...


class IdleConnections:
    """The idle connections of a connector, by origin."""

    def __init__(self, connector: aiohttp.BaseConnector, headers: Mapping[str, str]) -> None:
        """`headers` are the headers that the session adds to all requests."""
        self._connector = connector
        self._headers = headers
        # (origin, TLS context) -> the key in the pool of aiohttp and the headers that begin each request to the origin
        self._origins: dict[tuple[str, SSLContext | None], tuple[client_reqrep.ConnectionKey, dict[str, str]]] = {}
        self._has_plain_names: dict[tuple[str, ...], bool] = {}
        self._is_supported = SUPPORTED.fullmatch(aiohttp.__version__) is not None

    def remember(self, request: Request, url: URL, host: str) -> None:
        """Store the connection key and the first headers for later requests to the origin of `request`. `host` is the Host header
        that aiohttp has sent."""
        if not self._is_supported:
            return
        origin, _ = _split(request.url)
        if "@" in origin or "?" in origin or "#" in origin:
            return  # aiohttp changes the request for such a URL: it sends the credentials in a header, or adds the missing path
        if len(self._origins) >= MAX_ORIGINS:
            self._origins.clear()
        key = client_reqrep.ConnectionKey(
            url.raw_host or "", url.port, url.scheme == "https", request.tls or True, None, None, None
        )
        self._origins[origin, request.tls] = key, {"Host": host, **self._headers}

    async def take(self, request: Request) -> tuple[Connection, bytes] | None:
        """Take an idle connection to the origin of the request out of the pool. Return it with the bytes of the request.

        Return None if there is no such connection. Raise ValueError if a header contains a line break."""
        origin, target = _split(request.url)
        known = self._origins.get((origin, request.tls))
        if known is None or not self._is_plain(request.headers):
            return None
        key, first_headers = known
        headers = {**first_headers, **request.headers, "Accept": "*/*"}
        body = request.body
        if request.method != "GET":
            headers["Content-Length"] = str(len(body or b""))
        head = http_writer._serialize_headers(f"{request.method} {target} HTTP/1.1", headers)  # type: ignore[arg-type]
        connection = await self._connector._get(key, [])
        if connection is None:
            return None
        return connection, head if request.method == "GET" or not body else head + body

    def _is_plain(self, headers: Mapping[str, str]) -> bool:
        """Return whether each header occurs once and changes none of the headers that aiohttp adds."""
        names = tuple(headers)
        known = self._has_plain_names.get(names)
        if known is None:
            lower = {name.lower() for name in names}
            known = len(lower) == len(names) and not lower & _OWN_HEADERS
            if len(self._has_plain_names) >= MAX_ORIGINS:
                self._has_plain_names.clear()
            self._has_plain_names[names] = known
        return known


def _split(url: str) -> tuple[str, str]:
    """Split a URL into its origin and the target of its request line: path and query."""
    start = url.find("/", url.find("://") + 3)
    if start < 0:
        return url, "/"
    target = url[start:]
    return url[:start], target if "#" not in target else target.partition("#")[0]
