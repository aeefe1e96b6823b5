"""Tests of complete sequences of calls over HTTP, in the formats of Syniverse, Infobip, Xoxzo and 23 Telecom.

The tests share one server. For each format there is a separate application. test_seeds.py tests the documented examples.
"""

import base64
import contextlib
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.process import NO_TLS, PHONE, Server, serving, wait_until_delivered
from tests.servers import PATIENCE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving(tmp_path_factory.mktemp("dialects"))


class Customer:
    """A new application on the server, with its credentials."""

    def __init__(self, server: Server, name: str, *options: str) -> None:
        made = server.command("applications", "create", name, *options)
        self.server = server
        self.id: int = made["application_id"]
        self.key: str = made["api_key"]
        self.token: str = made["tracker_token"]
        until(lambda: self.call("GET", "/api/v1/sms/stats").status_code == 200)

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request with the API key of the application, or with `headers` if they are given."""
        headers = more.pop("headers", {"X-API-Key": self.key})
        with self.server.client(**headers) as client:
            return client.request(method, path, **more)

    def report(self, **conversion: Any) -> httpx.Response:
        return self.call("POST", "/api/v1/callback/action", headers={"X-Api-Token": self.token}, json=conversion)

    def track(self, **tracker: Any) -> None:
        answer = self.call("POST", "/api/v1/trackers", json={"name": "mine", **tracker})
        assert answer.status_code == 201, answer.text

    def basic(self) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"{self.id}:{self.key}".encode()).decode()}


def until(true: Callable[[], bool]) -> None:
    """Wait until `true()` returns True. For example, a server may need half a second until it knows a new application."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def tap(short_url: str) -> httpx.Response:
    with httpx.Client(verify=NO_TLS, trust_env=False, timeout=PATIENCE) as client:
        return client.get(short_url, headers={"User-Agent": PHONE})


# The following test uses the format of the Syniverse API.

#: The fields of the CLICKTHRU example in Syniverse's documents, each with its JSON type.
SAMPLE = {
    "previous_state": str,
    "message_request_id": str,
    "message_id": str,
    "to_address": str,
    "has_attachment": bool,
    "reason_description": str,
    "application_id": int,
    "reason_code": str,
    "sender_id_alias": str,
    "company-id": int,
    "sender_id_id": str,
    "external_message_request_id": str,
    "new_state": str,
    "fragments_count": int,
    "from_address": str,
    "mt_price": float,
}


def test_syniverse_three_clicks_create_one_clickthru_event_and_a_repeated_reply_creates_one_conversion_event(
    server: Server, endpoint: Endpoint
) -> None:
    customer = Customer(server, "syniverse", "--company-id", "92")
    customer.track(url=f"{endpoint.url}/webhook", events=["state", "conversion"], format="scg")
    request = {
        "from": "\nchannel:Bxn9SHBYhl89KnXXXXXXXX ",
        "to": ["+14085550100"],
        "body": 'Hello Kola, please visit us at #track(\\"https://shop.example/\\") cool information',
        "mt_price": 0.0095,
    }
    answer = customer.call("POST", "/api/v1/rewrite", json=request, headers={"Authorization": f"Bearer {customer.key}"})
    (message,) = answer.json()["messages"]
    (link,) = message["links"]
    assert message["body"] == f"Hello Kola, please visit us at {link['short_url']} cool information"
    assert message["warnings"] == []
    customer.call("POST", "/api/v1/sms/status", json={"message_id": message["message_id"], "state": "DELIVERED"})
    for _ in range(3):
        assert tap(link["short_url"]).headers["location"] == "https://shop.example/"
    clicked = next(one for one in endpoint.wait(3) if b'"CLICKTHRU"' in one.body and b"message_state_change" in one.body)
    fields = clicked.json["event"]["fld-val-list"]
    assert {name: type(fields[name]) for name in SAMPLE} == SAMPLE
    assert b'"mt_price":0.0095' in clicked.body
    assert (fields["application_id"], fields["company-id"]) == (customer.id, 92)
    assert (fields["previous_state"], fields["new_state"]) == ("DELIVERED", "CLICKTHRU")
    assert (fields["from_address"], fields["reason_code"]) == ("channel:Bxn9SHBYhl89KnXXXXXXXX", "200")

    reply = {"message_id": message["message_id"], "action": "reply", "disposition": "negative", "text": "STOP"}
    assert customer.report(**reply).json()["duplicate"] is False
    assert customer.report(**reply).json()["duplicate"] is True
    bought = {"message_id": message["message_id"], "action": "bought", "disposition": "positive"}
    assert customer.report(**bought).status_code == 200
    events = [arrived.json["event"] for arrived in endpoint.wait(5)]
    told = [event for event in events if event["evt-tp"] == "conversion"]
    clicks = [event for event in told if event["fld-val-list"]["action"] == "clickthru"]
    assert len(clicks) == 1, "a click-thru and then a conversion event"
    told.remove(clicks[0])
    dispositions = {event["fld-val-list"]["action"]: event["fld-val-list"]["disposition"] for event in told}
    assert dispositions == {"reply": "negative", "bought": "positive"}
    wait_until_delivered(server)
    assert len(endpoint.arrived) == 5, "three clicks are one CLICKTHRU, a repeated reply is one conversion"


