"""Short links: where they lead, and the switch that disables one link."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shortener.accounts.directory import base_url_of
from shortener.clicks.link_admin import DisabledBy, find_link, serialize_link, switch_link
from shortener.errors import ErrorCode
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel

_TAG = "Links"


class LinkFields(ResponseModel):
    code: str
    short_url: str
    url: str = Field(description="The destination; empty if the message was erased.")
    label: str | None
    message_id: str
    state: Literal["live", "expired", "off"]
    off_by: DisabledBy | None = Field(
        description="What disables the link: the link itself, its domain, its application or its host."
    )
    enabled: bool = Field(description="false if the link itself is disabled.")
    disabled_at: str | None
    expires_at: str


class LinkResponse(ResponseModel):
    """The link with its current state."""

    status: Literal[True] = True
    link: LinkFields


class LinkUpdateRequest(RequestModel):
    """The change of a link."""

    enabled: bool = Field(
        description="false: the link responds with 410, and hits on it are not clicks. true: the link works again."
    )


async def show(call: Call[None, None]) -> dict[str, Any]:
    """Return one link."""
    return _link(call, await call.service.database.read(find_link, call.path["code"], call.application_id))


async def update(call: Call[None, LinkUpdateRequest]) -> dict[str, Any]:
    """Enable or disable one link."""
    service, code = call.service, call.path["code"]
    await service.database.read(find_link, code, call.application_id)
    await service.cache.invalidate([code])  # if Redis is unavailable, the cache repeats this later
    link = await service.database.write(
        switch_link, code, service.clock(), enabled=call.body.enabled, application_id=call.application_id
    )
    return _link(call, link)


def _link(call: Call[None, Any], link: Any) -> dict[str, Any]:
    service = call.service
    base_url = base_url_of(service.settings, service.directory)
    return {"status": True, "link": serialize_link(link, service.directory, base_url, service.clock())}


ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/links/{code}",
        show,
        "Show a link",
        _TAG,
        permission="sms.read",
        response=LinkResponse,
        description="Shows the destination, or why the link does not redirect.",
    ),
    Endpoint(
        "PATCH",
        "/api/v1/links/{code}",
        update,
        "Disable or enable a link",
        _TAG,
        permission="links.write",
        body=LinkUpdateRequest,
        response=LinkResponse,
        errors=(ErrorCode.CONFLICT,),
        description="Takes effect at once on every node. Hits on a disabled link are stored but are not clicks. A link whose "
        "message was erased cannot be enabled.",
    ),
]
