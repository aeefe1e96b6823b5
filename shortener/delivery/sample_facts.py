"""The facts of invented events, for test deliveries and for examples of requests."""
# Tested by tests/delivery/test_sample_delivery.py and tests/delivery/test_example_requests.py

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from shortener.delivery.conversion_filter import DISPOSITIONS
from shortener.outbox import operations
from shortener.storage.types import iso_with_ms, to_ms

_PHONE = "+14085550100"
#: The status of an invented conversion, by its disposition.
_STATUSES = {"positive": "approved", "negative": "rejected", "none": "pending"}


def sample_facts(
    application_id: int,
    at: datetime,
    event: str,
    actions: Sequence[str] | None = None,
    dispositions: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the facts of an invented event with the name `event` (model.EVENT_NAMES) about an invented message.

    All facts that such an event can contain have a value. If the event is a conversion, a tracker with the filter `actions` and
    `dispositions` receives it."""
    now = to_ms(at)
    facts = {"sample_of": event, "timestamp": iso_with_ms(now), "application_id": application_id, "company_id": None}
    if event == "operations":
        return facts | _operation_facts(now)
    facts |= _message_facts(now)
    if event != "delivery":
        facts |= _click_facts(now)
    if event == "state":
        facts["previous_state"] = "DELIVERED"
    if event == "conversion":
        facts |= _conversion_facts(actions, dispositions)
    return facts


def _operation_facts(now: int) -> dict[str, Any]:
    return {
        "sample_of": operations.TRACKER_DISABLED,
        "tracker_id": 1,
        "delivery_id": "dlv_test",
        "delivery_event": "state",
        "count": 1,
        "reason": "test",
        "key_kind": "tracker_token",
        "key_id": 1,
        "expires_at": iso_with_ms(now),
    }


def _message_facts(now: int) -> dict[str, Any]:
    return {
        "message_id": "test",
        "message_request_id": "test-request",
        "external_message_request_id": "test-external",
        "to_address": _PHONE,
        "phone_sha256": hashlib.sha256(_PHONE.encode()).hexdigest(),
        "from_address": "test",
        "sender_id_id": "test",
        "sender_id_alias": "test",
        "previous_state": None,
        "new_state": "DELIVERED",
        "reason_code": "000",
        "reason_description": "test",
        "report_status": "DELIVRD",
        "telecom_message_id": "test-telecom",
        "fragments_count": 1,
        "mt_price": "0.0095",
        "has_attachment": False,
        "campaign": "test",
        "source": "api",
        "country": "US",
        "metadata": {"test": "test"},
        "code": "8kVnq2LmRd",
        "short_url": "https://go.brand.example/8kVnq2LmRd",
        "url": "https://example.com/",
        "label": "test",
        "created_at": iso_with_ms(now - 45_000),
        "sent_at": iso_with_ms(now - 44_000),
        "delivered_at": iso_with_ms(now - 42_000),
        "process_key": "test",
    }


def _click_facts(now: int) -> dict[str, Any]:
    return {
        "new_state": "CLICKTHRU",
        "click_id": "test-click",
        "clicked_at": iso_with_ms(now),
        "verdict": "human",
        "verdict_reason": "browser",
        "user_agent": "test",
        "click_country": "US",
        "first_for_message": True,
        "first_for_link": True,
        "click_number": 1,
        "seconds_since_sent": 44,
        "seconds_since_delivered": 42,
    }


def _conversion_facts(actions: Sequence[str] | None, dispositions: Sequence[str] | None) -> dict[str, Any]:
    disposition = next(name for name in DISPOSITIONS if not dispositions or name in dispositions)
    action = "sale" if not actions or "sale" in map(str.casefold, actions) else actions[0]
    return {
        "conversion_id": "test-conversion",
        "action": action,
        "conversion_status": _STATUSES[disposition],
        "disposition": None if disposition == "none" else disposition,
        "value": "19.90",
        "currency": "USD",
        "transaction_id": "test-transaction",
        "revision": 1,
        "conversion_metadata": {"test": "test"},
    }
