"""Tests of reclassification with contextual rules, when the evidence against a hit arrives after the hit."""

from datetime import timedelta

from shortener.container import Service
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import State
from shortener.storage import schema
from tests.clicks.helpers import change_settings, create_codes, fetch_rows
from tests.clicks.verdicts.helpers import assert_counts_match, only_message, record_click, run_reclassifier
from tests.conftest import NOON, Clock
from tests.rows import messages_now


async def test_the_first_hits_of_an_address_that_opens_many_links_are_retracted(service: Service, clock: Clock) -> None:
    await change_settings(service, max_recipients_per_address_minute=3, retract_clicks=True)
    codes = [(await create_codes(service))[0] for _ in range(6)]
    for code in codes:
        await record_click(service, code, origin=7)
        clock.forward(seconds=5)
    assert [hit.verdict for hit in await fetch_rows(service, schema.hits)] == [0, 0, 0, 1, 1, 1]
    result = await run_reclassifier(service)
    assert (result.corrections.to_suspected, result.corrections.retracted_messages) == (3, 3)
    assert {hit.rule for hit in await fetch_rows(service, schema.hits)} == {"many_recipients"}
    assert {one.state for one in await fetch_rows(service, messages_now)} == {State.CREATED}
    await assert_counts_match(service)


async def test_hits_from_an_address_that_opens_few_links_per_minute_stay_human(service: Service, clock: Clock) -> None:
    await change_settings(service, max_recipients_per_address_minute=3, retract_clicks=True)
    for _ in range(10):
        await record_click(service, (await create_codes(service))[0], origin=7)
        clock.forward(seconds=20)
    result = await run_reclassifier(service)
    assert (result.hits, result.corrections.to_suspected) == (10, 0)


async def test_reclassification_keeps_a_suspected_verdict_that_was_based_on_a_client_address_that_is_not_stored(
    service: Service, clock: Clock
) -> None:
    await change_settings(service, max_recipients_per_address_minute=1, retract_clicks=True, ip_privacy="none")
    for _ in range(2):
        await record_click(service, (await create_codes(service))[0], origin=7)
    assert [(hit.verdict, hit.address) for hit in await fetch_rows(service, schema.hits)] == [(0, ""), (1, "")]
    assert (await run_reclassifier(service)).corrections.to_human == 0
    await change_settings(service, max_recipients_per_address_minute=None)
    assert (await run_reclassifier(service)).corrections.to_human == 1, "without the rule, the verdict of the hit is human again"


async def test_clicks_on_all_links_of_a_message_within_a_second_are_retracted(service: Service, clock: Clock) -> None:
    await change_settings(service, all_links_within_second=True, retract_clicks=True)
    body = '#track("https://x.example/1") #track("https://x.example/2") #track("https://x.example/3")'
    scanned, read = await create_codes(service, body), await create_codes(service, body)
    for code in scanned:
        await record_click(service, code)
        clock.forward(milliseconds=300)
    for code in read:
        await record_click(service, code)
        clock.forward(milliseconds=700)
    assert [hit.verdict for hit in await fetch_rows(service, schema.hits)] == [0, 0, 1, 0, 0, 0]
    result = await run_reclassifier(service)
    assert (result.corrections.to_suspected, result.corrections.retracted, result.corrections.retracted_messages) == (2, 2, 1)
    assert [hit.verdict for hit in await fetch_rows(service, schema.hits)] == [1, 1, 1, 0, 0, 0]
    await assert_counts_match(service)


async def test_a_click_is_retracted_if_a_late_delivery_report_makes_it_suspected(service: Service, clock: Clock) -> None:
    await change_settings(service, min_seconds_after_delivered=3, retract_clicks=True)
    (code,) = await create_codes(service, message_ids=("m-1",))
    await record_click(service, code)
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.DELIVERED, NOON - timedelta(seconds=1))])
    result = await run_reclassifier(service)
    assert result.corrections.retracted_messages == 1
    assert (await only_message(service)).state == State.DELIVERED
    await assert_counts_match(service)


async def test_a_sent_report_that_arrives_after_the_click_does_not_retract_the_click(service: Service, clock: Clock) -> None:
    await change_settings(service, min_seconds_after_sent=3, retract_clicks=True)
    (code,) = await create_codes(service, message_ids=("m-1",))
    await record_click(service, code)
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock.forward(seconds=1))])
    result = await run_reclassifier(service)
    assert (result.hits, result.corrections.to_suspected) == (1, 0)
