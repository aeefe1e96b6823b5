"""Tests of the data pages: a message's timeline, links, clicks and the search."""

from __future__ import annotations

import html
import re
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match, Route

from shortener.accounts.administration import create_application
from shortener.clicks.verdicts.request_rules import RULES
from shortener.container import Service
from shortener.portal.campaigns import PAGES
from shortener.portal.operators import Role
from shortener.portal.page import url
from shortener.portal.verdict_texts import REASONS, RULE_NAMES, explain
from tests.conftest import Clock
from tests.machine import Machine
from tests.one_service import on_one_service
from tests.portal.conftest import PASSWORD, NewBrowser, SignIn, click, log, send
from tests.receiver import Receiver, Reply

HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>"


async def test_the_timeline_of_a_message_explains_each_hit(service: Service, sign_in: SignIn, new_browser: NewBrowser) -> None:
    browser, phone = await sign_in(), await new_browser()
    message = await send(service, browser, campaign="Spring")
    code = message["links"][0]["code"]
    await click(service, phone, code, "WhatsApp/2.24")
    await click(service, phone, code)
    page = await browser.get(f"/portal/1/messages/{message['message_id']}")
    assert page.status_code == 200
    assert "a messaging app fetched a preview of the link" in page.text
    assert "First click" in page.text
    assert "+14085550123" not in page.text


