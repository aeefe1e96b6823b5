"""Validation errors: the path of each invalid field and the reason why it is invalid."""

import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, Field, RootModel

from shortener.accounts.settings import ApplicationSettings
from shortener.errors import MAX_DETAILS, ApiError, ErrorCode
from shortener.web.application import ApplicationUpdateRequest
from shortener.web.domains import DomainUpdateRequest
from shortener.web.endpoint import RequestModel
from shortener.web.fields import Metadata, Time
from shortener.web.links import LinkUpdateRequest
from shortener.web.rewrite import RewriteRequest
from shortener.web.rewrite_shapes import RewriteMessage
from shortener.web.tracker_requests import TrackerCreateRequest
from shortener.web.validation import MAX_SUGGESTIONS, validate
from tests.one_test import in_one_test

BLANKS = " \u00a0\u200b\ufeff\n"


@pytest.mark.parametrize(
    ("model", "field", "others"),
    [
        (RewriteMessage, "fallback_url", {"to": "+14085550100", "body": "x"}),
        (RewriteMessage, "lt_callbackurl", {"to": "+14085550100", "body": "x"}),
        (LinkUpdateRequest, "url", {}),
        (LinkUpdateRequest, "fallback_url", {}),
        (DomainUpdateRequest, "fallback_url", {}),
        (DomainUpdateRequest, "home_url", {}),
        (TrackerCreateRequest, "url", {"events": ["click"]}),
        (ApplicationUpdateRequest, "conversion_url", {}),
        (ApplicationSettings, "fallback_url", {}),
    ],
)
def test_blanks_and_invisible_characters_around_a_url_are_removed(
    model: type[BaseModel], field: str, others: dict[str, Any]
) -> None:
    url = "https://x.example/a%20b"
    assert getattr(validate(model, {field: f"{BLANKS}{url}{BLANKS}", **others}), field) == url


def details(model: type[BaseModel], data: Any) -> dict[str, str]:
    with pytest.raises(ApiError) as raised:
        validate(model, data)
    assert raised.value.code is ErrorCode.INVALID_REQUEST
    return {detail.field: detail.reason for detail in raised.value.details}


def _check_word(value: str) -> str:
    if not value.isalpha():
        raise ValueError("must be a word")
    return value


class Item(RequestModel):
    name: Annotated[str, AfterValidator(_check_word)] | list[Annotated[str, AfterValidator(_check_word)]]
    amount: int = Field(1, ge=1, le=9)
    kind: Literal["big", "small"] = "big"
    at: Time | None = None
    metadata: Metadata | None = None
    label: str = Field("", max_length=3)
    timeout: float = Field(1, ge=0.5, le=60)


class Items(RootModel[Item | list[Item]]):
    pass


@in_one_test
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, {"name": "is required"}),
        ({"name": ""}, {"name": "must be a word"}),
        ({"name": 7}, {"name": "must be a string or a list"}),
        ({"name": ["a", "", 7]}, {"name.1": "must be a word", "name.2": "must be a string"}),
        ({"name": "a", "amount": 0}, {"amount": "must be at least 1"}),
        ({"name": "a", "amount": 10}, {"amount": "must be at most 9"}),
        ({"name": "a", "amount": "many"}, {"amount": "must be an integer"}),
        ({"name": "a", "kind": "huge"}, {"kind": "must be 'big' or 'small'"}),
        ({"name": "a", "label": "long"}, {"label": "must have at most 3 characters"}),
        ({"name": "a", "metadata": {"a": [1]}}, {"metadata.a": "must be a string, an integer, a number or true or false"}),
        ({"name": "a", "metadata": []}, {"metadata": "must be an object"}),
        ({"name": "a", "at": "soon"}, {"at": "must be a time in ISO 8601, such as 2026-11-20T12:00:00Z"}),
        ({"name": "a", "at": "9999-12-31T23:59:59-00:01"}, {"at": "must be between the years 1 and 9999 in UTC"}),
        ({"name": "a", "at": "0001-01-01T00:00:00+12:00"}, {"at": "must be between the years 1 and 9999 in UTC"}),
        ({"name": "a", "color": 1}, {"color": "is not a known field"}),
        ([], {"": "must be an object"}),
    ],
)
def test_a_validation_error_contains_the_path_of_each_invalid_field_and_a_reason_in_plain_words(
    data: Any, expected: dict[str, str]
) -> None:
    assert details(Item, data) == expected


def test_the_error_of_an_unknown_field_names_the_nearest_field_of_the_request() -> None:
    message = {"to": "+14085550100", "body": "x"}
    unknown = "is not a known field"
    assert details(RewriteRequest, {"messages": [message, message | {"campain": "a", "color": "b", "To": "c"}]}) == {
        "messages.1.campain": f"{unknown}; did you mean campaign?",
        "messages.1.color": unknown,
        "messages.1.To": f"{unknown}; did you mean to?",
    }
    # `messages` is a field of the batch and not of a message. The only similar name is the same name, so none is suggested.
    assert details(RewriteRequest, {"messages": [message | {"messages": []}]}) == {"messages.0.messages": unknown}
    assert details(RewriteMessage, message | {"trackk": "first_url"}) == {"trackk": f"{unknown}; did you mean track?"}
    assert details(RewriteMessage, message | {"campaign" * 10: "a"}) == {"campaign" * 10: unknown}


def test_only_some_of_many_unknown_fields_get_the_nearest_field() -> None:
    names = [f"campaign{number}" for number in range(100)]
    reasons = details(RewriteMessage, {"to": "+14085550100", "body": "x"} | dict.fromkeys(names, 1)).values()
    assert sum("did you mean" in reason for reason in reasons) == MAX_SUGGESTIONS


def test_the_error_path_of_an_invalid_field_contains_only_names_and_positions_of_the_request() -> None:
    assert details(RewriteRequest, {"messages": [{"to": "+14085550100", "body": "x"}, {"to": 5, "message_id": ""}]}) == {
        "messages.1.to": "must be a string or a list",
        "messages.1.body": "is required",
        "messages.1.message_id": "must have 1 to 100 printable characters",
    }
    assert "0.amount" in details(Items, [{"name": "a", "amount": 0}])


def test_a_validation_error_has_a_limited_number_of_details() -> None:
    assert len(details(RewriteRequest, {"messages": [{"to": "x"}] * (MAX_DETAILS + 1)})) == MAX_DETAILS


@pytest.mark.parametrize("field", ["from", "fallback_url", "campaign", "message_request_id", "external_message_request_id"])
def test_the_error_for_a_text_that_is_too_long_contains_the_limit_in_characters(field: str) -> None:
    reason = details(RewriteMessage, {"to": "+14155550100", "body": "x", field: "x" * 3000})[field]
    assert re.fullmatch("must have at most [0-9]+ characters", reason)


def test_a_limit_of_a_number_is_shown_without_needless_decimals() -> None:
    assert details(Item, {"name": "a", "timeout": 61}) == {"timeout": "must be at most 60"}
    assert details(Item, {"name": "a", "timeout": 0}) == {"timeout": "must be at least 0.5"}
