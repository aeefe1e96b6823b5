"""This module generates examples of request and response bodies for the OpenAPI document from their schemas.

Each field has a realistic value, chosen by its name. A test validates all examples against their schemas.
"""
# Tested by tests/web/test_openapi.py

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REF = "#/components/schemas/"

#: Example values by the name of the field. A value is used only if the schema of the field accepts it.
_VALUES: Mapping[str, Any] = {
    "action": "sale",
    "application_id": 1,
    "attempt": 1,
    "body": 'Hello Kola, please visit us at #track("https://shop.example/a?b=1") for new information',
    "campaign": "autumn",
    "code": "8kVnq2LmRd",
    "conversion_id": "cnv_0AbCdEfGh12",
    "country": "US",
    "created_at": "2026-11-20T12:00:00Z",
    "currency": "USD",
    "delivery_id": "dlv_0AbCdEfGh12",
    "domain": "go.brand.example",
    "events": ["state", "click"],
    "day": "2026-11-20",
    "delivered_at": "2026-11-20T12:00:05Z",
    "fragments_count": 1,
    "from": "18775550100",
    "gateway_id": 2,
    "host": "shop.example",
    "key_id": 1,
    "link": "https://shop.example/a?b=1",
    "message_id": "uFAbXDeSXGMzgK5Qoxw5g2",
    "messageId": "uFAbXDeSXGMzgK5Qoxw5g2",
    "message_request_id": "9E0qhwPclVXnqMjbaYF4J5",
    "msgid": "uFAbXDeSXGMzgK5Qoxw5g2",
    "mt_price": "0.0095",
    "name": "warehouse",
    "number": "+14085550100",
    "postback_key": "pk_Q3v8xKjH2mN5pR7tY9wZ1aB4cD6eF0gL",
    "processKey": "A37D81C5D1B54F5BA3CE1D2E3C0B2F6A",
    "reason_code": "200",
    "reason_description": "SUCCESS",
    "recipient": "+14085550100",
    "segments": 1,
    "segments_without_rewriting": 1,
    "sender": "18775550100",
    "sent_at": "2026-11-20T12:00:01Z",
    "short_url": "https://go.brand.example/8kVnq2LmRd",
    "shortlink": "https://go.brand.example/8kVnq2LmRd",
    "since": "2026-10-22T00:00:00Z",
    "timestamp": "2026-11-20T12:00:00Z",
    "to": "+14085550100",
    "tracker_id": 1,
    "transaction_id": "order-1001",
    "update_id": "upd_0AbCdEfGh12",
    "tz": "Europe/Berlin",
    "until": "2026-11-20T12:00:00Z",
    "url": "https://shop.example/a?b=1",
    "value": "12.50",
}
#: Example values for fields of responses whose values differ from those in `_VALUES`.
_RESPONSE_VALUES: Mapping[str, Any] = {
    "body": "Hello Kola, please visit us at https://go.brand.example/8kVnq2LmRd for new information",
    "click_id": "0AbCdEfGh12x9Kq3vTz",
    "clicked_at": "2026-11-20T12:00:42Z",
    "concurrency": 16,
    "at": "2026-11-20T12:00:00Z",
    "enabled": True,
    "event": "click",
    "event_id": "evt_0AbCdEfGh121",
    "expires_at": "2027-02-18T12:00:00Z",
    "max_attempts": 10,
    "schedule": [5, 300, 1800],
    "secret_set": True,
    "sent_time": "2026-11-20 12:00:01",
    "source": "api",
    "state": "DELIVERED",
    "status": "DELIVERED",
    "statuses": "2xx",
    "timeout": 5,
    "updated_at": "2026-11-20T12:00:00Z",
}
_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def example_of(schema: Mapping[str, Any], schemas: Mapping[str, Any], *, response: bool, name: str = "") -> Any:
    """Return a value that is valid for `schema`. Optional fields are included only if an example value for them exists."""
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].removeprefix(_REF)], schemas, response=response, name=name)
    if examples := schema.get("examples"):
        return examples[0]
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    known = _known(name, response)
    for variants in (schema.get("anyOf"), schema.get("oneOf")):
        if variants:
            accepting = [kind for value in (known, None) for kind in variants if _accepts(kind, value)]
            return example_of((accepting or variants)[0], schemas, response=response, name=name)
    if known is not None and _accepts(schema, known):
        return known
    kind = schema.get("type")
    if kind == "object":
        required = schema.get("required", ())
        return {
            field: example_of(field_schema, schemas, response=response, name=field)
            for field, field_schema in schema.get("properties", {}).items()
            if field in required or field in _VALUES
        }
    if kind == "array":
        items = schema.get("items", {})
        needs_item = schema.get("minItems") or any("$ref" in kind for kind in (items, *items.get("anyOf", ())))
        return [example_of(items, schemas, response=response)] if needs_item else []
    plain = {"integer": schema.get("minimum", 0), "number": schema.get("minimum", 0), "boolean": False, "string": ""}
    return schema.get("default", plain.get(str(kind)))


def example_of_parameter(name: str, schema: Mapping[str, Any]) -> Any:
    """Return an example value for one parameter, or None if there is none."""
    known = _VALUES.get(name)
    variants = [schema, *schema.get("anyOf", ())]
    return known if any(_accepts(kind, known) for kind in variants) else None


def example_text(name: str, value: Any) -> Any:
    """If `value` is a text that begins with "test", as in the sample events, return the example value of the field instead.
    Return any other value unchanged."""
    if not isinstance(value, str) or not value.startswith("test"):
        return value
    return _RESPONSE_VALUES.get(name) or _VALUES.get(name) or value


def _known(name: str, response: bool) -> Any:
    return _RESPONSE_VALUES[name] if response and name in _RESPONSE_VALUES else _VALUES.get(name)


def _accepts(schema: Mapping[str, Any], value: Any) -> bool:
    # the schema has a list of objects, but the example is a list of texts
    if isinstance(value, list) and "$ref" in schema.get("items", {}):
        return False
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return any(isinstance(value, _KINDS[kind]) for kind in kinds)
