"""The router of the HTTP API, which finds the endpoint of a request, and the table of the modules that define endpoints.

To import all modules with their models takes a fifth of a second and 10 MB of memory, but most installations use only a few
modules. Therefore the router imports a module, in a thread, when the first request for one of its paths arrives. `endpoints.py`
imports all modules.

The router finds a path without parameters in a dictionary. Starlette's router is slower: it compares the path of a request with
one pattern after another, and passes the request through three layers that handle errors. The endpoints of this service need no
such layers, because they handle their errors themselves.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.convertors import Convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from shortener.errors import ApiError, ErrorCode
from shortener.lean_imports import exclude_imported_objects
from shortener.web.endpoint import Endpoint, error_response, log_request

if TYPE_CHECKING:
    from shortener.container import Service

#: The modules of `shortener.web` that define endpoints, in the order of a message's life, each with the beginnings of its paths.
#: The router imports a module when the first request for one of these paths arrives. If several endpoints match a path, the first
#: one in this order responds.
MODULES: Mapping[str, tuple[str, ...]] = {
    "rewrite": ("/api/v1/rewrite",),
    "send": ("/api/v1/sms/send",),
    "vendors.xoxzo": ("/sms/messages/",),
    "vendors.infobip": ("/sms/1/text/advanced", "/sms/2/text/advanced"),
    "vendors.infobip_single": tuple(f"/sms/{version}/text/{kind}" for version in (1, 2) for kind in ("single", "multi")),
    "vendors.infobip_v3": ("/sms/3/messages",),
    "vendors.infobip_logs": tuple(f"/sms/{version}/{kind}" for kind in ("reports", "logs") for version in (1, 2, 3)),
    "vendors.infobip_preview": ("/sms/1/preview",),
    "vendors.syniverse": ("/scg-external-api/",),
    "inbound": ("/api/v1/sms/inbound", "/api/v1/opt-outs"),
    "balance": ("/api/v1/balance", "/api/v1/prices"),
    "delivery_reports": ("/api/v1/sms/status",),
    "gateways": ("/api/v1/gateways",),
    "sends": ("/api/v1/sends",),
    "gateway_reports": ("/api/v1/gateways/reports/",),
    "trackers": ("/api/v1/trackers",),
    "deliveries": ("/api/v1/trackers/", "/api/v1/deliveries"),
    "application": ("/api/v1/application",),
    "keys": ("/api/v1/keys", "/api/v1/tokens"),
    "postback_keys": ("/api/v1/postback-keys",),
    "conversions": ("/api/v1/track", "/api/v1/callback/action", "/api/v1/action/track", "/action", "/api/v1/postback/"),
    "conversion_lists": ("/api/v1/conversions",),
    "vendors.infobip_conversions": ("/ct/1/",),
    "messages": ("/api/v1/sms/status/", "/api/v1/sms/messages"),
    # `link_updates` must be before `links`. Otherwise the router would read `updates` in its paths as the code of a link.
    "link_updates": ("/api/v1/links/update",),
    "links": ("/api/v1/links",),
    "domains": ("/api/v1/domains",),
    "blocked_hosts": ("/api/v1/blocked-hosts",),
    "erasures": ("/api/v1/erasures",),
    "statistics": ("/api/v1/sms/stats",),
    "lists": ("/api/v1/clicks", "/api/v1/events"),
    "health": ("/healthz", "/readyz", "/metrics", "/internal/domain-check"),
    "docs": ("/openapi.json", "/docs"),
}


def import_endpoints(module: str) -> Sequence[Endpoint]:
    """Return the endpoints of a module of MODULES."""
    endpoints: Sequence[Endpoint] = importlib.import_module(f"shortener.web.{module}").ENDPOINTS
    return endpoints


def _prepare(modules: Sequence[str]) -> dict[str, Sequence[Endpoint]]:
    """Import modules and build the models of their endpoints. Return the endpoints of each module."""
    found = {module: import_endpoints(module) for module in modules}
    for endpoint in itertools.chain.from_iterable(found.values()):
        for model in (endpoint.query, endpoint.body, endpoint.response, *endpoint.other_responses.values()):
            if model is not None:
                model.model_rebuild()
    exclude_imported_objects()
    return found


Methods = dict[str, Endpoint]  # The endpoints of one path by HTTP method.
Patterns = list[tuple[re.Pattern[str], Mapping[str, Convertor[Any]], Methods]]  # The paths with parameters.

_NEVER = re.compile(r"(?!)")
#: The path that the access log shows in place of a path that does not exist, because such a path may contain a credential or a
#: phone number.
UNKNOWN_PATH = "(unknown)"


def _tables(endpoints: Iterable[Endpoint]) -> tuple[dict[str, Methods], Patterns]:
    """Return two tables. The first contains the endpoints of the paths without parameters, by path. The second contains the
    endpoints of the paths with parameters, with a pattern for each path."""
    by_path: dict[str, Methods] = {}
    by_pattern: dict[str, Methods] = {}
    patterns: Patterns = []
    for endpoint in endpoints:
        if "{" not in endpoint.path:
            methods = by_path.setdefault(endpoint.path, {})
        elif endpoint.path in by_pattern:
            methods = by_pattern[endpoint.path]
        else:
            methods = by_pattern[endpoint.path] = {}
            pattern, _, convertors = compile_path(endpoint.path)
            patterns.append((pattern, convertors, methods))
        methods[endpoint.method] = endpoint
        if endpoint.method == "GET" and endpoint.has_head:
            methods.setdefault("HEAD", endpoint)
    return by_path, patterns


#: Sentences that are added to the error for a wrong method, by method and path. Each names the call that people probably look
#: for.
_HINTS = {("POST", "/api/v1/links"): "POST /api/v1/rewrite creates links."}


class ApiRouter:
    """A router that finds the endpoint of a request and runs it. The GET endpoint of a path also handles HEAD requests, unless it
    has `has_head=False` or the path has its own endpoint for HEAD."""

    def __init__(self, service: Service, endpoints: Sequence[Endpoint] | None = None) -> None:
        """Create a router for `endpoints`. By default, it serves the endpoints of all MODULES and imports them on demand."""
        self._service = service
        self._loaded: dict[str, Sequence[Endpoint]] = {}  # the endpoints of imported modules
        # only one thread at a time imports modules, because pydantic must not build a model in two threads at once
        self._loading = asyncio.Lock()
        if endpoints is None:
            self._update()
        else:
            self._by_path, self._patterns, self._missing = *_tables(endpoints), _NEVER

    def _update(self) -> None:
        loaded = itertools.chain.from_iterable(self._loaded[module] for module in MODULES if module in self._loaded)
        self._by_path, self._patterns = _tables(loaded)
        missing = [re.escape(start) for module, starts in MODULES.items() if module not in self._loaded for start in starts]
        self._missing = re.compile("|".join(missing)) if missing else _NEVER

    async def _load(self, path: str) -> None:
        """Import the modules that may have an endpoint for `path`. Skip modules that are already imported."""
        async with self._loading:
            modules = [module for module, starts in MODULES.items() if module not in self._loaded and path.startswith(starts)]
            if modules:
                self._loaded.update(await asyncio.to_thread(_prepare, modules))
                self._update()

    async def respond(self, request: Request) -> Response:
        """Return the response of the endpoint. Return status 404 for an unknown path, and 405 for a method that the path does not
        have."""
        path, method = request.scope["path"], request.scope["method"]
        methods = self._by_path.get(path)
        if methods is not None and method in methods:
            return await methods[method].respond(request, self._service)
        if self._missing.match(path):
            await self._load(path)
            return await self.respond(request)
        allowed = set(methods or ())
        shown = path if methods else UNKNOWN_PATH
        for pattern, convertors, methods in self._patterns:
            match = pattern.match(path)
            if match is None:
                continue
            try:
                parameters = {name: convertors[name].convert(text) for name, text in match.groupdict().items()}
            except ValueError:  # The path can contain a number with more digits than Python converts, for example.
                continue
            if method in methods:
                request.scope["path_params"] = parameters
                return await methods[method].respond(request, self._service)
            allowed.update(methods)
            shown = next(iter(methods.values())).shown_path
        code = ErrorCode.METHOD_NOT_ALLOWED if allowed else ErrorCode.NOT_FOUND
        methods_shown = ", ".join(sorted(allowed))
        reason = f"This path accepts only {methods_shown}." if allowed else "No call has this path. /docs lists all calls."
        if (hint := _HINTS.get((method, path))) is not None:
            reason += f" {hint}"
        response = error_response(ApiError(code, reason))
        if allowed:
            response.headers["Allow"] = methods_shown
        log_request(self._service, method, shown, code.http_status, code.name, 0)
        return response
