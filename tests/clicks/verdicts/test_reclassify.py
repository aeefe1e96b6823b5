"""Verdicts that change: what the hits, the message, the events and the counts say afterwards, on both engines."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from shortener.accounts.administration import update_application
from shortener.clicks.device_counts import last_counted_hit
from shortener.clicks.verdicts import correction, reclassify
from shortener.clicks.verdicts.reclassify import ReclassifyResult
from shortener.container import Service
from shortener.delivery.trackers import NewTracker
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import HitFlag, State, Topic, Verdict
from shortener.reporting.counts import verify
from shortener.retention.erasure import erase_message
from shortener.retention.purge import purge
from shortener.storage import schema
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import fetch_rows as rows
from tests.clicks.helpers import make_hit as hit
from tests.conftest import NOON, Clock, MakeService
from tests.receiver import Receiver
from tests.reporting.plans import plans, scanned
from tests.rows import messages_now

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)
SCANNER = "curl/8.9.1"  # stored as a person's: the rules of that day did not know it
DAY = timedelta(days=1)
FIRST = HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE


async def choose(service: Service, **settings: Any) -> None:
    await service.database.write(update_application, 1, settings, service.clock())
    await service.directory.refresh()


@pytest.fixture
async def retracting(service: Service) -> Service:
    """A service whose application takes clicks back."""
    await choose(service, retract_clicks=True)
    return service


async def click(service: Service, code: str, user_agent: str = PHONE, **more: Any) -> int:
    """A hit that was judged a person's when it came."""
    one = hit(service, code, user_agent=user_agent, **more)
    await service.recorder.record(one)
    return one.id


async def run_reclassifier(service: Service, **more: Any) -> ReclassifyResult:
    now = service.clock() + timedelta(minutes=10)
    return await service.reclassifier.run(NOON - DAY, now, now, **more)


async def told(service: Service) -> list[tuple[Topic, int]]:
    """Events: as what, and of which hit."""
    return [(Topic(event.topics), event.hit_id) for event in await rows(service, schema.events)]


async def message(service: Service) -> Any:
    (one,) = await rows(service, messages_now)
    return one


async def metrics(service: Service) -> dict[str, int]:
    added: Counter[str] = Counter()
    for tally in await rows(service, schema.count_deltas):
        for _, _, metric, amount in tally.data:
            added["ttc" if metric.startswith("ttc:") else metric] += int(amount)
    return {metric: amount for metric, amount in added.items() if amount}


async def check_counts(service: Service) -> None:
    """The counts are what counting again says."""
    assert await service.database.read(verify, NOON - DAY, NOON + DAY) == []


async def test_a_first_click_that_was_a_machines_is_taken_back_with_one_event(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service)
    before = await metrics(service)
    clock.forward(seconds=30)
    machine = await click(service, code, SCANNER)
    clock.forward(minutes=1)
    run = await run_reclassifier(service)
    assert (run.hits, run.done.to_suspected, run.done.retracted, run.done.retracted_messages) == (1, 1, 1, 1)
    assert await told(service) == [(Topic.STATE | Topic.CLICK, machine), (Topic.CLICK_RETRACTED, machine)]
    event = (await rows(service, schema.events))[1]
    assert event.data == {
        "first_for_message": True,
        "first_for_link": True,
        "previous_state": "CLICKTHRU",
        "new_state": "CREATED",
    }
    (kept,) = await rows(service, schema.hits)
    assert (kept.verdict, kept.rule, kept.flags) == (Verdict.SUSPECTED, "crawler", HitFlag.RETRACTED)
    assert (kept.first_verdict, kept.first_rule) == (Verdict.HUMAN, "test")
    now = await message(service)
    assert (now.state, now.previous_state, now.clicked_at, now.click_hit_id, now.clicked_links) == (0, None, None, None, 0)
    assert await metrics(service) == before | {"suspected_hits": 1}
    await check_counts(service)


