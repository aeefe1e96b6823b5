"""This module serializes HTTP/1.1 responses to redirect requests as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE

from shortener.clicks.redirect import REDIRECT_HEADERS, RawResponse

FOUND = 302


def serialize_response(
    response: RawResponse,
    default_headers: Sequence[tuple[bytes, bytes]],
    *,
    request_id: bytes,
    is_head: bool,
    keep_alive: bool,
) -> bytes:
    """Return the bytes of the complete response.

    `default_headers` are the headers that uvicorn adds to each response, such as Date. If `is_head` is true, leave out the body.
    `request_id` is the value of X-Request-Id, which `request_ids.request_id` has checked.

    Raise ValueError if the value of a header contains a control character, which could split one response into two."""
    status, headers, body = response
    # In a 302 response, the last header is Location. Only its value can vary, so only this value is checked.
    for _, value in headers[-1:] if status == FOUND else headers:
        if HEADER_VALUE_RE.search(value):
            raise ValueError("The value of a header contains a control character.")
    if status == FOUND and keep_alive:
        return _redirect_start(tuple(default_headers)) + headers[-1][1] + b"\r\nx-request-id: " + request_id + b"\r\n\r\n"
    lines = [STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in (*default_headers, *headers))]
    lines.append(b"x-request-id: %s\r\n" % request_id)
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    return b"".join((*lines, b"\r\n", b"" if is_head else body))


@lru_cache(maxsize=4)
def _redirect_start(default_headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Return the bytes of a 302 response before the value of Location, its last header. They are cached, because uvicorn changes
    the default headers only once a second."""
    lines = (b"%s: %s\r\n" % header for header in (*default_headers, *REDIRECT_HEADERS))
    return b"".join((STATUS_LINE[FOUND], *lines, b"location: "))
