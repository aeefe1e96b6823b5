"""/portal/{app}/deliveries and /portal/{app}/deliveries/{id}: the pages that list the deliveries of events to trackers, show the
attempts of one delivery, and replay one delivery. The pages in replays.py replay many deliveries."""
# Tested by tests/portal/test_deliveries.py

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.delivery.deliveries import Delivery, DeliveryFilter, DeliveryPage, replay_one
from shortener.delivery.replays import Replay, ReplayOutcomes, count_outcomes, find_replay, list_replays
from shortener.delivery.tracker_presenter import delivery_fields
from shortener.delivery.trackers import Tracker
from shortener.errors import ApiError, ErrorCode
from shortener.ids import DELIVERY_IDS, parse_counted_id
from shortener.model import DeliveryStatus, record
from shortener.portal.csv_download import csv_download
from shortener.portal.listing import FilterField, Listing, chips, choice, exported_query, slots_of
from shortener.portal.operators import Role
from shortener.portal.outcome_texts import TOPIC_LABELS
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.repeats import FormRepeated, perform_once
from shortener.portal.trackers import STATES
from shortener.portal.waiting import Wait, wait_of
from shortener.reporting.csv_lists import PAGE_ROWS, stream_csv
from shortener.web.paging import Cursors

ROWS = 50
#: The list of deliveries also shows replays: those that run, and those that ended within this time, at most MAX_REPLAYS.
RECENT_REPLAYS, MAX_REPLAYS = timedelta(days=1), 20
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
    "tracker_name",
)
_STATUS = FilterField("status", "State", {status.api_name: STATES[status][0] for status in DeliveryStatus}, is_common=True)
_REPLAY = FilterField("replay", "Id of the replay")


@record
class DeliveryRows:
    """One page of deliveries, as the CSV download reads it."""

    rows: list[Delivery]
    next: int | None


async def deliveries(visit: Visit) -> Response:
    """List deliveries, newest first: those that were created in the period, or those of one replay."""
    service, replay = visit.service, await _replay_of(visit)
    criteria = _filter(visit, replay)
    trackers = await _trackers(visit)
    names = _names(trackers)
    if visit.is_csv:
        await service.database.write(visit.audit, "list_exported", "deliveries", after=exported_query(visit))

        async def read(below: int | None) -> DeliveryRows:
            page = await service.deliveries.page(criteria, PAGE_ROWS, below)
            return DeliveryRows(page.deliveries, page.next)

        def serialize(one: Delivery) -> dict[str, Any]:
            return {**delivery_fields(one), "tracker_name": names.get(one.tracker_id)}

        return await csv_download(visit, stream_csv(read, serialize, CSV_COLUMNS), "deliveries")
    cursors = Cursors(service.secret, "portal deliveries")
    page = await service.deliveries.page(criteria, ROWS, cursors.decode(visit.get("cursor")))
    return visit.render(
        "deliveries.html",
        title="Deliveries",
        listing=_listing(visit, page, cursors, names),
        deliveries=[(one, DELIVERY_IDS.encode(one.id), _wait(visit, one, trackers)) for one in page.deliveries],
        states=STATES,
        names=names,
        tracker_id=criteria.tracker_id,
        is_dead=criteria.status is DeliveryStatus.DEAD,
        replay=replay,
        replays=[] if replay else await _recent_replays(visit),
    )


async def _recent_replays(visit: Visit) -> list[tuple[Replay, ReplayOutcomes]]:
    """Return the application's replays that run or ended recently, newest first, each with the outcomes of its deliveries."""

    def read(connection: Connection) -> list[tuple[Replay, ReplayOutcomes]]:
        found = list_replays(connection, visit.application_id, visit.now - RECENT_REPLAYS, MAX_REPLAYS)
        return [(one, count_outcomes(connection, one)) for one in found]

    return await visit.service.database.read(read)


async def _replay_of(visit: Visit) -> Replay | None:
    """Return the replay that the query selects; None if the page lists all deliveries. Raise ApiError NOT_FOUND if there is no
    such replay."""
    public_id = visit.get("replay")
    if public_id is None:
        return None
    return await visit.service.database.read(find_replay, public_id, visit.application_id)


async def _trackers(visit: Visit) -> dict[int | None, Tracker]:
    """Return the application's trackers by id."""
    return {tracker.id: tracker for tracker in await visit.service.trackers.all(visit.application_id)}


def _names(trackers: Mapping[int | None, Tracker]) -> dict[int | None, str]:
    """Return the names of trackers by id."""
    return {number: tracker.name or f"Tracker {number}" for number, tracker in trackers.items()}


def _wait(visit: Visit, one: Delivery, trackers: Mapping[int | None, Tracker]) -> Wait | None:
    is_disabled = visit.application is not None and visit.application.disabled
    return wait_of(one, trackers.get(one.tracker_id), visit.now, application_disabled=is_disabled)


def _tracker_field(visit: Visit, names: Mapping[int | None, str]) -> FilterField:
    """Return the filter field with the trackers of the application. Trackers of the same name are shown with their ids. A deleted
    tracker is a choice only if the query selects it."""
    repeated = {name for name, number in Counter(names.values()).items() if number > 1}
    choices = {str(number): f"{name} ({number})" if name in repeated else name for number, name in names.items()}
    asked = visit.get("tracker")
    if asked is not None:
        choices.setdefault(asked, f"{asked} (deleted)")
    return FilterField("tracker", "Tracker", choices, is_common=True)


def _listing(visit: Visit, page: DeliveryPage, cursors: Cursors, names: Mapping[int | None, str]) -> Listing:
    is_first = visit.get("cursor") is None
    fields = (_STATUS, _tracker_field(visit, names), _REPLAY)
    values = visit.query
    return Listing((), cursors.encode(page.next), is_first, fields, chips(visit, fields), values)


def _filter(visit: Visit, replay: Replay | None) -> DeliveryFilter:
    """Return the filter that the parameters of the URL select. If they select a replay, the period of the page does not apply."""
    status = choice(visit, _STATUS)
    if replay is not None:
        return DeliveryFilter(status=None if status is None else DeliveryStatus[status.upper()], replay_id=replay.id)
    since, until = slots_of(visit)
    tracker = visit.get("tracker")
    return DeliveryFilter(
        visit.application_id,
        tracker_id=None if tracker is None else parse_counted_id(tracker) or 0,
        status=None if status is None else DeliveryStatus[status.upper()],
        since=since,
        until=until,
    )


async def delivery(visit: Visit) -> Response:
    """Show one delivery with its attempts."""
    found, attempts = await visit.service.deliveries.get(_id(visit), visit.application_id)
    trackers = await _trackers(visit)
    return visit.render(
        "delivery.html",
        title=f"Delivery: {TOPIC_LABELS[found.topic]}",
        delivery=found,
        delivery_id=visit.path["id"],
        tracker_name=_names(trackers).get(found.tracker_id),
        wait=_wait(visit, found, trackers),
        attempts=attempts,
        states=STATES,
    )


async def replay(visit: Visit) -> Response:
    """Replay one delivery: send it again. If the same form is sent again, nothing more happens."""
    delivery_id = _id(visit)
    with suppress(FormRepeated):
        await visit.service.database.write(
            perform_once, visit, replay_one, visit.audit_writer, delivery_id, visit.now, visit.application_id
        )
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
        role=Role.SUPPORT,
        csv=True,
        all_applications=False,
        navigation=NavigationItem("Deliveries", "send", 20, "delivery", "d"),
    ),
    PortalPage("/portal/{app}/deliveries/{id}", delivery, replay, Role.SUPPORT, all_applications=False),
]