async def test_the_next_persons_click_counts_again(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service)
    machine = await click(service, code, SCANNER)
    await run_reclassifier(service)
    clock.forward(minutes=20)
    person = await click(service, code)
    await click(service, code)
    assert await told(service) == [
        (Topic.STATE | Topic.CLICK, machine),
        (Topic.CLICK_RETRACTED, machine),
        (Topic.STATE | Topic.CLICK, person),
    ]
    now = await message(service)
    assert (now.state, now.click_hit_id, now.clicked_at) == (State.CLICKTHRU, person, clock())
    await run_reclassifier(service)
    await check_counts(service)


async def test_a_persons_click_that_is_there_already_takes_its_place_with_its_own_time(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service)
    machine = await click(service, code, SCANNER)
    clock.forward(seconds=40)
    person = await click(service, code)
    clicked_at = clock()
    clock.forward(seconds=40)
    await click(service, code)
    run = await run_reclassifier(service)
    assert run.done.first_clicks == 1
    assert await told(service) == [
        (Topic.STATE | Topic.CLICK, machine),
        (Topic.CLICK_RETRACTED, machine),
        (Topic.STATE | Topic.CLICK, person),
    ]
    event = (await rows(service, schema.events))[2]
    assert (event.at, event.data) == (clicked_at, {"previous_state": "CREATED", "new_state": "CLICKTHRU"})
    now = await message(service)
    assert (now.state, now.previous_state, now.clicked_at, now.click_hit_id) == (50, 0, clicked_at, person)
    assert [one.flags for one in await rows(service, schema.hits)] == [HitFlag.RETRACTED, FIRST, 0]
    await check_counts(service)


async def test_judging_again_and_again_changes_nothing_more(retracting: Service, clock: Clock) -> None:
    service = retracting
    for _ in range(3):
        (code,) = await send(service)
        await click(service, code, SCANNER)
        await click(service, code)
    await run_reclassifier(service)
    events, hits = await told(service), await rows(service, schema.hits)
    assert len(events) == 9
    for _ in range(2):
        run = await run_reclassifier(service)
        assert (run.done.to_suspected, run.done.retracted, run.done.first_clicks, run.done.events) == (0, 0, 0, 0)
    assert await told(service) == events
    assert await rows(service, schema.hits) == hits


async def test_without_the_setting_what_was_told_stays_and_the_rest_follows(service: Service, clock: Clock) -> None:
    (code,) = await send(service)
    first = await click(service, code, SCANNER)
    await click(service, code, SCANNER)
    promoted = await click(service, code, PHONE, verdict=Verdict.SUSPECTED)
    run = await run_reclassifier(service)
    assert (run.done.kept, run.done.to_suspected, run.done.to_human, run.done.retracted) == (1, 1, 1, 0)
    assert await told(service) == [(Topic.STATE | Topic.CLICK, first)]
    assert [one.verdict for one in await rows(service, schema.hits)] == [Verdict.HUMAN, Verdict.SUSPECTED, Verdict.HUMAN]
    assert (await message(service)).click_hit_id == first
    assert promoted
    await check_counts(service)


async def test_what_was_kept_is_taken_back_once_the_setting_is_on(service: Service, clock: Clock) -> None:
    (code,) = await send(service)
    await click(service, code, SCANNER)
    assert (await run_reclassifier(service)).done.kept == 1
    await choose(service, retract_clicks=True)
    assert (await run_reclassifier(service)).done.retracted_messages == 1


