"""This module exports any number of messages as CSV in constant memory, newest message first.

The export reads one page after the other, each in a short transaction. A slow client therefore holds no transaction open. A long
transaction would stop SQLite from truncating its log and PostgreSQL from removing old rows. Messages that are added during the
export are left out. The format is RFC 4180 in UTF-8. Excel recognises UTF-8 only by a byte order mark, which is an option.

A line contains one message, or one link of a message. In the line of a message, `short_url`, `url`, `label` and `destination` are
the values of its first link. `clicked_url` is the URL of the link of the first click. `value` is the sum of the values of all
conversions that are neither negative nor pending; there is one sum for each currency. `conversions` is the number of all
conversions. `value` and `conversions` have the same meaning as in the statistics.

A cell that begins like a formula gets an apostrophe in front (OWASP, CSV injection). The other characters of a cell never change.
Numbers and phone numbers, also masked ones, get no apostrophe: +14085550100 and +14…00 are not formulas.

Pages are read as stored values and formatted column by column. Creating an object for each time and each cell would take most of
the time of an export.

If the database becomes unavailable, StoreUnavailable ends the export early, so that the client can detect that the rest is
missing.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import field
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import BigInteger, Connection, Select, and_, func, select

from shortener.accounts.directory import short_url
from shortener.clicks.hit_metrics import IS_CLICK
from shortener.conversions.status_words import is_revenue
from shortener.model import State, mutable_record, record
from shortener.reporting.messages import (
    STORED_MESSAGE_COLUMNS,
    MessageFilter,
    list_messages,
    serialize_decimal,
    shown_number,
    shown_reason,
)
from shortener.storage.database import Database
from shortener.storage.schema import conversions, first_clicks, hits, links, other_hits
from shortener.storage.types import iso_of_ms
from shortener.storage.values_table import parameter_table, table_parameters

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # The UTF-8 byte order mark, by which Excel recognises the encoding.
ExportRows = Literal["messages", "links"]
# The number of messages in a page. With pages of 2,000, an export takes a fifth less time, but clicks wait longer
# (benchmarks/HISTORY.md).
PAGE_MESSAGES = 500
FORMATTED_MESSAGES = 50  # The number of messages that are formatted without a pause. This blocks the event loop for about 2 ms.

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

    `rows` selects one line for each message, or one line for each link. In the second case, a message without links also has one
    line. If `bom` is true, begin with a byte order mark. Phone numbers are masked unless `reveal` is true. `base_url` returns the
    first part of the short URLs of a domain. After each page, `progress` is called with the number of messages so far. Raise
    StoreUnavailable if the database is unavailable."""
    below: int | None = None
    written = 0
    head = format_csv([HEADER])
    if bom:
        head = BYTE_ORDER_MARK + head
    while True:
        page = await database.read(_read_page, filters, below)
        for start in range(0, max(len(page.rows), 1), FORMATTED_MESSAGES):
            part = page.rows[start : start + FORMATTED_MESSAGES]
            lines = [line for row in part for line in _lines_of(row, page, rows)]
            yield head + (_format_lines(lines, base_url, reveal=reveal) if lines else b"")
            head = b""
            await asyncio.sleep(0)  # Let the event loop handle other requests.
            written += len(part)
        progress(written)
        if page.next is None:
            return
        below = page.next


@mutable_record
class _MessageDetails:
    """The clicks and conversions of a message."""

    clicks: Counter[int] = field(default_factory=Counter)  # The number of clicks on each link, by the row id of the link.
    first_clicked: int | None = None  # The row id of the link on which the first click of the message was made.
    conversions: int = 0
    #: The sums of the values of conversions that are neither negative nor pending, by currency.
    values: dict[str, Decimal] = field(default_factory=dict)


_NOTHING = _MessageDetails()
#: The values of the columns in _LINK_COLUMNS for one link.
_LinkRow = Sequence[Any]
_LINK_COLUMNS = (
    links.c.message_id,
    links.c.id,
    links.c.domain_id,
    links.c.path,
    links.c.code,
    links.c.url,
    links.c.location,
    links.c.label,
)
_LINK_ID, _LINK_URL = 1, 5  # The indexes of the link id and of the URL in _LINK_COLUMNS.


@mutable_record
class _ExportPage:
    """A page of messages. `rows` contains the values of STORED_MESSAGE_COLUMNS for each message. The ids of the next page are
    smaller than `next`. On the last page, `next` is None.

    The keys of `links` and `details` are row ids of messages. A message without links is not in `links`. A message without clicks
    and conversions is not in `details`."""

    rows: Sequence[Sequence[Any]]
    next: int | None
    links: dict[int, list[_LinkRow]] = field(default_factory=dict)
    details: dict[int, _MessageDetails] = field(default_factory=lambda: defaultdict(_MessageDetails))


