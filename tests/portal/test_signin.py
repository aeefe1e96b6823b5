"""Tests of signing in and out, sessions, delays after failures, and passwords. Numbers of requirements of ASVS 5.0 are in the
comments."""

from __future__ import annotations

import asyncio
import threading

import pyotp
import pytest
from sqlalchemy import Connection, select
from starlette.responses import Response

from shortener.container import Service
from shortener.errors import ApiError
from shortener.portal import passwords, second_factor
from shortener.portal.locations import safe_next
from shortener.portal.operators import Role, find_operator
from shortener.portal.parts import cookie_name
from shortener.portal.passwords import Passwords, check_new_password
from shortener.portal.router import Portal
from shortener.portal.sign_in_delays import NETWORK_FAILURES
from shortener.secret import Secret
from shortener.storage import schema
from tests.conftest import Clock, MakeService, client_of
from tests.portal.conftest import PASSWORD, NewBrowser, SignIn, invite, log, session_cookie


async def test_a_correct_password_begins_a_session_and_signing_out_ends_it(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    await sign_in("Ada")
    browser = await new_browser()
    response = await browser.post("/portal/signin?next=/portal/me", data={"name": "ada ", "password": PASSWORD})
    assert (response.status_code, response.headers["location"]) == (303, "/portal/me")
    cookie = response.headers["set-cookie"]
    assert {"httponly", "samesite=lax", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}  # ASVS 3.3
    assert (await browser.get("/portal/me")).status_code == 200
    stolen = await new_browser(Cookie=cookie.partition(";")[0])
    assert (await stolen.get("/portal/me")).status_code == 200
    assert (await browser.post("/portal/signout")).status_code == 303
    assert (await stolen.get("/portal/me")).status_code == 303  # ASVS 7.4.1: the session has ended in the database
    assert [row.action for row in await log(service)] == ["invitation_accepted", "signed_in", "signed_out"]


async def test_the_session_cookie_of_an_https_installation_is_secure_and_its_name_has_the_prefix_host(
    make_service: object, clock: Clock
) -> None:
    service: Service = await make_service(base_url="https://go.example")  # type: ignore[operator]
    portal = Portal(service)
    assert portal.is_https
    assert portal.cookie_name.startswith("__Host-session")
    cookie = portal.set_cookie(Response(), "token").headers["set-cookie"]
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=lax"} <= {part.strip() for part in cookie.split(";")}  # ASVS 3.3.1 to 3.3.4
    assert "domain" not in cookie.lower()


def test_two_installations_on_one_host_use_session_cookies_with_different_names() -> None:
    secrets = [Secret(text + "0123456789abcdefghijklmnop") for text in ("first secret", "another one!", "first secret")]
    names = [cookie_name(secret, is_https=False) for secret in secrets]
    assert names[0] == names[2] != names[1]


async def test_tokens_and_recovery_codes_are_stored_as_hashes(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Ada")
    operator = await service.database.read(find_operator, "Ada")
    secret = second_factor.new_totp_secret()
    codes = await service.database.write(second_factor.enable, operator.id, secret, 0, service.secret)
    invitation = await invite(service, "Bo", Role.VIEWER, 1)

    def stored(connection: Connection) -> str:
        tables = (schema.operators, schema.operator_sessions, schema.operator_recovery_codes, schema.operator_invitations)
        return " ".join(str(row) for table in tables for row in connection.execute(select(table)))

    text = (await service.database.read(stored)).lower()
    without_hyphens = [code.replace("-", "") for code in codes]
    for plain in (session_cookie(browser), secret, invitation, PASSWORD, *codes, *without_hyphens):
        assert plain.lower() not in text  # ASVS 7.2.3 and 6.5.2


async def test_the_sign_in_page_warns_of_a_connection_without_encryption_except_on_the_same_machine(
    make_service: MakeService,
) -> None:
    service = await make_service(base_url="http://lan.example")
    async with client_of(service) as client:
        for host, is_marked in (("lan.example", True), ("127.0.0.1", False), ("localhost", False)):
            page = await client.get("/portal/signin", headers={"Host": host})
            assert (page.status_code, "This connection is not encrypted" in page.text) == (200, is_marked), host  # ASVS 3.1.1


async def test_a_sign_in_with_a_wrong_password_and_with_an_unknown_name_get_the_same_response(
    sign_in: SignIn, new_browser: NewBrowser
) -> None:
    await sign_in("Ada")
    browser = await new_browser()
    texts = []
    for name in ("Ada", "Eve"):
        response = await browser.post("/portal/signin", data={"name": name, "password": "not the password"})
        assert response.status_code == 422
        texts.append(response.text.replace(name, "NAME"))
    assert texts[0] == texts[1]  # ASVS 6.3.8


async def test_failed_sign_ins_delay_the_next_attempt_and_never_lock_an_account(
    sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    signed_in = await sign_in("Ada")
    browser = await new_browser()
    for _ in range(5):
        assert (await browser.post("/portal/signin", data={"name": "Ada", "password": "wrong"})).status_code == 422
    rejected = await browser.post("/portal/signin", data={"name": "Ada", "password": PASSWORD})
    assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "1")
    assert (await signed_in.get("/portal/me")).status_code == 200  # an existing session continues
    clock.forward(seconds=1)
    assert (await browser.post("/portal/signin", data={"name": "Ada", "password": PASSWORD})).status_code == 303


async def test_a_network_with_many_failed_sign_ins_must_wait_before_the_next_attempt(new_browser: NewBrowser, clock: Clock) -> None:
    browser = await new_browser()
    statuses = [
        (await browser.post("/portal/signin", data={"name": f"name {number}", "password": "wrong"})).status_code
        for number in range(21)
    ]
    assert statuses == [422] * 20 + [429]
    clock.forward(minutes=10)
    assert (await browser.post("/portal/signin", data={"name": "Eve", "password": "wrong"})).status_code == 422


async def test_a_portal_session_ends_after_several_hours_without_requests_and_after_a_maximum_number_of_days(
    sign_in: SignIn, clock: Clock
) -> None:
    idle = await sign_in("Ida")
    clock.forward(hours=8, seconds=1)
    assert (await idle.get("/portal/me")).status_code == 303
    busy = await sign_in("Ben")
    for _ in range(24):
        assert (await busy.get("/portal/me")).status_code == 200
        clock.forward(hours=7)
    assert (await busy.get("/portal/me")).status_code == 303


async def test_a_portal_session_from_before_the_clock_was_set_back_ends_in_time_and_has_no_recent_password(
    sign_in: SignIn, clock: Clock
) -> None:
    clock.forward(days=1)
    browser = await sign_in("Ida")
    clock.forward(days=-1)
    assert (await browser.get("/portal/me")).status_code == 200
    assert (await browser.post("/portal/me/second-factor/off")).status_code == 403  # the page that asks for the password
    clock.forward(hours=8, seconds=1)
    assert (await browser.get("/portal/me")).status_code == 303


async def test_a_sign_in_requires_the_second_factor_and_each_code_works_once(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    await sign_in("Ada")
    operator = await service.database.read(find_operator, "Ada")
    secret = second_factor.new_totp_secret()
    recovery = await service.database.write(second_factor.enable, operator.id, secret, 0, service.secret)
    code = pyotp.TOTP(secret).at(clock.now)

    async def enter(value: str) -> int:
        browser = await new_browser()
        first = await browser.post("/portal/signin", data={"name": "Ada", "password": PASSWORD})
        assert first.headers["location"] == "/portal/signin/code"
        assert (await browser.get("/portal/me")).headers["location"].startswith("/portal/signin/code")
        before = session_cookie(browser)
        status = (await browser.post("/portal/signin/code", data={"code": value})).status_code
        if status == 303:
            assert session_cookie(browser) != before  # ASVS 7.2.4: the session has a new token
            assert (await browser.get("/portal/me")).status_code == 200
        return status

    assert await enter("000000") == 422
    assert await enter(code) == 303
    assert await enter(code) == 422  # ASVS 6.5.1
    assert await enter(recovery[0]) == 303
    assert await enter(recovery[0]) == 422
    stored = await service.database.read(second_factor.count_recovery_codes, operator.id)
    assert (len(recovery), stored) == (10, 9)


async def test_sign_ins_with_a_second_factor_do_not_delay_later_sign_ins_from_the_same_network(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, clock: Clock
) -> None:
    secrets = {}
    for name in ("Ada", "Ben", "Cleo"):
        await sign_in(name)
        operator = await service.database.read(find_operator, name)
        secrets[name] = second_factor.new_totp_secret()
        await service.database.write(second_factor.enable, operator.id, secrets[name], 0, service.secret)
    for _ in range(NETWORK_FAILURES // len(secrets) + 1):
        clock.forward(seconds=30)  # each sign-in needs a new code, because a code can be used only once
        for name, secret in secrets.items():
            browser = await new_browser()
            assert (await browser.post("/portal/signin", data={"name": name, "password": PASSWORD})).status_code == 303
            code = pyotp.TOTP(secret).at(clock.now)
            assert (await browser.post("/portal/signin/code", data={"code": code})).status_code == 303


@pytest.mark.parametrize("password", ["short", "password1234", "a" * 20, "x" * 129, "123456789012"])
def test_short_common_and_repeated_passwords_are_rejected(password: str) -> None:
    with pytest.raises(ApiError):
        check_new_password(password, "Ada")


@pytest.mark.parametrize("password", [PASSWORD, "пароль из слов и чисел", "x1" + "abcdefgh" * 15 + "y" * 6])
def test_long_passwords_of_any_characters_are_accepted(password: str) -> None:
    check_new_password(password, "Ada")


async def test_a_redirect_after_signing_in_leads_only_to_the_portal(sign_in: SignIn, new_browser: NewBrowser) -> None:
    await sign_in("Ada")
    # Browsers open /portal/../CODE as /CODE, which is a short link and can lead to any site.
    of_code = ["/portal/../CODE", "/portal/%2e%2E/CODE", "/portal/1/.%2e/../CODE?a=b", "/portal/..", "/portal/.//evil.example"]
    for target in ("https://evil.example/", "//evil.example/", "/portal\\evil", "/other", "/portal/\r\nx: y", *of_code):
        browser = await new_browser()
        form = {"name": "Ada", "password": PASSWORD}
        response = await browser.post("/portal/signin", params={"next": target}, data=form)
        assert response.headers["location"] == "/portal/", target
    assert safe_next("/portal/1/campaigns/a..b?name=../x#..") == "/portal/1/campaigns/a..b?name=../x#.."


async def test_the_account_page_ends_other_sessions_and_stores_preferences(sign_in: SignIn, new_browser: NewBrowser) -> None:
    first = await sign_in("Ada")
    second = await new_browser()
    await second.post("/portal/signin", data={"name": "Ada", "password": PASSWORD})
    saved = await first.post("/portal/me/preferences", data={"theme": "dark", "time_zone": "Asia/Tokyo"})
    assert saved.status_code == 303
    page = await second.get("/portal/me")
    assert 'data-theme="dark"' in page.text
    assert "Asia/Tokyo" in page.text
    assert (await first.post("/portal/me/preferences", data={"theme": "pink"})).status_code == 422
    assert (await first.post("/portal/me/sessions", data={"session": "others", "confirmed": "yes"})).status_code == 303
    assert (await second.get("/portal/me")).status_code == 303
    assert (await first.get("/portal/me")).status_code == 200


async def test_concurrent_sign_in_attempts_cannot_avoid_the_delay_after_failures(sign_in: SignIn, new_browser: NewBrowser) -> None:
    await sign_in("Ada")
    browser = await new_browser()
    form = {"name": "Ada", "password": "wrong"}
    responses = await asyncio.gather(*(browser.post("/portal/signin", data=form) for _ in range(12)))
    assert sorted(response.status_code for response in responses) == [422] * 5 + [429] * 7


async def test_successful_sign_ins_do_not_delay_later_sign_ins_from_the_same_network(
    sign_in: SignIn, new_browser: NewBrowser
) -> None:
    await sign_in("Ada")
    for _ in range(25):
        browser = await new_browser()
        assert (await browser.post("/portal/signin", data={"name": "Ada", "password": PASSWORD})).status_code == 303


async def test_all_passwords_are_hashed_in_one_thread_because_each_thread_would_keep_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = set()

    class Hasher:
        def hash(self, password: str) -> str:
            threads.add(threading.get_ident())
            return password

    monkeypatch.setattr(passwords, "_hasher", Hasher)
    hasher = Passwords()
    assert await asyncio.gather(*(hasher.hash(str(number)) for number in range(20))) == [str(number) for number in range(20)]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
