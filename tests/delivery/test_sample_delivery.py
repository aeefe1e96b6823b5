"""These tests check the test delivery of a tracker: it has one attempt, is stored, and does not change the tracker."""

import json
from typing import Any

import pytest

from shortener.container import Service
from shortener.delivery.deliveries import DeliveryFilter
from shortener.delivery.formats import FORMATS, render
from shortener.delivery.sample_delivery import SampleDelivery, send_test
from shortener.delivery.sample_facts import sample_facts
from shortener.model import EVENT_NAMES, DeliveryStatus, Topic
from tests.conftest import NOON
from tests.delivery.conftest import MakeTracker
from tests.factory import AUDIT
from tests.one_test import in_one_test
from tests.receiver import Receiver, Reply

DELIVERED, DEAD = DeliveryStatus.DELIVERED, DeliveryStatus.DEAD


async def send(service: Service, tracker: int, event: str | None = None, *, allow_http: bool = True) -> SampleDelivery:
    """Make a test delivery to a tracker of the default application."""
    parts = service.database, AUDIT, service.trackers, service.sender, service.ids, service.clock
    return await send_test(*parts, tracker, application_id=1, allow_http=allow_http, event_name=event)


async def test_a_test_delivery_makes_one_attempt_and_changes_neither_circuit_breaker_nor_queue(
    service: Service, make_tracker: MakeTracker, receiver: Receiver
) -> None:
    tracker = await make_tracker(receiver.url("/?m={message_id}"), enabled=False, format="scg", secret="a secret of mine")
    good = await send(service, tracker)
    receiver.default_reply = Reply(410, b"go away")
    bad = await send(service, tracker)
    assert (good.delivered, good.reason, good.http_status, good.answer) == (True, "success", 200, "OK")
    assert (bad.delivered, bad.reason, bad.error, bad.answer) == (False, "gone", "gone", "go away")
    first, second = receiver.requests
    assert first.json["event"]["evt-tp"] == "test"
    assert first.headers["webhook-id"] == first.json["event_id"] == good.event_id != second.json["event_id"]
    assert "webhook-signature" in first.headers
    stored = await service.trackers.get(tracker)
    assert (stored.disabled_reason, stored.health.failures_in_row, stored.health.last_success_at) == ("created disabled", 0, None)
    page = await service.deliveries.page(DeliveryFilter(1, tracker), 10)
    assert [(one.status, one.topic, one.attempt) for one in page.deliveries] == [(DEAD, Topic.TEST, 1), (DELIVERED, Topic.TEST, 1)]
    _, attempts = await service.deliveries.get(bad.delivery_id)
    assert [(one.status, one.answer) for one in attempts] == [(410, "go away")]
    await service.fanout.flush()
    await service.dispatcher.flush()
    assert len(receiver.requests) == 2


async def test_a_test_delivery_to_a_forbidden_target_reports_blocked_address(
    service: Service, make_tracker: MakeTracker, receiver: Receiver
) -> None:
    tracker = await make_tracker(receiver.url())
    result = await send(service, tracker, allow_http=False)
    assert (result.delivered, result.error, receiver.connections) == (False, "blocked_address", 0)


async def test_a_test_delivery_has_sample_values_of_the_event_to_which_the_tracker_subscribes(
    service: Service, make_tracker: MakeTracker, receiver: Receiver
) -> None:
    url = "/pb?cid={click_id}&payout={value}&tx={transaction_id}&ev={action}&d={disposition}&s={metadata.sub1}&event={event}"
    tracker = await make_tracker(receiver.url(url), "conversion", format="json")
    for event in (None, "conversion", "delivery"):
        await send(service, tracker, event)
    default, conversion, delivery = receiver.requests
    values = "/pb?cid=test-click&payout=19.90&tx=test-transaction&ev=sale&d=positive&s=test&event="
    assert (default.target, conversion.target) == (f"{values}test", f"{values}conversion")
    assert (default.json["event"], default.json["value"], default.json["status"]) == ("test", "19.90", "approved")
    assert (delivery.json["event"], delivery.json["status"], delivery.json["value"]) == ("delivery", "DELIVRD", None)


@pytest.mark.parametrize(
    ("actions", "dispositions", "expected"),
    [
        (None, None, "sale/positive/approved"),
        (["Lead", "SALE"], ["none", "positive"], "sale/positive/approved"),
        (["Lead", "deposit"], ["none", "negative"], "Lead/negative/rejected"),
        (None, ["none"], "sale//pending"),
    ],
)
async def test_the_conversion_of_a_test_delivery_is_one_that_the_filter_of_the_tracker_permits(
    service: Service,
    make_tracker: MakeTracker,
    receiver: Receiver,
    actions: list[str] | None,
    dispositions: list[str] | None,
    expected: str,
) -> None:
    url = receiver.url("/?{action}/{disposition}/{status}")
    names = {"conversion_actions": actions, "conversion_dispositions": dispositions}
    tracker = await make_tracker(url, "conversion", **names)
    for event in (None, "conversion"):
        await send(service, tracker, event)
    assert {request.target for request in receiver.requests} == {f"/?{expected}"}


def fields(value: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Return the paths of all values in a JSON object."""
    if not isinstance(value, dict):
        return {path}
    return {path}.union(*(fields(inner, (*path, name)) for name, inner in value.items()))


@in_one_test
@pytest.mark.parametrize("event", EVENT_NAMES)
@pytest.mark.parametrize("format", FORMATS)
def test_the_body_of_a_test_delivery_has_the_same_fields_as_the_body_of_a_real_event(event: str, format: str) -> None:
    facts = sample_facts(1, NOON, event)
    sample = json.loads(render(format, {**facts, "topic": "test"}, attempt=1)[0])
    real = json.loads(render(format, {**facts, "topic": facts["sample_of"], "sample_of": None}, attempt=1)[0])
    assert fields(sample) == fields(real)
