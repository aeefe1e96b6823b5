from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from shortener.accounts.administration import add_domain, block_host, update_application
from shortener.accounts.directory import Application
from shortener.container import Service
from shortener.errors import ApiError, ErrorCode, StoreUnavailable
from shortener.messages import plan, rewriter, spans
from shortener.messages.rewrite_item import RewriteItem
from shortener.messages.rewriter import MAX_PLANNED_AT_ONCE, MAX_USUAL_SIGNS, RECIPIENT_CHARACTERS, SIGN_CHARACTERS
from shortener.messages.spans import TRACK_MODES, TrackMode
from shortener.messages.url_detection import DetectedUrl
from shortener.storage import schema
from tests.conftest import NOON, Clock, MakeService
from tests.messages.rewriting import LINK, TO, item
from tests.one_service import on_one_service


def sender(service: Service) -> Application:
    application = service.directory.application(1)
    assert application is not None
    return application


async def rewrite(service: Service, *items: RewriteItem, **more: Any) -> list[dict[str, Any]]:
    return await service.rewriter.rewrite(sender(service), items, **more)


async def rejection(service: Service, *items: RewriteItem, **more: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        await rewrite(service, *items, **more)
    return raised.value


async def stored(service: Service) -> tuple[int, int]:
    """Return the number of stored messages and the number of stored links."""

    def count(connection: Connection) -> tuple[int, int]:
        messages, links = (
            connection.execute(select(func.count()).select_from(table)).scalar_one() for table in (schema.messages, schema.links)
        )
        return messages, links

    return await service.database.read(count)


# These tests check repeated requests and messages.


REPEATS: list[dict[str, Any]] = [{"key": "key-1"}, {"message_id": "m-1"}]


@pytest.mark.parametrize("repeat", REPEATS, ids=["key", "message_id"])
async def test_a_repeated_request_gets_the_first_response_after_the_expiry_of_its_links(
    service: Service, clock: Clock, repeat: dict[str, Any]
) -> None:
    message = item(expires_at=NOON + timedelta(hours=1), message_ids=(repeat.get("message_id"),))
    first = await rewrite(service, message, idempotency_key=repeat.get("key"), content=b"content")
    clock.forward(hours=2)
    assert await rewrite(service, message, idempotency_key=repeat.get("key"), content=b"content") == first
    assert await stored(service) == (1, 1)
    error = await rejection(service, item(expires_at=NOON + timedelta(hours=1), message_ids=("m-2",)))
    assert error.details[0].field == "expires_at"


@pytest.mark.parametrize("repeat", REPEATS, ids=["key", "message_id"])
async def test_a_repeated_request_gets_the_first_response_after_its_destination_host_was_blocked(
    service: Service, repeat: dict[str, Any]
) -> None:
    message = item(message_ids=(repeat.get("message_id"),))
    first = await rewrite(service, message, idempotency_key=repeat.get("key"), content=b"content")
    await service.database.write(block_host, 1, "x.example", NOON)
    await service.directory.refresh()
    assert await rewrite(service, message, idempotency_key=repeat.get("key"), content=b"content") == first
    assert (await rejection(service, item())).code is ErrorCode.INVALID_TRACK_URL


@pytest.mark.parametrize("detected", [["Ok.so"], ["Ok.so", "shop.com"], []])
async def test_a_repeated_request_gets_the_first_response_after_the_rules_of_url_detection_changed(
    service: Service, monkeypatch: pytest.MonkeyPatch, detected: list[str]
) -> None:
    body = "Ok.so see shop.com"
    message = item(body, track="all_urls", message_ids=("m-1",))
    first = await rewrite(service, message)
    assert [link["url"] for link in first[0]["links"]] == ["http://shop.com"]

    def find_urls(text: str) -> list[DetectedUrl]:
        return [DetectedUrl(body.index(url), body.index(url) + len(url), f"http://{url}") for url in detected]

    monkeypatch.setattr(spans, "find_urls", find_urls)
    assert await rewrite(service, message) == first


@pytest.mark.parametrize("first_track", TRACK_MODES)
@pytest.mark.parametrize("later_track", TRACK_MODES)
async def test_a_repeated_message_gets_the_first_response_after_the_default_track_mode_of_the_application_changed(
    service: Service, first_track: TrackMode, later_track: TrackMode
) -> None:
    message = item("see https://x.example/a and https://x.example/b", message_ids=("m-1",))
    await service.database.write(update_application, 1, {"track": first_track}, NOON)
    await service.directory.refresh()
    first = await rewrite(service, message)
    await service.database.write(update_application, 1, {"track": later_track}, NOON)
    await service.directory.refresh()
    assert await rewrite(service, message) == first


async def test_a_request_with_a_repeated_message_and_a_new_invalid_message_is_rejected_as_a_whole(service: Service) -> None:
    await rewrite(service, item(message_ids=("m-1",)))
    error = await rejection(service, item(message_ids=("m-1",)), item("#track(", message_ids=("m-2",)), item("fine"))
    assert error.code is ErrorCode.INVALID_TRACK_DIRECTIVE
    assert await stored(service) == (1, 1)


async def test_an_invalid_request_without_idempotency_key_and_message_ids_is_rejected_without_the_database(
    service: Service,
) -> None:
    async def unavailable(*_: object) -> None:
        raise StoreUnavailable("down")

    service.database.write_later = unavailable  # type: ignore[method-assign, assignment]
    assert (await rejection(service, item("#track("))).code is ErrorCode.INVALID_TRACK_DIRECTIVE
    with pytest.raises(StoreUnavailable):
        await rewrite(service, item("#track(", message_ids=("m-1",)))


# These tests check concurrent rewrite requests.


async def test_concurrent_requests_with_the_same_message_id_create_one_message(service: Service) -> None:
    responses = await asyncio.gather(*(rewrite(service, item(message_ids=("m-1",))) for _ in range(50)))
    assert all(response == responses[0] for response in responses)
    assert await stored(service) == (1, 1)


async def test_concurrent_requests_with_the_same_idempotency_key_create_one_message(service: Service) -> None:
    jobs = [rewrite(service, item(), idempotency_key="key", content=b"content") for _ in range(50)]
    responses = await asyncio.gather(*jobs)
    assert all(response == responses[0] for response in responses)
    assert await stored(service) == (1, 1)


async def test_two_processes_with_the_same_message_ids_create_each_message_once(make_service: MakeService, store_url: str) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("SQLite belongs to one process; two nodes need PostgreSQL")
    services = [await make_service(), await make_service()]
    for service in services:
        await service.directory.refresh()
    jobs = [rewrite(services[number % 2], item(message_ids=(f"m-{number // 2}",))) for number in range(40)]
    responses = await asyncio.gather(*jobs)
    assert all(responses[number] == responses[number + 1] for number in range(0, 40, 2))
    assert await stored(services[0]) == (20, 20)


async def test_a_rejected_rewrite_request_does_not_affect_other_requests_in_the_same_transaction(service: Service) -> None:
    await rewrite(service, item(message_ids=("m-1",)))
    results = await asyncio.gather(
        rewrite(service, item()),
        rewrite(service, item("other", message_ids=("m-1",))),
        rewrite(service, item("#track(", message_ids=("m-2",))),
        rewrite(service, item()),
        return_exceptions=True,
    )
    assert [isinstance(result, ApiError) for result in results] == [False, True, True, False]
    assert await stored(service) == (3, 3)


async def test_new_links_are_in_the_link_cache_before_the_response_is_returned(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached: list[str] = []

    async def put(links: Any) -> None:
        await asyncio.sleep(0)  # let other tasks run: the response would now be complete if it did not wait for the cache
        cached.extend(link.code for link in links)

    monkeypatch.setattr(service.cache, "put", put)
    (message,) = await rewrite(service, item())
    assert cached == [message["links"][0]["code"]]


# These tests check limits of requests, and hosts that links must not lead to.


async def test_a_link_or_fallback_that_leads_to_a_host_of_the_installation_is_rejected(service: Service) -> None:
    await service.database.write(add_domain, 1, "https://go.brand.example", NOON)
    await service.directory.refresh()
    for url in ("http://127.0.0.1:8000/abc", "https://go.brand.example/abc", "https://GO.brand.example:443/"):
        assert (await rejection(service, item(f'#track("{url}")'))).code is ErrorCode.INVALID_TRACK_URL
        error = await rejection(service, item(fallback_url=url))
        assert (error.code, error.details[0].field) == (ErrorCode.INVALID_REQUEST, "fallback_url")
    assert await stored(service) == (0, 0)


async def test_a_fallback_url_on_a_blocked_host_is_rejected(service: Service) -> None:
    await service.database.write(block_host, 1, "bad.example", NOON)
    await service.directory.refresh()
    assert (await rejection(service, item(fallback_url="https://bad.example/"))).details[0].field == "fallback_url"


@on_one_service
@pytest.mark.parametrize("offset", [-12, 0, 12])
async def test_a_link_expiry_at_the_end_of_the_year_9999_is_rejected(service: Service, offset: int) -> None:
    at = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=offset)) if offset else UTC)
    for message_ids in (None, ("m-1",)):
        error = await rejection(service, item(expires_at=at, message_ids=message_ids))
        assert (error.code, error.details[0].field) == (ErrorCode.INVALID_REQUEST, "expires_at")


