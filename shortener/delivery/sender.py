"""This module sends HTTP requests to receivers, each within a time limit and with limited memory.

`Sender.send` returns a `SendResult` within the time limit, even if the receiver hangs, sends slowly, sends too much or redirects.
It raises only `CancelledError`, when the caller is cancelled. `http_sender.py` describes how requests are sent.

The HTTP status counts as soon as the status line was received, even if the rest of the response is malformed, too long or
incomplete. If the receiver has just closed an idle connection, the request is sent again at once on another connection.

If this host caused the failure (its resolver is down, or no sockets are left), `is_local` is true, and the failure does not count
against the receiver. Every other failure counts against the receiver, even if the exception has no error number. No text in a
result contains the URL of the request.

The import of the HTTP client, aiohttp, takes a tenth of a second and 9 MB of memory. Therefore a thread imports it when the first
request is sent.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shortener import __version__
from shortener.delivery.guard import Guard, Lookup
from shortener.delivery.http_exchange import OutgoingRequest, SendResult
from shortener.lean_imports import exclude_imported_objects
from shortener.model import Clock, utcnow

if TYPE_CHECKING:
    from shortener.delivery.http_sender import HttpSender

#: The header User-Agent of all requests.
USER_AGENT = f"sms-shortener/{__version__}"


class Sender:
    """A sender of up to `limit` HTTP requests at a time.

    Create and use it on the same event loop. Call `close` at the end, or use it in `async with`."""

    def __init__(
        self,
        guard: Guard,
        *,
        user_agent: str,
        limit: int,
        clock: Clock = utcnow,
        lookup: Lookup | None = None,
        proxy: str = "",
    ) -> None:
        """Create a sender. `proxy` is the URL of a proxy for all requests; an empty text means no proxy.

        The IP address of the proxy may be private. The guard still checks the hosts of the requests."""
        self._open = partial(_open, guard, user_agent=user_agent, limit=limit, clock=clock, lookup=lookup, proxy=proxy)
        self._opening = asyncio.Lock()
        self._http: HttpSender | None = None
        self.is_closed = False

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_open(self) -> bool:
        """Whether the HTTP client is imported. If it is not, no request was sent."""
        return self._http is not None

    async def close(self) -> None:
        """Close all connections. Finish or cancel the running requests first, because they fail otherwise."""
        self.is_closed = True
        if self._http is not None:
            await self._http.close()

    def send(self, request: OutgoingRequest, deadline: float) -> Awaitable[SendResult]:
        """Send a request and return the result. `deadline` limits the time in seconds, including the wait for a free slot.

        The first request also waits until the HTTP client is imported."""
        return self._send_first(request, deadline) if self._http is None else self._http.send(request, deadline)

    async def _send_first(self, request: OutgoingRequest, deadline: float) -> SendResult:
        """Import the HTTP client in a thread, so that clicks do not wait for the import, and send the request."""
        async with self._opening:
            if self._http is None:
                await asyncio.to_thread(_import_client)
                self._http = self._open()
        return await self._http.send(request, deadline)


def _import_client() -> None:
    """Import the HTTP client and read the certificate authorities of this machine. Reading them takes as long as the import."""
    from shortener.delivery.receiver_connection import default_tls_context

    importlib.import_module("shortener.delivery.http_sender")
    default_tls_context()
    exclude_imported_objects()


def _open(guard: Guard, **options: Any) -> HttpSender:
    from shortener.delivery.http_sender import HttpSender

    return HttpSender(guard, **options)
