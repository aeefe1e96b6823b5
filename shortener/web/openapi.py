"""This module generates the OpenAPI 3.1 document from the declarations of the endpoints.

The models of an endpoint describe its parameters, its request body and its response. The field `errors` of an endpoint lists the
errors that its handler raises. `_implied` adds the errors that `endpoint.py` raises before the handler runs, for example for a
missing credential or an invalid body. Only the redirect of short links has a hand-written description (openapi_texts.py), because
it is not an `Endpoint`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from shortener import __version__
from shortener.errors import MAX_DETAILS, ApiError, Detail, ErrorCode
from shortener.web.callers import Caller
from shortener.web.endpoint import Endpoint
from shortener.web.examples import example_of, example_of_parameter
from shortener.web.field_texts import complete
from shortener.web.idempotency import HEADERS
from shortener.web.openapi_texts import (
    ABOUT,
    ERROR_HEADERS,
    EVENTS,
    HANDSET,
    PATH_PARAMETERS,
    REDIRECT,
    REF,
    SECURITY,
    SECURITY_SCHEMES,
    TAGS,
    TEXT,
)
from shortener.web.openapi_webhooks import webhooks
from shortener.web.operation_ids import operation_id

Document = dict[str, Any]


def document(endpoints: Sequence[Endpoint], server: str = "/") -> Document:
    """Return the OpenAPI document, which describes `endpoints`, the redirect of short links, and the webhooks. `server` is the
    URL that serves the API."""
    schemas = _Schemas(endpoints)
    paths: dict[str, Document] = {}
    for endpoint in endpoints:
        path, parameters = _path_of(endpoint)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, parameters, schemas)
    first, *others = dict.fromkeys(endpoint.tag for endpoint in endpoints)
    paths["/{code}"] = {"get": REDIRECT}
    hooks, hook_schemas = webhooks()
    complete(hook_schemas, of_events=True)
    schemas.all = dict(sorted({**schemas.all, **hook_schemas}.items()))
    described: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "SMS shortener",
            "version": __version__,
            "description": ABOUT.strip(),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server, "description": "This installation"}],
        "tags": [{"name": tag, "description": TAGS.get(tag, tag)} for tag in (first, HANDSET, *others, EVENTS)],
        "paths": paths,
        "webhooks": hooks,
        "components": {"securitySchemes": SECURITY_SCHEMES, "schemas": schemas.all},
    }
    described["components"]["schemas"] = _referenced_schemas(described)
    return described


class _SchemaWithoutTitles(GenerateJsonSchema):
    """A generator of JSON schemas without titles of fields, because a title only repeats the name of its field."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _Schemas:
    """The schemas of all models that the endpoints use."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        models = list(dict.fromkeys(_models_of(endpoints)))
        self._refs, generated = models_json_schema(models, ref_template=REF + "{model}", schema_generator=_SchemaWithoutTitles)
        self.all: Document = dict(sorted(({**generated.get("$defs", {}), **_error_schemas()}).items()))
        complete(self.all)

    def ref(self, model: type[BaseModel], mode: JsonSchemaMode) -> Document:
        return self._refs[model, mode]

    def of(self, model: type[BaseModel], mode: JsonSchemaMode) -> Document:
        schema: Document = self.all[self.ref(model, mode)["$ref"].removeprefix(REF)]
        return schema

    def content(self, model: type[BaseModel], mode: JsonSchemaMode) -> Document:
        schema = self.ref(model, mode)
        return {"schema": schema, "example": example_of(schema, self.all, response=mode == "serialization")}


def _models_of(endpoints: Sequence[Endpoint]) -> Iterator[tuple[type[BaseModel], JsonSchemaMode]]:
    for endpoint in endpoints:
        for model in (endpoint.query, endpoint.body):
            if model:
                yield model, "validation"
        for model in (endpoint.response, *endpoint.other_responses.values()):
            if model:
                yield model, "serialization"


def _error_schemas() -> Document:
    return {
        "ErrorCode": {
            "description": "Error code. Codes are stable, so that programs can test them.\n\n"
            + "\n".join(f"- `{code.name}` ({code.http_status}): {code.meaning}" for code in ErrorCode),
            "type": "string",
            "enum": [code.name for code in ErrorCode],
        },
        "Error": {
            "description": "The body of every error.",
            "type": "object",
            "properties": {
                "status": {"type": "boolean", "const": False},
                "error_code": {"$ref": REF + "ErrorCode"},
                "description": {"type": "string", "description": "Explanation for people. The text may change between versions."},
                "details": {"type": "array", "maxItems": MAX_DETAILS, "items": {"$ref": REF + "ErrorDetail"}},
                "details_total": {
                    "type": "integer",
                    "description": "Total number of invalid fields. Present only if `details` does not contain all of them.",
                },
            },
            "required": ["status", "error_code", "description", "details"],
        },
        "ErrorDetail": {
            "description": "One invalid field.",
            "type": "object",
            "properties": {
                "field": {"type": "string", "description": "Path of the field in the request, for example messages.3.to."},
                "reason": {"type": "string", "description": "Explanation for people. The text may change between versions."},
                "position": {
                    "type": ["integer", "null"],
                    "description": "Position in a text, counted in characters from 0, if the error has one.",
                },
                "index": {
                    "type": ["integer", "null"],
                    "description": "In rewrites: index of the message, from 0. null: the error concerns the request.",
                },
                "recipient": {
                    "type": ["integer", "null"],
                    "description": "In rewrites: index of the recipient in `to`, from 0. null: the error concerns the message.",
                },
                "error_code": {"$ref": REF + "ErrorCode", "description": "In rewrites: the error code of this detail."},
            },
            "required": ["field", "reason"],
        },
    }


def _path_of(endpoint: Endpoint) -> tuple[str, list[Document]]:
    """Return the path in OpenAPI's syntax, and its parameters."""
    parameters = []
    for name, kind in _PARAMETER.findall(endpoint.path):
        schema = {"type": "integer", "minimum": 0} if kind == "int" else {"type": "string", "minLength": 1}
        parameter = {"name": name, "in": "path", "required": True, "description": PATH_PARAMETERS.get(name, ""), "schema": schema}
        parameters.append(_with_example(parameter))
    return _PARAMETER.sub(r"{\1}", endpoint.path), parameters


