"""Messages as CSV, in any number and with constant memory.

The export reads page by page, each page in a short transaction. Therefore a slow client holds no transaction open, which would stop
SQLite from truncating its log and PostgreSQL from cleaning up. The order is newest first; messages added during the export are left
out. The format is RFC 4180 in UTF-8; a byte order mark is optional.

A cell that a spreadsheet would run as a formula gets an apostrophe in front (OWASP, CSV injection). A plain number is unchanged: a
phone number such as +14085550100 cannot run anything.

Raises StoreUnavailable in the middle if the database becomes unavailable, so that the client can detect the missing rest.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Sequence

from sqlalchemy import BigInteger, Connection, select

from shortener.accounts.directory import short_url
from shortener.model import State
from shortener.reporting.messages import MessageFilter, MessagePage, list_messages, serialize_decimal
from shortener.reporting.queries import AnyRow
from shortener.storage.database import Database
from shortener.storage.schema import links
from shortener.storage.types import to_iso
from shortener.storage.values_table import values_table

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # lets Excel recognise UTF-8
PAGE_MESSAGES = 200  # per page; the event loop is blocked while their lines are made

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
)


async def export_csv(
    database: Database,
    filters: MessageFilter,
    base_url: Callable[[int], str],
    *,
    progress: Callable[[int], None] = lambda rows: None,
) -> AsyncIterator[bytes]:
    """Yield the header and the lines of the messages, one page at a time.

    `base_url` returns the URL prefix of a domain's short links. `progress` is called after each page with the number of messages so
    far. Raises StoreUnavailable."""
    below: int | None = None
    written = 0
    lines: list[Sequence[object]] = [HEADER]
    while True:
        found, links_of = await database.read(_read_page, filters, below)
        lines += [_line(row, links_of.get(row.id), base_url) for row in found.rows]
        written += len(found.rows)
        yield format_csv(lines)
        progress(written)
        if found.next is None:
            return
        below, lines = found.next, []


def _read_page(connection: Connection, filters: MessageFilter, below: int | None) -> tuple[MessagePage, dict[int, AnyRow]]:
    """Return a page of messages, and the first link of each message with links, by message."""
    found = list_messages(connection, filters, PAGE_MESSAGES, below)
    shown = values_table(connection, [(row.id,) for row in found.rows], id=BigInteger)
    statement = (
        select(links.c.message_id, links.c.domain_id, links.c.path, links.c.code, links.c.url)
        .join_from(shown, links, links.c.message_id == shown.c.id)
        .where(links.c.position == 0)
    )
    rows = connection.execute(statement) if found.rows else ()
    return found, {row.message_id: row for row in rows}


def _line(row: AnyRow, link: AnyRow | None, base_url: Callable[[int], str]) -> tuple[object, ...]:
    """Return the cells in the order of HEADER. Text that came from outside is escaped."""
    return (
        escape_formula(row.message_id),
        escape_formula(row.request_id),
        escape_formula(row.external_request_id),
        row.source,
        escape_formula(row.campaign),
        row.country,
        escape_formula(row.to_address),
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
    )


def format_csv(lines: Sequence[Sequence[object]]) -> bytes:
    """Return lines of cells as CSV in UTF-8."""
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_FORMULA_CHARACTERS = "=+\\-@＝＋－＠"
#: The positions where a formula can start: the start of the cell, or behind a character at which a reader may split.
_FORMULA = re.compile(rf"^(?=\s*[{_FORMULA_CHARACTERS}\t\r\n])|(?<=[;|\t\r\n])(?=\s*[{_FORMULA_CHARACTERS}])")


def escape_formula(text: str | None) -> str:
    """Return the text with an apostrophe before each formula, so that no spreadsheet runs it."""
    if not text or _NUMBER.fullmatch(text):
        return text or ""
    return _FORMULA.sub("'", text)
