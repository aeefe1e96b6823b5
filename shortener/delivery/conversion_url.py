"""The `conversion_url` and the callback secret of an application.

`conversion_url` and `conversion_fields` (23 Telecom) are stored as a tracker with the role `conversion_url`. The functions run in a
transaction of the caller.
"""

# Tested by tests/delivery/test_trackers.py

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, delete, select, update

from shortener.accounts.audit import AuditWriter
from shortener.delivery.outcomes import GONE
from shortener.delivery.tracker_audit import add_tracker_change, add_tracker_row
from shortener.delivery.tracker_queries import (
    CONVERSION_URL,
    fresh_start,
    insert_tracker,
    success_fields,
    table,
    values_of_another_origin,
)
from shortener.errors import ApiError, ErrorCode
from shortener.model import Topic
from shortener.storage import schema
from shortener.storage.types import to_iso


def find_conversion_tracker(connection: Connection, application_id: int, *, lock: bool = False) -> Row[Any] | None:
    """Return the row of the tracker that stores the `conversion_url` of an application, or None. If `lock` is true, lock the row.

    A transaction that changes the row must lock it first. Otherwise two changes at the same time could get the same revision. A
    process detects a change by its new revision, so a process that has read the first change would not detect the second one."""
    statement = select(table).where(table.c.application_id == application_id, table.c.role == CONVERSION_URL)
    return connection.execute(statement.with_for_update() if lock else statement).first()


def read_conversion_url(connection: Connection, application_id: int) -> tuple[str | None, list[str] | None]:
    """Return `conversion_url` and `conversion_fields` of an application. Both are None if the application has no
    `conversion_url`."""
    row = find_conversion_tracker(connection, application_id)
    return (None, None) if row is None else (row.url, row.fields)


def callback_secret_state(connection: Connection, application_id: int) -> tuple[bool, datetime | None]:
    """Return whether an application has a callback secret, and the time until which the previous secret is also used."""
    a = schema.applications.c
    columns = (a.callback_secret, a.previous_callback_secret_until)
    row = connection.execute(select(*columns).where(a.id == application_id)).first()
    return (False, None) if row is None else (row[0] is not None, row[1])


def rotate_callback_secret(
    connection: Connection, audit: AuditWriter, application_id: int, encrypted: str, now: datetime, overlap: timedelta
) -> datetime | None:
    """Store a new callback secret and add the audit row. The tracker that stores `conversion_url` gets the same secret, unless it
    has a secret of its own.

    Return the time until which the previous secret is also used. Raise ApiError NOT_FOUND if the application does not exist."""
    applications = schema.applications
    row = connection.execute(select(applications).where(applications.c.id == application_id).with_for_update()).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no application {application_id}.")
    keeps_old = row.callback_secret is not None and overlap > timedelta()
    until = now + overlap if keeps_old else None
    connection.execute(
        update(applications)
        .where(applications.c.id == application_id)
        .values(
            callback_secret=encrypted,
            previous_callback_secret=row.callback_secret if keeps_old else None,
            previous_callback_secret_until=until,
        )
    )
    tracker = find_conversion_tracker(connection, application_id, lock=True)
    if tracker is not None and tracker.secret in (None, row.callback_secret):
        values = {
            "secret": encrypted,
            "previous_secret": tracker.secret if keeps_old else None,
            "previous_secret_until": until if tracker.secret else None,
            "updated_at": now,
            "revision": tracker.revision + 1,
        }
        connection.execute(update(table).where(table.c.id == tracker.id).values(values))
    after = {"previous_valid_until": to_iso(until)}
    audit.add(connection, now, "callback_secret_rotated", row.name, application_id=application_id, after=after)
    return until


def write_conversion_url(
    connection: Connection, audit: AuditWriter, application_id: int, url: str | None, fields: list[str] | None, now: datetime
) -> None:
    """Create or change the tracker for the `conversion_url` of an application, or delete it if `url` is None.

    The caller has checked the URL and runs the function in a transaction. If `fields` is None, the tracker gets the default fields
    of the format `json`. If a 410 response of the old URL disabled the tracker, a new URL enables it again. Requests to a new
    tracker are signed with the callback secret of the application. The function adds a row about the change of the tracker to the
    audit log.
    """
    applications = schema.applications
    statement = select(applications.c.callback_secret).where(applications.c.id == application_id).with_for_update()
    callback_secret = connection.execute(statement).scalar()
    row = find_conversion_tracker(connection, application_id, lock=True)
    if url is None:
        if row is not None:
            connection.execute(delete(table).where(table.c.id == row.id))
            add_tracker_row(connection, audit, now, "tracker_deleted", row)
        return
    if row is not None:
        values = {"url": url, "fields": fields, "updated_at": now, "revision": row.revision + 1}
        if url != row.url:
            values |= fresh_start(now) | values_of_another_origin(row.url, url)
            if row.disabled_reason == GONE:
                values |= {"enabled": True, "disabled_reason": None}
        changed = connection.execute(update(table).where(table.c.id == row.id).values(values).returning(table)).one()
        add_tracker_change(connection, audit, now, row, changed)
        return
    created = insert_tracker(
        connection,
        {
            "application_id": application_id,
            "role": CONVERSION_URL,
            "name": urlsplit(url).hostname or CONVERSION_URL,
            "enabled": True,
            "url": url,
            "topics": Topic.CONVERSION.value,
            "method": "POST",
            "format": "json",
            "fields": fields,
            "secret": callback_secret,
            "success": success_fields(None),
            "created_at": now,
            "updated_at": now,
        },
    )
    add_tracker_row(connection, audit, now, "tracker_created", created)
