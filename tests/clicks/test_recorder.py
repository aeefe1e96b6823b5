"""Tests of the recorder on SQLite and PostgreSQL: batches, first clicks, contextual rules, and hits while the database is
unavailable.
"""

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from shortener.accounts.administration import block_host, create_application, unblock_host, update_application
from shortener.clicks.recorder_totals import RecorderTotals
from shortener.clicks.resolver import UNKNOWN_LINK
from shortener.container import Service
from shortener.delivery.trackers import NewTracker
from shortener.errors import ApiError, StoreUnavailable
from shortener.messages.delivery_reports import DeliveryReport
from shortener.messages.item_plan import MAX_LINKS
from shortener.model import ALL_APPLICATIONS, HitFlag, State, Topic, Verdict
from shortener.reporting.count_check import verify
from shortener.retention.erasure import erase_message
from shortener.storage import schema
from shortener.storage.types import to_ms
from tests.clicks.helpers import TO
from tests.clicks.helpers import change_settings as choose
from tests.clicks.helpers import count_state_events as clickthru_events
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import fetch_rows as rows
from tests.clicks.helpers import make_hit as hit
from tests.clicks.helpers import unreliable_recorder as unwilling
from tests.conftest import Clock, MakeService, client_of
from tests.factory import AUDIT, keep_sends
from tests.rows import messages_now


async def test_the_first_click_changes_the_state_of_the_message_and_creates_one_event(service: Service, clock: Clock) -> None:
    (code,) = await send(service)
    clock.forward(seconds=42)
    resolution = await service.recorder.record(hit(service, code))
    assert resolution.location == b"https://x.example/a"
    message, link = (await rows(service, messages_now))[0], (await rows(service, schema.links))[0]
    assert (message.state, message.previous_state, message.clicked_at) == (50, 0, clock())
    assert message.clicked_links == 1 << link.position
    (event,) = await rows(service, schema.events)
    assert event.topics == Topic.STATE | Topic.CLICK
    assert event.data is None, "the fan-out determines the previous state of the message"
    (kept,) = await rows(service, schema.hits)
    assert kept.flags == HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE
    assert message.click_hit_id == kept.id
    assert (event.hit_id, event.link_id, event.message_id, event.at) == (kept.id, link.id, message.id, clock())


async def test_the_setting_click_events_every_also_applies_to_links_that_already_exist(service: Service) -> None:
    (code,) = await send(service)
    await choose(service, click_events="every")
    for _ in range(3):
        await service.recorder.record(hit(service, code))
    assert [event.topics for event in await rows(service, schema.events)] == [Topic.STATE | Topic.CLICK, Topic.CLICK, Topic.CLICK]


async def test_a_link_that_was_created_with_click_events_every_still_creates_an_event_for_every_click(service: Service) -> None:
    """The flag of the link decides whether a click creates an event, and not the current setting. Otherwise a later correction
    could not retract the clicks that were sent as events."""
    await choose(service, click_events="every")
    (code,) = await send(service)
    await choose(service, click_events="first")
    for _ in range(2):
        await service.recorder.record(hit(service, code))
    assert [event.topics for event in await rows(service, schema.events)] == [Topic.STATE | Topic.CLICK, Topic.CLICK]


async def test_later_clicks_are_redirected_and_create_no_event(service: Service) -> None:
    (code,) = await send(service)
    for _ in range(3):
        assert (await service.recorder.record(hit(service, code))).location == b"https://x.example/a"
    assert len(await rows(service, schema.hits)) == 3
    assert len(await rows(service, schema.events)) == 1


async def test_five_hundred_concurrent_clicks_on_ten_links_give_ten_first_clicks(service: Service) -> None:
    codes = [(await send(service))[0] for _ in range(10)]
    await asyncio.gather(*(service.recorder.record(hit(service, code)) for code in codes * 50))
    assert len(await rows(service, schema.hits)) == 500
    assert sorted((await clickthru_events(service)).values()) == [1] * 10
    assert service.recorder.totals.batches < 50, "hits that arrive during a commit share the next one"