@record
class _PageStatements:
    """The SQL statements that read the details of a page of messages. Their parameters are the result of `table_parameters`."""

    links: Select[Any]
    first_clicks: Select[Any]
    other_clicks: Select[Any]
    conversions: Select[Any]


@lru_cache(maxsize=2)
def _page_statements(dialect: str) -> _PageStatements:
    """Return the statements for a database engine. They are built once, because building takes as much time as executing them."""
    page = parameter_table(dialect, "page", id=BigInteger)
    c = conversions.c
    return _PageStatements(
        links=select(*_LINK_COLUMNS)
        .join_from(page, links, links.c.message_id == page.c.id)
        .order_by(links.c.message_id, links.c.position),
        first_clicks=select(first_clicks.c.id, hits.c.link_id)
        .join_from(page, first_clicks, first_clicks.c.id == page.c.id)
        .join(hits, hits.c.id == first_clicks.c.hit_id),
        other_clicks=select(links.c.message_id, links.c.id, func.count())
        .join_from(page, links, links.c.message_id == page.c.id)
        .join(hits, and_(hits.c.link_id == links.c.id, other_hits()))
        .where(IS_CLICK)
        .group_by(links.c.message_id, links.c.id),
        conversions=select(c.message_id, c.counted_as, c.value, c.currency).join_from(page, conversions, c.message_id == page.c.id),
    )


def _read_page(connection: Connection, filters: MessageFilter, below: int | None) -> _ExportPage:
    """Return a page of messages with the details of each message."""
    listed = list_messages(connection, filters, PAGE_MESSAGES, below, STORED_MESSAGE_COLUMNS)
    found = _ExportPage(listed.rows, listed.next)
    if not found.rows:
        return found
    statements = _page_statements(connection.dialect.name)
    page = table_parameters(connection.dialect.name, "page", [(row[0],) for row in found.rows])
    # Fetch all rows at once. SQLAlchemy would take longer to fetch them one by one.
    for link in connection.execute(statements.links, page).all():
        if (present := found.links.get(link[0])) is None:
            found.links[link[0]] = [link]
        else:
            present.append(link)
    details = found.details
    for message, link_id in connection.execute(statements.first_clicks, page).all():
        details[message].first_clicked = link_id
        details[message].clicks[link_id] += 1
    for message, link_id, count in connection.execute(statements.other_clicks, page).all():
        details[message].clicks[link_id] += count
    for message, counted_as, value, currency in connection.execute(statements.conversions, page).all():
        detail = details[message]
        detail.conversions += 1
        if value is not None and is_revenue(counted_as):
            detail.values[currency or ""] = detail.values.get(currency or "", Decimal()) + value
    return found


#: What a CSV line is made of: the message, the link, the URL of the clicked link, the number of clicks, and the details.
_UnformattedLine = tuple[Sequence[Any], _LinkRow | None, str | None, int, _MessageDetails]


def _lines_of(row: Sequence[Any], page: _ExportPage, rows: ExportRows) -> list[_UnformattedLine]:
    """Return the CSV lines of a message."""
    of_message, details = page.links.get(row[0]), page.details.get(row[0], _NOTHING)
    if of_message is None:
        return [(row, None, None, details.clicks.total(), details)]
    if details is _NOTHING and (rows == "messages" or len(of_message) == 1):
        return [(row, of_message[0], None, 0, details)]
    if rows == "messages":
        clicked = next((link[_LINK_URL] for link in of_message if link[_LINK_ID] == details.first_clicked), None)
        return [(row, of_message[0], clicked, details.clicks.total(), details)]
    clicks = details.clicks
    return [
        (row, link, link[_LINK_URL] if clicks[link[_LINK_ID]] else None, clicks[link[_LINK_ID]], details) for link in of_message
    ]


_STATES = {int(state): state.name for state in State}
_NO_LINK = (None,) * len(_LINK_COLUMNS)
_MESSAGE_COLUMN_NAMES = tuple(column.name for column in STORED_MESSAGE_COLUMNS)


