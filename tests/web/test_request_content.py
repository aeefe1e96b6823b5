"""Tests of the content with which the service compares a repeated Idempotency-Key with the first request."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest
from pydantic import Field
from sqlalchemy import update

from shortener.container import Service
from shortener.storage import schema
from shortener.web.request_content import content_of_0_2, sent_content
from shortener.web.rewrite import RewriteRequest
from shortener.web.rewrite_shapes import RewriteMessage
from tests.web.calls import TO

ONE = {"to": "+14085550100", "body": 'a #track("https://shop.example/a?b=1")', "message_id": "clicked"}
MORE = {
    **ONE,
    "from": "ACME",
    "campaign": "c",
    "mt_price": "0.01",
    "tracking": {"track": "SMS", "type": "x"},
    "metadata": {"b": 1, "a": "x"},
    "message_id": "m1",
}
BATCH = {"messages": [{"to": ["+14085550100"], "body": ONE["body"], "expires_in": 60}]}
XOXZO = {"recipient": "+14085550100", "message": "see https://shop.example/a", "track_link": "true"}
INFOBIP = {
    "messages": [
        {"from": "InfoSMS", "destinations": [{"to": "41793026731", "messageId": "x"}], "text": "see https://shop.example/pin"}
    ],
    "tracking": {"track": "SMS", "type": "One_Time_Pin"},
    "urlOptions": {"shortenUrl": True},
}
#: Each request with the content hash that release 0.2 stored for it.
HASHES_OF_0_2 = (
    (ONE, "be9ad0013c2b9da992e755c7de172a74833c0cfa4a4e6bd2267774988e78e946"),
    (MORE, "1b507322cfb6caeb77b0fd42bffcef00882aa83e1767ac666a570f775a87fcf8"),
    (BATCH, "b0982f9a33471ed75dc1034dfaf722b0351b73e76bb76ca1604747b4d7297573"),
    (XOXZO, "9fe7639d4420864ae50d8acc10598918bc9e1029b67112e6810ed351bc295e3d"),
    (INFOBIP, "30f9539eac5f5103a9b74b95252c86ce8cea648a766c1c0d9526db7d3088fd11"),
)


@pytest.mark.parametrize(("request_body", "expected"), HASHES_OF_0_2)
def test_the_content_hash_that_release_0_2_computed_for_a_request_is_reproduced(
    request_body: dict[str, Any], expected: str
) -> None:
    assert hashlib.sha256(content_of_0_2(RewriteRequest.model_validate(request_body))).hexdigest() == expected


def test_a_new_field_with_a_default_does_not_change_the_hashed_content_of_a_request() -> None:
    class Extended(RewriteMessage):
        new_field: str = Field("default")

    assert sent_content(Extended.model_validate(MORE)) == sent_content(RewriteMessage.model_validate(MORE))
    assert sent_content(Extended.model_validate({**MORE, "new_field": "x"})) != sent_content(RewriteMessage.model_validate(MORE))


def test_the_hashed_content_of_a_request_depends_on_field_values_and_not_on_their_order() -> None:
    content = sent_content(RewriteRequest.model_validate(MORE))
    assert sent_content(RewriteRequest.model_validate(dict(reversed(MORE.items())))) == content
    for name in MORE.keys() - {"tracking", "metadata"}:
        other = "+14085550101" if name == "to" else "0.02" if name == "mt_price" else "other"
        assert sent_content(RewriteRequest.model_validate({**MORE, name: other})) != content, name


async def test_a_repeat_of_a_request_that_release_0_2_stored_gets_the_first_response(
    client: httpx.AsyncClient, service: Service
) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await client.post("/api/v1/rewrite", json=ONE, headers=headers)
    await service.database.write(
        lambda connection: connection.execute(update(schema.idempotency).values(content_hash=HASHES_OF_0_2[0][1]))
    )
    again = await client.post("/api/v1/rewrite", json=ONE, headers=headers)
    assert (again.status_code, again.json()) == (200, first.json())
    other = await client.post("/api/v1/rewrite", json={**ONE, "to": TO, "campaign": "other"}, headers=headers)
    assert (other.status_code, other.json()["error_code"]) == (409, "IDEMPOTENCY_CONFLICT")
