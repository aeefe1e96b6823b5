"""One attempt to deliver, over HTTP: a request goes out, an `SendResult` comes back, within the deadline and in bounded memory.

Whatever the peer does (hangs, drips, floods, lies, redirects), `Sender.send` returns an `SendResult` not later than its
deadline; it
raises only `CancelledError`, when the caller is cancelled. Redirects are not followed, cookies are not kept, proxies of the
environment are not used, nothing is decompressed. At most 64 KiB of a body are read. Every address is judged by the guard,
first when a name is resolved, then again on the socket that is about to connect.

A fault of this host (its resolver is down, no sockets are left) is marked `is_local` and says nothing about the tracker.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import math
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from yarl import URL

from shortener.delivery.guard import ForbiddenTarget, Guard, Lookup, look_up
from shortener.delivery.outcomes import parse_retry_after
from shortener.model import Clock, utcnow

BODY_LIMIT = 64 * 1024
EXCERPT = 1024
#: Bytes of one whole answer on the wire, interim (1xx) answers and headers included.
WIRE_LIMIT = 2 * BODY_LIMIT
#: Seconds that an idle connection is kept: less than the shortest that common servers keep theirs (gunicorn 2, Node 5), so that
#: a POST hardly ever meets a connection that the server is just closing, which would cost an attempt.
IDLE_CONNECTION = 1.5
#: Seconds that a resolved name is believed.
DNS_CACHE = 10
#: Look-ups at a time, and the seconds that one may take before the name is asked for anew.
LOOKUPS, LOOKUP_TIMEOUT = 32, 15.0

_ERROR_CLASSES = {
    errno.ECONNREFUSED: "connection_refused",
    errno.ECONNRESET: "connection_reset",
    errno.ECONNABORTED: "connection_reset",
    errno.EPIPE: "connection_reset",
    errno.ETIMEDOUT: "timeout",
    errno.ENETUNREACH: "network_unreachable",
    errno.EHOSTUNREACH: "network_unreachable",
}
_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
_ERRNO = re.compile(r"\[Errno (\d+)\]")

#: What `SendResult.error` may say. The last three are faults of this host.
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
    "resolver_down",
    "no_slot",
    "local_error",
)


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """One request. `url` is sent as it is and must be ASCII; a GET has no body."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class SendResult:
    """What came of a request. With an `error` the answer is missing (`status` None) or incomplete."""

    status: int | None
    body: bytes  # what was read of it, at most 64 KiB, as it was on the wire
    error: str | None  # one of ERRORS
    detail: str  # for people
    milliseconds: int
    retry_after: float | None = None  # seconds
    is_local: bool = False

    @property
    def excerpt(self) -> bytes:
        """What the log keeps: the first KiB."""
        return self.body[:EXCERPT]


class Sender:
    """Sends up to `limit` requests at a time. Make and use it on one event loop; `close` it, or use it in `async with`."""

    def __init__(self, guard: Guard, *, user_agent: str, limit: int, clock: Clock = utcnow, lookup: Lookup | None = None) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(limit)
        self._resolver = _Resolver(guard, lookup or guard.lookup)

        def make_socket(info: aiohttp.AddrInfoType) -> socket.socket:
            made = guard.socket_factory(info)
            # Nothing longer is ever read, and a flooding peer can hand us no more than this in one turn of the loop.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BODY_LIMIT // 2)
            return made

        connector = aiohttp.TCPConnector(
            limit=0,  # our own slots decide, and waiting for one is no fault of the tracker
            ssl=ssl.create_default_context(),
            resolver=self._resolver,
            ttl_dns_cache=DNS_CACHE,
            keepalive_timeout=IDLE_CONNECTION,
            socket_factory=make_socket,
        )
        # aiohttp bounds lines, headers and buffers, but not the number of interim answers; there is no public way to.
        connector._factory = _handler_factory(self._loop)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={hdrs.USER_AGENT: user_agent, hdrs.ACCEPT_ENCODING: "identity"},
            # The one deadline around everything is ours: aiohttp rounds those above 5 s up to whole seconds.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        )

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop all connections. Requests under way fail; finish or cancel them first."""
        await self._session.close()

    async def send(self, request: OutgoingRequest, deadline: float) -> SendResult:
        """Make one attempt within `deadline` seconds, waiting for a free slot included."""
        attempt = _Attempt()
        failure = None
        began = self._loop.time()
        try:
            async with asyncio.timeout(deadline), self._slots:
                attempt.has_slot = True
                await self._exchange(request, attempt)
        except TimeoutError:
            failure = self._too_late(request, attempt, began)
        except Exception as error:
            failure = self._explain(request, error, began)
        return SendResult(
            status=attempt.status,
            body=bytes(attempt.body[:BODY_LIMIT]),
            error=failure.error if failure else None,
            detail=failure.detail if failure else "",
            milliseconds=round((self._loop.time() - began) * 1000),
            retry_after=attempt.retry_after,
            is_local=failure is not None and failure.is_local,
        )

    async def _exchange(self, request: OutgoingRequest, attempt: _Attempt) -> None:
        """Send, and read into `attempt` as far as it gets, so that what did come is known if the deadline passes."""
        response = await self._session.request(
            request.method,
            URL(request.url, encoded=True),
            data=None if request.method == "GET" else request.body,
            headers=request.headers,
            allow_redirects=False,
        )
        try:
            attempt.status = response.status
            if (retry_after := response.headers.get(hdrs.RETRY_AFTER)) is not None:
                attempt.retry_after = parse_retry_after(retry_after, self._clock())
            body, content = attempt.body, response.content
            while chunk := await content.readany():
                body += chunk
                if len(body) > BODY_LIMIT:
                    raise _ResponseTooLarge(f"the body is longer than {BODY_LIMIT} bytes")
        finally:
            # Gives the connection back if the answer was read to its end, and drops it otherwise.
            response.close()

    def _too_late(self, request: OutgoingRequest, attempt: _Attempt, began: float) -> _Failure:
        if not attempt.has_slot:
            return _Failure("no_slot", "no slot became free in time", is_local=True)
        if attempt.status is not None:
            return _Failure("timeout", "the answer was not complete in time")
        url = URL(request.url, encoded=True)
        if self._resolver.is_pending(url.raw_host or "", url.port or 0):
            return self._unresolved(request, began)
        return _Failure("timeout", "there was no answer in time")

    def _unresolved(self, request: OutgoingRequest, began: float) -> _Failure:
        """No word from the resolver: its fault, unless it has lately answered for another name."""
        if self._resolver.answered_another(URL(request.url, encoded=True).raw_host or "", began - DNS_CACHE):
            return _Failure("dns_error", "the name servers of the host do not answer")
        return _Failure("resolver_down", "the resolver of this machine does not answer", is_local=True)

    def _explain(self, request: OutgoingRequest, error: Exception, began: float) -> _Failure:
        """The class of a failure: the one place where aiohttp's exceptions are known."""
        match error:
            case aiohttp.ClientConnectorError(os_error=ForbiddenTarget() as forbidden):
                return _Failure("blocked_address", str(forbidden))
            case aiohttp.InvalidURL():
                return _Failure("blocked_address", "the host is not one that can be called")
            case aiohttp.ClientConnectorDNSError(os_error=socket.gaierror(errno=code)):
                if code in _NO_SUCH_NAME:
                    return _Failure("dns_error", "the name does not exist")
                return self._unresolved(request, began)
            case aiohttp.ClientSSLError() | ssl.SSLError():
                return _Failure("tls_error", str(error))
            case _ResponseTooLarge():
                return _Failure("too_large", str(error))
            case aiohttp.ClientResponseError(__cause__=HttpProcessingError() as cause):
                too_long = isinstance(cause.__cause__ or cause, LineTooLong)
                return _Failure("too_large" if too_long else "protocol_error", f"not a usable HTTP answer: {cause.message}")
            case aiohttp.ClientPayloadError():
                return _Failure("protocol_error", "the body broke off or is malformed")
            case aiohttp.ServerDisconnectedError():
                return _Failure("connection_reset", "the connection was closed without an answer")
            case OSError():
                return _explain_os_error(error)
        # A request that cannot be sent at all. It counts as an attempt, or it would come back for ever.
        return _Failure("internal_error", f"{type(error).__name__}: {error}")


