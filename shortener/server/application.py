"""The ASGI application: redirects first, everything else through Starlette.

Each request passes three steps. First, the Host header must belong to the installation; the response is 404 otherwise. Second, if
the path is a code, `clicks.redirect` responds, before routing and middleware. Third, Starlette routes the request to the API. An
application's own domain has codes, /robots.txt and /.well-known/, but no API.
"""
# Tested by tests/clicks/test_redirect.py

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from shortener.accounts.directory import Domain
from shortener.clicks.pages import unknown_page
from shortener.clicks.path import code_of
from shortener.clicks.redirect import Redirect
from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from shortener.server.hosts import MAX_HOST_BYTES, is_local, split_host
from shortener.web.endpoint import error_response
from shortener.web.routes import routes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: First path segments that are never codes, on any host.
RESERVED = frozenset(
    {"portal", "docs", "action", "healthz", "readyz", "metrics", "robots", "favicon", "sitemap", "api", "sms", "static"}
)
#: Paths that respond whatever the Host header is: orchestrators and reverse proxies use an address or a name of their own.
PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/internal/domain-check"})
ROBOTS = b"User-agent: *\nDisallow: /\n"


class HttpApplication:
    """The ASGI application of one process."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._base_host = urlsplit(service.settings.base_url).hostname or ""
        self.redirect = Redirect(
            service.recorder,
            service.directory,
            service.ids,
            service.now_ms,
            trusted_proxies=service.settings.trusted_proxies,
            ip_privacy=service.settings.ip_privacy,
        )
        self._starlette = Starlette(
            routes=routes(service), exception_handlers={HTTPException: _http_error, Exception: _server_error}
        )
        # Starlette would redirect /code/ to a URL made from the Host header: an open redirect.
        self._starlette.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._lifespan(receive, send)
            return
        path: str = scope["path"]
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        is_known, domain = self._find_domain(host)
        if not is_known and path not in PROBES:
            await _send_page(send, 404, unknown_page())
            return
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            code = code_of(scope.get("raw_path") or path.encode())
            if code is not None and code.lower() not in RESERVED:
                await self.redirect(scope, send, code, domain.id if domain else None)
                return
        if domain is None or path.startswith("/.well-known/"):
            await self._starlette(scope, receive, send)
        elif path == "/robots.txt":
            await _send_page(send, 200, ROBOTS, b"text/plain; charset=utf-8")
        else:
            await _send_page(send, 404, unknown_page())

    @property
    def app(self) -> HttpApplication:
        """The application itself: the attribute that `http_protocol.HasApp` declares."""
        return self

    def match_code(self, host: bytes, code: str) -> tuple[bool, int | None]:
        """Return whether a request for `code` at this host is a hit, and the id of the domain that it came to.

        The id is None for the installation's own hosts. A request that is no hit must go through `__call__`."""
        if code.lower() in RESERVED:
            return False, None
        is_known, domain = self._find_domain(host)
        return is_known, domain.id if domain else None

    def _find_domain(self, host: bytes) -> tuple[bool, Domain | None]:
        """Return whether a Host header belongs to the installation, and its domain; None for the installation's own hosts."""
        if len(host) > MAX_HOST_BYTES:
            return False, None
        name, name_with_port = split_host(host)
        if name == self._base_host or is_local(name):
            return True, None
        domain = self.service.directory.domain(name_with_port) or self.service.directory.domain(name)
        return domain is not None, domain

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.service.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.service.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _send_page(send: Send, status: int, page: bytes, media_type: bytes = b"text/html; charset=utf-8") -> None:
    headers = [(b"content-type", media_type), (b"content-length", str(len(page)).encode()), (b"x-robots-tag", b"noindex")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": page})


async def _http_error(request: Request, error: Exception) -> Response:
    """Return the API's error body for a request that Starlette's routing rejects."""
    assert isinstance(error, HTTPException)
    code = ErrorCode.METHOD_NOT_ALLOWED if error.status_code == 405 else ErrorCode.NOT_FOUND
    response = error_response(ApiError(code))
    response.headers.update(error.headers or {})
    return response


async def _server_error(request: Request, error: Exception) -> Response:
    return error_response(ApiError(ErrorCode.INTERNAL_ERROR))


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[HttpApplication]:
    """Run the application with its background work, for tests and the demo."""
    app = HttpApplication(service)
    service.start()
    try:
        yield app
    finally:
        await service.close()
