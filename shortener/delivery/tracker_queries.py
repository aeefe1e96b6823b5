"""Queries and changes of the table `trackers`. The functions run in a transaction of the caller and return rows.

They raise ApiError NOT_FOUND, INVALID_REQUEST or CONFLICT.
"""

# Tested by tests/delivery/test_trackers.py

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from shortener.accounts.version import mark_accounts_changed
from shortener.delivery.outcomes import GONE, parse_success
from shortener.delivery.placeholders import TemplateError, parse_template
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import MAX_COUNTED_ID
from shortener.model import Topic
from shortener.storage import schema

table = schema.trackers

TRACKER = "tracker"
CONVERSION_URL = "conversion_url"

#: An application can have at most this many trackers, because each event can create a delivery for each tracker.
MAX_TRACKERS = 100


def topics_of(events: Iterable[str]) -> int:
    """Return the bits of the topics with these names."""
    return sum({Topic[name.upper()].value for name in events})


def success_fields(success: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the success criteria as the column `success` stores them."""
    criteria = parse_success(success)
    return {"statuses": criteria.statuses, "body_contains": criteria.body_contains}


def refuse(field: str, reason: str) -> ApiError:
    """Return the error for an invalid value in one field of a tracker."""
    return ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(field, reason)])


def require_tracker(connection: Connection, tracker_id: int, application_id: int | None, *, lock: bool = False) -> Row[Any]:
    """Return the row of a tracker, locked if `lock` is true. Raise ApiError NOT_FOUND if it does not exist."""
    statement = select(table).where(table.c.id == tracker_id)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    if lock:
        statement = statement.with_for_update()
    row = connection.execute(statement).first() if tracker_id <= MAX_COUNTED_ID else None
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no tracker {tracker_id}.")
    return row


def list_trackers(connection: Connection, application_id: int | None) -> Sequence[Row[Any]]:
    """Return the rows of all trackers of an application (None: of all applications), oldest first."""
    statement = select(table).order_by(table.c.id)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    return connection.execute(statement).all()


def count_subscribers(connection: Connection, application_id: int, topic: Topic) -> int:
    """Return the number of enabled trackers of an application that receive events of a topic."""
    subscribed = (table.c.application_id == application_id, table.c.enabled, table.c.topics.bitwise_and(topic.value) != 0)
    return connection.execute(select(func.count()).select_from(table).where(*subscribed)).scalar_one()


def insert_tracker(connection: Connection, values: dict[str, Any]) -> Row[Any]:
    """Insert a tracker and return its row. Raise ApiError NOT_FOUND if the application does not exist. Raise ApiError CONFLICT if
    it already has MAX_TRACKERS trackers."""
    application_id = values["application_id"]
    applications = schema.applications
    # The lock on the application keeps the number of trackers correct if several processes create trackers at the same time.
    known = select(applications.c.id).where(applications.c.id == application_id).with_for_update()
    if connection.execute(known).first() is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no application {application_id}.")
    count = select(func.count()).where(table.c.application_id == application_id)
    if connection.execute(count).scalar_one() >= MAX_TRACKERS:
        raise ApiError(ErrorCode.CONFLICT, f"The application already has {MAX_TRACKERS} trackers, which is the maximum.")
    if values.get("with_suspected"):
        mark_accounts_changed(connection)
    return connection.execute(insert(table).values(values).returning(table)).one()


def update_tracker(
    connection: Connection, tracker_id: int, application_id: int | None, changes: dict[str, Any], overlap: int, now: datetime
) -> Row[Any]:
    """Change the given values of a tracker and return its row. Requests are also signed with a replaced secret for `overlap` more
    seconds."""
    row = require_tracker(connection, tracker_id, application_id, lock=True)
    if row.role == CONVERSION_URL and (fixed := {"events", "format"} & changes.keys()):
        raise refuse(min(fixed), "must not be changed: this tracker stores the application's conversion_url")
    values: dict[str, Any] = {
        name: value for name, value in changes.items() if name not in ("events", "success", "secret", "enabled")
    }
    if "events" in changes:
        values["topics"] = topics_of(changes["events"])
    if "success" in changes:
        values["success"] = success_fields(changes["success"])
    if "secret" in changes:
        keeps_old = row.secret is not None and changes["secret"] is not None and overlap > 0
        values["secret"] = changes["secret"]
        values["previous_secret"] = row.secret if keeps_old else None
        values["previous_secret_until"] = now + timedelta(seconds=overlap) if keeps_old else None
    if "enabled" in changes:
        values["enabled"] = changes["enabled"]
        if changes["enabled"]:
            values["disabled_reason"] = None
        elif row.enabled or row.disabled_reason == GONE:
            values["disabled_reason"] = "switched off"
    # A form or a script that saves an enabled tracker sends `enabled` again. This does not mean that the endpoint works again, so
    # the circuit breaker stays as it is.
    is_enabled_again = changes.get("enabled") and not row.enabled
    if is_enabled_again or values.get("url", row.url) != row.url:
        values |= fresh_start(now)
    if "url" in values:
        values = values_of_another_origin(row.url, values["url"]) | values
    values |= {"updated_at": now, "revision": row.revision + 1}
    after = connection.execute(update(table).where(table.c.id == row.id).values(values).returning(table)).one()
    if row.with_suspected or after.with_suspected:
        # Processes must read again which applications have trackers that receive suspected hits.
        mark_accounts_changed(connection)
    return after


def fresh_start(now: datetime) -> dict[str, Any]:
    """Return new column values of a tracker that close its circuit breaker and remove its learned rate.

    The waiting deliveries of the tracker are then sent at the recovery rate."""
    return {
        "failures_in_row": 0,
        "open_until": None,
        "opened_at": None,
        "recovering_at": now,
        "rate": None,
        "rate_ceiling": None,
        "rate_lowered_at": None,
        "paced_until": None,
    }


#: The columns with credentials. They must only be sent to the scheme, host and port for which they were stored.
_COLUMNS_OF_ORIGIN = ("headers", "client_certificate")


def values_of_another_origin(old: str, new: str) -> dict[str, None]:
    """If the two URLs differ in the scheme, host or port, return the credential columns with the value None. Otherwise return an
    empty dict."""
    try:
        known, wanted = parse_template(old), parse_template(new)
        is_same = (known.scheme, known.host, known.port) == (wanted.scheme, wanted.host, wanted.port)
    except TemplateError:  # the old URL is invalid, but an older release accepted it
        is_same = False
    return {} if is_same else dict.fromkeys(_COLUMNS_OF_ORIGIN)


def delete_tracker(connection: Connection, tracker_id: int, application_id: int | None) -> Row[Any]:
    """Delete a tracker and return its row. Its deliveries stay."""
    row = require_tracker(connection, tracker_id, application_id, lock=True)
    connection.execute(delete(table).where(table.c.id == row.id))
    if row.with_suspected:
        mark_accounts_changed(connection)
    return row