async def test_a_hit_that_turns_out_to_be_a_persons_becomes_the_first_click_of_a_message_without_one(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    (code,) = await send(service)
    person = await click(service, code, PHONE, verdict=Verdict.SUSPECTED, rule="program")
    run = await run_reclassifier(service)
    assert (run.done.to_human, run.done.first_clicks) == (1, 1)
    assert await told(service) == [(Topic.STATE | Topic.CLICK, person)]
    (kept,) = await rows(service, schema.hits)
    assert (kept.verdict, kept.rule, kept.flags, kept.first_rule) == (Verdict.HUMAN, "browser", FIRST, "program")
    await check_counts(service)


async def test_a_first_click_that_stands_is_left_alone(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service)
    await click(service, code, PHONE, verdict=Verdict.SUSPECTED)
    first = await click(service, code)
    await run_reclassifier(service)
    assert await told(service) == [(Topic.STATE | Topic.CLICK, first)]
    assert (await message(service)).click_hit_id == first
    await check_counts(service)


async def test_the_first_click_on_another_link_becomes_the_messages_first_and_is_not_told_as_a_click_twice(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    one, two = await send(service, '#track("https://x.example/1") #track("https://x.example/2")')
    machine = await click(service, one, SCANNER)
    clock.forward(seconds=5)
    person = await click(service, two)
    await run_reclassifier(service)
    assert await told(service) == [
        (Topic.STATE | Topic.CLICK, machine),
        (Topic.CLICK, person),
        (Topic.CLICK_RETRACTED, machine),
        (Topic.STATE, person),
    ]
    now = await message(service)
    assert (now.click_hit_id, now.clicked_links) == (person, 0b10)
    await click(service, one)
    assert (await message(service)).clicked_links == 0b11
    await check_counts(service)


async def test_only_the_link_is_given_back_when_the_message_has_another_first_click(retracting: Service, clock: Clock) -> None:
    service = retracting
    one, two = await send(service, '#track("https://x.example/1") #track("https://x.example/2")')
    person = await click(service, one)
    machine = await click(service, two, SCANNER)
    await run_reclassifier(service)
    event = (await rows(service, schema.events))[2]
    assert (event.topics, event.hit_id) == (Topic.CLICK_RETRACTED, machine)
    assert event.data == {"first_for_message": False, "first_for_link": True}
    now = await message(service)
    assert (now.state, now.click_hit_id, now.clicked_links) == (State.CLICKTHRU, person, 0b01)


async def test_on_a_link_that_tells_every_click_each_one_is_taken_back(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service, '#trackurl("https://x.example/1","offer")')
    machines = [await click(service, code, SCANNER) for _ in range(2)]
    person = await click(service, code)
    late = await click(service, code, PHONE, verdict=Verdict.SUSPECTED)
    await run_reclassifier(service)
    assert (await told(service))[3:] == [
        (Topic.CLICK_RETRACTED, machines[0]),
        (Topic.CLICK_RETRACTED, machines[1]),
        (Topic.CLICK, late),
        (Topic.STATE, person),  # its click was told when it came
    ]
    await check_counts(service)


async def test_a_report_that_came_since_tells_the_state_that_the_message_goes_back_to(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service, message_ids=("m-1",))
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())])
    await click(service, code, SCANNER)
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.DELIVERED, clock.forward(seconds=5))])
    await run_reclassifier(service)
    now = await message(service)
    assert (now.state, now.previous_state) == (State.DELIVERED, None)
    await click(service, code)
    now = await message(service)
    assert (now.state, now.previous_state) == (State.CLICKTHRU, State.DELIVERED)
    await check_counts(service)


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
def test_without_its_click_a_message_is_as_far_as_was_reported(previous: State | None, reported: set[str], state: State) -> None:
    times: dict[str, Any] = {name: 1 if name in reported else None for name in ("sent_at", "delivered_at", "read_at", "failed_at")}
    one = correction._LockedMessage(
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


async def test_the_events_of_a_click_that_was_taken_back_are_found_by_their_message(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service, message_ids=("m-1",))
    (other,) = await send(service, message_ids=("m-2",))
    await click(service, other)
    machine = await click(service, code, SCANNER)
    clock.forward(minutes=10)
    await run_reclassifier(service)
    person = await click(service, code)
    (mine, theirs) = sorted(one.id for one in await rows(service, messages_now))

    def found(connection: Connection, wanted: int) -> list[tuple[Topic, int]]:
        which = (
            select(schema.events.c.topics, schema.events.c.hit_id).where(schema.events_of([wanted])).order_by(schema.events.c.id)
        )
        return [(Topic(topics), hit) for topics, hit in connection.execute(which)]

    first, back = Topic.STATE | Topic.CLICK, Topic.CLICK_RETRACTED
    assert await service.database.read(found, mine) == [(first, machine), (back, machine), (first, person)]
    assert [topics for topics, _ in await service.database.read(found, theirs)] == [first]
    await service.database.write(lambda c: c.execute(update(schema.events).values(data={"to_address": "+1408"})))
    assert (await service.database.write(erase_message, 1, "m-1", clock())).events == 3
    assert [one.data for one in await rows(service, schema.events)].count({}) == 3


async def test_ignored_and_erased_hits_are_not_judged_again(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service, message_ids=("m-1",))
    await click(service, code, PHONE, verdict=Verdict.IGNORED)
    await click(service, code)
    await service.database.write(erase_message, 1, "m-1", clock())
    run = await run_reclassifier(service)
    assert (run.hits, run.done.events) == (0, 0)
    assert (await message(service)).state == State.CLICKTHRU
    await check_counts(service)


async def test_a_first_click_that_lost_its_agent_when_its_retention_was_over_stands(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service)
    await click(service, code)
    clock.forward(days=2)
    settings = service.settings.model_copy(update={"hit_retention_days": 1})
    assert (await purge(service.database, settings, clock())).emptied_hits == 0, "fan-out first"
    await service.fanout.flush()
    assert (await purge(service.database, settings, clock())).emptied_hits == 1
    run = await run_reclassifier(service)
    assert (run.hits, run.done.events) == (0, 0)
    assert (await message(service)).state == State.CLICKTHRU
    assert await service.database.read(verify, NOON - DAY, NOON + DAY) == []


async def test_late_hits_and_those_on_dead_links_change_their_verdict_and_nothing_else(retracting: Service, clock: Clock) -> None:
    service = retracting
    (expired,) = await send(service, expires_in=60)
    (killed,) = await send(service)
    clock.forward(minutes=2)
    await service.database.write(
        lambda c: c.execute(update(schema.links).where(schema.links.c.code == killed).values(disabled_at=clock()))
    )
    await click(service, expired, PHONE, verdict=Verdict.SUSPECTED)
    await click(service, killed, PHONE, verdict=Verdict.SUSPECTED)
    late = await click(service, expired, SCANNER)
    run = await run_reclassifier(service)
    assert (run.done.to_human, run.done.to_suspected, run.done.events) == (2, 1, 0)
    assert await told(service) == [(Topic.LATE_CLICK, late)]
    await check_counts(service)


async def test_a_dry_run_tells_the_same_and_keeps_nothing(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service)
    await click(service, code, SCANNER)
    before = [await rows(service, table) for table in (schema.hits, messages_now, schema.events)]
    dry = await run_reclassifier(service, dry_run=True)
    assert (dry.hits, dry.done.to_suspected, dry.done.retracted_messages) == (1, 1, 1)
    assert [await rows(service, table) for table in (schema.hits, messages_now, schema.events)] == before
    assert (await run_reclassifier(service)).done.retracted_messages == 1


async def test_only_the_time_that_is_asked_for_is_judged(retracting: Service, clock: Clock) -> None:
    service = retracting
    for _ in range(3):
        (code,) = await send(service)
        await click(service, code, SCANNER)
        clock.forward(minutes=10)
    run = await service.reclassifier.run(NOON + timedelta(minutes=10), NOON + timedelta(minutes=20), clock())
    assert (run.hits, run.done.retracted) == (1, 1)
    assert [one.verdict for one in await rows(service, schema.hits)] == [0, 1, 0]


async def test_the_newest_hits_are_left_for_later(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service)
    await click(service, code, SCANNER)
    run = await service.reclassifier.run(NOON - DAY, clock(), clock.forward(minutes=2))
    assert (run.hits, run.until) == (0, NOON + timedelta(minutes=2) - reclassify.DELAY)


async def test_pages_and_batches_of_any_size_do_the_same(
    retracting: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = retracting
    monkeypatch.setattr(reclassify, "PAGE_HITS", 3)
    monkeypatch.setattr(reclassify, "BATCH_CHANGES", 2)
    for _ in range(8):
        (code,) = await send(service)
        await click(service, code, SCANNER)
        await click(service, code, SCANNER)
        clock.forward(seconds=25)
        await click(service, code)
    run = await run_reclassifier(service)
    assert (run.hits, run.done.retracted_messages, run.done.first_clicks) == (24, 8, 8)
    topics = Counter(topics for topics, _ in await told(service))
    assert topics == {Topic.STATE | Topic.CLICK: 16, Topic.CLICK_RETRACTED: 8}
    await check_counts(service)


# Circumstances.


async def test_the_first_hits_of_an_address_that_goes_on_to_open_many_links_are_called_back(service: Service, clock: Clock) -> None:
    await choose(service, max_recipients_per_address_minute=3, retract_clicks=True)
    codes = [(await send(service))[0] for _ in range(6)]
    for code in codes:
        await click(service, code, origin=7)
        clock.forward(seconds=5)
    assert [one.verdict for one in await rows(service, schema.hits)] == [0, 0, 0, 1, 1, 1]
    run = await run_reclassifier(service)
    assert (run.done.to_suspected, run.done.retracted_messages) == (3, 3)
    assert {one.rule for one in await rows(service, schema.hits)} == {"many_recipients"}
    assert {one.state for one in await rows(service, messages_now)} == {State.CREATED}
    await check_counts(service)


async def test_an_address_with_few_links_in_any_minute_is_left_alone(service: Service, clock: Clock) -> None:
    await choose(service, max_recipients_per_address_minute=3, retract_clicks=True)
    for _ in range(10):
        await click(service, (await send(service))[0], origin=7)
        clock.forward(seconds=20)
    assert (await run_reclassifier(service)).done.to_suspected == 0


async def test_a_whole_address_that_was_known_when_the_hit_came_weighs_more_than_what_is_stored_of_it(
    service: Service, clock: Clock
) -> None:
    await choose(service, max_recipients_per_address_minute=1, retract_clicks=True, ip_privacy="none")
    for _ in range(2):
        await click(service, (await send(service))[0], origin=7)
    assert [(one.verdict, one.address) for one in await rows(service, schema.hits)] == [(0, ""), (1, "")]
    assert (await run_reclassifier(service)).done.to_human == 0
    await choose(service, max_recipients_per_address_minute=None)
    assert (await run_reclassifier(service)).done.to_human == 1, "the rule was switched off: its victims are people again"


async def test_all_links_of_a_message_within_a_second_are_called_back(service: Service, clock: Clock) -> None:
    await choose(service, all_links_within_second=True, retract_clicks=True)
    body = '#track("https://x.example/1") #track("https://x.example/2") #track("https://x.example/3")'
    scanned, read = await send(service, body), await send(service, body)
    for code in scanned:
        await click(service, code)
        clock.forward(milliseconds=300)
    for code in read:
        await click(service, code)
        clock.forward(milliseconds=700)
    assert [one.verdict for one in await rows(service, schema.hits)] == [0, 0, 1, 0, 0, 0]
    run = await run_reclassifier(service)
    assert (run.done.to_suspected, run.done.retracted, run.done.retracted_messages) == (2, 2, 1)
    assert [one.verdict for one in await rows(service, schema.hits)] == [1, 1, 1, 0, 0, 0]
    await check_counts(service)


async def test_a_delivery_report_that_came_late_calls_a_click_back(service: Service, clock: Clock) -> None:
    await choose(service, min_seconds_after_delivered=3, retract_clicks=True)
    (code,) = await send(service, message_ids=("m-1",))
    await click(service, code)
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.DELIVERED, NOON - timedelta(seconds=1))])
    run = await run_reclassifier(service)
    assert run.done.retracted_messages == 1
    assert (await message(service)).state == State.DELIVERED
    await check_counts(service)


