"""This module lists links with their clicks, newest message first, in keyset pages.

To fill a page, the module reads messages from an index, newest first, and then their links. No index contains the destination,
the label, the domain, the expiry or the disabled state of a link. If a filter uses one of them, at most MAX_SCANNED_MESSAGES
messages are examined for a page. The page may then contain fewer links than requested, or none, although there is a next page.
"""
# Tested by tests/web/test_links.py

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, text, union_all

from shortener.accounts.directory import Directory
from shortener.accounts.link_targets import spellings_of
from shortener.clicks.link_details import LINK_COLUMNS, serialize_link
from shortener.model import HitFlag, Verdict, record
from shortener.reporting.counts import slot_edges
from shortener.reporting.csv_lists import SerializedPage, stream_csv
from shortener.reporting.messages import MessageFilter, choose_indexes, id_limits, select_ids
from shortener.storage.database import Database
from shortener.storage.schema import cohorts, first_clicks, hits, links, messages, other_hits
from shortener.storage.types import AnyRow

MAX_SCANNED_MESSAGES = 10_000
PAGE_LINKS = 500  # The number of links in each page of a CSV export.
_CHUNK_MESSAGES = 500
_NO_CLICK = int(HitFlag.LATE | HitFlag.DISABLED)

HEADER = (
    "code",
    "short_url",
    "url",
    "label",
    "message_id",
    "campaign",
    "created_at",
    "expires_at",
    "fallback_url",
    "state",
    "off_by",
    "enabled",
    "clicks",
    "clicked_at",
)


@record
class LinkFilter:
    """The conditions of a list of links. `since` (inclusive) and `until` (exclusive) limit the time at which the message was
    created. A filter by expiry compares the expiry of a link with `now`."""

    application_id: int
    now: datetime
    campaign: str | None = None
    url: str | None = None
    label: str | None = None
    domain_id: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    enabled: bool | None = None
    expired: bool | None = None
    source: str | None = None
    is_figure: bool = False

    def of_links(self) -> list[ColumnElement[bool]]:
        """Return the conditions of the filter on columns of the table `links`, as SQL."""
        c = links.c
        found: list[ColumnElement[bool]] = []
        if self.url is not None:
            found.append(c.url.in_(spellings_of(self.url)))
        for column, value in ((c.label, self.label), (c.domain_id, self.domain_id)):
            if value is not None:
                found.append(column == value)
        if self.enabled is not None:
            found.append(c.disabled_at.is_(None) if self.enabled else c.disabled_at.is_not(None))
        if self.expired is not None:
            found.append(c.expires_at <= self.now if self.expired else c.expires_at > self.now)
        return found


class LinkPosition(NamedTuple):
    """The position of a link in a list: the row id of its message, and its position in the text of the message."""

    message: int
    position: int


@record
class LinkClicks:
    """The number of clicks on a link, and the time of the first of them. Clicks whose hits were deleted are not included."""

    clicks: int = 0
    first_at: datetime | None = None


@record
class LinkPage:
    """A page of links with the columns LINK_COLUMNS. `clicks` contains the clicks of each link, by the row id of the link. The
    next page begins after the position `next`."""

    rows: Sequence[AnyRow]
    clicks: dict[int, LinkClicks]
    next: LinkPosition | None


def list_links(connection: Connection, filters: LinkFilter, limit: int, after: LinkPosition | None = None) -> LinkPage:
    """Return the first `limit` links of the list, or the first `limit` links after a position."""
    since, until = slot_edges(filters.since, filters.until) if filters.is_figure else (filters.since, filters.until)
    of_messages = MessageFilter(filters.application_id, campaign=filters.campaign, source=filters.source, since=since, until=until)
    index_ranges, unindexed = choose_indexes(connection, of_messages)
    low, high = id_limits(of_messages, None if after is None else after.message + 1)
    conditions = [*unindexed, *filters.of_links()]
    if since is not None:
        conditions.append(messages.c.created_at >= since)
    if until is not None:
        conditions.append(messages.c.created_at < until)
    rows: list[AnyRow] = []
    scanned = 0
    reached: LinkPosition | None = after
    while index_ranges and len(rows) <= limit and scanned < MAX_SCANNED_MESSAGES:
        newest = union_all(
            *(select(select_ids(connection, one, low, high).limit(_CHUNK_MESSAGES).subquery().c.id) for one in index_ranges)
        ).subquery()
        ids = list(connection.scalars(select(newest.c.id).order_by(newest.c.id.desc()).limit(_CHUNK_MESSAGES)))
        if not ids:
            reached = None
            break
        statement = (
            select(*LINK_COLUMNS)
            .join_from(messages, links, links.c.message_id == messages.c.id)
            .join(cohorts, cohorts.c.id == messages.c.cohort_id)
            .where(messages.c.id.in_(ids), *conditions)
        )
        if after is not None:
            behind = or_(messages.c.id < after.message, and_(messages.c.id == after.message, links.c.position > after.position))
            statement = statement.where(behind)
        rows += connection.execute(statement.order_by(messages.c.id.desc(), links.c.position)).all()
        scanned += len(ids)
        high = ids[-1]
        # This position is after all links of the message, so the next page begins with the next message.
        reached = LinkPosition(ids[-1], 1 << 15)
    else:
        reached = reached if index_ranges else None
    if len(rows) > limit:
        rows = rows[:limit]
        reached = LinkPosition(rows[-1].message, rows[-1].position)
    return LinkPage(rows, count_clicks(connection, [(row.id, row.message) for row in rows]), reached)


def count_clicks(connection: Connection, of_links: Sequence[tuple[int, int]]) -> dict[int, LinkClicks]:
    """Return the clicks of each link, by the row id of the link. `of_links` contains the row id of each link and the row id of
    its message."""
    wanted = {link for link, _ in of_links}
    if not wanted:
        return {}
    is_click = (hits.c.verdict == int(Verdict.HUMAN), text(f"hits.flags & {_NO_CLICK} = 0"))
    others = (
        select(hits.c.link_id, func.count().label("clicks"), func.min(hits.c.at).label("first_at"))
        .where(hits.c.link_id.in_(wanted), other_hits(), *is_click)
        .group_by(hits.c.link_id)
    )
    found = {row.link_id: LinkClicks(row.clicks, row.first_at) for row in connection.execute(others)}
    firsts = (
        select(hits.c.link_id, hits.c.at)
        .join_from(first_clicks, hits, hits.c.id == first_clicks.c.hit_id)
        .where(first_clicks.c.id.in_({message for _, message in of_links}), *is_click)
    )
    for row in connection.execute(firsts):
        if row.link_id in wanted:
            others_of_link = found.get(row.link_id, LinkClicks())
            first_at = row.at if others_of_link.first_at is None else min(row.at, others_of_link.first_at)
            found[row.link_id] = LinkClicks(others_of_link.clicks + 1, first_at)
    return found


def export_links(
    database: Database, filters: LinkFilter, directory: Directory, base_url: Callable[[int], str], *, bom: bool
) -> AsyncIterator[bytes]:
    """Yield the links as CSV, one page at a time. If `bom` is true, begin with a byte order mark, which Excel needs."""

    async def read(after: LinkPosition | None) -> SerializedPage[LinkPosition]:
        page = await database.read(list_links, filters, PAGE_LINKS, after)
        rows = [serialize_link(row, directory, base_url, filters.now, page.clicks.get(row.id, LinkClicks())) for row in page.rows]
        return SerializedPage(rows, page.next)

    return stream_csv(read, lambda fields: fields, HEADER, bom=bom)
