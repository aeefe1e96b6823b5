"""Tests of the pages that create, change and delete trackers."""

from __future__ import annotations

import html
import re

import pytest
from sqlalchemy import update

from shortener.accounts.audit import AuditWriter
from shortener.container import Service
from shortener.conversions.parsing import parse_conversion
from shortener.delivery.outcomes import GONE
from shortener.errors import StoreUnavailable
from shortener.portal import repeats
from shortener.portal.operators import Role
from shortener.storage import schema
from tests.conftest import Clock
from tests.one_service import on_one_service
from tests.portal.conftest import NewBrowser, SignIn, click, log, send
from tests.receiver import Receiver

NEW = "/portal/1/trackers/new"


def form(receiver: Receiver, **more: str | list[str]) -> dict[str, str | list[str]]:
    """Return the fields that a browser sends for a new tracker."""
    empty = dict.fromkeys(("name", "fields", "max_attempts", "timeout", "concurrency", "max_per_second"), "")
    chosen: dict[str, str | list[str]] = {"url": receiver.url("/in?id={message_id}"), "events": ["click"], "enabled": "on"}
    return empty | {"method": "POST", "format": "json", "action": "save"} | chosen | more


@on_one_service
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("conversion_dispositions", ["neutral"]),
        ("conversion_dispositions", ["positive", "neutral"]),
        ("events", ["click", "clicks"]),
    ],
)
async def test_a_form_of_a_tracker_with_an_unknown_value_of_a_checkbox_is_rejected(
    service: Service, sign_in: SignIn, receiver: Receiver, field: str, values: list[str]
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    sent = form(receiver, events=["conversion"], conversion_actions="sale") | {field: values}
    rejected = await browser.post(NEW, data=sent)
    assert rejected.status_code == 422
    assert f"must not contain &#39;{values[-1]}&#39;; allowed: " in rejected.text
    assert await service.trackers.all(1) == [], "without the unknown value, the filter would mean all"


async def test_the_form_of_a_tracker_names_each_wrong_placeholder_of_the_url(sign_in: SignIn, receiver: Receiver) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    rejected = await browser.post(NEW, data=form(receiver, url="https://t.example/?a={payout}&b={{status}}"))
    assert rejected.status_code == 422
    assert "{payout} is not a placeholder; write {value}; {{status}} is not a placeholder; write {status}" in rejected.text


async def test_a_tracker_is_created_changed_and_deleted_in_the_portal(
    service: Service, sign_in: SignIn, receiver: Receiver
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    assert NEW in (await browser.get("/portal/1/trackers")).text
    page = await browser.post(NEW, data=form(receiver, name="shop <b>", max_attempts="3", timeout="2.5"))
    assert page.status_code == 200, page.text
    assert "content-encoding" not in page.headers  # the page must not be compressed, because it contains a secret
    (secret,) = set(re.findall(r"whsec_[\w+/=]+", html.unescape(page.text)))
    (tracker,) = await service.trackers.all(1)
    assert (tracker.name, tracker.events, tracker.max_attempts, tracker.timeout) == ("shop <b>", ["click"], 3, 2.5)
    path = f"/portal/1/trackers/{tracker.id}/edit"
    shown = (await browser.get(path)).text
    assert secret not in html.unescape(shown)
    assert "shop &lt;b&gt;" in shown

    changed = form(receiver, events=["click", "conversion"], name="shop", max_per_second="5", fields="message_id, clicked_at")
    changed.pop("enabled")
    response = await browser.post(path, data=changed)
    assert (response.status_code, response.headers["location"]) == (303, f"/portal/1/trackers/{tracker.id}")
    (tracker,) = await service.trackers.all(1)
    assert (tracker.enabled, tracker.events, tracker.max_per_second) == (False, ["click", "conversion"], 5)
    assert (tracker.max_attempts, tracker.fields) == (None, ["message_id", "clicked_at"]), "empty fields are the defaults again"

    gone = update(schema.trackers).values(disabled_reason=GONE)
    await service.database.write(lambda connection: connection.execute(gone).rowcount)
    await browser.post(path, data=changed)
    assert (await service.trackers.get(tracker.id)).disabled_reason == GONE, "the form repeats that the tracker is disabled"

    rotated = await browser.post(path, data={"action": "rotate", "confirmed": "yes"})
    assert secret not in html.unescape(rotated.text)
    assert "whsec_" in rotated.text
    response = await browser.post(path, data={"action": "delete", "confirmed": "yes"})
    assert (response.status_code, response.headers["location"]) == (303, "/portal/1/trackers?deleted=1")
    assert "The tracker is deleted." in (await browser.get(response.headers["location"])).text
    assert await service.trackers.all(1) == []
    rows = (await log(service))[1:]
    assert [row.action for row in rows] == ["tracker_created", "tracker_changed", "tracker_secret_replaced", "tracker_deleted"]
    assert "http" not in str([(row.object, row.before, row.after) for row in rows]), "a URL can contain credentials"
    assert secret not in str(rows)
    assert (rows[1].before["enabled"], rows[1].after["enabled"], rows[2].after) == (True, False, {"secret": "replaced"})


async def test_a_tracker_form_that_is_sent_again_creates_no_second_tracker_or_secret(
    service: Service, sign_in: SignIn, receiver: Receiver
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    (form_id,) = re.findall(r'name="form_id" value="([^"]+)"', (await browser.get(NEW)).text)
    invalid = form(receiver, url="https://169.254.169.254/latest", form_id=form_id)
    for _ in range(2):
        assert "sent before" not in (await browser.post(NEW, data=invalid)).text, "a form that failed can be sent again"
    assert "whsec_" in (await browser.post(NEW, data=form(receiver, form_id=form_id))).text
    (tracker,) = await service.trackers.all(1)
    repeated = await browser.post(NEW, data=form(receiver, form_id=form_id))
    assert repeated.status_code == 422
    assert "This form was sent before" in repeated.text
    assert len(await service.trackers.all(1)) == 1
    rotate = {"action": "rotate", "form_id": form_id, "confirmed": "yes"}
    pages = [await browser.post(f"/portal/1/trackers/{tracker.id}/edit", data=rotate) for _ in range(2)]
    assert ["whsec_" in page.text for page in pages] == [True, False]
    assert [row.action for row in await log(service)][1:] == ["tracker_created", "tracker_secret_replaced"]


async def test_if_the_record_of_a_tracker_form_cannot_be_stored_nothing_changes_and_the_form_can_be_sent_again(
    service: Service, sign_in: SignIn, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise StoreUnavailable("the disk is full")

    browser = await sign_in("Mia", Role.MANAGER, 1)
    path, rotate = NEW, {"action": "rotate", "form_id": "two", "confirmed": "yes"}
    for values in (form(receiver, form_id="one"), rotate):
        for place, name in ((repeats, "store"), (AuditWriter, "add")):
            before, rows = await service.trackers.all(1), await log(service)
            with monkeypatch.context() as patch:
                patch.setattr(place, name, fail)
                assert (await browser.post(path, data=values)).status_code == 503
            assert await service.trackers.all(1) == before
            assert await log(service) == rows
        assert "whsec_" in (await browser.post(path, data=values)).text, "the secret is shown"
        assert len(await log(service)) == len(rows) + 1
        (tracker,) = await service.trackers.all(1)
        path = f"/portal/1/trackers/{tracker.id}/edit"


async def test_the_tracker_preview_shows_requests_of_real_events_and_sends_nothing(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, receiver: Receiver
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    page = await browser.post(NEW, data=form(receiver, action="preview"))
    assert "Example event" in page.text
    message = await send(service, browser, message_id="order-7")
    await click(service, await new_browser(), message["links"][0]["code"])
    for format in ("json", "scg"):
        page = await browser.post(NEW, data=form(receiver, action="preview", format=format))
        assert page.status_code == 200
        assert "POST /in?id=order-7 HTTP/1.1" in page.text
        assert "+14085550123" not in page.text
        assert 'value="click" checked' in page.text, "the form keeps its input"
    assert await service.trackers.all(1) == []
    await service.fanout.flush()
    await service.dispatcher.flush()
    assert receiver.requests == []


async def test_the_filter_for_conversions_is_set_previewed_changed_and_removed_in_the_portal(
    service: Service, sign_in: SignIn, receiver: Receiver
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    chosen = form(
        receiver,
        url=receiver.url("/?{action}={disposition}"),
        events=["conversion"],
        conversion_actions="Sale\r\n Add, to cart \r\n\r\nsale",
        conversion_dispositions=["none", "positive"],
    )
    page = await browser.post(NEW, data=chosen | {"action": "preview"})
    assert "Example event" in page.text
    assert "GET /?" not in page.text
    assert "POST /?sale=positive HTTP/1.1" in page.text
    assert 'value="none" checked' in page.text
    message = await send(service, browser, message_id="order-7")
    for action, status in (("sale", "paid"), ("lead", "paid"), ("Sale", "rejected"), ("ADD, TO CART", "pending")):
        report = {"message_id": message["message_id"], "action": action, "status": status}
        await service.conversions.ingest(1, parse_conversion(report, service.clock()))
    page = await browser.post(NEW, data=chosen | {"action": "preview"})
    assert re.findall(r"POST /\?(\S+) HTTP", html.unescape(page.text)) == ["ADD%2C%20TO%20CART=", "sale=positive"]

    assert (await browser.post(NEW, data=chosen)).status_code == 200
    (tracker,) = await service.trackers.all(1)
    assert (tracker.conversion_actions, tracker.conversion_dispositions) == (["Sale", "Add, to cart"], ["positive", "none"])
    path = f"/portal/1/trackers/{tracker.id}"
    shown = (await browser.get(path)).text
    assert "only with the action Sale, Add, to cart; only with the disposition positive, none" in shown
    edited = (await browser.get(f"{path}/edit")).text
    assert ">Sale\nAdd, to cart</textarea>" in edited
    assert [name in edited for name in ('value="positive" checked', 'value="none" checked', 'value="negative" checked')] == [
        True,
        True,
        False,
    ]
    for name in ("conversion_actions", "conversion_dispositions"):
        chosen.pop(name)
    assert (await browser.post(f"{path}/edit", data=chosen)).status_code == 303
    (tracker,) = await service.trackers.all(1)
    assert tracker.conversion_actions == ["Sale", "Add, to cart"], "a form of the previous release does not have the field"
    assert (await browser.post(f"{path}/edit", data=chosen | {"conversion_actions": "x" * 65})).status_code == 422
    assert (await browser.post(f"{path}/edit", data=chosen | {"conversion_actions": ""})).status_code == 303
    (tracker,) = await service.trackers.all(1)
    assert (tracker.conversion_actions, tracker.conversion_dispositions) == (None, None)
    assert "only with" not in (await browser.get(path)).text
    created, changed = (await log(service))[1:]
    assert (created.action, changed.before["conversion_actions"]) == ("tracker_created", ["Sale", "Add, to cart"])
    assert changed.after == {"conversion_actions": None, "conversion_dispositions": None}


@on_one_service
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conversion_actions", "x" * 65),
        ("url", ""),
        ("url", "ftp://x.example/"),
        ("url", "https://x.example/?a={{phone}}"),
        ("url", "https://169.254.169.254/latest"),
        ("events", ["x"]),
        ("format", "xml"),
        ("fields", "no_such_field"),
        ("max_attempts", "0"),
        ("timeout", "many"),
        ("max_per_second", "-1"),
    ],
)
@pytest.mark.parametrize("action", ["save", "preview"])
async def test_invalid_tracker_values_change_nothing_and_stay_in_the_form(
    service: Service, sign_in: SignIn, receiver: Receiver, name: str, value: str, action: str
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    page = await browser.post(NEW, data=form(receiver, concurrency="7", action=action) | {name: value})
    assert page.status_code == 422
    assert 'class="wrong"' in page.text
    assert 'value="7"' in page.text
    assert await service.trackers.all(1) == []
    assert [row.action for row in await log(service)] == ["invitation_accepted"]


async def test_changing_a_tracker_requires_a_manager_of_its_application_and_a_recently_entered_password(
    service: Service, sign_in: SignIn, receiver: Receiver, clock: Clock
) -> None:
    support = await sign_in("Sue", Role.SUPPORT, 1)
    assert (await support.get(NEW)).status_code == 403
    assert NEW not in (await support.get("/portal/1/trackers")).text
    manager = await sign_in("Mia", Role.MANAGER, 1)
    for path in ("/portal/1/trackers/99/edit", "/portal/1/trackers/x/edit", "/portal/2/trackers/new"):
        assert (await manager.get(path)).status_code == 404
        assert (await manager.post(path, data={"action": "delete"})).status_code == 404
    clock.forward(minutes=11)
    response = await manager.post(NEW, data=form(receiver))
    assert response.status_code == 403
    assert "Confirm your password" in response.text
    assert await service.trackers.all(1) == []
