"""The pages outside of the API and the portal: /robots.txt and /favicon.ico on every host, / on every host of the installation,
and /.well-known/ on domains.

On an application's own domain, / redirects to the home page of the domain, and /.well-known/ contains the files that associate
apps with the domain. On the installation's own hosts, / is a short page with links. The pages of this module do not need the
database.
"""
# Tested by tests/server/test_pages.py

from __future__ import annotations

import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

from shortener.accounts.directory import Domain
from shortener.clicks.pages import unknown_page

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HTML = b"text/html; charset=utf-8"
_CACHE_SECONDS = 86400


class Page(NamedTuple):
    """A complete response: its status, its body, its media type and further headers."""

    status: int
    body: bytes
    media_type: bytes = _HTML
    headers: tuple[tuple[bytes, bytes], ...] = ()


NOT_FOUND = Page(404, unknown_page())
_ROBOTS = Page(200, b"User-agent: *\nDisallow: /\n", b"text/plain; charset=utf-8")
_HOME = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>SMS shortener</title></head>
<body><main><h1>SMS shortener</h1><p>This server shortens and follows links in messages.</p>
<ul>{portal}<li><a href="/docs">Documentation of the API</a></li></ul></main></body>
</html>
"""


def _icon() -> bytes:
    """Return an icon of 16 x 16 pixels in the format ICO: a dark square with a light chain link."""
    rows = b"".join(
        b"\0" + bytes(1 if 5 <= y <= 10 and 2 <= x <= 13 and not (7 <= y <= 8 and 4 <= x <= 11) else 0 for x in range(16))
        for y in range(16)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", bytes((0x1B, 0x1F, 0x24, 0xF4, 0xF5, 0xF7))),
            chunk(b"IDAT", zlib.compress(rows, 9)),
            chunk(b"IEND", b""),
        )
    )
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png


_CACHED = ((b"cache-control", b"public, max-age=%d" % _CACHE_SECONDS),)
_FAVICON = Page(200, _icon(), b"image/x-icon", _CACHED)
_ON_EVERY_HOST: Mapping[str, Page] = {"/robots.txt": _ROBOTS, "/favicon.ico": _FAVICON}


def home_page(portal_url: str | None) -> Page:
    """Return the page at / of the installation's own hosts. `portal_url` is the URL of the portal, or None if the service has no
    portal."""
    from html import escape  # imported here, because the module takes 0.4 MB of memory, and few requests need the page

    item = "" if portal_url is None else f'<li><a href="{escape(portal_url)}">Portal for operators</a></li>'
    return Page(200, _HOME.replace("{portal}", item).encode())


def page_on_any_host(path: str) -> Page | None:
    """Return the page at `path` if it exists on every host, even on hosts that do not belong to the installation. Otherwise
    return None."""
    return _ON_EVERY_HOST.get(path)


def page_of(path: str, domain: Domain | None, home: Callable[[], Page]) -> Page | None:
    """Return the page at a path, or None if this module has no page for it.

    `domain` is None for the installation's own hosts. `home` is a function that returns the page at / of these hosts."""
    page = _ON_EVERY_HOST.get(path)
    if page is not None:
        return page
    if domain is None:
        return home() if path == "/" else None
    if path == "/":
        if domain.home_url is None or domain.disabled:
            return None
        return Page(302, b"", headers=((b"location", domain.home_url.encode()),))
    if path == "/.well-known/assetlinks.json":
        return _association(domain.assetlinks)
    if path in ("/.well-known/apple-app-site-association", "/apple-app-site-association"):
        return _association(domain.apple_app_site_association)
    return None


def _association(content: str | None) -> Page | None:
    return None if content is None else Page(200, content.encode(), b"application/json")


async def send_page(send: Send, page: Page, *, is_head: bool = False) -> None:
    """Send a page as the response. If `is_head` is true, send it without its body."""
    headers = [
        (b"content-type", page.media_type),
        (b"content-length", str(len(page.body)).encode()),
        (b"x-robots-tag", b"noindex"),
        (b"x-content-type-options", b"nosniff"),
        *page.headers,
    ]
    await send({"type": "http.response.start", "status": page.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else page.body})
