"""This module defines the class `Endpoint`, and runs every endpoint in the same way. An endpoint declares its path, its kind of
caller, and its models for the query, the body and the response. The service uses this declaration to authenticate the caller, to
validate the request and to serialize the response. The OpenAPI document is generated from the same declaration, so it cannot
differ from the behavior.

The order of the checks is fixed: first the credential (401, 403), then the rate limit of the API key (429), then the query and
the body (400, 413, 415). Then the handler runs. An `ApiError` from the handler becomes the error body. If the database is
unavailable, the response is 503 with `Retry-After`. For any other exception, the response is 500 without details, and the
exception is logged.
"""
# Tested by tests/web/test_callers.py and tests/web/test_permissions.py

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import orjson
import structlog
from pydantic import BaseModel, ConfigDict
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from shortener.accounts.audit import Actor, AuditWriter, key_actor
from shortener.accounts.directory import Principal
from shortener.accounts.settings import Permission
from shortener.errors import ApiError, ErrorCode, StoreUnavailable, unavailable_error
from shortener.ids import MAX_COUNTED_ID
from shortener.model import mutable_record
from shortener.web.callers import Caller, authenticate
from shortener.web.idempotency import HEADER, idempotency_key, respond_once
from shortener.web.large_responses import PiecesResponse, is_large, serialize_in_pieces
from shortener.web.request_body import BodyLimits, group_by_name, read_model
from shortener.web.validation import InvalidInput, validate

if TYPE_CHECKING:
    from shortener.container import Service

log = structlog.get_logger(__name__)

MAX_ERROR_BYTES = 1024 * 1024  # maximum size of the body of an error response


class RequestModel(BaseModel):
    """Base class of request models. It rejects unknown fields, so that a misspelled name is not silently ignored."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class ResponseModel(BaseModel):
    """Base class of response models. Every field is sent, even if it has its default value. Therefore the OpenAPI document marks
    all fields as required."""

    model_config = ConfigDict(extra="forbid", defer_build=True, json_schema_serialization_defaults_required=True)


class DeletedResponse(ResponseModel):
    """The response after an object was removed."""

    status: Literal[True] = True


Query = TypeVar("Query", bound=BaseModel | None)
Body = TypeVar("Body")


#: A function that adds fields to the body of an error response. Its arguments are the error code and the body; it returns the new
#: body.
ErrorShape = Callable[[ErrorCode, dict[str, Any]], dict[str, Any]]


@mutable_record
class Call(Generic[Query, Body]):
    """A validated request, as a handler receives it."""

    service: Service
    request: Request
    path: Mapping[str, Any]
    query: Query
    body: Body
    _principal: Principal | None

    @property
    def principal(self) -> Principal:
        """Return the owner of the request's credential. Use this only in endpoints that require a credential."""
        assert self._principal is not None
        return self._principal

    @property
    def application_id(self) -> int:
        """The id of the application that owns the caller's credential."""
        return self.principal.application.id

    @property
    def audit(self) -> AuditWriter:
        """The audit writer with the caller's API key as actor."""
        return AuditWriter(Actor(name=key_actor(self.principal.key_id)), self.service.ids)


