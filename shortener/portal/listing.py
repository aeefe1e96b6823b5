"""This module shows lists of rows, such as messages, newest first. A list contains the rows of one application or of all
applications. The URL contains the filters, and each list can also be downloaded as CSV.

The functions of `shortener.reporting` read the rows. Each call examines a limited number of rows. If none of these rows matches
the filters, the list calls the function again, up to MAX_READS times. Therefore an empty page that has a next page is rare.
"""
# Tested by tests/portal/test_listing.py

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.logs import mask
from shortener.model import record
from shortener.portal.csv_download import csv_download
from shortener.portal.formats import visible
from shortener.portal.page import Visit
from shortener.reporting.counts import slot_edges
from shortener.reporting.csv_lists import PAGE_ROWS, ListPage, format_lines, stream_csv
from shortener.reporting.statistics import find_newest_campaigns
from shortener.web.paging import Cursors

SUGGESTED_CAMPAIGNS = 50  # The maximum number of campaigns that the campaign filter suggests.
ROWS = 50  # The number of rows on one page of a list.
# The maximum number of reads of the database for one page of a list. A list reads again if the last read found no matching row.
MAX_READS = 5
MAX_EXPORTED_CHARACTERS = 200  # The maximum number of characters of a filter's value in the audit row of an export.
#: The query parameters that the audit row of an export contains: the period, the filters of all lists, and `numbers` (whether the
#: export contains complete phone numbers).
EXPORTED_NAMES = (
    *("period", "since", "until", "tz", "basis", "numbers"),
    *("campaign", "no_campaign", "to", "country", "destination", "url", "label", "source", "code", "message", "tracker", "replay"),
    *("device", "browser", "click_time", "value_in"),
    *(
        "gateway",
        "metric",
        "state",
        "status",
        "verdict",
        "rule",
        "disposition",
        "action",
        "transaction",
        "warnings",
        "reason",
        "operator",
    ),
)


#: A function that reads a page of rows of one application. Its arguments are the connection, the application id, the maximum
#: number of rows, and a row id or None. The page contains only rows with ids below this row id; None selects the first page.
ReadPage = Callable[[Connection, int, int, int | None], ListPage[int]]


@record
class ListedRow:
    """A row of a list, and the application that owns the row. `details` contains the values that `ListSource.describe` returned
    for the row."""

    application_id: int
    row: Any
    details: Any = None


@record
class MergedPage:
    """A page of the rows of several applications, newest first."""

    rows: Sequence[ListedRow]
    next: int | None


@record
class FilterField:
    """A form field that filters a list. `choices` contains the permitted values with their labels; None permits any text. If
    `is_common` is true, the field is always visible. Otherwise, it becomes visible when the operator opens "More filters"."""

    name: str
    label: str
    choices: Mapping[str, str] | None = None
    is_common: bool = False


@record
class Chip:
    """A filter that is set on the page. It contains the filter's description, and the URL of the same page without the filter."""

    label: str
    value: str
    remove_url: str


@record
class Listing:
    """The values that the template of a list shows. `next` is the cursor of the next page. `campaigns` are the names that the
    campaign filter suggests."""

    rows: Sequence[ListedRow]
    next: str | None
    is_first: bool
    fields: Sequence[FilterField]
    chips: Sequence[Chip]
    values: Mapping[str, str] = field(default_factory=dict)
    campaigns: Sequence[str] = ()


@record
class ListSource:
    """The functions that read the rows of a list and convert them. `read` reads a page of rows of one application. `serialize`
    returns the CSV columns of a row, by column name. `time` returns the time of a row; the CSV column `local_time` contains it in
    the time zone of the page. `describe(page, row)` returns the values that the template shows for a row."""

    noun: str
    read: ReadPage
    columns: Sequence[str]
    serialize: Callable[[ListedRow], Mapping[str, Any]]
    time: Callable[[Any], datetime]
    describe: Callable[[Any, Any], Any] = lambda page, row: None


def slots_of(visit: Visit) -> tuple[datetime, datetime]:
    """Return the start and end of a page's period, extended to complete time slots of 15 minutes. The statistics count by time
    slot, so a list must cover the same slots."""
    since, until = slot_edges(visit.period.since, visit.period.until)
    assert since is not None
    assert until is not None
    return since, until


def campaign_of(visit: Visit) -> str | None:
    """Return the campaign that the query selects. "" selects messages without a campaign (`no_campaign=1` in the query)."""
    named = visit.get("campaign")
    return "" if named is None and visit.get("no_campaign") else named


def campaign_query(name: str) -> dict[str, str]:
    """Return the query parameters that select a campaign in a list."""
    return {"campaign": name} if name else {"no_campaign": "1"}


