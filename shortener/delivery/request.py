"""This module builds the HTTP request of one delivery attempt from a tracker and the facts of an event.

Each attempt has its own request, because the body contains the attempt number and the signature contains the time of the attempt.
"""
# Tested by tests/delivery/test_formats.py

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from ssl import SSLContext
from typing import Any

from shortener.delivery.conversion_filter import CLICK_ACTION
from shortener.delivery.formats import render
from shortener.delivery.http_exchange import OutgoingRequest
from shortener.delivery.outcomes import SuccessCriteria
from shortener.delivery.placeholders import METADATA, Template, placeholder_values
from shortener.model import Topic, record
from shortener.outbox.events import encode_event_id
from shortener.signatures import SigningSecret, sign
from shortener.urls import parse_destination

#: The success criteria for callbacks of messages. Xoxzo: "Callback URL must return http status 200".
CALLBACK_SUCCESS = SuccessCriteria("200", retries_every_status=True)
_ANY_2XX = SuccessCriteria()
#: The signing secrets of a tracker, newest first. Each secret has the time until which requests are signed with it. None means no
#: limit.
Secrets = tuple[tuple[SigningSecret, datetime | None], ...]


class ForbiddenHost(Exception):
    """The error for a request that the settings forbid. Its text contains the reason."""


@record
class DeliveryTarget:
    """The receiver of a delivery with the values that the dispatcher needs: a tracker, or the callback URL of a message.

    `tracker_id` is None for a callback. `timeout` is the time limit of an attempt in seconds."""

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
    tls: SSLContext | None = None  # a TLS context with the client certificate of the tracker, if it has one

    @property
    def metadata_names(self) -> list[str]:
        """The names of the message metadata for which the URL contains placeholders."""
        placeholders = () if isinstance(self.url, str) else self.url.placeholders
        return [name.removeprefix(METADATA) for name in placeholders if name.startswith(METADATA)]

    def request(
        self, facts: Mapping[str, Any], event: int, topic: Topic, attempt: int, at: datetime, *, allow_http: bool
    ) -> OutgoingRequest:
        """Build the request of attempt number `attempt` at the time `at`. Raise ForbiddenHost if the URL is not an https URL and
        `allow_http` is false.

        If the facts contain a `topic`, this topic is sent as the name of the event. Only the facts of test deliveries contain a
        `topic`."""
        name = encode_event_id(event, topic)
        facts = dict(facts)  # copying a dict is four times as fast as building a new one
        facts.setdefault("topic", topic.api_name)
        facts["event_id"] = name
        if topic is Topic.CONVERSION and facts.get("conversion_id") is None:  # the event is a click, sent as a conversion
            facts["action"] = CLICK_ACTION
        if isinstance(self.url, str):
            url = self.url
        else:
            url = self.url.expand(placeholder_values(facts, self.url.placeholders))
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
    """Return the delivery target for the callback URL of a message (`lt_callbackurl`). Raise UrlError if the URL is not valid."""
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
