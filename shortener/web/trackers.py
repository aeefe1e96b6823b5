"""The endpoints that create, list, change, delete and test trackers, which receive events. A test event shows whether a tracker
works.

Reading requires `trackers.read` and not only `sms.read`, because URLs of trackers may contain credentials.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shortener.delivery.conversion_filter import DispositionName
from shortener.delivery.sample_delivery import send_test
from shortener.delivery.tracker_presenter import health_fields, sample_delivery_fields, tracker_fields, tracker_warnings
from shortener.delivery.trackers import TrackerSaveResult
from shortener.errors import ErrorCode
from shortener.model import EventName
from shortener.web.endpoint import Call, DeletedResponse, Endpoint, RequestModel, ResponseModel, until_disconnected
from shortener.web.tracker_requests import Format, Method, TrackerCreateRequest, TrackerUpdateRequest

_TAG = "Trackers"
_TRACKER_ERRORS = (
    ErrorCode.UNKNOWN_PLACEHOLDER,
    ErrorCode.INVALID_TRACKER_URL,
    ErrorCode.FORBIDDEN_TARGET,
    ErrorCode.CONFLICT,
)


class SuccessRule(ResponseModel):
    """The rule that determines which responses of a tracker count as success."""

    statuses: str = Field(description='HTTP statuses that count as success, for example "2xx" or "200,202-204".')
    body_contains: str | None = Field(description="Text that the response body must contain to count as success.")


class TrackerHealthFields(ResponseModel):
    """The health of the tracker. Deliveries beyond 10,000 are not counted."""

    breaker: Literal["closed", "open", "half_open", "recovering"] = Field(
        description=(
            "closed: deliveries are sent. open: deliveries wait, because attempts failed repeatedly or the tracker sent "
            "Retry-After. half_open: one delivery is sent as a probe. recovering: waiting deliveries are sent at a limited rate."
        )
    )
    open_until: str | None = Field(description="Time of the next attempt, a probe, while the circuit breaker is open.")
    failures_in_row: int = Field(description="Number of failed attempts since the last successful attempt.")
    rate: float | None = Field(
        description="Current maximum number of deliveries per second: `max_per_second`, or less after responses with 429. "
        "null: no limit."
    )
    last_success_at: str | None
    last_failure_at: str | None
    pending: int = Field(description="Number of deliveries that wait for an attempt, including parked deliveries.")
    dead: int = Field(description="Number of dead deliveries. A replayed delivery is not dead any more.")
    waiting_since: str | None = Field(description="Time when the oldest waiting delivery became due. null: no delivery is due.")


class TrackerFields(ResponseModel):
    tracker_id: int
    role: Literal["tracker", "conversion_url"] = Field(
        description="Origin of the tracker. conversion_url: it was created from the settings conversion_url and "
        "conversion_fields. tracker: it was created in any other way."
    )
    name: str
    enabled: bool
    disabled_reason: str | None = Field(description="Why the service disabled the tracker. null: the service did not disable it.")
    url: str
    events: list[EventName]
    conversion_actions: list[str] | None = Field(
        description="Actions of the conversions that the tracker receives. null: all actions."
    )
    conversion_dispositions: list[DispositionName] | None = Field(
        description=(
            "Dispositions of the conversions that the tracker receives. `none`: conversions without a disposition. null: all "
            "conversions."
        )
    )
    method: Method
    format: Format
    fields_: list[str] | None = Field(alias="fields")
    headers_set: bool = Field(description="true: the tracker has static headers. No response contains their values.")
    client_certificate_set: bool = Field(description="Whether the tracker has a client certificate. No response shows it.")
    secret_set: bool = Field(description="true: requests to the tracker are signed. No response contains the secret again.")
    previous_secret_until: str | None = Field(
        description="Time until which requests are also signed with the replaced secret. null: there is no replaced secret."
    )
    success: SuccessRule
    max_attempts: int = Field(description="Maximum number of attempts per delivery, including the first.")
    timeout: float = Field(description="Total time limit of one attempt, in seconds.")
    concurrency: int = Field(description="Maximum number of simultaneous attempts to the tracker.")
    max_per_second: float | None = Field(description="Maximum number of attempts per second. null: no limit.")
    schedule: list[float] = Field(
        description="Pauses between the attempts of a delivery, in seconds. If there are more "
        "attempts than pauses, the last pause is repeated."
    )
    with_suspected: bool = Field(description="Whether click events are also sent for hits that probably come from a program.")
    created_at: str
    updated_at: str


class TrackerWithHealth(TrackerFields):
    health: TrackerHealthFields


class SavedTracker(TrackerFields):
    secret: str | None = Field(
        description="The signing secret that the service generated. Only this response contains it. null: no secret was generated."
    )
    warnings: list[str] = Field(
        description="Warnings about the saved tracker, for example that some libraries cannot decode its signing secret."
    )


class TrackerResponse(TrackerWithHealth):
    """A tracker (the endpoint that receives events) and its health."""

    status: Literal[True] = True


class SavedTrackerResponse(SavedTracker):
    """The tracker after it was created or changed."""

    status: Literal[True] = True


class TrackersResponse(ResponseModel):
    """All trackers of the application, in the order of their creation."""

    status: Literal[True] = True
    trackers: list[TrackerFields]


class TrackerTestRequest(RequestModel):
    """The event to send as a test."""

    event: EventName | None = Field(
        None,
        description="Name of the event to send. Default: an event named `test`, with the values of an event to which "
        "the tracker subscribes.",
    )


class SampleDeliveryResponse(ResponseModel):
    """The result of the attempt to deliver a test event."""

    status: Literal[True] = True
    delivery_id: str
    event_id: str
    delivered: bool = Field(description="true: the tracker accepted the test event.")
    reason: str = Field(description="Outcome of the attempt, for example success or refused_in_body.")
    http_status: int | None
    error: str | None
    detail: str
    milliseconds: int = Field(description="Duration of the attempt in milliseconds.")
    answer: str = Field(description="The first 1,024 bytes of the response body.")


async def index(call: Call[None, None]) -> dict[str, Any]:
    """Return all trackers of the application."""
    trackers = await call.service.trackers.all(call.application_id)
    return {"status": True, "trackers": [tracker_fields(call.service.settings, tracker) for tracker in trackers]}


async def create(call: Call[None, TrackerCreateRequest]) -> dict[str, Any]:
    """Create a tracker of the application."""
    return _saved(call, await call.service.trackers.create(call.audit, call.application_id, call.body.to_tracker()))


async def show(call: Call[None, None]) -> dict[str, Any]:
    """Return a tracker with its health."""
    service = call.service
    tracker = await service.trackers.get(call.path["tracker_id"], call.application_id)
    backlog = await service.deliveries.backlog(tracker.id, service.clock())
    health = health_fields(tracker, backlog, service.clock())
    return {"status": True, **tracker_fields(service.settings, tracker), "health": health}


async def update(call: Call[None, TrackerUpdateRequest]) -> dict[str, Any]:
    """Change a tracker of the application."""
    saved = await call.service.trackers.update(call.audit, call.path["tracker_id"], call.body.to_changes(), call.application_id)
    call.service.dispatcher.wake_up.notify()  # If the tracker was enabled, deliveries that waited for this may be due now.
    return _saved(call, saved)


def _saved(call: Call[None, Any], saved: TrackerSaveResult) -> dict[str, Any]:
    fields = tracker_fields(call.service.settings, saved.tracker)
    return {"status": True, **fields, "secret": saved.secret, "warnings": tracker_warnings(saved.tracker, call.body.secret)}


async def remove(call: Call[None, None]) -> DeletedResponse:
    """Delete a tracker of the application."""
    await call.service.trackers.delete(call.audit, call.path["tracker_id"], call.application_id)
    call.service.dispatcher.wake_up.notify()
    return DeletedResponse()


async def test(call: Call[None, TrackerTestRequest | None]) -> dict[str, Any]:
    """Send a test event to a tracker and return the result of the attempt."""
    service = call.service
    with service.test_slots.take(call.application_id) as sender:
        sample = await until_disconnected(
            call.request,
            send_test(
                service.database,
                call.audit,
                service.trackers,
                sender,
                service.ids,
                service.clock,
                call.path["tracker_id"],
                allow_http=service.settings.allow_http_targets,
                application_id=call.application_id,
                event_name=call.body.event if call.body else None,
            ),
        )
    return {"status": True, **sample_delivery_fields(sample)}


ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/trackers",
        index,
        "List trackers",
        _TAG,
        permission="trackers.read",
        response=TrackersResponse,
    ),
    Endpoint(
        "POST",
        "/api/v1/trackers",
        create,
        "Create a tracker",
        _TAG,
        permission="trackers.write",
        body=TrackerCreateRequest,
        response=SavedTrackerResponse,
        status=201,
        errors=_TRACKER_ERRORS,
        description="A tracker is an endpoint that receives events. It receives the events that occur after it was created. "
        "Without `secret` the service generates one and returns it only in this response.",
    ),
    Endpoint(
        "GET",
        "/api/v1/trackers/{tracker_id:int}",
        show,
        "Show a tracker and its health",
        _TAG,
        permission="trackers.read",
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
        can_rotate=True,
        response=SavedTrackerResponse,
        errors=_TRACKER_ERRORS,
        description="Absent fields keep their values. `enabled: false` parks all pending and new deliveries: they wait until the "
        "tracker is enabled again. `enabled: true` for a disabled tracker sends them at a limited rate and closes an open circuit "
        "breaker. After a change of `secret`, requests are signed with both secrets for `secret_overlap` seconds.",
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
        body=TrackerTestRequest,
        body_optional=True,
        response=SampleDeliveryResponse,
        description="Sends one event with example values in a single attempt, even if the tracker is disabled. The response "
        "contains the result. Without `event` the event is named `test` and has the values of the first event to which the "
        "tracker subscribes. An application can run eight tests at a time, each of at most 15 seconds. The test ends if the "
        "caller disconnects.",
    ),
]
