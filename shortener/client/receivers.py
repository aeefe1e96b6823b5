"""This module contains a receiver of events for Starlette (and FastAPI) and Flask. The receiver verifies each request and ignores
repeated events.

The service delivers each event at least once: if the response is lost, it makes another attempt with the same event id.
`EventReceiver` calls the handler once for each event. If the handler raises an exception, the response is 500, and the next attempt
calls the handler again.

`RecentEvents` stores the ids of the latest events in the memory of one process. Another `EventMemory`, in the database of the
receiver, is necessary in two cases: there are several processes, or the handler must not run twice after a restart.
"""

from __future__ import annotations

import inspect
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio
import anyio.to_thread

from shortener.client.webhooks import DEFAULT_TOLERANCE_SECONDS, InvalidSignatureError, WebhookEvent, verify_webhook

if TYPE_CHECKING:
    from flask import Response as FlaskResponse
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger(__name__)

#: The maximum size of a request body in bytes. The bodies that the service sends are far smaller.
MAX_BODY_BYTES = 1024 * 1024
DEFAULT_REMEMBERED_EVENTS = 100_000

Claim = Literal["new", "done", "busy"]
Handler = Callable[[WebhookEvent], Awaitable[None] | None]


class EventMemory(Protocol):
    """The interface of a store of handled events. Several threads or processes must be able to call its methods at the same
    time."""

    def claim(self, event_id: str) -> Claim:
        """Claim an event. Return `new` if the caller must handle the event, `done` if it was handled before, and `busy` if
        another request is handling it."""
        ...

    def finish(self, event_id: str) -> None:
        """Store that the claimed event was handled."""
        ...

    def release(self, event_id: str) -> None:
        """Give up a claim, after the handler of the event has failed."""
        ...


