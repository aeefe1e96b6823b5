"""Tests of the limits of request bodies. The service checks the limits before the validation, so that no body blocks other
requests."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import orjson
import pytest

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.errors import MAX_DETAILS, ApiError, ErrorCode
from shortener.storage import schema
from shortener.web.endpoint import MAX_ERROR_BYTES
from shortener.web.request_body import (
    LARGE_BODY_BYTES,
    MAX_DEPTH,
    MAX_FORM_BYTES,
    MAX_OBJECT_FIELDS,
    MAX_TEXT_LENGTH,
    BodyLimits,
    check_sizes,
)
from shortener.web.rewrite import RewriteRequest
from shortener.web.validation import validate
from tests.conftest import client_of
from tests.factory import rows
from tests.one_service import on_one_service
from tests.servers import PATIENCE

LIMITS = BodyLimits(max_bytes=2**23, max_batch=1000, has_batch=True)
TO = "+14085550100"


@pytest.fixture
async def tracker(service: Service, credentials: Credentials) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service, {"X-Api-Token": credentials.tracker_token}) as client:
        yield client


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@on_one_service
@pytest.mark.parametrize(
    ("path", "content", "kind", "status"),
    [
        ("/api/v1/rewrite", b"a=" + b"x" * LARGE_BODY_BYTES, "application/x-www-form-urlencoded", 415),
        ("/api/v1/rewrite", b'{"to":"' + b"\\u0000" * LARGE_BODY_BYTES + b'"}', "application/json", 400),
        ("/api/v1/rewrite", b"[" * LARGE_BODY_BYTES, "application/json", 400),
        ("/api/v1/rewrite", b'{"x":1}', "application/json", 400),
        ("/api/v1/sms/status", b"{", "application/json", 400),
        ("/api/v1/sms/status", b'{"message_id":"none","state":"SENT"}', "application/json", 404),
        ("/sms/3/messages", b'{"messages":[{}]}', "application/json", 400),
    ],
)
async def test_a_rejected_request_leaves_no_reference_cycle_that_keeps_its_body_in_memory(
    client: httpx.AsyncClient, path: str, content: bytes, kind: str, status: int
) -> None:
    def errors() -> int:
        return sum(isinstance(one, ApiError) for one in gc.get_objects(generation=0))

    gc.collect(1)  # empty the youngest generation of the garbage collector: `errors` counts only the objects in it
    gc.disable()  # Without the garbage collector, only reference counting frees memory.
    try:
        before = errors()
        for _ in range(3):
            response = await client.post(path, content=content, headers={"Content-Type": kind})
            assert response.status_code == status, response.text
        for _ in range(6000):  # The thread that parses large bodies keeps its last result for a moment.
            if errors() <= before + 1:
                break
            await asyncio.sleep(0.01)
        assert errors() <= before + 1
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        ({"a": dict.fromkeys(map(str, range(MAX_OBJECT_FIELDS + 1)))}, "a", "must have at most 1000 fields, not 1001"),
        ({"a": [{"b": [0] * 1001}]}, "a.0.b", "must have at most 1000 items, not 1001"),
        ({"a": "x" * (MAX_TEXT_LENGTH + 1)}, "a", "must have at most 100000 characters, not 100001"),
        ("x" * (MAX_TEXT_LENGTH + 1), "body", "must have at most 100000 characters, not 100001"),
        ([{"x" * (MAX_TEXT_LENGTH + 1): 1}], "0", "must not have a field name of more than 100000 characters"),
        (nested(MAX_DEPTH + 1), ".".join(["0"] * MAX_DEPTH), "must not be nested more than 32 levels deep"),
    ],
)
def test_the_error_for_an_oversized_part_of_a_request_body_contains_the_name_of_the_part(
    data: Any, field: str, reason: str
) -> None:
    with pytest.raises(ApiError) as raised:
        check_sizes(data, LIMITS)
    assert raised.value.code is ErrorCode.INVALID_REQUEST
    assert [(detail.field, detail.reason) for detail in raised.value.details] == [(field, reason)]


@pytest.mark.parametrize("data", [{"messages": [{}] * 1001}, [{}] * 1001])
def test_a_request_with_too_many_items_is_rejected_before_its_items_are_validated(data: Any) -> None:
    with pytest.raises(ApiError) as raised:
        check_sizes(data, LIMITS)
    assert raised.value.code is ErrorCode.BATCH_TOO_LARGE
    assert raised.value.description == "One request must have at most 1000 items (BATCH_LIMIT), not 1001."


TOO_LONG = ["x"] * 1001


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"to": TOO_LONG}, ErrorCode.BATCH_TOO_LARGE),
        ({"message_id": TOO_LONG}, ErrorCode.BATCH_TOO_LARGE),
        ({"messages": [{}, {"to": TOO_LONG}]}, ErrorCode.BATCH_TOO_LARGE),
        ([{"message_id": TOO_LONG}], ErrorCode.BATCH_TOO_LARGE),
        ({"metadata": {"to": TOO_LONG}}, ErrorCode.INVALID_REQUEST),
        ({"messages": [{"metadata": {"to": TOO_LONG}}]}, ErrorCode.INVALID_REQUEST),
        ({"messages": {"x": {"to": TOO_LONG}}}, ErrorCode.INVALID_REQUEST),
        ({"parameters": [{"message_id": TOO_LONG}]}, ErrorCode.INVALID_REQUEST),
    ],
)
def test_only_a_recipient_list_that_is_too_long_is_batch_too_large(data: Any, code: ErrorCode) -> None:
    with pytest.raises(ApiError) as raised:
        check_sizes(data, LIMITS)
    assert raised.value.code is code


@pytest.mark.parametrize("data", [1, None, "text", nested(MAX_DEPTH), {"messages": [{"to": ["x"] * 1000}] * 1000}])
def test_a_request_body_within_the_limits_is_accepted(data: Any) -> None:
    check_sizes(data, LIMITS)


@pytest.mark.parametrize(
    ("data", "total"),
    [
        ({"messages": [{}] * 1000}, 2000),
        ({"messages": [{"destinations": [{"to": 1}] * 20, "text": ""}] * 100}, 2000),
        ({"messages": [{"to": TO, "body": "", "metadata": {"a": [], "b": []}}] * 1000}, 2000),
        ({"messages": [{"to": TO, "body": "", "surplus": 1}] * 999}, 999),
    ],
)
def test_an_error_lists_a_limited_number_of_details_and_their_total_number(data: Any, total: int) -> None:
    with pytest.raises(ApiError) as raised:
        validate(RewriteRequest, data)
    body = raised.value.body()
    assert len(body["details"]) == min(total, MAX_DETAILS)
    assert body.get("details_total") == (total if total > MAX_DETAILS else None)


async def test_a_request_body_with_too_many_values_is_rejected_before_it_has_arrived_completely(client: httpx.AsyncClient) -> None:
    sent = 0

    async def chunks() -> Any:
        nonlocal sent
        yield b'{"messages":['
        for _ in range(2000):
            sent += 1
            yield b"{}," * 1000

    headers = {"Content-Type": "application/json"}
    response = await client.post("/api/v1/rewrite", content=chunks(), headers=headers)
    assert (response.status_code, response.json()["error_code"]) == (400, "BATCH_TOO_LARGE")
    assert "at most 210000 values" in response.json()["description"]
    assert sent < 300, "the service has not read the rest of the body"
    response = await client.post("/api/v1/trackers", content=b'{"events":[' + b'"",' * 300_000, headers=headers)
    assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_REQUEST")


async def test_a_large_valid_batch_of_messages_is_stored(client: httpx.AsyncClient) -> None:
    message = {"to": TO, "body": "x" * 2000, "metadata": {"note": "y" * 2000}}
    body = orjson.dumps({"messages": [message] * 200})
    assert len(body) > LARGE_BODY_BYTES
    response = await client.post("/api/v1/rewrite", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    assert len(response.json()["messages"]) == 200


async def test_other_requests_get_responses_while_a_large_request_body_is_validated(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_validating, may_continue = threading.Event(), threading.Event()

    def validate_when_allowed(model: Any, data: Any) -> Any:
        is_validating.set()
        assert may_continue.wait(10), "no other request gets a response before the validation ends"
        return validate(model, data)

    monkeypatch.setattr("shortener.web.request_body.validate", validate_when_allowed)
    body = orjson.dumps({"messages": [{"metadata": "x" * LARGE_BODY_BYTES}]})
    large = asyncio.create_task(client.post("/api/v1/rewrite", content=body, headers={"Content-Type": "application/json"}))
    assert await asyncio.to_thread(is_validating.wait, PATIENCE)
    assert (await client.get("/healthz")).status_code == 200
    assert not large.done()
    may_continue.set()
    assert (await large).status_code == 400


async def test_an_error_response_is_at_most_one_mebibyte(client: httpx.AsyncClient) -> None:
    name = "\x01" * 300  # JSON escapes each of these characters with six characters
    response = await client.post("/api/v1/rewrite", json={"messages": [{f"{name}": 1, f"{n}{name}": 1} for n in range(700)]})
    body = response.json()
    assert response.status_code == 400
    assert len(response.content) <= MAX_ERROR_BYTES
    assert body["details_total"] == 4 * 700
    assert all(len(detail["field"]) <= 200 and len(detail["reason"]) <= 500 for detail in body["details"])


async def test_a_form_above_the_size_limit_of_forms_is_rejected(tracker: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = await tracker.post("/action", content=b"message_id=" + b"%41" * MAX_FORM_BYTES, headers=headers)
    assert (response.status_code, response.json()["error_code"]) == (413, "BODY_TOO_LARGE")


async def test_the_error_for_unreplaced_placeholders_in_many_parameters_is_short(tracker: httpx.AsyncClient) -> None:
    ids = ("message_id", "click_id", "transaction_id", "action", "status")
    response = await tracker.post("/action", json={**dict.fromkeys(ids, "{a}" * 1000), **{f"p{n}": "{a}" for n in range(900)}})
    assert response.json()["error_code"] == "UNEXPANDED_PLACEHOLDER"
    assert len(response.content) < 1500
    many = await tracker.post("/action", json={"message_id": "x", **{f"p{n}": "{a}" for n in range(100_000)}})
    assert many.status_code == 413
    assert len(many.content) < 500


EXACT = "0.12345678901234567891"


def exact_body(content: Any) -> bytes:
    """Return JSON in which the text "EXACT" is a number with 20 decimals."""
    return orjson.dumps(content).replace(b'"EXACT"', EXACT.encode())


@pytest.mark.parametrize("is_list", [False, True])
async def test_a_price_in_a_rewrite_request_that_is_a_number_with_many_digits_is_stored_exactly(
    service: Service, client: httpx.AsyncClient, is_list: bool
) -> None:
    message = {"to": TO, "body": "é", "mt_price": "EXACT", "metadata": {"mt_price": 0.5, "é": 0.25}, "expires_in": 60.0}
    body = exact_body({"messages": [message]} if is_list else message)
    response = await client.post("/api/v1/rewrite", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    (row,) = await rows(service.database, schema.messages)
    assert (row.mt_price, row.metadata) == (Decimal(EXACT), {"mt_price": 0.5, "é": 0.25})


@on_one_service
@pytest.mark.parametrize("number", ["1" * 13 + ".5", EXACT + "1", "1e-21", "123456789012345678901234567890"])
async def test_a_price_that_is_a_number_with_too_many_digits_is_rejected(client: httpx.AsyncClient, number: str) -> None:
    body = exact_body({"to": TO, "body": "x", "mt_price": "EXACT"}).replace(EXACT.encode(), number.encode())
    response = await client.post("/api/v1/rewrite", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["details"][0]["field"]) == (400, "mt_price")


@pytest.mark.parametrize("word", [b"sent", b"\xe9"])
async def test_a_price_in_a_delivery_report_that_is_a_number_with_many_digits_is_stored_exactly(
    service: Service, client: httpx.AsyncClient, word: bytes
) -> None:
    assert (await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", "message_id": "m-1"})).status_code == 200
    report = {"message_id": "m-1", "state": "SENT", "status": "WORD", "mt_price": "EXACT"}
    body = exact_body([report, report]).replace(b"WORD", word)
    results = (await client.post("/api/v1/sms/status", content=body)).json()["results"]
    assert [one["accepted"] for one in results] == [True, True]
    (row,) = await rows(service.database, schema.messages)
    assert row.mt_price == Decimal(EXACT)


async def test_a_price_in_a_delivery_report_with_too_many_decimals_is_rounded_with_a_warning(
    service: Service, client: httpx.AsyncClient
) -> None:
    assert (await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", "message_id": "m-1"})).status_code == 200
    body = exact_body({"message_id": "m-1", "state": "SENT", "mt_price": "EXACT"}).replace(EXACT.encode(), EXACT.encode() + b"4")
    (result,) = (await client.post("/api/v1/sms/status", content=body)).json()["results"]
    assert result["warnings"] == ["mt_price is rounded to 20 digits after the decimal point"]
    (row,) = await rows(service.database, schema.messages)
    assert row.mt_price == Decimal(EXACT)
