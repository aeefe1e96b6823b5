"""The endpoints that create, list, show, change, test and remove the gateways of the caller's application.

Gateways of the installation are managed on the command line. Credentials are stored encrypted and are never returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field

from shortener.delivery.pace import MAX_PER_SECOND, MIN_PER_SECOND
from shortener.errors import ErrorCode
from shortener.gateways.gateway import GatewayChanges, NewGateway
from shortener.gateways.presenter import gateway_fields, test_fields
from shortener.gateways.presets import PRESETS
from shortener.gateways.testing import TEST_TEXT, send_test_message
from shortener.messages.phone_numbers import parse_recipient
from shortener.web.endpoint import Call, DeletedResponse, Endpoint, RequestModel, ResponseModel, until_disconnected
from shortener.web.fields import Sender, Text

_TAG = "Gateways"
PresetName = Literal["kannel", "jasmin", "playsms", "twilio", "infobip", "vonage", "plain"]
_Schedule = Annotated[list[Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]], Field(min_length=1, max_length=50)]


class GatewayLimits(RequestModel):
    """How messages are handed on to a gateway. If a field is absent or null, the setting of the installation applies."""

    enabled: bool | None = Field(None, description="false: messages wait until the gateway is enabled again. Default: true.")
    on_doubt: Literal["resend", "hold"] | None = Field(
        None,
        description="What happens if the gateway may have accepted a message but its response is missing. resend (default): send "
        "the message again, so it may arrive twice. hold: the service does not send the message again by itself. The hold "
        "ends when a delivery report arrives, or when a caller resends or discards the message.",
    )
    max_attempts: int | None = Field(
        None, ge=1, le=50, description="Maximum number of attempts to send a message. Default: GATEWAY_ATTEMPTS."
    )
    timeout: float | None = Field(
        None, gt=0, le=60, allow_inf_nan=False, description="Time limit of an attempt in seconds. Default: GATEWAY_TIMEOUT."
    )
    concurrency: int | None = Field(
        None, ge=1, le=1024, description="Maximum number of simultaneous attempts. Default: GATEWAY_SLOTS_PER_GATEWAY."
    )
    max_per_second: float | None = Field(
        None,
        ge=MIN_PER_SECOND,
        le=MAX_PER_SECOND,
        allow_inf_nan=False,
        description="Maximum number of messages per second. Default: no limit.",
    )
    schedule: _Schedule | None = Field(None, description="Seconds between the attempts. Default: GATEWAY_SCHEDULE.")


class GatewayCreateRequest(GatewayLimits):
    """A new gateway, from a preset with its options, or from complete settings."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "my gateway", "preset": "plain", "options": {"url": "https://gw.example/send", "token": "..."}}]
        }
    )

    name: Text = Field(max_length=64, description="Name of the gateway. Applications and requests select the gateway by this name.")
    kind: Literal["http", "smpp", "simulator"] = Field("http", description="Kind of the gateway. simulator: sends nothing.")
    preset: PresetName | None = Field(
        None, description="For the kind http: the preset for a product. The preset plain is a simple JSON call."
    )
    options: dict[str, str] = Field(
        {}, description="Options of the preset, such as url, username and password. The error of an unknown option lists them."
    )
    settings: dict[str, Any] = Field(
        {}, description="Settings for this kind of gateway. They replace the values of the preset with the same names."
    )


class GatewayUpdateRequest(GatewayLimits):
    """The fields to change. Absent fields keep their values. If a limit is null, the setting of the installation applies again."""

    name: Text | None = Field(None, max_length=64, description="New name of the gateway.")
    settings: dict[str, Any] | None = Field(
        None,
        description="Settings to change. Absent settings keep their stored values. A dot in the name changes one member of an "
        "object, such as variables.password; null removes the member. A value that is only ***, the mask of a hidden value, is "
        "rejected.",
    )
    rotate_report_key: bool = Field(
        False, description="true: create a new key for the URL of delivery reports. The old URL stops working."
    )


