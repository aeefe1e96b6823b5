"""Tests of a server that is shutting down: it still answers the requests that clients have already sent."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import pytest
import uvicorn

from shortener.cli.serve import uvicorn_config
from shortener.server.graceful_close import GracefulServer, accept_waiting, announce_close, leave_queue
from shortener.settings import Settings

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def respond(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


async def started(config: uvicorn.Config, listener: socket.socket) -> GracefulServer:
    config.load()
    server = GracefulServer(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    return server


@pytest.fixture
async def server(listener: socket.socket) -> GracefulServer:
    return await started(uvicorn.Config(respond, lifespan="off", log_config=None, http="httptools"), listener)


async def read_response(client: socket.socket) -> bytes:
    """Return all bytes that the server sends until it closes the connection."""
    client.setblocking(False)
    found = b""
    while data := await asyncio.get_running_loop().sock_recv(client, 65536):
        found += data
    return found


async def test_a_connection_that_waits_in_the_queue_of_a_server_that_stops_gets_its_response(
    server: GracefulServer, listener: socket.socket
) -> None:
    clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
    for client in clients:
        client.sendall(REQUEST)
    await server.shutdown([listener])  # until this call, the event loop had no chance to accept the connections
    for client in clients:
        response = await read_response(client)
        assert response.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in response.lower()
        client.close()


async def test_a_request_that_arrives_on_an_idle_connection_when_the_server_stops_gets_its_response(
    server: GracefulServer, listener: socket.socket
) -> None:
    client = socket.create_connection(listener.getsockname())
    client.sendall(REQUEST)
    client.setblocking(False)
    assert b" 200 " in await asyncio.get_running_loop().sock_recv(client, 65536)
    client.sendall(REQUEST)  # the event loop has no chance to read this request before the stop
    await server.shutdown([listener])
    assert (await read_response(client)).startswith(b"HTTP/1.1 200 ")
    client.close()


async def test_responses_ask_clients_to_close_their_connection_after_the_stop_has_begun(
    server: GracefulServer, listener: socket.socket
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


async def test_a_server_leaves_the_queue_to_the_processes_that_continue(server: GracefulServer, listener: socket.socket) -> None:
    kept = socket.create_connection(listener.getsockname())
    kept.sendall(REQUEST)
    kept.setblocking(False)
    assert b" 200 " in await asyncio.get_running_loop().sock_recv(kept, 65536)
    other = listener.dup()  # in this way, another process would inherit the socket
    leave_queue(server, [listener])
    client = socket.create_connection(other.getsockname())
    client.sendall(REQUEST)
    kept.sendall(REQUEST)
    await server.shutdown([listener])
    assert (await read_response(kept)).startswith(b"HTTP/1.1 200 ")
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    other.setblocking(True)
    connection, _ = other.accept()  # the connection still waits
    for one in (connection, client, kept, other):
        one.close()


async def test_a_request_whose_head_arrives_in_parts_during_the_stop_gets_its_response(listener: socket.socket) -> None:
    class Application:
        app = None  # no application responds to redirects, so `__call__` gets all requests

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await respond(scope, receive, send)

    config = uvicorn_config(Application(), Settings())
    config.lifespan = "off"
    server = await started(config, listener)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(REQUEST)
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(REQUEST[:20])
    stop = asyncio.create_task(server.shutdown([listener]))
    await asyncio.sleep(0.35)  # longer than the shortest wait for requests
    writer.write(REQUEST[20:])
    assert b" 200 " in await reader.read()
    writer.close()
    await stop


async def test_a_connection_that_its_client_has_closed_does_not_hide_the_connections_behind_it(
    server: GracefulServer, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = socket.create_connection(listener.getsockname())
    client.sendall(REQUEST)
    accept, errors = socket.socket.accept, [ConnectionAbortedError(103, "aborted")]

    def accept_after_error(self: socket.socket) -> Any:
        if errors:
            raise errors.pop()
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", accept_after_error)
    await accept_waiting(server, [listener])
    assert not errors
    await server.shutdown([])
    assert (await read_response(client)).startswith(b"HTTP/1.1 200 ")
    client.close()


async def test_a_second_sigint_does_not_drop_the_requests_in_flight(server: GracefulServer, listener: socket.socket) -> None:
    for _ in range(2):
        server.handle_exit(signal.SIGINT, None)
    assert server.should_exit
    assert not server.force_exit
    await server.shutdown([listener])
