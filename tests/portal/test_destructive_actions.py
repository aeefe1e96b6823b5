"""Tests of the page that asks for a confirmation before an action removes, revokes or disables something."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from shortener.accounts.administration import add_domain
from shortener.accounts.postback_keys import create_postback_key
from shortener.container import Service
from shortener.portal.operators import Role
from tests.portal.conftest import NewBrowser, SignIn, click, invite, log, send
from tests.receiver import Receiver

HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')


TEMPLATES = Path(__file__).parents[2] / "shortener" / "portal" / "templates"
#: The templates with danger buttons that act at once. Two of these pages are confirmations themselves. The third button stops a
#: replay, which must stop at once and can be started again.
ACT_AT_ONCE = {"destructive_action.html", "privacy.html", "replay.html"}


def test_every_danger_button_whose_page_asks_first_contains_an_ellipsis() -> None:
    for template in TEMPLATES.glob("*.html"):
        if template.name not in ACT_AT_ONCE:
            for button in re.findall(r'<button class="[^"]*danger[^"]*".*?</button>', template.read_text()):
                assert "…" in button, template.name


@pytest.mark.parametrize(
    ("path", "form", "named"),
    [
        ("/portal/1/keys", {"action": "revoke", "key": "1"}, "only valid API key"),
        ("/portal/1/keys", {"action": "revoke_postback_key", "key": "1"}, "Revoke the key Net <b>?"),
        ("/portal/1/keys", {"action": "rotate", "overlap": "0"}, "Conversion reports with the current token get 401"),
        ("/portal/admin/operators/2", {"action": "remove_role", "application": "1"}, "Remove the role viewer in"),
        ("/portal/admin/operators/2", {"action": "end_sessions"}, "End all sessions of Bo <b>?"),
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
    assert fields.pop("form_id"), "a second click sends no second form"
    assert fields == {**form, "confirmed": "yes"}
    fields["form_id"] = "one"
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


async def test_the_questions_of_the_tracker_form_keep_its_entries_also_if_they_are_cancelled(
    service: Service, sign_in: SignIn, receiver: Receiver
) -> None:
    manager = await sign_in("Mia", Role.MANAGER, 1)
    form = {"url": receiver.url("/in"), "events": ["click"], "enabled": "on", "method": "POST", "format": "json", "action": "save"}
    await manager.post("/portal/1/trackers/new", data=form)
    (tracker,) = await service.trackers.all(1)
    path = f"/portal/1/trackers/{tracker.id}/edit"
    typed = form | {"name": 'typed "name"', "events": ["conversion", "state"]}
    for action in ("delete", "rotate"):
        before = await log(service)
        asked = await manager.post(path, data=typed | {"action": action})
        assert "Nothing has changed yet." in asked.text
        fields: dict[str, list[str]] = {}
        for name, value in HIDDEN.findall(asked.text[asked.text.index("Nothing has changed yet.") :]):
            fields.setdefault(name, []).append(html.unescape(value))
        assert fields["events"] == ["conversion", "state"]
        assert "confirmed" not in fields, "each of the two buttons has its own value"
        cancelled = await manager.post(path, data={**fields, "confirmed": "no"})
        assert cancelled.status_code == 200
        assert "typed &#34;name&#34;" in cancelled.text
        assert 'value="conversion" checked' in cancelled.text
        assert await log(service) == before
    rotated = await manager.post(path, data={**fields, "confirmed": "yes"})
    assert "whsec_" in rotated.text
    assert "typed &#34;name&#34;" in rotated.text
    assert "Other entries of the form are not saved yet." in rotated.text
    (after,) = await service.trackers.all(1)
    assert (after.name, after.events) == (tracker.name, tracker.events)
    assert after.previous_secret_until is not None
    assert (await log(service))[-1].action == "tracker_secret_replaced"
