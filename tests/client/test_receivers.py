"""Tests of the receivers for Starlette and Flask: each verified event reaches the handler once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from shortener.client import EventReceiver, RecentEvents, WebhookEvent, flask_view, starlette_endpoint
from shortener.client.receivers import Claim
from tests.client.signing import SECRET, signed_now

Post = Callable[[Mapping[str, str], bytes], tuple[int, dict[str, str]]]


def post_to_starlette(receiver: EventReceiver) -> Post:
    app = Starlette(routes=[Route("/events", starlette_endpoint(receiver), methods=["POST"])])

    def post(headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str]]:
        async def run() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://receiver.example") as client:
                return await client.post("/events", headers=headers, content=body)

        response = asyncio.run(run())
        return response.status_code, dict(response.headers)

    return post


def post_to_flask(receiver: EventReceiver) -> Post:
    from flask import Flask  # this import takes a tenth of a second

    app = Flask("receiver")
    app.add_url_rule("/events", view_func=flask_view(receiver), methods=["POST"])

    def post(headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str]]:
        response = app.test_client().post("/events", headers=dict(headers), data=body)
        return response.status_code, {name.lower(): value for name, value in response.headers}

    return post


@pytest.fixture(params=[post_to_starlette, post_to_flask], ids=["Starlette", "Flask"])
def posting(request: pytest.FixtureRequest) -> Callable[[EventReceiver], Post]:
    return request.param  # type: ignore[no-any-return]


def test_a_receiver_handles_a_repeated_event_once_and_returns_200_each_time(posting: Callable[[EventReceiver], Post]) -> None:
    events: list[WebhookEvent] = []
    post = posting(EventReceiver(SECRET, events.append))
    for attempt in (1, 2, 3):
        assert post(*signed_now({"event": "click", "event_id": "evt_1", "attempt": attempt}))[0] == 200
    assert post(*signed_now({"event": "click"}, event_id="evt_2"))[0] == 200
    assert [event.event_id for event in events] == ["evt_1", "evt_2"]


def test_a_receiver_returns_401_for_an_event_without_a_valid_signature_and_does_not_handle_the_event(
    posting: Callable[[EventReceiver], Post],
) -> None:
    events: list[WebhookEvent] = []
    post = posting(EventReceiver(SECRET, events.append))
    headers, body = signed_now({"event": "click"})
    assert post(headers, body + b" ")[0] == 401
    assert post({}, body)[0] == 401
    assert events == []


def test_a_receiver_returns_500_if_its_handler_fails_and_handles_a_repeat_of_the_event(
    posting: Callable[[EventReceiver], Post], caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[str] = []

    def handle(event: WebhookEvent) -> None:
        attempts.append(event.event_id)
        if len(attempts) == 1:
            raise RuntimeError("the database of the receiver is locked")

    post = posting(EventReceiver(SECRET, handle))
    request = signed_now({"event": "click"})
    assert [post(*request)[0] for _ in range(3)] == [500, 200, 200]
    assert attempts == ["evt_1", "evt_1"]
    assert "evt_1" in caplog.text


def test_a_receiver_returns_503_for_a_repeated_event_while_it_handles_the_first_one(
    posting: Callable[[EventReceiver], Post],
) -> None:
    memory = RecentEvents()
    post = posting(EventReceiver(SECRET, lambda event: None, memory=memory))
    assert memory.claim("evt_1") == "new"
    status, headers = post(*signed_now({"event": "click"}))
    assert (status, headers["retry-after"]) == (503, "5")
    memory.release("evt_1")
    assert post(*signed_now({"event": "click"}))[0] == 200


def test_a_receiver_returns_413_for_an_event_whose_body_is_too_large(posting: Callable[[EventReceiver], Post]) -> None:
    post = posting(EventReceiver(SECRET, lambda event: None, max_body_bytes=1000))
    assert post(*signed_now({"text": "x" * 1000}))[0] == 413


def test_a_coroutine_function_can_handle_events_in_starlette_but_not_in_flask() -> None:
    handled: list[str] = []

    async def handle(event: WebhookEvent) -> None:
        await asyncio.sleep(0)  # let the event loop run other tasks, so that the handler really is suspended
        handled.append(event.event_id)

    assert post_to_starlette(EventReceiver(SECRET, handle))(*signed_now({"event": "click"}))[0] == 200
    assert handled == ["evt_1"]
    assert post_to_flask(EventReceiver(SECRET, handle))(*signed_now({"event": "click"}))[0] == 500


@pytest.mark.parametrize("moment", ["during the claim", "during the handler"])
def test_an_event_whose_request_was_cancelled_can_be_handled_again(moment: str) -> None:
    reached = threading.Event()

    class SlowMemory(RecentEvents):
        def claim(self, event_id: str) -> Claim:
            claim = super().claim(event_id)
            if moment == "during the claim":
                reached.set()
                threading.Event().wait(0.1)
            return claim

    async def handle(event: WebhookEvent) -> None:
        reached.set()
        await asyncio.Event().wait()

    memory = SlowMemory()

    async def run() -> None:
        request = signed_now({"event": "click"})
        task = asyncio.ensure_future(EventReceiver(SECRET, handle, memory=memory).handle_async(*request))
        while not reached.is_set():
            await asyncio.sleep(0.001)  # a pause before the condition is checked again
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)

    asyncio.run(run())
    assert memory.claim("evt_1") == "new"


class YieldingSet(set[str]):
    """A set whose look-up lets other threads run before it returns its result."""

    def __contains__(self, item: object) -> bool:
        found = super().__contains__(item)
        time.sleep(0.001)  # other threads run
        return found


def test_only_one_of_many_threads_that_receive_the_same_event_handles_the_event() -> None:
    handled: list[str] = []
    gate = threading.Barrier(8)
    memory = RecentEvents()
    memory._busy = YieldingSet()
    receiver = EventReceiver(SECRET, lambda event: handled.append(event.event_id), memory=memory)
    statuses: list[int] = []

    def deliver() -> None:
        request = signed_now({"event": "click"})
        gate.wait()
        statuses.append(receiver.handle(*request).status_code)

    threads = [threading.Thread(target=deliver) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert handled == ["evt_1"]
    assert set(statuses) <= {200, 503}


def test_the_memory_of_recent_events_drops_the_oldest_event_ids_above_its_maximum_size() -> None:
    memory = RecentEvents(size=2)
    for event_id in ("a", "b", "c"):
        assert memory.claim(event_id) == "new"
        memory.finish(event_id)
    assert [memory.claim(event_id) for event_id in ("c", "b", "a")] == ["done", "done", "new"]


@pytest.mark.parametrize("secrets", ["", [], [""]])
def test_an_event_receiver_cannot_be_created_without_a_secret(secrets: Any) -> None:
    with pytest.raises(ValueError, match="secret"):
        EventReceiver(secrets, lambda event: None)


def test_an_event_that_a_receiver_returns_contains_the_time_when_its_request_was_sent() -> None:
    receipt = EventReceiver(SECRET, lambda event: None).handle(*signed_now({"event": "click"}))
    assert receipt.event is not None
    assert abs((datetime.now(UTC) - receipt.event.sent_at).total_seconds()) < 60