@dataclass(frozen=True)
class Endpoint:
    """One HTTP method of one path. Its fields contain everything that the validation and the OpenAPI document need.

    `path` has Starlette's syntax, for example `/messages/{id:int}`. `response` is the model of the body; None means that the
    handler returns a `Response`. `other_responses` maps further successful statuses to their models. `headers` maps each header
    that the handler reads to its description. `response_headers` are sent with every response, including errors.

    With `body_forms` the body may also be a form; with `body_optional` it may be empty. With `repairs_text`, invalid text in a JSON
    body is replaced. With `reads_request`, the handler itself reads the query and the body, and the models only describe them in
    the OpenAPI document. A GET endpoint also handles HEAD requests, unless `has_head` is false.

    `errors` lists the error codes that the handler raises. Codes that every endpoint may raise are not in this list. If the body
    is invalid, `keep_valid` is called first. It may return the valid part of the request, which the handler then gets in place of
    the body. If it returns None, the request is rejected. `complete_error` then adds the errors that the handler would have
    found, so that one error does not hide another. `translate_error` replaces the code of an error by the code of a vendor.
    `error_shape` adds the fields of a vendor to the body of an error.

    `is_report`: the body contains reports. The service recognises a repeated report, and the repeat changes nothing.
    `can_rotate`: the request can create a new secret or key, and a repeat would create another one. `stores_nothing`: the POST
    request changes nothing, so its response is not stored and an Idempotency-Key has no effect.
    """

    method: str
    path: str
    handler: Callable[[Call[Any, Any]], Awaitable[BaseModel | Mapping[str, Any] | Response]]
    summary: str
    tag: str
    caller: Caller = Caller.API_KEY
    permission: Permission | None = None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    body_forms: bool = False
    body_optional: bool = False
    repairs_text: bool = False
    reads_request: bool = False
    has_head: bool = True
    translate_error: Callable[[ApiError], ApiError] | None = None
    error_shape: ErrorShape | None = None
    complete_error: Callable[[Service, Principal | None, InvalidInput], Awaitable[ApiError]] | None = None
    keep_valid: Callable[[InvalidInput], Awaitable[Any]] | None = None
    response: type[BaseModel] | None = None
    media_type: str = "application/json"
    status: int = 200
    errors: Sequence[ErrorCode] = field(default=())
    headers: Mapping[str, str] = field(default_factory=dict)
    response_headers: Mapping[str, str] = field(default_factory=dict)
    other_responses: Mapping[int, type[BaseModel]] = field(default_factory=dict)
    description: str = ""
    deprecated: bool = False
    is_report: bool = False
    can_rotate: bool = False
    stores_nothing: bool = False

    @cached_property
    def shown_path(self) -> str:
        """The path for metrics and logs. It contains the names of the parameters in place of their values."""
        return self.path.replace(":path}", "}")

    @cached_property
    def stores_response(self) -> bool:
        """Whether `_run` stores the response to a request with an Idempotency-Key, and returns it to repeats with the same API
        key. If the handler itself stores the responses, this is false, and `headers` contains Idempotency-Key."""
        if self.method != "POST" or self.caller is not Caller.API_KEY or self.stores_nothing:
            return False
        return not self.reads_request and HEADER not in self.headers

    def may_repeat(self, request: Request) -> bool:
        """Return whether the caller may repeat a request whose outcome is unknown. This is false if the request can create a
        secret or a key. Otherwise, it is true if a repeat would change nothing after the first request was stored: for reports,
        for all methods except POST, and for rewrites with an Idempotency-Key. A rewrite stores its key and its messages in one
        transaction."""
        if self.can_rotate:
            return False
        if self.method != "POST" or self.caller is not Caller.API_KEY or self.is_report or self.stores_nothing:
            return True
        return HEADER in self.headers and HEADER in request.headers

    async def respond(self, request: Request, service: Service) -> Response:
        """Run the endpoint, and count its response in the metrics. This method raises no error: every failure becomes an error
        response."""
        began = time.perf_counter()
        response, error_code = await _run(self, service, request)
        if self.response_headers:
            response.headers.update(self.response_headers)
        seconds = time.perf_counter() - began
        service.requests.add(self.method, self.shown_path, response.status_code, error_code, seconds)
        log_request(service, self.method, self.shown_path, response.status_code, error_code, seconds)
        return response


def log_request(service: Service, method: str, path: str, status: int, error_code: str, seconds: float) -> None:
    """Write the access log line of a request to the API. `path` must not contain the values of path parameters, because they may
    be credentials."""
    if service.settings.logs_access:
        error = {"error_code": error_code} if error_code else {}
        log.info("request", method=method, path=path, status=status, milliseconds=round(seconds * 1000, 1), **error)


