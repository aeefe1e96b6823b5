"""The endpoints for updates of many links. A background job changes all links that the campaign, the destination or the label in
the request selects."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

from pydantic import AliasChoices, Field
from sqlalchemy import Connection, Row

from shortener.accounts.link_targets import spellings_of
from shortener.clicks.link_changes import change_warnings, parse_changes
from shortener.clicks.link_updates import (
    LinkSelection,
    create_update,
    find_update,
    list_updates,
    serialize_update,
    stop_update,
)
from shortener.errors import ApiError, Detail, ErrorCode, StoreUnavailable
from shortener.ids import LINK_UPDATE_IDS
from shortener.web.endpoint import Call, Endpoint, ResponseModel
from shortener.web.fields import CampaignName, Text, UrlText
from shortener.web.links import LinkUpdateRequest, requested_changes

_TAG = "Links"
_UPDATES = "/api/v1/links/updates"
# The request that creates an update counts the links for at most this time. After that, the background job counts them.
COUNT_SECONDS = 1.0


class LinksUpdateRequest(LinkUpdateRequest):
    """An update of many links. At least one of `campaign`, `destination` and `label` selects the links."""

    campaign: CampaignName | None = Field(None, description="Change only links of messages of this campaign.")
    destination: UrlText | None = Field(
        None,
        max_length=2048,
        validation_alias=AliasChoices("destination", "destination_url"),
        description="Change only links with exactly this destination URL.",
    )
    label: Text | None = Field(None, max_length=200, description="Change only links with this label.")


class LinksUpdateFields(ResponseModel):
    update_id: str
    state: Literal["counting", "running", "done", "stopped"]
    total: int | None = Field(description="Exact number of links that the update selects. null: the links are still being counted.")
    done: int = Field(description="Number of links that the update has processed.")
    changed: int = Field(description="Number of links that the update has changed.")
    by: str
    filter: dict[str, str]
    changes: dict[str, Any]
    created_at: str
    finished_at: str | None


class LinksUpdateResponse(ResponseModel):
    """An update of many links with its progress."""

    status: Literal[True] = True
    update: LinksUpdateFields


class NewLinksUpdateResponse(LinksUpdateResponse):
    """An update of many links that was just created."""

    warnings: list[str] = Field(
        description="Warnings about the new destination or fallback URL: it contains an HTML entity (such as `&amp;` in the place "
        "of `&`), or a placeholder that will not be filled in."
    )


class LinksUpdatesResponse(ResponseModel):
    """The latest updates, newest first, at most 100."""

    status: Literal[True] = True
    updates: list[LinksUpdateFields]


async def update_many(call: Call[None, LinksUpdateRequest]) -> dict[str, Any]:
    """Create a background update of many links."""
    service, request = call.service, call.body
    requested = requested_changes(request)
    changes = parse_changes(requested, call.principal.application, service.link_hosts, service.clock())
    if request.campaign is None and request.destination is None and request.label is None:
        reason = "at least one of campaign, destination and label must be present, because these fields select the links"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("campaign", reason)])
    selection = LinkSelection(request.campaign, request.destination and spellings_of(request.destination)[-1], request.label)
    actor, owner = call.audit.actor, call.application_id

    def write(connection: Connection) -> Row[Any]:
        update_id = create_update(connection, owner, selection, changes, actor=actor, ids=service.ids, clock=service.clock)
        return find_update(connection, LINK_UPDATE_IDS.encode(update_id), owner)

    created = await service.database.write(write)
    # The update exists. Its job counts the links when the database is available again.
    with contextlib.suppress(StoreUnavailable):
        await service.link_updates.perform(created.id, seconds=COUNT_SECONDS, until_counted=True)
        created = await service.database.read(find_update, LINK_UPDATE_IDS.encode(created.id), owner)
    service.link_updates.wake_up.notify()
    return {**_update(created), "warnings": change_warnings(requested)}


async def index_updates(call: Call[None, None]) -> dict[str, Any]:
    """Return the latest updates of links."""
    rows = await call.service.database.read(list_updates, call.application_id)
    return {"status": True, "updates": [serialize_update(row) for row in rows]}


async def show_update(call: Call[None, None]) -> dict[str, Any]:
    """Return one update of links with its progress."""
    return _update(await call.service.database.read(find_update, call.path["update_id"], call.application_id))


async def stop(call: Call[None, None]) -> dict[str, Any]:
    """Stop one update of links."""
    service = call.service
    actor = call.audit.actor
    return _update(
        await service.database.write(
            lambda connection: stop_update(
                connection, call.path["update_id"], call.application_id, service.clock, actor=actor, ids=service.ids
            )
        )
    )


def _update(row: Any) -> dict[str, Any]:
    return {"status": True, "update": serialize_update(row)}


ENDPOINTS = [
    Endpoint(
        "POST",
        "/api/v1/links/update",
        update_many,
        "Change many links",
        _TAG,
        permission="links.write",
        body=LinksUpdateRequest,
        response=NewLinksUpdateResponse,
        status=202,
        description="Starts a background job that changes all links with the given campaign, destination and label. `total` is the "
        "exact number of links, or null while they are being counted. Links that are created later are not changed.",
    ),
    Endpoint("GET", _UPDATES, index_updates, "List updates of links", _TAG, permission="sms.read", response=LinksUpdatesResponse),
    Endpoint(
        "GET",
        f"{_UPDATES}/{{update_id}}",
        show_update,
        "Show the progress of an update of links",
        _TAG,
        permission="sms.read",
        response=LinksUpdateResponse,
    ),
    Endpoint(
        "POST",
        f"{_UPDATES}/{{update_id}}/stop",
        stop,
        "Stop an update of links",
        _TAG,
        permission="links.write",
        response=LinksUpdateResponse,
        description="Stops an update of links. Links that the update has already changed stay changed.",
    ),
]
