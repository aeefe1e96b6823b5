"""The OpenAPI document at /openapi.json and the page /docs that shows it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import jsonschema_rs
import pytest
from pydantic import Field

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.errors import ErrorCode
from shortener.web.callers import Caller
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.endpoints import ENDPOINTS
from shortener.web.field_texts import is_time
from shortener.web.openapi import document
from tests.conftest import client_of
from tests.web.openapi_document import openapi_document, validator_of


def operations(described: dict[str, Any] | None = None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in (described or openapi_document())["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def contents(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from operation.get("requestBody", {}).get("content", {}).values()
    for response in operation["responses"].values():
        yield from response.get("content", {}).values()


def objects_in(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from objects_in(value)
    elif isinstance(part, list):
        for value in part:
            yield from objects_in(value)


def test_the_openapi_document_is_valid_openapi_3_1() -> None:
    from schemathesis.specs.openapi.definitions import OPENAPI_31  # this import takes half a second

    assert list(jsonschema_rs.Draft202012Validator(OPENAPI_31).iter_errors(openapi_document())) == []


def test_every_schema_of_the_openapi_document_is_a_valid_json_schema() -> None:
    for name, schema in openapi_document()["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid(schema), name


def test_schema_names_in_the_openapi_document_contain_no_module_path() -> None:
    assert [name for name in openapi_document()["components"]["schemas"] if not name.isalnum()] == []


def test_every_operation_of_the_openapi_document_has_a_summary() -> None:
    assert [(method, path) for path, method, operation in operations() if not operation["summary"]] == []


def test_every_schema_reference_of_the_openapi_document_resolves() -> None:
    references = [part["$ref"] for part in objects_in(openapi_document()) if isinstance(part.get("$ref"), str)]
    assert references
    for reference in references:
        place: Any = openapi_document()
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_every_endpoint_is_in_the_openapi_document_with_a_unique_operation_id() -> None:
    documented = {(method.upper(), path) for path, method, _ in operations()}
    assert documented == {(one.method, re.sub(r":\w+}", "}", one.path)) for one in ENDPOINTS} | {("GET", "/{code}")}
    names = [operation["operationId"] for *_, operation in operations()]
    assert len(names) == len(set(names))


def test_the_openapi_document_lists_every_error_code_once_with_its_meaning() -> None:
    schema = openapi_document()["components"]["schemas"]["ErrorCode"]
    assert schema["enum"] == [code.name for code in ErrorCode]
    for code in ErrorCode:
        assert f"- `{code.name}` ({code.http_status}): {code.meaning}" in schema["description"]


def test_every_field_of_every_schema_has_a_description() -> None:
    missing = [
        (name, field)
        for name, schema in openapi_document()["components"]["schemas"].items()
        for field, definition in schema.get("properties", {}).items()
        if not definition.get("description")
    ]
    assert missing == [], "describe them in the model, or in web/field_texts.py"


def test_every_parameter_and_every_group_of_operations_has_a_description() -> None:
    for path, _, operation in operations():
        assert [one["name"] for one in operation.get("parameters", ()) if not one.get("description")] == [], path
    assert [tag["name"] for tag in openapi_document()["tags"] if tag["description"] == tag["name"]] == [], "describe it in TAGS"


def schemas_of_responses() -> dict[str, dict[str, Any]]:
    """Return the schemas that responses and webhooks contain, by name."""
    found: dict[str, dict[str, Any]] = {}
    todo: list[Any] = [operation["responses"] for *_, operation in operations()] + [openapi_document()["webhooks"]]
    while todo:
        for part in objects_in(todo.pop()):
            name = str(part.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found[name] = openapi_document()["components"]["schemas"][name]
                todo.append(found[name])
    return found


def test_every_time_in_a_response_schema_has_the_format_date_time() -> None:
    found = set()
    for name, schema in schemas_of_responses().items():
        for field, definition in schema.get("properties", {}).items():
            if is_time(field):
                found.add(field)
                assert "date-time" in [kind.get("format") for kind in (definition, *definition.get("anyOf", ()))], (name, field)
    assert {"created_at", "expires_at", "timestamp", "since", "at"} <= found


def test_the_openapi_document_lists_the_values_of_a_field_as_a_plain_enum() -> None:
    for part in objects_in(openapi_document()["components"]["schemas"]):
        for variants in (part.get("oneOf"), part.get("anyOf")):
            assert not variants or sum("const" in variant for variant in variants) <= 1, part


def test_responses_of_every_endpoint_that_the_document_marks_as_deprecated_have_the_header_deprecation() -> None:
    deprecated = [endpoint for endpoint in ENDPOINTS if endpoint.deprecated]
    assert {endpoint.path for endpoint in deprecated} == {"/action", "/api/v1/action/track"}
    for endpoint in deprecated:
        assert endpoint.response_headers.keys() == {"Deprecation", "Link"}


def test_operation_ids_of_the_openapi_document_are_readable_method_names() -> None:
    names = {operation["operationId"] for *_, operation in operations()}
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", name)] == []
    assert {"rewrite", "list_trackers", "create_tracker", "get_tracker", "update_link", "test_tracker", "export_links"} <= names


def test_every_example_of_the_openapi_document_is_valid_for_its_schema() -> None:
    for path, _, operation in operations():
        for content in contents(operation):
            if "example" in content:
                errors = validator_of(content["schema"]).iter_errors(content["example"])
                assert [error.message for error in errors] == [], path


#: Operations that the test of all examples leaves out, because their examples refer to objects that do not exist in the test
#: database, or would send a request to a tracker.
SKIPPED = {
    "/ct/1/processes/{processKey}/conversionrate",
    "/{code}",
    "/api/v1/events/{event_id}",
    "/api/v1/events/{event_id}.csv",
    "/api/v1/deliveries/{delivery_id}",
    "/api/v1/deliveries/{delivery_id}/replay",
    "/api/v1/trackers/{tracker_id}/test",
    "/api/v1/gateways/{gateway_id}/test",
    "/api/v1/sends/{message_id}/resend",
    "/api/v1/sends/{message_id}/discard",
    "/api/v1/gateways/reports/{report_key}",
    "/api/v1/gateways/reports/{report_key}/{reference}",
    "/api/v1/postback/{postback_key}",
    "/api/v1/links/{code}",
    "/api/v1/links/{code}.csv",
    "/api/v1/links/updates/{update_id}",
    "/api/v1/links/updates/{update_id}/stop",
    "/internal/domain-check",
    "/api/v1/keys/{api_key_id}",
    "/api/v1/tokens/rotate",
}


async def test_the_example_requests_of_the_openapi_document_work_unchanged(
    service: Service, client: httpx.AsyncClient, credentials: Credentials
) -> None:
    service.start(web=False, deliver=False)
    # The sort is stable. It only moves deletions and the rotation of the token to the end, because other operations would fail
    # after them.
    in_order = sorted(operations(), key=lambda one: one[1] == "delete" or one[0] == "/api/v1/tokens")
    for path, method, operation in in_order:
        if path in SKIPPED:
            continue
        query = {}
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
            elif parameter["in"] == "query" and "example" in parameter:
                query[parameter["name"]] = parameter["example"]
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        headers = {"X-Api-Token": credentials.tracker_token}
        response = await client.request(method.upper(), path, params=query, json=body, headers=headers)
        assert response.status_code < 400, (method, path, response.text)
        content = operation["responses"][str(response.status_code)].get("content", {}).get("application/json")
        if content:
            validator = validator_of(content["schema"], validate_formats=True)
            assert [error.message for error in validator.iter_errors(response.json())] == [], (method, path)


def test_every_path_parameter_has_a_description() -> None:
    for path, _, operation in operations():
        named = {one["name"]: one for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert set(named) == set(re.findall(r"{(\w+)}", path))
        assert all(one["description"] for one in named.values()), path


def test_no_query_parameter_in_the_openapi_document_can_be_null() -> None:
    parameters = [one for *_, operation in operations() for one in operation.get("parameters", ()) if one["in"] == "query"]
    assert parameters
    for one in parameters:
        assert {"type": "null"} not in one["schema"].get("anyOf", ()), one["name"]
        assert one["schema"].get("default", "") is not None, one["name"]


class ThingQuery(RequestModel):
    near: str = Field(description="A place.")
    limit: int | None = Field(None, ge=1)


class ThingRequest(RequestModel):
    name: str


class ThingResponse(ResponseModel):
    status: bool = True
    name: str


async def _handle(call: Call[Any, Any]) -> ThingResponse:
    return ThingResponse(name="")


def document_of_endpoint(**more: Any) -> dict[str, Any]:
    values = {"method": "POST", "path": "/things/{message_id}", "summary": "A thing", "tag": "Things", "response": ThingResponse}
    described = document([Endpoint(**{**values, "handler": _handle, **more})])
    (operation,) = described["paths"]["/things/{message_id}"].values()
    return {**operation, "schemas": described["components"]["schemas"]}


def codes(operation: dict[str, Any]) -> dict[int, list[str]]:
    found = {}
    for status, response in operation["responses"].items():
        schema = next(iter(response["content"].values()))["schema"]
        if schema == {"$ref": "#/components/schemas/Error"}:
            found[int(status)] = response["x-error-codes"]
    return found


def test_the_openapi_document_lists_every_error_that_an_endpoint_can_return() -> None:
    operation = document_of_endpoint(permission="sms.send", body=ThingRequest, errors=(ErrorCode.CONFLICT,))
    assert codes(operation) == {
        400: ["INVALID_JSON", "INVALID_REQUEST"],
        401: ["UNAUTHORIZED"],
        403: ["FORBIDDEN"],
        404: ["NOT_FOUND"],
        409: ["IDEMPOTENCY_CONFLICT", "REQUEST_IN_PROGRESS", "CONFLICT"],
        413: ["BODY_TOO_LARGE"],
        415: ["UNSUPPORTED_MEDIA_TYPE"],
        429: ["RATE_LIMITED"],
        500: ["INTERNAL_ERROR"],
        503: ["UNAVAILABLE", "OUTCOME_UNKNOWN"],
    }
    assert codes(document_of_endpoint(caller=Caller.ANYONE)) == {404: ["NOT_FOUND"]}
    assert set(document_of_endpoint(caller=Caller.ANYONE, other_responses={503: ThingResponse})["responses"]) == {
        "200",
        "404",
        "503",
    }


def test_the_openapi_document_lists_the_path_query_and_header_parameters_of_an_endpoint() -> None:
    operation = document_of_endpoint(method="GET", query=ThingQuery, headers={"Idempotency-Key": "Names the request."})
    assert operation["parameters"][1:] == [
        {"name": "Idempotency-Key", "in": "header", "description": "Names the request.", "schema": {"type": "string"}},
        {"name": "near", "in": "query", "required": True, "description": "A place.", "schema": {"type": "string"}},
        {"name": "limit", "in": "query", "required": False, "schema": {"type": "integer", "minimum": 1}},
    ]
    assert "ThingQuery" not in operation["schemas"]


def test_the_openapi_document_marks_response_fields_with_a_default_as_required() -> None:
    assert document_of_endpoint()["schemas"]["ThingResponse"]["required"] == ["status", "name"]


@pytest.mark.parametrize(
    ("caller", "schemes"),
    [
        (Caller.ANYONE, []),
        (Caller.API_KEY, ["ApiKey", "Bearer", "App", "Basic"]),
        (Caller.TRACKER, ["TrackerToken"]),
    ],
)
def test_the_openapi_document_has_the_security_schemes_of_each_kind_of_caller(caller: Caller, schemes: list[str]) -> None:
    assert [name for choice in document_of_endpoint(caller=caller)["security"] for name in choice] == schemes
    assert set(schemes) <= set(openapi_document()["components"]["securitySchemes"])


def test_the_openapi_document_describes_form_bodies_and_optional_bodies() -> None:
    body = document_of_endpoint(body=ThingRequest, body_forms=True, body_optional=True)["requestBody"]
    assert set(body["content"]) == {"application/json", "application/x-www-form-urlencoded"}
    assert body["required"] is False


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "action", "style"):
                self.links.append(value or "")


async def test_the_openapi_document_and_the_docs_page_need_no_credential(service: Service) -> None:
    async with client_of(service) as client:
        served = await client.get("/openapi.json")
        page = await client.get("/docs")
    assert served.status_code == page.status_code == 200
    assert served.json() == {
        **openapi_document(),
        "servers": [{"url": "http://127.0.0.1:8000", "description": "This installation"}],
    }
    assert served.headers["content-type"] == "application/json"
    assert page.headers["content-type"] == "text/html; charset=utf-8"


async def test_the_docs_page_permits_only_its_own_script_and_style_and_loads_nothing_else(client: httpx.AsyncClient) -> None:
    response = await client.get("/docs")
    page = Page()
    page.feed(response.text)
    assert not {"img", "iframe", "link"} & set(page.tags)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert all(link.startswith("#") or link == "openapi.json" for link in page.links)
    hashes = {}
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        assert content is not None
        hashes[tag] = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
    assert response.headers["content-security-policy"] == (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def test_the_docs_page_shows_every_operation_error_code_and_schema_and_has_no_broken_links(client: httpx.AsyncClient) -> None:
    response = await client.get("/docs")
    page = Page()
    page.feed(response.text)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert {operation["operationId"] for *_, operation in operations()} <= set(page.ids)
    assert {f"error-{code.name}" for code in ErrorCode} <= set(page.ids)
    assert {f"schema-{name}" for name in openapi_document()["components"]["schemas"] if name != "ErrorCode"} <= set(page.ids)


def test_the_document_lists_the_error_codes_of_a_send_call_as_the_call_returns_them() -> None:
    responses = openapi_document()["paths"]["/api/v1/sms/send"]["post"]["responses"]
    codes = {code for response in responses.values() for code in response.get("x-error-codes", ())}
    assert codes >= {"TOO_MANY_RECIPIENTS", "INVALID_BODY", "INVALID_REQUEST", "INVALID_TO", "DB_ERROR", "INVALID_TRACK_URL"}
    assert not codes & {"BATCH_TOO_LARGE", "INVALID_JSON", "UNAVAILABLE", "INVALID_RECIPIENT"}


def test_the_document_lists_the_error_about_a_wrong_cursor_for_each_list_with_pages() -> None:
    paged = [
        (path, operation)
        for path, _, operation in operations()
        if any(parameter["name"] == "cursor" for parameter in operation.get("parameters", ()))
    ]
    assert len(paged) > 10
    for path, operation in paged:
        assert "INVALID_CURSOR" in operation["responses"]["400"]["x-error-codes"], path
