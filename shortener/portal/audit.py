"""The audit log: what operators did in the portal and on the command line, and who tried to sign in.

The code only adds rows. The purge deletes them after 400 days (retention/purge.py). A row contains the changed values before and
after the action, without secrets: no passwords, tokens, keys, codes and no unmasked phone numbers.
"""

# Tested by tests/portal/test_operators.py

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from shortener.ids import first_id_at
from shortener.storage.schema import audit_log
from shortener.storage.types import to_ms

MAX_OBJECT_CHARACTERS = 200
MAX_SCANNED_ROWS = 5_000  # The maximum number of rows that one page of the audit log examines.
_MAX_ID = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acted: an operator in a session, or the command line (no operator, no session)."""

    operator_id: int | None = None
    name: str = ""
    session_id: int | None = None
    network: str = ""


COMMAND_LINE = Actor(name="command line")


def record(
    connection: Connection,
    row_id: int,
    now: datetime,
    actor: Actor,
    action: str,
    subject: str = "",
    *,
    application_id: int | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add a row, in the transaction of the action itself. `action` is a verb in snake case, such as `operator_invited`."""
    connection.execute(
        insert(audit_log).values(
            id=row_id,
            at=now,
            operator_id=actor.operator_id,
            operator=actor.name,
            session_id=actor.session_id,
            network=actor.network,
            action=action,
            application_id=application_id,
            object=subject[:MAX_OBJECT_CHARACTERS],
            before=before,
            after=after,
        )
    )


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Conditions of a page of the audit log. `until` is excluded."""

    since: datetime | None = None
    until: datetime | None = None
    operator: str | None = None
    action: str | None = None


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Rows of the audit log, newest first. `next`: the next page has ids below this one; None on the last page."""

    rows: Sequence[Any]
    next: int | None


def list_audit(connection: Connection, filters: AuditFilter, limit: int, below: int | None = None) -> AuditPage:
    """Return the newest `limit` rows, or the newest with an id below `below`. A page examines at most MAX_SCANNED_ROWS rows."""
    table = audit_log.c
    low = 0 if filters.since is None else first_id_at(to_ms(filters.since))
    high = _MAX_ID if filters.until is None else first_id_at(to_ms(filters.until))
    if below is not None:
        high = min(high, below)
    in_range = select(table.id).where(table.id >= low, table.id < high).order_by(table.id.desc())
    floor = connection.scalar(in_range.offset(MAX_SCANNED_ROWS - 1).limit(1))
    statement = select(audit_log).where(table.id >= (low if floor is None else floor), table.id < high)
    if filters.operator is not None:
        statement = statement.where(table.operator == filters.operator)
    if filters.action is not None:
        statement = statement.where(table.action == filters.action)
    rows = connection.execute(statement.order_by(table.id.desc()).limit(limit + 1)).all()
    if len(rows) > limit:
        return AuditPage(rows[:limit], rows[limit - 1].id)
    return AuditPage(rows, floor)
