"""Tests of the router, which finds the endpoint of a request by path and method, and of rules for all endpoints."""

import asyncio
from collections.abc import Sequence
from typing import Any, get_args

import httpx
import pytest
from pydantic import BaseModel, RootModel

from shortener.container import Service
from shortener.web import routes
from shortener.web.callers import Caller
from shortener.web.endpoint import Call, Endpoint
from shortener.web.endpoints import ENDPOINTS
from shortener.web.routes import MODULES, ApiRouter, import_endpoints
from shortener.web.vendors.infobip import InfobipResponse
from tests.one_service import on_one_service
from tests.one_test import in_one_test


async def show(call: Call[None, None]) -> dict[str, str]:
    return {"method": call.request.method} | {name: repr(value) for name, value in call.path.items()}


async def rename(call: Call[None, None]) -> dict[str, str]:
    return {"renamed": call.path["name"]}


def endpoint(method: str, path: str, handler: object = show) -> Endpoint:
    return Endpoint(method, path, handler, "A summary", "A tag", Caller.ANYONE)  # type: ignore[arg-type]


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    router = ApiRouter(
        service,
        [
            endpoint("GET", "/items"),
            endpoint("POST", "/items/import"),
            endpoint("GET", "/items/{name}"),
            endpoint("PATCH", "/items/{name}", rename),
            endpoint("GET", "/items/{name}/parts/{number:int}"),
            endpoint("GET", "/files/{path:path}/"),
            endpoint("GET", "/files/{path:path}"),
        ],
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await router.respond(Request(scope, receive))
        await response(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@on_one_service
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/items", {"method": "GET"}),
        ("POST", "/items/import", {"method": "POST"}),
        ("GET", "/items/import", {"method": "GET", "name": "'import'"}),
        ("PATCH", "/items/import", {"renamed": "import"}),
        ("GET", "/items/a/parts/7", {"method": "GET", "name": "'a'", "number": "7"}),
        ("GET", "/files/a/b", {"method": "GET", "path": "'a/b'"}),
        ("GET", "/files/a/b/", {"method": "GET", "path": "'a/b'"}),
    ],
)
async def test_a_request_is_handled_by_the_endpoint_of_its_path_and_method(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, str]
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.json()) == (200, body)


@pytest.mark.parametrize("path", ["/items", "/items/a"])
async def test_a_head_request_is_handled_by_the_endpoint_for_get_requests_of_the_path(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.head(path)).status_code == 200


@on_one_service
@pytest.mark.parametrize("path", ["/", "/item", "/items/", "/items/a/parts/x", "/items/a/parts/7/"])
async def test_an_unknown_path_gets_404(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert (response.status_code, response.json()["error_code"]) == (404, "NOT_FOUND")


async def test_a_path_parameter_with_an_invalid_value_gets_404(client: httpx.AsyncClient) -> None:
    response = await client.get(f"/items/a/parts/{'9' * 5000}")
    assert (response.status_code, response.json()["error_code"]) == (404, "NOT_FOUND")


async def test_a_method_that_the_path_does_not_have_gets_405_with_all_methods_of_the_path(client: httpx.AsyncClient) -> None:
    response = await client.delete("/items/import")
    assert (response.status_code, response.json()["error_code"]) == (405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == "GET, HEAD, PATCH, POST"


@pytest.fixture
def complete_client(service: Service) -> httpx.AsyncClient:
    """A client of a router that serves all endpoints and has imported none of their modules."""
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    router = ApiRouter(service)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await router.respond(Request(scope, receive))
        await response(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_the_first_requests_for_a_module_of_the_api_get_responses_also_at_the_same_time(
    complete_client: httpx.AsyncClient,
) -> None:
    paths = ["/healthz", "/api/v1/links/updates", "/api/v1/links/a", "/api/v1/trackers/1", "/metrics", "/api/v1/links/updates"]
    responses = await asyncio.gather(*map(complete_client.get, paths))
    assert [one.status_code for one in responses] == [200, 401, 401, 401, 200, 401]


async def test_concurrent_first_requests_for_a_module_of_the_api_import_it_once(
    complete_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[str] = []

    def prepare(modules: Sequence[str]) -> dict[str, Sequence[Endpoint]]:
        prepared.extend(modules)
        return original(modules)

    original = routes._prepare
    monkeypatch.setattr(routes, "_prepare", prepare)
    responses = await asyncio.gather(*(complete_client.post("/api/v1/rewrite", json={}) for _ in range(20)))
    assert {one.status_code for one in responses} == {401}
    assert prepared == ["rewrite"]


async def test_the_methods_of_one_path_are_complete_although_several_modules_define_them(
    complete_client: httpx.AsyncClient,
) -> None:
    for path, methods in (("/api/v1/conversions", "GET, HEAD"), ("/api/v1/sms/status", "POST"), ("/healthz", "GET, HEAD")):
        response = await complete_client.put(path)
        assert (response.status_code, response.headers["allow"]) == (405, methods)
    assert (await complete_client.get("/api/v1/unknown")).status_code == 404


@in_one_test
@pytest.mark.parametrize("module", MODULES)
def test_the_paths_of_each_module_begin_with_the_texts_in_the_table_of_modules(module: str) -> None:
    endpoints = import_endpoints(module)
    paths = {one.path.partition("{")[0] for one in endpoints}
    assert {path for path in paths if not path.startswith(MODULES[module])} == set()
    assert {start for start in MODULES[module] if not any(path.startswith(start) for path in paths)} == set()


OWN_ENDPOINTS = [one for one in ENDPOINTS if one.path.startswith("/api/") and one.media_type == "application/json"]


def models_of(response: Any) -> list[type[BaseModel]]:
    """Return the models of a response. A response that can have several forms has several models."""
    return list(get_args(response.model_fields["root"].annotation)) if issubclass(response, RootModel) else [response]


def test_every_json_response_has_a_body_with_status_true() -> None:
    without = {
        (one.method, one.path, model)
        for one in OWN_ENDPOINTS
        for model in (models_of(one.response) if one.response else [None])
        if model is None or get_args(model.model_fields["status"].annotation if "status" in model.model_fields else None) != (True,)
    }
    assert without == {("POST", "/api/v1/rewrite", InfobipResponse)}, "a request in Infobip's format gets a response in this format"
    assert {one.status for one in OWN_ENDPOINTS} == {200, 201, 202}


def test_every_list_with_pages_has_a_limit_a_cursor_and_a_next_cursor() -> None:
    paged = [one for one in OWN_ENDPOINTS if one.query and {"limit", "cursor"} & set(one.query.model_fields)]
    assert len(paged) >= 9
    for one in paged:
        assert one.query is not None
        assert one.response is not None
        assert {"limit", "cursor"} <= set(one.query.model_fields), one.path
        assert "next_cursor" in one.response.model_fields, one.path