def _format_lines(lines: Sequence[_UnformattedLine], base_url: Callable[[int], str], *, reveal: bool) -> bytes:
    """Return one or more lines as CSV text. Text that comes from requests and trackers is escaped."""
    rows, of_links, clicked, clicks, details = zip(*lines, strict=True)
    message = dict(zip(_MESSAGE_COLUMN_NAMES, zip(*rows, strict=True), strict=True))
    _, _, domains, paths, codes, urls, locations, labels = zip(*(link or _NO_LINK for link in of_links), strict=True)
    prefixes = {domain: base_url(domain) for domain in set(domains) if domain is not None}
    prices = {price: serialize_decimal(Decimal(price)) or "" for price in set(message["mt_price"]) if price is not None}
    columns = (
        text_cells(message["message_id"]),
        text_cells(message["request_id"]),
        text_cells(message["external_request_id"]),
        text_cells(message["source"]),
        text_cells(message["campaign"]),
        text_cells(message["country"]),
        _numbers(message["to_address"], reveal=reveal),
        text_cells(message["from_address"]),
        [_STATES[state] for state in message["state"]],
        text_cells(message["report_status"]),
        text_cells(message["reason_code"]),
        text_cells(_reasons(message, reveal=reveal)),
        *(_times(message[name]) for name in ("created_at", "sent_at", "delivered_at", "read_at", "failed_at", "clicked_at")),
        text_cells(message["encoding"]),
        _amounts(message["segments"]),
        _amounts(message["fragments_count"]),
        [prices.get(price, "") for price in message["mt_price"]],
        text_cells(message["telecom_message_id"]),
        text_cells(
            [
                None if code is None else short_url(prefixes[domain], path, code)
                for domain, path, code in zip(domains, paths, codes, strict=True)
            ]
        ),
        url_cells := text_cells(urls),
        text_cells(labels),
        text_cells([location or url for location, url in zip(locations, urls, strict=True)]) if any(locations) else url_cells,
        text_cells(clicked),
        _amounts(clicks),
        _amounts([detail.conversions for detail in details]),
        *_values(details),
    )
    return "".join([",".join(cells) + "\r\n" for cells in zip(*columns, strict=True)]).encode()


def _reasons(message: Mapping[str, Sequence[Any]], *, reveal: bool) -> Sequence[str | None]:
    reasons: Sequence[str | None] = message["reason_description"]
    if reveal or not any(reasons):
        return reasons
    return [shown_reason(reason, number, reveal=False) for reason, number in zip(reasons, message["to_address"], strict=True)]


# Each of the following functions formats the cells of one column, for some lines at once. The module `csv` is not used, because
# its functions would examine each character of each cell.


def text_cells(column: Sequence[str | None]) -> Sequence[str]:
    """Return the cells of a column of texts. A text that a spreadsheet would run as a formula is escaped."""
    if not any(column):
        return [""] * len(column)
    return _quote([text if text and text[0].isalnum() else escape_formula(text) for text in column])


def _numbers(column: Sequence[str], *, reveal: bool) -> Sequence[str]:
    """Return the cells of a column of phone numbers, which are masked unless `reveal` is true."""
    if reveal:
        return text_cells(column)
    return _quote([_escape_masked(shown_number(number, reveal=False)) for number in column])


def _values(details: Sequence[_MessageDetails]) -> tuple[Sequence[str], Sequence[str]]:
    """Return the cells of the values and of the currencies of conversions."""
    if not any(detail.values for detail in details):
        return ([""] * len(details),) * 2
    sums = [sorted(detail.values.items()) for detail in details]
    amounts = [";".join(serialize_decimal(amount) or "" for _, amount in one) for one in sums]
    return amounts, text_cells([";".join(currency for currency, _ in one) for one in sums])


def _times(column: Sequence[int | None]) -> Sequence[str]:
    """Return the cells of a column of times in milliseconds since 1970."""
    if column.count(None) == len(column):
        return [""] * len(column)
    return [iso_of_ms(at) or "" for at in column]


def _amounts(column: Sequence[int | None]) -> Sequence[str]:
    return ["" if amount is None else str(amount) for amount in column]


def _quote(cells: Sequence[str]) -> Sequence[str]:
    """Return the cells of a column. A cell that contains a comma, a quote or a line break is put in quotes (RFC 4180)."""
    together = "".join(cells)
    if not any(sign in together for sign in _QUOTED_SIGNS):
        return cells
    return [_quote_cell(cell) if any(sign in cell for sign in _QUOTED_SIGNS) else cell for cell in cells]


def _quote_cell(cell: str) -> str:
    doubled = cell.replace('"', '""')
    return f'"{doubled}"'


_QUOTED_SIGNS = ',"\r\n'


def format_csv(lines: Iterable[Sequence[object]]) -> bytes:
    """Return lines of cells as CSV text in UTF-8."""
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


#: A number, or a phone number that `shortener.logs.mask` has masked. A spreadsheet shows +14…00 as text and does not run it: it
#: contains no function name, no reference to a cell, and no operator except the sign at its beginning.
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?|\+[0-9]{2}…[0-9]{2}")
_FORMULA_CHARACTERS = "=+\\-@＝＋－＠"
_FORMULA = re.compile(rf"\s*[{_FORMULA_CHARACTERS}\t\r\n]")


def escape_formula(text: str | None) -> str:
    """Return a text that no spreadsheet runs as a formula. A text that begins like a formula gets an apostrophe in front. Any
    other text is returned unchanged."""
    # Check this first, because nearly every cell begins with a letter or a digit.
    if not text or text[0].isalnum() or _NUMBER.fullmatch(text):
        return text or ""
    return f"'{text}" if _FORMULA.match(text) else text


#: Many phone numbers have the same masked form, so the results are cached.
_escape_masked = lru_cache(maxsize=1024)(escape_formula)
