"""This module exports lists as CSV in constant memory. It reads one page in a short transaction, and sends its lines before it
reads the next page.

A cell that a spreadsheet would run as a formula is escaped (export.py). If the database becomes unavailable, StoreUnavailable
ends the export early, so that the client can detect that the rest is missing.
"""

# Tested by tests/web/test_lists.py

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from shortener.reporting.export import BYTE_ORDER_MARK, escape_formula, format_csv

PAGE_ROWS = 500

Cursor = TypeVar("Cursor")
Cursor_co = TypeVar("Cursor_co", covariant=True)


class ListPage(Protocol[Cursor_co]):
    """A page of a list for a CSV export. `next` is the cursor of the next page, or None on the last page."""

    @property
    def rows(self) -> Sequence[Any]: ...
    @property
    def next(self) -> Cursor_co | None: ...


class SerializedPage(NamedTuple, Generic[Cursor]):
    """A page whose rows are already dictionaries of values by column name. `next` is the cursor of the next page, or None on the
    last page."""

    rows: Sequence[Mapping[str, Any]]
    next: Cursor | None


async def stream_csv(
    read_page: Callable[[Cursor | None], Awaitable[ListPage[Cursor]]],
    serialize: Callable[[Any], Mapping[str, Any]],
    columns: Sequence[str],
    *,
    bom: bool = False,
) -> AsyncIterator[bytes]:
    """Yield a CSV header and the rows of all pages. Yield empty bytes for a page without rows, so that the caller can let other
    tasks run.

    `serialize` returns the values of a row by column name. Names that are not in `columns` are ignored. If `bom` is true, begin
    with a byte order mark, which Excel needs. Raise StoreUnavailable if the database is unavailable."""
    yield (BYTE_ORDER_MARK if bom else b"") + format_csv([columns])
    cursor: Cursor | None = None
    while True:
        page = await read_page(cursor)
        yield format_csv([[_cell(fields.get(name)) for name in columns] for fields in map(serialize, page.rows)])
        if page.next is None:
            return
        cursor = page.next


def _cell(value: Any) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return escape_formula(" ".join(map(str, value)))
    return escape_formula(value) if isinstance(value, str) else value


def format_lines(rows: Sequence[Sequence[Any]]) -> bytes:
    """Return rows as CSV. Text that a spreadsheet would run as a formula is escaped."""
    return format_csv([[_cell(value) for value in row] for row in rows])
