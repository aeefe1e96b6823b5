"""This module lists the facts of an event, from which the request bodies for trackers are built.

The facts are a JSON snapshot that the fan-out creates. Any of them may be absent. Times are ISO 8601 in UTC with milliseconds, and
amounts of money are decimal numbers as text.
"""
# Tested by tests/delivery/test_formats.py

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

Facts = Mapping[str, Any]

#: The fields of operations events (outbox/operations.py).
OPERATION_FIELDS = (
    "tracker_id",
    "delivery_id",
    "delivery_event",
    "count",
    "reason",
    "key_kind",
    "key_id",
    "expires_at",
)

FACTS = (
    "event_id",
    "topic",
    "timestamp",
    "application_id",
    "company_id",
    "message_id",
    "message_request_id",
    "external_message_request_id",
    "to_address",
    "from_address",
    "sender_id_id",
    "sender_id_alias",
    "previous_state",
    "new_state",
    "reason_code",
    "reason_description",
    "report_status",
    "telecom_message_id",
    "fragments_count",
    "mt_price",
    "has_attachment",
    "campaign",
    "source",
    "country",
    "metadata",
    "click_id",
    "code",
    "short_url",
    "url",
    "label",
    "verdict",
    "verdict_reason",
    "first_for_message",
    "first_for_link",
    "click_number",
    "seconds_since_sent",
    "seconds_since_delivered",
    "user_agent",
    "click_country",
    "created_at",
    "sent_at",
    "delivered_at",
    "clicked_at",
    "conversion_id",
    "action",
    "conversion_status",
    "disposition",
    "value",
    "currency",
    "transaction_id",
    "revision",
    "previous_status",
    "previous_value",
    "conversion_metadata",
    "phone_sha256",
    "process_key",
    *OPERATION_FIELDS,
)

_PLAIN_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)


def exact_number(decimal: Any) -> orjson.Fragment | None:
    """Convert a decimal to a JSON number with exactly the same digits, which a float cannot guarantee.

    Return None if the value is not a number."""
    if decimal is None:
        return None
    text = str(decimal)
    if not _PLAIN_DECIMAL.fullmatch(text):
        try:
            value = Decimal(text)
        except InvalidOperation:
            return None
        if not value.is_finite() or abs(value.adjusted()) > 40:
            return None
        text = format(value, "f")
    return orjson.Fragment(text.encode())
