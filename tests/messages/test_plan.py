from __future__ import annotations

from typing import Any

import pytest

from shortener.errors import ApiError, ErrorCode
from shortener.storage.types import from_ms
from tests.conftest import NOON
from tests.messages.rewriting import LIMITS, LINK, TO, item, only, plan, reason, rejection


def test_the_rewrite_plan_of_a_message_contains_its_link_and_generated_ids() -> None:
    message = only(item(f"see {LINK}"))
    (link,) = message.plan.links
    assert (link.span.start, link.destination.url, link.every_click) == (4, "https://x.example/", False)
    assert (message.number.e164, message.number.country) == (TO, "US")
    assert (len(message.message_id), len(message.request_id), message.has_own_id, message.content_hash) == (22, 22, False, "")
    assert from_ms(message.expires_at) == NOON + LIMITS.link_ttl


def test_all_recipients_of_one_message_share_the_rewrite_plan_and_the_request_id() -> None:
    first, second = plan(item(to=(TO, "+14085550101"))).messages
    assert first.plan is second.plan
    assert first.request_id == second.request_id
    assert first.message_id != second.message_id


def test_a_request_with_too_many_recipients_is_rejected_before_any_other_check() -> None:
    error = rejection(item(to=("invalid",) * (LIMITS.max_recipients + 1)))
    assert (error.code, error.details) == (ErrorCode.BATCH_TOO_LARGE, ())


def test_all_problems_of_a_rewrite_request_are_reported_in_request_order() -> None:
    error = rejection(
        item("fine"),
        item("#track(", expires_in=5, expires_at=NOON, fallback_url="ftp://x"),
        item(to=(TO, "invalid"), message_ids=("m-1", "m-1")),
        item(to=(TO,), message_ids=("m-1",), callback_url="javascript:x"),
        item(to=()),
    )
    assert [detail.field for detail in error.details] == [
        "expires_at",
        "expires_at",
        "body",
        "fallback_url",
        "to",
        "message_id",
        "message_id",
        "lt_callbackurl",
        "to",
    ]
    assert error.code is ErrorCode.INVALID_REQUEST


def test_a_request_with_150_invalid_recipients_is_rejected_with_150_details() -> None:
    limits = type(LIMITS)(max_recipients=1000, link_ttl=LIMITS.link_ttl, code_length=LIMITS.code_length)
    assert len(rejection(item(to=("invalid",) * 150), limits=limits).details) == 150


def test_a_request_is_not_rejected_because_of_problems_in_messages_that_are_already_stored() -> None:
    request = plan(item(expires_at=NOON, message_ids=("m-1",)))
    request.check([])
    with pytest.raises(ApiError):
        request.check(request.messages)


def test_a_request_must_have_one_message_id_for_each_recipient() -> None:
    assert reason(item(to=(TO, TO), message_ids=("m-1",))) == (
        "message_id",
        "must contain one id for each of the 2 recipients; it has 1",
    )


def test_only_a_request_with_an_idempotency_key_or_with_message_ids_can_be_a_repeat() -> None:
    assert not plan(item(to=(TO, TO), message_ids=(None, None))).may_be_repeat
    assert plan(item(to=(TO, TO), message_ids=(None, "m-1"))).may_be_repeat
    assert plan(item(), key="key").may_be_repeat


# This test checks the content hash of a message.


def test_the_content_hash_of_a_message_depends_on_the_recipient_and_everything_except_generated_ids() -> None:
    def content_hash(**fields: Any) -> str:
        return only(item(message_ids=("m-1",), **fields)).content_hash

    assert content_hash() == content_hash(request_id="another")
    others: list[dict[str, Any]] = [
        {"body": "other"},
        {"to": "+14085550199"},
        {"track": "all_urls"},
        {"campaign": "other"},
        {"expires_in": 60},
        {"fallback_url": "https://x.example/bye"},
        {"metadata": {"a": 1}},
        {"tracking": ("SMS", "")},
    ]
    assert len({content_hash(), *(content_hash(**other) for other in others)}) == len(others) + 1
    assert content_hash(metadata={}) == content_hash()
    assert content_hash(metadata={"a": 1, "b": 2}) == content_hash(metadata={"b": 2, "a": 1})
