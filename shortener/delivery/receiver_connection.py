"""This module defines the connection to a receiver. The connection parses the HTTP status line itself and limits the bytes of a
response."""

# Tested by tests/delivery/test_sender.py

from __future__ import annotations

import asyncio
import functools
import os
import re
import ssl
from contextvars import ContextVar
from dataclasses import field
from typing import Any

from aiohttp.client_proto import ResponseHandler

from shortener.delivery.send_failures import ResponseTooLarge
from shortener.model import mutable_record

MAX_BODY_BYTES = 64 * 1024
#: One response may have at most this many bytes, including its headers and interim (1xx) responses.
MAX_WIRE_BYTES = 2 * MAX_BODY_BYTES


@mutable_record
class SendState:
    """The state of a request and the part of its response that has been received so far.

    `is_sent` is true if a connection existed, so that the request was sent at least in part. `is_reused` is true if the connection
    was used for another request before. `is_repeated` is true if the request was sent again, because an idle connection ended
    before a response. `has_data` is true if the receiver has sent any byte for this request. `is_tunnelled` is true if the first
    status line on the connection is the response of a proxy to CONNECT. `raw_response` contains the received bytes after the
    status line if the status is in `_THROTTLING`."""

    has_slot: bool = False
    is_sent: bool = False
    is_reused: bool = False
    is_repeated: bool = False
    has_data: bool = False
    is_tunnelled: bool = False
    status: int | None = None
    retry_after: float | None = None
    body: bytearray = field(default_factory=bytearray)
    raw_response: bytearray = field(default_factory=bytearray)

    def find_retry_after(self) -> str | None:
        """Return the Retry-After header of a response whose headers aiohttp cannot parse, because they are malformed, incomplete or
        too long. Return None if the header was not received, or if the status is not in `_THROTTLING`."""
        end = _END_OF_HEAD.search(b"\n" + self.raw_response)
        found = _RETRY_AFTER.search(self.raw_response, 0, len(self.raw_response) if end is None else end.end() - 1)
        return None if found is None else found[1].decode("latin-1")


#: The statuses whose Retry-After header the service honours.
_THROTTLING = frozenset({429, 503})
_RETRY_AFTER = re.compile(rb"^retry-after:[ \t]*([^\r\n]*?)[ \t]*\r?\n", re.IGNORECASE | re.MULTILINE)
_END_OF_HEAD = re.compile(rb"\n\r?\n")

#: The state of the request that the current task sends. aiohttp offers no other way to pass this state to the connection of the
#: request.
CURRENT_SEND: ContextVar[SendState] = ContextVar("current_send")


class _StatusLine:
    """A parser that finds the HTTP status in the bytes of a response and skips interim (1xx) responses."""

    _PATTERN = re.compile(rb"HTTP/\d\.\d (\d{3})(?: [^\r\n]*)?\r?\n")
    _MAX_BYTES = 8192

    def __init__(self) -> None:
        self._buffer = b""
        self.is_found = False
        self.rest = b""  # the bytes that follow the status line and were received together with its end

    def feed(self, data: bytes) -> int | None:
        """Add received bytes. Return the HTTP status if these bytes completed the status line, otherwise None."""
        self._buffer += data
        while match := self._PATTERN.match(self._buffer):
            status = int(match[1])
            if status >= 200 or status == 101:
                self.is_found = True
                self.rest = self._buffer[match.end() :]
                return status
            end = _END_OF_HEAD.search(self._buffer)
            if end is None:
                break
            self._buffer = self._buffer[end.end() :]
        if len(self._buffer) > self._MAX_BYTES:
            self.is_found = True  # the bytes are not a status line; the parser of aiohttp raises the error
        return None


class ReceiverConnection(ResponseHandler):
    """A connection that parses the status line itself and closes after `MAX_WIRE_BYTES` bytes for one request.

    This is necessary because the parser of aiohttp returns no status if it rejects the rest of the response, and because aiohttp
    does not limit interim (1xx) responses."""

    _left = MAX_WIRE_BYTES
    _requests = 0
    _state = SendState()
    _status_line = _StatusLine()

    def set_response_params(self, **params: Any) -> None:
        # aiohttp calls this method once for each request on the connection, in the task of the request.
        self._left = MAX_WIRE_BYTES
        self._state = CURRENT_SEND.get()
        self._status_line = _StatusLine()
        self._state.is_sent = True
        self._state.is_reused = self._requests > 0
        self._requests += 1
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if data and self._requests:
            self._state.has_data = True
            if not self._state.is_tunnelled:
                self._read_status(data)
        if self._left >= 0:
            super().data_received(data)
            return
        error = ResponseTooLarge(f"the response is longer than {MAX_WIRE_BYTES} bytes")
        self.set_exception(error)
        if self._payload is not None:
            self._payload.set_exception(error)
        self.abort()

    def _read_status(self, data: bytes) -> None:
        state = self._state
        if self._status_line.is_found:
            if state.status in _THROTTLING:
                state.raw_response += data
        elif (status := self._status_line.feed(data)) is not None:
            state.status = status
            if status in _THROTTLING:
                state.raw_response += self._status_line.rest


def connection_factory(loop: asyncio.AbstractEventLoop) -> functools.partial[ResponseHandler]:
    """Return the function with which aiohttp creates its connections."""
    make: type[ResponseHandler] = ReceiverConnection
    return functools.partial(make, loop=loop)


def default_tls_context() -> ssl.SSLContext:
    """Return the TLS context that verifies receivers with the certificate authorities of this machine.

    All senders share it, because loading the authorities takes tens of milliseconds."""
    return _tls_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@functools.lru_cache(maxsize=1)
def _tls_context(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    """Return the TLS context for these values of SSL_CERT_FILE and SSL_CERT_DIR. OpenSSL reads both variables itself, so the
    arguments are only the key of the cache."""
    return ssl.create_default_context()
