"""This module builds the request bodies that trackers receive, in the formats of the systems that customers migrate from.

`render` builds a body from the facts of an event. The facts are a JSON snapshot that the fan-out creates. `FACTS` lists their
names; any of them may be absent. Times are ISO 8601 in UTC with milliseconds, and amounts of money are decimal numbers as text.
The service builds the body of each attempt separately, because the format of Syniverse contains the attempt number.

- `scg`: the envelope of Syniverse. `fld-val-list` contains the fields of Syniverse in its order, then additional fields, then
  `metadata` if it is not empty.
- `json`: one flat object with the `fields` of the tracker (23 Telecom's `conversion_fields`). The default is `DEFAULT_FIELDS`.
- `xoxzo`: the JSON that Xoxzo's status call returns, with `link_tracking`, because Xoxzo does not document the body of its
  callback.
- `infobip`: the click notification of Infobip. Other events have the same structure and a different `notificationType`.

Every click event contains whether it was the first click, the seconds since the message was sent, and the verdict of the click
(human or suspected). In the formats `xoxzo` and `infobip`, the additional object `click` contains these fields.

An unknown value is null. In the format `scg`, an unknown text is an empty string, as in the sample of Syniverse. Prices are JSON
numbers with exactly the digits that the messaging system reported. The value of a conversion is the text that was received.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from shortener.delivery.placeholders import displayed_sender, kind_of_event, status_word
from shortener.outbox import operations
from shortener.times import parse_iso, to_utc

Facts = Mapping[str, Any]

CONTENT_TYPE = "application/json"

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

#: The field names of 23 Telecom that differ from the names of facts. For each field name, a function computes the value from the
#: facts.
_TELECOM: dict[str, Callable[[Facts], Any]] = {
    "phone": lambda facts: facts.get("to_address"),
    "recipient": lambda facts: facts.get("to_address"),
    "sender_id": lambda facts: displayed_sender(facts) or None,
    "cost": lambda facts: _number(facts.get("mt_price")),
    "status": lambda facts: status_word(facts) or None,
    "status_code": lambda facts: facts.get("reason_code"),
    "num_parts": lambda facts: facts.get("fragments_count"),
    "event": lambda facts: facts.get("topic"),
    "mt_price": lambda facts: _number(facts.get("mt_price")),
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

_PLAIN_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


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
        "mt_price": _number(get("mt_price")),
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


def _xoxzo(facts: Facts, attempt: int, fields: Sequence[str] | None) -> dict[str, Any]:
    get = facts.get
    state = get("new_state")
    kind = kind_of_event(facts)
    clicked = get("clicked_at") or (get("timestamp") if kind in ("click", "late_click") else None)
    body: dict[str, Any] = {
        # Xoxzo has no status for an opened link. The field `accessed` contains that information.
        "status": "DELIVERED" if state in ("READ", "CLICKTHRU") else state,
        "sender": get("sender_id_alias") or get("from_address") or get("sender_id_id") or "",
        "sent_time": _seconds_text(get("sent_at")),
        "cost": _number(get("mt_price")),
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
    if kind in operations.NAMES:
        body["operation"] = {name: get(name) for name in OPERATION_FIELDS}
    return body


def _infobip(facts: Facts, attempt: int, fields: Sequence[str] | None) -> dict[str, Any]:
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
        body["conversion"] = {
            "conversionId": get("conversion_id"),
            "action": get("action"),
            "status": get("conversion_status"),
            "disposition": get("disposition"),
            "value": get("value"),
            "currency": get("currency"),
            "transactionId": get("transaction_id"),
            "revision": get("revision"),
            "previousStatus": get("previous_status"),
            "previousValue": get("previous_value"),
        }
    elif kind in ("state", "delivery"):
        body["status"] = {
            "name": get("new_state"),
            "description": get("reason_description"),
            "reportStatus": get("report_status"),
            "reasonCode": get("reason_code"),
        }
        body["smsCount"] = get("fragments_count")
        body["price"] = {"pricePerMessage": _number(get("mt_price"))}
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
    """Return `callbackData` for the format `infobip`: the text of the metadata `callbackData`, or all metadata as JSON text.

    The text is used if `callbackData` is the only metadata. Return None if there is no metadata."""
    if not metadata:
        return None
    if isinstance(metadata, Mapping) and metadata.keys() == {"callbackData"}:
        return str(metadata["callbackData"])
    return orjson.dumps(metadata).decode()


_RENDERERS: dict[str, Callable[[Facts, int, Sequence[str] | None], dict[str, Any]]] = {
    "scg": _scg,
    "json": _json,
    "xoxzo": _xoxzo,
    "infobip": _infobip,
}
FORMATS = tuple(_RENDERERS)


def _number(decimal: Any) -> orjson.Fragment | None:
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
