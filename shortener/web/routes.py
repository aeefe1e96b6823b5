"""The table of all endpoints of the HTTP API, in the order of a message's life."""
# Tested by tests/web/test_openapi.py

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.routing import BaseRoute

from shortener.web import (
    application,
    blocked_hosts,
    conversion_lists,
    conversions,
    deliveries,
    delivery_reports,
    domains,
    erasures,
    health,
    links,
    lists,
    messages,
    postback_keys,
    rewrite,
    statistics,
    trackers,
)
from shortener.web.docs import with_documentation
from shortener.web.endpoint import Endpoint
from shortener.web.vendors import infobip, infobip_conversions, xoxzo

if TYPE_CHECKING:
    from shortener.container import Service

ENDPOINTS: Sequence[Endpoint] = with_documentation(
    [
        *rewrite.ENDPOINTS,
        *xoxzo.ENDPOINTS,
        *infobip.ENDPOINTS,
        *delivery_reports.ENDPOINTS,
        *trackers.ENDPOINTS,
        *deliveries.ENDPOINTS,
        *application.ENDPOINTS,
        *postback_keys.ENDPOINTS,
        *conversions.ENDPOINTS,
        *conversion_lists.ENDPOINTS,
        *infobip_conversions.ENDPOINTS,
        *messages.ENDPOINTS,
        *links.ENDPOINTS,
        *domains.ENDPOINTS,
        *blocked_hosts.ENDPOINTS,
        *erasures.ENDPOINTS,
        *statistics.ENDPOINTS,
        *lists.ENDPOINTS,
        *health.ENDPOINTS,
    ]
)


def routes(service: Service) -> list[BaseRoute]:
    """Return all endpoints as routes of Starlette."""
    return [endpoint.route(service) for endpoint in ENDPOINTS]
