"""This module stores the responses to requests with an Idempotency-Key for 24 hours, so that a repeated request does not create
anything a second time.

Rewrites do not use this module: they store their responses in the transaction that creates the messages (table `idempotency`).
All other requests claim their key here, are performed, and then store their response. Responses may contain new credentials, so
the caller encrypts a response before it is stored. The portal also uses this module, for the ids of its forms. If the session of
a user ends while the user fills in a form, the portal also stores the entered values here until the user signs in again.

If a process ends before it stores the response, it is unknown whether the request changed anything. Therefore, after CLAIM_LEASE,
a repeated request takes the claim over and is performed. If the first request is still running, both requests are performed. Then
the response that is stored first stays, and a request that fails releases only its own claim.
"""

# Tested by tests/web/test_idempotency.py

from __future__ import annotations

import math
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, delete, select, update

from shortener.errors import ApiError, ErrorCode
from shortener.model import record
from shortener.storage.database import upsert
from shortener.storage.schema import stored_responses

#: If a claim has no response after this time, a repeat of the request takes the claim over. A repeat also takes over a claim whose
#: time is further than this in the future. Such a time shows that the clock was set back after the claim.
CLAIM_LEASE = timedelta(seconds=60)
#: A request usually takes less than this time. If the first request began less than this time ago, a repeat gets a Retry-After of
#: one second. Otherwise the first request was probably interrupted, and Retry-After is the time until CLAIM_LEASE ends.
USUAL_REQUEST = timedelta(seconds=10)


@record
class RequestKey:
    """The key by which a repeat of a request is recognized: the application, its API key, the operation (method and path), and
    the Idempotency-Key.

    The API key is included, because a response can contain new credentials. The owner of another API key must not receive
    them."""

    application_id: int
    api_key_id: int
    operation: str
    key: str

    @property
    def stored_operation(self) -> str:
        """The value of the column `operation`: method, path and the id of the API key."""
        return f"{self.operation} key:{self.api_key_id}"


@record
class FirstResponse:
    """The stored response to a request. `body` is encrypted."""

    status: int
    body: str


def claim(connection: Connection, request: RequestKey, content_hash: str, now: datetime) -> FirstResponse | None:
    """Claim a request. Return None if the caller must perform the request, or the stored response if it was performed before.

    Raise ApiError IDEMPOTENCY_CONFLICT if the first request with this key had another content, and REQUEST_IN_PROGRESS while the
    first request is being performed."""
    table = stored_responses
    values = {
        "application_id": request.application_id,
        "operation": request.stored_operation,
        "key": request.key,
        "content_hash": content_hash,
        "created_at": now,
    }
    row = None
    while row is None:  # repeated, because another request can release its claim between the two statements
        if connection.execute(upsert(connection, table).values(values).on_conflict_do_nothing()).rowcount:
            return None
        row = connection.execute(select(table).where(*_chosen(request)).with_for_update()).one_or_none()
    if row.content_hash != content_hash:
        raise ApiError(ErrorCode.IDEMPOTENCY_CONFLICT)
    if row.status is not None:
        return FirstResponse(row.status, row.body)
    age = abs(now - row.created_at)
    if age < CLAIM_LEASE:
        wait = 1 if age < USUAL_REQUEST else math.ceil((CLAIM_LEASE - age).total_seconds())
        raise ApiError(ErrorCode.REQUEST_IN_PROGRESS, retry_after=wait)
    connection.execute(update(table).where(*_chosen(request)).values(created_at=now))
    return None


def find(connection: Connection, request: RequestKey) -> FirstResponse | None:
    """Return the response that is stored for a request, or None."""
    row = connection.execute(select(stored_responses).where(*_chosen(request))).one_or_none()
    return None if row is None or row.status is None else FirstResponse(row.status, row.body)


def store(connection: Connection, request: RequestKey, response: FirstResponse) -> None:
    """Store the response to a request that was performed. A response that is already stored stays.

    The response is stored even if a repeat of the request has taken the claim over. Later repeats then get this response, even if
    the repeat that took the claim over fails."""
    values = {"status": response.status, "body": response.body}
    connection.execute(update(stored_responses).where(*_chosen(request), stored_responses.c.status.is_(None)).values(values))


def store_for_claim(connection: Connection, request: RequestKey, response: FirstResponse, claimed_at: datetime) -> None:
    """Store the response to a request that was claimed at `claimed_at`. Store nothing if a repeat has taken the claim over."""
    values = {"status": response.status, "body": response.body}
    connection.execute(update(stored_responses).where(*_chosen(request), *_is_own_claim(claimed_at)).values(values))


def release(connection: Connection, request: RequestKey, claimed_at: datetime) -> None:
    """Delete the claim that a failed request made at `claimed_at`, so that the next repeat is performed at once. Do nothing if a
    repeat has taken the claim over: this repeat may still be running."""
    connection.execute(delete(stored_responses).where(*_chosen(request), *_is_own_claim(claimed_at)))


def _is_own_claim(claimed_at: datetime) -> tuple[ColumnElement[bool], ...]:
    return stored_responses.c.status.is_(None), stored_responses.c.created_at == claimed_at


def _chosen(request: RequestKey) -> tuple[ColumnElement[bool], ...]:
    table = stored_responses.c
    return table.application_id == request.application_id, table.operation == request.stored_operation, table.key == request.key