async def test_a_sent_that_was_written_down_after_the_click_calls_nothing_back(service: Service, clock: Clock) -> None:
    await choose(service, min_seconds_after_sent=3, retract_clicks=True)
    (code,) = await send(service, message_ids=("m-1",))
    await click(service, code)
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock.forward(seconds=1))])
    assert (await run_reclassifier(service)).done.to_suspected == 0


async def test_the_job_judges_what_has_become_old_enough_and_nothing_twice(service: Service, clock: Clock) -> None:
    await choose(service, max_recipients_per_address_minute=1, retract_clicks=True)
    step = service.jobs.table["reclassify"].step
    assert await step() == 0  # from here on
    for _ in range(3):
        await click(service, (await send(service))[0], origin=7)
    clock.forward(minutes=2)
    assert await step() == 0
    clock.forward(minutes=2)
    assert await step() == 1
    clock.forward(minutes=2)
    assert await step() == 0
    assert service.reclassifier.total.retracted == 1


async def test_the_job_looks_at_applications_only_that_asked_for_it(service: Service, clock: Clock) -> None:
    await choose(service, max_recipients_per_address_minute=1)
    step = service.jobs.table["reclassify"].step
    await step()
    for _ in range(3):
        await click(service, (await send(service))[0], origin=7)
    clock.forward(minutes=5)
    assert await step() == 0
    assert [one.verdict for one in await rows(service, schema.hits)] == [0, 1, 1]


