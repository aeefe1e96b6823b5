"""Tests of conversions that trackers report over HTTP, through the four endpoints of 23 Telecom."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, func, select
from structlog.testing import capture_logs

from shortener.accounts.administration import create_application
from shortener.accounts.credentials import Credentials, rotate_token
from shortener.container import Service
from shortener.delivery.trackers import NewTracker
from shortener.errors import StoreUnavailable
from shortener.storage import schema
from tests.conftest import NOON, Clock, client_of
from tests.factory import AUDIT, Message, add_hit, add_message, count_delta_sums, rows
from tests.receiver import Receiver

PATHS = ["/api/v1/track", "/api/v1/action/track", "/api/v1/callback/action", "/action"]
CALLS = [f"{method} {path}" for path in PATHS for method in ("GET", "POST")]


@pytest.fixture(autouse=True)
async def message(service: Service) -> Message:
    return await service.database.write(add_message, service.ids)


@pytest.fixture
async def tracker(service: Service, credentials: Credentials) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service, {"X-Api-Token": credentials.tracker_token}) as client:
        yield client


async def report(client: httpx.AsyncClient, call: str, parameters: dict[str, Any], *, form: bool = False) -> httpx.Response:
    method, path = call.split()
    if method == "GET":
        return await client.get(path, params=parameters)
    return await (client.post(path, data=parameters) if form else client.post(path, json=parameters))


async def code_of(client: httpx.AsyncClient, **parameters: Any) -> tuple[int, str]:
    response = await client.get("/api/v1/track", params=parameters)
    return response.status_code, response.json()["error_code"]


async def test_a_conversion_reported_by_click_id_gets_the_documented_response(
    service: Service, tracker: httpx.AsyncClient, message: Message
) -> None:
    hit = await service.database.write(add_hit, service.ids, message.links[0])
    parameters = {"click_id": service.click_ids.encode(hit), "action": "sale", "value": "12.50", "currency": "EUR"}
    response = await tracker.get("/api/v1/track", params=parameters)
    assert response.status_code == 200
    (stored,) = await rows(service.database, schema.conversions)
    conversion_id = response.json()["conversion_id"]
    assert response.json() == {"status": True, "conversion_id": conversion_id, "message_id": "m-1", "duplicate": False}
    assert (stored.hit_id, stored.message_id) == (hit, message.row)


async def test_the_same_conversion_report_sent_as_query_form_and_json_creates_one_conversion(
    service: Service, tracker: httpx.AsyncClient
) -> None:
    """Every endpoint gets the same report: the first request creates the conversion, and the others are duplicates."""
    parameters = {
        "message_id": "m-1",
        "action": "sale",
        "value": "-12.50",
        "currency": "eur",
        "transaction_id": "t 1&ü",
        "timestamp": "1795172400",
        "sub1": "blue",
    }
    ways = [(call, form) for call in CALLS for form in (False, True)]
    answers = [await report(tracker, call, parameters, form=form) for call, form in ways]
    assert [answer.status_code for answer in answers] == [200] * len(ways)
    assert [answer.json()["duplicate"] for answer in answers] == [False] + [True] * (len(ways) - 1)
    assert len({answer.json()["conversion_id"] for answer in answers}) == 1
    (stored,) = await rows(service.database, schema.conversions)
    assert (stored.transaction_id, stored.metadata) == ("t 1&ü", {"sub1": "blue"})
    assert len(await rows(service.database, schema.events)) == 1
    assert await count_delta_sums(service.database) == {
        "converted_messages": "1",
        "conversions": "1",
        "conversions:other:sale": "1",
        "value:EUR": "-12.50",
        "value:EUR:other:sale": "-12.50",
    }


async def test_a_conversion_report_in_json_may_contain_numbers_instead_of_text(tracker: httpx.AsyncClient) -> None:
    as_text = {"message_id": "m-1", "value": "12.5", "transaction_id": "17", "timestamp": "1795172400000"}
    as_numbers = {"message_id": "m-1", "value": 12.5, "transaction_id": 17, "timestamp": 1795172400000}
    first = await report(tracker, "GET /api/v1/track", as_text)
    second = await report(tracker, "POST /action", as_numbers)
    assert second.json() == first.json() | {"duplicate": True}


async def test_a_reply_reported_as_an_action_is_stored_as_a_conversion(service: Service, tracker: httpx.AsyncClient) -> None:
    """Syniverse: replying to a message can also be a conversion event, with a disposition."""
    body = {"message_id": "m-1", "action": "reply", "disposition": "negative", "text": "STOP"}
    assert (await report(tracker, "POST /api/v1/callback/action", body)).status_code == 200
    (stored,) = await rows(service.database, schema.conversions)
    assert (stored.action, stored.disposition, stored.metadata) == ("reply", "negative", {"text": "STOP"})


async def test_responses_of_the_deprecated_endpoint_have_the_headers_deprecation_and_link(
    service: Service, tracker: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(client: httpx.AsyncClient, message_id: str, status: int) -> None:
        response = await client.get("/api/v1/action/track", params={"message_id": message_id})
        assert response.status_code == status
        assert response.headers["deprecation"].startswith("@")
        assert response.headers["link"] == '</api/v1/track>; rel="successor-version"'

    async def fail(*_: Any) -> None:
        raise StoreUnavailable("down")

    await check(tracker, "m-1", 200)
    await check(tracker, "nobody's", 404)
    async with client_of(service) as stranger:
        await check(stranger, "m-1", 401)
    with monkeypatch.context() as patched:
        patched.setattr(service.conversions, "ingest", fail)
        await check(tracker, "m-1", 503)
    assert "deprecation" not in (await tracker.get("/api/v1/track", params={"message_id": "m-1"})).headers


async def test_a_repeated_id_parameter_must_have_equal_values_and_other_repeated_parameters_become_lists(
    service: Service, tracker: httpx.AsyncClient
) -> None:
    response = await tracker.get("/api/v1/track?message_id=m-1&message_id=m-2")
    assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_REQUEST")
    response = await tracker.get("/api/v1/track?message_id=m-1&message_id=m-1&value=1&value=2&sub=a&sub=b")
    assert (response.status_code, len(response.json()["warnings"])) == (200, 1)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    await tracker.post("/action", content="message_id=m-1&transaction_id=2&sub=a&sub=b", headers=form)
    assert [row.metadata for row in await rows(service.database, schema.conversions)] == [{"sub": ["a", "b"]}] * 2


@pytest.mark.parametrize(
    "parameters",
    [
        {"value": "12,50"},
        {"value": "$12.50"},
        {"value": "1,234.50"},
        {"value": "29.990000000000002"},
        {"value": "free"},
        {"value": "[payout]"},
        {"value": "1", "currency": "USDT"},
        {"value": "1", "currency": "€uro"},
        {"timestamp": "2030-01-01"},
        {"status": "s" * 200},
        {"transaction_id": "t" * 300},
        {"note": "x" * 5000},
        {"sub1": "{sub1}"},
        {"click_id": "another system's"},
    ],
)
async def test_a_conversion_report_with_a_known_message_id_is_recorded_even_if_other_values_are_invalid(
    service: Service, tracker: httpx.AsyncClient, parameters: dict[str, str]
) -> None:
    for call in CALLS[:4]:
        for form in (False, True):
            response = await report(tracker, call, {"message_id": "m-1", **parameters}, form=form)
            assert response.status_code == 200, response.text
    assert len(await rows(service.database, schema.conversions)) == 1
    assert await rows(service.database, schema.refused_conversions) == []


async def test_an_update_of_a_conversion_returns_its_revision_and_warns_about_values_that_cannot_be_parsed(
    tracker: httpx.AsyncClient,
) -> None:
    first = await tracker.get("/api/v1/track", params={"message_id": "m-1", "transaction_id": "T1", "status": "pending"})
    approved = {"message_id": "m-1", "transaction_id": "t1", "status": "approved", "value": "30", "currency": "USDT"}
    second = await tracker.post("/api/v1/track", json=approved)
    assert set(first.json()) == {"status", "conversion_id", "message_id", "duplicate"}
    warning = "currency: USDT is not a code of ISO 4217"
    assert second.json() == first.json() | {"updated": True, "revision": 2, "warnings": [warning]}
    third = await tracker.post("/api/v1/track", data=approved)
    assert third.json() == first.json() | {"duplicate": True, "warnings": [warning]}


async def test_spaces_around_a_credential_in_a_header_are_ignored(service: Service, credentials: Credentials) -> None:
    for header, value in (("X-Api-Token", credentials.tracker_token), ("X-API-Key", credentials.api_key)):
        path = "/api/v1/track?message_id=m-1" if header == "X-Api-Token" else "/api/v1/application"
        async with client_of(service, {header: f" {value} "}) as client:
            assert (await client.get(path)).status_code == 200


async def test_a_head_request_records_no_conversion(service: Service, tracker: httpx.AsyncClient) -> None:
    for path in ("/api/v1/track", "/api/v1/action/track", "/api/v1/callback/action", "/action", "/api/v1/postback/pk_1"):
        response = await tracker.head(path, params={"message_id": "m-1"})
        assert (response.status_code, response.headers["allow"]) == (405, "GET, POST"), path
    assert await rows(service.database, schema.conversions) == []


# These tests check refused conversion reports.


REFUSALS = [
    ({"action": "sale"}, 400, "INVALID_REQUEST"),
    ({"message_id": "nobody's"}, 404, "MESSAGE_NOT_FOUND"),
    ({"click_id": "made-up"}, 404, "MESSAGE_NOT_FOUND"),
    ({"message_id": "m-1", "click_id": "{click_id}"}, 400, "UNEXPANDED_PLACEHOLDER"),
    ({"click_id": "%7Bclick_id%7D"}, 400, "UNEXPANDED_PLACEHOLDER"),
    ({"message_id": "{{message_id}}"}, 400, "UNEXPANDED_PLACEHOLDER"),
    ({"message_id": "m-1", "transaction_id": "${order}"}, 400, "UNEXPANDED_PLACEHOLDER"),
    ({"message_id": "m-1", "transaction_id": "#tid#"}, 400, "UNEXPANDED_PLACEHOLDER"),
    ({"message_id": "m-1", "status": "||status||"}, 400, "UNEXPANDED_PLACEHOLDER"),
    ({"message_id": "m-1\x00"}, 400, "INVALID_REQUEST"),
    ({"message_id": "m" * 256}, 400, "INVALID_REQUEST"),
]


async def test_an_invalid_conversion_is_rejected_in_a_query_a_form_and_a_json_body(
    service: Service, tracker: httpx.AsyncClient
) -> None:
    for parameters, status, error_code in REFUSALS:
        for call in CALLS:
            for form in (False, True):
                response = await report(tracker, call, parameters, form=form)
                assert (response.status_code, response.json()["error_code"]) == (status, error_code), parameters
                assert response.json()["details"]
    assert await rows(service.database, schema.conversions) == []
    assert await rows(service.database, schema.events) == []


async def test_a_repeated_conversion_report_with_another_value_returns_409_without_a_transaction_id(
    tracker: httpx.AsyncClient,
) -> None:
    assert (await tracker.get("/api/v1/track", params={"message_id": "m-1", "value": "1"})).status_code == 200
    response = await tracker.get("/api/v1/track", params={"message_id": "m-1", "value": "2"})
    assert (response.status_code, response.json()["error_code"]) == (409, "CONVERSION_CONFLICT")
    assert "transaction_id" in response.json()["description"]


async def test_a_conversion_report_whose_json_body_is_not_an_object_is_rejected(tracker: httpx.AsyncClient) -> None:
    for content in ("", "[]", "[{},{}]", "7", "null", '"m-1"', "{", '{"value": NaN}'):
        response = await tracker.post("/action", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, content


async def test_a_missing_or_wrong_tracker_token_returns_401_without_any_side_effect(
    service: Service, credentials: Credentials, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A valid token in another place than its header is rejected too. A rejected request adds no row, no delivery and no log
    line. The same request with a valid token in the header adds rows and a delivery."""
    tracker = NewTracker(url=receiver.url(), events=["conversion"])
    await service.trackers.create(AUDIT, credentials.application_id, tracker)
    before = await service.database.read(row_counts)
    token = credentials.tracker_token
    with capture_logs() as lines:
        for headers in ({}, {"X-Api-Token": ""}, {"X-Api-Token": "tt_wrong"}, {"Authorization": f"Bearer {token}"}):
            async with client_of(service, headers) as client:
                for call in CALLS:
                    for parameters in ({"message_id": "m-1"}, {"message_id": "{x}"}, {"message_id": "m-1", "X-Api-Token": token}):
                        response = await report(client, call, parameters)
                        assert (response.status_code, response.json()["error_code"]) == (401, "UNAUTHORIZED")
        await service.fanout.flush()
    assert await service.database.read(row_counts) == before
    assert (receiver.requests, lines, caplog.records) == ([], [], [])
    async with client_of(service, {"X-Api-Token": token}) as client:
        assert (await report(client, CALLS[0], {"message_id": "m-1"})).status_code == 200
    await service.fanout.flush()
    after = await service.database.read(row_counts)
    changed = {table for table in after if after[table] != before[table]}
    assert changed == {"conversions", "first_conversions", "conversion_actions", "events", "tallies", "deliveries"}


