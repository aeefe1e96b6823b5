"""Tests of the page that asks before an action that removes, revokes or disables something."""

from __future__ import annotations

import html
import re

import pytest

from shortener.accounts.administration import add_domain
from shortener.accounts.postback_keys import create_postback_key
from shortener.container import Service
from shortener.portal.operators import Role
from tests.portal.conftest import NewBrowser, SignIn, click, invite, log, send
from tests.receiver import Receiver

HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')


@pytest.mark.parametrize(
    ("path", "form", "named"),
    [
        ("/portal/1/keys", {"action": "revoke", "key": "1"}, "only valid API key"),
        ("/portal/1/keys", {"action": "revoke_postback_key", "key": "1"}, "Revoke the key Net <b>?"),
        ("/portal/1/domains/go.brand.example", {"action": "disable"}, "Disable the domain go.brand.example?"),
        ("/portal/1/domains/go.brand.example", {"action": "remove"}, "Remove the domain go.brand.example?"),
        ("/portal/admin/operators/2", {"action": "disable"}, "Disable Bo <b>?"),
        ("/portal/admin/operators/2", {"action": "reset"}, "Reset Bo <b>?"),
        ("/portal/admin/applications", {"action": "disable", "application": "1"}, "Disable the application"),
    ],
)
async def test_a_destructive_action_of_the_portal_changes_nothing_before_it_is_confirmed(
    service: Service, sign_in: SignIn, path: str, form: dict[str, str], named: str
) -> None:
    admin = await sign_in("Ada")
    await invite(service, "Bo <b>", Role.VIEWER, 1)
    await service.database.write(create_postback_key, 1, "Net <b>", service.clock())
    await service.database.write(add_domain, 1, "https://go.brand.example", service.clock())
    await service.directory.refresh()
    before = await log(service)
    page = await admin.post(path, data=form)
    assert page.status_code == 200, page.text
    assert "Nothing has changed yet." in page.text
    assert named in html.unescape(page.text)
    assert "<b>" not in page.text.replace("&lt;b&gt;", "")
    assert await log(service) == before
    fields = dict(HIDDEN.findall(page.text[page.text.index("Nothing has changed yet.") :]))
    assert fields == {**form, "confirmed": "yes"}
    assert (await admin.post(path, data=fields)).status_code in (200, 303)
    assert len(await log(service)) == len(before) + 1


async def test_the_deletion_of_a_tracker_in_the_portal_names_its_waiting_deliveries_and_needs_a_confirmation(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, receiver: Receiver
) -> None:
    manager = await sign_in("Mia", Role.MANAGER, 1)
    form = {"url": receiver.url("/in"), "events": ["click"], "enabled": "on", "method": "POST", "format": "json", "action": "save"}
    assert (await manager.post("/portal/1/trackers/new", data=form)).status_code == 200
    (tracker,) = await service.trackers.all(1)
    message = await send(service, manager, message_id="order-7")
    await click(service, await new_browser(), message["links"][0]["code"])
    await service.fanout.flush()
    page = await manager.post(f"/portal/1/trackers/{tracker.id}/edit", data={"action": "delete"})
    assert "1 waiting delivery becomes dead." in page.text
    assert [one.id for one in await service.trackers.all(1)] == [tracker.id]