async def test_a_persons_click_that_nobody_counted_as_a_first_one_is_found_by_the_job(retracting: Service, clock: Clock) -> None:
    service = retracting
    step = service.jobs.table["reclassify"].step
    await step()
    (code,) = await send(service)
    person = await click(service, code)

    def lose(connection: Connection) -> None:  # as if it had been written just after its message was given back
        connection.execute(schema.first_clicks.delete())
        connection.execute(update(schema.hits).values(flags=0))
        connection.execute(schema.events.delete())

    await service.database.write(lose)
    clock.forward(minutes=5)
    await step()
    assert await told(service) == [(Topic.STATE | Topic.CLICK, person)]
    assert (await message(service)).click_hit_id == person


async def test_a_tracker_that_asks_is_told_of_a_click_that_is_taken_back(
    retracting: Service, clock: Clock, receiver: Receiver
) -> None:
    service = retracting
    await service.trackers.create(1, NewTracker(url=receiver.url(), events=["click", "click_retracted"], secret=None))
    (code,) = await send(service, message_ids=("m-1",))
    clock.forward(seconds=7)
    machine = await click(service, code, SCANNER)
    clock.forward(minutes=10)
    await run_reclassifier(service)
    await service.fanout.flush()
    await service.dispatcher.flush()
    told_as = {one.json["event"]["evt-tp"]: one.json["event"]["fld-val-list"] for one in receiver.requests}
    assert set(told_as) == {"link_click", "click_retracted"}
    values = told_as["click_retracted"]
    assert values["click_id"] == told_as["link_click"]["click_id"] == service.click_ids.encode(machine)
    assert (values["previous_state"], values["new_state"], values["message_id"]) == ("CLICKTHRU", "CREATED", "m-1")
    assert (values["verdict"], values["verdict_reason"]) == ("suspected", "crawler")
    assert (values["first_for_message"], values["seconds_since_sent"]) == (True, 7)


