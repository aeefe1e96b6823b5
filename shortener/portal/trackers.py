"""/portal/{app}/trackers and /portal/{app}/trackers/{id}: the pages that list the trackers, and show whether their deliveries
succeed."""
# Tested by tests/portal/test_deliveries.py

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from shortener.delivery.deliveries import DeliveryBacklog, DeliveryFilter
from shortener.delivery.sample_delivery import SampleDelivery, send_test
from shortener.delivery.tracker_presenter import health_fields, tracker_fields
from shortener.delivery.trackers import Tracker
from shortener.ids import DELIVERY_IDS
from shortener.model import DeliveryStatus
from shortener.portal.listing import download_short_list
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.repeats import FormRepeated, perform_once
from shortener.portal.tracker_editor import EVENTS, FORMAT_LABELS, find_tracker
from shortener.portal.waiting import wait_of

#: The label and the kind of badge that the pages show for each state of a circuit breaker.
BREAKERS = {
    "closed": ("working", "good"),
    "failing": ("last attempt failed", "warn"),
    "open": ("failing, waits", "bad"),
    "half_open": ("testing again", "warn"),
    "recovering": ("catching up", "warn"),
}
#: The columns of the CSV. They are the fields of a tracker and of its health in the API.
_CSV_COLUMNS = (
    *("tracker_id", "name", "enabled", "disabled_reason", "url", "events", "method", "format", "created_at"),
    *("breaker", "failures_in_row", "last_success_at", "last_failure_at", "pending", "dead"),
)
RECENT = 10  # The number of deliveries that the page of a tracker shows.


async def trackers(visit: Visit) -> Response:
    """List the trackers with their health, or return them as CSV."""
    listed = []
    for tracker in await visit.service.trackers.all(visit.application_id):
        backlog = await visit.service.deliveries.backlog(tracker.id, visit.now)
        listed.append((tracker, tracker_health(tracker, backlog, visit)))
    if visit.is_csv:
        rows = [{**tracker_fields(visit.service.settings, tracker), **health} for tracker, health in listed]
        return await download_short_list(visit, "trackers", _CSV_COLUMNS, rows)
    return visit.render(
        "trackers.html", title="Trackers", trackers=listed, breakers=BREAKERS, is_deleted=visit.get("deleted") is not None
    )


async def tracker(visit: Visit) -> Response:
    """Show one tracker with its health and its latest deliveries."""
    return await _show(visit, None)


async def send_sample(visit: Visit) -> Response:
    """Send a test event to a tracker, and show the tracker's response. If the same form was already handled, send nothing."""
    found = await find_tracker(visit)
    service = visit.service
    with service.test_slots.take(visit.application_id) as sender:
        try:
            await service.database.write(perform_once, visit, lambda connection: None)
        except FormRepeated:
            return await _show(visit, None, is_repeat=True)
        sample = await send_test(
            service.database,
            visit.audit_writer,
            service.trackers,
            sender,
            service.ids,
            service.clock,
            found.id,
            allow_http=service.settings.allow_http_targets,
            application_id=visit.application_id,
        )
    return await _show(visit, sample)


async def _show(visit: Visit, sample: SampleDelivery | None, *, is_repeat: bool = False) -> Response:
    found = await find_tracker(visit)
    backlog = await visit.service.deliveries.backlog(found.id, visit.now)
    page = await visit.service.deliveries.page(DeliveryFilter(visit.application_id, found.id), RECENT)
    is_disabled = visit.application is not None and visit.application.disabled
    return visit.render(
        "tracker.html",
        title=found.name or f"Tracker {found.id}",
        tracker=found,
        fields=tracker_fields(visit.service.settings, found),
        health=tracker_health(found, backlog, visit),
        breakers=BREAKERS,
        event_labels=EVENTS,
        format_labels=FORMAT_LABELS,
        deliveries=[
            (one, DELIVERY_IDS.encode(one.id), wait_of(one, found, visit.now, application_disabled=is_disabled))
            for one in page.deliveries
        ],
        sample=sample,
        is_repeat=is_repeat,
        states=STATES,
    )


def tracker_health(tracker: Tracker, backlog: DeliveryBacklog, visit: Visit) -> dict[str, Any]:
    """Return the health of a tracker for the page. Its field `breaker` is `failing` if the circuit breaker is closed but the last
    attempts failed."""
    fields = health_fields(tracker, backlog, visit.now)
    if fields["breaker"] == "closed" and fields["failures_in_row"]:
        fields["breaker"] = "failing"
    return fields


#: The label and the kind of badge that the pages show for each state of a delivery.
STATES = {
    DeliveryStatus.PENDING: ("Pending", ""),
    DeliveryStatus.PARKED: ("Parked", "warn"),
    DeliveryStatus.DELIVERED: ("Delivered", "good"),
    DeliveryStatus.DEAD: ("Dead", "bad"),
}

PAGES = [
    PortalPage(
        "/portal/{app}/trackers",
        trackers,
        role=Role.SUPPORT,
        csv=True,
        all_applications=False,
        navigation=NavigationItem("Trackers", "webhook", 10, "delivery", "t"),
    ),
    PortalPage("/portal/{app}/trackers/{id}", tracker, send_sample, Role.SUPPORT, Role.MANAGER, all_applications=False),
]
