"""The ASGI application: it responds to redirect requests first, and passes all other requests to the API.

Each request passes three steps.

1. The host of the Host header must belong to the installation. Otherwise the response is 404, except for /robots.txt,
   /favicon.ico and the domain check. The response to several Host headers is 400.
2. If the path is a code, `clicks.redirect` responds.
3. `server.pages` responds to the paths that exist on every host of the installation, the portal responds to /portal, and the
   router of the API (`web.routes`) to all other requests. Neither the portal nor the API exists on an application's own domain.

Each response has the header X-Request-Id, and the log lines of the request contain its value.
"""
# Tested by tests/clicks/test_redirect.py

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from starlette.requests import Request
from starlette.responses import Response

from shortener.accounts.directory import Domain
from shortener.accounts.own_hosts import is_local, name_of
from shortener.clicks.path import code_behind_prefix, code_of
from shortener.clicks.redirect import Redirect
from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from shortener.lean_imports import exclude_imported_objects
from shortener.server import pages
from shortener.server.hosts import MAX_HOST_BYTES, split_host
from shortener.server.request_cycle import COMPLETE_RESPONSE
from shortener.server.request_ids import HEADER as REQUEST_ID
from shortener.server.request_ids import request_id
from shortener.urls import RESERVED_SEGMENTS, matches_link_path
from shortener.web.endpoint import JsonResponse, error_response
from shortener.web.routes import MODULES, ApiRouter

if TYPE_CHECKING:
    from shortener.portal.router import Portal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: The path of the domain check. A reverse proxy requests this path with an internal host name. Therefore the path exists on every
#: host except the domains of applications.
DOMAIN_CHECK = "/internal/domain-check"
PORTAL_PREFIX = "/portal"


