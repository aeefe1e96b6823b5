"""Tests of forms that are sent after the session has expired: the portal keeps the entries until the same operator signs in
again."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from pathlib import Path

import httpx
import pyotp
from sqlalchemy import Connection, delete, select

from shortener.container import Service
from shortener.portal import second_factor
from shortener.portal.kept_entries import LIFETIME, MAX_SEALED_CHARACTERS, PASSWORD_FIELDS, SECRET_FIELDS
from shortener.portal.operators import Role, find_operator
from shortener.portal.pages import all_pages
from shortener.retention.purge import SESSION_RETENTION, purge
from shortener.storage import schema
from tests.conftest import Clock
from tests.portal.conftest import PASSWORD, NewBrowser, SignIn, log

NEW = "/portal/1/trackers/new"
TYPED: dict[str, str | list[str]] = {
    "action": "save",
    "url": "https://example.com/in?a={message_id}",
    "name": 'typed "name"',
    "events": ["conversion", "click"],
    "method": "GET",
    "format": "json",
    "max_attempts": "3",
    "form_id": "one",
}
EXPIRED = timedelta(hours=8, seconds=1)
TEMPLATES = Path(__file__).parents[2] / "shortener" / "portal" / "templates"


def kept_field(page: httpx.Response) -> str:
    """Return the hidden field of the sign-in page that contains the encrypted entries."""
    assert page.status_code in (403, 422), page.text
    (kept,) = re.findall(r'<input type="hidden" name="kept" value="([^"]+)">', page.text)
    return html.unescape(kept)


def sign_in_path(page: httpx.Response) -> str:
    """Return the URL to which the sign-in page sends its form."""
    (action,) = re.findall(r'<form class="form" method="post" action="(/portal/signin[^"]*)"', page.text)
    return html.unescape(action)


async def sign_in_again(browser: httpx.AsyncClient, page: httpx.Response, name: str = "Mia") -> httpx.Response:
    """Sign in with the form of the sign-in page, and return the response, a redirect."""
    form = {"name": name, "password": PASSWORD, "kept": kept_field(page)}
    response = await browser.post(sign_in_path(page), data=form)
    assert response.status_code == 303, response.text
    return response


async def text_of(browser: httpx.AsyncClient, path: str) -> str:
    """Request a page that the operator may open, and return its text."""
    page = await browser.get(path)
    assert page.status_code == 200
    return page.text


async def stored_texts(service: Service) -> str:
    def read(connection: Connection) -> str:
        return " ".join(str(row) for row in connection.execute(select(schema.stored_responses)))

    return await service.database.read(read)


async def test_the_form_of_an_expired_session_appears_with_its_entries_after_the_operator_has_signed_in_again(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    clock.now += EXPIRED
    page = await browser.post(NEW, data=TYPED | {"password": "a secret"})
    assert page.headers["cache-control"] == "no-store"
    assert "Your session has expired." in page.text
    assert 'value="typed' not in page.text, "neither the entries nor the name of the operator are readable"
    assert "Mia" not in page.text
    assert "typed" not in await stored_texts(service)

    wrong = await browser.post(sign_in_path(page), data={"name": "Mia", "password": "wrong", "kept": kept_field(page)})
    assert kept_field(wrong) == kept_field(page), "a wrong password keeps the entries"
    redirect = await sign_in_again(browser, wrong)
    assert redirect.headers["location"].startswith(f"{NEW}?kept=")
    assert "typed" not in await stored_texts(service), "the stored entries are encrypted"

    for _ in range(2):
        shown = await browser.get(redirect.headers["location"])
        assert shown.status_code == 200
        assert "You are signed in again. The form was not sent" in shown.text
        assert 'value="typed &quot;name&quot;"' in shown.text
        assert 'value="https://example.com/in?a={message_id}"' in shown.text
        assert re.findall(r'name="events" value="(\w+)" checked', shown.text) == ["click", "conversion"]
        assert '<option value="GET" selected>' in shown.text
        assert '<input type="checkbox" name="enabled">' in shown.text, "a box that was not checked stays so"
        assert 'name="form_id" value="one"' not in shown.text
        assert "a secret" not in shown.text
    assert await service.trackers.all(1) == [], "the form is not sent without the operator"
    assert "tracker_created" not in [row.action for row in await log(service)]


async def test_the_entries_are_kept_after_the_longest_time_of_a_session_and_after_the_purge(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    for _ in range(24):
        clock.forward(hours=7)
        await browser.get("/portal/me")
    await sign_in("Other", Role.VIEWER, 1)
    await purge(service.database, service.settings, clock())
    redirect = await sign_in_again(browser, await browser.post(NEW, data=TYPED))
    assert "typed &quot;name&quot;" in (await browser.get(redirect.headers["location"])).text
    clock.now += EXPIRED + timedelta(days=7) + SESSION_RETENTION
    await purge(service.database, service.settings, clock())
    assert (await browser.post(NEW, data=TYPED)).headers["location"].startswith("/portal/signin?next=")


async def test_another_operator_who_signs_in_does_not_get_the_entries(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    await sign_in("Eve", Role.MANAGER, 1)
    clock.now += EXPIRED
    page = await browser.post(NEW, data=TYPED)
    redirect = await sign_in_again(browser, page, "Eve")
    assert redirect.headers["location"] == NEW
    assert "typed" not in await text_of(browser, NEW)

    mine = await new_browser()
    location = (await sign_in_again(mine, page)).headers["location"]
    assert "typed &quot;" in (await mine.get(location)).text
    for path in (location, location.replace(NEW, "/portal/1/keys")):
        assert "typed" not in await text_of(browser, path), "another operator cannot read the entries with their URL"
    assert "typed" not in await text_of(mine, location.replace(NEW, "/portal/1/keys"))


async def test_kept_entries_expire_and_changed_ones_are_ignored(service: Service, sign_in: SignIn, clock: Clock) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    clock.now += EXPIRED
    page = await browser.post(NEW, data=TYPED)
    for kept in ("x", kept_field(page)[:-9] + "AAAAAAAAA", service.secret.encrypt("[]"), service.secret.encrypt("{}")):
        form = {"name": "Mia", "password": PASSWORD, "kept": kept}
        assert (await browser.post(sign_in_path(page), data=form)).headers["location"] == NEW
    location = (await sign_in_again(browser, page)).headers["location"]
    clock.now += LIFETIME
    assert "typed" not in await text_of(browser, location)
    assert (await sign_in_again(browser, page)).headers["location"] == NEW


async def test_the_entries_survive_the_code_of_the_second_factor(service: Service, sign_in: SignIn, clock: Clock) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    operator = await service.database.read(find_operator, "Mia")
    secret = second_factor.new_totp_secret()
    await service.database.write(second_factor.enable, operator.id, secret, 0, service.secret)
    clock.now += EXPIRED
    redirect = await sign_in_again(browser, await browser.post(NEW, data=TYPED))
    assert redirect.headers["location"].startswith("/portal/signin/code?next=")
    page = await browser.get(redirect.headers["location"])
    assert page.status_code == 200
    assert "typed" not in page.text
    assert "not kept" not in page.text
    lost = await browser.post(NEW, data=TYPED)
    assert "Its entries were not kept" in (await browser.get(lost.headers["location"])).text, (
        "a form that is sent before the code of the second factor is entered is lost"
    )
    (action,) = re.findall(r'action="(/portal/signin/code[^"]*)"', page.text)
    done = await browser.post(html.unescape(action), data={"code": pyotp.TOTP(secret).at(clock.now)})
    assert "typed &quot;name&quot;" in (await browser.get(done.headers["location"])).text


async def test_no_entries_are_kept_without_an_expired_session(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    stranger = await new_browser()
    ended = await sign_in("Mia", Role.MANAGER, 1)
    forged = await new_browser(Cookie=f"{next(iter(ended.cookies))}=forged")
    await service.database.write(lambda connection: connection.execute(delete(schema.operator_sessions)))
    for browser in (stranger, forged, ended):
        response = await browser.post(NEW, data=TYPED)
        location = "/portal/signin?next=%2Fportal%2F1%2Ftrackers%2Fnew&form-lost=1"
        assert (response.status_code, response.headers["location"]) == (303, location)
        page = (await browser.get(location)).text
        assert "the form was not sent and nothing was changed. Its entries were not kept" in page
        assert "typed" not in page
        assert "not kept" not in (await browser.get((await browser.get(NEW)).headers["location"])).text, "no form was sent"
    foreign = await ended.post(NEW, data=TYPED, headers={"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403
    assert 'name="kept"' not in foreign.text


async def test_a_session_that_was_ended_by_signing_out_or_by_an_admin_keeps_no_entries(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    """If htmx sends the form, the operator still sees the page with the entries. The response asks the operator to copy them,
    because they are not kept."""
    admin = await sign_in("Ada")
    for name in ("Mia", "Bo"):
        browser = await sign_in(name, Role.MANAGER, 1)
        stale = await new_browser(Cookie="; ".join(f"{key}={value}" for key, value in browser.cookies.items()))
        if name == "Mia":
            assert (await browser.post("/portal/signout")).status_code == 303
        else:
            operator = await service.database.read(find_operator, name)
            form = {"action": "end_sessions", "confirmed": "yes"}
            assert (await admin.post(f"/portal/admin/operators/{operator.id}", data=form)).status_code == 303
        assert (await stale.post(NEW, data=TYPED)).headers["location"].startswith("/portal/signin?next=")
        part = await stale.post("/portal/1/try", data={"body": "typed"}, headers={"HX-Request": "true"})
        assert part.status_code == 401
        assert "copy them before you sign in again" in part.text
        assert "press one of its buttons" not in part.text


async def test_forms_of_the_account_appear_again_without_their_passwords(sign_in: SignIn, clock: Clock) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    clock.now += EXPIRED
    page = await browser.post("/portal/me/preferences", data={"theme": "dark", "time_zone": "Asia/Tokyo"})
    shown = await browser.get((await sign_in_again(browser, page)).headers["location"])
    assert 'value="Asia/Tokyo"' in shown.text
    assert '<option value="dark" selected>' in shown.text
    clock.now += EXPIRED
    passwords = {"current": PASSWORD, "password": "eight loud mountain clocks", "again": "eight loud mountain clocks"}
    page = await browser.post("/portal/me/password", data=passwords | {"username": "Mia"})
    shown = await browser.get((await sign_in_again(browser, page)).headers["location"])
    assert "mountain" not in shown.text
    assert '<input type="checkbox" name="end_others">' in shown.text
    clock.now += EXPIRED
    assert (await browser.post("/portal/me/password", data=passwords)).status_code == 303, "nothing can be kept"


async def test_a_form_that_is_too_large_to_be_kept_says_so_on_the_sign_in_page(sign_in: SignIn, clock: Clock) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    clock.now += EXPIRED
    page = await browser.post(NEW, data=TYPED | {"name": "x" * MAX_SEALED_CHARACTERS})
    assert page.status_code == 403
    assert "too large to be kept" in page.text
    assert 'name="kept"' not in page.text
    large = await browser.post(NEW, data=TYPED | {"name": "ü" * 20_000, "fields": "x" * 60_000})
    redirect = await sign_in_again(browser, large)
    assert "ü" * 20_000 in (await browser.get(redirect.headers["location"])).text


async def test_a_part_of_a_page_that_is_requested_after_the_session_has_expired_leaves_the_entries_on_the_page(
    sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    clock.now += EXPIRED
    part = await browser.post("/portal/1/try", data={"body": "typed", "to": ""}, headers={"HX-Request": "true"})
    assert part.status_code == 401
    assert "hx-redirect" not in part.headers
    assert "Your entries are still in the form" in part.text
    assert "<html" not in part.text
    form = {"body": 'typed #track("https://a.example/")\r\nsecond line', "to": "+1", "from": "x"}
    page = await browser.post("/portal/1/try", data=form)
    shown = await browser.get((await sign_in_again(browser, page)).headers["location"])
    assert "typed #track(&quot;https://a.example/&quot;)\r\nsecond line</textarea>" in shown.text


def test_each_url_to_which_a_form_is_sent_also_shows_a_page() -> None:
    """After a new sign-in, the browser requests the URL of the form with GET, so a page must exist there."""
    assert {page.path for page in all_pages() if page.post is not None and page.get is None} == {"/portal/signout"}


def test_every_field_for_a_password_or_a_code_is_listed_as_secret() -> None:
    text = "".join(template.read_text() for template in TEMPLATES.glob("*.html"))
    passwords = set(re.findall(r'ui\.field\("(\w+)",[^,]*, "password"', text))
    assert {"password", "again", "current"} <= passwords <= PASSWORD_FIELDS
    assert set(re.findall(r'ui\.field\("(\w+)"[^}]*one-time-code', text)) == {"code"} <= SECRET_FIELDS
    assert 'type="password"' not in text, "the macro `field` writes all of them"
