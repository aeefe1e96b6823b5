"""Tests of the example requests that the built-in receiver shows: they equal the requests that a real tracker receives."""

from __future__ import annotations

from datetime import datetime

import orjson
import pytest
from sqlalchemy import Connection, select

from shortener.container import Service
from shortener.delivery.example_requests import ExampleRequest, example_requests, example_secret, example_target
from shortener.delivery.formats import FORMATS
from shortener.logs import mask
from shortener.model import Topic
from shortener.signatures import parse_secret, verify
from shortener.storage.schema import events
from tests.conftest import Clock, client_of
from tests.portal.conftest import PHONE
from tests.receiver import Receiver

NUMBER = "+14085550123"


def _requests(connection: Connection, service: Service, secret: str, format: str, now: datetime) -> list[ExampleRequest]:
    rows = connection.execute(select(events).order_by(events.c.id)).all()
    found: list[tuple[int, Topic, datetime]] = [(row.id, topic, row.at) for row in rows for topic in Topic(row.topics)]
    return example_requests(connection, service.fanout, example_target(secret, format), found, now)


@pytest.mark.parametrize("format", FORMATS)
async def test_an_example_request_equals_the_request_that_a_tracker_receives(
    service: Service, receiver: Receiver, clock: Clock, format: str
) -> None:
    secret = example_secret(service.secret, 1)
    credentials = service.first_credentials
    assert credentials is not None
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        tracker = {"url": receiver.url("/events"), "events": ["click", "state"], "format": format, "secret": secret}
        assert (await client.post("/api/v1/trackers", json=tracker)).status_code == 201
        body = {"to": NUMBER, "message_id": "m1", "body": 'See #track("https://shop.example/")', "metadata": {"a": "b"}}
        message = (await client.post("/api/v1/rewrite", json=body)).json()["messages"][0]
        assert (await client.get(f"/{message['links'][0]['code']}", headers={"User-Agent": PHONE})).status_code == 302
    # the example requests are built before a tracker subscribes to the event
    expected = await service.database.read(_requests, service, secret, format, clock.now)
    await service.fanout.flush()
    await service.dispatcher.flush()
    received = {request.headers["webhook-id"]: request for request in receiver.take()}
    assert received
    for request in expected:
        real = received.pop(request.event_id)
        headers = {name.lower(): value for name, value in request.headers}
        verify(headers, request.body.encode(), [parse_secret(secret)], clock.now)
        assert NUMBER not in request.body
        shown, sent = request.body, real.body.decode().replace(NUMBER, mask(NUMBER)).replace(NUMBER[1:], mask(NUMBER)[1:])
        assert _without_hash(shown) == _without_hash(sent)
        assert request.line == f"{real.method} {real.target} HTTP/1.1"
        names = set(headers) - {"host", "content-length", "webhook-signature", "x-webhook-signature"}
        assert {name: headers[name] for name in names} == {name: real.headers[name] for name in names}
        assert set(headers) == set(real.headers)
    assert received == {}


def _without_hash(body: str) -> object:
    content = orjson.loads(body)
    return {name: value for name, value in content.items() if name != "phone_sha256"} if isinstance(content, dict) else content
