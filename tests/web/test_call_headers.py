"""Tests that the look-up of a single request header returns the same value as Starlette."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from shortener.web.call_headers import find_header


@pytest.mark.parametrize("name", ["x-api-key", "accept", "content-type", "empty"])
def test_the_request_headers_have_the_same_values_as_in_starlette(name: str) -> None:
    headers = [(b"x-api-key", b"first"), (b"x-api-key", b"second"), (b"accept", "é".encode("latin-1")), (b"empty", b"")]
    request = Request({"type": "http", "headers": headers})
    assert find_header(request, name.encode()) == request.headers.get(name)
