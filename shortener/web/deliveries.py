"""The endpoints that list and replay deliveries of events to trackers and callback URLs. Reading deliveries requires
`trackers.read` and not only `sms.read`, because URLs and responses of trackers may contain credentials.
"""
# Tested by tests/web/test_trackers.py

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from shortener.delivery.deliveries import DeliveryFilter, StatusName
from shortener.delivery.tracker_presenter import attempt_fields, delivery_fields
from shortener.errors import ApiError, ErrorCode
from shortener.ids import DELIVERY_IDS
from shortener.model import DeliveryStatus
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Text
from shortener.web.paging import Cursor, Cursors, NextCursor
from shortener.web.period import Period

_TAG = "Deliveries"
MAX_LISTED = 1000  # the maximum number of deliveries that one request can replay
_CURSOR_KEY = "delivery cursors"


class DeliveryFields(ResponseModel):
    delivery_id: str
    tracker_id: int | None = Field(description="Id of the tracker; null for the callback URL of a message.")
    callback_url: str | None = Field(description="The callback URL of the message; null for a tracker.")
    event_id: str = Field(
        description="Id of the event, also sent as the header webhook-id. It is the same in every attempt and replay."
    )
    event: str = Field(description="Name of the event, for example click.")
    message_id: str | None
    status: StatusName = Field(
        description=(
            "State of the delivery. pending: another attempt will follow. parked: the tracker or the application is disabled. "
            "delivered: an attempt succeeded. dead: no further attempt will follow."
        )
    )
    attempt: int = Field(description="Number of attempts of the delivery that were started.")
    next_at: str | None = Field(
        description="Time of the next attempt. While an attempt is in flight: the time from which "
        "another process can repeat the attempt, if the process of this attempt has stopped."
    )
    created_at: str
    finished_at: str | None
    last_status: int | None = Field(description="HTTP status of the tracker's last response. null: there was no response.")
    last_error: str | None = Field(description="Error of the last attempt. null: the attempt succeeded, or there was no attempt.")


class AttemptFields(ResponseModel):
    attempt: int
    at: str
    milliseconds: int = Field(description="Duration of the attempt in milliseconds.")
    status: int | None = Field(description="HTTP status of the response to the attempt. null: there was no response.")
    error: str | None
    detail: str | None
    answer: str | None = Field(description="The first 1,024 bytes of the response body, as text.")


class DeliveryWithAttempts(DeliveryFields):
    attempts: list[AttemptFields] = Field(description="The last 500 attempts of the delivery, oldest first.")


class DeliveryResponse(ResponseModel):
    """A delivery of an event to a tracker, and its attempts."""

    status: Literal[True] = True
    delivery: DeliveryWithAttempts


class ReplayResponse(ResponseModel):
    """A delivery whose replay was requested. It is sent again, with the full number of attempts."""

    status: Literal[True] = True
    delivery: DeliveryFields


class DeliveriesResponse(ResponseModel):
    """One page of deliveries, newest first."""

    status: Literal[True] = True
    deliveries: list[DeliveryFields]
    next_cursor: NextCursor


class ReplayDeadResponse(ResponseModel):
    """The number of dead deliveries that will be sent again."""

    status: Literal[True] = True
    replayed: int
    more: bool = Field(description="true: dead deliveries remain, because one call replays at most 10,000. Repeat the call.")


class DeliveriesQuery(Period):
    """Filters of deliveries, and the position of the page in the list. The period refers to the creation of the deliveries."""

    status: StatusName | None = Field(None, description="Only deliveries with this status.")
    limit: int = Field(100, ge=1, le=1000, description="Maximum number of deliveries in a page.")
    cursor: Cursor = None


class ReplayListRequest(RequestModel):
    """The request body with the ids of the deliveries to replay."""

    delivery_ids: list[Annotated[Text, Field(max_length=64)]] = Field(
        min_length=1, max_length=MAX_LISTED, description=f"Ids of 1 to {MAX_LISTED} deliveries.", examples=[["dlv_0AbCdEfGh12"]]
    )


class ReplayedDelivery(ResponseModel):
    """The result for one delivery of the list."""

    delivery_id: str
    replayed: bool = Field(description="true: the delivery is sent again, with the full number of attempts.")
    error_code: str | None = Field(
        description="NOT_FOUND or CONFLICT for a delivery that cannot be replayed. null: it is replayed."
    )
    reason: str | None = Field(description="Text that explains why the delivery cannot be replayed. null: it is replayed.")


class ReplayListResponse(ResponseModel):
    """One entry for each delivery, in the order of the request."""

    status: Literal[True] = True
    replayed: int = Field(description="Number of deliveries that are sent again.")
    refused: int = Field(description="Number of deliveries that cannot be replayed.")
    results: list[ReplayedDelivery]


class ReplayRequest(Period):
    """The period in which the dead deliveries to replay were created. Default: all dead deliveries."""

    status: Literal["dead"] = "dead"


async def index(call: Call[DeliveriesQuery, None]) -> dict[str, Any]:
    """Return one page of deliveries, of one tracker or of the whole application."""
    service, query = call.service, call.query
    tracker_id = None
    if "tracker_id" in call.path:
        tracker_id = (await service.trackers.get(call.path["tracker_id"], call.application_id)).id
    cursors = Cursors(service.secret, _CURSOR_KEY)
    filters = _filter(call.application_id, tracker_id, query, query.status)
    page = await service.deliveries.page(filters, query.limit, cursors.decode(query.cursor))
    return {
        "status": True,
        "deliveries": [delivery_fields(delivery) for delivery in page.deliveries],
        "next_cursor": cursors.encode(page.next),
    }


