"""Tests of the event data that the fan-out stores for the bodies of deliveries, and of click numbers, on both databases."""
# Part of the tests of shortener/delivery/fanout.py.

import hashlib
import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection, insert, update

from shortener.container import Service
from shortener.conversions.parsing import ConversionReport
from shortener.delivery.event_fields import FACTS
from shortener.delivery.formats import FORMATS
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import HitFlag, State, Topic
from shortener.outbox import events
from shortener.outbox.events import Event
from shortener.storage import schema
from tests.conftest import NOON, Clock
from tests.delivery.conftest import MakeTracker, Story
from tests.delivery.dispatching import facts_of_events as facts
from tests.factory import rows
from tests.receiver import Receiver

URL = "https://tracker.example/"


async def test_a_first_click_event_contains_data_about_the_click_and_its_message(
    service: Service, make_tracker: MakeTracker, story: Story, clock: Clock
) -> None:
    await make_tracker(URL, "state")
    message = await story.message(
        campaign="autumn",
        source="campaign",
        external_request_id="x-1",
        from_address="18775550100",
        sender_id_id="EjihJOXWJE24O",
        sender_id_alias="Gladiator",
        mt_price=Decimal("0.00950"),
        sent_at=NOON + timedelta(seconds=1),
        delivered_at=NOON + timedelta(seconds=3),
        state=int(State.DELIVERED),
        reason_code="200",
        metadata={"a": 1},
    )
    clock.forward(seconds=45, milliseconds=250)
    await story.click(message, HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE, Topic.STATE | Topic.CLICK)
    await service.fanout.flush()
    (found,) = await facts(service)
    click_id = found.pop("click_id")
    assert service.click_ids.decode(click_id) == (await rows(service.database, schema.hits))[0].id
    assert found == {
        "timestamp": "2026-11-20T12:00:45.250Z",
        "application_id": 1,
        "company_id": None,
        "message_id": "m-1",
        "message_request_id": "request of m-1",
        "external_message_request_id": "x-1",
        "to_address": "+14085550100",
        "phone_sha256": hashlib.sha256(b"+14085550100").hexdigest(),
        "from_address": "18775550100",
        "sender_id_id": "EjihJOXWJE24O",
        "sender_id_alias": "Gladiator",
        "previous_state": "DELIVERED",
        "new_state": "CLICKTHRU",
        "reason_code": "200",
        "reason_description": None,
        "report_status": None,
        "telecom_message_id": None,
        "fragments_count": 1,
        "mt_price": "0.00950",
        "has_attachment": False,
        "campaign": "autumn",
        "source": "campaign",
        "country": "US",
        "metadata": {"a": 1},
        "process_key": None,
        "created_at": "2026-11-20T12:00:00.000Z",
        "sent_at": "2026-11-20T12:00:01.000Z",
        "delivered_at": "2026-11-20T12:00:03.000Z",
        "clicked_at": "2026-11-20T12:00:45.250Z",
        "seconds_since_sent": 44,
        "seconds_since_delivered": 42,
        "code": message.codes[0],
        "short_url": f"http://127.0.0.1:8000/{message.codes[0]}",
        "url": "https://shop.example/0",
        "label": None,
        "verdict": "human",
        "verdict_reason": "person",
        "user_agent": "Mozilla/5.0 (iPhone)",
        "first_for_link": True,
        "first_for_message": True,
        "click_number": 1,
    }
    assert set(found) < set(FACTS)


async def test_repeated_clicks_on_a_link_have_consecutive_click_numbers(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "click")
    message = await story.message(links=2)
    await story.click(message, HitFlag.NONE, Topic.CLICK, link=1, verdict=1)  # suspected hits are not counted
    await story.click(message, HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE, Topic.STATE | Topic.CLICK)
    await story.click(message)
    await story.click(message, HitFlag.FIRST_FOR_LINK, link=1)
    await service.fanout.flush()
    await story.click(message)
    await story.click(message, link=1)
    await story.click(message)
    await service.fanout.flush()
    found = [(one["url"][-1], one["click_number"]) for one in (await facts(service))[1:]]
    assert found == [("0", 1), ("0", 2), ("1", 1), ("0", 3), ("1", 2), ("0", 4)]


async def test_no_click_number_is_used_twice_if_an_earlier_click_is_committed_later(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "click")
    message = await story.message()
    await story.click(message, HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE, Topic.STATE | Topic.CLICK)
    early = [service.ids() for _ in range(3)]
    await story.click(message)
    await service.fanout.flush()
    for hit in early:  # these hits are older than the other hits, but their transactions are committed later
        await story.click(message, id=hit)
    await service.fanout.flush()
    await story.click(message)
    await service.fanout.flush()
    assert sorted(one["click_number"] for one in await facts(service)) == [1, 2, 3, 4, 5, 6]


