"""Tests of POST /api/v1/sms/send and of the field `gateway` of a rewrite."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
import pytest

from shortener.container import Service
from shortener.errors import StoreUnavailable
from shortener.gateways.gateway import NewGateway
from shortener.messages.balances import change_balance, read_balance
from shortener.messages.opt_outs import add_opt_out
from shortener.messages.prices import set_price
from shortener.model import ALL_APPLICATIONS
from shortener.storage import schema
from tests.conftest import NOON, client_of
from tests.factory import AUDIT, rows
from tests.one_service import on_one_service

SEND = "/api/v1/sms/send"
TO = "+14085550100"
OTHER = "+447911123456"
BODY = {"to": [TO, OTHER], "message": 'Hi #track("https://shop.example/a")', "sender_id": "18775550100"}


async def select(client: httpx.AsyncClient, gateway: str | None = "simulator") -> None:
    """Select a gateway for the default application."""
    response = await client.patch("/api/v1/application", json={"gateway": gateway})
    assert response.status_code == 200, response.text
    assert response.json()["gateway"] == (None if gateway in (None, "none") else gateway)


async def test_a_send_request_without_a_gateway_rewrites_the_text_and_warns_that_nothing_is_sent(
    service: Service, client: httpx.AsyncClient
) -> None:
    response = await client.post(SEND, json=BODY)
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["sent"] is False
    assert found["warnings"][0].startswith("NOT_SENT")
    assert [message["dnis"] for message in found["messages"]] == [TO, OTHER]
    for result in found["results"]:
        assert result["body"] == f"Hi {result['links'][0]['short_url']}"
        assert any(warning.startswith("NOT_SENT") for warning in result["warnings"])
    assert await rows(service.database, schema.sends) == []
    summary = found["summary"]
    assert [result["status"] for result in found["results"]] == ["accepted", "accepted"]
    assert summary["accepted_count"] == sum(value for name, value in summary.items() if name.endswith("_count")) == 2


async def test_a_send_request_of_an_application_with_a_gateway_queues_the_messages_to_all_recipients(
    service: Service, client: httpx.AsyncClient
) -> None:
    await select(client)
    found = (await client.post(SEND, json=BODY)).json()
    assert (found["sent"], found["warnings"]) == (True, [])
    assert [(one["dnis"], one["segment_num"]) for one in found["messages"]] == [(TO, 1), (OTHER, 1)]
    assert {result["status"] for result in found["results"]} == {"accepted"}
    assert found["summary"] == {
        "total_recipients": 2,
        "total_segments": 2,
        "total_cost": "0",
        "encoding": "GSM-7",
        "accepted_count": 2,
        "blocked_count": 0,
        "queue_error_count": 0,
        "config_error_count": 0,
        "db_error_count": 0,
    }
    assert len(await rows(service.database, schema.sends)) == 2
    await select(client, "none")
    assert (await client.post(SEND, json=BODY)).json()["sent"] is False


@on_one_service
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"to": None}, "INVALID_TO"),
        ({"to": []}, "INVALID_TO"),
        ({"to": ["+1408"]}, "INVALID_TO"),
        ({"to": [1]}, "INVALID_TO"),
        ({"to": {"a": 1}}, "INVALID_TO"),
        ({"to": [f"+1408555{number:04}" for number in range(101)]}, "TOO_MANY_RECIPIENTS"),
        ({"message": None}, "INVALID_MESSAGE"),
        ({"message": ""}, "INVALID_MESSAGE"),
        ({"message": 5}, "INVALID_MESSAGE"),
        ({"sender_id": None}, "INVALID_SENDER"),
        ({"sender_id": ""}, "INVALID_SENDER"),
        ({"sender_id": "1Brand"}, "INVALID_SENDER"),
        ({"sender_id": "ALongSenderName"}, "INVALID_SENDER"),
        ({"message": "#track(oops)"}, "INVALID_TRACK_DIRECTIVE"),
        ({"gateway": "nope"}, "INVALID_REQUEST"),
        ({"message_id": ["a"]}, "INVALID_REQUEST"),
    ],
)
async def test_an_invalid_send_request_gets_the_error_code_of_23_telecom_and_stores_nothing(
    service: Service, client: httpx.AsyncClient, changes: dict[str, Any], code: str
) -> None:
    await select(client)
    body = {name: value for name, value in {**BODY, **changes}.items() if value is not None}
    response = await client.post(SEND, json=body)
    assert response.status_code == 400
    assert response.json()["error_code"] == code
    assert response.json()["details"]
    assert await rows(service.database, schema.messages) == []


@on_one_service
@pytest.mark.parametrize("count", [101, 1001, 250_000])
async def test_a_send_request_with_any_number_of_recipients_above_the_limit_gets_too_many_recipients(
    client: httpx.AsyncClient, count: int
) -> None:
    response = await client.post(SEND, json=BODY | {"to": ["1"] * count})
    assert (response.status_code, response.json()["error_code"]) == (400, "TOO_MANY_RECIPIENTS")


async def test_a_send_request_with_more_recipients_than_the_batch_limit_gets_too_many_recipients(make_service: Any) -> None:
    service = await make_service(batch_limit=2)
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        response = await client.post(SEND, json=BODY | {"to": [f"+1408555010{number}" for number in range(3)]})
    assert (response.status_code, response.json()["error_code"]) == (400, "TOO_MANY_RECIPIENTS")


async def test_each_error_detail_of_an_invalid_send_request_has_its_own_error_code(client: httpx.AsyncClient) -> None:
    await select(client)
    response = await client.post(SEND, json={**BODY, "to": ["12"], "message": '#track("https://x.example'})
    codes = {(detail["field"].partition(".")[0], detail["error_code"]) for detail in response.json()["details"]}
    assert codes == {("to", "INVALID_TO"), ("message", "INVALID_TRACK_DIRECTIVE")}


@on_one_service
@pytest.mark.parametrize(
    ("changes", "code", "fields"),
    [
        ({"to": ["12"], "sender_id": "1x"}, "INVALID_SENDER", ["sender_id", "to.0"]),
        ({"to": ["12", "+14085550100", "13"], "sender_id": ""}, "INVALID_SENDER", ["sender_id", "to.0", "to.2"]),
        ({"to": ["12", 7], "message": "x"}, "INVALID_TO", ["to.0", "to.1"]),
        ({"to": 7, "message": "#track(oops)", "sender_id": "1x"}, "INVALID_TO", ["message", "sender_id", "to"]),
    ],
)
async def test_the_response_to_an_invalid_send_request_contains_all_errors(
    client: httpx.AsyncClient, changes: dict[str, Any], code: str, fields: list[str]
) -> None:
    await select(client)
    response = await client.post(SEND, json={**BODY, **changes})
    assert (response.status_code, response.json()["error_code"]) == (400, code)
    assert sorted({detail["field"] for detail in response.json()["details"]}) == fields


@on_one_service
@pytest.mark.parametrize("content", [b"{", b"[]", b'"text"', b"null"])
async def test_a_send_request_whose_body_is_not_a_json_object_is_rejected(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post(SEND, content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error_code"]) == (400, "INVALID_BODY")


async def test_a_send_request_gets_the_error_db_error_and_a_retry_after_header_if_the_database_is_unavailable(
    service: Service, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: Any, **kwargs: Any) -> Any:
        raise StoreUnavailable("down")

    monkeypatch.setattr(service.rewriter, "rewrite", fail)
    response = await client.post(SEND, json=BODY)
    assert (response.status_code, response.json()["error_code"]) == (500, "DB_ERROR")
    assert response.headers["Retry-After"]


async def test_a_repeated_send_request_gets_the_first_response_and_queues_nothing(
    service: Service, client: httpx.AsyncClient
) -> None:
    await service.database.write(set_price, 0, "", Decimal("0.01"))
    await select(client)
    body = BODY | {"message_id": ["a", "b"]}
    first, second = [(await client.post(SEND, json=body)).json() for _ in range(2)]
    assert first == second
    with_key = [(await client.post(SEND, json=BODY, headers={"Idempotency-Key": "k"})).json() for _ in range(2)]
    assert with_key[0] == with_key[1]
    assert len(await rows(service.database, schema.sends)) == 4


async def test_a_send_request_queues_no_message_to_a_recipient_who_opted_out(service: Service, client: httpx.AsyncClient) -> None:
    await select(client)
    await service.database.write(add_opt_out, 1, OTHER, NOON, "STOP")
    found = (await client.post(SEND, json=BODY)).json()
    assert [result["status"] for result in found["results"]] == ["accepted", "opted_out"]
    assert found["results"][1]["error_code"] == "OPTED_OUT"
    assert (found["summary"]["accepted_count"], found["summary"]["blocked_count"]) == (1, 1)
    assert len(found["messages"]) == 1
    only = await client.post(SEND, json=BODY | {"to": [OTHER]})
    assert (only.status_code, only.json()["error_code"]) == (409, "OPTED_OUT")
    rewritten = await client.post("/api/v1/rewrite", json={"to": OTHER, "body": "x", "gateway": True})
    assert (rewritten.status_code, rewritten.json()["error_code"]) == (409, "OPTED_OUT")
    assert (await client.post("/api/v1/rewrite", json={"to": OTHER, "body": "x"})).status_code == 200


async def test_a_send_request_that_costs_more_than_the_balance_stores_nothing(service: Service, client: httpx.AsyncClient) -> None:
    await select(client)
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal("0.05"), currency="EUR")
    await service.database.write(set_price, 0, "1", Decimal("0.02"))
    await service.database.write(set_price, 0, "44", Decimal("0.04"))
    response = await client.post(SEND, json=BODY)
    found = response.json()
    assert (response.status_code, found["error_code"]) == (402, "INSUFFICIENT_BALANCE")
    assert (found["cost"], found["balance"], found["currency"]) == ("0.06", "0.05", "EUR")
    assert {detail["field"] for detail in found["details"]} == {"cost", "balance"}
    assert await rows(service.database, schema.messages) == []
    cheaper = (await client.post(SEND, json=BODY | {"to": [OTHER]})).json()
    assert (cheaper["summary"]["total_cost"], cheaper["results"][0]["cost"]) == ("0.04", "0.04")
    assert await service.database.read(read_balance, 1) == (Decimal("0.01"), "EUR")
    status = (await client.get(f"/api/v1/sms/status/{cheaper['messages'][0]['message_id']}")).json()
    assert status["mt_price"] == "0.04"


async def test_a_prepaid_application_cannot_send_to_a_country_without_a_price(service: Service, client: httpx.AsyncClient) -> None:
    await select(client)
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(1))
    await service.database.write(set_price, 0, "1", Decimal("0.02"))
    found = (await client.post(SEND, json=BODY)).json()
    assert [result["status"] for result in found["results"]] == ["accepted", "blocked_country"]
    only = await client.post(SEND, json=BODY | {"to": [OTHER]})
    assert (only.status_code, only.json()["error_code"]) == (409, "NO_PRICE")


async def test_a_text_with_the_character_nul_is_rejected_if_a_gateway_sends_it(client: httpx.AsyncClient) -> None:
    rewrite = {"to": "+14085550100", "body": "a\x00b"}
    assert (await client.post("/api/v1/rewrite", json=rewrite)).json()["messages"][0]["body"] == "a\x00b"
    sent = await client.post("/api/v1/rewrite", json=rewrite | {"gateway": "simulator"})
    assert (sent.status_code, sent.json()["error_code"]) == (400, "INVALID_REQUEST")
    (detail,) = sent.json()["details"]
    assert (detail["field"], detail["position"]) == ("body", 1)
    await select(client)
    response = await client.post(SEND, json={**BODY, "message": "a\x00b"})
    assert (response.status_code, response.json()["details"][0]["field"]) == (400, "message")


async def test_unknown_fields_of_a_send_request_are_ignored_with_a_warning(client: httpx.AsyncClient) -> None:
    found = (await client.post(SEND, json=BODY | {"priority": 1})).json()
    assert "priority is not a known field; it was ignored" in found["warnings"]


async def test_a_rewrite_request_with_the_field_gateway_queues_its_messages(service: Service, client: httpx.AsyncClient) -> None:
    async def rewritten(**fields: Any) -> dict[str, Any]:
        response = await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", **fields})
        assert response.status_code == 200, response.text
        message: dict[str, Any] = response.json()["messages"][0]
        return message

    assert "sent" not in await rewritten()
    assert "sent" not in await rewritten(gateway=False)
    unsent = await rewritten(gateway=True)
    assert unsent["sent"] is False
    assert any(warning.startswith("NOT_SENT") for warning in unsent["warnings"])
    assert (await rewritten(gateway="simulator"))["sent"] is True
    await select(client)
    assert (await rewritten(gateway=True))["sent"] is True
    assert len(await rows(service.database, schema.sends)) == 2


async def test_a_send_request_after_the_removal_of_the_gateway_says_why_nothing_is_sent(
    service: Service, client: httpx.AsyncClient
) -> None:
    gateway = await service.gateways.create(AUDIT, 1, NewGateway(name="carrier", kind="simulator"))
    await service.directory.refresh()
    await select(client, "carrier")
    assert (await client.delete(f"/api/v1/gateways/{gateway.id}")).status_code == 200
    assert (await client.get("/api/v1/application")).json()["gateway"] is None
    found = (await client.post(SEND, json=BODY | {"message_id": ["m-1", "m-2"]})).json()
    for warnings in (found["warnings"], found["results"][0]["warnings"]):
        assert any(one.startswith("NOT_SENT: the gateway 'carrier' of the application was removed") for one in warnings)
    await select(client)
    assert (await client.post(SEND, json=BODY)).json()["warnings"] == []
    await select(client, "none")
    assert "the application has no gateway" in (await client.post(SEND, json=BODY)).json()["warnings"][0]


async def test_a_request_that_names_the_simulator_instead_of_the_gateway_of_the_application_gets_a_warning(
    service: Service, client: httpx.AsyncClient
) -> None:
    body = {"to": TO, "body": "x", "gateway": "simulator"}
    await select(client)
    assert (await client.post("/api/v1/rewrite", json=body)).json()["messages"][0]["warnings"] == []
    await service.gateways.create(AUDIT, 1, NewGateway(name="carrier", preset="plain", options={"url": "http://127.0.0.1:9/"}))
    await service.directory.refresh()
    await select(client, "carrier")
    for _ in range(2):
        [message] = (await client.post("/api/v1/rewrite", json=body | {"message_id": "m-1"})).json()["messages"]
        assert message["sent"] is True
        assert "which sends nothing and reports the message as delivered" in message["warnings"][0]


async def test_the_error_about_a_gateway_that_is_not_selected_says_which_command_selects_it(
    service: Service, client: httpx.AsyncClient
) -> None:
    await service.gateways.create(AUDIT, ALL_APPLICATIONS, NewGateway(name="shared", kind="simulator"))
    await service.directory.refresh()
    response = await client.post("/api/v1/rewrite", json={"to": TO, "body": "x", "gateway": "shared"})
    [detail] = response.json()["details"]
    assert detail["field"].endswith("gateway")
    assert "(simulator)" in detail["reason"]
    assert "`shortener applications update 1 --gateway NAME`" in detail["reason"]


async def test_a_send_request_whose_recipients_are_all_left_out_for_different_reasons_is_rejected(
    service: Service, client: httpx.AsyncClient
) -> None:
    await select(client)
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(1))
    await service.database.write(set_price, 0, "1", Decimal("0.02"))
    await service.database.write(add_opt_out, 1, TO, NOON, "STOP")
    response = await client.post(SEND, json=BODY)
    found = response.json()
    assert (response.status_code, found["status"], found["error_code"]) == (409, False, "OPTED_OUT")
    assert [(detail["field"], detail["recipient"], detail["error_code"]) for detail in found["details"]] == [
        ("to.0", 0, "OPTED_OUT"),
        ("to.1", 1, "NO_PRICE"),
    ]
    assert await rows(service.database, schema.messages) == []


async def test_the_error_about_a_send_request_with_broken_json_says_where_the_json_is_broken(client: httpx.AsyncClient) -> None:
    broken = b'{"to": ["+14085550100"] "message": "x"}'
    send, native = [
        (await client.post(path, content=broken, headers={"Content-Type": "application/json"})).json()
        for path in (SEND, "/api/v1/rewrite")
    ]
    assert (send["error_code"], native["error_code"]) == ("INVALID_BODY", "INVALID_JSON")
    assert send["description"] == native["description"]
    assert send["description"].startswith("The body is not valid JSON: ")


@pytest.mark.parametrize("path", [SEND, "/api/v1/rewrite"])
async def test_the_error_about_a_request_without_a_body_says_that_it_is_empty(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, content=b"", headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["description"]) == (400, "The body is empty. Send a JSON object.")
