"""The endpoints that list links, show one link with its history, and change one link. The endpoints in `link_updates.py` change
many links."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Connection, Row
from starlette.responses import Response

from shortener.accounts.directory import base_url_of
from shortener.clicks.link_changes import (
    change_warnings,
    find_changeable,
    parse_changes,
    read_history,
    refresh_cache_after_commit,
    write_changes,
)
from shortener.clicks.link_details import DisabledBy, find_link, serialize_link
from shortener.errors import ApiError, ErrorCode
from shortener.reporting.csv_lists import SerializedPage, stream_csv
from shortener.reporting.links import HEADER, LinkClicks, LinkFilter, LinkPosition, count_clicks, export_links, list_links
from shortener.urls import canonical_host, host_of
from shortener.web.csv_response import csv_response
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import EndTime, Text, UrlText
from shortener.web.large_responses import convert_in_pieces
from shortener.web.messages import Source
from shortener.web.paging import ByteOrderMark, Cursor, Cursors, NextCursor, SingleRowCsvQuery
from shortener.web.period import Period

_TAG = "Links"


class LinkChangeFields(ResponseModel):
    """One entry in the history of a link's changes."""

    at: str
    by: str = Field(description='Who changed the link: "key N" (the id of an API key), or "command line".')
    changes: dict[str, dict[str, Any]] = Field(
        description="The changed fields of the link, each with its previous value in `from` and its new value in `to`."
    )


class LinkFields(ResponseModel):
    code: str
    short_url: str
    url: str = Field(description="Destination of the link. Empty if the message was erased.")
    label: str | None
    message_id: str
    campaign: str
    created_at: str = Field(description="Time when the message was rewritten.")
    state: Literal["live", "expired", "off"]
    off_by: DisabledBy | None = Field(
        description=(
            "The reason why the link does not redirect: the link itself, its domain or its application is disabled, or its "
            "destination host is blocked. null: none of these reasons applies."
        )
    )
    enabled: bool = Field(description="false if the link itself is disabled.")
    disabled_at: str | None
    expires_at: str
    fallback_url: str | None
    clicks: int = Field(
        description="Number of clicks by people on the link. Clicks that are older than HIT_RETENTION_DAYS are not included, "
        "because they are deleted."
    )
    clicked_at: str | None = Field(description="Time of the first click on the link by a person.")


class LinkWithHistory(LinkFields):
    history: list[LinkChangeFields] = Field(description="Changes of the link after its creation, newest first, at most 100.")


class LinkResponse(ResponseModel):
    """A short link with its current state."""

    status: Literal[True] = True
    link: LinkWithHistory


class ChangedLinkResponse(LinkResponse):
    """A short link after a change."""

    warnings: list[str] = Field(
        description="Warnings about the new destination or fallback URL: it contains an HTML entity (such as `&amp;` in the place "
        "of `&`), or a placeholder that will not be filled in."
    )


class LinksResponse(ResponseModel):
    """One page of links, newest message first."""

    status: Literal[True] = True
    links: list[LinkFields]
    next_cursor: NextCursor


class LinksExportQuery(Period):
    """Filters of links. The period refers to the creation of the message."""

    campaign: Text | None = Field(None, max_length=200, description="Only links of messages of the campaign with this name.")
    url: UrlText | None = Field(None, max_length=2048, description="Only links with exactly this destination URL.")
    label: Text | None = Field(None, max_length=200, description="Only links with this label of #trackurl.")
    domain: Text | None = Field(None, max_length=255, description="Only short links on this host.")
    enabled: bool | None = Field(None, description="true: only enabled links. false: only disabled links.")
    expired: bool | None = Field(None, description="true: only expired links. false: only links that have not expired.")
    source: Source = Field("all", description="Only links of messages of this traffic source. Default: all.")
    metric: Literal["links"] | None = Field(
        None,
        description="Name of a figure of the statistics: only the links that this figure counts. As in the statistics, the "
        "period is extended to complete time slots of 15 minutes.",
    )
    basis: Literal["event", "sent"] = Field(
        "event",
        description=(
            "Has no effect: the time of a link is always the time when its message was created. The parameter is accepted, "
            "so that the filters of the statistics can be used here unchanged."
        ),
    )


