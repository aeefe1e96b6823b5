"""This module lists conversions and refused conversion reports, newest first, in keyset pages and as CSV.

Conversions are sorted by their row id, which grows with the time of receipt. A filter by time, however, uses the time that was
reported for the conversion, as the statistics do. No index contains the reported time, the action or the status. To limit the
work, at most MAX_SCANNED_ROWS conversions are read to fill one page. A page may therefore contain fewer rows than requested, or
none, although there is a next page.

A CSV export reads one page after the other in constant memory, each page in a short transaction (see csv_lists.py).
"""
# Tested by tests/web/test_conversion_lists.py

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Select, func, select

from shortener.conversions.queries import StoredRevision, find_revisions
from shortener.conversions.status_words import WORDS, classify
from shortener.ids import CONVERSION_IDS, MAX_ROW_ID, REFUSED_REPORT_IDS, first_id_at
from shortener.logs import mask_parameters
from shortener.model import record
from shortener.reporting.counts import slot_edges
from shortener.reporting.csv_lists import SerializedPage, stream_csv
from shortener.reporting.link_set_names import find_link_sets
from shortener.reporting.messages import serialize_decimal
from shortener.reporting.rollups import Basis
from shortener.storage.database import Database
from shortener.storage.schema import cohorts, conversions, messages, refused_conversions
from shortener.storage.types import AnyRow, to_iso, to_ms
from shortener.times import MAX_AHEAD

MAX_SCANNED_ROWS = 10_000  # The maximum number of conversions that are read to fill one page.
PAGE_ROWS = 200  # The number of conversions in each page of a CSV export.


@record
class ConversionFilter:
    """The conditions of a list of conversions. `since` is inclusive, `until` is exclusive. `campaign` "" selects conversions of
    messages without a campaign.

    If `is_figure` is true, the list contains exactly the conversions that the figure `conversions` of the statistics counts. The
    period is then extended to complete time slots, and `basis` says which time must be in the period: the time of the conversion
    or of its message.

    `disposition` is positive, negative, none (no disposition) or pending. Pending conversions are those without a disposition
    whose status means pending."""

    application_id: int
    since: datetime | None = None
    until: datetime | None = None
    campaign: str | None = None
    action: str | None = None
    status: str | None = None
    disposition: str | None = None
    message_id: str | None = None
    transaction_id: str | None = None
    with_warnings: bool = False
    is_figure: bool = False
    basis: Basis = Basis.EVENT
    source: str | None = None
    country: str | None = None
    destination: str | None = None
    label: str | None = None

    @property
    def period(self) -> tuple[datetime | None, datetime | None]:
        """The start and the end of the period."""
        return slot_edges(self.since, self.until) if self.is_figure else (self.since, self.until)


@record
class ConversionPage:
    """A page of conversions with their earlier revisions. The ids of the next page are smaller than `next`. On the last page,
    `next` is None."""

    rows: Sequence[AnyRow]
    revisions: Mapping[int, Sequence[StoredRevision]]
    next: int | None


@record
class RefusedPage:
    """A page of rows of the table `refused_conversions`. The ids of the next page are smaller than `next`. On the last page,
    `next` is None."""

    rows: Sequence[AnyRow]
    next: int | None


def list_conversions(connection: Connection, filters: ConversionFilter, limit: int, below: int | None = None) -> ConversionPage:
    """Return the newest `limit` conversions that match the filter. If `below` is not None, return only conversions whose ids are
    smaller than `below`."""
    c = conversions.c
    conditions = [c.application_id == filters.application_id, c.id < (MAX_ROW_ID if below is None else below)]
    # The reported time of a conversion is at most MAX_AHEAD after its receipt; a later time is rejected. Therefore conversions
    # that were stored more than MAX_AHEAD before `since` cannot match.
    begin, _ = filters.period
    if begin is not None:
        conditions.append(c.id >= first_id_at(to_ms(begin - MAX_AHEAD)))
    if filters.message_id is not None:
        own = messages.c.application_id == filters.application_id, messages.c.message_id == filters.message_id
        conditions.append(c.message_id == select(messages.c.id).where(*own).scalar_subquery())
    scanned = select(c.id).where(*conditions).order_by(c.id.desc()).offset(MAX_SCANNED_ROWS - 1).limit(1)
    floor: int | None = connection.scalar(scanned)
    if floor is not None:
        conditions.append(c.id >= floor)
    rows = connection.execute(_newest([*conditions, *_filter_conditions(connection, filters)], limit + 1)).all()
    following = floor
    if len(rows) > limit:
        rows, following = rows[:limit], rows[limit - 1].id
    return ConversionPage(rows, find_revisions(connection, [row.id for row in rows if row.revision > 1]), following)