# Exactly once.


async def test_racing_runs_and_clicks_agree_on_one_retraction_and_one_first_click(make_service: MakeService, clock: Clock) -> None:
    one = await make_service()
    await choose(one, retract_clicks=True)
    two = one if one.database.dialect == "sqlite" else await make_service()
    codes = [(await send(one))[0] for _ in range(30)]
    machines = {await click(one, code, SCANNER) for code in codes}
    clock.forward(minutes=10)

    async def people(service: Service) -> None:
        for code in codes:
            await click(service, code)

    runs = (node.reclassifier.run(NOON - DAY, clock(), clock()) for node in (one, two) for _ in range(2))
    results = await asyncio.gather(*runs, people(one), people(two))
    assert sum(run.done.retracted_messages for run in results if run is not None) == 30
    await run_reclassifier(one)  # what came between two statements of another node
    topics: dict[int, list[Topic]] = {}
    events = await rows(one, schema.events)
    for event in events:
        topics.setdefault(event.message_id, []).append(Topic(event.topics))
    for raised in topics.values():
        assert Counter(raised) == {Topic.STATE | Topic.CLICK: 2, Topic.CLICK_RETRACTED: 1}
    assert {event.hit_id for event in events if event.topics & Topic.CLICK_RETRACTED} == machines
    for row in await rows(one, messages_now):
        assert row.state == State.CLICKTHRU
        assert row.click_hit_id not in machines
    await check_counts(one)


