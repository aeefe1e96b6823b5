"""The log of sent messages, for programs that use another vendor's API: the messages of a period, with metadata, cost and text.

The service stores the text of a message only while the message waits for a gateway. Other entries have no text.
"""

# Tested by tests/web/vendors/test_infobip_logs.py

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, select

from shortener.model import State, record
from shortener.reporting.messages import MessageFilter, find_by_row_ids, find_messages, list_messages
from shortener.storage.schema import messages, sends
from shortener.storage.types import AnyRow

MAX_PAGES = 10  # The maximum number of pages of MAX_SCANNED_ROWS messages that one call examines.
_MESSAGES_PER_STATEMENT = 500


@record
class LogEntry:
    """A message in the log: its columns MESSAGE_COLUMNS and its metadata, and, if a gateway sends it, the cost and the text."""

    message: AnyRow
    metadata: dict[str, Any] | None
    cost: Decimal | None
    text: str | None


@record
class LogPage:
    """A page of log entries, newest first. The ids of the next page are smaller than `next`. On the last page, `next` is None."""

    entries: Sequence[LogEntry]
    next: int | None


def read_log(
    connection: Connection,
    filters: MessageFilter,
    limit: int,
    below: int | None = None,
    message_ids: Sequence[str] | None = None,
) -> LogPage:
    """Return at most `limit` messages that match all filters. If `message_ids` is not None, examine only these messages."""
    if message_ids is not None:
        found = find_messages(connection, filters.application_id, message_ids)
        return LogPage(_entries(connection, [row for row in found if _matches(row, filters)][:limit]), None)
    rows: list[AnyRow] = []
    for _ in range(MAX_PAGES):
        page = list_messages(connection, filters, limit - len(rows), below)
        rows += page.rows
        below = page.next
        if below is None or len(rows) >= limit:
            break
    return LogPage(_entries(connection, rows), below)


def log_entries(connection: Connection, row_ids: Sequence[int]) -> list[LogEntry]:
    """Return the log entries of the messages with these row ids (at most 1,000), in the order of `row_ids`. Deleted messages are
    left out."""
    found = find_by_row_ids(connection, row_ids)
    return _entries(connection, [found[row_id] for row_id in row_ids if row_id in found])


def _matches(row: AnyRow, filters: MessageFilter) -> bool:
    """Return whether a message matches the filters of the log."""
    return (
        (filters.states is None or State(row.state) in filters.states)
        and (filters.request_ids is None or row.request_id in filters.request_ids)
        and (filters.sender is None or row.from_address == filters.sender)
        and (filters.to is None or row.to_address == filters.to)
        and (filters.since is None or row.created_at >= filters.since)
        and (filters.until is None or row.created_at < filters.until)
    )


def _entries(connection: Connection, rows: Sequence[AnyRow]) -> list[LogEntry]:
    more: dict[int, AnyRow] = {}
    for start in range(0, len(rows), _MESSAGES_PER_STATEMENT):
        some = [row.id for row in rows[start : start + _MESSAGES_PER_STATEMENT]]
        columns = (messages.c.id, messages.c.metadata, sends.c.cost, sends.c.text)
        statement = select(*columns).outerjoin(sends, sends.c.id == messages.c.id).where(messages.c.id.in_(some))
        more |= {row.id: row for row in connection.execute(statement)}
    return [LogEntry(row, more[row.id].metadata, more[row.id].cost, more[row.id].text) for row in rows]
