"""The end of a server without lost requests.

When the process begins to stop, it asks its clients to close their connections (`announce_close`). Otherwise a client could send a
request on an idle connection at the moment at which the server closes it. When the server stops listening, it first accepts the
connections that wait in the queue of the listening socket, and gives the requests on the way up to LAST_REQUEST_SECONDS to arrive
(`accept_waiting`). Otherwise the operating system would reset these connections. A connection that arrives between the last accept
and the close of the socket, within microseconds, is still reset.
"""
# Tested by tests/server/test_graceful_close.py

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

LAST_REQUEST_SECONDS = 0.5
_STEP_SECONDS = 0.1
_CLOSE = (b"connection", b"close")


def announce_close(server: uvicorn.Server) -> None:
    """Add `Connection: close` to all following responses. The server still accepts requests. A second call has no effect."""
    config, state = server.config, server.server_state
    if _CLOSE not in config.encoded_headers:
        config.encoded_headers = [*config.encoded_headers, _CLOSE]
        state.default_headers = [*state.default_headers, _CLOSE]


async def accept_waiting(server: uvicorn.Server, listeners: Sequence[socket.socket]) -> None:
    """Stop listening on the sockets of `server`, accept the connections that wait there, and wait up to LAST_REQUEST_SECONDS
    for their requests."""
    announce_close(server)
    copies = [socket.socket(fileno=os.dup(one.fileno())) for one in listeners]
    for one in server.servers:
        one.close()  # the event loop accepts no more; the copies keep the queues
    for listener in listeners:
        listener.close()
    waiting: list[socket.socket] = []
    for copy in copies:
        copy.setblocking(False)
        with copy, suppress(OSError):  # BlockingIOError: no connection waits
            while True:
                waiting.append(copy.accept()[0])
    loop, config = asyncio.get_running_loop(), server.config

    def new_protocol() -> asyncio.Protocol:
        protocol: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return protocol

    for connection in waiting:
        connection.setblocking(False)
        with suppress(OSError):  # the client has closed the connection
            await loop.connect_accepted_socket(new_protocol, connection)
    for step in range(round(LAST_REQUEST_SECONDS / _STEP_SECONDS)):
        await asyncio.sleep(_STEP_SECONDS)
        if step and all(getattr(one, "cycle", None) is not None for one in server.server_state.connections):
            return  # every open connection has sent a request
