"""Redirects read off the wire: a short link is answered where its request was parsed.

For every request uvicorn makes a scope, a task and messages from it to the application and back: as much work as the redirect
itself. This protocol of uvicorn's, on httptools like its own, looks at each request when its headers are complete. A plain
GET or HEAD for a code becomes a hit at once, and its answer one write when the hit has landed; everything else (a body, a query, an
upgrade, a request behind one that is not answered yet, another path or host) goes the usual way, and gets the same answers. Where
the same headers were read before, not even the parser is asked (`server/header_cache.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from asyncio.events import TimerHandle
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Protocol

import structlog
from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE, HttpToolsProtocol

from shortener.clicks.path import code_of
from shortener.clicks.redirect import REDIRECT, ClientInfo, RawResponse, Redirect, read_client_info
from shortener.clicks.resolver import Hit, Resolution
from shortener.errors import StoreUnavailable
from shortener.server.application import HttpApplication
from shortener.server.header_cache import Heads

log = structlog.get_logger(__name__)

#: Headers of a request that is more than a plain question.
_MORE = frozenset({b"content-length", b"transfer-encoding", b"upgrade", b"expect"})
LONGEST_HEAD = 64 * 1024  # bytes
_LONGEST_PATH = 128  # bytes; a code with all that is forgiven behind it
FOUND = 302


class HasApp(Protocol):
    """What uvicorn runs: it may have its App only after its start (cli/serve.py)."""

    @property
    def app(self) -> HttpApplication | None: ...


class RedirectProtocol(HttpToolsProtocol):
    """One connection."""

    cycle: Any  # uvicorn's own, or a _Redirecting
    heads = Heads()  # of all connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._has_app: HasApp = self.config.loaded_app
        self._peer: str | None = None
        self._descriptor = -1  # of the socket; -1: only the transport knows how to write to it
        self._head: _Head | None = None  # that is not complete
        self._asker: ClientInfo | None = None  # of the redirect that the parser read last
        self._is_between = True  # the parser waits for a request, and has read nothing here but redirects that kept the connection
        self._idle_since: float | None = None  # loop time
        self._idle_timer: TimerHandle | None = None

    # A request.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else None
        if self.scheme == "http":
            self._descriptor = transport.get_extra_info("socket").fileno()
        self._be_idle()  # until its first request is there

    def data_received(self, data: bytes) -> None:
        """uvicorn's own, with bounds for a head that does not end: neither has one."""
        may_be_known = self._is_between and (self.cycle is None or self.cycle.response_complete)
        if may_be_known and self._begin_known(data):
            return
        waited_since, head = self._idle_since, self._head
        super().data_received(data)
        if self._head is None:
            if may_be_known and self._is_between and self._asker is not None:
                self.heads.get_or_set(data, self._asker)
            return
        if waited_since is not None and (self.cycle is None or self.cycle.response_complete):
            self._idle_since = waited_since  # a head that comes in drops is waited for like one that does not come
        if self._head is head:  # the piece that it began in is a bufferful at most
            head.size += len(data)
            if head.size > LONGEST_HEAD and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._head = _Head()
        self._is_between = False
        self._asker = None

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._head = None
        if not self._begin_redirect():
            url, headers = self.url, self.headers
            super().on_message_begin()
            self.url = url
            for name, value in headers:
                super().on_header(name, value)
            before = self.cycle
            super().on_headers_complete()
            cycle = self.cycle
            if cycle is not before and not cycle.waiting_for_100_continue:
                together = cycle.transport = _Together(self)
                cycle.on_response = partial(self._end_usual, together)

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if cycle.__class__ is _Redirecting:
            self._is_between = cycle.keep_alive
        else:
            super().on_message_complete()

    def _begin_known(self, data: bytes) -> bool:
        """Begin the redirect that these bytes ask for, if they are all there is and such headers were read before."""
        known = self.heads.recall(data)
        if known is None or not self._begin(*known, is_head=False, keep_alive=True):
            return False
        self._idle_since = None
        return True

    def _begin_redirect(self) -> bool:
        before = self.cycle
        if len(self.url) > _LONGEST_PATH or (before is not None and not before.response_complete):
            return False
        method = self.parser.get_method()
        if method != b"GET" and method != b"HEAD":
            return False
        for name, _ in self.headers:
            if name in _MORE:
                return False
        client_info = read_client_info(method.decode(), self.headers)
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        code = code_of(self.url)
        if code is None or not self._begin(code, client_info, is_head=method == b"HEAD", keep_alive=keep_alive):
            return False
        self._asker = client_info
        return True

    def _begin(self, code: str, client_info: ClientInfo, *, is_head: bool, keep_alive: bool) -> bool:
        app = self._has_app.app
        if app is None or self.flow.write_paused:
            return False
        is_known, domain_id = app.place_of(client_info.host, code)
        if not is_known:
            return False
        redirect = app.redirect
        hit = redirect.hit(client_info, self._peer, code, domain_id)
        cycle = _Redirecting(self, redirect, hit, is_head, keep_alive)
        if not redirect.recorder.take(hit, cycle):
            return False
        self.cycle = cycle
        return True

    # Its end.

    def send(self, data: bytes) -> None:
        """Write what is to be sent, at once where that can be done: a loop that does it keeps the interpreter to itself while the
        kernel is at it, and the thread that writes to the store waits."""
        if self._descriptor >= 0 and not self.transport.is_closing() and not self.transport.get_write_buffer_size():
            with contextlib.suppress(OSError):  # nothing more fits, or nobody is there: the transport knows what to do
                data = data[os.write(self._descriptor, data) :]
            if not data:
                return
        self.transport.write(data)

    def _end_usual(self, together: _Together) -> None:
        together.flush()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """uvicorn's own, but for when it reads on, and the timer: one for each connection that looks how long it was idle, not one
        for each answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            # Read on when these are answered. uvicorn would at once: another bufferful of requests for each answer.
            self._start_asgi_task(*self.pipeline.pop())
            return
        self.flow.resume_reading()
        self._be_idle()

    def _be_idle(self) -> None:
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def timeout_keep_alive_handler(self) -> None:
        self._idle_timer = None
        if self._idle_since is not None:
            left = self._idle_since + self.timeout_keep_alive - self.loop.time()
            if left > 0:
                self._idle_timer = self.loop.call_later(left, self.timeout_keep_alive_handler)
            else:
                super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.cycle = None  # the two would hold each other until the collector comes
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None


class _Head:
    """A head of which not everything came yet. `size`: bytes, without those that it began with."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


