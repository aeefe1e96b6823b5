"""Tests of the welcome page, on which an invitation is accepted."""

from __future__ import annotations

from shortener.container import Service
from shortener.portal import operators
from tests.conftest import NOON
from tests.portal.conftest import PASSWORD, NewBrowser, accept, invite


async def test_opening_an_invitation_link_changes_nothing_and_its_form_accepts_the_invitation(
    service: Service, new_browser: NewBrowser
) -> None:
    token = await invite(service, "Ada")
    browser = await new_browser()
    for _ in range(2):
        assert (await browser.get("/portal/welcome")).status_code == 200
        found = await browser.post("/portal/welcome", data={"token": f"http://127.0.0.1:8000/portal/welcome#{token}"})
        assert found.status_code == 200
        assert "Ada" in found.text
        assert "content-encoding" not in found.headers  # the page must not be compressed, because it contains a token
    response = await accept(browser, token)
    assert response.headers["location"].startswith("/portal/me")
    assert (await browser.get("/portal/me")).status_code == 200
    other = await new_browser()
    again = await other.post("/portal/welcome", data={"token": token, "password": PASSWORD, "again": PASSWORD})
    assert again.status_code == 422
    assert "not valid" in again.text


async def test_an_invalid_welcome_form_does_not_use_up_the_invitation(service: Service, new_browser: NewBrowser) -> None:
    token = await invite(service, "Ada")
    browser = await new_browser()
    for fields in ({"password": "short"}, {"password": PASSWORD, "again": "something else"}):
        response = await browser.post("/portal/welcome", data={"token": token, **fields})
        assert response.status_code == 422
        assert 'aria-invalid="true"' in response.text
    await accept(browser, token)


async def test_after_many_unknown_tokens_the_response_says_when_the_next_attempt_is_possible(new_browser: NewBrowser) -> None:
    browser = await new_browser()
    for _ in range(5):
        assert (await browser.post("/portal/welcome", data={"token": "unknown"})).status_code == 422
    rejected = await browser.post("/portal/welcome", data={"token": "unknown"})
    assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "1")


async def test_the_first_admin_chooses_a_name_and_the_file_with_the_invitation_link_is_deleted(
    service: Service, new_browser: NewBrowser
) -> None:
    created = await service.database.write(operators.invite_first, NOON)
    assert created is not None
    file = service.settings.data_dir / "portal-invitation"
    file.write_text("link")
    browser = await new_browser()
    await accept(browser, created.token, name="Grace")
    assert not file.exists()
    grace = await service.database.read(operators.find_operator, "grace")
    assert grace.is_admin
    assert grace.time_zone == "Europe/Berlin"
