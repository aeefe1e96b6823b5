"""Messages as CSV, of any number, in constant memory.

Page by page, each a short read of its own: a slow reader holds no transaction open (which would keep SQLite's log from being
cut and PostgreSQL from cleaning up). Newest first; what is added while the export runs is not in it. UTF-8 without a byte order
mark, RFC 4180.

Cells that a spreadsheet would run as a formula get an apostrophe before the sign that starts it (OWASP, CSV injection). A plain
number is left alone: a phone number such as +14085550100 stays what it is, and cannot run anything.

A store that goes away in the middle raises StoreUnavailable: a reader must be told that the rest is missing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Sequence

from sqlalchemy import BigInteger, Connection, select

from shortener.model import State
from shortener.reporting.messages import MessageFilter, MessagePage, list_messages, serialize_decimal
from shortener.reporting.queries import AnyRow
from shortener.storage.database import Database
from shortener.storage.schema import links
from shortener.storage.types import to_iso
from shortener.storage.values_table import values_table

PAGE_MESSAGES = 200  # messages; the event loop is held for as long as their lines take

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
    wanted: MessageFilter,
    base_url: Callable[[int], str],
    *,
    progress: Callable[[int], None] = lambda rows: None,
) -> AsyncIterator[bytes]:
    """The header, then the lines of the messages, in pieces. `base_url`: the prefix of the short links of a domain; `progress` is
    told after each page how many messages were written so far. Raises StoreUnavailable."""
    below: int | None = None
    written = 0
    lines: list[Sequence[object]] = [HEADER]
    while True:
        found, links_of = await database.read(_page, wanted, below)
        lines += [_line(row, links_of.get(row.id), base_url) for row in found.rows]
        written += len(found.rows)
        yield _written(lines)
        progress(written)
        if found.next is None:
            return
        below, lines = found.next, []


def _page(connection: Connection, wanted: MessageFilter, below: int | None) -> tuple[MessagePage, dict[int, AnyRow]]:
    """A page, and the first link of each of its messages that has one."""
    found = list_messages(connection, wanted, PAGE_MESSAGES, below)
    shown = values_table(connection, [(row.id,) for row in found.rows], id=BigInteger)
    statement = (
        select(links.c.message_id, links.c.domain_id, links.c.code, links.c.url)
        .join_from(shown, links, links.c.message_id == shown.c.id)
        .where(links.c.position == 0)
    )
    rows = connection.execute(statement) if found.rows else ()
    return found, {row.message_id: row for row in rows}


def _line(row: AnyRow, link: AnyRow | None, base_url: Callable[[int], str]) -> tuple[object, ...]:
    """The cells in the order of HEADER. What others chose the words of is defused."""
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
        link and f"{base_url(link.domain_id)}/{link.code}",
        link and escape_formula(link.url),
    )


def _written(lines: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_SIGN = "=+\\-@＝＋－＠"
#: Where a formula begins: at the start, or where a reader that splits at other signs would see one.
_FORMULA = re.compile(rf"^(?=\s*[{_SIGN}\t\r\n])|(?<=[;|\t\r\n])(?=\s*[{_SIGN}])")


def escape_formula(text: str | None) -> str:
    """The text as a cell that no spreadsheet runs: an apostrophe stands before what would be a formula."""
    if not text or _NUMBER.fullmatch(text):
        return text or ""
    return _FORMULA.sub("'", text)
