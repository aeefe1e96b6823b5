"""Tests of the page on which an operator tries a text."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from shortener.container import Service
from shortener.portal.operators import Role
from shortener.storage.schema import messages, sends
from tests.clicks.helpers import fetch_rows
from tests.portal.conftest import SignIn, log

BODY = 'See #track("https://shop.example/x")'


async def test_the_portal_preview_shows_the_text_with_a_sample_link_and_stores_nothing(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Vera", Role.VIEWER, 1)
    assert (await browser.get("/portal/1/try")).status_code == 200
    page = await browser.post("/portal/1/try", data={"body": BODY, "to": "+14085550123", "recipients": "10,000"})
    assert page.status_code == 200
    assert "Segments to pay for" in page.text
    assert ">10,000<" in page.text
    assert service.rewrite_totals.messages == 0


async def test_the_portal_preview_of_an_invalid_text_keeps_the_input_and_shows_the_error_position(sign_in: SignIn) -> None:
    browser = await sign_in()
    page = await browser.post("/portal/1/try", data={"body": 'Broken #track("https://x.example', "to": "+14085550123"})
    assert page.status_code == 422
    assert "INVALID_TRACK_DIRECTIVE" in page.text
    assert re.search(r"\(position \d+\)", page.text)
    assert "Broken #track" in page.text


async def test_an_invalid_recipient_of_the_portal_preview_is_reported_above_the_form_and_beside_its_field(sign_in: SignIn) -> None:
    browser = await sign_in()
    page = await browser.post("/portal/1/try", data={"body": BODY, "to": "555"})
    assert page.status_code == 422
    alert, form, field = page.text.index('role="alert"'), page.text.index('<form class="card form'), page.text.index('id="f-to"')
    assert alert < form < field
    assert page.text.count('role="alert"') == 1
    assert re.search(r'role="alert" tabindex="-1" autofocus>', page.text), "the focus moves to the error"
    assert '<a href="#f-to">Recipient</a>' in page.text
    assert 'aria-invalid="true" aria-describedby="w-to"' in page.text


async def test_a_message_created_in_the_portal_has_a_working_link_and_is_recorded_in_the_audit_log(
    service: Service, sign_in: SignIn
) -> None:
    browser = await sign_in()
    page = await browser.post("/portal/1/try", data={"body": BODY, "to": "+14085550123", "action": "create"})
    assert page.status_code == 200
    (code,) = set(re.findall(r"/([A-Za-z0-9]{5,})</span> <button", page.text))
    assert (await browser.get(f"/{code}", headers={"User-Agent": "Mozilla/5.0 Chrome/130 Safari/537"})).status_code == 302
    assert [row.action for row in await log(service)][-1] == "message_created"


async def test_reloading_the_page_of_a_created_message_creates_and_sends_no_second_message(
    service: Service, sign_in: SignIn, client: httpx.AsyncClient
) -> None:
    assert (await client.post("/api/v1/gateways", json={"name": "test", "kind": "simulator"})).status_code == 201
    assert (await client.patch("/api/v1/application", json={"gateway": "test"})).status_code == 200
    browser = await sign_in()
    (form_id,) = re.findall(r'name="form_id" value="([^"]+)"', (await browser.get("/portal/1/try")).text)
    form = {"body": BODY, "to": "+14085550123", "send": "1", "action": "create", "form_id": form_id}
    first, *others = await asyncio.gather(*(browser.post("/portal/1/try", data=form) for _ in range(3)))
    reloaded = await browser.post("/portal/1/try", data=form)
    assert "The gateway is the simulator, so nothing is sent to +14085550123" in first.text
    codes = {tuple(re.findall(r"/([A-Za-z0-9]{5,})</span> <button", page.text)) for page in (first, *others, reloaded)}
    assert [len(code) for code in codes] == [1]
    assert (len(await fetch_rows(service, messages)), len(await fetch_rows(service, sends))) == (1, 1)
    assert [row.action for row in await log(service)].count("message_created") == 1

    changed = await browser.post("/portal/1/try", data=form | {"to": "+14085550124"})
    assert "nothing is sent to +14085550124" in changed.text
    assert len(await fetch_rows(service, messages)) == 2


async def test_a_created_message_names_the_recipient_to_whom_the_gateway_sends_it(
    service: Service, sign_in: SignIn, client: httpx.AsyncClient
) -> None:
    plain = {"name": "plain", "preset": "plain", "options": {"url": "https://gw.example/", "token": "t"}}
    assert (await client.post("/api/v1/gateways", json=plain)).status_code == 201
    assert (await client.patch("/api/v1/application", json={"gateway": "plain"})).status_code == 200
    browser = await sign_in()
    page = await browser.post("/portal/1/try", data={"body": BODY, "to": "+14085550123", "send": "1", "action": "create"})
    assert "The gateway sends it to +14085550123" in page.text


async def test_a_created_message_with_a_link_of_a_domain_without_an_address_says_so(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def has_no_address(host: str) -> bool:
        return False

    monkeypatch.setattr("shortener.portal.try_it.has_address", has_no_address)
    browser = await sign_in()
    form = {"body": BODY, "to": "+14085550123", "action": "create"}
    assert "names this machine only" in (await browser.post("/portal/1/try", data=form)).text
    await browser.post("/portal/1/domains", data={"domain": "go.brand.example"})
    page = (await browser.post("/portal/1/try", data=form)).text
    assert "the DNS has no address for the name go.brand.example" in page
    assert "names this machine only" not in page


async def test_a_viewer_cannot_create_a_message_in_the_portal(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Vera", Role.VIEWER, 1)
    page = await browser.post("/portal/1/try", data={"body": BODY, "to": "+14085550123", "action": "create"})
    assert page.status_code == 403
    assert service.rewrite_totals.messages == 0


async def test_the_response_to_an_htmx_preview_request_contains_only_the_result_and_no_complete_page(sign_in: SignIn) -> None:
    browser = await sign_in()
    page = await browser.post("/portal/1/try", data={"body": BODY, "to": "+14085550123"}, headers={"HX-Request": "true"})
    assert page.status_code == 200
    assert "<html" not in page.text
    assert "Segments" in page.text


async def test_an_invalid_number_of_recipients_in_the_portal_preview_is_ignored(sign_in: SignIn) -> None:
    browser = await sign_in()
    for number in ("9" * 5000, "x", "-1", "99999999"):
        page = await browser.post("/portal/1/try", data={"body": BODY, "to": "+14085550123", "recipients": number})
        assert page.status_code == 200
        assert "Segments to pay for" not in page.text
        assert "must be a whole number up to 10,000,000" in page.text


@pytest.mark.parametrize("rules", ["warn", "reject"])
async def test_the_first_view_of_try_it_has_a_sample_sender_if_the_short_links_contain_the_sender(
    sign_in: SignIn, client: httpx.AsyncClient, rules: str
) -> None:
    domain = {"domain": "https://go.brand.example/{sender}"}
    assert (await client.post("/api/v1/domains", json=domain)).status_code == 201
    assert (await client.patch("/api/v1/application", json={"sender_rules": rules})).status_code == 200
    browser = await sign_in()
    page = await browser.get("/portal/1/try")
    assert page.status_code == 200
    assert 'role="alert"' not in page.text
    assert 'name="from" type="text" value="14085550199"' in page.text
    assert "https://go.brand.example/14085550199/" in page.text
    without = await browser.post("/portal/1/try", data={"body": BODY, "to": "+14085550123", "from": ""})
    assert without.status_code == 422, "an entry without a sender is an error"


async def test_the_first_view_of_try_it_has_no_sample_sender_without_need(sign_in: SignIn) -> None:
    assert 'name="from" type="text" value=""' in (await (await sign_in()).get("/portal/1/try")).text


async def test_the_first_view_of_try_it_explains_why_there_is_no_preview_and_is_no_error(
    sign_in: SignIn, client: httpx.AsyncClient
) -> None:
    assert (await client.post("/api/v1/blocked-hosts", json={"host": "shop.example"})).status_code in (200, 201)
    page = await (await sign_in()).get("/portal/1/try")
    assert page.status_code == 200
    assert "No preview" in page.text


async def test_only_roles_that_may_create_a_message_can_choose_to_send_it(sign_in: SignIn, client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/v1/gateways", json={"name": "test", "kind": "simulator"})).status_code == 201
    assert (await client.patch("/api/v1/application", json={"gateway": "test"})).status_code == 200
    for name, role in (("Vera", Role.VIEWER), ("Max", Role.MANAGER)):
        page = (await (await sign_in(name, role, 1)).get("/portal/1/try")).text
        assert ("Also send it through the gateway" in page) == ("Create the message" in page) == (role is Role.MANAGER)


async def test_the_preview_while_typing_removes_the_error_of_an_earlier_request(sign_in: SignIn) -> None:
    browser = await sign_in()
    assert '<div id="try-error"><div class="note bad"' in (await browser.post("/portal/1/try", data={"body": "", "to": "555"})).text
    preview = await browser.post("/portal/1/try", data={"body": BODY, "to": "+14085550123"}, headers={"HX-Request": "true"})
    assert '<div id="try-error" hx-swap-oob="true"></div>' in preview.text
    assert 'id="preview"' in preview.text
