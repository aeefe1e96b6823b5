"""Tests of repeated POST requests: with the same Idempotency-Key, a repeat gets the first response and creates nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection

from shortener.accounts.stored_responses import (
    CLAIM_LEASE,
    FirstResponse,
    RequestKey,
    claim,
    find,
    release,
    store,
    store_for_claim,
)
from shortener.accounts.version import mark_accounts_changed
from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from shortener.storage import schema
from shortener.web.endpoints import ENDPOINTS
from tests.conftest import Clock, client_of
from tests.factory import rows
from tests.one_service import on_one_service

KEY = {"Idempotency-Key": "job-7"}
BODY = {"name": "pipeline"}


async def create(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/api/v1/keys", json={**BODY, **fields}, headers=KEY)


async def number_of_keys(client: httpx.AsyncClient) -> int:
    return len((await client.get("/api/v1/keys")).json()["keys"])


async def test_a_repeated_request_with_the_same_idempotency_key_gets_the_first_response_and_creates_nothing(
    client: httpx.AsyncClient,
) -> None:
    first, second = await create(client), await create(client)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert (first.headers.get("idempotency-replayed"), second.headers.get("idempotency-replayed")) == (None, "true")
    assert await number_of_keys(client) == 2


async def test_a_response_that_is_stored_late_does_not_end_the_claim_of_a_repeat_that_is_being_performed(
    service: Service, clock: Clock
) -> None:
    request, first_claim = RequestKey(1, 1, "POST /api/v1/keys", "job-7"), clock()
    assert await service.database.write(claim, request, "content", first_claim) is None
    clock.forward(seconds=CLAIM_LEASE.total_seconds())
    assert await service.database.write(claim, request, "content", clock()) is None, "the repeat takes the claim over"
    for claimed_at, expected in ((first_claim, None), (clock(), FirstResponse(201, "body"))):
        await service.database.write(store_for_claim, request, FirstResponse(201, "body"), claimed_at)
        assert await service.database.read(find, request) == expected


@pytest.fixture
async def taken_over(service: Service, clock: Clock) -> tuple[RequestKey, datetime]:
    """A request whose claim was taken over by a repeat, and the time of the first claim."""
    request, first_claim = RequestKey(1, 1, "POST /api/v1/keys", "job-7"), clock()
    assert await service.database.write(claim, request, "content", first_claim) is None
    clock.forward(seconds=CLAIM_LEASE.total_seconds())
    assert await service.database.write(claim, request, "content", clock()) is None
    return request, first_claim


async def test_a_slow_request_that_fails_does_not_release_the_claim_of_the_repeat_that_took_over(
    service: Service, clock: Clock, taken_over: tuple[RequestKey, datetime]
) -> None:
    request, first_claim = taken_over
    await service.database.write(release, request, first_claim)
    with pytest.raises(ApiError) as raised:
        await service.database.write(claim, request, "content", clock())
    assert raised.value.code is ErrorCode.REQUEST_IN_PROGRESS, "the repeat is still being performed"
    await service.database.write(release, request, clock())
    assert await service.database.write(claim, request, "content", clock()) is None, "the repeat has released its own claim"


async def test_the_first_stored_response_stays_if_a_slow_request_and_the_repeat_that_took_over_are_both_performed(
    service: Service, clock: Clock, taken_over: tuple[RequestKey, datetime]
) -> None:
    request, _ = taken_over
    for body in ("first", "repeat"):
        await service.database.write(store, request, FirstResponse(201, body))
        assert await service.database.read(find, request) == FirstResponse(201, "first")
    await service.database.write(release, request, clock())
    assert await service.database.read(find, request) == FirstResponse(201, "first"), "also if the repeat fails"


async def test_a_request_with_an_idempotency_key_that_fails_late_leaves_the_claim_of_its_repeat(
    service: Service, client: httpx.AsyncClient, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken_over_meanwhile(*_: Any) -> None:
        clock.forward(seconds=CLAIM_LEASE.total_seconds())
        taken = schema.stored_responses.update().values(created_at=clock())
        await service.database.write(lambda connection: connection.execute(taken))

    blocked = {"name": "t", "url": "http://blocked.example/", "events": ["click"], "format": "json"}
    monkeypatch.setattr(service.trackers, "create", raise_after(taken_over_meanwhile))
    assert (await client.post("/api/v1/trackers", json=blocked, headers=KEY)).status_code == 409
    (claimed,) = await rows(service.database, schema.stored_responses)
    assert (claimed.status, claimed.created_at) == (None, clock())


def raise_after(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Return a function that calls `function` and then raises ApiError CONFLICT."""

    async def fail(*args: Any, **_: Any) -> None:
        await function(*args)
        raise ApiError(ErrorCode.CONFLICT)

    return fail


async def test_credentials_in_a_response_stored_for_repeats_are_encrypted(service: Service, client: httpx.AsyncClient) -> None:
    api_key = (await create(client)).json()["api_key"]
    (stored,) = await rows(service.database, schema.stored_responses)
    assert api_key not in stored.body


