"""This module sends HTTP requests to receivers, each within a time limit and with limited memory.

Whatever the receiver does (hangs, sends slowly, floods, redirects), `Sender.send` returns a `SendResult` within the time limit.
It raises only `CancelledError`, when the caller is cancelled. It follows no redirects, stores no cookies, ignores proxies in
environment variables and does not decompress responses. It reads at most 64 KiB of a body. The address guard checks every address
twice: when a name is resolved, and before a socket connects. If a proxy is used, the guard checks the host of each request before
it is sent, because the proxy resolves the name itself.

The HTTP status counts as soon as the status line was received, even if the rest of the response is malformed, too long or
incomplete. If the receiver has just closed an idle connection, the request is sent again at once on another connection.

If this host caused the failure (its resolver is down, or no sockets are left), `is_local` is true, and the failure does not count
against the tracker. Every other failure counts against the receiver, also one without an error number. No text in a result contains
the URL of the request.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import math
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from shortener.delivery.guard import ForbiddenTarget, Guard, HostUnresolved, Lookup, LookupThreads
from shortener.delivery.outcomes import parse_retry_after
from shortener.model import Clock, utcnow

MAX_BODY_BYTES = 64 * 1024
EXCERPT_BYTES = 1024
#: One response may have at most this many bytes, including its headers and interim (1xx) responses.
MAX_WIRE_BYTES = 2 * MAX_BODY_BYTES
#: One response may have at most this many header lines.
MAX_HEADER_LINES = 2000
#: An idle connection is closed after this time. It is shorter than the timeout of common servers (gunicorn 2 s, Node 5 s), because
#: a request on a connection that the server is closing must be sent twice.
IDLE_CONNECTION_SECONDS = 1.5
#: The addresses of a host name are cached for this time.
DNS_CACHE_SECONDS = 10
#: At most this many DNS look-ups run at a time. Each look-up has this time limit.
#: For requests through a proxy, at most this many hosts with recently checked addresses are kept in memory.
MAX_CHECKED_HOSTS = 10_000
MAX_LOOKUPS, LOOKUP_TIMEOUT_SECONDS = 32, 15.0

_ERROR_CLASSES = {
    errno.ECONNREFUSED: "connection_refused",
    errno.ECONNRESET: "connection_reset",
    errno.ECONNABORTED: "connection_reset",
    errno.EPIPE: "connection_reset",
    errno.ETIMEDOUT: "timeout",
    errno.ENETUNREACH: "network_unreachable",
    errno.EHOSTUNREACH: "network_unreachable",
    errno.EAFNOSUPPORT: "network_unreachable",
}
#: Error numbers that only this host can cause: no file descriptors, memory, buffers or ports are left, or a local firewall blocks.
_LOCAL_ERRORS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EADDRNOTAVAIL,
        errno.EADDRINUSE,
        errno.EPERM,
        errno.EACCES,
    }
)
_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
_ERRNO = re.compile(r"\[Errno (\d+)\]")

#: The possible values of `SendResult.error`. The last four mean that this host or its proxy failed.
ERRORS = (
    "timeout",
    "dns_error",
    "connection_refused",
    "connection_reset",
    "network_unreachable",
    "tls_error",
    "blocked_address",
    "protocol_error",
    "too_large",
    "internal_error",
    "proxy_error",
    "resolver_down",
    "no_slot",
    "local_error",
)


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """An HTTP request to send. `url` is ASCII and is sent unchanged. A GET request has no body."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None
    tls: ssl.SSLContext | None = None  # a TLS context with a client certificate; None: no client certificate


@dataclass(frozen=True, slots=True)
class SendResult:
    """The result of sending a request.

    `error` is one of ERRORS if the response is missing (`status` is None), malformed or incomplete; otherwise it is None. `detail`
    is a text about the error for people. `body` contains the first 64 KiB of the response body, as received. `retry_after` is the
    time in the `Retry-After` header in seconds.
    """

    status: int | None
    body: bytes
    error: str | None
    detail: str
    milliseconds: int
    retry_after: float | None = None
    is_local: bool = False

    @property
    def excerpt(self) -> bytes:
        """The first KiB of the response body, which is stored with the attempt."""
        return self.body[:EXCERPT_BYTES]


