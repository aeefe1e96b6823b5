"""The receiver of `shortener listen` and `shortener demo`. It plays the role of the customer's endpoint.

It stores every request unchanged, and checks the signature if it has a secret. The field `fail` is the number of requests that
get the response 500. All later requests get 200. Each response is delayed by `delay` seconds.
"""
# Tested by tests/acceptance/test_listen.py

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any

from shortener.model import Clock, mutable_record, record, utcnow
from shortener.signatures import SignatureError, SigningSecret, verify

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_BODY_BYTES = 1024 * 1024


@record
class ReceivedRequest:
    """One received request. `signature` is the result of the signature check as a text. `status` is the HTTP status of the
    receiver's response."""

    at: datetime
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    signature: str
    status: int


@mutable_record
class Receiver:
    """An ASGI application that appends each request to `received` and calls `on_request` with it."""

    secrets: Sequence[SigningSecret] = ()
    fail: int = 0
    delay: float = 0.0
    clock: Clock = utcnow
    on_request: Callable[[ReceivedRequest], None] = lambda request: None
    received: list[ReceivedRequest] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body") or len(body) > MAX_BODY_BYTES:
                break
        if self.delay:
            await asyncio.sleep(self.delay)  # the delay simulates a slow endpoint
        status = 200
        if self.fail > 0:
            self.fail -= 1
            status = 500
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = scope["query_string"].decode("latin-1")
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        request = ReceivedRequest(
            self.clock(),
            scope["method"],
            f"{path}?{query}" if query else path,
            headers,
            body,
            self._check(headers, body),
            status,
        )
        self.received.append(request)
        self.on_request(request)
        self._arrived.set()
        content = b"OK\n" if status == 200 else b"fails on request\n"
        response_headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": response_headers})
        await send({"type": "http.response.body", "body": content})

    async def wait_for(self, number: int, seconds: float) -> ReceivedRequest:
        """Return the request with this number, counted from 0. Raise TimeoutError if it does not arrive within `seconds`."""
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
