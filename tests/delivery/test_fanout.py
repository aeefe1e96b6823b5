"""These tests check which deliveries the fan-out creates from events, and which data it stores for them, on both databases."""

from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from shortener.accounts.administration import create_application, update_application
from shortener.container import Service
from shortener.delivery import fanout, fanout_queries
from shortener.delivery.fanout import CLICK_CONVERSION_DELAY_MS, requeue_events
from shortener.delivery.trackers import NewTracker
from shortener.errors import StoreUnavailable
from shortener.ids import encode
from shortener.model import DeliveryStatus, HitFlag, Topic
from shortener.outbox import events
from shortener.outbox.events import Event, encode_event_id
from shortener.storage import schema
from tests.conftest import NOON, Clock
from tests.delivery.conftest import MakeTracker, Story
from tests.delivery.dispatching import facts_of_events as facts
from tests.factory import AUDIT, rows
from tests.receiver import Receiver

URL = "https://tracker.example/"


def move_last_event(connection: Connection, application_id: int) -> None:
    """Move the newest event to another application."""
    connection.execute(
        text("UPDATE events SET application_id = :application WHERE id = (SELECT max(id) FROM events)"),
        {"application": application_id},
    )


async def test_an_event_creates_one_delivery_for_each_topic_and_each_subscribed_tracker(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    both = await make_tracker(URL, "state", "click")
    state = await make_tracker(URL, "state")
    await make_tracker(URL, "conversion")
    await story.first_click()
    assert await service.fanout.step() == 1
    found = await rows(service.database, schema.deliveries)
    assert {(row.tracker_id, Topic(row.topic)) for row in found} == {
        (both, Topic.STATE),
        (both, Topic.CLICK),
        (state, Topic.STATE),
    }
    for row in found:
        assert (row.lane, row.status, row.attempt, row.next_at) == (f"t{row.tracker_id}", DeliveryStatus.PENDING, 0, NOON)
    assert await service.fanout.step() == 0


async def test_an_event_without_subscribed_trackers_is_stored_without_the_data_for_delivery_bodies(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "conversion")
    await story.first_click()
    await service.fanout.flush()
    (event,) = await rows(service.database, schema.events)
    assert (event.fanned_out, event.facts) == (True, None)
    assert await rows(service.database, schema.deliveries) == []


async def test_an_event_creates_no_deliveries_for_trackers_of_another_application(service: Service, story: Story) -> None:
    other = await service.database.write(create_application, "other", NOON)
    new = NewTracker(url=URL, events=["state", "click"])
    await service.trackers.create(AUDIT, other.application_id, new)
    await story.first_click()
    await service.fanout.flush()
    assert await rows(service.database, schema.deliveries) == []


async def test_one_fanout_transaction_creates_few_deliveries_and_the_next_transaction_serves_other_applications(
    service: Service, make_tracker: MakeTracker, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "MAX_DELIVERIES", 6)
    other = await service.database.write(create_application, "other", NOON)
    await service.trackers.create(AUDIT, other.application_id, NewTracker(url=URL, events=["state"]))
    for _ in range(4):
        await make_tracker(URL, "state")
    for _ in range(7):
        await story.first_click()
    await service.database.write(move_last_event, other.application_id)

    async def owners() -> list[int]:
        """Run one step of the fan-out. Return the application ids of the new deliveries."""
        before = len(await rows(service.database, schema.deliveries))
        await service.fanout.step()
        return [row.application_id for row in (await rows(service.database, schema.deliveries))[before:]]

    assert await owners() == [1] * 8, "a step fans out two events, and not the third one"
    assert await owners() == [other.application_id]
    assert await owners() == [1] * 8
    assert await owners() == [1] * 8, "no other application waits"
    assert await owners() == []


async def test_a_crash_during_the_fanout_neither_repeats_nor_skips_an_event(
    service: Service, make_tracker: MakeTracker, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_tracker(URL, "click")
    for _ in range(3):
        await story.first_click()

    class Killed(BaseException):
        """An error that simulates a process that is killed before it marks the events as fanned out."""

    def crash(connection: Connection, facts: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fanout_queries, "mark_fanned_out", crash)
        with pytest.raises(Killed):
            await service.fanout.step()
    assert await rows(service.database, schema.deliveries) == []
    await service.fanout.flush()
    assert len(await rows(service.database, schema.deliveries)) == 3


async def test_the_fanout_processes_the_events_of_several_batches_in_order(
    service: Service, make_tracker: MakeTracker, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "MAX_EVENTS", 4)
    await make_tracker(URL, "click")
    for _ in range(10):
        await story.first_click()
    assert [await service.fanout.step() for _ in range(4)] == [4, 4, 2, 0]
    found = await rows(service.database, schema.deliveries)
    assert [row.event_id for row in found] == sorted(row.event_id for row in found)
    assert (service.fanout.events, service.fanout.deliveries) == (10, 10)


async def test_the_fanout_wakes_the_dispatcher_after_it_created_deliveries(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "click")
    await story.first_click()
    assert not service.dispatcher.wake_up._event.is_set()
    await service.fanout.step()
    assert service.dispatcher.wake_up._event.is_set()


async def test_an_event_whose_message_row_is_missing_does_not_block_other_events(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    await make_tracker(receiver.url(), "click")

    def orphan(connection: Connection) -> None:
        events.append(connection, [Event(service.ids(), 1, Topic.CLICK, NOON, 1, 2, 3)])

    await service.database.write(orphan)
    await story.first_click()
    await service.fanout.flush()
    await service.dispatcher.flush()
    assert len(receiver.requests) == 2


async def damage(service: Service, event: int, data: str) -> None:
    """Replace the stored data of an event by the invalid text `data`."""
    statement = text("UPDATE events SET data = :data WHERE id = :event")
    await service.database.write(lambda connection: connection.execute(statement, {"data": data, "event": event}))


async def test_an_event_that_cannot_be_fanned_out_is_quarantined_and_can_be_requeued(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "click", "state")
    for _ in range(5):
        await story.first_click()
    event_ids = [row.id for row in await rows(service.database, schema.events)]
    damaged = event_ids[2]
    await damage(service, damaged, "{not JSON")
    with capture_logs() as logs:
        await service.fanout.flush()
    assert sorted(row.event_id for row in await rows(service.database, schema.deliveries)) == sorted(
        event for event in event_ids * 2 if event != damaged
    )
    (line,) = [line for line in logs if line["event"] == "event_quarantined"]
    assert (line["log_level"], line["event_id"]) == ("error", encode(damaged))
    assert b"\nshortener_events_quarantined_total 1.0\n" in service.metrics.text("")[0]
    assert await service.fanout.step() == 0, "a quarantined event is not repeated"

    await damage(service, damaged, '{"previous_state": "SENT", "new_state": "CLICKTHRU"}')
    assert await requeue_events(service.database, AUDIT, NOON) == 1
    assert await requeue_events(service.database, AUDIT, NOON) == 0
    await service.fanout.flush()
    assert len(await rows(service.database, schema.deliveries)) == 10


async def test_an_event_with_a_value_that_postgresql_cannot_store_is_quarantined(
    service: Service, make_tracker: MakeTracker, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NumericValueOutOfRange(Exception):
        sqlstate = "22003"

    await make_tracker(URL, "click")
    for _ in range(3):
        await story.first_click()
    damaged = [row.id for row in await rows(service.database, schema.events)][1]
    original = fanout_queries.sources

    def sources(connection: Connection, event_ids: list[int]) -> Any:
        # SQLAlchemy has no exception class for this error of asyncpg, so it raises DBAPIError
        if damaged in event_ids:
            raise DBAPIError("INSERT", {}, NumericValueOutOfRange())
        return original(connection, event_ids)

    monkeypatch.setattr(fanout_queries, "sources", sources)
    await service.fanout.flush()
    assert (len(await rows(service.database, schema.deliveries)), service.fanout.quarantined) == (2, 1)


async def test_a_batch_of_damaged_events_does_not_block_the_next_batch(
    service: Service, make_tracker: MakeTracker, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "MAX_EVENTS", 2)
    await make_tracker(URL, "click")
    for _ in range(5):
        await story.first_click()
    event_ids = [row.id for row in await rows(service.database, schema.events)]
    for event in event_ids[:4]:
        await damage(service, event, "]")
    await service.fanout.flush()
    assert [row.event_id for row in await rows(service.database, schema.deliveries)] == event_ids[4:]
    assert service.fanout.quarantined == 4


async def test_an_error_in_the_database_schema_does_not_quarantine_events(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "click")
    await story.first_click()

    async def rename(old: str, new: str) -> None:
        statement = text(f"ALTER TABLE conversions RENAME COLUMN {old} TO {new}")
        await service.database.write(lambda connection: connection.execute(statement))

    await rename("disposition", "elsewhere")
    for _ in range(2):
        with pytest.raises((DBAPIError, StoreUnavailable)):
            await service.fanout.step()
    await rename("elsewhere", "disposition")
    await service.fanout.flush()
    assert (len(await rows(service.database, schema.deliveries)), service.fanout.quarantined) == (1, 0)


async def test_the_first_click_of_a_message_sends_its_callback_once_and_the_callback_requires_status_200(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    receiver.replies = [201]
    message = await story.message(links=2, callback_url=receiver.url("/callback?a=b%20c"), from_address="Sender")
    await story.first_click(message)
    await service.fanout.flush()
    await story.click(message)
    await story.click(message, HitFlag.FIRST_FOR_LINK, link=1)
    (opener,) = [hit.id for hit in await rows(service.database, schema.hits) if hit.flags & HitFlag.FIRST_FOR_MESSAGE]
    back = Event(service.ids(), 1, Topic.CLICK_RETRACTED, clock(), message.row, message.links[0], opener)
    await service.database.write(events.append, [back])
    await story.click(message, HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE)
    for _ in range(3):
        await service.fanout.flush()
        await service.dispatcher.flush()
        clock.forward(seconds=10)
    first, second = receiver.requests
    assert (first.method, first.target) == ("POST", "/callback?a=b%20c")
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    event = next(row.id for row in await rows(service.database, schema.events) if row.facts is not None)
    assert first.headers["webhook-id"] == encode_event_id(event, Topic.CLICK)
    body = second.json
    assert (body["msgid"], body["recipient"], body["sender"]) == ("m-1", "+14085550100", "Sender")
    assert body["link_tracking"] == {
        "link": "https://shop.example/0",
        "shortlink": f"http://127.0.0.1:8000/{message.codes[0]}",
        "accessed": True,
        "accessed_on": "2026-11-20 12:00:00",
    }
    (row,) = await rows(service.database, schema.deliveries)
    assert (row.tracker_id, row.lane, row.status, row.attempt) == (None, "c1/127.0.0.1", DeliveryStatus.DELIVERED, 2)


async def test_a_click_suspected_to_be_a_program_is_sent_only_to_trackers_that_request_suspected_clicks(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "click", "state")
    asking = await make_tracker(URL, "click", "state", with_suspected=True)
    message = await story.message(callback_url="https://xoxzo.example/")
    await story.click(message, topics=Topic.CLICK | Topic.SUSPECTED, verdict=1, rule="crawler")
    await service.fanout.flush()
    (row,) = await rows(service.database, schema.deliveries)
    assert (row.tracker_id, row.topic) == (asking, Topic.CLICK)
    (found,) = await facts(service)
    fields = {name: found[name] for name in ("verdict", "verdict_reason", "first_for_message", "first_for_link", "click_number")}
    assert fields == {
        "verdict": "suspected",
        "verdict_reason": "crawler",
        "first_for_message": False,
        "first_for_link": False,
        "click_number": None,
    }


async def conversions_of_clicks(service: Service, chosen: str | None) -> list[int | None]:
    """Return the ids of the trackers that received the first click of a message as a conversion."""
    if chosen:
        await service.database.write(update_application, 1, {"click_conversion": chosen}, NOON)
    await service.fanout.flush()
    found = await rows(service.database, schema.deliveries)
    return [row.tracker_id for row in found if row.topic == Topic.CONVERSION.value]


async def test_a_tracker_receives_the_state_event_of_a_first_click_before_the_conversion(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, clock: Clock
) -> None:
    await make_tracker(receiver.url("/both"), "state", "conversion", format="scg")
    await make_tracker(receiver.url("/conversion"), "conversion", format="scg")
    await story.first_click(await story.message())
    await service.fanout.flush()
    await service.dispatcher.flush()
    assert sorted((request.target, request.json["event"]["evt-tp"]) for request in receiver.requests) == [
        ("/both", "message_state_change"),
        ("/conversion", "conversion"),
    ]
    clock.forward(milliseconds=CLICK_CONVERSION_DELAY_MS)
    await service.dispatcher.flush()
    assert [request.json["event"]["evt-tp"] for request in receiver.requests if request.target == "/both"] == [
        "message_state_change",
        "conversion",
    ]


@pytest.mark.parametrize(("chosen", "expected"), [(None, ["scg"]), ("scg", ["scg"]), ("all", ["scg", "json"]), ("off", [])])
async def test_the_setting_click_conversion_determines_which_trackers_get_a_first_click_as_a_conversion(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver, chosen: str | None, expected: list[str]
) -> None:
    trackers = {name: await make_tracker(receiver.url(f"/{name}"), "conversion", format=name) for name in ("scg", "json")}
    await make_tracker(URL, "state", format="scg")
    message = await story.first_click(await story.message(links=2))
    await story.click(message, HitFlag.FIRST_FOR_LINK, link=1)
    assert await conversions_of_clicks(service, chosen) == [trackers[name] for name in expected]
    await service.dispatcher.flush()
    sent = {request.target: request.json for request in receiver.requests}
    assert sent.keys() == {f"/{name}" for name in expected}
    if "/scg" in sent:
        event = sent["/scg"]["event"]
        assert (event["evt-tp"], event["fld-val-list"]["action"]) == ("conversion", "clickthru")
        assert event["fld-val-list"]["click_id"]
    if "/json" in sent:
        assert (sent["/json"]["event"], sent["/json"]["action"], sent["/json"]["value"]) == ("conversion", "clickthru", None)
    assert await rows(service.database, schema.conversions) == []
