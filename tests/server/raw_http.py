"""Helpers that run a server, send raw bytes to it and read every byte of the responses."""

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import select

from shortener.accounts.administration import create_application
from shortener.cli.serve import uvicorn_config
from shortener.container import Service, open_service
from shortener.messages.rewrite_item import RewriteItem
from shortener.server.application import HttpApplication
from shortener.server.http_protocol import RedirectProtocol, ServerConfig
from shortener.settings import Settings
from shortener.storage import schema
from tests.conftest import Clock
from tests.servers import PATIENCE

HOST = b"s.example"
AGENT = b"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 Version/18.6 Mobile/15E148 Safari/604.1"
#: This request closes the connection. Its response proves that the server read the previous request to its last byte.
LAST_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class PathRecorder(HttpApplication):
    """An ASGI application that records the path of each request and then passes the request to the application of the service."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        await super().__call__(scope, receive, send)


@dataclass
class RunningServer:
    """A uvicorn server on a free port, and the clients that a test has connected to it."""

    server: uvicorn.Server
    config: ServerConfig
    app: PathRecorder
    port: int
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, *, receive_buffer: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the server. `receive_buffer` is the number of bytes that the kernel buffers for a client that does
        not read."""
        client = socket.socket()
        client.setblocking(False)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=client)
        self.clients.append(writer)
        return reader, writer

    async def only_connection(self) -> RedirectProtocol:
        """Return the protocol object of the server's only open connection."""
        await wait_until(lambda: len(self.server.server_state.connections) == 1)
        (connection,) = self.server.server_state.connections
        assert isinstance(connection, RedirectProtocol)
        return connection

    async def exchange(self, request: bytes) -> bytes:
        """Send a request and then LAST_REQUEST. Return all bytes of the responses. In them, dates and request ids are replaced by
        fixed texts."""
        reader, writer = await self.connect()
        writer.write(request)
        response = await read_response(reader, head=request.startswith(b"HEAD"))
        with contextlib.suppress(ConnectionError):
            writer.write(LAST_REQUEST)
            response += await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        return without_date(response)


@contextlib.asynccontextmanager
async def run_server(
    service: Service, protocol: type[Any] = RedirectProtocol, *, request_timeout: float = 20, **more: Any
) -> AsyncIterator[RunningServer]:
    """Run a server for the service.

    `protocol` is RedirectProtocol, or uvicorn's HttpToolsProtocol as the reference. `more` contains settings of uvicorn."""
    app = PathRecorder(service)
    settings = service.settings.model_copy(update={"port": 0, "request_timeout": request_timeout})
    config = uvicorn_config(app, settings, **more)
    config.http = protocol
    config.lifespan = "off"  # the `service` fixture starts and closes the service
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    await server.on_tick(0)
    running = RunningServer(server, config, app, server.servers[0].sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        for writer in running.clients:
            writer.transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                while server.server_state.connections or server.server_state.tasks:
                    await asyncio.sleep(0.001)  # let the server notice that its clients have gone
        if server.server_state.connections or server.server_state.tasks:
            await asyncio.wait_for(server.shutdown(), PATIENCE)
        for listener in server.servers:  # `shutdown` of a server without connections would wait for 0.1 seconds
            listener.close()


@contextlib.asynccontextmanager
async def open_isolated_service(folder: Path, clock: Clock) -> AsyncIterator[Service]:
    """Open a service on the running event loop.

    Tests call this function on an event loop of uvloop, because `shortener serve` uses one too. The transports of uvloop differ
    from those of asyncio."""
    values: Any = {"data_dir": folder, "base_url": "https://s.example"}
    service = await open_service(Settings(**values), clock=clock)
    try:
        service.recorder.start()
        await service.database.write(create_application, "brand", clock(), domain="https://go.brand.example")
        await service.directory.refresh()
        yield service
    finally:
        await service.close(grace=1)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)  # let the server run, which uses the same event loop


async def read_response(reader: asyncio.StreamReader, *, head: bool = False) -> bytes:
    """Read one response and return its bytes. If `head` is true, the request was a HEAD request, so the response has no body."""
    async with asyncio.timeout(PATIENCE):
        start = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", start)
        return start + await reader.readexactly(0 if head or length is None else int(length[1]))


def without_date(response: bytes) -> bytes:
    """Return the response with fixed texts in place of the date and the generated request id. Two responses can then be
    compared."""
    response = re.sub(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", b"\r\ndate: ...\r\n", response)
    # To an invalid request, uvicorn responds with plain text and without an id, and this server with an error of the API. Both
    # texts are replaced by the same text.
    response = re.sub(
        rb"(HTTP/1.1 400 ).*?content-type: "
        rb"(?:application/json\r\ncontent-length: 107|text/plain; charset=utf-8\r\ncontent-length: 30)\r\nconnection: close\r\n.*",
        rb"\1Invalid HTTP request received.",
        response,
        flags=re.DOTALL,
    )
    return re.sub(rb"\r\nx-request-id: [0-9a-f]{12,16}\r\n", b"\r\nx-request-id: ...\r\n", response)


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def get(path: str | bytes, *headers: bytes, method: bytes = b"GET", host: bytes | None = HOST) -> bytes:
    """Return the bytes of a request for `path`. `host` is the value of the Host header; None leaves the header out."""
    path = path.encode() if isinstance(path, str) else path
    lines = [b"%s %s HTTP/1.1" % (method, path), *([b"Host: " + host] if host is not None else []), b"User-Agent: " + AGENT]
    return b"\r\n".join([*lines, *headers, b"", b""])


async def create_link(service: Service, application: int = 1, **more: Any) -> str:
    """Create a short link and return its path. `more` contains fields of `RewriteItem`."""
    item = RewriteItem(("+14085550100",), '#track("https://x.example/a?b=1#f")', **more)
    found = service.directory.application(application)
    assert found is not None
    (response,) = await service.rewriter.rewrite(found, [item])
    return "/" + str(response["links"][0]["code"])


async def stored_hits(service: Service) -> list[Any]:
    return list(await service.database.read(lambda c: c.execute(select(schema.hits).order_by(schema.hits.c.id)).all()))


@contextlib.asynccontextmanager
async def blocked_writes(service: Service) -> AsyncIterator[None]:
    """Block the thread that writes to the database while the block runs, so that no hit is stored."""
    release, begun = threading.Event(), threading.Event()

    def block(connection: object) -> None:
        begun.set()
        release.wait(2 * PATIENCE)

    blocker = asyncio.ensure_future(service.database.write(block))
    try:
        await wait_until(begun.is_set)
        yield
    finally:
        release.set()
        await blocker
