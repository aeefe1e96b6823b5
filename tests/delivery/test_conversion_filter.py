"""Tests of the filters of trackers for conversions: in the module alone, and in the fan-out on both databases."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection, text, update

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.conversions.parsing import parse_conversion
from shortener.delivery import fanout_queries
from shortener.delivery.conversion_filter import PermittedConversions, make_filter
from shortener.delivery.conversion_url import write_conversion_url
from shortener.delivery.fanout import requeue_events
from shortener.delivery.trackers import NewTracker
from shortener.model import HitFlag, Topic
from shortener.storage import schema
from tests.conftest import NOON
from tests.delivery.conftest import MakeTracker, Story, changes
from tests.factory import AUDIT, Message, rows
from tests.receiver import Receiver

URL = "https://tracker.example/"


@pytest.mark.parametrize(
    ("actions", "dispositions", "action", "disposition", "is_permitted"),
    [
        (["Sale"], None, "sALE", None, True),
        (["Straße"], None, "STRASSE", "negative", True),
        (["sale"], None, "sales", "positive", False),
        (["sale"], [], None, None, False),
        (None, ["positive"], "any", "positive", True),
        (None, ["positive"], "any", None, False),
        ([], ["none", "negative"], "any", None, True),
        (None, ["negative", "none"], "any", "positive", False),
        (["sale"], ["positive"], "sale", "negative", False),
        (["sale"], ["positive"], "reply", "positive", False),
        (["sale", "reply"], ["positive"], "reply", "positive", True),
    ],
)
def test_a_conversion_must_match_the_actions_and_the_dispositions(
    actions: list[str] | None, dispositions: list[str] | None, action: str | None, disposition: str | None, is_permitted: bool
) -> None:
    conversions = make_filter(actions, dispositions)
    assert conversions is not None
    assert conversions.permits(action, disposition) is is_permitted


def test_a_filter_without_names_is_no_filter() -> None:
    assert make_filter(None, None) is make_filter([], []) is None
    assert make_filter(["A", "a"], None) == PermittedConversions(frozenset({"a"}), frozenset())


async def report(service: Service, message: Message, **parameters: str) -> None:
    """Report a conversion of a message."""
    parsed = parse_conversion({"message_id": message.message_id, **parameters}, NOON)
    await service.conversions.ingest(1, parsed)


async def received(service: Service, tracker: int) -> list[tuple[Any, ...]]:
    """Return action, revision and disposition of each conversion for which a tracker has a delivery, in the order of the events."""
    events = {row.id: row for row in await rows(service.database, schema.events)}
    found = []
    for row in sorted(await rows(service.database, schema.deliveries), key=lambda row: row.event_id):
        if (row.tracker_id, Topic(row.topic)) == (tracker, Topic.CONVERSION):
            facts = events[row.event_id].facts
            found.append((facts.get("action"), facts.get("revision"), facts.get("disposition")))
    return found


PENDING, APPROVED, REJECTED = ("Sale", 1, None), ("Sale", 2, "positive"), ("Sale", 3, "negative")
LEAD = ("lead", 1, None)
STOP, START, WORDS = (("reply", 1, "negative"), ("reply", 1, "positive"), ("reply", 1, None))


@pytest.mark.parametrize(
    ("actions", "dispositions", "expected"),
    [
        (None, None, [PENDING, APPROVED, LEAD, REJECTED, STOP, START, WORDS]),
        (["SALE"], None, [PENDING, APPROVED, REJECTED]),
        (["lead", "reply"], None, [LEAD, STOP, START, WORDS]),
        (None, ["positive"], [APPROVED, START]),
        (None, ["negative"], [REJECTED, STOP]),
        (None, ["none"], [PENDING, LEAD, WORDS]),
        (["sale"], ["positive"], [APPROVED]),
        (["sale"], ["positive", "none"], [PENDING, APPROVED]),
        (["other"], None, []),
    ],
)
async def test_a_tracker_receives_only_the_conversions_that_its_filter_permits(
    service: Service,
    make_tracker: MakeTracker,
    story: Story,
    actions: list[str] | None,
    dispositions: list[str] | None,
    expected: Sequence[tuple[Any, ...]],
) -> None:
    filtering = await make_tracker(URL, "conversion", "state", conversion_actions=actions, conversion_dispositions=dispositions)
    other = await make_tracker(URL, "conversion")
    message = await story.message()
    sale = {"action": "Sale", "transaction_id": "T1", "value": "9.50"}
    await report(service, message, **sale, status="pending")
    await report(service, message, **sale, status="approved")
    await report(service, message, action="lead")
    await service.fanout.flush()
    await report(service, message, **sale, status="rejected")
    for number, words in enumerate(("STOP", "START", "Thanks")):
        await service.replies.record(1, "+14085550100", words, reply_id=str(number))
    await service.fanout.flush()
    assert await received(service, filtering) == list(expected)
    assert await received(service, other) == [PENDING, APPROVED, LEAD, REJECTED, STOP, START, WORDS]


@pytest.mark.parametrize(
    ("actions", "dispositions", "expected"),
    [
        (None, ["none"], 1),
        (["ClickThru"], None, 1),
        (["sale", "clickthru"], ["none", "positive"], 1),
        (None, ["positive", "negative"], 0),
        (["sale"], None, 0),
        (["clickthru"], ["positive"], 0),
    ],
)
async def test_the_filter_applies_to_clicks_that_are_sent_as_conversions_and_to_no_other_event(
    service: Service,
    make_tracker: MakeTracker,
    story: Story,
    actions: list[str] | None,
    dispositions: list[str] | None,
    expected: int,
) -> None:
    names = {"conversion_actions": actions, "conversion_dispositions": dispositions}
    tracker = await make_tracker(URL, "conversion", "state", "click", format="scg", **names)
    await story.first_click()
    await service.fanout.flush()
    topics = [Topic(row.topic) for row in await rows(service.database, schema.deliveries) if row.tracker_id == tracker]
    assert sorted(topics) == sorted([Topic.STATE, Topic.CLICK, *[Topic.CONVERSION] * expected])


async def test_a_changed_filter_applies_to_events_that_are_fanned_out_later_and_to_no_existing_delivery(
    service: Service, make_tracker: MakeTracker, story: Story, receiver: Receiver
) -> None:
    tracker = await make_tracker(receiver.url("/?a={action}"), "conversion")
    message = await story.message()
    await report(service, message, action="first")
    await service.fanout.flush()
    await report(service, message, action="second")
    await service.trackers.update(AUDIT, tracker, changes(conversion_actions=["third"]))
    await report(service, message, action="third")
    await service.fanout.flush()
    await service.dispatcher.flush()
    assert sorted(request.target for request in receiver.requests) == ["/?a=first", "/?a=third"]
    (first, _) = await rows(service.database, schema.deliveries)
    await service.deliveries.replay(AUDIT, first.id, service.clock())
    await service.dispatcher.flush()
    assert [request.target for request in receiver.requests][2:] == ["/?a=first"], "a replay repeats a delivery that exists"
    await service.trackers.update(AUDIT, tracker, changes(conversion_actions=None))
    await report(service, message, action="fourth")
    await service.fanout.flush()
    assert [action for action, *_ in await received(service, tracker)] == ["first", "third", "fourth"]


async def test_events_that_are_requeued_are_filtered_like_others(
    service: Service, make_tracker: MakeTracker, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = await make_tracker(URL, "conversion", conversion_dispositions=["positive"])

    def fail(*arguments: object) -> None:
        raise ValueError("a bug")

    message = await story.message()
    for status in ("pending", "approved"):
        await report(service, message, action="Sale", transaction_id="T1", value="9.50", status=status)
    with monkeypatch.context() as patch:
        patch.setattr(fanout_queries, "conversion_outcomes", fail)
        await service.fanout.flush()
    assert (await received(service, tracker), service.fanout.quarantined) == ([], 2)
    assert await requeue_events(service.database, AUDIT, NOON) == 2
    await service.fanout.flush()
    assert await received(service, tracker) == [APPROVED]


async def test_only_applications_with_a_filter_need_a_query_for_the_outcomes_of_conversions(
    service: Service, make_tracker: MakeTracker, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("this query is not needed")

    monkeypatch.setattr(fanout_queries, "conversion_outcomes", fail)
    other = await service.database.write(create_application, "other", NOON)
    new = NewTracker(url=URL, events=["conversion"], conversion_actions=["sale"])
    await service.trackers.create(AUDIT, other.application_id, new)
    tracker = await make_tracker(URL, "conversion")
    await make_tracker(URL, "click", conversion_actions=["sale"])
    await make_tracker(URL, "conversion", conversion_actions=["sale"], enabled=False)
    message = await story.message()
    await report(service, message, action="lead")
    await service.fanout.flush()
    assert (await received(service, tracker), service.fanout.quarantined) == ([LEAD], 0)


async def test_an_event_of_an_old_release_has_the_disposition_of_its_conversion(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    tracker = await make_tracker(URL, "conversion", conversion_actions=["sale"], conversion_dispositions=["positive"])
    message = await story.message()
    await report(service, message, action="Sale", status="paid", value="1")

    def age(connection: Connection) -> None:
        connection.execute(update(schema.events).values(data=None))
        connection.execute(text("UPDATE conversions SET action = 'SALE', action_text = NULL"))

    await service.database.write(age)
    await service.fanout.flush()
    assert await received(service, tracker) == [("SALE", None, "positive")]


async def test_the_filter_decides_by_the_revision_in_the_event_and_not_by_a_later_one(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    tracker = await make_tracker(URL, "conversion", conversion_dispositions=["positive"])
    message = await story.message()
    for status in ("pending", "approved", "rejected"):
        await report(service, message, action="Sale", transaction_id="T1", value=str(Decimal("9.50")), status=status)
    await service.fanout.flush()  # the row of the conversion now has the status `rejected`, which the filter does not permit
    assert await received(service, tracker) == [APPROVED]


async def test_an_event_that_no_filter_permits_is_stored_without_the_data_for_delivery_bodies(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    await make_tracker(URL, "conversion", conversion_actions=["sale"])
    await report(service, await story.message(), action="lead")
    await service.fanout.flush()
    (event,) = await rows(service.database, schema.events)
    assert (event.fanned_out, event.facts, await rows(service.database, schema.deliveries)) == (True, None, [])


async def test_the_filter_of_a_conversion_url_stays_when_the_url_changes(service: Service, story: Story) -> None:
    await service.database.write(write_conversion_url, AUDIT, 1, URL, None, NOON)
    tracker = await service.trackers.conversion_url(1)
    assert tracker is not None
    await service.trackers.update(AUDIT, tracker.id, changes(conversion_dispositions=["negative"]))
    await service.database.write(write_conversion_url, AUDIT, 1, f"{URL}new", None, NOON)
    changed = await service.trackers.conversion_url(1)
    assert changed is not None
    assert (changed.url, changed.conversion_dispositions) == (f"{URL}new", ["negative"])
    message = await story.message()
    await story.click(message, HitFlag.FIRST_FOR_LINK)
    for status in ("approved", "rejected"):
        await report(service, message, action="lead", status=status)
    await service.fanout.flush()
    assert await received(service, tracker.id) == [("lead", 2, "negative")]