async def test_two_recorders_on_one_database_record_one_first_click_for_each_message(make_service: MakeService) -> None:
    one = await make_service()
    if one.database.dialect == "sqlite":
        pytest.skip("SQLite belongs to one process; two nodes need PostgreSQL")
    two = await make_service()
    codes = [(await send(one))[0] for _ in range(20)]
    clicks = [node.recorder.record(hit(node, code)) for code in codes for node in (one, two) for _ in range(5)]
    await asyncio.gather(*clicks)
    assert len(await rows(one, schema.hits)) == 200
    assert sorted((await clickthru_events(one)).values()) == [1] * 20


async def test_clicks_on_two_links_of_one_message_create_one_state_event_and_two_click_events(service: Service) -> None:
    codes = await send(service, '#track("https://x.example/1") #track("https://x.example/2")')
    await asyncio.gather(*(service.recorder.record(hit(service, code)) for code in codes * 2))
    events = await rows(service, schema.events)
    assert sorted(event.topics for event in events) == [Topic.CLICK, Topic.STATE | Topic.CLICK]


async def test_each_link_of_a_message_with_the_maximum_number_of_links_has_its_own_first_click(service: Service) -> None:
    """The column `first_clicks.links` has one bit for each link. It is a signed 32-bit integer, so MAX_LINKS must not be larger
    than 30."""
    assert 1 << MAX_LINKS <= 2**31 - 1
    body = " ".join(f"https://x.example/{number}" for number in range(MAX_LINKS))
    codes = await send(service, body, track="all_urls")
    assert len(codes) == MAX_LINKS
    for code in codes * 2:
        await service.recorder.record(hit(service, code))
    assert set((await clickthru_events(service)).values()) == {1}
    assert len(await rows(service, schema.events)) == MAX_LINKS
    (message,) = await rows(service, messages_now)
    assert message.clicked_links == (1 << MAX_LINKS) - 1
    with pytest.raises(ApiError):
        await send(service, body + " https://x.example/one-more", track="all_urls")


async def test_each_click_on_a_link_with_a_label_creates_an_event(service: Service) -> None:
    (code,) = await send(service, '#trackurl("https://x.example/1","offer")')
    for _ in range(3):
        await service.recorder.record(hit(service, code))
    assert [event.topics for event in await rows(service, schema.events)] == [Topic.STATE | Topic.CLICK, Topic.CLICK, Topic.CLICK]


@pytest.mark.parametrize("verdict", [Verdict.SUSPECTED, Verdict.IGNORED])
async def test_suspected_and_ignored_hits_are_redirected_and_stored_but_do_not_use_up_the_first_click(
    service: Service, verdict: Verdict
) -> None:
    (code,) = await send(service)
    for _ in range(20):
        assert (await service.recorder.record(hit(service, code, verdict))).location
    assert len(await rows(service, schema.hits)) == 20
    assert await rows(service, schema.events) == []
    await service.recorder.record(hit(service, code))
    assert len(await rows(service, schema.events)) == 1


async def test_a_hit_with_an_unknown_code_stores_no_row(service: Service) -> None:
    resolution = await service.recorder.record(hit(service, "doesnotexist"))
    assert resolution is UNKNOWN_LINK
    assert await rows(service, schema.hits) == []
    assert await rows(service, schema.count_deltas) == []


async def test_a_hit_on_an_expired_link_creates_a_late_click_event_and_no_state_change(service: Service, clock: Clock) -> None:
    (code,) = await send(service, expires_in=60)
    clock.forward(seconds=60)
    resolution = await service.recorder.record(hit(service, code))
    assert (resolution.location, resolution.gone) == (None, True)
    (event,) = await rows(service, schema.events)
    assert event.topics == Topic.LATE_CLICK
    (kept,) = await rows(service, schema.hits)
    assert kept.flags == HitFlag.LATE
    assert (await rows(service, messages_now))[0].state == 0


async def test_a_hit_in_the_last_millisecond_before_the_expiry_is_a_click(service: Service, clock: Clock) -> None:
    (code,) = await send(service, expires_in=60)
    clock.forward(milliseconds=59_999)
    assert (await service.recorder.record(hit(service, code))).location
    assert len(await clickthru_events(service)) == 1


