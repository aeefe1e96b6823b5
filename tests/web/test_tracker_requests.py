"""Validation of the request bodies that create and change trackers."""

import base64
from typing import Any

import pytest

from shortener.errors import ApiError, ErrorCode
from shortener.web.tracker_requests import TrackerCreateRequest, TrackerUpdateRequest
from shortener.web.validation import validate
from tests.one_test import in_one_test

BODY = {"url": "https://tracker.example/hook?phone={phone}", "events": ["state"]}


@in_one_test
@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"events": []}, "events"),
        ({"events": ["test"]}, "events.0"),
        ({"events": "state"}, "events"),
        ({"name": ""}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"method": "PUT"}, "method"),
        ({"format": "xml"}, "format"),
        ({"fields": ["phone", "nonsense"]}, "fields"),
        ({"fields": []}, "fields"),
        ({"headers": {"X-A": "1\r\nX-B: 2"}}, "headers"),
        ({"headers": {"X-A": "1\n"}}, "headers"),
        ({"headers": {"X\r\nB": "2"}}, "headers"),
        ({"headers": {"X A": "1"}}, "headers"),
        ({"headers": {"": "1"}}, "headers"),
        ({"headers": {"X-A": "é"}}, "headers"),
        ({"headers": {"X-A": "x" * 2001}}, "headers"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "headers"),
        ({"headers": {f"X-{n}": "1" for n in range(21)}}, "headers"),
        *(({"headers": {name: "x"}}, "headers") for name in ("Host", "content-length", "Connection", "TE", "Transfer-Encoding")),
        *(({"headers": {name: "x"}}, "headers") for name in ("Content-Type", "Expect", "webhook-id", "X-Webhook-Signature")),
        ({"secret": "whsec_YQ=="}, "secret"),
        ({"secret": "whsec_" + base64.b64encode(b"x" * 23).decode()}, "secret"),
        ({"max_per_second": 0}, "max_per_second"),
        ({"max_per_second": 1001}, "max_per_second"),
        ({"secret": "x" * 600}, "secret"),
        ({"secret": "whsec_not base64!"}, "secret"),
        ({"success": {"statuses": "20x"}}, "success"),
        ({"success": {"statuses": "2xx", "more": 1}}, "success"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 51}, "max_attempts"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 61}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"concurrency": 0}, "concurrency"),
        ({"schedule": []}, "schedule"),
        ({"schedule": [-1]}, "schedule.0"),
        ({"schedule": [float("inf")]}, "schedule.0"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_the_error_for_an_invalid_field_of_a_new_tracker_contains_the_field_name(extra: dict[str, Any], field: str) -> None:
    with pytest.raises(ApiError) as caught:
        validate(TrackerCreateRequest, BODY | extra)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert field in [detail.field for detail in caught.value.details]


@pytest.mark.parametrize("secret", ["", "x" * 513, "whsec_", "whsec_YQ==", "whsec_not base64!"])
def test_the_error_for_each_invalid_secret_states_the_complete_rule(secret: str) -> None:
    with pytest.raises(ApiError) as caught:
        validate(TrackerUpdateRequest, {"secret": secret})
    assert [detail.reason for detail in caught.value.details] == [
        "must be a text of 1 to 512 characters, or `whsec_` and the base64 of a key of at least 24 bytes"
    ]


@pytest.mark.parametrize("field", ["url", "events", "name", "enabled", "method", "format"])
def test_an_update_of_a_tracker_rejects_null_for_a_field_that_cannot_be_removed(field: str) -> None:
    with pytest.raises(ApiError) as caught:
        validate(TrackerUpdateRequest, {field: None})
    assert [detail.field for detail in caught.value.details] == [field]


def test_duplicate_events_and_fields_of_a_tracker_are_removed() -> None:
    body = BODY | {"events": ["click", "state", "click"], "fields": ["phone", "status", "phone"]}
    tracker = validate(TrackerCreateRequest, body).to_tracker()
    assert (tracker.events, tracker.fields) == (["click", "state"], ["phone", "status"])


def test_requests_to_a_new_tracker_are_signed_unless_the_secret_of_the_tracker_is_null() -> None:
    assert validate(TrackerCreateRequest, BODY | {"secret": None}).to_tracker().signed is False
    assert validate(TrackerCreateRequest, BODY).to_tracker().signed is True


def test_an_update_request_for_a_tracker_changes_only_the_fields_that_it_contains() -> None:
    changes = validate(TrackerUpdateRequest, {"fields": None, "timeout": 2}).to_changes()
    assert changes == {"fields": None, "timeout": 2.0}


@pytest.mark.parametrize("secret", ["x", "My-S3cr3t-pass!", "x" * 512, "whsec_" + base64.b64encode(b"x" * 24).decode()])
def test_signing_secrets_of_any_text_and_prefixed_keys_of_24_bytes_are_accepted(secret: str) -> None:
    assert validate(TrackerCreateRequest, BODY | {"secret": secret}).to_tracker().secret == secret
