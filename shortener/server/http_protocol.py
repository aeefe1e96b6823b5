"""The HTTP protocol of `shortener serve`: it responds to redirect requests without ASGI.

For each request, uvicorn creates an ASGI scope and a task, in which the application exchanges messages with uvicorn. This takes
as much time as the redirect itself. `RedirectProtocol` extends uvicorn's protocol for httptools, and examines each request when
its headers are complete. A simple GET or HEAD request for a code, with or without the path of a domain, becomes a hit at once.
When the hit is stored, one write sends the response.

All other requests are passed to the ASGI application: requests with a body, a query string or an upgrade, requests that arrive
before the previous response is complete, and requests with other paths or unknown hosts. For a code, the application sends the
same response as this protocol.

The protocol also limits the resources that one client can use: the size of a request's head and of its trailer section, the time
for heads, bodies, idle connections and unread responses (`client_timer`), and the number of connections (`connection_limits`).
"""
# Tested by tests/server/test_http_protocol_responses.py

from __future__ import annotations

import asyncio
import os
from typing import Any, Protocol
from urllib.parse import unquote

import httptools
import orjson
import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shortener.clicks.path import code_behind_prefix, code_of
from shortener.clicks.redirect import Redirect, read_client_info
from shortener.clicks.resolver import Hit, Resolution
from shortener.errors import ApiError, ErrorCode, StoreUnavailable
from shortener.ids import randbits
from shortener.server.application import HttpApplication
from shortener.server.client_timer import ClientTimer
from shortener.server.connection_limits import ConnectionLimits
from shortener.server.request_cycle import EXTENSIONS, RequestCycle
from shortener.server.request_ids import HEADER as REQUEST_ID
from shortener.server.request_ids import request_id
from shortener.server.request_line import IncompleteHead, encode_request_line
from shortener.server.response_bytes import serialize_response

log = structlog.get_logger(__name__)

#: If a request has one of these headers, it is not simple and is passed to the ASGI application.
_COMPLEX_REQUEST_HEADERS = frozenset({b"content-length", b"transfer-encoding", b"upgrade", b"expect"})
MAX_HEAD_BYTES = 64 * 1024  # maximum size of the head of a request in bytes
_MAX_PATH_BYTES = 256  # maximum number of bytes of a path: the path of a domain, a code, and characters that programs add
#: The maximum number of bytes of a body that the server reads and discards after the response. It reads them, because some clients
#: read a response such as 413 only after they have sent the whole body.
MAX_DISCARDED_BYTES = 64 * 1024 * 1024


