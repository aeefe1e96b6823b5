"""This module builds the request bodies of the formats `xoxzo` and `infobip`, which `formats.py` describes."""
# Tested by tests/delivery/test_formats.py

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from shortener.delivery.event_fields import OPERATION_FIELDS, Facts, exact_number
from shortener.delivery.placeholders import kind_of_event
from shortener.outbox import operations
from shortener.times import parse_iso, to_utc

#: The fields of the object `click` in the formats `xoxzo` and `infobip`, in this order.
_CLICK_OBJECT = (
    "click_id",
    "label",
    "first_for_message",
    "first_for_link",
    "click_number",
    "seconds_since_sent",
    "seconds_since_delivered",
    "verdict",
    "verdict_reason",
)
#: The fields of the object `conversion` in the formats `xoxzo` and `infobip`, in this order, with the names of their facts.
_CONVERSION_OBJECT = {
    "conversion_id": "conversion_id",
    "action": "action",
    "status": "conversion_status",
    "disposition": "disposition",
    "value": "value",
    "currency": "currency",
    "transaction_id": "transaction_id",
    "revision": "revision",
    "previous_status": "previous_status",
    "previous_value": "previous_value",
}
_CLICK_TOPICS = frozenset({"click", "late_click", "click_retracted"})

_INFOBIP_TYPES = {
    "state": "STATE_CHANGED",
    "click": "CLICKED",
    "late_click": "LATE_CLICKED",
    "conversion": "CONVERTED",
    "delivery": "DELIVERY_REPORT",
    "click_retracted": "CLICK_RETRACTED",
    "test": "TEST",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def xoxzo(facts: Facts, attempt: int, fields: Sequence[str] | None) -> dict[str, Any]:
    get = facts.get
    state = get("new_state")
    kind = kind_of_event(facts)
    clicked = get("clicked_at") or (get("timestamp") if kind in ("click", "late_click") else None)
    body: dict[str, Any] = {
        # Xoxzo has no status for an opened link. The field `accessed` contains that information.
        "status": "DELIVERED" if state in ("READ", "CLICKTHRU") else state,
        # As in Xoxzo's status call, `sender` is the sender in the rewrite request. If the message was not reported as sent,
        # `sent_time` is the time of the rewrite.
        "sender": get("from_address") or get("sender_id_alias") or get("sender_id_id") or "",
        "sent_time": _seconds_text(get("sent_at") or get("created_at")),
        "cost": exact_number(get("mt_price")),
        "msgid": get("message_id"),
        "recipient": get("to_address"),
        "link_tracking": {
            "link": get("url"),
            "shortlink": get("short_url"),
            "accessed": clicked is not None,
            "accessed_on": _seconds_text(clicked),
        },
        "event": get("topic"),
        "event_id": get("event_id"),
    }
    for name in ("external_message_request_id", "metadata"):
        if value := get(name):
            body[name] = value
    if kind in _CLICK_TOPICS:
        body["click"] = {name: get(name) for name in _CLICK_OBJECT}
    if kind == "conversion":
        body["conversion"] = {name: get(fact) for name, fact in _CONVERSION_OBJECT.items()}
    if kind in operations.NAMES:
        body["operation"] = {name: get(name) for name in OPERATION_FIELDS}
    return body


def infobip(facts: Facts, attempt: int, fields: Sequence[str] | None) -> dict[str, Any]:
    get = facts.get
    topic = get("topic") or "state"
    application, entity = get("application_id"), get("company_id")
    body: dict[str, Any] = {
        "notificationType": _INFOBIP_TYPES.get(topic, topic),
        # Infobip writes phone numbers without the plus sign.
        "recipient": (get("to_address") or "").removeprefix("+"),
        "url": get("url"),
        # In spite of its name, `sendDateTime` contains the time of the click.
        "sendDateTime": _epoch_ms(get("timestamp")),
        "messageId": get("message_id"),
        "bulkId": get("message_request_id"),
        "callbackData": _callback_data(get("metadata")),
        "recipientInfo": {"deviceType": None, "os": None, "deviceName": None},
        "geoLocationInfo": {"countryName": None, "city": None},
        "applicationId": None if application is None else str(application),
        "entityId": None if entity is None else str(entity),
    }
    kind = kind_of_event(facts) or topic
    if kind in _CLICK_TOPICS:
        body["click"] = {_camel(name): get(name) for name in _CLICK_OBJECT}
    elif kind == "conversion":
        body["processKey"] = get("process_key")
        body["conversion"] = {_camel(name): get(fact) for name, fact in _CONVERSION_OBJECT.items()}
    elif kind in ("state", "delivery"):
        body["status"] = {
            "name": get("new_state"),
            "description": get("reason_description"),
            "reportStatus": get("report_status"),
            "reasonCode": get("reason_code"),
        }
        body["smsCount"] = get("fragments_count")
        body["price"] = {"pricePerMessage": exact_number(get("mt_price"))}
        body["sentAt"] = get("sent_at")
        body["doneAt"] = get("delivered_at")
    body["eventId"] = get("event_id")
    if kind in operations.NAMES:
        body["operation"] = {_camel(name): get(name) for name in OPERATION_FIELDS}
    if external := get("external_message_request_id"):
        body["externalMessageRequestId"] = external
    return body


def _camel(name: str) -> str:
    """Convert a name with underscores to camel case, which Infobip uses."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _callback_data(metadata: Any) -> str | None:
    """Return `callbackData` for the format `infobip`. If the metadata contains only `callbackData`, return its text. Otherwise
    return all metadata as JSON text. Return None if there is no metadata."""
    if not metadata:
        return None
    if isinstance(metadata, Mapping) and metadata.keys() == {"callbackData"}:
        return str(metadata["callbackData"])
    return orjson.dumps(metadata).decode()


def _parse_time(text: Any) -> datetime | None:
    try:
        return to_utc(parse_iso(text))
    except (AttributeError, OverflowError, ValueError):
        return None


def _seconds_text(text: Any) -> str | None:
    """Convert an ISO 8601 time to the notation of Xoxzo: YYYY-MM-DD HH:MM:SS in UTC. Return None if it is not a time."""
    moment = _parse_time(text)
    return moment.strftime("%Y-%m-%d %H:%M:%S") if moment else None


def _epoch_ms(text: Any) -> int | None:
    moment = _parse_time(text)
    return None if moment is None else (moment - _EPOCH) // _MILLISECOND
