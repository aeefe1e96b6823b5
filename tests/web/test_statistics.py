"""The statistics endpoints over HTTP, on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.reporting import statistics
from shortener.reporting.counts import fold
from shortener.web.statistics_fields import CountriesResponse, DailyResponse, TotalsResponse
from tests.conftest import Clock
from tests.web.calls import PHONE, TO, click, convert, report, rewrite


async def live(client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock) -> None:
    """Create four messages on Friday. One of them is to Germany, and two of them are delivered. On Saturday, add two clicks and
    two conversions."""
    messages = [await rewrite(client, f"m{number}", campaign="spring") for number in range(3)]
    await rewrite(client, "m3", to="+491701234567", source="campaign")
    await report(client, "m0", "DELIVERED")
    await report(client, "m1", "DELIVERED")
    clock.forward(hours=12)
    for number in range(2):
        await report(client, f"m{number}", "SENT")
    clock.forward(seconds=10)
    await click(client, messages[0])
    await click(client, messages[0])
    clock.forward(seconds=90)
    await click(client, messages[1])
    await client.head("/" + messages[1]["links"][0]["code"])
    await service.fanout.flush()
    await convert(service, credentials, message_id="m0", action="sale", value="0.10", currency="EUR")
    await convert(service, credentials, message_id="m0", action="upsell", value="0.20", currency="EUR")


async def ask(client: httpx.AsyncClient, path: str = "", **query: Any) -> dict[str, Any]:
    answer = await client.get(f"/api/v1/sms/stats{path}", params=query)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    assert (told["status"], told["complete"]) == (True, True)
    return told


async def test_the_total_statistics_contain_counts_rates_and_the_times_to_click(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live(client, service, credentials, clock)
    for _ in range(2):
        told = await ask(client)
        TotalsResponse.model_validate(told)
        expected = {
            "messages": 4,
            "segments": 4,
            "sent": 2,
            "delivered": 2,
            "read": 0,
            "failed": 0,
            "clicked_messages": 2,
            "clicks": 3,
            "suspected_hits": 0,
            "ignored_hits": 1,
            "late_hits": 0,
            "converted_messages": 1,
            "conversions": 2,
            "value": {"EUR": "0.30"},
            "delivery_rate": 0.5,
            "click_rate": 0.5,
            "conversion_rate": 0.25,
        }
        assert {name: told[name] for name in expected} == expected
        assert told["median_seconds_to_click"] == pytest.approx(10, rel=0.026)
        assert told["p90_seconds_to_click"] == pytest.approx(100, rel=0.026)
        # without `since`, the period is the last 30 days until now
        assert (told["since"], told["until"]) == ("2026-10-23T00:00:00Z", "2026-11-21T00:01:40.001Z")
        assert await service.jobs.table["counts"].step() == 0


async def test_statistics_without_data_are_zero(client: httpx.AsyncClient) -> None:
    told = await ask(client)
    assert (told["messages"], told["value"], told["click_rate"], told["median_seconds_to_click"]) == (0, {}, None, None)
    assert (await ask(client, "/by-country"))["countries"] == []


async def test_daily_statistics_use_the_time_zone_of_the_request(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live(client, service, credentials, clock)
    told = await ask(client, "/daily")
    DailyResponse.model_validate(told)
    assert (told["tz"], len(told["days"]), told["days"][0]["day"]) == ("UTC", 30, "2026-10-23")
    friday, saturday = told["days"][-2:]
    assert (friday["day"], friday["messages"], friday["clicks"]) == ("2026-11-20", 4, 0)
    assert (saturday["day"], saturday["messages"], saturday["clicks"]) == ("2026-11-21", 0, 3)
    assert (saturday["click_rate"], saturday["value"]) == (None, {"EUR": "0.30"})

    told = await ask(client, "/daily", tz="America/New_York", since="2026-11-20", until="2026-11-21")
    assert (told["since"], told["until"]) == ("2026-11-20T05:00:00Z", "2026-11-22T05:00:00Z")
    assert [(day["day"], day["messages"], day["clicks"]) for day in told["days"]] == [("2026-11-20", 4, 3), ("2026-11-21", 0, 0)]


async def test_statistics_by_country_begin_with_the_country_that_has_the_most_messages(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live(client, service, credentials, clock)
    told = await ask(client, "/by-country")
    CountriesResponse.model_validate(told)
    assert [(country["country"], country["messages"], country["clicks"]) for country in told["countries"]] == [
        ("US", 3, 3),
        ("DE", 1, 0),
    ]


async def test_filters_of_the_statistics_select_the_counted_messages(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live(client, service, credentials, clock)
    assert (await ask(client, campaign="spring"))["messages"] == 3
    assert (await ask(client, source="campaign"))["messages"] == 1
    assert (await ask(client, source="all"))["messages"] == 4
    assert (await ask(client, since="2026-11-21"))["messages"] == 0
    assert (await ask(client, until="2026-11-20"))["clicks"] == 0


async def test_statistics_of_a_period_that_begins_in_the_future_are_empty_and_do_not_end_before_they_begin(
    client: httpx.AsyncClient,
) -> None:
    await rewrite(client, "m1")
    start = "2030-01-01T00:07:00Z"
    for path in ("", "/daily", "/by-hour", "/by-action", "/by-campaign", "/by-country", "/by-destination", "/by-label"):
        told = await ask(client, path, since=start)
        assert (told["since"], told["until"]) == (start, start), path
        groups = [group for rows in told.values() if isinstance(rows, list) for group in rows]
        assert sum(group.get("messages", 0) for group in [told, *groups]) == 0, path


async def test_the_error_for_an_invalid_query_parameter_contains_the_name_of_the_parameter(client: httpx.AsyncClient) -> None:
    wrong = [
        ({"tz": "Mars/Olympus"}, "tz"),
        ({"tz": "../../etc/passwd"}, "tz"),
        ({"tz": "Europe"}, "tz"),
        ({"tz": ""}, "tz"),
        ({"since": "2020-01-01", "until": "2026-01-01"}, "since"),
        ({"since": "soon"}, "since"),
        ({"since": "2026-02-01", "until": "2026-01-01"}, "until"),
        ({"source": "x"}, "source"),
        ({"period": "7d"}, "period"),
    ]
    for query, field in wrong:
        answer = await client.get("/api/v1/sms/stats/daily", params=query)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_REQUEST"), query
        assert [detail["field"] for detail in answer.json()["details"]] == [field]
    assert (await ask(client, since="0001-01-01", until="9999-12-31"))["messages"] == 0
    assert len((await ask(client, "/daily", tz="Pacific/Kiritimati", since="2025-11-21", until="2026-11-20"))["days"]) == 365


async def test_statistics_group_clicks_by_time_to_click_device_and_browser(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await live(client, service, credentials, clock)
    told = await ask(client)
    assert (told["devices"], told["browsers"]) == ({}, {})
    within = {one["within_seconds"]: one["messages"] for one in told["time_to_click"]}
    assert list(within)[:3] == [10, 30, 60]
    assert list(within)[-1] is None
    assert {seconds: messages for seconds, messages in within.items() if messages} == {10: 1, 300: 1}
    clock.forward(minutes=5)
    await service.devices.catch_up()
    for _ in range(2):
        told = await ask(client)
        assert (told["devices"], told["browsers"]) == ({"phone": 3}, {"Safari": 3})
        await service.jobs.table["counts"].step()
    (country,) = (one for one in (await ask(client, "/by-country"))["countries"] if one["clicks"])
    assert country["devices"] == {"phone": 3}


async def test_a_complete_report_includes_the_time_to_click_of_a_click_that_the_fan_out_has_not_processed(
    client: httpx.AsyncClient, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"to": TO, "body": TWO_LINKS, "campaign": "Spring"}
    message = (await client.post("/api/v1/rewrite", json=body)).json()["messages"][0]
    clock.forward(seconds=20)
    await click(client, message)

    async def times_to_click() -> list[int]:
        """Return the number of messages with a time to click in each of four reports. Fail if a report is not complete
        (`ask` checks this)."""
        found = []
        for path, name in (("", ""), ("/by-campaign", "campaigns"), ("/by-label", "labels"), ("/by-destination", "destinations")):
            told = await ask(client, path)
            figures = next(one for one in told[name] if one["clicks"]) if name else told
            assert figures["clicks"] == 1
            found.append(sum(one["messages"] for one in figures["time_to_click"]))
        return found

    assert await times_to_click() == [1] * 4
    monkeypatch.setattr(statistics, "MAX_PENDING_CLICKS", 0)
    assert not (await client.get("/api/v1/sms/stats")).json()["complete"]
    await service.fanout.flush()
    assert await times_to_click() == [1] * 4
    await fold_all(service)
    assert await times_to_click() == [1] * 4


async def fold_all(service: Service) -> None:
    while await service.database.write(fold):
        pass


TWO_LINKS = 'A #trackurl("https://shop.example/menu?x=1","menu") and #track("https://shop.example/other/")'


async def two_days(client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock) -> None:
    """Create three messages on Friday at noon, two of them with two links. Add clicks and conversions on Saturday at 14:00."""
    first = await rewrite(client, "m0", campaign="spring", body=TWO_LINKS)
    await rewrite(client, "m1", campaign="spring", body=TWO_LINKS)
    await rewrite(client, "m2", campaign="autumn")
    clock.forward(hours=26)
    await report(client, "m0", "DELIVERED")
    for position in (1, 1, 0):
        await client.get("/" + first["links"][position]["code"], headers=PHONE)
    await convert(service, credentials, message_id="m0", action="sale", value="0.10", currency="EUR")
    await service.fanout.flush()


async def test_statistics_by_destination_and_label_count_each_link_of_a_message(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await two_days(client, service, credentials, clock)
    for folded in (False, True):
        if folded:
            await fold_all(service)
        destinations = (await ask(client, "/by-destination"))["destinations"]
        shown = ("destination", "messages", "links", "delivered", "clicks", "clicked_links", "clicked_messages", "conversions")
        assert [tuple(entry[name] for name in shown) for entry in destinations] == [
            ("shop.example/menu", 2, 2, 1, 1, 1, 0, 1),
            ("shop.example/other", 2, 2, 1, 2, 1, 1, 1),
            ("shop.example/a", 1, 1, 0, 0, 0, 0, 0),
        ]
        labels = (await ask(client, "/by-label", campaign="spring"))["labels"]
        assert [(entry["label"], entry["messages"], entry["clicks"]) for entry in labels] == [("menu", 2, 1)]
        assert (await ask(client, "/by-label", campaign="autumn"))["labels"] == []
        only = (await ask(client, "/by-destination", campaign="autumn"))["destinations"]
        assert [entry["destination"] for entry in only] == ["shop.example/a"]


async def test_statistics_by_campaign_are_paged_with_the_newest_campaign_first(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await two_days(client, service, credentials, clock)
    page = await ask(client, "/by-campaign", limit=1)
    assert [(entry["campaign"], entry["messages"], entry["clicks"]) for entry in page["campaigns"]] == [("autumn", 1, 0)]
    page = await ask(client, "/by-campaign", limit=1, cursor=page["next_cursor"])
    assert [(entry["campaign"], entry["messages"], entry["clicks"]) for entry in page["campaigns"]] == [("spring", 2, 3)]
    assert page["next_cursor"] is None
    later = await ask(client, "/by-campaign", since=clock().date().isoformat())
    assert [entry["campaign"] for entry in later["campaigns"]] == ["spring"], "a campaign without counts is left out"


async def test_statistics_by_hour_use_the_requested_time_zone(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await two_days(client, service, credentials, clock)
    start = clock() - timedelta(hours=26)
    for zone, hours in (("UTC", 0), ("Europe/Berlin", 1), ("America/New_York", -5)):
        answer = await ask(client, "/by-hour", tz=zone)
        assert [entry["hour"] for entry in answer["hours"]] == list(range(24))
        assert {entry["hour"]: entry["messages"] for entry in answer["hours"] if entry["messages"]} == {
            (start.hour + hours) % 24: 3
        }
        assert {entry["hour"]: entry["clicks"] for entry in answer["hours"] if entry["clicks"]} == {
            (start.hour + 2 + hours) % 24: 3
        }


@pytest.mark.parametrize("is_folded", [False, True])
async def test_a_message_with_three_conversions_is_one_converted_message_in_every_group_by_the_time_of_sending(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock, is_folded: bool
) -> None:
    body = 'A #trackurl("https://shop.example/menu?x=1","menu") and #track("https://shop.example/other/")'
    await rewrite(client, "m0", to="+491701234567", campaign="spring", body=body)
    await rewrite(client, "m1", campaign="autumn", body=body)
    clock.forward(hours=26)
    for number, status in enumerate(("rejected", "approved", "pending")):
        await convert(service, credentials, message_id="m0", action="sale", transaction_id=str(number), status=status)
    if is_folded:
        await fold_all(service)
    shown = ("messages", "converted_messages", "conversions", "conversion_rate")
    groups = {"/by-campaign": "campaigns", "/by-country": "countries", "/by-destination": "destinations", "/by-label": "labels"}
    for basis, messages, rate in (("sent", 1, 1.0), ("event", 0, None)):
        query = {"basis": basis, "since": "2026-11-01" if basis == "sent" else clock().date().isoformat()}
        of_campaign = await ask(client, campaign="spring", **query)
        assert tuple(of_campaign[name] for name in shown) == (messages, 1, 3, rate)
        for path, name in groups.items():
            found = [one for one in (await ask(client, path, **query))[name] if one["conversions"]]
            expected = messages * (1 if path in ("/by-campaign", "/by-country") else 2)
            assert found
            for one in found:
                assert tuple(one[name] for name in shown) == (expected, 1, 3, (expected and 1 / expected) or None), path
        for path, name in {"/daily": "days", "/by-hour": "hours"}.items():
            (found_once,) = [one for one in (await ask(client, path, campaign="spring", **query))[name] if one["conversions"]]
            assert tuple(found_once[name] for name in shown) == (messages, 1, 3, rate), path
    (action,) = (await ask(client, "/by-action"))["actions"]
    assert action["conversions"] == 3
    assert "converted_messages" not in action, "a message can have conversions with several actions"


async def test_click_rates_by_the_time_of_sending_never_exceed_100_percent(
    client: httpx.AsyncClient, service: Service, credentials: Credentials, clock: Clock
) -> None:
    await two_days(client, service, credentials, clock)
    saturday = clock().date()
    friday = saturday - timedelta(days=1)
    for folded in (False, True):
        if folded:
            await fold_all(service)
        by_event = {entry["day"]: entry for entry in (await ask(client, "/daily"))["days"]}
        assert (by_event[str(friday)]["clicks"], by_event[str(saturday)]["clicks"]) == (0, 3)
        assert by_event[str(saturday)]["click_rate"] is None
        by_sent = {entry["day"]: entry for entry in (await ask(client, "/daily", basis="sent"))["days"]}
        assert (by_sent[str(friday)]["clicks"], by_sent[str(saturday)]["clicks"]) == (3, 0)
        assert by_sent[str(friday)]["click_rate"] == 0.333333
        assert by_sent[str(friday)]["value"] == {"EUR": "0.10"}
        for path in ("", "/by-country", "/by-campaign", "/by-destination", "/by-label", "/by-hour", "/daily"):
            for basis in ("event", "sent"):
                await ask(client, path, basis=basis, tz="Asia/Kolkata", campaign="spring", source="api")
        country = (await ask(client, "/by-country", basis="sent", campaign="spring"))["countries"]
        assert [(entry["country"], entry["messages"], entry["clicks"]) for entry in country] == [("US", 2, 3)]
        sent_on_saturday = await ask(client, "", basis="sent", since=str(saturday))
        assert (sent_on_saturday["messages"], sent_on_saturday["clicks"]) == (0, 0)


async def test_statistics_by_destination_ignore_the_default_port_and_the_case_of_the_host(client: httpx.AsyncClient) -> None:
    for url in (
        "https://shop.example/a",
        "HTTPS://Shop.Example:443/a?b=1",
        "http://shop.example:80/a/",
        "https://shop.example:8443/a",
    ):
        assert (await client.post("/api/v1/rewrite", json={"to": TO, "body": f'#track("{url}")'})).status_code == 200
    found = {entry["destination"]: entry["messages"] for entry in (await ask(client, "/by-destination"))["destinations"]}
    assert found == {"shop.example/a": 3, "shop.example:8443/a": 1}


async def test_statistics_list_at_most_200_destinations_of_a_campaign(client: httpx.AsyncClient, service: Service) -> None:
    for start in (0, 150):
        messages = [
            {"to": TO, "campaign": "spring", "body": f'#track("https://shop.example/{number}")'}
            for number in range(start, start + 150)
        ]
        response = await client.post("/api/v1/rewrite", json={"messages": messages})
        assert response.status_code == 200
    destinations = (await ask(client, "/by-destination"))["destinations"]
    assert len(destinations) == 201
    assert {entry["destination"]: entry["messages"] for entry in destinations}["other"] == 100
    assert sum(entry["messages"] for entry in destinations) == 300
