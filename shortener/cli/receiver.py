"""A local receiver: what a customer's endpoint would be, for `shortener listen` and `shortener demo`.

Keeps every request as it came, checks its signature when it knows the secret, and answers as told: the first `fail` requests
with 500, each after `delay` seconds.
"""
# Tested by tests/acceptance/test_listen.py

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shortener.delivery.signatures import SignatureError, verify
from shortener.model import Clock, utcnow

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_BODY = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Received:
    """One request. `signature` says what came of checking it."""

    at: datetime
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    signature: str
    answered: int


@dataclass(slots=True)
class Receiver:
    """An ASGI application; `on_request` is told of each request, `received` keeps them."""

    secrets: Sequence[bytes] = ()
    fail: int = 0
    delay: float = 0.0
    clock: Clock = utcnow
    on_request: Callable[[Received], None] = lambda received: None
    received: list[Received] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body") or len(body) > MAX_BODY:
                break
        if self.delay:
            await asyncio.sleep(self.delay)  # as a slow endpoint does
        status = 200
        if self.fail > 0:
            self.fail -= 1
            status = 500
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = scope["query_string"].decode("latin-1")
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        received = Received(
            self.clock(),
            scope["method"],
            f"{path}?{query}" if query else path,
            headers,
            body,
            self._check(headers, body),
            status,
        )
        self.received.append(received)
        self.on_request(received)
        self._arrived.set()
        answer = b"OK\n" if status == 200 else b"told to fail\n"
        kind = [(b"content-type", b"text/plain"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": kind})
        await send({"type": "http.response.body", "body": answer})

    async def wait_for(self, number: int, seconds: float) -> Received:
        """The request of that number (from 0), once it is there. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while len(self.received) <= number:
                self._arrived.clear()
                await self._arrived.wait()
        return self.received[number]

    def _check(self, headers: dict[str, str], body: bytes) -> str:
        if not self.secrets:
            signed = any(name.lower() in ("webhook-signature", "x-webhook-signature") for name in headers)
            return "not checked: no secret given" if signed else "not signed"
        try:
            verify(headers, body, self.secrets, self.clock())
        except SignatureError as error:
            return f"WRONG: {error}"
        return "right"