class LinksCsvQuery(LinksExportQuery):
    """Filters of links, and options of the CSV."""

    bom: ByteOrderMark = False


class LinksQuery(LinksExportQuery):
    """Filters of links, and the position of the page in the list."""

    limit: int = Field(100, ge=1, le=1000, description="Maximum number of links in a page.")
    cursor: Cursor = None


class LinkUpdateRequest(RequestModel):
    """The changes of a link. A field that is absent keeps its value."""

    url: UrlText | None = Field(
        None,
        max_length=2048,
        description="New destination URL of the link. It may contain the same placeholders as a URL in a text.",
    )
    expires_at: EndTime | None = Field(
        None,
        description="New time of expiry of the link, in ISO 8601 (UTC without a zone). A date includes the whole day. It may be in "
        "the past, but not before the year 2000.",
    )
    fallback_url: UrlText | None = Field(
        None,
        max_length=2048,
        description="URL to which the link redirects after it expires. null: the fallback URL of the domain or of the application.",
    )
    enabled: bool | None = Field(
        None, description="false: the link responds with 410, and hits on it are not clicks. true: the link works again."
    )


async def index(call: Call[LinksQuery, None]) -> dict[str, Any]:
    """Return one page of links."""
    service = call.service
    filters = _filter(call)
    page = await service.database.read(list_links, filters, call.query.limit, _decode(call))
    base_url = base_url_of(service.settings, service.directory)
    none = LinkClicks()
    cursor = None
    if page.next is not None:
        cursor = f"{Cursors(service.secret, 'links').encode(page.next.message)}-{page.next.position}"
    return {
        "status": True,
        "links": await convert_in_pieces(
            lambda row: serialize_link(row, service.directory, base_url, filters.now, page.clicks.get(row.id, none)), page.rows
        ),
        "next_cursor": cursor,
    }


async def export(call: Call[LinksCsvQuery, None]) -> Response:
    """Stream the links that match the filters as CSV."""
    service = call.service
    base_url = base_url_of(service.settings, service.directory)
    pages = export_links(service.database, _filter(call), service.directory, base_url, bom=call.query.bom)
    return await csv_response(call, "links", pages)


async def show(call: Call[None, None]) -> dict[str, Any]:
    """Return one link of the application with its history."""
    return _link(call, await call.service.database.read(_read_link, call.path["code"], call.application_id))


async def show_csv(call: Call[SingleRowCsvQuery, None]) -> Response:
    """Return one link of the application as CSV, with the columns of the list."""
    stored = await call.service.database.read(_read_link, call.path["code"], call.application_id)
    page: SerializedPage[None] = SerializedPage([_link(call, stored)["link"]], None)

    async def read(after: None) -> SerializedPage[None]:
        return page

    return await csv_response(call, "link", stream_csv(read, lambda fields: fields, HEADER, bom=call.query.bom))


async def update(call: Call[None, LinkUpdateRequest]) -> dict[str, Any]:
    """Change one link of the application."""
    service, code = call.service, call.path["code"]
    requested = requested_changes(call.body)
    changes = parse_changes(requested, call.principal.application, service.link_hosts, service.clock())

    def write(connection: Connection) -> _StoredLink:
        row = find_changeable(connection, code, call.application_id)
        if not row.url:
            raise ApiError(ErrorCode.CONFLICT, "The link cannot be changed, because its message was erased.")
        write_changes(connection, [row], changes, actor=call.audit.actor, now=service.clock(), ids=service.ids)
        return _read_link(connection, code, call.application_id)

    await service.database.read(find_link, code, call.application_id)
    await service.cache.invalidate([code])  # If Redis is unavailable, `retry_invalidations` does this later.
    changed = await service.database.write(write)
    await refresh_cache_after_commit(service.database, service.cache, [code])
    return {**_link(call, changed), "warnings": change_warnings(requested)}


def requested_changes(request: LinkUpdateRequest) -> dict[str, Any]:
    """Return the new values of the fields that the request contains, by field name. Fields that the request does not contain are
    absent from the result."""
    return {name: getattr(request, name) for name in request.model_fields_set & set(LinkUpdateRequest.model_fields)}


