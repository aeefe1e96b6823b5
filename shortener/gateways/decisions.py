"""Messages that wait for a gateway or are held: list them, hand them on again, or give them up.

Somebody decides about a held message: `resend` hands it on again, although the recipient may then get it twice, and `discard` makes
it FAILED. Both are possible for messages that wait, too. A message whose attempt is in flight cannot be changed.
"""

# Tested by tests/web/test_sends.py

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from shortener.errors import ApiError, ErrorCode
from shortener.gateways.expiry import find_sends
from shortener.gateways.finishing import SendWriter, failed
from shortener.ids import decode, encode
from shortener.model import SendStatus
from shortener.storage.schema import gateways, messages, sends
from shortener.storage.types import to_iso, to_ms

#: The statuses that the list can be limited to.
STATUSES = ("pending", "held", "failed", "sent")


def list_sends(
    connection: Connection, application_id: int | None, status: str | None, cursor: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """Return messages of an application (None: of all) that were queued for gateways, newest first. `cursor` is the last entry."""
    statement = (
        select(sends, messages.c.message_id, gateways.c.name.label("gateway"))
        .join_from(sends, messages, messages.c.id == sends.c.id)
        .join(gateways, gateways.c.id == sends.c.gateway_id)
    )
    if application_id is not None:
        statement = statement.where(sends.c.application_id == application_id)
    if status is not None:
        statement = statement.where(sends.c.status == int(SendStatus[status.upper()]))
    before = decode(cursor) if cursor else None
    if before is not None:
        statement = statement.where(sends.c.id < before)
    rows = connection.execute(statement.order_by(sends.c.id.desc()).limit(limit))
    return [
        {
            "message_id": row.message_id,
            "application_id": row.application_id,
            "gateway": row.gateway,
            "send_status": SendStatus(row.status).api_name,
            "doubtful": row.doubtful,
            "attempts": row.attempt,
            "next_attempt_at": to_iso(row.next_at) if row.status == SendStatus.PENDING else None,
            "last_error": row.last_error,
            "last_status": row.last_status,
            "gateway_message_id": row.gateway_message_id,
            "cost": None if row.cost is None or row.refunded else format(row.cost, "f"),
            "created_at": to_iso(row.created_at),
            "cursor": encode(row.id),
        }
        for row in rows
    ]


def resend(connection: Connection, application_id: int, message_id: str, now: datetime) -> None:
    """Hand a held or waiting message on again as soon as possible. Raise ApiError MESSAGE_NOT_FOUND or CONFLICT."""
    claims = find_sends(connection, to_ms(now), *_unfinished(application_id, message_id))
    if not claims:
        raise _refusal(connection, application_id, message_id)
    values = {"status": int(SendStatus.PENDING), "queue": 1, "next_at": now, "lease_until": None, "base_attempt": sends.c.attempt}
    connection.execute(update(sends).where(sends.c.id == claims[0].id).values(values))


def discard(connection: Connection, writer: SendWriter, application_id: int, message_id: str, now: datetime) -> int:
    """Give up a held or waiting message: it becomes FAILED. Return the number of new events, for `SendWriter.published`.

    Raise ApiError MESSAGE_NOT_FOUND or CONFLICT."""
    claims = find_sends(connection, to_ms(now), *_unfinished(application_id, message_id))
    if not claims:
        raise _refusal(connection, application_id, message_id)
    change = failed(claims[0], to_ms(now), "discarded", "somebody decided not to send the message")
    return writer.write(connection, [change], to_ms(now))[1]


def _unfinished(application_id: int, message_id: str) -> tuple[ColumnElement[bool], ...]:
    is_open = sends.c.status.in_([int(SendStatus.PENDING), int(SendStatus.HELD)])
    return is_open, sends.c.application_id == application_id, messages.c.message_id == message_id


def _refusal(connection: Connection, application_id: int, message_id: str) -> ApiError:
    found = select(sends.c.status).join_from(sends, messages, messages.c.id == sends.c.id)
    own = messages.c.application_id == application_id, messages.c.message_id == message_id
    status = connection.execute(found.where(*own)).scalar()
    if status is None:
        return ApiError(ErrorCode.MESSAGE_NOT_FOUND, "No gateway sends a message with this id.")
    if status in (SendStatus.PENDING, SendStatus.HELD):
        return ApiError(ErrorCode.CONFLICT, "An attempt to send the message is running; try again later.")
    return ApiError(ErrorCode.CONFLICT, f"The message is already {SendStatus(status).api_name}.")
