"""Tests that send the documented examples of Syniverse, 23 Telecom and Xoxzo over HTTP to a real server process."""

import re
from typing import Any

import httpx
import pytest

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.process import NO_TLS, PHONE, Server, wait_until_delivered
from tests.servers import PATIENCE


def rewrite(server: Server, message: dict[str, Any]) -> dict[str, Any]:
    with server.api() as client:
        answer = client.post("/api/v1/rewrite", json=message)
    assert answer.status_code == 200, answer.text
    rewritten: dict[str, Any] = answer.json()["messages"][0]
    return rewritten


def track(server: Server, **tracker: Any) -> None:
    with server.api() as client:
        answer = client.post("/api/v1/trackers", json={"name": "mine", **tracker})
    assert answer.status_code in (200, 201), answer.text


def report(server: Server, message_id: str, **more: Any) -> None:
    with server.api() as client:
        answer = client.post("/api/v1/sms/status", json={"message_id": message_id, **more})
    assert answer.status_code == 200, answer.text


def tap(server: Server, short_url: str) -> httpx.Response:
    with httpx.Client(verify=NO_TLS, trust_env=False, timeout=PATIENCE) as client:
        return client.get(short_url, headers={"User-Agent": PHONE})


def test_syniverse_a_click_creates_a_clickthru_event_with_every_field_of_the_documented_sample(
    server: Server, endpoint: Endpoint
) -> None:
    track(server, url=f"{endpoint.url}/webhook", events=["state"], format="scg")
    message = rewrite(
        server,
        {
            "from": "18775550100",
            "sender_id_id": "EjihJOXWJE24O",
            "sender_id_alias": "Gladiator",
            "to": ["+14085550100"],
            "message_id": ["uFAbXDeSXGMzgK5Qoxw5g2"],
            "message_request_id": "9E0qhwPclVXnqMjbaYF4J5",
            "mt_price": 0.0095,
            "body": "Hello Kola, thanks for your patronage, please visit us at "
            '#track(\\"https://shop.example/a?b=1\\") cool information for you for new information',
        },
    )
    short_url = message["links"][0]["short_url"]
    assert message["body"] == (
        f"Hello Kola, thanks for your patronage, please visit us at {short_url} cool information for you for new information"
    )
    report(server, message["message_id"], state="DELIVERED", status="DELIVRD", reason_code="200", reason_description="SUCCESS")
    resolution = tap(server, short_url)
    assert (resolution.status_code, resolution.headers["location"]) == (302, "https://shop.example/a?b=1")
    assert resolution.headers["cache-control"] == "private, no-store"
    assert resolution.headers["x-robots-tag"] == "noindex"

    delivered, clicked = endpoint.wait(2)
    assert delivered.json["event"]["fld-val-list"]["new_state"] == "DELIVERED"
    body = clicked.json
    assert (body["topic"], body["attempt"]) == ("SCG-Message", 1)
    assert body["event_id"] == clicked.headers["webhook-id"]
    assert body["event"]["evt-tp"] == "message_state_change"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["event"]["timestamp"])
    fields = body["event"]["fld-val-list"]
    expected = {
        "previous_state": "DELIVERED",
        "new_state": "CLICKTHRU",
        "message_request_id": "9E0qhwPclVXnqMjbaYF4J5",
        "message_id": "uFAbXDeSXGMzgK5Qoxw5g2",
        "external_message_request_id": "",
        "to_address": "+14085550100",
        "from_address": "18775550100",
        "has_attachment": False,
        "reason_code": "200",
        "reason_description": "SUCCESS",
        "application_id": server.first["application_id"],
        "company-id": None,
        "sender_id_id": "EjihJOXWJE24O",
        "sender_id_alias": "Gladiator",
        "fragments_count": 1,
        "mt_price": 0.0095,
        "short_url": short_url,
        "url": "https://shop.example/a?b=1",
        "label": None,
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["click_id"]
    assert fields["seconds_since_delivered"] >= 0
    assert list(fields)[: len(expected) - 3] == list(expected)[: len(expected) - 3], "Syniverse's own names come first"

    tap(server, short_url)
    with server.api() as client:
        assert client.get(f"/api/v1/sms/status/{message['message_id']}").json()["state"] == "CLICKTHRU"
    wait_until_delivered(server)
    assert len(endpoint.arrived) == 2, "subsequent clicks only open the link's URL"


def test_23_telecom_a_conversion_sends_a_postback_with_all_placeholders_replaced(server: Server, endpoint: Endpoint) -> None:
    track(
        server,
        url=f"{endpoint.url}/postback?phone={{phone}}&status={{status}}&cost={{cost}}",
        events=["delivery"],
        format="json",
        fields=["message_id", "phone", "status", "cost"],
    )
    track(
        server,
        url=f"{endpoint.url}/conversion?id={{message_id}}&value={{value}}&cur={{currency}}&tx={{transaction_id}}",
        events=["conversion"],
        format="json",
    )
    message = rewrite(server, {"to": "+14155551234", "body": 'see #track("https://x.example/")', "mt_price": "0.0085"})
    report(server, message["message_id"], state="DELIVERED", status="DELIVRD")
    (delivery,) = endpoint.wait(1)
    assert delivery.method == "POST"
    assert delivery.target == "/postback?phone=%2B14155551234&status=DELIVRD&cost=0.0085"
    assert delivery.json["message_id"] == message["message_id"]
    assert delivery.json["phone"] == "+14155551234"

    parameters = {
        "message_id": message["message_id"],
        "action": "deposit",
        "value": "25.50",
        "currency": "EUR",
        "transaction_id": "T&1",
    }
    with server.client() as stranger:
        assert stranger.get("/api/v1/track", params=parameters).status_code == 401
    with server.tracker() as client:
        first = client.get("/api/v1/track", params=parameters)
        again = client.post("/api/v1/callback/action", json=parameters)
    assert first.json() == {
        "status": True,
        "conversion_id": first.json()["conversion_id"],
        "message_id": message["message_id"],
        "duplicate": False,
    }
    assert again.json() == first.json() | {"duplicate": True}
    conversion = endpoint.wait(2)[1]
    assert conversion.target == f"/conversion?id={message['message_id']}&value=25.50&cur=EUR&tx=T%261"
    assert conversion.json["conversion_id"] == first.json()["conversion_id"]
    wait_until_delivered(server)
    assert len(endpoint.arrived) == 2


def test_xoxzo_the_first_click_sends_one_callback_and_appears_in_the_message_status(server: Server, endpoint: Endpoint) -> None:
    message = rewrite(
        server,
        {
            "to": "+818012345678",
            "body": "test link tracking https://www.xoxzo.com/en/",
            "track_link": "true",
            "lt_callbackurl": f"{endpoint.url}/callback",
        },
    )
    short_url = message["links"][0]["short_url"]
    assert message["body"] == f"test link tracking {short_url}"

    def link_tracking() -> dict[str, Any]:
        with server.api() as client:
            told: dict[str, Any] = client.get(f"/sms/messages/{message['message_id']}/").json()["link_tracking"]
        return told

    assert link_tracking() == {
        "link": "https://www.xoxzo.com/en/",
        "shortlink": short_url,
        "accessed": False,
        "accessed_on": None,
    }
    endpoint.answers = [500, 201]  # for Xoxzo's callback, only the status 200 is a success
    for _ in range(3):
        assert tap(server, short_url).status_code == 302
    calls = endpoint.wait(3)
    assert {call.target for call in calls} == {"/callback"}
    assert len({call.headers["webhook-id"] for call in calls}) == 1
    told = link_tracking()
    assert told["accessed"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", told["accessed_on"])
    wait_until_delivered(server)
    assert len(endpoint.arrived) == 3


@pytest.mark.parametrize("agent", ["facebookexternalhit/1.1", "", "curl/8.0"])
def test_a_hit_by_a_link_preview_does_not_prevent_the_clickthru_event_of_a_later_click(server: Server, agent: str) -> None:
    message = rewrite(server, {"to": "+14155551234", "body": 'see #track("https://x.example/")'})
    short_url = message["links"][0]["short_url"]
    with httpx.Client(verify=NO_TLS, trust_env=False, timeout=PATIENCE) as client:
        for method in ("GET", "HEAD"):
            answer = client.request(method, short_url, headers={"User-Agent": agent})
            assert (answer.status_code, answer.headers["location"]) == (302, "https://x.example/")
    with server.api() as api:
        assert api.get(f"/api/v1/sms/status/{message['message_id']}").json()["state"] == "CREATED"
        tap(server, short_url)
        assert api.get(f"/api/v1/sms/status/{message['message_id']}").json()["state"] == "CLICKTHRU"
