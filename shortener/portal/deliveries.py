"""/portal/{app}/deliveries and /portal/{app}/deliveries/{id}: the pages that list the deliveries of events to trackers, show the
attempts of one delivery, and replay deliveries."""
# Tested by tests/portal/test_deliveries.py

from __future__ import annotations

from dataclasses import dataclass

from starlette.responses import Response

from shortener.delivery.deliveries import Delivery, DeliveryFilter, DeliveryPage
from shortener.delivery.tracker_presenter import delivery_fields
from shortener.errors import ApiError, ErrorCode
from shortener.ids import DELIVERY_IDS
from shortener.model import DeliveryStatus
from shortener.portal.listing import FilterField, Listing, chips, choice, exported_query, slots_of
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.router import csv_download
from shortener.portal.trackers import STATES
from shortener.reporting.csv_lists import PAGE_ROWS, stream_csv
from shortener.web.paging import Cursors

ROWS = 50
CSV_COLUMNS = (
    "delivery_id",
    "tracker_id",
    "callback_url",
    "event_id",
    "event",
    "message_id",
    "status",
    "attempt",
    "created_at",
    "finished_at",
    "last_status",
    "last_error",
)
_STATUS = FilterField("status", "State", {status.api_name: STATES[status][0] for status in DeliveryStatus}, is_common=True)
FIELDS = (_STATUS, FilterField("tracker", "Id of the tracker", is_common=True))


@dataclass(frozen=True, slots=True)
class DeliveryRows:
    """One page of deliveries, read for the CSV download."""

    rows: list[Delivery]
    next: int | None


async def deliveries(visit: Visit) -> Response:
    """List the deliveries that were created in the period, newest first."""
    service, criteria = visit.service, _filter(visit)
    if visit.is_csv:
        await service.database.write(visit.audit, "list_exported", "deliveries", after=exported_query(visit))

        async def read(below: int | None) -> DeliveryRows:
            page = await service.deliveries.page(criteria, PAGE_ROWS, below)
            return DeliveryRows(page.deliveries, page.next)

        return csv_download(visit, stream_csv(read, delivery_fields, CSV_COLUMNS), "deliveries")
    cursors = Cursors(service.secret, "portal deliveries")
    page = await service.deliveries.page(criteria, ROWS, cursors.decode(visit.get("cursor")))
    dead = await _count_dead(visit, criteria)
    return visit.render(
        "deliveries.html",
        title="Deliveries",
        listing=_listing(visit, page, cursors),
        deliveries=[(one, DELIVERY_IDS.encode(one.id)) for one in page.deliveries],
        states=STATES,
        names={tracker.id: tracker.name or f"Tracker {tracker.id}" for tracker in await service.trackers.all(visit.application_id)},
        dead=dead,
        tracker_id=criteria.tracker_id,
        replayed=visit.get("replayed"),
    )


def _listing(visit: Visit, page: DeliveryPage, cursors: Cursors) -> Listing:
    is_first = visit.get("cursor") is None
    values = dict(visit.request.query_params)
    return Listing((), cursors.encode(page.next), is_first, FIELDS, chips(visit, FIELDS), values)


def _filter(visit: Visit) -> DeliveryFilter:
    status = choice(visit, _STATUS)
    since, until = slots_of(visit)
    tracker = visit.get("tracker")
    is_number = tracker is not None and tracker.isascii() and tracker.isdecimal() and len(tracker) <= 9
    return DeliveryFilter(
        visit.application_id,
        tracker_id=None if tracker is None else int(tracker) if is_number else 0,
        status=None if status is None else DeliveryStatus[status.upper()],
        since=since,
        until=until,
    )


async def _count_dead(visit: Visit, criteria: DeliveryFilter) -> int:
    """Return the number of dead deliveries of the chosen tracker, for the button that replays them; 0 if no tracker is chosen."""
    if not criteria.tracker_id or criteria.status is not DeliveryStatus.DEAD:
        return 0
    return (await visit.service.deliveries.backlog(criteria.tracker_id, visit.now)).dead


async def replay_dead(visit: Visit) -> Response:
    """Replay the dead deliveries of a tracker, at most MAX_REPLAYED_PER_CALL at once."""
    text = visit.form.get("tracker", "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise ApiError(ErrorCode.NOT_FOUND)
    tracker = await visit.service.trackers.get(int(text), visit.application_id)
    number, _ = await visit.service.deliveries.replay_dead(DeliveryFilter(visit.application_id, tracker.id), visit.now)
    await visit.service.database.write(visit.audit, "deliveries_replayed", f"tracker {tracker.id}", after={"replayed": number})
    return visit.redirect(visit.link("deliveries", tracker=tracker.id, replayed=number))


async def delivery(visit: Visit) -> Response:
    """Show one delivery with its attempts."""
    found, attempts = await visit.service.deliveries.get(_id(visit), visit.application_id)
    return visit.render(
        "delivery.html",
        title=f"Delivery of {found.topic.api_name}",
        delivery=found,
        delivery_id=visit.path["id"],
        attempts=attempts,
        states=STATES,
    )


async def replay(visit: Visit) -> Response:
    """Replay one delivery, so that it is sent again."""
    delivery_id = _id(visit)
    await visit.service.deliveries.replay(delivery_id, visit.now, visit.application_id)
    await visit.service.database.write(visit.audit, "delivery_replayed", visit.path["id"])
    return visit.redirect(visit.link(f"deliveries/{visit.path['id']}"))


def _id(visit: Visit) -> int:
    """Return the row id of the delivery in the URL path. Raise ApiError NOT_FOUND if the path contains no valid id."""
    found = DELIVERY_IDS.decode(visit.path["id"])
    if found is None:
        raise ApiError(ErrorCode.NOT_FOUND)
    return found


PAGES = [
    PortalPage(
        "/portal/{app}/deliveries",
        deliveries,
        replay_dead,
        Role.SUPPORT,
        csv=True,
        all_applications=False,
        navigation=NavigationItem("Deliveries", "send", 20, "delivery", "d"),
    ),
    PortalPage("/portal/{app}/deliveries/{id}", delivery, replay, Role.SUPPORT, all_applications=False),
]
