"""The errors of the rewrite endpoint, and the option `on_invalid`."""

from decimal import Decimal
from typing import Any

import httpx
import orjson
import pytest

from shortener.container import Service
from shortener.messages.balances import change_balance
from tests.conftest import NOON
from tests.one_service import on_one_service
from tests.web.calls import TO
from tests.web.calls import count_messages_and_links as stored
from tests.web.calls import request_rewrite as rewrite
from tests.web.turns import WRONG_TYPES, rewrite_in_short_steps


@on_one_service
@pytest.mark.parametrize(
    ("body", "code", "position"),
    [
        ('see #track("https://x.example/', "INVALID_TRACK_DIRECTIVE", None),
        ('see #track("")', "INVALID_TRACK_DIRECTIVE", None),
        ('see #track("ftp://x.example/")', "INVALID_TRACK_URL", 4),
        ('see #track("x.example")', "INVALID_TRACK_URL", 4),
        ('see #track("https://user:pw@x.example/")', "INVALID_TRACK_URL", 4),
        ('see #track("javascript:alert(1)")', "INVALID_TRACK_URL", 4),
        ('ok #track("https://x.example/") and #track("https://127.0.0.1:8000/abc")', "INVALID_TRACK_URL", 36),
    ],
)
async def test_a_malformed_directive_is_rejected_with_its_position_and_nothing_is_stored(
    client: httpx.AsyncClient, service: Service, body: str, code: str, position: int | None
) -> None:
    answer = await rewrite(client, body=body)
    assert answer.status_code == 400
    told = answer.json()
    assert (told["status"], told["error_code"]) == (False, code)
    detail = told["details"][0]
    assert detail["field"] == "body"
    assert f"position {detail['position']}" in detail["reason"]
    if position is not None:
        assert detail["position"] == position
    assert await stored(service) == (0, 0)


async def test_a_batch_with_invalid_messages_is_not_stored_and_the_response_lists_every_invalid_message(
    client: httpx.AsyncClient, service: Service
) -> None:
    batch = [
        {"to": TO, "body": 'fine #track("https://x.example/")'},
        {"to": "4085550100", "body": "number without a plus"},
        {"to": [TO, "+1408555XXXX"], "body": "vanity letters"},
        {"to": TO, "body": 'bad #track("mailto:a@b.example")'},
    ]
    answer = await client.post("/api/v1/rewrite", json={"messages": batch})
    assert answer.status_code == 400
    assert [detail["field"] for detail in answer.json()["details"]] == ["messages.1.to", "messages.2.to.1", "messages.3.body"]
    assert answer.json()["error_code"] == "INVALID_RECIPIENT"
    assert await stored(service) == (0, 0)
    answer = await client.post("/api/v1/rewrite", json={"messages": batch[:1]})
    assert answer.status_code == 200


async def test_a_rewrite_with_too_many_recipients_is_rejected(make_service: Any) -> None:
    from tests.conftest import client_of

    service = await make_service(batch_limit=3)
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        batch = [{"to": [TO, TO], "body": "a"}, {"to": [TO, TO], "body": "b"}]
        for body in ({"messages": batch}, {"to": [TO] * 4, "body": "a"}, {"to": [TO] * 1001, "body": "a"}):
            answer = await client.post("/api/v1/rewrite", json=body)
            assert (answer.status_code, answer.json()["error_code"]) == (400, "BATCH_TOO_LARGE")
    assert await stored(service) == (0, 0)


