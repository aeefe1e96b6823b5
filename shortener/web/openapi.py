"""The OpenAPI 3.1 document, made from the endpoints as they run, and the page that shows it.

Bodies, answers and parameters come from the models that validate, statuses from what an endpoint declares and from what its caller,
query and body imply; only the redirect, which no endpoint answers, is described by hand. The document is made once, when it is
first asked for, and served as the same bytes from then on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from starlette.responses import Response

from shortener import __version__
from shortener.errors import ErrorCode
from shortener.web.docs import CONTENT_SECURITY_POLICY, page
from shortener.web.endpoint import Call, Caller, Endpoint
from shortener.web.examples import example_of, example_of_parameter

Document = dict[str, Any]

_REF = "#/components/schemas/"

_ABOUT = """
A self-hosted link shortener and click tracker for SMS. A send pipeline hands over texts and gets them back with short links of
their own for each recipient; the first click of a message moves it to CLICKTHRU and is told to your trackers; trackers report
conversions.

Credentials go into a header. The send pipeline and everything that reads uses an API key, in any of four spellings; what reports
conversions uses a tracker token. A missing or wrong one is answered with 401 before anything else happens, one that lacks the
permission with 403. Rows of another application do not exist for you: 404.

Every error has the same body, and its `error_code` is stable: match on it, not on the text. 503 means that nothing was kept and
the request may be repeated after `Retry-After` seconds.
"""

_SECURITY_SCHEMES = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "`X-API-Key: KEY`"},
    "Bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY` (Syniverse)"},
    "App": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "`Authorization: App KEY` (Infobip)"},
    "Basic": {
        "type": "http",
        "scheme": "basic",
        "description": "`Authorization: Basic`, the application's number as the user, the API key as the password (Infobip)",
    },
    "TrackerToken": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Api-Token",
        "description": "`X-Api-Token: TOKEN`, the current one or the previous one until its time is over (23 Telecom)",
    },
}
_SECURITY: dict[Caller, list[dict[str, list[str]]]] = {
    Caller.ANYONE: [],
    Caller.API_KEY: [{"ApiKey": []}, {"Bearer": []}, {"App": []}, {"Basic": []}],
    Caller.TRACKER: [{"TrackerToken": []}],
}

#: What the names in paths stand for.
_IN_PATH = {
    "message_id": "The message's id, as the rewrite answered it.",
    "messageId": "The message's id, as the rewrite answered it.",
    "msgid": "The message's id, as the rewrite answered it.",
    "tracker_id": "The tracker's id.",
    "delivery_id": "The delivery's id.",
    "processKey": "The key of a conversion process, as the end of a process answered it.",
    "code": "The code of a short link.",
    "host": "A host as it was blocked, for example shop.example or *.shop.example.",
}

_RETRY_AFTER = {"Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}}
_HEADERS = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}

_TEXT = {"type": "string"}
_HTML = {"text/html": {"schema": _TEXT}}

_HANDSET = "Handset"
#: The redirect is answered before routing; see clicks/redirect.py.
_REDIRECT: Document = {
    "operationId": "get_code",
    "summary": "Follow a short link",
    "description": "What a handset calls. Every hit is kept; the first by a person is the click that moves the message to "
    "CLICKTHRU, all are redirected. Punctuation that a phone took along behind the code is forgiven. HEAD is answered alike "
    "and is never a click.",
    "tags": [_HANDSET],
    "security": [],
    "parameters": [
        {
            "name": "code",
            "in": "path",
            "required": True,
            "description": _IN_PATH["code"],
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9]{4,32}$"},
            "example": "8kVnq2LmRd",
        }
    ],
    "responses": {
        "302": {
            "description": "To the destination, or to the fallback URL of a link that expired.",
            "headers": {
                "Location": {"required": True, "schema": {"type": "string", "format": "uri"}},
                "Cache-Control": {"schema": {"const": "private, no-store"}},
                "Referrer-Policy": {"schema": _TEXT},
                "X-Robots-Tag": {"schema": {"const": "noindex"}},
            },
        },
        "404": {
            "description": "No link has this code: a short page for people. (A path that no code can be: an error.)",
            "content": {**_HTML, "application/json": {"schema": {"$ref": _REF + "Error"}}},
        },
        "410": {"description": "The link expired or was switched off: a short page for people.", "content": _HTML},
        "503": {
            "description": "Neither the store nor the cache answers: a page for people.",
            "headers": _RETRY_AFTER,
            "content": _HTML,
        },
    },
}


def document(endpoints: Sequence[Endpoint]) -> Document:
    """The OpenAPI document of these endpoints and the redirect."""
    schemas = _Schemas(endpoints)
    paths: dict[str, Document] = {}
    for endpoint in endpoints:
        path, parameters = _path_of(endpoint)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, parameters, schemas)
    first, *others = dict.fromkeys(endpoint.tag for endpoint in endpoints)
    paths["/{code}"] = {"get": _REDIRECT}
    made: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "SMS shortener",
            "version": __version__,
            "description": _ABOUT.strip(),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in (first, _HANDSET, *others)],
        "paths": paths,
        "components": {"securitySchemes": _SECURITY_SCHEMES, "schemas": schemas.all},
    }
    made["components"]["schemas"] = _referred(made)
    return made


def with_documentation(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """`endpoints` and the two that show them all."""

    @cache
    def made() -> Document:
        return document(every)

    @cache
    def as_json() -> bytes:
        return orjson.dumps(made())

    @cache
    def as_page() -> bytes:
        return page(made())

    async def openapi(call: Call[None, None]) -> Response:
        return Response(as_json(), media_type="application/json")

    async def docs(call: Call[None, None]) -> Response:
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(as_page(), headers=headers, media_type="text/html")

    every = [
        *endpoints,
        Endpoint("GET", "/openapi.json", openapi, "This document", "Operation", Caller.ANYONE),
        Endpoint("GET", "/docs", docs, "This document as a page", "Operation", Caller.ANYONE, media_type="text/html"),
    ]
    return every


class _Untitled(GenerateJsonSchema):
    """Without a title on every field that only spells its name another way."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _Schemas:
    """The schemas of all models that endpoints name; models of the same name in two modules get longer names."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        models = list(dict.fromkeys(_models_of(endpoints)))
        self._refs, made = models_json_schema(models, ref_template=_REF + "{model}", schema_generator=_Untitled)
        self.all: Document = dict(sorted(({**made.get("$defs", {}), **_error_schemas()}).items()))

    def ref(self, model: type[BaseModel], mode: JsonSchemaMode) -> Document:
        return self._refs[model, mode]

    def of(self, model: type[BaseModel], mode: JsonSchemaMode) -> Document:
        schema: Document = self.all[self.ref(model, mode)["$ref"].removeprefix(_REF)]
        return schema

    def content(self, model: type[BaseModel], mode: JsonSchemaMode) -> Document:
        schema = self.ref(model, mode)
        return {"schema": schema, "example": example_of(schema, self.all, answered=mode == "serialization")}


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
            "description": "The stable part of an error.",
            "type": "string",
            "oneOf": [{"const": code.name, "description": f"{code.http_status}. {code.meaning}"} for code in ErrorCode],
        },
        "Error": {
            "description": "The body of every error.",
            "type": "object",
            "properties": {
                "status": {"const": False},
                "error_code": {"$ref": _REF + "ErrorCode"},
                "description": {"type": "string", "description": "For a person."},
                "details": {"type": "array", "items": {"$ref": _REF + "ErrorDetail"}},
            },
            "required": ["status", "error_code", "description", "details"],
        },
        "ErrorDetail": {
            "description": "One thing that is wrong.",
            "type": "object",
            "properties": {
                "field": {"type": "string", "description": "A path such as messages.3.to."},
                "reason": {"type": "string", "description": "For a person."},
                "position": {"type": "integer", "description": "Character of a text, from 0, where that helps."},
            },
            "required": ["field", "reason"],
        },
    }


def _path_of(endpoint: Endpoint) -> tuple[str, list[Document]]:
    """OpenAPI's spelling of Starlette's path, and its parameters."""
    parameters = []
    for name, kind in _PARAMETER.findall(endpoint.path):
        schema = {"type": "integer", "minimum": 0} if kind == "int" else {"type": "string", "minLength": 1}
        parameter = {"name": name, "in": "path", "required": True, "description": _IN_PATH.get(name, ""), "schema": schema}
        parameters.append(_with_example(parameter))
    return _PARAMETER.sub(r"{\1}", endpoint.path), parameters


_PARAMETER = re.compile(r"{(\w+)(?::(\w+))?}")


def _operation(endpoint: Endpoint, path: str, parameters: list[Document], schemas: _Schemas) -> Document:
    description = [endpoint.description] if endpoint.description else []
    if endpoint.permission:
        description.append(f"Wants the permission `{endpoint.permission}`.")
    parameters += [{"name": name, "in": "header", "description": text, "schema": _TEXT} for name, text in endpoint.headers.items()]
    if endpoint.query:
        parameters += _query_parameters(schemas.of(endpoint.query, "validation"))
    operation: Document = {
        "operationId": "_".join([endpoint.method.lower(), *re.findall(r"\w+", path), *(["slash"] if path.endswith("/") else [])]),
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "security": _SECURITY[endpoint.caller],
        "responses": _responses(endpoint, schemas, bool(_PARAMETER.search(endpoint.path))),
    }
    if description:
        operation["description"] = "\n\n".join(description)
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body:
        kinds = ["application/json", *(["application/x-www-form-urlencoded"] if endpoint.body_forms else [])]
        content = schemas.content(endpoint.body, "validation")
        operation["requestBody"] = {"required": not endpoint.body_optional, "content": dict.fromkeys(kinds, content)}
    if endpoint.deprecated:
        operation["deprecated"] = True
    return operation


def _query_parameters(schema: Mapping[str, Any]) -> list[Document]:
    """One parameter for each field; what a model keeps beyond its fields is one more, an object."""
    required = schema.get("required", ())
    parameters = []
    for name, field in schema.get("properties", {}).items():
        field = _without_null(field)
        parameter = {"name": name, "in": "query", "required": name in required, "schema": field}
        if text := field.pop("description", None):
            parameter["description"] = text
        parameters.append(_with_example(parameter))
    if schema.get("additionalProperties"):
        more = {"type": "object", "additionalProperties": _TEXT}
        parameters.append(
            {
                "name": "metadata",
                "in": "query",
                "description": "Any other parameter.",
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
    """A parameter is there or not; a query has no null."""
    field = dict(field)
    if field.get("default", 0) is None:
        del field["default"]
    if "anyOf" in field:
        kinds = [kind for kind in field.pop("anyOf") if kind != {"type": "null"}]
        field |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return field


def _responses(endpoint: Endpoint, schemas: _Schemas, has_path_parameters: bool) -> Document:
    answers: dict[int, Document] = {endpoint.status: _answer(endpoint, endpoint.response, schemas)}
    for status, model in endpoint.other_responses.items():
        answers[status] = _answer(endpoint, model, schemas)
    by_status: dict[int, list[ErrorCode]] = {}
    for code in ErrorCode:
        if code in endpoint.errors or code in _implied(endpoint, has_path_parameters):
            by_status.setdefault(code.http_status, []).append(code)
    for status, codes in by_status.items():
        answers[status] = _error(status, codes)
    return {str(status): answers[status] for status in sorted(answers)}


def _implied(endpoint: Endpoint, has_path_parameters: bool) -> Iterator[ErrorCode]:
    """What the way in which every endpoint runs may answer (see endpoint.py)."""
    if endpoint.caller is not Caller.ANYONE:
        yield from (ErrorCode.UNAUTHORIZED, ErrorCode.INTERNAL_ERROR, ErrorCode.UNAVAILABLE)
    if endpoint.permission:
        yield ErrorCode.FORBIDDEN
    if has_path_parameters:
        yield ErrorCode.NOT_FOUND
    if endpoint.query or endpoint.body or endpoint.headers:
        yield ErrorCode.INVALID_REQUEST
    if endpoint.body:
        yield from (ErrorCode.INVALID_JSON, ErrorCode.BODY_TOO_LARGE, ErrorCode.UNSUPPORTED_MEDIA_TYPE)


def _answer(endpoint: Endpoint, model: type[BaseModel] | None, schemas: _Schemas) -> Document:
    if model:
        text = schemas.of(model, "serialization").get("description") or HTTPStatus(endpoint.status).phrase
        return {"description": text, "content": {"application/json": schemas.content(model, "serialization")}}
    if endpoint.status == HTTPStatus.NO_CONTENT:
        return {"description": "Done; no body."}
    schema: Document = {} if endpoint.media_type == "application/json" else _TEXT
    return {"description": HTTPStatus(endpoint.status).phrase, "content": {endpoint.media_type: {"schema": schema}}}


def _error(status: int, codes: Sequence[ErrorCode]) -> Document:
    only = {"properties": {"error_code": {"enum": [code.name for code in codes]}}}
    answer: Document = {
        "description": "\n".join(f"- `{code.name}`: {code.meaning}" for code in codes),
        "content": {"application/json": {"schema": {"allOf": [{"$ref": _REF + "Error"}, only]}}},
    }
    if status in _HEADERS:
        answer["headers"] = _HEADERS[status]
    return answer


def _referred(made: Document) -> Document:
    """The schemas that are referred to: a query model's fields have become parameters, nobody names the model."""
    schemas: Document = made["components"]["schemas"]
    found: set[str] = set()
    todo: list[Any] = [made["paths"]]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            name = part.get("$ref")
            if isinstance(name, str) and (name := name.removeprefix(_REF)) not in found:
                found.add(name)
                todo.append(schemas[name])
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)
    return {name: schema for name, schema in schemas.items() if name in found}
