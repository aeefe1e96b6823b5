"""Tests of the lists of hits, events and messages: their pages, their CSV, and whether their rows add up to the statistics."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.delivery.trackers import NewTracker
from shortener.reporting import event_list, hits
from shortener.reporting.count_check import verify
from shortener.reporting.csv_lists import stream_csv
from shortener.reporting.event_list import EventFilter, list_events
from shortener.reporting.hits import HIT_METRICS, HitFilter, list_hits
from shortener.reporting.messages import MESSAGE_METRICS, MessageFilter, list_messages
from shortener.reporting.rollup_check import verify_rollups
from shortener.reporting.rollups import Basis
from shortener.reporting.statistics import StatisticsFilter, totals
from shortener.storage.database import Database
from shortener.storage.migrate import migrate
from shortener.storage.open import open_database
from shortener.storage.sqlite import SqliteDatabase
from tests.conftest import NOON, Clock, MakeService, client_of
from tests.factory import AUDIT
from tests.reporting.plans import plans, scanned
from tests.web.calls import PHONE, TO, click, convert, report, rewrite

TWO_LINKS = 'A #trackurl("https://shop.example/menu?x=1","menu") and #track("https://shop.example/other/")'


@pytest.fixture
async def history(client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock) -> httpx.AsyncClient:
    """Create messages of two days in two campaigns, with hits of every verdict, delivery reports and a conversion."""
    messages = [await rewrite(client, f"m{number}", campaign="spring", body=TWO_LINKS) for number in range(4)]
    messages.append(await rewrite(client, "m4", to="+491701234567", campaign="autumn", source="campaign"))
    messages.append(await rewrite(client, "short", campaign="autumn", expires_in=60))
    codes = [[link["code"] for link in message["links"]] for message in messages]
    for message_id in ("m0", "m1", "m4"):
        await report(client, message_id, "SENT")
    await report(client, "m0", "DELIVERED")
    await client.get(f"/{codes[0][0]}", headers=PHONE)
    clock.forward(hours=26)
    for message_id in ("m1", "m4"):
        await report(client, message_id, "DELIVERED")
    await report(client, "m1", "READ")
    await report(client, "m2", "FAILED")
    for code in (codes[0][1], codes[0][1], codes[1][1], codes[4][0], codes[5][0]):
        await client.get(f"/{code}", headers=PHONE)
    await client.get(f"/{codes[1][0]}", headers={"User-Agent": "curl/8"})
    await client.head(f"/{codes[4][0]}")
    await convert(service, credentials, message_id="m0", action="sale", value="0.10", currency="EUR")
    await convert(service, credentials, message_id="m4", action="sale", timestamp=(clock() - timedelta(hours=20)).isoformat())
    await service.fanout.flush()
    return client


async def get(client: httpx.AsyncClient, path: str, **query: Any) -> dict[str, Any]:
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def all_rows(client: httpx.AsyncClient, path: str, name: str, **query: Any) -> list[dict[str, Any]]:
    """Return the rows of all pages of a list, requested with two rows per page."""
    rows: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = await get(client, path, limit=2, **query, **cursor)
        rows += page[name]
        if page["next_cursor"] is None:
            return rows
        cursor = {"cursor": page["next_cursor"]}


async def csv_rows(client: httpx.AsyncClient, path: str, **query: Any) -> list[dict[str, str]]:
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(response.text)))


@pytest.mark.parametrize("basis", ["event", pytest.param("sent", marks=pytest.mark.slow)])
async def test_the_number_of_listed_rows_equals_each_figure_of_the_statistics(
    history: httpx.AsyncClient, clock: Clock, basis: str
) -> None:
    saturday = clock().date()
    friday = saturday - timedelta(days=1)
    periods: list[dict[str, str]] = [{}, {"since": str(friday), "until": str(friday)}, {"since": str(saturday)}]
    periods.append({"since": f"{saturday}T12:07:00Z", "until": f"{saturday}T14:01:00Z"})
    seen: set[str] = set()
    filters: list[dict[str, str]] = [{"campaign": "spring"}, {"source": "campaign"}, {"tz": "Asia/Kolkata"}]
    for chosen in (*periods, *filters, *({**periods[1], **more} for more in filters)):
        query = {**chosen, "basis": basis}
        figures = await get(history, "/api/v1/sms/stats", **query)
        for metric in HIT_METRICS:
            rows = await all_rows(history, "/api/v1/clicks", "clicks", metric=metric, **query)
            assert len(rows) == figures[metric], (metric, query)
            assert len(await csv_rows(history, "/api/v1/clicks.csv", metric=metric, **query)) == figures[metric]
            seen |= {metric} if rows else set()
        for of_messages in MESSAGE_METRICS:
            rows = await all_rows(history, "/api/v1/sms/messages", "messages", metric=of_messages, **query)
            assert len(rows) == figures[of_messages], (of_messages, query)
            seen |= {of_messages} if rows else set()
        rows = await all_rows(history, "/api/v1/conversions", "conversions", metric="conversions", **query)
        assert len(rows) == figures["conversions"], query
        assert len(await csv_rows(history, "/api/v1/conversions.csv", metric="conversions", **query)) == figures["conversions"]
        seen |= {"conversions"} if rows else set()
        rows = await all_rows(history, "/api/v1/links", "links", metric="links", **query)
        assert len(rows) == figures["links"], query
        assert len(await csv_rows(history, "/api/v1/links.csv", metric="links", **query)) == figures["links"]
        seen |= {"links"} if rows else set()
    assert seen == {*HIT_METRICS, *MESSAGE_METRICS, "conversions", "links"}, "every figure has rows"


async def assert_lists_of_groups_agree_with_the_statistics(history: httpx.AsyncClient) -> None:
    for basis in ("event", "sent"):
        for path, name, parameter in (
            ("by-destination", "destinations", "destination"),
            ("by-label", "labels", "label"),
            ("by-country", "countries", "country"),
            ("by-campaign", "campaigns", "campaign"),
        ):
            groups = (await get(history, f"/api/v1/sms/stats/{path}", basis=basis))[name]
            assert groups
            for group in groups:
                for metric in HIT_METRICS:
                    query = {parameter: group[parameter], "metric": metric, "basis": basis}
                    rows = await all_rows(history, "/api/v1/clicks", "clicks", **query)
                    assert len(rows) == group[metric], query
                query = {parameter: group[parameter], "metric": "conversions", "basis": basis}
                rows = await all_rows(history, "/api/v1/conversions", "conversions", **query)
                assert len(rows) == group["conversions"], query


async def test_lists_with_a_filter_for_destination_label_or_country_agree_with_the_statistics(history: httpx.AsyncClient) -> None:
    await assert_lists_of_groups_agree_with_the_statistics(history)


async def test_lists_agree_with_the_statistics_after_an_erasure(history: httpx.AsyncClient, service: Service, clock: Clock) -> None:
    clock.forward(seconds=1000)
    await service.devices.catch_up()
    scope = StatisticsFilter(1, clock() - timedelta(days=7), clock() + timedelta(days=1))
    before = (await service.database.read(totals, scope)).groups[None]
    assert before.devices["phone"] > 1
    response = await history.post("/api/v1/erasures", json={"phone": TO})
    assert response.json()["erased"]["hits"] > 1
    figures = (await service.database.read(totals, scope)).groups[None]
    assert (figures.devices, figures.browsers) == (before.devices, before.browsers)
    for name, counts in (("device", figures.devices), ("browser", figures.browsers)):
        for value, count in counts.items():
            filters = HitFilter(1, scope.since, scope.until, metric="clicks", **{name: value})  # type: ignore[arg-type]
            assert len((await service.database.read(list_hits, filters, 100)).rows) == count, (name, value)
    erased = await all_rows(history, "/api/v1/clicks", "clicks", message_id="m0", metric="clicks")
    assert {(hit["user_agent"], hit["address"], hit["device"]) for hit in erased} == {("", "", "phone")}
    await assert_lists_of_groups_agree_with_the_statistics(history)
    assert await service.database.read(verify, scope.since, scope.until) == []
    assert await service.database.read(verify_rollups, scope.since, scope.until) == []


async def test_a_listed_hit_contains_its_verdict_rule_device_and_message(history: httpx.AsyncClient) -> None:
    (suspected,) = (await get(history, "/api/v1/clicks", verdict="suspected"))["clicks"]
    assert (suspected["rule"], suspected["counts_as"], suspected["message_id"]) == ("crawler", "suspected_hits", "m1")
    of_message = await all_rows(history, "/api/v1/clicks", "clicks", message_id="m0")
    assert [(hit["label"], hit["first_of_message"], hit["first_of_link"]) for hit in of_message] == [
        (None, False, False),
        (None, False, True),
        ("menu", True, True),
    ]
    assert {hit["device"] for hit in of_message} == {"phone"}
    assert (await get(history, "/api/v1/clicks", message_id="unknown"))["clicks"] == []
    assert (await history.get("/api/v1/clicks", params={"cursor": "x"})).status_code == 400


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_no_page_of_events_is_longer_than_its_limit_although_a_first_click_is_two_events(
    history: httpx.AsyncClient, limit: int
) -> None:
    complete = (await get(history, "/api/v1/events"))["events"]
    pages: list[list[dict[str, Any]]] = []
    cursor: dict[str, str] = {}
    while True:
        page = await get(history, "/api/v1/events", limit=limit, **cursor)
        pages.append(page["events"])
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert [event for page in pages for event in page] == complete
    assert max(map(len, pages)) == limit
    for wrong in ("-1", *(cursor["cursor"].partition("-")[0] + suffix for suffix in ("-", "-0", "-8", "-11", "-²"))):
        response = await history.get("/api/v1/events", params={"cursor": wrong})
        assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_CURSOR"), wrong


async def test_events_are_listed_and_shown(history: httpx.AsyncClient) -> None:
    events = await all_rows(history, "/api/v1/events", "events")
    kinds = [event["event"] for event in events]
    assert {"state", "click", "late_click", "conversion", "delivery"} == set(kinds)
    listed = await csv_rows(history, "/api/v1/events.csv")
    assert len(listed) == len(events)
    for row in listed:
        assert await csv_rows(history, f"/api/v1/events/{row['event_id']}.csv") == [row]
    assert (await history.get("/api/v1/events/evt_unknown.csv")).status_code == 404
    clickthru = [event for event in events if event["new_state"] == "CLICKTHRU"]
    assert len(clickthru) == 3
    for event in events:
        shown = await get(history, f"/api/v1/events/{event['event_id']}")
        assert shown["event"] == event
        assert shown["deliveries"] == []
    only = await all_rows(history, "/api/v1/events", "events", event="conversion", message_id="m0", campaign="spring")
    assert [event["action"] for event in only] == ["sale"]
    for unknown in ("evt_0000000000000", "evt_", "x", "evt_é"):
        assert (await history.get(f"/api/v1/events/{unknown}")).status_code == 404


@pytest.mark.parametrize("has_tracker", [False, True])
async def test_a_listed_first_click_has_the_previous_state_that_trackers_get(
    client: httpx.AsyncClient, service: Service, has_tracker: bool
) -> None:
    if has_tracker:
        await service.trackers.create(AUDIT, 1, NewTracker(url="https://t.example/", events=("state",), name="t", signed=False))
    message = await rewrite(client, "m1")
    await report(client, "m1", "SENT")
    await click(client, message)

    async def previous_states() -> list[str | None]:
        events = (await get(client, "/api/v1/events", message_id="m1"))["events"]
        (shown,) = [event for event in events if event["new_state"] == "CLICKTHRU"]
        one = (await get(client, f"/api/v1/events/{shown['event_id']}"))["event"]
        (csv_row,) = [row for row in await csv_rows(client, "/api/v1/events.csv") if row["new_state"] == "CLICKTHRU"]
        return [shown["previous_state"], one["previous_state"], csv_row["previous_state"]]

    assert await previous_states() == ["SENT"] * 3
    await service.fanout.flush()
    assert await previous_states() == ["SENT"] * 3
    if has_tracker:
        await report(client, "m1", "DELIVERED")
        assert await previous_states() == ["SENT"] * 3, "the state at the time of the deliveries"


async def test_the_csv_of_hits_and_events_begins_with_a_byte_order_mark_on_request(history: httpx.AsyncClient) -> None:
    for path in ("/api/v1/clicks.csv", "/api/v1/events.csv"):
        assert (await history.get(path, params={"bom": "true"})).content.startswith(b"\xef\xbb\xbf")
        assert not (await history.get(path)).content.startswith(b"\xef\xbb\xbf")


async def test_an_application_can_list_only_its_own_hits_and_events(history: httpx.AsyncClient, service: Service) -> None:
    from shortener.accounts.administration import create_application

    other = await service.database.write(create_application, "other", service.clock())
    await service.directory.refresh()
    events = (await get(history, "/api/v1/events"))["events"]
    async with client_of(service, {"X-API-Key": other.api_key}) as client:
        assert (await get(client, "/api/v1/clicks"))["clicks"] == []
        assert (await get(client, "/api/v1/events"))["events"] == []
        assert (await client.get(f"/api/v1/events/{events[0]['event_id']}")).status_code == 404


async def test_the_pages_together_list_all_hits_and_events_even_if_a_page_may_examine_only_two_rows(
    history: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks = await all_rows(history, "/api/v1/clicks", "clicks", campaign="autumn")
    events = await all_rows(history, "/api/v1/events", "events", campaign="autumn")
    monkeypatch.setattr(hits, "MAX_SCANNED_ROWS", 2)
    monkeypatch.setattr(event_list, "MAX_SCANNED_ROWS", 2)
    assert await all_rows(history, "/api/v1/clicks", "clicks", campaign="autumn") == clicks
    assert await all_rows(history, "/api/v1/events", "events", campaign="autumn") == events


async def test_no_list_query_scans_a_complete_table_of_hits_events_or_messages(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'plans.db'}"
    await migrate(url)
    database: Database = await open_database(url, owner=True)

    def explain(connection: Connection) -> list[str]:
        def run() -> None:
            for basis in Basis:
                period: dict[str, Any] = {"since": NOON, "until": NOON + timedelta(days=1), "basis": basis}
                for metric in HIT_METRICS:
                    list_hits(connection, HitFilter(1, metric=metric, campaign="spring", **period), 100)
                for message_metric in MESSAGE_METRICS:
                    list_messages(connection, MessageFilter(1, metric=message_metric, **period), 100)
            list_hits(connection, HitFilter(1, message="m1"), 100)
            list_hits(connection, HitFilter(1, code="c1"), 100)
            list_events(connection, EventFilter(1, campaign="spring", since=NOON), 100)

        return plans(connection, run)

    try:
        found = await database.read(explain)
        assert len(found) > 20
        for plan in found:
            assert scanned(plan) == [], plan
    finally:
        await database.close()


async def test_a_csv_export_yields_no_bytes_for_a_page_without_rows_so_that_it_pauses_after_this_page_too() -> None:
    pages = {None: SimpleNamespace(rows=[], next=7), 7: SimpleNamespace(rows=[{"a": 1}], next=None)}

    async def read(below: int | None) -> Any:
        return pages[below]

    assert [lines async for lines in stream_csv(read, lambda row: row, ["a"])] == [b"a\r\n", b"", b"1\r\n"]


async def test_each_csv_list_pauses_while_many_hits_arrive(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rewrite(client, "m1")
    slowed: list[str] = []

    async def slow_down(pages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        slowed.append(path)
        async for page in pages:
            yield page

    monkeypatch.setattr(service.throttle, "slow_down", slow_down)
    paths = [path for path in (await client.get("/openapi.json")).json()["paths"] if path.endswith((".csv", "/export"))]
    paths = [path for path in paths if "{" not in path]  # the CSV of one row has no further page
    assert len(paths) >= 6
    for path in paths:
        assert (await client.get(path)).status_code == 200
    assert slowed == paths


async def test_a_list_whose_query_takes_too_long_gets_503_with_the_reason(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await make_service(database_timeout=0.5)
    if isinstance(service.database, SqliteDatabase):
        service.database._max_read_seconds = 0.2
    endless = {
        "sqlite": "WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c) SELECT sum(n) FROM c",
        "postgresql": "SELECT pg_sleep(60)",
    }
    monkeypatch.setattr(
        "shortener.web.lists.list_hits", lambda connection, *_: connection.exec_driver_sql(endless[connection.dialect.name])
    )
    credentials = service.first_credentials
    assert credentials is not None
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        for path in ("/api/v1/clicks", "/api/v1/clicks.csv"):
            response = await client.get(path)
            assert (response.status_code, response.json()["error_code"], response.headers["retry-after"]) == (
                503,
                "UNAVAILABLE",
                "30",
            )
            assert "did not complete the query in time" in response.json()["description"]
        monkeypatch.undo()
        assert (await client.get("/api/v1/clicks")).status_code == 200, "the connection is usable again"