@pytest.mark.parametrize("earlier", [4, pytest.param(1001, marks=pytest.mark.slow)])
async def test_a_repeat_of_a_request_that_is_larger_than_a_lowered_batch_limit_gets_the_first_response(
    make_service: Any, earlier: int
) -> None:
    from tests.conftest import client_of

    to = [f"+1408555{number:04}" for number in range(earlier)]
    ids = [f"m-{number}" for number in range(earlier)]
    keys = {"Idempotency-Key": "k-1"}, {"Idempotency-Key": "k-2"}
    requests: list[tuple[str, Any, dict[str, str]]] = [
        ("/api/v1/rewrite", {"messages": [{"to": one, "body": "a"} for one in to]}, keys[0]),
        ("/api/v1/rewrite", {"to": to, "body": "b", "message_id": ids}, {}),
        ("/api/v1/rewrite", {"messages": [{"to": one, "body": "b", "message_id": i} for one, i in zip(to, ids, strict=True)]}, {}),
        ("/api/v1/sms/status", [{"message_id": one, "state": "SENT"} for one in ids], keys[1]),
    ]
    service = await make_service(batch_limit=earlier)
    headers = {"X-API-Key": service.first_credentials.api_key}
    async with client_of(service, headers) as client:
        first = [await client.post(path, json=body, headers=more) for path, body, more in requests]
        assert {answer.status_code for answer in first} == {200}
    await service.close()
    service = await make_service(batch_limit=2)
    async with client_of(service, headers) as client:
        for (path, body, more), answer in zip(requests, first, strict=True):
            repeat = await client.post(path, json=body, headers=more)
            assert (repeat.status_code, repeat.json()) == (200, answer.json())
        new = {"to": [TO] * 3, "body": "b", "message_id": [*ids[:2], "new"]}
        reports = [{"message_id": one, "state": "READ"} for one in ids]
        for path, body in (
            ("/api/v1/rewrite", new),
            ("/api/v1/rewrite", {"messages": requests[0][1]["messages"]}),
            ("/api/v1/rewrite/preview", requests[1][1]),
            ("/api/v1/sms/status", reports),
        ):
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.json()["error_code"]) == (400, "BATCH_TOO_LARGE"), path
        changed = await client.post("/api/v1/rewrite", json={**requests[1][1], "body": "c"})
        assert (changed.status_code, changed.json()["error_code"]) == (409, "MESSAGE_ID_CONFLICT")


async def test_two_messages_of_a_batch_with_one_message_id_and_different_texts_are_a_conflict(
    client: httpx.AsyncClient, service: Service
) -> None:
    batch = [{"to": TO, "body": "a", "message_id": "m-1"}, {"to": TO, "body": "b", "message_id": "m-1"}]
    answer = await client.post("/api/v1/rewrite", json={"messages": batch})
    assert (answer.status_code, answer.json()["error_code"]) == (409, "MESSAGE_ID_CONFLICT")
    assert await stored(service) == (0, 0)


async def test_a_list_of_message_ids_must_be_as_long_as_the_recipients(client: httpx.AsyncClient) -> None:
    answer = await rewrite(client, to=[TO, "+14085550101"], message_id=["a", "b"], body="x")
    assert [message["message_id"] for message in answer.json()["messages"]] == ["a", "b"]
    answer = await rewrite(client, to=[TO, "+14085550101"], message_id=["c"], body="x")
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "message_id")
    answer = await rewrite(client, to=[TO, "+14085550101"], message_id=["d", "d"], body="x")
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "message_id.1")


@on_one_service
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"body": None}, "body"),
        ({"body": 5}, "body"),
        ({"to": []}, "to"),
        ({"to": 14085550100}, "to"),
        ({"metadata": {"a": {"b": 1}}}, "metadata"),
        ({"metadata": {"a": "x" * 5000}}, "metadata"),
        ({"mt_price": "a lot"}, "mt_price"),
        ({"mt_price": "NaN"}, "mt_price"),
        ({"mt_price": "1e5"}, "mt_price"),
        ({"mt_price": "1_000"}, "mt_price"),
        ({"campaign": "a\x00b"}, "campaign"),
        ({"unknown_field": 1}, "unknown_field"),
        ({"source": "elsewhere"}, "source"),
        ({"lt_callbackurl": "javascript:x"}, "lt_callbackurl"),
    ],
)
async def test_the_error_for_an_invalid_field_of_a_rewrite_contains_the_field_name(
    client: httpx.AsyncClient, service: Service, change: dict[str, Any], field: str
) -> None:
    answer = await rewrite(client, **{"body": "x", **change})
    assert answer.status_code == 400
    assert answer.json()["error_code"] in ("INVALID_REQUEST", "INVALID_RECIPIENT")
    assert answer.json()["details"][0]["field"].startswith(field)
    assert await stored(service) == (0, 0)


