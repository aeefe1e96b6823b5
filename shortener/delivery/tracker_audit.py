"""The rows about trackers in the audit log.

A row contains no secret. The URL can contain credentials, so the row contains only its host. For static headers, the client
certificate and the signing secret, a row says only that they were set, replaced or removed.
"""
# Tested by tests/delivery/test_trackers.py and tests/test_audit_complete.py

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from shortener.accounts.audit import AuditWriter
from shortener.model import SUBSCRIBABLE_TOPICS, Topic
from shortener.urls import host_of

_FILTERS = ("conversion_actions", "conversion_dispositions")
_PLAIN = (
    *("name", "enabled", "method", "format", "fields", "success", "max_attempts", "timeout", "concurrency", "max_per_second"),
    *("schedule", "with_suspected", *_FILTERS),
)
#: The columns whose values must not be in the audit log, each with its name in the audit log.
_HIDDEN = {"url": "path and query of the URL", "headers": "headers", "client_certificate": "client certificate", "secret": "secret"}


def add_tracker_row(connection: Connection, audit: AuditWriter, now: datetime, action: str, row: Row[Any]) -> None:
    """Add a row about a tracker that was created or deleted."""
    after = {"events": _events(row), "format": row.format, "enabled": row.enabled, "host": _host(row)}
    after |= {name: found for name in _FILTERS if (found := getattr(row, name))}
    audit.add(connection, now, action, _subject(row), application_id=row.application_id, after=after)


def add_tracker_change(connection: Connection, audit: AuditWriter, now: datetime, old: Row[Any], new: Row[Any]) -> None:
    """Add a row with the differences between two states of a tracker. If nothing differs, add no row."""
    before, after = ({"events": _events(row), "host": _host(row)} for row in (old, new))
    before |= {name: getattr(old, name) for name in _PLAIN}
    after |= {name: getattr(new, name) for name in _PLAIN}
    for column, label in _HIDDEN.items():
        earlier, later = getattr(old, column), getattr(new, column)
        if earlier != later and not (column == "url" and _host(old) != _host(new)):
            before[label] = "not set" if earlier is None else "set"
            after[label] = "removed" if later is None else "set" if earlier is None else "replaced"
    changed = {name for name in after if before[name] != after[name]}
    action = "tracker_secret_replaced" if changed == {"secret"} and new.secret is not None else "tracker_changed"
    audit.add_differences(connection, now, action, _subject(new), before, after, application_id=new.application_id)


def _subject(row: Row[Any]) -> str:
    return f"tracker {row.id} {row.name}"


def _events(row: Row[Any]) -> str:
    return ", ".join(topic.api_name for topic in SUBSCRIBABLE_TOPICS if topic & Topic(row.topics))


def _host(row: Row[Any]) -> str:
    """Return the host in the URL of a tracker. Return "" for a URL without a host, which an older release may have accepted."""
    try:
        return host_of(row.url)
    except ValueError:
        return ""
