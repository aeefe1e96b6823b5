"""From a tracker and the facts of an event to one HTTP request, made anew for each attempt: the body carries the attempt's number,
the signature its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shortener.delivery.formats import render
from shortener.delivery.outcomes import SuccessCriteria
from shortener.delivery.placeholders import Template, placeholder_values
from shortener.delivery.sender import OutgoingRequest
from shortener.delivery.signatures import sign
from shortener.model import Topic
from shortener.outbox.events import encode_event_id
from shortener.urls import UrlError, parse_destination

#: Xoxzo: "Callback URL must return http status 200".
CALLBACK_SUCCESS = SuccessCriteria("200")
_ANY_2XX = SuccessCriteria()


class ForbiddenHost(Exception):
    """The request may not be made; the text says why."""


@dataclass(frozen=True, slots=True)
class DeliveryTarget:
    """A tracker as its deliveries need it, or a message's own callback (`tracker_id` None). `timeout` in seconds.

    `secrets` newest first, each with the time until which it signs (None: always)."""

    tracker_id: int | None
    revision: int
    url: Template | str
    method: str
    format: str
    max_attempts: int
    timeout: float
    concurrency: int
    schedule: tuple[float, ...]
    success: SuccessCriteria = _ANY_2XX
    fields: tuple[str, ...] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[tuple[bytes, datetime | None], ...] = ()

    def request(
        self, facts: Mapping[str, Any], event: int, topic: Topic, attempt: int, at: datetime, *, allow_http: bool
    ) -> OutgoingRequest:
        """The request of attempt number `attempt` at the time `at`. Raises Forbidden."""
        name = encode_event_id(event, topic)
        facts = {**facts, "event_id": name, "topic": topic.api_name}
        if isinstance(self.url, str):
            url = self.url
        else:
            url = self.url.expand(placeholder_values(facts) if self.url.placeholders else {})
        if not allow_http and not url.startswith("https:"):
            raise ForbiddenHost("http:// targets are switched off (ALLOW_HTTP_TARGETS)")
        secrets = [key for key, until in self.secrets if until is None or at < until]
        if self.method == "GET":
            return OutgoingRequest("GET", url, {**self.headers, **sign(name, at, b"", secrets)})
        body, kind = render(self.format, facts, attempt=attempt, fields=self.fields)
        return OutgoingRequest(self.method, url, {**self.headers, "Content-Type": kind, **sign(name, at, body, secrets)}, body)


def callback(url: str, *, max_attempts: int, timeout: float, concurrency: int, schedule: tuple[float, ...]) -> DeliveryTarget:
    """The target of a message's `lt_callbackurl`. Raises UrlError for what the rewrite would have refused."""
    return DeliveryTarget(
        tracker_id=None,
        revision=0,
        url=parse_destination(url).location.decode(),
        method="POST",
        format="xoxzo",
        max_attempts=max_attempts,
        timeout=timeout,
        concurrency=concurrency,
        schedule=schedule,
        success=CALLBACK_SUCCESS,
    )


def callback_lane(url: str) -> str:
    """What slots of callbacks are counted by: their host."""
    try:
        return f"c{parse_destination(url).host}"
    except UrlError:
        return "c"
