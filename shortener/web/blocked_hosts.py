"""The endpoints for blocked destination hosts. Links of the application whose destination has a blocked host respond with 410,
and new links to blocked hosts are rejected."""
# Tested by tests/web/test_links.py

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shortener.accounts.administration import list_blocked_hosts
from shortener.accounts.audited_accounts import block_host, unblock_host
from shortener.errors import ErrorCode
from shortener.storage.types import to_iso
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Text

_TAG = "Links"


class BlockedHostFields(ResponseModel):
    host: str
    created_at: str


class BlockedHostsResponse(ResponseModel):
    """The blocked hosts of the application, in alphabetical order."""

    status: Literal[True] = True
    blocked_hosts: list[BlockedHostFields]


class BlockHostRequest(RequestModel):
    """The request body with the host to block."""

    host: Text = Field(
        min_length=1,
        max_length=255,
        description="Host without scheme, port and path, for example shop.example. *.shop.example blocks every subdomain.",
    )


class BlockedHostResponse(ResponseModel):
    """The blocked host, in the normalized form in which it is stored."""

    status: Literal[True] = True
    host: str


async def index(call: Call[None, None]) -> dict[str, Any]:
    """Return the blocked hosts of the application."""
    rows = await call.service.database.read(list_blocked_hosts, call.application_id)
    return {"status": True, "blocked_hosts": [{"host": row["host"], "created_at": to_iso(row["created_at"])} for row in rows]}


async def block(call: Call[None, BlockHostRequest]) -> BlockedHostResponse:
    """Block a destination host for the links of the application."""
    service = call.service
    host = await service.database.write_later(block_host, call.audit, call.application_id, call.body.host, service.clock())
    await service.directory.refresh_if_available()
    return BlockedHostResponse(host=host)


async def unblock(call: Call[None, None]) -> BlockedHostResponse:
    """Unblock a destination host for the links of the application."""
    service = call.service
    host = await service.database.write_later(unblock_host, call.audit, call.application_id, call.path["host"], service.clock())
    await service.directory.refresh_if_available()
    return BlockedHostResponse(host=host)


ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/blocked-hosts",
        index,
        "List blocked destination hosts",
        _TAG,
        permission="sms.read",
        response=BlockedHostsResponse,
        description="Lists the hosts that the application blocks. The list does not contain the hosts that the operator of the "
        "installation blocks.",
    ),
    Endpoint(
        "POST",
        "/api/v1/blocked-hosts",
        block,
        "Block a destination host",
        _TAG,
        permission="links.write",
        body=BlockHostRequest,
        response=BlockedHostResponse,
        errors=(ErrorCode.CONFLICT,),
        description=(
            "Blocks a destination host on every node within a second: all links of the application to this host respond with 410,"
            " and a rewrite of a text with a link to this host is rejected."
        ),
    ),
    Endpoint(
        "DELETE",
        "/api/v1/blocked-hosts/{host}",
        unblock,
        "Unblock a destination host",
        _TAG,
        permission="links.write",
        response=BlockedHostResponse,
        errors=(ErrorCode.INVALID_REQUEST,),
    ),
]