def _newest(conditions: Sequence[ColumnElement[bool]], limit: int) -> Select[Any]:
    c = conversions.c
    shown = select(conversions, messages.c.message_id.label("public_message_id"), cohorts.c.campaign)
    joined = shown.join_from(conversions, messages, messages.c.id == c.message_id).join(
        cohorts, cohorts.c.id == messages.c.cohort_id
    )
    return joined.where(*conditions).order_by(c.id.desc()).limit(limit)


def _filter_conditions(connection: Connection, filters: ConversionFilter) -> list[ColumnElement[bool]]:
    c = conversions.c
    found: list[ColumnElement[bool]] = []
    begin, end = filters.period
    # With Basis.SENT, the period limits the time at which the message was created. The row id of the message contains this time.
    if filters.is_figure and filters.basis is Basis.SENT:
        found += [] if begin is None else [c.message_id + 0 >= first_id_at(to_ms(begin))]
        found += [] if end is None else [c.message_id + 0 < first_id_at(to_ms(end))]
    else:
        found += [] if begin is None else [c.at >= begin]
        found += [] if end is None else [c.at < end]
    for column, value in (
        (cohorts.c.campaign, filters.campaign),
        (cohorts.c.source, filters.source),
        (cohorts.c.country, filters.country),
    ):
        if value is not None:
            found.append(column == value)
    if filters.destination is not None or filters.label is not None:
        found.append(messages.c.link_set_id.in_(find_link_sets(connection, filters)))
    if filters.action is not None:
        found.append(c.action.in_({filters.action, filters.action.casefold()}))
    if filters.transaction_id is not None:
        found.append(c.transaction_id.in_({filters.transaction_id, filters.transaction_id.casefold()}))
    if filters.status is not None:
        found.append(func.lower(c.status) == filters.status.lower())
    if filters.disposition in ("positive", "negative"):
        found.append(c.disposition == filters.disposition)
    elif filters.disposition is not None:
        found.append(c.disposition.is_(None))
        if filters.disposition == "pending":
            word = func.lower(c.status)
            for separator in "_- ":
                word = func.replace(word, separator, "")
            found.append(word.in_(WORDS["pending"]))
    if filters.with_warnings:
        found.append(c.warnings.is_not(None))
    return found


def serialize_revision(revision: StoredRevision) -> dict[str, Any]:
    """Return one revision of a conversion in the format of the API."""
    return {
        "revision": revision.revision,
        "status": revision.status,
        "disposition": revision.disposition,
        "value": serialize_decimal(revision.value),
        "currency": revision.currency,
        "timestamp": to_iso(revision.at),
        "received_at": to_iso(revision.received_at),
    }


def serialize_conversion(
    row: AnyRow, earlier: Sequence[StoredRevision], encode_click: Callable[[int], str], *, reveal: bool, **more: Any
) -> dict[str, Any]:
    """Return a row of `conversions` in the format of the API. `earlier` contains the earlier revisions of the conversion, oldest
    first. Phone numbers in the metadata and in the warnings are masked unless `reveal` is true."""
    latest = StoredRevision(
        row.revision,
        row.status,
        row.disposition,
        row.value,
        row.currency,
        row.latest_at or row.at,
        row.updated_at or row.received_at,
    )
    return {
        "conversion_id": CONVERSION_IDS.encode(row.id),
        **more,
        "click_id": None if row.hit_id is None else encode_click(row.hit_id),
        "action": row.action_text or row.action,
        "transaction_id": row.transaction_text or row.transaction_id or None,
        "status": row.status,
        "disposition": row.disposition,
        "pending": row.disposition is None and classify(row.status) == "pending",
        "value": serialize_decimal(row.value),
        "currency": row.currency,
        "timestamp": to_iso(row.at),
        "received_at": to_iso(row.received_at),
        "updated_at": to_iso(row.updated_at),
        "metadata": row.metadata if reveal else mask_parameters(row.metadata),
        "warnings": (row.warnings if reveal else mask_parameters(row.warnings)) or [],
        "revision": row.revision,
        "revisions": [serialize_revision(one) for one in (*earlier, latest)],
    }


