"""Tests of fields in vendors' requests that the service does not know or support."""

from decimal import Decimal
from typing import Any

import httpx
import pytest

from shortener.container import Service
from shortener.messages.balances import change_balance
from shortener.messages.item_plan import NOT_SENT
from shortener.messages.prices import set_price
from shortener.storage import schema
from tests.factory import rows

V3_MESSAGE = {"sender": "A", "destinations": [{"to": "41793026731"}], "content": {"text": "see https://shop.example/"}}
V2_MESSAGE = {"from": "A", "destinations": [{"to": "41793026731"}], "text": "see https://shop.example/"}


@pytest.mark.parametrize(
    ("path", "request_body", "about_message", "about_request"),
    [
        ("/sms/2/text/advanced", {"type": "text", "messages": [V2_MESSAGE], "includeSmsCountInResponse": False}, [], []),
        (
            "/sms/2/text/advanced",
            {
                "bulkId": None,
                "messages": [
                    {
                        **V2_MESSAGE,
                        "from": None,
                        "flash": True,
                        "sendAt": "2030-01-01",
                        "destinations": [{"to": "41793026731", "x": 1}],
                    }
                ],
                "tracking": {"type": None, "processKey": "K"},
                "urlOptions": {"removeProtocol": True, "trackClicks": False, "trackingUrl": "https://t.example/"},
                "sendingSpeedLimit": {"amount": 1},
                "unheard": 1,
            },
            [
                "messages.0.destinations.0.x is not a known field; it was ignored",
                "messages.0.flash is not supported; the message is sent as a normal SMS",
                "messages.0.sendAt is not supported; the message is sent at once",
            ],
            [
                "tracking.processKey is not supported; `type` selects the conversion process",
                "urlOptions.trackingUrl is not supported; create a tracker of the format infobip with the event click",
                "urlOptions.removeProtocol is not supported, because some phones do not recognize a link without https://",
                "sendingSpeedLimit is not supported; the rate of the gateway applies",
                "unheard is not a known field; it was ignored",
                "urlOptions.trackClicks: a short link is always tracked",
            ],
        ),
        (
            "/sms/3/messages",
            {
                "messages": [{**V3_MESSAGE, "webhooks": {"delivery": {"url": "https://a.example/"}}, "options": {"flash": False}}],
                "options": {
                    "schedule": {"sendAt": "2030-01-01T00:00:00Z"},
                    "tracking": {"shortenUrl": False, "trackClicks": False},
                },
            },
            ["messages.0.webhooks.delivery is not supported; create a tracker of the format infobip with the event delivery"],
            ["options.schedule.sendAt is not supported; the message is sent at once"],
        ),
    ],
)
async def test_vendor_fields_with_an_effect_on_sending_cause_warnings_unless_they_are_null(
    client: httpx.AsyncClient, path: str, request_body: dict[str, Any], about_message: list[str], about_request: list[str]
) -> None:
    response = await client.post(path, json=request_body)
    assert response.status_code == 200, response.text
    told = response.json()
    assert [one for one in told["messages"][0]["warnings"] if one != NOT_SENT and " not tracked" not in one][
        -len(about_message) or 99 :
    ] == about_message
    assert told["warnings"] == about_request


async def test_a_request_with_very_many_unknown_fields_gets_at_most_20_warnings(client: httpx.AsyncClient) -> None:
    response = await client.post("/sms/3/messages", json={"messages": [V3_MESSAGE], **{f"f{n}": 1 for n in range(500)}})
    assert len(response.json()["warnings"]) == 20


#: A send request of each vendor. Each contains a message that costs money if a price is set.
SENDS: dict[str, dict[str, Any]] = {
    "/sms/1/text/advanced": {"messages": [V2_MESSAGE]},
    "/sms/2/text/advanced": {"messages": [V2_MESSAGE]},
    "/sms/1/text/single": {"from": "A", "to": "41793026731", "text": "x"},
    "/sms/2/text/multi": {"messages": [{"from": "A", "to": "41793026731", "text": "x"}]},
    "/sms/3/messages": {"messages": [V3_MESSAGE]},
    "/sms/messages/": {"sender": "A", "recipient": "+41793026731", "message": "x"},
    "/scg-external-api/api/v1/messaging/message_requests": {"from": "A", "to": ["+41793026731"], "body": "x"},
}


async def test_the_send_request_of_every_vendor_queues_the_message_if_the_application_has_a_gateway(
    service: Service, client: httpx.AsyncClient
) -> None:
    assert (await client.patch("/api/v1/application", json={"gateway": "simulator"})).status_code == 200
    for path, request in SENDS.items():
        told = (await client.post(path, json=request)).json()
        (message,) = told.get("messages", [told])
        assert message["sent"] is True, path
        assert NOT_SENT not in message["warnings"]
    assert len(await rows(service.database, schema.sends)) == len(SENDS)
    (log, *_) = (await client.get("/sms/3/logs", params={"sender": "A"})).json()["results"]
    assert log["content"] == {"text": "x"}, "a message that waits for a gateway has its text in the log"


async def test_the_send_request_of_every_vendor_stores_nothing_if_the_balance_is_too_low(
    service: Service, client: httpx.AsyncClient
) -> None:
    assert (await client.patch("/api/v1/application", json={"gateway": "simulator"})).status_code == 200
    await service.database.write(set_price, 1, "41", Decimal("0.05"))
    await service.database.write(change_balance, service.ids, 1, service.clock(), "test", amount=Decimal("0.01"))
    for path, request in SENDS.items():
        response = await client.post(path, json=request)
        assert (response.status_code, response.json()["error_code"]) == (402, "INSUFFICIENT_BALANCE"), path
        if path.startswith("/sms/messages"):
            assert response.json()["non_field_errors"] == [response.json()["description"]]
        elif path.startswith("/sms/"):
            assert response.json()["requestError"]["serviceException"]["messageId"] == "NOT_ENOUGH_CREDITS"
    assert await rows(service.database, schema.messages) == []
