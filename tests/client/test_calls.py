from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from shortener.client import SkippedRecipient, UnexpectedResponseError, calls
from tests.client.scripted import rewritten


def test_the_client_percent_encodes_ids_in_request_paths() -> None:
    assert calls.status("a/b ü?").path == "/api/v1/sms/status/a%2Fb%20%C3%BC%3F"


def test_the_client_sends_list_filters_in_the_format_of_the_api() -> None:
    query = calls.query_of(
        {
            "since": date(2026, 11, 1),
            "until": datetime(2026, 11, 2, tzinfo=UTC),
            "enabled": True,
            "from_": "x",
            "limit": 5,
            "campaign": None,
        }
    )
    assert query == {
        "since": "2026-11-01",
        "until": "2026-11-02T00:00:00+00:00",
        "enabled": "true",
        "from": "x",
        "limit": "5",
    }


def test_the_client_sends_decimals_and_times_as_text() -> None:
    content = calls.encode({"price": Decimal("1E-7"), "at": datetime(2026, 11, 2, tzinfo=UTC)})
    assert json.loads(content) == {"price": "0.0000001", "at": "2026-11-02T00:00:00+00:00"}


@pytest.mark.parametrize("value", [datetime(2026, 1, 1), object(), float("nan")])  # noqa: DTZ001 - a time without a zone
def test_the_client_rejects_a_value_that_json_cannot_represent(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        calls.encode({"value": value})


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"messages": None},
        {"messages": []},
        {"messages": [None]},
        {"messages": [{"to": "+1"}]},
        {"messages": [rewritten(links=[{}])]},
        {"messages": [rewritten(links=[{**rewritten()["links"][0], "expires_at": "soon"}])]},
    ],
)
def test_a_response_with_unexpected_fields_or_types_raises_an_unexpected_response_error(body: Any) -> None:
    with pytest.raises(UnexpectedResponseError):
        calls.rewrite(b"", "key", 1).read(body)


def test_the_client_returns_a_skipped_recipient_as_an_object_of_the_class_skipped_recipient() -> None:
    entry = {
        "to": "x",
        "message_id": None,
        "error_code": "INVALID_RECIPIENT",
        "field": "to",
        "reason": "is wrong",
        "position": None,
    }
    (skipped,) = calls.rewrite(b"", "key", 1).read({"messages": [entry]})
    assert skipped == SkippedRecipient("x", None, "INVALID_RECIPIENT", "to", "is wrong")


def test_a_client_call_that_updates_a_link_requires_at_least_one_change() -> None:
    with pytest.raises(ValueError, match="at least one"):
        calls.update_link("abcd", {})


def test_the_client_returns_one_entry_per_recipient_of_a_sent_message() -> None:
    call = calls.send(["+1", "+2"], "text", "Shop", "key")
    result = call.read(
        {
            "status": True,
            "messages": [{"dnis": "+1", "message_id": "m-1", "segment_num": 1}],
            "results": [
                {"dnis": "+1", "message_id": "m-1", "segments": 1, "status": "accepted"},
                {"dnis": "+2", "message_id": None, "segments": 1, "status": "blocked_country"},
            ],
            "summary": {"total_segments": 1, "total_cost": "0.0095", "accepted_count": 1},
        }
    )
    assert (result.accepted, result.total_cost) == (1, Decimal("0.0095"))
    assert [(one.to, one.status) for one in result.recipients] == [("+1", "accepted"), ("+2", "blocked_country")]
