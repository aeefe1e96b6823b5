"""This module finds a single header of a request, several times as fast as `Request.headers` of Starlette."""
# Tested by tests/web/test_call_headers.py

from __future__ import annotations

from starlette.requests import Request


def find_header(request: Request, name: bytes) -> str | None:
    """Return the value of the first header with this name, or None. `name` must be in lower case."""
    for found, value in request.scope["headers"]:
        if found == name:
            text: str = value.decode("latin-1")
            return text
    return None
