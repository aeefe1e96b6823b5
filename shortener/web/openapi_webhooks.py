"""The `webhooks` of the OpenAPI document: the requests that the service sends to trackers, one for each event.

`delivery/formats.py` renders sample events in the same way as real events, and this module derives the schemas and the examples
from the results. Therefore the schemas contain exactly the fields that trackers receive. If a field is absent or null in one of
the sample events, the schema permits null.
"""
# Tested by tests/web/test_openapi_webhooks.py

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from shortener.delivery.formats import FORMATS, render
from shortener.delivery.sample_facts import sample_facts
from shortener.model import EVENT_NAMES
from shortener.outbox import operations
from shortener.web.examples import example_text
from shortener.web.openapi_texts import EVENTS, REF, TEXT

Json = dict[str, Any]

_AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
_NAMES = {"scg": "Syniverse", "json": "23 Telecom", "xoxzo": "Xoxzo", "infobip": "Infobip"}
_EVENTS: Mapping[str, str] = {
    "state": "The state of a message changed. The first click changes it to CLICKTHRU, exactly once.",
    "click": "A person followed a link: the first click of each link, and every click on a `#trackurl` link. With the "
    "setting `click_events: every`, every click on any link.",
    "late_click": "Somebody followed an expired link.",
    "conversion": "A conversion was reported, or changed by a later report (`revision`).",
    "delivery": "A delivery report was received.",
    "click_retracted": "The service has found out later that a click was a hit by a program. The click does not count any more.",
    operations.TRACKER_DISABLED: "A tracker was disabled, because it responded with 410.",
    operations.DELIVERY_DEAD: "Deliveries to a tracker are dead: their last attempt failed. They can be replayed.",
    operations.KEY_EXPIRING: "A key or token expires soon.",
}
_HEADERS: Mapping[str, str] = {
    "webhook-id": "Id of the event, the same in all attempts. Use it to recognise repeated deliveries.",
    "webhook-timestamp": "Time of the attempt in seconds since 1970.",
    "webhook-signature": (
        "Signature of Standard Webhooks: `v1,` and base64. During a rotation there are several signatures, separated by spaces."
    ),
    "X-Webhook-Timestamp": "Time of the attempt in seconds since 1970 (23 Telecom).",
    "X-Webhook-Signature": (
        "Signature of 23 Telecom: `sha256=` and hex. During a rotation there are several signatures, separated by commas."
    ),
}
_RESPONSES: Mapping[str, str] = {
    "200": "The tracker has received the event. The field `success` of the tracker defines which statuses mean success "
    "(default: 2xx).",
    "410": "The tracker is disabled, and receives no further events.",
    "429": "The event is sent again, but not before the time in `Retry-After`. The service also sends fewer requests per "
    "second to this tracker.",
    "503": "The event is sent again, but not before the time in `Retry-After`.",
}


def webhooks() -> tuple[Json, Json]:
    """Return the webhooks by the name of the event, and the schemas that they refer to."""
    bodies = {format: {event: _body(format, event) for event in _EVENTS} for format in FORMATS}
    schemas: Json = {}
    roots = {
        format: _add_schema(f"{format.capitalize()}Event", list(examples.values()), schemas) for format, examples in bodies.items()
    }
    described: Json = {}
    for event, text in _EVENTS.items():
        content = {
            "schema": {"anyOf": list(roots.values())},
            "examples": {
                format: {"summary": f"Format {format} ({_NAMES[format]})", "value": bodies[format][event]} for format in FORMATS
            },
        }
        operation = {
            "operationId": f"on_{event}",
            "summary": f"Event {event}",
            "description": f"{text}\n\nThe body has the format of the tracker. A tracker with the method GET receives no body.",
            "tags": [EVENTS],
            "security": [],
            "parameters": [{"name": name, "in": "header", "description": text, "schema": TEXT} for name, text in _HEADERS.items()],
            "requestBody": {"required": True, "content": {"application/json": content}},
            "responses": {status: {"description": text} for status, text in _RESPONSES.items()},
        }
        described[event] = {"post": operation}
    return described, schemas


def _body(format: str, event: str) -> Json:
    """Return the body of a sample event."""
    topic = event if event in EVENT_NAMES else "operations"
    facts = sample_facts(1, _AT, topic)
    facts |= {"topic": event, "sample_of": event, "event_id": "evt_0AbCdEfGh121"}
    facts = {name: example_text(name, value) for name, value in facts.items()}
    body, _ = render(format, facts, attempt=1)
    parsed: Json = orjson.loads(body)
    return parsed


def _add_schema(name: str, examples: list[Json], schemas: Json) -> Json:
    """Derive the schema of an object from examples of this object. Add the schema to `schemas`, and return a reference to it."""
    properties: Json = {}
    for field in dict.fromkeys(field for example in examples for field in example):
        values = [example.get(field) for example in examples]
        present = [value for value in values if value is not None]
        properties[field] = _schema_of(f"{name}{_camel(field)}", field, present, schemas)
        if len(present) < len(values):
            properties[field] = {"anyOf": [properties[field], {"type": "null"}]} if properties[field] else {}
    required = [field for field in properties if all(field in example for example in examples)]
    schemas[name] = {"type": "object", "properties": properties, "required": required, "additionalProperties": True}
    return {"$ref": REF + name}


def _schema_of(name: str, field: str, values: list[Any], schemas: Json) -> Json:
    if not values:
        return {}
    if isinstance(values[0], dict):
        if "metadata" in field:
            return {"type": "object", "additionalProperties": True}
        return _add_schema(name, values, schemas)
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    kind = {kinds[type(value)] for value in values}
    return {"type": "number" if kind == {"integer", "number"} else kind.pop()}


def _camel(field: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in field.replace("-", "_").split("_"))
