"""This module reads the audit log page by page. The rows are added by `accounts.audit`."""

# Tested by tests/portal/test_operators.py

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, select

from shortener.accounts.audit import COMMAND_LINE, KEY_PREFIX
from shortener.ids import MAX_ROW_ID, first_id_at
from shortener.model import record
from shortener.storage.schema import audit_log
from shortener.storage.types import to_ms

MAX_SCANNED_ROWS = 5_000  # The maximum number of rows of the audit log that are read to fill one page.
API_KEYS = "API keys"  # The value of the operator filter that selects the changes made with any API key.


@record
class AuditFilter:
    """The conditions that the audit rows of a page must meet. `since` is included, `until` is excluded. None: no condition."""

    since: datetime | None = None
    until: datetime | None = None
    operator: str | None = None
    action: str | None = None


@record
class AuditPage:
    """A page of audit rows, newest first. The next page contains the rows with ids below `next`; on the last page, `next` is
    None."""

    rows: Sequence[Any]
    next: int | None


def _is_by(name: str) -> ColumnElement[bool]:
    """Return the SQL condition for the audit rows of one actor. COMMAND_LINE.name selects the changes of all users of the command
    line, and API_KEYS the changes with all API keys. These two select only rows without `operator_id`, because the name of an
    operator may begin with the same text."""
    table = audit_log.c
    if name == COMMAND_LINE.name:
        return and_(table.operator_id.is_(None), table.operator.startswith(name))
    if name == API_KEYS:
        return and_(table.operator_id.is_(None), table.operator.startswith(KEY_PREFIX))
    return table.operator == name


def list_audit(connection: Connection, filters: AuditFilter, limit: int, below: int | None = None) -> AuditPage:
    """Return a page with the newest audit rows that match the filter, at most `limit` rows. If `below` is not None, return only
    rows with smaller ids. Examine at most MAX_SCANNED_ROWS rows."""
    table = audit_log.c
    low = 0 if filters.since is None else first_id_at(to_ms(filters.since))
    high = MAX_ROW_ID if filters.until is None else first_id_at(to_ms(filters.until))
    if below is not None:
        high = min(high, below)
    in_range = select(table.id).where(table.id >= low, table.id < high).order_by(table.id.desc())
    floor = connection.scalar(in_range.offset(MAX_SCANNED_ROWS - 1).limit(1))
    statement = select(audit_log).where(table.id >= (low if floor is None else floor), table.id < high)
    if filters.operator is not None:
        statement = statement.where(_is_by(filters.operator))
    if filters.action is not None:
        statement = statement.where(table.action == filters.action)
    rows = connection.execute(statement.order_by(table.id.desc()).limit(limit + 1)).all()
    if len(rows) > limit:
        return AuditPage(rows[:limit], rows[limit - 1].id)
    return AuditPage(rows, floor)
