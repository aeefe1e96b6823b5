"""Tests of the page that asks for the password again before a form is handled, and keeps the fields of the form."""

from __future__ import annotations

import html
import re

import httpx

from shortener.accounts.administration import create_application
from shortener.container import Service
from shortener.portal.operators import Role
from tests.conftest import Clock
from tests.portal.conftest import PASSWORD, SignIn, log

URL = "https://93.184.216.34/in?id={message_id}"
FORM: dict[str, str | list[str]] = {
    "action": "save",
    "url": URL,
    "name": 'shop "><script>x</script>',
    "events": ["click", "conversion"],
    "method": "POST",
    "format": "json",
    "fields": "message_id,\r\nclicked_at",
    "enabled": "on",
}
Fields = dict[str, str | list[str]]


def kept_fields(page: httpx.Response) -> Fields:
    """Return the hidden fields of a page in the form in which a browser sends them."""
    found: Fields = {}
    for name, value in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', page.text):
        values = found.setdefault(html.unescape(name), [])
        assert isinstance(values, list)
        values.append(html.unescape(value))
    return found


async def test_a_form_is_saved_with_its_new_values_after_the_password_was_confirmed(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    await browser.post("/portal/1/trackers/new", data=FORM | {"name": "before", "events": ["click"]})
    (tracker,) = await service.trackers.all(1)
    path = f"/portal/1/trackers/{tracker.id}/edit"
    clock.forward(minutes=11)
    headers = {"Accept-Encoding": "gzip", "Referer": f"http://127.0.0.1:8000{path}?a=1"}
    page = await browser.post(path, data=FORM | {"password": "a password of the form"}, headers=headers)
    assert page.status_code == 403
    assert page.headers["cache-control"] == "no-store"
    assert "content-encoding" not in page.headers  # the page must not be compressed, because the fields can contain secrets
    assert f'action="{path}"' in page.text
    assert f'<a href="{path}?a=1">Back without saving' in page.text
    assert "<script>x" not in page.text
    assert "a password of the form" not in page.text
    assert await names(service) == ["before"]

    wrong = await browser.post(path, data={**kept_fields(page), "confirm_password": "wrong"})
    assert wrong.status_code == 422
    assert "The password is not correct." in wrong.text
    assert kept_fields(wrong) == kept_fields(page)
    assert await names(service) == ["before"]

    saved = await browser.post(path, data={**kept_fields(wrong), "confirm_password": PASSWORD})
    assert (saved.status_code, saved.headers["location"]) == (303, f"/portal/1/trackers/{tracker.id}")
    (tracker,) = await service.trackers.all(1)
    assert (tracker.name, tracker.events, tracker.fields) == (FORM["name"], FORM["events"], ["message_id", "clicked_at"])
    assert (await browser.post(path, data=FORM | {"name": "again"})).status_code == 303, "the password is now recent"


async def names(service: Service) -> list[str]:
    return [tracker.name for tracker in await service.trackers.all(1)]


async def test_a_form_with_the_password_has_the_checks_of_every_form(service: Service, sign_in: SignIn, clock: Clock) -> None:
    other = await service.database.write(create_application, "Other", service.clock())
    await service.directory.refresh()
    support = await sign_in("Sue", Role.SUPPORT, 1)
    manager = await sign_in("Mia", Role.MANAGER, other.application_id)
    clock.forward(minutes=11)
    form = FORM | {"confirm_password": PASSWORD}
    assert (await support.post("/portal/1/trackers/new", data=form)).status_code == 403
    assert (await manager.post("/portal/1/trackers/new", data=form)).status_code == 404
    assert (await manager.post("/portal/no-such-page", data=form)).status_code == 404
    foreign = {"Sec-Fetch-Site": "cross-site"}
    own = f"/portal/{other.application_id}/trackers/new"
    assert (await manager.post(own, data=form, headers=foreign)).status_code == 403
    assert await names(service) == []
    assert await service.trackers.all(other.application_id) == []
    page = await manager.post(own, data=FORM | {"confirm_back": "https://evil.example/"})
    assert 'href="/portal/">Back' in page.text


async def test_a_wrong_password_with_a_form_delays_further_attempts(service: Service, sign_in: SignIn, clock: Clock) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    clock.forward(minutes=11)
    form = {"action": "create", "name": "x", "permissions": "sms.send"}
    for _ in range(8):
        page = await browser.post("/portal/1/keys", data={**form, "confirm_password": "wrong"})
        assert page.status_code == 422
    assert "was wrong too often" in page.text
    assert kept_fields(page)["name"] == ["x"]
    assert "password_check_failed" in [row.action for row in await log(service)]