async def test_click_numbers_continue_after_clicks_for_which_no_number_was_stored(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    message = await story.message()
    await story.click(message, HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE, Topic.STATE | Topic.CLICK)
    for _ in range(4):
        await story.click(message)
    await service.fanout.flush()  # no tracker subscribes, so these clicks have no numbers
    await make_tracker(URL, "click")
    await story.click(message)
    await service.fanout.flush()
    assert (await facts(service))[-1]["click_number"] == 6


async def test_a_conversion_event_contains_the_click_that_led_to_the_conversion(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "conversion")
    message = await story.message(links=2)
    hit = await story.click(message, HitFlag.FIRST_FOR_LINK, link=1)
    recorded = await service.conversions.ingest(
        1,
        ConversionReport(
            NOON,
            click_id=service.click_ids.encode(hit),
            action="deposit",
            value=Decimal("25.50"),
            currency="EUR",
            transaction_id="T-1",
            status="approved",
            metadata={"shop": "x"},
        ),
    )
    without_click = await service.conversions.ingest(1, ConversionReport(NOON, message_id=message.message_id))
    await service.fanout.flush()
    _, found, plain = await facts(service)
    expected = {
        "conversion_id": recorded.conversion_id,
        "action": "deposit",
        "conversion_status": "approved",
        "value": "25.50",
        "currency": "EUR",
        "transaction_id": "T-1",
        "conversion_metadata": {"shop": "x"},
        "click_id": service.click_ids.encode(hit),
        "url": "https://shop.example/1",
        "message_id": "m-1",
    }
    assert {name: found[name] for name in expected} == expected
    assert plain["conversion_id"] == without_click.conversion_id
    assert plain["transaction_id"] is None
    assert not {"click_id", "url"} & plain.keys(), "the conversion has no link"


async def test_the_event_of_a_delivery_report_contains_the_state_in_that_report(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "delivery")
    message = await story.message()
    await service.delivery_reports.record(
        1, [DeliveryReport(message.message_id, State.DELIVERED, NOON, report_status="DELIVRD", reason_code="000")]
    )
    await service.delivery_reports.record(1, [DeliveryReport(message.message_id, State.SENT, NOON, reason_code="7")])
    await service.fanout.flush()
    delivered, sent = await facts(service)
    assert (delivered["previous_state"], delivered["new_state"]) == ("CREATED", "DELIVERED")
    assert (delivered["report_status"], delivered["reason_code"]) == ("DELIVRD", "000")
    assert (sent["new_state"], sent["report_status"], sent["reason_code"]) == ("SENT", None, "7")
    assert delivered["short_url"].endswith(message.codes[0]), "the message's first link, for Xoxzo's link_tracking"


async def test_the_short_url_in_an_event_has_the_domain_of_its_link(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "click")
    message = await story.message()

    def move(connection: Connection) -> None:
        values = {"application_id": 1, "host": "go.example", "base_url": "https://go.example", "created_at": NOON}
        connection.execute(insert(schema.domains).values(id=7, **values))
        connection.execute(update(schema.links).values(domain_id=7))

    await service.database.write(move)
    await story.first_click(message)
    await service.fanout.flush()
    assert (await facts(service))[0]["short_url"] == f"https://go.example/{message.codes[0]}"


def click_fields(format: str, body: dict[str, Any]) -> dict[str, Any]:
    if format == "scg":
        fields: dict[str, Any] = body["event"]["fld-val-list"]
    else:
        fields = body if format == "json" else body["click"]
    return {re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name): value for name, value in fields.items()}


@pytest.mark.parametrize("format", FORMATS)
async def test_every_click_event_contains_the_first_click_flags_and_the_seconds_since_the_message_was_sent(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock, format: str
) -> None:
    await make_tracker(receiver.url(), "click", format=format, with_suspected=True)
    message = await story.message(sent_at=NOON, delivered_at=NOON + timedelta(seconds=2))
    clock.forward(seconds=5)
    await story.click(message, topics=Topic.CLICK | Topic.SUSPECTED, verdict=1, rule="crawler")
    await story.click(message, HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE, Topic.STATE | Topic.CLICK)
    await story.click(message)
    await service.fanout.flush()
    await service.dispatcher.flush()
    bodies = [click_fields(format, one.json) for one in receiver.requests]
    names = ("first_for_message", "first_for_link", "click_number", "verdict", "verdict_reason")
    fields = sorted((tuple(body[name] for name in names) for body in bodies), key=lambda one: (one[3], one[2]))
    assert fields == [
        (True, True, 1, "human", "person"),
        (False, False, 2, "human", "person"),
        (False, False, None, "suspected", "crawler"),
    ]
    for body in bodies:
        assert (body["seconds_since_sent"], body["seconds_since_delivered"], body["label"]) == (5, 3, None)


async def test_a_retracted_click_event_contains_the_time_of_the_click(
    service: Service, make_tracker: MakeTracker, story: Story, clock: Clock
) -> None:
    await make_tracker(URL, "click_retracted")
    await make_tracker(URL, "state", "click")
    message = await story.message(sent_at=NOON, delivered_at=NOON)
    clock.forward(seconds=3)
    hit = await story.click(message, HitFlag.RETRACTED, Topic(0), verdict=1, rule="many_recipients")
    clock.forward(minutes=5)
    data = {"first_for_message": True, "first_for_link": True, "previous_state": "CLICKTHRU", "new_state": "DELIVERED"}
    retracted = Event(service.ids(), 1, Topic.CLICK_RETRACTED, clock(), message.row, message.links[0], hit, data=data)
    await service.database.write(events.append, [retracted])
    await service.fanout.flush()
    (row,) = await rows(service.database, schema.deliveries)
    assert row.topic == Topic.CLICK_RETRACTED
    found = (await facts(service))[-1]
    expected = data | {
        "timestamp": "2026-11-20T12:05:03.000Z",
        "clicked_at": "2026-11-20T12:00:03.000Z",
        "seconds_since_sent": 3,
        "seconds_since_delivered": 3,
        "verdict": "suspected",
        "verdict_reason": "many_recipients",
        "click_id": service.click_ids.encode(hit),
    }
    assert {name: found[name] for name in expected} == expected
