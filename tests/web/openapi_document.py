"""The OpenAPI document of all endpoints, which several test modules read. Its creation takes half a second, so it is created when a
test needs it, and not while pytest collects the tests."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import jsonschema_rs

_NAME = "urn:openapi"


@functools.cache
def openapi_document() -> dict[str, Any]:
    from shortener.web.endpoints import ENDPOINTS
    from shortener.web.openapi import document

    return document(ENDPOINTS)


@functools.cache
def _registry() -> jsonschema_rs.Registry:
    return jsonschema_rs.Registry([(_NAME, openapi_document())])


def validator_of(schema: Mapping[str, Any], *, validate_formats: bool = False) -> jsonschema_rs.Draft202012Validator:
    """Return the validator of a schema of the document. References in the schema lead to the document, which is prepared only
    once."""
    with_names = json.loads(json.dumps(schema).replace('"$ref": "#/', f'"$ref": "{_NAME}#/'))
    return jsonschema_rs.Draft202012Validator(with_names, validate_formats=validate_formats, registry=_registry())
