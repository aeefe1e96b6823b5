"""Tests of the portal pages of an application's own domains."""

from __future__ import annotations

import asyncio
import re

import pytest

from shortener.container import Service
from shortener.portal.operators import Role
from tests.conftest import Clock
from tests.portal.conftest import SignIn, log

HOST = "go.brand.example"


async def test_a_domain_is_added_changed_disabled_and_removed_in_the_portal(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    assert "No own domain" in (await browser.get("/portal/1/domains")).text
    added = await browser.post("/portal/1/domains", data={"domain": HOST})
    assert (added.status_code, added.headers["location"]) == (303, f"/portal/1/domains/{HOST}?added=1&check=1")
    page = (await browser.get("/portal/1/domains")).text
    assert f"https://{HOST}" in page
    assert "new links" in page

    form = {"action": "save", "path": "/ACME", "fallback_url": "https://brand.example/late", "home_url": "", "assetlinks": "[]"}
    response = await browser.post(f"/portal/1/domains/{HOST}", data=form)
    assert (response.status_code, response.headers["location"]) == (303, f"/portal/1/domains/{HOST}?saved=1")
    domain = service.directory.domain(HOST)
    assert domain is not None
    assert (domain.path, domain.fallback_url, domain.home_url, domain.assetlinks) == (
        "/ACME",
        "https://brand.example/late",
        None,
        "[]",
    )
    shown = (await browser.get(f"/portal/1/domains/{HOST}?saved=1")).text
    assert 'value="/ACME"' in shown
    assert "The change is saved." in shown

    for action in ("make_default", "disable"):
        assert (await browser.post(f"/portal/1/domains/{HOST}", data={"action": action, "confirmed": "yes"})).status_code == 303
    domain = service.directory.domain(HOST)
    assert domain is not None
    assert domain.disabled
    assert domain.is_default
    assert "NO_USABLE_DOMAIN" in (await browser.get("/portal/1/domains")).text
    assert (await browser.post(f"/portal/1/domains/{HOST}", data={"action": "enable"})).status_code == 303
    response = await browser.post(f"/portal/1/domains/{HOST}", data={"action": "remove", "confirmed": "yes"})
    assert (response.status_code, response.headers["location"]) == (303, "/portal/1/domains?removed=1")
    assert (await browser.get(f"/portal/1/domains/{HOST}")).status_code == 404

    rows = (await log(service))[1:]
    assert [row.action for row in rows] == [
        "domain_added",
        "domain_changed",
        "domain_made_default",
        "domain_disabled",
        "domain_enabled",
        "domain_removed",
    ]
    assert rows[1].before == {"path": "", "fallback_url": None, "assetlinks": None}
    assert rows[1].after == {"path": "/ACME", "fallback_url": "https://brand.example/late", "assetlinks": "[]"}


async def test_invalid_domain_values_change_nothing_and_stay_in_the_form(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    for text in ("", "go brand", "https://user@x.example", "-bad-.com", "a_b.example"):
        response = await browser.post("/portal/1/domains", data={"domain": text})
        assert response.status_code == 422, text
        assert f'value="{text}"' in response.text
    await browser.post("/portal/1/domains", data={"domain": HOST})
    before = service.directory.domain(HOST)
    for name, value in (
        ("path", "/a//b"),
        ("fallback_url", "javascript:alert(1)"),
        ("fallback_url", f"https://{HOST}/x"),
        ("home_url", "https://x.example/" + "a" * 2048),
        ("assetlinks", "{}"),
        ("assetlinks", "["),
        ("apple_app_site_association", "[" * 5000),
    ):
        response = await browser.post(
            f"/portal/1/domains/{HOST}", data={"action": "save", "home_url": "https://kept.example/", name: value}
        )
        assert response.status_code == 422, (name, value[:40])
        assert 'aria-invalid="true"' in response.text
        if name != "home_url":
            assert "https://kept.example/" in response.text
    assert (await browser.post(f"/portal/1/domains/{HOST}", data={"action": "x"})).status_code == 400
    assert (await browser.post("/portal/1/domains/other.example", data={"action": "remove"})).status_code == 404
    assert (await browser.post("/portal/1/domains", data={"domain": HOST})).status_code == 422, "the domain exists already"
    await service.directory.refresh()
    assert service.directory.domain(HOST) == before


async def test_changes_of_a_domain_require_a_manager_and_a_recently_entered_password(sign_in: SignIn, clock: Clock) -> None:
    viewer = await sign_in("Vera", Role.VIEWER, 1)
    page = await viewer.get("/portal/1/domains")
    assert page.status_code == 200
    assert "<form" not in page.text.partition("<main")[2]
    assert (await viewer.post("/portal/1/domains", data={"domain": HOST})).status_code == 403
    manager = await sign_in("Mia", Role.MANAGER, 1)
    clock.forward(minutes=11)
    response = await manager.post("/portal/1/domains", data={"domain": HOST})
    assert response.status_code == 403
    assert "Confirm your password" in response.text


async def test_the_domain_page_of_the_portal_shows_only_domains_of_its_application(service: Service, sign_in: SignIn) -> None:
    from shortener.accounts.administration import create_application

    other = await service.database.write(create_application, "Other", service.clock(), domain="https://go.other.example")
    await service.directory.refresh()
    browser = await sign_in("Mia", Role.MANAGER, 1)
    assert "go.other.example" not in (await browser.get("/portal/1/domains")).text
    assert (await browser.get("/portal/1/domains/go.other.example")).status_code == 404
    assert (await browser.post("/portal/1/domains/go.other.example", data={"action": "remove"})).status_code == 404
    assert (await browser.get(f"/portal/{other.application_id}/domains")).status_code == 404


async def test_the_portal_warns_that_phones_cannot_reach_a_domain_on_localhost(sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    added = await browser.post("/portal/1/domains", data={"domain": "http://localhost:8000"})
    page = (await browser.get(added.headers["location"])).text
    assert "The host localhost is a name of one machine or one network only" in page
    assert "On localhost, the service shows its API" in page
    assert "The name has an address" not in page


async def test_the_audit_log_names_a_new_domain_as_it_is_stored(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    assert (await browser.post("/portal/1/domains", data={"domain": "GO.Brand.example."})).status_code == 303
    row = (await log(service))[-1]
    assert (row.operator, row.action, row.object, row.after) == ("Mia", "domain_added", HOST, {"base_url": f"https://{HOST}"})


async def test_the_portal_rejects_the_name_of_base_url_as_a_domain(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    monkeypatch.setattr(service, "settings", service.settings.model_copy(update={"base_url": "https://go.own.example"}))
    page = await browser.post("/portal/1/domains", data={"domain": "https://go.own.example"})
    assert page.status_code == 422
    assert "on which the service itself responds" in page.text
    assert "domain_added" not in [row.action for row in await log(service)]


async def test_the_form_of_a_domain_that_is_sent_twice_performs_its_action_once_and_leads_to_the_same_page(
    service: Service, sign_in: SignIn
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    page = f"/portal/1/domains/{HOST}"

    async def send_twice(url: str, form_of: str, **fields: str) -> str:
        (form_id, *_) = re.findall(r'name="form_id" value="([^"]+)"', form_of)
        responses = [await browser.post(url, data={**fields, "form_id": form_id}) for _ in range(2)]
        assert [response.status_code for response in responses] == [303, 303], responses[1].text
        locations = {response.headers["location"] for response in responses}
        assert len(locations) == 1
        return locations.pop()

    async def text(path: str) -> str:
        return (await browser.get(path)).text

    assert await send_twice("/portal/1/domains", await text("/portal/1/domains"), domain=HOST) == f"{page}?added=1&check=1"
    await send_twice(page, await text(page), action="save", path="/ACME")
    asked = await browser.post(page, data={"action": "disable"})
    (form_id,) = re.findall(r'name="form_id" value="([^"]+)"', asked.text)
    disable = {"action": "disable", "confirmed": "yes", "form_id": form_id}
    assert (await browser.post(page, data=disable)).status_code == 303
    await send_twice(page, await text(page), action="enable")
    # With the back button, the operator sends the form of the confirmation page again. It was already handled, so the domain
    # stays enabled.
    assert (await browser.post(page, data=disable)).headers["location"] == page, "without the note that the change is saved"
    domain = service.directory.domain(HOST)
    assert domain is not None
    assert not domain.disabled
    question = (await browser.post(page, data={"action": "remove"})).text
    assert await send_twice(page, question, action="remove", confirmed="yes") == "/portal/1/domains?removed=1"
    changes = ["domain_added", "domain_changed", "domain_disabled", "domain_enabled", "domain_removed"]
    assert [row.action for row in (await log(service))[1:]] == changes


async def test_the_first_form_of_a_removed_domain_does_not_add_it_again(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    form = {"domain": HOST, "form_id": "one"}
    assert (await browser.post("/portal/1/domains", data=form)).status_code == 303
    await browser.post(f"/portal/1/domains/{HOST}", data={"action": "remove", "confirmed": "yes"})
    repeated = await browser.post("/portal/1/domains", data=form)
    assert repeated.status_code == 409
    assert "This form was sent before" in repeated.text
    removed = service.directory.domain(HOST)
    assert removed is not None
    assert removed.removed


@pytest.mark.parametrize("host", [HOST, f"{HOST}:8443"])
async def test_two_equal_forms_of_a_new_domain_at_the_same_time_lead_to_its_page(
    service: Service, sign_in: SignIn, host: str
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    form = {"domain": host, "form_id": "one"}
    responses = await asyncio.gather(*(browser.post("/portal/1/domains", data=form) for _ in range(2)))
    responses.append(await browser.post("/portal/1/domains", data=form))
    locations = {response.headers.get("location") for response in responses}
    assert locations == {f"/portal/1/domains/{host}?added=1&check=1"}
    assert [row.action for row in (await log(service))[1:]] == ["domain_added"]


async def test_the_form_that_removed_a_domain_does_not_say_that_it_is_removed_after_it_was_added_again(
    service: Service, sign_in: SignIn
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    page, remove = f"/portal/1/domains/{HOST}", {"action": "remove", "confirmed": "yes", "form_id": "two"}
    assert (await browser.post("/portal/1/domains", data={"domain": HOST})).status_code == 303
    assert (await browser.post(page, data=remove)).headers["location"] == "/portal/1/domains?removed=1"
    assert (await browser.post("/portal/1/domains", data={"domain": HOST})).status_code == 303
    assert (await browser.post(page, data=remove)).headers["location"] == page
    domain = service.directory.domain(HOST)
    assert domain is not None
    assert not domain.removed
