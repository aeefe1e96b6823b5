"""Messages that gateways send: a list with the result of each, and decisions about messages that are held."""
# Tested by tests/web/test_sends.py

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from starlette.responses import Response

from shortener.errors import ErrorCode
from shortener.gateways import decisions
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Text

_TAG = "Gateways"
SendStatusName = Literal["pending", "held", "failed", "sent"]


class SendsQuery(RequestModel):
    """Filters of messages, and the position of the page in the list."""

    send_status: SendStatusName | None = Field(None, description="Only messages with this status. Default: all.")
    limit: int = Field(100, ge=1, le=1000, description="Maximum number of messages in a page.")
    cursor: Text | None = Field(None, max_length=20, description="`cursor` of the last message of the previous page.")


class SendFields(ResponseModel):
    """A message that was queued for a gateway."""

    message_id: str
    application_id: int
    gateway: str = Field(description="Name of the gateway.")
    send_status: SendStatusName = Field(
        description="pending: waits for an attempt. held: the gateway may have it, and somebody must decide. sent: accepted by the "
        "gateway. failed: given up."
    )
    doubtful: bool = Field(description="Whether the gateway may have accepted an attempt whose response is missing.")
    attempts: int = Field(description="Number of attempts that were started.")
    next_attempt_at: str | None = Field(description="Time of the next attempt. null: the message does not wait.")
    last_error: str | None = Field(description="Reason of the last failure, such as timeout. null: none.")
    last_status: int | None = Field(description="HTTP status of the last response. null: none.")
    gateway_message_id: str | None = Field(description="Id that the gateway assigned. null: none.")
    cost: str | None = Field(description="Price of the message as a decimal string. null: none, or it was returned.")
    created_at: str
    cursor: str = Field(description="Position of the message in the list.")


class SendsResponse(ResponseModel):
    """A page of messages, newest first."""

    status: Literal[True] = True
    sends: list[SendFields] = Field(description="Messages of this page.")


async def index(call: Call[SendsQuery, None]) -> Mapping[str, Any]:
    """Return messages that were queued for gateways, newest first."""
    query = call.query
    found = await call.service.database.read(
        decisions.list_sends, call.application_id, query.send_status, query.cursor, query.limit
    )
    return {"status": True, "sends": found}


async def resend(call: Call[None, None]) -> Response:
    """Hand a held message on again."""
    service = call.service
    await service.database.write(decisions.resend, call.application_id, call.path["message_id"], service.clock())
    service.gateway_dispatcher.wake_up.notify()
    return Response(status_code=204)


async def discard(call: Call[None, None]) -> Response:
    """Give up a held message."""
    service, writer = call.service, call.service.gateway_dispatcher.writer
    events = await service.database.write(decisions.discard, writer, call.application_id, call.path["message_id"], service.clock())
    writer.published(events)
    return Response(status_code=204)


_PATH = "/api/v1/sends"
_ERRORS = (ErrorCode.MESSAGE_NOT_FOUND, ErrorCode.CONFLICT)

ENDPOINTS = [
    Endpoint(
        "GET",
        _PATH,
        index,
        "List messages that gateways send",
        _TAG,
        permission="sms.read",
        query=SendsQuery,
        response=SendsResponse,
    ),
    Endpoint(
        "POST",
        f"{_PATH}/{{message_id}}/resend",
        resend,
        "Send a held message again",
        _TAG,
        permission="sms.send",
        status=204,
        errors=_ERRORS,
        description="The gateway may already have the message, so the recipient may get it twice.",
    ),
    Endpoint(
        "POST",
        f"{_PATH}/{{message_id}}/discard",
        discard,
        "Give up a held message",
        _TAG,
        permission="sms.send",
        status=204,
        errors=_ERRORS,
        description="The message becomes FAILED. Its cost is returned unless the gateway may have accepted it.",
    ),
]
