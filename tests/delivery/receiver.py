"""This module provides a local HTTP server that behaves like a faulty receiver and sends exactly the given bytes."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.receiver import LoopbackServer

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Receiver(LoopbackServer):
    """A local server that stores each request as (head, body) and handles it with the function `behaviour`."""

    def __init__(self, behaviour: Behaviour, scheme: str = "http") -> None:
        super().__init__()
        self.behaviour = behaviour
        self.scheme = scheme
        self.requests: list[tuple[bytes, bytes]] = []
        self.received = asyncio.Event()

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.requests.append((head, await reader.readexactly(length)))
            self.received.set()
            await self.behaviour(reader, writer)


@asynccontextmanager
async def receiver(behaviour: Behaviour, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    server = Receiver(behaviour, "https" if tls else "http")
    async with server.listen(host, tls):
        yield server


def send_bytes(*parts: bytes) -> Behaviour:
    """Return a behaviour that sends the given bytes and leaves the connection open."""

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
        await writer.drain()

    return behaviour


def respond(status: int, body: bytes = b"ok", **headers: str) -> Behaviour:
    lines = [f"HTTP/1.1 {status} Word".encode()]
    lines += [f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items()]
    if status in (101, 204, 304):
        body = b""
    else:
        lines.append(b"Content-Length: %d" % len(body))
    return send_bytes(b"\r\n".join([*lines, b"", body]))


def then(first: Behaviour, *others: Behaviour) -> Behaviour:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for step in (first, *others):
            await step(reader, writer)

    return behaviour


def drip(piece: bytes, seconds: float = 0.02) -> Behaviour:
    """Return a behaviour that sends the same bytes without end, with a pause of `seconds` between two repetitions."""

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(seconds)

    return behaviour


def flood(piece: bytes) -> Behaviour:
    """Return a behaviour that sends the same bytes without end, as fast as the client reads them."""

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # let other tasks run even if the send buffer never becomes full

    return behaviour


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