# The following test uses the format of the Infobip API.


def test_infobip_the_conversion_rate_of_two_messages_is_one_half_after_a_conversion_of_one_message(
    server: Server, endpoint: Endpoint
) -> None:
    customer = Customer(server, "infobip")
    customer.track(url=f"{endpoint.url}/clicks", events=["click", "conversion"], format="infobip")
    request = {
        "bulkId": "bulk-1",
        "messages": [
            {
                "from": "InfoSMS",
                "destinations": [{"to": "41793026731", "messageId": "8ef699bc"}, {"to": "14085550100"}],
                "text": "Your PIN is 1a2B3c, see https://shop.example/pin",
                "callbackData": "order 7",
            }
        ],
        "tracking": {"track": "SMS", "type": "One_Time_Pin"},
        "urlOptions": {"shortenUrl": True, "trackClicks": True},
    }
    told = customer.call("POST", "/sms/1/text/advanced", json=request, headers=customer.basic()).json()
    assert (told["bulkId"], [message["to"] for message in told["messages"]]) == ("bulk-1", ["41793026731", "14085550100"])
    assert {message["status"]["groupName"] for message in told["messages"]} == {"PENDING"}
    first, second = told["messages"]
    assert first["messageId"] == "8ef699bc"
    assert first["text"] == f"Your PIN is 1a2B3c, see {first['links'][0]['short_url']}" != second["text"]

    tap(first["links"][0]["short_url"])
    (click,) = endpoint.wait(1)
    assert {name: click.json[name] for name in ("notificationType", "recipient", "url", "messageId", "bulkId", "callbackData")} == {
        "notificationType": "CLICKED",
        "recipient": "41793026731",
        "url": "https://shop.example/pin",
        "messageId": "8ef699bc",
        "bulkId": "bulk-1",
        "callbackData": "order 7",
    }
    ends = [customer.call("POST", "/ct/1/log/end/8ef699bc", headers=customer.basic()) for _ in range(2)]
    assert [end.status_code for end in ends] == [200, 200]
    assert ends[0].json() == ends[1].json()
    key = ends[0].json()["processKey"]
    assert endpoint.wait(2)[1].json["processKey"] == key

    def rates(**query: str) -> dict[str, Any]:
        found: dict[str, Any] = customer.call("GET", f"/ct/1/processes/{key}/conversionrate", params=query).json()
        return found

    overall = rates()
    total = {"startCount": 2, "endCount": 1, "conversionRate": 0.5}
    assert overall["cumulativeStatistics"] == total
    assert overall["statistics"] == [{"intervalStart": overall["statistics"][0]["intervalStart"], **total}]
    by_country = {one["country"]: one["conversionRate"] for one in rates(aggrType="byCountry")["statistics"]}
    assert by_country == {"CH": 1.0, "US": 0.0}
    hours = rates(intervalGranulation="HOUR")["statistics"]
    assert len(hours) in (24, 25)
    assert sum(hour["startCount"] for hour in hours) == 2
    wait_until_delivered(server)
    assert len(endpoint.arrived) == 2


# The following test uses the format of the Xoxzo API.