def _filter(call: Call[Any, None]) -> LinkFilter:
    service, query = call.service, call.query
    domain_id = None
    if query.domain is not None:
        host = canonical_host(query.domain)
        domain = service.directory.domain(host)
        is_shared = domain is None and host == host_of(service.settings.base_url)
        domain_id = domain.id if domain is not None else 0 if is_shared else -1
    since, until = query.limits()
    return LinkFilter(
        call.application_id,
        service.clock_guard.trusted_time(service.clock()),
        campaign=query.campaign,
        url=query.url,
        label=query.label,
        domain_id=domain_id,
        since=since,
        until=until,
        source=None if query.source == "all" else query.source,
        is_figure=query.metric is not None,
        enabled=query.enabled,
        expired=query.expired,
    )


def _decode(call: Call[LinksQuery, None]) -> LinkPosition | None:
    if call.query.cursor is None:
        return None
    message, _, position = call.query.cursor.partition("-")
    decoded = Cursors(call.service.secret, "links").decode(message)
    if decoded is None or not (position.isascii() and position.isdigit() and len(position) <= 5):
        raise ApiError(ErrorCode.INVALID_CURSOR)
    return LinkPosition(decoded, int(position))


# the row of a link, the figures of its clicks (the key is the row id of the link), and the history of its changes
_StoredLink = tuple[Row[Any], dict[int, LinkClicks], list[dict[str, Any]]]


def _read_link(connection: Connection, code: str, application_id: int) -> _StoredLink:
    row = find_link(connection, code, application_id)
    return row, count_clicks(connection, [(row.id, row.message)]), read_history(connection, row.id)


def _link(call: Call[Any, Any], stored: _StoredLink) -> dict[str, Any]:
    service, (row, clicks, history) = call.service, stored
    base_url = base_url_of(service.settings, service.directory)
    now = service.clock_guard.trusted_time(service.clock())
    fields = serialize_link(row, service.directory, base_url, now, clicks.get(row.id, LinkClicks()))
    return {"status": True, "link": fields | {"history": history}}


_PAGES = (
    "Newest message first. `cursor` requests the next page. A page may contain fewer links than `limit`, or none, and still have a "
    "`next_cursor`, because with some filters at most 10,000 messages are read to fill one page."
)

ENDPOINTS = [
    Endpoint(
        "GET",
        "/api/v1/links",
        index,
        "List links",
        _TAG,
        permission="sms.read",
        query=LinksQuery,
        response=LinksResponse,
        errors=(ErrorCode.INVALID_CURSOR,),
        description=_PAGES,
    ),
    Endpoint(
        "GET",
        "/api/v1/links.csv",
        export,
        "Export links as CSV",
        _TAG,
        permission="sms.read",
        query=LinksCsvQuery,
        media_type="text/csv",
        description="Exports all links that match the filters as CSV in UTF-8. The links of the newest message come first.",
    ),
    Endpoint(
        "GET",
        "/api/v1/links/{code}.csv",
        show_csv,
        "Export a link as CSV",
        _TAG,
        permission="sms.read",
        query=SingleRowCsvQuery,
        media_type="text/csv",
        errors=(ErrorCode.NOT_FOUND,),
        description="One row with the columns of `/api/v1/links.csv`.",
    ),
    Endpoint(
        "GET",
        "/api/v1/links/{code}",
        show,
        "Show a link",
        _TAG,
        permission="sms.read",
        response=LinkResponse,
        description=(
            "Returns the destination and the state of a short link. If the link does not redirect, the response contains the "
            "reason. It also contains the newest changes of the link, at most 100."
        ),
    ),
    Endpoint(
        "PATCH",
        "/api/v1/links/{code}",
        update,
        "Change a link",
        _TAG,
        permission="links.write",
        body=LinkUpdateRequest,
        response=ChangedLinkResponse,
        errors=(ErrorCode.CONFLICT,),
        description="Changes a link at once on every node. The history of the link stores each change with its time and its "
        "author. Hits on a disabled link are stored but are not clicks. A link whose message was erased cannot be changed.",
    ),
]
