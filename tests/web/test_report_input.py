"""The formats in which networks send a conversion report: query, form, multipart and JSON."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.storage import schema
from shortener.web.request_body import MAX_REPORT_BYTES
from tests.conftest import client_of
from tests.factory import Message, add_message, rows
from tests.one_service import on_one_service

PATHS = ("/api/v1/track", "/api/v1/action/track", "/api/v1/callback/action", "/action")
JSON = b'{"message_id": "m-1", "action": "sale", "value": 29.990000000000002, "currency": "EUR", "sub": "\\u00fc"}'
FORM = b"message_id=m-1&action=sale&value=29.99&currency=EUR&sub=%C3%BC"
MULTIPART = (
    b"--limit\r\n"
    + b"--limit\r\n".join(
        b'Content-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name, value)
        for name, value in ((b"message_id", b"m-1"), (b"action", b"sale"), (b"value", b"29,99"), (b"currency", b"eur"))
    )
    + b'--limit\r\nContent-Disposition: form-data; name="sub"\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n'
    + "ü".encode()
    + b"\r\n--limit--\r\n"
)
BODIES: list[tuple[str, bytes, dict[str, str]]] = [
    ("JSON", JSON, {"Content-Type": "application/json"}),
    ("JSON with a vendor's type", JSON, {"Content-Type": "application/vnd.network+json; charset=utf-8"}),
    ("JSON with a byte order mark", b"\xef\xbb\xbf" + JSON, {"Content-Type": "application/json"}),
    ("JSON in UTF-16", JSON.decode().encode("utf-16"), {"Content-Type": "application/json"}),
    ("JSON as text", JSON, {"Content-Type": "text/plain"}),
    ("JSON without a type", JSON, {}),
    ("JSON with the type of a form", JSON, {"Content-Type": "application/x-www-form-urlencoded"}),
    ("JSON in a list", b"[" + JSON + b"]", {"Content-Type": "application/json"}),
    ("compressed JSON", gzip.compress(JSON), {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
    ("form", FORM, {"Content-Type": "application/x-www-form-urlencoded"}),
    ("form without a type", FORM, {}),
    ("form as text", FORM, {"Content-Type": "text/plain"}),
    ("form with HTML entities", FORM.replace(b"&", b"&amp;"), {"Content-Type": "application/x-www-form-urlencoded"}),
    ("form that is not UTF-8", FORM.replace(b"%C3%BC", b"%FC"), {"Content-Type": "application/x-www-form-urlencoded"}),
    ("multipart", MULTIPART, {"Content-Type": "multipart/form-data; boundary=limit"}),
]


@pytest.fixture(autouse=True)
async def message(service: Service) -> Message:
    return await service.database.write(add_message, service.ids)


@pytest.fixture
async def tracker(service: Service, credentials: Credentials) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service, {"X-Api-Token": credentials.tracker_token}) as client:
        yield client


async def stored(service: Service) -> tuple[Any, ...]:
    (row,) = await rows(service.database, schema.conversions)
    return row.action, str(row.value), row.currency, row.metadata


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("content", "headers"), [body[1:] for body in BODIES], ids=[body[0] for body in BODIES])
async def test_every_conversion_endpoint_accepts_a_body_in_any_format(
    service: Service, tracker: httpx.AsyncClient, method: str, content: bytes, headers: dict[str, str]
) -> None:
    for path in PATHS:
        response = await tracker.request(method, path, content=content, headers=headers)
        assert response.status_code == 200, response.text
        assert ("deprecation" in response.headers) == (path in ("/api/v1/action/track", "/action"))
    assert await stored(service) == ("sale", "29.99", "EUR", {"sub": "ü"})


async def test_a_conversion_report_sent_by_post_may_have_its_parameters_in_the_query(
    service: Service, tracker: httpx.AsyncClient
) -> None:
    for path in PATHS:
        assert (await tracker.post(f"{path}?{FORM.decode()}")).status_code == 200
    assert await stored(service) == ("sale", "29.99", "EUR", {"sub": "ü"})


async def test_a_conversion_report_combines_the_parameters_of_query_and_body(service: Service, tracker: httpx.AsyncClient) -> None:
    response = await tracker.post(
        "/api/v1/track?message_id=m-1&action=sale", json={"value": "29.99", "currency": "EUR", "sub": "ü"}
    )
    assert response.status_code == 200
    assert await stored(service) == ("sale", "29.99", "EUR", {"sub": "ü"})
    response = await tracker.post("/api/v1/track?message_id=m-1", json={"message_id": "m-2"})
    assert response.json()["error_code"] == "INVALID_REQUEST"


@pytest.mark.parametrize(
    "name",
    ["action", "transaction_id", "status", "disposition", "value", "currency", "timestamp", "click_id", "sub", "\\ud800"],
)
async def test_a_conversion_report_with_half_of_a_surrogate_pair_is_recorded(
    service: Service, tracker: httpx.AsyncClient, name: str
) -> None:
    body = b'{"message_id": "m-1", "%s": "a\\ud800b"}' % name.encode()
    response = await tracker.post("/api/v1/callback/action", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    assert len(await rows(service.database, schema.conversions)) == 1


async def test_ids_with_different_halves_of_surrogate_pairs_stay_different(service: Service, tracker: httpx.AsyncClient) -> None:
    for half, is_duplicate in ((b"\\ud800", False), (b"\\udfff", False), (b"\\uD800", True)):
        body = b'{"message_id": "m-1", "transaction_id": "%s"}' % half
        response = await tracker.post("/api/v1/callback/action", content=body)
        assert response.json()["duplicate"] is is_duplicate, response.text
        assert response.json()["warnings"]
    unknown = await tracker.post("/api/v1/callback/action", content=b'{"message_id": "m-1\\ud800"}')
    assert unknown.json()["error_code"] == "MESSAGE_NOT_FOUND"


async def test_a_json_report_with_too_many_parameters_may_contain_half_of_a_surrogate_pair(tracker: httpx.AsyncClient) -> None:
    names = b", ".join(b'"p%d": 1' % number for number in range(3000))
    body = b'{"message_id": "m-1", %s, "\\ud800": 1}' % names
    for at in (body, body.replace(b'"p', b'"\\ud800')):
        response = await tracker.post("/api/v1/callback/action", content=at)
        assert response.status_code == 200, response.text


async def test_the_name_of_a_multipart_field_may_have_any_characters(service: Service, tracker: httpx.AsyncClient) -> None:
    fields = {"message_id": "m-1", "übergabe": "1", "x[y]": "2"}
    response = await tracker.post("/action", files={name: (None, value) for name, value in fields.items()})
    assert response.status_code == 200, response.text
    (row,) = await rows(service.database, schema.conversions)
    assert row.metadata == {"übergabe": "1", "x[y]": "2"}


@on_one_service
@pytest.mark.parametrize(
    ("boundary", "parameters"),
    [
        ("boundary=B", "name*=undefined''x"),
        ("boundary=B", "name*=a\0b''x"),
        ("boundary=B", "name=x; filename*=idna''x"),
        ("boundary*=punycode''B%ff", "name=x"),
    ],
)
async def test_a_multipart_form_with_a_header_that_cannot_be_decoded_is_an_invalid_request(
    tracker: httpx.AsyncClient, boundary: str, parameters: str
) -> None:
    body = f"--B\r\nContent-Disposition: form-data; {parameters}\r\n\r\n1\r\n--B--\r\n"
    response = await tracker.post("/action", content=body, headers={"Content-Type": f"multipart/form-data; {boundary}"})
    assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_REQUEST")


async def test_a_warning_about_a_file_may_contain_an_unpaired_surrogate(tracker: httpx.AsyncClient) -> None:
    head = "Content-Disposition: form-data; name"
    body = f"--B\r\n{head}*=utf-7''a+2AA-; filename=x\r\n\r\n1\r\n--B\r\n{head}=message_id\r\n\r\nm-1\r\n--B--\r\n"
    response = await tracker.post("/action", content=body, headers={"Content-Type": "multipart/form-data; boundary=B"})
    assert response.status_code == 200, response.text
    assert any(warning.startswith("a\\ud800: is a file") for warning in response.json()["warnings"])


async def test_the_html_entity_of_an_ampersand_is_accepted_as_a_separator_of_query_parameters(
    service: Service, tracker: httpx.AsyncClient
) -> None:
    await tracker.get("/api/v1/track?message_id=m-1&amp;action=sale&amp;value=3&amp;amp;currency=EUR&note=a%26amp%3Bb")
    assert await stored(service) == ("sale", "3", "EUR", {"note": "a&amp;b"})


@on_one_service
@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("transaction_id=&lt;orderid&gt;", "<orderid>"),
        ("transaction_id=%26lt%3Borderid%26gt%3B", "&lt;orderid&gt;"),
        ("transaction_id=%campaign%", "Êmpaign%"),
        ("action=*|EVENT|*", "*|EVENT|*"),
        ("status=%3C%25%3D%20status%20%25%3E", "<%= status %>"),
        ("click_id={$clickid}", "{$clickid}"),
    ],
)
async def test_the_error_for_an_unreplaced_network_placeholder_contains_the_placeholder(
    service: Service, tracker: httpx.AsyncClient, query: str, named: str
) -> None:
    before = len(await rows(service.database, schema.refused_conversions))
    response = await tracker.get(f"/api/v1/track?message_id=m-1&value=1&{query}")
    assert (response.status_code, response.json()["error_code"]) == (400, "UNEXPANDED_PLACEHOLDER")
    (detail,) = response.json()["details"]
    assert (detail["field"], detail["reason"]) == (query.partition("=")[0], f"is {named}, a placeholder that was not replaced")
    assert await rows(service.database, schema.conversions) == []
    (refused,) = (await rows(service.database, schema.refused_conversions))[before:]
    assert refused.reason == "UNEXPANDED_PLACEHOLDER"


async def test_a_conversion_report_that_is_not_utf_8_is_stored_with_a_warning(tracker: httpx.AsyncClient) -> None:
    response = await tracker.get("/api/v1/track?message_id=m-1&sub=%FC")
    assert response.json()["warnings"] == ["query: is not UTF-8; it was read as Windows-1252"]


@on_one_service
@pytest.mark.parametrize(
    ("content", "content_type", "code"),
    [
        (b"{", "application/json", "INVALID_JSON"),
        (b'{"message_id": "m-1"', "text/plain", "INVALID_JSON"),
        (b"[" * 100_000, "application/json", "INVALID_JSON"),
        (b"[1, 2]", "application/json", "INVALID_JSON"),
        (b"hello", "text/plain", "INVALID_JSON"),
        (b"no boundary", "multipart/form-data", "INVALID_REQUEST"),
        (b"not gzip", "application/json", "INVALID_REQUEST"),
    ],
)
async def test_a_conversion_report_with_an_unparsable_body_is_rejected_and_listed_as_a_refused_report(
    service: Service, tracker: httpx.AsyncClient, content: bytes, content_type: str, code: str
) -> None:
    before = len(await rows(service.database, schema.refused_conversions))
    headers = {"Content-Type": content_type} | ({"Content-Encoding": "gzip"} if content == b"not gzip" else {})
    response = await tracker.post("/api/v1/track", content=content, headers=headers)
    assert (response.status_code, response.json()["error_code"]) == (400, code)
    (refused,) = (await rows(service.database, schema.refused_conversions))[before:]
    assert refused.reason == code


async def test_the_size_limit_of_a_request_body_applies_to_the_decompressed_body(
    service: Service, tracker: httpx.AsyncClient
) -> None:
    content = gzip.compress(b"message_id=m-1&a=" + b"x" * service.settings.body_limit)
    response = await tracker.post("/action", content=content, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, response.json()["error_code"]) == (413, "BODY_TOO_LARGE")


async def test_the_error_for_a_report_of_more_than_256_kib_does_not_name_the_setting_body_limit(tracker: httpx.AsyncClient) -> None:
    response = await tracker.post("/action?message_id=m-1", content=b"x" * (MAX_REPORT_BYTES + 1))
    assert response.status_code == 413
    assert response.json()["description"] == f"The body must have at most {MAX_REPORT_BYTES} bytes."


async def test_a_conversion_report_ignores_parameters_beyond_the_limit(service: Service, tracker: httpx.AsyncClient) -> None:
    body = {"message_id": "m-1", **{f"p{number}": "x" * 20 for number in range(2000)}}
    response = await tracker.post("/action", json=body)
    assert (response.status_code, len(response.json()["warnings"])) == (200, 20)
    assert len(await rows(service.database, schema.conversions)) == 1


async def test_large_integers_and_special_numbers_in_a_conversion_report_are_stored_as_text(
    service: Service, tracker: httpx.AsyncClient
) -> None:
    content = (
        b'{"message_id": "m-1", "big": '
        + b"9" * 5000
        + b', "value": NaN, "huge": 1e999, "huger": 1e99999999999999999999, "x": "a\\ud800b"}'
    )
    response = await tracker.post("/action", content=content)
    assert response.status_code == 200
    (row,) = await rows(service.database, schema.conversions)
    assert (row.value, row.metadata["value"], row.metadata["huge"]) == (None, "NaN", "1E+999")
    assert row.metadata["huger"] == "1e99999999999999999999"  # no decimal can have this exponent


@on_one_service
@pytest.mark.parametrize(
    "content",
    [
        b'{"message_id": "m-1", "message_id": "m-2"}',
        b'{"message_id": "m-1", "transaction_id": "1", "transaction_id": 2}',
        b'[{"message_id": "m-1", "action": "sale", "action": "lead", "action": "sale"}]',
        b'{"message_id": "m-1", "transaction_id": "1", "transaction_id": ["1"]}',
    ],
)
async def test_a_json_report_that_contains_an_id_twice_with_different_values_is_rejected(
    service: Service, tracker: httpx.AsyncClient, content: bytes
) -> None:
    response = await tracker.post("/api/v1/track", content=content)
    assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_REQUEST")
    assert await rows(service.database, schema.conversions) == []


async def test_a_json_report_may_contain_a_parameter_twice(service: Service, tracker: httpx.AsyncClient) -> None:
    content = b'{"message_id": "m-1", "message_id": "m-1", "value": 1, "value": 2.50, "sub": 1, "sub": "b", "o": {"a": 1, "a": 2}}'
    response = await tracker.post("/api/v1/track?sub=c", content=content)
    assert (response.status_code, response.json()["warnings"]) == (200, ["value: occurs several times; the last value was used"])
    (row,) = await rows(service.database, schema.conversions)
    assert (row.value, row.metadata) == (Decimal("2.50"), {"sub": ["c", 1, "b"], "o": {"a": [1, 2]}})
