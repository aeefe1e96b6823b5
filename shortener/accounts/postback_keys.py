"""This module creates, rotates and revokes postback keys. A postback key is a credential in the path of a URL, for networks that
can store only a URL. It permits reports of conversions and nothing else. A new application has no postback key. Only the SHA-256
of a key is stored, and the plain text is returned once.

Each function runs inside one transaction of `Database.write`. After the transaction, the caller refreshes the `Directory`, which
is the copy of the accounts in memory.
"""
# Tested by tests/accounts/test_postback_keys.py

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, insert, or_, select, update

from shortener.accounts.directory import hash_credential, require_application
from shortener.accounts.version import mark_accounts_changed
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import MAX_COUNTED_ID
from shortener.storage import schema

PATH = "/api/v1/postback/{postback_key}"
MAX_NAME_CHARACTERS = 100
MAX_KEYS = 100  # The maximum number of valid postback keys of one application. Revoked and expired keys do not count.
MAX_OVERLAP = timedelta(days=90)
_HINT_CHARACTERS = 8


def create_postback_key(connection: Connection, application_id: int, name: str, now: datetime) -> tuple[int, str]:
    """Create a postback key. An empty `name` means a key without a name. Return the id and the plain text of the key. Raise
    ApiError NOT_FOUND, INVALID_REQUEST or CONFLICT."""
    require_application(connection, application_id)
    is_blank = bool(name) and not name.strip()
    name = name.strip()
    if is_blank or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        reason = f"must have 1 to {MAX_NAME_CHARACTERS} printable characters, for example the name of the network"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("name", reason)])
    table = schema.postback_keys
    valid = table.c.revoked_at.is_(None), or_(table.c.valid_until.is_(None), table.c.valid_until > now)
    count = select(func.count()).select_from(table).where(table.c.application_id == application_id, *valid)
    if connection.execute(count).scalar_one() >= MAX_KEYS:
        raise ApiError(ErrorCode.CONFLICT, f"The application already has {MAX_KEYS} postback keys; revoke one first.")
    return _insert(connection, application_id, name, now)


def rotate_postback_key(
    connection: Connection, application_id: int | None, key_id: int, now: datetime, overlap: timedelta
) -> tuple[int, str, datetime]:
    """Replace a postback key by a new key of the same name. Return the id and the plain text of the new key, and the time until
    which the old key stays valid.

    If `application_id` is None, the key may belong to any application. Raise ApiError with the code NOT_FOUND or
    INVALID_REQUEST."""
    if not timedelta() <= overlap <= MAX_OVERLAP:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("overlap", f"must be between 0 and {MAX_OVERLAP.days} days")])
    row = _find_usable(connection, application_id, key_id, now)
    until = now + overlap
    table = schema.postback_keys
    connection.execute(update(table).where(table.c.id == key_id).values(valid_until=until))
    new_id, key = _insert(connection, row.application_id, row.name, now)
    return new_id, key, until


def revoke_postback_key(connection: Connection, application_id: int | None, key_id: int, now: datetime) -> None:
    """Revoke a postback key.

    If `application_id` is None, the key may belong to any application. Raise ApiError NOT_FOUND if no valid key has this id."""
    _find_usable(connection, application_id, key_id, now)
    table = schema.postback_keys
    connection.execute(update(table).where(table.c.id == key_id).values(revoked_at=now))
    mark_accounts_changed(connection)


def list_postback_keys(connection: Connection, application_id: int | None = None) -> list[dict[str, Any]]:
    """Return the postback keys of an application without their plain text. If `application_id` is None, return the keys of all
    applications.

    Each has id, application_id, name, hint (the first characters), created_at, valid_until and revoked_at."""
    table = schema.postback_keys
    statement = select(table).order_by(table.c.id)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    return [{str(name): value for name, value in row._mapping.items() if name != "hash"} for row in connection.execute(statement)]


def _find_usable(connection: Connection, application_id: int | None, key_id: int, now: datetime) -> Row[Any]:
    """Return the row of a postback key that is neither revoked nor expired. Raise ApiError NOT_FOUND."""
    table = schema.postback_keys
    is_valid = table.c.revoked_at.is_(None), or_(table.c.valid_until.is_(None), table.c.valid_until > now)
    statement = select(table).where(table.c.id == key_id, *is_valid)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    row = connection.execute(statement).first() if key_id <= MAX_COUNTED_ID else None
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no postback key {key_id} that is not revoked or expired.")
    return row


def _insert(connection: Connection, application_id: int, name: str, now: datetime) -> tuple[int, str]:
    table = schema.postback_keys
    key = "pk_" + secrets.token_urlsafe(32)
    values = {
        "application_id": application_id,
        "name": name,
        "hash": hash_credential(key),
        "hint": key[:_HINT_CHARACTERS],
        "created_at": now,
    }
    key_id: int = connection.execute(insert(table).values(values).returning(table.c.id)).scalar_one()
    mark_accounts_changed(connection)
    return key_id, key
