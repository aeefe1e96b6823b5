"""GET /openapi.json and GET /docs: the OpenAPI document, and the page that shows it.

The first request renders both documents; later requests get the same bytes.
"""
# Tested by tests/web/test_openapi.py

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import orjson
from starlette.responses import Response

from shortener.web.docs_page import CONTENT_SECURITY_POLICY, page
from shortener.web.endpoint import Call, Caller, Endpoint
from shortener.web.openapi import Document, document

_TAG = "Operation"


def with_documentation(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Return `endpoints` with two more endpoints: the OpenAPI document and the page that shows it."""

    @cache
    def described() -> Document:
        return document(documented)

    @cache
    def as_json() -> bytes:
        return orjson.dumps(described())

    @cache
    def as_page() -> bytes:
        return page(described())

    async def openapi(call: Call[None, None]) -> Response:
        return Response(as_json(), media_type="application/json")

    async def docs(call: Call[None, None]) -> Response:
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(as_page(), headers=headers, media_type="text/html")

    documented = [
        *endpoints,
        Endpoint("GET", "/openapi.json", openapi, "Read this document", _TAG, Caller.ANYONE),
        Endpoint("GET", "/docs", docs, "Read this document as a web page", _TAG, Caller.ANYONE, media_type="text/html"),
    ]
    return documented
