"""The table of all endpoints of the HTTP API, in the order of a message's life, and the router that finds the endpoint of a
request.

The router finds a path without parameters in a dictionary. Starlette's router would compare each request with one path after
another, and pass it through three layers that handle errors; an endpoint handles its errors itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.convertors import Convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from shortener.errors import ApiError, ErrorCode
from shortener.web import (
    application,
    balance,
    blocked_hosts,
    conversion_lists,
    conversions,
    deliveries,
    delivery_reports,
    domains,
    erasures,
    gateway_reports,
    gateways,
    health,
    inbound,
    keys,
    link_updates,
    links,
    lists,
    messages,
    postback_keys,
    rewrite,
    send,
    sends,
    statistics,
    trackers,
)
from shortener.web.docs import with_documentation
from shortener.web.endpoint import Endpoint, error_response
from shortener.web.vendors import infobip, infobip_conversions, infobip_logs, infobip_preview, infobip_v3, syniverse, xoxzo

if TYPE_CHECKING:
    from shortener.container import Service

ENDPOINTS: Sequence[Endpoint] = with_documentation(
    [
        *rewrite.ENDPOINTS,
        *send.ENDPOINTS,
        *xoxzo.ENDPOINTS,
        *infobip.ENDPOINTS,
        *infobip_v3.ENDPOINTS,
        *infobip_logs.ENDPOINTS,
        *infobip_preview.ENDPOINTS,
        *syniverse.ENDPOINTS,
        *inbound.ENDPOINTS,
        *balance.ENDPOINTS,
        *delivery_reports.ENDPOINTS,
        *gateways.ENDPOINTS,
        *sends.ENDPOINTS,
        *gateway_reports.ENDPOINTS,
        *trackers.ENDPOINTS,
        *deliveries.ENDPOINTS,
        *application.ENDPOINTS,
        *keys.ENDPOINTS,
        *postback_keys.ENDPOINTS,
        *conversions.ENDPOINTS,
        *conversion_lists.ENDPOINTS,
        *infobip_conversions.ENDPOINTS,
        *messages.ENDPOINTS,
        *link_updates.ENDPOINTS,  # the link updates are before the links: otherwise the router would take `updates` for a code
        *links.ENDPOINTS,
        *domains.ENDPOINTS,
        *blocked_hosts.ENDPOINTS,
        *erasures.ENDPOINTS,
        *statistics.ENDPOINTS,
        *lists.ENDPOINTS,
        *health.ENDPOINTS,
    ]
)


Methods = dict[str, Endpoint]  # The endpoints of one path by HTTP method.


class ApiRouter:
    """A router that finds the endpoint of a request and runs it. A HEAD request is passed to the GET endpoint if the path has no
    endpoint for HEAD."""

    def __init__(self, service: Service, endpoints: Sequence[Endpoint] = ENDPOINTS) -> None:
        self._service = service
        self._by_path: dict[str, Methods] = {}
        self._patterns: list[tuple[re.Pattern[str], Mapping[str, Convertor[Any]], Methods]] = []
        by_pattern: dict[str, Methods] = {}
        for endpoint in endpoints:
            if "{" not in endpoint.path:
                methods = self._by_path.setdefault(endpoint.path, {})
            elif endpoint.path in by_pattern:
                methods = by_pattern[endpoint.path]
            else:
                methods = by_pattern[endpoint.path] = {}
                pattern, _, convertors = compile_path(endpoint.path)
                self._patterns.append((pattern, convertors, methods))
            methods[endpoint.method] = endpoint
            if endpoint.method == "GET":
                methods.setdefault("HEAD", endpoint)

    async def respond(self, request: Request) -> Response:
        """Return the response of the endpoint: 404 for an unknown path, 405 for a method that the path does not have."""
        path, method = request.scope["path"], request.scope["method"]
        methods = self._by_path.get(path)
        if methods is not None and method in methods:
            return await methods[method].respond(request, self._service)
        allowed = set(methods or ())
        for pattern, convertors, methods in self._patterns:
            match = pattern.match(path)
            if match is None:
                continue
            try:
                parameters = {name: convertors[name].convert(text) for name, text in match.groupdict().items()}
            except ValueError:  # for example, the path contains a number with more digits than Python converts
                continue
            if method in methods:
                request.scope["path_params"] = parameters
                return await methods[method].respond(request, self._service)
            allowed.update(methods)
        response = error_response(ApiError(ErrorCode.METHOD_NOT_ALLOWED if allowed else ErrorCode.NOT_FOUND))
        if allowed:
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response
