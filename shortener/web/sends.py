"""The endpoints that list the messages in the queues of gateways, and that resend or discard held messages."""
# Tested by tests/web/test_sends.py

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Connection

from shortener.errors import ApiError, ErrorCode
from shortener.gateways import decisions
from shortener.gateways.sends import find_send, list_sends, send_fields
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.paging import Cursor, Cursors, NextCursor

_TAG = "Gateways"
SendStatusName = Literal["pending", "held", "failed", "sent"]


class SendsQuery(RequestModel):
    """Filters of messages, and the position of the page in the list."""

    send_status: SendStatusName | None = Field(None, description="Only messages with this status. Default: all.")
    limit: int = Field(100, ge=1, le=1000, description="Maximum number of messages in a page.")
    cursor: Cursor = None


class SendFields(ResponseModel):
    """A message that was queued for a gateway."""

    message_id: str
    application_id: int
    gateway: str = Field(description="Name of the gateway.")
    send_status: SendStatusName = Field(
        description="pending: waits for an attempt. held: the gateway may have accepted the message; resend or discard it. sent: "
        "accepted by the gateway. failed: given up."
    )
    doubtful: bool = Field(description="true: the response to an attempt is missing, so the gateway may have accepted the message.")
    attempts: int = Field(description="Number of attempts that were started.")
    next_attempt_at: str | None = Field(description="Time of the next attempt. null: no attempt is planned.")
    last_error: str | None = Field(
        description="Reason of the last failed attempt, such as timeout, or reason why the message was given up, such as discarded "
        "or erased. null: neither has happened."
    )
    last_status: int | None = Field(description="HTTP status of the last response. null: there was no HTTP response.")
    gateway_message_id: str | None = Field(description="Id that the gateway assigned. null: the gateway has not assigned an id.")
    cost: str | None = Field(description="Price of the message as a decimal string. null: there is no price, or it was refunded.")
    created_at: str
    finished_at: str | None = Field(description="Time when the gateway accepted the message, or when the message was given up.")


class SendsResponse(ResponseModel):
    """A page of messages, newest first."""

    status: Literal[True] = True
    sends: list[SendFields] = Field(description="Messages of this page.")
    next_cursor: NextCursor


class SendDecisionResponse(ResponseModel):
    """The message after the caller has decided to send it again or to give it up."""

    status: Literal[True] = True
    send: SendFields = Field(description="The message with its new state in the queue of the gateway.")


async def index(call: Call[SendsQuery, None]) -> Mapping[str, Any]:
    """Return messages that were queued for gateways, newest first."""
    query, cursors = call.query, Cursors(call.service.secret, "sends")
    page = await call.service.database.read(
        list_sends, call.application_id, query.send_status, cursors.decode(query.cursor), query.limit
    )
    return {"status": True, "sends": [send_fields(row) for row in page.rows], "next_cursor": cursors.encode(page.next)}


async def resend(call: Call[None, None]) -> Mapping[str, Any]:
    """Hand a held message on to its gateway again."""
    service = call.service
    message_id = call.path["message_id"]

    def write(connection: Connection) -> Mapping[str, Any]:
        args = connection, call.audit, call.application_id, message_id
        return _decided(connection, decisions.resend(*args, service.clock(), service.clock_guard.leases_wait))

    decided = await service.database.write(write)
    service.gateway_dispatcher.wake_up.notify()
    return decided


async def discard(call: Call[None, None]) -> Mapping[str, Any]:
    """Give up a held message."""
    service, writer, message_id = call.service, call.service.gateway_dispatcher.writer, call.path["message_id"]

    def write(connection: Connection) -> tuple[Mapping[str, Any], int]:
        args = connection, call.audit, writer, call.application_id, message_id
        row_id, events = decisions.discard(*args, service.clock(), service.clock_guard.leases_wait)
        return _decided(connection, row_id), events

    decided, events = await service.database.write(write)
    writer.published(events)
    return decided


def _decided(connection: Connection, row_id: int) -> Mapping[str, Any]:
    """Return the response to a decision: the message with its new state. The message is read in the transaction of the decision,
    because a read after the commit could fail."""
    found = find_send(connection, row_id)
    if found is None:
        raise ApiError(ErrorCode.MESSAGE_NOT_FOUND)
    return {"status": True, "send": send_fields(found.row)}


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
        errors=(ErrorCode.INVALID_CURSOR,),
    ),
    Endpoint(
        "POST",
        f"{_PATH}/{{message_id}}/resend",
        resend,
        "Send a held message again",
        _TAG,
        permission="sms.send",
        response=SendDecisionResponse,
        errors=_ERRORS,
        description=(
            "Hands a held message on to its gateway again. The gateway may already have the message, so the recipient may get "
            "it twice."
        ),
    ),
    Endpoint(
        "POST",
        f"{_PATH}/{{message_id}}/discard",
        discard,
        "Give up a held message",
        _TAG,
        permission="sms.send",
        response=SendDecisionResponse,
        errors=_ERRORS,
        description="The message is given up and becomes FAILED. If its delivery report has already arrived, it keeps the "
        "reported state. Its cost is refunded, unless the gateway may have accepted the message.",
    ),
]