async def test_an_expired_link_redirects_to_its_fallback_url(service: Service, clock: Clock) -> None:
    (code,) = await send(service, expires_in=60, fallback_url="https://x.example/over")
    clock.forward(minutes=2)
    resolution = await service.recorder.record(hit(service, code))
    assert (resolution.location, resolution.gone) == (b"https://x.example/over", True)


async def test_a_hit_on_a_disabled_link_has_no_destination_and_creates_no_event(service: Service, clock: Clock) -> None:
    (code,) = await send(service)
    await service.database.write(lambda c: c.execute(update(schema.links).values(disabled_at=clock())))
    resolution = await service.recorder.record(hit(service, code))
    assert (resolution.location, resolution.gone) == (None, True)
    assert len(await rows(service, schema.hits)) == 1
    assert await rows(service, schema.events) == []


async def test_placeholders_in_a_destination_are_replaced_by_their_values(service: Service) -> None:
    body = '#track("https://x.example/{code}?m={message_id}&c={click_id}&g={campaign}&p={phone_sha256}&x={other}#f")'
    (code,) = await send(service, body, message_ids=("m 1",), campaign="a&b")
    mine = hit(service, code)
    resolution = await service.recorder.record(mine)
    click_id = service.click_ids.encode(mine.id)
    digest = "87b2af1f8ee5ef4a4d19d4e8b3e4a0b4a1ccc3b7c6d0bd2a0f4a2ccb4a8f5e1d"
    expected = f"https://x.example/{code}?m=m%201&c={click_id}&g=a%26b&p={digest}&x={{other}}#f"
    import hashlib

    assert resolution.location == expected.replace(digest, hashlib.sha256(TO.encode()).hexdigest()).encode()


async def test_each_recorded_hit_is_added_to_the_counts(service: Service, clock: Clock) -> None:
    (code,) = await send(service)
    await service.database.write(lambda c: c.execute(schema.count_deltas.delete()))
    clock.forward(seconds=100)
    for verdict in (Verdict.SUSPECTED, Verdict.HUMAN, Verdict.HUMAN, Verdict.IGNORED):
        await service.recorder.record(hit(service, code, verdict))
    await service.fanout.flush()
    added: Counter[str] = Counter()
    for tally in await rows(service, schema.count_deltas):
        for _, _, metric, amount in tally.data:
            added[metric] += int(amount)
    ttc = {metric: amount for metric, amount in added.items() if metric.startswith("ttc:")}
    assert list(ttc.values()) == [1]
    assert {m: a for m, a in added.items() if m not in ttc} == {
        "suspected_hits": 1,
        "clicks": 2,
        "clicked_messages": 1,
        "clicked_links": 1,
        "ignored_hits": 1,
    }


# These tests check contextual rules and other settings of applications.


async def test_a_hit_too_soon_after_the_sent_report_is_suspected_if_the_application_has_this_rule(
    service: Service, clock: Clock
) -> None:
    codes = [(await send(service, message_ids=(f"m-{n}",)))[0] for n in range(2)]
    await service.delivery_reports.record(1, [DeliveryReport(f"m-{n}", State.SENT, clock()) for n in range(2)])
    clock.forward(seconds=1)
    await service.recorder.record(hit(service, codes[0]))
    await choose(service, min_seconds_after_sent=2)
    await service.recorder.record(hit(service, codes[1]))
    assert [(one.verdict, one.rule) for one in await rows(service, schema.hits)] == [(0, "test"), (1, "soon_after_sent")]
    messages = await rows(service, messages_now)
    assert [message.state for message in messages] == [State.CLICKTHRU, State.SENT]
    clock.forward(seconds=1)
    assert (await service.recorder.record(hit(service, codes[1]))).location == b"https://x.example/a"
    assert (await rows(service, messages_now))[1].state == State.CLICKTHRU


