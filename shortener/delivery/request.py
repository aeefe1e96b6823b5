"""The HTTP request of one attempt, built from a tracker and the facts of an event.

Each attempt has its own request, because the body contains the number of the attempt and the signature contains its time.
"""
# Tested by tests/delivery/test_formats.py

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ssl import SSLContext
from typing import Any

from shortener.delivery.formats import render
from shortener.delivery.outcomes import SuccessCriteria
from shortener.delivery.placeholders import METADATA, Template, placeholder_values
from shortener.delivery.sender import OutgoingRequest
from shortener.delivery.signatures import SigningSecret, sign
from shortener.model import Topic
from shortener.outbox.events import encode_event_id
from shortener.urls import UrlError, parse_destination

#: Xoxzo: "Callback URL must return http status 200".
CALLBACK_SUCCESS = SuccessCriteria("200", retries_every_status=True)
_ANY_2XX = SuccessCriteria()
#: The action of the `conversion` event that follows the first click of a message.
CLICK_ACTION = "clickthru"


#: Signing secrets, newest first, each with the time until which it signs (None: without end).
Secrets = tuple[tuple[SigningSecret, datetime | None], ...]


class ForbiddenHost(Exception):
    """The settings forbid the request. The text says why."""


@dataclass(frozen=True, slots=True)
class DeliveryTarget:
    """A tracker, or the callback of a message (`tracker_id` None), as the dispatcher uses it. `timeout` is in seconds."""

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
    secrets: Secrets = ()
    tls: SSLContext | None = None  # with the client certificate of the tracker

    @property
    def metadata_names(self) -> list[str]:
        """The names of the metadata that the URL contains as placeholders."""
        placeholders = () if isinstance(self.url, str) else self.url.placeholders
        return [name.removeprefix(METADATA) for name in placeholders if name.startswith(METADATA)]

    def request(
        self, facts: Mapping[str, Any], event: int, topic: Topic, attempt: int, at: datetime, *, allow_http: bool
    ) -> OutgoingRequest:
        """Return the request of attempt number `attempt` at the time `at`. Raise ForbiddenHost.

        Only the facts of a test delivery contain a `topic`, which then replaces the name of the event."""
        name = encode_event_id(event, topic)
        facts = {"topic": topic.api_name, **facts, "event_id": name}
        if topic is Topic.CONVERSION and facts.get("conversion_id") is None:  # a click as a conversion
            facts["action"] = CLICK_ACTION
        if isinstance(self.url, str):
            url = self.url
        else:
            url = self.url.expand(placeholder_values(facts) if self.url.placeholders else {})
        if not allow_http and not url.startswith("https:"):
            raise ForbiddenHost("http:// targets are disabled (ALLOW_HTTP_TARGETS)")
        secrets = [key for key, until in self.secrets if until is None or at < until]
        if self.method == "GET":
            return OutgoingRequest("GET", url, {**self.headers, **sign(name, at, b"", secrets)}, tls=self.tls)
        body, content_type = render(self.format, facts, attempt=attempt, fields=self.fields)
        return OutgoingRequest(
            self.method, url, {**self.headers, "Content-Type": content_type, **sign(name, at, body, secrets)}, body, self.tls
        )


def callback(
    url: str, *, max_attempts: int, timeout: float, concurrency: int, schedule: tuple[float, ...], secrets: Secrets = ()
) -> DeliveryTarget:
    """Return the target of a message's `lt_callbackurl`. Raise UrlError if the URL is not a valid destination."""
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
        secrets=secrets,
    )


def callback_queue(application_id: int, url: str) -> str:
    """Return the name of the queue of a callback: all callbacks of an application to one host share a queue."""
    try:
        host = parse_destination(url).host
    except UrlError:
        host = ""
    return f"c{application_id}/{host}"
