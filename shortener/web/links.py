"""Links: what one leads to, and its kill switch; and the destination hosts that no link of the application leads to."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shortener.accounts.administration import block_host, list_blocked_hosts, unblock_host
from shortener.clicks.link_admin import DisabledBy, find_link, serialize_link, switch_link
from shortener.container import base_url_of
from shortener.errors import ErrorCode
from shortener.storage.types import to_iso
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Text

_TAG = "Links"


class LinkFields(ResponseModel):
    code: str
    short_url: str
    url: str = Field(description="The destination; empty when its message was erased.")
    label: str | None
    message_id: str
    state: Literal["live", "expired", "off"]
    off_by: DisabledBy | None = Field(
        description="What is switched off: the link, its domain, its application, its destination's host."
    )
    enabled: bool = Field(description="False: the link itself is switched off.")
    disabled_at: str | None
    expires_at: str


class LinkResponse(ResponseModel):
    """The link as it is now."""

    status: Literal[True] = True
    link: LinkFields


class LinkUpdateRequest(RequestModel):
    """What to change of a link."""

    enabled: bool = Field(description="false: it answers 410 from now on, and hits on it are no clicks; true takes that back.")


class BlockedHost(ResponseModel):
    host: str
    created_at: str


class BlockedHostsResponse(ResponseModel):
    """In alphabetical order."""

    status: Literal[True] = True
    blocked_hosts: list[BlockedHost]


class BlockHostRequest(RequestModel):
    host: Text = Field(
        min_length=1,
        max_length=255,
        description="Without scheme, port and path, for example shop.example; *.shop.example for every host under it.",
    )


class BlockedHostResponse(ResponseModel):
    """The host, as it is kept."""

    status: Literal[True] = True
    host: str


async def show(call: Call[None, None]) -> dict[str, Any]:
    return _told(call, await call.service.database.read(find_link, call.path["code"], call.application_id))


async def change(call: Call[None, LinkUpdateRequest]) -> dict[str, Any]:
    service, code = call.service, call.path["code"]
    await service.database.read(find_link, code, call.application_id)
    await service.cache.invalidate([code])  # when Redis is away, it is told as soon as it is back
    link = await service.database.write(
        switch_link, code, service.clock(), enabled=call.body.enabled, application_id=call.application_id
    )
    return _told(call, link)


def _told(call: Call[None, Any], link: Any) -> dict[str, Any]:
    service = call.service
    base_url = base_url_of(service.settings, service.directory)
    return {"status": True, "link": serialize_link(link, service.directory, base_url, service.clock())}


async def blocked_hosts(call: Call[None, None]) -> dict[str, Any]:
    rows = await call.service.database.read(list_blocked_hosts, call.application_id)
    return {"status": True, "blocked_hosts": [{"host": row["host"], "created_at": to_iso(row["created_at"])} for row in rows]}


async def block(call: Call[None, BlockHostRequest]) -> BlockedHostResponse:
    service = call.service
    host = await service.database.write(block_host, call.application_id, call.body.host, service.clock())
    await service.directory.refresh()
    return BlockedHostResponse(host=host)


async def unblock(call: Call[None, None]) -> BlockedHostResponse:
    service = call.service
    host = await service.database.write(unblock_host, call.application_id, call.path["host"])
    await service.directory.refresh()
    return BlockedHostResponse(host=host)


ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/links/{code}",
        show,
        "Show a link",
        _TAG,
        permission="sms.read",
        response=LinkResponse,
        description="Where it leads, or why it leads nowhere.",
    ),
    Endpoint(
        "PATCH",
        "/api/v1/links/{code}",
        change,
        "Switch a link off or on",
        _TAG,
        permission="trackers.write",
        body=LinkUpdateRequest,
        response=LinkResponse,
        errors=(ErrorCode.CONFLICT,),
        description="At once, on every node. Hits on a link that is off are kept, and are no clicks. A link whose message was "
        "erased cannot be switched on.",
    ),
    Endpoint(
        "GET",
        "/api/v1/blocked-hosts",
        blocked_hosts,
        "List blocked destination hosts",
        _TAG,
        permission="sms.read",
        response=BlockedHostsResponse,
        description="Those of the application; the installation may block others.",
    ),
    Endpoint(
        "POST",
        "/api/v1/blocked-hosts",
        block,
        "Block a destination host",
        _TAG,
        permission="trackers.write",
        body=BlockHostRequest,
        response=BlockedHostResponse,
        errors=(ErrorCode.CONFLICT,),
        description="Within a second, on every node, all links of the application that lead there answer 410, and texts with such "
        "links are refused.",
    ),
    Endpoint(
        "DELETE",
        "/api/v1/blocked-hosts/{host}",
        unblock,
        "Unblock a destination host",
        _TAG,
        permission="trackers.write",
        response=BlockedHostResponse,
        errors=(ErrorCode.INVALID_REQUEST,),
    ),
]
