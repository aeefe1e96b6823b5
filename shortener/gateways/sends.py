"""This module reads messages that gateways send, for the API, the portal and the command line."""
# Tested by tests/web/test_sends.py

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, select

from shortener.model import SendStatus
from shortener.storage.schema import gateways, messages, send_attempts, sends
from shortener.storage.types import AnyRow, to_iso

MAX_ATTEMPTS = 100  # At most this many attempts of a message are shown, the newest ones.


class SendPage(NamedTuple):
    """A page of messages, newest first. `next` is the row id below which the next page begins; on the last page it is None."""

    rows: Sequence[AnyRow]
    next: int | None


class StoredSend(NamedTuple):
    """A message that a gateway sends, with its newest attempts, oldest first."""

    row: AnyRow
    attempts: Sequence[AnyRow]


def list_sends(
    connection: Connection, application_id: int | None, status: str | None, below: int | None = None, limit: int = 100
) -> SendPage:
    """Return the newest messages of an application (None: of all applications) that were queued for gateways. If `below` is given,
    return only messages with smaller row ids."""
    statement = _select()
    if application_id is not None:
        statement = statement.where(sends.c.application_id == application_id)
    if status is not None:
        statement = statement.where(sends.c.status == int(SendStatus[status.upper()]))
    if below is not None:
        statement = statement.where(sends.c.id < below)
    rows = connection.execute(statement.order_by(sends.c.id.desc()).limit(limit + 1)).all()
    return SendPage(rows[:limit], rows[limit - 1].id if len(rows) > limit else None)


def find_send(connection: Connection, row_id: int) -> StoredSend | None:
    """Return the message with a row id; None if no gateway sends it."""
    row = connection.execute(_select().where(sends.c.id == row_id)).first()
    if row is None:
        return None
    c = send_attempts.c
    newest = select(send_attempts).where(c.send_id == row_id).order_by(c.id.desc()).limit(MAX_ATTEMPTS)
    return StoredSend(row, connection.execute(newest).all()[::-1])


def _select() -> Select[Any]:
    return (
        select(sends, messages.c.message_id, gateways.c.name.label("gateway"))
        .join_from(sends, messages, messages.c.id == sends.c.id)
        .join(gateways, gateways.c.id == sends.c.gateway_id)
    )


def send_fields(row: AnyRow) -> dict[str, Any]:
    """Return the JSON fields of a message that a gateway sends."""
    return {
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
        "finished_at": to_iso(row.finished_at),
    }


def send_attempt_fields(attempt: AnyRow) -> dict[str, Any]:
    """Return the JSON fields of one attempt to hand a message on. `milliseconds` is the duration of the attempt."""
    return {
        "attempt": attempt.attempt,
        "at": to_iso(attempt.at),
        "milliseconds": attempt.milliseconds,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "detail": attempt.detail,
    }
