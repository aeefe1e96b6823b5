"""/portal/{app}/receiver: the page of the built-in receiver. It shows the requests that a tracker would get for the newest
events, so an operator needs no endpoint to see them. Nothing is sent: the page creates the requests from the event log
(delivery/example_requests.py).
"""
# Tested by tests/portal/test_receiver.py

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.delivery.example_requests import (
    FORMAT,
    ExampleRequest,
    example_requests,
    example_secret,
    example_target,
    indented,
    sample_request,
)
from shortener.delivery.fanout import Fanout
from shortener.delivery.formats import FORMATS
from shortener.delivery.request import DeliveryTarget
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.reporting.event_list import EventFilter, list_events

SHOWN = 8  # The number of requests that the page shows.
RECENT = timedelta(days=7)


async def receiver(visit: Visit) -> Response:
    """Show the HTTP requests that a tracker would receive for the newest events. If there are no events, show the request for an
    example event. htmx loads the list again at intervals."""
    chosen = visit.get("format") or FORMAT
    if chosen not in FORMATS:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("format", f"must be one of {', '.join(FORMATS)}")])
    secret = example_secret(visit.service.secret, visit.application_id)
    target = example_target(secret, chosen)
    requests = await visit.service.database.read(_read, visit.service.fanout, target, visit.application_id, visit.now)
    return visit.render(
        "receiver_requests.html" if visit.is_fragment else "receiver.html",
        title="Built-in receiver",
        requests=requests,
        sample=None if requests else sample_request(target, visit.application_id, visit.now, "click"),
        secret=secret,
        formats=FORMATS,
        chosen=chosen,
        indented=indented,
    )


def _read(
    connection: Connection, fanout: Fanout, target: DeliveryTarget, application_id: int, now: datetime
) -> list[ExampleRequest]:
    page = list_events(connection, EventFilter(application_id, since=now - RECENT), SHOWN)
    events = [(one.row.id, one.topic, one.row.at) for one in page.rows[:SHOWN]]
    return example_requests(connection, fanout, target, events, now)


PAGES = [
    PortalPage(
        "/portal/{app}/receiver",
        receiver,
        role=Role.SUPPORT,
        all_applications=False,
        navigation=NavigationItem("Receiver", "inbox", 30, "delivery"),
    ),
]
