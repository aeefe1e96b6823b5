"""The endpoints that create, list, change and revoke API keys, and rotate tracker tokens. All require the permission `admin`.

If a caller creates a key, each permission of the new key must be a permission of the caller's own key. The rate limit of the new
key must not be higher than that of the caller's key. A key cannot revoke itself. Therefore a caller can neither get more
permissions nor lock itself out.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from shortener.accounts import audited_credentials, credentials
from shortener.accounts.settings import DEFAULT_PERMISSIONS, Permission
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.storage.types import to_iso
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Text

_TAG = "Application"
MAX_RATE_LIMIT = 1_000_000  # the highest rate limit of a key, in requests per minute
DEFAULT_OVERLAP_SECONDS = 24 * 3600
MAX_OVERLAP_SECONDS = 90 * 24 * 3600


def _check_name(value: str) -> str:
    name = value.strip()
    if (value and not name) or not name.isprintable():
        raise ValueError("must have only printable characters, and not only spaces")
    return name


KeyName = Annotated[Text, Field(max_length=100), AfterValidator(_check_name)]


class KeyCreateRequest(RequestModel):
    """The properties of a new API key."""

    name: KeyName | None = Field(
        "",
        description="Name of the system that uses the key. It has no effect and is only displayed. null or an empty text: no name. "
        "Default: no name.",
    )
    permissions: list[Permission] = Field(
        list(DEFAULT_PERMISSIONS),
        min_length=1,
        description="What the new key permits. It can only have permissions that the key of this request has.",
    )
    rate_limit: int | None = Field(
        None, ge=1, le=MAX_RATE_LIMIT, description="Maximum number of requests per minute. null: no limit."
    )


class KeyUpdateRequest(RequestModel):
    """The changes of an API key. A field that is absent keeps its value."""

    name: KeyName | None = Field(None, description="New name of the key. null keeps the name. An empty text removes it.")
    rate_limit: int | None = Field(
        None, ge=1, le=MAX_RATE_LIMIT, description="Maximum number of requests per minute. null: no limit."
    )


class KeyFields(ResponseModel):
    key_id: int
    name: str
    hint: str = Field(description="The first characters of the key, which identify it.")
    permissions: list[str]
    rate_limit: int | None
    created_at: str
    revoked_at: str | None
    is_current: bool = Field(description="true: this is the key with which the request was sent.")


class KeyResponse(ResponseModel):
    """An API key. The response does not contain the key itself, because its plain text is not stored."""

    status: Literal[True] = True
    key: KeyFields


class NewKeyResponse(KeyResponse):
    """A new API key. No later response contains its plain text."""

    api_key: str = Field(description="The plain text of the key.")
    key_id: int


class KeysResponse(ResponseModel):
    """All API keys of the application, oldest first. The complete keys are not stored."""

    status: Literal[True] = True
    keys: list[KeyFields]


class TokenFields(ResponseModel):
    token_id: int = Field(description="Id of the tracker token.")
    created_at: str
    valid_until: str | None = Field(description="Time until which a replaced token is valid. null: this is the current token.")


class TokensResponse(ResponseModel):
    """The tracker tokens that are valid, oldest first. The tokens themselves are not stored."""

    status: Literal[True] = True
    tokens: list[TokenFields] = Field(description="Valid tracker tokens of the application.")


class TokenRotateRequest(RequestModel):
    """Options for the rotation of the tracker token."""

    overlap: int = Field(
        DEFAULT_OVERLAP_SECONDS,
        ge=0,
        le=MAX_OVERLAP_SECONDS,
        description="Seconds for which the previous token stays valid. 0: it becomes invalid at once.",
    )


class NewTokenResponse(ResponseModel):
    """A new tracker token. No later response contains it."""

    status: Literal[True] = True
    tracker_token: str = Field(description="The plain text of the token.")
    previous_valid_until: str | None


async def index(call: Call[None, None]) -> Mapping[str, Any]:
    """Return all API keys of the application."""
    rows = await call.service.database.read(credentials.list_keys, call.application_id)
    return {"status": True, "keys": [_key_fields(call, row) for row in rows]}


async def show(call: Call[None, None]) -> Mapping[str, Any]:
    """Return one API key of the application, without its plain text."""
    row = await call.service.database.read(credentials.find_key, call.application_id, call.path["api_key_id"])
    return {"status": True, "key": _key_fields(call, row)}


async def create(call: Call[None, KeyCreateRequest | None]) -> Mapping[str, Any]:
    """Create an API key of the application, and return its plain text once."""
    service, request = call.service, call.body or KeyCreateRequest()
    _check_rate_limit(call, request.rate_limit)
    missing = sorted(set(request.permissions) - call.principal.permissions)
    if missing:
        reason = f"this API key does not have {', '.join(missing)}, so it cannot grant it"
        raise ApiError(ErrorCode.FORBIDDEN, details=[Detail("permissions", reason)])

    key, row = await service.database.write(
        audited_credentials.create_key,
        call.audit,
        call.application_id,
        request.name or "",
        request.permissions,
        service.clock(),
        request.rate_limit,
    )
    await service.directory.refresh_if_available()
    return {"status": True, "api_key": key, "key_id": row["id"], "key": _key_fields(call, row)}


async def update(call: Call[None, KeyUpdateRequest]) -> Mapping[str, Any]:
    """Change the name or the rate limit of an API key."""
    service, request = call.service, call.body
    changes = {name: getattr(request, name) for name in request.model_fields_set}
    if changes.get("name", "") is None:
        del changes["name"]
    if "rate_limit" in changes:
        _check_rate_limit(call, changes["rate_limit"])

    key_id = call.path["api_key_id"]
    row = await service.database.write(
        audited_credentials.update_key, call.audit, call.application_id, key_id, changes, service.clock()
    )
    await service.directory.refresh_if_available()
    return {"status": True, "key": _key_fields(call, row)}


async def revoke(call: Call[None, None]) -> Mapping[str, Any]:
    """Revoke an API key of the application."""
    service, key_id = call.service, call.path["api_key_id"]
    if key_id == call.principal.key_id:
        raise ApiError(ErrorCode.CONFLICT, "A key cannot revoke itself. Use another key, or the command line.")

    row = await service.database.write(audited_credentials.revoke_key, call.audit, call.application_id, key_id, service.clock())
    await service.directory.refresh_if_available()
    return {"status": True, "key": _key_fields(call, row)}


async def list_tokens(call: Call[None, None]) -> Mapping[str, Any]:
    """Return the valid tracker tokens of the application."""
    rows = await call.service.database.read(credentials.list_tokens, call.application_id, call.service.clock())
    return {
        "status": True,
        "tokens": [
            {"token_id": row["id"], "created_at": to_iso(row["created_at"]), "valid_until": to_iso(row["valid_until"])}
            for row in rows
        ],
    }


async def rotate_token(call: Call[None, TokenRotateRequest | None]) -> Mapping[str, Any]:
    """Create a tracker token. The previous token stays valid for the seconds in the field `overlap` of the request."""
    service = call.service
    overlap = timedelta(seconds=DEFAULT_OVERLAP_SECONDS if call.body is None else call.body.overlap)
    token, until = await service.database.write(
        audited_credentials.rotate_token, call.audit, call.application_id, service.clock(), overlap
    )
    await service.directory.refresh_if_available()
    return {"status": True, "tracker_token": token, "previous_valid_until": to_iso(until)}


def _check_rate_limit(call: Call[Any, Any], rate_limit: int | None) -> None:
    """Raise ApiError FORBIDDEN if `rate_limit` is higher than the rate limit of the API key with which this request was sent."""
    own = call.principal.rate_limit
    if own is not None and (rate_limit is None or rate_limit > own):
        reason = f"must be at most {own}, the rate limit of this API key"
        raise ApiError(ErrorCode.FORBIDDEN, details=[Detail("rate_limit", reason)])


def _key_fields(call: Call[Any, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key_id": row["id"],
        "name": row["name"],
        "hint": row["hint"],
        "permissions": row["permissions"],
        "rate_limit": row["rate_limit"],
        "created_at": to_iso(row["created_at"]),
        "revoked_at": to_iso(row["revoked_at"]),
        "is_current": row["id"] == call.principal.key_id,
    }


_KEYS, _TOKENS = "/api/v1/keys", "/api/v1/tokens"
_ROTATION = (
    "Creates a new tracker token and returns it only in this response. The previous token stays valid for `overlap` seconds, and "
    "tokens that were replaced earlier become invalid."
)

ENDPOINTS = [
    Endpoint("GET", _KEYS, index, "List API keys", _TAG, permission="admin", response=KeysResponse),
    Endpoint(
        "POST",
        _KEYS,
        create,
        "Create an API key",
        _TAG,
        permission="admin",
        body=KeyCreateRequest,
        body_optional=True,
        response=NewKeyResponse,
        status=201,
        description="The new key works on every node at once.",
    ),
    Endpoint("GET", f"{_KEYS}/{{api_key_id:int}}", show, "Show an API key", _TAG, permission="admin", response=KeyResponse),
    Endpoint(
        "PATCH",
        f"{_KEYS}/{{api_key_id:int}}",
        update,
        "Change an API key",
        _TAG,
        permission="admin",
        body=KeyUpdateRequest,
        response=KeyResponse,
        description="Changes the name or the rate limit. Permissions cannot be changed: create another key instead.",
    ),
    Endpoint(
        "DELETE",
        f"{_KEYS}/{{api_key_id:int}}",
        revoke,
        "Revoke an API key",
        _TAG,
        permission="admin",
        response=KeyResponse,
        errors=(ErrorCode.CONFLICT,),
        description="The key becomes invalid on every node within a second. The key with which the request is sent cannot be "
        "revoked.",
    ),
    Endpoint("GET", _TOKENS, list_tokens, "List tracker tokens", _TAG, permission="admin", response=TokensResponse),
    Endpoint(
        "POST",
        _TOKENS,
        rotate_token,
        "Create a tracker token",
        _TAG,
        permission="admin",
        body=TokenRotateRequest,
        body_optional=True,
        response=NewTokenResponse,
        status=201,
        description=_ROTATION,
    ),
    Endpoint(
        "POST",
        f"{_TOKENS}/rotate",
        rotate_token,
        "Rotate the tracker token",
        _TAG,
        permission="admin",
        body=TokenRotateRequest,
        body_optional=True,
        response=NewTokenResponse,
        description=f"The same as creating a token. {_ROTATION}",
    ),
]