async def test_the_installation_sets_the_maximum_number_of_recipients_and_the_default_lifetime_of_links(
    make_service: MakeService,
) -> None:
    service = await make_service(batch_limit=2, link_ttl_days=3)
    (message,) = await rewrite(service, item())
    assert message["links"][0]["expires_at"] == "2026-11-23T12:00:00Z"
    assert (await rejection(service, item(to=(TO,) * 3))).code is ErrorCode.BATCH_TOO_LARGE


async def test_a_message_without_links_is_stored_with_its_body_unchanged(service: Service) -> None:
    body = f"  plain \r\n text of {TO}, #tracker, {LINK[1:]} \u202e"
    (message,) = await rewrite(service, item(body))
    assert (message["body"], message["links"]) == (body, [])
    assert await stored(service) == (1, 0)


# These tests check large requests. A thread computes their rows and texts, because this takes too long for the event loop.


async def test_a_large_rewrite_request_is_counted_as_in_progress_until_it_is_stored_or_rejected(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned_while: list[int] = []

    def plan_request(*args: Any, **more: Any) -> Any:
        planned_while.append(service.rewrite_totals.large_requests)
        return original(*args, **more)

    original = plan.plan_request
    monkeypatch.setattr(rewriter, "plan_request", plan_request)
    await rewrite(service, item("x" * (MAX_PLANNED_AT_ONCE - RECIPIENT_CHARACTERS)))
    assert planned_while == [0]
    many = [item("x" * 1000) for _ in range(MAX_PLANNED_AT_ONCE // 1000)]
    await rewrite(service, *many, item("y"))
    assert planned_while == [0, 1]
    await rejection(service, *many, item('#track("nothing")'))
    assert planned_while == [0, 1, 1]
    (problem,) = await service.rewriter.find_problems(sender(service), [*many, item('#track("nothing")')])
    assert (problem.item, planned_while) == (len(many), [0, 1, 1, 1]), (
        "the problems of an invalid request are found in a thread too"
    )
    await service.rewriter.preview(sender(service), [item("#x" * (MAX_USUAL_SIGNS + MAX_PLANNED_AT_ONCE // SIGN_CHARACTERS))])
    assert planned_while == [0, 1, 1, 1, 1], "the text is short, but the search for mistyped directives takes long"
    await service.rewriter.preview(sender(service), [item(f'#track("https://x.example/?{"a=b&" * MAX_USUAL_SIGNS}")')])
    assert planned_while == [0, 1, 1, 1, 1, 0]
    await rejection(service, *[item("")] * (MAX_PLANNED_AT_ONCE // RECIPIENT_CHARACTERS), item('#track("nothing")'))
    assert planned_while == [0, 1, 1, 1, 1, 0, 1], "the texts are short, but the recipients are many"
    assert service.rewrite_totals.large_requests == 0