async def test_a_hit_too_soon_after_the_delivery_report_is_suspected_if_the_application_has_this_rule(
    service: Service, clock: Clock
) -> None:
    await choose(service, min_seconds_after_delivered=1.5)
    (code,) = await send(service, message_ids=("m-1",))
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.DELIVERED, clock())])
    clock.forward(seconds=1.4)
    await service.recorder.record(hit(service, code))
    clock.forward(seconds=0.1)
    await service.recorder.record(hit(service, code))
    assert [one.rule for one in await rows(service, schema.hits)] == ["soon_after_delivered", "test"]


async def test_further_hits_from_an_address_that_opened_links_of_too_many_recipients_are_suspected(
    service: Service, clock: Clock
) -> None:
    await choose(service, max_recipients_per_address_minute=2)
    codes = [(await send(service))[0] for _ in range(4)]
    for code in codes[:3]:
        await service.recorder.record(hit(service, code, origin=1))
    await service.recorder.record(hit(service, codes[3], origin=2))
    await service.recorder.record(hit(service, codes[3], origin=0))  # origin 0: the address of the client is unknown
    clock.forward(minutes=1)
    await service.recorder.record(hit(service, codes[3], origin=1))
    rules = [one.rule for one in await rows(service, schema.hits)]
    assert rules == ["test", "test", "many_recipients", "test", "test", "test"]


async def test_hits_on_all_links_of_a_message_within_a_second_are_suspected(service: Service, clock: Clock) -> None:
    await choose(service, all_links_within_second=True)
    codes = await send(service, '#track("https://x.example/1") #track("https://x.example/2")')
    (only,) = await send(service)
    await asyncio.gather(*(service.recorder.record(hit(service, code)) for code in [*codes, only]))
    found = {(one.link_id, one.rule) for one in await rows(service, schema.hits)}
    assert sorted(rule for _, rule in found) == ["all_links_at_once", "all_links_at_once", "test"]
    assert len(await clickthru_events(service)) == 1


async def test_a_contextual_rule_of_one_application_does_not_apply_to_another_application(service: Service, clock: Clock) -> None:
    await service.database.write(create_application, "other", clock())
    await service.database.write(update_application, 2, {"max_recipients_per_address_minute": 1}, clock())
    await service.directory.refresh()
    for _ in range(3):
        await service.recorder.record(hit(service, (await send(service))[0], origin=1))
    assert {one.rule for one in await rows(service, schema.hits)} == {"test"}


async def test_contextual_rules_do_not_classify_hits_that_request_rules_suspect(service: Service, clock: Clock) -> None:
    await choose(service, max_recipients_per_address_minute=1)
    for _ in range(3):
        await service.recorder.record(hit(service, (await send(service))[0], Verdict.SUSPECTED, origin=1))
    assert {one.rule for one in await rows(service, schema.hits)} == {"test"}


async def test_suspected_hits_create_click_events_if_a_tracker_has_the_option_with_suspected(service: Service) -> None:
    (code,) = await send(service)
    await service.recorder.record(hit(service, code, Verdict.SUSPECTED))
    tracker = (
        await service.trackers.create(AUDIT, 1, NewTracker(url="https://t.example/", events=["click"], with_suspected=True))
    ).tracker
    await service.directory.refresh()
    await service.recorder.record(hit(service, code, Verdict.SUSPECTED))
    await service.recorder.record(hit(service, code, Verdict.IGNORED))
    assert [event.topics for event in await rows(service, schema.events)] == [Topic.CLICK | Topic.SUSPECTED]
    assert (await rows(service, messages_now))[0].state == 0
    await service.trackers.delete(AUDIT, tracker.id)
    await service.directory.refresh()
    await service.recorder.record(hit(service, code, Verdict.SUSPECTED))
    assert len(await rows(service, schema.events)) == 1
    await service.recorder.record(hit(service, code))
    assert len(await clickthru_events(service)) == 1


@pytest.mark.parametrize(
    ("installation", "application", "kept"),
    [
        ("full", None, "198.51.100.77"),
        ("full", "short", "198.51.100.0"),
        ("full", "none", ""),
        ("short", "full", "198.51.100.0"),
        ("short", "none", ""),
        ("none", "full", ""),
    ],
)
async def test_the_stricter_ip_privacy_of_installation_and_application_applies_to_the_stored_address(
    make_service: MakeService, installation: str, application: str | None, kept: str
) -> None:
    service = await make_service(ip_privacy=installation, trusted_proxies="127.0.0.0/8")
    await choose(service, ip_privacy=application)
    (code,) = await send(service)
    async with client_of(service, {"X-Forwarded-For": "198.51.100.77"}) as client:
        await client.get(f"/{code}")
    (one,) = await rows(service, schema.hits)
    assert one.address == kept


