"""This module is the HTTP client of `sender.Sender`, built on aiohttp. It is imported when the first request is sent.

It follows no redirects, stores no cookies, ignores proxies in environment variables and does not decompress responses. It reads at
most 64 KiB of a body. The address guard checks every IP address twice: when a name is resolved, and before a socket connects. If a
proxy is used, the guard checks the host of each request before the request is sent, because the proxy resolves the name itself.
"""

# Tested by tests/delivery/test_sender.py

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import ResolveResult
from aiohttp.connector import Connection
from yarl import URL

from shortener.delivery.guard import ForbiddenTarget, Guard, Lookup, is_ip_address
from shortener.delivery.guarded_resolver import GuardedResolver
from shortener.delivery.http_exchange import OutgoingRequest, SendResult
from shortener.delivery.idle_connections import IdleConnections
from shortener.delivery.outcomes import parse_retry_after
from shortener.delivery.receiver_connection import (
    CURRENT_SEND,
    MAX_BODY_BYTES,
    MAX_WIRE_BYTES,
    ReceiverConnection,
    SendState,
    connection_factory,
    default_tls_context,
)
from shortener.delivery.send_failures import SendFailure, explain
from shortener.model import Clock

#: One response may have at most this many header lines.
MAX_HEADER_LINES = 2000

#: An idle connection is closed after this time. Common servers close an idle connection later (gunicorn after 2 s, Node after 5 s).
#: So the service rarely writes a request to a connection that the server is just closing. Such a request would have to be sent
#: again.
IDLE_CONNECTION_SECONDS = 1.5

#: The IP addresses of a host name are cached for this time.
DNS_CACHE_SECONDS = 10

#: For at most this many hosts, the sender remembers that their addresses were checked recently. Only requests through a proxy use
#: this.
MAX_CHECKED_HOSTS = 10_000

_FORBIDDEN_PROXY = SendFailure("proxy_error", "the proxy (DELIVERY_PROXY) has a forbidden address", is_local=True)
_UNKNOWN_PROXY = SendFailure("proxy_error", "the name of the proxy (DELIVERY_PROXY) does not resolve", is_local=True)


