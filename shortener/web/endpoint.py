"""An endpoint as data, and the one way in which every one of them runs.

Path, caller, models of query, body and answer are declared once; the same declaration authenticates, validates, answers and
makes the OpenAPI document, so the three cannot disagree. Order: credential (401, 403) before anything is read, then query and
body (400, 413, 415), then the handler. What the handler raises as `ApiError` becomes the error body; a store that is away
becomes 503 with `Retry-After`; anything else 500 without internals.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from shortener.accounts.directory import Principal
from shortener.accounts.settings import Permission
from shortener.errors import ApiError, Detail, ErrorCode, StoreUnavailable

if TYPE_CHECKING:
    from shortener.container import Service

log = structlog.get_logger(__name__)

RETRY_AFTER = 2  # seconds that a caller is asked to wait when the store is away


class Caller(enum.Enum):
    """Who may call an endpoint."""

    ANYONE = "anyone"
    API_KEY = "an API key"
    TRACKER = "a tracker token"


class Model(BaseModel):
    """Base of request models: unknown fields are refused, so that a typo is not silently ignored."""

    model_config = ConfigDict(extra="forbid")


class ResponseModel(BaseModel):
    """Base of answer models. A field with a default is sent all the same, and so is required in the document."""

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


Query = TypeVar("Query", bound=BaseModel | None)
Body = TypeVar("Body", bound=BaseModel | None)


@dataclass(slots=True)
class Call(Generic[Query, Body]):
    """What a handler gets: everything checked. `principal` is set unless ANYONE may call."""

    service: Service
    request: Request
    path: Mapping[str, Any]
    query: Query
    body: Body
    _principal: Principal | None

    @property
    def principal(self) -> Principal:
        assert self._principal is not None
        return self._principal

    @property
    def application_id(self) -> int:
        return self.principal.application.id


@dataclass(frozen=True)
class Endpoint:
    """`path` is Starlette's. `body_forms`: the body may be a form as well as JSON. `answer` None: `handler` makes the Response.

    `headers`: those that the handler reads, with their meaning. `errors`: what it raises beyond what every endpoint may.
    `also`: answers with another status that are no errors."""

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
    response: type[BaseModel] | None = None
    media_type: str = "application/json"
    status: int = 200
    errors: Sequence[ErrorCode] = field(default=())
    headers: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[int, type[BaseModel]] = field(default_factory=dict)
    description: str = ""
    deprecated: bool = False

    async def respond(self, request: Request, service: Service) -> Response:
        """Everything that can go wrong is an answer; only a client that left raises."""
        return await _run(self, service, request)

    def route(self, service: Service) -> Route:
        async def run(request: Request) -> Response:
            return await self.respond(request, service)

        return Route(self.path, run, methods=[self.method], name=f"{self.method} {self.path}")


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    if isinstance(content, BaseModel):
        content = content.model_dump(mode="json", by_alias=True)
    return Response(orjson.dumps(content), status, headers, "application/json")


def error_response(error: ApiError) -> Response:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.code is ErrorCode.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="shortener"'
    return json_response(error.body(), error.code.http_status, headers)


async def _run(endpoint: Endpoint, service: Service, request: Request) -> Response:
    try:
        principal = _authenticate(endpoint, service, request)
        if "\0" in request.scope["path"]:  # no id of ours holds a NUL, and PostgreSQL takes none in a look-up
            raise ApiError(ErrorCode.NOT_FOUND)
        query = validate(endpoint.query, _gather(request.query_params.multi_items())) if endpoint.query else None
        body = await _body_of(endpoint, service, request) if endpoint.body else None
        call = Call(service, request, request.path_params, query, body, principal)
        result = await endpoint.handler(call)
        if isinstance(result, Response):
            return result
        return json_response(result, endpoint.status)
    except ApiError as error:
        return error_response(error)
    except StoreUnavailable:
        return error_response(ApiError(ErrorCode.UNAVAILABLE, retry_after=RETRY_AFTER))
    except ClientDisconnect:
        return Response(status_code=400)
    except Exception:
        log.exception("request_failed", method=request.method, path=endpoint.path)
        return error_response(ApiError(ErrorCode.INTERNAL_ERROR))


def _authenticate(endpoint: Endpoint, service: Service, request: Request) -> Principal | None:
    if endpoint.caller is Caller.ANYONE:
        return None
    if endpoint.caller is Caller.TRACKER:
        token = request.headers.get("x-api-token", "")
        principal = service.directory.find_by_tracker_token(token, service.clock()) if token else None
        if principal is None:
            raise ApiError(ErrorCode.UNAUTHORIZED, "The X-Api-Token header is missing, unknown or expired.")
        return principal
    principal = _by_key(service, request)
    if principal is None:
        raise ApiError(ErrorCode.UNAUTHORIZED)
    if endpoint.permission and endpoint.permission not in principal.permissions:
        raise ApiError(ErrorCode.FORBIDDEN, f"This key lacks the permission {endpoint.permission}.")
    return principal


def _by_key(service: Service, request: Request) -> Principal | None:
    """X-API-Key (23 Telecom), Bearer (Syniverse), App and Basic (Infobip; the user is the application's number)."""
    key = request.headers.get("x-api-key")
    if key is not None:
        return service.directory.find_by_api_key(key)
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    credential = credential.strip()
    if scheme.lower() in ("bearer", "app"):
        return service.directory.find_by_api_key(credential)
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(credential, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return None
        principal = service.directory.find_by_api_key(password)
        if principal is not None and user == str(principal.application.id):
            return principal
    return None


def _gather(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Parameters of a query or a form by name; repeated ones become a list, and the models decide whether they take one."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: several[0] if len(several) == 1 else several for name, several in values.items()}


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises ApiError BODY_TOO_LARGE as soon as it is known to be."""
    too_large = ApiError(ErrorCode.BODY_TOO_LARGE, f"The body is larger than {limit} bytes.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


async def _body_of(endpoint: Endpoint, service: Service, request: Request) -> Any:
    assert endpoint.body is not None
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    content = await read_body(request, service.settings.body_limit)
    if endpoint.body_optional and not content:
        return None
    if endpoint.body_forms and kind == "application/x-www-form-urlencoded":
        from urllib.parse import parse_qsl

        try:
            return validate(endpoint.body, _gather(parse_qsl(content.decode(), keep_blank_values=True, max_num_fields=1000)))
        except ValueError:
            raise ApiError(ErrorCode.INVALID_REQUEST, "The form is not UTF-8 or has too many fields.") from None
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, f"Content-Type {kind!r} is not taken here; send application/json.")
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ApiError(ErrorCode.INVALID_JSON, f"The body is not valid JSON: {error}") from None
    return validate(endpoint.body, data)


#: Names of the members of a union, which pydantic puts into the path of an error; a caller knows nothing of them.
UNION_TAGS = frozenset({"single", "batch", "xoxzo", "infobip", "str", "list[str]", "nullable[str]"})

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], data: Any) -> M:
    """`data` as the model. Raises ApiError INVALID_REQUEST with a detail for each thing that is wrong."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        details = [
            Detail(".".join(str(part) for part in item["loc"] if part not in UNION_TAGS), item["msg"].removeprefix("Value error, "))
            for item in error.errors(include_url=False, include_context=False, include_input=False)[:100]
        ]
        raise ApiError(ErrorCode.INVALID_REQUEST, details=details) from None
