"""Tests of the webhooks in the OpenAPI document: they describe the requests that trackers receive."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import orjson
import pytest

from shortener.delivery.formats import FORMATS, render
from shortener.delivery.sample_facts import sample_facts
from shortener.model import EVENT_NAMES
from shortener.outbox import operations
from tests.conftest import NOON
from tests.one_test import in_one_test
from tests.web.openapi_document import openapi_document, validator_of

EVENTS = sorted(({*EVENT_NAMES} - {"operations"}) | {*operations.NAMES})


def test_the_openapi_document_contains_a_webhook_for_every_event() -> None:
    assert sorted(openapi_document()["webhooks"]) == EVENTS


def body_of(event: str) -> dict[str, Any]:
    content: dict[str, Any] = openapi_document()["webhooks"][event]["post"]["requestBody"]["content"]["application/json"]
    return content


def schema_of(format: str) -> jsonschema_rs.Draft202012Validator:
    reference = {"$ref": f"#/components/schemas/{format.capitalize()}Event"}
    return validator_of(reference, validate_formats=True)


@in_one_test
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("event", EVENTS)
def test_every_example_of_an_event_is_valid_for_the_schema_of_its_format(event: str, format: str) -> None:
    example = body_of(event)["examples"][format]["value"]
    assert [error.message for error in schema_of(format).iter_errors(example)] == []
    assert {"$ref": f"#/components/schemas/{format.capitalize()}Event"} in body_of(event)["schema"]["anyOf"]


@in_one_test
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("event", EVENT_NAMES)
def test_the_bodies_of_test_deliveries_are_valid_for_the_documented_schemas(event: str, format: str) -> None:
    facts = sample_facts(1, NOON, event) | {"event_id": "evt_1", "topic": event}
    body, _ = render(format, facts, attempt=3)
    assert [error.message for error in schema_of(format).iter_errors(orjson.loads(body))] == []


def test_the_signature_headers_of_webhooks_are_documented() -> None:
    for event in EVENTS:
        names = {parameter["name"] for parameter in openapi_document()["webhooks"][event]["post"]["parameters"]}
        assert names == {
            "webhook-id",
            "webhook-timestamp",
            "webhook-signature",
            "X-Webhook-Timestamp",
            "X-Webhook-Signature",
        }
