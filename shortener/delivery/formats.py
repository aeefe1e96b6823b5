"""This module builds the request bodies that trackers receive, in the formats of the systems that customers migrate from.

`render` builds a body from the facts of an event (event_fields.py), any of which may be absent. The service builds the body of each
attempt separately, because the format of Syniverse contains the attempt number.

- `scg`: the envelope of Syniverse. `fld-val-list` contains the fields of Syniverse in the order of Syniverse, then additional
  fields, then `metadata` if it is not empty.
- `json`: one flat object with the `fields` of the tracker (23 Telecom's `conversion_fields`). The default is `DEFAULT_FIELDS`.
- `xoxzo`: the JSON that Xoxzo's status call returns, with `link_tracking`, because Xoxzo does not document the body of its
  callback.
- `infobip`: the click notification of Infobip. Other events have the same structure and a different `notificationType`.

Every click event contains the verdict of the hit (human or suspected), whether the hit was the first click, and how many seconds
had passed since the message was sent. In the formats `xoxzo` and `infobip`, the additional object `click` contains these fields,
and the object `conversion` contains the conversion of a conversion event.

An unknown value is null. In the format `scg`, an unknown text is an empty string, as in the sample of Syniverse. Prices are JSON
numbers with exactly the digits that the messaging system reported. The value of a conversion is the text that was received.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from shortener.delivery.event_fields import FACTS, OPERATION_FIELDS, Facts, exact_number
from shortener.delivery.placeholders import displayed_sender, kind_of_event, status_word
from shortener.delivery.vendor_formats import infobip, xoxzo
from shortener.outbox import operations

CONTENT_TYPE = "application/json"

#: The field names of 23 Telecom that differ from the names of facts. For each field name, a function computes the value from the
#: facts.
_TELECOM: dict[str, Callable[[Facts], Any]] = {
    "phone": lambda facts: facts.get("to_address"),
    "recipient": lambda facts: facts.get("to_address"),
    "sender_id": lambda facts: displayed_sender(facts) or None,
    "cost": lambda facts: exact_number(facts.get("mt_price")),
    "status": lambda facts: status_word(facts) or None,
    "status_code": lambda facts: facts.get("reason_code"),
    "num_parts": lambda facts: facts.get("fragments_count"),
    "event": lambda facts: facts.get("topic"),
    "mt_price": lambda facts: exact_number(facts.get("mt_price")),
}

#: All fields that a body in the format `json` can contain. `attempt` is the attempt number, from 1.
FIELDS = (*FACTS, *(name for name in _TELECOM if name not in FACTS), "attempt")

#: The fields of a `json` body if the tracker has no `fields`: the event and ids, the fields of 23 Telecom, then the fields of
#: clicks and conversions.
DEFAULT_FIELDS = (
    "event_id",
    "event",
    "attempt",
    "timestamp",
    "previous_state",
    "new_state",
    "message_id",
    "message_request_id",
    "external_message_request_id",
    "phone",
    "recipient",
    "sender_id",
    "cost",
    "status",
    "status_code",
    "num_parts",
    "telecom_message_id",
    "campaign",
    "click_id",
    "short_url",
    "url",
    "label",
    "first_for_message",
    "first_for_link",
    "click_number",
    "seconds_since_sent",
    "seconds_since_delivered",
    "verdict",
    "verdict_reason",
    "conversion_id",
    "action",
    "disposition",
    "value",
    "currency",
    "transaction_id",
    "revision",
    "previous_status",
    "previous_value",
    "metadata",
)

#: The value of `evt-tp` in a body of the format `scg`, for each topic. Only the first value is documented by Syniverse.
_EVENT_TYPES = {
    "state": "message_state_change",
    "click": "link_click",
    "late_click": "late_click",
    "conversion": "conversion",
    "delivery": "delivery_report",
    "click_retracted": "click_retracted",
    "test": "test",
}

_LINK = ("click_id", "short_url", "url", "label", "seconds_since_delivered")
_CLICK = (
    *_LINK,
    "seconds_since_sent",
    "code",
    "clicked_at",
    "click_number",
    "first_for_message",
    "first_for_link",
    "verdict",
    "verdict_reason",
    "user_agent",
    "campaign",
    "source",
    "country",
    "click_country",
)
#: The additional fields of a body in the format `scg`, by topic. They follow the fields of Syniverse. A state change that a click
#: caused also has the fields of `_LINK`.
_ADDITIONS: dict[str, tuple[str, ...]] = {
    "click": _CLICK,
    "late_click": _CLICK,
    "click_retracted": _CLICK,
    "conversion": (
        "conversion_id",
        "click_id",
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
        "campaign",
        "source",
        "country",
    ),
    **dict.fromkeys(operations.NAMES, OPERATION_FIELDS),
    "delivery": ("report_status", "telecom_message_id", "sent_at", "delivered_at", "campaign", "source", "country"),
}


def check_fields(fields: Sequence[str]) -> list[str]:
    """Return the field names that the format `json` does not support, in the given order."""
    return [name for name in fields if name not in FIELDS]


def render(format: str, facts: Facts, *, attempt: int, fields: Sequence[str] | None = None) -> tuple[bytes, str]:
    """Build the request body of an event for attempt number `attempt` (from 1). Return the body and its content type.

    Only the format `json` uses `fields`. Raise KeyError if the format is unknown. The service checks the format and the fields when
    a tracker is saved.
    """
    return orjson.dumps(_RENDERERS[format](facts, attempt, fields)), CONTENT_TYPE


def _scg(facts: Facts, attempt: int, fields: Sequence[str] | None) -> dict[str, Any]:
    get = facts.get
    topic = get("topic") or "state"
    failed = get("new_state") in ("FAILED", "EXPIRED")
    values: dict[str, Any] = {
        "previous_state": get("previous_state") or "",
        "new_state": get("new_state") or "",
        "message_request_id": get("message_request_id") or "",
        "message_id": get("message_id") or "",
        "external_message_request_id": get("external_message_request_id") or "",
        "to_address": get("to_address") or "",
        "from_address": get("from_address") or "",
        "has_attachment": bool(get("has_attachment")),
        "reason_code": str(get("reason_code") or ("" if failed else "200")),
        "reason_description": get("reason_description") or ("" if failed else "SUCCESS"),
        "application_id": get("application_id"),
        "company-id": get("company_id"),
        "sender_id_id": get("sender_id_id") or "",
        "sender_id_alias": get("sender_id_alias") or "",
        "fragments_count": get("fragments_count"),
        "mt_price": exact_number(get("mt_price")),
    }
    kind = kind_of_event(facts) or topic
    additions = _LINK if kind == "state" and get("click_id") else _ADDITIONS.get(kind, ())
    for name in additions:
        values[name] = get(name)
    if metadata := get("metadata"):
        values["metadata"] = metadata
    return {
        "topic": "SCG-Message",
        "attempt": attempt,
        "event_id": get("event_id"),
        "event": {"evt-tp": _EVENT_TYPES.get(topic, topic), "timestamp": get("timestamp"), "fld-val-list": values},
    }


def _json(facts: Facts, attempt: int, fields: Sequence[str] | None) -> dict[str, Any]:
    names = fields
    if names is None:
        is_operation = kind_of_event(facts) in operations.NAMES
        names = ("event_id", "event", "attempt", "timestamp", *OPERATION_FIELDS) if is_operation else DEFAULT_FIELDS
    values: dict[str, Any] = {**facts, "attempt": attempt}
    return {name: _TELECOM[name](facts) if name in _TELECOM else values.get(name) for name in names}


_RENDERERS: dict[str, Callable[[Facts, int, Sequence[str] | None], dict[str, Any]]] = {
    "scg": _scg,
    "json": _json,
    "xoxzo": xoxzo,
    "infobip": infobip,
}
FORMATS = tuple(_RENDERERS)
