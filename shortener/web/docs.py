"""GET /openapi.json and GET /docs: the OpenAPI document, and the page that shows it.

The first request renders both documents; later requests get the same bytes. The server URL in the document has the host of
BASE_URL.
"""
# Tested by tests/web/test_openapi.py

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import orjson
from starlette.responses import Response

from shortener.urls import parse_base_url
from shortener.web.endpoint import Call, Caller, Endpoint
from shortener.web.openapi import Document, document

_TAG = "Operation"


def with_documentation(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Return `endpoints` with two more endpoints: the OpenAPI document and the page that shows it."""

    @lru_cache(maxsize=1)
    def described(server: str) -> Document:
        return document(documented, server)

    @lru_cache(maxsize=1)
    def as_json(server: str) -> bytes:
        return orjson.dumps(described(server))

    @lru_cache(maxsize=1)
    def as_page(server: str) -> bytes:
        from shortener.web.docs_page import page  # jinja2 is imported here, because it takes 2 MB of memory

        return page(described(server))

    async def openapi(call: Call[None, None]) -> Response:
        return Response(as_json(_server(call)), media_type="application/json")

    async def docs(call: Call[None, None]) -> Response:
        from shortener.web.docs_page import CONTENT_SECURITY_POLICY

        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(as_page(_server(call)), headers=headers, media_type="text/html")

    documented = [
        *endpoints,
        Endpoint("GET", "/openapi.json", openapi, "Read this document", _TAG, Caller.ANYONE),
        Endpoint("GET", "/docs", docs, "Read this document as a web page", _TAG, Caller.ANYONE, media_type="text/html"),
    ]
    return documented


def _server(call: Call[None, None]) -> str:
    """Return the URL that serves the API: BASE_URL without its path, which only short links have."""
    return parse_base_url(call.service.settings.base_url).origin
