"""Fields of vendors' requests that the service does not know or support."""

from typing import Any

import httpx
import pytest

from shortener.messages.render import NOT_SENT

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
                "urlOptions.removeProtocol is not supported, because some phones do not recognize a link without its protocol",
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
async def test_fields_that_matter_cause_warnings_and_null_counts_as_absent(
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