async def show_list(visit: Visit, template: str, source: ListSource, fields: Sequence[FilterField], **context: Any) -> Response:
    """Return one page of a list, or the complete list as CSV if the request is for the CSV."""
    if visit.is_csv:
        return await download(visit, source)
    cursors = Cursors(visit.service.secret, f"portal {source.noun}")
    cursor = visit.get("cursor")
    page = await _read(visit, source, ROWS, cursors.decode(cursor))
    for _ in range(MAX_READS - 1):
        if page.rows or page.next is None:
            break
        page = await _read(visit, source, ROWS, page.next)
    listing = Listing(
        page.rows,
        cursors.encode(page.next),
        cursor is None,
        fields,
        chips(visit, fields),
        visit.query,
        await suggested_campaigns(visit),
    )
    return visit.render(template, listing=listing, **context)


async def suggested_campaigns(visit: Visit) -> list[str]:
    """Return the names of the newest campaigns of the applications that the page shows."""
    applications = [application.id for application in visit.applications]
    return await visit.service.database.read(find_newest_campaigns, applications, SUGGESTED_CAMPAIGNS)


async def download(visit: Visit, source: ListSource) -> Response:
    """Return the complete list as CSV, and record the export in the audit log."""
    await visit.service.database.write(visit.audit, "list_exported", source.noun, after=exported_query(visit))

    async def read(below: int | None) -> MergedPage:
        return await _read(visit, source, PAGE_ROWS, below)

    def serialize(listed: ListedRow) -> dict[str, Any]:
        local = source.time(listed.row).astimezone(visit.zone).isoformat(timespec="seconds")
        return {"application": listed.application_id, "local_time": local, **source.serialize(listed)}

    columns = ("local_time", *source.columns) if visit.application else ("application", "local_time", *source.columns)
    lines = stream_csv(read, serialize, columns)
    return await csv_download(visit, lines, source.noun)


async def download_short_list(visit: Visit, noun: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Response:
    """Return a short list as CSV, such as the trackers of an application. A list is short if one page shows all its rows. Record
    the export in the audit log. Values in `rows` whose names are not in `columns` are ignored."""
    await visit.service.database.write(visit.audit, "list_exported", noun, after=exported_query(visit))

    async def lines() -> AsyncIterator[bytes]:
        yield format_lines([columns, *([row.get(name) for name in columns] for row in rows)])

    return await csv_download(visit, lines(), noun)


def exported_query(visit: Visit) -> dict[str, str]:
    """Return the query parameters (EXPORTED_NAMES) of an export, as its audit row stores them.

    A phone number is masked, characters that are not printable are replaced, and a long value is shortened."""
    found = {}
    for name in EXPORTED_NAMES:
        value = visit.get(name)
        if value is not None:
            text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value)
            found[name] = mask(text) if name == "to" else text[:MAX_EXPORTED_CHARACTERS]
    return found


async def _read(visit: Visit, source: ListSource, limit: int, below: int | None) -> MergedPage:
    applications = [application.id for application in visit.applications]
    return await visit.service.database.read(merge, source, applications, limit, below)


def merge(connection: Connection, source: ListSource, applications: Sequence[int], limit: int, below: int | None) -> MergedPage:
    """Return one page with the newest rows of several applications, merged from one page of each application. The next merged
    page begins below the row id `next`; every row with a higher or equal id is on this page or on an earlier page."""
    pages = [(application, source.read(connection, application, limit, below)) for application in applications]
    # The page of an application contains only rows with ids of at least `next`. Below the highest `next` of all pages, rows of
    # one application would be missing. Therefore the merged page ends there.
    limits = [page.next for _, page in pages if page.next is not None]
    lowest = max(limits, default=None)
    rows = [
        ListedRow(application, row, source.describe(page, row))
        for application, page in pages
        for row in page.rows
        if lowest is None or row.id >= lowest
    ]
    if len(pages) > 1:
        rows = heapq.nlargest(limit + 1, rows, key=lambda listed: listed.row.id)
        if len(rows) > limit:
            rows = rows[:limit]
            lowest = rows[-1].row.id
    return MergedPage(rows, lowest)


def chips(visit: Visit, fields: Sequence[FilterField]) -> list[Chip]:
    """Return the chips of a page: the filters that its query sets."""
    found = []
    for one in fields:
        value = visit.get(one.name)
        if value is not None:
            shown = value if one.choices is None else one.choices.get(value, value)
            found.append(Chip(one.label, visible(shown), visit.here(**{one.name: None})))
    if campaign_of(visit) == "":
        found.append(Chip("Campaign", "none", visit.here(no_campaign=None)))
    return found


def choice(visit: Visit, one: FilterField) -> str | None:
    """Return the value of a filter with fixed choices. Raise ApiError INVALID_REQUEST if the value is not one of the choices."""
    value = visit.get(one.name)
    if value is not None and one.choices is not None and value not in one.choices:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(one.name, f"must be one of {', '.join(one.choices)}")])
    return value