class HasApp(Protocol):
    """The object that uvicorn calls for each request. Its attribute `app` is the application of the service, or None until the
    service has started (see `cli.serve.Worker`)."""

    @property
    def app(self) -> HttpApplication | None: ...


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration, and the limits for connections and requests. `request_timeout` is in seconds."""

    request_timeout: float
    connection_limits: ConnectionLimits


class RedirectProtocol(HttpToolsProtocol):
    """One connection to the server, with the requests that arrive on it."""

    config: ServerConfig
    cycle: Any  # the latest request: a RequestCycle or a _PendingRedirect

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._has_app: HasApp = self.config.loaded_app
        self._peer: str | None = None
        self._socket_fd = -1  # the socket for direct writes; -1 if all writes use the transport
        self.incomplete_head: IncompleteHead | None = None
        self._parser_error: str | None = None  # the error of a head that the parser accepts and this class rejects
        self.timer: ClientTimer | None = None
        # the time of the event loop at which the latest response ended; without a response, at which the connection began
        self._response_ended = 0.0
        self.is_reading_body = False  # True while the body of the latest request is incomplete
        self.body_began = 0.0  # the time of the event loop at which the current body began
        self.body_bytes = 0
        # number of bytes inside a chunked body (sizes of chunks, trailer fields) since the latest byte of the body itself
        self._bytes_without_body = 0
        self._discarded_bytes = 0
        self._closes_after_body = False
        self.bytes_queued = 0  # the number of response bytes that the socket did not accept at once
        self._is_admitted = False

    # The following methods read requests.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn has the same type
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else None
        if self.scheme == "http":
            self._socket_fd = transport.get_extra_info("socket").fileno()
        self._response_ended = self.loop.time()
        self._is_admitted = self.config.connection_limits.admit(self._peer, self.connections)  # type: ignore[arg-type]  # uvicorn's set of protocols
        if self._is_admitted:
            self.timer = ClientTimer(self, self.loop, self.timeout_keep_alive, self.config.request_timeout)
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse the data. Then enforce the size limit if the head of a request or its trailer section is incomplete."""
        head = self.incomplete_head
        body = (self.cycle, self.body_bytes) if self.is_reading_body else None
        if data.isascii():
            super().data_received(data)
        else:
            self._receive_non_ascii(data)
        if self.is_reading_body and not self.transport.is_closing():
            self._limit_bytes_without_body(len(data) if (self.cycle, self.body_bytes) == body else 0)
        incomplete = self.incomplete_head
        if incomplete is None:
            return
        incomplete.note_end_of_chunk(data)
        # The first part of a head is not counted. It is never larger than the read buffer.
        if incomplete is head:
            head.size += len(data)
            if head.size > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")

    def _limit_bytes_without_body(self, received: int) -> None:
        """Close the connection if the client sends too many bytes inside a chunked body that do not belong to the body itself.

        `received` is the number of bytes in the latest data. It is 0 if the data contains a part of the body or begins the
        request."""
        self._bytes_without_body = self._bytes_without_body + received if received else 0
        if self._bytes_without_body > MAX_HEAD_BYTES:
            if self.cycle.response_complete:
                self.transport.abort()
            else:
                self.send_400_response("The trailer section of the request is too long.")

    def _receive_non_ascii(self, data: bytes) -> None:
        """Parse data that contains bytes above 0x7F. The parser rejects them in a URL, so they are first percent-encoded in
        request lines (see `request_line`). Each head and each body in the data is parsed separately, because the state of the
        parser then shows whether a head or a body follows."""
        while data:
            if self.is_reading_body:
                end_of_body = self._end_of_body(data)
                super().data_received(data[:end_of_body])
                data = data[end_of_body:]
                if self.transport.is_closing():
                    return
                continue
            # An empty line ends a head. Line ends at the beginning of the data may be its second part.
            end_of_head = len(data) - len(data.lstrip(b"\r\n"))
            if not end_of_head:
                head = self.incomplete_head
                if head is None or head.is_in_request_line:
                    data = encode_request_line(data)
                found = data.find(b"\r\n\r\n")
                end_of_head = len(data) if found < 0 else found + 4
            super().data_received(data[:end_of_head])
            data = data[end_of_head:]
            # uvicorn also ignores the data behind a head that asks for an upgrade.
            if self.transport.is_closing() or (self.parser.should_upgrade() and not self.is_reading_body):
                return

    def _end_of_body(self, data: bytes) -> int:
        """Return the index in the data at which the body of the latest request may end. A chunked body ends with an empty line,
        but it may also contain empty lines. Therefore the caller examines the state of the parser afterwards."""
        for name, value in self.headers:
            if name == b"content-length" and value.isdigit():
                return max(int(value) - self.body_bytes, 1)
        line_ends = len(data) - len(data.lstrip(b"\r\n"))  # the other part of the empty line may be in the previous chunk
        found = data.find(b"\r\n\r\n")
        return line_ends or (len(data) if found < 0 else found + 4)

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.incomplete_head = IncompleteHead()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Fields after the body are ignored: proxies do not check them, so they could forge X-Forwarded-For (RFC 9110, 6.5.1).
        if self.incomplete_head is not None:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.incomplete_head = None
        if self._begin_redirect():
            return
        url, parser = httptools.parse_url(self.url), self.parser
        http_version = parser.get_http_version()
        if http_version != "1.1" and any(name == b"transfer-encoding" for name, _ in self.headers):
            # A proxy may see another end of such a request. The next bytes could then belong to another client (RFC 9112, 6.1).
            self._parser_error = "Transfer-Encoding requires HTTP/1.1."
            raise ValueError(self._parser_error)
        raw_path: bytes = url.path
        path = raw_path.decode("ascii")
        expects_continue = any(name == b"expect" and value.lower() == b"100-continue" for name, value in self.headers)
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": http_version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "headers": self.headers,
            "state": self.app_state.copy(),
            "method": parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": url.query or b"",
            "extensions": EXTENSIONS,
        }
        keep_alive = http_version != "1.0" and parser.should_keep_alive()
        before = self.cycle
        self.cycle = cycle = RequestCycle(self, scope, expects_continue=expects_continue, keep_alive=keep_alive)
        self.is_reading_body, self.body_began, self.body_bytes, self._discarded_bytes = True, self.loop.time(), 0, 0
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.cycle.__class__ is not _PendingRedirect:
            super().on_message_complete()
            self.is_reading_body = False
            if self._closes_after_body:
                self.transport.close()

    def _begin_redirect(self) -> bool:
        """If this is a simple request for a code, pass it to the recorder as a hit and return True. Return False if the ASGI
        application must handle the request."""
        app, before = self._has_app.app, self.cycle
        if app is None or self.flow.write_paused or len(self.url) > _MAX_PATH_BYTES:
            return False
        if before is not None and not before.response_complete:
            return False
        method = self.parser.get_method()
        if method != b"GET" and method != b"HEAD":
            return False
        code, prefix = code_of(self.url), ""
        if code is None:
            if (found := code_behind_prefix(self.url)) is None:
                return False
            prefix, code = found
        for name, _ in self.headers:
            if name in _COMPLEX_REQUEST_HEADERS:
                return False
        client_info = read_client_info(method.decode(), self.headers)
        is_hit, domain_id = app.match_code(client_info.host, prefix, code)
        if not is_hit:
            return False
        hit = app.redirect.make_hit(client_info, self._peer, code, domain_id)
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        id_ = request_id(client_info.request_id, hit.id)
        pending = _PendingRedirect(self, app.redirect, hit, id_, is_head=method == b"HEAD", keep_alive=keep_alive)
        if not app.redirect.recorder.take(hit, pending):
            return False
        self.cycle = pending
        return True

    # The following methods send responses.

    def send(self, data: bytes) -> None:
        """Send data. If the transport's buffer is empty, write the data directly to the socket.

        os.write releases the interpreter lock while the kernel sends. uvloop does not release it, which would delay the thread
        that writes to SQLite. If the connection is closing, the data is dropped: uvicorn also handles pipelined requests of
        clients that have disconnected."""
        if self.transport.is_closing():
            return
        if self._socket_fd >= 0 and not self.transport.get_write_buffer_size():
            try:
                sent = os.write(self._socket_fd, data)
            except OSError:  # the socket is full or closed; the transport sends the rest or raises the error
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self.bytes_queued += len(data)
        self.transport.write(data)

    def send_400_response(self, msg: str) -> None:
        """Respond to bytes that are not a valid request, and close the connection.

        The body is an error of the API for every path, because the path of such a request may be unknown. If the parser found a
        valid X-Request-Id before the error, the response has the same one. Otherwise it has a generated one."""
        reason = self._parser_error or msg
        body = orjson.dumps(ApiError(ErrorCode.INVALID_REQUEST, reason).body())
        # between two requests, `headers` still contains the headers of the previous one
        is_in_request = self.incomplete_head is not None or self.is_reading_body or self._parser_error is not None
        requested = next((value for name, value in self.headers if name == REQUEST_ID and value), b"") if is_in_request else b""
        id_ = request_id(requested, randbits(63))
        log.warning("invalid_request", reason=reason, request_id=id_.decode())
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (REQUEST_ID, id_),
        ]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + lines + b"\r\n" + body)
        self.transport.close()

    def close_after_body(self) -> None:
        """Close the connection when the body of the latest request has been read. If the server closed it before, the kernel
        would reset it, and the client would lose the response."""
        if self.is_reading_body:
            self._closes_after_body = True
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        """Start the next pipelined request, or continue reading.

        This differs from uvicorn in two ways. Reading continues only after all pipelined requests have their responses. No timer
        is started here, because each connection has one timer for all its requests."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline and not self._closes_after_body:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self.flow.resume_reading()
        self._response_ended = self.loop.time()

    # The following methods handle slow and idle clients.

    @property
    def waiting_since(self) -> float | None:
        """Return the time (`loop.time()`) since which the connection waits for a request, or None during a request."""
        return self._response_ended if self.cycle is None or self.cycle.response_complete else None

    def end_slow_client(self) -> None:
        """Close the connection, and discard the data that the client has not read yet."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def close(self) -> None:
        self.transport.abort()

    def _unset_keepalive_if_required(self) -> None:
        """Do nothing, because `timer` replaces the keep-alive timer of uvicorn."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.cycle = None  # this breaks reference cycles, so that no garbage collection is needed
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self._is_admitted:
            self._is_admitted = False
            self.config.connection_limits.release(self._peer)


class _NoBodyEvent:
    """A replacement for the asyncio.Event that uvicorn sets when a part of the request's body arrives. `set` does nothing."""

    def set(self) -> None:
        pass


