"""An HTTP request to a receiver, and the result of sending it."""

# Tested by tests/delivery/test_sender.py

from __future__ import annotations

import ssl
from collections.abc import Mapping

from shortener.model import record

EXCERPT_BYTES = 1024


@record
class OutgoingRequest:
    """An HTTP request to send. `url` is ASCII and is sent unchanged. A GET request has no body.

    `may_repeat` states whether the request is sent again if the receiver closed the idle connection just before the request. If it
    is False, the request is sent on a new connection, which no other request uses."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None
    tls: ssl.SSLContext | None = None  # a TLS context with a client certificate; None: no client certificate
    may_repeat: bool = True


@record
class SendResult:
    """The result of sending a request.

    `error` is one of `send_failures.ERRORS` if the response is missing (`status` is None), malformed or incomplete; otherwise it is
    None. `detail` is a text that explains the error. `body` contains the first 64 KiB of the response body, as received.
    `retry_after` is the time in the `Retry-After` header in seconds.
    """

    status: int | None
    body: bytes
    error: str | None
    detail: str
    milliseconds: int
    retry_after: float | None = None
    is_local: bool = False
    may_have_arrived: bool = False  # whether the request was sent, at least in part, so that the receiver may have processed it
    is_repeated: bool = False  # whether the request was sent again, because an idle connection ended before a response

    @property
    def excerpt(self) -> bytes:
        """The first KiB of the response body, which is stored with the attempt."""
        return self.body[:EXCERPT_BYTES]