class _Together:
    """A transport for uvicorn's cycle that sends the head of an answer with the first of its body: one system call, one packet."""

    __slots__ = ("_head", "_wire")

    def __init__(self, wire: RedirectProtocol) -> None:
        self._wire = wire
        self._head: bytes | None = b""  # None: it is sent

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._wire.send(data)
        elif self._head:
            self._wire.send(self._head + data)
            self._head = None
        else:
            self._head = data

    def flush(self) -> None:
        if self._head:
            self._wire.send(self._head)
        self._head = None

    def close(self) -> None:
        self.flush()
        self._wire.transport.close()

    def is_closing(self) -> bool:
        return self._wire.transport.is_closing()


class _Ignored:
    """In the place of uvicorn's event that tells of a request's body."""

    def set(self) -> None:
        pass


class _Redirecting:
    """A hit under way: a cycle for uvicorn's protocol, and for the recorder who waits for its landing (`PendingResponse`)."""

    __slots__ = ("_error", "_hit", "_is_head", "_redirect", "_wire", "disconnected", "keep_alive", "response_complete")

    message_event = _Ignored()

    def __init__(self, wire: RedirectProtocol, redirect: Redirect, hit: Hit, is_head: bool, keep_alive: bool) -> None:
        self._wire = wire
        self._redirect = redirect
        self._hit = hit
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
        self.response_complete = True
        wire = self._wire
        del self._wire  # or the two would hold each other until the collector comes
        try:
            answer = self._redirect.refusal() if resolution is None else self._redirect.answer(self._hit, resolution)
            if self.disconnected or wire.transport.is_closing():
                return
            wire.send(_spell(answer, wire.server_state.default_headers, self._is_head, self.keep_alive))
        except Exception:  # the batch, whose other hits wait for their answers, must not end here
            log.exception("answer_not_sent", code=self._hit.code)
            wire.transport.close()
            return
        if not self.keep_alive:
            wire.transport.close()
        wire.on_response_complete()


def _spell(answer: RawResponse, defaults: Sequence[tuple[bytes, bytes]], is_head: bool, keep_alive: bool) -> bytes:
    """An answer as it goes over the wire."""
    status, headers, body = answer
    for _, value in headers[-1:] if status == FOUND else headers:  # the others of a 302 are our own
        if HEADER_VALUE_RE.search(value):
            raise ValueError("a header's value has a control character in it")
    if status == FOUND and keep_alive:
        return _found(tuple(defaults)) + headers[-1][1] + b"\r\n\r\n"
    lines = [STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in (*defaults, *headers))]
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    return b"".join((*lines, b"\r\n", b"" if is_head else body))


@lru_cache(maxsize=4)
def _found(defaults: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """A 302 up to the value of its last header, Location. `defaults`: uvicorn's, which change with the second."""
    return b"".join((STATUS_LINE[FOUND], *(b"%s: %s\r\n" % header for header in (*defaults, *REDIRECT)), b"location: "))
