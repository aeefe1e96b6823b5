"""Tests that a server that stops responds to the requests that clients have already sent."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from shortener.server.graceful_close import accept_waiting, announce_close

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def respond(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Server(uvicorn.Server):
    """A server that stops as `shortener serve` does."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await accept_waiting(self, sockets or [])
        await super().shutdown(sockets)


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.fixture
async def server(listener: socket.socket) -> uvicorn.Server:
    config = uvicorn.Config(respond, lifespan="off", log_config=None, http="httptools")
    config.load()
    server = Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    return server


async def read_response(client: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    client.setblocking(False)
    found = b""
    while data := await asyncio.get_running_loop().sock_recv(client, 65536):
        found += data
    return found


async def test_a_connection_that_waits_in_the_queue_of_a_server_that_stops_gets_its_response(
    server: uvicorn.Server, listener: socket.socket
) -> None:
    clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
    for client in clients:
        client.sendall(REQUEST)
    await server.shutdown([listener])  # the event loop had no chance to accept the connections
    for client in clients:
        response = await read_response(client)
        assert response.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in response.lower()
        client.close()


async def test_a_request_that_arrives_on_an_idle_connection_when_the_server_stops_gets_its_response(
    server: uvicorn.Server, listener: socket.socket
) -> None:
    client = socket.create_connection(listener.getsockname())
    client.sendall(REQUEST)
    client.setblocking(False)
    assert b" 200 " in await asyncio.get_running_loop().sock_recv(client, 65536)
    client.sendall(REQUEST)  # the event loop has no chance to read it before the stop
    await server.shutdown([listener])
    assert (await read_response(client)).startswith(b"HTTP/1.1 200 ")
    client.close()


async def test_responses_ask_clients_to_close_their_connection_after_the_stop_has_begun(
    server: uvicorn.Server, listener: socket.socket
) -> None:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    for is_announced in (False, True):
        if is_announced:
            announce_close(server)
            announce_close(server)
        writer.write(REQUEST)
        response = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert response.count(b"connection: close") == is_announced
        await server.on_tick(10)
    writer.close()
    await server.shutdown([listener])