@on_one_service
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"to": "\\ud800"}', b"[" * 100_000])
async def test_a_rewrite_body_that_is_not_a_json_object_is_rejected(client: httpx.AsyncClient, content: bytes) -> None:
    answer = await client.post("/api/v1/rewrite", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error_code"] in ("INVALID_JSON", "INVALID_REQUEST")


async def test_a_rewrite_with_another_content_type_or_a_huge_body_is_rejected(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/rewrite", content=b"a=b", headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["error_code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    answer = await client.post("/api/v1/rewrite", content=b" " * (9 * 1024 * 1024), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error_code"]) == (413, "BODY_TOO_LARGE")


@on_one_service
@pytest.mark.parametrize("url", ["http://169.254.169.254/x", "https://[fd00:ec2::254]/", "http://0.0.0.0/"])
async def test_a_callback_url_with_a_forbidden_address_is_rejected(client: httpx.AsyncClient, url: str) -> None:
    answer = await client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": "x", "lt_callbackurl": url})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "FORBIDDEN_TARGET")
    (detail,) = answer.json()["details"]
    assert detail["reason"].startswith("the host must have a public address (")
    assert "ALLOW_PRIVATE_TARGETS" in detail["reason"]


BAD = "0408"


async def test_a_rewrite_with_on_invalid_skip_stores_only_the_valid_recipients(client: httpx.AsyncClient, service: Service) -> None:
    body = 'see #track("https://x.example/")'
    answer = await rewrite(client, to=[TO, BAD, "+14085550101"], body=body, message_id=["a", "b", "c"], on_invalid="skip")
    assert answer.status_code == 200
    first, refused, last = answer.json()["messages"]
    assert [message["message_id"] for message in (first, last)] == ["a", "c"]
    assert refused == {
        "to": BAD,
        "message_id": "b",
        "error_code": "INVALID_RECIPIENT",
        "field": "to.1",
        "reason": f"'{BAD}' is not an E.164 number: + and 7 to 15 digits, as in +14155550100",
        "position": None,
    }
    assert await stored(service) == (2, 2)
    again = await rewrite(client, to=[TO, BAD, "+14085550101"], body=body, message_id=["a", "b", "c"], on_invalid="skip")
    assert again.json() == answer.json()
    assert await stored(service) == (2, 2)


async def test_a_batch_with_on_invalid_skip_stores_only_the_valid_messages(client: httpx.AsyncClient, service: Service) -> None:
    await rewrite(client, body="first", message_id="used")
    messages: list[dict[str, Any]] = [
        {"to": TO, "body": "x #track("},
        {"to": TO, "body": 'x #track("https://x.example/")'},
        {"to": [TO, "+14085550101"], "body": "other", "message_id": ["used", "new"]},
        {"to": [TO, TO], "body": "x", "message_id": ["twice", "twice"]},
        {"to": [TO, TO], "body": "x", "message_id": ["one"]},
    ]
    answer = await client.post("/api/v1/rewrite", json={"messages": messages, "on_invalid": "skip"})
    assert answer.status_code == 200
    entries = answer.json()["messages"]
    assert [entry.get("error_code") for entry in entries] == [
        *[
            "INVALID_TRACK_DIRECTIVE",
            None,
            "MESSAGE_ID_CONFLICT",
            None,
            None,
            "INVALID_REQUEST",
            "INVALID_REQUEST",
            "INVALID_REQUEST",
        ]
    ]
    assert (entries[0]["position"], entries[0]["field"]) == (9, "messages.0.body")
    assert await stored(service) == (4, 1)
    messages[1]["on_invalid"] = "fail"  # the value of a message has priority over the value of the batch
    messages[1]["to"] = BAD
    answer = await client.post("/api/v1/rewrite", json={"messages": messages, "on_invalid": "skip"})
    assert [detail["field"] for detail in answer.json()["details"]] == ["messages.1.to"]


async def test_a_rewrite_with_on_invalid_skip_succeeds_even_if_all_recipients_are_invalid(
    client: httpx.AsyncClient, service: Service
) -> None:
    answer = await rewrite(client, to=BAD, body="x", on_invalid="skip")
    assert (answer.status_code, [entry["error_code"] for entry in answer.json()["messages"]]) == (200, ["INVALID_RECIPIENT"])
    assert await stored(service) == (0, 0)


async def test_the_response_to_an_invalid_rewrite_lists_every_error_with_its_path_and_code(
    client: httpx.AsyncClient, service: Service
) -> None:
    messages: list[Any] = [
        {"to": TO, "body": 'ok ##track("https://x.example/") #track("ftp://x.example/") #track('},
        {"to": [TO, BAD], "body": '#track("ftp://x.example/")', "fallback_url": "ftp://x.example/"},
        {"to": TO, "body": "fine"},
        {"to": BAD, "body": "#track(", "mt_price": "a lot", "unknown": 1},
        {"to": TO},
        5,
    ]
    answer = await client.post("/api/v1/rewrite", json={"messages": messages})
    assert answer.status_code == 400
    places = [
        (detail["index"], detail["recipient"], detail["field"], detail["error_code"], detail["position"])
        for detail in answer.json()["details"]
    ]
    assert places == [
        (0, None, "messages.0.body", "INVALID_TRACK_DIRECTIVE", 3),
        (0, None, "messages.0.body", "INVALID_TRACK_URL", 33),
        (0, None, "messages.0.body", "INVALID_TRACK_DIRECTIVE", 67),
        (1, 1, "messages.1.to.1", "INVALID_RECIPIENT", None),
        (1, None, "messages.1.body", "INVALID_TRACK_URL", 0),
        (1, None, "messages.1.fallback_url", "INVALID_REQUEST", None),
        (3, None, "messages.3.mt_price", "INVALID_REQUEST", None),
        (3, None, "messages.3.unknown", "INVALID_REQUEST", None),
        (3, 0, "messages.3.to", "INVALID_RECIPIENT", None),
        (3, None, "messages.3.body", "INVALID_TRACK_DIRECTIVE", 7),
        (4, None, "messages.4.body", "INVALID_REQUEST", None),
        (5, None, "messages.5", "INVALID_REQUEST", None),
    ]
    assert answer.json()["error_code"] == "INVALID_TRACK_DIRECTIVE"
    assert await stored(service) == (0, 0)
    single = await client.post("/api/v1/rewrite", json={"to": [TO, BAD, 7], "body": "#track(", "campaign": []})
    assert sorted(detail["field"] for detail in single.json()["details"]) == ["body", "campaign", "to.1", "to.2"]


def _codes(response: httpx.Response) -> list[tuple[str, str]]:
    """Return the field and the error code of each detail of an error, sorted."""
    assert response.status_code >= 400
    return sorted((detail["field"], detail["error_code"]) for detail in response.json()["details"])


async def test_a_field_of_a_wrong_type_does_not_hide_errors_that_only_the_database_shows(
    client: httpx.AsyncClient, service: Service
) -> None:
    for message_id in ("used-1", "used-2", "used-3"):
        await rewrite(client, body="first", message_id=message_id)
    await client.post("/api/v1/opt-outs", json={"phone": "+14085550199"})
    messages: list[Any] = [
        {"to": TO, "body": "other", "message_id": "used-1"},
        # With a valid `campaign`, this message could equal the stored message. Therefore its id is not reported as a conflict.
        {"to": TO, "body": "first", "message_id": "used-2", "campaign": []},
        {"to": [TO, BAD, 7], "body": "x", "message_id": ["used-3", "", "new"]},
        {"to": ["+14085550199", TO], "body": "x", "gateway": "simulator"},
        {"to": TO},
    ]
    conflict = "MESSAGE_ID_CONFLICT"
    assert _codes(await client.post("/api/v1/rewrite", json={"messages": messages})) == [
        ("messages.0.message_id", conflict),
        ("messages.1.campaign", "INVALID_REQUEST"),
        ("messages.2.message_id.0", conflict),
        ("messages.2.message_id.1", "INVALID_REQUEST"),
        ("messages.2.to.1", "INVALID_RECIPIENT"),
        ("messages.2.to.2", "INVALID_REQUEST"),
        ("messages.3.to.0", "OPTED_OUT"),
        ("messages.4.body", "INVALID_REQUEST"),
    ]
    assert await stored(service) == (3, 0)


async def test_an_invalid_recipient_does_not_hide_a_recipient_on_the_opt_out_list_or_without_a_price(
    client: httpx.AsyncClient, service: Service
) -> None:
    await client.post("/api/v1/opt-outs", json={"phone": "+14085550199"})
    answer = await rewrite(client, to=["+14085550199", BAD], body="#track(", gateway="simulator")
    assert _codes(answer) == [("body", "INVALID_TRACK_DIRECTIVE"), ("to.0", "OPTED_OUT"), ("to.1", "INVALID_RECIPIENT")]
    await service.database.write(change_balance, service.ids, 1, NOON, "test", amount=Decimal(5))
    answer = await rewrite(client, to=["+14085550199", TO], body="#track(", gateway="simulator")
    assert _codes(answer) == [("body", "INVALID_TRACK_DIRECTIVE"), ("to.0", "OPTED_OUT"), ("to.1", "NO_PRICE")]


async def test_an_invalid_directive_does_not_hide_an_error_of_the_domain_of_the_short_links(client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/v1/domains", json={"domain": "https://go.brand.example/{sender}"})).status_code == 201
    for body, code in (("#track(", "INVALID_TRACK_DIRECTIVE"), ('#track("ftp://x.example/")', "INVALID_TRACK_URL")):
        assert _codes(await rewrite(client, body=body)) == [("body", code), ("from", "INVALID_REQUEST")]


async def test_too_many_urls_do_not_hide_a_url_that_cannot_be_tracked(client: httpx.AsyncClient) -> None:
    urls = " ".join(f"https://x{number}.example/" for number in range(31))
    answer = await rewrite(client, body=f'#track("ftp://x.example/") {urls}', track="all_urls")
    assert [detail["position"] for detail in answer.json()["details"]] == [0, 27 + urls.index("https://x29.example/")]


async def test_the_response_to_an_invalid_rewrite_lists_at_most_a_thousand_errors_and_counts_all(client: httpx.AsyncClient) -> None:
    answer = await rewrite(client, to=[BAD] * 1000, body="#track( #track( #track(")
    assert (len(answer.json()["details"]), answer.json()["details_total"]) == (1000, 1003)


async def test_errors_that_are_only_counted_hide_no_error_of_their_message(client: httpx.AsyncClient) -> None:
    messages = [{"to": BAD, "body": "#track(", "metadata": {"a": []}, "expires_in": 0}] * 1000
    answer = await client.post("/api/v1/rewrite", json={"messages": messages})
    assert (len(answer.json()["details"]), answer.json()["details_total"]) == (1000, 4000)
    messages = [{"to": BAD, "body": "#track(", "from": "Shop", "lt_callbackur": "x", "unknown": 1, "expires_in": 0}] * 1000
    answer = await client.post("/api/v1/rewrite", json={"messages": messages})
    assert (len(answer.json()["details"]), answer.json()["details_total"]) == (1000, 5000)


async def test_a_recipient_that_is_null_is_left_out_like_another_invalid_recipient(client: httpx.AsyncClient) -> None:
    answer = await rewrite(client, to=[TO, None, "+14085550101"], body="x", on_invalid="skip")
    assert answer.status_code == 200, answer.text
    found = [(entry["to"], entry.get("error_code"), entry.get("field")) for entry in answer.json()["messages"]]
    assert found == [(TO, None, None), ("", "INVALID_RECIPIENT", "to.1"), ("+14085550101", None, None)]
    answer = await rewrite(client, to=[TO, None], body="x")
    assert _codes(answer) == [("to.1", "INVALID_RECIPIENT")]


INVALID_VALUES: dict[str, Any] = {"to": "x", "body": "#track(", "expires_in": 5, "expires_at": "2020-01-01T00:00:00Z"}
INVALID_VALUES |= {"domain": "no.example", "fallback_url": "ftp://x", "lt_callbackurl": "javascript:x"}
INVALID_RECIPIENTS = {"to": ["+1"] * 90, "message_id": [f"m{number}" for number in range(90)], "body": ""}


@pytest.mark.parametrize(
    ("messages", "total"),
    [
        pytest.param([WRONG_TYPES] * 1000, 81_270, marks=pytest.mark.slow),
        ([INVALID_VALUES] * 1000, 7000),
        ([INVALID_RECIPIENTS] * 200 + [WRONG_TYPES], 35_987),
        ([{"to": [1] * 1000, "body": ""}] * 5, 5000),
    ],
    ids=["wrong types", "invalid values", "invalid recipients", "a small body"],
)
async def test_a_batch_in_which_each_message_has_many_errors_does_not_block_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, messages: list[dict[str, Any]], total: int
) -> None:
    answer = await rewrite_in_short_steps(client, monkeypatch, orjson.dumps({"messages": messages}))
    assert (answer.status_code, len(answer.json()["details"]), answer.json()["details_total"]) == (400, 1000, total)
