"""Tests of POST /api/v1/rewrite/preview."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy import Connection, func, select

from shortener.container import Service
from shortener.storage.schema import idempotency, links, messages, sends, stored_responses
from tests.factory import rows

BODY = 'Offer: #track("https://shop.example/a?b=1") until Sunday'


async def count(service: Service) -> tuple[int, int]:
    def read(connection: Connection) -> tuple[int, int]:
        return tuple(connection.scalar(select(func.count()).select_from(table)) for table in (messages, links))  # type: ignore[return-value]

    return await service.database.read(read)


async def test_a_preview_returns_the_segments_of_the_rewritten_text_and_stores_nothing(
    client: httpx.AsyncClient, service: Service
) -> None:
    message = {"to": "+14085550123", "body": BODY, "campaign": "new campaign"}
    previewed = (await client.post("/api/v1/rewrite/preview", json=message)).json()["messages"][0]
    assert await count(service) == (0, 0)
    rewritten = (await client.post("/api/v1/rewrite", json=message)).json()["messages"][0]
    assert len(previewed["body"]) == len(rewritten["body"])
    for name in ("to", "encoding", "segments", "segments_without_rewriting", "warnings"):
        assert previewed[name] == rewritten[name], name
    assert previewed["links"][0]["url"] == "https://shop.example/a?b=1"
    assert previewed["links"][0]["short_url"] in previewed["body"]


@pytest.mark.parametrize(
    ("path", "body"), [("/api/v1/rewrite/preview", {"to": "+14085550123", "body": BODY}), ("/sms/1/preview", {"text": BODY})]
)
async def test_a_preview_with_an_idempotency_key_stores_nothing(
    client: httpx.AsyncClient, service: Service, path: str, body: dict[str, str]
) -> None:
    for text in (BODY, "other"):
        changed = {name: text if value == BODY else value for name, value in body.items()}
        assert (await client.post(path, json=changed, headers={"Idempotency-Key": "key-1"})).status_code == 200
    assert await rows(service.database, stored_responses) == []
    assert await rows(service.database, idempotency) == []


async def test_the_sample_link_of_a_preview_does_not_redirect(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/v1/rewrite/preview", json={"to": "+14085550123", "body": BODY})
    assert (await client.get("/" + response.json()["messages"][0]["links"][0]["code"])).status_code == 404


async def test_a_preview_returns_the_same_errors_as_a_rewrite(client: httpx.AsyncClient) -> None:
    for message in (
        {"to": "+14085550123", "body": 'broken #track("https://shop.example'},
        {"to": "12", "body": BODY},
        {"to": "+14085550123", "body": '#track("javascript:alert(1)")'},
    ):
        previewed = await client.post("/api/v1/rewrite/preview", json=message)
        rewritten = await client.post("/api/v1/rewrite", json=message)
        assert previewed.status_code == rewritten.status_code == 400
        assert previewed.json()["error_code"] == rewritten.json()["error_code"]


async def test_the_error_of_a_preview_lists_every_invalid_field_like_the_error_of_a_rewrite(client: httpx.AsyncClient) -> None:
    batch = {"messages": [{"to": ["x", 5], "body": "#track("}, {"to": "+14085550123"}, 7]}
    previewed = await client.post("/api/v1/rewrite/preview", json=batch)
    rewritten = await client.post("/api/v1/rewrite", json=batch)
    assert previewed.json() == rewritten.json()
    fields = [detail["field"] for detail in previewed.json()["details"]]
    assert fields == ["messages.0.to.1", "messages.0.to.0", "messages.0.body", "messages.1.body", "messages.2"]


async def test_a_preview_of_a_batch_with_on_invalid_skip_contains_each_invalid_recipient(client: httpx.AsyncClient) -> None:
    batch = {"messages": [{"to": ["+14085550123", "x"], "body": BODY}], "on_invalid": "skip"}
    first, second = (await client.post("/api/v1/rewrite/preview", json=batch)).json()["messages"]
    assert first["to"] == "+14085550123"
    assert (second["to"], second["error_code"]) == ("x", "INVALID_RECIPIENT")


async def test_a_preview_of_too_much_text_is_rejected(client: httpx.AsyncClient) -> None:
    batch = {"messages": [{"to": "+14085550123", "body": "x" * 15_000}] * 2}
    response = await client.post("/api/v1/rewrite/preview", json=batch)
    assert (response.status_code, response.json()["error_code"]) == (400, "BATCH_TOO_LARGE")


async def test_a_preview_with_a_gateway_sends_nothing_and_returns_no_send_fields(
    service: Service, client: httpx.AsyncClient
) -> None:
    response = await client.post("/api/v1/rewrite/preview", json={"to": "+14085550100", "body": "x", "gateway": "simulator"})
    assert "sent" not in response.json()["messages"][0]
    assert await rows(service.database, sends) == []