class RecentEvents:
    """An `EventMemory` in the memory of this process. It has at most `size` events; the oldest handled events are removed."""

    def __init__(self, size: int = DEFAULT_REMEMBERED_EVENTS) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._done: OrderedDict[str, None] = OrderedDict()
        self._busy: set[str] = set()

    def claim(self, event_id: str) -> Claim:
        with self._lock:
            if event_id in self._done:
                self._done.move_to_end(event_id)
                return "done"
            if event_id in self._busy:
                return "busy"
            self._busy.add(event_id)
            return "new"

    def finish(self, event_id: str) -> None:
        with self._lock:
            self._busy.discard(event_id)
            self._done[event_id] = None
            while len(self._done) > self._size:
                self._done.popitem(last=False)

    def release(self, event_id: str) -> None:
        with self._lock:
            self._busy.discard(event_id)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The response to a received request. `event` is set only if this request handled the event."""

    status_code: int
    reason: str
    event: WebhookEvent | None = None

    @property
    def content(self) -> bytes:
        return json.dumps({"status": self.status_code < 300, "reason": self.reason}).encode()


class EventReceiver:
    """A receiver that verifies requests with `secrets` and calls `handler` once for each event.

    `handler` receives a `WebhookEvent` and returns nothing. With Starlette it may be a coroutine function."""

    def __init__(
        self,
        secrets: str | Iterable[str],
        handler: Handler,
        *,
        memory: EventMemory | None = None,
        tolerance: float = DEFAULT_TOLERANCE_SECONDS,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.secrets = [secrets] if isinstance(secrets, str) else list(secrets)
        if not self.secrets or not all(self.secrets):
            raise ValueError("a receiver requires the signing secret of the tracker")
        self.handler = handler
        self.memory = memory or RecentEvents()
        self.tolerance = tolerance
        self.max_body_bytes = max_body_bytes

    def handle(self, headers: Mapping[str, str], body: bytes, *, now: datetime | None = None) -> Receipt:
        """Verify a request and handle its event in the calling thread. Return the response to send."""
        event = self._verify(headers, body, now)
        if isinstance(event, Receipt):
            return event
        claim = self.memory.claim(event.event_id)
        if claim != "new":
            return _not_claimed(claim)
        try:
            result = self.handler(event)
            if inspect.isawaitable(result):
                if inspect.iscoroutine(result):
                    result.close()
                raise TypeError("a coroutine function as handler requires starlette_endpoint")
        except BaseException as error:
            self.memory.release(event.event_id)
            return _failed(event, error)
        self.memory.finish(event.event_id)
        return Receipt(200, "the event was handled", event)

    async def handle_async(self, headers: Mapping[str, str], body: bytes, *, now: datetime | None = None) -> Receipt:
        """Verify a request and handle its event. The methods of the memory run in threads. The handler also runs in a thread,
        unless it is a coroutine function, which runs in the event loop."""
        event = self._verify(headers, body, now)
        if isinstance(event, Receipt):
            return event
        claiming = _Claiming(self.memory, event.event_id)
        try:
            claim = await anyio.to_thread.run_sync(claiming.run)
            if claim != "new":
                return _not_claimed(claim)
            if inspect.iscoroutinefunction(self.handler):
                await self.handler(event)
            else:
                result = await anyio.to_thread.run_sync(self.handler, event)
                if inspect.isawaitable(result):
                    await result
        except BaseException as error:
            await _run_shielded(claiming.give_up)
            return _failed(event, error)
        await _run_shielded(partial(self.memory.finish, event.event_id))
        return Receipt(200, "the event was handled", event)

    def _verify(self, headers: Mapping[str, str], body: bytes, now: datetime | None) -> WebhookEvent | Receipt:
        if len(body) > self.max_body_bytes:
            return Receipt(413, "the body is too large")
        try:
            return verify_webhook(self.secrets, headers, body, now=now, tolerance=self.tolerance)
        except InvalidSignatureError as error:
            return Receipt(401, str(error))


def _not_claimed(claim: Claim) -> Receipt:
    if claim == "done":
        return Receipt(200, "the event was handled before")
    return Receipt(503, "the event is being handled")


def _failed(event: WebhookEvent, error: BaseException) -> Receipt:
    """Return the response for an event whose handler raised `error`. An error that ends the request or the process, such as
    KeyboardInterrupt, is raised again."""
    if not isinstance(error, Exception):
        raise error
    log.error("the handler of the event %s failed", event.event_id, exc_info=error)
    return Receipt(500, "the event could not be handled")


class _Claiming:
    """The claim of an event by one request. A thread makes the claim, so the request may be cancelled before the thread has
    finished."""

    def __init__(self, memory: EventMemory, event_id: str) -> None:
        self._memory = memory
        self._event_id = event_id
        self._lock = threading.Lock()
        self._claimed = False
        self._given_up = False

    def run(self) -> Claim:
        with self._lock:
            claim = "busy" if self._given_up else self._memory.claim(self._event_id)
            self._claimed = claim == "new"
            return claim

    def give_up(self) -> None:
        """Release the event if this request claimed it. If the thread is still making the claim, wait for it."""
        with self._lock:
            self._given_up = True
            if self._claimed:
                self._memory.release(self._event_id)


async def _run_shielded(function: Callable[[], None]) -> None:
    """Run a function in a thread and wait for its end, even if the request is cancelled. The function changes the stored event
    ids. Without the wait, an event could stay claimed."""
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(function)


def starlette_endpoint(receiver: EventReceiver) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint for Starlette or FastAPI: `Route("/events", starlette_endpoint(receiver), methods=["POST"])`."""
    from starlette.requests import Request
    from starlette.responses import Response

    async def receive(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > receiver.max_body_bytes:
                break
        receipt = await receiver.handle_async(dict(request.headers), body)
        return Response(receipt.content, receipt.status_code, _headers(receipt), "application/json")

    # FastAPI reads the class of the parameter from its annotation, which is only a text in this module. Therefore the class is
    # set here.
    receive.__annotations__ = {"request": Request, "return": Response}
    return receive


def flask_view(receiver: EventReceiver) -> Callable[[], FlaskResponse]:
    """Return a view for Flask: `app.add_url_rule("/events", view_func=flask_view(receiver), methods=["POST"])`."""
    from flask import Response, request

    def receive_event() -> FlaskResponse:
        body = request.stream.read(receiver.max_body_bytes + 1)
        receipt = receiver.handle(dict(request.headers), body)
        return Response(receipt.content, receipt.status_code, _headers(receipt), mimetype="application/json")

    return receive_event


def _headers(receipt: Receipt) -> dict[str, Any]:
    return {"Retry-After": "5"} if receipt.status_code == 503 else {}
