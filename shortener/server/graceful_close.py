"""The end of a server without lost requests.

When the process begins to stop, it asks its clients to close their connections (`announce_close`). Otherwise a client could send
a request on an idle connection at the moment at which the server closes it.

Connections may wait in the queue of the listening socket. When the server stops listening, it first accepts them
(`accept_waiting`), because the operating system would otherwise reset them. Then it waits up to LAST_REQUEST_SECONDS for requests
that are on the way (`wait_for_requests`).

If other processes continue to listen on the same socket, the server leaves the queue to them (`leave_queue`). If all of them
stop, each process accepts what waits, so that the queue is empty at the end.

Two kinds of connections are still reset: a connection that arrives in the microseconds between the last accept and the close of
the socket, and a connection whose handshake is incomplete at that moment.
"""
# Tested by tests/server/test_graceful_close.py

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

import uvicorn

LAST_REQUEST_SECONDS = 0.5
_STEP_SECONDS = 0.1
_CLOSE = (b"connection", b"close")
#: Errors of `accept` that concern only one connection, for example because its client has closed it. Other connections may wait
#: behind it.
_ERRORS_OF_ONE_CONNECTION = {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH}


class GracefulServer(uvicorn.Server):
    """uvicorn's server with a stop that loses no request.

    `listeners_left` is True if other processes continue to listen on the sockets of this server (see `leave_queue`)."""

    listeners_left = False

    def is_stopping(self) -> bool:
        """Return whether the stop has begun. Responses then ask clients to close their connections."""
        return self.should_exit

    async def on_tick(self, counter: int) -> bool:
        if self.is_stopping():
            announce_close(self)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: object) -> None:
        """Begin a graceful stop when a signal arrives.

        In uvicorn, a second SIGINT forces the exit. Here it does not, because a forced exit drops the requests in flight and
        skips the lifespan shutdown of the application. A stop cannot hang: cli/stopping.py limits its duration."""
        self._captured_signals.append(sig)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        announce_close(self)
        if not self.listeners_left:
            await accept_waiting(self, sockets or [])
        await wait_for_requests(self)
        await super().shutdown(sockets)


def announce_close(server: uvicorn.Server) -> None:
    """Add `Connection: close` to all following responses. The server still accepts requests. A second call has no effect."""
    config, state = server.config, server.server_state
    if _CLOSE not in config.encoded_headers:
        config.encoded_headers = [*config.encoded_headers, _CLOSE]
        state.default_headers = [*state.default_headers, _CLOSE]


def leave_queue(server: GracefulServer, listeners: Sequence[socket.socket]) -> None:
    """Stop listening at once. Other processes accept the connections that wait on these sockets."""
    server.listeners_left = True
    _close(server, listeners)


async def accept_waiting(server: uvicorn.Server, listeners: Sequence[socket.socket]) -> None:
    """Stop listening on the sockets of `server`, and accept the connections that wait there."""
    copies = [socket.socket(fileno=os.dup(one.fileno())) for one in listeners]
    _close(server, listeners)  # the event loop stops accepting; the copies of the sockets keep the queues of connections open
    waiting: list[socket.socket] = []
    for copy in copies:
        with copy:
            copy.setblocking(False)
            waiting += _accept_all(copy)
    loop, config = asyncio.get_running_loop(), server.config

    def new_protocol() -> asyncio.Protocol:
        protocol: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]  # uvicorn declares a plain asyncio.Protocol
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return protocol

    for connection in waiting:
        connection.setblocking(False)
        with suppress(OSError):  # the client has closed the connection
            await loop.connect_accepted_socket(new_protocol, connection)


async def wait_for_requests(server: uvicorn.Server) -> None:
    """Wait for requests that are on the way: until no connection waits for a request, for at least two pauses of _STEP_SECONDS and
    at most LAST_REQUEST_SECONDS."""
    for step in range(round(LAST_REQUEST_SECONDS / _STEP_SECONDS)):
        await asyncio.sleep(_STEP_SECONDS)
        if step and not any(_expects_request(one) for one in server.server_state.connections):
            return


def _expects_request(connection: object) -> bool:
    """Return whether the connection waits for a request: no request has arrived, or the head of the next one is incomplete."""
    return getattr(connection, "cycle", None) is None or getattr(connection, "incomplete_head", None) is not None


def _accept_all(listener: socket.socket) -> list[socket.socket]:
    waiting = []
    while True:
        try:
            waiting.append(listener.accept()[0])
        except OSError as error:
            if error.errno not in _ERRORS_OF_ONE_CONNECTION:
                return waiting  # no connection waits (BlockingIOError), or the process cannot open another file


def _close(server: uvicorn.Server, listeners: Sequence[socket.socket]) -> None:
    for one in server.servers:
        one.close()
    for listener in listeners:
        listener.close()