async def test_the_timeline_of_a_message_shows_the_attempts_of_its_gateway(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in()
    message = await send(service, browser, gateway="simulator")
    await service.gateway_dispatcher.flush()
    page = (await browser.get(f"/portal/1/messages/{message['message_id']}")).text
    assert "Gateway simulator accepted the message" in page
    assert re.search(r'<dt>Gateway</dt><dd>simulator: <a href="[^"]*state=sent"><span class="badge good"><span>Sent<', page)
    assert "Attempt 1: the gateway accepted the message." in page


async def test_only_support_can_see_a_complete_phone_number_and_the_audit_log_records_the_operator(
    service: Service, sign_in: SignIn
) -> None:
    support = await sign_in("Sue", Role.SUPPORT, 1)
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    message = await send(service, support)
    path = f"/portal/1/messages/{message['message_id']}"
    assert "+14085550123" not in (await viewer.get(path)).text
    assert (await viewer.post(path)).status_code == 403
    revealed = await support.post(path)
    assert revealed.status_code == 200
    assert "+14085550123" in revealed.text
    rows = [(row.action, row.operator, row.object) for row in await log(service) if row.action == "number_revealed"]
    assert rows == [("number_revealed", "Sue", message["message_id"])]


async def test_the_audit_log_names_the_message_also_if_its_id_has_only_digits(service: Service, sign_in: SignIn) -> None:
    support = await sign_in("Sue", Role.SUPPORT, 1)
    for message_id in ("48151623", "123456789012345", "14085550123", "to +4915112345678"):
        await send(service, support, message_id=message_id)
        assert (await support.post(url("/portal/1/messages", name=message_id))).status_code == 200
    shown = [row.object for row in await log(service) if row.action == "number_revealed"]
    assert shown == ["48151623", "123456789012345", "14…23", "to +49…78"], "a phone number of a person stays masked"


async def test_hostile_text_from_senders_visitors_and_trackers_is_escaped_on_portal_pages(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, receiver: Receiver, clock: Clock
) -> None:
    browser, phone = await sign_in(), await new_browser()
    credentials = service.first_credentials
    assert credentials is not None
    key, token = {"X-API-Key": credentials.api_key}, {"X-Api-Token": credentials.tracker_token}
    receiver.default_reply = Reply(400, HOSTILE.encode())
    tracker = {"name": HOSTILE, "url": receiver.url(), "events": ["click", "conversion"], "max_attempts": 1}
    assert (await browser.post("/api/v1/trackers", json=tracker, headers=key)).status_code == 201
    label = HOSTILE.replace('"', "")
    body = f'Offer: #trackurl("https://shop.example/?q={quote(HOSTILE)}","{label}")'
    message = await send(
        service, browser, body=body, campaign=HOSTILE, metadata={HOSTILE: HOSTILE}, external_message_request_id=HOSTILE
    )
    code, message_id = message["links"][0]["code"], message["message_id"]
    report = {
        "message_id": message_id,
        "state": "SENT",
        "status": HOSTILE[:30],
        "reason_description": HOSTILE,
        "reason_code": "<b>",
    }
    assert (await browser.post("/api/v1/sms/status", json=report, headers=key)).status_code == 200
    await click(service, phone, code, f"Mozilla/5.0 {HOSTILE} Chrome/130 Safari/537")
    sale = {"action": HOSTILE[:60], "transaction_id": HOSTILE[:60], "status": HOSTILE[:60], "value": "1", "currency": "EUR"}
    accepted = await browser.post("/api/v1/track", json={**sale, "message_id": message_id}, headers=token)
    assert accepted.status_code == 200, accepted.text
    refused = await browser.post("/api/v1/track", json={**sale, "message_id": HOSTILE[:60]}, headers=token)
    assert refused.status_code in (400, 404, 422), refused.text
    await service.recorder.flush()
    await service.fanout.flush()
    await service.dispatcher.flush()
    clock.forward(minutes=20)
    ever = "period=custom&since=2026-01-01&until=2035-01-01"
    listed = (await browser.get(f"/portal/1/deliveries?{ever}")).text
    (delivery, *_) = re.findall(r"/portal/1/deliveries/\w+", listed)
    for path in (
        *("", "clicks", "messages", "conversions", "conversions/refused", "links", "campaigns", "live", "trackers", "trackers/1"),
        *(f"messages/{message_id}", f"links/{code}", f"deliveries?{ever}", delivery.removeprefix("/portal/1/"), "receiver"),
        *(f"campaigns/{quote(HOSTILE, safe='')}", f"clicks?campaign={quote(HOSTILE)}", f"campaigns?compare={quote(HOSTILE)}"),
    ):
        page = await browser.get(f"/portal/1/{path}")
        assert page.status_code == 200, (path, page.text)
        assert "<script>alert" not in page.text, path
        assert "<img src=x" not in page.text, path
    for path in (f"/portal/search?q={quote(HOSTILE)}", f"/portal/all/?campaign={quote(HOSTILE)}", "/portal/admin/audit"):
        page = await browser.get(path, follow_redirects=True)
        assert "<script>alert" not in page.text, path
    for path in (f"messages/{message_id}", delivery.removeprefix("/portal/1/"), "conversions", "trackers"):
        # the hostile text was stored, and the page shows it
        assert "&lt;script&gt;alert" in (await browser.get(f"/portal/1/{path}")).text, path


async def test_amounts_without_decimal_places_are_aligned_with_the_other_amounts_of_a_column(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in()
    credentials = service.first_credentials
    assert credentials is not None
    for campaign in ("Tokyo", "Berlin"):
        message = await send(service, browser, campaign=campaign)
        for currency, value in (("JPY", "25"), ("EUR", "37.5")) if campaign == "Berlin" else (("JPY", "900"),):
            report = {"message_id": message["message_id"], "value": value, "currency": currency, "transaction_id": currency}
            headers = {"X-Api-Token": credentials.tracker_token}
            assert (await browser.get("/api/v1/track", params=report, headers=headers)).status_code == 200
    clock.forward(minutes=20)
    yen = r'(?:25|900)(?:</a>)?<span class="pad" data-pad=".00"></span> <span class="currency">JPY</span>'
    euro = r'37\.50(?:</a>)? <span class="currency">EUR</span>'
    for path in ("conversions", "campaigns?compare=Tokyo&compare=Berlin&basis=event"):
        page = (await browser.get(f"/portal/1/{path}")).text
        assert len(re.findall(yen, page)) == (2 if path == "conversions" else 4), path
        assert re.search(euro, page), path
    only_yen = (await browser.get("/portal/1/conversions?campaign=Tokyo")).text
    assert '900 <span class="currency">JPY</span>' in only_yen


async def test_the_list_of_conversions_shows_the_status_as_the_tracker_reported_it(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser, credentials = await sign_in(), service.first_credentials
    assert credentials is not None
    message = await send(service, browser)
    for status in ("sale_v2", "approved"):
        report = {"message_id": message["message_id"], "action": status, "status": status}
        headers = {"X-Api-Token": credentials.tracker_token}
        assert (await browser.post("/api/v1/track", json=report, headers=headers)).status_code == 200
    clock.forward(minutes=1)
    page = (await browser.get("/portal/1/conversions")).text
    for status in ("sale_v2", "approved"):
        assert f'<span class="as-written">{status}</span>' in page, "the style sheet does not change its first letter"


async def test_the_portal_shows_a_link_as_live_that_redirects_after_the_clock_moved_ahead(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    code = (await send(service, await new_browser(), expires_in=60))["links"][0]["code"]
    machine = Machine(clock)
    service.clock_guard._uptime = machine.uptime
    service.clock_guard.check()
    clock.forward(hours=2)
    browser = await sign_in()
    for path, is_listed in (("links?state=live", True), ("links?state=expired", False)):
        assert (code in (await browser.get(f"/portal/1/{path}")).text) == is_listed
    page = (await browser.get(f"/portal/1/links/{code}")).text
    assert ("Live" in page, "Expired" in page) == (True, False)


async def test_a_preview_link_of_the_portal_opens_the_destination_for_ten_minutes_and_records_no_click(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    browser, phone = await sign_in(), await new_browser()
    message = await send(service, browser)
    code = message["links"][0]["code"]
    page = await browser.get(f"/portal/1/links/{code}")
    (found,) = re.findall(r'href="(/portal/open/[^"]+)"', page.text)
    opened = await phone.get(found)
    assert (opened.status_code, opened.headers["location"]) == (302, "https://shop.example/a?b=1")
    assert "Nobody has opened this link" in (await browser.get(f"/portal/1/links/{code}")).text
    assert (await phone.get(found[:-2] + "AA")).status_code == 404
    other = await send(service, browser)
    forged = found.replace(code, other["links"][0]["code"])
    assert (await phone.get(forged)).status_code == 404
    expired = re.sub(r"\.[0-9a-f]+-", ".1-", found)
    assert (await phone.get(expired)).status_code == 404
    credentials = service.first_credentials
    assert credentials is not None
    off = await browser.patch(f"/api/v1/links/{code}", json={"enabled": False}, headers={"X-API-Key": credentials.api_key})
    assert off.status_code == 200
    assert (await phone.get(found)).status_code == 404, "a disabled link leads nowhere"


@on_one_service
@pytest.mark.parametrize("path", ["messages/x", "links/abcde", "campaigns/x"])
async def test_the_portal_page_of_an_unknown_object_returns_404(sign_in: SignIn, path: str) -> None:
    browser = await sign_in()
    response = await browser.get(f"/portal/1/{path}")
    assert response.status_code == 404
    assert f'<a class="button main" href="/portal/1/{path.partition("/")[0]}">' in response.text, "it leads to the list"


_SEGMENTS = st.sampled_from([".", "..", "...", "%2e%2e", "%2F", "a", " ", *"?#\\é+&;%\n", ".csv", "@x"])
_NAMES = st.lists(st.one_of(_SEGMENTS, st.just("/")), min_size=1, max_size=6).map("".join)


@given(st.one_of(_NAMES, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)).filter(bool))
def test_a_portal_url_contains_each_message_id_and_campaign_so_that_browsers_and_proxies_do_not_change_it(name: str) -> None:
    made = url("/portal/1/campaigns", {"period": "7d"}, name=name)
    path, _, query = made.partition("?")
    assert made.isascii()
    assert "//" not in path
    assert {".", ".."}.isdisjoint(unquote(path).split("/"))
    resolved = httpx.URL("https://go.example" + made)
    assert (resolved.host, resolved.raw_path.decode()) == ("go.example", made), "it leads to the portal, and stays unchanged"
    match, child = Route(PAGES[-1].path, lambda: None).matches({"type": "http", "method": "GET", "path": unquote(path)})
    assert match is Match.FULL
    assert (child["path_params"]["name"] or dict(parse_qsl(query))["name"]) == name


NAMES = (".", "..", "a/../b", "/", "//evil.example/x", "a/b", "a/", "50% off?", "#1", "a\\b", " x ", "%2e%2e", "x.csv")


async def test_the_page_of_a_message_or_campaign_with_any_name_opens_from_its_list_the_search_and_the_sign_in(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock, subtests: pytest.Subtests
) -> None:
    browser = await sign_in()
    listed_before: dict[str, set[str]] = {"campaigns": set(), "messages": set()}
    for name in NAMES:
        with subtests.test(name):
            await send(service, browser, campaign=name, message_id=name)
            clock.forward(minutes=20)
            for page, title in (("campaigns", "Campaign "), ("messages", "Message to ")):
                listed = (await browser.get(f"/portal/1/{page}?period=7d")).text
                links = {html.unescape(one) for one in re.findall(rf'href="(/portal/1/{page}/[^"]*)"', listed)}
                new, listed_before[page] = links - listed_before[page], links
                (target,) = new
                assert f"<title>{title}" in (await browser.get(target)).text, target
                found = (await browser.get("/portal/search", params={"q": name})).text
                shown = {html.unescape(one).partition("?")[0] for one in re.findall(rf'href="(/portal/1/{page}/[^"]*)"', found)}
                assert shown == {target.partition("?")[0]}
                stranger = await new_browser()
                asked = await stranger.get(target)
                signed_in = await stranger.post(asked.headers["location"], data={"name": "Ada", "password": PASSWORD})
                assert signed_in.headers["location"] == target
            message = url("/portal/1/messages", name=name)
            assert "+14085550123" in (await browser.post(message)).text
            asked = await (await new_browser()).post(message)
            assert parse_qs(urlsplit(asked.headers["location"]).query)["next"] == [message]


async def test_a_portal_filter_with_an_unknown_choice_is_rejected(sign_in: SignIn) -> None:
    browser = await sign_in()
    for path in ("clicks?metric=x", "messages?state=x", "conversions?disposition=x", "links?state=x", "messages?to=abc"):
        assert (await browser.get(f"/portal/1/{path}")).status_code == 400, path
    assert (await browser.get("/portal/1/clicks?cursor=x")).status_code == 400


async def test_the_portal_search_finds_messages_and_links_by_id_phone_number_code_and_url(
    service: Service, sign_in: SignIn
) -> None:
    browser = await sign_in()
    message = await send(service, browser, campaign="Spring sale")
    link = message["links"][0]
    target = f"/portal/1/messages/{message['message_id']}"
    for text, expected in (
        (message["message_id"], target),
        ("+1 (408) 555-0123", "/portal/1/messages?to=%2B14085550123&period=365d"),
        *((to, "/portal/1/messages?to=%2B14085550123&period=365d") for to in ("14085550123", "0014085550123", "1.408.555/0123")),
        (link["code"], f"/portal/1/links/{link['code']}"),
        (link["short_url"], f"/portal/1/links/{link['code']}"),
        (link["short_url"].split("://")[1] + ".", f"/portal/1/links/{link['code']}"),
        ("Spring sale", "/portal/1/campaigns/Spring%20sale?period=365d"),
    ):
        response = await browser.get("/portal/search", params={"q": text})
        assert (response.status_code, response.headers.get("location")) == (303, expected), text
    assert "Nothing has this name" in (await browser.get("/portal/search", params={"q": "nothing"})).text


async def test_the_portal_list_of_messages_accepts_phone_numbers_in_different_notations(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in()
    message = await send(service, browser)
    clock.forward(minutes=20)
    for to in ("+14085550123", "14085550123", "0014085550123", "\u202a+1 (408) 555-0123\u202c", "1.408.555.0123", "1 408-555-0123"):
        page = await browser.get("/portal/1/messages", params={"to": to})
        assert message["message_id"] in page.text, to
    assert (await browser.get("/portal/1/messages", params={"to": "+1408555XXXX"})).status_code == 400


async def test_the_portal_search_finds_nothing_in_applications_without_a_role_of_the_operator(
    service: Service, sign_in: SignIn
) -> None:
    admin = await sign_in()
    message = await send(service, admin)
    credentials = service.first_credentials
    assert credentials is not None
    other = await service.database.write(create_application, "other", service.clock())
    await service.directory.refresh()
    outsider = await sign_in("Otto", Role.MANAGER, other.application_id)
    for text in (message["message_id"], message["links"][0]["code"], "+14085550123"):
        response = await outsider.get("/portal/search", params={"q": text})
        assert "Nothing has this name" in response.text, text


async def test_a_viewer_cannot_use_the_search_or_a_filter_to_confirm_a_guessed_phone_number(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    message = await send(service, await sign_in())
    clock.forward(minutes=20)
    viewer, support = await sign_in("Vera", Role.VIEWER, 1), await sign_in("Sue", Role.SUPPORT, 1)
    for to in ("+14085550123", "+14085550124"):
        found = await viewer.get("/portal/search", params={"q": to})
        assert (found.status_code, "Nothing has this name" in found.text) == (200, True)
        for path in ("/portal/1/messages", "/portal/1/messages.csv"):
            assert (await viewer.get(path, params={"to": to})).status_code == 403
    assert 'name="to"' not in (await viewer.get("/portal/1/messages")).text
    assert (await support.get("/portal/search", params={"q": "+14085550123"})).status_code == 303
    assert message["message_id"] in (await support.get("/portal/1/messages", params={"to": "+14085550123"})).text


def test_the_portal_has_an_explanation_for_every_verdict_rule() -> None:
    assert {name for _, name in RULES} <= set(REASONS)
    assert list(RULE_NAMES) == list(REASONS)
    assert explain("browser", "clicks") == "Counted as a click: the request looks like that of a browser that a person uses."
    assert explain("method", "ignored_hits").startswith("Not counted as a click: ")


@on_one_service
@pytest.mark.parametrize(
    ("path", "form", "field", "reason"),
    [
        ("1/keys", {"action": "rotate", "overlap": "2"}, "overlap", "must be one of 0, 1, 24, 168"),
        ("1/keys", {"action": "create", "name": "crm"}, "permissions", ""),
        ("1/trackers/new", {"action": "save", "url": "https://x.example/", "method": "PUT"}, "method", "must be &#39;POST&#39; or"),
        ("1/trackers/new", {"action": "save", "url": "https://x.example/", "format": "x"}, "format", ""),
        ("1/trackers/new", {"action": "save", "url": "https://x.example/"}, "events", ""),
        ("1/privacy", {"kind": "x", "subject": "+14085550123"}, "kind", ""),
        ("1/settings", {"action": "try", "days": "9"}, "days", "must be one of 1, 7"),
        ("1/settings", {"action": "save", "ip_privacy": "x"}, "ip_privacy", ""),
        ("me/preferences", {"theme": "pink"}, "theme", "must be one of system, light, dark"),
        (
            "admin/operators",
            {"name": "Eve", "role": "viewer", "application": "x"},
            "application",
            "must be the number of an application",
        ),
        ("admin/operators", {"name": "Eve", "role": "owner", "application": "0"}, "role", "must be one of viewer, support"),
    ],
)
async def test_a_form_with_a_choice_that_does_not_exist_shows_the_reason(
    sign_in: SignIn, path: str, form: dict[str, str], field: str, reason: str
) -> None:
    browser = await sign_in("Ada", Role.ADMIN, 0)
    response = await browser.post(f"/portal/{path}", data=form)
    assert response.status_code == 422
    assert re.search(f'<p class="wrong" id="w-{field}">(<svg.*?</svg>)?<span[^>]*>{re.escape(reason)}', response.text)
    # Screen readers read the reason when the field gets the focus. A group of checkboxes cannot be marked as invalid, so only its
    # description contains the reason.
    described = re.findall(f'<(select|fieldset)[^>]* aria-describedby="w-{field}"', response.text)
    assert len(described) == 1
    if described == ["select"]:
        assert re.search(f'<select [^>]*name="{field}"[^>]* aria-invalid="true"', response.text)


async def test_every_column_of_a_portal_table_has_a_heading(service: Service, sign_in: SignIn, clock: Clock) -> None:
    browser = await sign_in()
    await send(service, browser, campaign="Spring")
    clock.forward(minutes=20)
    for path in ("1/keys", "1/campaigns", "me", "admin/applications", "admin/operators/1"):
        page = (await browser.get(f"/portal/{path}")).text
        headings = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', page)
        assert headings, path
        assert all(re.sub("<[^>]*>", "", heading).strip() for heading in headings), path


async def test_each_qr_code_of_the_portal_has_a_description_for_screen_readers(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in()
    link = (await send(service, browser))["links"][0]
    form = {"body": '#track("https://shop.example/")', "to": "+14085550123", "action": "create"}
    pages = (
        (await browser.get(f"/portal/1/links/{link['code']}?qr=real"), 2),
        (await browser.get("/portal/me/second-factor"), 1),
        (await browser.post("/portal/1/try", data=form), 1),
    )
    for page, number in pages:
        codes = re.findall('<div class="qr-frame">(<svg[^>]*>)', page.text)
        assert len(codes) == number
        assert all('role="img" aria-label="QR code ' in code for code in codes)
    assert f'aria-label="QR code of {link["short_url"]}"' in pages[0][0].text


async def test_the_system_page_says_that_nothing_checks_backups(sign_in: SignIn) -> None:
    page = (await (await sign_in()).get("/portal/admin/system")).text
    assert "Nothing here checks your backups" in page
    assert "checks more: backups" not in page
