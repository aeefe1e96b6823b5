"""This module builds the requests that a tracker would receive for the events of an application. The portal shows these requests on
the page of its built-in receiver.

The requests are built and signed by the same code as real deliveries, from the newest events of the event log. They are signed at
the time at which they are shown, because receivers reject old timestamps. Nothing is sent and nothing is stored. Therefore an
application needs no endpoint to see its events, and no request can reach a private address. Phone numbers are masked.
"""
# Tested by tests/delivery/test_example_requests.py

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import orjson
from sqlalchemy import Connection

from shortener.delivery.fanout import Fanout
from shortener.delivery.placeholders import Template
from shortener.delivery.request import DeliveryTarget
from shortener.delivery.sample_facts import sample_facts
from shortener.delivery.sender import USER_AGENT
from shortener.logs import mask
from shortener.model import Topic, record
from shortener.outbox.events import encode_event_id
from shortener.secret import Secret
from shortener.signatures import SIGNING_PREFIX, parse_secret

URL = "https://receiver.example/events"  # The URL of the tracker in the example requests. The tracker does not exist.
FORMAT = "json"


@record
class ExampleRequest:
    """A request as a tracker would receive it at the time `signed_at`. `at` is the time of the event. `line` is the request line,
    such as `POST /events HTTP/1.1`. `body` is the exact body as text. `message_id` is None for events without a message."""

    event_id: str
    topic: Topic
    at: datetime
    signed_at: datetime
    message_id: str | None
    line: str
    headers: Sequence[tuple[str, str]]
    body: str

    @property
    def header_lines(self) -> str:
        """The headers as text, one in each line."""
        return "".join(f"{name}: {value}\n" for name, value in self.headers)


def example_secret(secret: Secret, application_id: int) -> str:
    """Return the signing secret of the example requests of an application. No other request is signed with it."""
    key = secret.key(f"built-in receiver {application_id}")
    return SIGNING_PREFIX + base64.b64encode(key[:24]).decode()


def example_target(
    signing_secret: str,
    format: str = FORMAT,
    *,
    url: Template | str = URL,
    method: str = "POST",
    fields: Sequence[str] | None = None,
) -> DeliveryTarget:
    """Return an invented tracker that would receive the example requests. `fields` are the fields of a body in the format `json`;
    None selects the default fields."""
    return DeliveryTarget(
        tracker_id=None,
        revision=0,
        url=url,
        method=method,
        format=format,
        fields=None if fields is None else tuple(fields),
        max_attempts=1,
        timeout=10,
        concurrency=1,
        schedule=(),
        secrets=((parse_secret(signing_secret), None),),
    )


def example_requests(
    connection: Connection, fanout: Fanout, target: DeliveryTarget, events: Sequence[tuple[int, Topic, datetime]], now: datetime
) -> list[ExampleRequest]:
    """Return one request for each event, in the order of `events`, signed at the time `now`. Leave out events that were deleted.

    `events` contains tuples of row id, topic and time."""
    facts = fanout.read_facts(connection, [event for event, _, _ in events])
    return [_request(target, facts[event], event, topic, at, now) for event, topic, at in events if event in facts]


def sample_request(
    target: DeliveryTarget,
    application_id: int,
    at: datetime,
    event: str,
    actions: Sequence[str] | None = None,
    dispositions: Sequence[str] | None = None,
) -> ExampleRequest:
    """Return the request for an invented event, for an application that has no event yet. If the invented event is a conversion,
    its action and its disposition are among `actions` and `dispositions`."""
    facts = sample_facts(application_id, at, event, actions, dispositions)
    return _request(target, {**facts, "topic": event}, 0, Topic.TEST, at, at)


def _request(
    target: DeliveryTarget, facts: Mapping[str, Any], event: int, topic: Topic, at: datetime, now: datetime
) -> ExampleRequest:
    masked = dict(facts)
    if masked.get("to_address"):
        # The hash of the phone number is removed, because a reader could hash all possible numbers and compare the hashes.
        masked |= {"to_address": mask(masked["to_address"]), "phone_sha256": None}
    request = target.request(masked, event, topic, 1, now, allow_http=True)
    body, parts = request.body or b"", urlsplit(request.url)
    headers = {
        "Host": parts.netloc,
        "Accept": "*/*",
        "User-Agent": USER_AGENT,
        "Accept-Encoding": "identity",
        **request.headers,
        "Content-Length": str(len(body)),
    }
    return ExampleRequest(
        encode_event_id(event, topic),
        topic,
        at,
        now,
        facts.get("message_id"),
        f"{request.method} {parts.path or '/'}{'?' + parts.query if parts.query else ''} HTTP/1.1",
        list(headers.items()),
        body.decode(),
    )


def indented(body: str) -> str:
    """Return a JSON body with one value on each line. An empty body stays empty."""
    return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode() if body else body
