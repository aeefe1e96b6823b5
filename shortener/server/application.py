"""The ASGI application: redirects first, everything else through Starlette.

A request is looked at in this order: which host it came to (an unknown one gets 404), whether the path is a code (answered by
`click.redirect`, before routing and middleware), then the API, on hosts of the installation only: an application's own domain
has codes, /robots.txt and /.well-known/, nothing else.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from functools import lru_cache
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
from shortener.web.endpoint import error_response
from shortener.web.routes import FIXED_PATH_ENDPOINTS, routes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Paths of one segment that are never codes, whatever host they are asked on.
RESERVED = frozenset(
    {"portal", "docs", "action", "healthz", "readyz", "metrics", "robots", "favicon", "sitemap", "api", "sms", "static"}
)
#: Probes of an orchestrator, and the questions of a reverse proxy, come by address or by names of their own, whatever the Host.
PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/internal/domain-check"})
ROBOTS = b"User-agent: *\nDisallow: /\n"
_LOOPBACK_NAMES = frozenset({"localhost", "testserver"})
_LONGEST_HOST = 260  # characters: a name of 253, its final dot, a port


class HttpApplication:
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
        # redirect_slashes would answer /code/ with a Location made from the Host header: an open redirect.
        self._starlette = Starlette(
            routes=routes(service), exception_handlers={HTTPException: _http_error, Exception: _server_error}
        )
        self._starlette.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._lifespan(receive, send)
            return
        path: str = scope["path"]
        host = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
                break
        known, domain = self._place(host)
        if not known and path not in PROBES:
            await _page(send, 404, unknown_page())
            return
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            code = code_of(scope.get("raw_path") or path.encode())
            if code is not None and code.lower() not in RESERVED:
                await self.redirect(scope, send, code, domain.id if domain else None)
                return
        if domain is not None and not path.startswith("/.well-known/"):
            if path == "/robots.txt":
                await _page(send, 200, ROBOTS, b"text/plain; charset=utf-8")
            else:
                await _page(send, 404, unknown_page())
            return
        if (endpoint := FIXED_PATH_ENDPOINTS.get((scope["method"], path))) is not None:
            answer = await endpoint.respond(Request(scope, receive), self.service)
            await answer(scope, receive, send)
        else:
            await self._starlette(scope, receive, send)

    @property
    def app(self) -> HttpApplication:
        """Itself: what is served may have its App only after its start (wire.HasApp)."""
        return self

    def place_of(self, host: bytes, code: str) -> tuple[bool, int | None]:
        """Whether a request for a code at this host is a hit, and the domain it came to, None for the installation's own; False: it
        is for `__call__`."""
        if code.lower() in RESERVED:
            return False, None
        known, domain = self._place(host)
        return known, domain.id if domain else None

    def _place(self, host: bytes) -> tuple[bool, Domain | None]:
        """Whether a Host header is one of ours, and whose domain it is; None: the installation's own."""
        if len(host) > _LONGEST_HOST:  # what is made of a host is remembered
            return False, None
        name, address = _split_host(host)
        if name == self._base_host or _is_local(name):
            return True, None
        domain = self.service.directory.domain(address) or self.service.directory.domain(name)
        return domain is not None, domain

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.service.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.service.close()
        await send({"type": "lifespan.shutdown.complete"})


_PORT = re.compile(r":\d+$")


@lru_cache(maxsize=1024)
def _split_host(host: bytes) -> tuple[str, str]:
    """A Host header as (name, name with its port), lower case, a final dot forgiven."""
    text = host.decode("latin-1").lower()
    name = _PORT.sub("", text).rstrip(".")
    return name, name + text[len(_PORT.sub("", text)) :]


@lru_cache(maxsize=1024)
def _is_local(host: str) -> bool:
    """Whether the service was asked by address or as localhost: a name that nobody else can point here."""
    if host in _LOOPBACK_NAMES:
        return True
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.strip("[]"))
        return True
    return False


async def _page(send: Send, status: int, page: bytes, kind: bytes = b"text/html; charset=utf-8") -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(page)).encode()), (b"x-robots-tag", b"noindex")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": page})


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette's own routing refuses, in our shape under /api."""
    assert isinstance(error, HTTPException)
    code = ErrorCode.METHOD_NOT_ALLOWED if error.status_code == 405 else ErrorCode.NOT_FOUND
    response = error_response(ApiError(code))
    response.headers.update(error.headers or {})
    return response


async def _server_error(request: Request, error: Exception) -> Response:
    return error_response(ApiError(ErrorCode.INTERNAL_ERROR))


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[HttpApplication]:
    """The application with its background work, for tests and the demo."""
    app = HttpApplication(service)
    service.start()
    try:
        yield app
    finally:
        await service.close()