def test_xoxzo_a_callback_is_sent_up_to_ten_times_until_the_response_has_the_status_200(server: Server, endpoint: Endpoint) -> None:
    customer = Customer(server, "xoxzo")
    form = {
        "sender": "Sender",
        "message": "test link tracking xoxzo.com and www.second.com",
        "recipient": "+818012345678",
        "track_link": "true",
        "lt_callbackur": f"{endpoint.url}/callback",
    }
    response = customer.call("POST", "/sms/messages/", data=form, headers=customer.basic())
    assert response.status_code == 201
    (sent,) = response.json()
    (link,) = sent["links"]
    assert sent["message"] == f"test link tracking {link['short_url']} and www.second.com"
    endpoint.answers = [500, 201, 302] * 4
    for _ in range(2):
        assert tap(link["short_url"]).headers["location"] == "http://xoxzo.com"
    calls = endpoint.wait(10)
    assert {(call.method, call.target) for call in calls} == {("POST", "/callback")}
    status = customer.call("GET", f"/sms/messages/{sent['msgid']}/", headers=customer.basic()).json()
    assert (status["link_tracking"]["link"], status["link_tracking"]["accessed"]) == ("http://xoxzo.com", True)
    assert calls[0].json["link_tracking"] == status["link_tracking"]
    wait_until_delivered(server)
    assert len(endpoint.arrived) == 10


# The following test uses the format of the 23 Telecom API.


def test_the_four_calls_of_23_telecom_accept_an_api_key_or_a_tracker_token_and_send_conversions_to_the_conversion_url(
    server: Server, endpoint: Endpoint
) -> None:
    customer = Customer(server, "23 telecom")
    change = {
        "conversion_url": f"{endpoint.url}/postback?phone={{phone}}&status={{status}}&cost={{cost}}",
        "conversion_fields": ["message_id", "phone", "action", "transaction_id"],
    }
    assert customer.call("PATCH", "/api/v1/application", json=change).status_code == 200
    request = {"from": "Gladiator", "to": [f"+44740012345{n}" for n in range(3)], "body": "Hi", "mt_price": "0.0085"}
    messages = customer.call("POST", "/api/v1/rewrite", json=request).json()["messages"]
    message_id = messages[0]["message_id"]
    report = {"message_id": message_id, "state": "DELIVERED", "status": "DELIVRD"}
    assert customer.call("POST", "/api/v1/sms/status", json=report).status_code == 200

    calls = (("GET", "/api/v1/track"), ("POST", "/api/v1/callback/action"), ("GET", "/api/v1/action/track"), ("POST", "/action"))
    numbers = itertools.count(1)

    def convert(method: str, path: str, token: str) -> httpx.Response:
        parameters = {"message_id": message_id, "action": "deposit", "transaction_id": f"T{next(numbers)}"}
        way: dict[str, Any] = {"params": parameters} if method == "GET" else {"json": parameters}
        return customer.call(method, path, headers={"X-Api-Token": token}, **way)

    before = row_counts(server)
    for method, path in calls:
        for token in ("", "tt_wrong", customer.key):
            refused = convert(method, path, token)
            assert (refused.status_code, refused.json()["error_code"]) == (401, "UNAUTHORIZED")
    assert row_counts(server) == before
    assert endpoint.arrived == []

    rotated = server.command("tokens", "rotate", str(customer.id))["tracker_token"]
    until(lambda: customer.call("GET", "/api/v1/track", headers={"X-Api-Token": rotated}).status_code == 400)
    for (method, path), token in zip(calls, (customer.token, rotated, customer.token, rotated), strict=True):
        answer = convert(method, path, token)
        assert answer.status_code == 200, answer.text
        assert ("deprecation" in answer.headers) == (path in ("/api/v1/action/track", "/action"))
    postbacks = endpoint.wait(4)
    assert {postback.method for postback in postbacks} == {"POST"}
    assert {postback.target for postback in postbacks} == {"/postback?phone=%2B447400123450&status=DELIVRD&cost=0.0085"}
    for postback in postbacks:
        known = {"message_id": message_id, "phone": "+447400123450", "action": "deposit"}
        assert postback.json == known | {"transaction_id": postback.json["transaction_id"]}

    by_country = customer.call("GET", "/api/v1/sms/stats/by-country").json()["countries"]
    assert [(one["country"], one["messages"], one["conversions"]) for one in by_country] == [("GB", 3, 4)]
    export = customer.call("GET", "/api/v1/sms/messages/unified/export").text.splitlines()
    assert len(export) == 4


def row_counts(server: Server) -> dict[str, int]:
    """Return the number of rows of each table. Tables that background jobs change are left out."""
    path = server.folder / "data" / "shortener.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counted = set(names) - {"tallies", "counts", "count_groups", "rollups", "rollup_state"}
        return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in counted}
