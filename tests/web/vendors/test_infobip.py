"""Infobip's calls over HTTP, on SQLite and PostgreSQL: send a text message, end a conversion process, and read conversion rates."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from shortener.accounts.administration import add_domain, create_application
from shortener.accounts.credentials import Credentials, create_key
from shortener.container import Service
from shortener.messages.balances import change_balance
from shortener.messages.item_plan import NOT_SENT
from shortener.messages.prices import set_price
from shortener.reporting.count_check import verify
from shortener.reporting.counts import fold
from shortener.storage import schema
from shortener.web.vendors.infobip import InfobipResponse
from shortener.web.vendors.infobip_conversions import ConversionRateResponse
from tests.conftest import NOON, Clock, client_of
from tests.factory import rows

SENDS = ["/api/v1/rewrite", "/sms/1/text/advanced", "/sms/2/text/advanced"]
TRACKING = {"track": "SMS", "type": "One_Time_Pin"}


def text(body: str, *destinations: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"from": "InfoSMS", "destinations": list(destinations) or [{"to": "41793026731"}], "text": body, **more}


async def send(client: httpx.AsyncClient, *messages: dict[str, Any], path: str = SENDS[1], **more: Any) -> dict[str, Any]:
    answer = await client.post(path, json={"messages": list(messages), **more})
    assert answer.status_code == 200, answer.text
    InfobipResponse.model_validate(answer.json())
    told: dict[str, Any] = answer.json()
    return told


async def refused(client: httpx.AsyncClient, request: dict[str, Any]) -> tuple[str, list[str]]:
    """Send an invalid request to every path of the send call. Return the error code and the invalid fields, which must be the
    same for all paths."""
    answers = [await client.post(path, json=request) for path in SENDS]
    assert {answer.status_code for answer in answers} == {400}
    native, *vendor = [answer.json() for answer in answers]
    for told in vendor:
        assert told["requestError"]["serviceException"]["messageId"] == "BAD_REQUEST"
        assert (told["errorCode"], told["resources"]) == ("E400", [])
        assert [one["property"] for one in told["violations"]] == [one["field"] for one in native["details"]]
        assert native.items() <= told.items()
    told = native
    return told["error_code"], [detail["field"] for detail in told["details"]]


# These tests send messages.


@pytest.mark.parametrize("path", SENDS)
async def test_the_documented_infobip_request_gets_the_documented_response_and_the_text_with_short_links(
    client: httpx.AsyncClient, path: str
) -> None:
    told = await send(client, text("Your PIN is 1a2B3c."), path=path, tracking=TRACKING)
    (message,) = told["messages"]
    assert told == {
        "bulkId": told["bulkId"],
        "messages": [
            {
                "to": "41793026731",
                "status": {
                    "groupId": 1,
                    "groupName": "PENDING",
                    "id": 7,
                    "name": "PENDING_ENROUTE",
                    "description": "Message sent to next instance",
                },
                "smsCount": 1,
                "messageId": message["messageId"],
                "text": "Your PIN is 1a2B3c.",
                "links": [],
                "encoding": "GSM-7",
                "warnings": [] if path == SENDS[0] else [NOT_SENT],
                "sent": False,
            }
        ],
        "warnings": [],
    }
    status = (await client.get(f"/api/v1/sms/status/{message['messageId']}")).json()
    assert (status["to"], status["from"], status["message_request_id"]) == ("+41793026731", "InfoSMS", told["bulkId"])


async def test_each_destination_of_an_infobip_request_gets_a_text_with_separate_links(client: httpx.AsyncClient) -> None:
    told = await send(
        client,
        text('one #track("https://x.example/1")', {"to": "41793026731", "messageId": "a"}, {"to": "+41793026732"}),
        text('two #track("https://x.example/2")', {"to": "41793026733", "messageId": "c"}),
        bulkId="bulk-1",
    )
    assert told["bulkId"] == "bulk-1"
    assert [message["to"] for message in told["messages"]] == ["41793026731", "41793026732", "41793026733"]
    assert [message["messageId"] for message in told["messages"]][::2] == ["a", "c"]
    assert len(told["messages"][1]["messageId"]) == 22
    texts = [message["text"] for message in told["messages"]]
    short_urls = [message["links"][0]["short_url"] for message in told["messages"]]
    assert texts == [f"{word} {short_url}" for word, short_url in zip(["one", "one", "two"], short_urls, strict=True)]
    assert len(set(texts)) == 3
    status = (await client.get("/api/v1/sms/status/c")).json()
    assert (status["message_request_id"], status["links"][0]["url"]) == ("bulk-1", "https://x.example/2")


async def test_a_repeated_infobip_request_with_the_same_message_ids_returns_the_same_texts(client: httpx.AsyncClient) -> None:
    message = text("see x.example.com", {"to": "41793026731", "messageId": "a"}, {"to": "41793026732", "messageId": "b"})
    first = await send(client, message, urlOptions={})
    assert await send(client, message, urlOptions={}) == first


async def test_every_url_of_the_text_in_an_infobip_request_with_url_options_is_replaced(client: httpx.AsyncClient) -> None:
    body = "a https://x.example/1, b www.shop.co.uk!"
    replaced: list[dict[str, Any]] = [
        {"urlOptions": {"shortenUrl": True, "trackClicks": True}},
        {"urlOptions": {}},
        {"tracking": {"track": "URL"}},
    ]
    for more in replaced:
        (message,) = (await send(client, text(body), **more))["messages"]
        one, two = (link["short_url"] for link in message["links"])
        assert message["text"] == f"a {one}, b {two}!"
    left: list[dict[str, Any]] = [{}, {"urlOptions": {"shortenUrl": False, "trackClicks": False}}, {"tracking": TRACKING}]
    for more in left:
        (message,) = (await send(client, text(body), **more))["messages"]
        assert (message["text"], message["links"]) == (body, [])


async def test_an_infobip_request_with_a_custom_domain_of_another_application_is_rejected(
    service: Service, credentials: Credentials
) -> None:
    await service.database.write(add_domain, credentials.application_id, "https://go.brand.example", NOON)
    await service.directory.refresh()
    async with client_of(service, {"Authorization": f"App {credentials.api_key}"}) as client:
        told = await send(client, text("www.x.co.uk"), urlOptions={"customDomain": "GO.brand.example"})
        assert told["messages"][0]["text"].startswith("https://go.brand.example/")
        await service.database.write(add_domain, credentials.application_id, "https://two.brand.example", NOON)
        await service.directory.refresh()
        told = await send(client, text("www.x.co.uk"), urlOptions={"customDomain": "two.brand.example"})
        assert told["messages"][0]["text"].startswith("https://two.brand.example/")
        request = {"messages": [text("www.x.co.uk")], "urlOptions": {"customDomain": "other.example"}}
        assert await refused(client, request) == ("INVALID_REQUEST", ["urlOptions.customDomain"])


@pytest.mark.parametrize("repeated", ["messageId", "Idempotency-Key"])
async def test_a_repeated_infobip_request_gets_the_first_response_after_its_custom_domain_was_removed(
    client: httpx.AsyncClient, service: Service, repeated: str
) -> None:
    await service.database.write(add_domain, 1, "https://go.brand.example", service.clock())
    await service.database.write(add_domain, 1, "https://two.brand.example", service.clock())
    await service.directory.refresh()
    recipient = {"to": "41793026731", **({"messageId": "m-1"} if repeated == "messageId" else {})}
    headers = {"Idempotency-Key": "k"} if repeated == "Idempotency-Key" else {}
    request = {"messages": [text("www.x.co.uk", recipient)], "urlOptions": {"customDomain": "two.brand.example"}}
    first = await client.post(SENDS[1], json=request, headers=headers)
    assert first.json()["messages"][0]["text"].startswith("https://two.brand.example/")
    assert (await client.delete("/api/v1/domains/two.brand.example")).status_code == 200
    again = await client.post(SENDS[1], json=request, headers=headers)
    assert (again.status_code, again.json()["messages"]) == (200, first.json()["messages"])
    new = {**request, "messages": [text("www.x.co.uk", {"to": "41793026731"})]}
    assert (await client.post(SENDS[1], json=new)).status_code in (400, 409)


async def test_infobip_fields_that_change_the_sending_are_ignored_and_the_callback_data_is_stored(
    client: httpx.AsyncClient,
) -> None:
    more = {"flash": True, "notifyUrl": "https://a.example/", "validityPeriod": 720, "language": {"languageCode": "TR"}}
    message = text("x", {"to": "41793026731", "messageId": "a"}, callbackData="order 7", **more)
    await send(client, message)
    assert (await client.get("/api/v1/sms/status/a")).json()["metadata"] == {"callbackData": "order 7"}


async def test_errors_of_infobip_requests_use_the_field_names_of_infobip(client: httpx.AsyncClient, service: Service) -> None:
    numbers = text("x", {"to": "41793026731"}, {"to": "041793026731"}, {"to": "4179X"})
    assert await refused(client, {"messages": [text("y"), numbers]}) == (
        "INVALID_RECIPIENT",
        ["messages.1.destinations.1.to", "messages.1.destinations.2.to"],
    )
    assert await refused(client, {"messages": [text('#track("")')]}) == ("INVALID_TRACK_DIRECTIVE", ["messages.0.text"])
    twice = text("x", {"to": "41793026731", "messageId": "a"}, {"to": "41793026732", "messageId": "a"})
    assert await refused(client, {"messages": [twice]}) == ("INVALID_REQUEST", ["messages.0.destinations.1.messageId"])
    for wrong, field in (
        ({"messages": [text("x") | {"destinations": []}]}, "messages.0.destinations"),
        ({"messages": [text("x", {"to": "41793026731", "messageId": ""})]}, "messages.0.destinations.0.messageId"),
        ({"messages": [text("x", callbackData="x" * 5000)]}, "messages.0.callbackData"),
        ({"messages": [text("x")], "tracking": {"track": "FAX"}}, "tracking.track"),
    ):
        assert await refused(client, wrong) == ("INVALID_REQUEST", [field])
    assert await rows(service.database, schema.messages) == []


async def test_the_error_for_a_used_message_id_contains_its_position_in_the_infobip_request(client: httpx.AsyncClient) -> None:
    await send(client, text("x", {"to": "41793026731", "messageId": "a"}))
    message = text("y", {"to": "41793026732"}, {"to": "41793026731", "messageId": "a"})
    answer = await client.post(SENDS[1], json={"messages": [message]})
    assert (answer.status_code, answer.json()["error_code"]) == (409, "MESSAGE_ID_CONFLICT")
    assert answer.json()["details"][0]["field"] == "messages.0.destinations.1.messageId"


async def test_a_phone_number_without_a_plus_causes_a_warning_except_in_infobips_format(client: httpx.AsyncClient) -> None:
    warning = "to '41793026731' has no +; it was read as +41793026731"
    for request in ({"to": "41793026731", "body": "x"}, {"recipient": "41793026731", "message": "x"}):
        answer = await client.post("/api/v1/rewrite", json=request)
        assert answer.json()["messages"][0]["warnings"] == [warning]
    assert (await send(client, text("x", {"to": "41793026731"})))["messages"][0]["warnings"] == [NOT_SENT]


# These tests end a conversion process.


async def end(client: httpx.AsyncClient, message_id: str) -> str:
    answer = await client.post(f"/ct/1/log/end/{message_id}")
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["processKey"]
    key: str = answer.json()["processKey"]
    return key


async def message_of(client: httpx.AsyncClient, to: str = "41793026731", **more: Any) -> str:
    message_id: str = (await send(client, text("x", {"to": to}), **more))["messages"][0]["messageId"]
    return message_id


async def test_infobip_messages_with_the_same_tracking_values_share_a_conversion_process(client: httpx.AsyncClient) -> None:
    ids = [await message_of(client, tracking=tracking) for tracking in (TRACKING, TRACKING, {"track": "SMS"})]
    keys = [await end(client, message_id) for message_id in ids]
    assert all(len(key) == 32 and int(key, 16) and key.upper() == key for key in keys)
    assert keys[0] == keys[1] != keys[2]


async def test_infobip_messages_without_tracking_values_share_one_conversion_process(client: httpx.AsyncClient) -> None:
    first, second = await message_of(client), await message_of(client)
    assert await end(client, first) == await end(client, second) != await end(client, await message_of(client, tracking=TRACKING))


async def test_a_repeated_end_of_a_conversion_process_creates_one_conversion(client: httpx.AsyncClient, service: Service) -> None:
    message_id = await message_of(client, tracking=TRACKING)
    assert len({await end(client, message_id) for _ in range(3)}) == 1
    (conversion,) = await rows(service.database, schema.conversions)
    assert (conversion.action, conversion.transaction_id, conversion.at) == ("end", "", NOON)
    assert len(await rows(service.database, schema.events)) == 1
    (told,) = (await client.get(f"/api/v1/sms/status/{message_id}")).json()["conversions"]
    assert told["action"] == "end"


async def test_ending_a_conversion_process_requires_a_message_of_the_application_and_the_permission_sms_send(
    client: httpx.AsyncClient, service: Service, credentials: Credentials
) -> None:
    message_id = await message_of(client)
    other = await service.database.write(create_application, "other", NOON)
    reader = await service.database.write(create_key, credentials.application_id, "reader", ("sms.read",), NOON)
    await service.directory.refresh()
    for headers, of, status in (
        ({"X-API-Key": credentials.api_key}, "none", 404),
        ({"X-API-Key": other.api_key}, message_id, 404),
        ({"X-API-Key": reader}, message_id, 403),
        ({"X-Api-Token": credentials.tracker_token}, message_id, 401),
    ):
        async with client_of(service, headers) as caller:
            assert (await caller.post(f"/ct/1/log/end/{of}")).status_code == status
    assert await rows(service.database, schema.conversions) == []
    refused = await rows(service.database, schema.refused_conversions)
    assert [(row.endpoint, row.reason, row.message_id) for row in refused] == [
        ("POST /ct/1/log/end", "MESSAGE_NOT_FOUND", "none"),
        ("POST /ct/1/log/end", "MESSAGE_NOT_FOUND", message_id),
    ]


# These tests read conversion rates.


@pytest.fixture
async def process(client: httpx.AsyncClient, clock: Clock) -> str:
    """Create a conversion process with three messages to Switzerland and two to the United States. Two of the messages to
    Switzerland and one of the messages to the United States have converted. Return the key of the process."""
    ids = [await message_of(client, to, tracking=TRACKING) for to in ("41793026731", "41793026732", "41793026733", "14085550100")]
    await message_of(client)
    clock.forward(hours=1)
    ids.append(await message_of(client, "14085550101", tracking=TRACKING))
    key = ""
    for message_id in ids[1:4]:
        key = await end(client, message_id)
    return key


async def rate(client: httpx.AsyncClient, key: str, **query: str) -> dict[str, Any]:
    answer = await client.get(f"/ct/1/processes/{key}/conversionrate", params=query)
    assert answer.status_code == 200, answer.text
    ConversionRateResponse.model_validate(answer.json())
    told: dict[str, Any] = answer.json()
    return told


TOTAL = {"startCount": 5, "endCount": 3, "conversionRate": 0.6}


async def test_the_conversion_rate_is_the_same_before_and_after_count_deltas_are_folded(
    client: httpx.AsyncClient, service: Service, process: str
) -> None:
    expected = {"statistics": [{"intervalStart": "2026-11-19T13:00:00.001+0000", **TOTAL}], "cumulativeStatistics": TOTAL}
    assert await rate(client, process) == expected
    await service.database.write(fold)
    assert await rate(client, process) == expected
    assert await service.database.read(verify, NOON - timedelta(days=1), NOON + timedelta(days=1)) == []


async def test_the_conversion_rate_can_be_grouped_by_country(client: httpx.AsyncClient, process: str) -> None:
    told = await rate(client, process, aggrType="byCountry", since="2026-11-20T00:00:00.000+0000")
    start = {"intervalStart": "2026-11-20T00:00:00.000+0000"}
    assert told["statistics"] == [
        {**start, "country": "CH", "startCount": 3, "endCount": 2, "conversionRate": 0.666667},
        {**start, "country": "US", "startCount": 2, "endCount": 1, "conversionRate": 0.5},
    ]
    assert told["cumulativeStatistics"] == TOTAL


async def test_the_conversion_rate_can_be_grouped_by_interval(client: httpx.AsyncClient, process: str) -> None:
    told = await rate(client, process, intervalGranulation="HOUR", since="2026-11-20T11:00:00Z", until="2026-11-20T14:00:00Z")
    assert told["statistics"] == [
        {"intervalStart": "2026-11-20T11:00:00.000+0000", "startCount": 0, "endCount": 0, "conversionRate": 0.0},
        {"intervalStart": "2026-11-20T12:00:00.000+0000", "startCount": 4, "endCount": 0, "conversionRate": 0.0},
        {"intervalStart": "2026-11-20T13:00:00.000+0000", "startCount": 1, "endCount": 3, "conversionRate": 3.0},
    ]
    assert told["cumulativeStatistics"] == TOTAL
    both = await rate(client, process, intervalGranulation="HOUR", aggrType="byCountry", since="2026-11-20T12:00:00Z")
    assert [(one["intervalStart"][11:13], one["country"], one["endCount"]) for one in both["statistics"]] == [
        ("12", "CH", 0),
        ("12", "US", 0),
        ("13", "US", 1),
        ("13", "CH", 2),
    ]


async def test_an_invalid_conversion_rate_query_is_rejected(client: httpx.AsyncClient, process: str) -> None:
    for query, field in (
        ({"aggrType": "byNetwork"}, "aggrType"),
        ({"intervalGranulation": "YEAR"}, "intervalGranulation"),
        ({"intervalGranulation": "MINUTE", "since": "2020-01-01"}, "intervalGranulation"),
        ({"since": "2026-11-20", "until": "2026-11-19"}, "until"),
        ({"tagKeys": "a:b"}, "tagKeys"),
    ):
        answer = await client.get(f"/ct/1/processes/{process}/conversionrate", params=query)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_REQUEST")
        assert [detail["field"] for detail in answer.json()["details"]] == [field]


async def test_a_conversion_process_can_be_read_only_by_the_application_that_owns_it(
    client: httpx.AsyncClient, service: Service, process: str
) -> None:
    other = await service.database.write(create_application, "other", NOON)
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": other.api_key}) as stranger:
        assert (await stranger.get(f"/ct/1/processes/{process}/conversionrate")).status_code == 404
    assert (await client.get("/ct/1/processes/none/conversionrate")).status_code == 404


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/sms/1/text/advanced", {"text": "x"}),
        ("/sms/2/text/advanced", {"text": "x"}),
        ("/sms/3/messages", {"content": {"text": "x"}}),
    ],
)
async def test_infobip_recipients_who_opted_out_or_have_no_price_are_rejected_separately(
    service: Service, client: httpx.AsyncClient, path: str, content: dict[str, Any]
) -> None:
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(10), currency="EUR")
    await service.database.write(set_price, 0, "41", Decimal("0.05"))
    assert (await client.patch("/api/v1/application", json={"gateway": "simulator"})).status_code == 200
    assert (await client.post("/api/v1/opt-outs", json={"phone": "+41793026731"})).status_code == 201
    destinations = [{"to": "41793026731", "messageId": "m-1"}, {"to": "14085550100"}, {"to": "41793026733", "messageId": "m-3"}]
    response = await client.post(path, json={"messages": [{"destinations": destinations, **content}]})
    assert response.status_code == 200, response.text
    opted_out, priceless, sent = response.json()["messages"]
    statuses = [(one["status"]["groupName"], one["status"]["name"]) for one in (opted_out, priceless, sent)]
    assert statuses == [("REJECTED", "REJECTED_DESTINATION"), ("REJECTED", "REJECTED_NETWORK"), ("PENDING", "PENDING_ENROUTE")]
    assert (opted_out["messageId"], opted_out["text"], opted_out["sent"]) == ("m-1", None, False)
    assert opted_out["warnings"][0].startswith("OPTED_OUT: ")
    assert (sent["messageId"], sent["sent"]) == ("m-3", True)
    assert [one["message_id"] for one in (await client.get("/api/v1/sends")).json()["sends"]] == ["m-3"]
    assert (await client.get("/api/v1/balance")).json()["balance"] == "9.95"
    only = (await client.post(path, json={"messages": [{"destinations": destinations[:1], **content}]})).json()
    assert [one["status"]["groupName"] for one in only["messages"]] == ["REJECTED"]
    assert only["bulkId"]


async def test_the_ids_and_the_sender_of_an_infobip_request_may_be_numbers(client: httpx.AsyncClient) -> None:
    to = {"to": "41793026731"}
    assert (await send(client, text("x", to), bulkId=7))["bulkId"] == "7"
    assert (await send(client, {**text("x", to), "from": 447491163443, "campaignReferenceId": 7}))["messages"][0]["messageId"]
    content = {"content": {"text": "x"}, "options": {"campaignReferenceId": 7}}
    request = {"messages": [{"sender": 447491163443, "destinations": [to], **content}]}
    response = await client.post("/sms/3/messages", json={**request, "options": {"schedule": {"bulkId": 8}}})
    assert response.json()["bulkId"] == "8"
