"""The CSV export of messages: any number of them, in constant memory.

The export reads page by page, each page in a short transaction. A slow client therefore holds no transaction open. A long
transaction would stop SQLite from truncating its log and PostgreSQL from removing old rows. The order is newest first; messages
added during the export are left out. The format is RFC 4180 in UTF-8. Excel recognises UTF-8 only by a byte order mark, which is an
option.

A line describes a message, or one link of a message. `short_url`, `url`, `label` and `destination` belong to the first link or to
that link, and `clicked_url` is the URL of the link of the first click. `value` is the sum of the conversions except those that were
rejected; there is one value for each currency.

A cell that begins like a formula gets an apostrophe in front (OWASP, CSV injection). The rest of a cell is never changed. A plain
number is unchanged: a phone number such as +14085550100 cannot run anything.

If the database becomes unavailable, StoreUnavailable ends the export early, so that the client can detect the missing rest.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from sqlalchemy import BigInteger, Connection, and_, func, select

from shortener.accounts.directory import short_url
from shortener.clicks.hit_metrics import IS_CLICK
from shortener.model import State
from shortener.reporting.messages import MessageFilter, MessagePage, list_messages, serialize_decimal, shown_number
from shortener.reporting.queries import AnyRow
from shortener.storage.database import Database
from shortener.storage.schema import conversions, first_clicks, hits, links, other_hits
from shortener.storage.types import to_iso
from shortener.storage.values_table import values_table

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # The UTF-8 byte order mark, by which Excel recognizes the encoding.
ExportRows = Literal["messages", "links"]
PAGE_MESSAGES = 500  # The number of messages in a page. A larger page needs fewer statements, which take most of the time.
FORMATTED_MESSAGES = 100  # The number of messages whose lines are formatted at once. The event loop is blocked meanwhile.

HEADER = (
    "message_id",
    "message_request_id",
    "external_message_request_id",
    "source",
    "campaign",
    "country",
    "to",
    "from",
    "state",
    "report_status",
    "reason_code",
    "reason_description",
    "created_at",
    "sent_at",
    "delivered_at",
    "read_at",
    "failed_at",
    "clicked_at",
    "encoding",
    "segments",
    "fragments_count",
    "mt_price",
    "telecom_message_id",
    "short_url",
    "url",
    "label",
    "destination",
    "clicked_url",
    "clicks",
    "conversions",
    "value",
    "currency",
)


async def export_csv(
    database: Database,
    filters: MessageFilter,
    base_url: Callable[[int], str],
    *,
    rows: ExportRows = "messages",
    bom: bool = False,
    reveal: bool,
    progress: Callable[[int], None] = lambda rows: None,
) -> AsyncIterator[bytes]:
    """Yield the header and the lines of the messages, one page at a time.

    `rows`: one line for each message, or for each link (a message without links has one line). `bom`: begin with a byte order mark.
    Phone numbers are masked unless `reveal`.
    `base_url` returns the URL prefix of a domain's short links. `progress` is called after each page with the number of messages so
    far. Raises StoreUnavailable."""
    below: int | None = None
    written = 0
    lines: list[Sequence[object]] = [HEADER]
    while True:
        found, details = await database.read(_read_page, filters, below)
        for start in range(0, max(len(found.rows), 1), FORMATTED_MESSAGES):
            part = found.rows[start : start + FORMATTED_MESSAGES]
            for row in part:
                to = shown_number(row.to_address, reveal=reveal)
                lines += _lines(row, to, details.get(row.id, _NOTHING), base_url, rows)
            text = format_csv(lines)
            yield BYTE_ORDER_MARK + text if bom and not written else text
            await asyncio.sleep(0)  # lets other requests run
            lines = []
            written += len(part)
        progress(written)
        if found.next is None:
            return
        below = found.next


@dataclass(slots=True)
class _Details:
    """The links of a message in their order, its clicks and its conversions."""

    links: list[AnyRow] = field(default_factory=list)
    clicks: Counter[int] = field(default_factory=Counter)  # Clicks by the row id of the link.
    first_clicked: int | None = None  # The row id of the link of the first click of the message.
    conversions: int = 0
    values: dict[str, Decimal] = field(default_factory=dict)  # Sums of conversion values by currency.


_NOTHING = _Details()


def _read_page(connection: Connection, filters: MessageFilter, below: int | None) -> tuple[MessagePage, dict[int, _Details]]:
    """Return a page of messages, and the details of each message, by its row id."""
    found = list_messages(connection, filters, PAGE_MESSAGES, below)
    details: dict[int, _Details] = defaultdict(_Details)
    if not found.rows:
        return found, details
    page = values_table(connection, [(row.id,) for row in found.rows], id=BigInteger)
    columns = (
        links.c.id,
        links.c.message_id,
        links.c.domain_id,
        links.c.path,
        links.c.code,
        links.c.url,
        links.c.location,
        links.c.label,
    )
    of_page = select(*columns).join_from(page, links, links.c.message_id == page.c.id)
    for link in connection.execute(of_page.order_by(links.c.message_id, links.c.position)):
        details[link.message_id].links.append(link)
    first = (
        select(first_clicks.c.id, hits.c.link_id)
        .join_from(page, first_clicks, first_clicks.c.id == page.c.id)
        .join(hits, hits.c.id == first_clicks.c.hit_id)
    )
    for message, link_id in connection.execute(first):
        details[message].first_clicked = link_id
        details[message].clicks[link_id] += 1
    others = (
        select(links.c.message_id, links.c.id, func.count())
        .join_from(page, links, links.c.message_id == page.c.id)
        .join(hits, and_(hits.c.link_id == links.c.id, other_hits()))
        .where(IS_CLICK)
        .group_by(links.c.message_id, links.c.id)
    )
    for message, link_id, count in connection.execute(others):
        details[message].clicks[link_id] += count
    c = conversions.c
    reported = select(c.message_id, c.disposition, c.value, c.currency).join_from(page, conversions, c.message_id == page.c.id)
    for message, disposition, value, currency in connection.execute(reported):
        detail = details[message]
        detail.conversions += 1
        if value is not None and disposition != "negative":
            detail.values[currency or ""] = detail.values.get(currency or "", Decimal()) + value
    return found, details


def _lines(row: AnyRow, to: str, details: _Details, base_url: Callable[[int], str], rows: ExportRows) -> list[tuple[object, ...]]:
    """Return the lines of a message."""
    if rows == "messages" or not details.links:
        link = details.links[0] if details.links else None
        clicked = next((one for one in details.links if one.id == details.first_clicked), None)
        return [_line(row, to, link, clicked, details.clicks.total(), details, base_url)]
    return [
        _line(row, to, link, link if details.clicks[link.id] else None, details.clicks[link.id], details, base_url)
        for link in details.links
    ]


def _line(
    row: AnyRow,
    to: str,
    link: AnyRow | None,
    clicked: AnyRow | None,
    clicks: int,
    details: _Details,
    base_url: Callable[[int], str],
) -> tuple[object, ...]:
    """Return the cells of a CSV line in the order of HEADER. Text from requests and trackers is escaped."""
    currencies = sorted(details.values)
    return (
        escape_formula(row.message_id),
        escape_formula(row.request_id),
        escape_formula(row.external_request_id),
        row.source,
        escape_formula(row.campaign),
        row.country,
        escape_formula(to),
        escape_formula(row.from_address),
        State(row.state).name,
        escape_formula(row.report_status),
        escape_formula(row.reason_code),
        escape_formula(row.reason_description),
        to_iso(row.created_at),
        to_iso(row.sent_at),
        to_iso(row.delivered_at),
        to_iso(row.read_at),
        to_iso(row.failed_at),
        to_iso(row.clicked_at),
        row.encoding,
        row.segments,
        row.fragments_count,
        serialize_decimal(row.mt_price),
        escape_formula(row.telecom_message_id),
        link and short_url(base_url(link.domain_id), link.path, link.code),
        link and escape_formula(link.url),
        link and escape_formula(link.label),
        link and escape_formula(link.location or link.url),
        clicked and escape_formula(clicked.url),
        clicks,
        details.conversions,
        ";".join(serialize_decimal(details.values[currency]) or "" for currency in currencies),
        escape_formula(";".join(currencies)),
    )


def format_csv(lines: Sequence[Sequence[object]]) -> bytes:
    """Return lines of cells as CSV text in UTF-8."""
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_FORMULA_CHARACTERS = "=+\\-@＝＋－＠"
_FORMULA = re.compile(rf"\s*[{_FORMULA_CHARACTERS}\t\r\n]")


def escape_formula(text: str | None) -> str:
    """Return the text with an apostrophe in front if it begins like a formula, so that no spreadsheet runs it."""
    if not text or text[0].isalnum() or _NUMBER.fullmatch(text):  # nearly every cell begins with a letter or a digit
        return text or ""
    return f"'{text}" if _FORMULA.match(text) else text
