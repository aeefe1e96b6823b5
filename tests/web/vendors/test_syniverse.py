"""Syniverse's call that creates a message request, over HTTP, on SQLite and PostgreSQL."""

import httpx
import pytest

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.messages.item_plan import NOT_SENT
from shortener.storage import schema
from shortener.web.vendors.syniverse import SyniverseResponse
from tests.conftest import client_of
from tests.factory import rows
from tests.one_service import on_one_service

PATH = "/scg-external-api/api/v1/messaging/message_requests"
REQUEST = {
    "from": "channel:Bxn9SHBYhl89Kn",
    "to": ["+14085550100", "+14085550101"],
    "body": 'please visit us at #track("https://shop.example/a") now',
    "external_id": "order 7",
}


async def test_the_documented_syniverse_request_gets_an_id_and_the_texts_of_all_recipients(
    service: Service, credentials: Credentials
) -> None:
    headers = {"Authorization": f"Bearer {credentials.api_key}", "Content-Type": "Application/json"}
    async with client_of(service, headers) as client:
        response = await client.post(PATH, json=REQUEST)
        assert response.status_code == 200, response.text
        told = response.json()
        SyniverseResponse.model_validate(told)
        assert (told["sent"], told["warnings"]) == (False, [])
        assert [message["to"] for message in told["messages"]] == REQUEST["to"]
        assert all(NOT_SENT in message["warnings"] for message in told["messages"])
        assert {message["message_request_id"] for message in told["messages"]} == {told["id"]}
        status = (await client.get(f"/api/v1/sms/status/{told['messages'][0]['message_id']}")).json()
    assert (status["message_request_id"], status["external_message_request_id"]) == (told["id"], "order 7")
    assert status["from"] == "channel:Bxn9SHBYhl89Kn"


async def test_syniverse_fields_that_change_the_sending_cause_warnings_and_unknown_fields_are_accepted(
    client: httpx.AsyncClient,
) -> None:
    more = {"attachments": ["a1"], "pause_before_transmit": True, "consent_requirement": "CALL", "src_language": "en", "new": 1}
    told = (await client.post(PATH, json={**REQUEST, **more, "price_threshold": None})).json()
    assert told["warnings"] == [
        "attachments is not supported; an SMS has no attachment",
        "consent_requirement is not supported; only the opt-out list of the application is checked",
        "pause_before_transmit is not supported; the message is sent at once",
        "new is not a known field; it was ignored",
    ]
    told = (await client.post(PATH, json={**REQUEST, "consent_requirement": "NONE", "test_message_flag": False})).json()
    assert told["warnings"] == []


@on_one_service
@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"to": ["+14085550100", "14X"]}, "INVALID_RECIPIENT", "to.1"),
        ({"to": []}, "INVALID_REQUEST", "to"),
        ({"body": '#track("")'}, "INVALID_TRACK_DIRECTIVE", "body"),
        ({"body": None}, "INVALID_REQUEST", "body"),
    ],
)
async def test_an_invalid_syniverse_request_gets_an_error_with_the_field_name_and_stores_nothing(
    client: httpx.AsyncClient, service: Service, change: dict[str, object], code: str, field: str
) -> None:
    response = await client.post(PATH, json={**REQUEST, **change})
    assert (response.status_code, response.json()["error_code"]) == (400, code)
    assert response.json()["details"][0]["field"] == field
    assert await rows(service.database, schema.messages) == []


async def test_the_message_of_a_syniverse_request_is_sent_to_the_recipients_who_have_not_opted_out(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.post("/api/v1/opt-outs", json={"phone": "+14085550101"})).status_code == 201
    told = (await client.post(PATH, json=REQUEST)).json()
    SyniverseResponse.model_validate(told)
    assert [one.get("error_code") for one in told["messages"]] == [None, "OPTED_OUT"]
    assert told["id"] == told["messages"][0]["message_request_id"]
    response = await client.post(PATH, json={**REQUEST, "to": "+14085550101"})
    assert (response.status_code, response.json()["error_code"]) == (409, "OPTED_OUT")


@pytest.mark.parametrize("name", ["external_id", "external_message_request_id"])
async def test_an_external_id_of_a_syniverse_request_may_be_a_number(client: httpx.AsyncClient, name: str) -> None:
    request = {field: value for field, value in REQUEST.items() if field != "external_id"}
    response = await client.post(PATH, json={**request, name: 7, "campaign_id": 8, "from": 12345})
    assert response.status_code == 200, response.text
    status = (await client.get(f"/api/v1/sms/status/{response.json()['messages'][0]['message_id']}")).json()
    assert status["external_message_request_id"] == "7"
    assert (status["campaign"], status["from"]) == ("8", "12345")