async def test_a_hit_on_a_link_of_an_erased_message_is_stored_without_address_and_user_agent(
    service: Service, clock: Clock
) -> None:
    (code,) = await send(service, message_ids=("m-1",))
    await service.recorder.record(hit(service, code))
    await service.database.write(erase_message, 1, "m-1", clock(), AUDIT, keep_sends)
    resolution = await service.recorder.record(hit(service, code))
    assert (resolution.location, resolution.off) == (None, True)
    assert [(one.address, one.user_agent) for one in await rows(service, schema.hits)] == [("", ""), ("", "")]
    assert await service.database.read(verify, clock() - timedelta(days=1), clock() + timedelta(days=1)) == []


async def test_hits_on_links_to_a_blocked_host_have_the_flag_disabled_and_are_not_clicks(service: Service, clock: Clock) -> None:
    (code,) = await send(service, expires_in=60)
    await service.database.write(block_host, ALL_APPLICATIONS, "x.example", clock())
    await service.directory.refresh()
    resolution = await service.recorder.record(hit(service, code))
    assert (resolution.location, resolution.gone, resolution.off) == (None, True, True)
    await service.recorder.record(hit(service, code, Verdict.SUSPECTED))
    clock.forward(minutes=2)
    await service.recorder.record(hit(service, code))
    flags = [one.flags for one in await rows(service, schema.hits)]
    assert flags == [HitFlag.DISABLED, HitFlag.DISABLED, HitFlag.DISABLED | HitFlag.LATE]
    assert await rows(service, schema.events) == []
    await service.database.write(unblock_host, ALL_APPLICATIONS, "x.example")
    await service.directory.refresh()
    assert await service.database.read(verify, clock() - timedelta(days=1), clock() + timedelta(days=1)) == []


@pytest.mark.parametrize(
    ("blocked", "application_id", "off"),
    [
        ("x.example", 1, True),
        ("x.example", 0, True),
        ("x.example", 2, False),
        ("*.example", 1, True),
        ("*.x.example", 1, False),
        ("other.example", 1, False),
    ],
)
async def test_a_link_is_disabled_if_its_host_is_blocked_for_its_application(
    service: Service, clock: Clock, blocked: str, application_id: int, off: bool
) -> None:
    await service.database.write(create_application, "other", clock())
    (code,) = await send(service)
    await service.database.write(block_host, application_id, blocked, clock())
    await service.directory.refresh()
    assert (await service.recorder.record(hit(service, code))).off is off


async def test_an_expired_link_does_not_redirect_to_a_fallback_url_on_a_blocked_host(service: Service, clock: Clock) -> None:
    (code,) = await send(service, expires_in=60, fallback_url="https://over.example/")
    await service.database.write(block_host, 1, "over.example", clock())
    await service.directory.refresh()
    clock.forward(minutes=2)
    resolution = await service.recorder.record(hit(service, code))
    assert (resolution.location, resolution.gone, resolution.off) == (None, True, False)


def test_metrics_contain_every_classification_rule_with_the_value_0_from_the_start() -> None:
    names = {name for _, name in RecorderTotals().verdicts}
    assert {"method", "prefetch", "crawler", "browser", "soon_after_sent", "many_recipients"} < names
    assert set(RecorderTotals().verdicts.values()) == {0}


# These tests check hits while the database is unavailable.


async def test_without_a_database_redirects_are_sent_after_the_deadline_and_hits_are_stored_later(service: Service) -> None:
    (code,) = await send(service)
    store, recorder = await unwilling(service)
    store.refuse_writes = True
    resolutions = await asyncio.gather(*(recorder.record(hit(service, code)) for _ in range(5)))
    assert {resolution.location for resolution in resolutions} == {b"https://x.example/a"}
    assert recorder.unrecorded == 5
    assert await rows(service, schema.hits) == []
    store.refuse_writes = False
    await recorder.flush()
    assert recorder.unrecorded == 0
    assert len(await rows(service, schema.hits)) == 5
    assert len(await clickthru_events(service)) == 1
    await recorder.stop(1)


