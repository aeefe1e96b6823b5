"""Tests of corrections, on SQLite and PostgreSQL: hits, messages, events and counts after a verdict has changed."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, update

from shortener.clicks.device_counts import last_counted_hit
from shortener.clicks.resolver import CONFIRMED
from shortener.clicks.verdicts import correction
from shortener.clicks.verdicts.correction_rows import LockedMessage
from shortener.container import Service
from shortener.delivery.trackers import NewTracker
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import HitFlag, State, Topic, Verdict
from shortener.retention.erasure import erase_message
from shortener.storage import schema
from tests.clicks.helpers import change_settings, create_codes, fetch_rows, forget_expressions
from tests.clicks.verdicts.helpers import (
    DAY,
    FIRST,
    PHONE,
    SCANNER,
    assert_counts_match,
    count_sums,
    only_message,
    record_click,
    run_reclassifier,
    sent_events,
)
from tests.conftest import NOON, Clock, MakeService
from tests.factory import AUDIT, keep_sends
from tests.receiver import Receiver
from tests.rows import messages_now


async def test_a_first_click_that_becomes_suspected_is_retracted_with_one_event(
    retracting: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = retracting
    (code,) = await create_codes(service)
    before = await count_sums(service)
    clock.forward(seconds=30)
    machine = await record_click(service, code, SCANNER)
    clock.forward(minutes=3)
    await service.devices.catch_up()
    forget_expressions(monkeypatch)
    result = await run_reclassifier(service)
    monkeypatch.undo()
    assert (result.hits, result.corrections.to_suspected, result.corrections.retracted, result.corrections.retracted_messages) == (
        1,
        1,
        1,
        1,
    )
    assert await sent_events(service) == [(Topic.STATE | Topic.CLICK, machine), (Topic.CLICK_RETRACTED, machine)]
    event = (await fetch_rows(service, schema.events))[1]
    assert event.data == {
        "first_for_message": True,
        "first_for_link": True,
        "previous_state": "CLICKTHRU",
        "new_state": "CREATED",
    }
    (stored,) = await fetch_rows(service, schema.hits)
    assert (stored.verdict, stored.rule, stored.flags) == (Verdict.SUSPECTED, "crawler", HitFlag.RETRACTED)
    assert (stored.first_verdict, stored.first_rule) == (Verdict.HUMAN, "test")
    current = await only_message(service)
    assert (current.state, current.previous_state, current.clicked_at, current.click_hit_id, current.clicked_links) == (
        0,
        None,
        None,
        None,
        0,
    )
    assert await count_sums(service) == before | {"suspected_hits": 1}
    await assert_counts_match(service)


async def test_the_next_click_of_a_person_after_a_retraction_is_a_first_click(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await create_codes(service)
    machine = await record_click(service, code, SCANNER)
    await run_reclassifier(service)
    clock.forward(minutes=20)
    person = await record_click(service, code)
    await record_click(service, code)
    assert await sent_events(service) == [
        (Topic.STATE | Topic.CLICK, machine),
        (Topic.CLICK_RETRACTED, machine),
        (Topic.STATE | Topic.CLICK, person),
    ]
    current = await only_message(service)
    assert (current.state, current.click_hit_id, current.clicked_at) == (State.CLICKTHRU, person, clock())
    await run_reclassifier(service)
    await assert_counts_match(service)


async def test_a_stored_click_of_a_person_replaces_a_retracted_first_click(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await create_codes(service)
    machine = await record_click(service, code, SCANNER)
    clock.forward(seconds=40)
    person = await record_click(service, code)
    clicked_at = clock()
    clock.forward(seconds=40)
    await record_click(service, code)
    result = await run_reclassifier(service)
    assert result.corrections.first_clicks == 1
    assert await sent_events(service) == [
        (Topic.STATE | Topic.CLICK, machine),
        (Topic.CLICK_RETRACTED, machine),
        (Topic.STATE | Topic.CLICK, person),
    ]
    event = (await fetch_rows(service, schema.events))[2]
    assert (event.at, event.data) == (clicked_at, {"previous_state": "CREATED", "new_state": "CLICKTHRU"})
    current = await only_message(service)
    assert (current.state, current.previous_state, current.clicked_at, current.click_hit_id) == (50, 0, clicked_at, person)
    assert [hit.flags for hit in await fetch_rows(service, schema.hits)] == [HitFlag.RETRACTED, FIRST, 0]
    await assert_counts_match(service)


@pytest.mark.parametrize("user_agent", [SCANNER, ""])
async def test_a_confirmed_click_replaces_a_retracted_first_click_whatever_its_user_agent_is(
    retracting: Service, clock: Clock, user_agent: str
) -> None:
    service = retracting
    await change_settings(service, confirm_clicks="suspicious")
    (code,) = await create_codes(service)
    machine = await record_click(service, code, SCANNER)
    clock.forward(seconds=40)
    person = await record_click(service, code, user_agent, rule=CONFIRMED)
    result = await run_reclassifier(service)
    assert (result.corrections.retracted_messages, result.corrections.first_clicks) == (1, 1)
    assert await sent_events(service) == [
        (Topic.STATE | Topic.CLICK, machine),
        (Topic.CLICK_RETRACTED, machine),
        (Topic.STATE | Topic.CLICK, person),
    ]
    current = await only_message(service)
    assert (current.state, current.click_hit_id) == (State.CLICKTHRU, person)
    stored = [(hit.verdict, hit.rule, hit.flags) for hit in await fetch_rows(service, schema.hits)]
    assert stored == [(Verdict.SUSPECTED, "crawler", HitFlag.RETRACTED), (Verdict.HUMAN, CONFIRMED, FIRST)]
    await assert_counts_match(service)


async def test_a_click_whose_event_was_sent_keeps_its_verdict_without_the_setting_retract_clicks(
    service: Service, clock: Clock
) -> None:
    (code,) = await create_codes(service)
    first = await record_click(service, code, SCANNER)
    await record_click(service, code, SCANNER)
    promoted = await record_click(service, code, PHONE, verdict=Verdict.SUSPECTED)
    result = await run_reclassifier(service)
    assert (
        result.corrections.kept,
        result.corrections.to_suspected,
        result.corrections.to_human,
        result.corrections.retracted,
    ) == (1, 1, 1, 0)
    assert await sent_events(service) == [(Topic.STATE | Topic.CLICK, first)]
    assert [hit.verdict for hit in await fetch_rows(service, schema.hits)] == [Verdict.HUMAN, Verdict.SUSPECTED, Verdict.HUMAN]
    assert (await only_message(service)).click_hit_id == first
    assert promoted
    await assert_counts_match(service)


async def test_a_click_whose_event_was_sent_is_retracted_with_the_setting_retract_clicks(service: Service, clock: Clock) -> None:
    (code,) = await create_codes(service)
    await record_click(service, code, SCANNER)
    assert (await run_reclassifier(service)).corrections.kept == 1
    await change_settings(service, retract_clicks=True)
    assert (await run_reclassifier(service)).corrections.retracted_messages == 1


async def test_a_suspected_hit_that_becomes_human_is_the_first_click_of_a_message_without_clicks(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    (code,) = await create_codes(service)
    person = await record_click(service, code, PHONE, verdict=Verdict.SUSPECTED, rule="program")
    result = await run_reclassifier(service)
    assert (result.corrections.to_human, result.corrections.first_clicks) == (1, 1)
    assert await sent_events(service) == [(Topic.STATE | Topic.CLICK, person)]
    (stored,) = await fetch_rows(service, schema.hits)
    assert (stored.verdict, stored.rule, stored.flags, stored.first_rule) == (Verdict.HUMAN, "browser", FIRST, "program")
    await assert_counts_match(service)


async def test_a_first_click_is_not_replaced_if_the_verdict_on_an_earlier_hit_becomes_human(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    (code,) = await create_codes(service)
    await record_click(service, code, PHONE, verdict=Verdict.SUSPECTED)
    first = await record_click(service, code)
    await run_reclassifier(service)
    assert await sent_events(service) == [(Topic.STATE | Topic.CLICK, first)]
    assert (await only_message(service)).click_hit_id == first
    await assert_counts_match(service)


async def test_after_a_retraction_the_first_click_on_another_link_becomes_the_first_click_of_the_message(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    one, two = await create_codes(service, '#track("https://x.example/1") #track("https://x.example/2")')
    machine = await record_click(service, one, SCANNER)
    clock.forward(seconds=5)
    person = await record_click(service, two)
    await run_reclassifier(service)
    assert await sent_events(service) == [
        (Topic.STATE | Topic.CLICK, machine),
        (Topic.CLICK, person),
        (Topic.CLICK_RETRACTED, machine),
        (Topic.STATE, person),
    ]
    current = await only_message(service)
    assert (current.click_hit_id, current.clicked_links) == (person, 0b10)
    await record_click(service, one)
    assert (await only_message(service)).clicked_links == 0b11
    await assert_counts_match(service)


async def test_a_retraction_does_not_change_the_first_click_of_the_message_on_another_link(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    one, two = await create_codes(service, '#track("https://x.example/1") #track("https://x.example/2")')
    person = await record_click(service, one)
    machine = await record_click(service, two, SCANNER)
    await run_reclassifier(service)
    event = (await fetch_rows(service, schema.events))[2]
    assert (event.topics, event.hit_id) == (Topic.CLICK_RETRACTED, machine)
    assert event.data == {"first_for_message": False, "first_for_link": True}
    current = await only_message(service)
    assert (current.state, current.click_hit_id, current.clicked_links) == (State.CLICKTHRU, person, 0b01)


@pytest.mark.parametrize("is_setting", [False, True], ids=["trackurl", "click_events"])
async def test_each_retracted_click_creates_a_retraction_event_if_its_link_creates_an_event_for_every_click(
    retracting: Service, clock: Clock, is_setting: bool
) -> None:
    service = retracting
    (code,) = await create_codes(service, *([] if is_setting else ['#trackurl("https://x.example/1","offer")']))
    if is_setting:
        await change_settings(service, click_events="every")
    machines = [await record_click(service, code, SCANNER) for _ in range(2)]
    person = await record_click(service, code)
    late = await record_click(service, code, PHONE, verdict=Verdict.SUSPECTED)
    await run_reclassifier(service)
    assert (await sent_events(service))[3:] == [
        (Topic.CLICK_RETRACTED, machines[0]),
        (Topic.CLICK_RETRACTED, machines[1]),
        (Topic.CLICK, late),
        (Topic.STATE, person),  # only STATE: the click event of this hit was sent when the hit was recorded
    ]
    await assert_counts_match(service)


async def test_a_click_without_an_event_is_not_retracted_after_click_events_changes_from_first_to_every(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    (code,) = await create_codes(service)
    first = await record_click(service, code)
    await record_click(service, code, SCANNER)
    await change_settings(service, click_events="every")
    sent = await record_click(service, code, SCANNER)
    result = await run_reclassifier(service)
    assert await sent_events(service) == [
        (Topic.STATE | Topic.CLICK, first),
        (Topic.CLICK, sent),
        (Topic.CLICK_RETRACTED, sent),
    ]
    assert (result.corrections.to_suspected, result.corrections.retracted, result.corrections.kept) == (2, 1, 0)
    await assert_counts_match(service)


async def test_a_click_with_an_event_is_retracted_once_after_click_events_changes_from_every_to_first(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    (code,) = await create_codes(service)
    await change_settings(service, click_events="every")
    first = await record_click(service, code)
    sent = await record_click(service, code, SCANNER)
    await change_settings(service, click_events="first", retract_clicks=False)
    assert (await run_reclassifier(service)).corrections.kept == 1
    await change_settings(service, retract_clicks=True)
    for _ in range(2):
        await run_reclassifier(service)
    events = [(Topic.STATE | Topic.CLICK, first), (Topic.CLICK, sent), (Topic.CLICK_RETRACTED, sent)]
    assert await sent_events(service) == events
    await assert_counts_match(service)


@pytest.mark.parametrize("setting", ["first", "every"])
async def test_a_click_that_replaces_a_retracted_first_click_has_one_event_after_a_change_of_click_events(
    retracting: Service, clock: Clock, setting: str
) -> None:
    service = retracting
    (code,) = await create_codes(service)
    await change_settings(service, click_events="every" if setting == "first" else "first")
    machine = await record_click(service, code, SCANNER)
    person = await record_click(service, code)
    await change_settings(service, click_events=setting)
    await run_reclassifier(service)
    of_person = [topics for topics, hit in await sent_events(service) if hit == person]
    assert of_person == ([Topic.CLICK, Topic.STATE] if setting == "first" else [Topic.STATE | Topic.CLICK])
    assert [hit for topics, hit in await sent_events(service) if topics is Topic.CLICK_RETRACTED] == [machine]
    await assert_counts_match(service)


async def test_a_click_whose_event_was_purged_is_retracted_if_every_click_is_sent_and_is_not_sent_again(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    (code,) = await create_codes(service)
    await change_settings(service, click_events="every")
    first, person, second = [await record_click(service, code, agent) for agent in (SCANNER, PHONE, SCANNER)]
    await service.fanout.flush()
    clock.forward(seconds=DAY.total_seconds() * (service.settings.event_retention_days + 1))
    await service.database.write(lambda connection: connection.execute(delete(schema.events)))
    await run_reclassifier(service)
    assert sorted(await sent_events(service), key=lambda event: event[1]) == [
        (Topic.CLICK_RETRACTED, first),
        (Topic.STATE, person),
        (Topic.CLICK_RETRACTED, second),
    ]
    await assert_counts_match(service)


async def test_after_a_retraction_the_message_has_the_state_of_the_latest_delivery_report(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    (code,) = await create_codes(service, message_ids=("m-1",))
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())])
    await record_click(service, code, SCANNER)
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.DELIVERED, clock.forward(seconds=5))])
    await run_reclassifier(service)
    current = await only_message(service)
    assert (current.state, current.previous_state) == (State.DELIVERED, None)
    await record_click(service, code)
    current = await only_message(service)
    assert (current.state, current.previous_state) == (State.CLICKTHRU, State.DELIVERED)
    await assert_counts_match(service)


@pytest.mark.parametrize(
    ("previous", "reported", "state"),
    [
        (None, {}, State.CREATED),
        (State.SENT, {"sent_at"}, State.SENT),
        (State.EXPIRED, {"failed_at"}, State.EXPIRED),
        (State.SENT, {"sent_at", "failed_at"}, State.FAILED),
        (State.FAILED, {"failed_at", "delivered_at"}, State.DELIVERED),
        (State.READ, {"read_at"}, State.READ),
        (State.READ, {"sent_at", "read_at", "delivered_at", "failed_at"}, State.READ),
    ],
)
def test_a_message_whose_click_is_retracted_gets_the_state_of_its_delivery_reports(
    previous: State | None, reported: set[str], state: State
) -> None:
    times: dict[str, Any] = {name: 1 if name in reported else None for name in ("sent_at", "delivered_at", "read_at", "failed_at")}
    one = LockedMessage(
        id=1,
        application_id=1,
        cohort_id=1,
        state=int(previous or State.CREATED),
        created_at=0,
        clicked_at=1,
        click_hit_id=1,
        clicked_links=1,
        **times,
    )
    assert one.state_without_click is state


async def test_a_query_by_message_id_returns_the_events_of_a_retracted_click(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await create_codes(service, message_ids=("m-1",))
    (other,) = await create_codes(service, message_ids=("m-2",))
    await record_click(service, other)
    machine = await record_click(service, code, SCANNER)
    clock.forward(minutes=10)
    await run_reclassifier(service)
    person = await record_click(service, code)
    (first_message, second_message) = sorted(one.id for one in await fetch_rows(service, messages_now))

    def read_events(connection: Connection, message_id: int) -> list[tuple[Topic, int]]:
        statement = (
            select(schema.events.c.topics, schema.events.c.hit_id)
            .where(schema.events_of([message_id]))
            .order_by(schema.events.c.id)
        )
        return [(Topic(topics), hit) for topics, hit in connection.execute(statement)]

    first_click, retraction = Topic.STATE | Topic.CLICK, Topic.CLICK_RETRACTED
    assert await service.database.read(read_events, first_message) == [
        (first_click, machine),
        (retraction, machine),
        (first_click, person),
    ]
    assert [topics for topics, _ in await service.database.read(read_events, second_message)] == [first_click]
    await service.database.write(lambda c: c.execute(update(schema.events).values(data={"to_address": "+1408"})))
    assert (await service.database.write(erase_message, 1, "m-1", clock(), AUDIT, keep_sends)).events == 3
    assert [one.data for one in await fetch_rows(service, schema.events)].count({}) == 3


async def test_a_tracker_that_subscribes_to_click_retracted_receives_the_event(
    retracting: Service, clock: Clock, receiver: Receiver
) -> None:
    service = retracting
    await service.trackers.create(AUDIT, 1, NewTracker(url=receiver.url(), events=["click", "click_retracted"], secret=None))
    (code,) = await create_codes(service, message_ids=("m-1",))
    clock.forward(seconds=7)
    machine = await record_click(service, code, SCANNER)
    clock.forward(minutes=10)
    await run_reclassifier(service)
    await service.fanout.flush()
    await service.dispatcher.flush()
    event_by_type = {one.json["event"]["evt-tp"]: one.json["event"]["fld-val-list"] for one in receiver.requests}
    assert set(event_by_type) == {"link_click", "click_retracted"}
    values = event_by_type["click_retracted"]
    assert values["click_id"] == event_by_type["link_click"]["click_id"] == service.click_ids.encode(machine)
    assert (values["previous_state"], values["new_state"], values["message_id"]) == ("CLICKTHRU", "CREATED", "m-1")
    assert (values["verdict"], values["verdict_reason"]) == ("suspected", "crawler")
    assert (values["first_for_message"], values["seconds_since_sent"]) == (True, 7)


async def test_concurrent_reclassifications_and_clicks_create_one_retraction_and_one_first_click(
    make_service: MakeService, clock: Clock
) -> None:
    one = await make_service()
    await change_settings(one, retract_clicks=True)
    two = one if one.database.dialect == "sqlite" else await make_service()
    codes = [(await create_codes(one))[0] for _ in range(30)]
    machines = {await record_click(one, code, SCANNER) for code in codes}
    clock.forward(minutes=10)

    async def click_all(service: Service) -> None:
        for code in codes:
            await record_click(service, code)

    runs = (node.reclassifier.run(NOON - DAY, clock(), clock()) for node in (one, two) for _ in range(2))
    results = await asyncio.gather(*runs, click_all(one), click_all(two))
    assert sum(result.corrections.retracted_messages for result in results if result is not None) == 30
    # A click that was recorded while a retraction ran is sometimes not the first click yet. The next run of the reclassifier makes
    # it the first click.
    await run_reclassifier(one)
    topics: dict[int, list[Topic]] = {}
    events = await fetch_rows(one, schema.events)
    for event in events:
        topics.setdefault(event.message_id, []).append(Topic(event.topics))
    for message_topics in topics.values():
        assert Counter(message_topics) == {Topic.STATE | Topic.CLICK: 2, Topic.CLICK_RETRACTED: 1}
    assert {event.hit_id for event in events if event.topics & Topic.CLICK_RETRACTED} == machines
    for row in await fetch_rows(one, messages_now):
        assert row.state == State.CLICKTHRU
        assert row.click_hit_id not in machines
    await assert_counts_match(one)


async def test_a_verdict_correction_skips_hits_that_are_not_counted_by_device_yet(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await create_codes(service)
    machine = await record_click(service, code, SCANNER)
    assert await service.database.read(last_counted_hit) < machine
    change = correction.VerdictChange(machine, (await only_message(service)).id, Verdict.HUMAN, Verdict.SUSPECTED, "crawler", True)
    done = await correction.apply_changes(service.database, [change], service.ids, clock())
    assert done.to_suspected == 0


async def test_a_verdict_correction_skips_a_purged_message_without_an_error(retracting: Service, clock: Clock) -> None:
    service = retracting
    change = correction.VerdictChange(1, 1, Verdict.HUMAN, Verdict.SUSPECTED, "crawler", True)
    assert (await correction.apply_changes(service.database, [change], service.ids, clock())).to_suspected == 0
    assert (await service.database.write(correction.assign_first_clicks, [1], service.ids)).first_clicks == 0