class HttpApplication:
    """The ASGI application of one process. It responds to redirects and passes other requests to the API."""

    def __init__(self, service: Service) -> None:
        self.service = service
        #: The first path segments of all API paths.
        self._api_segments = frozenset(path.split("/")[1] for paths in MODULES.values() for path in paths if path != DOMAIN_CHECK)
        self._base_host = urlsplit(service.settings.base_url).hostname or ""
        self._portal_host = urlsplit(service.settings.portal_url).hostname
        self._portal: Portal | None = None  # None until the first request for the portal arrives.
        self._loading = asyncio.Lock()
        self._base_path = service.settings.base_path
        self.redirect = Redirect(
            service.recorder,
            service.directory,
            service.ids,
            service.now_ms,
            limiter=service.rate_limits.unknown_codes,
            client_key=service.client_key,
            trusted_proxies=service.settings.trusted_proxies,
            ip_privacy=service.settings.ip_privacy,
            networks=service.networks,
            logs_access=service.settings.logs_access,
        )
        self._api = ApiRouter(service)
        portal_url = f"{service.settings.portal_url}{PORTAL_PREFIX}" if service.settings.portal else None
        self._home = functools.cache(functools.partial(pages.home_page, portal_url))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._lifespan(receive, send)
            return
        hosts: list[bytes] = []
        requested = b""
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == REQUEST_ID:
                requested = requested or value
        id_ = request_id(requested, self.service.ids())
        structlog.contextvars.bind_contextvars(request_id=id_.decode())

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] in ("http.response.start", COMPLETE_RESPONSE):
                message["headers"] = [*message["headers"], (REQUEST_ID, id_)]
            await send(message)

        if len(hosts) > 1:
            await error_response(ApiError(ErrorCode.INVALID_REQUEST, "The request has several Host headers."))(
                scope, receive, send_with_id
            )
            return
        await self._respond(scope, receive, send_with_id, hosts[0] if hosts else b"")

    async def _respond(self, scope: Scope, receive: Receive, send: Send, host: bytes) -> None:
        path: str = scope["path"]
        method = scope["method"]
        is_known, domain = self._find_domain(host)
        if (is_known or self._is_former_base(host)) and await self._redirect_code(scope, send, domain):
            return
        if not is_known and path != DOMAIN_CHECK:
            page = pages.page_on_any_host(path) if method in ("GET", "HEAD") else None
            if (part := self._management_part(path)) is not None:
                await self._reject_host(scope, receive, send, part, "names no host of this installation")
            else:
                await pages.send_page(send, page or pages.NOT_FOUND, is_head=method == "HEAD")
            return
        if path.startswith(PORTAL_PREFIX) and self._serves_portal(path, host, domain):
            portal = self._portal or await self._load_portal()
            await portal(scope, receive, send)
            return
        page = pages.page_of(path, domain, self._home) if method in ("GET", "HEAD") else None
        if page is None and domain is not None:
            if (part := self._management_part(path)) is not None:
                await self._reject_host(
                    scope, receive, send, part, "names the domain of an application, which serves only short links"
                )
                return
            page = pages.NOT_FOUND
        if page is None:
            response = await self._api.respond(Request(scope, receive))
            is_complete = response.__class__ in (JsonResponse, Response) and response.background is None
            if is_complete and COMPLETE_RESPONSE in scope.get("extensions", ()):
                headers, content = response.raw_headers, response.body
                await send({"type": COMPLETE_RESPONSE, "status": response.status_code, "headers": headers, "body": content})
            else:
                await response(scope, receive, send)
        else:
            await pages.send_page(send, page, is_head=method == "HEAD")

    async def _redirect_code(self, scope: Scope, send: Send, domain: Domain | None) -> bool:
        """If this is a request for a code, respond to it and return True. Otherwise return False."""
        method = scope["method"]
        if method not in ("GET", "HEAD", "OPTIONS") and not (
            method == "POST" and self.service.directory.hit_policies.confirm_clicks
        ):
            return False
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        code, prefix = code_of(raw_path), ""
        if code is None and (found := code_behind_prefix(raw_path)) is not None:
            prefix, code = found
        if code is None or not self._has_codes(domain, prefix, code):
            return False
        await self.redirect(scope, send, code, domain.id if domain else None)
        return True

    def _serves_portal(self, path: str, host: bytes, domain: Domain | None) -> bool:
        """Return whether the portal responds to a path on a host. If PORTAL_URL is set, only the host of this URL has the
        portal."""
        if domain is not None or not self.service.settings.portal or path[len(PORTAL_PREFIX) :][:1] not in ("", "/"):
            return False
        return self._portal_host is None or split_host(host)[0] == self._portal_host

    async def _load_portal(self) -> Portal:
        """Return the portal. The first call builds it in a thread, so that clicks do not wait."""
        async with self._loading:
            if self._portal is None:
                self._portal = await asyncio.to_thread(_new_portal, self.service)
            return self._portal

    def _management_part(self, path: str) -> str | None:
        """Return "API" or "portal" if a path belongs to the API or to the portal, otherwise None."""
        segment = path.partition("/")[2].partition("/")[0]
        if segment in self._api_segments:
            return "API"
        has_portal = self.service.settings.portal and self._portal_host is None
        return "portal" if has_portal and f"/{segment}" == PORTAL_PREFIX else None

    async def _reject_host(self, scope: Scope, receive: Receive, send: Send, part: str, reason: str) -> None:
        """Respond with 404 to a request for the API or the portal on a host that does not serve it. The error text says which
        hosts serve it, and what the caller or the administrator must change. `part` is the result of `_management_part`. `reason`
        is the end of the sentence "The Host header of this request ..."."""
        base = urlsplit(self.service.settings.base_url)
        description = (
            f"The Host header of this request {reason}. The {part} is served on {base.netloc!r} (the host of BASE_URL), on "
            f"localhost and on IP addresses. Use one of them, or send 'Host: {base.netloc}', or set BASE_URL to the address that "
            "you use."
        )
        await error_response(ApiError(ErrorCode.UNKNOWN_HOST, description))(scope, receive, send)

    @property
    def app(self) -> HttpApplication:
        """This application itself. `http_protocol.HasApp` requires this attribute."""
        return self

    def match_code(self, host: bytes, prefix: str, code: str) -> tuple[bool, int | None]:
        """Return whether a request is a hit. Also return the id of the domain, which is None for the installation's own hosts.
        `prefix` and `code` are the parts of the request's path. If a request is not a hit, `__call__` must respond to it."""
        is_known, domain = self._find_domain(host)
        has_codes = (is_known or self._is_former_base(host)) and self._has_codes(domain, prefix, code)
        return has_codes, domain.id if domain else None

    def _has_codes(self, domain: Domain | None, prefix: str, code: str) -> bool:
        """Return whether a domain can have a link with this prefix and code. `domain` is None for the installation's own
        hosts."""
        if not prefix and code.lower() in RESERVED_SEGMENTS:
            return False
        if domain is not None:
            if prefix == domain.path:
                return True
            return domain.accepts(prefix) or self.service.directory.accepts_former_path(name_of(domain.host), prefix)
        if not prefix:
            return True
        if prefix.split("/", 2)[1].lower() in RESERVED_SEGMENTS:
            return False
        return bool(self._base_path and matches_link_path(self._base_path, prefix)) or self.service.directory.accepts_path(prefix)

    def _find_domain(self, host: bytes) -> tuple[bool, Domain | None]:
        """Return whether the host in a Host header belongs to the installation. Also return the domain with this host, which is
        None for the installation's own hosts and for unknown hosts."""
        if len(host) > MAX_HOST_BYTES:
            return False, None
        name, name_with_port = split_host(host)
        if name in (self._base_host, self._portal_host) or is_local(name):
            return True, None
        domain = self.service.directory.domain(name_with_port) or self.service.directory.domain(name)
        return domain is not None, domain

    def _is_former_base(self, host: bytes) -> bool:
        """Return whether the name in a Host header was formerly the host of BASE_URL. Such a host serves only codes."""
        return len(host) <= MAX_HOST_BYTES and self.service.directory.is_former_base(split_host(host)[0])

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.service.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.service.close()
        await send({"type": "lifespan.shutdown.complete"})


def _new_portal(service: Service) -> Portal:
    """Import and build the portal. This takes a second of processor time in a new process."""
    from shortener.portal.router import load_portal  # imported here, because most processes never serve the portal

    portal = load_portal(service)
    exclude_imported_objects()
    return portal


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[HttpApplication]:
    """Run the application with its background jobs until the `async with` block ends. Tests and the demo use this function."""
    app = HttpApplication(service)
    service.start()
    try:
        yield app
    finally:
        await service.close()
