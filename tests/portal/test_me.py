"""Tests of the account page: password, second factor, recovery codes and preferences. Numbers of requirements of ASVS 5.0 are in
the comments."""

from __future__ import annotations

import asyncio
import html
import re

import httpx
import pyotp

from shortener.container import Service
from shortener.portal import second_factor
from shortener.portal.operators import find_operator
from shortener.portal.passwords import Passwords
from tests.conftest import Clock
from tests.portal.conftest import PASSWORD, NewBrowser, SignIn, log, session_cookie

NEW = "eight loud mountain clocks"
CONFIRMED = {"confirmed": "yes"}
CODE = re.compile(r"<li>(\w{5}-\w{5})</li>")


async def sign_in_again(new_browser: NewBrowser, password: str = PASSWORD) -> httpx.AsyncClient:
    browser = await new_browser()
    await browser.post("/portal/signin", data={"name": "Ada", "password": password})
    return browser


async def test_a_new_password_requires_the_current_password_and_ends_other_sessions(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    browser = await sign_in("Ada")
    other = await sign_in_again(new_browser)
    for fields in (
        {"current": "wrong password here", "password": NEW, "again": NEW},
        {"current": PASSWORD, "password": "short", "again": "short"},
        {"current": PASSWORD, "password": NEW, "again": "different"},
    ):
        response = await browser.post("/portal/me/password", data=fields)
        assert response.status_code == 422
        assert 'aria-invalid="true"' in response.text
    before = session_cookie(browser)
    form = {"current": PASSWORD, "password": NEW, "again": NEW, "end_others": "on"}
    assert (await browser.post("/portal/me/password", data=form)).status_code == 303
    assert session_cookie(browser) != before
    assert (await other.get("/portal/me")).status_code == 303  # ASVS 7.4.3
    assert (await browser.get("/portal/me")).status_code == 200
    assert (await (await sign_in_again(new_browser)).get("/portal/me")).status_code == 303
    assert (await (await sign_in_again(new_browser, NEW)).get("/portal/me")).status_code == 200
    assert "password_changed" in [row.action for row in await log(service)]


async def test_the_second_factor_is_set_up_with_a_code_and_shows_recovery_codes_once(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in("Ada")
    page = await browser.get("/portal/me/second-factor")
    assert "content-encoding" not in page.headers
    assert "<svg" in page.text
    secret = re.search(r'class="code">([A-Z2-7]{32})<', page.text)
    setup = re.search(r'name="setup" value="([^"]+)"', page.text)
    assert secret is not None
    assert setup is not None
    fields = {"setup": html.unescape(setup[1]), "code": "000000"}
    assert (await browser.post("/portal/me/second-factor", data=fields)).status_code == 422
    assert not (await service.database.read(find_operator, "Ada")).has_second_factor
    shown = await browser.post("/portal/me/second-factor", data={**fields, "code": pyotp.TOTP(secret[1]).at(clock.now)})
    codes = re.findall(r"<li>(\w{5}-\w{5})</li>", shown.text)
    assert len(codes) == 10
    assert secret[1] not in (await browser.get("/portal/me")).text
    assert (await service.database.read(find_operator, "Ada")).has_second_factor
    renewed = await browser.post("/portal/me/second-factor/codes", data=CONFIRMED)
    assert not set(codes) & set(re.findall(r"<li>(\w{5}-\w{5})</li>", renewed.text))
    assert (await browser.post("/portal/me/second-factor/off", data=CONFIRMED)).status_code == 303
    assert not (await service.database.read(find_operator, "Ada")).has_second_factor


async def test_a_form_that_shows_recovery_codes_and_is_sent_again_keeps_the_codes_valid(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    browser = await sign_in("Ada")
    page = (await browser.get("/portal/me/second-factor")).text
    fields = {name: html.unescape(re.findall(f'name="{name}" value="([^"]+)"', page)[0]) for name in ("form_id", "setup")}
    secret = re.findall(r'class="code">([A-Z2-7]{32})<', page)[0]
    fields["code"] = pyotp.TOTP(secret).at(clock.now)
    codes = CODE.findall((await browser.post("/portal/me/second-factor", data=fields)).text)
    renewal = {"confirmed": "yes", "form_id": "one"}
    for path, form, shown in (("", fields, codes), ("/codes", renewal, None)):
        if shown is None:
            shown = CODE.findall((await browser.post(f"/portal/me/second-factor{path}", data=form)).text)
        rows = len(await log(service))
        clock.forward(minutes=5)  # after this time, the code in the form is not valid any more
        repeated = await browser.post(f"/portal/me/second-factor{path}", data=form)
        assert repeated.status_code == 422
        assert "This form was sent before" in repeated.text
        assert secret not in repeated.text
        assert CODE.findall(repeated.text) == []
        assert len(await log(service)) == rows
        other = await sign_in_again(new_browser)
        assert (await other.post("/portal/signin/code", data={"code": shown[0]})).status_code == 303, "the shown code is valid"


async def test_the_account_page_asks_before_it_turns_the_second_factor_off_or_replaces_the_recovery_codes(
    service: Service, sign_in: SignIn
) -> None:
    browser = await sign_in("Ada")
    operator = await service.database.read(find_operator, "Ada")
    await service.database.write(second_factor.enable, operator.id, second_factor.new_totp_secret(), 0, service.secret)
    for path, effect in (("codes", "10 of them are not used yet"), ("off", "needs only the password")):
        before = await log(service)
        asked = await browser.post(f"/portal/me/second-factor/{path}")
        assert "Nothing has changed yet." in asked.text
        assert effect in asked.text
        assert await log(service) == before
        assert await service.database.read(second_factor.count_recovery_codes, operator.id) == 10
        assert (await browser.get(f"/portal/me/second-factor/{path}")).status_code == 200, "the URL of the form shows the account"


async def test_the_account_page_names_the_sessions_before_it_ends_them(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    browser = await sign_in("Ada")
    other = await sign_in_again(new_browser)
    asked = await browser.post("/portal/me/sessions", data={"session": "others"})
    assert "End all other sessions?" in asked.text
    assert (await other.get("/portal/me")).status_code == 200
    (row,) = re.findall(r'name="session" value="(\d+)"', (await browser.get("/portal/me")).text)
    assert "End this session?" in (await browser.post("/portal/me/sessions", data={"session": row})).text
    assert (await browser.post("/portal/me/sessions", data={"session": row, "confirmed": "yes"})).status_code == 303
    assert (await other.get("/portal/me")).status_code == 303
    assert (await log(service))[-1].action == "sessions_ended"
    gone = await browser.post("/portal/me/sessions", data={"session": row})
    assert gone.headers["location"] == "/portal/me#sessions", "there is nothing to ask"


async def test_sensitive_portal_actions_require_a_recently_entered_password(sign_in: SignIn, clock: Clock) -> None:
    browser = await sign_in("Ada")
    clock.forward(minutes=11)
    refused = await browser.post("/portal/me/second-factor/off", headers={"Referer": "http://127.0.0.1:8000/portal/me"})
    assert refused.status_code == 403  # ASVS 7.5.1 and 7.5.3
    assert '<a href="/portal/me">Back without saving' in refused.text
    assert (await browser.get("/portal/me/second-factor")).headers["location"].startswith("/portal/confirm")
    wrong = await browser.post("/portal/confirm?next=/portal/me", data={"password": "wrong"})
    assert wrong.status_code == 422
    right = await browser.post("/portal/confirm?next=/portal/me/second-factor", data={"password": PASSWORD})
    assert right.headers["location"] == "/portal/me/second-factor"
    assert (await browser.get("/portal/me/second-factor")).status_code == 200


async def test_passwords_that_are_checked_at_the_same_time_all_match_a_hash_with_the_parameters_of_owasp() -> None:
    passwords = Passwords()
    hashed = await passwords.hash(PASSWORD)
    assert await asyncio.gather(*(passwords.verify(hashed, PASSWORD) for _ in range(8))) == [True] * 8
    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


async def test_a_password_longer_than_the_limit_is_rejected_and_not_truncated() -> None:
    passwords = Passwords()
    hashed = await passwords.hash("x" * 128)
    assert await passwords.verify(hashed, "x" * 128)
    assert not await passwords.verify(hashed, "x" * 129)  # ASVS 6.2.8
    assert not await passwords.verify(None, "x" * 128)
    assert not await passwords.verify("not a hash", "x")