class GatewayHealthFields(ResponseModel):
    breaker: Literal["closed", "open", "half_open", "recovering"] = Field(description="State of the circuit breaker.")
    failures_in_row: int = Field(description="Number of failed attempts since the last success.")
    open_until: str | None = Field(description="Time until which the circuit breaker is open. null: it is closed.")
    last_success_at: str | None
    last_failure_at: str | None
    rate: float | None = Field(description="Current maximum number of messages per second to the gateway. null: no limit.")


class GatewayFields(ResponseModel):
    gateway_id: int = Field(description="Id of the gateway.")
    name: str
    kind: str = Field(description="Kind of the gateway: http, smpp or simulator.")
    preset: str | None = Field(description="Preset from which the gateway was created. null: it was created without a preset.")
    application_id: int | None = Field(description="Id of the application that owns the gateway. null: owned by the installation.")
    enabled: bool
    allow_private: bool = Field(
        description=("Whether the host of the gateway may have a private IP address. Only the command line can permit this.")
    )
    on_doubt: Literal["resend", "hold"] = Field(
        description="What happens to a message if the response of the gateway is missing: resend or hold."
    )
    max_attempts: int
    timeout: float
    concurrency: int
    max_per_second: float | None
    schedule: list[float]
    settings: dict[str, Any] = Field(
        description=(
            "Settings for this kind of gateway, without credentials. In the query of the URL, *** replaces each value that may be"
            " a credential."
        )
    )
    report_url: str = Field(
        description="URL to which the gateway sends delivery reports. The service adds the reference of each message to it."
    )
    health: GatewayHealthFields
    created_at: str
    updated_at: str


class GatewayResponse(GatewayFields):
    """A gateway with its current settings, without credentials."""

    status: Literal[True] = True


class GatewaysResponse(ResponseModel):
    """The gateways of the application, oldest first."""

    status: Literal[True] = True
    gateways: list[GatewayFields] = Field(description="The gateways of the application.")


class GatewayTestRequest(RequestModel):
    """A test message. The gateway really sends it to the recipient."""

    to: Text = Field(max_length=64, examples=["+14085550100"], description="Phone number that receives the test message, in E.164.")
    sender_id: Sender = Field("", description="Sender of the test message.")
    text: Text = Field(TEST_TEXT, min_length=1, max_length=1000, description="Text of the test message.")


class GatewayTestResponse(ResponseModel):
    """The result of the test."""

    status: Literal[True] = True
    outcome: Literal["accepted", "rejected", "retry", "doubt", "unreadable"] = Field(
        description="Outcome of the attempt. retry: a temporary failure. doubt: the response is missing. unreadable: the "
        "response does not say whether the gateway accepted the message."
    )
    reason: str = Field(description="Short name of the result, such as accepted, rejected or timeout.")
    detail: str = Field(description="Error text of the gateway, or text that explains the failure.")
    error_code: str | None
    gateway_message_id: str | None = Field(description="Id of the message that the gateway assigned.")
    http_status: int | None
    milliseconds: int = Field(description="Duration of the attempt in milliseconds.")


async def index(call: Call[None, None]) -> Mapping[str, Any]:
    """Return the gateways of the application."""
    service, now = call.service, call.service.clock()
    found = await service.gateways.all(call.application_id)
    return {"status": True, "gateways": [gateway_fields(service.settings, one, now) for one in found]}


async def create(call: Call[None, GatewayCreateRequest]) -> Mapping[str, Any]:
    """Create a gateway of the application."""
    service, body = call.service, call.body
    new = NewGateway(
        name=body.name,
        kind=body.kind,
        preset=body.preset or "",
        options=body.options,
        settings=body.settings,
        enabled=body.enabled is not False,
        on_doubt=body.on_doubt or "resend",
        max_attempts=body.max_attempts,
        timeout=body.timeout,
        concurrency=body.concurrency,
        max_per_second=body.max_per_second,
        schedule=body.schedule,
    )
    created = await service.gateways.create(call.audit, call.application_id, new)
    await service.directory.refresh_if_available()
    return {"status": True, **gateway_fields(service.settings, created, service.clock())}


async def show(call: Call[None, None]) -> Mapping[str, Any]:
    """Return one gateway of the application."""
    service = call.service
    found = await service.gateways.get(call.path["gateway_id"], call.application_id)
    return {"status": True, **gateway_fields(service.settings, found, service.clock())}


