"""Tests of the page of all applications."""

from __future__ import annotations

import re

from shortener.container import Service
from shortener.portal.operators import Role
from tests.portal.conftest import SignIn, log

PATH = "/portal/admin/applications"


async def test_the_portal_shows_the_working_credentials_of_a_new_application_once(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Ada", Role.ADMIN, 0)
    form = {"action": "create", "name": "Shop <b>", "domain": "https://go.shop.example", "company_id": "92"}
    page = await browser.post(PATH, data=form)
    assert page.status_code == 200
    assert "content-encoding" not in page.headers
    key, token, secret = re.findall(r'data-copy="([^"]+)"', page.text)[:3]
    assert "Shop &lt;b&gt;" in page.text
    body = {"to": "+14085550100", "body": 'See #track("https://shop.example/")'}
    answer = await browser.post("/api/v1/rewrite", json=body, headers={"X-API-Key": key})
    assert answer.status_code == 200
    assert "https://go.shop.example/" in answer.json()["messages"][0]["body"]
    listed = (await browser.get(PATH)).text
    assert not any(text in listed for text in (key, token, secret))
    row = (await log(service))[-1]
    assert (row.action, row.object) == ("application_created", "Shop <b>")


async def test_an_application_form_that_is_sent_again_says_that_the_credentials_were_shown(
    service: Service, sign_in: SignIn
) -> None:
    browser = await sign_in("Ada", Role.ADMIN, 0)
    form_id = re.findall(r'name="form_id" value="([^"]+)"', (await browser.get(PATH)).text)[-1]
    form = {"action": "create", "name": "Shop", "form_id": form_id}
    assert "Its credentials are shown only now" in (await browser.post(PATH, data=form)).text
    rows = len(await log(service))
    repeated = await browser.post(PATH, data=form)
    assert repeated.status_code == 422
    assert "This form was sent before" in repeated.text
    assert len(await log(service)) == rows


async def test_a_changed_application_stays_as_it_is_if_a_form_is_sent_again(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Ada", Role.ADMIN, 0)
    page = (await browser.get(PATH)).text
    (form_id,) = re.findall(r'name="form_id" value="([^"]+)"><input type="hidden" name="application" value="1"', page)
    disable = {"application": "1", "action": "disable", "confirmed": "yes", "form_id": "two"}
    enable = {"application": "1", "action": "enable"}
    rename = {"application": "1", "action": "rename", "name": "Marketing", "form_id": form_id}
    for first, undo in ((rename, rename | {"name": "Sales", "form_id": "three"}), (disable, enable)):
        assert (await browser.post(PATH, data=first)).headers["location"] == f"{PATH}?saved=1"
        same = await browser.post(PATH, data=first)
        assert same.headers["location"] == f"{PATH}?saved=1", "a double click leads to the page of the first"
        assert (await browser.post(PATH, data=undo)).status_code == 303
        rows = len(await log(service))
        repeated = await browser.post(PATH, data=first)
        assert repeated.headers["location"] == PATH, "somebody has undone the change, so the page does not say that it is saved"
        assert len(await log(service)) == rows
    application = service.directory.application(1)
    assert application is not None
    assert (application.name, application.disabled) == ("Sales", False)


async def test_an_admin_renames_disables_and_enables_an_application_in_the_portal(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Ada", Role.ADMIN, 0)
    for form in (
        {"action": "rename", "name": "Marketing"},
        {"action": "disable", "confirmed": "yes"},
    ):
        response = await browser.post(PATH, data={"application": "1", **form})
        assert (response.status_code, response.headers["location"]) == (303, f"{PATH}?saved=1")
    application = service.directory.application(1)
    assert application is not None
    assert (application.name, application.disabled) == ("Marketing", True)
    await browser.post(PATH, data={"application": "1", "action": "enable"})
    application = service.directory.application(1)
    assert application is not None
    assert not application.disabled
    assert [row.action for row in (await log(service))[1:]] == [
        "application_renamed",
        "application_disabled",
        "application_enabled",
    ]


async def test_invalid_application_forms_of_the_portal_change_nothing(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Ada", Role.ADMIN, 0)
    for form, status in (
        ({"action": "create", "name": ""}, 422),
        ({"action": "create", "name": service.directory.applications()[0].name}, 422),
        ({"action": "create", "name": "x", "domain": "not a host"}, 422),
        ({"action": "create", "name": "x", "company_id": "many"}, 422),
        ({"action": "rename", "application": "1", "name": ""}, 422),
        ({"action": "disable", "application": "999"}, 404),
        ({"action": "disable"}, 404),
        ({"action": "disable", "application": "1x"}, 422),
        ({"action": "rename", "application": "1x", "name": "y"}, 422),
        ({"action": "x"}, 422),
    ):
        page = await browser.post(PATH, data=form)
        assert page.status_code == status, form
        assert re.search("must |There is no application|already exists", page.text), form
    await service.directory.refresh()
    assert len(service.directory.applications()) == 1
    assert [row.action for row in await log(service)] == ["invitation_accepted"]


async def test_the_portal_page_of_all_applications_returns_404_to_operators_who_are_not_admins(sign_in: SignIn) -> None:
    manager = await sign_in("Mia", Role.MANAGER, 1)
    assert (await manager.get(PATH)).status_code == 404
    assert (await manager.post(PATH, data={"action": "create", "name": "x"})).status_code == 404


async def test_the_portal_warns_that_phones_cannot_reach_the_domain_of_a_new_application(sign_in: SignIn) -> None:
    browser = await sign_in("Ada", Role.ADMIN, 0)
    page = await browser.post(PATH, data={"action": "create", "name": "Shop", "domain": "http://127.0.0.1:9000"})
    assert "The host 127.0.0.1 is not a public address" in page.text
    assert "On 127.0.0.1, the service shows its API" in page.text