class Sender:
    """A sender of up to `limit` HTTP requests at a time.

    Create and use it on the same event loop. Call `close` at the end, or use it in `async with`."""

    def __init__(
        self,
        guard: Guard,
        *,
        user_agent: str,
        limit: int,
        clock: Clock = utcnow,
        lookup: Lookup | None = None,
        proxy: str = "",
    ) -> None:
        """Create a sender. `proxy` is the URL of a proxy for all requests; an empty text means no proxy.

        The address of the proxy may be private. The guard still checks the hosts of the requests."""
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(limit)
        self._proxy = URL(proxy) if proxy else None
        self._target_guard = guard
        self._checked_until: dict[tuple[str, int], float] = {}  # (host, port) -> time until which its address check is valid
        if self._proxy is not None:
            guard = Guard(allow_private=True, lookup=guard.lookup)  # the sender connects only to the proxy
        self._resolver = _Resolver(guard, lookup or guard.lookup)

        def make_socket(info: aiohttp.AddrInfoType) -> socket.socket:
            connection = guard.socket_factory(info)
            # A small receive buffer limits the bytes that a receiver can deliver in one iteration of the event loop.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MAX_BODY_BYTES // 2)
            return connection

        connector = aiohttp.TCPConnector(
            limit=0,  # the semaphore limits the requests, so that waiting for a slot is a local failure
            ssl=ssl.create_default_context(),
            resolver=self._resolver,
            ttl_dns_cache=DNS_CACHE_SECONDS,
            keepalive_timeout=IDLE_CONNECTION_SECONDS,
            socket_factory=make_socket,
        )
        # aiohttp does not limit the number of interim (1xx) responses, and has no public way to add such a limit.
        connector._factory = _handler_factory(self._loop)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={hdrs.USER_AGENT: user_agent, hdrs.ACCEPT_ENCODING: "identity"},
            # `send` has its own time limit, because aiohttp rounds time limits above 5 s up to whole seconds.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            max_line_size=MAX_WIRE_BYTES,
            max_field_size=MAX_WIRE_BYTES,
            max_headers=MAX_HEADER_LINES,
        )

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Finish or cancel the running requests first, because they fail otherwise."""
        await self._session.close()

    async def send(self, request: OutgoingRequest, deadline: float) -> SendResult:
        """Send a request and return the result within `deadline` seconds, which include the wait for a free slot."""
        attempt = _Attempt()
        _CURRENT_ATTEMPT.set(attempt)
        failure = None
        began = self._loop.time()
        try:
            async with asyncio.timeout(deadline), self._slots:
                attempt.has_slot = True
                await self._exchange(request, attempt)
        except TimeoutError:
            failure = self._timed_out(request, attempt, began)
        except Exception as error:
            failure = self._explain(request, error, began)
        return SendResult(
            status=attempt.status,
            body=bytes(attempt.body[:MAX_BODY_BYTES]),
            error=failure.error if failure else None,
            detail=failure.detail if failure else "",
            milliseconds=round((self._loop.time() - began) * 1000),
            retry_after=attempt.retry_after,
            is_local=failure is not None and failure.is_local,
        )

    async def _exchange(self, request: OutgoingRequest, attempt: _Attempt) -> None:
        """Send the request. Repeat it while it was sent on an idle connection that the receiver had already closed.

        Each such connection is removed from the pool, so the last repetition uses a new connection."""
        while True:
            try:
                return await self._exchange_once(request, attempt)
            except (aiohttp.ClientError, OSError):
                if not (attempt.is_reused and not attempt.has_data):
                    raise

    async def _exchange_once(self, request: OutgoingRequest, attempt: _Attempt) -> None:
        """Send the request and read the response into `attempt`. After a timeout, `attempt` contains the bytes received so far."""
        attempt.is_reused = False
        url = URL(request.url, encoded=True)
        if self._proxy is not None:
            await self._check_target(url)
            attempt.is_tunnelled = url.scheme == "https"
        response = await self._session.request(
            request.method,
            url,
            proxy=self._proxy,
            ssl=request.tls or True,
            data=None if request.method == "GET" else request.body,
            headers=request.headers,
            allow_redirects=False,
        )
        try:
            attempt.status = response.status
            if (retry_after := response.headers.get(hdrs.RETRY_AFTER)) is not None:
                attempt.retry_after = parse_retry_after(retry_after, self._clock())
            body, content = attempt.body, response.content
            while len(body) <= MAX_BODY_BYTES and (chunk := await content.readany()):
                body += chunk
        finally:
            # aiohttp keeps the connection open if the response was read completely, and closes it otherwise.
            response.close()

    async def _check_target(self, url: URL) -> None:
        """Check the addresses of the host to which the proxy will connect.

        Raise ForbiddenTarget if an address is forbidden, or HostUnresolved if the host has no address."""
        host, port = url.raw_host or "", url.port or 0
        if self._checked_until.get((host, port), 0) < self._loop.time():
            await self._target_guard.check_host(host, port)
            if len(self._checked_until) >= MAX_CHECKED_HOSTS:
                self._checked_until.clear()
            self._checked_until[host, port] = self._loop.time() + DNS_CACHE_SECONDS

    def _timed_out(self, request: OutgoingRequest, attempt: _Attempt, began: float) -> _Failure:
        if not attempt.has_slot:
            return _Failure("no_slot", "no slot of the sender became free in time", is_local=True)
        if attempt.status is not None:
            return _Failure("timeout", "the response was not complete in time")
        if attempt.has_data:
            return _Failure("timeout", "the status line was not complete in time")
        url = URL(request.url, encoded=True)
        if self._resolver.is_pending(url.raw_host or "", url.port or 0):
            return self._unresolved(request, began)
        return _Failure("timeout", "there was no response in time")

    def _unresolved(self, request: OutgoingRequest, began: float) -> _Failure:
        """Return the failure of a look-up to which the resolver did not respond.

        It is a local failure, unless the resolver has recently responded to the look-up of another name."""
        if self._resolver.answered_another(URL(request.url, encoded=True).raw_host or "", began - DNS_CACHE_SECONDS):
            return _Failure("dns_error", "the name servers of the host do not respond")
        return _Failure("resolver_down", "the resolver of this machine does not respond", is_local=True)

    def _explain(self, request: OutgoingRequest, error: Exception, began: float) -> _Failure:
        """Convert an exception of aiohttp to a failure with one of the error names in ERRORS."""
        match error:
            case ForbiddenTarget():
                return _Failure("blocked_address", str(error))
            case HostUnresolved():
                return _Failure("dns_error", str(error))
            case aiohttp.ClientProxyConnectionError():
                return _Failure("proxy_error", "the proxy (DELIVERY_PROXY) is not reachable", is_local=True)
            case aiohttp.ClientHttpProxyError(status=403 | 407):
                return _Failure("proxy_error", f"the proxy (DELIVERY_PROXY) refused the request: {error.status}", is_local=True)
            case aiohttp.ClientHttpProxyError():
                return _Failure("connection_refused", f"the proxy could not connect: {error.status}")
            case aiohttp.ClientConnectorError(os_error=ForbiddenTarget() as forbidden):
                return _Failure("blocked_address", str(forbidden))
            case aiohttp.InvalidURL():
                return _Failure("blocked_address", "the host is not valid")
            case aiohttp.ClientConnectorDNSError(os_error=socket.gaierror(errno=code)):
                if code in _NO_SUCH_NAME:
                    return _Failure("dns_error", "the name does not exist")
                return self._unresolved(request, began)
            case _ResponseTooLarge():
                return _Failure("too_large", str(error))
            case aiohttp.ClientResponseError(__cause__=HttpProcessingError() as cause):
                return _Failure("protocol_error", f"not a valid HTTP response: {cause.message}")
            case aiohttp.ClientPayloadError():
                return _Failure("protocol_error", "the body is incomplete or malformed")
        if (tls_reason := _tls_reason(request, error)) is not None:
            return _Failure("tls_error", tls_reason)
        match error:
            case aiohttp.ServerDisconnectedError():
                return _Failure("connection_reset", "the connection was closed without a response")
            case OSError() | aiohttp.ClientConnectionError():
                return _explain_connection_error(error)
        # The request can never be sent. It counts as an attempt, because it would be repeated without end otherwise.
        return _Failure("internal_error", f"the request could not be sent ({type(error).__name__})")


@dataclass(slots=True)
class _Attempt:
    """The state of a request and the part of its response that has been received so far.

    `is_reused` is true if the connection was used for another request before. `has_data` is true if the receiver has sent any byte
    for this request. `is_tunnelled` is true if the first status line on the connection is the response of a proxy to CONNECT."""

    has_slot: bool = False
    is_reused: bool = False
    has_data: bool = False
    is_tunnelled: bool = False
    status: int | None = None
    retry_after: float | None = None
    body: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class _Failure:
    """The reason why a request failed. `error` is one of ERRORS, and `detail` is a text for people."""

    error: str
    detail: str
    is_local: bool = False


#: The attempt that the current task makes. aiohttp has no other way to pass it to the connection of the request.
_CURRENT_ATTEMPT: ContextVar[_Attempt] = ContextVar("current_attempt")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception and all exceptions that caused it, directly or indirectly."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            yield one
            waiting += [one.__cause__, one.__context__, getattr(one, "os_error", None)]


def _tls_reason(request: OutgoingRequest, error: Exception) -> str | None:
    """Return the reason why TLS failed, as a text for people. Return None if the error has another cause."""
    for cause in _causes(error):
        if isinstance(cause, aiohttp.ClientError):
            continue  # some errors of aiohttp are also certificate errors, but contain no reason
        if isinstance(cause, ssl.CertificateError):
            return f"the certificate is not valid: {getattr(cause, 'verify_message', '') or 'wrong host or unknown issuer'}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {(cause.reason or 'protocol error').replace('_', ' ').lower()}"
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS failed"
    is_handshake = isinstance(error, aiohttp.ClientConnectorError) and request.url.startswith("https:")
    if is_handshake and not _error_numbers(error):
        return "the connection was closed during the TLS handshake"
    return None


def _error_numbers(error: Exception) -> list[int]:
    """Return the operating system error numbers of a failed connection.

    If several addresses of a host failed with different errors, the numbers are only in the text of the exception."""
    number = getattr(error, "errno", None)
    return [number] if number is not None else [int(found) for found in _ERRNO.findall(str(error))]


def _explain_connection_error(error: Exception) -> _Failure:
    numbers = _error_numbers(error)
    # Report an error that the receiver caused rather than an unreachable network, which may only mean that this host has no IPv6.
    for number in sorted(numbers, key=lambda number: _ERROR_CLASSES.get(number) == "network_unreachable"):
        if number in _ERROR_CLASSES:
            return _Failure(_ERROR_CLASSES[number], os.strerror(number))
    for number in numbers:
        if number in _LOCAL_ERRORS:
            return _Failure("local_error", os.strerror(number), is_local=True)
    return _Failure("connection_reset", os.strerror(numbers[0]) if numbers else "the connection was closed")


class _ResponseTooLarge(aiohttp.ClientPayloadError):
    """The error for a response with more than `MAX_WIRE_BYTES` bytes."""


class _StatusLine:
    """A parser that finds the HTTP status in the bytes of a response and skips interim (1xx) responses."""

    _PATTERN = re.compile(rb"HTTP/\d\.\d (\d{3})(?: [^\r\n]*)?\r?\n")
    _END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
    _MAX_BYTES = 8192

    def __init__(self) -> None:
        self._buffer = b""
        self.is_found = False

    def feed(self, data: bytes) -> int | None:
        """Add received bytes. Return the HTTP status if these bytes completed the status line, otherwise None."""
        self._buffer += data
        while match := self._PATTERN.match(self._buffer):
            status = int(match[1])
            if status >= 200 or status == 101:
                self.is_found = True
                return status
            end = self._END_OF_HEAD.search(self._buffer)
            if end is None:
                break
            self._buffer = self._buffer[end.end() :]
        if len(self._buffer) > self._MAX_BYTES:
            self.is_found = True  # the bytes are no status line; the parser of aiohttp raises the error
        return None


class _Handler(ResponseHandler):
    """A connection that parses the status line itself and closes after `MAX_WIRE_BYTES` bytes for one request.

    This is necessary because the parser of aiohttp returns no status if it rejects the rest of the response, and because aiohttp
    does not limit interim (1xx) responses."""

    _left = MAX_WIRE_BYTES
    _requests = 0
    _attempt = _Attempt()
    _status_line = _StatusLine()

    def set_response_params(self, **params: Any) -> None:
        # aiohttp calls this method once for each request on the connection, in the task of the request.
        self._left = MAX_WIRE_BYTES
        self._attempt = _CURRENT_ATTEMPT.get()
        self._status_line = _StatusLine()
        self._attempt.is_reused = self._requests > 0
        self._requests += 1
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if data and self._requests:
            self._attempt.has_data = True
            if (
                not self._attempt.is_tunnelled
                and not self._status_line.is_found
                and (status := self._status_line.feed(data)) is not None
            ):
                self._attempt.status = status
        if self._left >= 0:
            super().data_received(data)
            return
        error = _ResponseTooLarge(f"the response is longer than {MAX_WIRE_BYTES} bytes")
        self.set_exception(error)
        if self._payload is not None:
            self._payload.set_exception(error)
        self.abort()


def _handler_factory(loop: asyncio.AbstractEventLoop) -> functools.partial[ResponseHandler]:
    make: type[ResponseHandler] = _Handler
    return functools.partial(make, loop=loop)


class _Resolver(AbstractResolver):
    """A resolver that returns only addresses that the guard allows.

    It stores when it last responded for which names, to distinguish a resolver that is down from a name that does not resolve."""

    def __init__(self, guard: Guard, lookup: Lookup) -> None:
        self._guard = guard
        self._lookup = lookup
        self._loop = asyncio.get_running_loop()
        self._threads = LookupThreads(MAX_LOOKUPS)
        self._pending: set[tuple[str, int]] = set()
        # The last two different names for which the resolver responded, each with the time.
        self._latest = self._other = ("", -math.inf)

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Return the addresses of a host. Raise `ForbiddenTarget` if one is forbidden, or `socket.gaierror` if there is none."""
        self._pending.add((host, port))
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_SECONDS):
                addresses = await self._threads.run(self._lookup, host, port)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "no response in time") from None
        except UnicodeError:
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_NAME:
                self._note(host)
            raise
        finally:
            self._pending.discard((host, port))
        self._note(host)
        for address in addresses:
            self._guard.check_address(address)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
            for address in addresses
        ]

    def is_pending(self, host: str, port: int) -> bool:
        """Return whether a DNS look-up of the given host and port is running."""
        return (host, port) in self._pending

    def answered_another(self, host: str, since: float) -> bool:
        """Return whether the resolver has responded for a name other than `host` since `since` (a time of the event loop)."""
        return any(name != host and at >= since for name, at in (self._latest, self._other))

    def _note(self, host: str) -> None:
        if self._latest[0] != host:
            self._other = self._latest
        self._latest = (host, self._loop.time())

    async def close(self) -> None:
        """Do nothing, because running look-ups end by themselves."""
