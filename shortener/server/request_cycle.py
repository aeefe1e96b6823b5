"""One request that the ASGI application handles, and its response.

`RequestCycle` extends uvicorn's class `RequestResponseCycle`, and needs less time for a response, for three reasons. It sends the
head and the first part of the body in one write. It searches all headers for control characters at once. It accepts a complete
response in one message (`COMPLETE_RESPONSE`).
"""
# Tested by tests/server/test_request_cycle.py

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HEADER_RE, STATUS_LINE, RequestResponseCycle

#: The type of an ASGI message with a complete response: `status`, `headers` and `body`. A server that accepts such messages has
#: this type as a key in `scope["extensions"]`. The headers must contain content-length.
COMPLETE_RESPONSE = "shortener.http.response"
EXTENSIONS: Mapping[str, Mapping[str, Any]] = {COMPLETE_RESPONSE: {}}
#: Characters that must not occur in a header, because they could split one response into two.
_CONTROL_CHARACTERS = bytes({*range(32), 127} - {9})


class ClientConnection(Protocol):
    """The connection of a request. Its attributes are the same as in uvicorn's protocols. `RedirectProtocol` adds the methods."""

    flow: Any
    logger: Any
    transport: Any
    server_state: Any

    def send(self, data: bytes) -> None:
        """Send bytes to the client."""
        ...

    def close_after_body(self) -> None:
        """Close the connection after the rest of the request's body has arrived."""
        ...

    def on_response_complete(self) -> None:
        """Continue with the next request."""
        ...


class RequestCycle(RequestResponseCycle):
    """A request of one connection and its response. The attributes are the same as in uvicorn's class.

    `expects_continue` is true if the client waits for 100 Continue before it sends the body."""

    def __init__(self, connection: ClientConnection, scope: Any, *, expects_continue: bool, keep_alive: bool) -> None:
        self._connection = connection
        self._head = b""  # the head of a response, which waits here for the first part of the body
        self._closes_at_once = expects_continue
        self.scope = scope
        self.flow = connection.flow
        self.logger = connection.logger
        self.message_event = asyncio.Event()
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expects_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.chunked_encoding: bool | None = None
        self.expected_content_length = 0

    # uvicorn's class calls the following methods on its attribute `transport`.

    @property
    def transport(self) -> Any:  # type: ignore[override]  # uvicorn assigns a transport
        """This object itself: it has those methods of a transport that uvicorn calls."""
        return self

    def write(self, data: bytes) -> None:
        self._connection.send(data)

    def is_closing(self) -> bool:
        closing: bool = self._connection.transport.is_closing()
        return closing

    def close(self) -> None:
        """Send the head of the response if it is not sent yet, and close the connection."""
        if self._head:
            self._connection.send(self._head)
            self._head = b""
        if self._closes_at_once:
            self._connection.transport.close()
        else:
            self._connection.close_after_body()

    # The following method is the ASGI function `send`.

    async def send(self, message: Any) -> None:
        """Send a message of ASGI, or a complete response. Raise RuntimeError for a message that violates the protocol."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start" and kind != COMPLETE_RESPONSE:
                raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{kind}'.")
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._serialize_head(message["status"], message.get("headers", ()))
            if kind == COMPLETE_RESPONSE:
                self._send_body(message["body"], more_body=False)
        elif self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")
        elif kind != "http.response.body":
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")
        else:
            self._send_body(message.get("body", b""), more_body=message.get("more_body", False))

    def _serialize_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return the head of the response as bytes. Two properties of the headers are also stored: the length of the body, and
        whether the connection stays open."""
        lines = []
        closes = False
        for name, value in headers:
            name = _check_name(name)
            lines.append(b"%s: %s\r\n" % (name, value))
            if name == b"content-length" and self.chunked_encoding is None:
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                self.expected_content_length = 0
                self.chunked_encoding = True
            elif name == b"connection" and b"close" in [token.lower().strip() for token in value.split(b",")]:
                closes = True
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        joined = b"".join(lines)
        if len(joined.translate(None, _CONTROL_CHARACTERS)) != len(joined) - 2 * len(lines):
            raise RuntimeError("Invalid HTTP header value.")
        return b"%s%s\r\n" % (_first_lines(status, tuple(self._connection.server_state.default_headers)), joined)

    def _send_body(self, body: bytes, *, more_body: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            data = b""
        elif self.chunked_encoding:
            data = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            if not more_body:
                data += b"0\r\n\r\n"
        else:
            if len(body) > self.expected_content_length:
                raise RuntimeError("Response content longer than Content-Length")
            self.expected_content_length -= len(body)
            data = body
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._connection.send(data)
        if not more_body:
            if self.expected_content_length != 0:
                raise RuntimeError("Response content shorter than Content-Length")
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.close()
            self._connection.on_response_complete()


@lru_cache(maxsize=256)
def _check_name(name: bytes) -> bytes:
    """Return the name of a header in lower case. Raise RuntimeError if a character is not permitted."""
    if HEADER_RE.search(name):
        raise RuntimeError("Invalid HTTP header name.")
    return name.lower()


@lru_cache(maxsize=64)
def _first_lines(status: int, default_headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Return the status line and the headers that uvicorn adds to each response. uvicorn changes these headers once a second."""
    return b"".join((STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in default_headers)))
