"""Tests of portal forms that show stored values which somebody else changes before the form is sent."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from html.parser import HTMLParser

import httpx
import pytest

from shortener.container import Service
from shortener.portal.form_versions import MAX_SHOWN_CHARACTERS, version_of
from shortener.portal.operators import Role
from tests.conftest import Clock
from tests.delivery.conftest import changes
from tests.factory import AUDIT
from tests.portal.conftest import PASSWORD, SignIn, log
from tests.receiver import Receiver

HOST = "go.brand.example"
Form = dict[str, list[str]]


class _Fields(HTMLParser):
    """A parser that finds the form with the button `action`=`save` (or with another button), and collects its fields as a browser
    would send them."""

    def __init__(self, action: str) -> None:
        super().__init__()
        self._action = action
        self._fields: Form = {}
        self._area = self._select = ""
        self.found: Form | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        name, value = values.get("name") or "", values.get("value") or ""
        if tag == "form":
            self._fields = {}
        elif tag == "button" and (name, value) == ("action", self._action):
            self.found = self._fields | {name: [value]}
        elif tag == "select":
            self._select = name
        elif tag == "option" and (self._select not in self._fields or "selected" in values):
            self._fields[self._select] = [value]
            self._area = "" if "value" in values else self._select
        elif tag == "textarea":
            self._area, self._fields[name] = name, [""]
        elif tag == "input" and values.get("type") != "checkbox":
            self._fields[name] = [value]
        elif tag == "input" and "checked" in values:
            self._fields.setdefault(name, []).append(value or "on")

    def handle_data(self, data: str) -> None:
        if self._area:
            self._fields[self._area] = [data.replace("\n", "\r\n")]

    def handle_endtag(self, tag: str) -> None:
        self._area = ""


def fields_of(page: httpx.Response, action: str = "save") -> Form:
    parser = _Fields(action)
    parser.feed(page.text)
    assert parser.found is not None, page.text
    return parser.found


async def opened(browser: httpx.AsyncClient, path: str) -> Form:
    return fields_of(await browser.get(path))


def stated(page: httpx.Response) -> str:
    return html.unescape(page.text)


async def make_tracker(service: Service, browser: httpx.AsyncClient, receiver: Receiver, **fields: str) -> tuple[int, str]:
    """Create a tracker in the portal. Return its id and the path of its form."""
    common = {"name": "shop", "url": receiver.url("/in"), "events": "click", "method": "POST", "format": "json", "enabled": "on"}
    await browser.post("/portal/1/trackers/new", data=common | fields | {"action": "save"})
    (tracker,) = await service.trackers.all(1)
    return tracker.id, f"/portal/1/trackers/{tracker.id}/edit"


async def change_tracker_after_opening(
    service: Service, sign_in: SignIn, receiver: Receiver
) -> tuple[httpx.AsyncClient, str, Form]:
    """Open the form of a tracker and enter another timeout. Then change the name of the tracker without this form. Return the
    browser, the path of the form, and the fields of the form, which have the old name."""
    browser = await sign_in("Mia", Role.MANAGER, 1)
    tracker, path = await make_tracker(service, browser, receiver)
    form = await opened(browser, path) | {"timeout": ["3"]}
    await service.trackers.update(AUDIT, tracker, changes(name="of another"))
    return browser, path, form


async def test_two_operators_who_change_one_tracker_do_not_overwrite_each_other(
    service: Service, sign_in: SignIn, receiver: Receiver
) -> None:
    mia, tom = await sign_in("Mia", Role.MANAGER, 1), await sign_in("Tom", Role.MANAGER, 1)
    tracker, path = await make_tracker(service, mia, receiver, max_attempts="3")
    of_mia, of_tom = await opened(mia, path), await opened(tom, path)

    of_mia |= {"name": ["shop of Mia"], "events": ["click", "conversion"], "timeout": ["2"], "with_suspected": ["on"]}
    of_mia |= {"conversion_actions": ["sale\r\nlead"], "conversion_dispositions": ["none", "positive"]}
    assert (await mia.post(path, data=of_mia)).status_code == 303
    of_tom |= {"name": ["shop of Tom"], "max_attempts": ["7"]}
    refused = await tom.post(path, data=of_tom)
    assert refused.status_code == 409
    assert "Somebody changed values of this form after you opened it, so nothing was saved" in stated(refused)
    assert "was changed after you opened this form, to: shop of Mia. If you save again, your entry replaces this value" in stated(
        refused
    )
    assert stated(refused).count("was changed after you opened this form. The field now shows the new value") == 5
    assert (await service.trackers.get(tracker)).max_attempts == 3
    merged = fields_of(refused)
    assert (merged["name"], merged["max_attempts"], merged["timeout"]) == (["shop of Tom"], ["7"], ["2"])
    assert (merged["events"], merged["with_suspected"]) == (["click", "conversion"], ["on"])

    assert (await tom.post(path, data=merged)).status_code == 303, "the second time, Tom has seen what he replaces"
    stored = await service.trackers.get(tracker)
    assert (stored.name, stored.max_attempts, stored.timeout, stored.with_suspected) == ("shop of Tom", 7, 2, True)
    assert stored.events == ["click", "conversion"]
    assert (stored.conversion_actions, stored.conversion_dispositions) == (["sale", "lead"], ["positive", "none"])
    assert (await mia.post(path, data=of_mia)).status_code == 409, "a form of an old page is rejected again"
    assert len([row for row in await log(service) if row.action == "tracker_changed"]) == 2


async def test_a_change_by_the_api_to_the_values_of_the_form_or_of_values_outside_the_form_is_no_conflict(
    service: Service, sign_in: SignIn, receiver: Receiver
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    tracker, path = await make_tracker(service, browser, receiver)
    form = await opened(browser, path) | {"name": ["new"]}
    await service.trackers.update(AUDIT, tracker, changes(name="new", secret_overlap=60, rotate_secret=True, schedule=[1.0]))
    assert (await browser.post(path, data=form)).status_code == 303
    await service.trackers.update(AUDIT, tracker, changes(enabled=False))
    form.pop("version")
    assert (await browser.post(path, data=form)).status_code == 303, "a form of the previous release has no version"


@pytest.mark.parametrize("action", ["preview", "rotate", "invalid"])
async def test_a_tracker_form_that_is_shown_again_with_its_entries_keeps_the_version_of_the_first_page(
    service: Service, sign_in: SignIn, receiver: Receiver, action: str
) -> None:
    browser, path, form = await change_tracker_after_opening(service, sign_in, receiver)
    if action == "invalid":
        again = await browser.post(path, data=form | {"url": ["ftp://x.example"]})
    else:
        again = await browser.post(path, data=form | {"action": [action], "confirmed": ["yes"]})
    assert again.status_code == (422 if action == "invalid" else 200)
    shown = fields_of(again) | {"url": form["url"]}
    assert (shown["name"], shown["timeout"]) == (["shop"], ["3"])
    refused = await browser.post(path, data=shown)
    assert (refused.status_code, fields_of(refused)["name"]) == (409, ["of another"])


async def test_entries_that_are_kept_during_a_new_sign_in_keep_the_version_of_their_form(
    service: Service, sign_in: SignIn, receiver: Receiver, clock: Clock
) -> None:
    browser, path, form = await change_tracker_after_opening(service, sign_in, receiver)
    clock.now += timedelta(hours=8, seconds=1)
    expired = stated(await browser.post(path, data=form))
    (kept,) = re.findall(r'<input type="hidden" name="kept" value="([^"]+)">', expired)
    (sign_in_path,) = re.findall(r'<form class="form" method="post" action="(/portal/signin[^"]*)"', expired)
    signed_in = await browser.post(sign_in_path, data={"name": "Mia", "password": PASSWORD, "kept": kept})
    shown = await opened(browser, signed_in.headers["location"])
    assert (shown["name"], shown["timeout"], shown["version"]) == (["shop"], ["3"], form["version"])
    refused = await browser.post(path, data=shown)
    assert (refused.status_code, fields_of(refused)["name"], fields_of(refused)["timeout"]) == (409, ["of another"], ["3"])


async def test_two_operators_who_change_the_settings_of_an_application_do_not_overwrite_each_other(
    service: Service, sign_in: SignIn
) -> None:
    mia, tom = await sign_in("Mia", Role.MANAGER, 1), await sign_in("Tom", Role.MANAGER, 1)
    path = "/portal/1/settings"
    of_mia, of_tom = await opened(mia, path), await opened(tom, path)
    of_mia |= {
        "extra_schemes": ["myapp other"],
        "retract_clicks": ["on"],
        "gateway": ["simulator"],
        "min_seconds_after_sent": ["1.5"],
    }
    assert (await mia.post(path, data=of_mia)).status_code == 303
    of_tom |= {"link_ttl_days": ["30"], "min_seconds_after_sent": ["2"]}
    tried = await tom.post(path, data=of_tom | {"action": ["try"]})
    assert fields_of(tried)["version"] == of_tom["version"], (
        "a trial of the form does not show the values that the other operator stored"
    )
    refused = await tom.post(path, data=of_tom)
    assert refused.status_code == 409
    assert "Somebody changed values of this form after you opened it, so nothing was saved" in stated(refused)
    assert "was changed after you opened this form, to: 1.5. If you save again, your entry replaces this value" in stated(refused)
    merged = fields_of(refused)
    assert (merged["link_ttl_days"], merged["min_seconds_after_sent"]) == (["30"], ["2"])
    assert (merged["extra_schemes"], merged["retract_clicks"], merged["gateway"]) == (["myapp other"], ["on"], ["simulator"])
    assert (await tom.post(path, data=merged)).status_code == 303
    application = service.directory.application(1)
    assert application is not None
    settings = application.settings
    assert (settings.link_ttl_days, settings.extra_schemes, settings.retract_clicks) == (30, ("myapp", "other"), True)
    assert settings.min_seconds_after_sent == 2
    assert application.gateway is not None
    assert (await mia.get(path)).status_code == 200
    assert (await mia.post(path, data=await opened(mia, path))).status_code == 303, "an unchanged form is no conflict"


async def test_two_operators_who_change_one_domain_do_not_overwrite_each_other(service: Service, sign_in: SignIn) -> None:
    mia, tom = await sign_in("Mia", Role.MANAGER, 1), await sign_in("Tom", Role.MANAGER, 1)
    await mia.post("/portal/1/domains", data={"domain": HOST})
    path = f"/portal/1/domains/{HOST}"
    first = await opened(mia, path) | {"assetlinks": ['[{"a":\r\n1}]']}
    assert (await mia.post(path, data=first)).status_code == 303
    of_mia, of_tom = await opened(mia, path), await opened(tom, path)
    assert (await mia.post(path, data=of_mia)).status_code == 303, "the line breaks of the JSON text are no change"
    of_mia |= {"path": ["/ACME"], "home_url": ["https://brand.example/mia"]}
    assert (await mia.post(path, data=of_mia)).status_code == 303
    of_tom |= {"home_url": ["https://brand.example/tom"], "fallback_url": ["https://brand.example/late"]}
    refused = await tom.post(path, data=of_tom)
    assert refused.status_code == 409
    assert "was changed after you opened this form, to: https://brand.example/mia. If you save again" in stated(refused)
    merged = fields_of(refused)
    assert (merged["path"], merged["home_url"]) == (["/ACME"], ["https://brand.example/tom"])
    assert (await tom.post(path, data=merged)).status_code == 303
    domain = service.directory.domain(HOST)
    assert domain is not None
    assert (domain.path, domain.home_url, domain.assetlinks) == ("/ACME", "https://brand.example/tom", '[{"a":1}]')
    assert domain.fallback_url == "https://brand.example/late"


async def test_a_form_that_was_changed_meanwhile_shows_an_empty_value_as_a_word_and_only_the_beginning_of_a_long_one(
    sign_in: SignIn,
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    await browser.post("/portal/1/domains", data={"domain": HOST})
    path = f"/portal/1/domains/{HOST}"
    await browser.post(path, data=await opened(browser, path) | {"home_url": ["https://brand.example/first"]})
    form = await opened(browser, path)
    long = f"https://brand.example/{'x' * MAX_SHOWN_CHARACTERS}"
    assert (await browser.post(path, data=form | {"home_url": [""], "fallback_url": [long]})).status_code == 303
    entered = {"home_url": ["https://brand.example/second"], "fallback_url": ["https://brand.example/late"]}
    shown = stated(await browser.post(path, data=form | entered))
    assert "was changed after you opened this form, to: empty. If you save again" in shown
    assert f"was changed after you opened this form, to: {long[:MAX_SHOWN_CHARACTERS]}…. If you save again" in shown


async def test_two_admins_who_rename_one_application_do_not_overwrite_each_other(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Ada", Role.ADMIN)
    path = "/portal/admin/applications"
    form = fields_of(await browser.get(path), "rename")
    first, second = form | {"name": ["One"]}, form | {"name": ["Two"]}
    assert (await browser.post(path, data=first)).status_code == 303
    refused = await browser.post(path, data=second)
    assert refused.status_code == 422
    assert "The application was renamed to One after you opened this page, so nothing was saved." in stated(refused)
    shown = fields_of(refused, "rename")
    assert shown["name"] == ["One"]
    assert (await browser.post(path, data=shown | {"name": ["Two"]})).status_code == 303
    application = service.directory.application(1)
    assert application is not None
    assert application.name == "Two"


def test_the_version_of_a_form_does_not_depend_on_how_a_browser_sends_its_values() -> None:
    assert version_of({"text": " a\nb "}) == version_of({"text": "a\r\nb"})
    assert version_of({"events": ["a", "b"]}) == version_of({"events": ["b", "a"]})
    assert version_of({"box": True}) != version_of({"box": False})
    assert version_of({"events": ["ab"]}) != version_of({"events": ["a", "b"]})
