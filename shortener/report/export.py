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

from shortener.report.messages import Page, Wanted, fields, page
from shortener.report.queries import AnyRow
from shortener.store.database import Database
from shortener.store.given import given
from shortener.store.schema import links

PAGE = 250  # messages; the event loop is held for as long as their lines take

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


async def csv_pages(
    database: Database,
    wanted: Wanted,
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
        for row in found.rows:
            told = fields(row)
            link = links_of.get(row.id)
            if link is not None:
                told["short_url"] = f"{base_url(link.domain_id)}/{link.code}"
                told["url"] = link.url
            lines.append([_cell(told.get(name)) for name in HEADER])
        written += len(found.rows)
        yield _written(lines)
        progress(written)
        if found.next is None:
            return
        below, lines = found.next, []


def _page(connection: Connection, wanted: Wanted, below: int | None) -> tuple[Page, dict[int, AnyRow]]:
    """A page, and the first link of each of its messages that has one."""
    found = page(connection, wanted, PAGE, below)
    shown = given(connection, [(row.id,) for row in found.rows], id=BigInteger)
    statement = (
        select(links.c.message_id, links.c.domain_id, links.c.code, links.c.url)
        .join_from(shown, links, links.c.message_id == shown.c.id)
        .where(links.c.position == 0)
    )
    rows = connection.execute(statement) if found.rows else ()
    return found, {row.message_id: row for row in rows}


def _written(lines: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


def _cell(value: object) -> object:
    return defuse(value) if isinstance(value, str) else value


_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
#: A formula's first sign, also in full width, at the beginning or where a reader that splits at other signs would see one.
_FORMULA = re.compile(r"(?:^|(?<=[;|\t\r\n]))(?=\s*[=+\-@＝＋－＠]|[\t\r\n])")


def defuse(text: str) -> str:
    """The text as a cell that no spreadsheet runs: an apostrophe stands before what would be a formula."""
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub("'", text)
