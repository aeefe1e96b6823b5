"""Tests of the pages on which admins manage operators. Numbers of requirements of ASVS 5.0 are in the comments."""

from __future__ import annotations

import re

import pytest

from shortener.container import Service
from shortener.portal.operators import Role, find_operator
from tests.conftest import Clock
from tests.databases import take_down_after
from tests.portal.conftest import NewBrowser, SignIn, accept, log

PATH = "/portal/admin/operators"


async def test_only_admins_can_open_the_portal_pages_of_the_installation(sign_in: SignIn) -> None:
    for name, role, application in (("Vera", Role.VIEWER, 1), ("Max", Role.MANAGER, 0)):
        browser = await sign_in(name, role, application)
        for path in (PATH, f"{PATH}/1", "/portal/admin/audit", "/portal/admin/audit.csv"):
            assert (await browser.get(path)).status_code == 404
        page = await browser.get("/portal/1/")
        assert (page.status_code, "/portal/admin" in page.text) == (200, False)


async def test_an_admin_invites_an_operator_and_the_invitation_link_is_shown_once(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    admin = await sign_in("Ada")
    shown = await admin.post(PATH, data={"name": "<b>Eve</b>", "role": "support", "application": "1"})
    token = re.search(r"/portal/welcome#([\w-]{43})", shown.text)
    assert token is not None
    assert "&lt;b&gt;Eve" in shown.text
    assert "content-encoding" not in shown.headers
    assert token[1] not in (await admin.get(PATH)).text
    eve = await new_browser()
    await accept(eve, token[1])
    assert (await eve.get("/portal/1/")).status_code == 200
    assert (await eve.get(PATH)).status_code == 404
    assert [row.action for row in await log(service)][-2:] == ["operator_invited", "invitation_accepted"]


async def test_an_invalid_operator_form_shows_the_reason_and_changes_nothing(service: Service, sign_in: SignIn) -> None:
    admin = await sign_in("Ada")
    for fields in (
        {"name": " ", "role": "viewer"},
        {"name": "Eve", "role": "owner"},
        {"name": "Eve", "role": "admin", "application": "1"},
        {"name": "Eve", "role": "viewer", "application": "77"},
        {"name": "Ada", "role": "viewer"},
    ):
        assert (await admin.post(PATH, data=fields)).status_code == 422, fields
    assert (await admin.post(f"{PATH}/1", data={"action": "explode"})).status_code == 400
    disable = {"action": "disable", "confirmed": "yes"}
    assert (await admin.post(f"{PATH}/1", data=disable)).status_code == 422  # the only admin cannot be disabled
    assert (await admin.get(f"{PATH}/99")).status_code == 404
    assert len(await log(service)) == 1


async def test_a_change_of_an_operator_ends_all_sessions_of_this_operator(service: Service, sign_in: SignIn) -> None:
    admin = await sign_in("Ada")
    for action, fields in (
        ("grant", {"role": "manager", "application": "1"}),
        ("remove_role", {"application": "0", "confirmed": "yes"}),
        ("end_sessions", {"confirmed": "yes"}),
        ("disable", {"confirmed": "yes"}),
        ("reset", {"confirmed": "yes"}),
    ):
        name = f"Bo {action}"
        other = await sign_in(name, Role.VIEWER, 0)
        assert (await other.get("/portal/me")).status_code == 200
        operator = await service.database.read(find_operator, name)
        response = await admin.post(f"{PATH}/{operator.id}", data={"action": action, **fields})
        assert response.status_code in (200, 303), response.text
        assert (await other.get("/portal/me")).status_code == 303, action  # ASVS 7.2.4, 7.4.2, 7.4.5: the session has ended
    granted = await service.database.read(find_operator, "Bo grant")
    assert granted.role_in(1) is Role.MANAGER
    actions = {row.action for row in await log(service)}
    assert {"role_granted", "role_removed", "sessions_ended", "operator_disabled", "operator_reset"} <= actions


async def test_an_operator_form_that_is_sent_again_keeps_the_link_that_was_shown_valid(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    admin = await sign_in("Ada")
    (form_id,) = re.findall(r'name="form_id" value="([^"]+)"', (await admin.get(PATH)).text)
    invitation = {"name": "Eve", "role": "viewer", "application": "0", "form_id": form_id}
    reset = {"action": "reset", "confirmed": "yes", "form_id": "two"}
    for path, form in ((PATH, invitation), (f"{PATH}/2", reset)):
        shown = (await admin.post(path, data=form)).text
        (token,) = set(re.findall(r"/portal/welcome#([\w-]{43})", shown))
        rows = len(await log(service))
        repeated = await admin.post(path, data=form)
        assert repeated.status_code == 422
        assert "This form was sent before" in repeated.text
        assert "/portal/welcome#" not in repeated.text
        assert len(await log(service)) == rows
        await accept(await new_browser(), token)


async def test_the_question_before_a_role_is_removed_names_this_role_and_the_remaining_roles_of_the_operator(
    service: Service, sign_in: SignIn
) -> None:
    admin = await sign_in("Ada")
    await sign_in("Bo", Role.MANAGER, 1)
    form = {"action": "remove_role", "application": "1"}
    asked = await admin.post(f"{PATH}/2", data=form)
    assert re.search("Remove the role manager in .* from Bo", asked.text)
    assert "no other role" in asked.text
    assert (await service.database.read(find_operator, "Bo")).role_in(1) is Role.MANAGER
    assert (await admin.post(f"{PATH}/2", data=form | {"confirmed": "yes"})).status_code == 303
    gone = await admin.post(f"{PATH}/2", data=form)
    assert gone.status_code == 422
    assert "does not have this role any more" in gone.text


async def test_the_portal_resets_neither_a_disabled_operator_nor_the_only_admin(service: Service, sign_in: SignIn) -> None:
    admin = await sign_in("Ada")
    await sign_in("Bo", Role.VIEWER, 1)
    reset = {"action": "reset", "confirmed": "yes"}
    refused = await admin.post(f"{PATH}/1", data=reset)
    assert refused.status_code == 422
    assert "only admin" in refused.text
    assert (await admin.get("/portal/me")).status_code == 200
    assert 'value="reset"' in (await admin.get(f"{PATH}/2")).text
    await admin.post(f"{PATH}/2", data={"action": "disable", "confirmed": "yes"})
    assert 'value="reset"' not in (await admin.get(f"{PATH}/2")).text
    for form in ({"action": "reset"}, reset):
        refused = await admin.post(f"{PATH}/2", data=form)
        assert refused.status_code == 422
        assert "is disabled. Enable the operator" in refused.text
    assert (await service.database.read(find_operator, "Bo")).is_disabled
    assert "operator_reset" not in {row.action for row in await log(service)}


async def test_a_change_of_an_operator_requires_a_recently_entered_password(sign_in: SignIn, clock: Clock) -> None:
    admin = await sign_in("Ada")
    clock.forward(minutes=11)
    response = await admin.post(PATH, data={"name": "Eve", "role": "viewer"})
    assert response.status_code == 403
    assert "Confirm your password" in response.text


async def test_the_link_of_an_invitation_is_shown_if_the_database_fails_after_the_commit(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = await sign_in("Ada")
    with monkeypatch.context() as patched:
        take_down_after(service, patched)
        shown = await admin.post(PATH, data={"name": "Eve", "role": "support", "application": "1"})
    assert re.search(r"/portal/welcome#([\w-]{43})", shown.text), shown.text
    eve = await service.database.read(find_operator, "Eve")
    take_down_after(service, monkeypatch)
    shown = await admin.post(f"{PATH}/{eve.id}", data={"action": "reset", "confirmed": "yes"})
    assert re.search(r"/portal/welcome#([\w-]{43})", shown.text), shown.text