async def show(call: Call[None, None]) -> dict[str, Any]:
    """Return a delivery with its attempts."""
    delivery, attempts = await call.service.deliveries.get(_delivery_id(call), call.application_id)
    fields = delivery_fields(delivery) | {"attempts": [attempt_fields(attempt) for attempt in attempts]}
    return {"status": True, "delivery": fields}


async def replay(call: Call[None, None]) -> dict[str, Any]:
    """Make a dead or delivered delivery pending again, with the full number of attempts."""
    service = call.service
    delivery = await service.deliveries.replay(call.audit, _delivery_id(call), service.clock(), call.application_id)
    service.dispatcher.wake_up.notify()
    return {"status": True, "delivery": delivery_fields(delivery)}


async def replay_list(call: Call[None, ReplayListRequest]) -> dict[str, Any]:
    """Make the deliveries in the list of the request pending again, with the full number of attempts."""
    service, names = call.service, list(dict.fromkeys(call.body.delivery_ids))
    decoded = {name: DELIVERY_IDS.decode(name) for name in names}
    ids = list({delivery_id for delivery_id in decoded.values() if delivery_id is not None})
    errors = await service.deliveries.replay_listed(call.audit, ids, service.clock(), call.application_id)
    service.dispatcher.wake_up.notify()
    unknown = ApiError(ErrorCode.NOT_FOUND, "There is no delivery with this id.")
    results = []
    for name, delivery_id in decoded.items():
        error = unknown if delivery_id is None else errors[delivery_id]
        code, reason = (None, None) if error is None else (error.code.name, error.description)
        results.append({"delivery_id": name, "replayed": error is None, "error_code": code, "reason": reason})
    replayed = sum(bool(one["replayed"]) for one in results)
    return {"status": True, "replayed": replayed, "refused": len(results) - replayed, "results": results}


async def replay_dead(call: Call[None, ReplayRequest | None]) -> ReplayDeadResponse:
    """Make the dead deliveries of a tracker pending again, with the full number of attempts."""
    service = call.service
    tracker = await service.trackers.get(call.path["tracker_id"], call.application_id)
    filters = _filter(call.application_id, tracker.id, call.body, None)
    replayed, last_id = await service.deliveries.replay_dead(call.audit, filters, service.clock())
    service.dispatcher.wake_up.notify()
    return ReplayDeadResponse(replayed=replayed, more=last_id is not None)


def _filter(application_id: int, tracker_id: int | None, period: Period | None, status: str | None) -> DeliveryFilter:
    since, until = period.limits() if period else (None, None)
    return DeliveryFilter(application_id, tracker_id, None if status is None else DeliveryStatus[status.upper()], since, until)


def _delivery_id(call: Call[None, None]) -> int:
    delivery_id = DELIVERY_IDS.decode(call.path["delivery_id"])
    if delivery_id is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no delivery with this id.")
    return delivery_id


_PAGES = (
    "Newest first. `cursor` requests the next page. A page may contain fewer deliveries than `limit`, or none, and still have a "
    "`next_cursor`, because with some filters at most 10,000 deliveries are read to fill one page."
)

ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/trackers/{tracker_id:int}/deliveries",
        index,
        "List the deliveries of a tracker",
        _TAG,
        permission="trackers.read",
        query=DeliveriesQuery,
        response=DeliveriesResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=_PAGES,
    ),
    Endpoint(
        "POST",
        "/api/v1/trackers/{tracker_id:int}/replay",
        replay_dead,
        "Replay the dead deliveries of a tracker",
        _TAG,
        permission="trackers.write",
        body=ReplayRequest,
        body_optional=True,
        response=ReplayDeadResponse,
        description="Sends dead deliveries again, oldest first and at a limited rate. Each delivery gets the full number of "
        "attempts again and keeps its event id.",
    ),
    Endpoint(
        "GET",
        "/api/v1/deliveries",
        index,
        "List all deliveries",
        _TAG,
        permission="trackers.read",
        query=DeliveriesQuery,
        response=DeliveriesResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=f"Includes the deliveries of every tracker and of the callback URLs of messages. {_PAGES}",
    ),
    Endpoint(
        "GET",
        "/api/v1/deliveries/{delivery_id}",
        show,
        "Show a delivery and its attempts",
        _TAG,
        permission="trackers.read",
        response=DeliveryResponse,
    ),
    Endpoint(
        "POST",
        "/api/v1/deliveries/replay",
        replay_list,
        "Replay deliveries by their ids",
        _TAG,
        permission="trackers.write",
        body=ReplayListRequest,
        response=ReplayListResponse,
        description="Each dead or delivered delivery of the list is sent again, with the full number of attempts and the "
        "same event id. Each is replayed or refused separately. An id that occurs twice is replayed once.",
    ),
    Endpoint(
        "POST",
        "/api/v1/deliveries/{delivery_id}/replay",
        replay,
        "Replay a delivery",
        _TAG,
        permission="trackers.write",
        response=ReplayResponse,
        errors=(ErrorCode.CONFLICT,),
        description=(
            "A dead or delivered delivery is sent again, with the full number of attempts and the same event id. For a "
            "pending delivery, the call returns 409."
        ),
    ),
]