async def test_the_same_idempotency_key_with_other_content_is_a_conflict(client: httpx.AsyncClient) -> None:
    await create(client)
    response = await create(client, name="another")
    assert (response.status_code, response.json()["error_code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert await number_of_keys(client) == 2


async def test_the_same_idempotency_key_can_be_used_for_another_operation_or_by_another_application(
    service: Service, client: httpx.AsyncClient
) -> None:
    from shortener.accounts.administration import create_application

    await create(client)
    assert (await client.post("/api/v1/tokens", headers=KEY)).status_code == 201
    other = await service.database.write(create_application, "other", service.clock())
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": other.api_key}) as stranger:
        response = await create(stranger)
    assert (response.status_code, response.headers.get("idempotency-replayed")) == (201, None)


async def create_key(client: httpx.AsyncClient, *permissions: str) -> str:
    """Create an API key with permissions and return its plain text."""
    response = await client.post("/api/v1/keys", json={"name": "helper", "permissions": list(permissions)})
    assert response.status_code == 201, response.text
    api_key: str = response.json()["api_key"]
    return api_key


async def test_a_repeat_by_an_api_key_with_fewer_permissions_does_not_get_credentials_of_the_first_response(
    service: Service, client: httpx.AsyncClient
) -> None:
    granted = ["admin", "sms.send"]
    weaker = await create_key(client, "admin")
    first = await create(client, permissions=granted)
    assert first.status_code == 201, first.text
    async with client_of(service, {"X-API-Key": weaker}) as other:
        repeat = await create(other, permissions=granted)
        assert (repeat.status_code, repeat.json()["error_code"]) == (403, "FORBIDDEN")
        assert first.json()["api_key"] not in repeat.text
        own = await create(other, permissions=["admin"])
    assert (own.status_code, own.headers.get("idempotency-replayed")) == (201, None)
    assert own.json()["api_key"] != first.json()["api_key"]
    assert (await create(client, permissions=granted)).json() == first.json()


async def test_the_permission_of_the_endpoint_is_checked_before_a_repeat_gets_the_first_response(
    service: Service, client: httpx.AsyncClient
) -> None:
    api_key = await create_key(client, "admin")
    async with client_of(service, {"X-API-Key": api_key}) as caller:
        assert (await create(caller, permissions=["admin"])).status_code == 201

        def withdraw(connection: Connection) -> None:
            keys = schema.api_keys
            connection.execute(keys.update().where(keys.c.name == "helper").values(permissions=["sms.send"]))
            mark_accounts_changed(connection)

        await service.database.write(withdraw)
        await service.directory.refresh()
        repeat = await create(caller, permissions=["admin"])
    assert (repeat.status_code, repeat.json()["error_code"]) == (403, "FORBIDDEN")


async def test_an_idempotency_key_can_be_used_again_after_its_request_was_rejected(client: httpx.AsyncClient) -> None:
    tracker = {"name": "t", "url": "https://user@x.example/", "events": ["click"], "format": "json"}
    rejected = await client.post("/api/v1/trackers", json=tracker, headers=KEY)
    assert rejected.status_code == 400
    created = await client.post("/api/v1/trackers", json={**tracker, "url": "http://127.0.0.1:9/"}, headers=KEY)
    assert created.status_code == 201, created.text


async def test_concurrent_requests_with_one_idempotency_key_create_one_api_key(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(create(client) for _ in range(10)))
    created = [response for response in responses if response.status_code == 201]
    others = [response.json()["error_code"] for response in responses if response.status_code != 201]
    assert len({response.json()["api_key"] for response in created}) == 1
    assert set(others) <= {"REQUEST_IN_PROGRESS"}
    assert await number_of_keys(client) == 2


@pytest.mark.parametrize("seconds", [61, pytest.param(-3600, id="the clock is set back")])
async def test_a_repeated_request_gets_409_with_retry_after_while_the_first_request_is_running(
    service: Service, client: httpx.AsyncClient, clock: Clock, seconds: int
) -> None:
    await create(client)
    await service.database.write(
        lambda connection: connection.execute(schema.stored_responses.update().values(status=None, body=None))
    )
    response = await create(client)
    assert (response.status_code, response.json()["error_code"]) == (409, "REQUEST_IN_PROGRESS")
    assert response.headers["retry-after"] == "1"
    clock.forward(seconds=seconds)
    assert (await create(client)).status_code == 201


@on_one_service
@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
async def test_an_invalid_idempotency_key_is_rejected(client: httpx.AsyncClient, key: str) -> None:
    response = await client.post("/api/v1/keys", json=BODY, headers={"Idempotency-Key": key})
    assert (response.status_code, response.json()["details"][0]["field"]) == (400, "Idempotency-Key")


async def test_responses_stored_for_repeated_requests_are_deleted_after_a_day(
    service: Service, client: httpx.AsyncClient, clock: Clock
) -> None:
    from shortener.retention.purge import purge

    await create(client)
    clock.forward(hours=25)
    await purge(service.database, service.settings, clock())
    assert await rows(service.database, schema.stored_responses) == []


async def test_the_openapi_document_describes_which_callers_get_the_stored_first_response(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    def describe(path: str) -> str:
        [text] = [one["description"] for one in paths[path]["post"]["parameters"] if one["name"] == "Idempotency-Key"]
        return str(text)

    assert "by the same API key" in describe("/api/v1/keys")
    assert "by the same application" in describe("/api/v1/rewrite")


def test_every_post_request_with_an_api_key_accepts_an_idempotency_key() -> None:
    posts = [one for one in ENDPOINTS if one.method == "POST" and one.caller.name == "API_KEY"]
    assert len(posts) > 20
    without = [one for one in posts if not one.stores_response and "Idempotency-Key" not in one.headers]
    assert [one.path for one in without if not one.stores_nothing] == []
