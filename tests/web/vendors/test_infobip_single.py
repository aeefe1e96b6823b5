"""Tests of Infobip's older send calls, which send one text to one or more numbers."""

from typing import Any

import httpx
import pytest

from shortener.container import Service
from shortener.messages.item_plan import NOT_SENT
from shortener.storage import schema
from shortener.web.vendors.infobip import InfobipResponse
from tests.factory import rows
from tests.one_service import on_one_service

SINGLE = {"from": "InfoSMS", "to": "41793026731", "text": 'See #track("https://shop.example/pin")'}


async def test_the_single_and_the_multi_call_of_infobip_return_the_text_with_a_short_link_for_each_number(
    client: httpx.AsyncClient,
) -> None:
    several = {**SINGLE, "to": ["41793026731", "+14085550100"], "transliteration": None, "unheard": 1}
    for path, request, numbers in (
        ("/sms/1/text/single", SINGLE, ["41793026731"]),
        ("/sms/2/text/single", several, ["41793026731", "14085550100"]),
        ("/sms/1/text/multi", {"messages": [SINGLE, several]}, ["41793026731", "41793026731", "14085550100"]),
        ("/sms/2/text/multi", {"messages": [SINGLE], "unheard": 1}, ["41793026731"]),
    ):
        response = await client.post(path, json=request)
        assert response.status_code == 200, response.text
        told = response.json()
        InfobipResponse.model_validate(told)
        assert [(one["to"], one["smsCount"], one["status"]["groupName"]) for one in told["messages"]] == [
            (number, 1, "PENDING") for number in numbers
        ]
        assert len({one["links"][0]["code"] for one in told["messages"]}) == len(numbers)
        for one in told["messages"]:
            assert (one["text"], one["sent"]) == (f"See {one['links'][0]['short_url']}", False)
            assert NOT_SENT in one["warnings"]
    unheard = "is not a known field; it was ignored"
    assert told["warnings"] == [f"unheard {unheard}"]
    both = (await client.post("/sms/1/text/multi", json={"messages": [SINGLE, several]})).json()
    assert [f"messages.1.unheard {unheard}" in one["warnings"] for one in both["messages"]] == [False, True, True]
    assert (await client.get("/sms/1/logs", params={"messageId": both["messages"][0]["messageId"]})).json()["results"]


@on_one_service
@pytest.mark.parametrize(
    ("path", "request_body", "code", "field"),
    [
        ("single", {**SINGLE, "to": "4179X"}, "INVALID_RECIPIENT", "to"),
        ("single", {**SINGLE, "to": ["41793026731", "4179X"]}, "INVALID_RECIPIENT", "to.1"),
        ("single", {**SINGLE, "to": []}, "INVALID_REQUEST", "to"),
        ("single", {**SINGLE, "to": None}, "INVALID_REQUEST", "to"),
        ("single", {**SINGLE, "text": '#track("")'}, "INVALID_TRACK_DIRECTIVE", "text"),
        ("multi", {"messages": []}, "INVALID_REQUEST", "messages"),
        ("multi", {"messages": [SINGLE, {**SINGLE, "to": "4179X"}]}, "INVALID_RECIPIENT", "messages.1.to"),
        ("multi", {"messages": [{**SINGLE, "text": '#track("")'}]}, "INVALID_TRACK_DIRECTIVE", "messages.0.text"),
    ],
)
async def test_an_error_of_the_single_or_the_multi_call_of_infobip_names_the_field_of_the_request(
    service: Service, client: httpx.AsyncClient, path: str, request_body: dict[str, Any], code: str, field: str
) -> None:
    response = await client.post(f"/sms/1/text/{path}", json=request_body)
    told = response.json()
    assert (response.status_code, told["error_code"], [one["field"] for one in told["details"]]) == (400, code, [field])
    assert told["requestError"]["serviceException"]["validationErrors"].keys() == {field}
    assert await rows(service.database, schema.messages) == []