def serialize_listed(
    row: AnyRow, earlier: Sequence[StoredRevision], encode_click: Callable[[int], str], *, reveal: bool = False
) -> dict[str, Any]:
    """Return a row of `list_conversions` in the format of the API. Phone numbers are masked unless `reveal` is true."""
    return serialize_conversion(row, earlier, encode_click, reveal=reveal, message_id=row.public_message_id, campaign=row.campaign)


def list_refused(
    connection: Connection,
    application_id: int,
    limit: int,
    below: int | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    reason: str | None = None,
) -> RefusedPage:
    """Return the newest `limit` refused reports. If `below` is not None, return only reports whose ids are smaller than `below`.
    If `reason` is not None, return only reports that were refused with this error code."""
    r = refused_conversions.c
    statement = select(refused_conversions).where(r.application_id == application_id).order_by(r.id.desc()).limit(limit + 1)
    if below is not None:
        statement = statement.where(r.id < below)
    if since is not None:
        statement = statement.where(r.received_at >= since)
    if until is not None:
        statement = statement.where(r.received_at < until)
    if reason is not None:
        statement = statement.where(r.reason == reason)
    rows = connection.execute(statement).all()
    return RefusedPage(rows[:limit], rows[limit - 1].id if len(rows) > limit else None)


def serialize_refused(row: AnyRow, *, reveal: bool = False) -> dict[str, Any]:
    """Return a row of `refused_conversions` in the format of the API. Phone numbers in the parameters are masked unless `reveal` is
    true."""
    parameters: Mapping[str, Any] = row.parameters if reveal else mask_parameters(row.parameters)

    def text(name: str) -> str | None:
        value = parameters.get(name)
        return None if value is None else str(value)

    return {
        "refused_id": REFUSED_REPORT_IDS.encode(row.id),
        "received_at": to_iso(row.received_at),
        "endpoint": row.endpoint,
        "reason": row.reason,
        "description": row.description,
        "details": row.details,
        "message_id": text("message_id"),
        "click_id": text("click_id"),
        "transaction_id": text("transaction_id"),
        "parameters": parameters,
    }


CONVERSION_COLUMNS = (
    "conversion_id",
    "message_id",
    "click_id",
    "campaign",
    "action",
    "transaction_id",
    "status",
    "disposition",
    "value",
    "currency",
    "timestamp",
    "received_at",
    "updated_at",
    "revision",
    "revisions",
    "warnings",
    "metadata",
)
REFUSED_COLUMNS = (
    "refused_id",
    "received_at",
    "endpoint",
    "reason",
    "description",
    "details",
    "message_id",
    "click_id",
    "transaction_id",
    "parameters",
)


def conversions_csv(
    database: Database, filters: ConversionFilter, encode_click: Callable[[int], str], *, bom: bool, reveal: bool
) -> AsyncIterator[bytes]:
    """Yield the header and one line for each conversion. If `bom` is true, begin with a byte order mark, which Excel requires for
    UTF-8. Phone numbers are masked unless `reveal` is true. Raise StoreUnavailable if the database is unavailable."""

    async def read(below: int | None) -> SerializedPage[int]:
        page = await database.read(list_conversions, filters, PAGE_ROWS, below)
        rows = [serialize_listed(row, page.revisions.get(row.id, ()), encode_click, reveal=reveal) for row in page.rows]
        return SerializedPage(rows, page.next)

    return stream_csv(read, csv_cells, CONVERSION_COLUMNS, bom=bom)


def refused_csv(
    database: Database,
    application_id: int,
    *,
    bom: bool,
    reveal: bool,
    since: datetime | None = None,
    until: datetime | None = None,
    reason: str | None = None,
) -> AsyncIterator[bytes]:
    """Yield the CSV header and one line for each refused report. Phone numbers are masked unless `reveal` is true. Raise
    StoreUnavailable if the database is unavailable."""

    async def read(below: int | None) -> RefusedPage:
        return await database.read(list_refused, application_id, PAGE_ROWS, below, since=since, until=until, reason=reason)

    return stream_csv(read, lambda row: csv_cells(serialize_refused(row, reveal=reveal)), REFUSED_COLUMNS, bom=bom)


def csv_cells(fields: Mapping[str, Any]) -> dict[str, object]:
    """Return the fields of a conversion or of a refused report as CSV cells. A list or an object becomes JSON text."""
    return {name: _csv_cell(value) for name, value in fields.items()}


def _csv_cell(value: Any) -> object:
    if value is None or value == []:
        return ""
    return orjson.dumps(value).decode() if isinstance(value, dict | list) else value
