"""This module opens the SQLite or PostgreSQL database that a URL selects."""

# Tested by tests/storage/test_database.py

from __future__ import annotations

from pathlib import Path

from shortener.storage.database import Database
from shortener.storage.sqlite import SqliteDatabase


def sqlite_path(url: str) -> Path | None:
    """Return the path in a sqlite:/// URL. Return None for a PostgreSQL URL.

    The path is used as it is written, without percent-decoding."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


async def open_database(
    url: str, *, owner: bool, is_command: bool | None = None, pool_size: int = 8, timeout: float | None = None
) -> Database:
    """Open the database that a URL selects. Raise StoreUnavailable if this fails. The parameters are described in other modules:
    `owner` and `is_command` in sqlite.py, `pool_size` and `timeout` in postgres.py."""
    if path := sqlite_path(url):
        return SqliteDatabase(path, owner=owner, is_command=is_command)
    from shortener.storage.postgres import PostgresDatabase  # asyncpg is imported here, because SQLite does not need it

    return await PostgresDatabase.open(url, pool_size=pool_size, timeout=timeout)