_PARAMETER = re.compile(r"{(\w+)(?::(\w+))?}")


def _operation(endpoint: Endpoint, path: str, parameters: list[Document], schemas: _Schemas) -> Document:
    description = [endpoint.description] if endpoint.description else []
    if endpoint.permission:
        description.append(f"Requires the permission `{endpoint.permission}`.")
    headers = {**endpoint.headers, **(HEADERS if endpoint.stores_response else {})}
    parameters += [{"name": name, "in": "header", "description": text, "schema": TEXT} for name, text in headers.items()]
    if endpoint.query:
        parameters += _query_parameters(schemas.of(endpoint.query, "validation"))
    operation: Document = {
        "operationId": operation_id(endpoint.method, path),
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "security": SECURITY[endpoint.caller],
        "responses": _responses(endpoint, schemas, bool(_PARAMETER.search(endpoint.path))),
    }
    if description:
        operation["description"] = "\n\n".join(description)
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body:
        kinds = ["application/json", *(["application/x-www-form-urlencoded"] if endpoint.body_forms else [])]
        kinds += ["multipart/form-data"] if endpoint.reads_request else []
        content = schemas.content(endpoint.body, "validation")
        operation["requestBody"] = {"required": not endpoint.body_optional, "content": dict.fromkeys(kinds, content)}
    if endpoint.deprecated:
        operation["deprecated"] = True
    return operation


def _query_parameters(schema: Mapping[str, Any]) -> list[Document]:
    """Return one parameter for each field of a query model. If the model accepts unknown parameters, add one parameter
    `metadata`, which describes all of them."""
    required = schema.get("required", ())
    parameters = []
    for name, field in schema.get("properties", {}).items():
        field = _without_null(field)
        parameter = {"name": name, "in": "query", "required": name in required, "schema": field}
        if text := field.pop("description", None):
            parameter["description"] = text
        parameters.append(_with_example(parameter))
    if schema.get("additionalProperties"):
        more = {"type": "object", "additionalProperties": TEXT}
        parameters.append(
            {
                "name": "metadata",
                "in": "query",
                "description": "Any other parameter is stored as metadata.",
                "style": "form",
                "explode": True,
                "schema": more,
            }
        )
    return parameters


def _with_example(parameter: Document) -> Document:
    example = example_of_parameter(parameter["name"], parameter["schema"])
    return parameter if example is None else {**parameter, "example": example}


