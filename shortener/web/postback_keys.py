"""The endpoints that create, list, rotate and revoke postback keys."""
# Tested by tests/web/test_postback_keys.py

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field

from shortener.accounts import audited_credentials, postback_keys
from shortener.errors import ErrorCode
from shortener.storage.types import to_iso
from shortener.web.endpoint import Call, DeletedResponse, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Text

_TAG = "Application"
DEFAULT_OVERLAP_HOURS = 24


class PostbackKeyRequest(RequestModel):
    """The properties of a new postback key."""

    name: Text | None = Field(
        "",
        max_length=postback_keys.MAX_NAME_CHARACTERS,
        description="Name of the network that uses the postback key. It has no effect and is only displayed. null or an "
        "empty text: no name. Default: no name.",
    )


class RotatePostbackKeyRequest(RequestModel):
    """Options for the rotation of a postback key."""

    overlap_hours: float = Field(
        DEFAULT_OVERLAP_HOURS,
        ge=0,
        le=postback_keys.MAX_OVERLAP.days * 24,
        allow_inf_nan=False,
        description=f"Hours for which the previous postback key stays valid. Default: {DEFAULT_OVERLAP_HOURS}.",
    )


class PostbackKeyFields(ResponseModel):
    id: int
    name: str
    hint: str = Field(description="The first characters of the postback key, which identify it.")
    created_at: str
    valid_until: str | None = Field(
        description="Time when the postback key expires, because it was replaced (UTC). null: it does not expire."
    )
    revoked_at: str | None


class NewPostbackKeyResponse(ResponseModel):
    """A new postback key and the URL for the network. No later response contains them."""

    status: Literal[True] = True
    id: int
    postback_key: str
    url: str = Field(description="Postback URL for the network. The network adds the parameters of each conversion to it.")
    previous_valid_until: str | None = Field(
        None, description="Time when the replaced postback key expires (UTC). null: this key did not replace another key."
    )


class PostbackKeysResponse(ResponseModel):
    """All postback keys of the application, oldest first. The complete keys are not stored."""

    status: Literal[True] = True
    postback_keys: list[PostbackKeyFields]


async def create(call: Call[None, PostbackKeyRequest | None]) -> Mapping[str, Any]:
    """Create a postback key of the application, and return its plain text once."""
    service, request = call.service, call.body or PostbackKeyRequest()
    key_id, key = await service.database.write(
        audited_credentials.create_postback_key, call.audit, call.application_id, request.name or "", service.clock()
    )
    await service.directory.refresh_if_available()
    return _new_key(call, key_id, key, None)


async def index(call: Call[None, None]) -> Mapping[str, Any]:
    """Return all postback keys of the application."""
    rows = await call.service.database.read(postback_keys.list_postback_keys, call.application_id)
    times = ("created_at", "valid_until", "revoked_at")
    return {
        "status": True,
        "postback_keys": [
            {name: to_iso(value) if name in times else value for name, value in row.items() if name != "application_id"}
            for row in rows
        ],
    }


async def rotate(call: Call[None, RotatePostbackKeyRequest | None]) -> Mapping[str, Any]:
    """Replace a postback key with a new one."""
    service = call.service
    hours = DEFAULT_OVERLAP_HOURS if call.body is None else call.body.overlap_hours
    key_id, key, until = await service.database.write(
        audited_credentials.rotate_postback_key,
        call.audit,
        call.application_id,
        call.path["key_id"],
        service.clock(),
        timedelta(hours=hours),
    )
    await service.directory.refresh_if_available()
    return _new_key(call, key_id, key, to_iso(until))


async def revoke(call: Call[None, None]) -> DeletedResponse:
    """Revoke a postback key of the application."""
    service = call.service
    await service.database.write(
        audited_credentials.revoke_postback_key, call.audit, call.application_id, call.path["key_id"], service.clock()
    )
    await service.directory.refresh_if_available()
    return DeletedResponse()


def _new_key(call: Call[Any, Any], key_id: int, key: str, previous_valid_until: str | None) -> Mapping[str, Any]:
    url = call.service.settings.base_url.rstrip("/") + postback_keys.PATH.format(postback_key=key)
    return {"status": True, "id": key_id, "postback_key": key, "url": url, "previous_valid_until": previous_valid_until}


_PATH = "/api/v1/postback-keys"

ENDPOINTS = [
    Endpoint(
        "POST",
        _PATH,
        create,
        "Create a postback key",
        _TAG,
        permission="admin",
        body=PostbackKeyRequest,
        body_optional=True,
        response=NewPostbackKeyResponse,
        status=201,
        errors=(ErrorCode.CONFLICT,),
        description="A postback key is for a network that can store only a URL. It allows only reports of conversions.",
    ),
    Endpoint("GET", _PATH, index, "List postback keys", _TAG, permission="admin", response=PostbackKeysResponse),
    Endpoint(
        "POST",
        f"{_PATH}/{{key_id:int}}/rotate",
        rotate,
        "Replace a postback key",
        _TAG,
        permission="admin",
        body=RotatePostbackKeyRequest,
        body_optional=True,
        response=NewPostbackKeyResponse,
        description="Creates a new postback key. The previous key stays valid for `overlap_hours` hours.",
    ),
    Endpoint(
        "DELETE", f"{_PATH}/{{key_id:int}}", revoke, "Revoke a postback key", _TAG, permission="admin", response=DeletedResponse
    ),
]
