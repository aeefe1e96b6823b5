"""All endpoints of the HTTP interface, in the order of a message's life."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.routing import BaseRoute

from shortener.web import conversions, delivery_reports, messages, rewrite, statistics
from shortener.web.endpoint import Endpoint

if TYPE_CHECKING:
    from shortener.service import Service

ENDPOINTS: Sequence[Endpoint] = (
    *rewrite.ENDPOINTS,
    *delivery_reports.ENDPOINTS,
    *conversions.ENDPOINTS,
    *messages.ENDPOINTS,
    *statistics.ENDPOINTS,
)


def routes(service: Service) -> list[BaseRoute]:
    return [endpoint.route(service) for endpoint in ENDPOINTS]
