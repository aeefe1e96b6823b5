"""API keys and tracker tokens: 32 random bytes each.

Only their SHA-256 is stored, and rows are found by it, so response times reveal nothing. The plain text is returned once.
Each function is one transaction for `Database.write`; the caller refreshes the directory afterwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert, select, update

from shortener.accounts.directory import hash_credential, increment_version, require_application
from shortener.accounts.settings import PERMISSIONS
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.storage import schema


@dataclass(frozen=True, slots=True)
class Credentials:
    """What is shown once, when it is made."""

    application_id: int
    api_key: str
    tracker_token: str


def create_key(connection: Connection, application_id: int, name: str, permissions: Sequence[str], now: datetime) -> str:
    """A new API key, returned once. Raises ApiError INVALID_REQUEST, NOT_FOUND."""
    unknown = sorted(set(permissions) - set(PERMISSIONS))
    if unknown or not permissions:
        reason = f"unknown: {', '.join(unknown)}; there are {', '.join(PERMISSIONS)}"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("permissions", reason)])
    require_application(connection, application_id)
    key = "sk_" + secrets.token_urlsafe(32)
    connection.execute(
        insert(schema.api_keys).values(
            application_id=application_id,
            name=name,
            hash=hash_credential(key),
            hint=key[:8],
            permissions=sorted(set(permissions)),
            created_at=now,
        )
    )
    increment_version(connection)
    return key


def revoke_key(connection: Connection, key_id: int, now: datetime) -> None:
    """Raises ApiError NOT_FOUND."""
    table = schema.api_keys
    done = connection.execute(update(table).where(table.c.id == key_id, table.c.revoked_at.is_(None)).values(revoked_at=now))
    if not done.rowcount:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no live key {key_id}.")
    increment_version(connection)


def list_keys(connection: Connection, application_id: int | None = None) -> list[dict[str, Any]]:
    """Keys without their secrets: id, application_id, name, hint, permissions, created_at, revoked_at."""
    table = schema.api_keys
    statement = select(table).order_by(table.c.id)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    return [{str(name): value for name, value in row._mapping.items() if name != "hash"} for row in connection.execute(statement)]


def rotate_token(connection: Connection, application_id: int, now: datetime, overlap: timedelta) -> tuple[str, datetime]:
    """A new tracker token, and until when the previous one stays valid (23 Telecom). Older ones end now."""
    require_application(connection, application_id)
    table = schema.tracker_tokens
    until = now + overlap
    mine = table.c.application_id == application_id
    connection.execute(update(table).where(mine, table.c.valid_until > now).values(valid_until=now))
    connection.execute(update(table).where(mine, table.c.valid_until.is_(None)).values(valid_until=until))
    token = new_token(connection, application_id, now)
    increment_version(connection)
    return token, until


def new_token(connection: Connection, application_id: int, now: datetime) -> str:
    token = "tt_" + secrets.token_urlsafe(32)
    connection.execute(
        insert(schema.tracker_tokens).values(application_id=application_id, hash=hash_credential(token), created_at=now)
    )
    return token
