"""The endpoints that list hits and events, in pages and as CSV. The listed rows are those that the statistics count."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic import Field
from starlette.responses import Response

from shortener.clicks.user_agents import load_expressions
from shortener.errors import ApiError, ErrorCode
from shortener.ids import DELIVERY_IDS
from shortener.model import EVENT_NAMES, DeliveryStatus, EventName, Topic, Verdict
from shortener.reporting.csv_lists import PAGE_ROWS, SerializedPage, stream_csv
from shortener.reporting.event_list import (
    ALL_TOPICS,
    EVENT_CSV_COLUMNS,
    EventFilter,
    EventPage,
    EventPosition,
    ListedEvent,
    find_event,
    list_events,
    serialize_event,
)
from shortener.reporting.hits import HIT_CSV_COLUMNS, HitFilter, HitMetric, HitPage, list_hits, serialize_hit
from shortener.storage.types import to_iso
from shortener.web.csv_response import csv_response
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import Text
from shortener.web.large_responses import convert_in_pieces
from shortener.web.paging import ByteOrderMark, Cursor, Cursors, NextCursor, SingleRowCsvQuery
from shortener.web.period import Period
from shortener.web.statistics import StatisticsQuery, statistics_filter

_TAG = "Reading"


class ClicksCsvQuery(StatisticsQuery):
    """Filters of hits, which include all filters of the statistics. The default period is the last 30 days."""

    metric: HitMetric | None = Field(
        None, description="Name of a figure of the statistics: only the hits that this figure counts. Default: all hits."
    )
    verdict: Literal["human", "suspected", "ignored"] | None = Field(None, description="Only hits with this verdict.")
    rule: Text | None = Field(None, max_length=100, description="Only hits that this rule classified.")
    country: Text | None = Field(
        None, max_length=2, description="Only hits on links of messages to phone numbers of this country (ISO 3166 code)."
    )
    destination: Text | None = Field(
        None,
        max_length=300,
        description="Only hits on links to this destination: host and path, as in /api/v1/sms/stats/by-destination.",
    )
    label: Text | None = Field(None, max_length=300, description="Only hits on links with this label of `#trackurl`.")
    message_id: Text | None = Field(None, max_length=200, description="Only hits on the links of this message.")
    code: Text | None = Field(None, max_length=100, description="Only hits on this link.")
    bom: ByteOrderMark = False


class ClicksQuery(ClicksCsvQuery):
    """Filters of hits, and the position of the page in the list."""

    limit: int = Field(100, ge=1, le=1000, description="Maximum number of hits in a page.")
    cursor: Cursor = None


class ClickFields(ResponseModel):
    click_id: str
    at: str
    verdict: Literal["human", "suspected", "ignored"]
    rule: str = Field(description="Name of the rule that classified the hit and determined its verdict.")
    first_verdict: str | None = Field(
        description="The verdict when the hit was recorded. null: `verdict` is still the verdict of that time."
    )
    first_rule: str | None
    counts_as: str | None = Field(
        description="Name of the figure of the statistics that counts the hit. null: the link was disabled, so no figure "
        "counts the hit."
    )
    first_of_message: bool = Field(description="true: the hit is the first click of its message.")
    first_of_link: bool = Field(description="true: the hit is the first click of its link.")
    late: bool = Field(description="true: the link had expired at the time of the hit.")
    disabled: bool = Field(description="true: the link was disabled at the time of the hit.")
    message_id: str
    campaign: str
    source: str
    country: str | None = Field(description="Country of the recipient's phone number, as ISO 3166 code.")
    code: str
    url: str
    label: str | None
    seconds_since_delivered: int | None
    device: str | None
    browser: str | None
    user_agent: str
    address: str = Field(
        description=(
            "IP address of the client. IP_PRIVACY determines whether the service stores it completely, shortened, or not at all."
        )
    )
    click_country: str | None = Field(
        description="Country of the client's IP address, from NETWORK_FILES. null: unknown, or no file is configured."
    )
    network: str | None = Field(description="Network operator of the client's IP address, from NETWORK_FILES. null: unknown.")


class ClicksResponse(ResponseModel):
    """One page of hits."""

    status: Literal[True] = True
    clicks: list[ClickFields]
    next_cursor: NextCursor


class EventsCsvQuery(Period):
    """Filters of a list of events."""

    event: EventName | None = Field(None, description="Only events of this kind.")
    message_id: Text | None = Field(None, max_length=200, description="Only events of this message.")
    campaign: Text | None = Field(None, max_length=200, description="Only events of messages of the campaign with this name.")
    bom: ByteOrderMark = False


class EventsQuery(EventsCsvQuery):
    """Filters of events, and the position of the page in the list."""

    limit: int = Field(100, ge=1, le=1000, description="Maximum number of events in a page.")
    cursor: Cursor = None


class EventFields(ResponseModel):
    event_id: str
    event: str
    at: str
    message_id: str | None
    campaign: str | None
    source: str | None
    country: str | None
    previous_state: str | None
    new_state: str | None = Field(description="New state of the message. null: the event changes no state.")
    click_id: str | None
    code: str | None
    url: str | None
    label: str | None
    verdict: str | None
    rule: str | None
    click_country: str | None = Field(description="Country of the client's IP address at the click, from NETWORK_FILES.")
    conversion_id: str | None
    action: str | None
    transaction_id: str | None
    status: str | None = Field(description="Status word of the conversion or of the delivery report.")
    fanned_out: bool = Field(description="true: the deliveries to the trackers that subscribe to the event have been created.")


class EventsResponse(ResponseModel):
    """One page of events."""

    status: Literal[True] = True
    events: list[EventFields]
    next_cursor: NextCursor


class EventDelivery(ResponseModel):
    delivery_id: str
    tracker_id: int | None = Field(description="Id of the tracker. null: the delivery is for the callback URL of the message.")
    state: str
    attempt: int
    created_at: str
    finished_at: str | None


class EventResponse(ResponseModel):
    """One event with its deliveries."""

    status: Literal[True] = True
    event: EventFields
    deliveries: list[EventDelivery]


async def clicks(call: Call[ClicksQuery, None]) -> dict[str, Any]:
    """Return one page of hits."""
    cursors = Cursors(call.service.secret, "hits")
    below = cursors.decode(call.query.cursor)
    await load_expressions()
    page = await call.service.database.read(list_hits, _hit_filter(call), call.query.limit, below)
    return {
        "status": True,
        "clicks": await convert_in_pieces(
            lambda row: serialize_hit(row, call.service.click_ids.encode, call.service.networks), page.rows
        ),
        "next_cursor": cursors.encode(page.next),
    }


async def clicks_csv(call: Call[ClicksCsvQuery, None]) -> Response:
    """Stream the hits that match the filters as CSV."""
    service, filters = call.service, _hit_filter(call)
    await load_expressions()

    async def read(below: int | None) -> HitPage:
        return await service.database.read(list_hits, filters, PAGE_ROWS, below)

    lines = stream_csv(
        read, lambda row: serialize_hit(row, service.click_ids.encode, service.networks), HIT_CSV_COLUMNS, bom=call.query.bom
    )
    return await csv_response(call, "clicks", lines)


def _hit_filter(call: Call[Any, None]) -> HitFilter:
    query: ClicksCsvQuery = call.query
    scope = statistics_filter(query, call.application_id, call.service.clock())
    return HitFilter(
        call.application_id,
        since=scope.since,
        until=scope.until,
        basis=scope.basis,
        metric=query.metric,
        verdict=None if query.verdict is None else Verdict[query.verdict.upper()],
        rule=query.rule,
        campaign=scope.campaign,
        source=scope.source,
        country=query.country,
        destination=query.destination,
        label=query.label,
        message=query.message_id,
        code=query.code,
    )


async def events(call: Call[EventsQuery, None]) -> dict[str, Any]:
    """Return one page of events."""
    cursors = Cursors(call.service.secret, "events")
    after = _decode_position(cursors, call.query.cursor)
    page = await call.service.database.read(list_events, _event_filter(call), call.query.limit, after)
    return {
        "status": True,
        "events": await convert_in_pieces(partial(_event, call), page.rows),
        "next_cursor": _encode_position(cursors, page.next),
    }


def _encode_position(cursors: Cursors, position: EventPosition | None) -> str | None:
    """Return the cursor of a position in the list of events. One row of the table can contain several events. The cursor encodes
    the id of the last row of the page. If the page ends between two events of this row, a hyphen and `position.topics`
    follow."""
    if position is None or position.topics == ALL_TOPICS:
        return cursors.encode(position and position.row_id)
    return f"{cursors.encode(position.row_id)}-{position.topics}"


def _decode_position(cursors: Cursors, cursor: str | None) -> EventPosition | None:
    """Return the position of a cursor. Raise ApiError INVALID_CURSOR."""
    encoded, separator, topics = (cursor or "").partition("-")
    row_id = cursors.decode(encoded if cursor is not None else None)
    if row_id is None:
        return None
    if not separator:
        return EventPosition(row_id)
    if len(topics) != 1 or topics not in "1234567":
        raise ApiError(ErrorCode.INVALID_CURSOR)
    return EventPosition(row_id, int(topics))


async def events_csv(call: Call[EventsCsvQuery, None]) -> Response:
    """Stream the events that match the filters as CSV."""
    service, filters = call.service, _event_filter(call)

    async def read(after: EventPosition | None) -> EventPage:
        return await service.database.read(list_events, filters, PAGE_ROWS, after)

    return await csv_response(
        call, "events", stream_csv(read, lambda event: _event(call, event), EVENT_CSV_COLUMNS, bom=call.query.bom)
    )


async def event(call: Call[None, None]) -> dict[str, Any]:
    """Return one event of the application with its deliveries."""
    found = await call.service.database.read(find_event, call.application_id, call.path["event_id"])
    if found is None:
        raise ApiError(ErrorCode.NOT_FOUND, "The application has no event with this id.")
    listed, sent = found
    return {
        "status": True,
        "event": _event(call, listed),
        "deliveries": [
            {
                "delivery_id": DELIVERY_IDS.encode(row.id),
                "tracker_id": row.tracker_id,
                "state": DeliveryStatus(row.status).api_name,
                "attempt": row.attempt,
                "created_at": to_iso(row.created_at),
                "finished_at": to_iso(row.finished_at),
            }
            for row in sent
        ],
    }


async def event_csv(call: Call[SingleRowCsvQuery, None]) -> Response:
    """Return one event of the application as CSV, with the columns of the list."""
    found = await call.service.database.read(find_event, call.application_id, call.path["event_id"])
    if found is None:
        raise ApiError(ErrorCode.NOT_FOUND, "The application has no event with this id.")
    page: SerializedPage[None] = SerializedPage([_event(call, found[0])], None)

    async def read(after: None) -> SerializedPage[None]:
        return page

    return await csv_response(call, "event", stream_csv(read, lambda fields: fields, EVENT_CSV_COLUMNS, bom=call.query.bom))


def _event(call: Call[Any, None], listed: ListedEvent) -> dict[str, Any]:
    return serialize_event(listed, call.service.click_ids.encode)


def _event_filter(call: Call[Any, None]) -> EventFilter:
    query: EventsCsvQuery = call.query
    since, until = query.limits()
    return EventFilter(
        call.application_id,
        topic=None if query.event is None else Topic[query.event.upper()],
        message=query.message_id,
        campaign=query.campaign,
        since=since,
        until=until,
    )


_PAGES = (
    "Newest first. A page may contain fewer rows than `limit`, or none, and still have a `next_cursor`, because at most 10,000 "
    "rows are read to fill one page."
)
_ADDS_UP = (
    "With `metric`, the number of hits equals the figure of `/api/v1/sms/stats` with the same filters, as long as the hits are "
    "stored (HIT_RETENTION_DAYS). The period covers complete time slots of 15 minutes, as in the statistics."
)
_EVENTS = (
    f"The event log: each event that trackers can subscribe to ({', '.join(EVENT_NAMES)}). {_PAGES} `since` and `until` apply "
    "to the time of the event. Some events are reported long after their time, such as a conversion with an old "
    "`timestamp`. Events that were reported more than two days after `until` are missing in the list. "
    "`/api/v1/conversions` has no such limit."
)


def _list_endpoint(path: str, handler: Any, summary: str, query: Any, response: Any, description: str) -> Endpoint:
    return Endpoint(
        "GET",
        path,
        handler,
        summary,
        _TAG,
        permission="sms.read",
        query=query,
        response=response,
        media_type="application/json" if response else "text/csv",
        errors=(ErrorCode.INVALID_CURSOR,) if response else (),
        description=description,
    )


ENDPOINTS: Sequence[Endpoint] = [
    _list_endpoint("/api/v1/clicks", clicks, "List hits with their verdicts", ClicksQuery, ClicksResponse, f"{_PAGES} {_ADDS_UP}"),
    _list_endpoint("/api/v1/clicks.csv", clicks_csv, "Export hits as CSV", ClicksCsvQuery, None, _ADDS_UP),
    _list_endpoint("/api/v1/events", events, "List events", EventsQuery, EventsResponse, _EVENTS),
    _list_endpoint("/api/v1/events.csv", events_csv, "Export events as CSV", EventsCsvQuery, None, _EVENTS),
    Endpoint(
        "GET",
        "/api/v1/events/{event_id}.csv",
        event_csv,
        "Export an event as CSV",
        _TAG,
        permission="sms.read",
        query=SingleRowCsvQuery,
        media_type="text/csv",
        errors=(ErrorCode.NOT_FOUND,),
        description="One row with the columns of `/api/v1/events.csv`.",
    ),
    Endpoint(
        "GET",
        "/api/v1/events/{event_id}",
        event,
        "Show an event with its deliveries",
        _TAG,
        permission="sms.read",
        response=EventResponse,
        errors=(ErrorCode.NOT_FOUND,),
    ),
]