def _without_null(field: Mapping[str, Any]) -> Document:
    """Return the schema of a field without null, because a query cannot contain null."""
    field = dict(field)
    if field.get("default", 0) is None:
        del field["default"]
    if "anyOf" in field:
        kinds = [kind for kind in field.pop("anyOf") if kind != {"type": "null"}]
        field |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return field


def _responses(endpoint: Endpoint, schemas: _Schemas, has_path_parameters: bool) -> Document:
    responses: dict[int, Document] = {endpoint.status: _response(endpoint, endpoint.response, schemas)}
    for status, model in endpoint.other_responses.items():
        responses[status] = _response(endpoint, model, schemas)
    by_status: dict[int, list[ErrorCode]] = {}
    raised = {*endpoint.errors, *_implied(endpoint, has_path_parameters)}
    returned = _translated(endpoint, raised)
    for code in ErrorCode:
        if code in returned:
            by_status.setdefault(code.http_status, []).append(code)
    for status, codes in by_status.items():
        responses[status] = _error(status, codes)
    return {str(status): responses[status] for status in sorted(responses)}


def _translated(endpoint: Endpoint, codes: Iterable[ErrorCode]) -> Collection[ErrorCode]:
    """Return the error codes that callers of an endpoint receive if the endpoint raises `codes`. These are `codes`, or the codes
    that `translate_error` of the endpoint returns for them."""
    translate = endpoint.translate_error
    if translate is None:
        return set(codes)
    errors = (ApiError(code, details=details) for code in codes for details in ([], [Detail("another_field", "is wrong")]))
    return {translate(error).code for error in errors}


def _implied(endpoint: Endpoint, has_path_parameters: bool) -> Iterator[ErrorCode]:
    """Yield the error codes that endpoint.py can raise for an endpoint, depending on its credential, its query and its body."""
    if endpoint.caller is not Caller.ANYONE:
        yield from (ErrorCode.UNAUTHORIZED, ErrorCode.RATE_LIMITED, ErrorCode.INTERNAL_ERROR)
        yield from (ErrorCode.UNAVAILABLE, ErrorCode.OUTCOME_UNKNOWN)
    if endpoint.permission:
        yield ErrorCode.FORBIDDEN
    if has_path_parameters:
        yield ErrorCode.NOT_FOUND
    if endpoint.query or endpoint.body or endpoint.headers or endpoint.stores_response:
        yield ErrorCode.INVALID_REQUEST
    if endpoint.stores_response:
        yield from (ErrorCode.IDEMPOTENCY_CONFLICT, ErrorCode.REQUEST_IN_PROGRESS)
    if endpoint.body:
        yield from (ErrorCode.INVALID_JSON, ErrorCode.BODY_TOO_LARGE, ErrorCode.UNSUPPORTED_MEDIA_TYPE)


def _response(endpoint: Endpoint, model: type[BaseModel] | None, schemas: _Schemas) -> Document:
    if model:
        text = schemas.of(model, "serialization").get("description") or HTTPStatus(endpoint.status).phrase
        return {"description": text, "content": {"application/json": schemas.content(model, "serialization")}}
    if endpoint.status == HTTPStatus.NO_CONTENT:
        return {"description": "Done. The response has no body."}
    schema: Document = {} if endpoint.media_type == "application/json" else TEXT
    return {"description": HTTPStatus(endpoint.status).phrase, "content": {endpoint.media_type: {"schema": schema}}}


def _error(status: int, codes: Sequence[ErrorCode]) -> Document:
    response: Document = {
        "description": "\n".join(f"- `{code.name}`: {code.meaning}" for code in codes),
        "content": {"application/json": {"schema": {"$ref": REF + "Error"}}},
        # All errors have the same schema, because generators of clients need this. Therefore the codes that a response can have
        # are not in its schema, but in `x-error-codes`.
        "x-error-codes": [code.name for code in codes],
    }
    if status in ERROR_HEADERS:
        response["headers"] = ERROR_HEADERS[status]
    return response


def _referenced_schemas(described: Document) -> Document:
    """Return the schemas to which paths and webhooks refer. Query models have no schema, because their fields are parameters."""
    schemas: Document = described["components"]["schemas"]
    found: set[str] = set()
    todo: list[Any] = [described["paths"], described["webhooks"]]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            name = part.get("$ref")
            if isinstance(name, str) and (name := name.removeprefix(REF)) not in found:
                found.add(name)
                todo.append(schemas[name])
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)
    return {name: schema for name, schema in schemas.items() if name in found}