def row_counts(connection: Connection) -> dict[str, int]:
    """Return the number of rows of each table."""
    return {
        table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in schema.metadata.sorted_tables
    }


async def test_an_api_key_is_not_accepted_as_a_tracker_token(
    service: Service, client: httpx.AsyncClient, credentials: Credentials
) -> None:
    assert (await client.get("/api/v1/track", params={"message_id": "m-1"})).status_code == 401
    async with client_of(service, {"X-Api-Token": credentials.api_key}) as other:
        assert (await other.get("/api/v1/track", params={"message_id": "m-1"})).status_code == 401


async def test_the_previous_tracker_token_can_report_conversions_until_its_overlap_ends(
    service: Service, tracker: httpx.AsyncClient, clock: Clock
) -> None:
    token, _ = await service.database.write(rotate_token, 1, NOON, timedelta(hours=24))
    await service.directory.refresh()
    clock.forward(hours=23)
    assert (await tracker.get("/api/v1/track", params={"message_id": "m-1"})).status_code == 200
    clock.forward(hours=1)
    assert await code_of(tracker, message_id="m-1") == (401, "UNAUTHORIZED")
    async with client_of(service, {"X-Api-Token": token}) as client:
        assert (await client.get("/api/v1/track", params={"message_id": "m-1"})).status_code == 200


async def test_a_conversion_report_with_the_tracker_token_of_another_application_gets_404(service: Service) -> None:
    other = await service.database.write(create_application, "other", NOON)
    await service.directory.refresh()
    async with client_of(service, {"X-Api-Token": other.tracker_token}) as client:
        assert await code_of(client, message_id="m-1") == (404, "MESSAGE_NOT_FOUND")
