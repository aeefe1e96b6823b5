"""Xoxzo's format over HTTP, on SQLite and PostgreSQL: its send call, and its field names in the native rewrite call."""

from typing import Any

import httpx
import pytest

from shortener.container import Service
from shortener.messages.item_plan import NOT_SENT
from shortener.storage import schema
from shortener.web.vendors.xoxzo import XoxzoSendResponse
from tests.conftest import Clock
from tests.factory import rows
from tests.one_service import on_one_service

SAMPLE = {
    "sender": "Sender",
    "message": "test link tracking https://www.xoxzo.com/en/",
    "recipient": "+818012345678",
    "track_link": "true",
}


@pytest.mark.parametrize("form", [False, True])
async def test_the_documented_xoxzo_request_gets_a_msgid_and_the_text_with_the_short_link(
    client: httpx.AsyncClient, form: bool
) -> None:
    answer = await (client.post("/sms/messages/", data=SAMPLE) if form else client.post("/sms/messages/", json=SAMPLE))
    assert answer.status_code == 201
    XoxzoSendResponse.model_validate(answer.json())
    told = answer.json()[0] if form else answer.json()
    assert (told["sent"], told["warnings"]) == (False, [NOT_SENT])
    (link,) = told["links"]
    assert (told["message"], link["url"]) == (f"test link tracking {link['short_url']}", "https://www.xoxzo.com/en/")
    status = (await client.get(f"/sms/messages/{told['msgid']}/")).json()
    assert status == {
        "msgid": told["msgid"],
        "status": "CREATED",
        "sender": "Sender",
        "recipient": "+818012345678",
        "url": f"http://127.0.0.1:8000/sms/messages/{told['msgid']}/",
        "sent_time": "2026-11-20 12:00:00",
        "cost": None,
        "parts": 1,
        "tags": [],
        "link_tracking": {
            "link": "https://www.xoxzo.com/en/",
            "shortlink": link["short_url"],
            "accessed": False,
            "accessed_on": None,
        },
    }


async def test_the_native_rewrite_endpoint_accepts_the_field_names_of_xoxzo(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/rewrite", json={**SAMPLE, "campaign": "spring", "message_id": "m-1"})
    assert answer.status_code == 200
    (message,) = answer.json()["messages"]
    assert (message["to"], message["message_id"]) == (SAMPLE["recipient"], "m-1")
    assert message["body"] == f"test link tracking {message['links'][0]['short_url']}"
    status = (await client.get("/api/v1/sms/status/m-1")).json()
    assert (status["from"], status["campaign"]) == ("Sender", "spring")


@pytest.mark.parametrize("name", ["lt_callbackurl", "lt_callbackur"])
async def test_both_spellings_lt_callbackurl_and_lt_callbackur_of_a_xoxzo_field_are_accepted(
    client: httpx.AsyncClient, service: Service, name: str
) -> None:
    answer = await client.post("/sms/messages/", json={**SAMPLE, name: "https://customer.example/cb"})
    assert answer.status_code == 201
    (message,) = await rows(service.database, schema.messages)
    assert message.callback_url == "https://customer.example/cb"


async def test_a_xoxzo_request_without_track_link_returns_the_text_unchanged(client: httpx.AsyncClient) -> None:
    for more in ({"track_link": "false"}, {"track_link": False}, {"track_link": None}):
        told = (await client.post("/sms/messages/", json=SAMPLE | more)).json()
        assert (told["message"], told["links"]) == (SAMPLE["message"], [])


@on_one_service
@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"recipient": "08012345678"}, "INVALID_RECIPIENT", "recipient"),
        ({"recipient": ["+818012345678"]}, "INVALID_REQUEST", "recipient"),
        ({"message": '#track("")'}, "INVALID_TRACK_DIRECTIVE", "message"),
        ({"message": None}, "INVALID_REQUEST", "message"),
        ({"track_link": "yes please"}, "INVALID_REQUEST", "track_link"),
        ({"lt_callbackurl": "ftp://x.example/"}, "INVALID_REQUEST", "lt_callbackurl"),
    ],
)
async def test_errors_of_xoxzo_requests_use_the_field_names_of_xoxzo(
    client: httpx.AsyncClient, service: Service, change: dict[str, Any], code: str, field: str
) -> None:
    for path in ("/sms/messages/", "/api/v1/rewrite"):
        answer = await client.post(path, json={**SAMPLE, **change})
        assert (answer.status_code, answer.json()["error_code"]) == (400, code)
        assert [detail["field"] for detail in answer.json()["details"]] == [field]
    assert await rows(service.database, schema.messages) == []


async def test_errors_of_the_xoxzo_endpoints_have_the_structure_of_xoxzo_errors(client: httpx.AsyncClient) -> None:
    told = (await client.post("/sms/messages/", data={"message": "x", "sender": "S"})).json()
    assert told["recipient"] == ["is required"]
    missing = await client.get("/sms/messages/none/")
    assert (missing.status_code, missing.json()["detail"]) == (404, "The application has no message with this id.")


async def test_unknown_fields_of_a_xoxzo_request_cause_a_warning_and_its_tags_are_stored_as_the_campaign(
    client: httpx.AsyncClient,
) -> None:
    form = {**SAMPLE, "callbackurl": "https://customer.example/", "jp_kp": "true", "tags": "spring"}
    (told,) = (await client.post("/sms/messages/", data=form)).json()
    assert told["warnings"][1:] == [
        "callbackurl is not supported; create a tracker of the format xoxzo with the event delivery",
        "jp_kp is not a known field; it was ignored",
    ]
    assert (await client.get(f"/sms/messages/{told['msgid']}")).json()["tags"] == ["spring"]


async def test_the_message_list_of_xoxzo_can_be_filtered_by_the_date_of_sending(
    client: httpx.AsyncClient, clock: Clock, subtests: pytest.Subtests
) -> None:
    for day in range(2):
        clock.forward(hours=24 * day)
        assert (await client.post("/sms/messages/", data=SAMPLE)).status_code == 201
    numbers = {
        "": 2,
        "?sent_date=2026-11-20": 1,
        "?sent_date>=2026-11-20": 2,
        "?sent_date%3E=2026-11-21": 1,
        "?sent_date>2026-11-20": 1,
        "?sent_date%3E2026-11-21": 0,
        "?sent_date<2026-11-21": 1,
        "?sent_date<=2026-11-21": 2,
        "?sent_date<=2026-11-20&sent_date>=2026-11-20": 1,
        "?sent_date=9999-12-31": 0,
        "?sent_date>9999-12-31": 0,
        "?sent_date<=9999-12-31": 2,
        "?sent_date=0001-01-01": 0,
        "?sent_date>=0001-01-01": 2,
        "?sent_date<0001-01-01": 0,
    }
    for query, number in numbers.items():
        with subtests.test(query):
            response = await client.get(f"/sms/messages/{query}")
            assert response.status_code == 200, response.text
            listed = response.json()
            assert len(listed) == number
            for row in listed:
                assert row == (await client.get(row["url"])).json()
                assert row["link_tracking"]["accessed"] is False


@on_one_service
@pytest.mark.parametrize("query", ["sent_date=yesterday", "sent_date%3E=", "sent_date!=2026-11-20", "sent_date=2026-02-30"])
async def test_a_xoxzo_message_list_with_an_invalid_date_filter_is_rejected(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"/sms/messages/?{query}")
    assert (response.status_code, next(iter(response.json()))) == (400, "sent_date")