async def test_hits_of_a_commit_whose_result_was_lost_count_once(service: Service) -> None:
    (code,) = await send(service)
    await service.database.write(lambda c: c.execute(schema.count_deltas.delete()))
    store, recorder = await unwilling(service)
    store.lose_results = 2
    await recorder.record(hit(service, code))
    await recorder.flush()
    assert store.writes == 3
    assert len(await rows(service, schema.hits)) == 1
    assert list((await clickthru_events(service)).values()) == [1]
    assert len(await rows(service, schema.count_deltas)) == 1
    await recorder.stop(1)


async def test_a_hit_whose_link_cannot_be_read_raises_store_unavailable_and_is_not_stored(service: Service) -> None:
    (code,) = await send(service)
    store, recorder = await unwilling(service)
    store.refuse_writes = store.refuse_reads = True
    with pytest.raises(StoreUnavailable):
        await recorder.record(hit(service, code))
    store.refuse_writes = store.refuse_reads = False
    await recorder.flush()
    assert await rows(service, schema.hits) == []
    await recorder.stop(1)


async def test_hits_above_the_limit_of_waiting_hits_are_dropped(service: Service) -> None:
    (code,) = await send(service)
    store, recorder = await unwilling(service, waiting_limit=3)
    store.refuse_writes = True
    resolutions = await asyncio.gather(*(recorder.record(hit(service, code)) for _ in range(10)))
    assert {resolution.location for resolution in resolutions} == {b"https://x.example/a"}
    assert recorder.totals.dropped == 7
    store.refuse_writes = False
    await recorder.flush()
    assert await service.database.read(lambda c: c.execute(select(func.count()).select_from(schema.hits)).scalar_one()) == 3
    await recorder.stop(1)


async def test_a_hit_that_the_database_rejects_does_not_delay_other_hits(service: Service) -> None:
    (code,) = await send(service)
    good = [hit(service, code) for _ in range(3)]
    rejected = hit(service, code, rule=None)
    resolutions = await asyncio.gather(*(service.recorder.record(one) for one in [*good, rejected]))
    assert {resolution.location for resolution in resolutions} == {b"https://x.example/a"}
    assert len(await rows(service, schema.hits)) == 3
    assert (service.recorder.totals.dropped, service.recorder.totals.dead_letters) == (0, 1)


def test_the_time_of_a_hit_is_stored_in_milliseconds(clock: Clock) -> None:
    assert to_ms(clock()) == 1_795_176_000_000


# These tests check hits on opt-out links.


@pytest.mark.parametrize("label", ["optout", "OptOut", "stop"])
async def test_a_suspected_hit_on_an_opt_out_link_creates_a_click_event(service: Service, label: str) -> None:
    codes = await send(service, f'#trackurl("https://x.example/stop","{label}") #track("https://x.example/a")', opt_out=("stop",))
    for code in codes:
        await service.recorder.record(hit(service, code, Verdict.SUSPECTED))
        await service.recorder.record(hit(service, code, Verdict.IGNORED))
    (event,) = await rows(service, schema.events)
    assert Topic(event.topics) == Topic.CLICK
    assert [message.state for message in await rows(service, messages_now)] == [State.CREATED]


async def test_a_destination_url_in_the_request_field_opt_out_marks_its_link_as_an_opt_out_link(service: Service) -> None:
    (code,) = await send(service, '#track("https://x.example/stop")', opt_out=("https://x.example/stop",))
    await service.recorder.record(hit(service, code))
    await service.recorder.record(hit(service, code, Verdict.SUSPECTED))
    await service.recorder.record(hit(service, code))
    topics = [Topic(event.topics) for event in await rows(service, schema.events)]
    assert topics == [Topic.CLICK | Topic.STATE, Topic.CLICK, Topic.CLICK]
