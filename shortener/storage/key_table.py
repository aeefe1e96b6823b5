"""This module assigns a small row id to each distinct key, in tables such as `cohorts` and `processes`.

A row never changes, so a process can cache its id. It caches the ids of a transaction only after the commit.
"""

# Tested by tests/reporting/test_counts.py

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Table, select

from shortener.storage.database import upsert

Key = tuple[Any, ...]


class KeyTable:
    """A table with an id for each key, and a cache of the ids.

    `columns` are the columns that contain the key. `more(key)` returns the values of the other columns of a new row."""

    MAX_CACHED_KEYS = 100_000

    def __init__(self, table: Table, columns: tuple[str, ...], more: Callable[[Key], dict[str, Any]] = lambda key: {}) -> None:
        self._table = table
        self._columns = columns
        self._more = more
        self._cache: dict[Key, int] = {}

    def get_ids(self, connection: Connection, keys: set[Any]) -> dict[Any, int]:
        """Return the id of each key. Insert a row for each new key."""
        found = {key: self._cache[key] for key in keys if key in self._cache}
        # All processes insert keys in sorted order. Therefore two processes that insert the same keys cannot deadlock.
        for key in sorted(keys - found.keys()):
            found[key] = self._select(connection, key) or self._insert(connection, key)
        return found

    def remember(self, ids: dict[Any, int]) -> None:
        """Cache the ids that `get_ids` returned. Call this after the commit of the transaction."""
        if len(self._cache) > self.MAX_CACHED_KEYS:
            self._cache.clear()
        self._cache.update(ids)

    def _insert(self, connection: Connection, key: Key) -> int:
        values = dict(zip(self._columns, key, strict=True)) | self._more(key)
        statement = upsert(connection, self._table).values(values).on_conflict_do_nothing().returning(self._table.c.id)
        row_id: int | None = connection.execute(statement).scalar()
        if row_id is None:  # Another process has inserted the key since the SELECT.
            row_id = self._select(connection, key)
            assert row_id is not None
        return row_id

    def _select(self, connection: Connection, key: Key) -> int | None:
        columns = self._table.c
        matches = [columns[name] == value for name, value in zip(self._columns, key, strict=True)]
        row_id: int | None = connection.execute(select(columns.id).where(*matches)).scalar()
        return row_id
