"""An HTTP receiver on loopback. It records each request, and returns the reply that the test has chosen."""

from __future__ import annotations

import asyncio
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from tests.servers import PATIENCE


@dataclass(frozen=True, slots=True)
class Request:
    """One received request. The keys of `headers` are names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """The response to one request. If `hang` is true, the receiver keeps the connection open and never responds. If `close` is
    true, it closes the connection without a response, so the client must assume that the request may have had its effect. The
    receiver waits until `after` is set before it responds or closes the connection. None: it does not wait."""

    status: int = 200
    body: bytes = b"OK"
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    close: bool = False
    after: asyncio.Event | None = None


class LoopbackServer(ABC):
    """A TCP server on loopback. It runs `handle` for each connection and counts the connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client closes it."""

    @asynccontextmanager
    async def listen(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        """Accept connections on a free port until the context ends. `port` is the number of this port."""
        server = await asyncio.start_server(self._serve, host, 0, ssl=tls, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.handle(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass
        finally:
            self._tasks.discard(task)
            with suppress(OSError):
                writer.transport.abort()


class Receiver(LoopbackServer):
    """A receiver that records requests and returns replies.

    A reply is a `Reply` or a status. The receiver searches in this order: the entry of `by_path` for the request target, the next
    entry of `replies`, `default_reply`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.replies: list[Reply | int] = []
        self.default_reply: Reply | int = 200
        self.by_path: dict[str, Reply | int] = {}
        self._arrived = asyncio.Event()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def take(self) -> list[Request]:
        """Return the requests that arrived after the last call of `take`."""
        taken, self.requests = self.requests, []
        return taken

    async def wait_for(self, number: int) -> list[Request]:
        """Wait until `number` requests have arrived, and return all requests. Raise TimeoutError after PATIENCE seconds."""
        async with asyncio.timeout(PATIENCE):
            while len(self.requests) < number:
                self._arrived.clear()
                await self._arrived.wait()
        return self.requests

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await _read(reader)
            self.requests.append(request)
            self._arrived.set()
            reply = self._reply(request)
            if reply.hang:
                await asyncio.Event().wait()
            if reply.after is not None:
                await reply.after.wait()
            if reply.close:
                return
            headers = {"content-length": str(len(reply.body)), **reply.headers}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"HTTP/1.1 {reply.status} Reply\r\n{lines}\r\n".encode() + reply.body)
            await writer.drain()

    def _reply(self, request: Request) -> Reply:
        reply = self.by_path.get(request.target)
        if reply is None:
            reply = self.replies.pop(0) if self.replies else self.default_reply
        if isinstance(reply, int):
            return Reply(reply, b"" if reply == 204 else b"OK")
        return reply


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")[:-2]
    method, target, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method, target, headers, await reader.readexactly(int(headers.get("content-length", 0))))


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with receiver.listen():
        yield receiver
