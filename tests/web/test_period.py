"""Tests of the periods of lists in the time zone that a request names."""

from __future__ import annotations

import httpx
import pytest

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.web.endpoints import ENDPOINTS
from shortener.web.period import Period
from tests.conftest import client_of
from tests.one_service import on_one_service
from tests.web.calls import report, rewrite

#: The lists whose period has a time zone, each with the name of its rows in JSON.
LISTS = {"/api/v1/events": "events", "/api/v1/conversions/refused": "refused"}


@pytest.mark.parametrize("path", LISTS)
async def test_a_date_in_the_period_of_a_list_is_a_day_in_the_time_zone_of_the_query(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, path: str
) -> None:
    # At noon in UTC, the next day has begun in Auckland (UTC+13).
    await rewrite(client, "m-1")
    await report(client, "m-1", "SENT")
    await report(client, "m-1", "DELIVERED")
    async with client_of(service, {"X-Api-Token": credentials.tracker_token}) as tracker:
        assert (await tracker.post("/api/v1/callback/action", json={"message_id": "unknown"})).status_code == 404

    async def count(day: str, zone: str) -> int:
        query = {"since": day, "until": day, "tz": zone}
        found = len((await client.get(path, params=query)).json()[LISTS[path]])
        assert len((await client.get(f"{path}.csv", params=query)).text.splitlines()) == found + 1
        return found

    listed = await count("2026-11-20", "UTC")
    assert listed > 0
    assert await count("2026-11-20", "Pacific/Auckland") == 0
    assert await count("2026-11-21", "Pacific/Auckland") == listed


def test_every_list_with_a_period_has_a_time_zone() -> None:
    queries = {endpoint.path: endpoint.query for endpoint in ENDPOINTS if endpoint.query and "since" in endpoint.query.model_fields}
    assert {"/api/v1/events", "/api/v1/events.csv", "/api/v1/conversions/refused.csv"} <= queries.keys()
    assert [path for path, query in queries.items() if not issubclass(query, Period)] == []


@on_one_service
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"since": "2026-11-20T00:00:00Z", "until": "2026-11-19", "tz": "America/Los_Angeles"}, 200),
        ({"since": "2026-11-19T08:00:00Z", "until": "2026-11-18", "tz": "America/Los_Angeles"}, 400),
        ({"tz": "Mars/Olympus"}, 400),
    ],
)
async def test_the_order_of_since_and_until_is_checked_in_the_time_zone(
    client: httpx.AsyncClient, query: dict[str, str], status: int
) -> None:
    assert (await client.get("/api/v1/events", params=query)).status_code == status
