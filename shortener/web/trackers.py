"""Trackers and their deliveries. Everything here wants `trackers.write`, reading too: URLs and answers may hold credentials."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shortener.delivery.deliveries import DeliveryFilter, StatusName
from shortener.delivery.sample_delivery import send_test
from shortener.delivery.tracker_presenter import (
    attempt_fields,
    delivery_fields,
    health_fields,
    sample_delivery_fields,
    tracker_fields,
)
from shortener.delivery.trackers import Tracker, TrackerSaveResult
from shortener.errors import ApiError, ErrorCode
from shortener.ids import ClickIds, decode
from shortener.model import DeliveryStatus, EventName
from shortener.times import end_of, start_of
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.period import Period
from shortener.web.tracker_requests import Format, Method, TrackerCreateRequest, TrackerUpdateRequest

_TAG = "Trackers"
_WRONG_TRACKER = (
    ErrorCode.UNKNOWN_PLACEHOLDER,
    ErrorCode.INVALID_TRACKER_URL,
    ErrorCode.FORBIDDEN_TARGET,
    ErrorCode.CONFLICT,
)


class SuccessRule(ResponseModel):
    statuses: str = Field(description='A set of statuses such as "2xx" or "200,202-204".')
    body_contains: str | None = Field(description="A text that the body of the answer must hold.")


class TrackerHealthFields(ResponseModel):
    """How the tracker is doing. Counts go up to 10,000."""

    breaker: Literal["closed", "open", "half_open", "recovering"] = Field(
        description="open: deliveries wait, after failures in a row or because it asked for quiet; half_open: one goes as a probe; "
        "recovering: the backlog is released at a bounded rate."
    )
    open_until: str | None
    failures_in_row: int
    last_success_at: str | None
    last_failure_at: str | None
    pending: int = Field(description="Deliveries that have attempts left; parked ones too.")
    dead: int = Field(description="Deliveries that ended without success and were not replayed.")
    waiting_since: str | None = Field(description="When the delivery that has waited longest was due.")


class TrackerFields(ResponseModel):
    tracker_id: int
    role: Literal["tracker", "conversion_url"] = Field(
        description="conversion_url: it stands for the application's conversion_url and conversion_fields."
    )
    name: str
    enabled: bool
    disabled_reason: str | None
    url: str
    events: list[EventName]
    method: Method
    format: Format
    fields_: list[str] | None = Field(alias="fields")
    headers_set: bool
    secret_set: bool
    previous_secret_until: str | None = Field(description="Until when the replaced secret goes on signing.")
    success: SuccessRule
    max_attempts: int
    timeout: float
    concurrency: int
    schedule: list[float]
    with_suspected: bool = Field(description="Click events also of hits that are suspected to be no person's.")
    created_at: str
    updated_at: str


class TrackerWithHealth(TrackerFields):
    health: TrackerHealthFields


class SavedTracker(TrackerFields):
    secret: str | None = Field(description="The signing secret that was just made, shown this once; null when none was.")


class TrackerResponse(TrackerWithHealth):
    """The tracker and how it is doing."""

    status: Literal[True] = True


class SavedTrackerResponse(SavedTracker):
    """The tracker as it is now."""

    status: Literal[True] = True


class TrackersResponse(ResponseModel):
    """All trackers, in the order in which they were made."""

    status: Literal[True] = True
    trackers: list[TrackerFields]


class DeliveryFields(ResponseModel):
    delivery_id: str
    tracker_id: int | None = Field(description="null: a message's own callback.")
    callback_url: str | None
    event_id: str = Field(description="What the event is told by, also as the header webhook-id; stable over attempts and replays.")
    event: str = Field(description="What it is told as, for example click.")
    message_id: str | None
    status: StatusName = Field(description="parked: its tracker is disabled.")
    attempt: int = Field(description="Attempts that were begun.")
    next_at: str | None = Field(description="When the next attempt is due; the end of the lease while one is under way.")
    created_at: str
    finished_at: str | None
    last_status: int | None = Field(description="HTTP status of the last answer.")
    last_error: str | None


class AttemptFields(ResponseModel):
    attempt: int
    at: str
    milliseconds: int
    status: int | None
    error: str | None
    detail: str | None
    answer: str | None = Field(description="The first KiB of what came back.")


class DeliveryWithAttempts(DeliveryFields):
    attempts: list[AttemptFields] = Field(description="Oldest first; the last 500.")


class DeliveryResponse(ResponseModel):
    """The delivery and what was tried."""

    status: Literal[True] = True
    delivery: DeliveryWithAttempts


class ReplayResponse(ResponseModel):
    """The delivery, due again."""

    status: Literal[True] = True
    delivery: DeliveryFields


class DeliveriesResponse(ResponseModel):
    """Newest first."""

    status: Literal[True] = True
    deliveries: list[DeliveryFields]
    next_cursor: str | None = Field(description="For the next page; null on the last one.")


class ReplayDeadResponse(ResponseModel):
    """How many are due again."""

    status: Literal[True] = True
    replayed: int
    more: bool = Field(description="At most 10,000 are replayed by one call: call again for the others.")


class SampleDeliveryResponse(ResponseModel):
    """What came of the attempt."""

    status: Literal[True] = True
    delivery_id: str
    event_id: str
    delivered: bool
    reason: str = Field(description="A row of the table of outcomes, for example success or refused_in_body.")
    http_status: int | None
    error: str | None
    detail: str
    milliseconds: int
    answer: str = Field(description="The first KiB of what came back.")


class DeliveriesQuery(Period):
    """Which deliveries, by when they were made, and which page of them."""

    status: StatusName | None = None
    limit: int = Field(100, ge=1, le=1000, description="Deliveries of a page.")
    cursor: str | None = Field(None, max_length=100, description="`next_cursor` of the page before.")


class ReplayRequest(Period):
    """Which dead deliveries, by when they were made; all when empty."""

    status: Literal["dead"] = "dead"


async def trackers(call: Call[None, None]) -> dict[str, Any]:
    found = await call.service.trackers.all(call.application_id)
    return {"status": True, "trackers": [tracker_fields(call.service.settings, tracker) for tracker in found]}


async def create(call: Call[None, TrackerCreateRequest]) -> dict[str, Any]:
    return _saved(call, await call.service.trackers.create(call.application_id, call.body.to_tracker()))


async def tracker(call: Call[None, None]) -> dict[str, Any]:
    service = call.service
    found = await service.trackers.get(call.path["tracker_id"], call.application_id)
    backlog = await service.deliveries.backlog(found.id, service.clock())
    health = health_fields(found, backlog, service.clock())
    return {"status": True, **tracker_fields(service.settings, found), "health": health}


async def update(call: Call[None, TrackerUpdateRequest]) -> dict[str, Any]:
    saved = await call.service.trackers.update(call.path["tracker_id"], call.body.to_changes(), call.application_id)
    call.service.dispatcher.wake_up.notify()  # it may have been enabled
    return _saved(call, saved)


def _saved(call: Call[None, Any], saved: TrackerSaveResult) -> dict[str, Any]:
    return {"status": True, **tracker_fields(call.service.settings, saved.tracker), "secret": saved.secret}


class DeletedResponse(ResponseModel):
    """Deleted; what was still to be delivered to it ends dead."""

    status: Literal[True] = True


async def remove(call: Call[None, None]) -> DeletedResponse:
    await call.service.trackers.delete(call.path["tracker_id"], call.application_id)
    call.service.dispatcher.wake_up.notify()
    return DeletedResponse()


async def test(call: Call[None, None]) -> dict[str, Any]:
    service = call.service
    sample = await send_test(
        service.database,
        service.trackers,
        service.sender,
        service.ids,
        service.clock,
        call.path["tracker_id"],
        allow_http=service.settings.allow_http_targets,
        application_id=call.application_id,
    )
    return {"status": True, **sample_delivery_fields(sample)}


async def deliveries(call: Call[DeliveriesQuery, None]) -> dict[str, Any]:
    found = None
    if "tracker_id" in call.path:
        found = await call.service.trackers.get(call.path["tracker_id"], call.application_id)
    query = call.query
    cursors = ClickIds(call.service.secret.key("delivery cursors"))  # one that we did not make is told apart
    below = None
    if query.cursor is not None:
        below = cursors.decode(query.cursor)
        if below is None:
            raise ApiError(ErrorCode.INVALID_CURSOR)
    wanted = _wanted(call.application_id, found, query, query.status)
    page = await call.service.deliveries.page(wanted, query.limit, below)
    return {
        "status": True,
        "deliveries": [delivery_fields(delivery) for delivery in page.deliveries],
        "next_cursor": None if page.next is None else cursors.encode(page.next),
    }


def _wanted(application_id: int, tracker: Tracker | None, period: Period | None, status: str | None) -> DeliveryFilter:
    since, until = (period.since, period.until) if period else (None, None)
    return DeliveryFilter(
        application_id,
        None if tracker is None else tracker.id,
        None if status is None else DeliveryStatus[status.upper()],
        None if since is None else start_of(since),
        None if until is None else end_of(until),
    )


async def delivery(call: Call[None, None]) -> dict[str, Any]:
    found, attempts = await call.service.deliveries.get(_delivery_id(call), call.application_id)
    told = delivery_fields(found) | {"attempts": [attempt_fields(attempt) for attempt in attempts]}
    return {"status": True, "delivery": told}


async def replay(call: Call[None, None]) -> dict[str, Any]:
    service = call.service
    replayed = await service.deliveries.replay(_delivery_id(call), service.clock(), call.application_id)
    service.dispatcher.wake_up.notify()
    return {"status": True, "delivery": delivery_fields(replayed)}


async def replay_dead(call: Call[None, ReplayRequest | None]) -> ReplayDeadResponse:
    service = call.service
    found = await service.trackers.get(call.path["tracker_id"], call.application_id)
    wanted = _wanted(call.application_id, found, call.body, None)
    replayed, after = await service.deliveries.replay_dead(wanted, service.clock())
    service.dispatcher.wake_up.notify()
    return ReplayDeadResponse(replayed=replayed, more=after is not None)


def _delivery_id(call: Call[None, None]) -> int:
    number = decode(call.path["delivery_id"])
    if number is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no such delivery.")
    return number


_PAGES = (
    "Newest first. Ask for the next page with `cursor`. A page may hold fewer deliveries than `limit`, or none, and still have a "
    "`next_cursor`: filters that no index answers look among 10,000 deliveries at a time."
)

ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/trackers",
        trackers,
        "List trackers",
        _TAG,
        permission="trackers.write",
        response=TrackersResponse,
    ),
    Endpoint(
        "POST",
        "/api/v1/trackers",
        create,
        "Make a tracker",
        _TAG,
        permission="trackers.write",
        body=TrackerCreateRequest,
        response=SavedTrackerResponse,
        status=201,
        errors=_WRONG_TRACKER,
        description="Events that happen from now on are delivered to it. Without `secret` one is made, shown in this answer only.",
    ),
    Endpoint(
        "GET",
        "/api/v1/trackers/{tracker_id:int}",
        tracker,
        "Show a tracker and how it is doing",
        _TAG,
        permission="trackers.write",
        response=TrackerResponse,
    ),
    Endpoint(
        "PATCH",
        "/api/v1/trackers/{tracker_id:int}",
        update,
        "Change a tracker",
        _TAG,
        permission="trackers.write",
        body=TrackerUpdateRequest,
        response=SavedTrackerResponse,
        errors=_WRONG_TRACKER,
        description="What is absent stays as it is. Disabling parks what is pending and what comes; `enabled: true` lets it go on, "
        "at a bounded rate, and closes an open breaker. A new `secret` signs beside the present one for `secret_overlap` seconds.",
    ),
    Endpoint(
        "DELETE",
        "/api/v1/trackers/{tracker_id:int}",
        remove,
        "Delete a tracker",
        _TAG,
        permission="trackers.write",
        response=DeletedResponse,
    ),
    Endpoint(
        "POST",
        "/api/v1/trackers/{tracker_id:int}/test",
        test,
        "Send a test event",
        _TAG,
        permission="trackers.write",
        response=SampleDeliveryResponse,
        description="One `test` event, one attempt, now, also while the tracker is disabled; the answer tells what came of it.",
    ),
    Endpoint(
        "GET",
        "/api/v1/trackers/{tracker_id:int}/deliveries",
        deliveries,
        "List deliveries of a tracker",
        _TAG,
        permission="trackers.write",
        query=DeliveriesQuery,
        response=DeliveriesResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=_PAGES,
    ),
    Endpoint(
        "POST",
        "/api/v1/trackers/{tracker_id:int}/replay",
        replay_dead,
        "Replay a tracker's dead deliveries",
        _TAG,
        permission="trackers.write",
        body=ReplayRequest,
        body_optional=True,
        response=ReplayDeadResponse,
        description="Oldest first. They get all their attempts anew, with the same event ids, at a bounded rate.",
    ),
    Endpoint(
        "GET",
        "/api/v1/deliveries",
        deliveries,
        "List all deliveries",
        _TAG,
        permission="trackers.write",
        query=DeliveriesQuery,
        response=DeliveriesResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=f"Those of every tracker, and the callbacks of messages. {_PAGES}",
    ),
    Endpoint(
        "GET",
        "/api/v1/deliveries/{delivery_id}",
        delivery,
        "Show a delivery and its attempts",
        _TAG,
        permission="trackers.write",
        response=DeliveryResponse,
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
        description="A dead or a delivered one gets all its attempts anew, with the same event id.",
    ),
]
