"""Which engine a URL means."""

from __future__ import annotations

from pathlib import Path

from shortener.storage.database import Database
from shortener.storage.postgres import PostgresDatabase
from shortener.storage.sqlite import SqliteDatabase


def sqlite_path(url: str) -> Path | None:
    """The file of a sqlite:/// URL; None for a PostgreSQL URL."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


async def open_database(url: str, *, owner: bool, pool_size: int = 8, timeout: float | None = None) -> Database:
    """Open the store of a URL. `owner`: this process serves (see sqlite.py). `pool_size`, `timeout`: see postgres.py.

    Raises StoreUnavailable."""
    if path := sqlite_path(url):
        return SqliteDatabase(path, owner=owner)
    return await PostgresDatabase.open(url, pool_size=pool_size, timeout=timeout)
