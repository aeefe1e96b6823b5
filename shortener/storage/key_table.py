"""Small numbers for keys that recur (cohorts, conversion processes): looked up, or inserted when first seen, then remembered.

The rows never change, so remembering is safe; what a transaction made is remembered only by `confirm`, after its commit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Table, select

from shortener.storage.database import upsert

Key = tuple[Any, ...]


class KeyTable:
    """`columns` make the key; `more()` gives the values of the other columns of a new row."""

    LIMIT = 100_000  # keys remembered

    def __init__(self, table: Table, columns: tuple[str, ...], more: Callable[[Key], dict[str, Any]] = lambda key: {}) -> None:
        self._table = table
        self._columns = columns
        self._more = more
        self._known: dict[Key, int] = {}

    def get_ids(self, connection: Connection, keys: set[Any]) -> dict[Any, int]:
        """The number of each key, inserting new ones."""
        found = {key: self._known[key] for key in keys if key in self._known}
        # In order, so that two processes that insert the same keys cannot deadlock.
        for key in sorted(keys - found.keys()):
            found[key] = self._find(connection, key) or self._make(connection, key)
        return found

    def remember(self, found: dict[Any, int]) -> None:
        """Remember what a transaction got; call it when it has been committed."""
        if len(self._known) > self.LIMIT:
            self._known.clear()
        self._known.update(found)

    def _make(self, connection: Connection, key: Key) -> int:
        values = dict(zip(self._columns, key, strict=True)) | self._more(key)
        statement = upsert(connection, self._table).values(values).on_conflict_do_nothing().returning(self._table.c.id)
        number: int | None = connection.execute(statement).scalar()
        if number is None:  # another process made it meanwhile
            number = self._find(connection, key)
            assert number is not None
        return number

    def _find(self, connection: Connection, key: Key) -> int | None:
        columns = self._table.c
        matches = [columns[name] == value for name, value in zip(self._columns, key, strict=True)]
        number: int | None = connection.execute(select(columns.id).where(*matches)).scalar()
        return number