class _PendingRedirect:
    """A hit whose response is not sent yet. It has the attributes of `RequestResponseCycle` that uvicorn needs, and is the
    `PendingResponse` that the recorder needs."""

    __slots__ = (
        "_connection",
        "_error",
        "_hit",
        "_is_head",
        "_redirect",
        "_request_id",
        "disconnected",
        "keep_alive",
        "response_complete",
    )

    message_event = _NoBodyEvent()

    def __init__(
        self, connection: RedirectProtocol, redirect: Redirect, hit: Hit, request_id: bytes, *, is_head: bool, keep_alive: bool
    ) -> None:
        self._connection = connection
        self._redirect = redirect
        self._hit = hit
        self._request_id = request_id
        self._is_head = is_head
        self._error: StoreUnavailable | None = None
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False

    def done(self) -> bool:
        return self.response_complete

    def cancelled(self) -> bool:
        return False

    def exception(self) -> StoreUnavailable | None:
        return self._error

    def set_result(self, resolution: Resolution, /) -> None:
        self._send(resolution)

    def set_exception(self, error: StoreUnavailable, /) -> None:
        self._error = error
        self._send(None)

    def _send(self, resolution: Resolution | None) -> None:
        """Send the response. If `resolution` is None, the hit could not be stored, and the response is 503.

        This method raises no errors, because an error would prevent the responses to the other hits of the batch."""
        self.response_complete = True
        connection = self._connection
        del self._connection  # this breaks a reference cycle, so that no garbage collection is needed
        try:
            redirect = self._redirect
            response = (
                redirect.respond(self._hit, resolution, self._request_id) if resolution is not None else redirect.unavailable()
            )
            if self.disconnected or connection.transport.is_closing():
                return
            defaults = connection.server_state.default_headers
            connection.send(
                serialize_response(
                    response, defaults, request_id=self._request_id, is_head=self._is_head, keep_alive=self.keep_alive
                )
            )
        except Exception:
            log.exception("redirect_response_failed", code=self._hit.code, request_id=self._request_id.decode())
            connection.transport.close()
            return
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()
