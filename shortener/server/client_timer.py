"""This module enforces the time limits of a client: for sending a request, for reading a response, and between two requests. Each
connection has one timer, which checks the connection every few seconds. Therefore a request needs no timer of its own.

- Between two requests, the client has `keep_alive` seconds, counted from the last response. The default of uvicorn is 5 seconds.
  Bytes that do not begin a request, such as empty lines or the rest of a discarded body, do not extend this time.
- If a check finds that the head of a request is incomplete, the head must be complete `keep_alive` seconds later.
- A body must be complete within REQUEST_TIMEOUT, plus one second for each 64 KiB that have arrived.
- The connection is closed if the client reads less than 1 KiB of a response per second during REQUEST_TIMEOUT.

A process that was suspended for some seconds has not read what its clients sent during this time, and its event loop runs the
timers before it reads. Therefore a connection is closed only if a second check, after the event loop has read, has the same result.
"""
# Tested by tests/server/test_http_protocol_limits.py

from __future__ import annotations

import asyncio
from asyncio.events import TimerHandle
from typing import Any, Protocol

BODY_BYTES_PER_SECOND = 64 * 1024
RESPONSE_BYTES_PER_SECOND = 1024
SECOND_CHECK_SECONDS = 0.05  # Before this time has passed, the event loop has read the bytes that had arrived at the first check.


class TimedConnection(Protocol):
    """The properties of a connection that its timer reads. All times are times of the event loop."""

    transport: asyncio.Transport
    flow: Any  # uvicorn's object for the flow control of the connection
    body_began: float  # the time when the body of the current request began
    body_bytes: int  # the number of bytes of the current body that have arrived
    bytes_queued: int  # the number of response bytes that the socket did not accept at once
    is_reading_body: bool

    @property
    def incomplete_head(self) -> Any: ...
    @property
    def waiting_since(self) -> float | None: ...
    def end_slow_client(self) -> None: ...


class ClientTimer:
    """The timer of one connection. `keep_alive` and `request_timeout` are in seconds."""

    __slots__ = (
        "_connection",
        "_handle",
        "_head",
        "_is_second_check",
        "_keep_alive",
        "_loop",
        "_request_timeout",
        "_unread_sent",
        "_unread_since",
    )

    def __init__(
        self, connection: TimedConnection, loop: asyncio.AbstractEventLoop, keep_alive: float, request_timeout: float
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._keep_alive = keep_alive
        self._request_timeout = request_timeout
        self._head: Any = None  # the head that was incomplete at the latest check
        self._unread_since: float | None = None  # the time of the event loop since which the client reads too slowly
        self._unread_sent = 0  # the number of bytes that had been sent at the time `_unread_since`
        self._is_second_check = False  # whether the latest check found that the client is too slow
        self._handle: TimerHandle = loop.call_later(keep_alive, self.check)

    @property
    def cancelled(self) -> bool:
        return self._handle.cancelled()

    def cancel(self) -> None:
        self._handle.cancel()

    def check(self) -> None:
        """Close the connection if two checks find that its client is too slow. Otherwise start the timer again."""
        now = self._loop.time()
        wait = self._seconds_left(now)
        self._handle.cancel()
        is_second_check, self._is_second_check = self._is_second_check, wait is None
        if wait is None and not is_second_check:
            wait = SECOND_CHECK_SECONDS
        elif wait is None:
            self._is_second_check = False
            self._connection.end_slow_client()
            # The connection may stay open, because the client reads nothing. Therefore the timer checks it again.
            wait = self._keep_alive
        self._handle = self._loop.call_later(wait, self.check)

    def _seconds_left(self, now: float) -> float | None:
        """Return the seconds until the next check, or None if the client is too slow."""
        connection = self._connection
        period = min(self._keep_alive, self._request_timeout)
        if connection.transport.get_write_buffer_size():
            return period if self._reads_fast_enough(now) else None
        self._unread_since = None
        if connection.is_reading_body:
            # While the application reads more slowly than the client sends, the client has no time limit.
            if connection.flow.read_paused:
                connection.body_began = now
                return period
            limit = self._request_timeout + connection.body_bytes / BODY_BYTES_PER_SECOND
            left = connection.body_began + limit - now
            return min(left, period) if left > 0 else None
        since = connection.waiting_since
        if since is None:
            return period
        head = connection.incomplete_head
        if head is not None:
            if head is self._head:
                return None
            self._head = head
            return self._keep_alive
        left = since + self._keep_alive - now
        return left if left > 0 else None

    def _reads_fast_enough(self, now: float) -> bool:
        sent = self._connection.bytes_queued - self._connection.transport.get_write_buffer_size()
        if self._unread_since is None or sent - self._unread_sent >= RESPONSE_BYTES_PER_SECOND * (now - self._unread_since):
            self._unread_since, self._unread_sent = now, sent
            return True
        return now - self._unread_since < self._request_timeout
