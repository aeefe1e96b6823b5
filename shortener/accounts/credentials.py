"""This module creates, lists and revokes API keys and tracker tokens, which are credentials of 32 random bytes each.

The database stores only the SHA-256 of a credential and searches for this hash. Therefore the duration of a search reveals
nothing about the stored credentials. The plain text is returned once. Each function here is part of one transaction of
`Database.write`, and the caller refreshes the directory afterwards.
"""

# Tested by tests/accounts/test_administration.py and tests/web/test_callers.py

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert, or_, select, update

from shortener.accounts.directory import hash_credential, require_application
from shortener.accounts.settings import PERMISSIONS
from shortener.accounts.version import mark_accounts_changed
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import record
from shortener.storage import schema


@record
class Credentials:
    """The credentials of a new application in plain text."""

    application_id: int
    api_key: str
    tracker_token: str
    callback_secret: str | None = None  # The secret that signs callbacks; None if the application has none yet.


def create_key(
    connection: Connection,
    application_id: int,
    name: str,
    permissions: Sequence[str],
    now: datetime,
    rate_limit: int | None = None,
    *,
    key: str = "",
) -> str:
    """Create an API key and return its plain text. Raise ApiError with the code INVALID_REQUEST or NOT_FOUND. `rate_limit` is the
    number of requests per minute; None means no limit. `key` is the plain text; if it is empty, a random key is created."""
    unknown = sorted(set(permissions) - set(PERMISSIONS))
    if unknown or not permissions:
        reason = f"must contain at least one of {', '.join(PERMISSIONS)}" + (f"; unknown: {', '.join(unknown)}" if unknown else "")
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("permissions", reason)])
    require_application(connection, application_id)
    key = key or "sk_" + secrets.token_urlsafe(32)
    connection.execute(
        insert(schema.api_keys).values(
            application_id=application_id,
            name=name,
            hash=hash_credential(key),
            hint=key[:8],
            permissions=sorted(set(permissions)),
            created_at=now,
            rate_limit=rate_limit,
        )
    )
    mark_accounts_changed(connection)
    return key


def revoke_key(connection: Connection, key_id: int, now: datetime) -> None:
    """Revoke an API key. Raise ApiError NOT_FOUND if the key does not exist or is already revoked."""
    table = schema.api_keys
    done = connection.execute(update(table).where(table.c.id == key_id, table.c.revoked_at.is_(None)).values(revoked_at=now))
    if not done.rowcount:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no key {key_id} that is not revoked.")
    mark_accounts_changed(connection)


def list_keys(connection: Connection, application_id: int | None = None) -> list[dict[str, Any]]:
    """Return the API keys of an application without their plain text. If `application_id` is None, return the keys of all
    applications.

    Each has id, application_id, name, hint (the first characters), permissions, created_at, revoked_at and rate_limit."""
    table = schema.api_keys
    statement = select(table).order_by(table.c.id)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    return [{str(name): value for name, value in row._mapping.items() if name != "hash"} for row in connection.execute(statement)]


def find_key(connection: Connection, application_id: int | None, key_id: int) -> dict[str, Any]:
    """Return an API key with the columns of `list_keys`. If `application_id` is None, the key may belong to any application.
    Raise ApiError NOT_FOUND."""
    found = next((row for row in list_keys(connection, application_id) if row["id"] == key_id), None)
    if found is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no key {key_id}.")
    return found


def key_name(row: Mapping[str, Any]) -> str:
    """Return a label for an API key or postback key: its name or, without a name, its first characters."""
    return str(row["name"] or f"{row['hint']}…")


def find_key_of_text(connection: Connection, key: str) -> dict[str, Any]:
    """Return the API key with this plain text. The result has the columns of `list_keys`. The key must exist."""
    row = connection.execute(select(schema.api_keys).where(schema.api_keys.c.hash == hash_credential(key))).one()
    return {str(name): value for name, value in row._mapping.items() if name != "hash"}


def update_key(connection: Connection, application_id: int, key_id: int, changes: Mapping[str, Any]) -> None:
    """Change `name` or `rate_limit` of an API key. Raise ApiError NOT_FOUND if the key does not exist or is revoked."""
    table = schema.api_keys
    chosen = table.c.id == key_id, table.c.application_id == application_id, table.c.revoked_at.is_(None)
    values = dict(changes) or {"rate_limit": table.c.rate_limit}
    if not connection.execute(update(table).where(*chosen).values(values)).rowcount:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no key {key_id} that is not revoked.")
    mark_accounts_changed(connection)


def list_tokens(connection: Connection, application_id: int, now: datetime) -> list[dict[str, Any]]:
    """Return id, created_at and valid_until of each valid tracker token of an application."""
    table = schema.tracker_tokens
    statement = (
        select(table.c.id, table.c.created_at, table.c.valid_until)
        .where(table.c.application_id == application_id, or_(table.c.valid_until.is_(None), table.c.valid_until > now))
        .order_by(table.c.id)
    )
    return [dict(row._mapping) for row in connection.execute(statement)]


def rotate_token(connection: Connection, application_id: int, now: datetime, overlap: timedelta) -> tuple[str, datetime]:
    """Create a tracker token. Return its plain text, and the time until which the previous token stays valid.

    Still older tokens become invalid now. Raise ApiError NOT_FOUND."""
    require_application(connection, application_id)
    # This call locks a row (version.py), so that concurrent rotations run one after the other. Otherwise, on PostgreSQL, the second
    # rotation would not see the new token of the first one, and both new tokens would stay valid.
    mark_accounts_changed(connection)
    table = schema.tracker_tokens
    until = now + overlap
    of_application = table.c.application_id == application_id
    connection.execute(update(table).where(of_application, table.c.valid_until > now).values(valid_until=now))
    connection.execute(update(table).where(of_application, table.c.valid_until.is_(None)).values(valid_until=until))
    return new_token(connection, application_id, now), until


def new_token(connection: Connection, application_id: int, now: datetime, *, token: str = "") -> str:
    """Create a tracker token and return its plain text. The other tokens of the application do not change.

    `token` is the plain text; if it is empty, a random token is created."""
    token = token or "tt_" + secrets.token_urlsafe(32)
    connection.execute(
        insert(schema.tracker_tokens).values(application_id=application_id, hash=hash_credential(token), created_at=now)
    )
    return token
