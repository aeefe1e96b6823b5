"""What a part may ask of the store: a transaction, a read, a stream of rows.

A transaction is a plain function of a SQLAlchemy `Connection`: `await db.write(record, batch)` runs `record(connection, batch)`
between BEGIN and COMMIT and returns what it returned, once that is durable. The function runs where its engine is fastest: in
the one writer thread of SQLite (a whole transaction costs one hop), or on the event loop over asyncpg (PostgreSQL). It must
therefore not await, block on anything but its own statements, or keep the connection.

Failure: an exception of the function rolls back and passes through. When the store itself cannot do it (down, locked, full),
`StoreUnavailable` is raised and nothing was kept. `IntegrityError` passes through: the caller knows what clashed.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

import structlog
from sqlalchemy import Connection, Row, Table, exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import Executable

from shortener.errors import StoreUnavailable

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Database(Protocol):
    """One of the two engines. `node` tells the processes that share the store apart (for `ids.IdGenerator`)."""

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]: ...

    @property
    def node(self) -> int: ...

    async def write(self, transact: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `transact` as one transaction; return when it is durable. Raises StoreUnavailable."""
        ...

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `query` on one consistent snapshot; it cannot write. Raises StoreUnavailable."""
        ...

    def stream(self, statement: Executable, *, size: int = 1000) -> AsyncIterator[Sequence[Row[Any]]]:
        """The rows of a statement in pieces of `size`, in constant memory. Raises StoreUnavailable."""
        ...

    async def close(self) -> None:
        """Finish what is under way and let go of every connection."""
        ...


def upsert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT of this connection's engine, for `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


#: Classes of SQLSTATE that asyncpg's dialect has no exception of its own for: data that a column cannot hold, wrong statements.
_OUR_MISTAKES = ("22", "42")


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turns what a driver raises when the store cannot answer into StoreUnavailable; lets a clash or our own mistake through."""
    try:
        yield
    except (exc.IntegrityError, exc.ProgrammingError, exc.DataError):
        raise
    except (exc.DBAPIError, exc.TimeoutError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        if (getattr(cause, "sqlstate", None) or "")[:2] in _OUR_MISTAKES:
            raise
        log.warning("store_unavailable", error=f"{type(cause).__name__}: {cause}".partition("\n")[0])
        raise StoreUnavailable(str(cause)) from error
