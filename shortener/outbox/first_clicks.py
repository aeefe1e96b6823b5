"""This module locks rows of `first_clicks`, for a transaction that changes these rows or the state of their messages.

On SQLite, every writing transaction locks the whole database. On PostgreSQL, a row of `first_clicks` is the lock of its message.
For a message without clicks, `lock` inserts an empty row, and `release` deletes it before the transaction ends. Meanwhile, a
first click on the message waits, because it inserts a row with the same id. Therefore a first click needs no further statement
for a lock. Delivery reports and corrections need more statements, but there are fewer of them. Every transaction inserts and
locks rows in the order of their ids, because two transactions could otherwise deadlock.
"""

# Tested by tests/clicks/test_batch.py

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection

from shortener.storage import raw_sql


class FirstClick(NamedTuple):
    """A row of `first_clicks`. `at` is in ms since 1970. Bit n of `links` is set if the link at position n was clicked."""

    at: int | None = None
    hit_id: int | None = None
    links: int = 0


NO_CLICK = FirstClick()

_INSERT_EMPTY = (
    "INSERT INTO first_clicks (id, links) SELECT id, 0 FROM unnest($1::bigint[]) AS m(id) ORDER BY id ON CONFLICT DO NOTHING"
)
_READ = {
    "sqlite": "SELECT json_group_array(json_array(c.id, c.at, c.hit_id, c.links)) FROM json_each(?) AS j "
    "CROSS JOIN first_clicks AS c ON c.id = j.value",
    # This statement reads no other table. While it waits for a lock, rows of other tables may change, and it would still return
    # their old values. A later statement must read them.
    "postgresql": "SELECT id, at, hit_id, links FROM first_clicks WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE",
}
_DELETE_EMPTY = "DELETE FROM first_clicks WHERE id = ANY($1::bigint[]) AND hit_id IS NULL AND links = 0"


def lock(connection: Connection, messages: Collection[int]) -> dict[int, FirstClick]:
    """Lock the row of each message. Return the rows by row id of the message; a message without clicks has NO_CLICK. Call
    `release` before the transaction ends.

    A transaction that also locks rows of `messages` must lock those rows first."""
    ids = list(messages)
    if not ids:
        return {}
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_INSERT_EMPTY, (ids,))
    return dict.fromkeys(ids, NO_CLICK) | read(connection, ids)


def read(connection: Connection, ids: list[int]) -> dict[int, FirstClick]:
    """Return the existing rows of `first_clicks` by the row id of the message."""
    return {row[0]: FirstClick(*row[1:]) for row in raw_sql.rows(connection, _READ, ids)}


def release(connection: Connection, messages: Collection[int]) -> None:
    """Delete the empty rows that `lock` has inserted for messages without clicks."""
    if connection.dialect.name == "postgresql" and messages:
        connection.exec_driver_sql(_DELETE_EMPTY, (list(messages),))