class JsonResponse(Response):
    """A response with a JSON body and no further headers. Its constructor takes a fifth of the time that Starlette's constructor
    takes."""

    media_type = "application/json"

    def __init__(self, body: bytes, status: int) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `content`, a model or plain data, as a JSON response."""
    if isinstance(content, BaseModel):
        content = content.model_dump(mode="json", by_alias=True)
    body = orjson.dumps(content)
    return JsonResponse(body, status) if headers is None else Response(body, status, headers, "application/json")


#: The header `Link` of error responses. It leads to the list of error codes on the documentation page.
HELP_LINK = '</docs#error-codes>; rel="help"'


def error_response(error: ApiError, shape: ErrorShape | None = None) -> Response:
    """Return the response to a request that failed with `error`, with the headers of its status. `shape` adds the fields of a
    vendor to the body."""
    headers = {"Link": HELP_LINK}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.code is ErrorCode.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="shortener"'
    body = error.body()
    content = orjson.dumps(shape(error.code, body) if shape else body)
    while len(content) > MAX_ERROR_BYTES and body["details"]:
        body["details"] = body["details"][: len(body["details"]) // 2]
        body["details_total"] = error.details_total
        content = orjson.dumps(shape(error.code, body) if shape else body)
    return Response(content, error.code.http_status, headers, "application/json")


async def _run(endpoint: Endpoint, service: Service, request: Request) -> tuple[Response, str]:
    """Run an endpoint. Return the response and the error code ("" without an error)."""
    try:
        principal = await authenticate(endpoint.caller, endpoint.permission, service, request)
        # PostgreSQL would reject the character NUL with an error. No id contains this character, so nothing exists at this path.
        if "\0" in request.scope["path"]:
            raise ApiError(ErrorCode.NOT_FOUND)
        if any(isinstance(value, int) and value > MAX_COUNTED_ID for value in request.path_params.values()):
            raise ApiError(ErrorCode.NOT_FOUND)
        query = body = None
        if not endpoint.reads_request:
            query = validate(endpoint.query, group_by_name(request.query_params.multi_items())) if endpoint.query else None
            try:
                body = await _read_body(endpoint, service, request) if endpoint.body else None
            except InvalidInput as error:
                body = None if endpoint.keep_valid is None else await endpoint.keep_valid(error)
                if body is None:
                    if endpoint.complete_error is None:
                        raise
                    raise await endpoint.complete_error(service, principal, error) from None
        call = Call(service, request, request.path_params, query, body, principal)
        key = idempotency_key(request) if endpoint.stores_response else None
        if key is None:
            result = await endpoint.handler(call)
            if result.__class__ is dict and is_large(result):
                return PiecesResponse(await serialize_in_pieces(result), endpoint.status), ""
            return _as_response(endpoint, result), ""

        async def perform() -> Response:
            return _as_response(endpoint, await endpoint.handler(call))

        return await respond_once(service, request, call.principal, key, body, perform), ""
    except ApiError as error:
        _forget_origin(error)
        shown = endpoint.translate_error(error) if endpoint.translate_error else error
        return error_response(shown, endpoint.error_shape), shown.code.name
    except StoreUnavailable as error:
        unavailable = unavailable_error(error, may_repeat=endpoint.may_repeat(request))
        shown = endpoint.translate_error(unavailable) if endpoint.translate_error else unavailable
        return error_response(shown, endpoint.error_shape), shown.code.name
    except ClientDisconnect:
        return Response(status_code=400), "CLIENT_DISCONNECTED"
    except Exception:
        log.exception("request_failed", method=request.method, path=endpoint.path)
        return error_response(ApiError(ErrorCode.INTERNAL_ERROR), endpoint.error_shape), ErrorCode.INTERNAL_ERROR.name


def _as_response(endpoint: Endpoint, result: BaseModel | Mapping[str, Any] | Response) -> Response:
    return result if isinstance(result, Response) else json_response(result, endpoint.status)


def _forget_origin(error: ApiError) -> None:
    """Remove the traceback of an error. The error refers to its traceback, and the frames of the traceback refer to the error.
    Because of this reference cycle, the body of each rejected request would stay in memory until a full garbage collection, which
    is rare."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


async def _read_body(endpoint: Endpoint, service: Service, request: Request) -> BaseModel | None:
    assert endpoint.body is not None
    settings = service.settings
    has_batch = ErrorCode.BATCH_TOO_LARGE in endpoint.errors
    limits = BodyLimits(settings.body_limit, settings.batch_limit, has_batch, service.largest_batch)
    return await read_model(
        request,
        endpoint.body,
        limits,
        accepts_forms=endpoint.body_forms,
        is_optional=endpoint.body_optional,
        repairs_text=endpoint.repairs_text,
    )


T = TypeVar("T")


async def until_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` and return its result. If the caller disconnects, cancel `work` and raise ClientDisconnect."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