async def update(call: Call[None, GatewayUpdateRequest]) -> Mapping[str, Any]:
    """Change a gateway of the application."""
    service = call.service
    changes = call.body.model_dump(include=call.body.model_fields_set)
    for name in ("name", "enabled", "on_doubt", "settings"):
        if name in changes and changes[name] is None:
            del changes[name]
    changed = await service.gateways.update(call.audit, call.path["gateway_id"], cast(GatewayChanges, changes), call.application_id)
    await service.directory.refresh_if_available()
    return {"status": True, **gateway_fields(service.settings, changed, service.clock())}


async def remove(call: Call[None, None]) -> DeletedResponse:
    """Remove a gateway of the application."""
    await call.service.gateways.remove(call.audit, call.path["gateway_id"], call.application_id)
    await call.service.directory.refresh_if_available()
    return DeletedResponse()


async def test(call: Call[None, GatewayTestRequest]) -> Mapping[str, Any]:
    """Hand a test message on to a gateway of the application."""
    service, body = call.service, call.body
    gateway = await service.gateways.get(call.path["gateway_id"], call.application_id)
    phone = parse_recipient(body.to, "to")
    context, timeout = service.gateway_connections.context, gateway.timeout or service.settings.gateway_timeout
    with service.test_slots.take(call.application_id):
        sending = send_test_message(
            service.database,
            call.audit,
            gateway,
            context,
            service.ids,
            phone=phone,
            sender_id=body.sender_id,
            text=body.text,
            timeout=timeout,
        )
        result = await until_disconnected(call.request, sending)
    return {"status": True, **test_fields(result)}


assert set(PRESETS) == set(PresetName.__args__)  # type: ignore[attr-defined]  # PresetName is a Literal
_PATH = "/api/v1/gateways"
_ERRORS = (ErrorCode.FORBIDDEN_TARGET, ErrorCode.CONFLICT)

ENDPOINTS = [
    Endpoint("GET", _PATH, index, "List gateways", _TAG, permission="admin", response=GatewaysResponse),
    Endpoint(
        "POST",
        _PATH,
        create,
        "Create a gateway",
        _TAG,
        permission="admin",
        body=GatewayCreateRequest,
        response=GatewayResponse,
        status=201,
        errors=_ERRORS,
        description="The gateway sends the messages of requests that name it. To make it the default gateway of the "
        "application, set `gateway` to its name with `PATCH /api/v1/application`. Credentials are stored encrypted and never "
        "returned.",
    ),
    Endpoint("GET", f"{_PATH}/{{gateway_id:int}}", show, "Show a gateway", _TAG, permission="admin", response=GatewayResponse),
    Endpoint(
        "PATCH",
        f"{_PATH}/{{gateway_id:int}}",
        update,
        "Change a gateway",
        _TAG,
        permission="admin",
        body=GatewayUpdateRequest,
        can_rotate=True,
        response=GatewayResponse,
        errors=_ERRORS,
        description="If the circuit breaker of the gateway is open, a change of `settings` closes it. So does `enabled: "
        "true` for a disabled gateway.",
    ),
    Endpoint(
        "DELETE",
        f"{_PATH}/{{gateway_id:int}}",
        remove,
        "Remove a gateway",
        _TAG,
        permission="admin",
        response=DeletedResponse,
        description="Messages that wait for the gateway become FAILED. If this was the default gateway of the application, "
        "the application has no gateway afterwards. Its messages are then rewritten but not sent, and each response has a "
        "warning that begins with NOT_SENT.",
    ),
    Endpoint(
        "POST",
        f"{_PATH}/{{gateway_id:int}}/test",
        test,
        "Send a test message",
        _TAG,
        permission="admin",
        body=GatewayTestRequest,
        response=GatewayTestResponse,
        errors=(ErrorCode.INVALID_RECIPIENT, ErrorCode.OPTED_OUT),
        description="Hands one message on to the gateway in a single attempt of at most 15 seconds, and returns the result. The "
        "gateway really sends the message to the number. The message is not stored, and its cost is not deducted from"
        " the balance. A number on the opt-out list of the application "
        "gets `OPTED_OUT`.",
    ),
]
