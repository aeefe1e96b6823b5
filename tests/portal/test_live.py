"""Tests of the live page and its feed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection

from shortener.accounts import administration
from shortener.container import Service
from shortener.errors import StoreUnavailable
from shortener.portal import live, live_feed
from shortener.portal.live_feed import LiveBatch, LiveFeed, LiveRow, read_rows
from shortener.portal.operators import Role
from shortener.portal.pages import all_pages
from shortener.portal.rendering import Renderer
from shortener.portal.sessions import session_limits
from tests.conftest import NOON, Clock
from tests.portal.conftest import NewBrowser, SignIn, click, send
from tests.servers import PATIENCE


async def test_the_live_page_shows_a_new_click(service: Service, sign_in: SignIn, new_browser: NewBrowser) -> None:
    browser, phone = await sign_in(), await new_browser()
    message = await send(service, browser)
    assert "Nothing in the last 15 minutes" in (await browser.get("/portal/1/live")).text
    await click(service, phone, message["links"][0]["code"])
    page = await browser.get("/portal/1/live")
    assert message["message_id"] in page.text


async def test_the_live_page_and_its_stream_show_only_rows_of_the_selected_kind(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    browser, phone = await sign_in(), await new_browser()
    message = await send(service, browser)
    await click(service, phone, message["links"][0]["code"])
    shown = {kind: (await browser.get(f"/portal/1/live?show={kind}")).text for kind in ("clicks", "deliveries", "nonsense")}
    assert {kind: message["message_id"] in text for kind, text in shown.items()} == {
        "clicks": True,
        "deliveries": False,
        "nonsense": True,
    }
    assert 'hx-sse:connect="/portal/1/live/stream?show=clicks"' in shown["clicks"]
    assert "No deliveries in the last 15 minutes" in shown["deliveries"]
    assert "Open the link" not in shown["deliveries"], "a click alone causes no delivery"
    assert 'hx-sse:connect="/portal/1/live/stream"' in shown["nonsense"]


async def test_the_live_feed_sends_each_row_once_and_only_to_operators_of_its_application(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    browser, phone = await sign_in(), await new_browser()
    before = await send(service, browser)
    await click(service, phone, before["links"][0]["code"])
    feed = LiveFeed(service.database, service.clock, interval=0.02)
    async with feed.subscribe([1]) as own, feed.subscribe([2]) as foreign:
        message = await send(service, browser)
        await click(service, phone, message["links"][0]["code"])
        batch = await asyncio.wait_for(own.get(), PATIENCE)
        assert [row.message_id for row in batch.rows] == [message["message_id"]], "the click before the subscription is not new"
        await asyncio.sleep(0.2)  # during this time, the live feed reads the same rows ten more times
        assert own.empty()
        assert foreign.empty()


async def test_the_live_feed_continues_after_an_outage_of_the_database(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    row = LiveRow("hit", 7, NOON, 1, "clicks", "")
    answers: list[object] = [[], StoreUnavailable(), RuntimeError("unexpected"), [row]]

    def read(connection: Connection, since: object, applications: object) -> object:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(live_feed, "read_rows", read)
    async with LiveFeed(service.database, service.clock, interval=0.01).subscribe([1]) as batches:
        batch = await asyncio.wait_for(batches.get(), PATIENCE)
    assert list(batch.rows) == [row]


async def test_a_slow_subscriber_of_the_live_feed_loses_the_oldest_batches_so_that_memory_is_bounded(service: Service) -> None:
    subscriber = live_feed.LiveSubscriber(frozenset({1}))
    for number in range(3 * live_feed.MAX_WAITING):
        subscriber.put([LiveRow("hit", number, NOON, 1, "clicks", "")])
    assert subscriber.batches.qsize() == live_feed.MAX_WAITING
    assert subscriber.batches.get_nowait().rows[0].id == 2 * live_feed.MAX_WAITING


async def test_a_live_feed_batch_of_many_rows_contains_some_of_the_rows_and_the_number_of_omitted_rows() -> None:
    subscriber = live_feed.LiveSubscriber(frozenset({1}))
    subscriber.put([LiveRow("hit", number, NOON, 1, "clicks", "") for number in range(live_feed.SHOWN_PER_READING + 5)])
    batch = subscriber.batches.get_nowait()
    assert (len(batch.rows), batch.more) == (live_feed.SHOWN_PER_READING, 5)


async def test_the_live_stream_of_another_application_returns_404(sign_in: SignIn) -> None:
    browser = await sign_in("Vera", Role.VIEWER, 1)
    assert (await browser.get("/portal/2/live/stream")).status_code == 404


async def test_a_live_stream_without_a_session_and_a_fourth_live_stream_of_a_session_are_rejected(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    accept = {"Accept": "text/html, text/event-stream", "HX-Request": "true"}
    stranger = await (await new_browser()).get("/portal/1/live/stream", headers=accept)
    assert stranger.status_code == 401  # After a redirect, the script of the page would repeat the request endlessly.
    browser = await sign_in()
    visit, portal = _visit_of(service, browser, LiveFeed(service.database, service.clock, interval=0.02))
    async with contextlib.AsyncExitStack() as streams:
        for _ in range(live.MAX_STREAMS):
            stream = await streams.enter_async_context(contextlib.aclosing(live.event_stream(visit, portal, 1)))
            await anext(stream)
        async with asyncio.timeout(PATIENCE):  # without the limit of streams, this request would never end
            rejected = await browser.get("/portal/1/live/stream", headers=accept)
        assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "5")
    assert not live._streams, "a stream that has ended does not count"


async def test_the_live_feed_query_returns_only_rows_that_were_created_since_a_given_time(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    browser, phone = await sign_in(), await new_browser()
    message = await send(service, browser)
    await click(service, phone, message["links"][0]["code"])
    now = service.clock()
    assert len(await service.database.read(read_rows, now - timedelta(seconds=15), {1})) == 1
    assert await service.database.read(read_rows, now + timedelta(hours=1), {1}) == []
    assert await service.database.read(read_rows, now - timedelta(seconds=15), {2}) == []


async def test_the_live_page_and_feed_of_an_application_show_its_rows_beside_an_application_with_many_rows(
    service: Service, clock: Clock, sign_in: SignIn, new_browser: NewBrowser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_feed, "MAX_ROWS", 2)
    other = await service.database.write(administration.create_application, "busy", clock.now, secret=service.secret)
    await service.directory.refresh()
    pipeline, browser, phone = await new_browser(), await sign_in(), await new_browser()
    feed = LiveFeed(service.database, service.clock, interval=0.02)

    async def click_busy(times: int) -> None:
        for _ in range(times):
            body = {"to": "+14085550177", "body": '#track("https://shop.example/busy")'}
            answer = await pipeline.post("/api/v1/rewrite", json=body, headers={"X-API-Key": other.api_key})
            await click(service, phone, answer.json()["messages"][0]["links"][0]["code"])

    async with feed.subscribe([other.application_id]), feed.subscribe([1]) as own:
        await click_busy(1)
        message = await send(service, browser)
        await click(service, phone, message["links"][0]["code"])
        await click_busy(4)
        batch = await asyncio.wait_for(own.get(), PATIENCE)
    assert [row.message_id for row in batch.rows if row.kind == "hit"] == [message["message_id"]]
    assert message["message_id"] in (await browser.get("/portal/1/live")).text
    hits = [row for row in await service.database.read(read_rows, NOON, {1, other.application_id}) if row.kind == "hit"]
    assert sorted(row.application_id for row in hits) == [1, other.application_id, other.application_id]


def _visit_of(service: Service, browser: httpx.AsyncClient, feed: Any) -> tuple[Any, Any]:
    """Return a visit and its portal, with only the attributes that a live stream uses."""
    portal = SimpleNamespace(
        live=feed,
        cookie_name=next(iter(browser.cookies)),
        limits=session_limits(service.settings),
        renderer=Renderer(all_pages()),
    )
    visit = SimpleNamespace(
        service=service,
        applications=[SimpleNamespace(id=1)],
        application=None,
        request=SimpleNamespace(cookies=dict(browser.cookies)),
        zone=UTC,
        portal=portal,
        now=NOON,
    )
    return visit, portal


async def test_a_live_stream_that_was_interrupted_continues_with_each_missed_row_once(
    service: Service, sign_in: SignIn, new_browser: NewBrowser
) -> None:
    browser, phone = await sign_in(), await new_browser()
    messages = [await send(service, browser) for _ in range(3)]
    ids, codes = [one["message_id"] for one in messages], [one["links"][0]["code"] for one in messages]
    visit, portal = _visit_of(service, browser, LiveFeed(service.database, service.clock, interval=0.02))
    async with contextlib.aclosing(live.event_stream(visit, portal, 1)) as stream:
        assert re.fullmatch(r"id: \d+\nretry: 2000\n\n", await anext(stream))
        await click(service, phone, codes[0])
        event = await anext(stream)
    assert [one in event for one in ids] == [True, False, False]
    (last_id,) = re.findall(r"^id: (\d+)$", event, re.MULTILINE)
    await click(service, phone, codes[1])  # the browser misses this click
    async with contextlib.aclosing(live.event_stream(visit, portal, 1, live._last_id(last_id))) as stream:
        assert await anext(stream) == f"id: {last_id}\nretry: 2000\n\n"
        event = await anext(stream)
        assert [one in event for one in ids] == [False, True, False]
        await click(service, phone, codes[2])
        event = await anext(stream)
    assert [one in event for one in ids] == [False, False, True]


async def test_a_live_stream_of_one_kind_of_rows_leaves_out_the_others(service: Service, sign_in: SignIn) -> None:
    rows = [LiveRow("delivery", 1, NOON, 1, "shop", "", "m-delivery"), LiveRow("hit", 2, NOON, 1, "clicks", "", "m-hit")]

    class Feed:
        @contextlib.asynccontextmanager
        async def subscribe(self, applications: object) -> AsyncIterator[object]:
            yield self

        async def get(self) -> LiveBatch:
            return LiveBatch(rows, 0)

    visit, portal = _visit_of(service, await sign_in(), Feed())
    async with contextlib.aclosing(live.event_stream(visit, portal, 1, kind="hit")) as stream:
        await anext(stream)
        event = await anext(stream)
    assert ("m-hit" in event, "Delivery to" in event) == (True, False)


@pytest.mark.parametrize("text", ["", "x", "-1", "9" * 19, "9" * 40, "\N{SUPERSCRIPT TWO}"])
def test_a_live_stream_ignores_a_last_event_id_that_is_no_row_id(text: str) -> None:
    assert live._last_id(text) is None


async def test_a_busy_live_stream_ends_soon_after_its_session_has_ended(
    service: Service, sign_in: SignIn, new_browser: NewBrowser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "HEARTBEAT", 0.05)
    monkeypatch.setattr(live, "STOP_CHECK", 0.01)
    browser = await sign_in()
    row = LiveRow("hit", 1, NOON, 1, "clicks", "", "m")

    class BusyFeed:
        @contextlib.asynccontextmanager
        async def subscribe(self, applications: object) -> AsyncIterator[object]:
            yield self

        async def get(self) -> LiveBatch:
            await asyncio.sleep(0.005)  # a new row every 5 ms
            return LiveBatch([row], 0)

    visit, portal = _visit_of(service, browser, BusyFeed())
    received = 0
    async with asyncio.timeout(2 * PATIENCE):
        async for _ in live.event_stream(visit, portal, 1):
            received += 1
            if received == 20:
                await browser.post("/portal/signout")
    assert received >= 20
