"""GET /openapi.json and GET /docs: the OpenAPI document, and the page that shows it.

The first request renders both documents; later requests get the same bytes. The server URL in the document has the host of
BASE_URL.
"""
# Tested by tests/web/test_openapi.py

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import orjson
from starlette.responses import Response

from shortener.urls import parse_base_url
from shortener.web.callers import Caller
from shortener.web.endpoint import Call, Endpoint

if TYPE_CHECKING:
    from shortener.web.openapi import Document

_TAG = "Operation"


@lru_cache(maxsize=1)
def _described(server: str) -> Document:
    # These modules import the models of all endpoints. Import them only when the document is requested.
    from shortener.web.endpoints import ENDPOINTS as ALL
    from shortener.web.openapi import document

    return document(ALL, server)


@lru_cache(maxsize=1)
def _as_json(server: str) -> bytes:
    return orjson.dumps(_described(server))


@lru_cache(maxsize=1)
def _as_page(server: str) -> bytes:
    from shortener.web.docs_page import page  # Only this page needs jinja2, which takes 2 MB of memory.

    return page(_described(server))


async def _openapi(call: Call[None, None]) -> Response:
    # The first call takes a third of a second. It runs in a thread, so that clicks do not wait for it.
    return Response(await asyncio.to_thread(_as_json, _server(call)), media_type="application/json")


async def _docs(call: Call[None, None]) -> Response:
    page = await asyncio.to_thread(_as_page, _server(call))
    from shortener.web.docs_page import CONTENT_SECURITY_POLICY

    headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "X-Content-Type-Options": "nosniff"}
    return Response(page, headers=headers, media_type="text/html")


def _server(call: Call[None, None]) -> str:
    """Return the URL that serves the API: BASE_URL without its path, because only short links have this path."""
    return parse_base_url(call.service.settings.base_url).origin


ENDPOINTS: Sequence[Endpoint] = [
    Endpoint("GET", "/openapi.json", _openapi, "Read this document", _TAG, Caller.ANYONE),
    Endpoint("GET", "/docs", _docs, "Read this document as a web page", _TAG, Caller.ANYONE, media_type="text/html"),
]
