"""Tests of the confirmation page: a hit counts as a click only when the person presses the button on the page."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
from sqlalchemy import update

from shortener.accounts.administration import block_host
from shortener.clicks.pages import MAX_NAME_LENGTH, confirmation_page
from shortener.container import Service
from shortener.messages.delivery_reports import DeliveryReport
from shortener.model import ALL_APPLICATIONS, HitFlag, State, Topic, Verdict
from shortener.reporting.count_check import verify
from shortener.storage import schema
from tests.clicks.helpers import (
    PHONE_HEADERS,
    change_settings,
    create_codes,
    create_link,
    fetch_rows,
    make_hit,
    unreliable_recorder,
)
from tests.clicks.verdicts.helpers import assert_counts_match, run_reclassifier
from tests.conftest import NOON, Clock
from tests.rows import messages_now

SCANNER = {"User-Agent": "curl/8.5"}


async def hits(service: Service) -> list[tuple[str, int]]:
    return [(hit.rule, hit.verdict) for hit in await fetch_rows(service, schema.hits)]


async def test_with_the_setting_always_each_hit_gets_the_confirmation_page_and_its_button_records_the_click(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    await change_settings(service, confirm_clicks="always")
    link = await create_link(client)
    for headers in (PHONE_HEADERS, SCANNER):
        page = await client.get(link, headers=headers)
        assert page.status_code == 200
        assert "location" not in page.headers
        assert '<form method="post"><button>' in page.text
        assert "form-action" not in page.headers["content-security-policy"]
        assert page.headers["cache-control"] == "private, no-store"
    assert await fetch_rows(service, schema.first_clicks) == []
    opened = await client.post(link, headers=SCANNER)
    assert (opened.status_code, opened.headers["location"]) == (303, "https://x.example/a?b=1&c=%20#f")
    assert await hits(service) == [("awaiting_confirmation", 2), ("crawler", 1), ("confirmed", 0)]
    assert len(await fetch_rows(service, schema.first_clicks)) == 1
    assert await service.database.read(verify, NOON - timedelta(days=1), NOON + timedelta(days=1)) == []


async def test_with_the_setting_suspicious_only_hits_that_are_not_human_get_the_confirmation_page(
    client: httpx.AsyncClient, service: Service
) -> None:
    await change_settings(service, confirm_clicks="suspicious")
    link = await create_link(client)
    assert (await client.get(link, headers=SCANNER)).status_code == 200
    assert (await client.get(link, headers=PHONE_HEADERS)).status_code == 302
    assert (await client.head(link, headers=PHONE_HEADERS)).status_code == 200


async def test_hits_that_contextual_rules_suspect_get_the_confirmation_page(client: httpx.AsyncClient, service: Service) -> None:
    await change_settings(service, confirm_clicks="suspicious", max_recipients_per_address_minute=1)
    links = [await create_link(client) for _ in range(3)]
    assert [(await client.get(link, headers=PHONE_HEADERS)).status_code for link in links] == [302, 200, 200]


@pytest.mark.parametrize("mode", ["suspicious", "always"])
@pytest.mark.parametrize(
    "rule", [{"suspect_before_sent": True}, {"max_recipients_per_address_minute": 1}, {"all_links_within_second": True}], ids=str
)
async def test_the_contextual_rules_do_not_apply_to_a_press_of_the_button(
    client: httpx.AsyncClient, service: Service, mode: str, rule: dict[str, object]
) -> None:
    await change_settings(service, confirm_clicks=mode, **rule)
    body = '#track("https://x.example/a") #track("https://x.example/b")'
    codes = [code for _ in range(2) for code in await create_codes(service, body)]
    pages = [(await client.get(f"/{code}", headers=PHONE_HEADERS)).status_code for code in codes]
    assert pages[-1] == 200
    suspected = await hits(service)
    opened = await client.post(f"/{codes[-1]}", headers=PHONE_HEADERS)
    assert (opened.status_code, opened.headers["location"]) == (303, "https://x.example/b")
    assert await hits(service) == [*suspected, ("confirmed", Verdict.HUMAN)]
    click = (await fetch_rows(service, schema.hits))[-1]
    assert click.flags & HitFlag.FIRST_FOR_LINK
    topics = [Topic(event.topics) for event in await fetch_rows(service, schema.events) if event.hit_id == click.id]
    assert [Topic.CLICK in one for one in topics] == [True]
    message = (await fetch_rows(service, messages_now))[-1]
    assert (message.state, message.clicked_links & 0b10) == (State.CLICKTHRU, 0b10)
    assert await service.database.read(verify, NOON - timedelta(days=1), NOON + timedelta(days=1)) == []


@pytest.mark.parametrize("mode", ["suspicious", "always"])
async def test_a_hit_that_got_the_confirmation_page_does_not_become_a_click_after_a_delivery_report(
    client: httpx.AsyncClient, service: Service, clock: Clock, mode: str
) -> None:
    await change_settings(service, confirm_clicks=mode, suspect_before_sent=True, retract_clicks=True)
    (code,) = await create_codes(service, message_ids=("m-1",))
    assert (await client.get(f"/{code}", headers=PHONE_HEADERS)).status_code == 200
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())])
    await service.early_hits.step(clock())
    await run_reclassifier(service)
    assert await hits(service) == [("before_sent", Verdict.SUSPECTED)]
    assert [message.state for message in await fetch_rows(service, messages_now)] == [State.SENT]
    await change_settings(service, confirm_clicks="off", suspect_before_sent=False)
    await run_reclassifier(service)
    assert await hits(service) == [("before_sent", Verdict.SUSPECTED)], "a later change of the setting has no effect"
    assert await fetch_rows(service, schema.first_clicks) == []
    assert not [event for event in await fetch_rows(service, schema.events) if event.topics & Topic.CLICK]
    await assert_counts_match(service)


async def test_a_hit_that_was_redirected_before_it_was_stored_does_not_count_as_a_hit_that_got_the_confirmation_page(
    service: Service, clock: Clock
) -> None:
    await change_settings(service, confirm_clicks="suspicious", suspect_before_sent=True)
    (code,) = await create_codes(service, message_ids=("m-1",))
    database, recorder = await unreliable_recorder(service)
    database.refuse_writes = True
    hit = make_hit(service, code, user_agent=PHONE_HEADERS["User-Agent"])
    assert (await recorder.record(hit)).location == b"https://x.example/a"
    database.refuse_writes = False
    await recorder.flush()
    await recorder.stop(1)
    assert await hits(service) == [("before_sent", Verdict.SUSPECTED)]
    await service.delivery_reports.record(1, [DeliveryReport("m-1", State.SENT, clock())])
    assert await service.early_hits.step(clock()) == 1
    assert [message.state for message in await fetch_rows(service, messages_now)] == [State.CLICKTHRU]


async def test_a_form_on_another_web_site_cannot_confirm_a_click(client: httpx.AsyncClient, service: Service) -> None:
    await change_settings(service, confirm_clicks="always")
    link = await create_link(client)
    assert (await client.post(link, headers={**PHONE_HEADERS, "Sec-Fetch-Site": "cross-site"})).status_code == 200
    assert await hits(service) == [("awaiting_confirmation", 2)]


async def test_a_post_request_is_not_a_click_if_the_confirmation_page_is_off(client: httpx.AsyncClient, service: Service) -> None:
    link = await create_link(client)
    assert (await client.post(link, headers=PHONE_HEADERS)).status_code in (404, 405)
    assert await hits(service) == []


@pytest.mark.parametrize("cause", ["expired link", "disabled link", "disabled application", "blocked host"])
async def test_expired_and_disabled_links_show_no_confirmation_page(
    client: httpx.AsyncClient, service: Service, clock: Clock, cause: str
) -> None:
    await change_settings(service, confirm_clicks="always")
    link = await create_link(client)
    if cause == "expired link":
        clock.forward(days=91)
    elif cause == "disabled link":
        await service.database.write(lambda connection: connection.execute(update(schema.links).values(disabled_at=clock())))
    elif cause == "disabled application":
        await change_settings(service, disabled=True)
    else:
        await service.database.write(block_host, ALL_APPLICATIONS, "x.example", clock())
        await service.directory.refresh()
    assert (await client.get(link, headers=PHONE_HEADERS)).status_code == 410
    assert (await client.post(link, headers=PHONE_HEADERS)).status_code == 410
    assert await fetch_rows(service, schema.first_clicks) == []


@pytest.mark.parametrize("name", ["", "Brand", "<b>" * 40, "é" * 500])
def test_the_confirmation_page_is_small_and_accessible(name: str) -> None:
    page = confirmation_page(name)
    assert len(page) <= 1500
    text = page.decode()
    assert all(part in text for part in ('<html lang="en">', "<title>", "<h1>", "<main>", "<button>"))
    assert "<script" not in text
    assert "<b><b>" not in text
    assert MAX_NAME_LENGTH <= 100
