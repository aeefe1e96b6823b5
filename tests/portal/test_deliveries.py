"""Tests of the pages of trackers, deliveries and the system."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest

from shortener.container import Service
from shortener.delivery.dispatch_queries import update_tracker
from shortener.delivery.trackers import NewTracker, TrackerChanges
from shortener.errors import StoreUnavailable
from shortener.model import DeliveryStatus, Topic
from shortener.portal.admin_system import CHECKS
from shortener.portal.operators import Role
from shortener.portal.outcome_texts import TOPIC_LABELS
from tests.conftest import Clock
from tests.delivery.dispatching import fill
from tests.factory import AUDIT
from tests.portal.conftest import NewBrowser, SignIn, click, log, send
from tests.receiver import Receiver, Reply

# A period that contains all rows. Row ids contain the time of the machine instead of the time of the test clock, so a shorter
# period could miss rows.
EVER = "period=custom&since=2026-01-01&until=2035-01-01"


async def test_the_tracker_pages_of_the_portal_explain_how_to_add_the_first_tracker(sign_in: SignIn) -> None:
    browser = await sign_in()
    assert "No tracker yet" in (await browser.get("/portal/1/trackers")).text
    assert "No deliveries in this period" in (await browser.get("/portal/1/deliveries")).text


async def test_a_viewer_cannot_open_tracker_pages_because_tracker_urls_can_contain_credentials(sign_in: SignIn) -> None:
    browser = await sign_in("Vera", Role.VIEWER, 1)
    for path in ("trackers", "trackers/1", "deliveries"):
        assert (await browser.get(f"/portal/1/{path}")).status_code == 403, path
    assert "/portal/1/trackers" not in (await browser.get("/portal/1/")).text


async def test_the_system_page_shows_the_checks_of_readyz_to_admins_only(sign_in: SignIn) -> None:
    admin, manager = await sign_in(), await sign_in("Max", Role.MANAGER, 1)
    assert (await manager.get("/portal/admin/system")).status_code == 404
    page = await admin.get("/portal/admin/system")
    assert page.status_code == 200
    checks = (await admin.get("/readyz")).json()["checks"]
    shown = re.findall(r'<th scope="row">([^<]+)</th><td data-label="State"[^>]*>.*?(works|fails|not configured)', page.text)
    words = {"ok": "works", "failed": "fails", "none": "not configured"}
    assert shown == [(CHECKS[name][0], words[state]) for name, state in checks.items()]
    assert {word for _, word in shown} == {*words.values()}, "the test compares every state"


async def test_the_portal_shows_the_attempts_of_a_dead_delivery_and_support_can_replay_it(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, receiver: Receiver
) -> None:
    admin, support, phone = await sign_in(), await sign_in("Sue", Role.SUPPORT, 1), await new_browser()
    credentials = service.first_credentials
    assert credentials is not None
    tracker = {"url": receiver.url(), "events": ["click"], "name": "shop", "max_attempts": 1}
    created = await admin.post("/api/v1/trackers", json=tracker, headers={"X-API-Key": credentials.api_key})
    assert created.status_code == 201, created.text
    number = created.json()["tracker_id"]
    receiver.default_reply = Reply(400, b"<b>no such order</b>")
    message = await send(service, admin)
    await click(service, phone, message["links"][0]["code"])
    await service.recorder.flush()
    await service.fanout.flush()
    await service.dispatcher.flush()

    viewer = await sign_in("Vera", Role.VIEWER, 1)
    for browser, recipient in ((support, f'<a href="/portal/1/trackers/{number}">shop</a>'), (viewer, "shop")):
        live = (await browser.get("/portal/1/live")).text
        assert f"<h3>Delivery to {recipient}</h3>" in live
        assert "the endpoint responded with 400" in live
        assert "other_status" not in live
    listed = await support.get(f"/portal/1/deliveries?status=dead&{EVER}")
    assert "the endpoint responded with 400" in listed.text
    timeline = (await support.get(f"/portal/1/messages/{message['message_id']}")).text
    assert "To shop, 1 attempt: the endpoint responded with 400." in timeline
    (path,) = set(re.findall(r"/portal/1/deliveries/\w+", listed.text))
    page = await support.get(path)
    assert "the endpoint responded with 400" in page.text
    assert f'<dt>To</dt><dd><a href="/portal/1/trackers/{number}">shop</a>' in page.text
    assert "&lt;b&gt;no such order&lt;/b&gt;" in page.text
    rows = (await support.get(f"/portal/1/deliveries.csv?status=dead&{EVER}")).text.splitlines()
    assert len(rows) == 2
    assert "shop" in (await support.get("/portal/1/trackers")).text
    assert (await support.get(f"/portal/1/trackers/{number}")).status_code == 200

    receiver.default_reply = 200
    (form_id,) = re.findall(r'name="form_id" value="([^"]+)"', page.text)
    requests = len(receiver.requests)
    for _ in range(2):
        # When the form is sent the second time, the delivery has ended again. Without the form_id, it would be replayed again,
        # and the receiver would get the event once more.
        assert (await support.post(path, data={"form_id": form_id})).status_code == 303
        await service.dispatcher.flush()
    assert len(receiver.requests) == requests + 1
    assert "Delivered" in (await support.get(path)).text
    assert (await support.post(f"/portal/1/trackers/{number}")).status_code == 403, "a test event needs the role manager"
    tested = await admin.post(f"/portal/1/trackers/{number}")
    assert "The receiver accepted the test event" in tested.text
    actions = [row.action for row in await log(service)]
    assert actions[-2:] == ["delivery_replayed", "test_delivery_sent"]


async def test_a_form_that_sends_a_test_event_sends_no_second_one_if_it_is_sent_again(
    service: Service, sign_in: SignIn, receiver: Receiver
) -> None:
    browser = await sign_in("Mia", Role.MANAGER, 1)
    new = NewTracker(url=receiver.url(), events=("click",), name="mine", signed=False)
    path = f"/portal/1/trackers/{(await service.trackers.create(AUDIT, 1, new)).tracker.id}"
    (form_id,) = re.findall(r'name="form_id" value="([^"]+)"', (await browser.get(path)).text)
    first = await browser.post(path, data={"form_id": form_id})
    assert "The receiver accepted the test event" in first.text
    repeated = await browser.post(path, data={"form_id": form_id})
    assert repeated.status_code == 200
    assert "This form was already sent, so it sends no test event now." in repeated.text
    assert len(receiver.requests) == 1
    (next_id,) = re.findall(r'name="form_id" value="([^"]+)"', repeated.text)
    assert "The receiver accepted the test event" in (await browser.post(path, data={"form_id": next_id})).text
    assert len(receiver.requests) == 2


async def test_a_repeated_form_does_not_say_that_a_test_event_was_sent_if_the_first_one_failed(
    service: Service, sign_in: SignIn, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: object, **options: object) -> None:
        raise StoreUnavailable("the database was stopped before the test event was sent")

    browser = await sign_in("Mia", Role.MANAGER, 1)
    new = NewTracker(url=receiver.url(), events=("click",), name="mine", signed=False)
    path = f"/portal/1/trackers/{(await service.trackers.create(AUDIT, 1, new)).tracker.id}"
    (form_id,) = re.findall(r'name="form_id" value="([^"]+)"', (await browser.get(path)).text)
    with monkeypatch.context() as patch:
        patch.setattr("shortener.portal.trackers.send_test", fail)
        assert (await browser.post(path, data={"form_id": form_id})).status_code == 503
    repeated = await browser.post(path, data={"form_id": form_id})
    assert receiver.requests == []
    assert "If it sent one before, the delivery is listed below" in repeated.text
    assert "second test event" not in repeated.text


async def test_the_number_of_dead_deliveries_of_a_tracker_links_to_the_list_of_these_deliveries_and_to_their_replay(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, receiver: Receiver
) -> None:
    browser, phone = await sign_in(), await new_browser()
    credentials = service.first_credentials
    assert credentials is not None
    tracker = {"url": receiver.url(), "events": ["click"], "max_attempts": 1}
    created = await browser.post("/api/v1/trackers", json=tracker, headers={"X-API-Key": credentials.api_key})
    number = created.json()["tracker_id"]
    receiver.default_reply = 400
    for _ in range(3):
        await click(service, phone, (await send(service, browser))["links"][0]["code"])
    await service.recorder.flush()
    await service.fanout.flush()
    await service.dispatcher.flush()
    for path in ("trackers", f"trackers/{number}"):
        text = (await browser.get(f"/portal/1/{path}")).text
        (href,) = re.findall(r'data-figure="dead" data-value="3" href="([^"]+)"', text)
        address = html.unescape(href).replace("deliveries?", "deliveries.csv?").replace("period=365d", EVER)
        exported = await browser.get(address)
        assert len(exported.text.splitlines()) == 1 + 3
    page = await browser.get(f"/portal/1/deliveries?tracker={number}&status=dead&{EVER}")
    assert f"/portal/1/deliveries/replays/new?{html.escape(EVER)}&amp;tracker={number}" in page.text
    page = await browser.get(f"/portal/1/deliveries?status=dead&{EVER}")
    assert "replays/new" not in page.text, "a replay needs a tracker"


async def test_a_pending_delivery_shows_what_holds_it_and_no_time_in_the_past(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in()
    new = NewTracker(url="https://t.example/", events=("click",), name="shop", signed=False)
    tracker = (await service.trackers.create(AUDIT, 1, new)).tracker.id
    await fill(service, tracker, DeliveryStatus.PENDING, 1, next_at=clock() - timedelta(minutes=45))
    await service.database.write(update_tracker, tracker, {"open_until": clock() + timedelta(minutes=2)})
    listed = (await browser.get(f"/portal/1/deliveries?{EVER}")).text
    (path,) = set(re.findall(r"/portal/1/deliveries/dlv_\w+", listed))
    pages = (f"/portal/1/deliveries?{EVER}", path)
    past = f"{clock() - timedelta(minutes=45):%-d %b, %H:%M}"
    for page in pages:
        text = (await browser.get(page)).text
        assert "waits: the endpoint fails, next attempt" in text
        assert f"{clock() + timedelta(minutes=2):%H:%M:%S}" in text
        assert past not in text
    await service.trackers.update(AUDIT, tracker, TrackerChanges(enabled=False))
    for page in pages:
        assert "waits: the tracker is disabled" in (await browser.get(page)).text


async def test_deliveries_are_filtered_by_the_name_of_a_tracker_and_their_csv_contains_it(
    service: Service, sign_in: SignIn
) -> None:
    browser = await sign_in()
    numbers = []
    for name in ("shop", "twin", "twin"):
        new = NewTracker(url="https://t.example/", events=("click",), name=name, signed=False)
        numbers.append((await service.trackers.create(AUDIT, 1, new)).tracker.id)
    await fill(service, numbers[0], DeliveryStatus.DEAD, 1)
    page = (await browser.get(f"/portal/1/deliveries?tracker={numbers[0]}&{EVER}")).text
    assert f'<option value="{numbers[0]}" selected>shop</option>' in page
    assert f'<option value="{numbers[1]}">twin ({numbers[1]})</option>' in page
    assert "<span>Tracker: shop</span>" in page
    assert '<option value="99" selected>99 (deleted)</option>' in (await browser.get("/portal/1/deliveries?tracker=99")).text
    header, row = (await browser.get(f"/portal/1/deliveries.csv?{EVER}")).text.splitlines()
    assert header.endswith(",tracker_name")
    assert row.endswith(",shop")


async def test_the_page_of_a_tracker_leads_to_each_delivery_and_to_the_replay_of_dead_deliveries(
    service: Service, sign_in: SignIn
) -> None:
    new = NewTracker(url="https://t.example/", events=("click",), name="shop", signed=False)
    tracker = (await service.trackers.create(AUDIT, 1, new)).tracker.id
    await fill(service, tracker, DeliveryStatus.DEAD, 2)
    browser = await sign_in()
    page = (await browser.get(f"/portal/1/trackers/{tracker}")).text
    assert f'href="/portal/1/deliveries/replays/new?tracker={tracker}&amp;period=365d"' in page
    links = re.findall(r'href="(/portal/1/deliveries/dlv_\w+)"', page)
    assert len(links) == 2
    assert (await browser.get(links[0])).status_code == 200


async def test_the_lists_of_deliveries_describe_events_in_words(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, receiver: Receiver
) -> None:
    assert TOPIC_LABELS.keys() == set(Topic) - {Topic.SUSPECTED}, "every topic that is delivered has a label"
    new = NewTracker(url=receiver.url(), events=("state",), format="json")
    tracker = (await service.trackers.create(AUDIT, 1, new)).tracker.id
    browser = await sign_in()
    await click(service, await new_browser(), (await send(service, browser))["links"][0]["code"])
    await service.recorder.flush()
    await service.fanout.flush()
    for path in (f"deliveries?{EVER}", f"trackers/{tracker}"):
        page = (await browser.get(f"/portal/1/{path}")).text
        assert '<td data-label="Event" class="keep">Message state</td>' in page, path
