"""Functions with which the portal, the command line and the API change API keys, tracker tokens and postback keys. Each change
adds a row to the audit log, in the same transaction. The row names the key and never contains its plain text.
"""
# Tested by tests/web/test_keys.py, tests/web/test_postback_keys.py and tests/cli/test_commands.py

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from shortener.accounts import credentials, postback_keys
from shortener.accounts.audit import AuditWriter
from shortener.storage.types import to_iso


def create_key(
    connection: Connection,
    audit: AuditWriter,
    application_id: int,
    name: str,
    permissions: Sequence[str],
    now: datetime,
    rate_limit: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """Create an API key. Return its plain text and its columns. Raise the same ApiErrors as
    `credentials.create_key`."""
    key = credentials.create_key(connection, application_id, name, permissions, now, rate_limit)
    row = credentials.find_key_of_text(connection, key)
    after: dict[str, Any] = {"permissions": ", ".join(row["permissions"])}
    if rate_limit is not None:
        after["rate_limit"] = rate_limit
    audit.add(connection, now, "api_key_created", credentials.key_name(row), application_id=application_id, after=after)
    return key, row


def update_key(
    connection: Connection, audit: AuditWriter, application_id: int | None, key_id: int, changes: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """Change an API key and return its columns. If `application_id` is None, the key may belong to any application. Raise the
    same ApiErrors as `credentials.update_key`."""
    old = credentials.find_key(connection, application_id, key_id)
    owner = old["application_id"]
    credentials.update_key(connection, owner, key_id, changes)
    after = {name: value for name, value in changes.items() if old[name] != value}
    if after:
        before = {name: old[name] for name in after}
        audit.add(connection, now, "api_key_changed", credentials.key_name(old), application_id=owner, before=before, after=after)
    return credentials.find_key(connection, owner, key_id)


def revoke_key(
    connection: Connection, audit: AuditWriter, application_id: int | None, key_id: int, now: datetime
) -> dict[str, Any]:
    """Revoke an API key and return its columns. If `application_id` is None, the key may belong to any application. Raise the
    same ApiErrors as `credentials.revoke_key`."""
    owner = credentials.find_key(connection, application_id, key_id)["application_id"]
    credentials.revoke_key(connection, key_id, now)
    row = credentials.find_key(connection, owner, key_id)
    audit.add(connection, now, "api_key_revoked", credentials.key_name(row), application_id=owner)
    return row


def rotate_token(
    connection: Connection, audit: AuditWriter, application_id: int, now: datetime, overlap: timedelta
) -> tuple[str, datetime]:
    """Rotate the tracker token with `credentials.rotate_token`, and return its result."""
    token, until = credentials.rotate_token(connection, application_id, now, overlap)
    after = {"previous_valid_until": to_iso(until)}
    audit.add(connection, now, "tracker_token_rotated", application_id=application_id, after=after)
    return token, until


def create_postback_key(
    connection: Connection, audit: AuditWriter, application_id: int, name: str, now: datetime
) -> tuple[int, str]:
    """Create a postback key with `postback_keys.create_postback_key`, and return its result."""
    created = postback_keys.create_postback_key(connection, application_id, name, now)
    audit.add(connection, now, "postback_key_created", name.strip(), application_id=application_id)
    return created


def rotate_postback_key(
    connection: Connection, audit: AuditWriter, application_id: int | None, key_id: int, now: datetime, overlap: timedelta
) -> tuple[int, str, datetime]:
    """Rotate a postback key with `postback_keys.rotate_postback_key`, and return its result."""
    new_id, key, until = postback_keys.rotate_postback_key(connection, application_id, key_id, now, overlap)
    after = {"previous_valid_until": to_iso(until)}
    _add_postback_row(connection, audit, now, "postback_key_rotated", new_id, after)
    return new_id, key, until


def revoke_postback_key(connection: Connection, audit: AuditWriter, application_id: int | None, key_id: int, now: datetime) -> None:
    """Revoke a postback key with `postback_keys.revoke_postback_key`."""
    postback_keys.revoke_postback_key(connection, application_id, key_id, now)
    _add_postback_row(connection, audit, now, "postback_key_revoked", key_id)


def _add_postback_row(
    connection: Connection,
    audit: AuditWriter,
    now: datetime,
    action: str,
    key_id: int,
    after: Mapping[str, Any] | None = None,
) -> None:
    row = next(one for one in postback_keys.list_postback_keys(connection) if one["id"] == key_id)
    audit.add(connection, now, action, credentials.key_name(row), application_id=row["application_id"], after=after)