@dataclass(slots=True)
class _Attempt:
    """How far an attempt has got."""

    has_slot: bool = False
    status: int | None = None
    retry_after: float | None = None
    body: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: str
    detail: str
    is_local: bool = False


def _explain_os_error(error: OSError) -> _Failure:
    # When several addresses were tried and failed in different ways, the numbers are in the text only.
    numbers = [error.errno] if error.errno is not None else [int(found) for found in _ERRNO.findall(str(error))]
    known = [_ERROR_CLASSES[number] for number in numbers if number in _ERROR_CLASSES]
    # Of several, one that a peer has caused says more than an address family that this host cannot reach.
    for name in sorted(known, key=lambda name: name == "network_unreachable"):
        return _Failure(name, str(error))
    # EMFILE, ENOBUFS, EADDRNOTAVAIL (no ports left), EPERM (our firewall) and the like.
    return _Failure("local_error", str(error), is_local=True)


class _ResponseTooLarge(aiohttp.ClientPayloadError):
    """More came over the wire for one request than any usable answer has."""


class _BoundedHandler(ResponseHandler):
    """Ends a connection that sends more than `WIRE_LIMIT` bytes for one request: interim answers without end, above all."""

    _left = WIRE_LIMIT

    def set_response_params(self, **params: Any) -> None:
        # Called once for each request that the connection serves.
        self._left = WIRE_LIMIT
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left >= 0:
            super().data_received(data)
            return
        error = _ResponseTooLarge(f"the answer is longer than {WIRE_LIMIT} bytes")
        self.set_exception(error)
        if self._payload is not None:
            self._payload.set_exception(error)
        self.abort()


def _handler_factory(loop: asyncio.AbstractEventLoop) -> functools.partial[ResponseHandler]:
    make: type[ResponseHandler] = _BoundedHandler
    return functools.partial(make, loop=loop)


class _Resolver(AbstractResolver):
    """Names to addresses that the guard lets pass. Remembers just enough to tell a dead resolver from a dead name."""

    def __init__(self, guard: Guard, lookup: Lookup) -> None:
        self._guard = guard
        self._lookup = lookup
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(LOOKUPS)
        self._pending: set[tuple[str, int]] = set()
        # The last two names that the resolver knew something about, and when.
        self._latest = self._other = ("", -math.inf)

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Raises `ForbiddenTarget` if any address is refused, `socket.gaierror` if there is none."""
        self._pending.add((host, port))
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT), self._slots:
                addresses = await look_up(self._lookup, host, port)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer in time") from None
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
        return (host, port) in self._pending

    def answered_another(self, host: str, since: float) -> bool:
        """Whether a name other than `host` got a definite answer since the loop's time `since`."""
        return any(name != host and at >= since for name, at in (self._latest, self._other))

    def _note(self, host: str) -> None:
        if self._latest[0] != host:
            self._other = self._latest
        self._latest = (host, self._loop.time())

    async def close(self) -> None:
        """Nothing is held: look-ups end by themselves."""
