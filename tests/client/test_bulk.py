"""Tests of bulk rewrites without HTTP: chunks, idempotency keys, and the positions that errors contain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from shortener.client import (
    BadRequestError,
    BulkError,
    ConnectionFailedError,
    ErrorDetail,
    PermissionDeniedError,
    RateLimitError,
    RewrittenText,
    ServerFailureError,
)
from shortener.client.bulk import BulkRewrite, is_service_failure, new_key
from shortener.client.models import parse_rewritten
from tests.client.scripted import rewritten


def bulk(messages: Sequence[Mapping[str, Any]], **options: Any) -> BulkRewrite:
    values: dict[str, Any] = {"batch_limit": 3, "on_failure": "raise", "on_invalid": "fail", "key": "key", "extra_schemes": ()}
    return BulkRewrite(messages, **{**values, **options})


def numbers(count: int) -> list[str]:
    return [f"+140855501{index:02}" for index in range(count)]


def body_of(rewrite: BulkRewrite) -> dict[str, Any]:
    call = rewrite.next_call()
    assert call is not None
    assert call.content is not None
    body: dict[str, Any] = json.loads(call.content)
    return body


def succeed(rewrite: BulkRewrite) -> list[str]:
    """Respond to the next chunk of the bulk rewrite with success. Return the recipients of the chunk."""
    to = [one for message in body_of(rewrite)["messages"] for one in message["to"]]
    rewrite.succeeded([parse_rewritten(rewritten(one)) for one in to])
    return to


def test_a_bulk_call_divides_messages_and_recipients_into_chunks_in_order() -> None:
    rewrite = bulk([{"to": numbers(2), "body": "a"}, {"to": numbers(5), "body": "b"}, {"to": "+1", "body": "c"}])
    chunks = []
    while rewrite.next_call() is not None:
        chunks.append(succeed(rewrite))
    assert [len(chunk) for chunk in chunks] == [3, 3, 2]
    assert [one for chunk in chunks for one in chunk] == [*numbers(2), *numbers(5), "+1"]
    assert len(rewrite.results) == rewrite.total == 8


def test_the_chunks_of_a_message_have_the_same_request_id_and_different_message_ids() -> None:
    rewrite = bulk([{"to": numbers(4), "body": "b", "message_id": ["a", "b", "c", "d"]}])
    first = body_of(rewrite)["messages"][0]
    succeed(rewrite)
    second = body_of(rewrite)["messages"][0]
    assert (first["message_id"], second["message_id"]) == (["a", "b", "c"], ["d"])
    assert first["message_request_id"] == second["message_request_id"]


def test_the_idempotency_key_of_a_chunk_contains_the_key_of_the_bulk_call_and_the_positions_of_its_recipients() -> None:
    rewrite = bulk([{"to": numbers(4), "body": "b"}])
    keys = []
    while (call := rewrite.next_call()) is not None:
        keys.append(call.key)
        succeed(rewrite)
    assert keys == ["key-0-3", "key-3-4"]


def test_a_chunk_of_a_bulk_call_that_the_service_rejects_as_too_large_is_divided() -> None:
    rewrite = bulk([{"to": numbers(2), "body": "a"}, {"to": "+1", "body": "b"}])
    rewrite.failed(BadRequestError(400, "BATCH_TOO_LARGE", ""))
    rewrite.failed(BadRequestError(413, "BODY_TOO_LARGE", "")) if len(body_of(rewrite)["messages"][0]["to"]) == 2 else None
    chunks = []
    while rewrite.next_call() is not None:
        chunks.append(succeed(rewrite))
    assert chunks == [[numbers(2)[0]], [numbers(2)[1]], ["+1"]]


def test_a_chunk_of_one_recipient_that_the_service_rejects_as_too_large_raises_an_error() -> None:
    with pytest.raises(BadRequestError):
        bulk([{"to": "+1", "body": "a"}]).failed(BadRequestError(413, "BODY_TOO_LARGE", ""))


def test_a_failed_chunk_raises_an_error_that_contains_the_texts_of_the_earlier_chunks() -> None:
    rewrite = bulk([{"to": numbers(5), "body": "b"}])
    succeed(rewrite)
    cause = ConnectionFailedError("gone")
    with pytest.raises(BulkError, match="3 of 5") as raised:
        rewrite.failed(cause)
    assert (raised.value.failed_at, len(raised.value.results), raised.value.__cause__) == (3, 3, cause)


def test_the_details_of_an_error_contain_the_positions_of_message_and_recipient_in_the_whole_bulk_call() -> None:
    rewrite = bulk([{"to": numbers(2), "body": "a"}, {"to": numbers(4), "body": "b"}])
    succeed(rewrite)
    detail = ErrorDetail("messages.0.to.1", "is wrong", "INVALID_RECIPIENT", None, 0, 1)
    with pytest.raises(BulkError) as raised:
        rewrite.failed(BadRequestError(400, "INVALID_RECIPIENT", "", [detail]))
    assert isinstance(raised.value.__cause__, BadRequestError)
    (found,) = raised.value.__cause__.details
    assert (found.field, found.index, found.recipient) == ("messages.1.to.2", 1, 2)
    assert "(messages.1.to.2: is wrong)" in str(raised.value), "the text has the same index as the detail"


def test_the_texts_of_a_chunk_get_long_urls_if_the_service_fails() -> None:
    rewrite = bulk([{"to": numbers(2), "body": '#track("https://x.example/")'}], on_failure="send_long")
    sent = body_of(rewrite)["messages"][0]["message_id"]
    rewrite.failed(ConnectionFailedError("gone"))
    assert rewrite.next_call() is None
    texts = [text for text in rewrite.results if isinstance(text, RewrittenText)]
    assert [(text.to, text.body, text.is_tracked) for text in texts] == [(to, "https://x.example/", False) for to in numbers(2)]
    assert [text.message_id for text in texts] == sent, "the texts have the ids that the service may have stored"


@pytest.mark.parametrize("error", [BadRequestError(400, "INVALID_RECIPIENT", ""), PermissionDeniedError(403, "FORBIDDEN", "")])
def test_a_bulk_call_returns_no_long_urls_for_a_request_that_the_service_rejects(error: BadRequestError) -> None:
    with pytest.raises(type(error)):
        bulk([{"to": "+1", "body": "a"}], on_failure="send_long", is_single=True).failed(error)


def test_a_text_with_a_malformed_directive_is_rejected_and_not_returned_with_long_urls() -> None:
    rewrite = bulk([{"to": "+1", "body": '#track("https://x.example/"'}], on_failure="send_long")
    with pytest.raises(BadRequestError) as raised:
        rewrite.failed(ConnectionFailedError())
    assert raised.value.error_code == "INVALID_TRACK_DIRECTIVE"


def test_rate_limit_responses_and_server_errors_count_as_failures_of_the_service() -> None:
    assert is_service_failure(RateLimitError(429, "RATE_LIMITED", ""))
    assert is_service_failure(ServerFailureError(502, "", ""))


@pytest.mark.parametrize(
    "message",
    [
        {"body": "a"},
        {"to": "+1"},
        {"to": "+1", "body": None},
        {"to": [], "body": "a"},
        {"to": [1], "body": "a"},
        {"to": ["+1", "+2"], "body": "a", "message_id": "m-1"},
    ],
)
def test_a_bulk_message_without_recipients_text_or_matching_ids_is_rejected_before_a_request(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="message 0"):
        bulk([message])


@pytest.mark.parametrize("options", [{"on_failure": "ignore"}, {"on_invalid": "ignore"}, {"batch_limit": 0}])
def test_an_invalid_option_of_a_bulk_call_is_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        bulk([{"to": "+1", "body": "a"}], **options)


def test_generated_idempotency_keys_are_unique() -> None:
    assert len({new_key() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("gateway", ["simulator", ""])
def test_a_message_that_the_service_sends_cannot_be_combined_with_send_long_because_it_would_be_sent_twice(gateway: str) -> None:
    messages = [{"to": "+1", "body": "a"}, {"to": "+2", "body": "b", "gateway": gateway}]
    with pytest.raises(ValueError, match="only for messages that you send yourself"):
        bulk(messages, on_failure="send_long")
    assert bulk(messages, on_failure="raise").total == 2
    assert bulk([{"to": "+1", "body": "a", "gateway": None}], on_failure="send_long").total == 1


def test_a_rewritten_text_says_whether_the_service_sends_it() -> None:
    for sent in (True, False, None):
        raw = rewritten("+1") if sent is None else {**rewritten("+1"), "sent": sent, "cost": None}
        text = parse_rewritten(raw)
        assert isinstance(text, RewrittenText)
        assert text.is_sent is sent
