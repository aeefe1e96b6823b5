"""Tests of the pages that replay the dead deliveries of a tracker."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import httpx
import pytest

from shortener.container import Service
from shortener.delivery import deliveries, replays
from shortener.delivery.deliveries import DeliveryFilter
from shortener.delivery.dispatch_queries import update_tracker
from shortener.delivery.trackers import NewTracker, TrackerChanges
from shortener.model import DeliveryStatus
from shortener.portal.operators import Role
from tests.conftest import Clock
from tests.delivery.dispatching import fill
from tests.factory import AUDIT
from tests.portal.conftest import NewBrowser, SignIn, click, log, send
from tests.receiver import Receiver

# A period that contains all rows. Row ids contain the time of the machine instead of the time of the test clock, so a shorter
# period could miss rows.
EVER = "period=custom&since=2026-01-01&until=2035-01-01"
NEW = "/portal/1/deliveries/replays/new"
FIGURE = re.compile(r'data-figure="(\w+)" data-value="(\d+)" href="([^"]+)"')


async def tracker_with_dead(service: Service, number: int, name: str = "mine") -> int:
    """Create a tracker with dead deliveries that have no events, and return its id."""
    new = NewTracker(url="https://t.example/", events=("click",), name=name, signed=False)
    tracker = (await service.trackers.create(AUDIT, 1, new)).tracker.id
    await fill(service, tracker, DeliveryStatus.DEAD, number)
    return tracker


async def start(browser: httpx.AsyncClient, tracker: int) -> str:
    """Start a replay with the form of the confirmation page, and return the URL of its progress page."""
    started = await browser.post(f"{NEW}?tracker={tracker}&{EVER}")
    assert started.status_code == 303, started.text
    return started.headers["location"]


def figures(page: httpx.Response) -> dict[str, int]:
    return {name: int(value) for name, value, _ in FIGURE.findall(page.text)}


async def test_the_overview_counts_dead_deliveries_in_the_singular_and_the_plural(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in("Sue", Role.SUPPORT, 1)
    tracker = await tracker_with_dead(service, 1, "one")
    await tracker_with_dead(service, 2, "two")
    page = (await browser.get("/portal/1/")).text
    assert "Tracker one has 1 dead delivery<" in page
    assert "Tracker two has 2 dead deliveries<" in page
    assert "without test events" in (await browser.get(f"/portal/1/trackers/{tracker}")).text


async def test_portal_forms_without_scripts_can_replay_dead_deliveries_with_the_same_event_ids(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, receiver: Receiver, clock: Clock
) -> None:
    browser, phone = await sign_in("Sue", Role.SUPPORT, 1), await new_browser()
    new = NewTracker(url=receiver.url(), events=("click",), name="mine", signed=False, max_attempts=1)
    tracker = (await service.trackers.create(AUDIT, 1, new)).tracker.id
    receiver.default_reply = 400
    for _ in range(3):
        await click(service, phone, (await send(service, browser))["links"][0]["code"])
    await service.recorder.flush()
    await service.fanout.flush()
    await service.dispatcher.flush()
    listed = await browser.get(f"/portal/1/deliveries?tracker={tracker}&status=dead&{EVER}")
    (address,) = re.findall(r'href="([^"]*replays/new[^"]*)"', listed.text)
    confirmation = await browser.get(html.unescape(address))
    assert "Replay 3 now" in confirmation.text
    assert figures(confirmation) == {"dead": 3}
    assert "At most 100 a second" in confirmation.text
    assert "<dt>Last outcome</dt><dd>the endpoint responded with 400</dd>" in confirmation.text
    before = await log(service)
    assert (await service.deliveries.backlog(tracker, service.clock())).dead == 3

    path = await start(browser, tracker)
    assert "0 of 3 queued again" in (await browser.get(path)).text
    assert await service.replays.step() == 3
    page = await browser.get(path)
    assert "3 of 3 queued again" in page.text
    assert "All are queued again: 0 delivered, 3 wait for the tracker." in page.text
    assert "Finished" not in page.text, "deliveries are waiting"
    notes = (await browser.get("/portal/1/deliveries")).text
    assert "All are queued again: 3 of 3 dead deliveries to mine were queued again. 0 delivered, 3 wait for the tracker" in notes
    assert '<div class="note good"' not in notes
    assert figures(page) == {"pending": 3, "delivered": 0, "dead": 0}
    receiver.replies, receiver.default_reply = [400], 200
    clock.forward(seconds=1)  # after this time, the recovery rate permits all three deliveries
    await service.dispatcher.flush()
    page = await browser.get(path)
    assert figures(page) == {"pending": 0, "delivered": 2, "dead": 1}
    assert "hx-get" not in page.text, "the page of a finished replay does not load itself again"
    assert "Finished, some failed again" in page.text
    assert "Replay is complete: 3 of 3" in (await browser.get("/portal/1/deliveries")).text
    for name, value, href in FIGURE.findall(page.text):
        csv = (await browser.get(html.unescape(href).replace("deliveries?", "deliveries.csv?"))).text
        assert len(csv.splitlines()) == 1 + int(value), name
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert sorted(ids[:3]) == sorted(ids[3:])
    (row,) = (await log(service))[len(before) :][:1]
    assert (row.operator, row.action, row.application_id) == ("Sue", "replay_started", 1)
    assert row.after["total"] == 3


async def test_a_replay_form_that_is_sent_again_leads_to_the_first_replay_and_starts_no_second_one(
    service: Service, sign_in: SignIn
) -> None:
    browser = await sign_in("Sue", Role.SUPPORT, 1)
    tracker = await tracker_with_dead(service, 2)
    url = f"{NEW}?tracker={tracker}&{EVER}"
    (form_id,) = re.findall(r'name="form_id" value="([^"]+)"', (await browser.get(url)).text)
    first = await browser.post(url, data={"form_id": form_id})
    assert first.status_code == 303
    running = await browser.post(url, data={"form_id": form_id})
    assert (running.status_code, running.headers.get("location")) == (303, first.headers["location"])
    while await service.replays.step():
        pass
    await fill(service, tracker, DeliveryStatus.DEAD, 1)
    ended = await browser.post(url, data={"form_id": form_id})
    assert (ended.status_code, ended.headers.get("location")) == (303, first.headers["location"])
    assert [row.action for row in await log(service)].count("replay_started") == 1
    assert (await service.deliveries.backlog(tracker, service.clock())).dead == 1


async def test_htmx_loads_only_the_numbers_of_a_replay_until_its_phase_changes(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in()
    path = await start(browser, await tracker_with_dead(service, 2))
    page = await browser.get(path)
    (address,) = re.findall(r'hx-get="([^"]+)" hx-trigger="every 2s"', page.text)
    address = html.unescape(address)
    part = await browser.get(address, headers={"HX-Request": "true"})
    assert part.status_code == 200
    assert "<html" not in part.text
    assert "0 of 2 queued again" in part.text
    await service.replays.step()
    ended = await browser.get(address, headers={"HX-Request": "true"})
    assert (ended.status_code, ended.headers["hx-redirect"]) == (204, path)
    assert 'hx-trigger="every 2s"' in (await browser.get(path)).text, "deliveries are waiting"


async def test_a_running_replay_is_stopped_by_a_form_and_shown_on_the_page_of_deliveries(
    service: Service, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(deliveries, "MAX_REPLAYED_PER_TRANSACTION", 2)
    browser = await sign_in()
    tracker = await tracker_with_dead(service, 5)
    path = await start(browser, tracker)
    await service.replays.step()
    listed = (await browser.get("/portal/1/deliveries")).text
    assert "Replay is running: 2 of 5 dead deliveries to mine" in listed
    assert path.partition("?")[0] in listed
    for _ in range(2):
        assert (await browser.post(path)).headers["location"] == path
    assert await service.replays.step() == 0
    page = (await browser.get(path)).text
    assert "an operator stopped it" in page
    assert "still dead" in page
    assert "Replay was stopped: 2 of 5" in (await browser.get("/portal/1/deliveries")).text
    actions = [row.action for row in await log(service)]
    assert actions[-2:] == ["replay_started", "replay_stopped"]
    clock.forward(days=2)
    assert "Replay was stopped" not in (await browser.get("/portal/1/deliveries")).text


async def test_the_page_of_a_replay_says_why_its_deliveries_wait(service: Service, sign_in: SignIn, clock: Clock) -> None:
    browser = await sign_in()
    tracker = await tracker_with_dead(service, 2)
    path = await start(browser, tracker)
    await service.replays.step()
    assert "The receiver fails at the moment" not in (await browser.get(path)).text
    open_until = {"open_until": clock() + timedelta(minutes=1)}
    await service.database.write(update_tracker, tracker, open_until)
    assert "The receiver fails at the moment" in (await browser.get(path)).text
    await service.trackers.update(AUDIT, tracker, TrackerChanges(enabled=False))
    page = await browser.get(path)
    assert "Nothing is sent now, because the tracker or the application is disabled" in page.text
    assert figures(page) == {"parked": 2, "delivered": 0, "dead": 0}
    await service.trackers.delete(AUDIT, tracker)
    assert "a deleted tracker" in (await browser.get(path)).text


async def test_the_confirmation_of_a_replay_says_that_the_tracker_fails_at_the_moment(
    service: Service, sign_in: SignIn, clock: Clock
) -> None:
    browser = await sign_in()
    tracker = await tracker_with_dead(service, 2)
    page = (await browser.get(f"{NEW}?tracker={tracker}&{EVER}")).text
    assert "working" in page
    assert "The tracker fails at the moment" not in page
    await service.database.write(update_tracker, tracker, {"open_until": clock() + timedelta(minutes=1)})
    page = (await browser.get(f"{NEW}?tracker={tracker}&{EVER}")).text
    assert "failing, waits" in page
    assert "The tracker fails at the moment" in page
    assert "Replay 2 now" in page


async def test_a_second_replay_of_a_tracker_is_rejected_with_a_link_to_the_first_replay(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in()
    tracker = await tracker_with_dead(service, 3)
    path = await start(browser, tracker)
    refused = await browser.post(f"{NEW}?tracker={tracker}&{EVER}")
    assert refused.status_code == 409
    assert "A replay of this tracker is running: 0 of 3" in refused.text
    assert "A second replay was not started" in refused.text
    for page in (refused.text, (await browser.get(f"{NEW}?tracker={tracker}&{EVER}")).text):
        assert html.escape(path) in page
        assert '<button class="button main">' not in page, "the page has no button that starts another one"
    assert [row.action for row in await log(service)].count("replay_started") == 1


async def test_the_confirmation_page_shows_the_reason_why_nothing_can_be_replayed(service: Service, sign_in: SignIn) -> None:
    browser = await sign_in()
    tracker = await tracker_with_dead(service, 1)
    empty = await browser.get(f"{NEW}?tracker={tracker}&period=custom&since=2020-01-01&until=2020-02-01")
    assert "No dead deliveries in this period" in empty.text
    await service.trackers.update(AUDIT, tracker, TrackerChanges(enabled=False))
    for page in (await browser.get(f"{NEW}?tracker={tracker}&{EVER}"), await browser.post(f"{NEW}?tracker={tracker}&{EVER}")):
        assert "Nothing would be sent, because the tracker is disabled" in page.text
    assert page.status_code == 409


async def test_replays_require_the_role_support_and_are_visible_only_in_their_application(
    service: Service, sign_in: SignIn
) -> None:
    viewer, support = await sign_in("Vera", Role.VIEWER, 1), await sign_in("Sue", Role.SUPPORT, 1)
    tracker = await tracker_with_dead(service, 1)
    for browser, status in ((viewer, 403), (support, 303)):
        assert (await browser.post(f"{NEW}?tracker={tracker}&{EVER}")).status_code == status
    (replay,) = await service.database.read(replays.list_replays, 1, service.clock(), 10)
    path = f"/portal/1/deliveries/replays/{replay.public_id}"
    assert (await viewer.get(path)).status_code == (await viewer.post(path)).status_code == 403
    assert (await support.get("/portal/1/deliveries/replays/rpl_00000000001")).status_code == 404
    assert (await support.get("/portal/1/deliveries?replay=rpl_00000000001")).status_code == 404
    for wrong in ("", "x", "99", "99999999999999"):
        assert (await support.get(f"{NEW}?tracker={wrong}")).status_code == 404
        assert (await support.post(f"{NEW}?tracker={wrong}")).status_code == 404
    assert await service.deliveries.count_dead(DeliveryFilter(1, tracker)) == 1
