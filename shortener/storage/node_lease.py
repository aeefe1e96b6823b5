"""This module leases node numbers. No two processes that serve from the same PostgreSQL database generate ids with the same
number.

A number is leased in a row of `node_leases` for LEASE_SECONDS on the clock of the database, and renewed every RENEW_SECONDS. A
process that stops returns its number.

If a process could not renew its lease in time, another process may have leased the number. The first process then leases a new
number (`NodeLease.step`). Until it does, both processes may generate the same id. A unique index then rejects the second row, and
its process writes it with a new id. To make this case even less probable, a process that starts searches for a number that was
not used for a long time.

Commands lease no number. They use a random number that is at least FIRST_COMMAND_NODE. With SQLite, one process serves, so it
needs no lease (sqlite.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import structlog
from sqlalchemy import Connection, delete, select, text, update

from shortener.errors import StoreUnavailable
from shortener.ids import MAX_NODES
from shortener.storage.database import Database, upsert
from shortener.storage.schema import node_leases

log = structlog.get_logger(__name__)

FIRST_COMMAND_NODE = 896  # The lowest node number of commands. Processes that serve lease only lower numbers.
LEASE_SECONDS = 600.0
RENEW_SECONDS = 30.0


def random_command_node() -> int:
    """Return a random node number for a command."""
    return FIRST_COMMAND_NODE + secrets.randbelow(MAX_NODES - FIRST_COMMAND_NODE)


class NodeLease:
    """The leased node number of this process. `on_change` is called with each new number."""

    def __init__(self, database: Database, on_change: Callable[[int], None]) -> None:
        self._database = database
        self._on_change = on_change
        self._owner = secrets.token_hex(16)
        self.node = -1

    async def step(self) -> int:
        """Lease a node number, or renew the lease. Always return 0, so that the job waits for its interval. Raise
        StoreUnavailable if the database is unavailable."""
        if self.node < 0 or not await self._database.write(_renew, self.node, self._owner):
            node = await self._database.write(_lease, self._owner)
            if self.node >= 0:
                log.error("node_number_lost", node=self.node, new=node)
            self.node = node
            self._on_change(node)
        return 0

    async def release(self) -> None:
        """End the lease of the node number. If the database is not available, the lease expires by itself."""
        try:
            await self._database.write(_release, self._owner)
        except StoreUnavailable:
            return


_CLOCK = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
#: Selects the clock of the database, in milliseconds since 1970.
_NOW = text(f"SELECT {_CLOCK}")
#: Selects the clock of the database, and the next value of the SQL sequence `nodes`.
_NOW_AND_START = text(f"SELECT {_CLOCK}, nextval('nodes')")


def _lease(connection: Connection, owner: str) -> int:
    """Lease the first free node number. Begin the search with the next value of the SQL sequence `nodes`."""
    now: int
    start: int
    now, start = connection.execute(_NOW_AND_START).one()
    leased = set(connection.scalars(select(node_leases.c.node).where(node_leases.c.until_ms > now)))
    for offset in range(FIRST_COMMAND_NODE):
        node = (start + offset) % FIRST_COMMAND_NODE
        if node in leased:
            continue
        row = upsert(connection, node_leases).values(node=node, owner=owner, until_ms=now + int(LEASE_SECONDS * 1000))
        taken = row.on_conflict_do_update(
            index_elements=["node"],
            set_={"owner": row.excluded.owner, "until_ms": row.excluded.until_ms},
            where=node_leases.c.until_ms <= now,  # Another process may have leased the number since the SELECT.
        ).returning(node_leases.c.node)
        if connection.execute(taken).first() is not None:
            return node
    raise StoreUnavailable(f"all {FIRST_COMMAND_NODE} node numbers are in use")


def _renew(connection: Connection, node: int, owner: str) -> bool:
    """Renew the lease of a node number. Return False if another process has leased the number."""
    now: int = connection.execute(_NOW).scalar_one()
    own = update(node_leases).where(node_leases.c.node == node, node_leases.c.owner == owner)
    return connection.execute(own.values(until_ms=now + int(LEASE_SECONDS * 1000))).rowcount > 0


def _release(connection: Connection, owner: str) -> None:
    connection.execute(delete(node_leases).where(node_leases.c.owner == owner))
