"""This module handles credentials that are not among the accounts in memory, and limits how many wrong credentials a client may
send. An unknown credential may be new, so the service reads the accounts from the database again. To protect the database, the
limit is checked first: a client above the limit gets 429, and the database is not read.

If the accounts cannot be read, the request gets 503 instead of 401. The credential may be new and valid, and a tracker or a
gateway would not repeat its report after 401.
"""

# Tested by tests/web/test_callers.py

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request

from shortener.clicks.client_address import client_of, hash_client
from shortener.errors import ApiError, ErrorCode, StoreUnavailable

if TYPE_CHECKING:
    from shortener.container import Service

T = TypeVar("T")


async def find_new_credential(service: Service, request: Request, find: Callable[[], T | None]) -> T | None:
    """Read the accounts from the database again, and return the result of `find`, which searches them for the credential of the
    request.

    If the result is None, count a wrong credential. Raise ApiError RATE_LIMITED if the client has sent too many wrong credentials
    (REJECTED_CREDENTIAL_LIMIT). Raise StoreUnavailable if the accounts cannot be read."""
    client = hash_client(client_of(request, service.settings.trusted_proxies), service.client_key)
    limiter = service.rate_limits.rejected_credentials
    wait = limiter.seconds_to_wait(client)
    if not wait:
        is_current = await service.directory.catch_up()
        if (found := find()) is not None:
            return found
        if not is_current:
            raise StoreUnavailable("the accounts could not be read")
        wait = limiter.take(client)
    if wait:
        raise ApiError(ErrorCode.RATE_LIMITED, retry_after=wait)
    return None
