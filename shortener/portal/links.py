"""GET /portal/{app}/links and /portal/{app}/links/{code}: the list of links, and the page of one link with its clicks and
changes."""
# Tested by tests/portal/test_pages.py

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.clicks.link_changes import read_history
from shortener.clicks.link_details import find_link, serialize_link
from shortener.errors import ApiError, ErrorCode
from shortener.portal.csv_download import csv_download
from shortener.portal.listing import (
    FilterField,
    ListedRow,
    Listing,
    campaign_of,
    chips,
    choice,
    exported_query,
    slots_of,
    suggested_campaigns,
)
from shortener.portal.open_link import open_url
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.qr_codes import qr_code
from shortener.portal.verdict_texts import RESULTS, explain
from shortener.reporting.csv_lists import format_lines
from shortener.reporting.hits import HitFilter, list_hits, serialize_hit
from shortener.reporting.links import HEADER, LinkClicks, LinkFilter, LinkPage, LinkPosition, count_clicks, list_links
from shortener.web.paging import Cursors

ROWS = 50
_CSV_ROWS = 500
_HITS = 100  # The number of newest hits on the page of one link.
_TEST_CODE = "QR code that opens the destination without counting a click"
#: The label and the kind of badge that the pages show for each state of a link.
STATES = {"live": ("Live", "good"), "expired": ("Expired", ""), "off": ("Disabled", "bad")}
_STATE = FilterField("state", "State", {"live": "Not expired", "expired": "Expired", "disabled": "Disabled"}, is_common=True)
FIELDS = (
    _STATE,
    FilterField("campaign", "Campaign", is_common=True),
    FilterField("url", "Destination (complete URL)"),
    FilterField("label", "Label"),
)


async def links(visit: Visit) -> Response:
    """List the links of the messages that were created in the period. The links of the newest message are first."""
    if visit.is_csv:
        return await _download(visit)
    page = await visit.service.database.read(list_links, _filter(visit), ROWS, _decode(visit))
    cursors = Cursors(visit.service.secret, "portal links")
    following = None if page.next is None else f"{cursors.encode(page.next.message)}-{page.next.position}"
    rows = [ListedRow(visit.application_id, row, fields) for row, fields in zip(page.rows, _serialize(visit, page), strict=True)]
    listing = Listing(
        rows, following, visit.get("cursor") is None, FIELDS, chips(visit, FIELDS), visit.query, await suggested_campaigns(visit)
    )
    return visit.render("links.html", title="Links", listing=listing, states=STATES)


def _trusted_now(visit: Visit) -> datetime:
    """Return the time that is compared with the expiry of links. As with redirects, a sudden change of the system clock does
    not affect this time (storage/clock_guard.py)."""
    return visit.service.clock_guard.trusted_time(visit.now)


def _filter(visit: Visit) -> LinkFilter:
    since, until = slots_of(visit)
    state = choice(visit, _STATE)
    return LinkFilter(
        visit.application_id,
        _trusted_now(visit),
        campaign=campaign_of(visit),
        url=visit.get("url"),
        label=visit.get("label"),
        since=since,
        until=until,
        enabled=False if state == "disabled" else None,
        expired=None if state not in ("live", "expired") else state == "expired",
    )


def _serialize(visit: Visit, page: LinkPage) -> list[dict[str, Any]]:
    service = visit.service
    base_url = service.status_reader.base_url
    now = _trusted_now(visit)
    return [serialize_link(row, service.directory, base_url, now, page.clicks.get(row.id, LinkClicks())) for row in page.rows]


def _decode(visit: Visit) -> LinkPosition | None:
    """Return the position in the list at which the page begins, from the cursor in the query. Raise ApiError INVALID_CURSOR if
    the cursor is not valid."""
    cursor = visit.get("cursor")
    if cursor is None:
        return None
    message, _, position = cursor.partition("-")
    row_id = Cursors(visit.service.secret, "portal links").decode(message)
    if row_id is None or not position.isascii() or not position.isdecimal() or len(position) > 6:
        raise ApiError(ErrorCode.INVALID_CURSOR)
    return LinkPosition(row_id, int(position))


async def _download(visit: Visit) -> Response:
    service, filters = visit.service, _filter(visit)
    await service.database.write(visit.audit, "list_exported", "links", after=exported_query(visit))

    async def lines() -> AsyncIterator[bytes]:
        yield format_lines([("local_time", *HEADER)])
        below: LinkPosition | None = None
        while True:
            page = await service.database.read(list_links, filters, _CSV_ROWS, below)
            yield format_lines(
                [
                    (_local(visit, row.created_at), *(fields[name] for name in HEADER))
                    for row, fields in zip(page.rows, _serialize(visit, page), strict=True)
                ]
            )
            if page.next is None:
                return
            below = page.next

    return await csv_download(visit, lines(), "links")


def _local(visit: Visit, at: datetime) -> str:
    return at.astimezone(visit.zone).isoformat(timespec="seconds")


async def link(visit: Visit) -> Response:
    """Show one link: its destination, its state, its clicks and its changes."""
    service = visit.service
    found = await service.database.read(_find, visit.application_id, visit.path["code"])
    row, clicks, hits, history = found
    networks = service.networks
    fields = serialize_link(row, service.directory, service.status_reader.base_url, _trusted_now(visit), clicks)
    shown = [serialize_hit(hit, service.click_ids.encode, networks) for hit in hits]
    without_click, address = open_url(visit, row.code), fields["short_url"]
    return visit.render(
        "link.html",
        title=f"Link {row.code}",
        link=fields,
        row=row,
        states=STATES,
        hits=[
            {**one, "at_time": hit.at, "sentence": explain(hit.rule, one["counts_as"])}
            for hit, one in zip(hits, shown, strict=True)
        ],
        results=RESULTS,
        history=history,
        open_url=without_click,
        test_code=None if without_click is None else qr_code(service.settings.portal_origin + without_click, _TEST_CODE),
        real_code=qr_code(address, f"QR code of {address}") if visit.get("qr") == "real" else None,
    )


def _find(
    connection: Connection, application_id: int, code: str
) -> tuple[Any, LinkClicks, Sequence[Any], Sequence[Mapping[str, Any]]]:
    """Return a link with its number of clicks, its newest hits and the history of its changes. Raise ApiError NOT_FOUND if it
    does not exist."""
    row = find_link(connection, code, application_id)
    clicks = count_clicks(connection, [(row.id, row.message)]).get(row.id, LinkClicks())
    hits = list_hits(connection, HitFilter(application_id, code=code), _HITS).rows
    return row, clicks, hits, read_history(connection, row.id)


PAGES = [
    PortalPage(
        "/portal/{app}/links", links, csv=True, all_applications=False, navigation=NavigationItem("Links", "link", 55, key="i")
    ),
    PortalPage("/portal/{app}/links/{code}", link, all_applications=False),
]