class HttpSender:
    """The HTTP client of one `Sender`. The parameters are those of `Sender`."""

    def __init__(
        self,
        guard: Guard,
        *,
        user_agent: str,
        limit: int,
        clock: Clock,
        lookup: Lookup | None,
        proxy: str,
    ) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(limit)
        self._proxy = URL(proxy) if proxy else None
        self._target_guard = guard
        self._checked_until: dict[tuple[str, int], float] = {}  # (host, port) -> time until which its address check is valid
        self._checks: dict[tuple[str, int], asyncio.Task[list[ResolveResult]]] = {}  # running address checks
        self._resolver = self._target_resolver = GuardedResolver(guard, lookup or guard.lookup)
        if self._proxy is not None:
            guard = Guard(allow_private=True, lookup=guard.lookup)  # the sender connects only to the proxy, which may be private
            self._resolver = GuardedResolver(guard, lookup or guard.lookup)

        def make_socket(info: aiohttp.AddrInfoType) -> socket.socket:
            connection = guard.socket_factory(info)
            # A small receive buffer limits the bytes that a receiver can deliver in one iteration of the event loop.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MAX_BODY_BYTES // 2)
            return connection

        self._make_socket = make_socket
        self._headers: dict[str, str] = {hdrs.USER_AGENT: user_agent, hdrs.ACCEPT_ENCODING: "identity"}
        connector, self._session = self._open_session(keepalive_timeout=IDLE_CONNECTION_SECONDS)
        self._idle = IdleConnections(connector, self._headers)
        # The session for requests that need a new connection. It is None before the first such request.
        self._single_use: aiohttp.ClientSession | None = None

    def _open_session(self, **options: Any) -> tuple[aiohttp.TCPConnector, aiohttp.ClientSession]:
        """Create a connector with `options`, and a session that uses the connector. Return both."""
        connector = aiohttp.TCPConnector(
            # The connector has no limit. A semaphore limits the requests instead, so that a request that waits too long for a slot
            # is a local failure.
            limit=0,
            ssl=default_tls_context(),
            resolver=self._resolver,
            ttl_dns_cache=DNS_CACHE_SECONDS,
            socket_factory=self._make_socket,
            **options,
        )
        # aiohttp does not limit the number of interim (1xx) responses, and has no public way to add such a limit.
        connector._factory = connection_factory(self._loop)
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers=self._headers,
            # `send` applies its own time limit, because aiohttp rounds time limits above 5 s up to whole seconds.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            max_line_size=MAX_WIRE_BYTES,
            max_field_size=MAX_WIRE_BYTES,
            max_headers=MAX_HEADER_LINES,
        )
        return connector, session

    def _session_of(self, request: OutgoingRequest) -> aiohttp.ClientSession:
        """Return the session for a request. If the request must not be sent twice, its connection is closed after the response,
        even if the receiver would keep the connection open."""
        if request.may_repeat:
            return self._session
        if self._single_use is None:
            _, self._single_use = self._open_session(force_close=True)
        return self._single_use

    async def close(self) -> None:
        """Close all connections. Finish or cancel the running requests first, because they fail otherwise."""
        checks = list(self._checks.values())
        for check in checks:
            check.cancel()  # a check can still run after all requests that waited for it have ended
        await asyncio.gather(*checks, return_exceptions=True)
        await self._session.close()
        if self._single_use is not None:
            await self._single_use.close()

    async def send(self, request: OutgoingRequest, deadline: float) -> SendResult:
        """Send a request and return the result. `deadline` limits the time in seconds, including the wait for a free slot."""
        attempt = SendState()
        CURRENT_SEND.set(attempt)
        failure = None
        began = self._loop.time()
        try:
            async with asyncio.timeout(deadline), self._slots:
                attempt.has_slot = True
                await self._exchange(request, attempt)
        except TimeoutError:
            failure = self._timed_out(request, attempt, began)
        except Exception as error:
            failure = self._explain(error, request, began)
        if attempt.retry_after is None and (retry_after := attempt.find_retry_after()) is not None:
            attempt.retry_after = parse_retry_after(retry_after, self._clock())
        return SendResult(
            status=attempt.status,
            body=bytes(attempt.body[:MAX_BODY_BYTES]),
            error=failure.error if failure else None,
            detail=failure.detail if failure else "",
            milliseconds=round((self._loop.time() - began) * 1000),
            retry_after=attempt.retry_after,
            is_local=failure is not None and failure.is_local,
            may_have_arrived=attempt.is_sent,
            is_repeated=attempt.is_repeated,
        )

    async def _exchange(self, request: OutgoingRequest, attempt: SendState) -> None:
        """Send the request. If the receiver had already closed the idle connection, send the request again on another connection.

        A closed connection is removed from the pool. If no idle connection is left, the request is sent on a new connection."""
        while True:
            try:
                return await self._exchange_once(request, attempt)
            except (aiohttp.ClientError, OSError):
                if not (request.may_repeat and attempt.is_reused and not attempt.has_data):
                    raise
                attempt.is_repeated = True

    async def _exchange_once(self, request: OutgoingRequest, attempt: SendState) -> None:
        """Send the request and read the response into `attempt`. After a timeout, `attempt` contains the bytes received so far."""
        attempt.is_reused = False
        may_reuse = self._proxy is None and request.may_repeat
        if may_reuse and (taken := await self._idle.take(request)) is not None:
            return await self._exchange_on(*taken, attempt)
        url = URL(request.url, encoded=True)
        if self._proxy is not None:
            await self._check_target(url)
            attempt.is_tunnelled = url.scheme == "https"
        response = await self._session_of(request).request(
            request.method,
            url,
            proxy=self._proxy,
            ssl=request.tls or True,
            data=None if request.method == "GET" else request.body,
            headers=request.headers,
            allow_redirects=False,
        )
        try:
            if may_reuse:
                self._idle.remember(request, url, response.request_info.headers[hdrs.HOST])
            await self._read(attempt, response.status, response.headers, response.content)
        finally:
            # aiohttp keeps the connection if the response was read completely and the connection may be reused. Otherwise aiohttp
            # closes it.
            response.close()

    async def _exchange_on(self, connection: Connection, data: bytes, attempt: SendState) -> None:
        """Send the bytes of a request on an idle connection and read the response into `attempt`."""
        protocol = connection.protocol
        try:
            assert isinstance(protocol, ReceiverConnection)
            assert protocol.transport is not None
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                max_line_size=MAX_WIRE_BYTES,
                max_field_size=MAX_WIRE_BYTES,
                max_headers=MAX_HEADER_LINES,
            )
            protocol.transport.write(data)
            message, content = await protocol.read()
            while 100 <= message.code <= 199 and message.code != 101:
                message, content = await protocol.read()
            await self._read(attempt, message.code, message.headers, content)
            if content.is_eof():
                connection.release()
        finally:
            connection.close()  # closes the connection after an error; has no effect after `release`

    async def _read(self, attempt: SendState, status: int, headers: Mapping[str, str], content: aiohttp.StreamReader) -> None:
        """Read the rest of a response into `attempt`."""
        attempt.status = status
        if (retry_after := headers.get(hdrs.RETRY_AFTER)) is not None:
            attempt.retry_after = parse_retry_after(retry_after, self._clock())
        body = attempt.body
        while len(body) <= MAX_BODY_BYTES and (chunk := await content.readany()):
            body += chunk

    async def _check_target(self, url: URL) -> None:
        """Check the IP addresses of the host to which the proxy will connect. Simultaneous checks of one host share a look-up.

        Raise ForbiddenTarget if an address is forbidden, or socket.gaierror if the name did not resolve."""
        host, port = url.raw_host or "", url.port or 0
        self._target_guard.check_literal(host)
        if is_ip_address(host) or self._checked_until.get((host, port), 0) >= self._loop.time():
            return
        check = self._checks.get((host, port))
        if check is None:
            check = self._checks[host, port] = self._loop.create_task(self._target_resolver.resolve(host, port))
            check.add_done_callback(functools.partial(self._forget_check, (host, port)))
        if not await asyncio.shield(check):  # if this request ends, other requests may still wait for the same look-up
            raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
        if len(self._checked_until) >= MAX_CHECKED_HOSTS:
            self._checked_until.clear()
        self._checked_until[host, port] = self._loop.time() + DNS_CACHE_SECONDS

    def _forget_check(self, key: tuple[str, int], check: asyncio.Task[list[ResolveResult]]) -> None:
        del self._checks[key]
        if not check.cancelled():
            check.exception()  # read the exception, because asyncio logs an exception that nothing has read

    def _timed_out(self, request: OutgoingRequest, attempt: SendState, began: float) -> SendFailure:
        if not attempt.has_slot:
            return SendFailure("no_slot", "no slot of the sender became free in time", is_local=True)
        if attempt.status is not None:
            return SendFailure("timeout", "the response was not complete in time")
        if attempt.has_data:
            return SendFailure("timeout", "the status line was not complete in time")
        url = URL(request.url, encoded=True)
        if self._proxy is not None and self._resolver.is_pending(self._proxy.raw_host or "", self._proxy.port or 0):
            return _UNKNOWN_PROXY
        if self._target_resolver.is_pending(url.raw_host or "", url.port or 0):
            return self._unresolved(request, began)
        return SendFailure("timeout", "there was no response in time")

    def _explain(self, error: Exception, request: OutgoingRequest, began: float) -> SendFailure:
        # With a proxy, aiohttp connects only to the proxy, so this error is about the proxy.
        if self._proxy is not None and isinstance(error, aiohttp.ClientConnectorError):
            if isinstance(error.os_error, ForbiddenTarget):
                return _FORBIDDEN_PROXY
            if isinstance(error, aiohttp.ClientConnectorDNSError):
                return _UNKNOWN_PROXY
        return explain(error, functools.partial(self._unresolved, request, began), is_https=request.url.startswith("https:"))

    def _unresolved(self, request: OutgoingRequest, began: float) -> SendFailure:
        """Return the failure of a look-up to which the resolver did not respond.

        If the resolver has recently responded to a look-up of another name, the name servers of the requested host are the cause.
        Otherwise the failure is local."""
        if self._target_resolver.answered_another(URL(request.url, encoded=True).raw_host or "", began - DNS_CACHE_SECONDS):
            return SendFailure("dns_error", "the name servers of the host do not respond")
        return SendFailure("resolver_down", "the resolver of this machine does not respond", is_local=True)