async def test_a_run_that_is_cut_off_is_repeated(retracting: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    service = retracting
    for _ in range(4):
        (code,) = await send(service)
        await click(service, code, SCANNER)
        clock.forward(seconds=1)
        await click(service, code)
    monkeypatch.setattr(reclassify, "BATCH_CHANGES", 1)
    tries = 0

    async def fail(*args: Any, **more: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 3:
            raise RuntimeError("power cut")
        return await correction.apply_changes(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(reclassify, "apply_changes", fail)
        with pytest.raises(RuntimeError):
            await run_reclassifier(service)
    run = await run_reclassifier(service)
    assert (run.done.retracted_messages, run.done.first_clicks) == (2, 4)
    assert Counter(topics for topics, _ in await told(service))[Topic.CLICK_RETRACTED] == 4
    await check_counts(service)


async def test_hits_that_are_not_counted_by_device_yet_are_left_for_the_next_run(retracting: Service, clock: Clock) -> None:
    service = retracting
    (code,) = await send(service)
    machine = await click(service, code, SCANNER)
    assert await service.database.read(last_counted_hit) < machine
    change = correction.VerdictChange(machine, (await message(service)).id, Verdict.HUMAN, Verdict.SUSPECTED, "crawler", True)
    done = await correction.apply_changes(service.database, [change], service.ids, clock())
    assert done.to_suspected == 0


async def test_a_message_that_was_purged_meanwhile_is_no_fault(retracting: Service, clock: Clock) -> None:
    service = retracting
    change = correction.VerdictChange(1, 1, Verdict.HUMAN, Verdict.SUSPECTED, "crawler", True)
    assert (await correction.apply_changes(service.database, [change], service.ids, clock())).to_suspected == 0
    assert (await service.database.write(correction.assign_first_clicks, [1], service.ids)).first_clicks == 0


async def test_nothing_is_scanned(service: Service) -> None:
    if service.database.dialect != "sqlite":
        pytest.skip("the statements are the same on both; SQLite tells in few words how it goes about them")
    (code,) = await send(service)
    await click(service, code)

    def run(connection: Connection) -> list[str]:
        def all_of_it() -> None:
            reclassify._page(connection, 0, service.ids(), [1])
            correction.change_verdicts(connection, [], service.ids, NOON)
            correction.assign_first_clicks(connection, [1], service.ids)

        return [step for plan in plans(connection, all_of_it) for step in scanned(plan, "hits", "links", "messages")]

    assert await service.database.write(run) == []
