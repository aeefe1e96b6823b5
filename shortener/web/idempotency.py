"""This module implements the header Idempotency-Key: a repeat of a POST request with the same key gets the first response and
creates nothing a second time.

Every POST with an API key accepts the header. It has no effect on requests that store nothing, such as previews. A stored
response belongs to the API key that sent the first request. A request with the same Idempotency-Key but another API key is not a
repeat, and is performed. The permission for the endpoint is checked before this module runs.

Only successful responses are stored. A rejected request has created nothing, so its repeat is checked again. If the database
becomes unavailable after the request was performed, the caller gets the response, but the response is not stored. If the
connection to the database ends during the commit (CommitUncertain), it is unknown whether the request was stored. Repeats of the
request are then not performed: as soon as the database is available again, the process stores the error OUTCOME_UNKNOWN as the
response to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING

import orjson
import structlog
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from shortener.accounts import stored_responses
from shortener.accounts.directory import Principal
from shortener.accounts.stored_responses import CLAIM_LEASE, FirstResponse, RequestKey
from shortener.errors import ApiError, CommitUncertain, Detail, ErrorCode, StoreUnavailable
from shortener.secret import SecretError
from shortener.web.call_headers import find_header
from shortener.web.request_content import sent_content

if TYPE_CHECKING:
    from shortener.container import Service

log = structlog.get_logger(__name__)

MAX_IDEMPOTENCY_KEY_LENGTH = 255  # the maximum number of characters of an Idempotency-Key
HEADER = "Idempotency-Key"
REPEAT_SECONDS = 1.0  # the pause between two attempts to store OUTCOME_UNKNOWN as the response to a request
_HEADER_IN_LOWER_CASE = HEADER.lower().encode()


def describe_header(caller: str) -> dict[str, str]:
    """Return the header's name and its description, as `Endpoint.headers` contains them. `caller` says
    whose repeats get the first response: those of the same "API key", or of the same "application"."""
    length = f"1 to {MAX_IDEMPOTENCY_KEY_LENGTH} characters"
    return {HEADER: f"Identifies the request, {length}. For 24 hours a repeat by the same {caller} gets the first response."}


HEADERS = describe_header("API key")
_UNKNOWN = (
    "The connection to the database ended while the first request with this Idempotency-Key was being stored, so it is not known "
    "whether it was stored. Read the data first. If it is missing, send the request with a new Idempotency-Key."
)
# The running tasks of `_store_unknown`. A task that nothing refers to could be deleted by a garbage collection before it ends.
_tasks: set[asyncio.Task[None]] = set()


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key of a request; None if it has none. Raise ApiError INVALID_REQUEST if the key is not valid."""
    key = find_header(request, _HEADER_IN_LOWER_CASE)
    if key is not None and (not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH or not key.isprintable()):
        reason = f"must have 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} printable characters"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(HEADER, reason)])
    return key


async def respond_once(
    service: Service,
    request: Request,
    principal: Principal,
    key: str,
    body: BaseModel | None,
    perform: Callable[[], Awaitable[Response]],
) -> Response:
    """If the request is a repeat, return the stored response. Otherwise, perform the request and store its response.

    A stored response has the header `Idempotency-Replayed: true`. Raise ApiError with the code IDEMPOTENCY_CONFLICT,
    REQUEST_IN_PROGRESS or OUTCOME_UNKNOWN."""
    chosen = RequestKey(principal.application.id, principal.key_id, f"{request.method} {request.url.path}", key)
    content = hashlib.sha256(b"" if body is None else sent_content(body)).hexdigest()
    claimed_at = service.clock()
    try:
        found = await service.database.write(stored_responses.claim, chosen, content, claimed_at)
    except CommitUncertain as error:
        # It is unknown whether the claim was stored. The request itself was not performed, so the caller may repeat it.
        raise StoreUnavailable(str(error)) from error
    if found is not None and found.status == ErrorCode.OUTCOME_UNKNOWN.http_status:
        raise ApiError(ErrorCode.OUTCOME_UNKNOWN, _UNKNOWN)
    if found is not None:
        try:
            content_of_first = service.secret.decrypt(found.body)
        except SecretError:
            reason = "The first response with this Idempotency-Key was stored with another SECRET, so it cannot be returned."
            raise ApiError(ErrorCode.IDEMPOTENCY_CONFLICT, reason) from None
        return Response(content_of_first.encode(), found.status, {"Idempotency-Replayed": "true"}, "application/json")
    try:
        response = await perform()
    except CommitUncertain:  # It is unknown whether the request was stored, so its repeats must not be performed.
        task = asyncio.create_task(_store_unknown(service, chosen, claimed_at))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        raise
    except BaseException:
        # If the claim cannot be released, the caller still gets the error of the request.
        with contextlib.suppress(StoreUnavailable):
            await service.database.write(stored_responses.release, chosen, claimed_at)
        raise
    stored = FirstResponse(response.status_code, service.secret.encrypt(bytes(response.body).decode()))
    try:
        await service.database.write(stored_responses.store, chosen, stored)
    except StoreUnavailable:  # The request was performed. The caller must get its response, which may contain new credentials.
        log.warning("response_not_stored")
    return response


async def _store_unknown(service: Service, request: RequestKey, claimed_at: datetime) -> None:
    """Store OUTCOME_UNKNOWN as the response to a request that was claimed at `claimed_at`, as soon as the database is available.
    Stop trying after CLAIM_LEASE. If a repeat has taken over the claim, store nothing."""
    body = orjson.dumps(ApiError(ErrorCode.OUTCOME_UNKNOWN, _UNKNOWN).body()).decode()
    response = FirstResponse(ErrorCode.OUTCOME_UNKNOWN.http_status, service.secret.encrypt(body))
    loop = asyncio.get_running_loop()
    end = loop.time() + CLAIM_LEASE.total_seconds()
    while loop.time() < end:
        try:
            await service.database.write(stored_responses.store_for_claim, request, response, claimed_at)
            return
        except StoreUnavailable:
            await asyncio.sleep(REPEAT_SECONDS)
    log.warning("response_not_stored")
