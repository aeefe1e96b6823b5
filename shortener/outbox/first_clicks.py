"""What was clicked of a message, for those who change it or the state of the message: read while nobody else can.

On SQLite that is so within any transaction that writes. On PostgreSQL a row of `first_clicks` is the lock: a message that nobody
clicked gets an empty one until the transaction ends (`lock`, `release`), and a click that comes meanwhile waits to insert its own.
So a click touches nothing but that row, millions of times, and reports and corrections, which are fewer, do a little more. Whoever
inserts or locks several of them does it in the order of their ids, or two could wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection

from shortener.storage import raw_sql


class FirstClick(NamedTuple):
    """A row of `first_clicks`; `at` in ms since 1970."""

    at: int | None = None
    hit_id: int | None = None
    links: int = 0


NO_CLICK = FirstClick()

_MAKE = "INSERT INTO first_clicks (id, links) SELECT id, 0 FROM unnest($1::bigint[]) AS m(id) ORDER BY id ON CONFLICT DO NOTHING"
_READ = {
    "sqlite": "SELECT json_group_array(json_array(c.id, c.at, c.hit_id, c.links)) FROM json_each(?) AS j "
    "CROSS JOIN first_clicks AS c ON c.id = j.value",
    # By a statement of its own: one that waits sees whatever it does not lock as it was when it began.
    "postgresql": "SELECT id, at, hit_id, links FROM first_clicks WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE",
}
_LET_GO = "DELETE FROM first_clicks WHERE id = ANY($1::bigint[]) AND hit_id IS NULL AND links = 0"


def lock(connection: Connection, messages: Collection[int]) -> dict[int, FirstClick]:
    """What was clicked of each of these messages (row ids), this transaction's alone until it ends; `release` of them before it
    does. Lock the messages first, if at all."""
    ids = list(messages)
    if not ids:
        return {}
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_MAKE, (ids,))
    return dict.fromkeys(ids, NO_CLICK) | read(connection, ids)


def read(connection: Connection, ids: list[int]) -> dict[int, FirstClick]:
    """The rows that are there."""
    return {row[0]: FirstClick(*row[1:]) for row in raw_sql.rows(connection, _READ, ids)}


def release(connection: Connection, messages: Collection[int]) -> None:
    """Leave no row of a message that nothing was clicked of."""
    if connection.dialect.name == "postgresql" and messages:
        connection.exec_driver_sql(_LET_GO, (list(messages),))
