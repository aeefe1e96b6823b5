"""Tests of the page of API keys and tracker tokens."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from shortener.accounts.credentials import create_key
from shortener.accounts.settings import PERMISSIONS
from shortener.container import Service
from shortener.errors import CommitUncertain
from shortener.portal.keys import PERMISSION_TEXTS
from shortener.portal.operators import Role
from tests.conftest import NOON, Clock
from tests.databases import take_down_after
from tests.portal.conftest import SignIn, log


def test_each_permission_of_an_api_key_has_a_description_on_the_page_of_the_keys() -> None:
    assert tuple(PERMISSION_TEXTS) == PERMISSIONS


async def test_the_portal_shows_a_new_api_key_once_with_a_working_command(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    form = {"action": "create", "name": "Shop <b>", "permissions": ["sms.send", "sms.read"]}
    page = await browser.post("/portal/1/keys", data=form)
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    assert "content-encoding" not in page.headers  # the page must not be compressed, because it contains a secret
    assert "Shop &lt;b&gt;" in page.text
    (key,) = set(re.findall(r"X-API-Key: ([^&#]+)&#39;", page.text))
    body = {"to": "+14085550100", "body": 'See #track("https://shop.example/")'}
    assert (await browser.post("/api/v1/rewrite", json=body, headers={"X-API-Key": key})).status_code == 200
    assert key not in (await browser.get("/portal/1/keys")).text
    row = (await log(service))[-1]
    assert (row.action, row.object, row.after) == ("api_key_created", "Shop <b>", {"permissions": "sms.read, sms.send"})
    key_id = re.findall(r'name="key" value="(\d+)"', page.text)[-1]
    assert (await browser.post("/portal/1/keys", data={"action": "revoke", "key": key_id, "confirmed": "yes"})).status_code == 303
    assert (await browser.post("/api/v1/rewrite", json=body, headers={"X-API-Key": key})).status_code == 401
    assert (await log(service))[-1].action == "api_key_revoked"


async def test_the_portal_shows_a_rotated_token_once_and_the_remaining_time_of_the_previous_token(
    service: Service, sign_in: SignIn
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    credentials = service.first_credentials
    assert credentials is not None
    asked = await browser.post("/portal/1/keys", data={"action": "rotate", "overlap": "24"})
    assert "Trackers can use the current token for 24 hours more." in asked.text
    page = await browser.post("/portal/1/keys", data={"action": "rotate", "overlap": "24", "confirmed": "yes"})
    assert "The new tracker token" in page.text
    listed = (await browser.get("/portal/1/keys")).text
    assert "ends in 1" in listed
    assert (await log(service))[-1].action == "tracker_token_rotated"
    headers = {"X-Api-Token": credentials.tracker_token}  # the previous token stays valid after the rotation
    response = await browser.post("/api/v1/track", json={"click_id": "x", "action": "sale"}, headers=headers)
    assert (response.status_code, response.json()["error_code"]) == (404, "MESSAGE_NOT_FOUND")


async def test_the_portal_shows_a_new_postback_url_once_and_can_revoke_it(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    page = await browser.post("/portal/1/keys", data={"action": "create_postback_key", "network": "Net <b>"})
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    assert "content-encoding" not in page.headers  # the page must not be compressed, because it contains a secret
    (path,) = set(re.findall(r"/api/v1/postback/pk_[\w-]+", page.text))
    report = {"message_id": "unknown", "status": "approved"}
    assert (await browser.get(path, params=report)).json()["error_code"] == "MESSAGE_NOT_FOUND"
    listed = (await browser.get("/portal/1/keys")).text
    assert path not in listed
    assert "Net &lt;b&gt;" in listed
    key_id = re.findall(r'name="key" value="(\d+)"', listed)[-1]
    revoked = await browser.post("/portal/1/keys", data={"action": "revoke_postback_key", "key": key_id, "confirmed": "yes"})
    assert revoked.status_code == 303
    refused = await browser.get(path, params=report)
    assert (refused.status_code, refused.json()["error_code"]) == (401, "UNAUTHORIZED")
    assert [row.action for row in (await log(service))[-2:]] == ["postback_key_created", "postback_key_revoked"]


async def test_the_portal_names_an_api_key_without_a_name_by_its_first_characters(service: Service, sign_in: SignIn) -> None:
    key = await service.database.write(create_key, 1, "", ["sms.read"], NOON)
    browser = await sign_in("Mia", Role.MANAGER, 1)
    page = (await browser.get("/portal/1/keys")).text
    assert "no name" in page
    form = {"action": "revoke", "key": re.findall(r'name="key" value="(\d+)"', page)[-1]}
    assert f"Revoke the key {key[:8]}…?" in (await browser.post("/portal/1/keys", data=form)).text
    assert (await browser.post("/portal/1/keys", data=form | {"confirmed": "yes"})).status_code == 303
    row = (await log(service))[-1]
    assert (row.action, row.object) == ("api_key_revoked", f"{key[:8]}…")


async def test_a_key_form_that_is_sent_again_creates_no_second_key_or_token(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    shown = (await browser.get("/portal/1/keys")).text
    form_id = re.findall(r'name="form_id" value="([^"]+)"', shown)[0]
    for form in (
        {"action": "create", "name": "x", "permissions": "sms.send"},
        {"action": "rotate", "overlap": "24", "confirmed": "yes"},
        {"action": "create_postback_key", "network": "x"},
    ):
        assert (await browser.post("/portal/1/keys", data=form | {"form_id": form_id})).status_code == 200
        rows = len(await log(service))
        repeated = await browser.post("/portal/1/keys", data=form | {"form_id": form_id})
        assert repeated.status_code == 422
        assert "This form was sent before" in repeated.text
        assert "is shown only now" not in repeated.text
        assert len(await log(service)) == rows
    changed = {"action": "create", "name": "y", "permissions": "sms.send", "form_id": form_id}
    assert (await browser.post("/portal/1/keys", data=changed)).status_code == 200, "other values are another form"
    invalid = {"action": "create", "name": "", "permissions": "sms.send", "form_id": form_id}
    for _ in range(2):
        assert "must have 1 to 100" in (await browser.post("/portal/1/keys", data=invalid)).text
    assert form_id not in (await browser.get("/portal/1/keys")).text


async def test_a_revocation_form_that_is_sent_again_leads_to_the_page_of_the_first(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    await service.database.write(create_key, 1, "old", ["sms.read"], NOON)
    assert (await browser.post("/portal/1/keys", data={"action": "create_postback_key", "network": "Net"})).status_code == 200
    page = (await browser.get("/portal/1/keys")).text
    _, key, postback_key = re.findall(r'name="key" value="(\d+)"', page)
    for action, number in (("revoke", key), ("revoke_postback_key", postback_key)):
        form = {"action": action, "key": number, "confirmed": "yes", "form_id": "one"}
        first, repeated = [await browser.post("/portal/1/keys", data=form) for _ in range(2)]
        assert first.status_code == 303
        assert (repeated.status_code, repeated.headers.get("location")) == (303, first.headers["location"]), action
    actions = [row.action for row in await log(service)]
    assert (actions.count("api_key_revoked"), actions.count("postback_key_revoked")) == (1, 1)


async def test_key_forms_that_are_sent_at_the_same_time_create_one_key(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    form = {"action": "create", "name": "x", "permissions": "sms.send", "form_id": "one"}
    pages = await asyncio.gather(*(browser.post("/portal/1/keys", data=form) for _ in range(4)))
    assert sorted(page.status_code for page in pages) == [200, 422, 422, 422]
    assert [row.action for row in await log(service)].count("api_key_created") == 1


async def test_invalid_key_forms_of_the_portal_change_nothing_and_keep_their_input(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    for form, status in (
        ({"action": "create", "name": " ", "permissions": "sms.send"}, 422),
        ({"action": "create", "name": "x", "permissions": ["sms.send", "sms.write"]}, 422),
        ({"action": "create", "name": "x"}, 422),
        ({"action": "create", "name": "x" * 101, "permissions": "sms.send"}, 422),
        ({"action": "rotate", "overlap": "5"}, 422),
        ({"action": "revoke", "key": "999"}, 404),
        ({"action": "revoke", "key": "x"}, 404),
        ({"action": "create_postback_key", "network": " "}, 422),
        ({"action": "revoke_postback_key", "key": "999"}, 404),
        ({"action": "revoke_postback_key", "key": "-1"}, 404),
        ({"action": "x"}, 400),
    ):
        assert (await browser.post("/portal/1/keys", data=form)).status_code == status, form
    assert [row.action for row in await log(service)] == ["invitation_accepted"]


async def test_the_key_page_of_the_portal_requires_a_manager_and_a_recently_entered_password(sign_in: SignIn, clock: Clock) -> None:
    support = await sign_in("Sue", Role.SUPPORT, 1)
    assert (await support.get("/portal/1/keys")).status_code == 403
    manager = await sign_in("Mia", Role.MANAGER, 1)
    clock.forward(minutes=11)
    response = await manager.post("/portal/1/keys", data={"action": "create", "name": "x", "permissions": "sms.send"})
    assert response.status_code == 403
    assert "Confirm your password" in response.text


async def test_the_portal_shows_a_new_api_key_if_the_database_fails_after_the_commit(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    database = take_down_after(service, monkeypatch)
    page = await browser.post("/portal/1/keys", data={"action": "create", "name": "Shop", "permissions": ["sms.send"]})
    assert page.status_code == 200, page.text
    (key,) = set(re.findall(r"X-API-Key: ([^&#]+)&#39;", page.text))
    database.is_back = True
    response = await browser.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "x"}, headers={"X-API-Key": key})
    assert response.status_code == 200, response.text


async def test_the_portal_says_that_the_outcome_is_unknown_if_the_commit_of_a_change_was_cut(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut(*args: Any, **kwargs: Any) -> Any:
        raise CommitUncertain("cut at COMMIT")

    browser = await sign_in("Mia", Role.MANAGER, 1)
    monkeypatch.setattr(service.database, "write", cut)
    page = await browser.post("/portal/1/keys", data={"action": "create", "name": "Shop", "permissions": ["sms.send"]})
    assert page.status_code == 503
    assert "It is not known whether this was stored" in page.text


async def test_the_table_of_keys_describes_permissions_in_words(service: Service, sign_in: SignIn) -> None:
    await service.database.write(create_key, 1, "reader", ["sms.read", "links.write"], NOON)
    page = (await (await sign_in()).get("/portal/1/keys")).text
    table = page[: page.index("Create an API key")]
    assert "Change and switch off links; Read messages, clicks, conversions and statistics" in table
    assert '<span class="sub code">links.write, sms.read</span>' in table
