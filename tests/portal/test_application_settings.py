"""Tests of the page of an application's settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

from shortener.accounts.settings import ApplicationSettings
from shortener.container import Service
from shortener.model import Verdict
from shortener.portal.application_settings import CHOICES, GROUPS, VERDICT_FIELDS
from shortener.portal.operators import Role
from shortener.storage.schema import hits
from tests.clicks.helpers import create_codes, fetch_rows, make_hit
from tests.conftest import Clock
from tests.portal.conftest import SignIn, log

PATH = "/portal/1/settings"
#: The form fields that a browser sends if all settings have their defaults.
DEFAULTS = {
    "track": "directives",
    "confirm_clicks": "off",
    "click_events": "first",
    "click_conversion": "scg",
    "sender_rules": "warn",
    "gateway": "none",
}


def test_every_application_setting_is_in_one_group_of_the_portal_form() -> None:
    shown = [name for fields in GROUPS.values() for name in fields]
    assert sorted(shown) == sorted(ApplicationSettings.model_fields)
    assert set(shown) >= VERDICT_FIELDS


def test_each_value_of_a_setting_has_a_plain_label_in_the_portal_form() -> None:
    permitted = {}
    for name, field in ApplicationSettings.model_fields.items():
        parts = (field.annotation, *get_args(field.annotation))
        if values := [value for part in parts if get_origin(part) is Literal for value in get_args(part)]:
            permitted[name] = ([""] if type(None) in parts else []) + values
    assert {name: list(labels) for name, labels in CHOICES.items()} == permitted


async def test_the_settings_page_names_the_values_in_words_and_the_names_of_the_api_beside_them(sign_in: SignIn) -> None:
    page = (await (await sign_in("Mia", Role.MANAGER, 1)).get(PATH)).text
    assert '<option value="first" selected>The first click on each link</option>' in page
    assert '<p class="hint name">click_events: first, every</p>' in page
    assert '<p class="hint name">ip_privacy: null, full, short, none</p>' in page
    assert '<p class="hint name">link_ttl_days</p>' in page
    assert "scg (trackers of the format scg)" not in page, "the page does not explain values that it does not show"


async def test_saving_the_unchanged_form_of_application_settings_changes_nothing(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    page = (await browser.get(PATH)).text
    for name in ApplicationSettings.model_fields:
        assert f'name="{name}"' in page
    assert (await browser.post(PATH, data=DEFAULTS | {"action": "save"})).status_code == 303
    application = service.directory.application(1)
    assert application is not None
    assert application.settings == ApplicationSettings()
    assert [row.action for row in await log(service)] == ["invitation_accepted"]


async def test_application_settings_are_saved_shown_and_recorded_in_the_audit_log(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    changes = {
        "link_ttl_days": "30",
        "fallback_url": "https://brand.example/late",
        "extra_schemes": "myapp, other",
        "min_seconds_after_sent": "1.5",
        "all_links_within_second": "on",
        "ip_privacy": "none",
        "gateway": "simulator",
    }
    response = await browser.post(PATH, data=DEFAULTS | changes | {"action": "save"})
    assert (response.status_code, response.headers["location"]) == (303, f"{PATH}?saved=1")
    application = service.directory.application(1)
    assert application is not None
    assert application.gateway is not None
    assert application.gateway.name == "simulator"
    expected = {
        "link_ttl_days": 30,
        "fallback_url": "https://brand.example/late",
        "extra_schemes": ("myapp", "other"),
        "min_seconds_after_sent": 1.5,
        "all_links_within_second": True,
        "ip_privacy": "none",
    }
    assert application.settings.model_dump(exclude_defaults=True) == expected
    page = (await browser.get(PATH)).text
    for value in ("30", "https://brand.example/late", "myapp other", "1.5"):
        assert f'value="{value}"' in page
    assert re.search(r'name="all_links_within_second" checked', page)
    row, of_gateway = (await log(service))[-2:]
    assert (row.action, row.before["link_ttl_days"], row.after["link_ttl_days"]) == ("settings_changed", None, 30)
    assert row.after.keys() == expected.keys()
    assert (of_gateway.action, of_gateway.before, of_gateway.after) == (
        "settings_changed",
        {"gateway": "none"},
        {"gateway": "simulator"},
    )


async def test_invalid_application_settings_change_nothing_and_stay_in_the_form(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    for name, value in (
        ("link_ttl_days", "0"),
        ("link_ttl_days", "many"),
        ("fallback_url", "javascript:alert(1)"),
        ("click_id_param", "a b"),
        ("extra_schemes", "javascript"),
        ("min_seconds_after_sent", "nan"),
        ("track", "some"),
        ("gateway", "unknown"),
    ):
        form = DEFAULTS | {"min_seconds_after_delivered": "7", name: value, "action": "save"}
        response = await browser.post(PATH, data=form)
        assert response.status_code == 422, name
        assert "Nothing was saved." in response.text
        assert 'value="7"' in response.text
    application = service.directory.application(1)
    assert application is not None
    assert application.settings == ApplicationSettings()
    assert [row.action for row in await log(service)] == ["invitation_accepted"]


async def test_a_what_if_analysis_counts_the_changed_verdicts_and_stores_nothing(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    codes = [code for _ in range(5) for code in await create_codes(service)]
    for code in codes:
        await service.recorder.record(make_hit(service, code, user_agent="Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X)"))
    await service.recorder.flush()
    clock.forward(minutes=5)
    before = await fetch_rows(service, hits)
    assert {hit.verdict for hit in before} == {Verdict.HUMAN}
    browser = await sign_in("Mia", Role.MANAGER, 1)
    form = DEFAULTS | {"max_recipients_per_address_minute": "2", "retract_clicks": "on", "action": "try", "days": "1"}
    page = await browser.post(PATH, data=form)
    assert page.status_code == 200
    numbers = re.findall(r"<dt>(\d+)</dt>", page.text)
    assert numbers == ["5", "0", "5"], "clicks would be suspected, and would be retracted"
    assert 'name="retract_clicks" checked' in page.text
    kept = await browser.post(PATH, data={name: value for name, value in form.items() if name != "retract_clicks"})
    assert re.findall(r"<dt>(\d+)</dt>", kept.text) == ["5", "0", "0"]
    assert "5 of them were sent to trackers already and stay clicks" in kept.text
    assert await fetch_rows(service, hits) == before
    application = service.directory.application(1)
    assert application is not None
    assert application.settings == ApplicationSettings()
    assert (await browser.post(PATH, data=form | {"days": "9"})).status_code == 422


async def test_changes_of_application_settings_require_a_manager_and_a_recently_entered_password(
    sign_in: SignIn, clock: Clock
) -> None:
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    page = await viewer.get(PATH)
    assert page.status_code == 200
    assert 'value="save"' not in page.text
    assert (await viewer.post(PATH, data=DEFAULTS)).status_code == 403
    manager = await sign_in("Mia", Role.MANAGER, 1)
    clock.forward(minutes=11)
    response = await manager.post(PATH, data=DEFAULTS | {"action": "save"})
    assert response.status_code == 403
    assert "Confirm your password" in response.text


async def test_an_error_text_of_a_form_that_begins_with_the_value_shows_the_value_as_it_was_typed(sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    for value in ("abc!", "javascript"):
        page = (await browser.post(PATH, data=DEFAULTS | {"extra_schemes": value, "action": "save"})).text
        assert f'<span class="as-written">&#39;{value}&#39; ' in page, "the style sheet gives all other texts a capital letter"
    page = (await browser.post(PATH, data=DEFAULTS | {"link_ttl_days": "x", "action": "save"})).text
    assert "<span>must be" in page
    style = (Path(__file__).parents[2] / "shortener/portal/static/portal.css").read_text()
    assert style.count("::first-letter") == style.count(":not(.as-written)::first-letter") > 0


async def test_application_settings_stay_as_they_are_if_a_form_is_sent_again(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    (form_id,) = re.findall(r'name="form_id" value="([^"]+)"', (await browser.get(PATH)).text)
    form = DEFAULTS | {"action": "save", "link_ttl_days": "30", "form_id": form_id}
    saved = await browser.post(PATH, data=form)
    assert (await browser.post(PATH, data=form)).headers["location"] == saved.headers["location"]
    assert (await browser.post(PATH, data=DEFAULTS | {"action": "save", "link_ttl_days": "20"})).status_code == 303
    repeated = await browser.post(PATH, data=form)
    assert repeated.headers["location"] == PATH, "the page does not say that these values are saved"
    application = service.directory.application(1)
    assert application is not None
    assert application.settings.link_ttl_days == 20
    tried = form | {"action": "try"}
    for _ in range(2):
        assert "What these rules would change" in (await browser.post(PATH, data=tried)).text
